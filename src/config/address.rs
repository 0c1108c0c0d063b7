//! Addresses: where we listen, where servers are, where the administrator looks.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::keys::{ADMIN_ADDRESS, LISTEN_ADDRESS, SERVER_ADDRESS};
use super::names::host_name;
use super::read::{At, Item, Refusal, Report, parsed, shown};
use super::{AdminAddress, ServerAddress};

/// Longest path of a UNIX socket: `sun_path` has 108 bytes, the last is NUL (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Addresses that are taken, each with the key that took it and its line.
#[derive(Default)]
pub(super) struct Taken(Vec<(SocketAddr, String, usize)>);

impl Taken {
    /// Notes that `at` binds `address`; two may not.
    fn take(&mut self, report: &mut Report, at: &At, address: SocketAddr) -> Option<()> {
        if address.port() == 0 {
            report.warn(
                at,
                "port 0 makes the kernel choose a free port at every start",
                "name the port",
            );
            return Some(());
        }
        if let Some((_, key, line)) = self.0.iter().find(|taken| taken.0 == address) {
            report.refuse(
                at,
                format!("{}, which {key} has in line {line}", shown(&address.to_string())),
                "an address that nothing else in this file binds",
                "change or remove one of the two",
            );
            return None;
        }
        self.0.push((address, at.key.clone(), report.line(at)));
        Some(())
    }
}

/// One of a listener's addresses.
pub(super) fn listen(report: &mut Report, taken: &mut Taken, at: &At, text: &str) -> Option<SocketAddr> {
    match socket(text, LISTEN_ADDRESS) {
        Ok(address) => taken.take(report, at, address).map(|()| address),
        Err(refusal) => {
            report.refuse(at, shown(text), refusal.expected, refusal.remedy);
            None
        }
    }
}

/// The address of the administrator's HTTP server.
pub(super) fn admin(report: &mut Report, taken: &mut Taken, item: Item<'_>) -> Option<AdminAddress> {
    let at = item.at.clone();
    let path_start = report.resolve("");
    let address = parsed(|text| {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.contains('/') {
            return unix_path(&path_start, path, ADMIN_ADDRESS).map(AdminAddress::Unix);
        }
        socket(text, ADMIN_ADDRESS).map(AdminAddress::Tcp)
    })(report, item)?;
    if let AdminAddress::Tcp(address) = address {
        taken.take(report, &at, address)?;
        if address.ip().is_unspecified() {
            report.warn(
                &at,
                format!(
                    "{} is every address of this machine: metrics are open to whoever can reach it",
                    address.ip()
                ),
                "name one address such as \"127.0.0.1:9180\", or the path of a UNIX socket",
            );
        }
    }
    Some(address)
}

/// The address of a server.
pub(super) fn server(report: &mut Report, at: &At, text: &str) -> Option<ServerAddress> {
    match parse_server(&report.resolve(""), text) {
        Ok(address) => Some(address),
        Err(refusal) => {
            report.refuse(at, shown(text), refusal.expected, refusal.remedy);
            None
        }
    }
}

fn socket(text: &str, expected: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_| {
        let remedy = if text.parse::<Ipv6Addr>().is_ok() {
            "put the IPv6 address in brackets and add :port".to_owned()
        } else if text.parse::<IpAddr>().is_ok() {
            format!("add the port: \"{text}:443\"")
        } else if let Some(port) = text
            .strip_prefix("*:")
            .or(text.strip_prefix(':'))
            .filter(|port| is_port(port))
        {
            format!("for every address write \"0.0.0.0:{port}\" or \"[::]:{port}\"")
        } else if is_port(text) {
            format!("for every address write \"0.0.0.0:{text}\" or \"[::]:{text}\"")
        } else {
            "write the IP address itself (names are not looked up here) and a port up to 65535".to_owned()
        };
        Refusal::new(expected, remedy)
    })
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn unix_path(folder: &Path, path: &str, expected: &str) -> Result<std::path::PathBuf, Refusal> {
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return Err(Refusal::new(expected, "write the path of a socket file after unix:"));
    }
    let resolved = folder.join(path);
    let bytes = resolved.as_os_str().len();
    if bytes > UNIX_PATH_BYTES_MAX {
        let remedy = format!(
            "shorten the path: with its folder it has {bytes} bytes, a UNIX socket can have {UNIX_PATH_BYTES_MAX}"
        );
        return Err(Refusal::new(expected, remedy));
    }
    Ok(resolved)
}

fn parse_server(folder: &Path, text: &str) -> Result<ServerAddress, Refusal> {
    let refusal = |remedy: &str| Refusal::new(SERVER_ADDRESS, remedy);
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(folder, path, SERVER_ADDRESS).map(ServerAddress::Unix);
    }
    if text.contains("://") {
        return Err(refusal("remove the scheme: bytes are passed on as they are"));
    }
    if text.contains('/') {
        return Err(refusal(
            "for a UNIX socket put unix: in front of its path; a server has no other path",
        ));
    }
    let (host, port) = parse_host_and_port(text).map_err(|remedy| refusal(&remedy))?;
    Ok(ServerAddress::Host(host, port))
}

/// `host:port`, or the remedy.
pub(super) fn parse_host_and_port(text: &str) -> Result<(String, u16), String> {
    if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 1 && !text.starts_with('[') {
        return Err("put the IPv6 address in brackets and add :port".to_owned());
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("add the port".to_owned());
    };
    let Some(port) = port.parse::<u16>().ok().filter(|&port| port > 0) else {
        return Err("write a port from 1 to 65535 after the colon".to_owned());
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner.to_owned(),
        Some(_) => return Err("write an IPv6 address in the brackets".to_owned()),
        None => host_name(host).map_err(|what| format!("write an IP address or a host name: {what}"))?,
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn parse(text: &str) -> Result<ServerAddress, String> {
        parse_server(Path::new("/etc/ringlock"), text).map_err(|refusal| refusal.remedy)
    }

    #[test]
    fn servers_of_every_form() {
        assert_eq!(parse("127.0.0.1:80"), Ok(ServerAddress::Host("127.0.0.1".into(), 80)));
        assert_eq!(parse("[::1]:80"), Ok(ServerAddress::Host("::1".into(), 80)));
        assert_eq!(
            parse("App_1.internal:8080"),
            Ok(ServerAddress::Host("app_1.internal".into(), 8080))
        );
        assert_eq!(parse("unix:/run/app"), Ok(ServerAddress::Unix("/run/app".into())));
        assert_eq!(
            parse("unix:app.sock"),
            Ok(ServerAddress::Unix("/etc/ringlock/app.sock".into()))
        );
    }

    #[test]
    fn servers_that_are_none() {
        for (text, remedy) in [
            ("app", "add the port"),
            ("app:", "write a port from 1 to 65535 after the colon"),
            ("app:0", "write a port from 1 to 65535 after the colon"),
            ("app:65536", "write a port from 1 to 65535 after the colon"),
            ("::1", "put the IPv6 address in brackets and add :port"),
            ("fe80::1:80", "put the IPv6 address in brackets and add :port"),
            ("[::x]:80", "write an IPv6 address in the brackets"),
            ("http://app:80", "remove the scheme: bytes are passed on as they are"),
            (
                "/run/app",
                "for a UNIX socket put unix: in front of its path; a server has no other path",
            ),
            ("unix:", "write the path of a socket file after unix:"),
            (
                "a b:80",
                "write an IP address or a host name: a label has the character ' '",
            ),
            (":80", "write an IP address or a host name: a label is empty"),
        ] {
            assert_eq!(parse(text), Err(remedy.to_owned()), "{text}");
        }
    }

    #[test]
    fn socket_paths_fit_the_kernel() {
        let fits = format!("unix:/{}", "a".repeat(106));
        assert_eq!(parse(&fits), Ok(ServerAddress::Unix(PathBuf::from(&fits[5..]))));
        assert_eq!(
            parse(&format!("{fits}a")),
            Err("shorten the path: with its folder it has 108 bytes, a UNIX socket can have 107".to_owned())
        );
    }
}
