//! The names that a certificate has for its owner.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::NameKind;

/// Every URI, DNS name and email address, and the common names. What cannot be read is left out: it is none that anybody is
/// allowed by.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Vec<(NameKind, String)> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let common_names = certificate.subject().iter_common_name();
    let mut names: Vec<(NameKind, String)> = common_names
        .filter_map(|name| Some((NameKind::CommonName, name.as_str().ok()?.to_owned())))
        .collect();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        names.extend(alternative.value.general_names.iter().filter_map(general_name));
    }
    names
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
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

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
        assert_eq!(
            of(&signed(&params)),
            expected.map(|(kind, name)| (kind, name.to_owned()))
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(of(&CertificateDer::from(&b"no certificate"[..])), []);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let odd = DnValue::BmpString("odd".try_into().unwrap());
        params.distinguished_name.push(DnType::CommonName, odd);
        assert_eq!(of(&signed(&params)), []);
    }
}
