//! Every key that takes a path: whether the sandbox is told of it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::keys::{self, Kind};

/// A file with a path at every key that takes one. The paths are their keys' names.
const PATHS: &str = r#"
global = { admin = "/admin/file", ocsp_dir = "/ocsp_dir/file", log.file = "/log/file" }
tickets = { secret = "file:/secret/file" }
crypto = { multibuffer = "/multibuffer/file" }
keys.edge = { module = "/module/file", pin_source = "file:/pin/file" }
upstream = [{ name = "app", servers = ["unix:/server/file"] }]

[[identity]]
name = "one"
certificate = "/certificate/file"
key = "/key/file"
passphrase_file = "/passphrase/file"
ocsp = "/staple/file"

[[identity]]
name = "many"
certificates = "/certificates/file"

[[listener]]
name = "a"
address = "127.0.0.1:1"
identities = ["one", "many"]
upstream = "app"
client_auth = { mode = "required", ca = "/ca/file", crl = ["/crl/file"] }

[[listener.routes]]
sni = "a.example"
upstream = "app"
client_auth = { mode = "required", ca = "/route-ca/file", crl = ["/route-crl/file"] }
"#;

/// What the gateway itself does not open after the start, by table and key.
const NOT_OPENED: [(&str, &str); 4] = [
    // A socket: its folder is known by the address.
    ("[global]", "admin"),
    // Connecting to sockets is not forbidden.
    ("[[upstream]]", "servers"),
    // Signers do, which have a sandbox of their own.
    ("[keys.NAME]", "module"),
    ("[keys.NAME]", "pin_source"),
];

#[test]
fn every_key_with_a_path_is_told_to_the_sandbox() {
    let (config, _) =
        parse(PATHS, Path::new("/etc/ringlock/ringlock.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    let files: BTreeMap<&str, &Path> = config.places.files().collect();
    let expected = [
        ("global.ocsp_dir", "/ocsp_dir/file"),
        ("global.log.file", "/log/file"),
        ("tickets.secret", "/secret/file"),
        ("crypto.multibuffer", "/multibuffer/file"),
        ("identity \"one\": certificate", "/certificate/file"),
        ("identity \"one\": key", "/key/file"),
        ("identity \"one\": passphrase_file", "/passphrase/file"),
        ("identity \"one\": ocsp", "/staple/file"),
        ("identity \"many\": certificates", "/certificates/file"),
        ("listener \"a\": client_auth.ca", "/ca/file"),
        ("listener \"a\": client_auth.crl[0]", "/crl/file"),
        ("listener \"a\": routes[0].client_auth.ca", "/route-ca/file"),
        ("listener \"a\": routes[0].client_auth.crl[0]", "/route-crl/file"),
    ];
    assert_eq!(files, expected.map(|(key, path)| (key, Path::new(path))).into());

    // Nor has a key been added since.
    let takes_a_path = |kind: &Kind| kind.expected().to_lowercase().contains("path");
    let known: BTreeSet<(String, &str)> = keys::sections()
        .into_iter()
        .flat_map(|(header, section)| section.keys.iter().map(move |key| (header.clone(), key)))
        .filter(|(_, key)| takes_a_path(&key.kind))
        .map(|(header, key)| (header, key.name))
        .collect();
    let opened = [
        ("[global]", "ocsp_dir"),
        ("[global.log]", "file"),
        ("[tickets]", "secret"),
        ("[crypto]", "multibuffer"),
        ("[[identity]]", "certificate"),
        ("[[identity]]", "certificates"),
        ("[[identity]]", "key"),
        ("[[identity]]", "passphrase_file"),
        ("[[identity]]", "ocsp"),
        ("[listener.client_auth]", "ca"),
        ("[listener.client_auth]", "crl"),
        ("[listener.routes.client_auth]", "ca"),
        ("[listener.routes.client_auth]", "crl"),
    ];
    let tested = opened.into_iter().chain(NOT_OPENED);
    assert_eq!(known, tested.map(|(header, key)| (header.to_owned(), key)).collect());
}
