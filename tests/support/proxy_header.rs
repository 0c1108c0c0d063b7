//! The PROXY protocol as its specification has it, read byte by byte: not by the code under test.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use super::Origin;

/// A header as an origin got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    /// 1 or 2.
    pub(crate) version: u8,
    /// The client's address, unless the header does not say.
    pub(crate) source: Option<SocketAddr>,
    /// The address it connected to.
    pub(crate) destination: Option<SocketAddr>,
    /// By type; of the SSL TLV the fixed part (`client`, `verify`) only.
    pub(crate) tlvs: BTreeMap<u8, Vec<u8>>,
    /// The TLVs inside the SSL TLV, by type.
    pub(crate) ssl: BTreeMap<u8, Vec<u8>>,
}

impl ProxyHeader {
    /// Reads one and nothing behind it.
    pub(crate) fn read(stream: &mut impl Read) -> io::Result<ProxyHeader> {
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        if &start == b"\r\n\r\n\0\r\nQUIT\n" {
            read_v2(stream)
        } else {
            read_v1(&start, stream)
        }
    }

    /// The text of a TLV.
    #[track_caller]
    pub(crate) fn text(&self, kind: u8) -> &str {
        let value = self
            .tlvs
            .get(&kind)
            .unwrap_or_else(|| panic!("no TLV {kind:#x} in {self:?}"));
        std::str::from_utf8(value).unwrap()
    }

    /// The text of a TLV inside the SSL TLV.
    #[track_caller]
    pub(crate) fn ssl_text(&self, kind: u8) -> &str {
        let value = self
            .ssl
            .get(&kind)
            .unwrap_or_else(|| panic!("no SSL TLV {kind:#x} in {self:?}"));
        std::str::from_utf8(value).unwrap()
    }
}

fn read_v1(start: &[u8], stream: &mut impl Read) -> io::Result<ProxyHeader> {
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        assert!(line.len() <= 107, "a line of more than 107 bytes: {line:?}");
    }
    let line = String::from_utf8(line).expect("the header is ASCII");
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let (source, destination) = match words[..] {
        ["PROXY", "UNKNOWN", ..] => (None, None),
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            source,
            destination,
            source_port,
            destination_port,
        ] => {
            let address = |ip: &str, port: &str| {
                let address = SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap());
                assert_eq!(address.is_ipv4(), family == "TCP4", "{line}");
                Some(address)
            };
            (address(source, source_port), address(destination, destination_port))
        }
        _ => panic!("no header: {line:?}"),
    };
    Ok(ProxyHeader {
        version: 1,
        source,
        destination,
        tlvs: BTreeMap::new(),
        ssl: BTreeMap::new(),
    })
}

fn read_v2(stream: &mut impl Read) -> io::Result<ProxyHeader> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed)?;
    let [command, family, high, low] = fixed;
    assert_eq!(command >> 4, 2, "version");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    stream.read_exact(&mut rest)?;
    let (addresses, tlvs) = match (command & 0xf, family) {
        (0, _) => (None, Vec::new()),
        (1, 0x11) => (Some(addresses::<4>(&rest)), rest[12..].to_vec()),
        (1, 0x21) => (Some(addresses::<16>(&rest)), rest[36..].to_vec()),
        other => panic!("command and family {other:?}"),
    };
    let mut tlvs = read_tlvs(&tlvs);
    let mut ssl = BTreeMap::new();
    if let Some(value) = tlvs.get_mut(&0x20) {
        ssl = read_tlvs(&value[5..]);
        value.truncate(5);
    }
    Ok(ProxyHeader {
        version: 2,
        source: addresses.map(|(source, _)| source),
        destination: addresses.map(|(_, destination)| destination),
        tlvs,
        ssl,
    })
}

fn addresses<const N: usize>(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let ip = |at: usize| -> IpAddr {
        match N {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap()).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()).into(),
        }
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    (
        SocketAddr::new(ip(0), port(2 * N)),
        SocketAddr::new(ip(N), port(2 * N + 2)),
    )
}

fn read_tlvs(mut bytes: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut tlvs = BTreeMap::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (value, behind) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        assert!(tlvs.insert(*kind, value.to_vec()).is_none(), "TLV {kind:#x} twice");
        bytes = behind;
    }
    assert!(bytes.is_empty(), "a TLV that is cut off");
    tlvs
}

/// An origin that expects a header on every connection, hands it out, and echoes what follows.
pub(crate) fn header_origin() -> (Origin, Receiver<ProxyHeader>) {
    let (headers, received) = channel();
    let headers = Mutex::new(headers);
    let origin = Origin::start(move |mut stream| {
        let Ok(header) = ProxyHeader::read(&mut stream) else {
            return;
        };
        headers.lock().unwrap().send(header).unwrap_or(());
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if io::Write::write_all(&mut stream, &buffer[..length]).is_err() {
                return;
            }
        }
    });
    (origin, received)
}
