//! A key in a token that cannot be used is found out before any client meets it: `check` and `run` refuse it, a reload keeps what is in
//! force. What is said names token, object or mechanism, and what to do; a PIN is tried once, and is never shown.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::*;
use rustix::process::Signal;

both_drivers!(
    a_reload_with_a_token_that_refuses_the_pin_keeps_what_is_in_force,
    a_reload_with_a_token_that_signs_wrongly_keeps_what_is_in_force,
    a_reload_with_a_token_that_hangs_keeps_what_is_in_force,
    a_reload_with_a_module_that_crashes_keeps_what_is_in_force,
    a_reload_with_a_missing_object_keeps_what_is_in_force,
    a_pin_is_shown_nowhere,
);

/// An identity whose key is in this token, as everything is in order; `section` is the token's.
fn setup(token: &Faulty, section: &str) -> Setup {
    Setup::new(Io::Epoll, &["127.0.0.1:9"])
        .no_identities()
        .more(section)
        .token_identity(token, "site", &[SITE], KeyKind::Ecdsa)
}

/// `check` and `run` say the same: one line with these parts.
#[track_caller]
fn refused(setup: &Setup, parts: &[&str]) {
    for command in ["check", "run"] {
        refused_by(setup, command, parts);
    }
}

#[track_caller]
fn refused_by(setup: &Setup, command: &str, parts: &[&str]) {
    let ran = setup.try_command(command);
    assert_eq!(ran.status.code(), Some(1), "{command}: {ran:#?}");
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{command}: {ran:#?}");
    let place = format!("{}:", setup.folder().join("ringlock.toml").display());
    for part in [&[place.as_str(), "identity \"site\": "], parts].concat() {
        assert!(
            errors[0].contains(part),
            "{command}: {part:?} is missing: {}",
            errors[0]
        );
    }
}

#[test]
fn what_is_refused_below_is_otherwise_in_order() {
    let token = Faulty::new("edge");
    setup(&token, &token.section("timeout = \"500ms\""))
        .try_command("check")
        .ok();
}

#[test]
fn a_wrong_pin_is_tried_once_each_time_and_never_as_the_last_attempt() {
    let token = Faulty::new("edge");
    let wrong = token.folder().pin_file("edge").with_file_name("wrong");
    fs::write(&wrong, "000000").unwrap();
    let section = format!(
        "[keys.edge]\nmodule = {:?}\npin_source = \"file:{}\"\nsessions = 8\n",
        token.module(),
        wrong.display()
    );
    let wrong = setup(&token, &section);
    let parts = [
        "CKR_PIN_INCORRECT",
        "token `edge`",
        "correct the PIN in its file",
        "tried once",
    ];
    refused_by(&wrong, "check", &parts);
    assert_eq!(token.calls("C_Login"), 1);
    refused_by(&wrong, "run", &parts);
    assert_eq!(token.calls("C_Login"), 2);
    assert_eq!(token.folder().pin_failures("edge"), 2);
    // A third failure would lock the token, so not even the right PIN is tried.
    let right = setup(&token, &token.section(""));
    for setup in [&wrong, &right] {
        refused(
            setup,
            &["token `edge`", "one attempt at its PIN left", "correct the PIN"],
        );
    }
    assert_eq!(token.calls("C_Login"), 2);
}

#[test]
fn a_missing_pin_and_a_missing_pin_file_are_refused() {
    let token = Faulty::new("edge");
    let module = token.module();
    let none = setup(&token, &format!("[keys.edge]\nmodule = {module:?}\n"));
    refused(&none, &["token `edge`", "wants a PIN", "pin_source"]);
    let missing = setup(
        &token,
        &format!("[keys.edge]\nmodule = {module:?}\npin_source = \"file:no-such-pin\"\n"),
    );
    refused(
        &missing,
        &["no readable PIN", "no-such-pin", "correct the PIN in its file"],
    );
    let credential = setup(
        &token,
        &format!("[keys.edge]\nmodule = {module:?}\npin_source = \"credential:edge\"\n"),
    );
    refused(&credential, &["CREDENTIALS_DIRECTORY", "correct the PIN"]);
    assert_eq!(token.calls("C_Login"), 0);
}

#[test]
fn a_missing_token_is_refused_and_what_there_is_is_named() {
    let token = Faulty::new("edge");
    let elsewhere = setup(&token, &token.section("token = \"elsewhere\""));
    refused(
        &elsewhere,
        &["no token with label `elsewhere`", "token `edge`", "ringlock keys list"],
    );
    let absent = setup(&token, &token.section(""));
    token.cue("absent");
    refused(&absent, &["no token with label `edge`", "ringlock keys list"]);
}

#[test]
fn a_missing_object_is_refused_and_what_there_is_is_named() {
    let token = Faulty::new("edge");
    let missing = Setup::new(Io::Epoll, &["127.0.0.1:9"])
        .no_identities()
        .token(&token, "");
    token.issue(missing.ca(), "other", &[SITE], KeyKind::Ecdsa);
    fs::rename(
        missing.ca().certificate_file("other"),
        missing.ca().certificate_file("site"),
    )
    .unwrap();
    let missing = missing.issued_identity("site", "site.pem", &token.uri("site"), "");
    refused(
        &missing,
        &[
            "no private key",
            "`site`",
            "`other`",
            "token `edge`",
            "ringlock keys list",
        ],
    );
}

#[test]
fn an_ambiguous_object_is_refused_and_all_of_them_are_named() {
    let token = Faulty::new("edge");
    let setup = Setup::new(Io::Epoll, &["127.0.0.1:9"])
        .no_identities()
        .token(&token, "");
    for name in ["first", "second"] {
        token.issue(setup.ca(), name, &[SITE], KeyKind::Ecdsa);
    }
    let ambiguous = setup.issued_identity("site", "first.pem", "pkcs11:token=edge;type=private", "");
    refused(
        &ambiguous,
        &[
            "several private keys",
            "`first`",
            "`second`",
            "token `edge`",
            "correct the URI",
        ],
    );
}

#[test]
fn a_certificate_of_another_key_is_refused() {
    let token = Faulty::new("edge");
    let other = setup(&token, &token.section(""));
    other.ca().issue("site", &[SITE], KeyKind::Ecdsa);
    refused(
        &other,
        &["does not belong", "pkcs11:", "object=site", "renewed together"],
    );
}

#[test]
fn a_certificate_that_is_not_in_the_token_is_refused() {
    let token = Faulty::new("edge");
    let setup = Setup::new(Io::Epoll, &["127.0.0.1:9"])
        .no_identities()
        .token(&token, "");
    token.issue(setup.ca(), "site", &[SITE], KeyKind::Ecdsa);
    let missing = setup.issued_identity(
        "site",
        "pkcs11:token=edge;object=site;type=cert",
        &token.uri("site"),
        "",
    );
    refused(
        &missing,
        &[
            "identity \"site\": certificate",
            "no certificate",
            "`site`",
            "token `edge`",
            "keys list",
        ],
    );
}

#[test]
fn a_module_that_is_none_is_refused() {
    let token = Faulty::new("edge");
    let with_module = |module: &Path| {
        setup(
            &token,
            &format!(
                "[keys.edge]\nmodule = {module:?}\npin_source = \"file:{}\"\n",
                token.pin_file().display()
            ),
        )
    };
    let missing = Path::new("/no/such/module.so");
    refused(
        &with_module(missing),
        &["/no/such/module.so", "No such file", "check the module's path"],
    );
    let text = token.module().with_file_name("text.so");
    fs::write(&text, "this is a text").unwrap();
    refused(
        &with_module(&text),
        &["text.so", "no module that can be loaded", "check the module's path"],
    );
    let library = own_library();
    refused(
        &with_module(&library),
        &["no PKCS#11 module", library.to_str().unwrap(), "C_GetFunctionList"],
    );
}

/// A shared library that is no module.
fn own_library() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let file = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|file| file.contains("/libc.so"));
    PathBuf::from(file.expect("a test uses the library of C"))
}

#[test]
fn a_module_that_its_user_may_not_read_is_refused() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test has to run as root: it is about another user"
    );
    let token = Faulty::new("edge");
    let folder = token.module().parent().unwrap().to_owned();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    let other = setup(&token, &token.section("user = \"nobody\""));
    refused(
        &other,
        &[
            "Permission denied",
            token.module().to_str().unwrap(),
            "its user may read it",
        ],
    );
}

#[test]
fn wrong_signatures_and_mechanisms_that_fail_are_refused() {
    let token = Faulty::new("edge");
    let setup = setup(&token, &token.section(""));
    token.cue("wrong");
    refused(
        &setup,
        &[
            "a wrong signature by CKM_ECDSA",
            "ECDSA_NISTP256_SHA256",
            "token `edge`",
            "object=site",
            "keys test",
        ],
    );
    token.cue("fail_sign = CKR_MECHANISM_INVALID");
    refused(
        &setup,
        &[
            "CKR_MECHANISM_INVALID",
            "CKM_ECDSA",
            "ECDSA_NISTP256_SHA256",
            "token `edge`",
            "keys test",
        ],
    );
    token.cue("fail_sign = CKR_DEVICE_ERROR");
    refused(&setup, &["CKR_DEVICE_ERROR", "CKM_ECDSA", "token `edge`", "keys test"]);
}

#[test]
fn a_key_that_cannot_sign_for_tls_1_3_is_refused_or_warned_of() {
    let token = SoftHsm::new("edge");
    let (_, settings) = &token.environment()[0];
    let more = fs::read_to_string(settings).unwrap() + "slots.mechanisms = CKM_RSA_PKCS,CKM_ECDSA\n";
    fs::write(settings, more).unwrap();
    let rsa = |setup: Setup| {
        setup
            .token(&token, "")
            .token_identity(&token, "site", &[SITE], KeyKind::Rsa)
    };
    let new = || Setup::new(Io::Epoll, &["127.0.0.1:9"]).no_identities();
    let alone = rsa(new());
    for command in ["check", "run"] {
        let ran = alone.try_command(command);
        assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
        ran.says("listener \"edge\": identities: found no key that can sign for TLS 1.3")
            .says("max_version = \"1.2\"");
    }
    token.remove();
    token.recreate();
    // Beside another one it is of use to clients of TLS 1.2.
    let beside = new().token(&token, "").identity("other", &[SITE], KeyKind::Ecdsa);
    let beside = beside.issued_identity("site", "site.pem", &token.uri("site"), "");
    fs::copy(alone.ca().certificate_file("site"), beside.folder().join("site.pem")).unwrap();
    let ran = beside.try_command("check").ok();
    ran.says("warning: ")
        .says("identity \"site\": key: it cannot sign for TLS 1.3");
    // Without TLS 1.3 all is well.
    let old = new().token(&token, "").tls("max_version = \"1.2\"");
    let old = old.issued_identity("site", "site.pem", &token.uri("site"), "");
    fs::copy(alone.ca().certificate_file("site"), old.folder().join("site.pem")).unwrap();
    let ran = old.try_command("check").ok();
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_token_that_hangs_or_is_slow_is_refused() {
    let token = Faulty::new("edge");
    let setup = setup(&token, &token.section("timeout = \"200ms\""));
    for cue in ["latency_ms = 5000", "hang = sign", "hang = login", "hang = find"] {
        token.cue(cue);
        refused_by(&setup, "check", &["edge", "object=site", "200ms", "timeout"]);
    }
}

#[test]
fn a_module_that_crashes_or_never_comes_up_is_refused() {
    let token = Faulty::new("edge");
    let setup = setup(&token, &token.section("timeout = \"200ms\""));
    token.cue("crash = sign");
    refused(&setup, &["a signer that has ended (signal: 6", "standard error"]);
    token.cue("");
    token.folder().module_cue("fail_initialize = CKR_GENERAL_ERROR");
    refused(
        &setup,
        &[
            "CKR_GENERAL_ERROR from C_Initialize",
            token.module().to_str().unwrap(),
            "check the module's path",
        ],
    );
    token.folder().module_cue("hang = initialize");
    refused_by(&setup, "check", &["no answer from the signer", "object=site"]);
}

/// What a reload brings: a token of a module of its own, and an identity whose key is in it.
const NEW_NAME: &str = "second.example";

fn in_force(io: Io, origin: &Origin) -> (Faulty, Faulty, Gateway) {
    let (old, new) = (Faulty::new("edge"), Faulty::new("new"));
    let setup = Setup::new(io, &[origin.address()])
        .no_identities()
        .token(&old, "timeout = \"500ms\"")
        .token_identity(&old, "site", &[SITE], KeyKind::Ecdsa);
    new.issue(setup.ca(), "second", &[NEW_NAME], KeyKind::Ecdsa);
    let gateway = setup.start();
    exchange(&gateway);
    (old, new, gateway)
}

/// Reloads with an identity more, whose key is in this token, and which is refused with these parts.
#[track_caller]
fn refused_by_reload(gateway: &Gateway, section: &str, uri: &str, parts: &[&str]) {
    let identity = format!(
        "[[identity]]\nname = \"second\"\ncertificate = \"second.pem\"\nkey = \"{uri}\"\n{section}\n[[upstream]]"
    );
    gateway.edit_config("[[upstream]]", &identity);
    gateway.edit_config("identities = [\"site\"]", "identities = [\"site\", \"second\"]");
    let before = signers(gateway);
    failing_reload(gateway);
    let line = gateway.wait_for_line("why not", |line| {
        line["level"] == "ERROR"
            && line["why"]
                .as_str()
                .is_some_and(|why| why.contains("identity \"second\""))
    });
    let why = line["why"].as_str().unwrap();
    for part in parts {
        assert!(why.contains(part), "{part:?} is missing: {why}");
    }
    for _ in 0..5 {
        exchange(gateway);
    }
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("ringlock_configuration_epoch", &[]), 1.0);
    let shown = Client::new(gateway).name(NEW_NAME).try_connect();
    assert!(shown.is_err(), "the new identity is not served");
    eventually("the new signer to end", || (signers(gateway) == before).then_some(()));
}

#[track_caller]
fn failing_reload(gateway: &Gateway) {
    let (name, labels) = ("ringlock_configuration_reloads_total", [("result", "failed")]);
    let before = gateway.metrics().sum(name, &labels);
    gateway.signal(Signal::HUP);
    wait_for_metric(gateway, name, &labels, before + 1.0);
}

/// What was refused is served once it is in order.
#[track_caller]
fn accepted_when_mended(gateway: &Gateway) {
    gateway.signal(Signal::HUP);
    wait_for_metric(gateway, "ringlock_configuration_epoch", &[], 2.0);
    eventually("the new identity", || {
        try_exchange(&Client::new(gateway).name(NEW_NAME)).ok()
    });
    exchange(gateway);
}

fn a_reload_with_a_token_that_refuses_the_pin_keeps_what_is_in_force(io: Io) {
    let origin = Origin::echo();
    let (old, new, gateway) = in_force(io, &origin);
    let pin = gateway.folder().join("other-pin");
    fs::write(&pin, "000000").unwrap();
    let section = format!(
        "[keys.new]\nmodule = {:?}\npin_source = \"file:{}\"\n",
        new.module(),
        pin.display()
    );
    let parts = ["CKR_PIN_INCORRECT", "token `new`", "correct the PIN"];
    let logins = old.calls("C_Login");
    refused_by_reload(&gateway, &section, &new.uri("second"), &parts);
    assert_eq!(new.calls("C_Login"), 1, "once for each reload");
    failing_reload(&gateway);
    assert_eq!(new.calls("C_Login"), 2);
    failing_reload(&gateway);
    assert_eq!(new.calls("C_Login"), 2, "not as the last attempt");
    assert_eq!(old.calls("C_Login"), logins, "the other token is none of its business");
    exchange(&gateway);
}

fn a_reload_with_a_token_that_signs_wrongly_keeps_what_is_in_force(io: Io) {
    let origin = Origin::echo();
    let (_old, new, gateway) = in_force(io, &origin);
    new.cue("wrong");
    let parts = ["a wrong signature by CKM_ECDSA", "token `new`", "keys test"];
    refused_by_reload(&gateway, &new.section(""), &new.uri("second"), &parts);
    new.cue("");
    accepted_when_mended(&gateway);
}

fn a_reload_with_a_token_that_hangs_keeps_what_is_in_force(io: Io) {
    let origin = Origin::echo();
    let (_old, new, gateway) = in_force(io, &origin);
    new.cue("hang = sign");
    let parts = ["new", "within 1s", "timeout"];
    refused_by_reload(&gateway, &new.section("timeout = \"1s\""), &new.uri("second"), &parts);
    new.cue("");
    accepted_when_mended(&gateway);
}

fn a_reload_with_a_module_that_crashes_keeps_what_is_in_force(io: Io) {
    let origin = Origin::echo();
    let (_old, new, gateway) = in_force(io, &origin);
    new.cue("crash = sign");
    refused_by_reload(
        &gateway,
        &new.section(""),
        &new.uri("second"),
        &["a signer that has ended"],
    );
    new.cue("");
    accepted_when_mended(&gateway);
}

fn a_reload_with_a_missing_object_keeps_what_is_in_force(io: Io) {
    let origin = Origin::echo();
    let (_old, new, gateway) = in_force(io, &origin);
    let parts = ["no private key", "`third`", "`second`", "token `new`"];
    refused_by_reload(&gateway, &new.section(""), &new.uri("third"), &parts);
    gateway.edit_config("object=third", "object=second");
    accepted_when_mended(&gateway);
}

fn a_pin_is_shown_nowhere(io: Io) {
    const SECRET: &str = "tulip-spoon-quartz";
    let origin = Origin::echo();
    let token = SoftHsm::new("plain").another("edge", SECRET);
    let setup = Setup::new(io, &[origin.address()])
        .no_identities()
        .token(&token, "")
        .token_identity(&token, "site", &[SITE], KeyKind::Ecdsa);
    let checked = setup.try_command("check").ok();
    let gateway = setup.start();
    exchange(&gateway);
    let signers = signers(&gateway);
    assert_eq!(signers.len(), 1);
    let mut shown = vec![("check", checked.text())];
    for process in [gateway.pid(), signers[0]] {
        shown.push(("the arguments", command_line(process)));
        shown.push(("the environment", environment(process)));
    }
    assert!(
        shown[2].1.contains("SOFTHSM2_CONF"),
        "an environment is read: {}",
        shown[2].1
    );
    // A wrong PIN that once was right, a token that is gone, a reload that fails: all that talks of tokens.
    let wrong = "tulip-spoon-copper";
    fs::write(token.pin_file(), wrong).unwrap();
    token.remove();
    gateway.edit_config("object=site", "object=other");
    failing_reload(&gateway);
    let _ = try_exchange(&Client::new(&gateway));
    shown.push(("the metrics", gateway.metrics().text().to_owned()));
    shown.push(("the log", gateway.stop()));
    for (what, text) in shown {
        let found = text.contains(SECRET) || text.contains(wrong);
        assert!(!found, "a PIN is in {what}: {text}");
    }
}
