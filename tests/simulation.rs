//! A real worker on a simulated kernel and network, 256 lives of it, each from one seed. `docs/simulator.md` is about this.
//!
//! `RINGLOCK_SEED=7 cargo nextest run --no-capture --test simulation` replays one seed and prints what happens.

#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/scripted_tls.rs"]
mod scripted_tls;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/stream.rs"]
mod stream;

use client::ClientTls;
use run::run;
use scripted_tls::ScriptedClient;

/// Seeds of one run of the tests.
const SEEDS: u64 = 256;

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
    let failures: Vec<String> = seeds
        .filter_map(|seed| {
            let failure = run::<C>(seed, print).err()?;
            Some(format!("seed {seed}: {failure}"))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} seeds fail; RINGLOCK_SEED=n replays one and prints what happens:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn no_seed_breaks_an_invariant() {
    sweep::<ScriptedClient>(SEEDS);
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

    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        plant(Some(mutant));
        let found = (0..SEEDS).find_map(|seed| Some((seed, run::<ScriptedClient>(seed, false).err()?)));
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
