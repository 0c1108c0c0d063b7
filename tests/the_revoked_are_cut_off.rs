//! `close_revoked`: a reload that revokes or denies a client's certificate ends its connections, and no other's.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::support::*;
use rustls_pki_types::CertificateDer;

both_drivers!(
    who_is_revoked_is_cut_off_and_nobody_else,
    a_denied_client_is_cut_off,
    a_handshake_that_a_reload_overtakes_is_cut_off,
    many_are_looked_through,
    without_the_key_nobody_is_cut_off,
);

/// With a list of the root in `root.crl` and one of a CA below it in `below.crl`.
struct Lists {
    files: ClientFiles,
    below: Authority,
}

impl Lists {
    fn new() -> Lists {
        let files = ClientFiles::new();
        let below = files.root.below("below", KeyKind::Ecdsa);
        let lists = Lists { files, below };
        lists.revoke(&[], &[]);
        lists
    }

    fn revoke(&self, of_root: &[&CertificateDer<'_>], of_below: &[&CertificateDer<'_>]) {
        self.files.write("root.crl", self.files.root.list(of_root));
        self.files.write("below.crl", self.below.list(of_below));
    }

    fn gateway(&self, io: Io, origin: &Origin, close_revoked: bool) -> Gateway {
        let lists = ["root.crl", "below.crl"].map(|name| self.files.path(name));
        let keys = format!("crl = {lists:?}, deny = [], close_revoked = {close_revoked}");
        self.files.setup(io, origin, &keys).workers(2).start()
    }
}

fn open(client: &Client<'_>) -> Connection {
    let mut connection = client.connect();
    echoes(&mut connection, b"let in");
    connection
}

/// Without close_notify.
#[track_caller]
fn is_cut_off(mut connection: Connection) {
    let (rest, end) = connection.receive_to_end();
    assert!(rest.is_empty() && end != End::CloseNotify, "{rest:?}, {end:?}");
}

#[track_caller]
fn goes_on(mut connection: Connection) {
    echoes(&mut connection, b"still here");
    assert!(connection.finish().is_empty());
}

#[track_caller]
fn said_of_one(gateway: &Gateway, start: &str) {
    let line = gateway.wait_for_line(start, |line| {
        let cause = line["cause"].as_str().unwrap_or_default();
        cause.starts_with(start) && cause.ends_with(", since the connection began")
    });
    assert_eq!(line["fault"], "peer", "{line}");
}

fn cut_off(gateway: &Gateway) -> u64 {
    let labels = [("cause", "client_revoked"), ("fault", "peer")];
    gateway.metrics().count("ringlock_connections_ended_total", &labels)
}

fn who_is_revoked_is_cut_off_and_nobody_else(io: Io) {
    // What the server's end says of each connection.
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ends);
    let origin = Origin::start(move |mut stream| {
        let mut buffer = [0; 64];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return seen.lock().unwrap().push("end"),
                Ok(length) => std::io::Write::write_all(&mut stream, &buffer[..length]).unwrap(),
                Err(_) => return seen.lock().unwrap().push("reset"),
            }
        }
    });
    let lists = Lists::new();
    let (bad, good) = (lists.files.root.client(), lists.files.root.client());
    let (bad_below, good_below) = (lists.below.client(), lists.below.client());
    let gateway = lists.gateway(io, &origin, true);
    let wallet = || Wallet::new(&gateway.ca);
    let client = |shown: &Shown| Client::new(&gateway).shows(shown).wallet(&wallet());
    let connections = |shown: &Shown| {
        let mut connections = Vec::new();
        for client in [client(shown).tls12(), client(shown).tls13()] {
            // The first is a full handshake, the second has the chain from the session.
            assert_eq!(client.visit(), Visit::Full);
            let resumed = open(&client);
            assert_eq!(resumed.tls.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
            connections.push(resumed);
        }
        connections.push(open(&Client::new(&gateway).shows(shown)));
        connections
    };
    let [bad_ones, good_ones, bad_below_ones, good_below_ones] =
        [&bad, &good, &bad_below, &good_below].map(connections);
    ends.lock().unwrap().clear();
    lists.revoke(&[&bad.chain[0]], &[&bad_below.chain[0]]);
    reload(&gateway);
    for connection in bad_ones.into_iter().chain(bad_below_ones) {
        is_cut_off(connection);
    }
    assert_eq!(cut_off(&gateway), 6);
    said_of_one(&gateway, "client certificate revoked (serial ");
    eventually("the server to see it", || {
        (ends.lock().unwrap().len() == 6).then_some(())
    });
    assert_eq!(*ends.lock().unwrap(), ["reset"; 6]);
    for mut connection in good_ones {
        echoes(&mut connection, b"still here");
        assert!(connection.finish().is_empty());
    }
    // A CA between them and the root counts, too.
    lists.revoke(&[lists.below.der()], &[]);
    reload(&gateway);
    for connection in good_below_ones {
        is_cut_off(connection);
    }
    assert_eq!(cut_off(&gateway), 9);
    gateway.wait_until_quiet();
}

fn a_denied_client_is_cut_off(io: Io) {
    let origin = Origin::echo();
    let lists = Lists::new();
    let (bad, good) = (lists.files.root.client(), lists.files.root.client());
    let gateway = lists.gateway(io, &origin, true);
    let [bad_one, good_one] = [&bad, &good].map(|shown| open(&Client::new(&gateway).shows(shown)));
    let digits = |byte: &u8| format!("{byte:02x}");
    let serial: String = serial(&bad.chain[0]).iter().map(digits).collect();
    gateway.edit_config("deny = []", &format!("deny = [\"serial:{serial}\"]"));
    reload(&gateway);
    is_cut_off(bad_one);
    said_of_one(&gateway, "client certificate denied: \"serial:");
    // One more reload that changes nothing of it.
    reload(&gateway);
    goes_on(good_one);
    assert_eq!(cut_off(&gateway), 1);
    gateway.wait_until_quiet();
}

/// It is verified by the rules that it began with, and let in by none that are older than those in force.
fn a_handshake_that_a_reload_overtakes_is_cut_off(io: Io) {
    let origin = Origin::echo();
    let lists = Lists::new();
    let (bad, good) = (lists.files.root.client(), lists.files.root.client());
    let gateway = lists.gateway(io, &origin, true);
    let begin = |shown: &Shown| {
        let mut connection = Client::new(&gateway).shows(shown).tls13().open();
        // The ClientHello goes; what comes back is read, and the answer to it kept.
        connection.flush().unwrap();
        while !connection.tls.wants_write() {
            assert!(connection.tls.read_tls(&mut connection.stream).unwrap() > 0);
            connection.tls.process_new_packets().unwrap();
        }
        connection
    };
    let [bad_one, mut good_one] = [begin(&bad), begin(&good)];
    lists.revoke(&[&bad.chain[0]], &[]);
    reload(&gateway);
    let mut bad_one = bad_one;
    bad_one.handshake().unwrap();
    is_cut_off(bad_one);
    good_one.handshake().unwrap();
    goes_on(good_one);
    assert_eq!(cut_off(&gateway), 1);
    gateway.wait_until_quiet();
}

fn many_are_looked_through(io: Io) {
    const CLIENTS: usize = 600;
    let origin = Origin::echo();
    let lists = Lists::new();
    let shown = [lists.files.root.client(), lists.files.root.client()];
    let gateway = lists.gateway(io, &origin, true);
    let clients = [0, 1].map(|number| {
        let client = Client::new(&gateway).shows(&shown[number]);
        client.keeps_sessions()
    });
    let mut connections: Vec<Connection> = (0..CLIENTS).map(|number| open(&clients[number % 2])).collect();
    lists.revoke(&[&shown[1].chain[0]], &[]);
    let begin = Instant::now();
    reload(&gateway);
    eventually("half of them to be cut off", || {
        (cut_off(&gateway) == CLIENTS as u64 / 2).then_some(())
    });
    eprintln!(
        "{} of {CLIENTS} connections were cut off within {:?}",
        CLIENTS / 2,
        begin.elapsed()
    );
    for (number, mut connection) in connections.drain(..).enumerate() {
        if number % 2 == 0 {
            echoes(&mut connection, b"still here");
        } else {
            is_cut_off(connection);
        }
    }
    gateway.wait_until_quiet();
}

fn without_the_key_nobody_is_cut_off(io: Io) {
    let origin = Origin::echo();
    let lists = Lists::new();
    let bad = lists.files.root.client();
    let gateway = lists.gateway(io, &origin, false);
    let connection = open(&Client::new(&gateway).shows(&bad));
    lists.revoke(&[&bad.chain[0]], &[]);
    reload(&gateway);
    eventually("the new list", || {
        try_exchange(&Client::new(&gateway).shows(&bad)).err()
    });
    goes_on(connection);
    assert_eq!(cut_off(&gateway), 0);
    gateway.wait_until_quiet();
}
