//! With the sandbox on, as it is by itself: whatever keeps a folder of certificates can renew them and add others, and what it cannot read is
//! refused with the reason.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::responder::*;
use crate::support::*;
use rustix::process::Signal;
use tempfile::TempDir;

both_drivers!(
    all_of_certbots_names_are_renewed_and_others_come,
    a_new_name_comes_with_a_reload,
    a_volume_in_a_folder_is_swapped,
    a_link_to_elsewhere_is_refused_with_what_to_do,
    files_of_clients_and_staples_are_renewed,
);

/// A folder as certbot keeps it.
struct Certbot(PathBuf);

impl Certbot {
    /// Issues a certificate and turns the links of its name to it, as certbot does.
    fn renew(&self, ca: &Ca, name: &str, number: u32) {
        let (live, archive) = (self.live().join(name), self.0.join("archive").join(name));
        fs::create_dir_all(&live).unwrap();
        fs::create_dir_all(&archive).unwrap();
        let issued = format!("{name}-{number}");
        ca.issue(&issued, &[name], KeyKind::Ecdsa);
        let files = [
            (ca.key_file(&issued), "privkey"),
            (ca.certificate_file(&issued), "fullchain"),
        ];
        for (file, kind) in files {
            fs::rename(file, archive.join(format!("{kind}{number}.pem"))).unwrap();
            let link = live.join(format!("{kind}.pem"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../archive/{name}/{kind}{number}.pem"), &link).unwrap();
        }
    }

    fn live(&self) -> PathBuf {
        self.0.join("live")
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.live().join(name).join("fullchain.pem")
    }
}

/// A gateway with a folder of certificates that is not below the folder of the configuration, which is within reach with all below it.
fn start(io: Io, origin: &Origin, watch: bool, fill: impl FnOnce(&Ca, &Path)) -> (Gateway, TempDir) {
    let setup = Setup::new(io, &[origin.address()])
        .no_identities()
        .global(&format!("watch_files = {watch}"));
    let folder = TempDir::new().unwrap();
    fill(setup.ca(), folder.path());
    let live = folder.path().join("live");
    let gateway = setup.any_identity("all", &format!("certificates = {live:?}")).start();
    assert_eq!(
        gateway.metrics().sum("ringlock_given_up", &[("what", "files")]),
        1.0,
        "this kernel has no Landlock"
    );
    (gateway, folder)
}

#[track_caller]
fn wait_until_served(gateway: &Gateway, name: &str, file: &Path) {
    let wanted = leaf_in(file);
    eventually(&format!("{} to be served", file.display()), || {
        let connection = Client::new(gateway).name(name).try_connect().ok()?;
        (connection.certificate().to_vec() == wanted).then_some(())
    });
}

fn certbot(io: Io, watch: bool) -> (Gateway, Certbot, (Origin, TempDir)) {
    let origin = Origin::echo();
    let fill = |ca: &Ca, folder: &Path| Certbot(folder.to_owned()).renew(ca, SITE, 1);
    let (gateway, folder) = start(io, &origin, watch, fill);
    (gateway, Certbot(folder.path().to_owned()), (origin, folder))
}

fn errors(gateway: &Gateway) -> Vec<String> {
    let lines = gateway.log_lines().into_iter().filter(|line| line["level"] == "ERROR");
    lines.map(|line| line.to_string()).collect()
}

fn all_of_certbots_names_are_renewed_and_others_come(io: Io) {
    let (gateway, certbot, _kept) = certbot(io, true);
    certbot.renew(&gateway.ca, SITE, 2);
    wait_until_served(&gateway, SITE, &certbot.certificate(SITE));
    certbot.renew(&gateway.ca, "new.example", 1);
    wait_until_served(&gateway, "new.example", &certbot.certificate("new.example"));
    certbot.renew(&gateway.ca, "new.example", 2);
    wait_until_served(&gateway, "new.example", &certbot.certificate("new.example"));
    assert_eq!(errors(&gateway), [""; 0]);
}

fn a_new_name_comes_with_a_reload(io: Io) {
    let (gateway, certbot, _kept) = certbot(io, false);
    certbot.renew(&gateway.ca, SITE, 2);
    certbot.renew(&gateway.ca, "new.example", 1);
    reload(&gateway);
    for name in [SITE, "new.example"] {
        wait_until_served(&gateway, name, &certbot.certificate(name));
    }
    assert_eq!(errors(&gateway), [""; 0]);
}

fn a_volume_in_a_folder_is_swapped(io: Io) {
    let put = |ca: &Ca, volume: &Path, version: &str| {
        let folder = volume.join(version);
        fs::create_dir_all(&folder).unwrap();
        ca.issue("next", &[SITE], KeyKind::Ecdsa);
        fs::rename(ca.certificate_file("next"), folder.join("tls.crt")).unwrap();
        fs::rename(ca.key_file("next"), folder.join("tls.key")).unwrap();
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    let origin = Origin::echo();
    let (gateway, folder) = start(io, &origin, true, |ca, folder| {
        let volume = folder.join("live/site");
        fs::create_dir_all(&volume).unwrap();
        put(ca, &volume, "..1");
        for file in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{file}"), volume.join(file)).unwrap();
        }
    });
    let volume = folder.path().join("live/site");
    for (old, new) in [("..1", "..2"), ("..2", "..3")] {
        put(&gateway.ca, &volume, new);
        fs::remove_dir_all(volume.join(old)).unwrap();
        wait_until_served(&gateway, SITE, &volume.join("tls.crt"));
    }
    assert_eq!(errors(&gateway), [""; 0]);
}

fn a_link_to_elsewhere_is_refused_with_what_to_do(io: Io) {
    let (gateway, certbot, _kept) = certbot(io, true);
    let elsewhere = TempDir::new().unwrap();
    // A whole folder, and the files of one.
    gateway.ca.issue("far", &["far.example"], KeyKind::Ecdsa);
    for (from, to) in [
        (gateway.ca.certificate_file("far"), "fullchain.pem"),
        (gateway.ca.key_file("far"), "privkey.pem"),
    ] {
        fs::copy(from, elsewhere.path().join(to)).unwrap();
    }
    let link = certbot.live().join("far.example");
    let parts = [
        "identity \\\"all\\\": certificates",
        "far.example",
        elsewhere.path().to_str().unwrap(),
        "the sandbox of this process forbids",
        "restart the gateway",
        "unsafe_no_landlock",
    ];
    let is_told = |line: &serde_json::Value| {
        let text = line.to_string();
        line["level"] == "ERROR" && parts.iter().all(|part| text.contains(part))
    };
    symlink(elsewhere.path(), &link).unwrap();
    gateway.wait_for_line("why the changed files are not used", is_told);
    // The others go on.
    certbot.renew(&gateway.ca, SITE, 2);
    wait_until_served(&gateway, SITE, &certbot.certificate(SITE));
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    for file in ["fullchain.pem", "privkey.pem"] {
        symlink(elsewhere.path().join(file), link.join(file)).unwrap();
    }
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("why the reload is refused", |line| {
        is_told(line) && line.to_string().contains("far.example/fullchain.pem") && line.to_string().contains("reload")
    });
    wait_until_served(&gateway, SITE, &certbot.certificate(SITE));
    fs::remove_dir_all(&link).unwrap();
    reload(&gateway);
}

/// Each in a folder of its own, so that no rule for another lets it be read.
fn files_of_clients_and_staples_are_renewed(io: Io) {
    let (origin, folder) = (Origin::echo(), TempDir::new().unwrap());
    let at = |file: &str| folder.path().join(file);
    let setup = Setup::new(io, &[origin.address()]).no_identities();
    let root = Authority::root("clients");
    let put = |ca: &Ca| {
        let response = Answer::default().about(ca, "site");
        let files = [
            ("ca/a", root.pem().into_bytes()),
            ("route-ca/a", root.pem().into_bytes()),
            ("crl/a", root.list(&[])),
            ("route-crl/a", root.list(&[])),
            ("passphrase/a", b"a pass phrase\n".to_vec()),
            ("secret/a", (0..48).collect()),
            ("staple/a", response),
            // With its issuer, for the staple.
            (
                "certificate/a",
                [ca.certificate_file("site"), ca.file()]
                    .map(|file| fs::read(file).unwrap())
                    .concat(),
            ),
        ];
        for (file, content) in files {
            fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            fs::write(at("next"), content).unwrap();
            fs::rename(at("next"), at(file)).unwrap();
        }
        fs::create_dir_all(at("key")).unwrap();
        let (from, to) = (ca.key_file("site"), at("next"));
        let pass = format!("file:{}", at("passphrase/a").display());
        let files = ["-in", from.to_str().unwrap(), "-out", to.to_str().unwrap()];
        let arguments = [&["pkcs8", "-topk8", "-passout", &pass][..], &files].concat();
        run("openssl", &arguments, b"").ok();
        fs::rename(at("next"), at("key/a")).unwrap();
    };
    setup.ca().issue("site", &[SITE], KeyKind::Ecdsa);
    put(setup.ca());
    let [certificate, key, passphrase, staple, ca, crl, route_ca, route_crl] = [
        "certificate/a",
        "key/a",
        "passphrase/a",
        "staple/a",
        "ca/a",
        "crl/a",
        "route-ca/a",
        "route-crl/a",
    ]
    .map(at);
    let gateway = setup
        .any_identity(
            "site",
            &format!(
                "certificate = {certificate:?}\nkey = {key:?}\npassphrase_file = {passphrase:?}\nocsp = {staple:?}"
            ),
        )
        .listener(&format!(
            "client_auth = {{ mode = \"optional\", ca = {ca:?}, crl = [{crl:?}] }}\n\
             [[listener.routes]]\nsni = \"*.example\"\nupstream = \"app\"\n\
             client_auth = {{ mode = \"optional\", ca = {route_ca:?}, crl = [{route_crl:?}] }}"
        ))
        .more(&format!("[tickets]\nsecret = \"file:{}\"", at("secret/a").display()))
        .start();
    exchange(&gateway);
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    put(&gateway.ca);
    reload(&gateway);
    wait_until_served(&gateway, SITE, &at("certificate/a"));
    let seen = s_client_echo(&gateway, &["-status"]);
    assert!(seen.contains("Cert Status: good"), "{seen}");
    assert_eq!(errors(&gateway), [""; 0]);
}
