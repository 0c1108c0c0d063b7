//! The TLS settings of one listener, as loaded: two rustls configurations for each way in which clients are let in, and what is decided before
//! rustls is asked.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite};

use super::resumption::Resumption;
use crate::config::{Tls, TlsVersion};
use crate::crypto::cpu::Cpu;
use crate::crypto::provider;
use crate::identity::client_auth::ClientAuth;
use crate::identity::{NameMap, Selector};
use crate::limits::TICKETS_PER_HANDSHAKE_MAX;

/// See the module.
#[derive(Debug)]
pub struct Policy {
    /// Never empty.
    admissions: Vec<Configs>,
    /// Positions of those that are for some names; the first is for all others.
    names: NameMap<AdmissionId>,
    selector: Arc<Selector>,
    groups: Vec<NamedGroup>,
    min_version: TlsVersion,
    max_version: TlsVersion,
}

/// Who is let in, and which sessions can be resumed: what a listener may have differently for some names.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The verification of client certificates; none when clients are not asked for any.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Sessions of those who were let in.
    pub resumption: Arc<Resumption>,
}

impl Admission {
    /// Connections of clients that are revoked after they were let in are closed.
    #[must_use]
    pub fn closes_revoked(&self) -> bool {
        self.client_auth.as_deref().is_some_and(ClientAuth::closes_revoked)
    }

    /// How the client of a session that was let in under `earlier` is revoked meanwhile, if it is and that matters. `chain`: what it has
    /// shown.
    #[must_use]
    pub fn revokes(&self, earlier: &Admission, chain: &[CertificateDer<'_>]) -> Option<String> {
        let client_auth = self.client_auth.as_ref().filter(|now| now.closes_revoked())?;
        let before = earlier.client_auth.as_deref().map(ClientAuth::revocation);
        if chain.is_empty() || before == Some(client_auth.revocation()) {
            return None;
        }
        client_auth.revokes(chain)
    }
}

/// Position among the admissions of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionId(pub usize);

/// An admission as rustls has it.
#[derive(Debug)]
pub(super) struct Configs {
    /// Our order of suites wins.
    ours: Arc<ServerConfig>,
    /// The same with ChaCha20 first: for clients that put it first because they have no AES hardware.
    chacha: Arc<ServerConfig>,
    /// Clients are asked for certificates, and rustls verifies signatures of theirs.
    pub(super) asks_for_certificates: bool,
}

impl Policy {
    /// Settings of a listener whose identities are in `selector`. The first of its admissions, of which there is at least one, is for names that
    /// `names` does not have, and for clients that send none.
    ///
    /// # Errors
    /// rustls' word on suites and versions that do not go together.
    pub fn new(
        tls: &Tls,
        admissions: &[Admission],
        names: NameMap<AdmissionId>,
        selector: Arc<Selector>,
        cpu: Cpu,
    ) -> Result<Policy, rustls::Error> {
        let groups = tls.groups.clone().unwrap_or_else(provider::auto_groups);
        let suites = tls.cipher_suites.clone().unwrap_or_else(|| provider::auto_suites(cpu));
        // A list in the file is an order that the operator wants; only "auto" bends to the client.
        let for_chacha = if tls.cipher_suites.is_some() {
            suites.clone()
        } else {
            provider::chacha_first(&suites)
        };
        let (ours, chacha) = (
            provider::provider(&suites, &groups),
            provider::provider(&for_chacha, &groups),
        );
        let configs = |admission: &Admission| {
            let config = |provider| server_config(tls, admission, provider, &selector);
            Ok(Configs {
                ours: config(&ours)?,
                chacha: config(&chacha)?,
                asks_for_certificates: admission.client_auth.is_some(),
            })
        };
        Ok(Policy {
            admissions: admissions.iter().map(configs).collect::<Result<_, rustls::Error>>()?,
            names,
            groups,
            min_version: tls.min_version,
            max_version: tls.max_version,
            selector,
        })
    }

    /// For a client that asks for this lower-case name.
    pub(super) fn configs(&self, name: Option<&str>) -> &Configs {
        let of_name = name.and_then(|name| self.names.find(name).first());
        let &AdmissionId(position) = of_name.unwrap_or(&AdmissionId(0));
        &self.admissions[position]
    }

    /// The listener has an identity for this lower-case name, or does not insist.
    pub(super) fn knows(&self, name: Option<&str>) -> bool {
        self.selector.knows(name)
    }

    /// A version on the wire is one of the listener's.
    pub(super) fn has_version(&self, version: u16) -> bool {
        match version {
            0x0303 => self.min_version == TlsVersion::Tls12,
            0x0304 => self.max_version == TlsVersion::Tls13,
            _ => false,
        }
    }

    /// One of the listener's suites for this version on the wire is offered.
    pub(super) fn shares_suite<I: Iterator<Item = CipherSuite>>(&self, version: u16, offered: impl Fn() -> I) -> bool {
        let suites = &self.admissions[0].ours.crypto_provider().cipher_suites;
        let of_version = |suite: &&SupportedCipherSuite| u16::from(suite.version().version) == version;
        suites
            .iter()
            .filter(of_version)
            .any(|suite| offered().any(|offer| offer == suite.suite()))
    }

    /// The group that rustls will choose: the client's order wins.
    pub(super) fn choose_group(&self, mut offered: impl Iterator<Item = NamedGroup>) -> Option<NamedGroup> {
        offered.find(|group| self.groups.contains(group))
    }
}

impl Configs {
    pub(super) fn config(&self, client_prefers_chacha: bool) -> &Arc<ServerConfig> {
        if client_prefers_chacha {
            &self.chacha
        } else {
            &self.ours
        }
    }
}

fn server_config(
    tls: &Tls,
    admission: &Admission,
    provider: &Arc<CryptoProvider>,
    selector: &Arc<Selector>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let resumption = &admission.resumption;
    let mut versions = Vec::new();
    if tls.max_version == TlsVersion::Tls13 {
        versions.push(&rustls::version::TLS13);
    }
    if tls.min_version == TlsVersion::Tls12 {
        versions.push(&rustls::version::TLS12);
    }
    let resolver: Arc<dyn ResolvesServerCert> = selector.clone();
    let verifier = match &admission.client_auth {
        Some(client_auth) => client_auth.verifier(provider),
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.ignore_client_order = true;
    config.alpn_protocols.clone_from(&tls.alpn);
    config.time_provider = Arc::clone(resumption.clock());
    config.ticketer = resumption.clone();
    config.session_storage = resumption.clone();
    // Browsers and curl use one for each connection, and each resumption brings the next. Who wants several asks for them (RFC 9149).
    let resumes = resumption.issues_tickets() || resumption.cache().is_some();
    config.send_tls13_tickets = usize::from(resumes);
    config.max_tls13_tickets = if resumes { TICKETS_PER_HANDSHAKE_MAX } else { 0 };
    // Early data can be replayed, and bytes that are passed on as they are cannot be told from a replay.
    config.max_early_data_size = 0;
    // For the record layer, which is ours.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}
