//! Tickets: sealing and opening, and refusing what was sealed under another policy or by somebody else. Beside it rustls' own ticketer, which
//! has one key for all and binds nothing. Counted is CPU time.

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use ringlock::tls::tickets::{Secrets, Tickets};
use rustls::crypto::aws_lc_rs::Ticketer;

use support::cpu::{Place, pin, repeated};

/// What a ticket holds: a session without client certificates, and one with a chain of two with ECDSA keys.
const SIZES: [usize; 2] = [250, 1500];
const POLICY: [u8; 32] = [1; 32];
const OTHER_POLICY: [u8; 32] = [2; 32];

fn tickets(c: &mut Criterion) {
    pin(Place::Measured);
    let (ours, theirs, rustls) = (
        tickets_of(7),
        tickets_of(8),
        Ticketer::new().expect("there are random numbers"),
    );
    for bytes in SIZES {
        let value = vec![0x5a; bytes];
        let ticket = ours.seal(&POLICY, &value).expect("there is a secret").ticket;
        let other = ours.seal(&OTHER_POLICY, &value).expect("there is a secret").ticket;
        let foreign = theirs.seal(&POLICY, &value).expect("there is a secret").ticket;
        let by_rustls = rustls.encrypt(&value).expect("it seals");
        assert_eq!(ours.open(&POLICY, &ticket).as_deref(), Ok(&value[..]));
        assert!(ours.open(&POLICY, &other).is_err() && ours.open(&POLICY, &foreign).is_err());

        let mut group = c.benchmark_group(format!("ticket, {bytes} B"));
        group.sampling_mode(SamplingMode::Flat);
        let mut bench = |act: &str, who: &str, run: &dyn Fn()| {
            group.bench_function(BenchmarkId::new(act, who), |b| {
                b.iter_custom(|count| repeated(count, run));
            });
        };
        bench("seal", "ringlock", &|| _ = black_box(ours.seal(&POLICY, &value)));
        bench("seal", "rustls", &|| _ = black_box(rustls.encrypt(&value)));
        bench("open", "ringlock", &|| _ = black_box(ours.open(&POLICY, &ticket)));
        bench("open", "rustls", &|| _ = black_box(rustls.decrypt(&by_rustls)));
        bench("refuse, other policy", "ringlock", &|| {
            _ = black_box(ours.open(&POLICY, &other))
        });
        bench("refuse, other secret", "ringlock", &|| {
            _ = black_box(ours.open(&POLICY, &foreign))
        });
        group.finish();
    }
}

fn tickets_of(host: u8) -> Arc<Tickets> {
    let tickets = Arc::new(Tickets::new());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("it is later than 1970").as_secs();
    Secrets::new(Arc::clone(&tickets))
        .replace(&[host; 32], Duration::from_secs(3600), now)
        .expect("there is memory");
    tickets
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = tickets
}
criterion_main!(benches);
