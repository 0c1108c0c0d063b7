//! Certificates put in the order of a chain, in whatever order a file has them.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ChainError;

/// A chain, and what was done to get it.
#[derive(Debug, PartialEq, Eq)]
pub struct Arranged {
    /// The leaf first, and each behind the one that it has issued. Never empty.
    pub chain: Vec<CertificateDer<'static>>,
    /// Subjects in the order in which they were found; none when that was the right one.
    pub order_found: Vec<String>,
    /// Subjects of those that belong to no place of the chain.
    pub left_out: Vec<String>,
}

/// Puts certificates in the order of a chain: the leaf, which has this public key (a SubjectPublicKeyInfo), and each behind the one
/// that it issued. What belongs to no chain stays out.
///
/// # Errors
/// None has this key, or one is malformed.
pub fn arrange(certificates: &[CertificateDer<'_>], public_key: &[u8]) -> Result<Arranged, ChainError> {
    if certificates.is_empty() {
        return Err(ChainError::Certificate("no certificate".into()));
    }
    let mut parsed = Vec::with_capacity(certificates.len());
    for (number, der) in (1..).zip(certificates) {
        let certificate = X509Certificate::from_der(der).map(|(_, parsed)| parsed);
        parsed.push(certificate.map_err(|error| {
            ChainError::Certificate(format!("a certificate that is malformed ({error}), the {number}. one,"))
        })?);
    }
    let has_key = |certificate: &X509Certificate<'_>| certificate.public_key().raw == public_key;
    let leaf = parsed.iter().position(has_key).ok_or(ChainError::Mismatch)?;
    let mut order = vec![leaf];
    let mut last = leaf;
    while let Some(issuer) = issuer_of(last, &parsed, &order) {
        order.push(issuer);
        last = issuer;
    }
    let subject = |&position: &usize| parsed[position].subject().to_string();
    let out_of_order = !order.is_sorted();
    let left_out: Vec<usize> = (0..parsed.len()).filter(|position| !order.contains(position)).collect();
    Ok(Arranged {
        chain: order
            .iter()
            .map(|&position| certificates[position].clone().into_owned())
            .collect(),
        order_found: if out_of_order {
            (0..parsed.len()).map(|position| subject(&position)).collect()
        } else {
            Vec::new()
        },
        left_out: left_out.iter().map(subject).collect(),
    })
}

/// Who has issued a certificate, among those that have no place yet. Of several with the issuer's name the one whose key the certificate
/// names: a CA that has a new key keeps its name.
fn issuer_of(position: usize, all: &[X509Certificate<'_>], placed: &[usize]) -> Option<usize> {
    let certificate = &all[position];
    if certificate.subject().as_raw() == certificate.issuer().as_raw() {
        return None;
    }
    let has_the_name = |&other: &usize| {
        let is_other = !placed.contains(&other);
        is_other && all[other].subject().as_raw() == certificate.issuer().as_raw()
    };
    let wanted = key_identifiers(certificate).0;
    let has_the_key = |&other: &usize| wanted.is_some() && key_identifiers(&all[other]).1 == wanted;
    let with_the_name = || (0..all.len()).filter(has_the_name);
    with_the_name().find(has_the_key).or_else(|| with_the_name().next())
}

/// The identifiers of the issuer's key and of the certificate's own.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "there are more extensions than those that name keys"
)]
fn key_identifiers<'a>(certificate: &'a X509Certificate<'_>) -> (Option<&'a [u8]>, Option<&'a [u8]>) {
    let (mut of_issuer, mut own) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(identifier) => {
                of_issuer = identifier.key_identifier.as_ref().map(|identifier| identifier.0);
            }
            ParsedExtension::SubjectKeyIdentifier(identifier) => own = Some(identifier.0),
            _ => {}
        }
    }
    (of_issuer, own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData};

    use super::*;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params
    }

    fn below(name: &str, issuer: &Ca) -> Ca {
        CertifiedIssuer::signed_by(ca(name), KeyPair::generate().unwrap(), issuer).unwrap()
    }

    struct Pki {
        /// Leaf, intermediate, root.
        chain: Vec<CertificateDer<'static>>,
        public_key: Vec<u8>,
        root: Ca,
    }

    fn pki() -> Pki {
        let root: Ca = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
        let middle = below("middle", &root);
        let leaf = below("leaf", &middle);
        Pki {
            chain: [leaf.der(), middle.der(), root.der()].map(Clone::clone).to_vec(),
            public_key: leaf.key().subject_public_key_info(),
            root,
        }
    }

    #[test]
    fn any_order_is_put_right_and_told() {
        let Pki { chain, public_key, .. } = pki();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let found = order.map(|position: usize| chain[position].clone());
            let arranged = arrange(&found, &public_key).unwrap();
            assert_eq!(arranged.chain, chain);
            assert!(arranged.left_out.is_empty());
            let expected: Vec<String> = match order {
                [0, 1, 2] => Vec::new(),
                _ => order
                    .map(|position| ["CN=leaf", "CN=middle", "CN=root"][position].to_owned())
                    .to_vec(),
            };
            assert_eq!(arranged.order_found, expected);
        }
    }

    #[test]
    fn what_does_not_belong_is_left_out() {
        let Pki {
            chain,
            public_key,
            root,
        } = pki();
        let stranger = below("stranger", &root);
        let found = [chain[0].clone(), stranger.der().clone(), chain[1].clone()];
        let arranged = arrange(&found, &public_key).unwrap();
        assert_eq!(arranged.chain, chain[..2]);
        assert_eq!(arranged.left_out, ["CN=stranger"]);
        assert!(arranged.order_found.is_empty(), "those that belong are in order");
    }

    #[test]
    fn of_two_issuers_with_one_name_the_key_decides() {
        let Pki { root, .. } = pki();
        let (old, new) = (below("CA", &root), below("CA", &root));
        let leaf = below("leaf", &new);
        let key = leaf.key().subject_public_key_info();
        let found = [leaf.der().clone(), old.der().clone(), new.der().clone()];
        let arranged = arrange(&found, &key).unwrap();
        assert_eq!(arranged.chain, [leaf.der().clone(), new.der().clone()]);
        assert_eq!(arranged.left_out, ["CN=CA"]);
    }

    #[test]
    fn a_key_of_none_is_told() {
        let Pki { chain, root, .. } = pki();
        let other = below("leaf", &root).key().subject_public_key_info();
        assert_eq!(arrange(&chain, &other), Err(ChainError::Mismatch));
        let none = arrange(&[], &other).unwrap_err();
        assert_eq!(none, ChainError::Certificate("no certificate".into()));
        let broken = arrange(&[CertificateDer::from(vec![0x30, 0])], &other).unwrap_err();
        assert!(broken.to_string().contains("malformed"), "{broken}");
    }

    proptest! {
        #[test]
        fn what_goes_round_in_circles_ends(names in prop::collection::vec((0..4_u8, 0..4_u8), 1..8)) {
            // Names alone make the chain, so that certificates may name each other as issuers.
            let key = KeyPair::generate().unwrap();
            let named = |name: u8| CertifiedIssuer::self_signed(ca(&name.to_string()), KeyPair::generate().unwrap()).unwrap();
            let found: Vec<_> = names
                .iter()
                .map(|&(subject, issuer)| ca(&subject.to_string()).signed_by(&key, &named(issuer)).unwrap().der().clone())
                .collect();
            let arranged = arrange(&found, &key.subject_public_key_info()).unwrap();
            prop_assert_eq!(&arranged.chain[0], &found[0]);
            prop_assert_eq!(arranged.chain.len() + arranged.left_out.len(), found.len());
        }
    }
}
