//! Who may be attacked: this machine, and what the operator says is his.

use std::net::{SocketAddr, ToSocketAddrs};

use crate::error::PerfError;

/// The address of `target` (host:port). It is resolved once, so that what was permitted is what is attacked.
///
/// # Errors
/// When one of its addresses is not loopback and `own` is not its host; when `own` is another host; when it has no address.
pub(super) fn permitted(target: &str, own: Option<&str>) -> Result<SocketAddr, PerfError> {
    let failed = |why: &str| PerfError::flag("--target", target, format!("host:port ({why})"));
    let (host, _) = target.rsplit_once(':').ok_or_else(|| failed("the port is missing"))?;
    let host = bare(host);
    if let Some(own) = own
        && !bare(own).eq_ignore_ascii_case(host)
    {
        return Err(PerfError::flag(
            "--i-own",
            own,
            format!("`{host}`, the host of --target"),
        ));
    }
    let addresses = target.to_socket_addrs().map_err(|error| failed(&error.to_string()))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    let address = addresses.first().ok_or_else(|| failed("the name has no address"))?;
    if own.is_none() {
        all_are_loopback(target, host, &addresses)?;
    }
    Ok(*address)
}

/// A name may have addresses of both kinds.
fn all_are_loopback(target: &str, host: &str, addresses: &[SocketAddr]) -> Result<(), PerfError> {
    let elsewhere = addresses
        .iter()
        .find(|address| !address.ip().to_canonical().is_loopback());
    let Some(elsewhere) = elsewhere else { return Ok(()) };
    let expected = format!(
        "a loopback address: {} is not one. If the server is yours and you may attack it, say so with --i-own {host}",
        elsewhere.ip()
    );
    Err(PerfError::flag("--target", target, expected))
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(target: &str, own: Option<&str>) -> String {
        permitted(target, own).unwrap_err().to_string()
    }

    #[test]
    fn loopback_needs_no_word() {
        for target in [
            "127.0.0.1:443",
            "127.9.8.7:1",
            "[::1]:443",
            "[::ffff:127.0.0.1]:443",
            "localhost:443",
        ] {
            assert!(permitted(target, None).is_ok(), "{target}");
        }
    }

    #[test]
    fn anything_else_is_refused_and_the_refusal_says_what_to_do() {
        for (target, host) in [
            ("192.0.2.1:443", "192.0.2.1"),
            ("0.0.0.0:443", "0.0.0.0"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[::ffff:192.0.2.1]:443", "::ffff:192.0.2.1"),
        ] {
            let error = refused(target, None);
            assert!(error.contains("--target") && error.contains("not one"), "{error}");
            assert!(error.ends_with(&format!("--i-own {host}")), "{error}");
        }
    }

    #[test]
    fn a_name_is_loopback_only_with_all_its_addresses() {
        let both: Vec<SocketAddr> = vec!["127.0.0.1:443".parse().unwrap(), "192.0.2.1:443".parse().unwrap()];
        assert!(all_are_loopback("site.example:443", "site.example", &both[..1]).is_ok());
        let error = all_are_loopback("site.example:443", "site.example", &both)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("192.0.2.1 is not one") && error.ends_with("--i-own site.example"),
            "{error}"
        );
    }

    #[test]
    fn the_owner_names_the_very_host() {
        assert_eq!(permitted("192.0.2.1:443", Some("192.0.2.1")).unwrap().port(), 443);
        assert!(permitted("[2001:DB8::1]:443", Some("2001:db8::1")).is_ok());
        assert!(permitted("[2001:db8::1]:443", Some("[2001:db8::1]")).is_ok());
        for (target, own) in [
            ("192.0.2.1:443", "192.0.2.2"),
            ("192.0.2.1:443", ""),
            ("192.0.2.1:443", "192.0.2.1:443"),
            ("127.0.0.1:443", "192.0.2.1"),
        ] {
            let error = refused(target, Some(own));
            assert!(
                error.contains("--i-own") && error.contains("the host of --target"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_target_without_a_port_is_refused_by_name() {
        assert!(refused("127.0.0.1", None).contains("port"));
    }
}
