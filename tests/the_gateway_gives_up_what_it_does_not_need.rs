//! After its start the gateway has neither root nor capabilities, keeps its memory to itself, and has lost files and system calls that it does
//! not need; what it needs goes on: reloads, the log, signers. These tests have to run as root.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::*;
use rustix::process::Signal;

both_drivers!(
    every_thread_has_given_up_everything,
    each_key_that_says_unsafe_keeps_one_thing,
    files_of_new_folders_are_refused_with_what_to_do,
    folders_are_swapped_as_kubernetes_and_releases_do,
    the_log_is_reopened_and_the_admin_socket_removed,
    a_port_below_1024_is_refused_to_a_reload_with_what_to_do,
    a_token_that_comes_with_a_reload_is_used,
    without_landlock_and_secret_memory_it_serves_and_says_so,
    secrets_that_wait_are_out_of_reach_even_of_root,
);

/// A user of every Debian system, whose group has the same name and number, and another group.
const USER: &str = "www-data";
const OTHER_GROUP: &str = "daemon";

#[track_caller]
fn id(file: &str, name: &str) -> u32 {
    let lines = fs::read_to_string(file).unwrap();
    let line = lines.lines().find(|line| line.starts_with(&format!("{name}:")));
    line.unwrap().split(':').nth(2).unwrap().parse().unwrap()
}

fn user_id() -> u32 {
    id("/etc/passwd", USER)
}

/// Gives a folder with all that is in it to [`USER`].
fn give(folder: &Path) {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests have to run as root: they are about giving that up"
    );
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            give(&path);
        }
        chown(&path, Some(user_id()), Some(user_id())).unwrap();
    }
    chown(folder, Some(user_id()), Some(user_id())).unwrap();
}

/// A gateway that becomes [`USER`], to whom its files belong.
fn setup(io: Io, origin: &Origin) -> Setup {
    Setup::new(io, &[origin.address()]).global(&format!("user = \"{USER}\""))
}

fn start(setup: Setup) -> Gateway {
    give(setup.folder());
    setup.start()
}

/// What the kernel says of each thread.
fn threads(gateway: &Gateway) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    status.collect()
}

/// The words behind this one.
#[track_caller]
fn value(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    let words: Vec<&str> = line
        .unwrap_or_else(|| panic!("{name}: {status}"))
        .split_whitespace()
        .collect();
    words.join(" ")
}

const NO_CAPABILITIES: &str = "0000000000000000";

fn given_up(gateway: &Gateway, what: &str) -> f64 {
    gateway.metrics().sum("ringlock_given_up", &[("what", what)])
}

/// Whether somebody of the same user can read the memory of this process.
fn can_be_read(gateway: &Gateway) -> bool {
    let (user, open) = (user_id().to_string(), format!("exec 3< /proc/{}/mem", gateway.pid()));
    let as_user = ["--reuid", &user, "--regid", &user, "--clear-groups"];
    let ran = run("setpriv", &[&as_user[..], &["sh", "-c", &open]].concat(), b"");
    assert!(
        ran.status.success() || ran.stderr.contains("Permission denied"),
        "{ran:?}"
    );
    ran.status.success()
}

fn core_limit(gateway: &Gateway) -> String {
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size"));
    line.unwrap().split_whitespace().nth(5).unwrap().to_owned()
}

fn every_thread_has_given_up_everything(io: Io) {
    let origin = Origin::echo();
    let gateway = start(
        setup(io, &origin)
            .workers(2)
            .global(&format!("group = \"{OTHER_GROUP}\"")),
    );
    exchange(&gateway);
    let (user, group) = (user_id().to_string(), id("/etc/group", OTHER_GROUP).to_string());
    let threads = threads(&gateway);
    assert!(threads.len() >= 5, "workers, control, log, records: {}", threads.len());
    for status in threads {
        assert_eq!(value(&status, "Uid"), [&*user; 4].join(" "));
        assert_eq!(value(&status, "Gid"), [&*group; 4].join(" "));
        assert_eq!(value(&status, "Groups"), group, "root's groups are gone");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(value(&status, set), NO_CAPABILITIES, "{set}: {status}");
        }
        assert_eq!(value(&status, "NoNewPrivs"), "1", "{status}");
        assert_eq!(value(&status, "Seccomp"), "2", "{status}");
    }
    assert_eq!(core_limit(&gateway), "0");
    assert!(!can_be_read(&gateway));
    let line = gateway.wait_for_line("what is in force", |line| line["message"] == "confined");
    assert_eq!(line["user"], USER);
    assert!(line["files"].as_str().unwrap().starts_with("Landlock ABI "), "{line}");
    for what in ["capabilities", "memory", "files", "system_calls"] {
        assert_eq!(given_up(&gateway, what), 1.0, "{what}");
    }
    let metrics = gateway.metrics();
    assert!(metrics.sum("process_open_fds", &[]) > 10.0);
    assert!(metrics.sum("process_resident_memory_bytes", &[]) > 1e6);
    gateway.signal(Signal::HUP);
    wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], 2.0);
    exchange(&gateway);
}

fn each_key_that_says_unsafe_keeps_one_thing(io: Io) {
    let keys = [
        ("unsafe_keep_capabilities", "capabilities"),
        ("unsafe_dumpable", "memory"),
        ("unsafe_no_landlock", "files"),
        ("unsafe_no_seccomp", "system_calls"),
    ];
    for (key, kept) in keys {
        let origin = Origin::echo();
        // It stays root, or there would be no capabilities to keep.
        let user = if kept == "capabilities" {
            String::new()
        } else {
            format!("user = \"{USER}\"")
        };
        let setup = Setup::new(io, &[origin.address()])
            .global(&user)
            .global(&format!("{key} = true"));
        setup.try_command("check").ok().says(&format!("global.{key}: "));
        let gateway = start(setup);
        exchange(&gateway);
        for (_, what) in keys {
            assert_eq!(given_up(&gateway, what), f64::from(what != kept), "{what} with {key}");
        }
        for status in threads(&gateway) {
            assert_eq!(
                value(&status, "CapEff") == NO_CAPABILITIES,
                kept != "capabilities",
                "{key}: {status}"
            );
            assert_eq!(
                value(&status, "Seccomp") == "0",
                kept == "system_calls",
                "{key}: {status}"
            );
        }
        if kept != "capabilities" {
            assert_eq!(can_be_read(&gateway), kept == "memory", "{key}");
        }
        gateway.wait_for_line("the warning", |line| {
            line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains(key))
        });
    }
}

/// A folder of its own with a certificate and key for [`SITE`].
fn elsewhere(gateway: &Gateway) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["site.pem", "site.key"] {
        fs::copy(gateway.folder().join(file), folder.path().join(file)).unwrap();
    }
    give(folder.path());
    folder
}

fn files_of_new_folders_are_refused_with_what_to_do(io: Io) {
    let origin = Origin::echo();
    for switched_off in [false, true] {
        let gateway = start(setup(io, &origin).global(&format!("unsafe_no_landlock = {switched_off}")));
        let folder = elsewhere(&gateway);
        let path = folder.path().join("site.pem");
        gateway.edit_config("\"site.pem\"", &format!("{path:?}"));
        gateway.signal(Signal::HUP);
        if switched_off {
            wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], 2.0);
        } else {
            let line = gateway.wait_for_line("why not", |line| line["level"] == "ERROR");
            let why = line["why"].as_str().unwrap();
            let parts = [
                "identity \"site\"",
                path.to_str().unwrap(),
                "the sandbox of this process forbids",
                "restart the gateway",
                "unsafe_no_landlock",
            ];
            for part in parts {
                assert!(why.contains(part), "{part:?} is missing: {why}");
            }
            // The same files where others were at the start.
            gateway.edit_config(&format!("{path:?}"), "\"other.pem\"");
            fs::copy(&path, gateway.folder().join("other.pem")).unwrap();
            fs::set_permissions(gateway.folder().join("other.pem"), fs::Permissions::from_mode(0o644)).unwrap();
            gateway.signal(Signal::HUP);
            wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], 2.0);
        }
        exchange(&gateway);
    }
}

/// Points a link to another target at once.
fn swap(link: &Path, target: &str) {
    let next = link.with_file_name("next");
    symlink(target, &next).unwrap();
    fs::rename(&next, link).unwrap();
}

fn folders_are_swapped_as_kubernetes_and_releases_do(io: Io) {
    let origin = Origin::echo();
    let new_files = |setup: &Setup, folder: &str| {
        let folder: PathBuf = setup.folder().join("secrets").join(folder);
        fs::create_dir_all(&folder).unwrap();
        setup.ca().issue("site", &[SITE], KeyKind::Ecdsa);
        for file in ["site.pem", "site.key"] {
            fs::copy(setup.folder().join(file), folder.join(file)).unwrap();
        }
    };
    let setup = setup(io, &origin)
        .no_identities()
        .issued_identity("volume", "secrets/volume.pem", "secrets/volume.key", "")
        .issued_identity("release", "secrets/current/site.pem", "secrets/current/site.key", "");
    new_files(&setup, "..1");
    let root = setup.folder().join("secrets");
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/site.pem", root.join("volume.pem")).unwrap();
    symlink("..data/site.key", root.join("volume.key")).unwrap();
    symlink("..1", root.join("current")).unwrap();
    // Made now, and not within reach by a name of the start.
    new_files(&setup, "..2");
    fs::rename(root.join("..2"), setup.folder().join("kept")).unwrap();
    let gateway = start(setup);
    let before = gateway.metrics().text().to_owned();
    fs::rename(gateway.folder().join("kept"), root.join("..2")).unwrap();
    swap(&root.join("..data"), "..2");
    swap(&root.join("current"), "..2");
    fs::remove_dir_all(root.join("..1")).unwrap();
    reload(&gateway);
    exchange(&gateway);
    let serial = |text: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("ringlock_certificate_not_after_seconds"));
        line.unwrap().to_owned()
    };
    assert_ne!(
        serial(&before),
        serial(gateway.metrics().text()),
        "the new certificates are in use"
    );
}

fn the_log_is_reopened_and_the_admin_socket_removed(io: Io) {
    let origin = Origin::echo();
    let (log, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&log, &sockets] {
        give(folder.path());
    }
    let file = log.path().join("ringlock.log");
    let gateway = start(setup(io, &origin).log(&format!("format = \"json\"\nfile = {file:?}")));
    exchange(&gateway);
    let moved = log.path().join("ringlock.log.1");
    let has = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|content| content.contains(text));
    eventually("the old log", || has(&file, "confined").then_some(()));
    fs::rename(&file, &moved).unwrap();
    gateway.signal(Signal::USR1);
    eventually("the new log", || has(&file, "log file reopened").then_some(()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o002, 0);
    gateway.stop();

    let socket = sockets.path().join("admin.sock");
    let setup = setup(io, &origin);
    let toml = setup
        .to_toml(free_address(), free_address())
        .lines()
        .map(|line| {
            if line.starts_with("admin =") {
                format!("admin = {socket:?}")
            } else {
                line.to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join("\n");
    let config = setup.folder().join("ringlock.toml");
    fs::write(&config, toml).unwrap();
    give(setup.folder());
    let program = Program::start(
        env!("CARGO_BIN_EXE_ringlock"),
        &["run", "--config", config.to_str().unwrap()],
    );
    eventually("the socket", || socket.exists().then_some(()));
    program.wait_for("serving");
    let pid = rustix::process::Pid::from_raw(i32::try_from(program.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(program.finish().status.code(), Some(0));
    assert!(!socket.exists(), "it goes with the gateway");
}

fn a_port_below_1024_is_refused_to_a_reload_with_what_to_do(io: Io) {
    let origin = Origin::echo();
    let first: u16 = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(first > 0, "this machine lets everybody bind every port");
    let gateway = start(setup(io, &origin));
    let old = format!("address = \"{}\"", gateway.address);
    let new = format!(
        "address = [\"{}\", \"{}:{}\"]",
        gateway.address,
        gateway.address.ip(),
        first - 1
    );
    gateway.edit_config(&old, &new);
    gateway.signal(Signal::HUP);
    let line = gateway.wait_for_line("why not", |line| line["level"] == "ERROR");
    let why = line["why"].as_str().unwrap();
    assert!(why.contains("restart the gateway") && why.contains("1024"), "{why}");
    exchange(&gateway);
}

fn a_token_that_comes_with_a_reload_is_used(io: Io) {
    let (origin, token) = (Origin::echo(), SoftHsm::new("edge"));
    let setup = token
        .environment()
        .into_iter()
        .fold(Setup::new(io, &[origin.address()]), |setup, (name, value)| {
            setup.environment(&name, &value)
        });
    token.issue(setup.ca(), "later", &[SITE], KeyKind::Ecdsa);
    let gateway = setup.start();
    assert_eq!(signers(&gateway), [0; 0]);
    let config = fs::read_to_string(gateway.config_file()).unwrap();
    let config = config
        .replace("\"site.key\"", &format!("\"{}\"", token.uri("later")))
        .replace("\"site.pem\"", "\"later.pem\"");
    fs::write(gateway.config_file(), format!("{config}\n{}", token.section(""))).unwrap();
    reload(&gateway);
    exchange(&gateway);
    let [first] = signers(&gateway)[..] else {
        panic!("one signer: {:?}", signers(&gateway));
    };
    kill(first);
    eventually("to be served again", || try_exchange(&Client::new(&gateway)).ok());
    let status = fs::read_to_string(format!("/proc/{}/status", launcher(&gateway))).unwrap();
    assert_eq!(value(&status, "NoNewPrivs"), "1", "{status}");
}

fn without_landlock_and_secret_memory_it_serves_and_says_so(io: Io) {
    let origin = Origin::echo();
    let python = tool("python3").display().to_string();
    // landlock_create_ruleset, memfd_secret, and seccomp itself.
    let without = ["tests/support/without_call.py", "444,447,317"];
    let gateway = setup(io, &origin)
        .more("[crypto]\nmade_ahead = \"on\"")
        .through(&[&[&*python], &without[..]].concat());
    let gateway = start(gateway);
    exchange(&gateway);
    let line = gateway.wait_for_line("what is in force", |line| line["message"] == "confined");
    for key in ["files", "system_calls"] {
        assert_eq!(line[key], "off (the kernel has none, or it is forbidden)", "{line}");
        assert_eq!(given_up(&gateway, key), 0.0);
    }
    assert_eq!(given_up(&gateway, "capabilities"), 1.0);
    assert!(!maps(&gateway).contains("secretmem"));
    reload(&gateway);
    exchange(&gateway);
}

fn maps(gateway: &Gateway) -> String {
    fs::read_to_string(format!("/proc/{}/maps", gateway.pid())).unwrap()
}

/// Tries to read each mapping of secret memory, and says how many there are and how many could be read.
const READ_SECRETS: &str = r#"
import sys
total = read = 0
with open(f"/proc/{sys.argv[1]}/maps") as maps, open(f"/proc/{sys.argv[1]}/mem", "rb", 0) as memory:
    for line in maps:
        if "secretmem" in line:
            total += 1
            memory.seek(int(line.split("-")[0], 16))
            try:
                read += len(memory.read(16)) > 0
            except OSError:
                pass
print(total, read)
"#;

fn secrets_that_wait_are_out_of_reach_even_of_root(io: Io) {
    let origin = Origin::echo();
    let gateway = start(setup(io, &origin).more("[crypto]\nmade_ahead = \"on\""));
    exchange(&gateway);
    let said = python(READ_SECRETS, &[gateway.pid().to_string()]);
    let (total, read) = said.trim().split_once(' ').unwrap();
    assert_eq!(read, "0");
    assert_eq!(total != "0", has_secret_memory(), "{}", maps(&gateway));
}

#[test]
fn capabilities_of_an_ordinary_user_bind_the_port_and_go() {
    let origin = Origin::echo();
    let port = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let port = port.trim().parse::<u16>().unwrap() - 1;
    let user = user_id().to_string();
    let as_user = [
        &tool("setpriv").display().to_string(),
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--inh-caps",
        "+net_bind_service",
        "--ambient-caps",
        "+net_bind_service",
    ]
    .map(str::to_owned);
    let setup = Setup::new(Io::Epoll, &[origin.address()]);
    let (mut address, admin) = (free_address(), free_address());
    address.set_port(port);
    fs::write(setup.folder().join("ringlock.toml"), setup.to_toml(address, admin)).unwrap();
    // The folder of the build may be out of its reach.
    let binary = setup.folder().join("ringlock");
    fs::copy(env!("CARGO_BIN_EXE_ringlock"), &binary).unwrap();
    give(setup.folder());
    let config = setup.folder().join("ringlock.toml");
    let arguments = [
        &as_user[1..],
        &[binary, "run".into(), "--config".into(), config].map(|word: PathBuf| word.display().to_string()),
    ]
    .concat();
    let program = Program::start(&as_user[0], &arguments);
    program.wait_for("serving");
    std::net::TcpStream::connect(address).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(value(&status, set), NO_CAPABILITIES, "{set}: {status}");
    }
    assert_eq!(
        value(&status, "NoNewPrivs"),
        "1",
        "what is left in CapBnd counts for nothing"
    );
    let pid = rustix::process::Pid::from_raw(i32::try_from(program.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(program.finish().status.code(), Some(0));
}

#[test]
fn the_admin_server_changes_nothing() {
    let origin = Origin::echo();
    let gateway = start(setup(Io::Epoll, &origin));
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/metrics", "/readyz", "/reload", "/"] {
            let url = format!("http://{}{path}", gateway.admin);
            let ran = run(
                "curl",
                &["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, &url],
                b"",
            )
            .ok();
            assert!(
                ["404", "405"].contains(&ran.stdout.trim()),
                "{method} {path}: {}",
                ran.stdout
            );
        }
    }
    assert_eq!(gateway.metrics().sum("ringlock_configuration_epoch", &[]), 1.0);
}

#[test]
fn an_unknown_group_is_refused_with_what_to_do() {
    let setup =
        Setup::new(Io::Epoll, &["127.0.0.1:9"]).global(&format!("user = \"{USER}\"\ngroup = \"no-such-group\""));
    for command in ["check", "run"] {
        let ran = setup.try_command(command);
        assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
        ran.says("global.group: found \"no-such-group\"").says("groupadd");
    }
}
