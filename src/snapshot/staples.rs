//! Where the OCSP staple of each identity comes from, and what is in those files that have one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::read;
use crate::config::{self, Config, Ocsp, Places, Problem, Warning};
use crate::identity::Identity;
use crate::identity::facts::Facts;
use crate::identity::ocsp::{Answer, Question, Refused, Status};
use crate::limits::OCSP_RESPONSE_BYTES_MAX;
use crate::timestamp::Timestamp;

/// An identity that gets staples, or should.
#[derive(Debug)]
pub struct Stapled {
    /// Which.
    pub identity: Arc<Identity>,
    /// Where its staples come from.
    pub source: StapleSource,
}

/// Where staples come from.
#[derive(Debug)]
pub enum StapleSource {
    /// There are none, though the certificate demands one.
    Nowhere,
    /// From the responder at [`responder`].
    Responder,
    /// From a file.
    File {
        /// Which.
        path: PathBuf,
        /// What was in it, or why that is no staple now.
        found: Result<(Vec<u8>, Answer), NoStaple>,
    },
}

/// Why a file has no staple.
#[derive(Clone, Debug)]
pub struct NoStaple {
    /// It never was one for the identity's issuer; otherwise it is not any more, or not of this certificate, as after a renewal.
    pub is_mistake: bool,
    /// What was found in its place.
    pub found: String,
    expected: &'static str,
    remedy: &'static str,
}

impl NoStaple {
    /// The same for the operator: of the identity with this name, in this file.
    pub(super) fn problem(&self, identity: &str, path: &Path, places: &Places) -> Problem {
        let key = format!("identity \"{identity}\": ocsp");
        let found = format!("{} in {}", self.found, path.display());
        places.problem(key, found, self.expected, self.remedy)
    }
}

/// Where the certificate's status is asked for. Responders are asked over HTTP (RFC 5019, 5): what they say is signed.
#[must_use]
pub fn responder(facts: &Facts) -> Option<&str> {
    let is_http = |url: &&String| {
        url.get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
    };
    facts.ocsp_urls.iter().find(is_http).map(String::as_str)
}

/// What came of the files.
pub(super) struct Loaded {
    pub(super) staples: Vec<Stapled>,
    pub(super) unusable: Vec<Unusable>,
}

/// A file that is no staple.
pub(super) struct Unusable {
    pub(super) problem: Problem,
    pub(super) file: PathBuf,
    /// See [`NoStaple`].
    pub(super) is_mistake: bool,
}

const EXPECTED: &str = "an OCSP response in DER about the identity's certificate";
const REMEDY: &str =
    "fetch it anew for this certificate: openssl ocsp -issuer ISSUER -cert LEAF -url URL -no_nonce -respout FILE";

impl Stapled {
    /// The file that it has its staple from.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.source {
            StapleSource::File { path, found: Ok(_) } => Some(path),
            StapleSource::File { found: Err(_), .. } | StapleSource::Nowhere | StapleSource::Responder => None,
        }
    }
}

/// The file that the staple of an identity comes from.
pub(super) fn file_of(settings: &config::Identity) -> Option<&Path> {
    match &settings.ocsp {
        Ocsp::File(path) => Some(path),
        Ocsp::Off | Ocsp::Auto => None,
    }
}

/// Fetched responses are to be kept, and the directory is not there.
pub(super) fn missing_dir(config: &Config) -> Option<Problem> {
    let dir = config.global.stapling.dir.as_ref().filter(|dir| !dir.is_dir())?;
    let found = format!("no directory at {}", dir.display());
    let expected = "a directory that the gateway can write to";
    let remedy = format!(
        "create it for the user that the gateway becomes: install -d -o USER {}",
        dir.display()
    );
    Some(config.places.problem("global.ocsp_dir", found, expected, remedy))
}

/// Reads the files of `identities`, each with what the configuration has for it.
pub(super) fn load<'i>(
    identities: impl Iterator<Item = (&'i config::Identity, &'i [Arc<Identity>])>,
    places: &Places,
) -> Loaded {
    let now = Timestamp::now().0;
    let mut loaded = Loaded {
        staples: Vec::new(),
        unusable: Vec::new(),
    };
    let identities = identities.flat_map(|(settings, all)| all.iter().map(move |identity| (settings, identity)));
    for (settings, identity) in identities {
        let Some(source) = source(&settings.ocsp, &identity.facts, now, || identity.question()) else {
            continue;
        };
        if let StapleSource::File { path, found: Err(none) } = &source {
            loaded.unusable.push(Unusable {
                problem: none.problem(&settings.name, path, places),
                file: path.clone(),
                is_mistake: none.is_mistake,
            });
        }
        loaded.staples.push(Stapled {
            identity: Arc::clone(identity),
            source,
        });
    }
    loaded
}

/// Where the staples of a certificate come from at `now`; nothing when none is wanted. What `question` asks is what they have to answer.
pub(super) fn source(
    ocsp: &Ocsp,
    facts: &Facts,
    now: i64,
    question: impl Fn() -> Option<Question>,
) -> Option<StapleSource> {
    match ocsp {
        Ocsp::Auto if responder(facts).is_some() && question().is_some() => Some(StapleSource::Responder),
        Ocsp::File(path) => Some(StapleSource::File {
            path: path.clone(),
            found: read_file(question(), path, now),
        }),
        Ocsp::Off | Ocsp::Auto => facts.must_staple.then_some(StapleSource::Nowhere),
    }
}

/// A staple, or why there is none.
fn read_file(question: Option<Question>, path: &Path, now: i64) -> Result<(Vec<u8>, Answer), NoStaple> {
    let mistake = |found, expected, remedy| NoStaple {
        is_mistake: true,
        found,
        expected,
        remedy,
    };
    let over = |found: String| NoStaple {
        is_mistake: false,
        found,
        expected: EXPECTED,
        remedy: REMEDY,
    };
    let response = read(path, OCSP_RESPONSE_BYTES_MAX as u64).map_err(|found| {
        mistake(
            found,
            EXPECTED,
            "check the path, and that the gateway's user can read it",
        )
    })?;
    let question = question.ok_or_else(|| {
        mistake(
            "a response that cannot be verified, as the chain has no issuer,".to_owned(),
            "the issuer's certificate behind the leaf in `certificate`",
            "add it to the chain",
        )
    })?;
    match question.read(&response, now) {
        Ok(answer) => match answer.status {
            Status::Good => Ok((response.to_vec(), answer)),
            Status::Revoked { .. } => Err(over("an answer that the certificate is revoked".to_owned())),
            Status::Unknown => Err(over(
                "an answer that the responder does not know the certificate".to_owned(),
            )),
        },
        Err(refused @ (Refused::Expired(_) | Refused::NotYetValid(_) | Refused::OtherCertificate)) => {
            Err(over(refused.to_string()))
        }
        Err(
            refused @ (Refused::Responder(_)
            | Refused::Malformed(_)
            | Refused::Signature
            | Refused::Algorithm
            | Refused::Delegation(_)
            | Refused::Endless),
        ) => Err(mistake(refused.to_string(), EXPECTED, REMEDY)),
    }
}

/// What is legal and probably not meant.
pub(super) fn warnings<'i>(
    config: &Config,
    identities: impl Iterator<Item = (&'i config::Identity, &'i [Arc<Identity>])>,
    stapled: &[Stapled],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (settings, all) in identities {
        // Of a folder with thousands one is named for each reason.
        let mut told: BTreeMap<&'static str, (&'static str, &Identity, usize)> = BTreeMap::new();
        for identity in all {
            if let Some((what, remedy)) = unstapled(identity, &settings.ocsp) {
                told.entry(what).or_insert((remedy, identity, 0)).2 += 1;
            }
        }
        for (what, (remedy, identity, count)) in told {
            let key = format!("identity \"{}\": ocsp", settings.name);
            let what = match count {
                1 => format!("{}: {what}", identity.facts.source),
                _ => format!("{} and {} others: {what}", identity.facts.source, count - 1),
            };
            warnings.push(config.places.warning(key, what, remedy));
        }
    }
    for Stapled { identity, source } in stapled {
        if let StapleSource::File { path, found: Err(none) } = source {
            let key = format!("identity \"{}\": ocsp", identity.name);
            let what = format!("{} has {}: it is not stapled", path.display(), none.found);
            warnings.push(config.places.warning(key, what, REMEDY));
        }
    }
    warnings
}

/// Why nothing will be stapled to an identity though something was meant to be, and what to do.
fn unstapled(identity: &Identity, ocsp: &Ocsp) -> Option<(&'static str, &'static str)> {
    let facts = &identity.facts;
    match ocsp {
        Ocsp::Off if facts.must_staple => Some((
            "the certificate demands an OCSP staple (must-staple), and gets none: clients that hold to that refuse it",
            "set ocsp = \"auto\", or a file",
        )),
        Ocsp::Auto if facts.ocsp_urls.is_empty() && facts.must_staple => Some((
            "the certificate demands an OCSP staple (must-staple), and names no responder that could be asked for one",
            "set ocsp to a file, or have the certificate issued without that",
        )),
        Ocsp::Auto if facts.ocsp_urls.is_empty() => None,
        Ocsp::Auto if responder(facts).is_none() => Some((
            "the certificate names no responder that is asked over http://: nothing is stapled",
            "set ocsp to a file that is fetched otherwise, or to \"off\"",
        )),
        Ocsp::Auto if identity.question().is_none() => Some((
            "the chain has no issuer: no answer of the responder could be verified, and none is stapled",
            "add the issuer's certificate to the chain, or set ocsp = \"off\"",
        )),
        Ocsp::Off | Ocsp::Auto | Ocsp::File(_) => None,
    }
}
