//! The secret of tickets is replaced, and configurations are reloaded, while clients come back all the time; and what is put in the
//! place of a secret and is none.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::*;
use tempfile::TempDir;

both_drivers!(
    a_new_secret_costs_the_clients_of_one_process_nothing,
    a_new_secret_costs_the_clients_of_two_processes_nothing,
    reloads_cost_no_full_handshake,
    what_is_no_secret_changes_nothing,
    a_secret_is_not_taken_half_written,
    a_file_that_may_be_read_later_is_taken_later,
);

const CLIENTS: usize = 50;
/// Where epochs are to end within a test, in seconds.
const ROTATION: u64 = 8;
/// Between two visits of a client.
const PAUSE: Duration = Duration::from_millis(100);

/// Hosts with one identity, one file with a secret, and one origin.
struct Fleet {
    folder: TempDir,
    gateways: Vec<Gateway>,
    _origin: Origin,
}

impl Fleet {
    fn start(io: Io, count: u32, change: impl Fn(Setup) -> Setup) -> Fleet {
        let folder = TempDir::new().unwrap();
        Ca::new(folder.path()).issue("shared", &[SITE], KeyKind::Ecdsa);
        let origin = Origin::echo();
        let secret = folder.path().join("tickets.secret");
        write_secret(&secret, 1);
        let path = |name| folder.path().join(name).display().to_string();
        let setup = |number| {
            // They look at the file once a second, and not at the same time.
            std::thread::sleep(Duration::from_millis(500) * number);
            let setup = Setup::new(io, &[origin.address()])
                .no_identities()
                .issued_identity("shared", &path("shared.pem"), &path("shared.key"), "")
                .more(&format!("[tickets]\nsecret = \"file:{}\"", secret.display()));
            change(setup).start()
        };
        let gateways = (0..count).map(setup).collect();
        Fleet {
            folder,
            gateways,
            _origin: origin,
        }
    }

    fn secret(&self) -> PathBuf {
        self.folder.path().join("tickets.secret")
    }

    /// A file beside the secret's.
    fn beside(&self) -> PathBuf {
        self.folder.path().join("beside")
    }

    /// Puts another secret in its place, whole.
    fn replace(&self, number: u8) {
        write_secret(&self.beside(), number);
        std::fs::rename(self.beside(), self.secret()).unwrap();
    }

    fn wallet(&self) -> Wallet {
        Wallet::trusting(&self.folder.path().join("ca.pem"))
    }

    /// The client's next visit is to that gateway.
    fn client(&self, gateway: usize, version: &str, wallet: &Wallet) -> Client<'_> {
        let client = Client::new(&self.gateways[gateway]).wallet(wallet);
        if version == "1.2" {
            client.tls12()
        } else {
            client.tls13()
        }
    }

    #[track_caller]
    fn visit(&self, wallet: &Wallet) -> Visit {
        self.client(0, "1.3", wallet).visit()
    }

    fn secrets(&self, gateway: &Gateway) -> u64 {
        gateway.metrics().count("ringlock_ticket_secrets", &[])
    }

    /// Waits until all have heard of a new secret, and open tickets of so many.
    #[track_caller]
    fn wait_for_secrets(&self, count: u64) {
        eventually("the new secret to be taken", || {
            self.gateways
                .iter()
                .all(|gateway| self.secrets(gateway) == count)
                .then_some(())
        });
    }
}

/// 48 bytes that differ, and are others for each number. For their owner only.
fn write_secret(path: &Path, number: u8) {
    std::fs::write(path, secret(number)).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

fn secret(number: u8) -> Vec<u8> {
    (0..48_u8)
        .map(|byte| byte.wrapping_mul(7) ^ number.wrapping_mul(151))
        .collect()
}

/// What clients have done so far that come back all the time.
#[derive(Default)]
struct Visits {
    stop: AtomicBool,
    /// By client.
    resumed: Vec<AtomicU64>,
    full: Vec<AtomicU64>,
    failures: Mutex<Vec<String>>,
}

impl Visits {
    /// Each of them comes to one gateway after the other, on and on.
    fn run(&self, fleet: &Fleet, number: usize) {
        let version = if number.is_multiple_of(2) { "1.2" } else { "1.3" };
        let wallet = fleet.wallet();
        let mut gateway = number;
        while !self.stop.load(Ordering::SeqCst) {
            gateway += 1;
            let client = fleet.client(gateway % fleet.gateways.len(), version, &wallet);
            match client.try_visit() {
                Ok(Visit::Resumed) => _ = self.resumed[number].fetch_add(1, Ordering::SeqCst),
                Ok(Visit::Full) => _ = self.full[number].fetch_add(1, Ordering::SeqCst),
                Ok(Visit::Refused(alert)) => self.failures.lock().unwrap().push(format!("{alert:?}")),
                Err(error) => self.failures.lock().unwrap().push(error.to_string()),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Every client has been resumed so often again.
    #[track_caller]
    fn wait_for_more(&self, more: u64) {
        let now = || self.resumed.iter().map(|resumed| resumed.load(Ordering::SeqCst));
        let before: Vec<u64> = now().collect();
        eventually("each client to be resumed", || {
            now()
                .zip(&before)
                .all(|(now, before)| now >= before + more)
                .then_some(())
        });
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Full handshakes of the client that had most.
    fn most_full(&self) -> u64 {
        self.full
            .iter()
            .map(|full| full.load(Ordering::SeqCst))
            .max()
            .unwrap_or_default()
    }
}

/// Clients come back for as long as `meanwhile` takes, which begins once each has been resumed.
#[track_caller]
fn while_clients_come_back(fleet: &Fleet, meanwhile: impl FnOnce(&Visits)) -> Visits {
    /// Ends the threads also when the test fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let counters = || (0..CLIENTS).map(|_| AtomicU64::default()).collect();
    let visits = Visits {
        resumed: counters(),
        full: counters(),
        ..Visits::default()
    };
    std::thread::scope(|scope| {
        let _stop = Stop(&visits.stop);
        for number in 0..CLIENTS {
            let visits = &visits;
            scope.spawn(move || visits.run(fleet, number));
        }
        visits.wait_for_more(1);
        assert_eq!(visits.most_full(), 1, "the first time only");
        meanwhile(&visits);
    });
    assert_eq!(visits.failures(), [""; 0]);
    visits
}

fn a_new_secret_costs_the_clients_of_one_process_nothing(io: Io) {
    let fleet = Fleet::start(io, 1, |setup| setup.workers(2));
    let visits = while_clients_come_back(&fleet, |visits| {
        for number in [2, 3] {
            fleet.replace(number);
            fleet.wait_for_secrets(u64::from(number));
            visits.wait_for_more(3);
        }
    });
    assert_eq!(visits.most_full(), 1, "the first time only");
}

/// From one process to the other and back, until the old secret is over. One of them has the new one before the other.
fn a_new_secret_costs_the_clients_of_two_processes_nothing(io: Io) {
    let fleet = Fleet::start(io, 2, |setup| setup.more(&format!("rotation = \"{ROTATION}s\"")));
    let visits = while_clients_come_back(&fleet, |visits| {
        // Both have it before the next epoch begins.
        eventually("an epoch to begin", || {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
            now.is_multiple_of(ROTATION).then_some(())
        });
        fleet.replace(2);
        fleet.wait_for_secrets(2);
        visits.wait_for_more(3);
        fleet.wait_for_secrets(1);
        visits.wait_for_more(3);
    });
    assert_eq!(visits.most_full(), 1, "the first time only");
}

fn reloads_cost_no_full_handshake(io: Io) {
    for tls in ["tickets = true", "tickets = false\nsession_cache = \"4MiB\""] {
        let fleet = Fleet::start(io, 1, |setup| setup.workers(2).tls(tls));
        let visits = while_clients_come_back(&fleet, |visits| {
            for _ in 0..10 {
                reload(&fleet.gateways[0]);
                visits.wait_for_more(1);
            }
        });
        assert_eq!(visits.most_full(), 1, "{tls}: the first time only");
    }
}

/// The gateway says this of the secret, once.
#[track_caller]
fn wait_for_complaint(gateway: &Gateway, words: &str) {
    let says = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "ERROR" && message.contains("the old one stays in use") && message.contains(words)
    };
    gateway.wait_for_line(words, says);
    let lines = gateway.log_lines();
    assert_eq!(lines.iter().filter(|line| says(line)).count(), 1, "{words}");
}

fn what_is_no_secret_changes_nothing(io: Io) {
    let fleet = Fleet::start(io, 1, |setup| setup);
    let gateway = &fleet.gateways[0];
    let wallet = fleet.wallet();
    assert_eq!(fleet.visit(&wallet), Visit::Full);
    let (secret, beside) = (fleet.secret(), fleet.beside());
    let put = |content: &[u8]| {
        std::fs::write(&beside, content).unwrap();
        std::fs::rename(&beside, &secret).unwrap();
    };
    let replaced_by: [(&str, &dyn Fn()); 6] = [
        ("0 bytes", &|| put(b"")),
        ("31 bytes", &|| put(&[7; 31])),
        ("the same byte again and again", &|| put(&[0; 48])),
        ("more than 4096 bytes", &|| put(&pattern(4097))),
        ("no regular file", &|| {
            std::fs::remove_file(&secret).unwrap();
            std::fs::create_dir(&secret).unwrap();
        }),
        ("no regular file", &|| {
            std::fs::remove_dir(&secret).unwrap();
            let path = secret.to_str().unwrap();
            run("mkfifo", &[path], b"").ok();
        }),
    ];
    for (number, (words, replace)) in replaced_by.iter().enumerate() {
        replace();
        if number < 5 {
            wait_for_complaint(gateway, words);
        } else {
            eventually("the second one of the kind", || {
                (gateway.log().matches(words).count() == 2).then_some(())
            });
        }
        assert_eq!(fleet.secrets(gateway), 1, "{words}");
        assert_eq!(fleet.visit(&wallet), Visit::Resumed, "{words}");
    }
    std::fs::remove_file(&secret).unwrap();
    symlink("nowhere", &secret).unwrap();
    wait_for_complaint(gateway, "nothing readable (No such file");
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
    fleet.replace(2);
    fleet.wait_for_secrets(2);
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
    // A reload with something unusable is refused, and says why.
    put(b"too short");
    let reloads = ("ringlock_configuration_reloads_total", [("result", "failed")]);
    gateway.signal(rustix::process::Signal::HUP);
    wait_for_metric(gateway, reloads.0, &reloads.1, 1.0);
    gateway.wait_for_line("why", |line| {
        let why = line["why"].as_str().unwrap_or_default();
        why.contains("tickets.secret: found 9 bytes in ") && why.contains("openssl rand")
    });
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
}

/// A file that somebody writes to in two steps, without another beside it.
fn a_secret_is_not_taken_half_written(io: Io) {
    let fleet = Fleet::start(io, 2, |setup| setup);
    let wallet = fleet.wallet();
    assert_eq!(fleet.visit(&wallet), Visit::Full);
    let new = secret(2);
    // What is looked at every second and has to look the same twice is not taken when it is whole again before that.
    let begin = Instant::now();
    let mut file = std::fs::File::create(fleet.secret()).unwrap();
    file.write_all(&new[..40]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    file.write_all(&new[40..]).unwrap();
    let was_quick = begin.elapsed() < Duration::from_millis(900);
    drop(file);
    fleet.wait_for_secrets(2);
    std::thread::sleep(Duration::from_secs(2));
    fleet.wait_for_secrets(if was_quick { 2 } else { 3 });
    // Both have the same, whole.
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
    assert_eq!(fleet.client(1, "1.3", &wallet).visit(), Visit::Resumed);
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
}

/// As when somebody copies the file as root, and gives it to the gateway's user only then.
fn a_file_that_may_be_read_later_is_taken_later(io: Io) {
    let fleet = Fleet::start(io, 1, |setup| setup.global("user = \"nobody\""));
    for file in [fleet.folder.path(), fleet.gateways[0].folder()] {
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let gateway = &fleet.gateways[0];
    let wallet = fleet.wallet();
    assert_eq!(fleet.visit(&wallet), Visit::Full);
    fleet.replace(2);
    wait_for_complaint(gateway, "nothing readable (Permission denied");
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
    assert_eq!(fleet.secrets(gateway), 1);
    run("chown", &["nobody", fleet.secret().to_str().unwrap()], b"").ok();
    fleet.wait_for_secrets(2);
    assert_eq!(fleet.visit(&wallet), Visit::Resumed);
}
