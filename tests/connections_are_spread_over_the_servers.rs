//! Which server gets a connection, when it is connected, and that UNIX sockets are servers like others.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::support::*;

both_drivers!(
    round_robin_goes_in_turn,
    least_connections_goes_where_fewest_are_open,
    a_unix_socket_is_a_server,
    the_first_byte_connects_when_it_is_told_to,
    a_route_leads_to_its_upstream,
);

/// The one byte that an [`Origin::saying`] says.
fn said(connection: &mut Connection) -> u8 {
    connection.receive(1)[0]
}

fn round_robin_goes_in_turn(io: Io) {
    let origins = [Origin::saying("a"), Origin::saying("b"), Origin::saying("c")];
    let servers = [origins[0].address(), origins[1].address(), origins[2].address()];
    let gateway = Setup::new(io, &servers).upstream("balance = \"round_robin\"").start();
    let mut order = String::new();
    for _ in 0..9 {
        let mut connection = Client::new(&gateway).connect();
        order.push(char::from(said(&mut connection)));
        connection.finish();
    }
    let turns = ["abc", "bca", "cab"].map(|turn| turn.repeat(3));
    assert!(turns.contains(&order), "{order}");
}

fn least_connections_goes_where_fewest_are_open(io: Io) {
    let origins = [Origin::saying("a"), Origin::saying("b")];
    let servers = [origins[0].address(), origins[1].address()];
    let gateway = Setup::new(io, &servers)
        .upstream("balance = \"least_connections\"")
        .start();
    let open = || {
        let mut connection = Client::new(&gateway).connect();
        (said(&mut connection), connection)
    };
    let (first, first_connection) = open();
    let (second, second_connection) = open();
    assert_ne!(first, second, "the second goes to the server that has none");
    // One server is emptied; all go there until it has as many as the other.
    let extra = open();
    let (busy, idle, mut held) = match extra.0 {
        name if name == first => (first, second_connection, vec![first_connection, extra.1]),
        _ => (second, first_connection, vec![second_connection, extra.1]),
    };
    let open_connections = || gateway.metrics().count("ringlock_upstream_server_connections", &[]);
    assert_eq!(open_connections(), 3);
    drop(idle);
    eventually("the dropped connection to be given back", || {
        (open_connections() == 2).then_some(())
    });
    for _ in 0..2 {
        let (name, connection) = open();
        assert_ne!(name, busy, "the busy server has two, the other fewer");
        held.push(connection);
    }
}

fn a_unix_socket_is_a_server(io: Io) {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("origin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut copy, &mut stream);
            });
        }
    });
    let server = format!("unix:{}", path.display());
    let gateway = Setup::new(io, &[&server]).start();
    let data = pattern(2_000_000);
    let mut connection = Client::new(&gateway).connect();
    for piece in data.chunks(100_000) {
        connection.send(piece);
        assert!(connection.receive(piece.len()) == piece);
    }
    assert!(connection.finish().is_empty());
    gateway.wait_for_ended("finished", 1);
    let metrics = gateway.wait_until_quiet();
    assert_eq!(
        metrics.count("ringlock_upstream_server_connected_total", &[("server", &server)]),
        1
    );
}

fn the_first_byte_connects_when_it_is_told_to(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .upstream("connect_on = \"first_byte\"")
        .start();
    let mut connection = Client::new(&gateway).connect();
    // Somebody who says nothing and leaves never costs a connection.
    let silent = Client::new(&gateway).connect();
    assert!(silent.finish().is_empty());
    gateway.wait_for_ended("finished", 1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(origin.accepted(), 0);
    connection.send(b"now");
    assert_eq!(connection.receive(3), b"now");
    assert_eq!(origin.accepted(), 1);
    connection.finish();

    let eager = Setup::new(io, &[origin.address()])
        .upstream("connect_on = \"handshake\"")
        .start();
    let mut connection = Client::new(&eager).connect();
    eventually("the connection that nobody asked for", || {
        (origin.accepted() == 2).then_some(())
    });
    connection.tls.writer().write_all(b"x").unwrap();
    connection.flush().unwrap();
    assert_eq!(connection.receive(1), b"x");
}

fn a_route_leads_to_its_upstream(io: Io) {
    let (default, api) = (Origin::saying("d"), Origin::saying("a"));
    let section = format!("[[upstream]]\nname = \"api\"\nservers = [\"{}\"]", api.address());
    let gateway = Setup::new(io, &[default.address()])
        .identity("api", &["*.api.example.com"], KeyKind::Ecdsa)
        .listener("routes = [ { sni = \"*.api.example.com\", upstream = \"api\" } ]")
        .more(&section)
        .start();
    assert_eq!(said(&mut Client::new(&gateway).connect()), b'd');
    assert_eq!(
        said(&mut Client::new(&gateway).name("v1.api.example.com").connect()),
        b'a'
    );
    assert_eq!(
        said(&mut Client::new(&gateway).name("V1.API.example.com").connect()),
        b'a'
    );
    assert_eq!(said(&mut Client::new(&gateway).no_name().connect()), b'd');
}
