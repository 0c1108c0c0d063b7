//! Certificates, keys and revocation lists are loaded again when their files change, in whatever way they are replaced.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::*;

both_drivers!(
    a_rename_and_writing_in_place_are_seen,
    a_folder_that_is_swapped_by_a_link_is_seen,
    a_link_to_a_file_of_another_folder_is_followed,
    a_half_written_file_is_waited_for,
    certificate_and_key_may_come_one_after_the_other,
    a_key_that_the_signer_has_may_come_later,
    a_broken_certificate_is_an_alarm_and_the_old_one_stays,
    a_file_that_is_gone_may_come_back,
    one_broken_certificate_of_many_holds_up_no_other,
    a_revocation_list_is_in_force_by_itself,
    the_ca_of_a_route_is_in_force_by_itself,
    open_connections_count_under_their_epoch,
);

/// Longer than a changed file has to stay as it is before it is read.
const SETTLED: Duration = Duration::from_millis(600);

const SUCCESSFUL: &str = "ringlock_configuration_last_reload_successful";

fn watching(io: Io, origin: &Origin) -> Setup {
    Setup::new(io, &[origin.address()]).global("watch_files = true")
}

/// The certificate and key that [`Ca::issue`] has written for this name.
fn pair(gateway: &Gateway, name: &str) -> [PathBuf; 2] {
    [gateway.ca.certificate_file(name), gateway.ca.key_file(name)]
}

/// What a client of this name is shown.
fn shown(gateway: &Gateway, name: &str) -> Vec<u8> {
    let connection = Client::new(gateway).name(name).connect();
    let certificate = connection.certificate().to_vec();
    assert!(connection.finish().is_empty());
    certificate
}

/// Waits until clients of this name are shown the certificate of this file.
#[track_caller]
fn wait_until_served(gateway: &Gateway, name: &str, file: &Path) {
    let wanted = leaf_in(file);
    eventually(&format!("{} to be served", file.display()), || {
        (shown(gateway, name) == wanted).then_some(())
    });
}

fn reloads(gateway: &Gateway, result: &str) -> u64 {
    let labels = [("result", result), ("trigger", "file")];
    gateway.metrics().count("ringlock_configuration_reloads_total", &labels)
}

/// What the log says of files that cannot be used: errors, and the words in them.
fn alarms(gateway: &Gateway) -> Vec<String> {
    let lines = gateway.log_lines().into_iter();
    let alarms = lines.filter(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "ERROR" && message == "a changed file cannot be used, the old one stays in use"
    });
    alarms.map(|line| line["why"].as_str().unwrap().to_owned()).collect()
}

fn a_rename_and_writing_in_place_are_seen(io: Io) {
    let origin = Origin::echo();
    let gateway = watching(io, &origin).workers(2).start();
    let mut old = Client::new(&gateway).connect();
    gateway.ca.issue("next", &[SITE], KeyKind::Ecdsa);
    for (from, to) in pair(&gateway, "next").iter().zip(pair(&gateway, "site")) {
        fs::rename(from, to).unwrap();
    }
    wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    // Both files are written to as they are.
    gateway.ca.issue("site", &[SITE], KeyKind::Rsa);
    wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    echoes(&mut old, b"as before");
    assert!(old.finish().is_empty());
    let line = gateway.wait_for_line("which files", |line| line["message"] == "changed files are in use");
    assert!(line["files"].as_str().unwrap().contains("site.pem"), "{line}");
    assert_eq!(alarms(&gateway), [""; 0]);
    let metrics = gateway.metrics();
    assert_eq!(metrics.count(SUCCESSFUL, &[]), 1);
    assert_eq!(
        metrics.count("ringlock_configuration_epoch", &[]),
        1 + reloads(&gateway, "succeeded")
    );
    assert_eq!(reloads(&gateway, "failed"), 0);
}

/// As Kubernetes keeps secrets: `tls.crt` leads to `..data/tls.crt`, `..data` to a folder of one version, and only that link is replaced.
fn a_folder_that_is_swapped_by_a_link_is_seen(io: Io) {
    let origin = Origin::echo();
    let setup = watching(io, &origin).no_identities();
    let volume = setup.folder().join("volume");
    let put = |ca: &Ca, version: &str| {
        ca.issue(version, &[SITE], KeyKind::Ecdsa);
        fs::create_dir_all(volume.join(version)).unwrap();
        fs::rename(ca.certificate_file(version), volume.join(version).join("tls.crt")).unwrap();
        fs::rename(ca.key_file(version), volume.join(version).join("tls.key")).unwrap();
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    put(setup.ca(), "..2026_1");
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), volume.join(file)).unwrap();
    }
    let gateway = setup
        .issued_identity("secret", "volume/tls.crt", "volume/tls.key", "")
        .start();
    wait_until_served(&gateway, SITE, &volume.join("..2026_1/tls.crt"));
    for version in ["..2026_2", "..2026_3"] {
        let before = fs::read_link(volume.join("..data")).unwrap();
        put(&gateway.ca, version);
        fs::remove_dir_all(volume.join(before)).unwrap();
        wait_until_served(&gateway, SITE, &volume.join(version).join("tls.crt"));
    }
    assert_eq!(reloads(&gateway, "succeeded"), 2);
    assert_eq!(alarms(&gateway), [""; 0]);
}

/// As certbot does: `live/site/` has links to `archive/site/`, which are replaced one after the other.
fn a_link_to_a_file_of_another_folder_is_followed(io: Io) {
    let origin = Origin::echo();
    let setup = watching(io, &origin).no_identities();
    let (live, archive) = (setup.folder().join("live/site"), setup.folder().join("archive/site"));
    fs::create_dir_all(&live).unwrap();
    fs::create_dir_all(&archive).unwrap();
    let renew = |ca: &Ca, number: u32| {
        let name = format!("{number}");
        ca.issue(&name, &[SITE], KeyKind::Ecdsa);
        let files = [
            (ca.key_file(&name), "privkey"),
            (ca.certificate_file(&name), "fullchain"),
        ];
        for (file, kind) in files {
            fs::rename(file, archive.join(format!("{kind}{number}.pem"))).unwrap();
            let link = live.join(format!("{kind}.pem"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../archive/site/{kind}{number}.pem"), &link).unwrap();
        }
    };
    renew(setup.ca(), 1);
    let gateway = setup
        .issued_identity("site", "live/site/fullchain.pem", "live/site/privkey.pem", "")
        .start();
    for number in [2, 3] {
        renew(&gateway.ca, number);
        wait_until_served(&gateway, SITE, &archive.join(format!("fullchain{number}.pem")));
    }
    // Somebody writes to the file that the link leads to.
    gateway.ca.issue("4", &[SITE], KeyKind::Ecdsa);
    let [certificate, key] = pair(&gateway, "4");
    fs::copy(key, archive.join("privkey3.pem")).unwrap();
    fs::copy(certificate, archive.join("fullchain3.pem")).unwrap();
    wait_until_served(&gateway, SITE, &archive.join("fullchain3.pem"));
    assert_eq!(alarms(&gateway), [""; 0]);
}

fn a_half_written_file_is_waited_for(io: Io) {
    let origin = Origin::echo();
    let gateway = watching(io, &origin).start();
    let old = shown(&gateway, SITE);
    gateway.ca.issue("next", &[SITE], KeyKind::Ecdsa);
    let [certificate, key] = pair(&gateway, "next").map(|file| fs::read(file).unwrap());
    let [site, site_key] = pair(&gateway, "site");
    fs::write(&site, &certificate[..certificate.len() / 2]).unwrap();
    gateway.wait_for_line("that it cannot be used yet", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("yet"))
    });
    assert_eq!(shown(&gateway, SITE), old);
    fs::write(&site_key, &key[..key.len() / 3]).unwrap();
    std::thread::sleep(SETTLED);
    assert_eq!(shown(&gateway, SITE), old);
    fs::write(&site, &certificate).unwrap();
    fs::write(&site_key, &key).unwrap();
    wait_until_served(&gateway, SITE, &site);
    assert_eq!(reloads(&gateway, "succeeded"), 1);
    assert_eq!(reloads(&gateway, "failed"), 0);
    assert_eq!(alarms(&gateway), [""; 0]);
    assert_eq!(gateway.metrics().count(SUCCESSFUL, &[]), 1);
}

fn certificate_and_key_may_come_one_after_the_other(io: Io) {
    let origin = Origin::echo();
    one_after_the_other(&watching(io, &origin).start());
}

fn a_key_that_the_signer_has_may_come_later(io: Io) {
    let origin = Origin::echo();
    let setup = watching(io, &origin).no_identities();
    setup.ca().issue("site", &[SITE], KeyKind::Ecdsa);
    let isolated = "key_isolation = \"process\"";
    one_after_the_other(&setup.issued_identity("site", "site.pem", "site.key", isolated).start());
}

fn one_after_the_other(gateway: &Gateway) {
    for certificate_first in [true, false] {
        let old = shown(gateway, SITE);
        gateway.ca.issue("next", &[SITE], KeyKind::Ecdsa);
        let mut moves: Vec<_> = pair(gateway, "next").into_iter().zip(pair(gateway, "site")).collect();
        if !certificate_first {
            moves.reverse();
        }
        for (step, (from, to)) in moves.iter().enumerate() {
            if step > 0 {
                std::thread::sleep(SETTLED);
                assert_eq!(shown(gateway, SITE), old, "certificate first: {certificate_first}");
            }
            fs::rename(from, to).unwrap();
        }
        wait_until_served(gateway, SITE, &gateway.ca.certificate_file("site"));
    }
    assert_eq!(reloads(gateway, "succeeded"), 2);
    assert_eq!(alarms(gateway), [""; 0]);
}

fn a_broken_certificate_is_an_alarm_and_the_old_one_stays(io: Io) {
    let origin = Origin::echo();
    let gateway = watching(io, &origin).start();
    let old = shown(&gateway, SITE);
    let file = gateway.ca.certificate_file("site");
    let good = fs::read(&file).unwrap();
    let mut broken = good.clone();
    broken.truncate(good.len() - 40);
    for (count, content) in [broken, b"nothing".to_vec()].into_iter().enumerate() {
        fs::write(&file, content).unwrap();
        wait_for_metric(&gateway, SUCCESSFUL, &[], 0.0);
        eventually("an alarm", || (alarms(&gateway).len() > count).then_some(()));
        assert_eq!(shown(&gateway, SITE), old);
        assert_eq!(gateway.ask("/readyz").0, 200);
    }
    let alarms = alarms(&gateway);
    for alarm in &alarms {
        for part in ["identity \"site\": certificate", "site.pem", "expected", "check"] {
            assert!(alarm.contains(part), "{part:?} in {alarm:?}");
        }
    }
    // It is looked at in the meantime, and told once.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((alarms.len(), reloads(&gateway, "failed")), (2, 2));
    assert_eq!(gateway.metrics().count("ringlock_configuration_epoch", &[]), 1);
    fs::write(&file, good).unwrap();
    wait_for_metric(&gateway, SUCCESSFUL, &[], 1.0);
    assert_eq!(shown(&gateway, SITE), old);
}

fn a_file_that_is_gone_may_come_back(io: Io) {
    let origin = Origin::echo();
    let gateway = watching(io, &origin).start();
    let old = shown(&gateway, SITE);
    let key = gateway.ca.key_file("site");
    let away = gateway.folder().join("away");
    fs::rename(&key, &away).unwrap();
    wait_for_metric(&gateway, SUCCESSFUL, &[], 0.0);
    // The log has a thread of its own.
    let alarms = eventually("the alarm", || {
        Some(alarms(&gateway)).filter(|alarms| !alarms.is_empty())
    });
    assert!(
        alarms.len() == 1 && alarms[0].contains("identity \"site\": key") && alarms[0].contains("No such file"),
        "{alarms:?}"
    );
    assert_eq!(shown(&gateway, SITE), old);
    fs::rename(&away, &key).unwrap();
    wait_for_metric(&gateway, SUCCESSFUL, &[], 1.0);
    // And once more another, while the first is missing only for a moment.
    fs::remove_file(&key).unwrap();
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    assert_eq!(reloads(&gateway, "failed"), 1);
}

fn one_broken_certificate_of_many_holds_up_no_other(io: Io) {
    let origin = Origin::echo();
    let names: Vec<String> = (0..40).map(|number| format!("site{number}.example")).collect();
    let setup = names.iter().fold(watching(io, &origin), |setup, name| {
        setup.identity(name, &[name], KeyKind::Ecdsa)
    });
    let gateway = setup.start();
    let old = shown(&gateway, &names[7]);
    fs::write(gateway.ca.certificate_file(&names[7]), "broken").unwrap();
    for name in names.iter().filter(|name| **name != names[7]) {
        gateway.ca.issue(name, &[name], KeyKind::Ecdsa);
    }
    for name in names.iter().filter(|name| **name != names[7]) {
        wait_until_served(&gateway, name, &gateway.ca.certificate_file(name));
    }
    assert_eq!(shown(&gateway, &names[7]), old);
    wait_for_metric(&gateway, SUCCESSFUL, &[], 0.0);
    // The log has a thread of its own.
    let alarms = eventually("the alarm", || {
        Some(alarms(&gateway)).filter(|alarms| !alarms.is_empty())
    });
    assert!(
        alarms.len() == 1 && alarms[0].contains(&format!("identity \"{}\"", names[7])),
        "{alarms:?}"
    );
    // The others are renewed meanwhile, and that the one is broken is not forgotten.
    gateway.ca.issue(&names[8], &[&names[8]], KeyKind::Ecdsa);
    wait_until_served(&gateway, &names[8], &gateway.ca.certificate_file(&names[8]));
    assert_eq!(gateway.metrics().count(SUCCESSFUL, &[]), 0);
    gateway.ca.issue(&names[7], &[&names[7]], KeyKind::Ecdsa);
    wait_until_served(&gateway, &names[7], &gateway.ca.certificate_file(&names[7]));
    wait_for_metric(&gateway, SUCCESSFUL, &[], 1.0);
    // A signal takes all of them or none.
    fs::write(gateway.ca.certificate_file(&names[7]), "broken").unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    let labels = [("result", "failed"), ("trigger", "signal")];
    wait_for_metric(&gateway, "ringlock_configuration_reloads_total", &labels, 1.0);
}

fn a_revocation_list_is_in_force_by_itself(io: Io) {
    let origin = Origin::echo();
    let root = Authority::root("clients");
    let (one, other) = (root.client(), root.client());
    let whole = root.list(&[&one.chain[0]]);
    let setup = watching(io, &origin);
    let [ca, crl] = ["clients.pem", "clients.crl"].map(|name| setup.folder().join(name));
    fs::write(&ca, root.pem()).unwrap();
    fs::write(&crl, root.list(&[])).unwrap();
    let gateway = setup
        .listener(&format!(
            "client_auth = {{ mode = \"required\", ca = {ca:?}, crl = [{crl:?}] }}"
        ))
        .start();
    let (one, other) = (Client::new(&gateway).shows(&one), Client::new(&gateway).shows(&other));
    try_exchange(&one).unwrap();
    fs::write(&crl, &whole[..whole.len() - 1]).unwrap();
    gateway.wait_for_line("that it cannot be used yet", |line| {
        line["what"]
            .as_str()
            .is_some_and(|what| what.contains("client_auth.crl[0]"))
    });
    try_exchange(&one).unwrap();
    // Certificates do not wait for it.
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    let wanted = leaf_in(&gateway.ca.certificate_file("site"));
    eventually("the new certificate", || {
        (other.connect().certificate() == wanted).then_some(())
    });
    fs::write(&crl, &whole).unwrap();
    eventually("the new list", || try_exchange(&one).err());
    try_exchange(&other).unwrap();
}

fn the_ca_of_a_route_is_in_force_by_itself(io: Io) {
    let origin = Origin::echo();
    let (before, after) = (Authority::root("before"), Authority::root("after"));
    let setup = watching(io, &origin).identity("admin", &["admin.example"], KeyKind::Ecdsa);
    let [own, ca] = ["own.pem", "admin.ca.pem"].map(|name| setup.folder().join(name));
    for file in [&own, &ca] {
        fs::write(file, before.pem()).unwrap();
    }
    let gateway = setup
        .listener(&format!(
            "client_auth = {{ mode = \"required\", ca = {own:?} }}\n\
             routes = [{{ sni = \"admin.example\", upstream = \"app\", client_auth = {{ mode = \"required\", ca = {ca:?} }} }}]"
        ))
        .start();
    let [old, new] = [before.client(), after.client()].map(|shown| Client::new(&gateway).shows(&shown));
    let admin = |client: &Client<'_>| try_exchange(&client.clone().name("admin.example"));
    admin(&old).unwrap();
    admin(&new).unwrap_err();
    fs::write(&ca, after.pem()).unwrap();
    eventually("the new CA", || admin(&new).ok());
    admin(&old).unwrap_err();
    // The listener's own has not changed.
    try_exchange(&old).unwrap();
    try_exchange(&new).unwrap_err();
    // One that is broken stays as it was, also when the other changes.
    fs::write(&ca, "nothing").unwrap();
    gateway.wait_for_line("that it cannot be used yet", |line| {
        let what = line["what"].as_str().unwrap_or_default();
        what.contains("routes[0].client_auth.ca")
    });
    fs::write(&own, after.pem()).unwrap();
    eventually("the listener's new CA", || try_exchange(&new).ok());
    admin(&new).unwrap();
    admin(&old).unwrap_err();
}

fn open_connections_count_under_their_epoch(io: Io) {
    let origin = Origin::echo();
    let gateway = watching(io, &origin).workers(2).start();
    let by_epoch = |epoch: &str| {
        let metrics = gateway.metrics();
        metrics.sum("ringlock_connections_by_epoch", &[("epoch", epoch)])
    };
    let mut old: Vec<_> = (0..5).map(|_| Client::new(&gateway).connect()).collect();
    assert_eq!(by_epoch("1"), 5.0);
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    let epoch = gateway.metrics().count("ringlock_configuration_epoch", &[]).to_string();
    let mut new: Vec<_> = (0..3).map(|_| Client::new(&gateway).connect()).collect();
    eventually("those of before to end", || (by_epoch(&epoch) == 3.0).then_some(()));
    assert_eq!(by_epoch("1"), 5.0);
    for connection in old.iter_mut().chain(&mut new) {
        echoes(connection, b"still here");
    }
    for connection in old {
        assert!(connection.finish().is_empty());
    }
    eventually("the old epoch to be over", || {
        let metrics = gateway.metrics();
        let shown = metrics.has("ringlock_connections_by_epoch", &[("epoch", "1")]);
        (!shown).then_some(())
    });
    for connection in new {
        assert!(connection.finish().is_empty());
    }
}

#[test]
fn without_inotify_files_are_looked_at() {
    let (script, call) = ("tests/support/without_call.py", libc::SYS_inotify_init1.to_string());
    let origin = Origin::echo();
    let gateway = watching(Io::Epoll, &origin)
        .through(&[tool("python3").to_str().unwrap(), script, &call])
        .start();
    let line = gateway.wait_for_line("that the kernel tells nothing", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("the kernel does not tell of changed files")
    });
    assert_eq!(line["level"], "WARN");
    for _ in 0..2 {
        gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
        wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    }
}

#[test]
fn what_is_not_watched_waits_for_a_signal() {
    let origin = Origin::echo();
    let gateway = Setup::new(Io::Epoll, &[origin.address()])
        .global("watch_files = false")
        .start();
    let old = shown(&gateway, SITE);
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    // Longer than files are looked at without being told.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(shown(&gateway, SITE), old);
    assert_eq!(gateway.metrics().count("ringlock_configuration_epoch", &[]), 1);
    gateway.edit_config("watch_files = false", "watch_files = true");
    reload(&gateway);
    wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    // From now on it is; and the configuration file is not.
    gateway.edit_config("upstream = \"app\"", "upstraem = \"app\"");
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    wait_until_served(&gateway, SITE, &gateway.ca.certificate_file("site"));
    assert_eq!(reloads(&gateway, "succeeded"), 1);
}

/// What was read as root and is hidden from the user that the gateway becomes.
#[test]
fn a_file_that_cannot_be_looked_at_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let origin = Origin::echo();
    let setup = watching(Io::Epoll, &origin).no_identities().global("user = \"nobody\"");
    setup.ca().issue("site", &[SITE], KeyKind::Ecdsa);
    let hidden = setup.folder().join("private");
    fs::create_dir(&hidden).unwrap();
    fs::set_permissions(&hidden, PermissionsExt::from_mode(0o700)).unwrap();
    fs::set_permissions(setup.folder(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(setup.ca().key_file("site"), hidden.join("site.key")).unwrap();
    let gateway = setup
        .issued_identity("site", "site.pem", "private/site.key", "")
        .start();
    let line = gateway.wait_for_line("which file", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("cannot be looked at"))
    });
    assert_eq!(line["level"], "WARN");
    assert!(line["file"].as_str().unwrap().ends_with("private/site.key"), "{line}");
    exchange(&gateway);
    assert_eq!(gateway.metrics().count(SUCCESSFUL, &[]), 1);
}
