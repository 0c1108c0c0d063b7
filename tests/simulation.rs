//! A real worker on a simulated kernel and network, 256 lives of it, each from one seed. `docs/simulator.md` is about this.
//!
//! `RINGLOCK_SEED=7 cargo nextest run --no-capture simulation::` replays one seed and prints what happens.

mod client;
mod oracle;
mod plan;
mod run;
mod rustls_tls;
mod scripted_tls;
mod server;
mod stream;

use client::ClientTls;
use ringlock::error::Cause;
use run::run;
use rustls_tls::RustlsClient;
use scripted_tls::ScriptedClient;

/// Seeds of one run of the tests.
const SEEDS: u64 = 256;
/// Seeds with real TLS, which costs much more.
const RUSTLS_SEEDS: u64 = 128;

/// The seed to replay, if there is one.
fn replayed() -> Option<u64> {
    let seed = std::env::var("RINGLOCK_SEED").ok()?;
    Some(seed.parse().expect("RINGLOCK_SEED is a number"))
}

/// Runs the seeds, or the one that is replayed.
fn sweep<C: ClientTls>(seeds: u64) {
    let (seeds, print) = match replayed() {
        Some(seed) => (seed..seed + 1, true),
        None => (0..seeds, false),
    };
    let (mut failures, mut perfect, mut causes) = (Vec::new(), 0, [0; Cause::LABELS.len()]);
    for seed in seeds {
        match run::<C>(seed, print) {
            Ok(outcome) => {
                perfect += outcome.perfect;
                causes
                    .iter_mut()
                    .zip(outcome.causes)
                    .for_each(|(sum, count)| *sum += count);
            }
            Err(failure) => failures.push(format!("seed {seed}: {failure}")),
        }
    }
    assert!(
        failures.is_empty(),
        "{} seeds fail; RINGLOCK_SEED=n replays one and prints what happens:\n{}",
        failures.len(),
        failures.join("\n")
    );
    let counted: Vec<_> = Cause::LABELS.into_iter().zip(causes).collect();
    eprintln!("{perfect} sessions had to be perfect; ended for {counted:?}");
    if !print {
        // Seeds that never come to these would show nothing. The peers' records are never wrong nor that many, nor are we wrong, and
        // clients show no certificates.
        let cannot = ["record", "key_limit", "internal", "client_revoked"];
        let never = |(label, count): &(&str, u64)| *count == 0 && !cannot.contains(label);
        let never: Vec<_> = counted.iter().copied().filter(never).collect();
        assert!(never.is_empty(), "no session ended for {never:?}");
        assert!(perfect > 0, "no session had to be perfect");
    }
}

#[test]
fn no_seed_breaks_an_invariant() {
    sweep::<ScriptedClient>(SEEDS);
}

#[test]
fn no_seed_breaks_an_invariant_with_real_tls() {
    sweep::<RustlsClient>(RUSTLS_SEEDS);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..24 {
        assert_eq!(
            run::<ScriptedClient>(seed, false),
            run::<ScriptedClient>(seed, false),
            "seed {seed} takes another course the second time"
        );
    }
}

/// Every planted bug fails some seed: `cargo nextest run --features mutants -E 'test(/mutant/)'`.
#[cfg(feature = "mutants")]
#[test]
fn every_planted_mutant_is_found() {
    use ringlock::mutants::{Mutant, plant};

    let seeds = || replayed().map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut survivors = Vec::new();
    // One alone, by name, to see why a seed finds it or none does.
    let chosen = std::env::var("RINGLOCK_MUTANT").ok();
    for mutant in Mutant::ALL {
        if chosen.as_ref().is_some_and(|name| *name != format!("{mutant:?}")) {
            continue;
        }
        if mutant == Mutant::NonceUsedTwice && crate::support::multibuffer::library().is_none() {
            continue;
        }
        plant(Some(mutant));
        let scripted =
            || seeds().find_map(|seed| Some((seed, run::<ScriptedClient>(seed, replayed().is_some()).err()?)));
        // What only shows in real cryptography.
        let real = || seeds().find_map(|seed| Some((seed, run::<RustlsClient>(seed, replayed().is_some()).err()?)));
        let found = if mutant == Mutant::NonceUsedTwice {
            real()
        } else {
            scripted()
        };
        plant(None);
        match found {
            Some((seed, failure)) => {
                let first = failure.lines().next().unwrap_or_default();
                eprintln!("{mutant:?}: seed {seed}: {first}");
            }
            None => survivors.push(mutant),
        }
    }
    assert!(survivors.is_empty(), "not found in {SEEDS} seeds: {survivors:?}");
}
