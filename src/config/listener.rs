//! `[[listener]]` and its routes.

use super::address::{self, Taken};
use super::names::{self, Names};
use super::read::{At, Item, Refusal, Report, Table, choice, count, flag, list, parsed};
use super::units::duration;
use super::{ClientAuth, IdentityId, Listener, NamePattern, Route, UpstreamId, client_auth, keys, tls};

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
        let sni = table.read("sni", list(names::name_pattern));
        let upstream = table.read("upstream", |report, item| {
            self::upstream(report, item, context.upstreams)
        });
        let client_auth = route_client_auth(table);
        let route = Route {
            sni: sni?,
            upstream: upstream?,
            client_auth: client_auth?,
        };
        Some((route, table.at("sni")))
    });
    let connections_max = table.read("connections_max", count);
    let handshake_timeout = table.read("handshake_timeout", duration);
    let idle_timeout = table.read("idle_timeout", duration);
    let write_timeout = table.read("write_timeout", duration);
    let linger_timeout = table.read("linger_timeout", duration);
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

/// The table of a route, if it has one. It has to say its mode: "off" is what a table without one means, and would open a door.
fn route_client_auth(table: &mut Table<'_, '_>) -> Option<Option<Option<ClientAuth>>> {
    let is_there = table.has("client_auth");
    let client_auth = table.section("client_auth", |table| {
        let client_auth = client_auth::read(table);
        if is_there && !table.has("mode") {
            let at = table.at("mode");
            let remedy = "add \"mode\" to this table: who asks for these names is let in by its keys alone, not by the listener's";
            table
                .report
                .refuse(&at, "nothing", keys::alternatives(vec!["off", "optional", "required"]), remedy);
            return None;
        }
        client_auth
    })?;
    Some(is_there.then_some(client_auth))
}

/// Warns of each name that another route has taken, and of each route that leads where its names go anyway.
fn warn_of_idle_routes(report: &mut Report, routes: &[(Route, At)], default: UpstreamId) {
    let is_taken = |name: &NamePattern, by: &[(Route, At)]| {
        let first = by.iter().find(|(route, _)| route.sni.contains(name))?;
        Some(first.1.key.trim_end_matches(".sni").to_owned())
    };
    // An exact name beats a wildcard wherever they stand.
    let is_exception = |name: &NamePattern| {
        let mut names = routes.iter().flat_map(|(route, _)| &route.sni);
        names.any(|other| other != name && other.covers(name))
    };
    for (index, (route, at)) in routes.iter().enumerate() {
        let taken: Vec<_> = (route.sni.iter())
            .filter_map(|name| Some((name, is_taken(name, &routes[..index])?)))
            .collect();
        let is_idle = taken.len() == route.sni.len();
        for (name, first) in &taken {
            let what = match is_idle {
                true => format!("this route has no effect: {first} takes its names first"),
                false => format!("{name} has no effect here: {first} takes it first"),
            };
            report.warn(at, what, "remove it, or move it to the front");
            if is_idle {
                break;
            }
        }
        let leads_elsewhere = route.upstream != default || route.client_auth.is_some();
        if !is_idle && !leads_elsewhere && !route.sni.iter().any(is_exception) {
            let what = "this route has no effect: its upstream is the listener's";
            report.warn(at, what, "remove it or change its upstream");
        }
    }
}
