//! A PKI that `scripts/test-pki` has made with openssl, and configurations with its certificates.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{Ran, free_address, ringlock, run};

const HOUR: Duration = Duration::from_secs(3600);

/// See the script for what is in its folder.
pub(crate) struct Pki(TempDir);

/// An `[[identity]]` with a listener of its own.
pub(crate) struct Served {
    /// Where clients find it.
    pub(crate) address: SocketAddr,
    /// Both, for the configuration.
    pub(crate) toml: String,
}

impl Pki {
    /// A copy of one that is made once an hour: its keys take a while.
    pub(crate) fn new() -> Pki {
        let folder = TempDir::new().unwrap();
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-pki");
        let lock = File::create(shared.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/test-pki");
        let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        // The last thing that the script makes.
        let made = changed(&shared.join("lists/deep.pem"));
        let is_fresh = made > changed(&script) && made.is_some_and(|made| made.elapsed().is_ok_and(|age| age < HOUR));
        if !is_fresh {
            let _ = std::fs::remove_dir_all(&shared);
            let done = Command::new(&script).arg(&shared).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let from = shared.join(".").display().to_string();
        run("cp", &["-a", &from, folder.path().to_str().unwrap()], b"").ok();
        Pki(folder)
    }

    /// Where a file of it is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An identity with these lines, in which `PKI` is this folder, and a listener for it.
    pub(crate) fn served(&self, name: &str, lines: &str) -> Served {
        let address = free_address();
        let lines = lines.replace("PKI", self.0.path().to_str().unwrap());
        Served {
            address,
            toml: format!(
                "[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\nidentities = [\"{name}\"]\nupstream = \"app\"\n\
                 [[identity]]\nname = \"{name}\"\n{lines}\n"
            ),
        }
    }

    /// `ringlock check` of one identity with these lines.
    pub(crate) fn check(&self, lines: &str) -> Ran {
        self.check_all(&[self.served("site", lines)])
    }

    /// `ringlock check` of all these.
    pub(crate) fn check_all(&self, served: &[Served]) -> Ran {
        let listeners: String = served.iter().map(|served| served.toml.as_str()).collect();
        let text = format!("{listeners}[[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:9\"]\n");
        let config = self.file("ringlock.toml");
        std::fs::write(&config, text).unwrap();
        ringlock(&["check", "--config", config.to_str().unwrap()])
    }

    /// What openssl says as a client that knows the root alone and asks for this name.
    pub(crate) fn openssl(&self, address: SocketAddr, name: &str) -> Ran {
        let root = self.file("root.pem");
        let address = address.to_string();
        let arguments = [
            "s_client",
            "-connect",
            &address,
            "-servername",
            name,
            "-verify_hostname",
            name,
            "-verify_return_error",
            "-CAfile",
            root.to_str().unwrap(),
        ];
        run("openssl", &arguments, b"Q\n")
    }
}
