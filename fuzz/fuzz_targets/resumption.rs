//! A ClientHello with a ticket, either of them changed in any way, in pieces, whether the server waits for answers or not: no panic, and
//! a session is resumed only with an unchanged ticket of this listener, version and name.
#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use ringlock::buffers::{Outbox, SendPool};
use ringlock::crypto::{CryptoResult, inline, suspend};
use ringlock::snapshot::Snapshot;
use ringlock::tls::client_hello::{Gathered, gather};
use ringlock::tls::handshake::Connection;
use ringlock::tls::policy::Policy;
use ringlock::tls::tickets::Secrets;
use ringlock::tls::{Outboxes, Step, Tls};
use ringlock_hsm::custody::Custody;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

const NAME: &str = "site.example";
/// The longest that the configuration allows.
const WEEK: Duration = Duration::from_secs(7 * 86_400);
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;

#[derive(Arbitrary, Debug)]
struct Input {
    waits: bool,
    abandoned: bool,
    piece: u8,
    hello: usize,
    ticket: Vec<Edit>,
    hello_edits: Vec<Edit>,
    /// What the client sends next.
    rest: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Edit {
    Flip {
        at: usize,
        bits: u8,
    },
    Cut {
        at: usize,
        bytes: u8,
    },
    Insert {
        at: usize,
        bytes: Vec<u8>,
    },
    /// The ticket of another ClientHello instead.
    Replace {
        hello: usize,
    },
}

/// A ClientHello with a ticket, as a client sent it.
struct Genuine {
    record: Vec<u8>,
    /// Where the ticket lies in it.
    at: usize,
    ticket: Vec<u8>,
    /// Where the lengths are of what the ticket lies in.
    lengths: Vec<usize>,
    extension: u16,
    listener: &'static str,
    ours: bool,
}

struct Gateway {
    policy: Arc<Policy>,
    genuine: Vec<Genuine>,
}

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("there is room");
    let key = rcgen::KeyPair::generate().expect("a key pair");
    let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("a legal name");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    std::fs::write(folder.path().join("site.pem"), &certificate).expect("there is room");
    std::fs::write(folder.path().join("site.key"), key.serialize_pem()).expect("there is room");
    let mut genuine = Vec::new();
    let ours = load(folder.path(), &[7; 32]);
    let theirs = load(folder.path(), &[8; 32]);
    for (snapshot, ours) in [(&ours, true), (&theirs, false)] {
        for (policy, listener) in snapshot
            .listeners
            .iter()
            .map(|listener| &listener.policy)
            .zip(["edge", "edge2"])
        {
            for version in [&TLS12, &TLS13] {
                let record = hello_with_ticket(policy, &certificate, version);
                genuine.push(Genuine::new(record, listener, ours));
            }
        }
    }
    Gateway {
        policy: Arc::clone(&ours.listeners[0].policy),
        genuine,
    }
});

fn load(folder: &Path, secret: &[u8]) -> Snapshot {
    let text = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"\nidentities = [\"site\"]\nupstream = \"app\"\n\
                [[listener]]\nname = \"edge2\"\naddress = \"127.0.0.1:2\"\nidentities = [\"site\"]\nupstream = \"app\"\n\
                [[identity]]\nname = \"site\"\ncertificate = \"site.pem\"\nkey = \"site.key\"\n\
                [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:3\"]\n\
                [tickets]\nlifetime = \"7d\"\n";
    let (config, _) = ringlock::config::parse(text, &folder.join("ringlock.toml")).expect("it is legal");
    let snapshot = Snapshot::load(config, 1, None, &mut Custody::without_signers()).expect("it can be loaded");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is later than 1970");
    let mut secrets = Secrets::new(Arc::clone(&snapshot.tickets));
    assert!(secrets.replace(secret, WEEK, now.as_secs()).expect("there is memory"));
    snapshot
}

/// The first record of a client that has been there before.
fn hello_with_ticket(policy: &Arc<Policy>, certificate: &str, version: &'static SupportedProtocolVersion) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
    roots.add(certificate).expect("it can be a root");
    let mut provider = aws_lc_rs::default_provider();
    // One share, and a small one.
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[version])
        .expect("the provider has suites for it")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let connect = || {
        let name = ServerName::try_from(NAME).expect("a legal name");
        ClientConnection::new(Arc::clone(&config), name).expect("it can begin")
    };
    let mut client = connect();
    let mut server = Server::new(policy);
    while !server.established {
        let flight = server.receive(&flight(&mut client), true);
        client.read_tls(&mut &flight[..]).expect("it is in memory");
        client.process_new_packets().expect("a handshake that succeeds");
    }
    flight(&mut connect())
}

fn flight(client: &mut ClientConnection) -> Vec<u8> {
    let mut flight = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut flight).expect("it is in memory");
    }
    flight
}

/// Our side of a connection.
struct Server {
    connection: Connection,
    received: Vec<u8>,
    plain: Outbox,
    sealed: Outbox,
    pool: SendPool,
    established: bool,
    over: bool,
}

impl Server {
    fn new(policy: &Arc<Policy>) -> Server {
        Server {
            connection: Connection::accept(policy),
            received: Vec::new(),
            plain: Outbox::default(),
            sealed: Outbox::default(),
            pool: SendPool::default(),
            established: false,
            over: false,
        }
    }

    /// Takes bytes and returns what is sent.
    fn receive(&mut self, bytes: &[u8], answers: bool) -> Vec<u8> {
        self.received.extend_from_slice(bytes);
        while !self.over {
            let mut outboxes = Outboxes {
                plain: &mut self.plain,
                sealed: &mut self.sealed,
                pool: &mut self.pool,
            };
            let given = self.received.len();
            let (used, step) = self.connection.handshake(&mut self.received, &mut outboxes);
            assert!(used <= given);
            self.received.drain(..used);
            match step {
                Step::NeedsInput => break,
                Step::Crypto(op) if answers => self.connection.crypto_done(inline::run(&op)),
                Step::Crypto(_) => self.connection.crypto_done(CryptoResult::Abandoned),
                Step::Established => (self.over, self.established) = (true, true),
                Step::Failed(_) => self.over = true,
            }
        }
        let mut sent = Vec::new();
        while let Some(buffer) = self.sealed.take() {
            let bytes = buffer.pending();
            sent.extend_from_slice(bytes);
            let length = bytes.len();
            self.sealed.returned(buffer, length, &mut self.pool);
        }
        sent
    }
}

impl Genuine {
    fn new(record: Vec<u8>, listener: &'static str, ours: bool) -> Genuine {
        let (start, extensions) = extensions_of_hello(&record[9..]).expect("the client is not broken");
        let start = 9 + start;
        let of = |(kind, at, bytes): (u16, usize, Vec<u8>)| match kind {
            // Of the extension, of the list of identities, of the identity.
            PRE_SHARED_KEY => {
                let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
                let at = 9 + at;
                Some((kind, at + 4, bytes[4..4 + length].to_vec(), vec![at - 2, at, at + 2]))
            }
            SESSION_TICKET if !bytes.is_empty() => Some((kind, 9 + at, bytes, vec![9 + at - 2])),
            _ => None,
        };
        let (extension, at, ticket, mut lengths) = extensions.into_iter().find_map(of).expect("it has a ticket");
        // Of the record, of the message (the lower bytes), of the extensions.
        lengths.extend([3, 7, start - 2]);
        Genuine {
            record,
            at,
            ticket,
            lengths,
            extension,
            listener,
            ours,
        }
    }

    fn with_ticket(&self, ticket: &[u8]) -> Vec<u8> {
        let mut record = self.record.clone();
        record.splice(self.at..self.at + self.ticket.len(), ticket.iter().copied());
        let more = u16::try_from(ticket.len()).unwrap_or_default();
        let less = u16::try_from(self.ticket.len()).expect("it fits into an extension");
        for &at in &self.lengths {
            let length = u16::from_be_bytes([record[at], record[at + 1]]);
            record[at..at + 2].copy_from_slice(&length.wrapping_sub(less).wrapping_add(more).to_be_bytes());
        }
        record
    }

    /// It may be resumed by what it says there.
    fn resumes(&self) -> bool {
        self.ours && self.listener == "edge"
    }
}

type Extension = (u16, usize, Vec<u8>);

/// Each extension's kind, place and bytes, and where the first begins.
fn extensions_of_hello(body: &[u8]) -> Option<(usize, Vec<Extension>)> {
    let session_id = 34;
    let suites = session_id + 1 + usize::from(*body.get(session_id)?);
    let compressions = suites + 2 + u16_at(body, suites)?;
    extensions(body, compressions + 1 + usize::from(*body.get(compressions)?))
}

/// Behind their length.
fn extensions(body: &[u8], at: usize) -> Option<(usize, Vec<Extension>)> {
    let end = at + 2 + u16_at(body, at)?;
    let (start, mut next, mut extensions) = (at + 2, at + 2, Vec::new());
    while next < end {
        let (kind, length) = (u16_at(body, next)?, u16_at(body, next + 2)?);
        let bytes = body.get(next + 4..next + 4 + length)?.to_vec();
        extensions.push((u16::try_from(kind).ok()?, next + 4, bytes));
        next += 4 + length;
    }
    Some((start, extensions))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
}

/// What the server said in the clear: with TLS 1.3 that it has chosen a key of before, with TLS 1.2 that it goes on without certificate.
fn is_resumed(sent: &[u8]) -> bool {
    let (mut messages, mut at) = (Vec::new(), 0);
    while let Some(length) = u16_at(sent, at + 3).filter(|_| sent[at] == 22) {
        messages.extend_from_slice(&sent[at + 5..at + 5 + length]);
        at += 5 + length;
    }
    let mut resumed = false;
    let mut rest = &messages[..];
    while let [kind, 0, high, low, behind @ ..] = rest
        && let Some((body, next)) = behind.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
    {
        match kind {
            2 => {
                let session_id = usize::from(body[34]);
                let (_, extensions) = extensions(body, 34 + 1 + session_id + 2 + 1).expect("the server is not broken");
                let has = |kind| extensions.iter().any(|(present, ..)| *present == kind);
                resumed = has(PRE_SHARED_KEY) || !has(SUPPORTED_VERSIONS);
            }
            11 => resumed = false,
            _ => {}
        }
        rest = next;
    }
    resumed
}

/// A server that resumes a session has found one of these in the ClientHello.
fn is_allowed(received: &[u8], name: Option<&str>) -> bool {
    let Gathered::Complete(body) = gather(received) else {
        return false;
    };
    let Some((_, extensions)) = extensions_of_hello(&body) else {
        return false;
    };
    let has = |kind, bytes: &[u8]| {
        extensions
            .iter()
            .any(|(present, _, found)| *present == kind && found == bytes)
    };
    name == Some(NAME)
        && GATEWAY
            .genuine
            .iter()
            .filter(|genuine| genuine.resumes())
            .any(|genuine| match genuine.extension {
                // The whole message is signed by who has the key.
                PRE_SHARED_KEY => *body == genuine.record[9..],
                kind => has(kind, &genuine.ticket),
            })
}

fuzz_target!(|input: Input| {
    let at = |position: usize| &GATEWAY.genuine[position % GATEWAY.genuine.len()];
    suspend::allow(input.waits);
    let genuine = at(input.hello);
    let mut ticket = genuine.ticket.clone();
    for edit in &input.ticket {
        apply(edit, &mut ticket, &at);
    }
    let mut bytes = genuine.with_ticket(&ticket);
    for edit in &input.hello_edits {
        apply(edit, &mut bytes, &at);
    }
    let unchanged = bytes == genuine.record;
    bytes.extend_from_slice(&input.rest);
    let mut server = Server::new(&GATEWAY.policy);
    let mut sent = Vec::new();
    for piece in bytes.chunks(1 + usize::from(input.piece) * 16) {
        sent.extend(server.receive(piece, !input.abandoned));
    }
    let resumed = is_resumed(&sent);
    assert!(
        !resumed || is_allowed(&bytes, server.connection.server_name()),
        "resumed"
    );
    if unchanged && !input.abandoned {
        assert_eq!(resumed, genuine.resumes(), "{} {}", genuine.listener, genuine.extension);
    }
    assert!(!server.established, "nobody here has the keys");
    drop(server);
    assert_eq!(suspend::waiting(), 0);
});

fn apply(edit: &Edit, bytes: &mut Vec<u8>, genuine: &impl Fn(usize) -> &'static Genuine) {
    let length = bytes.len();
    match *edit {
        Edit::Flip { at, bits } if length > 0 => bytes[at % length] ^= bits,
        Edit::Flip { .. } => {}
        Edit::Cut { at, bytes: less } => {
            let start = at % (length + 1);
            bytes.drain(start..length.min(start + usize::from(less)));
        }
        Edit::Insert { at, bytes: ref more } => {
            let start = at % (length + 1);
            bytes.splice(start..start, more.iter().copied());
        }
        Edit::Replace { hello } => bytes.clone_from(&genuine(hello).ticket),
    }
}
