//! Signatures of a P-256 key in a file: in this process, behind a signer on a thread of it, and behind one that is a process. What is
//! measured is time by the clock, since a signer works beside whoever asks: from asking for a signature to having it with one at a time,
//! and the time for each with as many on their way as a worker keeps there.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use ringlock::snapshot;
use ringlock_hsm::KeyRef;
use ringlock_hsm::custody::{Custody, Launched, Launcher, OpenedKey};
use ringlock_hsm::protocol::{self, KeyPlace, Reader, Request, Response};
use ringlock_hsm::remote::{Group, Isolation, SignerSpec};
use ringlock_hsm::signer;
use rustls::SignatureScheme;
use rustls::sign::SigningKey;

const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// As long as what a server signs in TLS 1.3.
const MESSAGE: [u8; 130] = [b' '; 130];

/// Far longer than a signature takes; only a hang is found by it.
const PATIENCE: Duration = Duration::from_secs(60);

fn signatures(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("site.key");
    let pem = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    std::fs::write(&file, &pem).expect("a file");
    let key = KeyRef::from_pem(pem.as_bytes()).expect("it has been made for this");
    let here = key.choose_scheme(&[SCHEME]).expect("it is of this scheme");
    let place = KeyPlace::File {
        path: file,
        passphrase: None,
    };
    let mut on_thread = Remote::start(Isolation::Thread, &place);
    let mut in_process = Remote::start(Isolation::Process, &place);

    let mut group = c.benchmark_group("p256, one at a time");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(BenchmarkId::from_parameter("this process"), |b| {
        b.iter(|| here.sign(&MESSAGE));
    });
    for (name, remote) in [("signer thread", &mut on_thread), ("signer process", &mut in_process)] {
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_custom(|count| remote.sign(count, 1));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("p256, window full");
    group.sampling_mode(SamplingMode::Flat);
    for (name, remote) in [("signer thread", &mut on_thread), ("signer process", &mut in_process)] {
        let window = remote.group.tokens[0].window() as u64;
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_custom(|count| remote.sign(count, window));
        });
    }
    group.finish();
}

/// A key behind a signer, and a worker's channel to it.
struct Remote {
    key: OpenedKey,
    channel: UnixStream,
    reader: Reader,
    group: Arc<Group>,
    _custody: Custody,
}

impl Remote {
    fn start(isolation: Isolation, place: &KeyPlace) -> Remote {
        let mut custody = Custody::new(1, launcher());
        let mut files = snapshot::files(None);
        files.tokens[0].signer.isolation = isolation;
        let group = custody.group(&files);
        let key = custody.open(&group.tokens[0], place).expect("the signer finds the key");
        let channel = custody.take_channels().pop().expect("there is one worker");
        let channel = UnixStream::from(channel.socket);
        channel
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket has a timeout");
        Remote {
            key,
            channel,
            reader: Reader::default(),
            group,
            _custody: custody,
        }
    }

    /// The time for this many signatures, of which so many are on their way at a time.
    fn sign(&mut self, count: u64, window: u64) -> Duration {
        let start = Instant::now();
        let mut buffer = [0; 16 * 1024];
        let mut out = Vec::new();
        let (mut asked, mut answered) = (0, 0);
        while answered < count {
            while asked < count && asked - answered < window {
                let request = Request {
                    id: asked,
                    key: self.key.handle.number,
                    scheme: SCHEME.into(),
                    left_us: u32::MAX,
                    message: &MESSAGE,
                };
                protocol::write(&request, &mut out);
                asked += 1;
            }
            self.channel.write_all(&out).expect("the signer is there");
            out.clear();
            let length = self.channel.read(&mut buffer).expect("the signer answers");
            assert!(length > 0, "the signer has ended");
            self.reader.push(&buffer[..length]);
            while let Some(bytes) = self.reader.next_bytes().expect("whole messages") {
                let Response { signature, .. } = protocol::decode(bytes).expect("an answer");
                signature.expect("a signature");
                answered += 1;
            }
        }
        start.elapsed()
    }
}

/// The gateway's, with the gateway's program in place of this one.
fn launcher() -> Launcher {
    Box::new(|SignerSpec { isolation, .. }, control: OwnedFd| match isolation {
        Isolation::Thread => {
            std::thread::Builder::new().spawn(move || signer::on_thread(control))?;
            Ok(Launched::Thread)
        }
        Isolation::Process => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ringlock"));
            command.arg("signer").stdin(control).stdout(Stdio::null());
            command.spawn().map(Launched::Process)
        }
    })
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = signatures
}
criterion_main!(benches);
