//! `[listener.client_auth]`: whom a listener lets in.

mod name;

use std::path::{Path, PathBuf};

pub use self::name::{ClientName, NameKind, issuer_text, public_key_text, serial_digits, serial_text};
use super::keys::{CLIENT_DENIED, CLIENT_NAME, CRL};
use super::read::{At, Report, Table, choice, count, flag, list, path, paths, shown};

/// `[listener.client_auth]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// `mode`: "required", otherwise "optional".
    pub required: bool,
    /// `ca`: a PEM file with trust anchors.
    pub ca: PathBuf,
    /// `crl`: files with revocation lists; none when nothing is revoked.
    pub crl: Vec<PathBuf>,
    /// `verify_depth`: most certificates between the client's and a trust anchor.
    pub verify_depth: usize,
    /// `crl_check`
    pub crl_check: CrlCheck,
    /// `crl_expired`: "accept", otherwise "refuse".
    pub accepts_expired_crls: bool,
    /// `allow`: `None` means everybody, otherwise never empty.
    pub allow: Option<Vec<ClientName>>,
    /// `deny`: whom nothing lets in.
    pub deny: Vec<ClientName>,
    /// `close_revoked`: also connections that are established.
    pub close_revoked: bool,
}

/// Which certificates of a client's chain are looked up in revocation lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrlCheck {
    /// All of them.
    #[default]
    Chain,
    /// The client's own.
    Leaf,
}

impl ClientAuth {
    /// Every file that is read for it, to be watched.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.ca].into_iter().chain(&self.crl).map(PathBuf::as_path)
    }
}

/// Reads the table; `Some(None)` when clients are not asked for certificates.
pub(super) fn read(table: &mut Table<'_, '_>) -> Option<Option<ClientAuth>> {
    let mode = table.read(
        "mode",
        choice(&[("off", None), ("optional", Some(false)), ("required", Some(true))]),
    );
    let ca = table.read_optional("ca", path);
    let crl = table.read_optional("crl", paths(CRL));
    let verify_depth = table.read("verify_depth", count);
    let crl_check = table.read(
        "crl_check",
        choice(&[("chain", CrlCheck::Chain), ("leaf", CrlCheck::Leaf)]),
    );
    let crl_expired = table.read("crl_expired", choice(&[("refuse", false), ("accept", true)]));
    let allow = table.read_optional("allow", list(allowed));
    let deny = table.read_optional("deny", list(denied));
    let close_revoked = table.read("close_revoked", flag);
    let (mode, ca, crl, verify_depth, crl_check) = (mode?, ca?, crl?, verify_depth?, crl_check?);
    let (crl_expired, allow, deny, close_revoked) = (crl_expired?, allow?, deny?, close_revoked?);
    let Some(required) = mode else {
        let given = OTHERS.into_iter().find(|key| table.has(key));
        if let Some(key) = given.filter(|_| !table.has("mode")) {
            let at = table.at(key);
            let remedy = "add mode = \"required\" or mode = \"optional\", or mode = \"off\" to say that this is meant";
            table
                .report
                .warn(&at, "it has no effect: mode is \"off\" when it is absent", remedy);
        }
        return Some(None);
    };
    let Some(ca) = ca else {
        let at = table.at("ca");
        table.report.refuse(
            &at,
            "nothing",
            "the path of a PEM file with the CAs whose clients are accepted",
            "add \"ca\" to this table, or write mode = \"off\"",
        );
        return None;
    };
    Some(Some(ClientAuth {
        required,
        ca,
        crl: crl.unwrap_or_default(),
        verify_depth: usize::try_from(verify_depth).expect("its bound fits any usize"),
        crl_check,
        accepts_expired_crls: crl_expired,
        allow,
        deny: deny.unwrap_or_default(),
        close_revoked,
    }))
}

/// Keys that mean nothing without `mode`.
const OTHERS: [&str; 8] = [
    "ca",
    "crl",
    "verify_depth",
    "crl_check",
    "crl_expired",
    "allow",
    "deny",
    "close_revoked",
];

fn allowed(report: &mut Report, at: &At, text: &str) -> Option<ClientName> {
    match ClientName::parse(text) {
        // CAs that know nothing of each other may give the same number.
        Ok(name) if name.kind() == NameKind::Serial => {
            let remedy = "pin the public key of one certificate with spki:, or move the entry to deny";
            report.refuse(at, shown(text), CLIENT_NAME, remedy);
            None
        }
        Ok(name) => Some(name),
        Err(remedy) => {
            report.refuse(at, shown(text), CLIENT_NAME, remedy);
            None
        }
    }
}

fn denied(report: &mut Report, at: &At, text: &str) -> Option<ClientName> {
    let name = ClientName::parse(text);
    name.map_err(|remedy| report.refuse(at, shown(text), CLIENT_DENIED, remedy))
        .ok()
}
