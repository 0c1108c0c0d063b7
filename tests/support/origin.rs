//! Servers behind the gateway: threads that do with each connection what a test wants.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{PATIENCE, own_ip};

/// A connection from the gateway.
pub(crate) type Stream = TcpStream;

/// A plain TCP server. Stops accepting when it goes out of scope; connections go on.
pub(crate) struct Origin {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Calls `serve` for each connection, in a thread of its own. The connection is closed when it returns.
    pub(crate) fn start(serve: impl Fn(Stream) + Send + Sync + 'static) -> Origin {
        Origin::start_at(SocketAddr::new(own_ip(), 0), serve)
    }

    /// The same at an address that was chosen before.
    pub(crate) fn start_at(address: SocketAddr, serve: impl Fn(Stream) + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped, serve) = (Arc::clone(&accepted), Arc::clone(&stop), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, serve) = (stream.unwrap(), Arc::clone(&serve));
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                std::thread::spawn(move || serve(stream));
            }
        });
        Origin {
            address,
            accepted,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends back what it gets; ends its direction when the client has ended the other.
    pub(crate) fn echo() -> Origin {
        Origin::start(echo)
    }

    /// Says `words` at once, then reads to the end and closes.
    pub(crate) fn saying(words: &str) -> Origin {
        let words = words.as_bytes().to_owned();
        Origin::start(move |mut stream| {
            if stream.write_all(&words).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        })
    }

    /// Closes each connection at once.
    pub(crate) fn closing() -> Origin {
        Origin::start(drop)
    }

    /// A small HTTP/1.1 server: answers every request with 200 and `body`, and keeps the connection open.
    pub(crate) fn http(body: &str) -> Origin {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        Origin::start(move |mut stream| {
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                request.extend_from_slice(&buffer[..length]);
                while let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
                    request.drain(..end + 4);
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            }
        })
    }

    /// host:port
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes accept, which then sees the word.
        let woken = TcpStream::connect(self.address).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn echo(mut stream: Stream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Closes a connection with a RST.
pub(crate) fn reset(stream: Stream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}
