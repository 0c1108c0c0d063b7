//! A plain TLS relay to test the client against: rustls, one thread per connection, blocking writes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;

/// What the relay does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The last byte of everything from the origin is changed.
    ChangeByte,
    /// It closes without close_notify.
    NoCloseNotify,
    /// Each handshake, and each piece of what the origin sends, takes this long.
    Slow(Duration),
    /// Data from the origin waits as long as handshakes go on, but for those of the first so many connections.
    StandStill(u64),
    /// It resets the connection when the ClientHello has come.
    ResetInHandshake,
    /// It closes the connection when the ClientHello has come.
    CloseInHandshake,
    /// It drops the connection some time after the handshake.
    HangUp(Duration),
}

/// Without a handshake for this long, those that wait at [`Fault::StandStill`] go on.
const STANDING: Duration = Duration::from_secs(1);

/// What the relay did.
pub(crate) struct Counts {
    /// Handshakes completed.
    pub(crate) handshakes: u64,
}

/// A relay that listens until it is finished.
pub(crate) struct Relay {
    /// host:port
    pub(crate) address: String,
    ca: NamedTempFile,
    stop: Arc<AtomicBool>,
    handshakes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Relay {
    /// Listens with a certificate of its own and relays to `origin`.
    pub(crate) fn start(origin: &str, fault: Fault) -> Self {
        Relay::start_asking(origin, fault, WebPkiClientVerifier::no_client_auth())
    }

    /// The same, with a word on clients' certificates.
    pub(crate) fn start_asking(origin: &str, fault: Fault, verifier: Arc<dyn ClientCertVerifier>) -> Self {
        // A client that does nothing then hears nothing after the handshake.
        Relay::start_with(origin, fault, verifier, |config| config.send_tls13_tickets = 0)
    }

    /// Gives each client this many tickets of `ticketer`.
    pub(crate) fn start_resuming(origin: &str, tickets: usize, ticketer: Arc<dyn ProducesTickets>) -> Self {
        Relay::start_with(origin, Fault::None, WebPkiClientVerifier::no_client_auth(), |config| {
            config.send_tls13_tickets = tickets;
            config.ticketer = ticketer;
        })
    }

    /// The same, with what `set_up` changes.
    pub(crate) fn start_with(
        origin: &str,
        fault: Fault,
        verifier: Arc<dyn ClientCertVerifier>,
        set_up: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let mut ca = NamedTempFile::new().unwrap();
        ca.write_all(certified.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        set_up(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, handshakes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), handshakes.clone());
        let (config, origin) = (Arc::new(config), origin.to_owned());
        let last_handshake = Arc::new(Mutex::new(None));
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (client, config, origin, counted) =
                    (client.unwrap(), config.clone(), origin.clone(), counted.clone());
                let last_handshake = last_handshake.clone();
                // An error is what a client that gives up looks like from here.
                connections.push(std::thread::spawn(move || {
                    let _ = relay(client, config, &origin, fault, &counted, &last_handshake);
                }));
            }
            connections
                .into_iter()
                .for_each(|connection| connection.join().unwrap());
        });
        Self {
            address,
            ca,
            stop,
            handshakes,
            thread,
        }
    }

    /// File with the certificate to trust.
    pub(crate) fn ca(&self) -> &str {
        self.ca.path().to_str().unwrap()
    }

    /// Handshakes that are complete by now.
    pub(crate) fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::SeqCst)
    }

    /// Waits for all connections to end.
    pub(crate) fn finish(self) -> Counts {
        self.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(&self.address).unwrap();
        self.thread.join().unwrap();
        Counts {
            handshakes: self.handshakes.load(Ordering::SeqCst),
        }
    }
}

fn relay(
    mut client: TcpStream,
    config: Arc<ServerConfig>,
    origin: &str,
    fault: Fault,
    handshakes: &AtomicU64,
    last_handshake: &Mutex<Option<Instant>>,
) -> Result<(), Box<dyn std::error::Error>> {
    client.set_nodelay(true)?;
    let delay = || {
        if let Fault::Slow(time) = fault {
            std::thread::sleep(time);
        }
    };
    delay();
    if matches!(fault, Fault::ResetInHandshake | Fault::CloseInHandshake) {
        // More than a ClientHello is long: what is left unread would make a reset of a close.
        let length = client.read(&mut [0; 16 * 1024])?;
        if length > 0 && fault == Fault::ResetInHandshake {
            sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
        }
        return Ok(());
    }
    let mut tls = ServerConnection::new(config)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut client)?;
    }
    let number = handshakes.fetch_add(1, Ordering::SeqCst) + 1;
    if matches!(fault, Fault::StandStill(first) if number > first) {
        *last_handshake.lock().unwrap() = Some(Instant::now());
    }
    if let Fault::HangUp(after) = fault {
        std::thread::sleep(after);
        return Ok(());
    }
    let mut origin = TcpStream::connect(origin)?;
    origin.set_nodelay(true)?;
    let (mut client_open, mut origin_open) = (true, true);
    let mut buffer = vec![0; 64 * 1024];
    from_client(&mut tls, &mut origin, &mut client_open)?;
    while client_open || origin_open {
        let wanted = |open: bool| if open { PollFlags::IN } else { PollFlags::empty() };
        let mut sockets = [
            PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(&client), wanted(client_open)),
            PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(&origin), wanted(origin_open)),
        ];
        poll(&mut sockets, None)?;
        let [from_client_ready, from_origin_ready] = sockets.map(|socket| !socket.revents().is_empty());
        if client_open && from_client_ready {
            let ended = tls.read_tls(&mut client)? == 0;
            tls.process_new_packets()?;
            from_client(&mut tls, &mut origin, &mut client_open)?;
            if ended && client_open {
                client_open = false;
                origin.shutdown(Shutdown::Write)?;
            }
        }
        if origin_open && from_origin_ready {
            let length = origin.read(&mut buffer)?;
            delay();
            while length > 0
                && last_handshake
                    .lock()
                    .unwrap()
                    .is_some_and(|last| last.elapsed() < STANDING)
            {
                std::thread::sleep(STANDING / 100);
            }
            if length == 0 {
                origin_open = false;
                if fault != Fault::NoCloseNotify {
                    tls.send_close_notify();
                }
            } else if fault == Fault::ChangeByte {
                buffer[length - 1] ^= 1;
            }
            tls.writer().write_all(&buffer[..length])?;
            while tls.wants_write() {
                tls.write_tls(&mut client)?;
            }
            if !origin_open {
                client.shutdown(Shutdown::Write)?;
            }
        }
    }
    Ok(())
}

/// Passes decrypted bytes on, and the client's close_notify as the end of the stream.
fn from_client(
    tls: &mut ServerConnection,
    origin: &mut TcpStream,
    client_open: &mut bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let state = tls.process_new_packets()?;
    let mut plaintext = vec![0; state.plaintext_bytes_to_read()];
    if !plaintext.is_empty() {
        tls.reader().read_exact(&mut plaintext)?;
        origin.write_all(&plaintext)?;
    }
    if state.peer_has_closed() && *client_open {
        *client_open = false;
        origin.shutdown(Shutdown::Write)?;
    }
    Ok(())
}
