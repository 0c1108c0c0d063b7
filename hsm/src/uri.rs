//! RFC 7512: names of tokens and of what is in them.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A longer URI is refused: labels have 32 bytes, and all attributes together fit many times.
const URI_BYTES_MAX: usize = 4096;

/// A PKCS#11 URI. It never holds a PIN: one with `pin-value` is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uri {
    /// `token`, `serial`, `manufacturer`, `model`, `slot-id`
    pub token: TokenMatch,
    /// `object`, `id`
    pub object: ObjectMatch,
    /// `type`
    pub kind: Option<ObjectKind>,
    /// `module-path`
    pub module_path: Option<PathBuf>,
    /// `module-name`: the module's file name without `lib` in front and the extension.
    pub module_name: Option<String>,
    /// `pin-source`
    pub pin_source: Option<PinSource>,
    /// Attributes of slot and library, which are legal and which nothing is compared with.
    pub ignored: Vec<&'static str>,
}

/// `type`: what an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A public key.
    Public,
    /// A private key.
    Private,
    /// A certificate.
    Certificate,
    /// A secret key.
    SecretKey,
    /// Data.
    Data,
}

/// Why a text is not taken for a URI or for a PIN's source. Neither of its texts repeats a value: that could be a PIN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found}; {remedy}")]
pub struct UriError {
    /// What was found.
    pub found: String,
    /// What to do.
    pub remedy: String,
}

/// Which token: it has all that is given here. Nothing given: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenMatch {
    /// Its label.
    pub label: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its manufacturer.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// The slot that it is in.
    pub slot_id: Option<u64>,
}

/// Which object of a token: it has all that is given here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectMatch {
    /// CKA_LABEL
    pub label: Option<String>,
    /// CKA_ID
    pub id: Option<Vec<u8>>,
}

/// Where a PIN is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PinSource {
    /// A file: its first line.
    File(PathBuf),
    /// A credential that systemd passes (`LoadCredential=`), by name.
    Credential(String),
}

impl ObjectKind {
    const ALL: [ObjectKind; 5] = [
        ObjectKind::Public,
        ObjectKind::Private,
        ObjectKind::Certificate,
        ObjectKind::SecretKey,
        ObjectKind::Data,
    ];

    /// As in a URI.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ObjectKind::Public => "public",
            ObjectKind::Private => "private",
            ObjectKind::Certificate => "cert",
            ObjectKind::SecretKey => "secret-key",
            ObjectKind::Data => "data",
        }
    }
}

/// The attributes of slot and library: legal, and compared with nothing.
const IGNORED: [&str; 5] = [
    "slot-description",
    "slot-manufacturer",
    "library-manufacturer",
    "library-description",
    "library-version",
];

const PATH_ATTRIBUTES: &str = "token, serial, manufacturer, model, slot-id, object, id, type";
const QUERY_ATTRIBUTES: &str = "pin-source, module-path, module-name";

impl Uri {
    /// Whether a text is meant to be a PKCS#11 URI.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.get(..SCHEME.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// It is none (RFC 7512 section 2.3), it has an attribute twice or one that is unknown, or its PIN in it.
    pub fn parse(text: &str) -> Result<Uri, UriError> {
        if !Uri::is_meant(text) {
            return Err(UriError::new("no pkcs11: URI", "begin it with pkcs11:"));
        }
        if text.len() > URI_BYTES_MAX {
            let found = format!("a pkcs11: URI of more than {URI_BYTES_MAX} bytes");
            return Err(UriError::new(
                found,
                "name the token by its label and the object by its id",
            ));
        }
        let (path, query) = match text[SCHEME.len()..].split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&text[SCHEME.len()..], None),
        };
        let mut uri = Uri::default();
        let mut seen = Vec::new();
        // RFC 7512 section 2.3: the path may be empty, a query may not.
        if !path.is_empty() {
            for attribute in path.split(';') {
                let (name, value) = split(attribute, &mut seen, "';'")?;
                uri.set_path_attribute(name, value)?;
            }
        }
        for attribute in query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = split(attribute, &mut seen, "'&'")?;
            uri.set_query_attribute(name, value)?;
        }
        Ok(uri)
    }

    fn set_path_attribute(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        let bytes = |extra| decode(name, value, extra);
        let text = || decode_text(name, value, PATH_EXTRA);
        match name {
            "token" => self.token.label = Some(text()?),
            "serial" => self.token.serial = Some(text()?),
            "manufacturer" => self.token.manufacturer = Some(text()?),
            "model" => self.token.model = Some(text()?),
            "slot-id" => self.token.slot_id = Some(slot_id(value)?),
            "object" => self.object.label = Some(text()?),
            "id" => self.object.id = Some(bytes(PATH_EXTRA)?),
            "type" => self.kind = Some(object_kind(value)?),
            "pin-source" | "pin-value" | "module-path" | "module-name" => {
                let found = format!("a pkcs11: URI with {name} before its question mark");
                let remedy = "put a question mark, not a semicolon, in front of the first of pin-source, module-path and module-name";
                return Err(UriError::new(found, remedy));
            }
            other => match IGNORED.iter().find(|&&ignored| ignored == other) {
                Some(ignored) => {
                    text()?;
                    self.ignored.push(ignored);
                }
                None if is_vendors(other) => {}
                None => return Err(UriError::unknown(other, PATH_ATTRIBUTES)),
            },
        }
        Ok(())
    }

    fn set_query_attribute(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        let text = || decode_text(name, value, QUERY_EXTRA);
        match name {
            "pin-value" => return Err(UriError::new("a pkcs11: URI with a PIN in it (pin-value)", PIN_REMEDY)),
            "pin-source" => self.pin_source = Some(PinSource::parse(&text()?)?),
            "module-path" => {
                let path = text()?;
                if path.is_empty() || path.contains('\0') {
                    let found = "a pkcs11: URI with a module-path that is no path";
                    return Err(UriError::new(found, "write the path of the module's file"));
                }
                self.module_path = Some(path.into());
            }
            "module-name" => self.module_name = Some(text()?),
            other if is_vendors(other) => {}
            other => return Err(UriError::unknown(other, QUERY_ATTRIBUTES)),
        }
        Ok(())
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |text: &String| encode(text.as_bytes(), PATH_EXTRA);
        let query = |text: &str| encode(text.as_bytes(), QUERY_EXTRA);
        let module = self.module_path.as_ref().map(|path| query(&path.to_string_lossy()));
        let joined = |attributes: &[(&str, Option<String>)], separator: &str| -> String {
            let given = attributes
                .iter()
                .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={value}")));
            given.collect::<Vec<_>>().join(separator)
        };
        let path = [
            ("token", self.token.label.as_ref().map(path)),
            ("serial", self.token.serial.as_ref().map(path)),
            ("manufacturer", self.token.manufacturer.as_ref().map(path)),
            ("model", self.token.model.as_ref().map(path)),
            ("slot-id", self.token.slot_id.map(|id| id.to_string())),
            ("object", self.object.label.as_ref().map(path)),
            ("id", self.object.id.as_ref().map(|id| encode_all(id))),
            ("type", self.kind.map(|kind| kind.name().to_owned())),
        ];
        let query = [
            ("module-path", module),
            ("module-name", self.module_name.as_deref().map(query)),
            (
                "pin-source",
                self.pin_source.as_ref().map(|source| query(&source.to_string())),
            ),
        ];
        write!(f, "{SCHEME}{}", joined(&path, ";"))?;
        match joined(&query, "&").as_str() {
            "" => Ok(()),
            query => write!(f, "?{query}"),
        }
    }
}

impl PinSource {
    /// Reads `file:PATH`, `file:///PATH`, a path, or `credential:NAME`. A relative path stays one.
    ///
    /// # Errors
    /// It is none of them: a command, another scheme, or what looks like a PIN itself.
    pub fn parse(text: &str) -> Result<PinSource, UriError> {
        let refuse = |found: &str, remedy: &str| Err(UriError::new(found, remedy));
        if text.starts_with('|') {
            return refuse(
                "a command as the source of a PIN",
                "write the PIN to a file that only its reader can read, and name that",
            );
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return refuse("what looks like a PIN itself", PIN_REMEDY);
        }
        if let Some(name) = text.strip_prefix("credential:") {
            // systemd.exec(5): a credential's name is that of a file.
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
                return refuse(
                    "credential: without the name of one",
                    "write the name from LoadCredential= after credential:",
                );
            }
            return Ok(PinSource::Credential(name.to_owned()));
        }
        let path = match text.strip_prefix("file:") {
            // RFC 8089: an authority before the path is empty or localhost.
            Some(rest) => match rest.strip_prefix("//") {
                Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
                None => rest,
            },
            None => text,
        };
        let authority = text.starts_with("file://") && !path.starts_with('/');
        let scheme = path.split_once(':').is_some_and(|(scheme, _)| {
            scheme.len() > 1
                && scheme
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'-')
        });
        if path.is_empty() || path.contains('\0') || authority || (path.len() == text.len() && scheme) {
            return refuse(
                "no source that a PIN can be read from",
                "write file: and the path of a file, or credential: and the name of a systemd credential",
            );
        }
        Ok(PinSource::File(path.into()))
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Without the empty authority, what follows two slashes would be one.
            PinSource::File(path) if path.to_string_lossy().starts_with("//") => write!(f, "file://{}", path.display()),
            PinSource::File(path) => write!(f, "file:{}", path.display()),
            PinSource::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

impl UriError {
    fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        UriError {
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    fn unknown(name: &str, legal: &str) -> Self {
        UriError::new(
            format!("a pkcs11: URI with an attribute that does not exist there ({name})"),
            format!("correct or remove it; there are {legal}"),
        )
    }
}

const SCHEME: &str = "pkcs11:";

const PIN_REMEDY: &str = "a PIN in the configuration can be read by whoever reads the file: write it to a file of its \
                          own and name that by pin-source";

/// What may stand in a path's value as it is, besides letters, digits and `-._~` (RFC 7512 section 2.3).
const PATH_EXTRA: &[u8] = b":[]@!$'()*+,=&";

/// The same of a query's value.
const QUERY_EXTRA: &[u8] = b":[]@!$'()*+,=/?|";

/// Name and value of an attribute, whose name no earlier one may have.
fn split<'a>(attribute: &'a str, seen: &mut Vec<&'a str>, separator: &str) -> Result<(&'a str, &'a str), UriError> {
    let named = attribute.split_once('=').filter(|(name, _)| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !name.is_empty() && name.len() <= 64 && name.bytes().all(legal)
    });
    let Some((name, value)) = named else {
        return Err(UriError::new(
            "a pkcs11: URI with something that is no attribute",
            format!("write name=value with {separator} between one and the next"),
        ));
    };
    if seen.contains(&name) {
        // RFC 7512 section 2.3: "Attributes MUST NOT appear more than once".
        let found = format!("a pkcs11: URI with {name} twice");
        return Err(UriError::new(found, "remove one of the two"));
    }
    seen.push(name);
    Ok((name, value))
}

/// A vendor's own attribute.
fn is_vendors(name: &str) -> bool {
    name.starts_with("x-")
}

fn slot_id(value: &str) -> Result<u64, UriError> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten().ok_or_else(|| {
        let found = "a pkcs11: URI with a slot-id that is no number";
        UriError::new(found, "write the number in decimal digits")
    })
}

fn object_kind(value: &str) -> Result<ObjectKind, UriError> {
    let found = ObjectKind::ALL.into_iter().find(|kind| kind.name() == value);
    found.ok_or_else(|| {
        let found = "a pkcs11: URI with a type that does not exist";
        UriError::new(found, "write type=private for a key and type=cert for a certificate")
    })
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The bytes that a value stands for.
fn decode(name: &str, value: &str, extra: &[u8]) -> Result<Vec<u8>, UriError> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte == b'%' {
            let digit = |index: usize| char::from(*after.get(index)?).to_digit(16);
            let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                let found = format!("a pkcs11: URI whose {name} has a percent sign without two hexadecimal digits");
                return Err(UriError::new(found, "write a percent sign itself as %25"));
            };
            bytes.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
            rest = &after[2..];
        } else if is_unreserved(*byte) || extra.contains(byte) {
            bytes.push(*byte);
        } else {
            let found = format!("a pkcs11: URI whose {name} has a character that may not stand in it as it is");
            let encoded = format!("write it as %{byte:02X}");
            let remedy = if byte.is_ascii() {
                encoded
            } else {
                "write each byte of its UTF-8 form as % and two hexadecimal digits".to_owned()
            };
            return Err(UriError::new(found, remedy));
        }
    }
    Ok(bytes)
}

fn decode_text(name: &str, value: &str, extra: &[u8]) -> Result<String, UriError> {
    String::from_utf8(decode(name, value, extra)?).map_err(|_| {
        let found = format!("a pkcs11: URI whose {name} is no UTF-8");
        UriError::new(found, "write the bytes of its UTF-8 form")
    })
}

fn encode(bytes: &[u8], extra: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if is_unreserved(byte) || extra.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// RFC 7512 section 2.3: of `id`, every byte should be encoded.
fn encode_all(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Uri {
        Uri::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// What is found and what is to be done, without what is the same for all.
    fn refused(text: &str) -> String {
        let error = Uri::parse(text).expect_err("it is refused").to_string();
        error.strip_prefix("a pkcs11: URI ").unwrap_or(&error).to_owned()
    }

    fn label(label: &str) -> TokenMatch {
        TokenMatch {
            label: Some(label.to_owned()),
            ..TokenMatch::default()
        }
    }

    fn object(label: &str) -> ObjectMatch {
        ObjectMatch {
            label: Some(label.to_owned()),
            id: None,
        }
    }

    /// Those of RFC 7512 section 3, in its order; the ones with a PIN in them are refused below.
    #[test]
    fn the_examples_of_the_rfc_are_read() {
        assert_eq!(parse("pkcs11:"), Uri::default());
        let expected = Uri {
            object: ObjectMatch {
                label: Some("my-pubkey".to_owned()),
                id: None,
            },
            kind: Some(ObjectKind::Public),
            ..Uri::default()
        };
        assert_eq!(parse("pkcs11:object=my-pubkey;type=public"), expected);
        let expected = Uri {
            object: object("my-key"),
            kind: Some(ObjectKind::Private),
            pin_source: Some(PinSource::File("/etc/token".into())),
            ..Uri::default()
        };
        assert_eq!(
            parse("pkcs11:object=my-key;type=private?pin-source=file:/etc/token"),
            expected
        );
        let expected = Uri {
            token: TokenMatch {
                label: Some("The Software PKCS#11 Softtoken".to_owned()),
                serial: None,
                manufacturer: Some("Snake Oil, Inc.".to_owned()),
                model: Some("1.0".to_owned()),
                slot_id: None,
            },
            object: object("my-certificate"),
            kind: Some(ObjectKind::Certificate),
            pin_source: Some(PinSource::File("/etc/token_pin".into())),
            ..Uri::default()
        };
        let with_id = |id: &[u8]| Uri {
            object: ObjectMatch {
                id: Some(id.to_vec()),
                ..expected.object.clone()
            },
            ..expected.clone()
        };
        assert_eq!(
            parse(
                "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;\
                 object=my-certificate;type=cert;id=%69%95%3E%5C%F4%BD%EC%91?pin-source=file:/etc/token_pin"
            ),
            with_id(&[0x69, 0x95, 0x3e, 0x5c, 0xf4, 0xbd, 0xec, 0x91])
        );
        assert_eq!(
            parse("pkcs11:object=my-sign-key;type=private?module-name=mypkcs11"),
            Uri {
                object: object("my-sign-key"),
                kind: Some(ObjectKind::Private),
                module_name: Some("mypkcs11".to_owned()),
                ..Uri::default()
            }
        );
        assert_eq!(
            parse("pkcs11:object=my-sign-key;type=private?module-path=/mnt/libmypkcs11.so.1"),
            Uri {
                object: object("my-sign-key"),
                kind: Some(ObjectKind::Private),
                module_path: Some("/mnt/libmypkcs11.so.1".into()),
                ..Uri::default()
            }
        );
        assert_eq!(
            parse("pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?module-name=a").token,
            TokenMatch {
                manufacturer: Some("Snake Oil, Inc.".to_owned()),
                ..label("Software PKCS#11 softtoken")
            }
        );
        assert_eq!(
            parse("pkcs11:slot-description=Sun%20Metaslot").ignored,
            ["slot-description"]
        );
        let library = "pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;library-version=1.23";
        assert_eq!(
            parse(library).ignored,
            ["library-manufacturer", "library-description", "library-version"]
        );
        assert_eq!(
            parse(
                "pkcs11:token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06"
            )
            .token,
            label("My token% created by Joe")
        );
        assert_eq!(
            parse("pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=my-certificate;type=cert").token,
            label("A name with a substring %;")
        );
        assert_eq!(
            parse("pkcs11:token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1;object=my-certificate;type=cert")
                .token,
            label("Name with a small A with acute: \u{e1}")
        );
        assert_eq!(
            parse(
                "pkcs11:token=my-token;object=my-certificate;type=cert;x-vend-aaa=value-a?pin-source=file:/etc/token_pin&x-vend-bbb=value-b"
            ),
            Uri {
                token: label("my-token"),
                object: object("my-certificate"),
                kind: Some(ObjectKind::Certificate),
                pin_source: Some(PinSource::File("/etc/token_pin".into())),
                ..Uri::default()
            }
        );
    }

    #[test]
    fn a_pin_in_a_uri_is_refused_and_not_shown() {
        for text in [
            "pkcs11:object=a?pin-value=the-pin",
            "PKCS11:?pin-value=the-pin&module-name=a",
            "pkcs11:object=a;pin-value=the-pin",
            "pkcs11:object=a?pin_value=the-pin",
            "pkcs11:object=a?the-pin",
            "pkcs11:object=a?pin-source=|the-pin",
            "pkcs11:object=a?pin-source=http://the-pin",
            "pkcs11:object=a?pin-source=file://the-pin/a",
        ] {
            let error = Uri::parse(text).expect_err("it is refused");
            assert!(!format!("{error} {error:?}").contains("the-pin"), "{error}");
        }
        assert_eq!(
            refused("pkcs11:object=a?pin-value=1234"),
            "with a PIN in it (pin-value); a PIN in the configuration can be read by whoever reads the file: write it to \
             a file of its own and name that by pin-source"
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, message) in [
            ("token=a", "no pkcs11: URI; begin it with pkcs11:"),
            ("pkcs11:object=a;object=a", "with object twice; remove one of the two"),
            (
                "pkcs11:object=a?pin-source=/a&pin-source=/a",
                "with pin-source twice; remove one of the two",
            ),
            (
                "pkcs11:;",
                "with something that is no attribute; write name=value with ';' between one and the next",
            ),
            (
                "pkcs11:object=a?",
                "with something that is no attribute; write name=value with '&' between one and the next",
            ),
            (
                "pkcs11:objekt=a",
                "with an attribute that does not exist there (objekt); correct or remove it; there are token, serial, \
                 manufacturer, model, slot-id, object, id, type",
            ),
            (
                "pkcs11:object=a?id=%01",
                "with an attribute that does not exist there (id); correct or remove it; there are pin-source, \
                 module-path, module-name",
            ),
            (
                "pkcs11:object=a;pin-source=file:a",
                "with pin-source before its question mark; put a question mark, not a semicolon, in front of the first \
                 of pin-source, module-path and module-name",
            ),
            (
                "pkcs11:object=a b",
                "whose object has a character that may not stand in it as it is; write it as %20",
            ),
            (
                "pkcs11:object=\u{e1}",
                "whose object has a character that may not stand in it as it is; write each byte of its UTF-8 form as % \
                 and two hexadecimal digits",
            ),
            (
                "pkcs11:id=%1",
                "whose id has a percent sign without two hexadecimal digits; write a percent sign itself as %25",
            ),
            (
                "pkcs11:id=%+1",
                "whose id has a percent sign without two hexadecimal digits; write a percent sign itself as %25",
            ),
            (
                "pkcs11:token=%ff",
                "whose token is no UTF-8; write the bytes of its UTF-8 form",
            ),
            (
                "pkcs11:slot-id=+1",
                "with a slot-id that is no number; write the number in decimal digits",
            ),
            (
                "pkcs11:type=certificate",
                "with a type that does not exist; write type=private for a key and type=cert for a certificate",
            ),
            (
                "pkcs11:?module-path=",
                "with a module-path that is no path; write the path of the module's file",
            ),
        ] {
            assert_eq!(refused(text), message, "{text}");
        }
        let long = format!("pkcs11:object={}", "a".repeat(URI_BYTES_MAX));
        assert!(refused(&long).starts_with("of more than 4096 bytes"));
    }

    #[test]
    fn sources_of_a_pin() {
        let file = |path: &str| Ok(PinSource::File(path.into()));
        for (text, source) in [
            ("/etc/pin", file("/etc/pin")),
            ("pin", file("pin")),
            ("file:pin", file("pin")),
            ("file:1234", file("1234")),
            ("file:/etc/pin", file("/etc/pin")),
            ("file:///etc/pin", file("/etc/pin")),
            ("file://localhost/etc/pin", file("/etc/pin")),
            ("a folder/pin:1", file("a folder/pin:1")),
            ("credential:edge.pin", Ok(PinSource::Credential("edge.pin".to_owned()))),
        ] {
            assert_eq!(PinSource::parse(text), source, "{text}");
        }
        for (text, found) in [
            ("|/usr/bin/echo 1", "a command as the source of a PIN"),
            ("1234", "what looks like a PIN itself"),
            ("credential:", "credential: without the name of one"),
            ("credential:../pin", "credential: without the name of one"),
            ("credential:a/b", "credential: without the name of one"),
            ("", "no source that a PIN can be read from"),
            ("file:", "no source that a PIN can be read from"),
            ("file://host/pin", "no source that a PIN can be read from"),
            ("https://a/pin", "no source that a PIN can be read from"),
            ("env:PIN", "no source that a PIN can be read from"),
            ("a\0b", "no source that a PIN can be read from"),
        ] {
            assert_eq!(
                PinSource::parse(text).map_err(|error| error.found),
                Err(found.to_owned()),
                "{text:?}"
            );
        }
    }

    fn any_uri() -> impl Strategy<Value = Uri> {
        let text = || prop::option::of(any::<String>());
        let path = || any::<String>().prop_filter("a path", |path| !path.is_empty() && !path.contains('\0'));
        let source = prop_oneof![
            path().prop_map(|path| PinSource::File(path.into())),
            "[a-z_][a-z.]{0,8}".prop_map(PinSource::Credential),
        ];
        let token = (text(), text(), text(), text(), any::<Option<u64>>());
        let object = (
            text(),
            any::<Option<Vec<u8>>>(),
            prop::option::of(prop::sample::select(&ObjectKind::ALL[..])),
        );
        let query = (prop::option::of(path()), text(), prop::option::of(source));
        (token, object, query).prop_map(|(token, object, query)| Uri {
            token: TokenMatch {
                label: token.0,
                serial: token.1,
                manufacturer: token.2,
                model: token.3,
                slot_id: token.4,
            },
            object: ObjectMatch {
                label: object.0,
                id: object.1,
            },
            kind: object.2,
            module_path: query.0.map(PathBuf::from),
            module_name: query.1,
            pin_source: query.2,
            ignored: Vec::new(),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(uri in any_uri()) {
            let text = uri.to_string();
            if text.len() <= URI_BYTES_MAX {
                prop_assert_eq!(Uri::parse(&text), Ok(uri), "{}", text);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(pkcs11:)?\\PC{0,80}") {
            let _ = Uri::parse(&text);
            let _ = PinSource::parse(&text);
        }

        #[test]
        fn what_is_read_is_written_so_that_it_is_read_the_same(
            attributes in prop::collection::vec(
                (
                    prop::sample::select(&["token", "object", "id", "type", "slot-id", "serial", "x-a", "library-version"][..]),
                    "[a-z0-9%:=,&/]{0,6}|private|7",
                ),
                0..4,
            ),
            query in "(\\?(pin-source|module-path|module-name)=(file:|credential:|/)?[a-z%0-9/]{0,6})?",
        ) {
            let path: Vec<String> = attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
            if let Ok(mut uri) = Uri::parse(&format!("pkcs11:{}{query}", path.join(";"))) {
                uri.ignored.clear();
                prop_assert_eq!(Uri::parse(&uri.to_string()), Ok(uri));
            }
        }
    }
}
