//! The secret of tickets: what is refused in its place, who is warned of whom, and that nothing of it can be found where it should
//! not be, or not any more.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::support::*;

both_drivers!(
    nothing_of_it_is_told,
    in_secret_memory_root_finds_no_secret,
    no_process_remembers_a_secret_or_an_epoch_that_is_over
);

const SECRET_BYTES: usize = 48;
/// In seconds: epochs end within a test.
const ROTATION: u64 = 3;

fn random() -> Vec<u8> {
    let mut bytes = vec![0; SECRET_BYTES];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}

/// A gateway in the making, with the secret in a file of its folder.
fn setup(io: Io, origin: &Origin, secret: &[u8]) -> (Setup, PathBuf) {
    let setup = Setup::new(io, &[origin.address()]);
    let file = setup.folder().join("tickets.secret");
    std::fs::write(&file, secret).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let tickets = format!(
        "[tickets]\nrotation = \"{ROTATION}s\"\nsecret = \"file:{}\"",
        file.display()
    );
    (setup.more(&tickets), file)
}

#[test]
fn what_is_no_secret_is_refused() {
    let origin = Origin::closing();
    let folder = tempfile::TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    run("mkfifo", &[&pipe], b"").ok();
    let contents: [(&[u8], &str); 4] = [
        (b"", "found 0 bytes in "),
        (&[7; 31], "found 31 bytes in "),
        (&[0; 48], "found the same byte again and again in "),
        (&[1; 4097], "found more than 4096 bytes in "),
    ];
    for command in ["check", "run"] {
        let refused = |setup: &Setup, found: &str| {
            let ran = setup.try_command(command);
            assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
            let expected = "expected a file of 32 to 4096 random bytes";
            ran.says(&format!("tickets.secret: {found}"))
                .says(expected)
                .says("openssl rand -out ");
        };
        for (content, found) in contents {
            refused(&setup(Io::Epoll, &origin, content).0, found);
        }
        let missing = setup(Io::Epoll, &origin, b"");
        std::fs::remove_file(&missing.1).unwrap();
        refused(
            &missing.0,
            "found nothing readable (No such file or directory (os error 2)) in ",
        );
        for other in [folder.path(), &pipe] {
            let tickets = format!("[tickets]\nsecret = \"file:{}\"", other.display());
            let setup = Setup::new(Io::Epoll, &[origin.address()]).more(&tickets);
            refused(&setup, "found no regular file in ");
        }
    }
}

#[test]
fn who_lets_others_read_it_is_warned() {
    let origin = Origin::closing();
    let (setup, file) = setup(Io::Epoll, &origin, &random());
    for (mode, warned) in [
        (0o600, false),
        (0o640, false),
        (0o604, true),
        (0o602, true),
        (0o666, true),
    ] {
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        let ran = setup.try_command("check").ok();
        let words = format!(
            "tickets.secret: others than owner and group can read or write {}",
            file.display()
        );
        assert_eq!(ran.text().contains(&words), warned, "{mode:o}: {ran:#?}");
    }
}

/// Ways in which bytes are shown.
fn shown(bytes: &[u8]) -> Vec<String> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let arguments: Vec<&str> = vec![&hex];
    let base64 = python(
        "import base64, sys; print(base64.b64encode(bytes.fromhex(sys.argv[1])).decode())",
        &arguments,
    );
    let list = format!("{bytes:?}");
    vec![
        hex.to_uppercase(),
        hex,
        base64.trim().trim_end_matches('=').to_owned(),
        list.trim_matches(['[', ']']).to_owned(),
    ]
}

fn nothing_of_it_is_told(io: Io) {
    let origin = Origin::echo();
    let (old, new) = (random(), random());
    let (setup, file) = setup(io, &origin, &old);
    let gateway = setup.log("format = \"json\"\nlevel = \"debug\"").start();
    let wallet = Wallet::new(&gateway.ca);
    let come = |clear: bool| {
        for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
            if clear {
                wallet.clear();
            }
            client.wallet(&wallet).visit();
        }
    };
    come(true);
    come(false);
    std::fs::write(&file, &new).unwrap();
    let secrets = || gateway.metrics().count("ringlock_ticket_secrets", &[]);
    eventually("the new secret", || (secrets() == 2).then_some(()));
    come(false);
    std::fs::write(&file, b"short").unwrap();
    gateway.wait_for_line("it is none", |line| line["level"] == "ERROR");
    come(false);
    let tellable = [
        gateway.metrics().text().to_owned(),
        environment(gateway.pid()),
        command_line(gateway.pid()),
        gateway.stop(),
    ];
    assert!(tellable[3].contains("a new secret"), "{}", tellable[3]);
    for secret in [&old, &new] {
        for part in [&secret[..16], &secret[16..32], &secret[32..]] {
            for shown in shown(part) {
                assert!(!tellable.iter().any(|text| text.contains(&shown)), "{shown}");
            }
        }
    }
}

/// The secrets of these epochs, and what they are derived from, as the manual of the ratchet has it.
fn derived(secret: &[u8], epochs: &[u64]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    const DERIVE: &str = r#"
import hashlib, hmac, sys
secret, rotation, *epochs = sys.argv[1:]
def expand(key, info):
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()
extracted = hmac.new(b"ringlock ticket secret", bytes.fromhex(secret), hashlib.sha256).digest()
root = expand(extracted, b"ringlock ticket secret: epochs of" + int(rotation).to_bytes(8, "big"))
for epoch in map(int, epochs):
    node = root
    for level in reversed(range(32)):
        side = b"right" if epoch >> level & 1 else b"left"
        node = expand(node, b"ringlock ticket epochs: " + side)
    print(node.hex())
print(extracted.hex())
print(root.hex())
"#;
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let arguments: Vec<String> = [hex, ROTATION.to_string()]
        .into_iter()
        .chain(epochs.iter().map(u64::to_string))
        .collect();
    let byte = |text: &str, at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    let mut lines: Vec<Vec<u8>> = python(DERIVE, &arguments)
        .lines()
        .map(|line| (0..line.len() / 2).map(|at| byte(line, at)).collect())
        .collect();
    let above = lines.split_off(epochs.len());
    (lines, above)
}

fn present_epoch() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / ROTATION
}

fn no_process_remembers_a_secret_or_an_epoch_that_is_over(io: Io) {
    let origin = Origin::echo();
    let (old, new) = (random(), random());
    let (setup, file) = setup(io, &origin, &old);
    // In secret memory (memfd_secret) nothing could be looked for.
    let python = tool("python3").display().to_string();
    let without_secret_memory = [&python, "tests/support/without_call.py", "447"];
    let gateway = setup.workers(2).through(&without_secret_memory).start();
    let wallet = Wallet::new(&gateway.ca);
    let come = || {
        for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
            client.wallet(&wallet).visit();
        }
    };
    come();
    come();
    let first = present_epoch();
    // Those that are over soon, and what they could be derived from again.
    let epochs: Vec<u64> = (first - 1..first + 3).collect();
    let (leaves, above) = derived(&old, &epochs);
    assert!(
        memory_holds(gateway.pid(), &leaves),
        "it is looked for in the right way"
    );
    assert!(!memory_holds(gateway.pid(), &above));
    assert!(!memory_holds(gateway.pid(), std::slice::from_ref(&old)));
    // Epochs end.
    let is_over = |epoch: u64| {
        eventually("epochs to end", || (present_epoch() > epoch + 1).then_some(()));
        eventually("the gateway to hear of that", || {
            (gateway.metrics().count("ringlock_ticket_epoch", &[]) > epoch + 1).then_some(())
        });
    };
    is_over(first);
    come();
    come();
    assert!(!memory_holds(gateway.pid(), &leaves[..2]), "epochs that are over");
    // So does the time of a secret.
    std::fs::write(&file, &new).unwrap();
    let secrets = || gateway.metrics().count("ringlock_ticket_secrets", &[]);
    eventually("the new secret", || (secrets() == 2).then_some(()));
    come();
    eventually("the old secret to be over", || (secrets() == 1).then_some(()));
    // A worker may just have been using a secret.
    std::thread::sleep(Duration::from_millis(100));
    come();
    let now = present_epoch();
    let (leaves, above) = derived(&old, &(now - 8..now + 8).collect::<Vec<_>>());
    assert!(!memory_holds(gateway.pid(), &leaves), "the old secret is over");
    assert!(!memory_holds(gateway.pid(), &above));
    assert!(!memory_holds(gateway.pid(), &[old, new.clone()]));
    let (leaves, _) = derived(&new, &(now - 2..now + 3).collect::<Vec<_>>());
    assert!(memory_holds(gateway.pid(), &leaves), "the new one is there");
}

fn in_secret_memory_root_finds_no_secret(io: Io) {
    let origin = Origin::echo();
    let secret = random();
    let (setup, _file) = setup(io, &origin, &secret);
    let gateway = setup.start();
    let wallet = Wallet::new(&gateway.ca);
    for _ in 0..2 {
        Client::new(&gateway).wallet(&wallet).visit();
    }
    // The worker may just have been using it.
    std::thread::sleep(Duration::from_millis(100));
    let epoch = present_epoch();
    let (leaves, above) = derived(&secret, &(epoch - 2..epoch + 3).collect::<Vec<_>>());
    assert_eq!(memory_holds(gateway.pid(), &leaves), !has_secret_memory());
    assert!(!memory_holds(gateway.pid(), &above));
}
