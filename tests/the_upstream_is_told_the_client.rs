//! `send_proxy`: a raw origin, nginx and HAProxy learn who the client is.

use crate::support::*;

use std::net::SocketAddr;

use rustls::CipherSuite;

both_drivers!(
    version_1_has_both_addresses,
    version_2_has_addresses_and_tls,
    version_2_leaves_out_what_was_not_negotiated,
    the_header_comes_before_any_byte_of_the_client,
    nginx_understands_both_versions,
    haproxy_understands_both_versions,
);

fn version_1_has_both_addresses(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = Setup::new(io, &[origin.address()])
        .upstream("send_proxy = \"v1\"")
        .start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"hello");
    assert_eq!(client.receive(5), b"hello");
    let header = headers.recv_timeout(PATIENCE).unwrap();
    assert_eq!(header.version, 1);
    assert_eq!(header.source, Some(client.stream.local_addr().unwrap()));
    assert_eq!(header.destination, Some(gateway.address));
    assert!(client.finish().is_empty());
}

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CIPHER: u8 = 0x23;

fn version_2_has_addresses_and_tls(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = Setup::new(io, &[origin.address()])
        .upstream("send_proxy = \"v2\"")
        .tls("alpn = [\"h2\", \"http/1.1\"]")
        .start();
    let tls13 = Client::new(&gateway)
        .tls13()
        .suites(&[CipherSuite::TLS13_AES_256_GCM_SHA384])
        .alpn(&["h2"]);
    let tls12 = Client::new(&gateway)
        .tls12()
        .suites(&[CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256])
        .alpn(&["http/1.1"]);
    for (client, version, cipher, alpn) in [
        (tls13, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "h2"),
        // The name that OpenSSL, and with it HAProxy, has for it.
        (tls12, "TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "http/1.1"),
    ] {
        let mut client = client.connect();
        client.send(b"hello");
        assert_eq!(client.receive(5), b"hello");
        let header = headers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(header.version, 2);
        assert_eq!(header.source, Some(client.stream.local_addr().unwrap()));
        assert_eq!(header.destination, Some(gateway.address));
        assert_eq!(header.text(ALPN), alpn);
        assert_eq!(header.text(AUTHORITY), SITE);
        let fixed = &header.tlvs[&SSL];
        assert_eq!(fixed[0], 0x01, "the client came by TLS and showed no certificate");
        assert_ne!(fixed[1..], [0; 4], "nothing was verified");
        assert_eq!(header.ssl_text(SSL_VERSION), version);
        assert_eq!(header.ssl_text(SSL_CIPHER), cipher);
        assert!(client.finish().is_empty());
    }
}

fn version_2_leaves_out_what_was_not_negotiated(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = Setup::new(io, &[origin.address()])
        .upstream("send_proxy = \"v2\"")
        .start();
    assert!(Client::new(&gateway).no_name().connect().finish().is_empty());
    let header = headers.recv_timeout(PATIENCE).unwrap();
    assert_eq!(header.tlvs.keys().copied().collect::<Vec<_>>(), [SSL], "{header:?}");
}

fn the_header_comes_before_any_byte_of_the_client(io: Io) {
    let (origin, headers) = header_origin();
    for (connect_on, silent) in [("handshake", true), ("first_byte", false)] {
        let gateway = Setup::new(io, &[origin.address()])
            .upstream(&format!("send_proxy = \"v2\"\nconnect_on = \"{connect_on}\""))
            .start();
        let mut client = Client::new(&gateway).connect();
        if silent {
            headers
                .recv_timeout(PATIENCE)
                .expect("the header does not wait for the client");
        } else {
            assert_eq!(
                gateway.metrics().sum("ringlock_upstream_server_connected_total", &[]),
                0.0
            );
        }
        client.send(b"first");
        assert_eq!(client.receive(5), b"first");
        if !silent {
            headers.recv_timeout(PATIENCE).unwrap();
        }
        assert!(client.finish().is_empty());
    }
}

/// The body of what an HTTP server answers through the gateway, with the client's address.
fn get(gateway: &Gateway) -> (String, SocketAddr) {
    let mut client = Client::new(gateway).connect();
    let address = client.stream.local_addr().unwrap();
    client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let (answer, _) = client.receive_to_end();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (body.trim().to_owned(), address)
}

fn nginx_understands_both_versions(io: Io) {
    let address = free_address();
    let nginx = Balancer::nginx(
        &format!(
            "http {{ server {{ listen {address} proxy_protocol; location / {{ return 200 \
             \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }} }} }}"
        ),
        address,
    );
    for version in ["v1", "v2"] {
        let gateway = Setup::new(io, &[address])
            .upstream(&format!("send_proxy = \"{version}\""))
            .start();
        let (body, client) = get(&gateway);
        assert_eq!(
            body,
            format!("{client} {}", gateway.address),
            "{version}: {}",
            nginx.program.text()
        );
    }
}

fn haproxy_understands_both_versions(io: Io) {
    let address = free_address();
    let haproxy = Balancer::haproxy(
        &format!(
            "frontend origin\n  mode http\n  bind {address} accept-proxy\n  http-request return status 200 content-type \
             text/plain lf-string \"%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority]\""
        ),
        address,
    );
    for version in ["v1", "v2"] {
        let gateway = Setup::new(io, &[address])
            .upstream(&format!("send_proxy = \"{version}\""))
            .start();
        let (body, client) = get(&gateway);
        let authority = if version == "v2" { SITE } else { "" };
        let expected = format!("{client} {} {authority}", gateway.address);
        assert_eq!(body, expected.trim(), "{version}: {}", haproxy.program.text());
    }
}
