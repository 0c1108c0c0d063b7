//! The gateway's ends of a signer's connections.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringlock_hsm::protocol::{
    self, Breaker, Fault, KeyDescription, KeyNumber, KeyPlace, Order, Reader, Refusal, Report, Request, Response,
    TokenNumber, TokenSettings, TokenStatus,
};
use ringlock_hsm::remote::Isolation;
use ringlock_hsm::signer::{self, SignerError};
use ringlock_hsm::token::Module;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Long enough for any machine: only what hangs takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A signer on a thread, and the gateway's end of its control connection.
pub(crate) struct Gateway {
    pub(crate) control: UnixStream,
    reader: Reader,
    /// Reports that nobody has asked for yet.
    pub(crate) reports: Vec<Report>,
    serving: Option<JoinHandle<Result<(), SignerError>>>,
}

impl Gateway {
    pub(crate) fn start(module: impl Module + 'static, isolation: Isolation) -> Gateway {
        let mut gateway = Gateway::unloaded(module, isolation);
        let (module, sandbox) = (None, false);
        gateway.order(&Order::Load { module, sandbox });
        gateway.find(|report| matches!(report, Report::Loaded(Ok(_))).then_some(()));
        gateway
    }

    /// Nothing has been ordered yet.
    pub(crate) fn unloaded(module: impl Module + 'static, isolation: Isolation) -> Gateway {
        let (control, theirs) = UnixStream::pair().unwrap();
        let serve = move || signer::serve(theirs.into(), isolation, |_| Ok(Box::new(module)));
        Gateway {
            control,
            reader: Reader::default(),
            reports: Vec::new(),
            serving: Some(std::thread::spawn(serve)),
        }
    }

    pub(crate) fn order(&self, order: &Order) {
        let mut bytes = Vec::new();
        protocol::write(order, &mut bytes);
        (&self.control).write_all(&bytes).unwrap();
    }

    pub(crate) fn token(&self, number: u32, settings: TokenSettings) {
        let token = TokenNumber(number);
        self.order(&Order::Token { token, settings });
    }

    /// Announces a key and waits for what is found.
    pub(crate) fn key(&mut self, number: u32, token: u32, place: KeyPlace) -> Result<KeyDescription, Fault> {
        self.order(&Order::Key {
            key: KeyNumber(number),
            token: TokenNumber(token),
            place,
            challenge: b"challenge".to_vec(),
        });
        self.found(number)
    }

    pub(crate) fn found(&mut self, number: u32) -> Result<KeyDescription, Fault> {
        self.find(|report| {
            let Report::Key { key, found } = report else {
                return None;
            };
            (key.0 == number).then(|| found.clone())
        })
    }

    /// A worker's end of a new channel.
    pub(crate) fn channel(&self) -> Worker {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.pass(&theirs.into());
        Worker {
            socket: ours,
            reader: Reader::default(),
        }
    }

    pub(crate) fn pass(&self, descriptor: &OwnedFd) {
        let mut bytes = Vec::new();
        protocol::write(&Order::Channel, &mut bytes);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = sendmsg(
            &self.control,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// Waits for a report, and takes it out of those that came.
    pub(crate) fn find<T>(&mut self, mut wanted: impl FnMut(&Report) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for at in 0..self.reports.len() {
                if let Some(found) = wanted(&self.reports[at]) {
                    self.reports.remove(at);
                    return found;
                }
            }
            assert!(Instant::now() < deadline, "no such report among {:?}", self.reports);
            assert!(self.receive(), "the signer has ended after {:?}", self.reports);
        }
    }

    /// Waits for a status of a token, and takes all that came.
    pub(crate) fn status(&mut self, number: u32, wanted: impl Fn(&TokenStatus) -> bool) -> TokenStatus {
        self.find(|report| {
            let Report::Status { token, status } = report else {
                return None;
            };
            (token.0 == number && wanted(status)).then(|| status.clone())
        })
    }

    /// Waits until the token is used with so many sessions.
    pub(crate) fn serving(&mut self, number: u32, sessions: u32) -> TokenStatus {
        self.reports.retain(|report| !matches!(report, Report::Status { .. }));
        self.status(number, |status| {
            status.breaker == Breaker::Closed && status.sessions == sessions
        })
    }

    fn receive(&mut self) -> bool {
        self.control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.control.read(&mut buffer).unwrap_or(0);
        self.reader.push(&buffer[..length]);
        while let Some(report) = self.reader.next_message().unwrap() {
            self.reports.push(report);
        }
        length > 0
    }

    pub(crate) fn ping(&mut self, number: u64) {
        self.order(&Order::Ping(number));
        self.find(|report| (report == &Report::Pong(number)).then_some(()));
    }

    /// Waits until the signer has ended by itself.
    pub(crate) fn outcome(&mut self) -> Result<(), SignerError> {
        while self.receive() {}
        self.serving.take().unwrap().join().unwrap()
    }

    /// Closes the control connection and waits for the end.
    pub(crate) fn end(mut self) -> Result<(), SignerError> {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        self.serving.take().unwrap().join().unwrap()
    }
}

/// A worker's end of a channel.
pub(crate) struct Worker {
    pub(crate) socket: UnixStream,
    reader: Reader,
}

/// An answer: whose, and what.
pub(crate) type Answer = (u64, Result<Vec<u8>, Refusal>);

impl Worker {
    pub(crate) fn ask(&self, id: u64, key: u32, left: Duration, message: &[u8]) {
        self.ask_with(id, key, super::scripted::SCHEME.into(), left, message);
    }

    pub(crate) fn ask_with(&self, id: u64, key: u32, scheme: u16, left: Duration, message: &[u8]) {
        let request = Request {
            id,
            key: KeyNumber(key),
            scheme,
            left_us: u32::try_from(left.as_micros()).unwrap(),
            message,
        };
        let mut bytes = Vec::new();
        protocol::write(&request, &mut bytes);
        (&self.socket).write_all(&bytes).unwrap();
    }

    /// The next answer; `None` when the channel has ended.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        loop {
            if let Some(bytes) = self.reader.next_bytes().unwrap() {
                let response: Response<'_> = protocol::decode(bytes).unwrap();
                return Some((response.id, response.signature.map(<[u8]>::to_vec)));
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.reader.push(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// Asks and waits for the answer.
    pub(crate) fn sign(&mut self, id: u64, key: u32, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        self.ask(id, key, PATIENCE, message);
        let (answered, signature) = self.answer().unwrap();
        assert_eq!(answered, id);
        signature
    }

    /// Asks again until there is a signature; what was refused before.
    pub(crate) fn sign_until_it_works(&mut self, key: u32, message: &[u8]) -> Vec<Refusal> {
        let deadline = Instant::now() + PATIENCE;
        let mut refusals = Vec::new();
        loop {
            match self.sign(refusals.len() as u64, key, message) {
                Ok(_) => return refusals,
                Err(refusal) => refusals.push(refusal),
            }
            assert!(Instant::now() < deadline, "refused all the time: {:?}", refusals.last());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
