//! The inventory of certificates: `ringlock certs` as a table or as JSON, and `/certs` of the admin server. docs/inventory.md has
//! every field.

mod table;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::metrics::{StapleView, StaplingView, Trigger};
use crate::config::{Config, IdentityId, NamePattern};
use crate::identity::NameMap;
use crate::identity::client_auth::ClientAuth;
use crate::identity::expiry::{Stage, Validity};
use crate::identity::facts::{CertificateFacts, Facts};
use crate::identity::preflight::{self, Check, FileFacts};
use crate::limits::RELOAD_ERROR_BYTES_MAX;
use crate::snapshot::inventory::{Clients, Entry, read_all};
use crate::snapshot::{Snapshot, StapleSource};
use crate::timestamp::Timestamp;

/// A CA of clients says only when it ends: it is told of so long before.
const AUTHORITY_DUE_SECONDS: i64 = 30 * 24 * 3600;

/// Every certificate that a configuration uses, what cannot be read first, then what ends first.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inventory {
    /// When this was found.
    at: Timestamp,
    certificates: Vec<Certificate>,
    /// How many certificates are not in the list, which would have become too long.
    left_out: usize,
    client_authorities: Vec<Authority>,
    revocation_lists: Vec<List>,
}

/// The certificates of a gateway that runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InForce {
    /// Number of the configuration; the one of the start is 1.
    pub epoch: u64,
    /// When it was put in force.
    pub loaded_at: Timestamp,
    /// Nothing before the first.
    pub last_reload: Option<LastReload>,
    /// Of the configuration.
    #[serde(flatten)]
    pub inventory: Inventory,
}

/// What came of a reload.
#[derive(Clone, Debug, Serialize)]
pub struct LastReload {
    at: Timestamp,
    /// What has asked for it: "signal" or "file".
    trigger: &'static str,
    succeeded: bool,
    /// Why not: what was in force before still is.
    error: Option<String>,
}

impl InForce {
    /// JSON in one line.
    #[must_use]
    pub fn json(&self) -> String {
        let text = serde_json::to_string(self).expect("it has no keys but texts");
        format!("{text}\n")
    }
}

impl LastReload {
    /// One of this moment, that failed with this error.
    #[must_use]
    pub fn new(trigger: Trigger, error: Option<&str>) -> LastReload {
        LastReload {
            at: Timestamp::now(),
            trigger: trigger.label(),
            succeeded: error.is_none(),
            error: error.map(|error| error[..error.floor_char_boundary(RELOAD_ERROR_BYTES_MAX)].to_owned()),
        }
    }
}

/// Whether something is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It cannot be used; the problem says why.
    Unusable,
    Expired,
    NotYetValid,
    Expiring,
    Valid,
}

/// The certificate of an identity.
#[derive(Clone, Debug, Serialize)]
struct Certificate {
    identity: String,
    state: State,
    /// Why `run` would refuse it.
    problem: Option<String>,
    /// A path, or the URI of an object in a token.
    source: String,
    key_source: String,
    used_by: Vec<Use>,
    /// Nothing when it cannot be read.
    #[serde(flatten)]
    known: Option<Known>,
}

/// What is known of a certificate from reading it.
#[derive(Clone, Debug, Serialize)]
struct Known {
    names: Vec<String>,
    subject: String,
    issuer: String,
    serial: String,
    key: String,
    signature_algorithm: String,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Negative once it has expired.
    seconds_left: i64,
    sha256: String,
    chain: Chain,
    /// What is legal and probably not meant, with what to do.
    warnings: Vec<String>,
    must_staple: bool,
    ocsp: Ocsp,
}

#[derive(Clone, Debug, Serialize)]
struct Chain {
    /// With the leaf.
    certificates: usize,
    /// Nothing tells of an issuer that is missing.
    complete: bool,
    /// Of those behind the leaf.
    subjects: Vec<String>,
    /// The end of the first of them to expire.
    not_after: Timestamp,
    /// Whose certificate clients have to have: of the last one that is sent.
    ends_at: String,
}

/// The staple that clients get.
#[derive(Clone, Debug, Serialize)]
struct Ocsp {
    #[serde(flatten)]
    staple: Staple,
    /// Whom the certificate names for it.
    urls: Vec<String>,
}

/// Whether there is one.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Staple {
    state: OcspState,
    /// Until when it may be believed.
    next_update: Option<Timestamp>,
    /// What came of asking the last time, as in metrics; nothing when nobody was asked.
    result: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum OcspState {
    /// None is wanted, or the certificate names nobody who could be asked.
    #[default]
    Off,
    /// The gateway fetches it while it runs: only it knows more.
    Auto,
    /// Clients get it.
    Stapled,
    /// Clients get none, though one is wanted, or the certificate demands one.
    Missing,
}

impl Staple {
    /// As the configuration has it.
    fn of_source(source: &StapleSource) -> Staple {
        let (state, answer) = match source {
            StapleSource::Nowhere | StapleSource::File { found: Err(_), .. } => (OcspState::Missing, None),
            StapleSource::Responder => (OcspState::Auto, None),
            StapleSource::File {
                found: Ok((_, answer)), ..
            } => (OcspState::Stapled, Some(answer)),
        };
        Staple {
            state,
            next_update: answer.map(|answer| Timestamp(answer.next_update)),
            result: None,
        }
    }

    /// As clients get it.
    fn of_view(view: &StapleView) -> Staple {
        let next_update = view.next_update_unix.map(Timestamp);
        Staple {
            state: match next_update {
                Some(_) => OcspState::Stapled,
                None => OcspState::Missing,
            },
            next_update,
            result: view.result,
        }
    }
}

/// A listener that serves the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Use {
    listener: String,
    /// Clients get it that ask for no name, or for one that no certificate has.
    default: bool,
    /// Names of the listener's routes that it is for.
    routes: Vec<String>,
}

/// A CA whose certificates clients show.
#[derive(Clone, Debug, Serialize)]
struct Authority {
    listener: String,
    /// Names of the routes whose clients it is for; none for the listener's own.
    routes: Vec<String>,
    state: State,
    problem: Option<String>,
    source: String,
    /// Nothing when it cannot be read.
    #[serde(flatten)]
    known: Option<KnownAuthority>,
}

#[derive(Clone, Debug, Serialize)]
struct KnownAuthority {
    subject: String,
    not_after: Timestamp,
    seconds_left: i64,
}

/// A list of what a CA has revoked.
#[derive(Clone, Debug, Serialize)]
struct List {
    listener: String,
    /// See [`Authority`].
    routes: Vec<String>,
    state: State,
    source: String,
    issuer: String,
    this_update: Timestamp,
    next_update: Timestamp,
    seconds_left: i64,
    /// There is a newer one, and only that is asked.
    replaced: bool,
}

impl Inventory {
    /// What `run` would load, at `now` in seconds since 1970. What ends within this time is expiring; without one, what is late in its
    /// lifetime.
    #[must_use]
    pub fn of_config(config: &Config, now: i64, within: Option<Duration>) -> Inventory {
        let contents = read_all(config);
        let clients: Vec<_> = contents.clients.iter().map(Clients::as_ref).collect();
        let staples = contents.staples.iter();
        let staples = staples.map(|(name, source)| (name.as_str(), Staple::of_source(source)));
        Inventory::new(
            config,
            &contents.entries,
            &staples.collect(),
            &clients,
            Clock::new(now, within),
        )
    }

    /// What is in force, with these staples.
    #[must_use]
    pub fn of_snapshot(snapshot: &Snapshot, stapling: &StaplingView, now: i64, within: Option<Duration>) -> Inventory {
        let staples = stapling.staples.iter();
        let staples = staples.map(|view| (view.identity.as_str(), Staple::of_view(view)));
        Inventory::new(
            &snapshot.config,
            &snapshot.entries(),
            &staples.collect(),
            &snapshot.clients(),
            Clock::new(now, within),
        )
    }

    fn new(
        config: &Config,
        entries: &[Entry],
        staples: &HashMap<&str, Staple>,
        clients: &[Clients<&ClientAuth>],
        clock: Clock,
    ) -> Inventory {
        let mut uses = uses(config, entries);
        let mut certificates: Vec<Certificate> = entries
            .iter()
            .enumerate()
            .map(|(position, entry)| {
                let facts = entry.facts.as_ref();
                let staple = staples.get(entry.name.as_str()).copied().unwrap_or_default();
                let state = match (facts, &entry.problem) {
                    (Some(facts), None) => clock.state(Validity::of(facts.leaf())),
                    (_, Some(_)) | (None, None) => State::Unusable,
                };
                Certificate {
                    identity: entry.name.clone(),
                    state,
                    problem: entry.problem.as_ref().map(ToString::to_string),
                    source: entry.source.clone(),
                    key_source: entry.key_source.clone(),
                    used_by: uses.remove(&position).unwrap_or_default(),
                    known: facts.map(|facts| Known::of(facts, staple, clock)),
                }
            })
            .collect();
        certificates.sort_by_key(|certificate| {
            let known = certificate.known.as_ref();
            (certificate.problem.is_none(), known.map(|known| known.not_after))
        });
        let mut inventory = Inventory {
            at: Timestamp(clock.now),
            certificates,
            left_out: 0,
            client_authorities: Vec::new(),
            revocation_lists: Vec::new(),
        };
        for clients in clients {
            inventory.add_clients(clients, clock);
        }
        inventory
    }

    fn add_clients(&mut self, clients: &Clients<&ClientAuth>, clock: Clock) {
        let Clients {
            listener,
            names,
            source,
            loaded,
        } = clients;
        let routes: Vec<String> = names.iter().map(ToString::to_string).collect();
        let authority = |state, problem, known| Authority {
            listener: listener.clone(),
            routes: routes.clone(),
            state,
            problem,
            source: source.clone(),
            known,
        };
        let client_auth = match loaded {
            Ok(client_auth) => client_auth,
            Err(problem) => {
                self.client_authorities
                    .push(authority(State::Unusable, Some(problem.to_string()), None));
                return;
            }
        };
        for ca in client_auth.authorities() {
            let seconds_left = ca.not_after.saturating_sub(clock.now);
            let state = match seconds_left {
                ..0 => State::Expired,
                left if left < clock.within.unwrap_or(AUTHORITY_DUE_SECONDS) => State::Expiring,
                _ => State::Valid,
            };
            let known = KnownAuthority {
                subject: ca.subject.clone(),
                not_after: Timestamp(ca.not_after),
                seconds_left,
            };
            self.client_authorities.push(authority(state, None, Some(known)));
        }
        for list in client_auth.lists() {
            let validity = Validity {
                from: list.this_update,
                until: list.next_update,
            };
            self.revocation_lists.push(List {
                listener: listener.clone(),
                routes: routes.clone(),
                state: clock.state(validity),
                source: list.source.clone(),
                issuer: list.issuer.clone(),
                this_update: Timestamp(list.this_update),
                next_update: Timestamp(list.next_update),
                seconds_left: list.next_update.saturating_sub(clock.now),
                replaced: list.is_replaced,
            });
        }
    }

    /// Keeps what something is to be done about.
    pub fn keep_due(&mut self) {
        self.certificates
            .retain(|certificate| certificate.state != State::Valid);
        self.client_authorities
            .retain(|authority| authority.state != State::Valid);
        self.revocation_lists
            .retain(|list| list.state != State::Valid && !list.replaced);
    }

    /// Leaves certificates out, those that end last, until there are at most so many names and certificates in all.
    pub fn limit(&mut self, names_max: usize) {
        let mut names = 0;
        let weight = |certificate: &Certificate| 1 + certificate.known.as_ref().map_or(0, |known| known.names.len());
        let fit = self.certificates.iter().take_while(|certificate| {
            names += weight(certificate);
            names <= names_max
        });
        let fit = fit.count();
        self.left_out += self.certificates.len() - fit;
        self.certificates.truncate(fit);
    }

    /// Why something cannot be used.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        let certificates = self
            .certificates
            .iter()
            .filter_map(|certificate| certificate.problem.as_deref());
        let authorities = self
            .client_authorities
            .iter()
            .filter_map(|authority| authority.problem.as_deref());
        certificates.chain(authorities)
    }

    /// Exit code of `ringlock certs`: 1 when something cannot be loaded; 2 when `strict` and something has expired, is expiring or not yet
    /// valid; otherwise 0.
    #[must_use]
    pub fn exit_code(&self, strict: bool) -> u8 {
        let certificates = self.certificates.iter().map(|certificate| certificate.state);
        let authorities = self.client_authorities.iter().map(|authority| authority.state);
        let lists = self.revocation_lists.iter().filter(|list| !list.replaced);
        match certificates
            .chain(authorities)
            .chain(lists.map(|list| list.state))
            .min()
        {
            Some(State::Unusable) => 1,
            Some(State::Expired | State::NotYetValid | State::Expiring) if strict => 2,
            Some(State::Expired | State::NotYetValid | State::Expiring | State::Valid) | None => 0,
        }
    }

    /// Indented JSON and a newline.
    #[must_use]
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("it has no keys but texts");
        format!("{text}\n")
    }
}

/// What is judged by.
#[derive(Clone, Copy, Debug)]
struct Clock {
    now: i64,
    /// In seconds.
    within: Option<i64>,
}

impl Clock {
    fn new(now: i64, within: Option<Duration>) -> Clock {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Clock {
            now,
            within: within.map(seconds),
        }
    }

    fn state(self, validity: Validity) -> State {
        let due = match self.within {
            Some(within) => validity.until.saturating_sub(self.now) < within,
            None => validity.stage(self.now) != Stage::Fresh,
        };
        if validity.stage(self.now) == Stage::Expired {
            State::Expired
        } else if validity.from > self.now {
            State::NotYetValid
        } else if due {
            State::Expiring
        } else {
            State::Valid
        }
    }
}

impl Known {
    fn of(facts: &Facts, staple: Staple, clock: Clock) -> Known {
        let CertificateFacts {
            subject,
            issuer,
            serial,
            not_before,
            not_after,
            key,
            signature_algorithm,
            fingerprint,
            ..
        } = facts.leaf();
        let findings = preflight::of_chain(facts, &FileFacts::default(), clock.now);
        let ends = facts.chain.iter().map(|certificate| certificate.not_after);
        Known {
            names: facts.names.clone(),
            subject: subject.clone(),
            issuer: issuer.clone(),
            serial: serial.clone(),
            key: key.to_string(),
            signature_algorithm: signature_algorithm.clone(),
            not_before: Timestamp(*not_before),
            not_after: Timestamp(*not_after),
            seconds_left: not_after.saturating_sub(clock.now),
            sha256: fingerprint.clone(),
            chain: Chain {
                certificates: facts.chain.len(),
                complete: findings.iter().all(|finding| finding.check != Check::Incomplete),
                subjects: facts.chain[1..]
                    .iter()
                    .map(|certificate| certificate.subject.clone())
                    .collect(),
                not_after: Timestamp(ends.min().unwrap_or(*not_after)),
                ends_at: facts
                    .chain
                    .last()
                    .map_or_else(|| issuer.clone(), |last| last.issuer.clone()),
            },
            warnings: findings
                .into_iter()
                .map(|finding| format!("{}; {}", finding.what, finding.remedy))
                .collect(),
            must_staple: facts.must_staple,
            ocsp: Ocsp {
                staple,
                urls: facts.ocsp_urls.clone(),
            },
        }
    }
}

/// Which listeners use each of these certificates, by their positions.
fn uses(config: &Config, entries: &[Entry]) -> HashMap<usize, Vec<Use>> {
    let mut by_identity: HashMap<IdentityId, Vec<usize>> = HashMap::new();
    for (position, entry) in entries.iter().enumerate() {
        by_identity.entry(entry.of).or_default().push(position);
    }
    let mut all: HashMap<usize, Vec<Use>> = HashMap::new();
    for listener in &config.listeners {
        let own = || {
            listener
                .identities
                .iter()
                .filter_map(|id| by_identity.get(id))
                .flatten()
                .copied()
        };
        let mut names = NameMap::default();
        for position in own() {
            for name in entries[position].facts.iter().flat_map(|facts| &facts.names) {
                names.insert(&NamePattern::in_certificate(name), position);
            }
        }
        let mut routes: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for route in &listener.routes {
            // A pattern is found by itself: no name begins with an asterisk.
            for name in route.sni.iter().map(ToString::to_string) {
                for &position in names.find(&name) {
                    routes.entry(position).or_default().push(name.clone());
                }
            }
        }
        for (number, position) in own().enumerate() {
            all.entry(position).or_default().push(Use {
                listener: listener.name.clone(),
                default: number == 0 && !listener.strict_sni,
                routes: routes.remove(&position).unwrap_or_default(),
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(identity: &str, names: usize) -> Certificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = (0..names)
            .map(|number| format!("{number}.{identity}.example"))
            .collect();
        let made = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let public_key = rcgen::PublicKeyData::subject_public_key_info(&key);
        let arranged = crate::identity::chain::arrange(&[made.der().clone()], &public_key).unwrap();
        let facts = Facts::of(&arranged, "a.pem", "a.key").unwrap();
        Certificate {
            identity: identity.to_owned(),
            state: State::Valid,
            problem: None,
            source: "a.pem".to_owned(),
            key_source: "a.key".to_owned(),
            used_by: Vec::new(),
            known: Some(Known::of(&facts, Staple::default(), Clock::new(0, None))),
        }
    }

    #[test]
    fn a_list_that_is_too_long_loses_its_end_and_says_so() {
        let identities = |inventory: &Inventory| -> Vec<String> {
            let certificates = inventory.certificates.iter();
            certificates.map(|certificate| certificate.identity.clone()).collect()
        };
        let all = Inventory {
            certificates: vec![certificate("a", 3), certificate("b", 10), certificate("c", 1)],
            ..Inventory::default()
        };
        for (names_max, kept, left_out) in [
            (17, &["a", "b", "c"][..], 0),
            (16, &["a", "b"], 1),
            (14, &["a"], 2),
            (0, &[], 3),
        ] {
            let mut inventory = all.clone();
            inventory.limit(names_max);
            assert_eq!(
                (identities(&inventory), inventory.left_out),
                (kept.iter().map(ToString::to_string).collect(), left_out)
            );
        }
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let long = "ä".repeat(RELOAD_ERROR_BYTES_MAX);
        let cut = LastReload::new(Trigger::File, Some(&format!("x{long}"))).error.unwrap();
        assert_eq!(cut.len(), RELOAD_ERROR_BYTES_MAX - 1);
        assert!(LastReload::new(Trigger::Signal, None).succeeded);
    }
}
