//! The files of a snapshot, and the same configuration with those of them that have changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringlock_hsm::custody::Custody;

use super::admissions::{self, Settings};
use super::identities::{Identities, Loaded, files_of};
use super::{Snapshot, by_settings, client_auth, connections, identities_of, load_listener, staples};
use crate::config::{self, Config, Problem};
use crate::identity::Identity;

/// What came of changed files.
#[derive(Debug)]
pub struct Renewal {
    /// The next snapshot; none when nothing is different in it.
    pub snapshot: Option<Snapshot>,
    /// What could not be loaded and stays as it was.
    pub failures: Vec<Failure>,
}

/// An identity, or what a listener's clients are verified with, that cannot be loaded from its files.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong.
    pub problem: Problem,
    /// All of its files.
    pub files: Vec<PathBuf>,
}

impl Snapshot {
    /// Files and folders that a snapshot of this configuration is made from, and that operators replace while it is in force.
    #[must_use]
    pub fn files(config: &Config) -> BTreeSet<PathBuf> {
        let identities = config.identities.iter().flat_map(files_of);
        let listeners = config.listeners.iter().flat_map(of_listener);
        let staples = config.identities.iter().filter_map(staples::file_of);
        identities.chain(listeners).chain(staples).map(Path::to_owned).collect()
    }

    /// The same configuration once more, as these of its files have changed. What has other files is taken over as it is, names are not
    /// resolved again, and what cannot be loaded stays as it was and holds up nothing else.
    pub fn renew(&self, changed: &BTreeSet<PathBuf>, custody: &mut Custody) -> Renewal {
        let config = &self.config;
        let mut failures = Vec::new();
        let mut loader = Identities::renewing(config, custody, self, changed);
        for settings in &config.identities {
            if concerns(changed, &files_of(settings)) {
                failures.extend(loader.load(settings));
            } else {
                loader.take_over();
            }
        }
        let Loaded {
            identities,
            ranges,
            files,
            // Every group of the configuration was loaded with it.
            groups: _,
            absences: _,
        } = loader.into_loaded();
        let mut fail = |problem: Problem, files: &[&Path]| {
            failures.push(Failure {
                problem,
                files: files.iter().map(|&file| file.to_owned()).collect(),
            });
        };
        let mut listeners = self.listeners.clone();
        for (settings, listener) in config.listeners.iter().zip(&mut listeners) {
            let mut client_auths = Vec::new();
            let mut same_clients = true;
            for (Settings { table, client_auth, .. }, admission) in
                admissions::settings(settings).iter().zip(&listener.admissions)
            {
                let mut in_force = admission.client_auth.clone();
                let files = client_auth.map(of_client_auth).unwrap_or_default();
                if concerns(changed, &files) {
                    match client_auth::load(*client_auth, table, &config.places) {
                        Ok(loaded) => {
                            in_force = loaded.map(Arc::new);
                            same_clients = false;
                        }
                        Err(problem) => fail(problem, &files),
                    }
                }
                client_auths.push(in_force);
            }
            let own: Vec<_> = identities_of(&settings.identities, &ranges, &identities)
                .map(Arc::clone)
                .collect();
            if same_clients && are_same(&own, self.identities_of(&settings.identities)) {
                continue;
            }
            let admissions = admissions::load(settings, client_auths, &config.tickets, &self.tickets, Some(&*listener));
            match load_listener(settings, admissions, &config.places, &own, Some(&*listener)) {
                Ok(loaded) => *listener = loaded,
                Err(problem) => {
                    let identities = settings.identities.iter().map(|id| &config.identities[id.0]);
                    let files: Vec<&Path> = identities.flat_map(files_of).chain(of_listener(settings)).collect();
                    fail(problem, &files);
                }
            }
        }

        let staples::Loaded { staples, unusable } =
            staples::load(by_settings(config, &identities, &ranges), &config.places);
        let is_changed = |file: &Path| concerns(changed, &[file]);
        let unusable = unusable.into_iter().filter(|unusable| is_changed(&unusable.file));
        failures.extend(unusable.map(|unusable| Failure {
            problem: unusable.problem,
            files: vec![unusable.file],
        }));
        let has_new_staple = staples.iter().any(|stapled| stapled.file().is_some_and(is_changed));

        let different = has_new_staple
            || !are_same(&identities, self.identities.iter())
            || listeners
                .iter()
                .zip(&self.listeners)
                .any(|(a, b)| !Arc::ptr_eq(&a.policy, &b.policy));
        let snapshot = different.then(|| Snapshot {
            epoch: self.epoch + 1,
            config: config.clone(),
            listeners,
            upstreams: self.upstreams.clone(),
            identities,
            ranges,
            files,
            staples,
            tickets: Arc::clone(&self.tickets),
            key_groups: self.key_groups.clone(),
            connections: connections(self.connections.len()),
            absences: self.absences.clone(),
        });
        Renewal { snapshot, failures }
    }
}

/// Some of these files, or something in a folder among them, has changed.
fn concerns(changed: &BTreeSet<PathBuf>, files: &[&Path]) -> bool {
    let within = |file: &&Path| {
        let first = changed.range(file.to_path_buf()..).next();
        first.is_some_and(|changed| changed.starts_with(file))
    };
    files.iter().any(within)
}

fn are_same<'a>(identities: &'a [Arc<Identity>], others: impl Iterator<Item = &'a Arc<Identity>> + Clone) -> bool {
    identities.len() == others.clone().count() && identities.iter().zip(others).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn of_listener(settings: &config::Listener) -> Vec<&Path> {
    let admissions = admissions::settings(settings).into_iter();
    admissions
        .filter_map(|settings| settings.client_auth)
        .flat_map(of_client_auth)
        .collect()
}

fn of_client_auth(settings: &config::ClientAuth) -> Vec<&Path> {
    let lists = settings.crl.iter().map(PathBuf::as_path);
    lists.chain([settings.ca.as_path()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_concerns_files_and_folders_that_hold_it() {
        let changed: BTreeSet<PathBuf> = ["/a/site.pem", "/certs/x/new.pem"].map(PathBuf::from).into();
        let concerned = |file: &str| concerns(&changed, &[Path::new("/elsewhere"), Path::new(file)]);
        assert!(concerned("/a/site.pem"));
        assert!(concerned("/certs"), "a folder");
        assert!(concerned("/certs/x/new.pem"));
        assert!(!concerned("/a/site"), "a name that begins alike");
        assert!(!concerned("/a/site.pem.old"));
        assert!(!concerned("/b"));
    }
}
