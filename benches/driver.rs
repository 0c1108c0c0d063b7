//! Echo of 1 KiB messages over loopback TCP: Ringlock's two drivers behind the same little loop, and tokio-uring. Counted is the CPU
//! time of the serving thread, kernel included; the client is a thread on another processor.
//!
//! With one connection each message is waited for; with 32 the client sends a message on each before it reads, so that a turn
//! of the server's loop finds several.

mod support;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use ringlock::buffers::{Outbox, SendPool};
use ringlock::net::driver::{Completion, Driver, Op, Role, Socket, Token};
use ringlock::net::epoll::EpollDriver;
use ringlock::net::uring::UringDriver;
use tokio::sync::Notify;

use support::cpu::{Place, pin, timed};

const MESSAGE_BYTES: usize = 1024;
const CONNECTIONS: [usize; 2] = [1, 32];
/// Far longer than anything here takes; only a hang is found by it.
const PATIENCE: Duration = Duration::from_secs(60);

fn driver(c: &mut Criterion) {
    pin(Place::Measured);
    for connections in CONNECTIONS {
        let mut group = c.benchmark_group(format!("echo 1 KiB, {connections} connections"));
        group.sampling_mode(SamplingMode::Flat);
        let mut bench = |name: &str, server: std::io::Result<Box<dyn Server>>| match server {
            Ok(mut server) => {
                let mut load = Load::start(server.address(), connections);
                server.accept(connections);
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter_custom(|messages| measure(&mut *server, &mut load, messages));
                });
                load.stop();
            }
            Err(error) => eprintln!("{name}: left out, this machine does not let us: {error}"),
        };
        bench("io_uring", UringDriver::new().and_then(EchoLoop::boxed));
        bench("epoll", EpollDriver::new().and_then(EchoLoop::boxed));
        bench("tokio-uring", TokioUring::boxed());
        group.finish();
    }
}

/// CPU time that the server takes for this many messages. The client sends whole rounds; what they are too many is taken off in
/// proportion.
fn measure(server: &mut dyn Server, load: &mut Load, messages: u64) -> Duration {
    let rounds = messages.div_ceil(load.connections as u64);
    let sent = rounds * load.connections as u64;
    load.send(rounds);
    let mut spent = Duration::ZERO;
    timed(&mut spent, || server.echo(sent * MESSAGE_BYTES as u64));
    load.wait();
    spent.mul_f64(messages as f64 / sent as f64)
}

trait Server {
    fn address(&self) -> SocketAddr;
    /// Takes this many connections.
    fn accept(&mut self, connections: usize);
    /// Runs until this many bytes have been sent back.
    fn echo(&mut self, bytes: u64);
}

/// The client: blocking sockets on a thread of its own.
struct Load {
    connections: usize,
    rounds: mpsc::Sender<u64>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Connects; the kernel completes that before the server accepts.
    fn start(server: SocketAddr, connections: usize) -> Load {
        let (rounds, orders) = mpsc::channel::<u64>();
        let (report, done) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            pin(Place::Other);
            let connect = || {
                let stream = TcpStream::connect(server).expect("the server listens");
                stream.set_nodelay(true).expect("TCP has that option");
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .expect("a minute is a legal timeout");
                stream
            };
            let mut streams: Vec<TcpStream> = (0..connections).map(|_| connect()).collect();
            report.send(()).expect("the server waits");
            let message = [0x5a; MESSAGE_BYTES];
            let mut answer = [0; MESSAGE_BYTES];
            for count in orders {
                for _ in 0..count {
                    for stream in &mut streams {
                        stream.write_all(&message).expect("the server reads");
                    }
                    for stream in &mut streams {
                        answer.fill(0);
                        stream.read_exact(&mut answer).expect("the server answers");
                        assert_eq!(answer, message, "the server sends back what it got");
                    }
                }
                report.send(()).expect("the server waits");
            }
        });
        let load = Load {
            connections,
            rounds,
            done,
            thread,
        };
        load.wait();
        load
    }

    fn send(&self, rounds: u64) {
        self.rounds.send(rounds).expect("the client runs until it is stopped");
    }

    fn wait(&self) {
        self.done.recv_timeout(PATIENCE).expect("the client gets its answers");
    }

    fn stop(self) {
        drop(self.rounds);
        self.thread.join().expect("the client ends by itself");
    }
}

fn listener() -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    // Connections inherit it.
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    Ok(listener)
}

/// An echo server on a driver, as small as it can be: it does with the driver what a worker does, and has no sessions.
struct EchoLoop<D> {
    driver: D,
    address: SocketAddr,
    pool: SendPool,
    /// By the slot of the token.
    connections: Vec<(Socket, Outbox)>,
    completions: Vec<Completion>,
    echoed: u64,
}

impl<D: Driver + 'static> EchoLoop<D> {
    fn boxed(mut driver: D) -> std::io::Result<Box<dyn Server>> {
        let listener = listener()?;
        let address = listener.local_addr()?;
        let listening = driver.listen(listener.into()).expect("the driver takes a listener");
        driver.submit(token(0, Role::Listener), Op::Accept(listening));
        Ok(Box::new(EchoLoop {
            driver,
            address,
            pool: SendPool::default(),
            connections: Vec::new(),
            completions: Vec::new(),
            echoed: 0,
        }))
    }

    fn turn(&mut self, deadline: Instant) {
        self.driver.wait(Some(deadline), &mut self.completions);
        assert!(self.driver.now() < deadline, "nothing moves");
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { socket, .. } => {
                let token = token(self.connections.len(), Role::Downstream);
                self.connections.push((socket, Outbox::default()));
                self.driver.submit(token, Op::Receive(socket));
            }
            Completion::Received {
                token,
                buffer: Some(buffer),
                ..
            } => {
                let (socket, outbox) = &mut self.connections[token.slot as usize];
                outbox.sink(&mut self.pool).write(self.driver.received(&buffer));
                self.driver.recycle(buffer);
                self.driver.submit(token, Op::Receive(*socket));
                self.send(token);
            }
            Completion::Sent { token, buffer, result } => {
                let sent = result.expect("the client reads");
                self.echoed += sent as u64;
                let (_, outbox) = &mut self.connections[token.slot as usize];
                outbox.returned(buffer, sent, &mut self.pool);
                self.send(token);
            }
            Completion::Received { buffer: None, .. }
            | Completion::ReceiveFailed { .. }
            | Completion::AcceptFailed { .. }
            | Completion::Connected { .. } => panic!("the client stays until the end: {completion:?}"),
        }
    }

    fn send(&mut self, token: Token) {
        let (socket, outbox) = &mut self.connections[token.slot as usize];
        if let Some(buffer) = outbox.take() {
            self.driver.submit(token, Op::Send(*socket, buffer));
        }
    }
}

fn token(slot: usize, role: Role) -> Token {
    Token {
        slot: u32::try_from(slot).expect("there are 32 connections at most"),
        generation: 0,
        role,
    }
}

impl<D: Driver + 'static> Server for EchoLoop<D> {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn accept(&mut self, connections: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.connections.len() < connections {
            self.turn(deadline);
        }
    }

    fn echo(&mut self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        let goal = self.echoed + bytes;
        while self.echoed < goal {
            self.turn(deadline);
        }
    }
}

/// The same with tokio-uring, one task for each connection. Its ring has the flag that spares it interrupts (its default has not).
struct TokioUring {
    runtime: tokio_uring::Runtime,
    listener: Rc<tokio_uring::net::TcpListener>,
    address: SocketAddr,
    progress: Rc<Progress>,
}

#[derive(Default)]
struct Progress {
    echoed: Cell<u64>,
    goal: Cell<u64>,
    reached: Notify,
}

impl TokioUring {
    fn boxed() -> std::io::Result<Box<dyn Server>> {
        let mut ring = tokio_uring::uring_builder();
        ring.setup_coop_taskrun();
        let runtime = tokio_uring::Runtime::new(tokio_uring::builder().uring_builder(&ring))?;
        let listener = listener()?;
        let address = listener.local_addr()?;
        let listener = runtime.block_on(async { tokio_uring::net::TcpListener::from_std(listener) });
        Ok(Box::new(TokioUring {
            runtime,
            listener: Rc::new(listener),
            address,
            progress: Rc::default(),
        }))
    }
}

impl Server for TokioUring {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn accept(&mut self, connections: usize) {
        self.runtime.block_on(async {
            for _ in 0..connections {
                let (stream, _) = self.listener.accept().await.expect("the client has connected");
                tokio_uring::spawn(echo_task(stream, Rc::clone(&self.progress)));
            }
        });
    }

    fn echo(&mut self, bytes: u64) {
        let progress = Rc::clone(&self.progress);
        progress.goal.set(progress.echoed.get() + bytes);
        self.runtime.block_on(async move {
            tokio::time::timeout(PATIENCE, progress.reached.notified())
                .await
                .expect("nothing moves");
        });
    }
}

async fn echo_task(stream: tokio_uring::net::TcpStream, progress: Rc<Progress>) {
    use tokio_uring::buf::BoundedBuf;
    let mut buffer = vec![0; 4 * MESSAGE_BYTES];
    loop {
        let (received, filled) = stream.read(buffer).await;
        let received = received.unwrap_or(0);
        if received == 0 {
            return;
        }
        let (sent, slice) = stream.write_all(filled.slice(..received)).await;
        sent.expect("the client reads");
        buffer = slice.into_inner();
        progress.echoed.set(progress.echoed.get() + received as u64);
        if progress.echoed.get() == progress.goal.get() {
            progress.reached.notify_one();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = driver
}
criterion_main!(benches);
