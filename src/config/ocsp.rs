//! `ocsp` of identities, and what `[global]` has for all of them.

use super::address::parse_host_and_port;
use super::keys::OCSP_PROXY;
use super::read::{Item, Refusal, Report, Table, choice, parsed, path};
use super::{MustStaple, Ocsp, OcspProxy, Stapling};

/// `ocsp`
pub(super) fn source(report: &mut Report, item: Item<'_>) -> Option<Ocsp> {
    let word = item.value.as_str().map(str::to_owned);
    match word.as_deref() {
        Some("off") => Some(Ocsp::Off),
        Some("auto") => Some(Ocsp::Auto),
        Some(_) | None => path(report, item).map(Ocsp::File),
    }
}

/// `ocsp_dir`, `ocsp_proxy` and `must_staple` of `[global]`.
pub(super) fn read_settings(table: &mut Table<'_, '_>) -> Option<Stapling> {
    let dir = table.read_optional("ocsp_dir", path);
    let proxy = table.read_optional("ocsp_proxy", parsed(proxy));
    let must_staple = table.read(
        "must_staple",
        choice(&[("warn", MustStaple::Warn), ("refuse", MustStaple::Refuse)]),
    );
    Some(Stapling {
        dir: dir?,
        proxy: proxy?,
        must_staple: must_staple?,
    })
}

fn proxy(text: &str) -> Result<OcspProxy, Refusal> {
    let refusal = |remedy: &str| Refusal::new(OCSP_PROXY, remedy);
    let address = text
        .strip_prefix("http://")
        .ok_or_else(|| refusal("begin it with http://"))?;
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains('/') {
        return Err(refusal("remove what comes behind the port"));
    }
    if address.contains('@') {
        return Err(refusal("remove user and password: no proxy is used that asks for them"));
    }
    let (host, port) = parse_host_and_port(address).map_err(|remedy| refusal(&remedy))?;
    Ok(OcspProxy { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies() {
        let parse = |text: &str| {
            proxy(text)
                .map(|proxy| (proxy.host, proxy.port))
                .map_err(|refusal| refusal.remedy)
        };
        assert_eq!(parse("http://proxy:3128"), Ok(("proxy".into(), 3128)));
        assert_eq!(parse("http://[::1]:3128/"), Ok(("::1".into(), 3128)));
        for (text, remedy) in [
            ("proxy:3128", "begin it with http://"),
            ("https://proxy:3128", "begin it with http://"),
            ("http://proxy", "add the port"),
            ("http://proxy:3128/a", "remove what comes behind the port"),
            (
                "http://user:secret@proxy:3128",
                "remove user and password: no proxy is used that asks for them",
            ),
        ] {
            assert_eq!(parse(text), Err(remedy.to_owned()), "{text}");
        }
    }
}
