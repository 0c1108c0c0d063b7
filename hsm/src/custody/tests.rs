//! Custody against signers that do what a test says, at times that it says.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::SignatureScheme;

use super::*;
use crate::protocol::{Proof, Reader, TokenSettings, write};
use crate::uri::TokenMatch;

const WORKERS: usize = 2;

/// The signer's end of a control connection.
struct Script {
    socket: UnixStream,
    reader: Reader,
}

impl Script {
    /// What it has been told since the last call. Descriptors of channels are dropped.
    fn orders(&mut self) -> Vec<Order> {
        let mut bytes = [0; 4096];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => self.reader.push(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        std::iter::from_fn(|| self.reader.next_message().unwrap()).collect()
    }

    /// The gateway has closed the connection.
    fn is_left(&mut self) -> bool {
        self.orders();
        matches!(self.socket.read(&mut [0]), Ok(0))
    }

    fn report(&mut self, report: &Report) {
        let mut bytes = Vec::new();
        write(report, &mut bytes);
        self.socket.write_all(&bytes).unwrap();
    }

    fn status(&mut self, token: &Token, status: TokenStatus) {
        let token = token.number;
        self.report(&Report::Status { token, status });
    }

    /// Waits for the next order about a key, and answers it.
    fn answer_key(&mut self, answer: impl FnOnce(&[u8]) -> Result<KeyDescription, Fault>) {
        loop {
            for order in self.orders() {
                if let Order::Key { key, challenge, .. } = order {
                    let found = answer(&challenge);
                    return self.report(&Report::Key { key, found });
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Signers come out of the other end in the order in which they are started.
fn custody() -> (Custody, Receiver<Script>) {
    let (started, scripts) = channel();
    let launcher: Launcher = Box::new(move |_, control| {
        let socket = UnixStream::from(control);
        socket.set_nonblocking(true)?;
        let reader = Reader::default();
        started.send(Script { socket, reader }).unwrap();
        Ok(Launched::Thread)
    });
    (Custody::new(WORKERS, launcher), scripts)
}

fn spec(name: &str) -> GroupSpec {
    let settings = TokenSettings {
        find: TokenMatch::default(),
        pin: None,
        sessions: 2,
        timeout: Duration::from_secs(1),
        keep_alive: None,
        login: true,
    };
    let token = TokenSpec {
        name: name.to_owned(),
        signer: SignerSpec::default(),
        settings,
    };
    GroupSpec {
        name: name.to_owned(),
        tokens: vec![token],
        queue: 8,
        waits: true,
        timeout: Duration::from_secs(1),
    }
}

fn place(label: &str) -> KeyPlace {
    let label = Some(label.to_owned());
    KeyPlace::Object(ObjectMatch { label, id: None })
}

fn description(pair: &KeyPair, signature: Result<Vec<u8>, Fault>) -> KeyDescription {
    KeyDescription {
        public: pair.subject_public_key_info(),
        token: "a token".to_owned(),
        proofs: vec![Proof {
            scheme: SignatureScheme::ECDSA_NISTP256_SHA256.into(),
            mechanism: "CKM_ECDSA".to_owned(),
            signature,
            signing_us: 100,
        }],
    }
}

/// Opens a key, with this answer of the signer.
fn open(
    custody: &mut Custody,
    script: &mut Script,
    token: &Token,
    label: &str,
    answer: impl FnOnce(&[u8]) -> Result<KeyDescription, Fault> + Send,
) -> Result<OpenedKey, Fault> {
    std::thread::scope(|scope| {
        scope.spawn(|| script.answer_key(answer));
        custody.open(token, &place(label))
    })
}

fn open_well(custody: &mut Custody, script: &mut Script, token: &Token, label: &str) -> OpenedKey {
    let pair = KeyPair::generate().unwrap();
    let sign = |challenge: &[u8]| Ok(description(&pair, Ok(pair.sign(challenge).unwrap())));
    open(custody, script, token, label, sign).unwrap()
}

fn in_use() -> TokenStatus {
    TokenStatus {
        breaker: Breaker::Closed,
        sessions: 2,
        ..TokenStatus::default()
    }
}

fn logins(orders: &[Order]) -> Vec<bool> {
    let login = |order: &Order| match order {
        Order::Token { settings, .. } => Some(settings.login),
        Order::Load { .. }
        | Order::Key { .. }
        | Order::Certificates { .. }
        | Order::Forget(_)
        | Order::Close(_)
        | Order::Channel
        | Order::Ping(_) => None,
    };
    orders.iter().filter_map(login).collect()
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_signer_that_ends_is_started_again_after_pauses_that_grow() {
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let token = &group.tokens[0];
    let mut script = scripts.try_recv().unwrap();
    let mut now = Instant::now();
    for (round, pause_ms) in (1..).zip([100, 200, 400, 800, 1600, 3200, 4000, 4000]) {
        script.status(token, in_use());
        custody.tick(now);
        assert!(token.is_usable());
        drop(script);
        custody.tick(now);
        assert!(!token.is_usable(), "at once");
        assert_eq!(token.status().trouble.as_deref(), Some("a signer that has ended"));
        now += pause_ms * MS - MS;
        custody.tick(now);
        assert!(scripts.try_recv().is_err(), "not before {pause_ms} ms");
        now += MS;
        custody.tick(now);
        script = scripts.try_recv().unwrap_or_else(|_| panic!("not after {pause_ms} ms"));
        assert_eq!(token.signer_restarts(), round);
        assert!(!token.is_usable(), "not before it says so");
    }
    // One that has lived for long has not failed at its start.
    now += LONG_LIFE;
    drop(script);
    custody.tick(now);
    let script = scripts.try_recv().unwrap();
    drop(script);
    custody.tick(now);
    assert!(scripts.try_recv().is_err());
    custody.tick(now + RESTART_PAUSE_MIN);
    assert!(scripts.try_recv().is_ok(), "the pauses begin anew");
}

#[test]
fn a_new_signer_is_told_everything_in_order() {
    let (mut custody, scripts) = custody();
    let first = custody.group(&spec("first"));
    let second = custody.group(&spec("second"));
    let mut script = scripts.try_recv().unwrap();
    assert!(scripts.try_recv().is_err(), "both tokens are of one module");
    let keys = [
        open_well(&mut custody, &mut script, &first.tokens[0], "a"),
        open_well(&mut custody, &mut script, &second.tokens[0], "b"),
        open_well(&mut custody, &mut script, &first.tokens[0], "c"),
    ];
    let workers = |channels: Vec<NewChannel>| -> Vec<(usize, SignerNumber)> {
        channels.iter().map(|new| (new.worker, new.signer)).collect()
    };
    let each = [(0, SignerNumber(0)), (1, SignerNumber(0))];
    assert_eq!(workers(custody.take_channels()), each);
    assert!(custody.take_channels().is_empty());

    let mut now = Instant::now();
    for _ in 0..2 {
        drop(script);
        custody.tick(now);
        now += RESTART_PAUSE_MAX;
        custody.tick(now);
        script = scripts.try_recv().unwrap();
    }
    let orders = script.orders();
    let load = Order::Load {
        module: None,
        sandbox: false,
    };
    let mut expected = vec![load];
    expected.extend([&first, &second].map(|group| order_token(&group.tokens[0], true)));
    expected.extend(keys.iter().map(|key| order_key(&key.handle)));
    expected.extend([Order::Channel, Order::Channel]);
    assert_eq!(orders, expected);
    // Those of the signer before that nobody has taken are of no use.
    assert_eq!(workers(custody.take_channels()), each);
}

#[test]
fn a_key_is_opened_with_what_it_has_proven() {
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let (token, mut script) = (&group.tokens[0], scripts.try_recv().unwrap());
    let opened = open_well(&mut custody, &mut script, token, "site");
    assert_eq!(opened.schemes, [SignatureScheme::ECDSA_NISTP256_SHA256]);
    assert_eq!(
        (opened.handle.place.clone(), opened.token.as_str()),
        (place("site"), "a token")
    );

    let pair = KeyPair::generate().unwrap();
    let mut fault =
        |answer: Result<KeyDescription, Fault>| open(&mut custody, &mut script, token, "site", |_| answer).unwrap_err();
    let wrong = description(&pair, Ok(pair.sign(b"another challenge").unwrap()));
    let found = fault(Ok(wrong));
    assert!(
        found.kind == FaultKind::Mechanism && found.found.contains("a wrong signature by CKM_ECDSA"),
        "{found}"
    );
    let mut none = description(&pair, Ok(Vec::new()));
    none.proofs.clear();
    assert_eq!(fault(Ok(none)).kind, FaultKind::Mechanism);
    let no_key = description(&pair, Ok(Vec::new()));
    let no_key = KeyDescription {
        public: vec![0x30],
        ..no_key
    };
    assert_eq!(fault(Ok(no_key)).kind, FaultKind::Object);
    let fails = description(&pair, Err(Fault::new(FaultKind::Device, "an error")));
    let found = fault(Ok(fails));
    assert!(
        found.kind == FaultKind::Device && found.found.contains("CKM_ECDSA"),
        "{found}"
    );
    let missing = Fault::new(FaultKind::Object, "no such object");
    let answer = missing.clone();
    assert_eq!(fault(Err(answer)), missing);
    // What has not been opened is forgotten.
    let now = Instant::now();
    drop(script);
    custody.tick(now);
    custody.tick(now + RESTART_PAUSE_MAX);
    let told = scripts.try_recv().unwrap().orders();
    let keys: Vec<_> = told.iter().filter(|order| matches!(order, Order::Key { .. })).collect();
    assert_eq!(keys, [&order_key(&opened.handle)]);
}

#[test]
fn a_token_that_has_refused_its_pin_is_logged_in_once_for_each_configuration() {
    let refused = TokenStatus {
        pin_refused: true,
        ..TokenStatus::default()
    };
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let token = &group.tokens[0];
    let mut script = scripts.try_recv().unwrap();
    assert_eq!(logins(&script.orders()), [true]);
    script.status(token, refused.clone());
    let mut now = Instant::now();
    let mut restart = |custody: &mut Custody, script: Script| {
        custody.tick(now);
        drop(script);
        custody.tick(now);
        now += RESTART_PAUSE_MAX;
        custody.tick(now);
        scripts.try_recv().unwrap()
    };
    let mut script = restart(&mut custody, script);
    assert_eq!(logins(&script.orders()), [false], "not by itself");
    script.status(token, refused.clone());
    let mut script = restart(&mut custody, script);
    assert_eq!(logins(&script.orders()), [false], "nor the next time");

    // The configuration is loaded again.
    custody.forgive_pins();
    let same = custody.group(&spec("edge"));
    assert!(Arc::ptr_eq(&same, &group));
    assert_eq!(logins(&script.orders()), [true]);
    script.status(token, refused.clone());
    custody.tick(now);
    assert!(token.status().pin_refused);
    // A second identity of the same configuration asks for it, too.
    custody.group(&spec("edge"));
    assert_eq!(logins(&script.orders()), [], "once");

    // Also while there is no signer.
    drop(script);
    custody.tick(now);
    custody.forgive_pins();
    custody.tick(now + RESTART_PAUSE_MAX);
    let mut script = scripts.try_recv().unwrap();
    assert_eq!(logins(&script.orders()), [true]);
}

#[test]
fn what_nobody_uses_any_more_is_forgotten() {
    let (mut custody, scripts) = custody();
    let now = Instant::now();
    assert!(!custody.has_signers());
    let first = custody.group(&spec("first"));
    let second = custody.group(&spec("second"));
    let mut script = scripts.try_recv().unwrap();
    let kept = open_well(&mut custody, &mut script, &first.tokens[0], "kept");
    let key = open_well(&mut custody, &mut script, &second.tokens[0], "key");
    let (key_number, token_number) = (key.handle.number, second.tokens[0].number);
    custody.tick(now);
    assert_eq!(script.orders(), [], "all are used");
    drop(key);
    custody.tick(now);
    assert_eq!(script.orders(), [Order::Forget(key_number)]);
    drop(second);
    custody.tick(now);
    assert_eq!(script.orders(), [Order::Close(token_number)]);
    let groups = custody.groups.iter().filter(|group| group.strong_count() > 0).count();
    assert_eq!((groups, custody.tokens().len()), (1, 1));

    // Nothing is told of them again.
    drop(script);
    custody.tick(now);
    custody.tick(now + RESTART_PAUSE_MAX);
    let mut script = scripts.try_recv().unwrap();
    let told = script.orders();
    assert!(told.contains(&order_key(&kept.handle)), "{told:?}");
    assert_eq!((told.len(), logins(&told).len()), (5, 1), "{told:?}");

    drop((first, kept));
    custody.tick(now + RESTART_PAUSE_MAX);
    assert!(script.is_left(), "its end of the connection is what ends a signer");
    assert!(!custody.has_signers());
    custody.tick(now + 2 * RESTART_PAUSE_MAX);
    assert!(scripts.try_recv().is_err(), "nobody needs it");
    let again = custody.group(&spec("first"));
    assert_eq!(again.tokens[0].signer, SignerNumber(0));
    assert!(scripts.try_recv().is_ok());
    assert_eq!(
        again.tokens[0].signer_restarts(),
        1,
        "that it is needed again is no restart"
    );
}

#[test]
fn a_silent_signer_is_given_up() {
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let token = &group.tokens[0];
    let mut script = scripts.try_recv().unwrap();
    script.orders();
    let start = Instant::now();
    // While it loads its module it need not answer.
    custody.tick(start + START_TIMEOUT - PING_INTERVAL);
    assert_eq!(script.orders(), [Order::Ping(0)]);
    let mut now = start + START_TIMEOUT - PING_INTERVAL;
    script.report(&Report::Loaded(Ok("a module".to_owned())));
    custody.tick(now);
    for _ in 0..20 {
        now += PING_INTERVAL;
        custody.tick(now);
        assert_eq!(script.orders(), [Order::Ping(0)]);
        script.report(&Report::Pong(0));
        custody.tick(now);
        custody.tick(now + PING_INTERVAL / 2);
        assert_eq!(script.orders(), [], "once in an interval");
    }
    assert!(!script.is_left());
    script.status(token, in_use());
    custody.tick(now);
    custody.tick(now + PING_TIMEOUT - MS);
    assert!(token.is_usable() && !script.is_left());
    custody.tick(now + PING_TIMEOUT);
    assert!(!token.is_usable() && script.is_left());
    let trouble = token.status().trouble.unwrap();
    assert!(trouble.contains("no sign of life"), "{trouble}");
    // Its life was long.
    assert!(scripts.try_recv().is_ok());
}

#[test]
fn a_module_that_does_not_load_is_given_up_later() {
    let (mut custody, scripts) = custody();
    let _group = custody.group(&spec("edge"));
    let mut script = scripts.try_recv().unwrap();
    let start = Instant::now();
    custody.tick(start + START_TIMEOUT - PING_TIMEOUT);
    assert!(!script.is_left());
    custody.tick(start + START_TIMEOUT);
    assert!(script.is_left());
}

#[test]
fn what_is_no_report_ends_a_signer() {
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let token = &group.tokens[0];
    let mut now = Instant::now();
    for garbage in [&[2, 0, 0, 0, 250, 250][..], &[255; 64], &[1, 0, 0, 0, 0]] {
        let mut script = scripts.try_recv().unwrap();
        script.status(token, in_use());
        script.socket.write_all(garbage).unwrap();
        custody.tick(now);
        assert!(!token.is_usable() && script.is_left(), "{garbage:?}");
        let trouble = token.status().trouble.unwrap();
        assert!(trouble.contains("no message"), "{trouble}");
        now += RESTART_PAUSE_MAX;
        custody.tick(now);
    }
    // What concerns nothing that it was asked is nothing: a token and a key that are not there any more.
    let mut script = scripts.try_recv().unwrap();
    script.report(&Report::Status {
        token: TokenNumber(4711),
        status: in_use(),
    });
    script.report(&Report::Key {
        key: KeyNumber(4711),
        found: Err(Fault::new(FaultKind::Object, "nothing")),
    });
    script.report(&Report::Certificates {
        question: 4711,
        found: Ok(Vec::new()),
    });
    custody.tick(now);
    assert!(!token.is_usable() && !script.is_left());
}

#[test]
fn whoever_waits_hears_why_a_signer_has_ended() {
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let token = &group.tokens[0];
    let fault = Fault::new(FaultKind::Module, "a file that is no module");
    let mut script = scripts.try_recv().unwrap();
    let report = Report::Loaded(Err(fault.clone()));
    script.report(&report);
    assert_eq!(custody.open(token, &place("site")).unwrap_err(), fault);
    // Also whoever asks while there is none.
    assert_eq!(custody.open(token, &place("site")).unwrap_err(), fault);
    assert_eq!(custody.certificates(token, &ObjectMatch::default()).unwrap_err(), fault);

    custody.tick(Instant::now() + RESTART_PAUSE_MAX);
    let script = scripts.try_recv().unwrap();
    let found = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut script = script;
            while !script
                .orders()
                .iter()
                .any(|order| matches!(order, Order::Certificates { .. }))
            {
                std::thread::sleep(MS);
            }
        });
        custody.certificates(token, &ObjectMatch::default()).unwrap_err()
    });
    assert_eq!(found, Fault::new(FaultKind::Signer, "a signer that has ended"));
}

#[test]
fn certificates_come_from_the_token() {
    let (mut custody, scripts) = custody();
    let group = custody.group(&spec("edge"));
    let mut script = scripts.try_recv().unwrap();
    let certificates = vec![vec![1, 2], vec![3]];
    let answer = certificates.clone();
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                for order in script.orders() {
                    if let Order::Certificates { question, .. } = order {
                        return script.report(&Report::Certificates {
                            question,
                            found: Ok(answer),
                        });
                    }
                }
                std::thread::sleep(MS);
            }
        });
        custody.certificates(&group.tokens[0], &ObjectMatch::default())
    });
    assert_eq!(found.unwrap(), certificates);
}

#[test]
fn a_signer_that_cannot_be_started_is_tried_again() {
    let (tried, attempts) = channel();
    let launcher: Launcher = Box::new(move |_, _| {
        tried.send(()).unwrap();
        Err(ErrorKind::NotFound.into())
    });
    let mut custody = Custody::new(WORKERS, launcher);
    let group = custody.group(&spec("edge"));
    let fault = custody.open(&group.tokens[0], &place("site")).unwrap_err();
    assert!(
        fault.kind == FaultKind::Signer && fault.found.contains("cannot be started"),
        "{fault}"
    );
    assert!(custody.take_channels().is_empty());
    let now = Instant::now();
    assert_eq!(attempts.try_iter().count(), 1);
    for round in 1..=4 {
        custody.tick(now + round * RESTART_PAUSE_MAX);
        assert_eq!(attempts.try_iter().count(), 1);
        assert_eq!(group.tokens[0].signer_restarts(), u64::from(round));
    }
}
