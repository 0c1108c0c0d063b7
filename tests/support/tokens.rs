//! PKCS#11 tokens: other people's (SoftHSM, a TPM, one behind p11-kit) and our own, which fails on cue. Each is in a folder of its own and
//! goes with its value.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use ringlock_faulty::Folder;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::{Ca, KeyKind, Program, Ran, eventually, python, run, run_with, tool};

/// The PIN of all of these.
pub(crate) const PIN: &str = "314159";
const SO_PIN: &str = "27182818";

/// A token that a gateway can be given.
pub(crate) trait Token {
    /// Its label, by which `[keys.…]` and URIs name it.
    fn label(&self) -> &str;

    /// The module's file.
    fn module(&self) -> PathBuf;

    /// Holds the PIN.
    fn pin_file(&self) -> PathBuf;

    /// What is in that file.
    fn pin(&self) -> &str {
        PIN
    }

    /// What the process that loads the module has to have in its environment.
    fn environment(&self) -> Vec<(String, String)>;

    /// Has the CA write `NAME.pem` for these DNS names, with a key that is in this token and nowhere else, labelled with the name.
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind);

    /// Its section of the configuration, with these lines more.
    fn section(&self, lines: &str) -> String {
        let (label, module, pin) = (self.label(), self.module(), self.pin_file());
        format!(
            "[keys.{label}]\nmodule = {module:?}\npin_source = \"file:{}\"\n{lines}\n",
            pin.display()
        )
    }

    /// The URI of a private key.
    fn uri(&self, object: &str) -> String {
        format!("pkcs11:token={};object={object};type=private", self.label())
    }

    /// Runs pkcs11-tool on this token, logged in. It must succeed.
    #[track_caller]
    fn pkcs11_tool(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["--token-label", self.label(), "--login", "--pin", "env:PIN"];
        all.extend(arguments);
        let mut environment = self.environment();
        environment.push(("PIN".into(), self.pin().into()));
        pkcs11_tool(&self.module(), &environment, &all)
    }

    /// Puts the certificate of `NAME.pem` in, beside the key of the same label.
    #[track_caller]
    fn put_certificate(&self, ca: &Ca, name: &str) {
        let folder = TempDir::new().unwrap();
        let (pem, der) = (ca.certificate_file(name), folder.path().join("certificate.der"));
        let (pem, der) = (pem.to_str().unwrap(), der.to_str().unwrap());
        run("openssl", &["x509", "-in", pem, "-outform", "DER", "-out", der], b"").ok();
        let id = id(name);
        self.pkcs11_tool(&["--write-object", der, "--type", "cert", "--label", name, "--id", &id]);
    }
}

/// A token of SoftHSM.
pub(crate) struct SoftHsm {
    folder: Rc<TempDir>,
    label: String,
    pin: String,
}

impl SoftHsm {
    /// Makes a token of this label.
    #[track_caller]
    pub(crate) fn new(label: &str) -> SoftHsm {
        let folder = TempDir::new().unwrap();
        let place = folder.path().display();
        let settings =
            format!("directories.tokendir = {place}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n");
        fs::write(folder.path().join("softhsm2.conf"), settings).unwrap();
        fs::create_dir(folder.path().join("tokens")).unwrap();
        SoftHsm::token(Rc::new(folder), label, PIN)
    }

    /// One more token of the same module, with this PIN.
    #[track_caller]
    pub(crate) fn another(&self, label: &str, pin: &str) -> SoftHsm {
        SoftHsm::token(Rc::clone(&self.folder), label, pin)
    }

    #[track_caller]
    fn token(folder: Rc<TempDir>, label: &str, pin: &str) -> SoftHsm {
        let hsm = SoftHsm {
            folder,
            label: label.to_owned(),
            pin: pin.to_owned(),
        };
        fs::create_dir(hsm.keys()).unwrap();
        write_pin(&hsm.pin_file(), pin);
        hsm.recreate();
        hsm
    }

    /// Puts a key pair from a PEM file (PKCS#8) in.
    #[track_caller]
    pub(crate) fn import(&self, label: &str, file: &Path) {
        // Kept for a token that is made anew.
        let kept = self.keys().join(label);
        if kept != file {
            fs::copy(file, &kept).unwrap();
        }
        let id = id(label);
        let (token, file) = (&self.label, kept.to_str().unwrap());
        self.softhsm2_util(&[
            "--import", file, "--token", token, "--label", label, "--id", &id, "--pin", &self.pin,
        ]);
    }

    /// Takes the token away.
    #[track_caller]
    pub(crate) fn remove(&self) {
        self.softhsm2_util(&["--delete-token", "--token", &self.label]);
    }

    /// Makes a token with the label, the PIN and the keys of the one that was taken away. Its serial number is another.
    #[track_caller]
    pub(crate) fn recreate(&self) {
        let token = [
            "--init-token",
            "--free",
            "--label",
            &self.label,
            "--pin",
            &self.pin,
            "--so-pin",
            SO_PIN,
        ];
        self.softhsm2_util(&token);
        for key in fs::read_dir(self.keys()).unwrap() {
            let key = key.unwrap();
            self.import(key.file_name().to_str().unwrap(), &key.path());
        }
    }

    /// What is in the token, as files.
    fn keys(&self) -> PathBuf {
        self.folder.path().join(format!("{}.keys", self.label))
    }

    #[track_caller]
    fn softhsm2_util(&self, arguments: &[&str]) {
        run_with(&self.environment(), "softhsm2-util", arguments, b"").ok();
    }
}

impl Token for SoftHsm {
    fn label(&self) -> &str {
        &self.label
    }

    fn module(&self) -> PathBuf {
        module("softhsm/libsofthsm2.so", "softhsm2")
    }

    fn pin_file(&self) -> PathBuf {
        self.folder.path().join(format!("{}.pin", self.label))
    }

    fn pin(&self) -> &str {
        &self.pin
    }

    fn environment(&self) -> Vec<(String, String)> {
        let settings = self.folder.path().join("softhsm2.conf");
        vec![("SOFTHSM2_CONF".into(), settings.display().to_string())]
    }

    #[track_caller]
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind) {
        ca.issue(name, dns_names, kind);
        let key = ca.key_file(name);
        self.import(name, &key);
        fs::remove_file(key).unwrap();
    }
}

/// The token of a SoftHSM behind `p11-kit server`, which can go and come back.
pub(crate) struct P11Kit<'a> {
    behind: &'a SoftHsm,
    folder: TempDir,
    server: RefCell<Option<Child>>,
}

impl P11Kit<'_> {
    /// Starts a server.
    #[track_caller]
    pub(crate) fn new(behind: &SoftHsm) -> P11Kit<'_> {
        let kit = P11Kit {
            behind,
            folder: TempDir::new().unwrap(),
            server: RefCell::default(),
        };
        kit.start();
        kit
    }

    /// Starts the server again.
    #[track_caller]
    pub(crate) fn start(&self) {
        assert!(self.server.borrow().is_none(), "it runs");
        let socket = self.socket();
        let _ = fs::remove_file(&socket);
        let child = Command::new(tool("p11-kit"))
            .args(["server", "--foreground", "--provider"])
            .arg(self.behind.module())
            .arg("--name")
            .arg(&socket)
            .arg(format!("pkcs11:token={}", self.behind.label()))
            .envs(self.behind.environment())
            // It makes a process for each client, which would outlive it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        *self.server.borrow_mut() = Some(child);
        eventually("p11-kit server to listen", || UnixStream::connect(&socket).ok());
    }

    /// Kills the server, and with it whoever serves a client.
    #[track_caller]
    pub(crate) fn kill(&self) {
        if let Some(mut server) = self.server.borrow_mut().take() {
            kill_process_group(Pid::from_child(&server), Signal::KILL).unwrap();
            server.wait().unwrap();
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("p11-kit.socket")
    }
}

impl Drop for P11Kit<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Token for P11Kit<'_> {
    fn label(&self) -> &str {
        self.behind.label()
    }

    fn module(&self) -> PathBuf {
        module("pkcs11/p11-kit-client.so", "p11-kit-modules")
    }

    fn pin_file(&self) -> PathBuf {
        self.behind.pin_file()
    }

    fn pin(&self) -> &str {
        self.behind.pin()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let address = format!("unix:path={}", self.socket().display());
        vec![("P11_KIT_SERVER_ADDRESS".into(), address)]
    }

    #[track_caller]
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind) {
        self.behind.issue(ca, name, dns_names, kind);
    }
}

/// A TPM in software, with a token of tpm2-pkcs11. P-256 and RSA with 2,048 bits; keys are made in it.
///
/// There is no resource manager before it: it has room for three objects, a key in use is one, and a process that is killed leaves its own
/// behind. [`Tpm::restart`] clears them.
pub(crate) struct Tpm {
    folder: TempDir,
    label: String,
    program: RefCell<Option<Program>>,
}

const PSS_IS_GOOD: &str = r#"
import sqlite3, sys
config = """---
!!map {
  ? !!str "token-init"
  : !!bool "true",
  ? !!str "pss-sigs-good"
  : !!bool "true",
}
...
"""
with sqlite3.connect(sys.argv[1]) as database:
    database.execute("UPDATE tokens SET config = ? WHERE label <> ''", [config])
"#;

impl Tpm {
    /// Makes a TPM, and in it a token of this label.
    #[track_caller]
    pub(crate) fn new(label: &str) -> Tpm {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::create_dir(folder.path().join("store")).unwrap();
        write_pin(&folder.path().join("pin"), PIN);
        let tpm = Tpm {
            folder,
            label: label.to_owned(),
            program: RefCell::default(),
        };
        tpm.restart();
        // An end without notice counts as a wrong PIN, and tests end it so.
        let tcti = format!("swtpm:path={}", tpm.socket().display());
        run(
            "tpm2_dictionarylockout",
            &["--tcti", &tcti, "--setup-parameters", "--max-tries", "1000"],
            b"",
        )
        .ok();
        let (module, environment) = (tpm.module(), tpm.environment());
        let so_login = ["--login", "--login-type", "so", "--so-pin", "env:SO_PIN"];
        let token = [
            "--slot-index",
            "0",
            "--init-token",
            "--label",
            label,
            "--so-pin",
            "env:SO_PIN",
        ];
        pkcs11_tool(&module, &environment, &token);
        let pin = ["--token-label", label, "--init-pin", "--pin", "env:PIN"];
        pkcs11_tool(&module, &environment, &[&so_login[..], &pin[..]].concat());
        // Its salts are as long as the hash, as TLS wants them. The module does not find that out: it believes its database.
        python(PSS_IS_GOOD, &[tpm.folder.path().join("store/tpm2_pkcs11.sqlite3")]);
        tpm
    }

    /// Ends the TPM, if it runs, and starts it with what it holds.
    #[track_caller]
    pub(crate) fn restart(&self) {
        self.kill();
        let state = format!("dir={}/state", self.folder.path().display());
        let (server, control) = (self.socket(), self.control_socket());
        let unix = |socket: &Path| format!("type=unixio,path={}", socket.display());
        let (server, control) = (unix(&server), unix(&control));
        let flags = "not-need-init,startup-clear";
        let arguments = [
            "socket",
            "--tpm2",
            "--tpmstate",
            &state,
            "--server",
            &server,
            "--ctrl",
            &control,
            "--flags",
            flags,
        ];
        *self.program.borrow_mut() = Some(Program::start("swtpm", &arguments));
        eventually("swtpm to listen", || {
            let listens = UnixStream::connect(self.control_socket()).is_ok();
            (listens && self.socket().exists()).then_some(())
        });
    }

    /// Ends the TPM.
    pub(crate) fn kill(&self) {
        drop(self.program.borrow_mut().take());
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_file(self.control_socket());
    }

    /// Where it is, as its tools and modules want it.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tpm.socket")
    }

    /// Where the module expects it: beside the other.
    fn control_socket(&self) -> PathBuf {
        self.folder.path().join("tpm.socket.ctrl")
    }
}

impl Token for Tpm {
    fn label(&self) -> &str {
        &self.label
    }

    fn module(&self) -> PathBuf {
        module("pkcs11/libtpm2_pkcs11.so", "libtpm2-pkcs11-1")
    }

    fn pin_file(&self) -> PathBuf {
        self.folder.path().join("pin")
    }

    fn environment(&self) -> Vec<(String, String)> {
        let store = self.folder.path().join("store");
        vec![
            ("TPM2_PKCS11_STORE".into(), store.display().to_string()),
            ("TPM2_PKCS11_TCTI".into(), self.tcti()),
        ]
    }

    #[track_caller]
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind) {
        let key_type = match kind {
            KeyKind::Ecdsa => "EC:prime256v1",
            KeyKind::Rsa => "rsa:2048",
            KeyKind::P384 | KeyKind::Ed25519 | KeyKind::Rsa3072 | KeyKind::Rsa4096 => {
                panic!("this TPM has no keys of kind {kind:?}")
            }
        };
        let id = id(name);
        self.pkcs11_tool(&["--keypairgen", "--key-type", key_type, "--label", name, "--id", &id]);
        let public = self.folder.path().join("public.der");
        let file = public.to_str().unwrap();
        self.pkcs11_tool(&["--read-object", "--type", "pubkey", "--id", &id, "--output-file", file]);
        ca.certify(name, dns_names, kind, &fs::read(public).unwrap());
        self.restart();
    }
}

/// Our own module, which fails on cue, and one of its tokens.
pub(crate) struct Faulty {
    folder: Rc<Folder>,
    label: String,
}

impl Faulty {
    /// Makes a token of this label, in a module of its own.
    pub(crate) fn new(label: &str) -> Faulty {
        Faulty::token(Rc::new(Folder::new()), label)
    }

    /// One more token of the same module.
    pub(crate) fn another(&self, label: &str) -> Faulty {
        Faulty::token(Rc::clone(&self.folder), label)
    }

    /// What goes wrong from here on, as [`Folder::cue`] says; nothing: all is well.
    #[track_caller]
    pub(crate) fn cue(&self, lines: &str) {
        self.folder.cue(&self.label, lines);
    }

    /// How often a function was called for this token, such as `C_Login`.
    pub(crate) fn calls(&self, function: &str) -> usize {
        self.folder.calls(&self.label, function)
    }

    /// The module's tokens with all that can be done with them.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    fn token(folder: Rc<Folder>, label: &str) -> Faulty {
        folder.token(label, Some(PIN));
        Faulty {
            folder,
            label: label.to_owned(),
        }
    }
}

impl Token for Faulty {
    fn label(&self) -> &str {
        &self.label
    }

    fn module(&self) -> PathBuf {
        self.folder.module()
    }

    fn pin_file(&self) -> PathBuf {
        self.folder.pin_file(&self.label)
    }

    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    #[track_caller]
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind) {
        ca.issue(name, dns_names, kind);
        let key = ca.key_file(name);
        self.folder.key(&self.label, name, &fs::read_to_string(&key).unwrap());
        fs::remove_file(key).unwrap();
    }
}

/// Two faulty tokens of one group, each in a module of its own, that hold the same keys.
pub(crate) struct FaultyPair<'a> {
    group: String,
    tokens: [&'a Faulty; 2],
}

impl FaultyPair<'_> {
    /// A group of this name.
    pub(crate) fn new<'a>(group: &str, first: &'a Faulty, second: &'a Faulty) -> FaultyPair<'a> {
        FaultyPair {
            group: group.to_owned(),
            tokens: [first, second],
        }
    }
}

impl Token for FaultyPair<'_> {
    fn label(&self) -> &str {
        &self.group
    }

    fn module(&self) -> PathBuf {
        self.tokens[0].module()
    }

    fn pin_file(&self) -> PathBuf {
        self.tokens[0].pin_file()
    }

    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    #[track_caller]
    fn issue(&self, ca: &Ca, name: &str, dns_names: &[&str], kind: KeyKind) {
        ca.issue(name, dns_names, kind);
        let key = ca.key_file(name);
        let pem = fs::read_to_string(&key).unwrap();
        for token in self.tokens {
            token.folder.key(&token.label, name, &pem);
        }
        fs::remove_file(key).unwrap();
    }

    fn section(&self, lines: &str) -> String {
        let lines = format!("group = \"{}\"\n{lines}", self.group);
        self.tokens.map(|token| token.section(&lines)).concat()
    }
}

/// Where Debian puts a module of one of its packages.
#[track_caller]
fn module(file: &str, package: &str) -> PathBuf {
    let folders = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ];
    let found = folders
        .iter()
        .map(|folder| Path::new(folder).join(file))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{file} of the package {package} is missing: scripts/setup installs it"))
}

#[track_caller]
fn pkcs11_tool(module: &Path, environment: &[(String, String)], arguments: &[&str]) -> Ran {
    let mut all = vec!["--module", module.to_str().unwrap()];
    all.extend(arguments);
    let pins = [("PIN", PIN), ("SO_PIN", SO_PIN)].map(|(name, pin)| (name.to_owned(), pin.to_owned()));
    run_with(&[&pins, environment].concat(), "pkcs11-tool", &all, b"").ok()
}

fn write_pin(file: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let pin = options.write(true).create_new(true).mode(0o600).open(file);
    io::Write::write_all(&mut pin.unwrap(), text.as_bytes()).unwrap();
}

/// CKA_ID in hexadecimal digits: the label's bytes.
fn id(label: &str) -> String {
    label.bytes().map(|byte| format!("{byte:02x}")).collect()
}
