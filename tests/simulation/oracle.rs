//! What must be true of a run that is over.

use std::time::Duration;

use ringlock::error::Cause;
use ringlock::net::sim::SimDriver;
use ringlock::record::ConnectionRecord;

use super::client::{Client, ClientTls, Ends, Mischief};
use super::plan::{HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, SLACK, WRITE_TIMEOUT};
use super::run::World;
use super::server::Server;

/// Panics with what is wrong. Returns how many sessions had no excuse for anything but a perfect end.
pub(crate) fn judge<C: ClientTls>(world: &World<C>, net: &SimDriver) -> u64 {
    counts_add_up(world);
    let mut perfect = 0;
    for client in &world.clients {
        let server = world.server_of(client.peer);
        let record = world.record_of(client);
        let judged = std::panic::AssertUnwindSafe(|| {
            let aged = record.is_some_and(|record| is_aged(world, record));
            if !aged {
                what_the_client_heard_is_true(client, server);
            }
            if let Some(record) = record {
                the_record_is_true(world, net, client, record);
            }
            let expected = !aged && expects_all(world, net, client, server);
            if expected {
                all_went_well(client, server, record);
            }
            u64::from(expected)
        });
        match std::panic::catch_unwind(judged) {
            Ok(expected) => perfect += expected,
            Err(panic) => {
                eprintln!("{}\n{record:?}", client.describe());
                std::panic::resume_unwind(panic);
            }
        }
    }
    for server in &world.servers {
        let client = world.clients.iter().find(|client| client.peer == server.client);
        what_the_server_heard_is_true(client.expect("servers belong to clients"), server);
    }
    perfect
}

fn counts_add_up<C: ClientTls>(world: &World<C>) {
    let metrics = &world.shared.metrics;
    let done: u64 = metrics.done.iter().map(|counter| counter.value()).sum();
    assert_eq!(
        metrics.accepted.value(),
        done + metrics.shed.value() + metrics.live.value(),
        "invariant 8: accepted = done + shed + live"
    );
    assert_eq!(metrics.live.value(), 0, "sessions counted at the end");
    assert_eq!(metrics.buffer_bytes.value(), 0, "buffer bytes counted at the end");
    assert_eq!(world.records.len() as u64, done, "one record for each session");
    assert_eq!(
        world.counted_connections(),
        0,
        "connections to servers counted at the end"
    );
    for snapshot in &world.snapshots {
        let counted = snapshot.connections[0].value();
        assert_eq!(counted, 0, "connections counted under epoch {}", snapshot.epoch);
    }
    for listener in world.snapshots.iter().flat_map(|snapshot| &snapshot.listeners) {
        let live = listener.live.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(live, 0, "connections counted by listener {}", listener.name);
    }
    assert_eq!(world.ended_for(&Cause::Internal("")), 0, "defects of ours");
}

/// The client may have been told that nothing more comes because the connection was too old, whatever it ended for then.
fn is_aged<C: ClientTls>(world: &World<C>, record: &ConnectionRecord) -> bool {
    let age_min = world.plan.connection_age_max.map(|age| age / 1000 * 900);
    age_min.is_some_and(|age| record.duration >= age)
}

fn what_the_client_heard_is_true<C: ClientTls>(client: &Client<C>, server: Option<&Server>) {
    if client.saw_close_notify {
        match server {
            Some(server) => {
                assert!(
                    server.shut || server.closed,
                    "close_notify, but the server has not ended its stream"
                );
                assert_eq!(client.received, server.sent, "close_notify before all bytes came");
            }
            None => assert_eq!(client.sent, 0, "close_notify without a server"),
        }
    }
}

fn what_the_server_heard_is_true<C: ClientTls>(client: &Client<C>, server: &Server) {
    assert!(server.received <= client.sent, "bytes that nobody sent");
    // A server that has ended its stream has said everything: the client need not wait for it in order.
    if server.client_ended_first && server.received > 0 {
        assert!(
            client.ended_in_order(),
            "server {} saw an orderly end, but {}",
            server.peer.0,
            client.describe()
        );
        assert_eq!(
            server.received, client.sent,
            "server {}: an end before all bytes",
            server.peer.0
        );
    }
}

fn the_record_is_true<C: ClientTls>(world: &World<C>, net: &SimDriver, client: &Client<C>, record: &ConnectionRecord) {
    let within = |least: Duration, most: Duration| {
        assert!(
            record.duration >= least && record.duration <= most,
            "{:?} after {:?}",
            record.cause,
            record.duration
        );
    };
    if let Some(longest) = world.plan.longest_life() {
        within(Duration::ZERO, longest);
    }
    let faulted = net.is_faulted(client.peer);
    let mischief = client.plan.mischief;
    let forever = Duration::MAX;
    match &record.cause {
        Cause::HandshakeTimeout => {
            within(HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT + SLACK);
            assert!(faulted || mischief.is_some(), "a good client was not answered in time");
        }
        Cause::IdleTimeout => within(IDLE_TIMEOUT, forever),
        Cause::WriteTimeout { .. } => within(WRITE_TIMEOUT, forever),
        Cause::Drained => assert!(!world.ended_sessions.is_empty()),
        Cause::Handshake(_) | Cause::ClosedInHandshake | Cause::ProxyHeader(_) | Cause::ClosedBeforeHello => {
            assert!(mischief.is_some(), "{:?} of a good client", record.cause);
        }
        Cause::KeyUpdateFlood => assert!(matches!(mischief, Some(Mischief::KeyUpdates(_)))),
        Cause::Record(why) => panic!("records were good, but {why}"),
        Cause::ClientRevoked(why) => panic!("clients show no certificates, but {why}"),
        Cause::KeyLimit => panic!("so many bytes were not sent"),
        Cause::Truncated => assert!(
            client.broke_off || !client.ended_in_order() || mischief.is_some(),
            "truncated by nobody"
        ),
        Cause::UpstreamUnreachable => assert!(faulted || !world.plan.has_server(), "a server was not tried"),
        Cause::Finished | Cause::PeerReset | Cause::UpstreamReset => {}
        Cause::ConnectionAge => assert!(is_aged(world, record), "it was not that old"),
        Cause::Exhausted => assert!(faulted, "nothing was lacking"),
        Cause::Internal(place) => panic!("a defect of ours in {place}"),
    }
}

/// Nothing went wrong that would excuse anything but a perfect end.
fn expects_all<C: ClientTls>(world: &World<C>, net: &SimDriver, client: &Client<C>, server: Option<&Server>) -> bool {
    let good_client = matches!(
        client.plan.mischief,
        None | Some(Mischief::Stays | Mischief::KeyUpdates(..=16))
    );
    let good_server = server.is_none_or(|server| {
        let ends = client.plan.ends != Ends::AfterServer || server.plan.ends_first;
        server.plan.mischief.is_none() && ends && !net.is_faulted(server.peer)
    });
    // Neither side begins: with connect_on = "first_byte" there is no server before the client has sent something.
    let begins = server.is_some() || client.plan.upload > 0 || client.plan.ends == Ends::AtOnce;
    good_client
        && good_server
        && begins
        && !net.is_faulted(client.peer)
        && world.ended_sessions.is_empty()
        && !world.plan.sheds()
        && world.plan.has_server()
}

fn all_went_well<C: ClientTls>(client: &Client<C>, server: Option<&Server>, record: Option<&ConnectionRecord>) {
    assert!(client.established, "a good client was not served");
    assert!(client.saw_close_notify, "the server's end did not reach the client");
    assert_eq!(client.sent, client.plan.upload, "the client could not send all");
    if let Some(server) = server {
        assert_eq!(server.sent, server.plan.download, "the server could not send all");
        assert_eq!(client.received, server.sent, "bytes are missing at the client");
        assert_eq!(server.received, client.sent, "bytes are missing at the server");
        assert!(server.saw_end, "the client's end did not reach the server");
    }
    let record = record.expect("a session leaves a record");
    assert_eq!(record.cause, Cause::Finished);
    assert_eq!(
        record.received as usize, client.sent,
        "bytes from the client, as recorded"
    );
    assert_eq!(
        record.sent as usize, client.received,
        "bytes to the client, as recorded"
    );
}
