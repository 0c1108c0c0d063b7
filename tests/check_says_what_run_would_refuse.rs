//! `ringlock check` and what this machine, its files and its names have to do with the configuration. Messages about the
//! text of the file alone have their tests beside the reader (`src/config/messages.rs`).

use crate::support::*;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

const CONFIG: &str = r#"[global]
drain_timeout = "1s"

[[listener]]
name = "edge"
address = "ADDRESS"
identities = ["site"]
upstream = "app"

[[identity]]
name = "site"
certificate = "site.pem"
key = "site.key"

[[upstream]]
name = "app"
servers = ["127.0.0.1:9"]
"#;

struct File {
    folder: TempDir,
    ca: Ca,
    path: PathBuf,
}

impl File {
    /// The configuration with each `from` replaced by its `to`, and an identity that is in order.
    fn with(changes: &[(&str, &str)]) -> File {
        let folder = TempDir::new().unwrap();
        let ca = Ca::new(folder.path());
        ca.issue("site", &[SITE], KeyKind::Ecdsa);
        let mut text = CONFIG.replace("ADDRESS", &free_address().to_string());
        for (from, to) in changes {
            assert!(text.contains(from), "{from:?} is not in the file");
            text = text.replacen(from, to, 1);
        }
        let path = folder.path().join("ringlock.toml");
        std::fs::write(&path, text).unwrap();
        File { folder, ca, path }
    }

    fn ringlock(&self, arguments: &[&str]) -> Ran {
        let mut all = arguments.to_vec();
        all.extend(["--config", self.path.to_str().unwrap()]);
        ringlock(&all)
    }

    fn certificate(&self) -> String {
        self.folder.path().join("site.pem").display().to_string()
    }

    fn key(&self) -> String {
        self.folder.path().join("site.key").display().to_string()
    }

    /// `check` and `run` refuse it with one line that begins with this place and key and has these parts.
    #[track_caller]
    fn refused(&self, line: usize, key: &str, parts: &[&str]) {
        for command in ["check", "run"] {
            let ran = self.ringlock(&[command]);
            assert_eq!(ran.status.code(), Some(1), "{ran:?}");
            let start = format!("error: {}:{line}: {key}: found ", self.path.display());
            assert!(ran.stderr.starts_with(&start), "expected {start:?}: {ran:?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
            for part in parts {
                assert!(ran.stderr.contains(part), "{part:?} is missing: {ran:?}");
            }
        }
    }

    /// `check` warns, and fails only when it is to be strict.
    #[track_caller]
    fn warned(&self, line: usize, key: &str, parts: &[&str]) {
        for (arguments, code) in [(&["check"][..], 0), (&["check", "--strict"], 2)] {
            let ran = self.ringlock(arguments);
            assert_eq!(ran.status.code(), Some(code), "{ran:?}");
            let start = format!("warning: {}:{line}: {key}: ", self.path.display());
            assert!(ran.stderr.starts_with(&start), "expected {start:?}: {ran:?}");
            for part in parts {
                assert!(ran.stderr.contains(part), "{part:?} is missing: {ran:?}");
            }
        }
    }
}

#[test]
fn a_configuration_in_order_is_accepted_even_strictly() {
    let file = File::with(&[]);
    let ran = file.ringlock(&["check", "--strict"]).ok();
    assert_eq!(ran.stdout, format!("{}: no errors, no warnings\n", file.path.display()));
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_missing_certificate_file() {
    let file = File::with(&[]);
    std::fs::remove_file(file.certificate()).unwrap();
    file.refused(
        12,
        "identity \"site\": certificate",
        &[
            "No such file",
            &file.certificate(),
            "expected a certificate chain in PEM",
            "check the path",
        ],
    );
}

#[test]
fn a_missing_key_file() {
    let file = File::with(&[]);
    std::fs::remove_file(file.key()).unwrap();
    file.refused(
        13,
        "identity \"site\": key",
        &["No such file", &file.key(), "check the path"],
    );
}

#[test]
fn a_certificate_file_without_a_certificate() {
    let file = File::with(&[]);
    std::fs::write(file.certificate(), "hello\n").unwrap();
    file.refused(
        12,
        "identity \"site\": certificate",
        &[&file.certificate(), "expected a certificate chain in PEM"],
    );
}

#[test]
fn a_key_file_without_a_key() {
    let file = File::with(&[]);
    std::fs::copy(file.certificate(), file.key()).unwrap();
    file.refused(13, "identity \"site\": key", &[&file.key()]);
}

#[test]
fn a_key_that_does_not_fit() {
    let file = File::with(&[]);
    file.ca.issue("other", &[SITE], KeyKind::Ecdsa);
    std::fs::copy(file.folder.path().join("other.key"), file.key()).unwrap();
    file.refused(
        13,
        "identity \"site\": key",
        &["does not belong", &file.key(), "renewed together"],
    );
}

/// With `[listener.client_auth]` and this in its file.
fn with_clients(ca: &str) -> File {
    let file = File::with(&[(
        "upstream = \"app\"",
        "upstream = \"app\"\nclient_auth.mode = \"required\"\nclient_auth.ca = \"clients.pem\"",
    )]);
    std::fs::write(file.folder.path().join("clients.pem"), ca).unwrap();
    file
}

const CLIENTS: &str = "listener \"edge\": client_auth.ca";

#[test]
fn cas_of_clients_in_order_are_accepted() {
    let two = [Authority::root("one"), Authority::root("two")].map(|root| root.pem());
    with_clients(&two.concat()).ringlock(&["check", "--strict"]).ok();
}

#[test]
fn a_missing_file_of_client_cas() {
    let file = with_clients("");
    let path = file.folder.path().join("clients.pem");
    std::fs::remove_file(&path).unwrap();
    file.refused(
        10,
        CLIENTS,
        &[
            "No such file",
            path.to_str().unwrap(),
            "expected a PEM file",
            "check the path",
        ],
    );
}

#[test]
fn a_file_of_client_cas_without_one() {
    for text in ["", "hello\n"] {
        with_clients(text).refused(
            10,
            CLIENTS,
            &["no certificate in ", "clients.pem", "expected a PEM file"],
        );
    }
    let file = with_clients("");
    std::fs::copy(file.key(), file.folder.path().join("clients.pem")).unwrap();
    file.refused(10, CLIENTS, &["no certificate in "]);
}

#[test]
fn a_file_of_client_cas_that_is_broken() {
    let whole = Authority::root("one").pem();
    with_clients(&whole[..whole.len() - 30]).refused(10, CLIENTS, &["no valid PEM", "cut off"]);
    let garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    with_clients(&format!("{whole}{garbage}")).refused(10, CLIENTS, &["certificate 2, which cannot be used"]);
}

#[test]
fn an_expired_ca_of_clients_is_a_warning() {
    let file = with_clients("");
    certificate_until(&file, -1);
    std::fs::rename(file.certificate(), file.folder.path().join("clients.pem")).unwrap();
    file.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    file.warned(
        10,
        CLIENTS,
        &["clients.pem", "has expired", "accepted all the same", "renew it"],
    );
}

/// With `[listener.client_auth]`, a CA, and this in the file of its revocation list.
fn with_list(list: impl FnOnce(&Authority) -> Vec<u8>) -> File {
    let file = File::with(&[(
        "upstream = \"app\"",
        "upstream = \"app\"\nclient_auth = { mode = \"required\", ca = \"clients.pem\",\n  crl = [\"clients.crl\"] }",
    )]);
    let root = Authority::root("clients");
    std::fs::write(file.folder.path().join("clients.pem"), root.pem()).unwrap();
    std::fs::write(file.folder.path().join("clients.crl"), list(&root)).unwrap();
    file
}

const LIST: &str = "listener \"edge\": client_auth.crl[0]";
const LISTS: &str = "listener \"edge\": client_auth.crl";

#[test]
fn revocation_lists_in_order_are_accepted() {
    with_list(|root| root.list(&[])).ringlock(&["check", "--strict"]).ok();
    let pem = with_list(|root| format!("{}\n{}", root.pem(), pem_of_list(&root.list(&[]))).into());
    pem.ringlock(&["check", "--strict"]).ok();
}

#[test]
fn a_missing_revocation_list() {
    let file = with_list(|root| root.list(&[]));
    std::fs::remove_file(file.folder.path().join("clients.crl")).unwrap();
    file.refused(10, LIST, &["No such file", "clients.crl", "expected a PEM or DER file"]);
}

#[test]
fn files_without_a_usable_revocation_list() {
    for bytes in ["", "hello\n"] {
        with_list(|_| bytes.into()).refused(10, LIST, &["no revocation list in ", "clients.crl"]);
    }
    with_list(|root| root.pem().into()).refused(10, LIST, &["no revocation list in "]);
    with_list(|root| root.list(&[])[1..].to_vec()).refused(10, LIST, &["no revocation list in "]);
    with_list(|root| {
        let mut cut = root.list(&[]);
        cut.pop();
        cut
    })
    .refused(10, LIST, &["revocation list 1, which cannot be read ("]);
    with_list(|root| {
        let text = pem_of_list(&root.list(&[]));
        text[..text.len() - 30].into()
    })
    .refused(10, LIST, &["text that is no valid PEM ("]);
}

/// As openssl makes them, from a configuration with these extensions.
#[test]
fn revocation_lists_that_are_not_understood() {
    let made = |extensions: &str, arguments: &[&str]| {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let number = if arguments.is_empty() {
            ""
        } else {
            "crlnumber = $dir/number"
        };
        let config = format!(
            "[ca]\ndefault_ca = own\n[own]\ndir = {}\ndatabase = $dir/index\n{number}\ndefault_md = sha256\ndefault_crl_days = 2\n{extensions}\n",
            folder.path().display()
        );
        std::fs::write(path("config"), config).unwrap();
        std::fs::write(path("index"), "").unwrap();
        std::fs::write(path("number"), "01\n").unwrap();
        let subject = ["-subj", "/CN=clients", "-days", "2", "-nodes", "-newkey", "rsa:2048"];
        let (key, ca, list) = (path("key"), path("ca.pem"), path("list"));
        run(
            "openssl",
            &[&["req", "-x509", "-keyout", &key, "-out", &ca], &subject[..]].concat(),
            b"",
        )
        .ok();
        let own = [
            "-config",
            &path("config"),
            "-keyfile",
            &key,
            "-cert",
            &ca,
            "-out",
            &list,
        ];
        run("openssl", &[&["ca", "-gencrl"], &own[..], arguments].concat(), b"").ok();
        std::fs::read(list).unwrap()
    };
    let points = |flags: &str| {
        format!(
            "crl_extensions = lists\n[lists]\nissuingDistributionPoint = critical, @point\n[point]\nfullname = URI:http://a.example/\n{flags}"
        )
    };
    let numbered = ["-crldays", "3"];
    with_list(|_| made("", &[])).refused(10, LIST, &["revocation list 1, which is of version 1, in "]);
    for (extensions, what) in [
        (
            "crl_extensions = lists\n[lists]\n2.5.29.27 = critical, DER:020101".to_owned(),
            "a delta list",
        ),
        (points("indirectCRL = TRUE"), "an indirect list"),
        (
            points("onlysomereasons = keyCompromise"),
            "which is for some reasons of revocation only",
        ),
    ] {
        let list = made(&extensions, &numbered);
        with_list(|_| list).refused(10, LIST, &["revocation list 1, ", what, "clients.crl"]);
    }
    // Without any of these it is accepted; the CA in the file has only the name in common.
    let list = made("", &numbered);
    with_list(|_| list).ringlock(&["check", "--strict"]).ok();
}

#[test]
fn revocation_lists_that_let_nobody_in_are_warned_of() {
    let now = SystemTime::now();
    with_list(|root| {
        root.list_with(&[], |list| {
            list.this_update = (now - 3 * DAY).into();
            list.next_update = (now - DAY).into();
        })
    })
    .warned(
        10,
        LISTS,
        &["clients.crl", "CN=clients", "has expired", "are refused", "reload"],
    );
    with_list(|root| root.list_with(&[], |list| list.next_update = (now + DAY / 10).into())).warned(
        10,
        LISTS,
        &["CN=clients", "expires in 2 h", "are refused after that", "reload"],
    );
    with_list(|_| Authority::root("others").list(&[])).warned(
        10,
        LISTS,
        &[
            "no file has a revocation list of CN=clients",
            "is refused",
            "add its list",
        ],
    );
    with_list(|root| {
        let old = root.list_with(&[], |list| list.this_update = (now - 2 * DAY).into());
        [old, root.list(&[])].map(|list| pem_of_list(&list)).concat().into()
    })
    .warned(10, LISTS, &["CN=clients", "a newer one: it is not used", "remove it"]);
}

#[test]
fn an_expired_certificate_is_a_warning() {
    let file = File::with(&[]);
    certificate_until(&file, -1);
    file.warned(
        12,
        "identity \"site\": certificate",
        &[&file.certificate(), "has expired", "renew it"],
    );
}

#[test]
fn a_certificate_that_expires_soon_is_a_warning() {
    let file = File::with(&[]);
    certificate_until(&file, 3);
    // Whole days, and some of the third has passed.
    file.warned(12, "identity \"site\": certificate", &["expires in 2 days", "renew it"]);
}

#[test]
fn a_certificate_without_a_name_is_a_warning() {
    let file = File::with(&[]);
    file.ca.issue("site", &[], KeyKind::Ecdsa);
    file.warned(12, "identity \"site\": certificate", &["no DNS name", "subjectAltName"]);
}

#[test]
fn a_pin_that_others_can_read_is_a_warning() {
    let file = File::with(&[(
        "[global]",
        "[keys.edge]\nmodule = \"/usr/lib/p11.so\"\npin_source = \"pin\"\n\n[global]",
    )]);
    let pin = file.folder.path().join("pin");
    std::fs::write(&pin, "1234\n").unwrap();
    let what = format!(
        "{}:3: keys.edge.pin_source: others than owner and group can read or write {}",
        file.path.display(),
        pin.display()
    );
    for (mode, told) in [(0o644, true), (0o640, false)] {
        std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(mode)).unwrap();
        let ran = file.ringlock(&["check"]);
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        assert!(ran.stderr.contains("keys.edge: no identity uses this token"), "{ran:?}");
        assert_eq!(ran.stderr.contains(&what), told, "{mode:o}: {ran:?}");
    }
}

/// Replaces the certificate by one for the same key that ends this long after (or before) now.
fn certificate_until(file: &File, days: i64) {
    let key = KeyPair::from_pem(&std::fs::read_to_string(file.key()).unwrap()).unwrap();
    let mut params = CertificateParams::new(vec![SITE.to_owned()]).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let distance = day * u32::try_from(days.unsigned_abs()).unwrap();
    let now = SystemTime::now();
    // By a minute less, whatever the time that passes until it is looked at.
    let end = if days < 0 {
        now - distance
    } else {
        now + distance - Duration::from_secs(60)
    };
    params.not_before = (now - 30 * day).into();
    params.not_after = end.into();
    std::fs::write(file.certificate(), params.self_signed(&key).unwrap().pem()).unwrap();
}

#[test]
fn an_unknown_congestion_control() {
    let file = File::with(&[(
        "upstream = \"app\"",
        "upstream = \"app\"\ncongestion_control = \"vegetable\"",
    )]);
    file.refused(
        9,
        "listener \"edge\": congestion_control",
        &["\"vegetable\"", "the kernel has", "modprobe tcp_vegetable"],
    );
}

#[test]
fn a_processor_that_is_not_allowed() {
    let file = File::with(&[("[global]", "[global]\nworkers = \"0,900\"")]);
    file.refused(2, "global.workers", &["processor 900", "may run on", "change the list"]);
}

#[test]
fn more_workers_than_processors() {
    let file = File::with(&[("[global]", "[global]\nworkers = 4000")]);
    file.refused(2, "global.workers", &["4000", "\"auto\""]);
}

#[test]
fn an_unknown_user() {
    let file = File::with(&[("[global]", "[global]\nuser = \"no-such-user\"")]);
    file.refused(2, "global.user", &["\"no-such-user\"", "expected a user", "useradd"]);
}

#[test]
fn a_host_that_does_not_resolve() {
    let file = File::with(&[("127.0.0.1:9", "no-such-host.invalid:80")]);
    file.refused(
        17,
        "upstream \"app\": servers",
        &["\"no-such-host.invalid\"", "does not resolve", "correct the name"],
    );
}

#[test]
fn an_address_that_is_in_use_is_refused_by_run() {
    let taken = TcpListener::bind((own_ip(), 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = File::with(&[]);
    let text = std::fs::read_to_string(&file.path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[5] = format!("address = \"{address}\"");
    std::fs::write(&file.path, lines.join("\n")).unwrap();
    let ran = file.ringlock(&["run"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let start = format!(
        "error: {}:6: listener \"edge\": address: found {address}",
        file.path.display()
    );
    assert!(ran.stderr.starts_with(&start), "{ran:?}");
    assert!(ran.stderr.contains("Address already in use"), "{ran:?}");
    // The gateway may well be running while its next configuration is checked.
    file.ringlock(&["check", "--strict"]).ok();
}

#[test]
fn an_admin_address_that_is_in_use_is_refused_by_run() {
    let taken = TcpListener::bind((own_ip(), 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let file = File::with(&[("[global]", &format!("[global]\nadmin = \"{address}\""))]);
    let ran = file
        .ringlock(&["run"])
        .says(&format!("admin = \"{address}\""))
        .says("in use");
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
}

#[test]
fn a_log_file_that_cannot_be_opened() {
    let file = File::with(&[("[global]", "[global]\nlog.file = \"missing/ringlock.log\"")]);
    for command in ["check", "run"] {
        let ran = file.ringlock(&[command]).says("missing/ringlock.log").says("directory");
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    }
}

#[test]
fn an_admin_socket_without_its_directory() {
    let file = File::with(&[("[global]", "[global]\nadmin = \"/no-such-directory/admin.sock\"")]);
    for command in ["check", "run"] {
        let ran = file
            .ringlock(&[command])
            .says("/no-such-directory/admin.sock")
            .says("directory");
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    }
}

#[test]
fn io_uring_where_it_is_forbidden() {
    let file = File::with(&[("[global]", "[global]\nio = \"io_uring\"")]);
    let path = file.path.to_str().unwrap();
    for command in ["check", "run"] {
        let mut arguments = vec!["tests/support/without_call.py", "425", env!("CARGO_BIN_EXE_ringlock")];
        arguments.extend([command, "--config", path]);
        let ran = run("python3", &arguments, b"");
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        let start = format!("error: {path}:2: global.io: found ");
        assert!(ran.stderr.starts_with(&start), "{ran:?}");
        for part in ["not usable", "containers", "\"epoll\""] {
            assert!(ran.stderr.contains(part), "{part:?} is missing: {ran:?}");
        }
    }
}

#[test]
fn everything_is_said_at_once() {
    let file = File::with(&[
        ("[global]", "[global]\nworkers = \"0,900\"\nuser = \"no-such-user\""),
        ("127.0.0.1:9", "no-such-host.invalid:80"),
    ]);
    std::fs::remove_file(file.certificate()).unwrap();
    for command in ["check", "run"] {
        let ran = file.ringlock(&[command]);
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        let keys: Vec<&str> = ran.stderr.lines().filter_map(|line| line.split(": ").nth(2)).collect();
        assert_eq!(ran.stderr.lines().count(), 4, "{ran:?}");
        assert_eq!(
            keys,
            ["global.workers", "global.user", "identity \"site\"", "upstream \"app\""],
            "in the order of the file: {ran:?}"
        );
    }
    let ran = file.ringlock(&["check"]);
    assert_eq!(ran.stdout, format!("{}: 4 errors\n", file.path.display()));
}

#[test]
fn the_text_of_the_file_is_checked_first_and_every_key_is_named() {
    let file = File::with(&[
        ("upstream = \"app\"", "upstraem = \"app\""),
        ("key = \"site.key\"", "key = \"site.key\"\nocsp = true"),
        ("drain_timeout", "drain_timeuot"),
    ]);
    let ran = file.ringlock(&["check"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    for part in [
        ":2: global.drain_timeuot: found an unknown key, expected \"drain_timeout\"",
        ":8: listener \"edge\": upstraem: found an unknown key, expected \"upstream\"",
        "ocsp: found true, expected \"off\", \"auto\", or the path",
    ] {
        assert!(ran.stderr.contains(part), "{part:?} is missing: {ran:?}");
    }
}
