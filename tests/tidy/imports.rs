//! Imports go down only: ARCHITECTURE.md draws the layers, `layer` and `may_import` keep them.

use super::source::{Path, RustFile};
use super::{Finding, breaks, check_rust, finding};

/// Where a module of `src/` stands. A module imports its own level and those below, and a tower never the other one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Layer {
    /// Under all.
    Base,
    /// Under `proxy`: what a session asks for.
    Parts,
    /// `proxy` and `http`: the sessions.
    Sessions,
    /// `net`: the drivers, which know the base only.
    Drivers,
    /// The one place where sessions and drivers meet.
    Worker,
    /// What starts things.
    Top,
}

/// The layer of a top-level module, or nothing when it has been given none.
fn layer(module: &str) -> Option<Layer> {
    match module {
        "address" | "buffers" | "config" | "error" | "limits" | "metrics" | "mutants" | "record" | "timestamp" => {
            Some(Layer::Base)
        }
        "crypto" | "identity" | "snapshot" | "tls" => Some(Layer::Parts),
        "http" | "proxy" => Some(Layer::Sessions),
        "net" => Some(Layer::Drivers),
        "worker" => Some(Layer::Worker),
        "cli" | "control" | "demo" | "lib" | "main" | "server" => Some(Layer::Top),
        _ => None,
    }
}

fn may_import(from: Layer, to: Layer) -> bool {
    match (from, to) {
        (Layer::Drivers, to) => matches!(to, Layer::Base | Layer::Drivers),
        (Layer::Sessions, to) => matches!(to, Layer::Base | Layer::Parts | Layer::Sessions),
        (from, to) => to <= from,
    }
}

fn imports_go_down(file: &RustFile) -> Vec<Finding> {
    let Some(module) = file.module() else { return Vec::new() };
    let Some(from) = layer(&module[0]) else {
        let what = format!(
            "`{}` is in no layer: give it one here in `layer` and in ARCHITECTURE.md's import rule",
            module[0]
        );
        return vec![finding(&file.path, 1, what)];
    };
    let mut findings = Vec::new();
    let (mut names_session, mut names_driver) = (None, None);
    for Path {
        segments,
        line,
        inline_depth,
    } in &file.code.paths
    {
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let mut add = |what: String| findings.push(finding(&file.path, *line, what));
        match segments[..] {
            ["super", "super", ..] => add("`super::super` hides where it leads: write the path from `crate::`".into()),
            ["super", ..] if module.len() == 1 && *inline_depth == 0 && module[0] != "lib" => {
                add("`super` of a top-level module is the crate: write the path from `crate::`".into());
            }
            ["crate", "*" | "self"] => {
                add("this brings in every layer at once: name the module, `crate::config::…`".into())
            }
            ["crate", to, ..] => match layer(to) {
                None => add(format!(
                    "`crate::{to}` is in no layer: name the module that defines it, or give the module one"
                )),
                Some(layer) if !may_import(from, layer) => add(format!(
                    "`{}` ({from:?}) may not import `crate::{to}` ({layer:?}), imports go down only: move the type down, \
                     or pass the value in from above",
                    module[0]
                )),
                Some(_) => {}
            },
            _ => {}
        }
        match segments[..] {
            ["crate" | "ringlock", "proxy", "session", ..] => names_session = Some(*line),
            ["crate" | "ringlock", "net", "driver", ..] => names_driver = Some(*line),
            _ => {}
        }
    }
    // One line of a `use` group can name a module more than once.
    findings.dedup();
    if let (Some(_), Some(line), true) = (names_session, names_driver, from != Layer::Worker) {
        let what = "only `worker` knows both `proxy::session` and `net::driver`: let it do the meeting";
        findings.push(finding(&file.path, line, what));
    }
    findings
}

#[test]
fn imports_in_src_go_down_only() {
    check_rust(imports_go_down);
}

#[test]
fn the_import_rule_sees_every_way_to_import_upwards() {
    let up = |path: &str, text: &str| breaks(imports_go_down, path, text);
    assert_eq!(
        up("src/limits.rs", "use std::fmt;\nuse crate::proxy::relay::Relay;\n"),
        [2]
    );
    assert_eq!(
        up(
            "src/proxy/relay.rs",
            "use crate::{\n    limits::A,\n    net::{\n  driver::B},\n};\n"
        ),
        [4]
    );
    assert_eq!(up("src/net/uring.rs", "fn f() { crate::http::parse(); }\n"), [1]);
    assert_eq!(up("src/net/uring.rs", "use crate::tls::Handshake;"), [1]);
    assert_eq!(
        up("src/tls/handshake.rs", "pub(crate) use crate::proxy as session;"),
        [1]
    );
    assert_eq!(up("src/tls/handshake.rs", "use super::super::proxy::session;"), [1]);
    assert_eq!(up("src/tls/mod.rs", "use super::proxy::session;"), [1]);
    assert_eq!(up("src/error.rs", "use super::worker::Worker;"), [1]);
    assert_eq!(up("src/error.rs", "use crate::*;"), [1]);
    assert_eq!(up("src/error.rs", "use crate::{self as all};"), [1]);
    assert_eq!(up("src/worker.rs", "use crate::server::Server;"), [1]);
    assert_eq!(
        up("src/metrics.rs", "macro_rules! m { () => { $crate::control::add() } }"),
        [1]
    );
    assert_eq!(up("src/gossip.rs", "fn f() {}"), [1], "a module without a layer");
    assert_eq!(
        up("src/tls/mod.rs", "use crate::gossip::G;"),
        [1],
        "an import of a module without a layer"
    );
    assert_eq!(
        up(
            "src/server.rs",
            "use crate::proxy::session::Session;\nuse crate::net::driver::Driver;"
        ),
        [2]
    );

    assert_eq!(
        up(
            "src/worker.rs",
            "use crate::proxy::session::Session;\nuse crate::net::driver::Driver;"
        ),
        [0; 0]
    );
    assert_eq!(
        up(
            "src/server.rs",
            "use crate::worker::Worker;\nuse crate::net::driver::Driver;"
        ),
        [0; 0]
    );
    assert_eq!(
        up(
            "src/net/uring.rs",
            "//! [`crate::proxy`]\nuse super::driver::Op; // crate::proxy\n"
        ),
        [0; 0]
    );
    assert_eq!(
        up(
            "src/net/uring.rs",
            "use crate::buffers::A;\nconst A: &str = \"crate::proxy\";"
        ),
        [0; 0]
    );
    assert_eq!(
        up("src/error.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}"),
        [0; 0]
    );
    assert_eq!(up("hsm/src/pool.rs", "use crate::uri::Uri;"), [0; 0]);
}
