//! The process log, and the lines about connections that ended.
//!
//! Nobody who logs ever waits: lines go to a bounded queue that one thread writes to standard error or the file, and
//! workers put records on queues of their own, which the collector empties every [`LOG_COLLECT_INTERVAL`]. What does
//! not fit is dropped and counted. Until [`Logging::start_thread`] lines are written by whoever has them: what a process gives up is given up by
//! threads that start afterwards, so there is none before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

use crossbeam::queue::ArrayQueue;
use tracing::dispatcher::{self, Dispatch};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat, LogLevel};
use crate::limits::{LOG_COLLECT_INTERVAL, LOG_LINES};
use crate::metrics::{Declined, GROUPS, SUITES, VERSIONS};
use crate::record::{self, ConnectionRecord};

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened for appending.
    #[error(
        "log file {}: {source}; check that the directory exists and that this user may write there", path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A log was installed before.
    #[error("the process log is already installed")]
    Installed,
}

/// The running log. Dropping it writes what waits (for at most about a second).
#[derive(Debug)]
pub struct Logging {
    path: Option<PathBuf>,
    replacement: Arc<Mutex<Option<File>>>,
    lines: Lines,
    write_failures: Arc<AtomicU64>,
    /// Once there is a thread.
    guard: Option<WorkerGuard>,
}

impl Logging {
    /// The file that is written to, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Starts the log of this process as `config` says.
    ///
    /// # Errors
    ///
    /// [`LogError`] when the file cannot be opened or a log is installed already.
    pub fn install(config: &Log) -> Result<Logging, LogError> {
        let (logging, dispatch) = Logging::start(config)?;
        dispatcher::set_global_default(dispatch).map_err(|_| LogError::Installed)?;
        Ok(logging)
    }

    fn start(config: &Log) -> Result<(Logging, Dispatch), LogError> {
        let file = config.file.as_deref().map(open).transpose()?;
        let replacement = Arc::new(Mutex::new(None));
        let write_failures = Arc::new(AtomicU64::new(0));
        let sink = Sink {
            output: match file {
                Some(file) => Output::File(file),
                None => Output::StandardError,
            },
            replacement: Arc::clone(&replacement),
            pending: Vec::new(),
            pending_lines: 0,
            lost: Arc::clone(&write_failures),
        };
        let lines = Lines(Arc::new(Way {
            direct: Mutex::new(Some(sink)),
            queue: OnceLock::new(),
        }));
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(filter(config.level))
            .with_writer(lines.clone())
            .with_target(false);
        let dispatch = match config.format {
            LogFormat::Text => Dispatch::new(subscriber.finish()),
            LogFormat::Json => Dispatch::new(subscriber.json().flatten_event(true).finish()),
        };
        let logging = Logging {
            path: config.file.clone(),
            replacement,
            write_failures,
            lines,
            guard: None,
        };
        Ok((logging, dispatch))
    }

    /// From here on nobody who logs waits. To be called once.
    pub fn start_thread(&mut self) {
        let Way { direct, queue } = &*self.lines.0;
        let mut sink = direct.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = sink.take() {
            let (lines, guard) = NonBlockingBuilder::default()
                .lossy(true)
                .buffered_lines_limit(LOG_LINES)
                .thread_name("log")
                .finish(sink);
            self.guard = Some(guard);
            queue
                .set(lines)
                .expect("the sink was still here, so there was no queue");
        }
    }

    /// Opens the file again, because something has moved the old one away. Standard error stays as it is.
    /// When the file cannot be opened, the old one stays in use.
    ///
    /// # Errors
    ///
    /// [`LogError::Open`].
    pub fn reopen(&mut self) -> Result<(), LogError> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = open(path)?;
        *self.replacement.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        // An empty line wakes the writing thread, which then lets go of the old file. If the queue is full, it is awake.
        let _ = self.lines.make_writer().write(b"");
        Ok(())
    }

    /// The counter of lines that were not written.
    #[must_use]
    pub fn lines_lost(&self) -> LinesLost {
        LinesLost {
            lines: self.lines.clone(),
            write_failures: Arc::clone(&self.write_failures),
        }
    }
}

/// The way that lines take.
#[derive(Clone, Debug)]
struct Lines(Arc<Way>);

#[derive(Debug)]
struct Way {
    /// Until there is a thread.
    direct: Mutex<Option<Sink>>,
    queue: OnceLock<NonBlocking>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> OneLine<'a> {
        match self.0.queue.get() {
            Some(queue) => OneLine::Queued(queue.clone()),
            None => OneLine::Direct(&self.0),
        }
    }
}

enum OneLine<'a> {
    Queued(NonBlocking),
    Direct(&'a Way),
}

impl Write for OneLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            OneLine::Queued(queue) => queue.write(line),
            OneLine::Direct(way) => {
                let mut direct = way.direct.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(sink) = &mut *direct {
                    sink.write_all(line)?;
                    sink.flush()?;
                    return Ok(line.len());
                }
                // The thread has been started meanwhile, and the queue is set while the lock is held.
                drop(direct);
                way.queue
                    .get()
                    .map_or(Ok(line.len()), |queue| queue.clone().write(line))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts lines that were dropped because the queue was full, or that the file or terminal did not take.
#[derive(Clone, Debug)]
pub struct LinesLost {
    lines: Lines,
    write_failures: Arc<AtomicU64>,
}

impl LinesLost {
    /// Lines lost since start.
    #[must_use]
    pub fn value(&self) -> u64 {
        let queue = self.lines.0.queue.get();
        let overflow = queue.map_or(0, |queue| queue.error_counter().dropped_lines() as u64);
        overflow + self.write_failures.load(Ordering::Relaxed)
    }
}

fn open(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| LogError::Open {
            path: path.to_owned(),
            source,
        })
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}

/// What the writing thread owns. Each `write` is one line; `flush` comes when no line waits.
#[derive(Debug)]
struct Sink {
    output: Output,
    replacement: Arc<Mutex<Option<File>>>,
    /// Whole lines, fewer than [`SINK_BYTES`] plus one line.
    pending: Vec<u8>,
    /// Lines in `pending`.
    pending_lines: u64,
    lost: Arc<AtomicU64>,
}

/// Lines are gathered up to this size, so that a busy log costs one system call for some hundred lines.
const SINK_BYTES: usize = 64 * 1024;

#[derive(Debug)]
enum Output {
    StandardError,
    File(File),
}

impl Sink {
    fn write_pending(&mut self) {
        let written = match &mut self.output {
            Output::StandardError => io::stderr().write_all(&self.pending),
            Output::File(file) => file.write_all(&self.pending),
        };
        if written.is_err() {
            // The log is what failed, so the counter is all there is to tell it. Part of it may have been written.
            self.lost.fetch_add(self.pending_lines, Ordering::Relaxed);
        }
        self.pending.clear();
        self.pending_lines = 0;
    }

    fn adopt_replacement(&mut self) {
        let replacement = self.replacement.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(file) = replacement {
            self.write_pending();
            self.output = Output::File(file);
        }
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.adopt_replacement();
        self.pending.extend_from_slice(line);
        self.pending_lines += 1;
        if self.pending.len() >= SINK_BYTES {
            self.write_pending();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.adopt_replacement();
        self.write_pending();
        Ok(())
    }
}

/// The queue on which one worker leaves its records.
pub type RecordQueue = ArrayQueue<ConnectionRecord>;

/// The thread that turns records into lines. Dropping it writes those that are still queued.
#[derive(Debug)]
pub struct Collector {
    /// Closed to stop the thread; `None` only while dropping.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Collects from these queues, one per worker, and logs where the calling thread logs.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(queues: Vec<Arc<RecordQueue>>) -> io::Result<Collector> {
        let (stop, stopped) = mpsc::channel::<()>();
        let dispatch = dispatcher::get_default(Dispatch::clone);
        let thread = std::thread::Builder::new().name("records".to_owned()).spawn(move || {
            dispatcher::with_default(&dispatch, || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(LOG_COLLECT_INTERVAL) {
                    collect(&queues);
                }
                collect(&queues);
            });
        })?;
        Ok(Collector {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes connection records ended by a defect");
        }
    }
}

fn collect(queues: &[Arc<RecordQueue>]) {
    for queue in queues {
        // No more than were there at the beginning, so that one busy worker does not keep the others' records waiting.
        for _ in 0..queue.len() {
            let Some(record) = queue.pop() else { break };
            write_record(&record);
        }
    }
}

/// Logs one connection. Everything that came from the network goes through as a string field, which both formats
/// quote and escape: no peer can begin a line or a JSON key of its own.
fn write_record(record: &ConnectionRecord) {
    let peer = record.peer.map(|address| address.to_string());
    let alpn = record.alpn.as_deref().map(|name| name.escape_ascii().to_string());
    let kind = record.negotiated;
    let cause = record.cause.to_string();
    // The level of an event is part of its static description, so every level needs an event of its own.
    macro_rules! line {
        ($level:ident) => {
            tracing::event!(
                tracing::Level::$level,
                listener = &*record.listener,
                peer = peer.as_deref(),
                sni = record.server_name.as_deref(),
                alpn = alpn.as_deref(),
                version = kind.map(|kind| VERSIONS[usize::from(kind.version)]),
                suite = kind.map(|kind| SUITES[usize::from(kind.suite)]),
                group = kind.map(|kind| GROUPS[usize::from(kind.group)]),
                resumed = kind.map(|kind| kind.resumption != 0),
                client_subject = record.client_subject.as_deref(),
                client_serial = record.client_serial.as_deref(),
                not_resumed = record.declined.map(|why| Declined::LABELS[why as usize]),
                upstream = record.server.as_deref(),
                received = record.received,
                sent = record.sent,
                duration_ms = record.duration.as_micros() as f64 / 1000.0,
                cause = &*cause,
                cause_label = record.cause.label(),
                fault = record.cause.fault().label(),
                "connection"
            )
        };
    }
    match record::level(&record.cause) {
        LogLevel::Error => line!(ERROR),
        LogLevel::Warn => line!(WARN),
        LogLevel::Info | LogLevel::Debug => line!(INFO),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::ConnectionLog;
    use crate::error::{Cause, HandshakeFailure, KeyFailure};
    use crate::metrics::Negotiated;

    fn config(format: LogFormat, file: Option<&Path>) -> Log {
        Log {
            format,
            level: LogLevel::Info,
            file: file.map(Path::to_owned),
            connections: ConnectionLog::All,
            connections_sample: 1.0,
        }
    }

    fn record(cause: Cause) -> ConnectionRecord {
        ConnectionRecord {
            listener: "edge".into(),
            peer: Some("192.0.2.7:40000".parse().unwrap()),
            server_name: Some("www.example.com".into()),
            alpn: Some(b"h2".as_slice().into()),
            negotiated: Some(Negotiated {
                version: 1,
                suite: 0,
                group: 1,
                resumption: 1,
            }),
            declined: None,
            client_subject: None,
            client_serial: None,
            server: Some("127.0.0.1:8080".into()),
            received: 517,
            sent: 90_000,
            duration: Duration::from_micros(12_345),
            cause,
        }
    }

    fn started(config: &Log) -> (Logging, Dispatch) {
        let (mut logging, dispatch) = Logging::start(config).unwrap();
        logging.start_thread();
        (logging, dispatch)
    }

    /// What `during` logs, through the real writer to a file.
    fn logged(format: LogFormat, during: impl FnOnce()) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (logging, dispatch) = started(&config(format, Some(&path)));
        dispatcher::with_default(&dispatch, during);
        assert_eq!(logging.lines_lost().value(), 0);
        drop(logging);
        std::fs::read_to_string(&path).unwrap()
    }

    fn wait_for(what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < end, "{what} did not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_connection_is_one_json_line_with_every_field() {
        let text = logged(LogFormat::Json, || write_record(&record(Cause::Finished)));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(line["timestamp"].is_string());
        let mut fields = line.as_object().unwrap().clone();
        fields.remove("timestamp");
        assert_eq!(
            serde_json::Value::Object(fields),
            serde_json::json!({
                "level": "INFO", "message": "connection", "listener": "edge", "peer": "192.0.2.7:40000",
                "sni": "www.example.com", "alpn": "h2", "version": "1.3", "suite": "TLS_AES_128_GCM_SHA256",
                "group": "X25519", "resumed": true, "upstream": "127.0.0.1:8080", "received": 517, "sent": 90_000,
                "duration_ms": 12.345, "cause": "finished", "cause_label": "finished", "fault": "none",
            })
        );
    }

    #[test]
    fn what_was_never_learned_is_left_out() {
        let unknown = ConnectionRecord {
            peer: None,
            server_name: None,
            alpn: None,
            negotiated: None,
            declined: None,
            server: None,
            ..record(Cause::Handshake(HandshakeFailure::VersionTooOld { offered: 0x0301 }))
        };
        let text = logged(LogFormat::Json, || write_record(&unknown));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        for absent in [
            "peer",
            "sni",
            "alpn",
            "version",
            "suite",
            "group",
            "resumed",
            "upstream",
            "client_subject",
            "client_serial",
        ] {
            assert!(line.get(absent).is_none(), "{absent}: {text}");
        }
        assert_eq!(line["cause"], "client offers only TLS 1.0");
        assert_eq!(line["cause_label"], "handshake");
        assert_eq!(line["fault"], "peer");
    }

    #[test]
    fn who_must_act_decides_the_level() {
        for (cause, level) in [
            (Cause::Finished, "INFO"),
            (Cause::PeerReset, "INFO"),
            (Cause::UpstreamUnreachable, "WARN"),
            (
                Cause::Handshake(HandshakeFailure::Key(KeyFailure::Failed("token removed".to_owned()))),
                "ERROR",
            ),
            (Cause::Internal("relay"), "ERROR"),
        ] {
            let text = logged(LogFormat::Text, || write_record(&record(cause.clone())));
            assert!(text.contains(&format!(" {level} connection")), "{cause:?}: {text}");
        }
    }

    #[test]
    fn a_peer_cannot_begin_a_line_or_a_field_of_its_own() {
        let evil = "a\nb\r\n2026-01-01T00:00:00Z ERROR fault=\"us\"\u{1b}[2J\u{85}\u{2028}\",\"level\":\"ERROR\"}";
        let hostile = ConnectionRecord {
            server_name: Some(evil.into()),
            alpn: Some(evil.as_bytes().iter().copied().chain([0, 0xff]).collect()),
            client_subject: Some(evil.into()),
            ..record(Cause::Record(evil.to_owned()))
        };
        let json = logged(LogFormat::Json, || write_record(&hostile));
        assert_eq!(json.matches('\n').count(), 1, "{json}");
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&line["sni"], &line["client_subject"]), (&evil.into(), &evil.into()));
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["fault"], "peer");

        let text = logged(LogFormat::Text, || write_record(&hostile));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains('\u{2028}'), "{text:?}");
        assert!(!text.contains("fault=\"us\""), "{text}");
    }

    #[test]
    fn reopening_writes_to_the_new_file_and_a_failure_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("logs");
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("log");
        let (mut logging, dispatch) = started(&config(LogFormat::Text, Some(&path)));
        let say = |message: &str| dispatcher::with_default(&dispatch, || tracing::info!("{message}"));
        let has = |path: &Path, text: &str| std::fs::read_to_string(path).is_ok_and(|content| content.contains(text));

        say("first");
        wait_for("the first line", || has(&path, "first"));
        let moved = directory.join("log.1");
        std::fs::rename(&path, &moved).unwrap();
        say("second");
        wait_for("a line in the moved file", || has(&moved, "second"));
        logging.reopen().unwrap();
        say("third");
        wait_for("a line in the new file", || has(&path, "third"));
        assert!(!has(&moved, "third") && !has(&path, "second"));

        let elsewhere = folder.path().join("elsewhere");
        std::fs::rename(&directory, &elsewhere).unwrap();
        let error = logging.reopen().unwrap_err().to_string();
        assert!(
            error.contains(&*path.to_string_lossy()) && error.contains("check that"),
            "{error}"
        );
        say("fourth");
        wait_for("a line in the old file", || has(&elsewhere.join("log"), "fourth"));
        assert_eq!(logging.lines_lost().value(), 0);
    }

    #[test]
    fn reopening_lets_go_of_the_old_file_without_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut logging, _dispatch) = started(&config(LogFormat::Text, Some(&path)));
        std::fs::remove_file(&path).unwrap();
        let deleted_open = || {
            std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
                .any(|target| *target == *Path::new(&format!("{} (deleted)", path.display())))
        };
        assert!(deleted_open());
        logging.reopen().unwrap();
        wait_for("closing the old file", || !deleted_open());
    }

    #[test]
    fn lines_before_the_thread_are_there_at_once_and_none_gets_lost_or_overtaken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut logging, dispatch) = Logging::start(&config(LogFormat::Text, Some(&path))).unwrap();
        let say = |message: &str| dispatcher::with_default(&dispatch, || tracing::info!("{message}"));
        say("first");
        assert!(std::fs::read_to_string(&path).unwrap().contains("first"));
        logging.start_thread();
        say("second");
        assert_eq!(logging.lines_lost().value(), 0);
        drop(logging);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(lines, ["first", "second"]);
    }

    #[test]
    fn lines_that_the_file_does_not_take_are_counted() {
        let (logging, dispatch) = started(&config(LogFormat::Text, Some(Path::new("/dev/full"))));
        dispatcher::with_default(&dispatch, || {
            for _ in 0..1_000 {
                tracing::info!("a line that finds no room");
            }
        });
        let lost = logging.lines_lost();
        drop(logging);
        assert_eq!(lost.value(), 1_000);
    }

    #[test]
    fn the_collector_writes_what_the_workers_left_also_at_the_end() {
        let queues: Vec<Arc<RecordQueue>> = (0..3).map(|_| Arc::new(RecordQueue::new(64))).collect();
        let text = logged(LogFormat::Json, || {
            let collector = Collector::start(queues.clone()).unwrap();
            for queue in &queues {
                queue.push(record(Cause::Finished)).unwrap();
            }
            wait_for("collecting", || queues.iter().all(|queue| queue.is_empty()));
            for n in 0..64 {
                let late = ConnectionRecord {
                    received: 10_000 + n,
                    ..record(Cause::Drained)
                };
                queues[1].push(late).unwrap();
            }
            drop(collector);
        });
        assert_eq!(text.lines().count(), 3 + 64);
        assert!(text.contains("\"received\":10063"));
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let error = Logging::start(&config(LogFormat::Text, Some(Path::new("/nonexistent/dir/log")))).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("log file /nonexistent/dir/log: No such file"),
            "{error}"
        );
    }
}
