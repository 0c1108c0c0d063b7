//! `[listener.client_auth]`, and the names of clients that `allow` has.

use std::fmt;
use std::path::PathBuf;

use super::keys::{CLIENT_NAME, CRL};
use super::names::host_name;
use super::read::{Table, choice, count, list, path, paths, shown};

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
    /// `allow`: `None` means everybody, otherwise never empty.
    pub allow: Option<Vec<ClientName>>,
}

/// What kind of name a certificate has for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A URI among the alternative names.
    Uri,
    /// A DNS name among the alternative names.
    Dns,
    /// An email address among the alternative names.
    Email,
    /// A common name of the subject.
    CommonName,
}

/// An entry of `allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName {
    kind: NameKind,
    /// The name, or what the names have in common: `spiffe://example.org/ns/prod/`, `.clients.example.com`.
    text: String,
    wildcard: bool,
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
    let allow = table.read_optional(
        "allow",
        list(|report, at, text| match ClientName::parse(text) {
            Ok(name) => Some(name),
            Err(remedy) => {
                report.refuse(at, shown(text), CLIENT_NAME, remedy);
                None
            }
        }),
    );
    let (mode, ca, crl, verify_depth, allow) = (mode?, ca?, crl?, verify_depth?, allow?);
    let Some(required) = mode else {
        let given = ["ca", "crl", "verify_depth", "allow"]
            .into_iter()
            .find(|key| table.has(key));
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
        allow,
    }))
}

impl ClientName {
    /// An entry as it is in the file.
    ///
    /// # Errors
    /// What is to be done about one that is none.
    pub fn parse(text: &str) -> Result<ClientName, String> {
        if text.chars().any(char::is_control) {
            return Err("remove the control characters".to_owned());
        }
        if text.starts_with("spiffe:") {
            return uri(text);
        }
        match text.split_once(':') {
            Some(("uri", rest)) => uri(rest),
            Some(("dns", rest)) => dns(rest),
            Some(("email", rest)) => email(rest),
            Some(("cn", rest)) => common_name(rest),
            Some(_) | None => {
                Err("begin it with what kind of name it is: spiffe://, uri:, dns:, email: or cn:".to_owned())
            }
        }
    }

    /// Whether a certificate with this name is meant. No name with a control character is, whatever its kind.
    #[must_use]
    pub fn allows(&self, kind: NameKind, name: &str) -> bool {
        if kind != self.kind {
            return false;
        }
        match (kind, self.wildcard) {
            (NameKind::Uri, true) => name.strip_prefix(&self.text).is_some_and(is_plain_path),
            // What is no host name (a wildcard of the certificate's own, a dot at the end) is none of those that are meant.
            (NameKind::Dns, false) => host_name(name).is_ok_and(|name| name == self.text),
            (NameKind::Dns, true) => host_name(name).is_ok_and(|name| {
                name.find('.')
                    .is_some_and(|label_end| name[label_end..] == self.text[..])
            }),
            (NameKind::Uri, false) | (NameKind::Email | NameKind::CommonName, _) => name == self.text,
        }
    }
}

impl fmt::Display for ClientName {
    /// As in the file, in one form of those that mean the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match (self.kind, self.wildcard) {
            (NameKind::Uri, false) => write!(f, "uri:{text}"),
            (NameKind::Uri, true) => write!(f, "uri:{text}*"),
            (NameKind::Dns, false) => write!(f, "dns:{text}"),
            (NameKind::Dns, true) => write!(f, "dns:*{text}"),
            (NameKind::Email, _) => write!(f, "email:{text}"),
            (NameKind::CommonName, _) => write!(f, "cn:{text}"),
        }
    }
}

fn exact(kind: NameKind, text: &str) -> ClientName {
    ClientName {
        kind,
        text: text.to_owned(),
        wildcard: false,
    }
}

fn uri(text: &str) -> Result<ClientName, String> {
    const STAR: &str = "let the star be the last segment of the path and nothing else";
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("write it as a certificate has it: in ASCII, without spaces".to_owned());
    }
    let (scheme, rest) = text
        .split_once(':')
        .filter(|(scheme, rest)| is_scheme(scheme) && !rest.is_empty())
        .ok_or("write the whole URI with its scheme, such as uri:https://example.org/a")?;
    let spiffe = scheme.eq_ignore_ascii_case("spiffe");
    let Some(prefix) = text.strip_suffix('*') else {
        if text.contains('*') {
            return Err(STAR.to_owned());
        }
        return if spiffe { check_spiffe(text) } else { Ok(()) }.map(|()| exact(NameKind::Uri, text));
    };
    let parent = prefix
        .strip_suffix('/')
        .filter(|parent| !parent.contains('*'))
        .ok_or(STAR)?;
    if rest.starts_with("///") || rest.starts_with("//*") {
        return Err("name the host: a star for all of them would allow everybody".to_owned());
    }
    if spiffe {
        check_spiffe(parent)?;
    }
    Ok(ClientName {
        kind: NameKind::Uri,
        text: prefix.to_owned(),
        wildcard: true,
    })
}

/// RFC 3986 section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// The SPIFFE ID and Verifiable Identity Document standard, section 2: what breaks it is in no certificate.
fn check_spiffe(text: &str) -> Result<(), String> {
    let (domain, path) = match text.strip_prefix("spiffe://") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => return Err("begin it with spiffe:// in lower case".to_owned()),
    };
    let domain_is_fine = !domain.is_empty()
        && domain
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
    if !domain_is_fine {
        return Err("name a trust domain of lower-case letters, digits, dots, hyphens and underscores".to_owned());
    }
    let segment_is_fine = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    match path.strip_prefix('/') {
        Some(path) if !path.split('/').all(segment_is_fine) => Err(
            "let the path have segments of letters, digits, dots, hyphens and underscores, and no slash at its end"
                .to_owned(),
        ),
        Some(_) | None => Ok(()),
    }
}

/// Below a prefix nothing matches that somebody might resolve to another place: dot segments, also encoded, and empty ones.
fn is_plain_path(rest: &str) -> bool {
    rest.split('/').all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_graphic() && !matches!(b, b'%' | b'?' | b'#' | b'\\'))
    })
}

fn dns(text: &str) -> Result<ClientName, String> {
    let parent = text.strip_prefix("*.");
    let name = host_name(parent.unwrap_or(text)).map_err(|what| {
        if text.contains('*') {
            "let the star be the whole leftmost label and nothing else".to_owned()
        } else if !text.is_ascii() {
            "write it as punycode (xn--…), as certificates have it".to_owned()
        } else {
            format!("correct it: {what}")
        }
    })?;
    Ok(ClientName {
        kind: NameKind::Dns,
        text: if parent.is_some() { format!(".{name}") } else { name },
        wildcard: parent.is_some(),
    })
}

fn email(text: &str) -> Result<ClientName, String> {
    no_star(text)?;
    match text.split_once('@') {
        Some((local, host)) if !local.is_empty() && !host.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(exact(NameKind::Email, text))
        }
        Some(_) | None => Err("write an address such as email:ops@example.com".to_owned()),
    }
}

fn common_name(text: &str) -> Result<ClientName, String> {
    no_star(text)?;
    if text.trim() != text || text.is_empty() {
        return Err("write the name behind cn:, without spaces around it".to_owned());
    }
    Ok(exact(NameKind::CommonName, text))
}

/// A star that is taken as it is would allow nobody, and who wrote it did not mean that.
fn no_star(text: &str) -> Result<(), String> {
    if text.contains('*') {
        return Err("write the whole name: stars are for spiffe://, uri: and dns:".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::NameKind::{CommonName, Dns, Email, Uri};
    use super::*;

    fn allows(pattern: &str, kind: NameKind, name: &str) -> bool {
        ClientName::parse(pattern).expect("it is legal").allows(kind, name)
    }

    #[test]
    fn below_a_prefix_are_whole_segments() {
        for pattern in ["spiffe://example.org/ns/prod/*", "uri:spiffe://example.org/ns/prod/*"] {
            for name in ["a", "a/b", "sa/web-1_x.y", "..."] {
                assert!(
                    allows(pattern, Uri, &format!("spiffe://example.org/ns/prod/{name}")),
                    "{name}"
                );
            }
            for name in [
                "spiffe://example.org/ns/prod",
                "spiffe://example.org/ns/prod/",
                "spiffe://example.org/ns/production/a",
                "spiffe://example.org/ns/prod/../admin",
                "spiffe://example.org/ns/prod/..",
                "spiffe://example.org/ns/prod/./a",
                "spiffe://example.org/ns/prod//a",
                "spiffe://example.org/ns/prod/a/",
                "spiffe://example.org/ns/prod/%2e%2e/admin",
                "spiffe://example.org/ns/prod/a?b",
                "spiffe://example.org/ns/prod/a#b",
                "spiffe://example.org/ns/prod/a\\b",
                "spiffe://example.org/ns/prod/a\0b",
                "spiffe://example.org/ns/prod/a b",
                "spiffe://example.org/ns/prod/ä",
                "spiffe://example.org/ns/Prod/a",
                "spiffe://example.org.evil/ns/prod/a",
                "xspiffe://example.org/ns/prod/a",
                "",
            ] {
                assert!(!allows(pattern, Uri, name), "{name:?}");
            }
            assert!(!allows(pattern, CommonName, "spiffe://example.org/ns/prod/a"));
        }
        assert!(allows("spiffe://example.org/*", Uri, "spiffe://example.org/a"));
        assert!(!allows("spiffe://example.org/*", Uri, "spiffe://example.org"));
        assert!(allows("uri:urn:clients/*", Uri, "urn:clients/7"));
    }

    #[test]
    fn a_wildcard_is_one_leftmost_label() {
        let pattern = "dns:*.Clients.example.com";
        for name in [
            "a.clients.example.com",
            "A.CLIENTS.example.COM",
            "a-1.clients.example.com",
        ] {
            assert!(allows(pattern, Dns, name), "{name}");
        }
        for name in [
            "clients.example.com",
            ".clients.example.com",
            "a.b.clients.example.com",
            "*.clients.example.com",
            "a.clients.example.com.",
            "a.clients.example.com\0",
            "a\0.clients.example.com",
            "aclients.example.com",
            "a.clients.example.com.evil",
            "",
        ] {
            assert!(!allows(pattern, Dns, name), "{name:?}");
        }
        assert!(!allows(pattern, CommonName, "a.clients.example.com"));
    }

    #[test]
    fn everything_else_is_exact() {
        assert!(allows("dns:Host.example", Dns, "hOST.example"));
        assert!(!allows("dns:host.example", Dns, "a.host.example"));
        assert!(!allows("dns:host.example", Uri, "host.example"));
        assert!(allows("uri:https://example.org/A", Uri, "https://example.org/A"));
        assert!(!allows("uri:https://example.org/A", Uri, "https://example.org/a"));
        assert!(!allows("uri:https://example.org/A", Uri, "https://example.org/A/b"));
        assert!(allows("spiffe://example.org/a", Uri, "spiffe://example.org/a"));
        assert!(allows("email:ops@example.com", Email, "ops@example.com"));
        assert!(!allows("email:ops@example.com", Email, "ops@example.com.evil"));
        assert!(!allows("email:ops@example.com", CommonName, "ops@example.com"));
        assert!(allows("cn:batch-7", CommonName, "batch-7"));
        assert!(allows("cn:Müller & Söhne: 7", CommonName, "Müller & Söhne: 7"));
        for name in ["Batch-7", "batch-7\0", "batch-77", "batch-7 ", "", "\0batch-7"] {
            assert!(!allows("cn:batch-7", CommonName, name), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_told() {
        let kind = "begin it with what kind of name it is: spiffe://, uri:, dns:, email: or cn:";
        let star = "let the star be the last segment of the path and nothing else";
        let label = "let the star be the whole leftmost label and nothing else";
        let whole = "write the whole name: stars are for spiffe://, uri: and dns:";
        let address = "write an address such as email:ops@example.com";
        let scheme = "write the whole URI with its scheme, such as uri:https://example.org/a";
        let domain = "name a trust domain of lower-case letters, digits, dots, hyphens and underscores";
        let path =
            "let the path have segments of letters, digits, dots, hyphens and underscores, and no slash at its end";
        for (text, remedy) in [
            ("batch-7", kind),
            ("CN=batch-7", kind),
            ("DNS:a.example", kind),
            ("https://example.org/a", kind),
            ("*", kind),
            ("cn:a\nb", "remove the control characters"),
            ("cn:", "write the name behind cn:, without spaces around it"),
            ("cn: a", "write the name behind cn:, without spaces around it"),
            ("cn:batch-*", whole),
            ("email:*@example.com", whole),
            ("email:example.com", address),
            ("email:@example.com", address),
            ("email:a b@example.com", address),
            ("dns:*", label),
            ("dns:a*.example", label),
            ("dns:*.*.example", label),
            ("dns:", "correct it: a label is empty"),
            ("dns:a..b", "correct it: a label is empty"),
            (
                "dns:bücher.example",
                "write it as punycode (xn--…), as certificates have it",
            ),
            ("uri:", scheme),
            ("uri:/a", scheme),
            (
                "uri:a b:c",
                "write it as a certificate has it: in ASCII, without spaces",
            ),
            ("uri:https://a/*/b", star),
            ("uri:https://a/b*", star),
            ("uri:https://a/*/*", star),
            (
                "uri:https:///*",
                "name the host: a star for all of them would allow everybody",
            ),
            (
                "uri:https://*",
                "name the host: a star for all of them would allow everybody",
            ),
            ("spiffe:example.org", "begin it with spiffe:// in lower case"),
            ("uri:SPIFFE://example.org/a", "begin it with spiffe:// in lower case"),
            (
                "spiffe://*",
                "name the host: a star for all of them would allow everybody",
            ),
            ("spiffe:///a", domain),
            ("spiffe://Example.org/a", domain),
            ("spiffe://example.org:8443/a", domain),
            ("spiffe://example.org/a/", path),
            ("spiffe://example.org/a//*", path),
            ("spiffe://example.org/a/../b", path),
            ("spiffe://example.org/a%20b", path),
            ("spiffe://example.org/a*", star),
        ] {
            assert_eq!(ClientName::parse(text), Err(remedy.to_owned()), "{text}");
        }
    }

    /// Names that mean the same are the same, in the list and in what is derived from it.
    #[test]
    fn the_form_is_one() {
        for (text, form) in [
            ("spiffe://example.org/ns/*", "uri:spiffe://example.org/ns/*"),
            ("uri:spiffe://example.org/ns/*", "uri:spiffe://example.org/ns/*"),
            ("dns:*.A.example", "dns:*.a.example"),
            ("dns:A.example", "dns:a.example"),
            ("email:A@b", "email:A@b"),
            ("cn:a:b", "cn:a:b"),
        ] {
            let name = ClientName::parse(text).expect("it is legal");
            assert_eq!(name.to_string(), form);
            assert_eq!(ClientName::parse(form), Ok(name));
        }
    }
}
