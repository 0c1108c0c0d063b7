//! `[[upstream]]`

use super::names::Names;
use super::read::{Table, choice, list};
use super::units::duration;
use super::{Balance, ConnectOn, SendProxy, Upstream, address};

/// One `[[upstream]]`.
pub(super) fn read(table: &mut Table<'_, '_>, names: &mut Names) -> Option<Upstream> {
    let name = names.define(table);
    let servers = table.read("servers", list(address::server));
    let balance = table.read(
        "balance",
        choice(&[
            ("round_robin", Balance::RoundRobin),
            ("least_connections", Balance::LeastConnections),
        ]),
    );
    let connect_timeout = table.read("connect_timeout", duration);
    let connect_on = table.read(
        "connect_on",
        choice(&[
            ("handshake", ConnectOn::Handshake),
            ("first_byte", ConnectOn::FirstByte),
        ]),
    );
    let send_proxy = table.read(
        "send_proxy",
        choice(&[
            ("off", SendProxy::Off),
            ("v1", SendProxy::V1),
            ("v2", SendProxy::V2 { certificates: false }),
            ("v2_certificate", SendProxy::V2 { certificates: true }),
        ]),
    );
    Some(Upstream {
        name: name?,
        servers: servers?,
        balance: balance?,
        connect_timeout: connect_timeout?,
        connect_on: connect_on?,
        send_proxy: send_proxy?,
    })
}
