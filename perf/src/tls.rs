//! The client's TLS settings: one version, the wanted suites and groups.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::args::{ClientArgs, TlsVersion};
use crate::error::PerfError;

/// Builds the configuration that every connection of a run uses.
///
/// Resumption is off, so each handshake is a full one, if the work does not switch it on.
///
/// # Errors
/// Names the flag whose value is unknown, or whose file cannot be used.
pub(crate) fn client_config(args: &ClientArgs) -> Result<ClientConfig, PerfError> {
    let provider = provider(args)?;
    let versions = match args.tls {
        TlsVersion::Tls12 => &[&version::TLS12],
        TlsVersion::Tls13 => &[&version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions)?;
    let builder = match &args.ca {
        Some(file) => builder.with_root_certificates(trust_anchors(file)?),
        None => builder.dangerous().with_custom_certificate_verifier(trust_everything()),
    };
    let mut config = match (&args.client_cert, &args.client_key) {
        (Some(chain), Some(key)) => {
            let (certificates, private) = (certificates("--client-cert", chain)?, private_key(key)?);
            let config = builder.with_client_auth_cert(certificates, private);
            config.map_err(|error| flag_error("--client-key", key, format!("the key of --client-cert ({error})")))?
        }
        (None, _) | (_, None) => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn provider(args: &ClientArgs) -> Result<CryptoProvider, PerfError> {
    let mut provider = aws_lc_rs::default_provider();
    let wanted_version = match args.tls {
        TlsVersion::Tls12 => rustls::ProtocolVersion::TLSv1_2,
        TlsVersion::Tls13 => rustls::ProtocolVersion::TLSv1_3,
    };
    provider
        .cipher_suites
        .retain(|suite| suite.version().version == wanted_version);
    let suites: Vec<String> = provider
        .cipher_suites
        .iter()
        .map(|suite| name(&suite.suite()))
        .collect();
    match args.suite.as_str() {
        "any" => {}
        "aes128" => provider
            .cipher_suites
            .retain(|suite| name(&suite.suite()).contains("AES_128_GCM")),
        wanted => provider
            .cipher_suites
            .retain(|suite| same_suite(&name(&suite.suite()), wanted)),
    }
    if provider.cipher_suites.is_empty() {
        return Err(unknown("--suite", &args.suite, "aes128", &suites));
    }
    let groups: Vec<String> = provider.kx_groups.iter().map(|group| name(&group.name())).collect();
    if args.group != "any" {
        provider
            .kx_groups
            .retain(|group| name(&group.name()).eq_ignore_ascii_case(&args.group));
    }
    if provider.kx_groups.is_empty() {
        return Err(unknown("--group", &args.group, "any", &groups));
    }
    Ok(provider)
}

/// rustls' name of a registered value, which is IANA's but for the TLS 1.3 suites (`TLS13_AES_…`).
pub(crate) fn name(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

fn same_suite(rustls_name: &str, wanted: &str) -> bool {
    rustls_name.eq_ignore_ascii_case(wanted) || rustls_name.replace("TLS13_", "TLS_").eq_ignore_ascii_case(wanted)
}

fn unknown(flag: &'static str, found: &str, shorthand: &str, legal: &[String]) -> PerfError {
    PerfError::Flag {
        flag,
        found: found.to_owned(),
        expected: format!("{shorthand} or one of {}", legal.join(", ")),
    }
}

fn flag_error(flag: &'static str, file: &Path, expected: String) -> PerfError {
    PerfError::Flag {
        flag,
        found: file.display().to_string(),
        expected,
    }
}

fn certificates(flag: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, PerfError> {
    let certificates = CertificateDer::pem_file_iter(file)
        .map_err(|error| flag_error(flag, file, format!("a readable PEM file ({error})")))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| flag_error(flag, file, format!("PEM certificates ({error})")))?;
    if certificates.is_empty() {
        return Err(flag_error(flag, file, "at least one PEM certificate".to_owned()));
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, PerfError> {
    PrivateKeyDer::from_pem_file(file)
        .map_err(|error| flag_error("--client-key", file, format!("a readable PEM private key ({error})")))
}

fn trust_anchors(file: &Path) -> Result<RootCertStore, PerfError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--ca", file)? {
        roots
            .add(certificate)
            .map_err(|error| flag_error("--ca", file, format!("usable CA certificates ({error})")))?;
    }
    Ok(roots)
}

/// Believes every certificate and signature.
pub(crate) fn trust_everything() -> Arc<dyn ServerCertVerifier> {
    let schemes = aws_lc_rs::default_provider()
        .signature_verification_algorithms
        .supported_schemes();
    Arc::new(TrustEverything { schemes })
}

/// See [`trust_everything`]: `--insecure`.
#[derive(Debug)]
struct TrustEverything {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for TrustEverything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
