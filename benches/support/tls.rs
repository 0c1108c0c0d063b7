//! TLS in memory: a site with a certificate, rustls clients, and the two servers that are compared.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertifiedKey, KeyPair, RsaKeySize};
use ringlock::buffers::{Outbox, SendPool};
use ringlock::crypto::{CryptoOp, inline};
use ringlock::snapshot::Snapshot;
use ringlock::tls::handshake::Connection;
use ringlock::tls::policy::Policy;
use ringlock::tls::tickets::Secrets;
use ringlock::tls::{Outboxes, Step, Tls};
use ringlock_hsm::custody::Custody;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};

/// The key of a site.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key {
    /// ECDSA with P-256.
    P256,
    /// ECDSA with P-384.
    P384,
    /// EdDSA with Curve25519.
    Ed25519,
    /// RSA with 2,048 bits.
    Rsa2048,
    /// RSA with 3,072 bits.
    Rsa3072,
    /// RSA with 4,096 bits.
    Rsa4096,
}

impl Key {
    fn generate(self) -> KeyPair {
        let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        let key = match self {
            Key::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Key::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Key::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            Key::Rsa2048 => rsa(RsaKeySize::_2048),
            Key::Rsa3072 => rsa(RsaKeySize::_3072),
            Key::Rsa4096 => rsa(RsaKeySize::_4096),
        };
        key.expect("aws-lc makes keys of all kinds")
    }
}

/// A name, its self-signed certificate, and a gateway's configuration that serves it.
pub(crate) struct Site {
    /// Loaded as `ringlock run` loads it.
    pub(crate) snapshot: Snapshot,
    certified: CertifiedKey<KeyPair>,
}

impl Site {
    /// Issues no tickets.
    pub(crate) fn new(key: Key) -> Site {
        Site::load(key, false)
    }

    /// Issues tickets, as `ringlock run` does by default.
    pub(crate) fn with_tickets(key: Key) -> Site {
        let site = Site::load(key, true);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("it is later than 1970").as_secs();
        Secrets::new(Arc::clone(&site.snapshot.tickets))
            .replace(&[7; 32], Duration::from_secs(3600), now)
            .expect("there is memory");
        site
    }

    fn load(key: Key, tickets: bool) -> Site {
        let signing_key = key.generate();
        let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
            .and_then(|params| params.self_signed(&signing_key))
            .expect("localhost is a name");
        let folder = tempfile::tempdir().expect("there is room for two small files");
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("there is room for two small files");
        };
        write("chain.pem", cert.pem());
        write("key.pem", signing_key.serialize_pem());
        let config = CONFIG.replace("TICKETS", &tickets.to_string());
        let (config, _) =
            ringlock::config::parse(&config, &folder.path().join("bench.toml")).expect("the configuration is legal");
        Site {
            snapshot: Snapshot::load(config, 1, None, &mut Custody::without_signers())
                .expect("certificate and key fit"),
            certified: CertifiedKey { cert, signing_key },
        }
    }

    /// Clients that offer one version, one group, and every suite in rustls' order: AES-256-GCM-SHA384 first.
    pub(crate) fn client(&self, version: &'static SupportedProtocolVersion, group: NamedGroup) -> Arc<ClientConfig> {
        self.client_of(aws_lc_rs::default_provider(), version, group)
    }

    /// Clients that offer one suite only.
    pub(crate) fn client_with_suite(
        &self,
        version: &'static SupportedProtocolVersion,
        group: NamedGroup,
        suite: CipherSuite,
    ) -> Arc<ClientConfig> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|offered| offered.suite() == suite);
        self.client_of(provider, version, group)
    }

    fn client_of(
        &self,
        mut provider: CryptoProvider,
        version: &'static SupportedProtocolVersion,
        group: NamedGroup,
    ) -> Arc<ClientConfig> {
        provider.kx_groups.retain(|kx| kx.name() == group);
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certified.cert.der().clone())
            .expect("a self-signed certificate is its own anchor");
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .expect("aws-lc has suites of both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// Such clients that keep sessions, each for itself.
    pub(crate) fn resuming_clients(
        &self,
        version: &'static SupportedProtocolVersion,
        group: NamedGroup,
        count: u64,
    ) -> Vec<Arc<ClientConfig>> {
        let client = self.client(version, group);
        let resuming = |_| {
            let mut config = ClientConfig::clone(&client);
            config.resumption = Resumption::in_memory_sessions(1);
            Arc::new(config)
        };
        (0..count).map(resuming).collect()
    }

    /// What Ringlock's connections share.
    pub(crate) fn ringlock(&self) -> Shared {
        Shared {
            policy: Arc::clone(&self.snapshot.listeners[0].policy),
            pool: SendPool::default(),
            now: Instant::now(),
        }
    }

    /// rustls as it comes: the client's order of suites, two tickets; sessions in a cache.
    pub(crate) fn rustls_stock(&self) -> Arc<ServerConfig> {
        Arc::new(self.rustls(aws_lc_rs::default_provider()))
    }

    /// rustls set up as Ringlock sets it up: AES-128-GCM-SHA256 first whatever the client says, no tickets. What is left
    /// between the two is the adapter.
    pub(crate) fn rustls_tuned(&self) -> Arc<ServerConfig> {
        Arc::new(self.rustls_without_tickets())
    }

    /// The same with one ticket, as Ringlock issues it.
    pub(crate) fn rustls_with_tickets(&self) -> Arc<ServerConfig> {
        let mut config = self.rustls_without_tickets();
        config.send_tls13_tickets = 1;
        config.ticketer = aws_lc_rs::Ticketer::new().expect("there are random numbers");
        Arc::new(config)
    }

    fn rustls_without_tickets(&self) -> ServerConfig {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !is_aes128(suite.suite()));
        let mut config = self.rustls(provider);
        config.ignore_client_order = true;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config
    }

    fn rustls(&self, provider: CryptoProvider) -> ServerConfig {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.certified.signing_key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .expect("aws-lc has suites of both versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.certified.cert.der().clone()], key)
            .expect("certificate and key fit")
    }
}

const CONFIG: &str = r#"
    [[listener]]
    name = "bench"
    address = "127.0.0.1:8443"
    identities = ["site"]
    upstream = "app"

    [listener.tls]
    tickets = TICKETS

    [[identity]]
    name = "site"
    certificate = "chain.pem"
    key = "key.pem"

    [[upstream]]
    name = "app"
    servers = ["127.0.0.1:8080"]
"#;

fn is_aes128(suite: CipherSuite) -> bool {
    [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ]
    .contains(&suite)
}

/// The server's side of one connection.
pub(crate) trait Server {
    /// What connections of a worker share.
    type Shared;

    fn accept(shared: &mut Self::Shared) -> Self;

    /// Takes one flight of the client's handshake and appends the answer.
    fn receive(&mut self, shared: &mut Self::Shared, flight: &mut [u8], answer: &mut Vec<u8>);

    fn is_established(&self) -> bool;
}

/// What Ringlock's connections share.
pub(crate) struct Shared {
    pub(crate) policy: Arc<Policy>,
    pub(crate) pool: SendPool,
    /// A worker looks at the clock once a turn.
    pub(crate) now: Instant,
}

/// Ringlock's adapter, driven as a session drives it; key exchanges are computed inline.
pub(crate) struct Ringlock {
    pub(crate) tls: Connection,
    /// For the client.
    pub(crate) sealed: Outbox,
    /// For the upstream.
    pub(crate) plain: Outbox,
}

impl Server for Ringlock {
    type Shared = Shared;

    fn accept(shared: &mut Shared) -> Self {
        Ringlock {
            tls: Connection::accept(&shared.policy),
            sealed: Outbox::default(),
            plain: Outbox::default(),
        }
    }

    fn receive(&mut self, shared: &mut Shared, flight: &mut [u8], answer: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(op) = self.go_on(shared, flight, &mut at) {
            self.tls.crypto_done(inline::run(&op));
        }
        self.take_answer(shared, flight, at, answer);
    }

    fn is_established(&self) -> bool {
        self.tls.negotiated().is_some()
    }
}

impl Ringlock {
    /// Goes on with a flight of the client's, of which `at` bytes are used up, until there is something to compute.
    pub(crate) fn go_on(&mut self, shared: &mut Shared, flight: &mut [u8], at: &mut usize) -> Option<CryptoOp> {
        let mut outboxes = Outboxes {
            plain: &mut self.plain,
            sealed: &mut self.sealed,
            pool: &mut shared.pool,
        };
        let (used, step) = self.tls.handshake(&mut flight[*at..], &mut outboxes);
        *at += used;
        match step {
            Step::Crypto(op) => Some(op),
            Step::NeedsInput | Step::Established => None,
            Step::Failed(failure) => panic!("the handshake failed: {failure:?}"),
        }
    }

    /// Appends what is to be sent after a flight.
    pub(crate) fn take_answer(&mut self, shared: &mut Shared, flight: &[u8], at: usize, answer: &mut Vec<u8>) {
        assert_eq!(at, flight.len(), "a flight is used up");
        while let Some(buffer) = self.sealed.take() {
            answer.extend_from_slice(buffer.pending());
            let sent = buffer.len();
            self.sealed.returned(buffer, sent, &mut shared.pool);
        }
    }
}

/// rustls' buffered connection, which most servers use.
pub(crate) struct Rustls(pub(crate) ServerConnection);

impl Server for Rustls {
    type Shared = Arc<ServerConfig>;

    fn accept(config: &mut Arc<ServerConfig>) -> Self {
        let mut connection = ServerConnection::new(Arc::clone(config)).expect("the configuration is complete");
        connection.set_buffer_limit(None);
        Rustls(connection)
    }

    fn receive(&mut self, _: &mut Arc<ServerConfig>, flight: &mut [u8], answer: &mut Vec<u8>) {
        let mut rest = &*flight;
        while !rest.is_empty() {
            self.0.read_tls(&mut rest).expect("memory can be read");
            self.0.process_new_packets().expect("the client speaks TLS");
        }
        while self.0.wants_write() {
            self.0.write_tls(answer).expect("memory can be written");
        }
    }

    fn is_established(&self) -> bool {
        !self.0.is_handshaking()
    }
}

/// A client that has sent nothing.
pub(crate) fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("localhost is a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).expect("the configuration is complete");
    client.set_buffer_limit(None);
    client
}

/// What the client sends next; nothing when it waits.
pub(crate) fn flight(client: &mut ClientConnection, bytes: &mut Vec<u8>) {
    bytes.clear();
    while client.wants_write() {
        client.write_tls(bytes).expect("memory can be written");
    }
}

/// Gives the client what the server sent.
pub(crate) fn deliver(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("memory can be read");
        client.process_new_packets().expect("the server speaks TLS");
    }
}

/// More flights than any handshake has.
pub(crate) const FLIGHTS_MAX: usize = 8;
