//! A short protocol in place of TLS, both ends. It has the records of TLS and the life of a TLS connection (a hello that waits for
//! a key exchange, records with data, KeyUpdates, alerts, close_notify), and every record after the hello names the secret of its
//! connection and its place in order. So whatever reaches the wrong connection, or the right one twice or late, is seen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{SHA256, digest};
use ringlock::buffers::Sink;
use ringlock::crypto::{CryptoOp, CryptoResult};
use ringlock::error::{Cause, HandshakeFailure};
use ringlock::limits::KEY_UPDATES_PER_SECOND_MAX;
use ringlock::metrics::{Negotiated, Resumptions};
use ringlock::net::sim::random::Random;
use ringlock::tls::policy::Policy;
use ringlock::tls::records::record_end;
use ringlock::tls::{Opened, Outboxes, Step, Tls};
use rustls::NamedGroup;
use rustls::crypto::CompletedKeyExchange;
use rustls::pki_types::CertificateDer;

use super::client::{ClientTls, Heard, Hello};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;

const CLOSE_NOTIFY: [u8; 2] = [1, 0];
const HANDSHAKE_FAILURE: [u8; 2] = [2, 40];

const FRAGMENT: usize = 16 * 1024 - 12;

/// What a hello asks for.
const PLAIN: u8 = 0;
/// An answer before the key exchange, so that a send is in flight while it is awaited.
const ANSWER_FIRST: u8 = 1;
/// A refusal.
const REFUSE: u8 = 2;

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 3];
    record.extend(
        u16::try_from(payload.len())
            .expect("the simulation is set up")
            .to_be_bytes(),
    );
    record.extend(payload);
    record
}

fn proof(secret: &[u8], who: &[u8]) -> Vec<u8> {
    digest(&SHA256, &[secret, who].concat()).as_ref().to_vec()
}

/// One direction after the handshake.
struct Direction {
    key: [u8; 4],
    sequence: u32,
    closed: bool,
}

impl Direction {
    fn new(secret: &[u8], who: &[u8]) -> Direction {
        Direction {
            key: proof(secret, who)[..4].try_into().expect("the simulation is set up"),
            sequence: 0,
            closed: false,
        }
    }

    fn header(&mut self) -> [u8; 8] {
        let mut header = [0; 8];
        header[..4].copy_from_slice(&self.key);
        header[4..].copy_from_slice(&self.sequence.to_be_bytes());
        self.sequence += 1;
        header
    }

    fn seal(&mut self, kind: u8, plain: &[u8]) -> Vec<u8> {
        assert!(!self.closed, "sealed after close_notify");
        record(kind, &[&self.header(), plain].concat())
    }

    fn open<'a>(&mut self, payload: &'a [u8]) -> &'a [u8] {
        assert!(!self.closed, "opened after close_notify");
        let header = self.header();
        assert_eq!(payload[..8], header, "a record of another connection, or out of order");
        &payload[8..]
    }
}

enum State {
    Hello,
    /// The hello is complete; the answer to its operation is awaited.
    Exchanging,
    Exchanged(Result<CompletedKeyExchange, rustls::Error>),
    /// Our answer is sent.
    Finishing {
        secret: Vec<u8>,
    },
    Running {
        from_client: Direction,
        to_client: Direction,
    },
    Dead,
}

/// The gateway's end.
pub(crate) struct ScriptedServer {
    state: State,
    established: bool,
    key_updates: u32,
}

impl ScriptedServer {
    fn refuse(&mut self, length: usize, failure: HandshakeFailure, outboxes: &mut Outboxes<'_>) -> (usize, Step) {
        self.state = State::Dead;
        let alert = record(ALERT, &HANDSHAKE_FAILURE);
        outboxes.sealed.sink(outboxes.pool).write(&alert);
        (length, Step::Failed(failure))
    }
}

impl Tls for ScriptedServer {
    fn accept(_: &Arc<Policy>) -> Self {
        ScriptedServer {
            state: State::Hello,
            established: false,
            key_updates: 0,
        }
    }

    fn handshake(&mut self, received: &mut [u8], outboxes: &mut Outboxes<'_>) -> (usize, Step) {
        if received.first().is_some_and(|&kind| kind != HANDSHAKE) {
            self.state = State::Dead;
            return (
                received.len(),
                Step::Failed(HandshakeFailure::NotTls { plain_http: false }),
            );
        }
        let Some(end) = record_end(received, 0) else {
            return (0, Step::NeedsInput);
        };
        let body = &received[5..end];
        match std::mem::replace(&mut self.state, State::Dead) {
            State::Hello => {
                let [flags, share_length, rest @ ..] = body else {
                    return self.refuse(received.len(), HandshakeFailure::MalformedHello, outboxes);
                };
                if *flags == REFUSE {
                    return self.refuse(received.len(), HandshakeFailure::NoSharedGroup, outboxes);
                }
                if *flags == ANSWER_FIRST {
                    let wait = record(HANDSHAKE, &[0; 600]);
                    outboxes.sealed.sink(outboxes.pool).write(&wait);
                }
                self.state = State::Exchanging;
                let op = CryptoOp::KeyExchange {
                    group: NamedGroup::X25519,
                    peer_share: rest[..usize::from(*share_length)].into(),
                };
                (0, Step::Crypto(op))
            }
            State::Exchanging => panic!("the handshake goes on before the key exchange is done"),
            State::Exchanged(Err(error)) => {
                self.refuse(received.len(), HandshakeFailure::Protocol(error.to_string()), outboxes)
            }
            State::Exchanged(Ok(done)) => {
                let secret = done.secret.secret_bytes().to_vec();
                let answer = [done.pub_key, proof(&secret, b"server")].concat();
                let answer = record(HANDSHAKE, &answer);
                outboxes.sealed.sink(outboxes.pool).write(&answer);
                self.state = State::Finishing { secret };
                (end, Step::NeedsInput)
            }
            State::Finishing { secret } => {
                assert_eq!(body, proof(&secret, b"client"), "the client has another secret");
                self.state = State::Running {
                    from_client: Direction::new(&secret, b"up"),
                    to_client: Direction::new(&secret, b"down"),
                };
                self.established = true;
                (end, Step::Established)
            }
            State::Running { .. } | State::Dead => panic!("a handshake after its end"),
        }
    }

    fn crypto_done(&mut self, result: CryptoResult) {
        assert!(
            matches!(self.state, State::Exchanging),
            "a result that nobody waits for"
        );
        let CryptoResult::KeyExchange(answer) = result else {
            panic!("an answer to something else: {result:?}");
        };
        self.state = State::Exchanged(answer);
    }

    fn open(&mut self, _: Instant, received: &[u8], outboxes: &mut Outboxes<'_>) -> (usize, Opened) {
        let State::Running { from_client, to_client } = &mut self.state else {
            panic!("records after the end");
        };
        let mut used = 0;
        while let Some(end) = record_end(received, used) {
            let (kind, payload) = (received[used], &received[used + 5..end]);
            match kind {
                DATA => {
                    let plain = from_client.open(payload);
                    outboxes.plain.sink(outboxes.pool).write(plain);
                }
                KEY_UPDATE => {
                    from_client.open(payload);
                    self.key_updates += 1;
                    if self.key_updates > KEY_UPDATES_PER_SECOND_MAX {
                        self.state = State::Dead;
                        return (received.len(), Opened::Failed(Cause::KeyUpdateFlood));
                    }
                    if !to_client.closed {
                        let answer = to_client.seal(KEY_UPDATE, &[]);
                        outboxes.sealed.sink(outboxes.pool).write(&answer);
                    }
                }
                ALERT => {
                    let alert = from_client.open(payload);
                    assert_eq!(alert, CLOSE_NOTIFY);
                    from_client.closed = true;
                    return (received.len(), Opened::Closed);
                }
                other => {
                    self.state = State::Dead;
                    return (received.len(), Opened::Failed(Cause::Record(format!("record {other}"))));
                }
            }
            used = end;
        }
        (used, Opened::Open)
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut Sink<'_>) -> Result<(), Cause> {
        // After a failure nothing is sealed, as with rustls.
        if let State::Running { to_client, .. } = &mut self.state {
            for fragment in plain.chunks(FRAGMENT) {
                sealed.write(&to_client.seal(DATA, fragment));
            }
        }
        Ok(())
    }

    fn close_notify(&mut self, sealed: &mut Sink<'_>) {
        if let State::Running { to_client, .. } = &mut self.state {
            sealed.write(&to_client.seal(ALERT, &CLOSE_NOTIFY));
            to_client.closed = true;
        }
    }

    fn server_name(&self) -> Option<&str> {
        None
    }

    fn alpn(&self) -> Option<&[u8]> {
        None
    }

    fn take_client_certificates(&mut self) -> Box<[CertificateDer<'static>]> {
        Box::default()
    }

    fn resumptions(&self) -> Resumptions {
        Resumptions::default()
    }

    fn negotiated(&self) -> Option<Negotiated> {
        self.established.then_some(Negotiated {
            version: 1,
            suite: 0,
            group: 1,
            resumption: 0,
        })
    }
}

/// The client's end.
pub(crate) struct ScriptedClient {
    secret: PrivateKey,
    incoming: Vec<u8>,
    running: Option<(Direction, Direction)>,
}

impl ClientTls for ScriptedClient {
    type Server = ScriptedServer;

    fn new(random: &mut Random, hello: Hello, out: &mut VecDeque<u8>) -> Self {
        let seed: Vec<u8> = std::iter::repeat_with(|| random.number().to_le_bytes())
            .take(4)
            .flatten()
            .collect();
        let secret = PrivateKey::from_private_key(&X25519, &seed).expect("the simulation is set up");
        let share = secret.compute_public_key().expect("the simulation is set up");
        let share = share.as_ref();
        let (flags, share) = match hello {
            Hello::Good if random.chance(500) => (PLAIN, share),
            Hello::Good => (ANSWER_FIRST, share),
            Hello::Refused => (REFUSE, share),
            Hello::BadShare => (PLAIN, &share[1..]),
        };
        let padding = if random.chance(200) {
            random.below(6000)
        } else {
            random.below(300)
        };
        let mut body = vec![flags, u8::try_from(share.len()).expect("the simulation is set up")];
        body.extend(share);
        body.resize(body.len() + padding, 0);
        out.extend(record(HANDSHAKE, &body));
        ScriptedClient {
            secret,
            incoming: Vec::new(),
            running: None,
        }
    }

    fn receive(&mut self, bytes: &[u8], out: &mut VecDeque<u8>) -> Vec<Heard> {
        self.incoming.extend(bytes);
        let mut heard = Vec::new();
        let mut used = 0;
        while let Some(end) = record_end(&self.incoming, used) {
            let (kind, payload) = (self.incoming[used], &self.incoming[used + 5..end]);
            used = end;
            match (kind, &mut self.running) {
                (HANDSHAKE, None) if payload.len() == 64 => {
                    let theirs = UnparsedPublicKey::new(&X25519, &payload[..32]);
                    let secret = agree(&self.secret, theirs, (), |secret| Ok(secret.to_vec()))
                        .expect("the simulation is set up");
                    assert_eq!(
                        payload[32..],
                        proof(&secret, b"server"),
                        "the key exchange of another connection"
                    );
                    out.extend(record(HANDSHAKE, &proof(&secret, b"client")));
                    self.running = Some((Direction::new(&secret, b"up"), Direction::new(&secret, b"down")));
                    heard.push(Heard::Established);
                }
                (HANDSHAKE, None) => {}
                (ALERT, None) => heard.push(Heard::Alert),
                (DATA, Some((_, down))) => heard.push(Heard::Data(down.open(payload).to_vec())),
                (KEY_UPDATE, Some((_, down))) => {
                    down.open(payload);
                }
                (ALERT, Some((_, down))) => {
                    assert_eq!(down.open(payload), CLOSE_NOTIFY);
                    down.closed = true;
                    heard.push(Heard::CloseNotify);
                }
                (kind, _) => panic!("record {kind} at the wrong time"),
            }
        }
        self.incoming.drain(..used);
        heard
    }

    fn send(&mut self, plain: &[u8], out: &mut VecDeque<u8>) {
        let (up, _) = self.running.as_mut().expect("the simulation is set up");
        for fragment in plain.chunks(FRAGMENT) {
            out.extend(up.seal(DATA, fragment));
        }
    }

    fn close_notify(&mut self, out: &mut VecDeque<u8>) {
        let (up, _) = self.running.as_mut().expect("the simulation is set up");
        out.extend(up.seal(ALERT, &CLOSE_NOTIFY));
        up.closed = true;
    }

    fn key_update(&mut self, out: &mut VecDeque<u8>) {
        let (up, _) = self.running.as_mut().expect("the simulation is set up");
        out.extend(up.seal(KEY_UPDATE, &[]));
    }
}
