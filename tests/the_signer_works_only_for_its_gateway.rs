//! `ringlock signer`: a process that holds keys, obeys the process that started it, and has given up what it does not need.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use ringlock_hsm::protocol::{
    self, KeyDescription, KeyNumber, KeyPlace, Order, Reader, Report, TokenNumber, TokenSettings,
};
use ringlock_hsm::uri::TokenMatch;
use rustix::process::{Pid, Signal, kill_process};

const RINGLOCK: &str = env!("CARGO_BIN_EXE_ringlock");

/// Only what hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn started_by_hand_it_says_who_starts_it() {
    for input in [Stdio::null(), Stdio::piped()] {
        let output = Command::new(RINGLOCK).arg("signer").stdin(input).output().unwrap();
        let text = failed(&output);
        assert!(
            text.starts_with("ringlock signer: found no connection with the gateway"),
            "{text}"
        );
        assert!(text.contains("starts by itself; use `ringlock run`"), "{text}");
    }
}

#[test]
fn somebody_elses_connection_is_refused() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    // The shell, not this process, is the signer's parent.
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" signer; exit $?", RINGLOCK]);
    let output = shell.stdin(OwnedFd::from(theirs)).output().unwrap();
    let text = failed(&output);
    let expected = format!("found a connection of process {}", std::process::id());
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn an_unknown_user_is_named() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(RINGLOCK);
    command
        .args(["signer", "--user", "nobody-of-that-name"])
        .stdin(OwnedFd::from(theirs));
    let text = failed(&command.output().unwrap());
    assert!(
        text.contains("\"nobody-of-that-name\" (there is no such user)"),
        "{text}"
    );
}

struct Signer {
    process: Child,
    control: UnixStream,
    reader: Reader,
}

impl Signer {
    fn start() -> Signer {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(RINGLOCK);
        command
            .arg("signer")
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::piped());
        let process = command.spawn().unwrap();
        let reader = Reader::default();
        Signer {
            process,
            control,
            reader,
        }
    }

    fn order(&mut self, order: &Order) {
        let mut bytes = Vec::new();
        protocol::write(order, &mut bytes);
        self.control.write_all(&bytes).unwrap();
    }

    /// The next report that is no status.
    fn report(&mut self) -> Report {
        loop {
            match self.reader.next_message().unwrap() {
                Some(Report::Status { .. }) => {}
                Some(report) => return report,
                None => {
                    let mut buffer = [0; 4096];
                    let length = self.control.read(&mut buffer).unwrap();
                    assert!(length > 0, "the signer has ended");
                    self.reader.push(&buffer[..length]);
                }
            }
        }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap()
    }

    /// Closes the control connection.
    fn end(self) -> Output {
        drop(self.control);
        self.process.wait_with_output().unwrap()
    }
}

/// The value of a line of /proc/PID/status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap().trim()
}

#[test]
fn it_gives_up_what_it_does_not_need_and_signs() {
    let mut signer = Signer::start();
    let (module, sandbox) = (None, true);
    signer.order(&Order::Load { module, sandbox });
    assert_eq!(signer.report(), Report::Loaded(Ok("keys in files".to_owned())));

    let status = signer.proc("status");
    assert_eq!((field(&status, "Seccomp"), field(&status, "NoNewPrivs")), ("2", "1"));
    let blocked = u64::from_str_radix(field(&status, "SigBlk"), 16).unwrap();
    let pid = Pid::from_child(&signer.process);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2] {
        assert_ne!(blocked & 1 << (signal.as_raw() - 1), 0, "{signal:?} is the gateway's");
        kill_process(pid, signal).unwrap();
    }
    let limits = signer.proc("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.pem");
    let pair = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&file, pair.serialize_pem()).unwrap();
    let settings = TokenSettings {
        find: TokenMatch::default(),
        pin: None,
        sessions: 2,
        timeout: Duration::from_secs(10),
        keep_alive: None,
        login: true,
    };
    let (token, key) = (TokenNumber(1), KeyNumber(1));
    signer.order(&Order::Token { token, settings });
    let challenge = b"challenge".to_vec();
    let place = KeyPlace::File {
        path: file,
        passphrase: None,
    };
    signer.order(&Order::Key {
        key,
        token,
        place,
        challenge,
    });
    let Report::Key {
        found: Ok(KeyDescription { public, proofs, .. }),
        ..
    } = signer.report()
    else {
        panic!("no key")
    };
    assert_eq!(public, rcgen::PublicKeyData::subject_public_key_info(&pair));
    assert!(proofs.iter().all(|proof| proof.signature.is_ok()) && !proofs.is_empty());
    signer.order(&Order::Ping(5));
    assert_eq!(signer.report(), Report::Pong(5));

    let memory_is_locked = field(&signer.proc("status"), "VmLck") != "0 kB";
    let output = signer.end();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said.contains("memory is not locked and may reach swap"),
        !memory_is_locked,
        "{said}"
    );
}

#[test]
fn a_module_that_cannot_be_loaded_is_reported() {
    let mut signer = Signer::start();
    let (module, sandbox) = (Some("/nonexistent/module.so".into()), true);
    signer.order(&Order::Load { module, sandbox });
    let Report::Loaded(Err(fault)) = signer.report() else {
        panic!("it was loaded")
    };
    assert!(fault.found.contains("/nonexistent/module.so"), "{fault}");
    let text = failed(&signer.end());
    assert!(text.contains("/nonexistent/module.so"), "{text}");
}
