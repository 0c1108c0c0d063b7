//! What `hsm/setup-…` prints is all that a gateway needs to serve with the key that it has made.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::*;

/// A token as a script has described it.
struct Printed {
    text: String,
}

impl Printed {
    fn run(script: &str, arguments: &[&str]) -> Printed {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hsm").join(script);
        let ran = run(script.to_str().unwrap(), arguments, b"").ok();
        Printed { text: ran.stdout }
    }

    /// What stands behind this in one of the lines.
    fn value(&self, name: &str) -> &str {
        let value = self.text.lines().find_map(|line| line.strip_prefix(name));
        value
            .unwrap_or_else(|| panic!("no {name:?}:\n{}", self.text))
            .trim_matches('"')
    }
}

impl Token for Printed {
    fn label(&self) -> &str {
        self.value("[keys.").trim_end_matches(']')
    }

    fn module(&self) -> PathBuf {
        self.value("module = ").into()
    }

    fn pin_file(&self) -> PathBuf {
        self.value("pin_source = \"file:").into()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("Environment="));
        let variable = |line: &str| line.split_once('=').map(|(name, value)| (name.into(), value.into()));
        lines.filter_map(variable).collect()
    }

    /// For the key that the script has made.
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("public.der");
        let (module, file_name) = (self.module(), file.to_str().unwrap().to_owned());
        let mut read = vec!["--module", module.to_str().unwrap(), "--token-label", self.label()];
        read.extend([
            "--read-object",
            "--type",
            "pubkey",
            "--label",
            "site",
            "--output-file",
            &file_name,
        ]);
        run_with(&self.environment(), "pkcs11-tool", &read, b"").ok();
        ca.certify(name, dns_names, kind, &std::fs::read(file).unwrap());
    }

    fn uri(&self, _: &str) -> String {
        self.value("key = ").to_owned()
    }
}

fn serves(token: &Printed, kind: KeyKind) {
    let mode = std::fs::metadata(token.pin_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else reads the PIN");
    let origin = Origin::echo();
    let setup = Setup::new(Io::Epoll, &[origin.address()]).no_identities();
    let setup = setup
        .token(token, "sessions = 1")
        .token_identity(token, "site", &[SITE], kind);
    let gateway = setup.start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"hello");
    assert_eq!(client.receive(5), b"hello");
    client.finish();
}

#[test]
fn setup_softhsm() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("softhsm");
    let arguments = [
        "--folder",
        place.to_str().unwrap(),
        "--token",
        "here",
        "--type",
        "rsa:2048",
    ];
    let token = Printed::run("setup-softhsm", &arguments);
    serves(&token, KeyKind::Rsa);
    let again = Printed::run("setup-softhsm", &arguments);
    assert_eq!(again.text, token.text, "what is there stays");
    serves(&again, KeyKind::Rsa);
}

#[test]
fn setup_tpm() {
    let tpm = Tpm::new("other");
    let folder = tempfile::tempdir().unwrap();
    let (place, tcti) = (folder.path().join("tpm"), tpm.tcti());
    let token = Printed::run(
        "setup-tpm",
        &[
            "--folder",
            place.to_str().unwrap(),
            "--tcti",
            &tcti,
            "--type",
            "rsa:2048",
        ],
    );
    tpm.restart();
    serves(&token, KeyKind::Rsa);
}

#[test]
fn an_argument_that_is_not_known_is_refused_with_the_usage() {
    for script in ["setup-softhsm", "setup-tpm", "setup-p11-kit"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("hsm").join(script);
        let ran = run(path.to_str().unwrap(), &["--pin", "1234"], b"");
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
        assert!(ran.stderr.contains(&format!("hsm/{script} ")), "{ran:?}");
    }
}
