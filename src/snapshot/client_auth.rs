//! `[listener.client_auth]`, or that of a route, as loaded: CAs and revocation lists from files, and what is to be said of them.

use crate::config::{self, Places, Problem, Warning};
use crate::identity::client_auth::{ClientAuth, RevocationList, Rules, span};
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
    if let Some(first) = authorities.iter().find(|authority| authority.not_after < now) {
        let what = format!(
            "{} holds a CA that has expired ({}): its clients are accepted all the same",
            settings.ca.display(),
            first.subject
        );
        warn("ca", what, "remove it, or renew it");
    }
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
    let refused = if settings.accepts_expired_crls {
        "it counts all the same (crl_expired = \"accept\")"
    } else {
        "clients of this CA are refused"
    };
    for list in client_auth.lists() {
        let RevocationList { issuer, source, .. } = list;
        let left = list.next_update - now;
        let (what, remedy) = if list.is_replaced {
            ("of which there is a newer one: it is not used".to_owned(), "remove it")
        } else if left <= 0 {
            (
                format!("that has expired: {refused}"),
                "fetch the CA's present list, and reload",
            )
        } else if left < (list.next_update - list.this_update) / EXPIRY_WARNING_PART {
            (
                format!("that expires in {}: {refused} after that", span(left.unsigned_abs())),
                "fetch the CA's next list in time, and reload",
            )
        } else {
            continue;
        };
        warn(
            "crl",
            format!("{source} holds a revocation list of {issuer} {what}"),
            remedy,
        );
    }
    warnings
}
