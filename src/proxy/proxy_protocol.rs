//! The PROXY protocol, versions 1 and 2: who the client of a forwarded connection is. Read from the balancer in front
//! of us, written to the servers behind us. After HAProxy's proxy-protocol.txt.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustls::CipherSuite;

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// "The maximum line lengths the receiver must support including the CRLF" is 107 (section 2.1).
const V1_BYTES_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_START_BYTES: usize = 16;
const V2_IPV4_BYTES: usize = 4 + 4 + 2 + 2;
const V2_IPV6_BYTES: usize = 16 + 16 + 2 + 2;
const V2_UNIX_BYTES: usize = 108 + 108;

/// Type and length.
const TLV_START_BYTES: usize = 1 + 2;
const TLV_ALPN: u8 = 0x01;
const TLV_AUTHORITY: u8 = 0x02;
const TLV_CRC32C: u8 = 0x03;
const TLV_SSL: u8 = 0x20;
const TLV_SSL_VERSION: u8 = 0x21;
const TLV_SSL_CN: u8 = 0x22;
const TLV_SSL_CIPHER: u8 = 0x23;
const TLV_SSL_CLIENT_CERT: u8 = 0x28;
const CLIENT_SSL: u8 = 0x01;
/// "The client provided a certificate over the current connection."
const CLIENT_CERT_CONN: u8 = 0x02;
/// "The client provided a certificate at least once over the TLS session this connection belongs to."
const CLIENT_CERT_SESS: u8 = 0x04;

/// What the bytes received so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header may still come of it: receive more.
    NeedMore,
    /// A whole header.
    Complete {
        /// Bytes of the header; what follows belongs to the client.
        consumed: usize,
        /// The client's address. None when the sender speaks for itself (LOCAL) or does not say (UNKNOWN, UNIX
        /// sockets, datagrams): the connection's own address is then the best there is.
        source: Option<SocketAddr>,
        /// The address the client connected to; none exactly when `source` is.
        destination: Option<SocketAddr>,
    },
    /// No byte that could follow makes this a header; says what is wrong with it.
    Invalid(&'static str),
}

impl Parsed {
    fn complete(consumed: usize, addresses: Option<(SocketAddr, SocketAddr)>) -> Parsed {
        Parsed::Complete {
            consumed,
            source: addresses.map(|(source, _)| source),
            destination: addresses.map(|(_, destination)| destination),
        }
    }
}

/// Reads a header of either version at the start of `bytes`: all that was received so far, from the first byte.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let result = if may_start_with(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else if may_start_with(bytes, V1_START) {
        parse_v1(bytes)
    } else {
        Err(Stop::Invalid(
            "missing: the first bytes are neither version 1 nor version 2",
        ))
    };
    match result {
        Ok(parsed) => parsed,
        Err(Stop::NeedMore) => Parsed::NeedMore,
        Err(Stop::Invalid(why)) => Parsed::Invalid(why),
    }
}

enum Stop {
    NeedMore,
    Invalid(&'static str),
}

fn may_start_with(bytes: &[u8], start: &[u8]) -> bool {
    bytes.starts_with(start) || start.starts_with(bytes)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Stop> {
    const PROTOCOL: Stop = Stop::Invalid("version 1 protocol is not TCP4, TCP6 or UNKNOWN");
    const ADDRESSES: Stop = Stop::Invalid("version 1 addresses or ports are malformed");

    let rest = bytes.get(V1_START.len()..).ok_or(Stop::NeedMore)?;
    // "The receiver must ignore anything presented before the CRLF" when the protocol is UNKNOWN.
    let is_unknown = may_start_with(rest, b"UNKNOWN");
    if !is_unknown && !may_start_with(rest, b"TCP4 ") && !may_start_with(rest, b"TCP6 ") {
        return Err(PROTOCOL);
    }
    let within = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(line_bytes) = within.windows(2).position(|two| two == b"\r\n") else {
        // A stranger is refused by its first bytes, not by a timeout.
        let could_be = |byte: &u8| byte.is_ascii_hexdigit() || b"TCPROXY:. ".contains(byte);
        let (last, before) = within.split_last().expect("the line has its start");
        let well_formed = is_unknown || before.iter().all(could_be) && (could_be(last) || *last == b'\r');
        return Err(if !well_formed {
            ADDRESSES
        } else if within.len() < V1_BYTES_MAX {
            Stop::NeedMore
        } else {
            Stop::Invalid("version 1 line is longer than 107 bytes")
        });
    };
    let consumed = line_bytes + 2;
    if is_unknown {
        return Ok(Parsed::complete(consumed, None));
    }
    let line = std::str::from_utf8(&bytes[V1_START.len()..line_bytes]).map_err(|_| ADDRESSES)?;
    let mut words = line.split(' ');
    let addresses = match words.next() {
        Some("TCP4") => v1_addresses::<Ipv4Addr>(&mut words),
        Some("TCP6") => v1_addresses::<Ipv6Addr>(&mut words),
        Some(_) | None => return Err(PROTOCOL),
    };
    if addresses.is_none() || words.next().is_some() {
        return Err(ADDRESSES);
    }
    Ok(Parsed::complete(consumed, addresses))
}

fn v1_addresses<'a, A: std::str::FromStr + Into<IpAddr>>(
    words: &mut impl Iterator<Item = &'a str>,
) -> Option<(SocketAddr, SocketAddr)> {
    let source: A = words.next()?.parse().ok()?;
    let destination: A = words.next()?.parse().ok()?;
    let source_port = v1_port(words.next()?)?;
    let destination_port = v1_port(words.next()?)?;
    Some((
        SocketAddr::new(source.into(), source_port),
        SocketAddr::new(destination.into(), destination_port),
    ))
}

/// Decimal without leading zeros ("heading zeroes are not permitted") and without the sign that `parse` would allow.
fn v1_port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain.then(|| word.parse().ok())?
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Stop> {
    // The signature, then version and command, family and transport, and the length of the rest.
    let after_signature = bytes.get(V2_SIGNATURE.len()..).unwrap_or_default();
    let command = after_signature.first().ok_or(Stop::NeedMore)?;
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        0x22..=0x2f => return Err(Stop::Invalid("version 2 command is neither LOCAL nor PROXY")),
        _ => return Err(Stop::Invalid("binary header of another version than 2")),
    };
    let family = *after_signature.get(1).ok_or(Stop::NeedMore)?;
    // "Other values are unassigned and must not be emitted by senders. They must be rejected as invalid by receivers."
    if !is_local && (family >> 4 > 3 || family & 0x0f > 2) {
        return Err(Stop::Invalid("version 2 address family or transport is not assigned"));
    }
    let length = after_signature.get(2..4).ok_or(Stop::NeedMore)?;
    let consumed = V2_START_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if consumed > PROXY_HEADER_BYTES_MAX {
        return Err(Stop::Invalid("version 2 header is longer than 4096 bytes"));
    }
    const _: () = assert!(PROXY_HEADER_BYTES_MAX == 4096, "the message above names it");

    let address_bytes = match family >> 4 {
        1 => V2_IPV4_BYTES,
        2 => V2_IPV6_BYTES,
        3 => V2_UNIX_BYTES,
        _ => 0,
    };
    if !is_local && consumed < V2_START_BYTES + address_bytes {
        return Err(Stop::Invalid("version 2 header is too short for its addresses"));
    }
    let header = bytes.get(..consumed).ok_or(Stop::NeedMore)?;
    // The whole block is to be discarded for LOCAL; without a family nobody knows how long its addresses are.
    if is_local || family >> 4 == 0 {
        return Ok(Parsed::complete(consumed, None));
    }
    let (addresses, _) = header[V2_START_BYTES..].split_at(address_bytes);
    check_tlvs(header, V2_START_BYTES + address_bytes)?;
    let addresses = match family {
        0x11 => Some(v2_addresses::<4>(addresses)),
        0x21 => Some(v2_addresses::<16>(addresses)),
        _ => None,
    };
    Ok(Parsed::complete(consumed, addresses))
}

/// Both addresses of `N` bytes, then both ports. `block` has them all.
fn v2_addresses<const N: usize>(block: &[u8]) -> (SocketAddr, SocketAddr)
where
    [u8; N]: Into<IpAddr>,
{
    let whole = "the block has the length of its family";
    let (source, rest) = block.split_first_chunk::<N>().expect(whole);
    let (destination, rest) = rest.split_first_chunk::<N>().expect(whole);
    let (source_port, rest) = rest.split_first_chunk().expect(whole);
    let destination_port = rest.first_chunk().expect(whole);
    (
        SocketAddr::new((*source).into(), u16::from_be_bytes(*source_port)),
        SocketAddr::new((*destination).into(), u16::from_be_bytes(*destination_port)),
    )
}

/// Walks the TLVs from `at` to the end of the header. Those we do not know are skipped; a checksum is verified.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), Stop> {
    while at < header.len() {
        let &[kind, length_high, length_low, ref rest @ ..] = &header[at..] else {
            return Err(Stop::Invalid("version 2 TLV is cut off"));
        };
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        let value = rest
            .get(..length)
            .ok_or(Stop::Invalid("version 2 TLV is longer than the header"))?;
        let value_at = at + 3;
        if kind == TLV_CRC32C {
            let sent = value
                .try_into()
                .map_err(|_| Stop::Invalid("version 2 checksum has not four bytes"))?;
            // Computed as if the checksum's own bytes were zero.
            let crc = crc32c(crc32c(crc32c(0, &header[..value_at]), &[0; 4]), &header[value_at + 4..]);
            if u32::from_be_bytes(sent) != crc {
                return Err(Stop::Invalid("version 2 checksum does not match"));
            }
        }
        at = value_at + length;
    }
    Ok(())
}

/// CRC-32C (Castagnoli, reflected) of what `crc` covers followed by `bytes`; 0 covers nothing.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = (value >> 1) ^ if value & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes
        .iter()
        .fold(!crc, |crc, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// What a server behind us is told about the client's TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsInfo<'a> {
    /// The application protocol agreed on.
    pub alpn: Option<&'a [u8]>,
    /// The host name the client asked for.
    pub authority: Option<&'a str>,
    /// "TLSv1.2" or "TLSv1.3", as OpenSSL and with it HAProxy name them.
    pub version: &'static str,
    /// The cipher suite by its OpenSSL name, as HAProxy and hitch send it: [`openssl_cipher_name`].
    pub cipher: &'static str,
    /// The client has shown a certificate, which was verified.
    pub client: Option<ClientInfo<'a>>,
}

/// What a server behind us is told about a client that has shown a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    /// In this connection; otherwise in the one whose session it resumes.
    pub shown_now: bool,
    /// The one common name of its subject.
    pub common_name: Option<&'a str>,
    /// The certificate itself (DER).
    pub certificate: Option<&'a [u8]>,
}

/// OpenSSL's name of a suite that rustls on aws-lc-rs can agree on; `None` for any other.
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls names hundreds of suites and implements these"
)]
pub fn openssl_cipher_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

/// Appends a version 1 header for a client at `source` that connected to `destination`.
pub fn write_v1(source: SocketAddr, destination: SocketAddr, out: &mut Vec<u8>) {
    let start = out.len();
    let (protocol, source_ip, destination_ip): (_, IpAddr, IpAddr) = match one_family(source.ip(), destination.ip()) {
        Pair::V4(source, destination) => ("TCP4", source.into(), destination.into()),
        Pair::V6(source, destination) => ("TCP6", source.into(), destination.into()),
    };
    let (source_port, destination_port) = (source.port(), destination.port());
    write!(
        out,
        "PROXY {protocol} {source_ip} {destination_ip} {source_port} {destination_port}\r\n"
    )
    .expect("writing to a vector cannot fail");
    debug_assert!(out.len() - start <= V1_BYTES_MAX);
}

/// Appends a version 2 header for a client at `source` that connected to `destination` over the TLS of `tls`. False: the header would have
/// been longer than receivers take, and is without the client's certificate.
#[must_use]
pub fn write_v2(source: SocketAddr, destination: SocketAddr, tls: &TlsInfo<'_>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.extend_from_slice(V2_SIGNATURE);
    out.push(0x21); // version 2, PROXY
    let length_at = out.len() + 1;
    match one_family(source.ip(), destination.ip()) {
        Pair::V4(source, destination) => {
            out.extend_from_slice(&[0x11, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        Pair::V6(source, destination) => {
            out.extend_from_slice(&[0x21, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());

    if let Some(alpn) = tls.alpn {
        write_tlv(TLV_ALPN, out, |out| out.extend_from_slice(alpn));
    }
    if let Some(authority) = tls.authority {
        write_tlv(TLV_AUTHORITY, out, |out| out.extend_from_slice(authority.as_bytes()));
    }
    let mut is_whole = true;
    write_tlv(TLV_SSL, out, |out| {
        let (client, verify) = match tls.client {
            Some(ClientInfo { shown_now: true, .. }) => (CLIENT_SSL | CLIENT_CERT_CONN | CLIENT_CERT_SESS, 0_u32),
            Some(ClientInfo { shown_now: false, .. }) => (CLIENT_SSL | CLIENT_CERT_SESS, 0),
            // Zero would mean that a client certificate was presented and verified.
            None => (CLIENT_SSL, 1),
        };
        out.push(client);
        out.extend_from_slice(&verify.to_be_bytes());
        write_tlv(TLV_SSL_VERSION, out, |out| {
            out.extend_from_slice(tls.version.as_bytes())
        });
        write_tlv(TLV_SSL_CIPHER, out, |out| out.extend_from_slice(tls.cipher.as_bytes()));
        if let Some(name) = tls.client.and_then(|client| client.common_name) {
            write_tlv(TLV_SSL_CN, out, |out| out.extend_from_slice(name.as_bytes()));
        }
        if let Some(certificate) = tls.client.and_then(|client| client.certificate) {
            is_whole = out.len() - start + TLV_START_BYTES + certificate.len() <= PROXY_HEADER_BYTES_MAX;
            if is_whole {
                write_tlv(TLV_SSL_CLIENT_CERT, out, |out| out.extend_from_slice(certificate));
            }
        }
    });
    set_length(out, length_at);
    debug_assert!(out.len() - start <= PROXY_HEADER_BYTES_MAX);
    is_whole
}

fn write_tlv(kind: u8, out: &mut Vec<u8>, write_value: impl FnOnce(&mut Vec<u8>)) {
    let length_at = out.len() + 1;
    out.extend_from_slice(&[kind, 0, 0]);
    write_value(out);
    set_length(out, length_at);
}

/// Stores at `at` how many bytes follow the two bytes there.
fn set_length(out: &mut [u8], at: usize) {
    let length = u16::try_from(out.len() - at - 2).expect("the header has at most PROXY_HEADER_BYTES_MAX bytes");
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// The header has one family for both addresses: IPv4 where both are (dual-stack sockets say `::ffff:192.0.2.1`), else
/// IPv6.
fn one_family(source: IpAddr, destination: IpAddr) -> Pair {
    match (source.to_canonical(), destination.to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Pair::V4(source, destination),
        (source, destination) => Pair::V6(as_v6(source), as_v6(destination)),
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TLS: TlsInfo<'static> = TlsInfo {
        alpn: Some(b"h2"),
        authority: Some("a.example.com"),
        version: "TLSv1.3",
        cipher: "TLS_AES_256_GCM_SHA384",
        client: None,
    };

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn v1(source: &str, destination: &str) -> String {
        let mut out = Vec::new();
        write_v1(address(source), address(destination), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn v2(source: &str, destination: &str) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(write_v2(address(source), address(destination), &TLS, &mut out));
        out
    }

    /// A version 2 header with these bytes behind the signature and a length that fits `rest`.
    fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, [command, family].as_slice(), &length, rest].concat()
    }

    fn is_invalid(bytes: &[u8]) -> bool {
        matches!(parse(bytes), Parsed::Invalid(_))
    }

    fn complete(consumed: usize, source: &str, destination: &str) -> Parsed {
        Parsed::complete(consumed, Some((address(source), address(destination))))
    }

    #[test]
    fn version_1_is_written_as_the_specification_shows_it() {
        assert_eq!(
            v1("192.0.2.1:56324", "192.0.2.2:443"),
            "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
        );
        assert_eq!(
            v1("[2001:db8::1]:1", "[2001:db8::2]:443"),
            "PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n"
        );
        assert_eq!(
            v1("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2"),
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
        );
        assert_eq!(
            v1("192.0.2.1:1", "[2001:db8::2]:2"),
            "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n"
        );
        let longest = "[fff1:fff2:fff3:fff4:fff5:fff6:fff7:fff8]:65535";
        assert_eq!(v1(longest, longest).len(), 104);
    }

    #[test]
    fn version_2_has_the_bytes_that_haproxy_sends() {
        // From HAProxy 2.6 with send-proxy-v2-ssl and the options ssl-cipher and authority, but for the verify field:
        // it sends 0 where the specification asks for another value when there is no client certificate.
        let hex = "0d0a0d0a000d0a515549540a2111004c7f0000017f000001cdf84bf3010002683202000d612e6578616d706c652e636f6d\
                   2000280100000001210007544c5376312e33230016544c535f4145535f3235365f47434d5f534841333834";
        let ours: String = v2("127.0.0.1:52728", "127.0.0.1:19443")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(ours, hex);
    }

    #[test]
    fn version_2_carries_ipv6_and_leaves_out_what_is_not_known() {
        let mut out = b"before".to_vec();
        let tls = TlsInfo {
            alpn: None,
            authority: None,
            ..TLS
        };
        assert!(write_v2(
            address("[2001:db8::1]:258"),
            address("192.0.2.1:772"),
            &tls,
            &mut out
        ));
        let header = out.strip_prefix(b"before").unwrap();
        assert_eq!(&header[12..18], [0x21, 0x21, 0, 36 + 3 + 40, 0x20, 0x01]);
        assert_eq!(&header[42..53], [0xff, 0xff, 192, 0, 2, 1, 1, 2, 3, 4, TLV_SSL]);
        assert_eq!(
            parse(header),
            complete(header.len(), "[2001:db8::1]:258", "[::ffff:192.0.2.1]:772")
        );
    }

    #[test]
    fn version_1_is_read() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET /";
        assert_eq!(parse(line), complete(42, "192.0.2.1:56324", "192.0.2.2:443"));
        let line = b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 0 65535\r\n";
        assert_eq!(
            parse(line),
            complete(line.len(), "[2001:db8::1]:0", "[::ffff:192.0.2.1]:65535")
        );
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Parsed::complete(15, None));
        let line = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(parse(line), Parsed::complete(line.len(), None));
    }

    #[test]
    fn version_1_lines_that_are_not_exact_are_refused() {
        for line in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 \r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 056324 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2  443\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 443\r\n",
            "PROXY TCP4 2001:db8::1 192.0.2.2 1 443\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 443\r\n",
            "PROXY TCP4\r\n",
            "PROXY \r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 443\n\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r 443\r\n",
        ] {
            assert!(is_invalid(line.as_bytes()), "{line:?}");
        }
    }

    #[test]
    fn strangers_are_refused_by_their_first_bytes() {
        for start in [
            b"G".as_slice(),
            b"PROXY\t",
            b"PROXY  ",
            b"PROXY TCP5",
            b"PROXY UNX",
            b"PROXY TCP4 g",
            b"PROXY TCP4 1\n",
            b"PROXY TCP4 1\r\r",
            b"\x16",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\r\n\r\n\0\r\nQUIT\n\x11",
            b"\r\n\r\n\0\r\nQUIT\n\x22",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x41",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x13",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0b",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xf1",
        ] {
            assert!(is_invalid(start), "{start:?}");
            assert_eq!(parse(&start[..start.len() - 1]), Parsed::NeedMore, "{start:?}");
        }
    }

    #[test]
    fn version_1_is_refused_when_its_107_bytes_are_full() {
        let line = |dots: usize| [b"PROXY UNKNOWN ".as_slice(), &vec![b'.'; dots], b"\r\n"].concat();
        assert_eq!(parse(&line(107 - 16)), Parsed::complete(107, None));
        assert!(is_invalid(&line(108 - 16)));
        assert_eq!(parse(&line(200)[..106]), Parsed::NeedMore);
        assert!(is_invalid(&line(200)[..107]));
    }

    #[test]
    fn version_2_without_client_addresses_is_complete_without_them() {
        let local = v2_header(0x20, 0xff, b"whatever");
        assert_eq!(parse(&local), Parsed::complete(24, None));
        assert_eq!(parse(&v2_header(0x20, 0, &[])), Parsed::complete(16, None));
        assert_eq!(parse(&v2_header(0x21, 0, b"unspecified")), Parsed::complete(27, None));
        assert_eq!(parse(&v2_header(0x21, 0x12, &[0; 12])), Parsed::complete(28, None));
        assert_eq!(parse(&v2_header(0x21, 0x31, &[0; 216])), Parsed::complete(232, None));
        assert!(is_invalid(&v2_header(0x21, 0x31, &[0; 215])));
        assert!(is_invalid(&v2_header(0x21, 0x21, &[0; 35])));
    }

    /// What is in the SSL TLV of a header for this client.
    fn ssl_tlv(client: Option<ClientInfo<'_>>) -> (bool, Vec<u8>) {
        let mut out = Vec::new();
        let (source, destination) = (address("192.0.2.1:1"), address("192.0.2.2:2"));
        let tls = TlsInfo {
            alpn: None,
            authority: None,
            version: "V",
            cipher: "C",
            client,
        };
        let is_whole = write_v2(source, destination, &tls, &mut out);
        assert_eq!(parse(&out), complete(out.len(), "192.0.2.1:1", "192.0.2.2:2"));
        (
            is_whole,
            out[V2_START_BYTES + V2_IPV4_BYTES + TLV_START_BYTES..].to_vec(),
        )
    }

    #[test]
    fn version_2_says_when_a_certificate_was_shown_and_whose_it_is() {
        let nobody = [&[0x01, 0, 0, 0, 1, 0x21, 0, 1][..], b"V", &[0x23, 0, 1], b"C"].concat();
        assert_eq!(ssl_tlv(None), (true, nobody));
        let client = ClientInfo {
            shown_now: true,
            common_name: None,
            certificate: None,
        };
        let somebody = [&[0x07, 0, 0, 0, 0, 0x21, 0, 1][..], b"V", &[0x23, 0, 1], b"C"].concat();
        assert_eq!(ssl_tlv(Some(client)), (true, somebody));
        let returned = ClientInfo {
            shown_now: false,
            common_name: Some("ab"),
            certificate: Some(b"der"),
        };
        let expected = [
            &[0x05, 0, 0, 0, 0, 0x21, 0, 1][..],
            b"V",
            &[0x23, 0, 1],
            b"C",
            &[0x22, 0, 2],
            b"ab",
            &[0x28, 0, 3],
            b"der",
        ];
        assert_eq!(ssl_tlv(Some(returned)), (true, expected.concat()));
    }

    #[test]
    fn a_certificate_that_makes_the_header_too_long_is_left_out_whole() {
        let client = |certificate| {
            let common_name = Some("ab");
            Some(ClientInfo {
                shown_now: true,
                common_name,
                certificate,
            })
        };
        let (_, without) = ssl_tlv(client(None));
        let room =
            PROXY_HEADER_BYTES_MAX - V2_START_BYTES - V2_IPV4_BYTES - TLV_START_BYTES - without.len() - TLV_START_BYTES;
        let long = vec![7; room + 1];
        let (is_whole, with) = ssl_tlv(client(Some(&long[..room])));
        assert!(is_whole && with.ends_with(&long[..room]));
        assert_eq!(with.len(), without.len() + TLV_START_BYTES + room);
        assert_eq!(ssl_tlv(client(Some(&long))), (false, without));
    }

    #[test]
    fn version_2_checks_the_lengths_of_tlvs_and_skips_what_it_does_not_know() {
        let with = |tlvs: &[u8]| v2_header(0x21, 0x11, &[&[192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2], tlvs].concat());
        assert_eq!(
            parse(&with(&[0xe0, 0, 2, 1, 1, 4, 0, 0])),
            complete(36, "192.0.2.1:1", "192.0.2.2:2")
        );
        assert!(is_invalid(&with(&[4])));
        assert!(is_invalid(&with(&[4, 0])));
        assert!(is_invalid(&with(&[4, 0, 1])));
        assert!(is_invalid(&with(&[TLV_CRC32C, 0, 3, 0, 0, 0])));
        assert!(
            parse(&with(
                &[&[4, 0x0f, 0xe0 - 15], vec![0; 0x0fe0 - 15].as_slice()].concat()
            )) != Parsed::NeedMore
        );
        assert!(is_invalid(&with(&vec![0; 4096 - 28 + 1])));
    }

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
    }

    #[test]
    fn a_checksum_is_verified_over_the_whole_header() {
        let mut header = v2_header(
            0x21,
            0x11,
            &[192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2, 3, 0, 4, 0, 0, 0, 0, 4, 0, 1, 7],
        );
        let crc = crc32c(0, &header);
        header[31..35].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(parse(&header), complete(39, "192.0.2.1:1", "192.0.2.2:2"));
        for at in 16..28 {
            let mut other = header.clone();
            other[at] ^= 1;
            assert_eq!(
                parse(&other),
                Parsed::Invalid("version 2 checksum does not match"),
                "byte {at}"
            );
        }
        let mut other = header.clone();
        other[38] ^= 0x80;
        assert_eq!(
            parse(&other),
            Parsed::Invalid("version 2 checksum does not match"),
            "behind the checksum"
        );
    }

    #[test]
    fn every_suite_that_can_be_agreed_on_has_its_openssl_name() {
        for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
            assert!(openssl_cipher_name(suite.suite()).is_some(), "{suite:?}");
        }
        assert_eq!(openssl_cipher_name(CipherSuite::TLS_RSA_WITH_AES_128_CBC_SHA), None);
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        // Ipv6 flow and scope are not on the wire.
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    /// What the reader gets: both addresses in one family.
    fn on_the_wire(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
        match one_family(source.ip(), destination.ip()) {
            Pair::V4(s, d) => (
                SocketAddr::new(s.into(), source.port()),
                SocketAddr::new(d.into(), destination.port()),
            ),
            Pair::V6(s, d) => (
                SocketAddr::new(s.into(), source.port()),
                SocketAddr::new(d.into(), destination.port()),
            ),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_byte_by_byte(
            source in any_address(),
            destination in any_address(),
            alpn in prop::option::of(prop::collection::vec(any::<u8>(), 1..255)),
            authority in prop::option::of("[a-z0-9.]{1,253}"),
            after in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let tls = TlsInfo { alpn: alpn.as_deref(), authority: authority.as_deref(), ..TLS };
            let (mut text, mut binary) = (Vec::new(), Vec::new());
            write_v1(source, destination, &mut text);
            prop_assert!(write_v2(source, destination, &tls, &mut binary));
            for header in [text, binary] {
                for n in 0..header.len() {
                    prop_assert_eq!(parse(&header[..n]), Parsed::NeedMore);
                }
                let expected = Parsed::complete(header.len(), Some(on_the_wire(source, destination)));
                prop_assert_eq!(parse(&[header, after.clone()].concat()), expected);
            }
        }

        #[test]
        fn any_bytes_do_no_harm_and_a_decision_stands(
            start in prop::sample::select(vec![
                b"".as_slice(), b"PROXY ", b"PROXY TCP4 1.1.1.1", b"PROXY UNKNOWN", V2_SIGNATURE,
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x20", b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xff",
            ]),
            rest in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                prop::collection::vec(prop::sample::select(b"0123456789abcdef.: \r\nTCP4".as_slice()), 0..120),
            ],
        ) {
            let bytes = [start, &rest].concat();
            let end = parse(&bytes);
            if let Parsed::Complete { consumed, source, destination } = end {
                prop_assert!(consumed <= bytes.len() && consumed <= PROXY_HEADER_BYTES_MAX);
                prop_assert_eq!(source.is_some(), destination.is_some());
            }
            for n in 0..bytes.len() {
                let early = parse(&bytes[..n]);
                prop_assert!(early == Parsed::NeedMore || early == end, "{:?} after {} bytes, then {:?}", early, n, end);
            }
        }
    }
}
