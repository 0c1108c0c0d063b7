//! The names that a certificate has for its owner, and what else rules know it by.

use rustls::pki_types::CertificateDer;
use x509_cert::der::Decode;
use x509_cert::name::Name;
use x509_parser::extensions::GeneralName;
use x509_parser::nom::Parser;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificateParser};
use x509_parser::x509::AttributeTypeAndValue;

use crate::config::{NameKind, issuer_text, public_key_text, serial_text};
use crate::crypto::sha256;

/// Every common name, URI, DNS name and email address, and of the other kinds those that `also` wants. A name that cannot be read is
/// left out: it is none that anybody is allowed by. Nothing when that is so of the whole certificate.
pub(super) fn of(certificate: &CertificateDer<'_>, also: impl Fn(NameKind) -> bool) -> Option<Vec<(NameKind, String)>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let of_subject = |kind| move |name: &AttributeTypeAndValue<'_>| Some((kind, name.as_str().ok()?.to_owned()));
    let mut names: Vec<(NameKind, String)> = subject
        .iter_common_name()
        .filter_map(of_subject(NameKind::CommonName))
        .collect();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        names.extend(alternative.value.general_names.iter().filter_map(general_name));
    }
    if also(NameKind::Organization) {
        let organizations = subject.iter_organization();
        names.extend(organizations.filter_map(of_subject(NameKind::Organization)));
    }
    if also(NameKind::OrganizationalUnit) {
        let units = subject.iter_organizational_unit();
        names.extend(units.filter_map(of_subject(NameKind::OrganizationalUnit)));
    }
    add_identifiers(&certificate, also, &mut names);
    Some(names)
}

/// Of a CA only what identifies its certificate and its key. Its extensions are not read, which takes less of the stack.
pub(super) fn of_ca(
    certificate: &CertificateDer<'_>,
    wanted: impl Fn(NameKind) -> bool,
) -> Option<Vec<(NameKind, String)>> {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (_, certificate) = parser.parse(certificate).ok()?;
    let mut names = Vec::new();
    add_identifiers(&certificate, wanted, &mut names);
    Some(names)
}

fn add_identifiers(
    certificate: &X509Certificate<'_>,
    also: impl Fn(NameKind) -> bool,
    names: &mut Vec<(NameKind, String)>,
) {
    if also(NameKind::PublicKey) {
        let digest = sha256::digest(&[certificate.public_key().raw]);
        names.push((NameKind::PublicKey, public_key_text(&digest)));
    }
    if also(NameKind::Issuer) || also(NameKind::Serial) {
        let issuer = Name::from_der(certificate.issuer().as_raw()).map(|name| issuer_text(&name));
        // A serial number that is denied whoever gave it is so, too, if that cannot be read.
        let of_issuer = issuer.as_deref().unwrap_or_default();
        names.push((NameKind::Serial, serial_text(certificate.raw_serial(), of_issuer)));
        names.extend(issuer.map(|issuer| (NameKind::Issuer, issuer)));
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "there are more kinds of names than anybody is allowed by"
)]
fn general_name(name: &GeneralName<'_>) -> Option<(NameKind, String)> {
    match *name {
        GeneralName::URI(name) => Some((NameKind::Uri, name.to_owned())),
        GeneralName::DNSName(name) => Some((NameKind::Dns, name.to_owned())),
        GeneralName::RFC822Name(name) => Some((NameKind::Email, name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;
    use crate::config::ClientName;

    fn ia5(text: &str) -> Ia5String {
        text.try_into().unwrap()
    }

    fn signed(params: &CertificateParams) -> CertificateDer<'static> {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn all_kinds_are_found() {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "not this");
        params.distinguished_name.push(DnType::CommonName, "Müller\0");
        params.subject_alt_names = vec![
            SanType::DnsName(ia5("*.a.example")),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::URI(ia5("spiffe://a/b")),
            SanType::Rfc822Name(ia5("ops@a.example")),
            SanType::DnsName(ia5("b\0.example")),
        ];
        let expected = [
            (NameKind::CommonName, "Müller\0"),
            (NameKind::Dns, "*.a.example"),
            (NameKind::Uri, "spiffe://a/b"),
            (NameKind::Email, "ops@a.example"),
            (NameKind::Dns, "b\0.example"),
        ];
        let expected = expected.map(|(kind, name)| (kind, name.to_owned()));
        assert_eq!(of(&signed(&params), |_| false).unwrap(), expected);
    }

    /// What OpenSSL prints of a certificate is what rules say of it.
    #[test]
    fn rules_are_written_as_openssl_prints_certificates() {
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(DnType::CountryName, "DE");
        subject.push(DnType::StateOrProvinceName, "Bayern");
        subject.push(DnType::LocalityName, "München");
        subject.push(DnType::OrganizationName, r#" Example "Corp", + Söhne; "#);
        subject.push(DnType::OrganizationalUnitName, "#1 <Payments>");
        subject.push(
            DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]),
            "ops@example.com",
        );
        subject.push(
            DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 25]),
            "example",
        );
        subject.push(DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 1]), "uid");
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 5]), "0815");
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 4]), "Surname");
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 42]), "Given");
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 12]), "Title");
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 9]), "Street 1");
        subject.push(DnType::CommonName, "clients");
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.serial_number = Some(vec![0x8a, 0x1b, 0].into());
        let certificate = signed(&params);
        let names = of(&certificate, |_| true).unwrap();
        let openssl = |arguments: &[&str], input: &[u8]| {
            let mut child = Command::new("openssl")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{arguments:?}");
            output.stdout
        };
        let x509 = ["x509", "-inform", "DER", "-noout"];
        let printed = |own: &[&str]| {
            let text = openssl(&[&x509[..], own].concat(), &certificate);
            String::from_utf8(text).unwrap().trim_end_matches('\n').to_owned()
        };
        let issuer = printed(&["-issuer", "-nameopt", "rfc2253"]);
        let issuer = issuer.strip_prefix("issuer=").unwrap();
        let serial = printed(&["-serial"]);
        let serial = serial.strip_prefix("serial=").unwrap();
        let key = openssl(&["pkey", "-pubin", "-outform", "DER"], printed(&["-pubkey"]).as_bytes());
        let digest = openssl(&["dgst", "-sha256", "-binary"], &key);
        let pin = openssl(&["base64"], &digest);
        let pin = std::str::from_utf8(&pin).unwrap().trim();
        for rule in [
            format!("issuer:{issuer}"),
            format!("serial:{serial}"),
            format!("serial:{serial}@{issuer}"),
            format!("spki:sha256/{pin}"),
            "cn:clients".to_owned(),
            "ou:#1 <Payments>".to_owned(),
        ] {
            let rule = ClientName::parse(&rule).unwrap_or_else(|remedy| panic!("{rule}: {remedy}"));
            let matching = names.iter().filter(|(kind, name)| rule.matches(*kind, name));
            assert_eq!(matching.count(), 1, "{rule} among {names:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(of(&CertificateDer::from(&b"no certificate"[..]), |_| true), None);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let odd = DnValue::BmpString("odd".try_into().unwrap());
        params.distinguished_name.push(DnType::CommonName, odd);
        assert_eq!(of(&signed(&params), |_| false), Some(Vec::new()));
    }
}
