//! What `allow` and `deny` say of clients: names of certificates, and what else they are known by.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use x509_cert::name::Name;

use crate::config::names::host_name;

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
    /// An organization of the subject.
    Organization,
    /// An organizational unit of the subject.
    OrganizationalUnit,
    /// The public key: SHA-256 of its SubjectPublicKeyInfo in Base64.
    PublicKey,
    /// The whole name of the issuer, as [`issuer_text`] has it.
    Issuer,
    /// The serial number and the issuer, as [`serial_text`] has them.
    Serial,
}

/// An entry of `allow` or `deny`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName {
    kind: NameKind,
    /// The name, or what the names have in common: `spiffe://example.org/ns/prod/`, `.clients.example.com`, `0a1b@`.
    text: String,
    wildcard: bool,
}

/// The name of an issuer as RFC 4514 writes it, whatever kinds of strings the certificate has it in.
#[must_use]
pub fn issuer_text(issuer: &Name) -> String {
    issuer.to_string()
}

/// A serial number, in bytes as a certificate has it, in hexadecimal: without the zeros in front, as OpenSSL prints it and `deny` has it.
#[must_use]
pub fn serial_digits(serial: &[u8]) -> String {
    let zeros = serial.iter().take_while(|&&byte| byte == 0).count();
    HEXLOWER.encode(&serial[zeros.min(serial.len().saturating_sub(1))..])
}

/// The same with the text of the issuer that gave it: `0a1b@CN=clients`.
#[must_use]
pub fn serial_text(serial: &[u8], issuer: &str) -> String {
    format!("{}@{issuer}", serial_digits(serial))
}

/// SHA-256 of a public key as people pin it.
#[must_use]
pub fn public_key_text(digest: &[u8; 32]) -> String {
    BASE64.encode(digest)
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
            Some(("cn", rest)) => of_subject(NameKind::CommonName, "cn", rest),
            Some(("o", rest)) => of_subject(NameKind::Organization, "o", rest),
            Some(("ou", rest)) => of_subject(NameKind::OrganizationalUnit, "ou", rest),
            Some(("spki", rest)) => public_key(rest),
            Some(("issuer", rest)) => issuer(rest).map(|name| exact(NameKind::Issuer, &name)),
            Some(("serial", rest)) => serial(rest),
            Some(_) | None => Err(
                "begin it with what it is: spiffe://, uri:, dns:, email:, cn:, o:, ou:, spki:, issuer: or serial:"
                    .to_owned(),
            ),
        }
    }

    /// What kind of name it is about.
    #[must_use]
    pub fn kind(&self) -> NameKind {
        self.kind
    }

    /// Whether a certificate with this name is meant. No name with a control character is, whatever its kind.
    #[must_use]
    pub fn matches(&self, kind: NameKind, name: &str) -> bool {
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
            (NameKind::Serial, true) => name.starts_with(&self.text),
            (NameKind::Uri | NameKind::Serial, false)
            | (
                NameKind::Email
                | NameKind::CommonName
                | NameKind::Organization
                | NameKind::OrganizationalUnit
                | NameKind::PublicKey
                | NameKind::Issuer,
                _,
            ) => name == self.text,
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
            (NameKind::Organization, _) => write!(f, "o:{text}"),
            (NameKind::OrganizationalUnit, _) => write!(f, "ou:{text}"),
            (NameKind::PublicKey, _) => write!(f, "spki:sha256/{text}"),
            (NameKind::Issuer, _) => write!(f, "issuer:{text}"),
            (NameKind::Serial, false) => write!(f, "serial:{text}"),
            // The text ends where an issuer would follow.
            (NameKind::Serial, true) => write!(f, "serial:{}", text.strip_suffix('@').unwrap_or(text)),
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

fn of_subject(kind: NameKind, prefix: &str, text: &str) -> Result<ClientName, String> {
    no_star(text)?;
    if text.trim() != text || text.is_empty() {
        return Err(format!("write the name behind {prefix}:, without spaces around it"));
    }
    Ok(exact(kind, text))
}

/// In Base64, with `sha256/` in front (curl has a second slash there), or in hexadecimal.
fn public_key(text: &str) -> Result<ClientName, String> {
    const DIGEST_BYTES: usize = 32;
    let base64 = ["sha256//", "sha256/"].iter().find_map(|&prefix| {
        let digest = BASE64.decode(text.strip_prefix(prefix)?.as_bytes()).ok()?;
        <[u8; DIGEST_BYTES]>::try_from(digest).ok()
    });
    let hexadecimal = || <[u8; DIGEST_BYTES]>::try_from(HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?).ok();
    match base64.or_else(hexadecimal) {
        Some(digest) => Ok(exact(NameKind::PublicKey, &public_key_text(&digest))),
        None => Err("write the SHA-256 of the public key in Base64, such as spki:sha256/yCa1…=".to_owned()),
    }
}

/// The text of an issuer in its one form.
fn issuer(text: &str) -> Result<String, String> {
    const REMEDY: &str =
        "write the issuer's whole name as `openssl x509 -noout -issuer -nameopt rfc2253` prints it behind issuer=";
    let name = Name::from_str(text).map_err(|_| REMEDY)?;
    let form = issuer_text(&name);
    // What is not the same when it is read again has been taken for something else.
    let is_read = !name.is_empty() && Name::from_str(&form).is_ok_and(|again| issuer_text(&again) == form);
    if is_read { Ok(form) } else { Err(REMEDY.to_owned()) }
}

/// In hexadecimal as `openssl x509 -serial` prints it, or with colons; with `@` and the issuer behind it, or of any.
fn serial(text: &str) -> Result<ClientName, String> {
    /// RFC 5280 section 4.1.2.2 has no longer ones.
    const SERIAL_BYTES_MAX: usize = 20;
    let (number, of) = match text.split_once('@') {
        Some((number, of)) => (number, Some(issuer(of)?)),
        None => (text, None),
    };
    let digits: String = number.chars().filter(|&c| c != ':').collect();
    let padded = if digits.len() % 2 == 1 {
        format!("0{digits}")
    } else {
        digits
    };
    let bytes = HEXLOWER_PERMISSIVE
        .decode(padded.as_bytes())
        .ok()
        .filter(|bytes| (1..=SERIAL_BYTES_MAX).contains(&bytes.len()))
        .ok_or("write the serial number in hexadecimal, as `openssl x509 -noout -serial` prints it behind serial=")?;
    Ok(ClientName {
        kind: NameKind::Serial,
        text: serial_text(&bytes, of.as_deref().unwrap_or_default()),
        wildcard: of.is_none(),
    })
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
    use super::NameKind::{CommonName, Dns, Email, Issuer, Organization, OrganizationalUnit, PublicKey, Serial, Uri};
    use super::*;

    fn allows(pattern: &str, kind: NameKind, name: &str) -> bool {
        ClientName::parse(pattern).expect("it is legal").matches(kind, name)
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
        assert!(allows("o:Example Corp", Organization, "Example Corp"));
        assert!(!allows("o:Example Corp", OrganizationalUnit, "Example Corp"));
        assert!(allows("ou:Payments", OrganizationalUnit, "Payments"));
        assert!(!allows("ou:Payments", OrganizationalUnit, "payments"));
        for name in ["Batch-7", "batch-7\0", "batch-77", "batch-7 ", "", "\0batch-7"] {
            assert!(!allows("cn:batch-7", CommonName, name), "{name:?}");
        }
    }

    /// Of one key: as OpenSSL, curl and people write it.
    #[test]
    fn a_public_key_is_pinned_in_several_forms() {
        let digest: [u8; 32] = std::array::from_fn(|position| 0xf8 + u8::try_from(position).unwrap() % 7);
        let base64 = BASE64.encode(&digest);
        let hexadecimal = HEXLOWER.encode(&digest);
        for form in [
            format!("spki:sha256/{base64}"),
            format!("spki:sha256//{base64}"),
            format!("spki:{hexadecimal}"),
            format!("spki:{}", hexadecimal.to_uppercase()),
        ] {
            assert!(allows(&form, PublicKey, &public_key_text(&digest)), "{form}");
            assert!(!allows(&form, PublicKey, &public_key_text(&[0; 32])), "{form}");
        }
        // A digest whose Base64 begins with a slash is not mistaken for curl's second one.
        let slash = BASE64.encode(&[0xff; 32]);
        assert!(slash.starts_with('/'));
        assert!(allows(
            &format!("spki:sha256/{slash}"),
            PublicKey,
            &public_key_text(&[0xff; 32])
        ));
    }

    #[test]
    fn a_serial_number_is_of_one_issuer_or_of_any() {
        let of = |issuer| serial_text(&[0, 0x8a, 0x1b], issuer);
        for form in ["serial:8A1B", "serial:8a:1b", "serial:008a1B", "serial:08a1b"] {
            assert!(allows(form, Serial, &of("CN=clients")), "{form}");
            assert!(allows(form, Serial, &of("CN=others")), "{form}");
            assert!(
                !allows(form, Serial, &serial_text(&[0x8a, 0x1b, 0], "CN=clients")),
                "{form}"
            );
            assert!(
                !allows(form, Serial, &serial_text(&[1, 0x8a, 0x1b], "CN=clients")),
                "{form}"
            );
            assert!(!allows(form, CommonName, "8a1b@CN=clients"), "{form}");
        }
        let form = "serial:8A1B@CN=clients,O=Example";
        assert!(allows(form, Serial, &of("CN=clients,O=Example")));
        assert!(!allows(form, Serial, &of("CN=clients")));
        assert!(!allows(form, Serial, &of("CN=clients,O=Example 2")));
        for form in ["serial:8a1b", "serial:8a1b@CN=clients", "serial:8a1b@CN=clients@"] {
            assert_eq!(ClientName::parse(form).unwrap().to_string(), form);
        }
    }

    #[test]
    fn an_issuer_is_its_whole_name() {
        let form = r"issuer:CN=Clients\, new,OU=a+OU=b,O=M\C3\BCller,DC=example,emailAddress=ops@example.com,C=DE";
        let name = r"CN=Clients\, new,OU=a+OU=b,O=Müller,DC=example,EMAILADDRESS=ops@example.com,C=DE";
        assert_eq!(
            ClientName::parse(form).unwrap().to_string(),
            format!("issuer:{}", issuer(name).unwrap())
        );
        assert!(allows(form, Issuer, &issuer(name).unwrap()));
        for other in ["CN=Clients", "C=DE", r"C=DE,CN=Clients\, new"] {
            assert!(!allows(form, Issuer, &issuer(other).unwrap()), "{other}");
        }
    }

    #[test]
    fn what_is_no_name_is_told() {
        let kind = "begin it with what it is: spiffe://, uri:, dns:, email:, cn:, o:, ou:, spki:, issuer: or serial:";
        let pin = "write the SHA-256 of the public key in Base64, such as spki:sha256/yCa1…=";
        let number =
            "write the serial number in hexadecimal, as `openssl x509 -noout -serial` prints it behind serial=";
        let of =
            "write the issuer's whole name as `openssl x509 -noout -issuer -nameopt rfc2253` prints it behind issuer=";
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
            ("o: a", "write the name behind o:, without spaces around it"),
            ("ou:", "write the name behind ou:, without spaces around it"),
            ("o:*", whole),
            ("spki:", pin),
            ("spki:sha256/abc=", pin),
            ("spki:sha1/2jmj7l5rSw0yVb/vlWAYkK/YBwk=", pin),
            ("spki:00", pin),
            ("issuer:", of),
            ("issuer:clients", of),
            ("issuer:CN", of),
            ("issuer:CN=a, O=b", of),
            ("serial:", number),
            ("serial:0x1b", number),
            ("serial:12 34", number),
            ("serial:112233445566778899001122334455667788990011", number),
            ("serial:1b@clients", of),
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
            ("o:Example: Corp", "o:Example: Corp"),
            ("serial:0A:1B", "serial:0a1b"),
            ("serial:A1B@CN=a,O=b", "serial:0a1b@CN=a,O=b"),
        ] {
            let name = ClientName::parse(text).expect("it is legal");
            assert_eq!(name.to_string(), form);
            assert_eq!(ClientName::parse(form), Ok(name));
        }
    }
}
