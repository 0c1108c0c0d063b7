//! Clients with certificates: the files that a gateway knows them by, and who is let in and who is not.

use std::path::{Path, PathBuf};

use rustls::AlertDescription;
use tempfile::TempDir;

use super::{Authority, Client, Gateway, Io, Origin, Setup, Shown, eventually, try_exchange};

/// A folder with the files that a gateway knows clients by: at first a root in `ca.pem`.
pub(crate) struct ClientFiles {
    /// The root.
    pub(crate) root: Authority,
    folder: TempDir,
}

impl ClientFiles {
    /// Makes them.
    pub(crate) fn new() -> ClientFiles {
        let files = ClientFiles {
            root: Authority::root("clients"),
            folder: TempDir::new().unwrap(),
        };
        files.write("ca.pem", files.root.pem());
        files
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of them.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes or replaces one.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// A gateway that requires certificates, with these keys in `[listener.client_auth]`.
    pub(crate) fn setup(&self, io: Io, origin: &Origin, keys: &str) -> Setup {
        Setup::new(io, &[origin.address()]).listener(&format!(
            "client_auth = {{ mode = \"required\", ca = {:?}, {keys} }}",
            self.path("ca.pem")
        ))
    }

    /// With these lists.
    pub(crate) fn with_lists(&self, io: Io, origin: &Origin, lists: &[Vec<u8>]) -> Gateway {
        let keys = self.lists(lists);
        self.setup(io, origin, &keys).start()
    }

    /// Writes these lists; the key `crl` with them.
    pub(crate) fn lists(&self, lists: &[Vec<u8>]) -> String {
        let mut paths = Vec::new();
        for (number, list) in lists.iter().enumerate() {
            let name = format!("{number}.crl");
            self.write(&name, list);
            paths.push(self.path(&name));
        }
        format!("crl = {paths:?}")
    }
}

/// In both versions.
#[track_caller]
pub(crate) fn let_in(gateway: &Gateway, shown: &Shown) {
    let client = Client::new(gateway).shows(shown);
    for client in [client.clone().tls12(), client.tls13()] {
        try_exchange(&client).unwrap();
    }
    gateway.wait_until_quiet();
}

/// In both versions; the log says so in these words.
#[track_caller]
pub(crate) fn refused(gateway: &Gateway, shown: &Shown, alert: AlertDescription, words: &str) {
    let counted = || {
        let metrics = gateway.metrics();
        metrics.count("ringlock_handshake_failures_total", &[("cause", "client_certificate")])
    };
    let start = format!("client certificate {words}");
    let says_so = |line: &serde_json::Value| {
        let cause = line["cause"].as_str().unwrap_or_default();
        line["message"] == "connection" && line["fault"] == "peer" && cause.starts_with(&start)
    };
    let said = || gateway.log_lines().iter().filter(|line| says_so(line)).count();
    let client = Client::new(gateway).shows(shown);
    for client in [client.clone().tls12(), client.tls13()] {
        let (before, lines) = (counted(), said());
        assert_eq!(client.refused_after_its_flight(), alert, "{words}");
        gateway.wait_until_quiet();
        assert_eq!(counted(), before + 1, "{words}");
        eventually(&format!("a line with {words:?}"), || (said() > lines).then_some(()));
    }
}
