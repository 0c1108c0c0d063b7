//! OCSP staples: fetched from the responders that certificates name, verified, kept over restarts, handed to the identities, and
//! taken from them when their time is over. Nothing of this waits for anybody: a handshake takes the staple that is there.

mod fetch;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;

use self::fetch::{FetchError, fetch};
use super::metrics::{StapleView, StaplingView};
use crate::config::{MustStaple, Stapling};
use crate::crypto;
use crate::identity::Identity;
use crate::identity::ocsp::{Answer, Refused, Status};
use crate::limits::{
    OCSP_FETCH_INTERVAL, OCSP_FETCHES_MAX, OCSP_REFRESH_SECONDS_MAX, OCSP_RETRY_SECONDS_MAX, OCSP_RETRY_SECONDS_MIN,
    OCSP_STAPLE_MARGIN_SECONDS,
};
use crate::snapshot::{Snapshot, StapleSource, Stapled, responder};
use crate::timestamp::Timestamp;

/// What comes of asking a responder, in metrics.
const RESULTS: [&str; 18] = [
    "good",
    "revoked",
    "unknown",
    "expired",
    "not_yet_valid",
    "no_next_update",
    "bad_signature",
    "unauthorized_responder",
    "other_certificate",
    "responder_error",
    "malformed",
    "unreachable",
    "timeout",
    "broken_off",
    "http_status",
    "redirect",
    "content_type",
    "too_large",
];

/// See the module.
pub struct Stapler {
    settings: Stapling,
    entries: BTreeMap<Key, Entry>,
    fetches: JoinSet<(Key, Result<Vec<u8>, FetchError>)>,
    /// How often each of [`RESULTS`] came of asking.
    results: [u64; RESULTS.len()],
    /// When there is something to do for some entry.
    look_at: i64,
    /// The last response could not be kept.
    cannot_keep: bool,
}

/// The fingerprint of a certificate, and the file that its staple is in when nobody is asked for it.
type Key = (String, Option<PathBuf>);

/// The staple of a certificate.
struct Entry {
    /// Those that have the certificate. Never empty.
    identities: Vec<Arc<Identity>>,
    /// What the identities show.
    staple: Option<Answer>,
    /// What came of asking the last time, of [`RESULTS`].
    result: Option<&'static str>,
    /// Since the last answer.
    failures: u32,
    next: Next,
    /// It was told that the certificate demands a staple and has none.
    told_bare: bool,
}

/// When the responder is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Never,
    At(i64),
    Asking,
}

/// Why an answer is of no use.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("has sent {0}")]
    Refused(#[from] Refused),
}

impl Failure {
    fn label(&self) -> &'static str {
        match self {
            Failure::Fetch(error) => error.label(),
            Failure::Refused(refused) => refused.label(),
        }
    }
}

impl Stapler {
    /// Nothing to do.
    #[must_use]
    pub fn new(settings: &Stapling) -> Stapler {
        Stapler {
            settings: settings.clone(),
            entries: BTreeMap::new(),
            fetches: JoinSet::new(),
            results: [0; RESULTS.len()],
            look_at: 0,
            cannot_keep: false,
        }
    }

    /// Gives the identities of a snapshot that is about to be served the staples that are here or on disk.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        let now = Timestamp::now().0;
        self.settings.clone_from(&snapshot.config.global.stapling);
        let mut known = std::mem::take(&mut self.entries);
        let mut wanted: BTreeMap<Key, (Vec<Arc<Identity>>, &StapleSource)> = BTreeMap::new();
        for Stapled { identity, source } in &snapshot.staples {
            let file = match source {
                StapleSource::File { path, .. } => Some(path.clone()),
                StapleSource::Nowhere | StapleSource::Responder => None,
            };
            let key = (identity.facts.leaf().fingerprint.clone(), file);
            let (identities, _) = wanted.entry(key).or_insert_with(|| (Vec::new(), source));
            identities.push(Arc::clone(identity));
        }
        for (_, entry) in known.iter().filter(|(key, _)| !wanted.contains_key(key)) {
            // It may be in the new snapshot, without staples.
            entry.hand_out(None, MustStaple::Warn);
        }
        for (key, (identities, source)) in wanted {
            let known = known.remove(&key);
            let entry = self.entry(&key.0, known, identities, source, now);
            self.entries.insert(key, entry);
        }
        if let Some(dir) = &self.settings.dir {
            let in_use = |fingerprint: &str| self.entries.contains_key(&(fingerprint.to_owned(), None));
            store::clean(dir, in_use, SystemTime::now());
        }
        self.look_at = now;
    }

    /// The staple of a certificate, as it was or anew.
    fn entry(
        &self,
        fingerprint: &str,
        known: Option<Entry>,
        identities: Vec<Arc<Identity>>,
        source: &StapleSource,
        now: i64,
    ) -> Entry {
        let in_use = known.as_ref().and_then(|known| {
            let answer = known.staple.filter(|answer| now < end(answer))?;
            Some((known.identities[0].staple()?, answer))
        });
        let staple = match source {
            StapleSource::Nowhere => None,
            StapleSource::Responder => match &known {
                Some(_) => in_use,
                None => self.kept(fingerprint, &identities[0], now),
            },
            StapleSource::File { found, .. } => found.clone().ok().or(in_use),
        };
        let known = known.unwrap_or(Entry {
            identities: Vec::new(),
            staple: None,
            result: None,
            failures: 0,
            next: Next::Never,
            told_bare: false,
        });
        let mut entry = Entry {
            identities,
            next: match (source, known.next) {
                (StapleSource::Nowhere | StapleSource::File { .. }, _) => Next::Never,
                (StapleSource::Responder, Next::Never) => {
                    Next::At(staple.as_ref().map_or(now, |(_, answer)| now + refresh(answer, now)))
                }
                (StapleSource::Responder, next @ (Next::At(_) | Next::Asking)) => next,
            },
            ..known
        };
        entry.set(staple, self.settings.must_staple);
        entry
    }

    /// What was kept of a former run.
    fn kept(&self, fingerprint: &str, identity: &Identity, now: i64) -> Option<(Vec<u8>, Answer)> {
        let response = store::read(self.settings.dir.as_ref()?, fingerprint)?;
        let answer = identity.question()?.read(&response, now).ok()?;
        (answer.status == Status::Good && now < end(&answer)).then_some((response, answer))
    }

    /// Takes what responders have answered, asks those whose time has come, and takes staples away whose time is over. Returns when to
    /// call again. Belongs into a `LocalSet`.
    pub fn tick(&mut self) -> Duration {
        let now = Timestamp::now().0;
        while let Some(done) = self.fetches.try_join_next() {
            match done {
                Ok((key, fetched)) => self.take(&key, fetched, now),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        if now >= self.look_at {
            self.look(now);
        }
        if self.fetches.is_empty() {
            Duration::from_secs((self.look_at - now).max(0).unsigned_abs())
        } else {
            OCSP_FETCH_INTERVAL
        }
    }

    fn look(&mut self, now: i64) {
        self.look_at = i64::MAX;
        for (key, entry) in &mut self.entries {
            if let Some(answer) = entry.staple
                && now >= end(&answer)
            {
                tracing::warn!(identity = %entry.name(), "the OCSP staple has expired: clients get none");
                entry.set(None, self.settings.must_staple);
            }
            if let Next::At(at) = entry.next
                && now >= at
                && self.fetches.len() < OCSP_FETCHES_MAX
            {
                let (url, question) = entry.question();
                let (key, proxy) = (key.clone(), self.settings.proxy.clone());
                self.fetches.spawn_local(async move {
                    let fetched = fetch(&url, question, proxy).await;
                    (key, fetched)
                });
                entry.next = Next::Asking;
            }
            let due = match entry.next {
                Next::At(at) => at,
                Next::Never | Next::Asking => i64::MAX,
            };
            let ends = entry.staple.as_ref().map_or(i64::MAX, end);
            self.look_at = self.look_at.min(due).min(ends);
        }
    }

    /// What came of asking about a certificate.
    fn take(&mut self, key: &Key, fetched: Result<Vec<u8>, FetchError>, now: i64) {
        // A certificate that is not in use any more.
        let Some(entry) = self.entries.get_mut(key) else { return };
        let question = entry.identities[0]
            .question()
            .expect("only what can be verified is asked for");
        let read = |response: Vec<u8>| Ok((question.read(&response, now)?, response));
        let outcome: Result<(Answer, Vec<u8>), Failure> = fetched.map_err(Failure::from).and_then(read);
        let result = match &outcome {
            Ok((answer, _)) => answer.status.label(),
            Err(failure) => failure.label(),
        };
        let position = RESULTS.iter().position(|known| *known == result);
        self.results[position.expect("every label is in the list")] += 1;
        let is_new = entry.result.replace(result) != Some(result);
        if is_new {
            entry.tell(&outcome, now);
        }
        let wait = match outcome {
            Ok((answer, response)) if answer.status == Status::Good => {
                if let Some(dir) = &self.settings.dir {
                    let written = store::write(dir, &key.0, &response);
                    if let Err(error) = &written
                        && !self.cannot_keep
                    {
                        tracing::error!(dir = %dir.display(), %error, "OCSP responses cannot be kept over restarts: check that the gateway's user can write there");
                    }
                    self.cannot_keep = written.is_err();
                }
                entry.failures = 0;
                entry.set(Some((response, answer)), self.settings.must_staple);
                refresh(&answer, now)
            }
            Ok((answer, _)) if matches!(answer.status, Status::Revoked { .. }) => {
                if let Some(dir) = &self.settings.dir {
                    store::remove(dir, &key.0);
                }
                entry.failures = 0;
                entry.set(None, self.settings.must_staple);
                refresh(&answer, now)
            }
            Ok(_) | Err(_) => {
                entry.failures = entry.failures.saturating_add(1);
                retry(entry.failures, entry.staple.as_ref(), now)
            }
        };
        entry.next = Next::At(now + wait);
        self.look_at = now;
    }

    /// What can be seen of all this.
    #[must_use]
    pub fn view(&self) -> StaplingView {
        let now = Timestamp::now().0;
        let of = |entry: &Entry, identity: &Arc<Identity>| StapleView {
            identity: identity.name.to_string(),
            result: entry.result,
            age: entry.staple.map(|answer| now - answer.this_update),
            next_update_unix: entry.staple.map(|answer| answer.next_update),
            is_missing: identity.facts.must_staple.then_some(entry.staple.is_none()),
        };
        let of_all = |entry: &Entry| {
            entry
                .identities
                .iter()
                .map(|identity| of(entry, identity))
                .collect::<Vec<_>>()
        };
        StaplingView {
            staples: self.entries.values().flat_map(of_all).collect(),
            responses: RESULTS.into_iter().zip(self.results).collect(),
        }
    }
}

impl Entry {
    fn name(&self) -> &str {
        &self.identities[0].name
    }

    fn question(&self) -> (String, Vec<u8>) {
        let identity = &self.identities[0];
        let url = responder(&identity.facts).expect("only certificates that name one are asked about");
        let question = identity.question().expect("only what can be verified is asked for");
        (url.to_owned(), question.request())
    }

    /// Changes what the identities show.
    fn set(&mut self, staple: Option<(Vec<u8>, Answer)>, must_staple: MustStaple) {
        let (response, answer) = staple.unzip();
        self.staple = answer;
        self.hand_out(response, must_staple);
        let is_bare = self.staple.is_none() && self.identities[0].facts.must_staple;
        if is_bare && !std::mem::replace(&mut self.told_bare, is_bare) {
            let what = match must_staple {
                MustStaple::Warn => "clients that hold to that refuse it",
                MustStaple::Refuse => "it is not served until there is one",
            };
            tracing::warn!(identity = %self.name(), "the certificate demands an OCSP staple (must-staple) and there is none: {what}");
        }
        self.told_bare = is_bare;
    }

    fn hand_out(&self, response: Option<Vec<u8>>, must_staple: MustStaple) {
        for identity in &self.identities {
            let is_bare = response.is_none() && identity.facts.must_staple;
            identity.set_staple(response.clone(), is_bare && must_staple == MustStaple::Refuse);
        }
    }

    /// Tells of a result that is another than the last.
    fn tell(&self, outcome: &Result<(Answer, Vec<u8>), Failure>, now: i64) {
        let (identity, responder) = (self.name(), responder(&self.identities[0].facts).unwrap_or_default());
        let staple = match &self.staple {
            Some(answer) => format!("the one before is stapled for at most {} s more", end(answer) - now),
            None => "nothing is stapled".to_owned(),
        };
        match outcome {
            Ok((Answer { status, .. }, _)) => match status {
                Status::Good => tracing::info!(identity, responder, "OCSP: the certificate is good, which is stapled"),
                Status::Revoked { since } => {
                    let seconds = now - since;
                    tracing::error!(
                        identity,
                        responder,
                        "OCSP: the certificate was revoked {seconds} s ago: replace certificate and key; nothing is stapled"
                    );
                }
                Status::Unknown => tracing::warn!(
                    identity,
                    responder,
                    "OCSP: the responder does not know the certificate; {staple}"
                ),
            },
            Err(failure) => tracing::warn!(identity, responder, "OCSP: the responder {failure}; {staple}"),
        }
    }
}

/// When an answer is not stapled any more.
fn end(answer: &Answer) -> i64 {
    let validity = answer.next_update.saturating_sub(answer.this_update);
    answer.next_update - (validity / 10).clamp(0, OCSP_STAPLE_MARGIN_SECONDS)
}

/// How long an answer is left alone: half of the time that it has left. So a responder that always says the same is asked more and more often.
fn refresh(answer: &Answer, now: i64) -> i64 {
    let half = (answer.next_update.saturating_sub(now) / 2).min(OCSP_REFRESH_SECONDS_MAX);
    (half - random_up_to(half / 10)).max(1)
}

/// How long a responder is left alone after so many failures; with a staple it is asked again before that one's end.
fn retry(failures: u32, staple: Option<&Answer>, now: i64) -> i64 {
    let doubled = OCSP_RETRY_SECONDS_MIN.saturating_mul(1 << (failures.saturating_sub(1)).min(20));
    let left = staple.map_or(i64::MAX, |answer| (end(answer) - now) / 2);
    let wait = doubled
        .min(OCSP_RETRY_SECONDS_MAX)
        .min(left.max(OCSP_RETRY_SECONDS_MIN));
    (wait - random_up_to(wait / 4)).max(1)
}

/// Many gateways do not ask at the same moment.
fn random_up_to(most: i64) -> i64 {
    let mut bytes = [0; 4];
    crypto::random(&mut bytes);
    i64::from(u32::from_ne_bytes(bytes)) % (most.max(0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(this_update: i64, next_update: i64) -> Answer {
        Answer {
            status: Status::Good,
            this_update,
            next_update,
        }
    }

    #[test]
    fn an_answer_is_renewed_in_the_middle_of_what_it_has_left() {
        for _ in 0..1000 {
            let wait = refresh(&answer(0, 10_000), 2_000);
            assert!((3_600..=4_000).contains(&wait), "{wait}");
            let long = refresh(&answer(0, i64::MAX), 0);
            assert!(
                (OCSP_REFRESH_SECONDS_MAX * 9 / 10..=OCSP_REFRESH_SECONDS_MAX).contains(&long),
                "{long}"
            );
            assert_eq!(refresh(&answer(0, 100), 99), 1);
        }
    }

    #[test]
    fn failures_are_retried_ever_more_seldom_and_in_time() {
        for _ in 0..100 {
            assert!((1..=2).contains(&retry(1, None, 0)));
            assert!((6..=8).contains(&retry(3, None, 0)));
            for failures in [15, 1000, u32::MAX] {
                let wait = retry(failures, None, 0);
                assert!((2_700..=3_600).contains(&wait), "{wait}");
            }
            let staple = answer(0, 1_010);
            assert!((375..=500).contains(&retry(20, Some(&staple), 0)));
            assert!((1..=2).contains(&retry(20, Some(&staple), 999)));
            assert!((1..=2).contains(&retry(20, Some(&staple), 2_000)));
        }
    }

    #[test]
    fn a_staple_ends_before_its_answer() {
        assert_eq!(end(&answer(0, 1_000)), 990);
        assert_eq!(end(&answer(0, 20)), 18);
        assert_eq!(end(&answer(0, 5)), 5);
    }
}
