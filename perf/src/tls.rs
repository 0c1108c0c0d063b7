//! The client's TLS settings: one version, the wanted suites, groups and signature schemes, and what it shows and believes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::args::{ClientArgs, TlsVersion};
use crate::error::PerfError;

/// A certificate that clients show.
pub(crate) struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Where it came from, for errors.
    flag: &'static str,
    file: PathBuf,
}

/// Reads what --client-cert or --client-certs name; empty when clients show nothing.
///
/// # Errors
/// Names the flag and the file that cannot be used.
pub(crate) fn credentials(args: &ClientArgs) -> Result<Vec<Credential>, PerfError> {
    if let (Some(chain), Some(key)) = (&args.client_cert, &args.client_key) {
        return Ok(vec![Credential {
            chain: certificates("--client-cert", chain)?,
            key: private_key("--client-key", key)?,
            flag: "--client-key",
            file: key.clone(),
        }]);
    }
    args.client_certs
        .as_deref()
        .map_or_else(|| Ok(Vec::new()), credentials_of_folder)
}

/// NAME.pem, NAME.crt or NAME.cer with the chain, and the key in it or in NAME.key.
fn credentials_of_folder(folder: &Path) -> Result<Vec<Credential>, PerfError> {
    const FLAG: &str = "--client-certs";
    let unreadable = |error: io::Error| flag_error(FLAG, folder, format!("a readable folder ({error})"));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file
            .extension()
            .is_some_and(|end| end == "pem" || end == "crt" || end == "cer")
        {
            files.push(file);
        }
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let beside = file.with_extension("key");
        let mut key = if beside.exists() { key_in(FLAG, &beside)? } else { None };
        if key.is_none() {
            key = key_in(FLAG, &file)?;
        }
        let chain = certificates_in(FLAG, &file)?;
        // A file with nothing but a key, or a CA without one, is not a client's.
        if let Some(key) = key.filter(|_| !chain.is_empty()) {
            let flag = FLAG;
            found.push(Credential { chain, key, flag, file });
        }
    }
    if found.is_empty() {
        let expected = "a folder with NAME.pem or NAME.crt, and the key in it or in NAME.key".to_owned();
        return Err(flag_error(FLAG, folder, expected));
    }
    Ok(found)
}

/// Builds the configurations of one version: one for each credential, one without if there is none.
///
/// Resumption is off, so each handshake is a full one; personas that resume switch it on.
///
/// # Errors
/// Names the flag whose value is unknown, or whose file cannot be used.
pub(crate) fn client_configs(
    args: &ClientArgs,
    version: TlsVersion,
    credentials: &[Credential],
) -> Result<Vec<ClientConfig>, PerfError> {
    let provider = Arc::new(provider(args, version)?);
    let versions = match version {
        TlsVersion::Tls12 => &[&version::TLS12],
        TlsVersion::Tls13 => &[&version::TLS13],
    };
    let verifier: Arc<dyn ServerCertVerifier> = match &args.ca {
        Some(file) => WebPkiServerVerifier::builder_with_provider(Arc::new(trust_anchors(file)?), provider.clone())
            .build()
            .map_err(|error| flag_error("--ca", file, format!("usable CA certificates ({error})")))?,
        None => trust_everything(&provider),
    };
    let builder = || {
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        Ok::<_, PerfError>(builder.dangerous().with_custom_certificate_verifier(verifier.clone()))
    };
    let mut configs = Vec::new();
    if credentials.is_empty() {
        configs.push(builder()?.with_no_client_auth());
    }
    for credential in credentials {
        let (chain, key) = (credential.chain.clone(), credential.key.clone_key());
        let config = builder()?.with_client_auth_cert(chain, key);
        configs.push(config.map_err(|error| {
            flag_error(
                credential.flag,
                &credential.file,
                format!("the key of the client's certificate ({error})"),
            )
        })?);
    }
    let protocols: Vec<Vec<u8>> = args.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    for config in &mut configs {
        config.resumption = Resumption::disabled();
        config.alpn_protocols.clone_from(&protocols);
    }
    Ok(configs)
}

fn provider(args: &ClientArgs, version: TlsVersion) -> Result<CryptoProvider, PerfError> {
    let mut provider = aws_lc_rs::default_provider();
    let wanted_version = match version {
        TlsVersion::Tls12 => rustls::ProtocolVersion::TLSv1_2,
        TlsVersion::Tls13 => rustls::ProtocolVersion::TLSv1_3,
    };
    provider
        .cipher_suites
        .retain(|suite| suite.version().version == wanted_version);
    // With both versions offered, a suite of the other one is not a mistake.
    let known = aws_lc_rs::default_provider().cipher_suites;
    let suites: Vec<String> = known.iter().map(|suite| name(&suite.suite())).collect();
    for wanted in &args.suite {
        if !matches!(wanted.as_str(), "any" | "aes128") && !suites.iter().any(|suite| same_suite(suite, wanted)) {
            return Err(unknown("--suite", wanted, "any, aes128", &suites));
        }
    }
    provider.cipher_suites = in_order(&args.suite, provider.cipher_suites, |suite, wanted| {
        let name = name(&suite.suite());
        wanted == "any" || wanted == "aes128" && name.contains("AES_128_GCM") || same_suite(&name, wanted)
    });
    if provider.cipher_suites.is_empty() {
        return Err(unknown(
            "--suite",
            &args.suite.join(","),
            "one of each version of --tls: any, aes128",
            &suites,
        ));
    }
    let groups: Vec<String> = provider.kx_groups.iter().map(|group| name(&group.name())).collect();
    for wanted in &args.group {
        if wanted != "any" && !groups.iter().any(|group| group.eq_ignore_ascii_case(wanted)) {
            return Err(unknown("--group", wanted, "any", &groups));
        }
    }
    provider.kx_groups = in_order(&args.group, provider.kx_groups, |group, wanted| {
        wanted == "any" || name(&group.name()).eq_ignore_ascii_case(wanted)
    });
    restrict_signatures(&mut provider, &args.signature_scheme)?;
    Ok(provider)
}

/// What one of `wanted` names, in the order of `wanted`, each once.
fn in_order<T>(wanted: &[String], known: Vec<T>, is: impl Fn(&T, &str) -> bool) -> Vec<T> {
    let (mut chosen, mut left) = (Vec::new(), known);
    for wanted in wanted {
        let (named, others): (Vec<T>, Vec<T>) = left.into_iter().partition(|one| is(one, wanted));
        chosen.extend(named);
        left = others;
    }
    chosen
}

/// Offers and accepts only the schemes that are `wanted`.
fn restrict_signatures(provider: &mut CryptoProvider, wanted: &[String]) -> Result<(), PerfError> {
    if wanted.iter().any(|wanted| wanted == "any") {
        return Ok(());
    }
    let known = provider.signature_verification_algorithms.mapping;
    let names: Vec<String> = known.iter().map(|(scheme, _)| name(scheme)).collect();
    let mut chosen = Vec::new();
    for wanted in wanted {
        let found = known
            .iter()
            .find(|(scheme, _)| name(scheme).eq_ignore_ascii_case(wanted));
        chosen.push(*found.ok_or_else(|| unknown("--signature-scheme", wanted, "any", &names))?);
    }
    // rustls wants them for as long as the program runs, and a run has few providers.
    provider.signature_verification_algorithms.mapping = Box::leak(chosen.into_boxed_slice());
    Ok(())
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
    let certificates = certificates_in(flag, file)?;
    if certificates.is_empty() {
        return Err(flag_error(flag, file, "at least one PEM certificate".to_owned()));
    }
    Ok(certificates)
}

/// As many as there are.
fn certificates_in(flag: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, PerfError> {
    CertificateDer::pem_file_iter(file)
        .map_err(|error| flag_error(flag, file, format!("a readable PEM file ({error})")))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| flag_error(flag, file, format!("PEM certificates ({error})")))
}

fn private_key(flag: &'static str, file: &Path) -> Result<PrivateKeyDer<'static>, PerfError> {
    key_in(flag, file)?.ok_or_else(|| flag_error(flag, file, "a PEM private key".to_owned()))
}

/// `None` when there is none.
fn key_in(flag: &'static str, file: &Path) -> Result<Option<PrivateKeyDer<'static>>, PerfError> {
    match PrivateKeyDer::from_pem_file(file) {
        Ok(key) => Ok(Some(key)),
        Err(pem::Error::NoItemsFound) => Ok(None),
        Err(error) => Err(flag_error(flag, file, format!("a readable PEM private key ({error})"))),
    }
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

/// Believes every certificate and signature, of the schemes that the provider knows.
pub(crate) fn trust_everything(provider: &CryptoProvider) -> Arc<dyn ServerCertVerifier> {
    Arc::new(TrustEverything {
        schemes: provider.signature_verification_algorithms.supported_schemes(),
    })
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    /// What comes of a folder with a client, and with these files beside it.
    fn folder(files: &[(&str, &str)]) -> Result<usize, String> {
        let folder = tempfile::tempdir().unwrap();
        let client = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
        let both = client.cert.pem() + &client.signing_key.serialize_pem();
        fs::write(folder.path().join("client.pem"), both).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let certs = folder.path().to_str().unwrap();
        let line = [
            "ringlock-perf",
            "handshake",
            "--target",
            "a:1",
            "--insecure",
            "--client-certs",
            certs,
        ];
        let Command::Handshake(args) = Cli::parse_from(line).command else {
            panic!("handshake is a command")
        };
        let args = args.handshakes.client;
        let configs = credentials(&args).and_then(|found| client_configs(&args, TlsVersion::Tls13, &found));
        configs.map(|configs| configs.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn of_a_folder_only_what_is_no_client_is_left_out() {
        let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
        let (chain, key) = (other.cert.pem(), other.signing_key.serialize_pem());
        assert_eq!(folder(&[]), Ok(1));
        assert_eq!(
            folder(&[("ca.pem", &chain), ("key.pem", &key), ("notes.crt", "none")]),
            Ok(1)
        );
        assert_eq!(folder(&[("b.crt", &chain), ("b.key", &key)]), Ok(2));
        assert_eq!(folder(&[("b.crt", &(chain.clone() + &key)), ("b.key", "none")]), Ok(2));

        let own = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for (files, named) in [
            ([("b.crt", chain.as_str()), ("b.key", &key[..key.len() - 30])], "b.key"),
            (
                [("b.crt", &chain[..chain.len() - 30]), ("b.key", key.as_str())],
                "b.crt",
            ),
            ([("b.crt", chain.as_str()), ("b.key", own.as_str())], "b.crt"),
        ] {
            let error = folder(&files).unwrap_err();
            assert!(
                error.starts_with("--client-certs: found") && error.contains(named),
                "{error}"
            );
        }
    }
}
