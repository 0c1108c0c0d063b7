//! PROXY v2 headers and log lines say whether the client has shown a certificate, and whose: also when it resumes a session.

use std::path::Path;

use crate::support::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, SanType, SerialNumber};
use tempfile::TempDir;

both_drivers!(
    who_shows_a_certificate_is_known_to_the_server,
    who_comes_back_is_known_by_its_session,
    a_name_that_could_be_read_in_two_ways_is_left_out,
    a_certificate_that_is_too_long_is_left_out,
    each_route_tells_of_its_own_clients,
    nginx_and_haproxy_take_the_header,
);

const SSL: u8 = 0x20;
const CN: u8 = 0x22;
const CLIENT_CERT: u8 = 0x28;

/// `client`: by TLS; with a certificate in this connection; with one in the session.
const BY_TLS: u8 = 0x01;
const CERT_CONN: u8 = 0x02;
const CERT_SESS: u8 = 0x04;

/// Whoever shows no certificate is let in, too.
fn setup(io: Io, origin: &Origin, folder: &Path, ca: &Authority, send_proxy: &str) -> Setup {
    let file = folder.join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    Setup::new(io, &[origin.address()])
        .listener(&format!("client_auth = {{ mode = \"optional\", ca = {file:?} }}"))
        .upstream(&format!("send_proxy = {send_proxy:?}"))
}

/// `client` and `verify`.
#[track_caller]
fn flags(header: &ProxyHeader) -> (u8, u32) {
    let &[client, ref verify @ ..] = header.tlvs[&SSL].as_slice() else {
        panic!("an SSL TLV has its flags: {header:?}")
    };
    (client, u32::from_be_bytes(verify.try_into().unwrap()))
}

fn named(params: &mut CertificateParams, names: &[(DnType, &str)]) {
    params.distinguished_name = DistinguishedName::new();
    for (kind, name) in names {
        params.distinguished_name.push(kind.clone(), *name);
    }
}

fn who_shows_a_certificate_is_known_to_the_server(io: Io) {
    let (origin, headers) = header_origin();
    let folder = TempDir::new().unwrap();
    let ca = Authority::root("clients");
    let shown = ca.below("below", KeyKind::Ecdsa).client_with(KeyKind::Ecdsa, |params| {
        named(
            params,
            &[(DnType::OrganizationName, "Example"), (DnType::CommonName, "Bäcker 7")],
        );
        params.serial_number = Some(SerialNumber::from_slice(&[0x0b, 0xad, 0xca, 0xfe]));
    });
    for send_proxy in ["v2", "v2_certificate"] {
        let gateway = setup(io, &origin, folder.path(), &ca, send_proxy).start();
        for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
            try_exchange(&client).unwrap();
            let header = headers.recv_timeout(PATIENCE).unwrap();
            assert_eq!(flags(&header), (BY_TLS, 1), "nobody has shown anything");
            assert!(!header.ssl.contains_key(&CN) && !header.ssl.contains_key(&CLIENT_CERT));

            try_exchange(&client.shows(&shown)).unwrap();
            let header = headers.recv_timeout(PATIENCE).unwrap();
            assert_eq!(flags(&header), (BY_TLS | CERT_CONN | CERT_SESS, 0));
            assert_eq!(header.ssl_text(CN), "Bäcker 7");
            let certificate = header.ssl.get(&CLIENT_CERT).map(Vec::as_slice);
            assert_eq!(
                certificate,
                (send_proxy == "v2_certificate").then_some(&*shown.chain[0])
            );
        }
        gateway.wait_until_quiet();
        let lines = || {
            let lines = gateway.log_lines();
            let (named, others): (Vec<_>, Vec<_>) = (lines.into_iter())
                .filter(|line| line["message"] == "connection")
                .partition(|line| line["client_serial"] == "0badcafe");
            (named.len() == 2 && others.len() == 2).then_some((named, others))
        };
        let (named, others) = eventually("four lines", lines);
        for line in named {
            assert_eq!(line["client_subject"], "O=Example, CN=Bäcker 7", "{line}");
        }
        for line in others {
            assert!(
                line.get("client_subject").is_none() && line.get("client_serial").is_none(),
                "{line}"
            );
        }
    }
}

/// Tickets and sessions that are kept here, in both versions.
fn who_comes_back_is_known_by_its_session(io: Io) {
    let (origin, headers) = header_origin();
    let folder = TempDir::new().unwrap();
    let ca = Authority::root("clients");
    let shown = ca.client();
    for tls in ["", "tickets = false\nsession_cache = \"4MiB\""] {
        let gateway = setup(io, &origin, folder.path(), &ca, "v2_certificate")
            .tls(tls)
            .start();
        for version in ["1.2", "1.3"] {
            let client = |wallet: &Wallet| {
                let client = Client::new(&gateway).wallet(wallet);
                if version == "1.2" {
                    client.tls12()
                } else {
                    client.tls13()
                }
            };
            let wallet = Wallet::new(&gateway.ca);
            for (expected, expected_flags) in [
                (Visit::Full, BY_TLS | CERT_CONN | CERT_SESS),
                (Visit::Resumed, BY_TLS | CERT_SESS),
                (Visit::Resumed, BY_TLS | CERT_SESS),
            ] {
                assert_eq!(client(&wallet).shows(&shown).visit(), expected);
                let header = headers.recv_timeout(PATIENCE).unwrap();
                assert_eq!(flags(&header), (expected_flags, 0), "{version} {tls:?}");
                assert_eq!(header.ssl_text(CN), "a client");
                assert_eq!(header.ssl[&CLIENT_CERT], *shown.chain[0]);
            }
            // A session of nobody makes nobody known.
            let wallet = Wallet::new(&gateway.ca);
            for expected in [Visit::Full, Visit::Resumed] {
                assert_eq!(client(&wallet).visit(), expected);
                let header = headers.recv_timeout(PATIENCE).unwrap();
                assert_eq!(flags(&header), (BY_TLS, 1));
                assert!(!header.ssl.contains_key(&CN) && !header.ssl.contains_key(&CLIENT_CERT));
            }
        }
        gateway.wait_until_quiet();
        gateway.wait_for_line("one that was resumed", |line| {
            line["resumed"] == true && line["client_subject"] == "CN=a client"
        });
    }
}

fn a_name_that_could_be_read_in_two_ways_is_left_out(io: Io) {
    let (origin, headers) = header_origin();
    let folder = TempDir::new().unwrap();
    let ca = Authority::root("clients");
    let gateway = setup(io, &origin, folder.path(), &ca, "v2").start();
    let second = || DnType::CustomDnType(vec![2, 5, 4, 3]);
    for names in [
        &[(DnType::CommonName, "admin\0.example")][..],
        &[(DnType::CommonName, "admin\r\nX-Client: root")],
        &[(DnType::CommonName, "guest"), (second(), "admin")],
        &[(DnType::OrganizationName, "no name")],
    ] {
        let shown = ca.client_with(KeyKind::Ecdsa, |params| named(params, names));
        try_exchange(&Client::new(&gateway).shows(&shown)).unwrap();
        let header = headers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(flags(&header), (BY_TLS | CERT_CONN | CERT_SESS, 0));
        assert!(!header.ssl.contains_key(&CN), "{header:?}");
    }
    gateway.wait_until_quiet();
    // Each is one line of the log all the same.
    for line in gateway.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

fn a_certificate_that_is_too_long_is_left_out(io: Io) {
    let (origin, headers) = header_origin();
    let folder = TempDir::new().unwrap();
    let ca = Authority::root("clients");
    let with_names = |count: usize| {
        ca.client_with(KeyKind::Ecdsa, |params| {
            let name = |number| SanType::DnsName(format!("{number:032}.clients.example").try_into().unwrap());
            params.subject_alt_names = (0..count).map(name).collect();
        })
    };
    let gateway = setup(io, &origin, folder.path(), &ca, "v2_certificate").start();
    let left_out = || {
        gateway
            .metrics()
            .count("ringlock_proxy_certificates_left_out_total", &[])
    };
    for (count, fits) in [(60, true), (100, false)] {
        let shown = with_names(count);
        assert_eq!(shown.chain[0].len() < 3600, fits, "{}", shown.chain[0].len());
        let before = left_out();
        try_exchange(&Client::new(&gateway).shows(&shown)).unwrap();
        let header = headers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(flags(&header), (BY_TLS | CERT_CONN | CERT_SESS, 0));
        assert_eq!(header.ssl_text(CN), "a client");
        assert_eq!(header.ssl.contains_key(&CLIENT_CERT), fits);
        assert_eq!(left_out() - before, u64::from(!fits));
    }
    gateway.wait_until_quiet();
}

/// A client that a route lets in without a certificate is nobody, whatever it has shown elsewhere.
fn each_route_tells_of_its_own_clients(io: Io) {
    let (origin, headers) = header_origin();
    let folder = TempDir::new().unwrap();
    let ca = Authority::root("clients");
    let gateway = setup(io, &origin, folder.path(), &ca, "v2")
        .identity("open", &["open.example"], KeyKind::Ecdsa)
        .listener("routes = [{ sni = \"open.example\", upstream = \"app\", client_auth = { mode = \"off\" } }]")
        .start();
    let wallet = Wallet::new(&gateway.ca);
    let shown = ca.client();
    let client = Client::new(&gateway).wallet(&wallet).shows(&shown);
    for (name, expected) in [
        (SITE, (BY_TLS | CERT_CONN | CERT_SESS, 0)),
        ("open.example", (BY_TLS, 1)),
        ("open.example", (BY_TLS, 1)),
        (SITE, (BY_TLS | CERT_CONN | CERT_SESS, 0)),
    ] {
        client.clone().name(name).visit();
        let header = headers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(flags(&header), expected, "{name}");
        assert_eq!(header.ssl.contains_key(&CN), name == SITE);
    }
    gateway.wait_until_quiet();
}

fn nginx_and_haproxy_take_the_header(io: Io) {
    let (origin, _headers) = header_origin();
    let folder = TempDir::new().unwrap();
    let ca = Authority::root("clients");
    let shown = ca.client_with(KeyKind::Rsa4096, |_| {});
    let (nginx_address, haproxy_address) = (free_address(), free_address());
    let _nginx = Balancer::nginx(
        &format!(
            "http {{ client_header_buffer_size 8k; server {{ listen {nginx_address} proxy_protocol; location / {{ return 200 \
             \"$proxy_protocol_addr:$proxy_protocol_port\"; }} }} }}"
        ),
        nginx_address,
    );
    let _haproxy = Balancer::haproxy(
        &format!(
            "frontend origin\n  mode http\n  bind {haproxy_address} accept-proxy\n  http-request return status 200 content-type \
             text/plain lf-string \"%[src]:%[src_port]\""
        ),
        haproxy_address,
    );
    for address in [nginx_address, haproxy_address] {
        for send_proxy in ["v2", "v2_certificate"] {
            let gateway = setup(io, &origin, folder.path(), &ca, send_proxy).start();
            gateway.edit_config(&origin.address().to_string(), &address.to_string());
            reload(&gateway);
            // The only worker has heard of it after its next turn.
            let _ = Client::new(&gateway).try_connect();
            let mut client = Client::new(&gateway).shows(&shown).connect();
            let expected = client.stream.local_addr().unwrap().to_string();
            client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n");
            let (answer, _) = client.receive_to_end();
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.contains(" 200 ") && answer.ends_with(&expected),
                "{send_proxy}: {answer}"
            );
        }
    }
}
