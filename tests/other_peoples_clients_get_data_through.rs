//! openssl, curl, Python, GnuTLS and rustls reach an origin through the gateway.

use crate::support::*;

both_drivers!(
    openssl_gets_an_echo_in_tls_1_2,
    openssl_gets_an_echo_in_tls_1_3,
    curl_gets_a_page,
    python_gets_an_echo_and_a_clean_end,
    gnutls_gets_an_echo,
    rustls_gets_an_echo,
);

fn openssl_gets_an_echo_in_tls_1_2(io: Io) {
    openssl_gets_an_echo(io, "-tls1_2", "TLSv1.2");
}

fn openssl_gets_an_echo_in_tls_1_3(io: Io) {
    openssl_gets_an_echo(io, "-tls1_3", "TLSv1.3");
}

fn openssl_gets_an_echo(io: Io, flag: &str, version: &str) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let strict = ["-verify_return_error", "-verify_hostname", SITE, flag];
    let mut client = Program::start("openssl", &s_client_arguments(&gateway, &strict));
    client.send(b"there and back\n");
    client.wait_for("there and back");
    let said = client.finish().ok().says("Verify return code: 0 (ok)");
    assert!(said.text().contains(version), "{said:#?}");
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}

fn curl_gets_a_page(io: Io) {
    let origin = Origin::http("a page of the origin");
    let gateway = Setup::new(io, &[origin.address()]).start();
    let (ip, port, ca) = (gateway.address.ip(), gateway.address.port(), gateway.ca.file());
    let (resolve, url) = (format!("{SITE}:{port}:{ip}"), format!("https://{SITE}:{port}/"));
    let arguments = ["--silent", "--show-error", "--fail", "--cacert", ca.to_str().unwrap()];
    let target = ["--resolve", &resolve, &url];
    let got = run("curl", &[&arguments[..], &target].concat(), b"").ok();
    assert_eq!(got.stdout, "a page of the origin");
    gateway.wait_until_quiet();
}

fn python_gets_an_echo_and_a_clean_end(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let script = r#"
import socket, ssl, sys
ip, port, name, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
plain = socket.create_connection((ip, int(port)), timeout=30)
with context.wrap_socket(plain, server_hostname=name) as tls:
    data = bytes(range(256)) * 1000
    tls.sendall(data)
    got = b""
    while len(got) < len(data):
        piece = tls.recv(65536)
        assert piece, "the stream ended early"
        got += piece
    assert got == data
    # Sends close_notify, and fails unless it gets one.
    rest = tls.unwrap()
    assert rest.recv(1) == b""
print("ok")
"#;
    let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
    let said = python(script, &[&ip, &port, SITE, gateway.ca.file().to_str().unwrap()]);
    assert_eq!(said.trim(), "ok");
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}

fn gnutls_gets_an_echo(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
    let ca = gateway.ca.file();
    let trust = ["--x509cafile", ca.to_str().unwrap(), "--verify-hostname", SITE];
    let target = ["--sni-hostname", SITE, "--port", &port, &ip];
    let mut client = Program::start("gnutls-cli", &[&trust[..], &target].concat());
    client.wait_for("Handshake was completed");
    client.send(b"there and back\n");
    client.wait_for("there and back");
    client.finish().ok().says("The certificate is trusted");
    gateway.wait_until_quiet();
}

fn rustls_gets_an_echo(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"hello");
    assert_eq!(client.receive(5), b"hello");
    assert!(client.finish().is_empty());
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}
