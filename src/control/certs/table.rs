//! The inventory for people: what is most asked for in columns, and what is wrong below.

use std::fmt::{self, Write as _};

use super::{Authority, Certificate, Inventory, List, OcspState, State, Timestamp};
use crate::control::table::{printable, table};
use crate::identity::expiry::span;

/// Names of a certificate that are shown; JSON has all.
const NAMES_SHOWN: usize = 3;

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = [
            unless_empty(
                &[
                    "identity",
                    "names",
                    "issuer",
                    "key",
                    "until",
                    "left",
                    "chain",
                    "OCSP",
                    "listeners",
                    "source",
                ],
                self.certificates.iter().map(Certificate::row).collect(),
            ),
            unless_empty(
                &["CA of clients", "until", "left", "listener", "source"],
                self.client_authorities.iter().map(Authority::row).collect(),
            ),
            unless_empty(
                &["revocation list of", "next update", "left", "listener", "source"],
                self.revocation_lists.iter().map(List::row).collect(),
            ),
        ];
        let shown: Vec<String> = tables.into_iter().flatten().collect();
        if shown.is_empty() {
            return f.write_str("nothing to show\n");
        }
        f.write_str(&shown.join("\n"))
    }
}

impl Certificate {
    fn row(&self) -> Vec<String> {
        let unknown = || String::from("-");
        let known = self.known.as_ref();
        let of = |text: fn(&super::Known) -> String| known.map_or_else(unknown, text);
        vec![
            printable(&self.identity),
            of(|known| names(&known.names)),
            of(|known| printable(&known.issuer)),
            of(|known| known.key.clone()),
            of(|known| day(known.not_after)),
            left(self.state, known.map(|known| known.seconds_left)),
            of(|known| match known.chain.complete {
                true => known.chain.certificates.to_string(),
                false => format!("{}, incomplete", known.chain.certificates),
            }),
            of(|known| String::from(ocsp(known.ocsp.staple.state))),
            listeners(self),
            printable(&self.source),
        ]
    }
}

impl Authority {
    fn row(&self) -> Vec<String> {
        let known = self.known.as_ref();
        vec![
            known.map_or_else(|| String::from("-"), |known| printable(&known.subject)),
            known.map_or_else(|| String::from("-"), |known| day(known.not_after)),
            left(self.state, known.map(|known| known.seconds_left)),
            listener(&self.listener, &self.routes),
            printable(&self.source),
        ]
    }
}

impl List {
    fn row(&self) -> Vec<String> {
        let left = match self.replaced {
            true => String::from("not used: there is a newer one"),
            false => left(self.state, Some(self.seconds_left)),
        };
        vec![
            printable(&self.issuer),
            self.next_update.to_string(),
            left,
            listener(&self.listener, &self.routes),
            printable(&self.source),
        ]
    }
}

fn ocsp(state: OcspState) -> &'static str {
    match state {
        OcspState::Off => "off",
        OcspState::Auto => "auto",
        OcspState::Stapled => "stapled",
        OcspState::Missing => "missing",
    }
}

fn left(state: State, seconds_left: Option<i64>) -> String {
    let words = match seconds_left {
        None => String::new(),
        Some(left @ ..0) => format!("expired {} ago", span(-left)),
        Some(left) => span(left),
    };
    match state {
        State::Unusable if words.is_empty() => String::from("cannot be loaded"),
        State::Unusable => format!("{words}; cannot be loaded"),
        State::NotYetValid => String::from("not valid yet"),
        State::Expiring => format!("{words}: renew it"),
        State::Expired | State::Valid => words,
    }
}

fn names(names: &[String]) -> String {
    let mut text = printable(&names[..names.len().min(NAMES_SHOWN)].join(", "));
    if names.len() > NAMES_SHOWN {
        let _ = write!(text, " and {} more", names.len() - NAMES_SHOWN);
    }
    if names.is_empty() { String::from("none") } else { text }
}

fn listeners(certificate: &Certificate) -> String {
    let shown = |used: &super::Use| match used.default {
        true => format!("{} (default)", printable(&used.listener)),
        false => printable(&used.listener),
    };
    match certificate.used_by.as_slice() {
        [] => String::from("none"),
        used => used.iter().map(shown).collect::<Vec<_>>().join(", "),
    }
}

/// With the names of those routes that it is for.
fn listener(listener: &str, routes: &[String]) -> String {
    match routes {
        [] => printable(listener),
        routes => format!("{} ({})", printable(listener), names(routes)),
    }
}

/// Of RFC 3339, the date.
fn day(time: Timestamp) -> String {
    let text = time.to_string();
    text.split_once('T').map_or(text.clone(), |(day, _)| day.to_owned())
}

/// Nothing when there are no rows.
fn unless_empty(head: &[&str], rows: Vec<Vec<String>>) -> Option<String> {
    (!rows.is_empty()).then(|| table(head, rows, 0, head.len()))
}
