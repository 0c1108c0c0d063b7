//! The gateway under test: its configuration, its process, and what it says.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Ca, Io, KeyKind, Metrics, PATIENCE, Ran, SITE, Token, eventually, faked_clocks, free_address, run, run_with,
};

/// A configuration in the making: one listener and one upstream, with lines of TOML added where a test needs them.
pub(crate) struct Setup {
    io_name: &'static str,
    workers: usize,
    folder: TempDir,
    ca: Ca,
    identities: Vec<Identity>,
    servers: Vec<String>,
    global: String,
    listener: String,
    tls: String,
    upstream: String,
    more: String,
    environment: Vec<(String, String)>,
    log: String,
    through: Vec<String>,
}

/// An identity of the listener.
struct Identity {
    name: String,
    /// What else the configuration says of it.
    lines: String,
}

impl Setup {
    /// A listener with an ECDSA P-256 identity for [`SITE`], and these servers behind it. One worker, so that the order of its
    /// choices is one.
    pub(crate) fn new<S: ToString>(io: Io, servers: &[S]) -> Setup {
        let folder = TempDir::new().unwrap();
        let setup = Setup {
            io_name: io.name(),
            workers: 1,
            ca: Ca::new(folder.path()),
            folder,
            identities: Vec::new(),
            servers: servers.iter().map(S::to_string).collect(),
            global: String::new(),
            listener: String::new(),
            tls: String::new(),
            upstream: String::new(),
            more: String::new(),
            environment: Vec::new(),
            log: "format = \"json\"".into(),
            through: Vec::new(),
        };
        setup.identity("site", &[SITE], KeyKind::Ecdsa)
    }

    /// So many workers.
    pub(crate) fn workers(mut self, workers: usize) -> Setup {
        self.workers = workers;
        self
    }

    /// Takes the default identity away; add others, the first is the default.
    pub(crate) fn no_identities(mut self) -> Setup {
        self.identities.clear();
        self
    }

    /// One more identity of the listener.
    pub(crate) fn identity(self, name: &str, dns_names: &[&str], kind: KeyKind) -> Setup {
        self.ca.issue(name, dns_names, kind);
        self.issued_identity(name, &format!("{name}.pem"), &format!("{name}.key"), "")
    }

    /// One more identity of the listener, of a certificate and key that are there, with these lines more.
    pub(crate) fn issued_identity(self, name: &str, certificate: &str, key: &str, lines: &str) -> Setup {
        self.any_identity(
            name,
            &format!("certificate = \"{certificate}\"\nkey = \"{key}\"\n{lines}"),
        )
    }

    /// One more identity, or a folder of them, with these lines.
    pub(crate) fn any_identity(mut self, name: &str, lines: &str) -> Setup {
        self.identities.push(Identity {
            name: name.to_owned(),
            lines: lines.to_owned(),
        });
        self
    }

    /// Who signs the identities.
    pub(crate) fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Folder of the configuration file, certificates and keys.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A PKCS#11 token: its section, with these lines more, and what its module needs in the environment.
    pub(crate) fn token(mut self, token: &dyn Token, lines: &str) -> Setup {
        self.environment.extend(token.environment());
        self.more(&token.section(lines))
    }

    /// One more identity of the listener, whose key is in this token.
    pub(crate) fn token_identity(self, token: &dyn Token, name: &str, dns_names: &[&str], kind: KeyKind) -> Setup {
        token.issue(&self.ca, name, dns_names, kind);
        self.issued_identity(name, &format!("{name}.pem"), &token.uri(name), "")
    }

    /// Adds lines to `[global]`.
    pub(crate) fn global(mut self, lines: &str) -> Setup {
        let _ = writeln!(self.global, "{lines}");
        self
    }

    /// Adds lines to `[[listener]]`.
    pub(crate) fn listener(mut self, lines: &str) -> Setup {
        let _ = writeln!(self.listener, "{lines}");
        self
    }

    /// Adds lines to `[listener.tls]`.
    pub(crate) fn tls(mut self, lines: &str) -> Setup {
        let _ = writeln!(self.tls, "{lines}");
        self
    }

    /// Adds lines to `[[upstream]]`.
    pub(crate) fn upstream(mut self, lines: &str) -> Setup {
        let _ = writeln!(self.upstream, "{lines}");
        self
    }

    /// Adds whole sections at the end.
    pub(crate) fn more(mut self, sections: &str) -> Setup {
        let _ = writeln!(self.more, "{sections}");
        self
    }

    /// Sets a variable of the gateway's environment.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has the gateway's clock run so much ahead, such as "+3h", or behind, or faster, too: "+3d x60". Timers go by a clock that nobody sets.
    #[track_caller]
    pub(crate) fn clock(self, offset: &str) -> Setup {
        self.environment("LD_PRELOAD", &faked_clocks())
            .environment("FAKETIME", offset)
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Leaves the choice of the driver to the gateway.
    pub(crate) fn automatic_io(mut self) -> Setup {
        self.io_name = "auto";
        self
    }

    /// Replaces what is in `[global.log]`: JSON on standard error.
    pub(crate) fn log(mut self, lines: &str) -> Setup {
        lines.clone_into(&mut self.log);
        self
    }

    /// Starts the gateway by this program and these arguments of it, to which its own command line is added.
    pub(crate) fn through(mut self, program: &[&str]) -> Setup {
        self.through = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Writes the files, starts the gateway and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        let (address, admin) = (free_address(), free_address());
        let config = self.to_toml(address, admin);
        std::fs::write(self.folder.path().join("ringlock.toml"), config).unwrap();
        Gateway::start(self.folder, self.ca, address, admin, &self.through, &self.environment)
    }

    /// Writes the file and runs `check` or `run`, which has to end by itself.
    #[track_caller]
    pub(crate) fn try_command(&self, command: &str) -> Ran {
        self.try_arguments(&[command])
    }

    /// Writes the file and runs a command with these arguments, to which the file is added. It has to end by itself.
    #[track_caller]
    pub(crate) fn try_arguments(&self, arguments: &[&str]) -> Ran {
        let file = self.folder.path().join("ringlock.toml");
        std::fs::write(&file, self.to_toml(free_address(), free_address())).unwrap();
        let arguments = [arguments, &["--config", file.to_str().unwrap()]].concat();
        run_with(&self.environment, env!("CARGO_BIN_EXE_ringlock"), &arguments, b"")
    }

    /// The file, for these addresses of the listener and of the admin server.
    pub(crate) fn to_toml(&self, address: SocketAddr, admin: SocketAddr) -> String {
        let Setup {
            workers,
            global,
            listener,
            tls,
            upstream,
            more,
            servers,
            log,
            ..
        } = self;
        let io = self.io_name;
        let names: Vec<&String> = self.identities.iter().map(|identity| &identity.name).collect();
        let mut toml = format!(
            "[global]\nworkers = {workers}\nio = \"{io}\"\nadmin = \"{admin}\"\n{global}\n\
             [global.log]\n{log}\n\n\
             [[listener]]\nname = \"edge\"\naddress = \"{address}\"\nidentities = {names:?}\nupstream = \"app\"\n{listener}\n\
             [listener.tls]\n{tls}\n"
        );
        for Identity { name, lines } in &self.identities {
            let _ = writeln!(toml, "[[identity]]\nname = \"{name}\"\n{lines}\n");
        }
        let _ = write!(
            toml,
            "[[upstream]]\nname = \"app\"\nservers = {servers:?}\n{upstream}\n{more}"
        );
        // A `drain_timeout` of the test's own goes before this one.
        if !global.contains("drain_timeout") {
            toml = toml.replacen("[global]\n", "[global]\ndrain_timeout = \"2s\"\n", 1);
        }
        // So that a test which replaces files knows when they are read.
        if !global.contains("watch_files") {
            toml = toml.replacen("[global]\n", "[global]\nwatch_files = false\n", 1);
        }
        toml
    }
}

/// A gateway that runs. Ends when it goes out of scope, and its end is checked.
pub(crate) struct Gateway {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where metrics and health are.
    pub(crate) admin: SocketAddr,
    /// Who signed the identities.
    pub(crate) ca: Ca,
    folder: TempDir,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    stopped: bool,
}

impl Gateway {
    /// Starts the gateway with the file `ringlock.toml` of `folder`, which has these addresses, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(
        folder: TempDir,
        ca: Ca,
        address: SocketAddr,
        admin: SocketAddr,
        through: &[String],
        environment: &[(String, String)],
    ) -> Gateway {
        let binary = env!("CARGO_BIN_EXE_ringlock").to_owned();
        let mut words = through.iter().chain([&binary]);
        let mut child = Command::new(words.next().expect("there is the binary"))
            .args(words)
            .args(["run", "--config"])
            .arg(folder.path().join("ringlock.toml"))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::inherit())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                lines.lock().unwrap().push(text);
                line.clear();
            }
        });
        let mut gateway = Gateway {
            address,
            admin,
            ca,
            folder,
            child,
            log,
            reader: Some(reader),
            stopped: false,
        };
        eventually("the gateway to be ready", || {
            if let Some(status) = gateway.child.try_wait().unwrap() {
                gateway.stopped = true;
                panic!("the gateway ended at once: {status}\n{}", gateway.log());
            }
            (get(gateway.admin, "/readyz").ok()?.0 == 200).then_some(())
        });
        gateway
    }

    /// Folder of the configuration file, certificates and keys.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("ringlock.toml")
    }

    /// Replaces text of the configuration file; a SIGHUP puts it in force.
    #[track_caller]
    pub(crate) fn edit_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config_file()).unwrap();
        assert!(text.contains(from), "the configuration has no {from:?}:\n{text}");
        std::fs::write(self.config_file(), text.replace(from, to)).unwrap();
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the process to end by itself, and gives its log. Checks nothing.
    #[track_caller]
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.wait_for_exit();
        (status, self.log())
    }

    /// Everything it has written to standard error.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// The lines of its log, each a JSON object.
    pub(crate) fn log_lines(&self) -> Vec<Value> {
        let lines = self.log.lock().unwrap();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for a line of the log.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("a log line: {what}"), || {
            self.log_lines().into_iter().find(&wanted)
        })
    }

    /// Waits for the line about a connection that ended with this cause, in full words.
    #[track_caller]
    pub(crate) fn wait_for_cause(&self, cause: &str) -> Value {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let lines = self.log_lines();
            let ends = || lines.iter().filter(|line| line["message"] == "connection");
            if let Some(line) = ends().find(|line| line["cause"] == cause) {
                return line.clone();
            }
            let causes: Vec<&Value> = ends().map(|line| &line["cause"]).collect();
            assert!(
                std::time::Instant::now() < deadline,
                "no connection ended with {cause:?}, but with {causes:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Waits until so many connections have ended with this cause, as the metrics' label has it.
    #[track_caller]
    pub(crate) fn wait_for_ended(&self, cause: &str, count: u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics();
            if metrics.sum("ringlock_connections_ended_total", &[("cause", cause)]) as u64 >= count {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "fewer than {count} connections ended with {cause}: {:?}; {} are live\n{}",
                metrics.ended(),
                metrics.sum("ringlock_connections_live", &[]),
                self.log()
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Waits until no connection is left, and checks that none has left anything behind.
    #[track_caller]
    pub(crate) fn wait_until_quiet(&self) -> Metrics {
        let metrics = eventually("all connections to end", || {
            let metrics = self.metrics();
            (metrics.sum("ringlock_connections_live", &[]) == 0.0).then_some(metrics)
        });
        let (accepted, shed) = (
            metrics.sum("ringlock_connections_accepted_total", &[]),
            metrics.sum("ringlock_connections_shed_total", &[]),
        );
        let ended = metrics.sum("ringlock_connections_ended_total", &[]);
        assert!(
            accepted == shed + ended,
            "accepted {accepted} = shed {shed} + ended {ended}"
        );
        eventually("all send buffers to be given back", || {
            (self.metrics().sum("ringlock_send_buffers_bytes", &[]) == 0.0).then_some(())
        });
        eventually("all connections to servers to be given back", || {
            (self.metrics().sum("ringlock_upstream_server_connections", &[]) == 0.0).then_some(())
        });
        metrics
    }

    /// The metrics of this moment.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        let (status, text) = get(self.admin, "/metrics").unwrap();
        assert_eq!(status, 200, "{text}");
        Metrics::parse(&text)
    }

    /// What the admin server answers: status and body.
    #[track_caller]
    pub(crate) fn ask(&self, path: &str) -> (u16, String) {
        get(self.admin, path).unwrap()
    }

    /// Resident memory of the process in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kilobytes * 1024
    }

    /// A TCP connection to the listener.
    #[track_caller]
    pub(crate) fn connect_tcp(&self) -> TcpStream {
        super::client::connect_tcp(self.address)
    }

    /// Ends it with SIGTERM, and checks that it ended as it should. Gives its log.
    #[track_caller]
    pub(crate) fn stop(mut self) -> String {
        self.stop_and_check()
    }

    #[track_caller]
    fn stop_and_check(&mut self) -> String {
        self.stopped = true;
        if self.child.try_wait().unwrap().is_none() {
            let internal = self
                .metrics()
                .sum("ringlock_connections_ended_total", &[("cause", "internal")]);
            assert_eq!(internal, 0.0, "internal errors\n{}", self.log());
            self.signal(Signal::TERM);
        }
        let status = self.wait_for_exit();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "the gateway ended with {status}\n{log}");
        for bad in ["panicked", "internal error"] {
            assert!(!log.contains(bad), "{bad:?} in the log:\n{log}");
        }
        log
    }

    #[track_caller]
    fn wait_for_exit(&mut self) -> ExitStatus {
        self.stopped = true;
        let deadline = std::time::Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if std::time::Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("the gateway does not end\n{}", self.log());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        if std::thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the gateway's last lines, latest first:\n{}", tail.join("\n"));
        } else {
            self.stop_and_check();
        }
    }
}

/// Runs the binary with these arguments to its end.
pub(crate) fn ringlock(arguments: &[&str]) -> Ran {
    run(env!("CARGO_BIN_EXE_ringlock"), arguments, b"")
}

/// One request to the admin server.
fn get(admin: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: admin\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap_or(0), body.to_owned()))
}
