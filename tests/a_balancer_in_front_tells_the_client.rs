//! `accept_proxy`: the PROXY header of a balancer in front is believed, and nothing else is taken for one.

use crate::support::*;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

both_drivers!(
    haproxy_in_front_tells_the_client,
    nginx_in_front_tells_the_client,
    a_header_may_come_byte_by_byte_and_with_the_hello,
    a_header_that_names_nobody_leaves_the_address,
    what_is_no_header_is_refused_at_once,
    a_header_that_does_not_end_is_refused,
    a_header_that_does_not_come_is_not_waited_for_long,
    without_accept_proxy_a_header_is_no_tls,
);

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn gateway(io: Io, origin: &Origin) -> Gateway {
    Setup::new(io, &[origin.address()])
        .listener("accept_proxy = true")
        .upstream("send_proxy = \"v2\"")
        .start()
}

/// A client of this gateway by way of another address.
fn by_way_of(address: SocketAddr, gateway: &Gateway) -> Connection {
    let mut connection = Client::new(gateway).open();
    connection.stream = TcpStream::connect(address).unwrap();
    connection.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// The client that came through `balancer` is the one in the log and the one that the origin is told.
#[track_caller]
fn is_told(gateway: &Gateway, balancer: SocketAddr, headers: &std::sync::mpsc::Receiver<ProxyHeader>) {
    let mut client = by_way_of(balancer, gateway);
    let address = client.stream.local_addr().unwrap();
    client.handshake().unwrap();
    client.send(b"hello");
    assert_eq!(client.receive(5), b"hello");
    assert!(client.finish().is_empty());
    let header = headers.recv_timeout(PATIENCE).unwrap();
    assert_eq!(header.source, Some(address), "passed on");
    assert_eq!(header.destination, Some(balancer), "passed on");
    let peer = address.to_string();
    gateway.wait_for_line("the client's address", |line| line["peer"] == peer.as_str());
}

fn haproxy_in_front_tells_the_client(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = gateway(io, &origin);
    for option in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2-ssl",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    ] {
        let front = free_address();
        let server = gateway.address;
        let haproxy = Balancer::haproxy(
            &format!(
                "listen front\n  mode tcp\n  bind {front}\n  unique-id-format %ci\n  server gateway {server} {option}"
            ),
            front,
        );
        is_told(&gateway, front, &headers);
        drop(haproxy);
    }
}

fn nginx_in_front_tells_the_client(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = gateway(io, &origin);
    let front = free_address();
    let blocks = format!(
        "stream {{ server {{ listen {front}; proxy_pass {}; proxy_protocol on; }} }}",
        gateway.address
    );
    let _nginx = Balancer::nginx(&blocks, front);
    is_told(&gateway, front, &headers);
}

/// A version 2 header for these addresses with a TLV of an unknown kind.
fn v2(source: &str, destination: &str) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut rest = Vec::new();
    let mut family = 0x11;
    for address in [source, destination] {
        match address.ip() {
            std::net::IpAddr::V4(ip) => rest.extend(ip.octets()),
            std::net::IpAddr::V6(ip) => {
                family = 0x21;
                rest.extend(ip.octets());
            }
        }
    }
    rest.extend(source.port().to_be_bytes());
    rest.extend(destination.port().to_be_bytes());
    rest.extend([0xe7, 0, 3, 1, 2, 3]);
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [V2, &[0x21, family], &length, &rest].concat()
}

fn a_header_may_come_byte_by_byte_and_with_the_hello(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = gateway(io, &origin);
    let sent = [
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(),
            ("192.0.2.1:56324", "192.0.2.2:443"),
        ),
        (
            b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n".to_vec(),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535"),
        ),
        (v2("192.0.2.7:77", "192.0.2.8:443"), ("192.0.2.7:77", "192.0.2.8:443")),
        (
            v2("[2001:db8::7]:77", "[2001:db8::8]:443"),
            ("[2001:db8::7]:77", "[2001:db8::8]:443"),
        ),
    ];
    for (header, (source, destination)) in &sent {
        for piecewise in [true, false] {
            let mut client = Client::new(&gateway).open();
            if piecewise {
                for byte in header {
                    client.stream.write_all(&[*byte]).unwrap();
                    std::thread::sleep(Duration::from_micros(200));
                }
            } else {
                let hello = client.take_outgoing();
                client.stream.write_all(&[header.as_slice(), &hello].concat()).unwrap();
            }
            client.handshake().unwrap();
            client.send(b"hello");
            assert_eq!(client.receive(5), b"hello");
            assert!(client.finish().is_empty());
            let told = headers.recv_timeout(PATIENCE).unwrap();
            assert_eq!(told.source, Some(source.parse().unwrap()));
            assert_eq!(told.destination, Some(destination.parse().unwrap()));
            gateway.wait_for_line("the address of the header", |line| line["peer"] == *source);
        }
    }
}

fn a_header_that_names_nobody_leaves_the_address(io: Io) {
    let (origin, headers) = header_origin();
    let gateway = gateway(io, &origin);
    let local = [V2, &[0x20, 0x00, 0, 0]].concat();
    for header in [
        b"PROXY UNKNOWN\r\n".as_slice(),
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        &local,
    ] {
        let mut client = Client::new(&gateway).open();
        let own = client.stream.local_addr().unwrap();
        client.stream.write_all(header).unwrap();
        client.handshake().unwrap();
        assert!(client.finish().is_empty());
        assert_eq!(headers.recv_timeout(PATIENCE).unwrap().source, Some(own));
        let own = own.to_string();
        gateway.wait_for_line("the address of the connection", |line| line["peer"] == own.as_str());
    }
}

/// Sends bytes and expects the end with no answer; returns the line in the log.
#[track_caller]
fn refused(gateway: &Gateway, bytes: &[u8]) -> serde_json::Value {
    let mut stream = gateway.connect_tcp();
    let peer = stream.local_addr().unwrap().to_string();
    stream.write_all(bytes).unwrap();
    let answer = read_alert(&mut stream);
    assert!(matches!(answer, Alert::Nothing | Alert::Reset), "{answer:?}");
    let line = gateway.wait_for_line("the refusal", |line| line["peer"] == peer.as_str());
    assert_eq!(line["cause_label"], "proxy_header", "{line}");
    assert_eq!(line["fault"], "peer", "{line}");
    line
}

fn what_is_no_header_is_refused_at_once(io: Io) {
    let origin = Origin::echo();
    let gateway = gateway(io, &origin);
    let hello = Client::new(&gateway).open().take_outgoing();
    let other_version = [V2, &[0x31, 0x11, 0, 12], &[0; 12]].concat();
    let short = [V2, &[0x21, 0x11, 0, 4], &[0; 4]].concat();
    let mut spoilt = V2.to_vec();
    spoilt[11] = b'!';
    for (bytes, why) in [
        (hello.as_slice(), "missing"),
        (b"GET / HTTP/1.1\r\n\r\n", "missing"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 99999 443\r\n", "malformed"),
        (b"PROXY TCP4 192.0.2.1 2001:db8::1 1 443\r\n", "malformed"),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 443\r\n", "protocol"),
        (&spoilt, "missing"),
        (&other_version, "another version"),
        (&short, "too short"),
    ] {
        let line = refused(&gateway, bytes);
        let cause = line["cause"].as_str().unwrap();
        assert!(
            cause.starts_with("PROXY header: ") && cause.contains(why),
            "{why:?} in {cause:?}"
        );
    }
    assert_eq!(origin.accepted(), 0, "the origin hears of none of them");
    gateway.wait_until_quiet();
}

fn a_header_that_does_not_end_is_refused(io: Io) {
    let gateway = gateway(io, &Origin::closing());
    let line = refused(&gateway, &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat());
    assert!(
        line["cause"].as_str().unwrap().contains("longer than 107 bytes"),
        "{line}"
    );
    let line = refused(&gateway, &[V2, &[0x21, 0x11, 0xff, 0xff], &[0; 100]].concat());
    assert!(
        line["cause"].as_str().unwrap().contains("longer than 4096 bytes"),
        "{line}"
    );
}

fn a_header_that_does_not_come_is_not_waited_for_long(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("accept_proxy = true\nhandshake_timeout = \"300ms\"")
        .start();
    let begin = Instant::now();
    for start in [b"".as_slice(), b"PROXY TCP4 192.", &V2[..7]] {
        let mut stream = gateway.connect_tcp();
        stream.write_all(start).unwrap();
        let answer = read_alert(&mut stream);
        assert!(matches!(answer, Alert::Nothing | Alert::Reset), "{answer:?}");
    }
    assert!(begin.elapsed() >= Duration::from_millis(900), "each is waited for");
    gateway.wait_for_ended("handshake_timeout", 3);
    // The header counts: one that comes late leaves the handshake less time.
    let mut client = Client::new(&gateway).open();
    client.stream.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    client.handshake().unwrap();
    assert!(client.finish().is_empty());
}

fn without_accept_proxy_a_header_is_no_tls(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut stream = gateway.connect_tcp();
    stream
        .write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n")
        .unwrap();
    read_alert(&mut stream);
    drop(stream);
    let line = gateway.wait_for_cause("client does not speak TLS");
    assert!(
        line["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "not who it claims to be: {line}"
    );
}
