//! `ringlock keys list`, `generate` and `csr`, with tokens of SoftHSM.

use crate::support::*;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

const PIN: &str = "314159";
const TYPES: [(&str, &str); 6] = [
    ("p256", "P-256"),
    ("p384", "P-384"),
    ("rsa2048", "RSA-2048"),
    ("rsa3072", "RSA-3072"),
    ("rsa4096", "RSA-4096"),
    ("ed25519", "Ed25519"),
];

/// SoftHSM with tokens in a folder of its own.
struct Soft {
    folder: TempDir,
    module: PathBuf,
}

impl Soft {
    fn new(labels: &[&str]) -> Soft {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        std::fs::write(folder.path().join("softhsm2.conf"), text).unwrap();
        std::fs::write(folder.path().join("pin"), format!("{PIN}\n")).unwrap();
        let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"];
        let module = places.iter().map(PathBuf::from).find(|path| path.exists());
        let module = module.expect("SoftHSM is missing: scripts/setup installs it");
        let soft = Soft { folder, module };
        for label in labels {
            let program = tool("softhsm2-util").to_str().unwrap().to_owned();
            let arguments = [
                "--init-token",
                "--free",
                "--so-pin",
                "27182818",
                "--pin",
                PIN,
                "--label",
                label,
            ];
            soft.run(&program, &arguments).ok();
        }
        soft
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let variable = format!("SOFTHSM2_CONF={}", self.path("softhsm2.conf"));
        run("env", &[&[variable.as_str(), program], arguments].concat(), b"")
    }

    /// `ringlock keys COMMAND` with options for this module.
    fn keys(&self, command: &str, arguments: &[&str]) -> Ran {
        let module = self.module.to_str().unwrap();
        let options = ["keys", command, "--module", module];
        self.run(env!("CARGO_BIN_EXE_ringlock"), &[&options, arguments].concat())
    }

    /// The same, with the token `edge` and its PIN.
    fn edge(&self, command: &str, arguments: &[&str]) -> Ran {
        let pin = format!("file:{}", self.path("pin"));
        self.keys(
            command,
            &[&["--token", "edge", "--pin-source", &pin], arguments].concat(),
        )
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.edge("list", &["--json"]).ok().stdout).unwrap()
    }

    /// A configuration whose tokens are these tables; nothing else in it is there.
    fn configure(&self, tables: &[&str]) -> String {
        let mut text = String::from(
            "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\nidentities = [\"site\"]\nupstream = \"app\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:1\"]\n\
             [[identity]]\nname = \"site\"\ncertificate = \"none.pem\"\nkey = \"none.pem\"\n",
        );
        for table in tables {
            text += &format!(
                "[keys.{table}]\nmodule = {:?}\npin_source = \"file:pin\"\n",
                self.module
            );
        }
        let path = self.path("ringlock.toml");
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn openssl(arguments: &[&str], input: &str) -> Ran {
    run("openssl", arguments, input.as_bytes())
}

#[test]
fn every_type_of_key_is_made_listed_and_signs_its_request() {
    let soft = Soft::new(&["edge"]);
    for (number, (kind, _)) in (1..).zip(TYPES) {
        let id = format!("0{number}");
        let made = soft
            .edge("generate", &["--type", kind, "--label", kind, "--id", &id])
            .ok();
        let line = format!("key = \"pkcs11:token=edge;object={kind};type=private\"");
        let made = made.says(&line).says(&format!("id {id}"));
        assert!(!made.text().contains(PIN));
    }
    let listed = soft.list();
    let token = &listed["tokens"][0];
    assert_eq!(token["token"]["label"], "edge");
    let objects = token["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 2 * TYPES.len());
    let table = soft.edge("list", &[]).ok().stdout;
    for (kind, name) in TYPES {
        let is_it = |object: &&Value| object["label"] == kind && object["class"] == "private key";
        let object = objects.iter().find(is_it).unwrap();
        assert_eq!(object["key"], name);
        assert_eq!(
            (&object["sensitive"], &object["extractable"]),
            (&Value::Bool(true), &Value::Bool(false))
        );
        assert!(
            table
                .lines()
                .any(|line| line.contains("private key") && line.contains(name)),
            "{table}"
        );
        let uri = format!("pkcs11:object={kind}");
        let names = ["www.example.com", "*.example.com", "192.0.2.1"];
        let arguments = [&["--key", uri.as_str(), "--name"], names.as_slice()].concat();
        let request = soft.edge("csr", &arguments).ok().stdout;
        let read = openssl(&["req", "-verify", "-noout", "-text"], &request).ok();
        let read = read.says("verify OK").says("CN = www.example.com");
        for name in ["DNS:www.example.com", "DNS:*.example.com", "IP Address:192.0.2.1"] {
            assert!(read.text().contains(name), "{read:#?}");
        }
    }
}

#[test]
fn a_label_and_an_identifier_are_given_once() {
    let soft = Soft::new(&["edge"]);
    soft.edge("generate", &["--type", "p256", "--label", "site", "--id", "a1"])
        .ok();
    for (label, id, expected) in [("site", "a2", "label `site`"), ("other", "a1", "id a1")] {
        let ran = soft.edge("generate", &["--type", "p256", "--label", label, "--id", id]);
        assert!(!ran.status.success());
        ran.says(&format!("a key with {expected} in token `edge`"));
    }
    for id in ["", "a", "a1b", "zz", "+1"] {
        let ran = soft.edge("generate", &["--type", "p256", "--label", "new", &format!("--id={id}")]);
        assert!(!ran.status.success());
        ran.says("no identifier");
    }
    assert_eq!(soft.list()["tokens"][0]["objects"].as_array().unwrap().len(), 2);
    // Made up, it is another one each time.
    for label in ["one", "two"] {
        soft.edge("generate", &["--type", "p256", "--label", label]).ok();
    }
    assert_eq!(soft.list()["tokens"][0]["objects"].as_array().unwrap().len(), 6);
}

#[test]
fn a_request_has_the_subject_that_is_asked_for_and_overwrites_nothing() {
    let soft = Soft::new(&["edge"]);
    soft.edge("generate", &["--type", "p256", "--label", "site"]).ok();
    let out = soft.path("request.pem");
    let subject = "CN=Site,O=Example\\, Inc.,OU=Edge,L=Berlin,ST=Berlin,C=DE";
    let arguments = [
        "--key",
        "pkcs11:object=site",
        "--name",
        "site.test",
        "--subject",
        subject,
        "--out",
        &out,
    ];
    soft.edge("csr", &arguments).ok();
    let request = std::fs::read_to_string(&out).unwrap();
    let read = openssl(
        &["req", "-verify", "-noout", "-subject", "-nameopt", "RFC2253"],
        &request,
    )
    .ok();
    read.says("subject=C=DE,ST=Berlin,L=Berlin,OU=Edge,O=Example\\, Inc.,CN=Site");
    let ran = soft.edge("csr", &arguments);
    assert!(!ran.status.success());
    ran.says("request.pem");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), request);
    for (option, value, expected) in [
        ("--name", "not a name", "neither a DNS name nor an IP address"),
        ("--subject", "X=y", "\"X\""),
        ("--subject", "CN", "no value"),
        ("--subject", "C=Germany", "two letters"),
    ] {
        let ran = soft.edge(
            "csr",
            &["--key", "pkcs11:object=site", "--name", "site.test", option, value],
        );
        assert!(!ran.status.success(), "{ran:#?}");
        ran.says(expected);
    }
    let ran = soft.edge("csr", &["--key", "pkcs11:object=sight", "--name", "site.test"]);
    assert!(!ran.status.success());
    ran.says("no private key with label `sight`")
        .says("one with label `site`");
}

#[test]
fn tokens_are_those_of_the_configuration() {
    let soft = Soft::new(&["edge", "spare"]);
    let file = soft.configure(&["edge", "spare"]);
    let keys = |arguments: &[&str]| {
        let options = ["keys", arguments[0], "--config", &file];
        soft.run(env!("CARGO_BIN_EXE_ringlock"), &[&options, &arguments[1..]].concat())
    };
    let made = ["generate", "--type", "p256", "--label", "site"];
    let ran = keys(&made);
    assert!(!ran.status.success());
    ran.says("several tokens").says("[keys.edge], [keys.spare]");
    keys(&[made.as_slice(), &["--key", "spare"]].concat())
        .ok()
        .says("pkcs11:token=spare;object=site");
    keys(&[made.as_slice(), &["--key", "pkcs11:token=edge"]].concat()).ok();
    keys(&[made.as_slice(), &["--key", "nowhere"]].concat()).says("no [keys.nowhere]");
    keys(&["csr", "--key", "pkcs11:token=spare;object=site", "--name", "site.test"])
        .ok()
        .says("BEGIN CERTIFICATE REQUEST");
    let listed: Value = serde_json::from_str(&keys(&["list", "--json"]).ok().stdout).unwrap();
    let names: Vec<&Value> = listed["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| &token["name"])
        .collect();
    assert_eq!(names, ["edge", "spare"]);
    // One that is not there hides no other, and is a failure.
    let file = soft.configure(&["edge", "core"]);
    let ran = soft.run(env!("CARGO_BIN_EXE_ringlock"), &["keys", "list", "--config", &file]);
    assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
    ran.says("[keys.edge]")
        .says("private key")
        .says("no token with label `core`");
}

#[test]
fn without_a_pin_only_public_objects_are_shown() {
    let soft = Soft::new(&["edge"]);
    soft.edge("generate", &["--type", "p256", "--label", "site"]).ok();
    let ran = soft.keys("list", &[]).ok().says("not logged in").says("public key");
    assert!(!ran.stdout.contains("private key  "), "{ran:#?}");
    // Of whatever kind, a PIN's trouble names its file, and shows no PIN.
    std::fs::write(soft.path("pin"), "wrong-and-secret").unwrap();
    let ran = soft.edge("list", &[]).says("CKR_PIN_INCORRECT");
    assert_eq!(ran.status.code(), Some(1));
    assert!(!ran.text().contains("secret"));
    std::fs::remove_file(soft.path("pin")).unwrap();
    let ran = soft.edge("list", &[]).says("pin");
    assert_eq!(ran.status.code(), Some(1));
    let ran = soft
        .keys("list", &["--token", "edge", "--pin-source", PIN])
        .says("looks like a PIN");
    assert!(!ran.status.success() && !ran.text().contains(PIN), "{ran:#?}");
}

#[test]
fn what_is_no_module_is_told_of() {
    let ran = ringlock(&["keys", "list"]).says("--config FILE").says("--module PATH");
    assert_eq!(ran.status.code(), Some(1));
    let no_library = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let ran = ringlock(&["keys", "list", "--module", no_library.to_str().unwrap()]).says("Cargo.toml");
    assert_eq!(ran.status.code(), Some(1));
    let ran = ringlock(&["keys", "list", "--config", "x.toml", "--module", "y.so"]).says("cannot be used with");
    assert_eq!(ran.status.code(), Some(2));
}
