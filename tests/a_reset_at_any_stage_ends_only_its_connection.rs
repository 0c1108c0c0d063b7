//! RST from either side at every stage: the connection ends, nothing is left of it, and others go on.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::*;

both_drivers!(
    a_client_resets_at_every_stage,
    an_origin_resets_at_every_stage,
    many_resets_at_once_leave_nothing_behind,
);

/// Sends without end what it is asked for with `p`, echoes otherwise.
fn push_or_echo(mut stream: Stream) {
    let mut buffer = [0; 1000];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let asked = buffer[..length].contains(&b'p');
        let data = pattern(100_000);
        while asked && stream.write_all(&data).is_ok() {}
        if asked || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn a_client_resets_at_every_stage(io: Io) {
    let origin = Origin::start(push_or_echo);
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut bystander = Client::new(&gateway).connect();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        for stage in 0..8 {
            let mut connection = client.open();
            match stage {
                // Right after connect.
                0 => {}
                // In the middle of the hello.
                1 => {
                    let hello = connection.take_outgoing();
                    connection.stream.write_all(&hello[..hello.len() / 2]).unwrap();
                }
                // Right after the hello, and after the gateway's flight.
                2 | 3 => {
                    let hello = connection.take_outgoing();
                    connection.stream.write_all(&hello).unwrap();
                    if stage == 3 {
                        connection.stream.read_exact(&mut [0; 10]).unwrap();
                    }
                }
                // After the handshake, and after some data.
                4 | 5 => {
                    connection.handshake().unwrap();
                    if stage == 5 {
                        connection.send(b"x");
                        assert_eq!(connection.receive(1), b"x");
                    }
                }
                // In the middle of a download.
                6 => {
                    connection.handshake().unwrap();
                    connection.send(b"p");
                    connection.receive(1_000_000);
                }
                // While closing.
                _ => {
                    connection.handshake().unwrap();
                    connection.send(b"x");
                    connection.close_notify();
                }
            }
            connection.reset();
            bystander.send(b"still here");
            assert_eq!(bystander.receive(10), b"still here", "stage {stage}");
        }
    }
    bystander.finish();
    let metrics = gateway.wait_until_quiet();
    let ended = metrics.ended();
    assert_eq!(ended.values().sum::<u64>(), 17, "{ended:?}");
    // All but the last stage, which may have been through.
    assert!(ended["peer_reset"] >= 14, "{ended:?}");
}

fn an_origin_resets_at_every_stage(io: Io) {
    for stage in 0..5 {
        let origin = Origin::start(move |mut stream| {
            let mut byte = [0];
            match stage {
                // At once.
                0 => {}
                // After the first byte, and after an answer to it.
                1 | 2 => {
                    stream.read_exact(&mut byte).unwrap();
                    if stage == 2 {
                        stream.write_all(b"answer").unwrap();
                    }
                }
                // In the middle of a download.
                3 => {
                    stream.read_exact(&mut byte).unwrap();
                    stream.write_all(&pattern(3_000_000)).unwrap();
                }
                // After its end.
                _ => {
                    stream.shutdown(Shutdown::Write).unwrap();
                    stream.read_exact(&mut byte).unwrap();
                }
            }
            reset(stream);
        });
        let gateway = Setup::new(io, &[origin.address()]).start();
        for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
            let mut connection = client.connect();
            // The origin may be gone already.
            let _ = connection.try_send(b"x");
            let (_, end) = connection.receive_to_end();
            assert_eq!(end == End::CloseNotify, stage == 4, "stage {stage}: {end:?}");
        }
        let ended = gateway.wait_until_quiet().ended();
        assert_eq!(ended.values().sum::<u64>(), 2, "stage {stage}: {ended:?}");
        let expected: &[&str] = match stage {
            // The reset may come before the gateway has heard that it is connected.
            0 => &["upstream_reset", "upstream_unreachable"],
            // After the origin's own end a reset takes nothing away any more.
            4 => &["finished"],
            _ => &["upstream_reset"],
        };
        assert!(
            ended.keys().all(|cause| expected.contains(&cause.as_str())),
            "stage {stage}: {ended:?}"
        );
    }
}

fn many_resets_at_once_leave_nothing_behind(io: Io) {
    let origin = Origin::start(push_or_echo);
    let gateway = Setup::new(io, &[origin.address()]).workers(1).start();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let gateway = &gateway;
            scope.spawn(move || {
                for round in 0..25 {
                    let mut connection = Client::new(gateway).connect();
                    connection.send(b"p");
                    connection.receive(1 + (thread * 25 + round) * 1000);
                    connection.reset();
                }
            });
        }
    });
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.ended().values().sum::<u64>(), 100);
    // Descriptors are given back too.
    eventually("the descriptors of the connections to be closed", || {
        (gateway.metrics().sum("process_open_fds", &[]) < 40.0).then_some(())
    });
}
