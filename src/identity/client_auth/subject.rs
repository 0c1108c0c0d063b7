//! Whom the certificate of a client names, once it is accepted: what the log and the servers behind us are told of it.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::asn1_rs::FromDer;
use x509_parser::oid_registry::OID_X509_COMMON_NAME;
use x509_parser::x509::{RelativeDistinguishedName, X509Name};

use crate::config::serial_digits;
use crate::limits::{CLIENT_SUBJECT_BYTES_MAX, CLIENT_SUBJECT_CHARS_SHOWN_MAX};

/// RFC 5280 section 4.1.2.2 has no longer ones.
const SERIAL_BYTES_MAX: usize = 20;

/// Subject and serial number of a client's certificate: little, because each connection of such a client keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSubject {
    /// DER of the relative distinguished names, one behind the other; nothing when there is more than anybody should have.
    names: Box<[u8]>,
    serial: Box<[u8]>,
}

impl ClientSubject {
    /// Of a certificate that was accepted. `None` when it cannot be read, as whoever has accepted it could.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<ClientSubject> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let (names, serial) = (certificate.subject(), certificate.serial());
        let fits = names.len() <= CLIENT_SUBJECT_BYTES_MAX;
        Some(ClientSubject {
            names: if fits { names.into() } else { Box::default() },
            serial: serial[..serial.len().min(SERIAL_BYTES_MAX)].into(),
        })
    }

    /// The serial number in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> String {
        serial_digits(&self.serial)
    }

    /// The whole name, for people: cut where it is long, and with whatever characters the CA has put there. `None` when there is none.
    #[must_use]
    pub fn shown(&self) -> Option<String> {
        let parsed = self.parsed()?;
        if parsed.is_empty() {
            return None;
        }
        let text = X509Name::new(parsed, &self.names).to_string();
        Some(match text.char_indices().nth(CLIENT_SUBJECT_CHARS_SHOWN_MAX) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        })
    }

    /// The common name, for programs: only if there is one and no second, in characters that everybody reads in the same way. Who takes what
    /// is behind a NUL for the end, or the last of two for the one that counts, would take the client for somebody else.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        let parsed = self.parsed()?;
        let mut attributes = parsed.iter().flat_map(RelativeDistinguishedName::iter);
        let mut names = attributes
            .by_ref()
            .filter(|attribute| *attribute.attr_type() == OID_X509_COMMON_NAME);
        let (name, None) = (names.next()?.as_str().ok()?, names.next()) else {
            return None;
        };
        (!name.is_empty() && !name.chars().any(char::is_control)).then_some(name)
    }

    fn parsed(&self) -> Option<Vec<RelativeDistinguishedName<'_>>> {
        let mut rest = &*self.names;
        let mut parsed = Vec::new();
        while !rest.is_empty() {
            let (behind, name) = RelativeDistinguishedName::from_der(rest).ok()?;
            parsed.push(name);
            rest = behind;
        }
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SerialNumber};

    use super::*;

    fn subject(names: &[(DnType, DnValue)]) -> ClientSubject {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        params.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0xbc, 0]));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        ClientSubject::of(certificate.der()).unwrap()
    }

    fn utf8(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    #[test]
    fn who_it_is_is_told() {
        let one = subject(&[
            (DnType::OrganizationName, utf8("Example")),
            (DnType::CommonName, utf8("Müller & Söhne")),
        ]);
        assert_eq!(one.serial(), "0abc00");
        assert_eq!(one.shown().as_deref(), Some("O=Example, CN=Müller & Söhne"));
        assert_eq!(one.common_name(), Some("Müller & Söhne"));
        let nameless = subject(&[]);
        assert_eq!((nameless.shown(), nameless.common_name()), (None, None));
        assert_eq!(nameless.serial(), "0abc00");
        assert_eq!(ClientSubject::of(&CertificateDer::from(&b"no certificate"[..])), None);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_common_name() {
        for odd in [
            "admin\0.example",
            "\0",
            "admin\n",
            "admin\r\nX: y",
            "\u{7f}",
            "\u{85}a",
            "",
        ] {
            let one = subject(&[(DnType::CommonName, utf8(odd))]);
            assert_eq!(one.common_name(), None, "{odd:?}");
        }
        let wide = DnValue::BmpString("odd".try_into().unwrap());
        assert_eq!(subject(&[(DnType::CommonName, wide)]).common_name(), None);
        let common_name = || DnType::CustomDnType(vec![2, 5, 4, 3]);
        let two = subject(&[(DnType::CommonName, utf8("guest")), (common_name(), utf8("admin"))]);
        assert_eq!(two.common_name(), None, "{:?}", two.shown());
        let printable = DnValue::PrintableString("batch-7".try_into().unwrap());
        assert_eq!(
            subject(&[(DnType::CommonName, printable)]).common_name(),
            Some("batch-7")
        );
    }

    #[test]
    fn what_is_long_is_cut_for_people_and_left_out_for_programs() {
        let long = subject(&[(DnType::CommonName, utf8(&"ä".repeat(400)))]);
        let shown = long.shown().unwrap();
        assert_eq!(shown.chars().count(), CLIENT_SUBJECT_CHARS_SHOWN_MAX + 1);
        assert!(shown.starts_with("CN=ää") && shown.ends_with("ä…"), "{shown}");
        assert_eq!(long.common_name().map(str::len), Some(800), "never cut");
        let longer = subject(&[(DnType::CommonName, utf8(&"ä".repeat(600)))]);
        assert_eq!((longer.shown(), longer.common_name()), (None, None));
        assert_eq!(longer.serial(), "0abc00");
    }
}
