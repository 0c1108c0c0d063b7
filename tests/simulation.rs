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
