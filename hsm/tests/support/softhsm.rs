//! SoftHSM tokens in a directory of the test's own. SoftHSM reads the environment, which a process must not change while it runs:
//! the test is started once more, alone, with the environment that it needs.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ringlock_hsm::pkcs11::Pkcs11Module;
use ringlock_hsm::protocol::TokenSettings;
use ringlock_hsm::uri::{PinSource, TokenMatch};

const DIRECTORY: &str = "RINGLOCK_TEST_SOFTHSM";

pub(crate) const PIN: &str = "1234";

/// Where SoftHSM keeps its tokens.
pub(crate) struct SoftHsm {
    directory: PathBuf,
}

/// Runs the test with this name, as the harness calls it, in a process that has a SoftHSM of its own.
pub(crate) fn with_softhsm(test: &str, body: impl FnOnce(&SoftHsm)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return body(&SoftHsm {
            directory: directory.into(),
        });
    }
    let directory = tempfile::tempdir().unwrap();
    let (tokens, configuration) = (directory.path().join("tokens"), directory.path().join("softhsm2.conf"));
    std::fs::create_dir(&tokens).unwrap();
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    std::fs::write(&configuration, text).unwrap();
    std::fs::write(directory.path().join("pin"), format!("{PIN}\n")).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SOFTHSM2_CONF", configuration)
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let (told, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{told}\n{complaint}");
    assert!(told.contains("1 passed"), "no test is called {test}: {told}");
}

/// SoftHSM's module, where distributions put it.
pub(crate) fn module_path() -> PathBuf {
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    ];
    let place = places.iter().map(PathBuf::from).find(|path| path.exists());
    place.expect("SoftHSM 2 is installed (package softhsm2)")
}

impl SoftHsm {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn load(&self) -> Pkcs11Module {
        Pkcs11Module::load(&module_path()).unwrap()
    }

    /// Makes a token in a slot that is free.
    pub(crate) fn make(&self, label: &str) {
        run(Command::new("softhsm2-util").args([
            "--init-token",
            "--free",
            "--so-pin",
            "5678",
            "--pin",
            PIN,
            "--label",
            label,
        ]));
    }

    pub(crate) fn remove(&self, label: &str) {
        run(Command::new("softhsm2-util").args(["--delete-token", "--token", label]));
    }

    /// Puts a key pair into a token.
    pub(crate) fn import(&self, token: &str, pem: &str, label: &str, id: &str) {
        let path = self.path("imported.pem");
        std::fs::write(&path, pem).unwrap();
        run(Command::new("softhsm2-util")
            .args([
                "--token", token, "--pin", PIN, "--label", label, "--id", id, "--force", "--import",
            ])
            .arg(path));
    }

    /// pkcs11-tool, logged in to a token.
    pub(crate) fn tool(&self, token: &str, arguments: &[&str]) {
        run(Command::new("pkcs11-tool")
            .arg("--module")
            .arg(module_path())
            .args(["--login", "--pin", PIN, "--token-label", token])
            .args(arguments));
    }

    pub(crate) fn settings(&self, label: &str) -> TokenSettings {
        TokenSettings {
            find: TokenMatch {
                label: Some(label.to_owned()),
                ..TokenMatch::default()
            },
            pin: Some(PinSource::File(self.path("pin"))),
            sessions: 1,
            timeout: Duration::from_secs(2),
            keep_alive: None,
            login: true,
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
}
