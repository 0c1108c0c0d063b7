//! The life of the process: first the state machine, then a real process with real signals.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command};

use super::metrics::tests::busy;
use super::*;
use crate::config::{AdminAddress, ConnectionLog, Log, LogFormat, LogLevel};

/// Remembers what it was told; its condition is what the test wants.
struct Fake {
    condition: Condition,
    reload: Result<String, String>,
    calls: Vec<&'static str>,
}

impl Fake {
    fn new(condition: Condition) -> Fake {
        Fake {
            condition,
            reload: Ok("nothing".to_owned()),
            calls: Vec::new(),
        }
    }
}

impl Service for Fake {
    fn view(&self) -> View {
        busy()
    }
    fn certificates(&self, _: Option<Duration>) -> InForce {
        InForce::default()
    }
    fn condition(&self) -> Condition {
        self.condition.clone()
    }
    fn tick(&mut self, _: Instant) -> Option<Duration> {
        None
    }

    fn reload(&mut self) -> Result<String, String> {
        self.calls.push("reload");
        self.reload.clone()
    }
    fn drain(&mut self) {
        self.calls.push("drain");
    }
    fn drain_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }
    fn stop_now(&mut self) {
        self.calls.push("stop_now");
    }
}

fn serving(now: Instant) -> Control<Fake> {
    let mut control = Control::new(Fake::new(Condition::Running));
    assert_eq!(control.handle(Event::Tick, now), None);
    assert_eq!(control.phase, Phase::Serving);
    control
}

#[test]
fn it_is_ready_when_every_worker_is() {
    let now = Instant::now();
    let mut control = Control::new(Fake::new(Condition::Starting));
    assert_eq!(control.handle(Event::Tick, now), None);
    assert_eq!(control.status().readiness, Readiness::Starting);
    assert_eq!(control.pause(None), CHANGE_INTERVAL);
    control.service.condition = Condition::Running;
    assert_eq!(control.handle(Event::Tick, now), None);
    assert_eq!(control.status().readiness, Readiness::Serving);
    assert_eq!(control.pause(None), WATCH_INTERVAL);
    assert_eq!(
        control.pause(Some(Duration::from_millis(300))),
        Duration::from_millis(300)
    );
}

#[test]
fn a_drain_ends_when_all_is_finished() {
    let now = Instant::now();
    let mut control = serving(now);
    assert_eq!(control.handle(Event::Stop, now), None);
    assert_eq!(control.status().readiness, Readiness::Draining);
    assert_eq!(control.handle(Event::Tick, now + Duration::from_secs(29)), None);
    control.service.condition = Condition::Finished;
    let end = control.handle(Event::Tick, now + Duration::from_secs(29));
    assert_eq!(end, Some(ExitCode::SUCCESS));
    assert_eq!(control.service.calls, ["drain"]);
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let now = Instant::now();
    let mut control = serving(now);
    assert_eq!(control.handle(Event::Stop, now), None);
    let end = control.handle(Event::Tick, now + Duration::from_secs(30));
    assert_eq!(end, Some(ExitCode::SUCCESS));
}

#[test]
fn a_second_request_to_stop_ends_at_once() {
    let now = Instant::now();
    let mut control = serving(now);
    assert_eq!(control.handle(Event::Stop, now), None);
    assert_eq!(control.handle(Event::Stop, now), Some(ExitCode::SUCCESS));
    assert_eq!(control.service.calls, ["drain"]);
}

#[test]
fn a_failure_of_the_service_ends_the_process_with_an_error() {
    let now = Instant::now();
    for event in [Event::Tick, Event::Reload] {
        let mut control = serving(now);
        control.service.condition = Condition::Failed("worker 3 ended".to_owned());
        assert_eq!(
            control.status().readiness,
            Readiness::Failed("worker 3 ended".to_owned())
        );
        assert_eq!(control.handle(event, now), Some(ExitCode::FAILURE));
    }
}

#[test]
fn a_reload_is_refused_while_draining() {
    let now = Instant::now();
    let mut control = serving(now);
    control.handle(Event::Reload, now);
    control.handle(Event::Stop, now);
    control.handle(Event::Reload, now);
    assert_eq!(control.service.calls, ["reload", "drain"]);
}

/// Answers to signals as a gateway would: finished 100 ms after it was asked to drain.
struct Brief {
    fake: Fake,
    drained_at: Option<Instant>,
    folder: std::path::PathBuf,
}

impl Service for Brief {
    fn view(&self) -> View {
        self.fake.view()
    }
    fn certificates(&self, _: Option<Duration>) -> InForce {
        InForce::default()
    }
    fn condition(&self) -> Condition {
        match self.drained_at {
            Some(at) if Instant::now() >= at => Condition::Finished,
            Some(_) | None => Condition::Running,
        }
    }
    fn tick(&mut self, _: Instant) -> Option<Duration> {
        None
    }

    fn reload(&mut self) -> Result<String, String> {
        Err("line 3:\nunknown key".to_owned())
    }
    fn drain(&mut self) {
        self.drained_at = Some(Instant::now() + Duration::from_millis(100));
    }
    fn drain_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }
    fn stop_now(&mut self) {
        std::fs::write(self.folder.join("stopped"), "").unwrap();
    }
}

const CHILD_FOLDER: &str = "RINGLOCK_TEST_FOLDER";

/// Not a test by itself: the process that `signals_lead_a_process_through_its_life` starts.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER).map(std::path::PathBuf::from) else {
        return;
    };
    let mut logging = Logging::install(&Log {
        format: LogFormat::Json,
        level: LogLevel::Debug,
        file: Some(folder.join("log")),
        connections: ConnectionLog::All,
        connections_sample: 1.0,
    })
    .unwrap();
    let admin = Admin::bind(&AdminAddress::Unix(folder.join("admin"))).unwrap();
    let service = Brief {
        fake: Fake::new(Condition::Running),
        drained_at: None,
        folder,
    };
    assert_eq!(run(service, Some(admin), &mut logging).unwrap(), ExitCode::SUCCESS);
}

/// Ends the child when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn told(socket: &UnixDatagram, expected: &str) -> String {
    let mut buffer = [0; 1024];
    loop {
        let length = socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{expected}: {error}"));
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.contains(expected) {
            return message;
        }
    }
}

fn readiness(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn signals_lead_a_process_through_its_life() {
    let folder = tempfile::tempdir().unwrap();
    let systemd = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut child = Running(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "control::tests::child", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env("WATCHDOG_USEC", "200000")
            .env_remove("WATCHDOG_PID")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    let pid = rustix::process::Pid::from_child(&child.0);
    let send = |signal| rustix::process::kill_process(pid, signal).unwrap();
    let logged = |text: &str| std::fs::read_to_string(folder.path().join("log")).is_ok_and(|log| log.contains(text));

    assert!(told(&systemd, "READY=1").contains("STATUS=serving with 2 workers"));
    told(&systemd, "WATCHDOG=1");
    assert!(readiness(&folder.path().join("admin")).starts_with("HTTP/1.1 200 "));

    send(rustix::process::Signal::HUP);
    let reloading = told(&systemd, "RELOADING=1");
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    let ready = told(&systemd, "READY=1");
    assert!(
        ready.contains("STATUS=serving; the last reload failed: line 3: unknown key\n"),
        "{ready}"
    );
    eventually("the refused reload is logged", || logged("the old one stays in force"));

    std::fs::rename(folder.path().join("log"), folder.path().join("log.1")).unwrap();
    send(rustix::process::Signal::USR1);
    eventually("a new log file", || logged("log file reopened"));

    send(rustix::process::Signal::TERM);
    told(&systemd, "STOPPING=1");
    assert!(child.0.wait().unwrap().success());
    assert!(logged("draining") && logged("drained"));
    assert!(folder.path().join("stopped").exists());
    assert!(!folder.path().join("admin").exists(), "the socket file is removed");
}
