//! `[[listener]]` and its routes.

use super::address::{self, Taken};
use super::names::{self, Names};
use super::read::{At, Item, Refusal, Report, Table, choice, count, flag, list, parsed};
use super::units::duration;
use super::{IdentityId, Listener, NamePattern, Route, UpstreamId, client_auth, tls};

/// What a listener refers to, and what listeners may not share.
pub(super) struct Context<'c> {
    pub(super) listeners: Names,
    pub(super) identities: &'c mut Names,
    pub(super) upstreams: &'c mut Names,
    pub(super) taken: &'c mut Taken,
}

/// One `[[listener]]`.
pub(super) fn read(table: &mut Table<'_, '_>, context: &mut Context<'_>) -> Option<Listener> {
    let name = context.listeners.define(table);
    let addresses = table.read(
        "address",
        list(|report, at, text| address::listen(report, context.taken, at, text)),
    );
    let mode = table.read("mode", choice(&[("tcp", ())]));
    let accept_proxy = table.read("accept_proxy", flag);
    let identities = table.read(
        "identities",
        list(|report, at, name| context.identities.resolve(report, at, name).map(IdentityId)),
    );
    let strict_sni = table.read("strict_sni", flag);
    let upstream = table.read("upstream", |report, item| upstream(report, item, context.upstreams));
    let routes = table.sections("routes", |table| {
        let sni = table.read("sni", names::name_pattern);
        let upstream = table.read("upstream", |report, item| {
            self::upstream(report, item, context.upstreams)
        });
        Some((
            Route {
                sni: sni?,
                upstream: upstream?,
            },
            table.at("sni"),
        ))
    });
    let connections_max = table.read("connections_max", count);
    let handshake_timeout = table.read("handshake_timeout", duration);
    let idle_timeout = table.read("idle_timeout", duration);
    let write_timeout = table.read("write_timeout", duration);
    let linger_timeout = table.read("linger_timeout", duration);
    let connection_age_max = table.read_optional("connection_age_max", duration);
    let congestion_control = table.read_optional("congestion_control", congestion_control);
    let tls = table.section("tls", tls::read);
    let client_auth = table.section("client_auth", client_auth::read);

    if let (Some(routes), Some(upstream)) = (&routes, upstream) {
        warn_of_idle_routes(table.report, routes, upstream);
    }
    mode?;
    Some(Listener {
        name: name?,
        addresses: addresses?,
        accept_proxy: accept_proxy?,
        identities: identities?,
        strict_sni: strict_sni?,
        upstream: upstream?,
        routes: routes?.into_iter().map(|(route, _)| route).collect(),
        connections_max: usize::try_from(connections_max?).expect("its bound fits any usize of 32 bits"),
        handshake_timeout: handshake_timeout?,
        idle_timeout: idle_timeout?,
        write_timeout: write_timeout?,
        linger_timeout: linger_timeout?,
        connection_age_max: connection_age_max?,
        congestion_control: congestion_control?,
        tls: tls?,
        client_auth: client_auth?,
    })
}

fn upstream(report: &mut Report, item: Item<'_>, upstreams: &mut Names) -> Option<UpstreamId> {
    let at = item.at.clone();
    let name = parsed(|text| Ok(text.to_owned()))(report, item)?;
    upstreams.resolve(report, &at, &name).map(UpstreamId)
}

fn congestion_control(report: &mut Report, item: Item<'_>) -> Option<String> {
    // TCP_CA_NAME_MAX of linux/tcp.h is 16, the last byte is NUL.
    const NAME_BYTES_MAX: usize = 15;
    let expected = item.kind.expected();
    parsed(|text| {
        if text.len() > NAME_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let remedy = "take one from /proc/sys/net/ipv4/tcp_available_congestion_control";
            return Err(Refusal::new(expected, remedy));
        }
        Ok(text.to_owned())
    })(report, item)
}

/// Warns of each route that an earlier one leaves no name for, and of each that leads where its names go anyway.
fn warn_of_idle_routes(report: &mut Report, routes: &[(Route, At)], default: UpstreamId) {
    for (index, (route, at)) in routes.iter().enumerate() {
        let (earlier, later) = (&routes[..index], &routes[index + 1..]);
        if let Some((_, first)) = earlier.iter().find(|(earlier, _)| earlier.sni.covers(&route.sni)) {
            let what = format!(
                "this route has no effect: {} takes its names first",
                first.key.trim_end_matches(".sni")
            );
            report.warn(at, what, "remove it, or move it to the front");
        } else if route.upstream == default && !later.iter().any(|(later, _)| overlap(&later.sni, &route.sni)) {
            let what = "this route has no effect: its upstream is the listener's";
            report.warn(at, what, "remove it or change its upstream");
        }
    }
}

fn overlap(one: &NamePattern, other: &NamePattern) -> bool {
    one.covers(other) || other.covers(one)
}
