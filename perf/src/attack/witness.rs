//! A well-behaved client beside the attack: whether the server still serves, and how quickly.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use serde::Serialize;

use crate::error::PerfError;

/// How long the first connection waits for an answer to its byte. A server that gives none then is asked for none.
const TRIAL: Duration = Duration::from_millis(500);

/// Connections of the witness at a time.
pub(super) const CLIENTS_MAX: usize = 256;

/// Latencies are kept up to this; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

/// Longest sleep: how soon an end is seen.
const LOOK: Duration = Duration::from_millis(20);

/// What saying goodbye may take.
const GOODBYE: Duration = Duration::from_millis(20);

/// The well-behaved client.
#[derive(Clone)]
pub(super) struct Witness {
    target: SocketAddr,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    /// Connections per second.
    rate: u32,
    timeout: Duration,
    /// A byte is sent and answered in each connection.
    exchange: bool,
}

/// What the witness saw in one part of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// Connections that were served.
    pub succeeded: u64,
    /// Connections that were not.
    pub failed: u64,
    /// Why, with how often.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, u64>,
    /// Milliseconds from when a connection was due to when it was served, of those that were: the median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Longest.
    pub max_ms: f64,
}

impl Witness {
    /// A client of a server that serves.
    ///
    /// # Errors
    /// When the first connection fails: there is nothing to attack.
    pub(super) fn new(
        target: SocketAddr,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
        (rate, timeout): (u32, Duration),
    ) -> Result<Self, PerfError> {
        let mut witness = Self {
            target,
            name,
            config,
            rate,
            timeout,
            exchange: false,
        };
        let served = witness
            .connect(Instant::now() + timeout)
            .and_then(|connection| connection.answers(Instant::now() + TRIAL.min(timeout)));
        witness.exchange = served
            .map_err(|error| PerfError::GaveUp(format!("{target} does not serve even without an attack: {error}")))?;
        Ok(witness)
    }

    /// Whether the server answers the witness' byte.
    pub(super) fn exchanges(&self) -> bool {
        self.exchange
    }

    /// Connects at its rate until `over`, whether or not earlier connections are done: each has a thread of its own.
    pub(super) fn observe(&self, over: impl Fn() -> bool) -> Observed {
        let begin = Instant::now();
        let seen = Mutex::new(Seen::new());
        let in_flight = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0_u32.. {
                let due = begin + Duration::from_secs_f64(f64::from(number) / f64::from(self.rate));
                let must_wait = || Instant::now() < due || in_flight.load(Ordering::SeqCst) >= CLIENTS_MAX;
                while must_wait() && !over() {
                    let left = due.saturating_duration_since(Instant::now());
                    std::thread::sleep(left.clamp(Duration::from_millis(1), LOOK));
                }
                if over() {
                    break;
                }
                in_flight.fetch_add(1, Ordering::SeqCst);
                let (seen, in_flight) = (&seen, &in_flight);
                scope.spawn(move || {
                    let visited = self.visit();
                    let mut seen = seen.lock().expect("nothing panics while it is locked");
                    match visited {
                        Ok(()) => seen.served.saturating_record(due.elapsed().as_micros() as u64),
                        Err(error) => *seen.failures.entry(error.to_string()).or_insert(0) += 1,
                    }
                    in_flight.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        seen.into_inner().expect("nothing panics while it is locked").observed()
    }

    fn visit(&self) -> io::Result<()> {
        let deadline = Instant::now() + self.timeout;
        let connection = self.connect(deadline)?;
        if self.exchange && !connection.answers(deadline)? {
            return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"));
        }
        Ok(())
    }

    /// A full handshake.
    fn connect(&self, deadline: Instant) -> io::Result<Visit> {
        let stream = TcpStream::connect_timeout(&self.target, left(deadline)?)?;
        stream.set_nodelay(true)?;
        let tls = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        let mut visit = Visit { stream, tls };
        while visit.tls.is_handshaking() {
            visit.flush(deadline)?;
            if visit.tls.is_handshaking() {
                visit.read(deadline)?;
            }
        }
        visit.flush(deadline)?;
        Ok(visit)
    }
}

/// What has come of connections so far.
struct Seen {
    /// Microseconds.
    served: Histogram<u64>,
    failures: BTreeMap<String, u64>,
}

impl Seen {
    fn new() -> Self {
        let longest = LATENCY_MAX.as_micros() as u64;
        Self {
            served: Histogram::new_with_bounds(1, longest, 3).expect("bounds and digits are constants in range"),
            failures: BTreeMap::new(),
        }
    }

    fn observed(self) -> Observed {
        let milliseconds = |quantile: f64| match self.served.is_empty() {
            true => 0.0,
            false => self.served.value_at_quantile(quantile) as f64 / 1e3,
        };
        Observed {
            succeeded: self.served.len(),
            failed: self.failures.values().sum(),
            p50_ms: milliseconds(0.5),
            p99_ms: milliseconds(0.99),
            max_ms: milliseconds(1.0),
            failures: self.failures,
        }
    }
}

/// A connection of the witness.
pub(super) struct Visit {
    stream: TcpStream,
    pub(super) tls: ClientConnection,
}

impl Visit {
    /// Sends a byte; whether any byte comes back in time. Then says goodbye.
    fn answers(mut self, deadline: Instant) -> io::Result<bool> {
        self.tls.writer().write_all(b"w")?;
        self.flush(deadline)?;
        let answered = loop {
            match self.tls.reader().read(&mut [0; 64]) {
                Ok(0) => break false,
                Ok(_) => break true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.read(deadline) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => break false,
                Err(error) => return Err(error),
            }
        };
        self.tls.send_close_notify();
        // Whether it still arrives is no matter of service.
        let _ = self.flush(Instant::now() + GOODBYE);
        Ok(answered)
    }

    /// Reads on until `done`, or for so long at most.
    pub(super) fn read_until(&mut self, patience: Duration, done: impl Fn() -> bool) {
        let deadline = Instant::now() + patience;
        while !done() && self.read(deadline).is_ok() {}
    }

    fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        while self.tls.wants_write() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            self.tls.write_tls(&mut self.stream).map_err(in_time)?;
        }
        Ok(())
    }

    fn read(&mut self, deadline: Instant) -> io::Result<()> {
        self.stream.set_read_timeout(Some(left(deadline)?))?;
        if self.tls.read_tls(&mut self.stream).map_err(in_time)? == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed by the server"));
        }
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Ok(())
    }
}

/// The time until then, which is not over.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(ErrorKind::TimedOut, "not in time"));
    }
    Ok(left)
}

/// A socket's timeout is reported as if it did not block.
fn in_time(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock {
        return io::Error::new(ErrorKind::TimedOut, "not in time");
    }
    error
}

/// One connection to the server, read from until `done` or for as long as `patience` lasts.
pub(super) fn visit_until(
    target: SocketAddr,
    name: &ServerName<'static>,
    config: Arc<ClientConfig>,
    (timeout, patience): (Duration, Duration),
    done: impl Fn() -> bool,
) -> io::Result<()> {
    let witness = Witness {
        target,
        name: name.clone(),
        config,
        rate: 1,
        timeout,
        exchange: false,
    };
    witness.connect(Instant::now() + timeout)?.read_until(patience, done);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustls::crypto::aws_lc_rs;
    use rustls::version::TLS13;
    use rustls::{ServerConfig, ServerConnection};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;
    use crate::attack::hello;

    #[test]
    fn a_visit_has_one_timeout_for_handshake_and_answer() {
        const EACH: Duration = Duration::from_millis(600);
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            std::thread::sleep(EACH);
            while tls.is_handshaking() {
                tls.complete_io(&mut stream).unwrap();
            }
            std::thread::sleep(EACH);
            tls.writer().write_all(b"w").unwrap();
            // The witness may have gone by now.
            let _ = tls.write_tls(&mut stream);
        });
        let witness = Witness {
            target,
            name: "localhost".try_into().unwrap(),
            config: Arc::new(hello::config(&[&TLS13]).unwrap()),
            rate: 1,
            timeout: EACH + EACH / 2,
            exchange: true,
        };
        let late = witness.visit().unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
        server.join().unwrap();
    }
}
