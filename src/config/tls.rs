//! `[listener.tls]` and `[tickets]`.

use rustls::{CipherSuite, NamedGroup};
use toml::de::DeValue;

use super::nearest::suggestion;
use super::read::{Item, Refusal, Report, Table, choice, flag, list, parsed, shown};
use super::units::{off_or_size, whole_seconds};
use super::{TicketSecret, Tickets, Tls, TlsVersion};

/// A cipher suite that can be configured.
pub(super) struct Suite {
    /// Its IANA name.
    pub(super) name: &'static str,
    openssl: &'static str,
    suite: CipherSuite,
    version: TlsVersion,
}

/// All suites of rustls' aws-lc-rs provider; a unit test compares them.
pub(super) static SUITES: [Suite; 9] = [
    suite13("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    suite13("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    suite13(
        "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ),
    suite12(
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    suite12(
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    suite12(
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    suite12(
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    suite12(
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    suite12(
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "ECDHE-RSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

const fn suite13(name: &'static str, suite: CipherSuite) -> Suite {
    Suite {
        name,
        openssl: name,
        suite,
        version: TlsVersion::Tls13,
    }
}

const fn suite12(name: &'static str, openssl: &'static str, suite: CipherSuite) -> Suite {
    Suite {
        name,
        openssl,
        suite,
        version: TlsVersion::Tls12,
    }
}

/// A group for the key exchange that can be configured.
pub(super) struct Group {
    /// Its IANA name.
    pub(super) name: &'static str,
    /// What others call it.
    aliases: &'static [&'static str],
    group: NamedGroup,
    /// Hybrid groups exist in TLS 1.3 only.
    tls12: bool,
}

/// The groups of the configuration contract.
pub(super) static GROUPS: [Group; 4] = [
    Group {
        name: "X25519MLKEM768",
        aliases: &["X25519Kyber768", "mlkem768x25519-sha256"],
        group: NamedGroup::X25519MLKEM768,
        tls12: false,
    },
    Group {
        name: "X25519",
        aliases: &["curve25519"],
        group: NamedGroup::X25519,
        tls12: true,
    },
    Group {
        name: "secp256r1",
        aliases: &["P-256", "P256", "prime256v1"],
        group: NamedGroup::secp256r1,
        tls12: true,
    },
    Group {
        name: "secp384r1",
        aliases: &["P-384", "P384"],
        group: NamedGroup::secp384r1,
        tls12: true,
    },
];

/// Versions as the file has them.
const VERSIONS: &[(&str, TlsVersion)] = &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];

/// `[listener.tls]`
pub(super) fn read(table: &mut Table<'_, '_>) -> Option<Tls> {
    let min_version = table.read("min_version", version);
    let max_version = table.read("max_version", version);
    let suites = table.read("cipher_suites", suites);
    let groups = table.read("groups", groups);
    let alpn = table.read("alpn", alpn);
    let tickets = table.read("tickets", flag);
    let session_cache = table.read("session_cache", off_or_size);

    if let (Some(min), Some(max)) = (min_version, max_version) {
        let ordered = check_order(table, min, max);
        let suites_fit = suites
            .as_ref()
            .is_none_or(|suites| check_suites(table, suites.as_deref(), min, max));
        let groups_fit = groups
            .as_ref()
            .is_none_or(|groups| check_groups(table, groups.as_deref(), min));
        if !(ordered && suites_fit && groups_fit) {
            return None;
        }
    }
    Some(Tls {
        min_version: min_version?,
        max_version: max_version?,
        cipher_suites: suites?.map(|suites| suites.into_iter().map(|suite| suite.suite).collect()),
        groups: groups?.map(|groups| groups.into_iter().map(|group| group.group).collect()),
        alpn: alpn?,
        tickets: tickets?,
        session_cache: session_cache?,
    })
}

/// `[tickets]`
pub(super) fn read_tickets(table: &mut Table<'_, '_>) -> Option<Tickets> {
    let secret = table.read("secret", |report, item| {
        let at = item.at.clone();
        let expected = item.kind.expected();
        let path = parsed(|text| match text.strip_prefix("file:") {
            Some(path) if !path.is_empty() && !path.contains('\0') => Ok(Some(path.to_owned())),
            None if text == "random" => Ok(None),
            Some(_) | None => {
                let remedy = "write \"random\", or \"file:\" and the path of the file behind it";
                Err(Refusal::new(expected, remedy))
            }
        })(report, item)?;
        Some(match path {
            Some(path) => {
                let path = report.resolve(&path);
                report.note_file(&at, &path);
                TicketSecret::File(path)
            }
            None => TicketSecret::Random,
        })
    });
    let rotation = table.read("rotation", whole_seconds);
    let lifetime = table.read("lifetime", whole_seconds);
    Some(Tickets {
        secret: secret?,
        rotation: rotation?,
        lifetime: lifetime?,
    })
}

fn version(report: &mut Report, item: Item<'_>) -> Option<TlsVersion> {
    if let DeValue::String(text) = &item.value {
        let old = ["1.0", "1.1", "TLSv1", "TLSv1.0", "TLSv1.1", "SSLv3", "ssl3"].contains(&text.as_ref());
        let remedy = match text.strip_prefix("TLSv") {
            _ if old => {
                Some("versions before TLS 1.2 are insecure and not implemented (RFC 8996): write \"1.2\"".into())
            }
            Some(number) if VERSIONS.iter().any(|version| version.0 == number) => Some(format!("write {number:?}")),
            Some(_) | None => None,
        };
        if let Some(remedy) = remedy {
            report.refuse_value(&item, remedy);
            return None;
        }
    }
    if matches!(item.value, DeValue::Float(_)) {
        report.refuse_value(&item, "write it in double quotes");
        return None;
    }
    choice(VERSIONS)(report, item)
}

fn check_order(table: &mut Table<'_, '_>, min: TlsVersion, max: TlsVersion) -> bool {
    if min <= max {
        return true;
    }
    let at = table.at("max_version");
    let (min, max) = (number(min), number(max));
    table.report.refuse(
        &at,
        format!("{max:?}, below min_version {min:?}"),
        format!("at least {min:?}"),
        "raise max_version or lower min_version",
    );
    false
}

fn check_suites(table: &mut Table<'_, '_>, suites: Option<&[&Suite]>, min: TlsVersion, max: TlsVersion) -> bool {
    let Some(suites) = suites else { return true };
    let at = table.at("cipher_suites");
    let mut fit = true;
    for (version, example) in [
        (TlsVersion::Tls12, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        (TlsVersion::Tls13, "TLS_AES_128_GCM_SHA256"),
    ] {
        let of_version = suites.iter().find(|suite| suite.version == version);
        let enabled = (min..=max).contains(&version);
        let number = number(version);
        match of_version {
            None if enabled => {
                let limits = match version {
                    TlsVersion::Tls12 => "set min_version = \"1.3\"",
                    TlsVersion::Tls13 => "set max_version = \"1.2\"",
                };
                table.report.refuse(
                    &at,
                    format!("no suite for TLS {number}, which is enabled"),
                    "at least one suite for each enabled version",
                    format!("add one such as {example:?}, or {limits}"),
                );
                fit = false;
            }
            Some(suite) if !enabled => {
                let what = format!("{:?} has no effect: TLS {number} is not enabled", suite.name);
                table
                    .report
                    .warn(&at, what, "remove it, or change min_version or max_version");
            }
            Some(_) | None => {}
        }
    }
    fit
}

fn check_groups(table: &mut Table<'_, '_>, groups: Option<&[&Group]>, min: TlsVersion) -> bool {
    let Some(groups) = groups else { return true };
    if min > TlsVersion::Tls12 || groups.iter().any(|group| group.tls12) {
        return true;
    }
    let at = table.at("groups");
    table.report.refuse(
        &at,
        "no group for TLS 1.2, which is enabled",
        "at least one group for each enabled version",
        "add one such as \"X25519\", or set min_version = \"1.3\"",
    );
    false
}

/// As in the file.
fn number(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::Tls12 => "1.2",
        TlsVersion::Tls13 => "1.3",
    }
}

fn suites(report: &mut Report, item: Item<'_>) -> Option<Option<Vec<&'static Suite>>> {
    auto_or_list(report, item, |text| {
        SUITES.iter().find(|suite| suite.name == text).ok_or_else(|| {
            let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
            match SUITES.iter().find(|suite| suite.openssl == text) {
                Some(suite) => format!("{:?} (its IANA name)", suite.name),
                None => suggestion(text, &names, "suite there is"),
            }
        })
    })
}

fn groups(report: &mut Report, item: Item<'_>) -> Option<Option<Vec<&'static Group>>> {
    auto_or_list(report, item, |text| {
        GROUPS.iter().find(|group| group.name == text).ok_or_else(|| {
            let names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
            let alias = |group: &&Group| group.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(text));
            match GROUPS.iter().find(alias) {
                Some(group) => format!("{:?} (its IANA name)", group.name),
                None => suggestion(text, &names, "group there is"),
            }
        })
    })
}

/// `Some(None)` for "auto"; otherwise each entry by `find`, whose error is what was expected.
fn auto_or_list<T>(
    report: &mut Report,
    item: Item<'_>,
    find: impl Fn(&str) -> Result<&'static T, String>,
) -> Option<Option<Vec<&'static T>>> {
    if item.value.as_str() == Some("auto") {
        return Some(None);
    }
    list(|report, at, text| match find(text) {
        Ok(found) => Some(ByAddress(found)),
        Err(expected) => {
            report.refuse(
                at,
                shown(text),
                expected,
                "correct or remove it, or write \"auto\" for the whole key",
            );
            None
        }
    })(report, item)
    .map(|found| Some(found.into_iter().map(|ByAddress(found)| found).collect()))
}

/// Equal when it is the same entry of a table.
struct ByAddress<T: 'static>(&'static T);

impl<T> PartialEq for ByAddress<T> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

fn alpn(report: &mut Report, item: Item<'_>) -> Option<Vec<Vec<u8>>> {
    list(|report, at, text| {
        // RFC 7301 section 3.1: opaque ProtocolName<1..2^8-1>.
        if text.len() > 255 {
            let found = format!("{} of {} bytes", shown(text), text.len());
            report.refuse(at, found, "a protocol of 1 to 255 bytes such as \"h2\"", "shorten it");
            return None;
        }
        Some(text.as_bytes().to_vec())
    })(report, item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_are_those_of_the_provider() {
        let mut ours: Vec<u16> = SUITES.iter().map(|suite| suite.suite.into()).collect();
        let mut theirs: Vec<u16> = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
            .iter()
            .map(|suite| suite.suite().into())
            .collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        for suite in &SUITES {
            let theirs = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
                .iter()
                .find(|theirs| theirs.suite() == suite.suite)
                .expect("compared above");
            let version = if theirs.tls13().is_some() {
                TlsVersion::Tls13
            } else {
                TlsVersion::Tls12
            };
            assert_eq!(suite.version, version, "{}", suite.name);
            assert_eq!(format!("{:?}", suite.suite).replace("TLS13_", "TLS_"), suite.name);
        }
    }

    #[test]
    fn the_provider_has_every_group_and_agrees_on_its_versions() {
        for group in &GROUPS {
            let theirs = rustls::crypto::aws_lc_rs::ALL_KX_GROUPS
                .iter()
                .find(|theirs| theirs.name() == group.group)
                .unwrap_or_else(|| panic!("{} is a group of the provider", group.name));
            assert_eq!(
                theirs.usable_for_version(rustls::ProtocolVersion::TLSv1_2),
                group.tls12,
                "{}",
                group.name
            );
            assert!(
                theirs.usable_for_version(rustls::ProtocolVersion::TLSv1_3),
                "{}",
                group.name
            );
            assert_eq!(format!("{:?}", group.group), group.name);
        }
    }
}
