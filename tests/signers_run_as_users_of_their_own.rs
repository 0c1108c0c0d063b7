//! `user` of a token: its signer runs as that user, from the start and when it is started again, also after the gateway has given up
//! being root. These tests have to run as root.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};

both_drivers!(
    a_signer_is_its_user_while_the_gateway_stays_root,
    a_signer_is_its_user_also_when_the_gateway_is_another,
    a_signer_that_hangs_is_ended_though_it_is_another_users,
    a_gateway_that_is_killed_leaves_no_process_behind,
    without_its_launcher_a_gateway_serves_and_says_what_is_missing,
    a_new_user_of_a_reload_is_refused_with_what_to_do,
    a_new_user_of_a_reload_is_refused_also_while_the_gateway_stays_root,
);

/// Users of every Debian system: name and number.
const GATEWAYS: &str = "www-data";
const TOKENS: &str = "daemon";
const OTHER: &str = "nobody";

#[track_caller]
fn number(user: &str) -> u32 {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with(&format!("{user}:")));
    line.unwrap().split(':').nth(2).unwrap().parse().unwrap()
}

/// A token that only this user can read.
#[track_caller]
fn token_of(user: &str) -> Faulty {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests have to run as root: they are about other users"
    );
    let token = Faulty::new("edge");
    give(token.module().parent().unwrap(), number(user));
    token
}

/// Gives a folder with all that is in it to a user.
fn give(folder: &Path, user: u32) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give(&path, user);
        }
        chown(path, Some(user), Some(user)).unwrap();
    }
    chown(folder, Some(user), Some(user)).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
}

/// A gateway that becomes `user` if there is one, with a token whose signer becomes [`TOKENS`].
fn gateway(io: Io, origin: &Origin, token: &Faulty, user: Option<&str>) -> Gateway {
    let setup = Setup::new(io, &[origin.address()])
        .no_identities()
        // Long enough for the pause before a signer that has ended several times is started again.
        .token(token, &format!("user = \"{TOKENS}\"\ntimeout = \"10s\""))
        .token_identity(token, "site", &[SITE], KeyKind::Ecdsa);
    give(token.module().parent().unwrap(), number(TOKENS));
    // Whoever the gateway becomes reads its files again at a reload.
    for entry in fs::read_dir(setup.folder()).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    match user {
        Some(user) => setup.global(&format!("user = \"{user}\"")).start(),
        None => setup.start(),
    }
}

#[track_caller]
fn only_signer(gateway: &Gateway) -> u32 {
    let signers = signers(gateway);
    assert_eq!(signers.len(), 1, "{signers:?}");
    signers[0]
}

fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    kill_process(process, signal).unwrap();
}

/// Serves before and after its signer is killed, several times.
fn serves_and_heals(gateway: &Gateway) {
    exchange(gateway);
    for _ in 0..3 {
        let signer = only_signer(gateway);
        assert_eq!(user(signer), number(TOKENS), "{}", command_line(signer));
        // Raising the limit takes a right that root has not everywhere.
        assert!(locked_kib(signer) > 0 || gateway.log().contains("memory is not locked"));
        signal(signer, Signal::KILL);
        exchange(gateway);
        assert_ne!(only_signer(gateway), signer);
    }
    assert_eq!(user(only_signer(gateway)), number(TOKENS));
}

fn a_signer_is_its_user_while_the_gateway_stays_root(io: Io) {
    let (origin, token) = (Origin::echo(), token_of(TOKENS));
    let gateway = gateway(io, &origin, &token, None);
    assert_eq!(user(gateway.pid()), 0);
    assert_eq!(
        living_children(gateway.pid()),
        [launcher(&gateway)],
        "nothing else is needed"
    );
    serves_and_heals(&gateway);
}

fn a_signer_is_its_user_also_when_the_gateway_is_another(io: Io) {
    let (origin, token) = (Origin::echo(), token_of(TOKENS));
    let gateway = gateway(io, &origin, &token, Some(GATEWAYS));
    assert_eq!(user(gateway.pid()), number(GATEWAYS));
    let [launcher] = living_children(gateway.pid())[..] else {
        panic!("one process that starts signers: {:?}", living_children(gateway.pid()));
    };
    assert_eq!(user(launcher), 0);
    let maps = fs::read_to_string(format!("/proc/{launcher}/maps")).unwrap();
    assert!(!maps.contains("libringlock_faulty"), "it loads no module: {maps}");
    serves_and_heals(&gateway);
    let log = gateway.stop();
    assert!(
        !fs::exists(format!("/proc/{launcher}")).unwrap(),
        "it ends with the gateway\n{log}"
    );
}

fn a_signer_that_hangs_is_ended_though_it_is_another_users(io: Io) {
    let (origin, token) = (Origin::echo(), token_of(TOKENS));
    let gateway = gateway(io, &origin, &token, Some(GATEWAYS));
    exchange(&gateway);
    let signer = only_signer(&gateway);
    // It says nothing any more.
    signal(signer, Signal::STOP);
    eventually("another signer", || {
        (signers(&gateway).iter().all(|&id| id != signer)).then_some(())
    });
    exchange(&gateway);
}

fn a_gateway_that_is_killed_leaves_no_process_behind(io: Io) {
    let (origin, token) = (Origin::echo(), token_of(TOKENS));
    let gateway = gateway(io, &origin, &token, Some(GATEWAYS));
    exchange(&gateway);
    let processes = [living_children(gateway.pid()), signers(&gateway)].concat();
    assert_eq!(processes.len(), 2);
    gateway.signal(Signal::KILL);
    gateway.wait();
    for process in processes {
        eventually("the process to end", || {
            (!fs::exists(format!("/proc/{process}/exe")).unwrap_or(false)).then_some(())
        });
    }
}

fn without_its_launcher_a_gateway_serves_and_says_what_is_missing(io: Io) {
    let (origin, token) = (Origin::echo(), token_of(TOKENS));
    let gateway = gateway(io, &origin, &token, Some(GATEWAYS));
    let signer = only_signer(&gateway);
    let [launcher] = living_children(gateway.pid())[..] else {
        panic!("one process that starts signers");
    };
    signal(launcher, Signal::KILL);
    exchange(&gateway);
    signal(signer, Signal::KILL);
    gateway.wait_for_line("what to do", |line| {
        line["why"]
            .as_str()
            .is_some_and(|why| why.contains("is gone") && why.contains("restart the gateway"))
    });
    assert!(try_exchange(&Client::new(&gateway)).is_err());
}

/// What a gateway that was taken over could do with the process that stays root.
const TAKEN_OVER: &str = r#"
import socket, subprocess, sys, os
binary, known, other = sys.argv[1:]
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(30)
launcher = subprocess.Popen([binary, "signer-launcher", known], stdin=theirs)
theirs.close()
def start(number, user):
    control, end = socket.socketpair()
    who = b"\0" if user is None else bytes([1, len(user)]) + user.encode()
    wish = bytes([0, number]) + who + b"\0"
    socket.send_fds(ours, [wish], [end.fileno()])
    return ours.recv(4096), control
answer, _ = start(0, other)
assert answer[0] == 2 and other.encode() in answer, answer
answer, _ = start(1, "root")
assert answer[0] == 2, answer
answer, _ = start(2, None)
assert answer[0] == 2, answer
answer, control = start(3, known)
assert answer == b"\0", answer
# Bytes that are no wish end it.
ours.send(b"\xff\xff\xff")
assert launcher.wait(30) == 1
print("ok")
"#;

#[test]
fn the_process_that_stays_root_becomes_only_whom_it_was_started_for() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests have to run as root: they are about other users"
    );
    let said = python(TAKEN_OVER, &[env!("CARGO_BIN_EXE_ringlock"), TOKENS, OTHER]);
    assert_eq!(said.trim(), "ok");
}

fn a_new_user_of_a_reload_is_refused_with_what_to_do(io: Io) {
    refuses_a_new_user(io, Some(GATEWAYS));
}

fn a_new_user_of_a_reload_is_refused_also_while_the_gateway_stays_root(io: Io) {
    refuses_a_new_user(io, None);
}

fn refuses_a_new_user(io: Io, of_gateway: Option<&str>) {
    let (origin, token) = (Origin::echo(), token_of(TOKENS));
    let gateway = gateway(io, &origin, &token, of_gateway);
    gateway.edit_config(&format!("user = \"{TOKENS}\""), &format!("user = \"{OTHER}\""));
    gateway.signal(Signal::HUP);
    let line = gateway.wait_for_line("why not", |line| line["level"] == "ERROR");
    let why = line["why"].as_str().unwrap();
    for part in ["keys.edge.user", OTHER, "root", "restart"] {
        assert!(why.contains(part), "{part:?} is missing: {why}");
    }
    exchange(&gateway);
    wait_for_metric(
        &gateway,
        "ringlock_configuration_reloads_total",
        &[("result", "failed")],
        1.0,
    );
    // The user of the start is as good as before.
    gateway.edit_config(&format!("user = \"{OTHER}\""), &format!("user = \"{TOKENS}\""));
    gateway.signal(Signal::HUP);
    wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], 2.0);
    exchange(&gateway);
}

#[test]
fn an_unknown_user_is_refused_with_what_to_do() {
    let token = token_of(TOKENS);
    let setup = Setup::new(Io::Epoll, &["127.0.0.1:9"])
        .no_identities()
        .token(&token, "user = \"no-such-user-here\"")
        .token_identity(&token, "site", &[SITE], KeyKind::Ecdsa);
    for command in ["check", "run"] {
        let ran = setup.try_command(command);
        assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
        ran.says("keys.edge.user: found \"no-such-user-here\"").says("useradd");
    }
}

#[test]
fn without_root_another_user_is_refused_with_what_to_do() {
    let token = token_of(TOKENS);
    let setup = Setup::new(Io::Epoll, &["127.0.0.1:9"])
        .no_identities()
        .token(&token, &format!("user = \"{TOKENS}\""))
        .token_identity(&token, "site", &[SITE], KeyKind::Ecdsa);
    give(token.module().parent().unwrap(), number(TOKENS));
    // Root may, and this writes the file.
    setup.try_command("check").ok();
    give(setup.folder(), number(OTHER));
    let binary = setup.folder().join("ringlock");
    fs::copy(env!("CARGO_BIN_EXE_ringlock"), &binary).unwrap();
    let config = setup.folder().join("ringlock.toml");
    let (user, group) = (number(OTHER).to_string(), number(OTHER).to_string());
    let as_other = ["--reuid", &user, "--regid", &group, "--clear-groups"];
    let command = [binary.to_str().unwrap(), "check", "--config", config.to_str().unwrap()];
    let ran = run("setpriv", &[&as_other[..], &command].concat(), b"");
    assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
    ran.says(&format!("keys.edge.user: found \"{TOKENS}\""))
        .says("it is not root")
        .says("restart");
}
