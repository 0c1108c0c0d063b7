//! Where PINs and pass phrases come from. They live as long as it takes to use them, in memory that is wiped afterwards.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::protocol::{Fault, FaultKind};
use crate::regular_file;
use crate::uri::PinSource;

/// A longer first line is refused: tokens take PINs of up to some 255 bytes, OpenSSL pass phrases of up to 1,024, and a wrong path is
/// neither.
const PIN_BYTES_MAX: usize = 1024;

/// Where systemd puts credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

impl PinSource {
    /// The PIN: the first line, without its end.
    ///
    /// # Errors
    /// A [`FaultKind::Pin`]: there is none, it is empty or too long, or it cannot be read.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let path = self.path()?;
        first_line(&path, "PIN")
    }

    /// The file that others than its owner and its group can read or write; none when they cannot, or when it is not there.
    #[must_use]
    pub fn exposed(&self) -> Option<PathBuf> {
        self.path().ok().filter(|path| regular_file::is_exposed(path))
    }

    fn path(&self) -> Result<PathBuf, Fault> {
        match self {
            PinSource::File(path) => Ok(path.clone()),
            PinSource::Credential(name) => match std::env::var_os(CREDENTIALS) {
                Some(folder) => Ok(Path::new(&folder).join(name)),
                None => {
                    let found =
                        format!("no systemd credentials ({CREDENTIALS} is not set), and so none named {name:?}");
                    Err(Fault::new(FaultKind::Pin, found))
                }
            },
        }
    }
}

/// The pass phrase of an encrypted key: the first line of a file, without its end.
///
/// # Errors
/// A [`FaultKind::Pin`]: there is none, it is empty or too long, or it cannot be read.
pub fn passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    first_line(path, "pass phrase")
}

fn first_line(path: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let fault = |what: &str| Fault::new(FaultKind::Pin, format!("{what} in {}", path.display()));
    // One byte more than a PIN and the two of a line's end: what does not fit is too long. Of a fixed size, so that
    // growing leaves no copy behind.
    let mut bytes = Zeroizing::new([0; PIN_BYTES_MAX + 3]);
    let used = regular_file::open(path)
        .and_then(|file| file.ok_or_else(|| io::Error::other("it is no regular file")))
        .and_then(|mut file| regular_file::fill(&mut file, bytes.as_mut_slice()))
        .map_err(|error| fault(&format!("no readable {name} ({error})")))?;
    let line = bytes[..used].split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.len() {
        0 => Err(fault(&format!("no {name} (the first line is empty)"))),
        1..=PIN_BYTES_MAX => Ok(Zeroizing::new(line.to_vec())),
        _ => Err(fault(&format!("a first line of more than {PIN_BYTES_MAX} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(content: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, content).unwrap();
        PinSource::File(path).read()
    }

    #[test]
    fn the_first_line_is_the_pin() {
        for content in ["1234", "1234\n", "1234\r\n", "1234\nthe rest\n"] {
            assert_eq!(read(content.as_bytes()).unwrap().as_slice(), b"1234");
        }
        let longest = "1".repeat(PIN_BYTES_MAX);
        for end in ["", "\n", "\r\n", "\r\nthe rest"] {
            let pin = read(format!("{longest}{end}").as_bytes()).unwrap();
            assert_eq!(pin.as_slice(), longest.as_bytes());
        }
    }

    #[test]
    fn what_is_no_pin_is_refused_and_not_shown() {
        let long = "s".repeat(PIN_BYTES_MAX + 1);
        for content in [
            &b""[..],
            b"\nsecret",
            b"\r\nsecret",
            long.as_bytes(),
            b"secret".repeat(1000).as_slice(),
        ] {
            let fault = read(content).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Pin);
            assert!(!fault.found.contains("secret"), "{}", fault.found);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let fault = PinSource::File("/nonexistent/pin".into()).read().unwrap_err();
        assert_eq!(fault.kind, FaultKind::Pin);
        assert_eq!(
            fault.found,
            "no readable PIN (No such file or directory (os error 2)) in /nonexistent/pin"
        );
    }

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [pipe, folder.path().to_owned()] {
            let fault = PinSource::File(path).read().unwrap_err();
            assert!(fault.found.contains("it is no regular file"), "{}", fault.found);
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_write_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, "1234\n").unwrap();
        let source = PinSource::File(path.clone());
        for (mode, exposed) in [
            (0o600, false),
            (0o640, false),
            (0o644, true),
            (0o602, true),
            (0o601, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(source.exposed(), exposed.then(|| path.clone()), "{mode:o}");
        }
        assert_eq!(PinSource::File("/nonexistent/pin".into()).exposed(), None);
    }
}
