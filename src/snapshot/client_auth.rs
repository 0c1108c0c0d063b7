//! `[listener.client_auth]`, or that of a route, as loaded: CAs and revocation lists from files, and what is to be said of them.

use crate::config::{self, Places, Problem, Warning};
use crate::identity::client_auth::{ClientAuth, RevocationList, Rules, span};
use crate::identity::expiry::Stage;
use crate::limits::{CERTIFICATE_FILE_BYTES_MAX, CRL_FILE_BYTES_MAX};

use super::read;

/// A revocation list is warned of when less than this part of its validity is left: CAs make the next one before, and a list that is
/// good for an hour is not warned of all its life.
const EXPIRY_WARNING_PART: i64 = 10;

/// Reads every file that clients are verified with. Nothing when they are not asked for certificates. `table`: where the settings are.
pub(super) fn load(
    settings: Option<&config::ClientAuth>,
    table: &str,
    places: &Places,
) -> Result<Option<ClientAuth>, Problem> {
    let Some(settings) = settings else {
        return Ok(None);
    };
    let rules = Rules {
        required: settings.required,
        verify_depth: settings.verify_depth,
        allow: settings.allow.clone(),
        deny: settings.deny.clone(),
        lists: load_lists(settings, table, places)?,
        crl_check: settings.crl_check,
        accepts_expired_lists: settings.accepts_expired_crls,
        closes_revoked: settings.close_revoked,
    };
    let loaded = read(&settings.ca, CERTIFICATE_FILE_BYTES_MAX).and_then(|pem| ClientAuth::from_pem(&pem, rules));
    loaded.map(Some).map_err(|found| {
        places.problem(
            format!("{table}.ca"),
            format!("{found} in {}", settings.ca.display()),
            "a PEM file with one or more certificates of CAs",
            "check the path, and that the file holds the CAs and nothing that is cut off",
        )
    })
}

fn load_lists(settings: &config::ClientAuth, table: &str, places: &Places) -> Result<Vec<RevocationList>, Problem> {
    let mut lists = Vec::new();
    for (number, path) in settings.crl.iter().enumerate() {
        let source = path.display().to_string();
        let loaded = read(path, CRL_FILE_BYTES_MAX).and_then(|file| RevocationList::all_in(&file, &source));
        lists.extend(loaded.map_err(|found| {
            places.problem(
                format!("{table}.crl[{number}]"),
                format!("{found} in {source}"),
                "a PEM or DER file with complete revocation lists of version 2, each with a number and the time of the next one",
                "check the path, and how the CA makes its lists",
            )
        })?);
    }
    Ok(lists)
}

/// What is legal and probably not meant, at `now` in seconds since 1970.
pub(super) fn warnings(
    settings: &config::ClientAuth,
    client_auth: &ClientAuth,
    table: &str,
    places: &Places,
    now: i64,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |key: &str, what: String, remedy: &str| {
        let key = format!("{table}.{key}");
        warnings.push(places.warning(key, what, remedy));
    };
    let authorities = client_auth.authorities();
    for authority in authorities {
        let Some(bits) = authority.weak_key else { continue };
        let what = format!(
            "{} holds a CA whose key is too short (RSA, {bits} bits; 2048 is the least): whoever shows a certificate that it has signed is refused ({})",
            settings.ca.display(),
            authority.subject
        );
        warn(
            "ca",
            what,
            "have the CA issued anew with a longer key, and its clients, too",
        );
    }
    for authority in authorities.iter().filter(|authority| authority.lacks_list) {
        let what = format!(
            "no file has a revocation list of {}: whoever shows a certificate that it has signed is refused",
            authority.subject
        );
        warn("crl", what, "add its list, or remove the CA from ca");
    }
    for list in client_auth.lists().iter().filter(|list| list.is_replaced) {
        let RevocationList { issuer, source, .. } = list;
        let what =
            format!("{source} holds a revocation list of {issuer} of which there is a newer one: it is not used");
        warn("crl", what, "remove it");
    }
    let ends = ends(settings, client_auth, table, places, now);
    warnings.extend(ends.into_iter().filter_map(|end| end.warning));
    warnings
}

/// The end of a CA of clients, or of a revocation list in use.
#[derive(Debug)]
pub struct End {
    /// What ends, and where it is used: the same until another takes its place.
    pub id: String,
    /// How near the end is.
    pub stage: Stage,
    /// When the next stage begins, seconds since 1970.
    pub next_stage: Option<i64>,
    /// What is to be said of it.
    pub warning: Option<Warning>,
}

/// Of everything that clients are verified with, at `now` in seconds since 1970.
pub(super) fn ends(
    settings: &config::ClientAuth,
    client_auth: &ClientAuth,
    table: &str,
    places: &Places,
    now: i64,
) -> Vec<End> {
    let authorities = client_auth.authorities().iter().map(|authority| {
        let expires = authority.not_after.saturating_add(1);
        let is_over = expires <= now;
        let what = || {
            format!(
                "{} holds a CA that has expired ({}): its clients are accepted all the same",
                settings.ca.display(),
                authority.subject
            )
        };
        End {
            id: format!("{table}.ca {} {expires}", authority.subject),
            stage: if is_over { Stage::Expired } else { Stage::Fresh },
            next_stage: (!is_over).then_some(expires),
            warning: is_over.then(|| places.warning(format!("{table}.ca"), what(), "remove it, or renew it")),
        }
    });
    let refused = if settings.accepts_expired_crls {
        "it counts all the same (crl_expired = \"accept\")"
    } else {
        "clients of this CA are refused"
    };
    let in_use = client_auth.lists().iter().filter(|list| !list.is_replaced);
    let lists = in_use.map(|list| {
        let RevocationList {
            issuer,
            source,
            this_update,
            next_update: expires,
            ..
        } = list;
        let due = expires - (expires - this_update) / EXPIRY_WARNING_PART + 1;
        let left = span(expires.saturating_sub(now).unsigned_abs());
        let (stage, next_stage, said) = if *expires <= now {
            let told = (
                format!("that has expired: {refused}"),
                "fetch the CA's present list, and reload",
            );
            (Stage::Expired, None, Some(told))
        } else if due <= now {
            let told = (
                format!("that expires in {left}: {refused} after that"),
                "fetch the CA's next list in time, and reload",
            );
            (Stage::Due(1), Some(*expires), Some(told))
        } else {
            (Stage::Fresh, Some(due.min(*expires)), None)
        };
        let warning = said.map(|(what, remedy)| {
            let what = format!("{source} holds a revocation list of {issuer} {what}");
            places.warning(format!("{table}.crl"), what, remedy)
        });
        End {
            id: format!("{table}.crl {source} {issuer} {this_update} {expires}"),
            stage,
            next_stage,
            warning,
        }
    });
    authorities.chain(lists).collect()
}
