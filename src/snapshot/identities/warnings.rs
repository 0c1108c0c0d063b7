//! What is to be said of identities that were loaded.

use std::collections::BTreeMap;

use crate::config::{CertificateSource, TlsVersion, Warning};
use crate::identity::preflight::{self, Check, Finding};
use crate::limits::FOLDER_MESSAGES_MAX;
use crate::snapshot::Snapshot;

/// What is legal and probably not meant, at `now` in seconds since 1970.
pub(in crate::snapshot) fn warnings(snapshot: &Snapshot, now: i64) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (settings, range) in snapshot.config.identities.iter().zip(&snapshot.ranges) {
        let is_folder = matches!(settings.certificate, CertificateSource::Folder(_));
        let mut told: BTreeMap<Check, usize> = BTreeMap::new();
        for (identity, files) in snapshot.identities[range.clone()]
            .iter()
            .zip(&snapshot.files[range.clone()])
        {
            let of_chain = preflight::of_chain(&identity.facts, files, now).into_iter();
            let of_chain = of_chain.map(|finding| Finding {
                what: format!("{} {}", identity.facts.source, finding.what),
                ..finding
            });
            for Finding { check, what, remedy } in of_chain.chain(preflight::of_files(files)) {
                let count = told.entry(check).or_default();
                *count += 1;
                if is_folder && *count > FOLDER_MESSAGES_MAX {
                    continue;
                }
                let key = match (is_folder, check == Check::Exposed) {
                    (true, _) => "certificates",
                    (false, true) => "key",
                    (false, false) => "certificate",
                };
                let key = format!("identity \"{}\": {key}", settings.name);
                warnings.push(snapshot.config.places.warning(key, what, remedy));
            }
        }
        for count in told
            .into_values()
            .filter(|&count| is_folder && count > FOLDER_MESSAGES_MAX)
        {
            let what = format!(
                "{} more certificates in {} are to be warned of for one of these reasons",
                count - FOLDER_MESSAGES_MAX,
                settings.certificate
            );
            let key = format!("identity \"{}\": certificates", settings.name);
            warnings.push(snapshot.config.places.warning(key, what, "correct those above first"));
        }
    }
    for listener in &snapshot.listeners {
        of_listener(snapshot, listener.settings(), &mut warnings);
    }
    warnings
}

fn of_listener(snapshot: &Snapshot, listener: &crate::config::Listener, warnings: &mut Vec<Warning>) {
    let places = &snapshot.config.places;
    let identities = || snapshot.identities_of(&listener.identities);
    let mut without_tls13 = identities().filter(|identity| !identity.signs_for_tls13());
    if listener.tls.max_version == TlsVersion::Tls13 {
        for identity in without_tls13.by_ref() {
            let what = format!(
                "it cannot sign for TLS 1.3, which listener \"{}\" has enabled: its token has no RSA-PSS as TLS wants it",
                listener.name
            );
            let remedy = "use a key for ECDSA, or a token that can (`ringlock keys test --config FILE`)";
            let key = format!("identity \"{}\": key", identity.name);
            warnings.push(places.warning(key, what, remedy));
        }
    }
    let routes = listener.routes.iter().map(|route| &route.sni);
    let findings = preflight::of_listener(identities().map(|identity| &**identity), routes, listener.strict_sni);
    let of_listener = |key: &str| format!("listener \"{}\": {key}", listener.name);
    let mut duplicates = 0;
    for Finding { check, what, remedy } in findings {
        if check == Check::Route {
            warnings.push(places.warning(of_listener("routes"), what, remedy));
            continue;
        }
        duplicates += 1;
        if duplicates <= FOLDER_MESSAGES_MAX {
            warnings.push(places.warning(of_listener("identities"), what, remedy));
        }
    }
    if duplicates > FOLDER_MESSAGES_MAX {
        let what = format!(
            "{} more identities have a name of another",
            duplicates - FOLDER_MESSAGES_MAX
        );
        warnings.push(places.warning(of_listener("identities"), what, "correct those above first"));
    }
}
