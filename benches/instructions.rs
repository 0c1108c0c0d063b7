//! Instructions, counted by valgrind's callgrind: the same number in every run, whatever else the machine does. Valgrind has neither AVX-512 nor
//! io_uring, so AWS-LC takes its code for older processors here, and libcrypto_mb and the drivers are not counted: compare the numbers of two
//! revisions, not with times.

mod support;

use std::process::{Command, ExitCode, Stdio};

/// What counts, by the program's name.
const NEEDED: [(&str, &str); 2] = [
    ("valgrind", "install it with your distribution's packages"),
    (
        "gungraun-runner",
        "install it with `cargo install --locked gungraun-runner --version 0.20.0`",
    ),
];

fn main() -> ExitCode {
    let by_runner = std::env::args().nth(1).is_some_and(|mode| mode == "--gungraun-run");
    if by_runner {
        counts::run();
        return ExitCode::SUCCESS;
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        // Where every bench runs once: without optimization each count takes seconds, and says nothing.
        eprintln!("instructions: counted by `cargo bench --bench instructions` only");
        return ExitCode::SUCCESS;
    }
    let runs = |program: &str| {
        let mut command = Command::new(program);
        let command = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok()
    };
    if let Some((program, remedy)) = NEEDED.iter().find(|(program, _)| !runs(program)) {
        eprintln!("instructions: not counted, {program} is missing: {remedy}");
        return ExitCode::FAILURE;
    }
    counts::run();
    ExitCode::SUCCESS
}

mod counts {
    use std::hint::black_box;
    use std::sync::Arc;
    use std::time::{Duration, Instant, SystemTime};

    use gungraun::{library_benchmark, library_benchmark_group, main};
    use ringlock::config::NamePattern;
    use ringlock::identity::NameMap;
    use ringlock::net::timer::{Entry, TimerWheel};
    use ringlock::proxy::session::Side;
    use ringlock::tls::client_hello::{ClientHello, Gathered, gather};
    use ringlock::tls::tickets::{Secrets, Tickets};
    use rustls::NamedGroup;
    use rustls::version::TLS13;

    use super::support::hellos::hellos;
    use super::support::records::{Records, establish};
    use super::support::tls::{Key, Ringlock, Shared, Site, client, flight};
    use super::support::worker::Worker;

    pub(super) fn run() {
        main();
    }

    main!(library_benchmark_groups = [client_hellos, records, sessions, tickets, timers, names]);

    library_benchmark_group!(name = client_hellos, benchmarks = client_hello);
    library_benchmark_group!(name = records, benchmarks = [seal, open]);
    library_benchmark_group!(name = sessions, benchmarks = [download, upload]);
    library_benchmark_group!(name = tickets, benchmarks = [seal_ticket, open_ticket]);
    library_benchmark_group!(name = timers, benchmarks = [arm, expire]);
    library_benchmark_group!(name = names, benchmarks = find);

    fn hello(wanted: &str) -> Vec<u8> {
        let found = hellos().into_iter().find(|(name, _)| *name == wanted);
        found.expect("there is one of that name").1
    }

    #[library_benchmark]
    #[bench::x25519(hello("rustls, X25519"))]
    #[bench::x25519mlkem768(hello("rustls, X25519MLKEM768"))]
    #[bench::curl(hello("curl"))]
    fn client_hello(bytes: Vec<u8>) -> Vec<u8> {
        let Gathered::Complete(body) = gather(black_box(&bytes)) else {
            panic!("it is complete");
        };
        let hello = ClientHello::parse(&body).expect("it is one");
        black_box((hello.best_version(), hello.server_name(), hello.groups().next()));
        bytes
    }

    /// A connection that is established, with this much to seal.
    fn to_seal(bytes: usize) -> (Ringlock, Shared, Vec<u8>) {
        let site = Site::new(Key::P256);
        let mut shared = site.ringlock();
        let config = site.client(&TLS13, NamedGroup::X25519);
        let (_, mut server) = establish::<Ringlock>(&mut shared, &config);
        let plain = vec![0x5a; bytes];
        // The first has its buffer made.
        server.seal(&mut shared, &plain);
        (server, shared, plain)
    }

    #[library_benchmark]
    #[bench::one_kib(to_seal(1024))]
    #[bench::sixteen_kib(to_seal(16 * 1024))]
    fn seal((mut server, mut shared, plain): (Ringlock, Shared, Vec<u8>)) -> (Ringlock, Shared, Vec<u8>) {
        black_box(server.seal(&mut shared, black_box(&plain)));
        (server, shared, plain)
    }

    /// The same with this much sealed.
    fn to_open(bytes: usize) -> (Ringlock, Shared, Vec<u8>) {
        let site = Site::new(Key::P256);
        let mut shared = site.ringlock();
        let config = site.client(&TLS13, NamedGroup::X25519);
        let (mut client, mut server) = establish::<Ringlock>(&mut shared, &config);
        let mut sealed = || {
            let mut message = Vec::new();
            std::io::Write::write_all(&mut client.writer(), &vec![0x5a; bytes]).expect("no limit is set");
            flight(&mut client, &mut message);
            message
        };
        server.open(&mut shared, &mut sealed());
        (server, shared, sealed())
    }

    #[library_benchmark]
    #[bench::one_kib(to_open(1024))]
    #[bench::sixteen_kib(to_open(16 * 1024))]
    fn open((mut server, mut shared, mut sealed): (Ringlock, Shared, Vec<u8>)) -> (Ringlock, Shared, Vec<u8>) {
        black_box(server.open(&mut shared, &mut sealed));
        (server, shared, sealed)
    }

    /// A session that relays, and what comes next from this side.
    fn to_relay((side, bytes): (Side, usize)) -> (Worker<'static>, Side, Vec<u8>) {
        let site: &'static Site = Box::leak(Box::new(Site::new(Key::P256)));
        let mut client = client(&site.client(&TLS13, NamedGroup::X25519));
        let mut worker = Worker::start(&site.snapshot, &mut client);
        let mut message = || {
            let plain = vec![0x5a; bytes];
            if side == Side::Upstream {
                return plain;
            }
            let mut sealed = Vec::new();
            std::io::Write::write_all(&mut client.writer(), &plain).expect("no limit is set");
            flight(&mut client, &mut sealed);
            sealed
        };
        worker.turn(side, &mut message());
        (worker, side, message())
    }

    #[library_benchmark]
    #[bench::one_kib(to_relay((Side::Upstream, 1024)))]
    #[bench::sixteen_kib(to_relay((Side::Upstream, 16 * 1024)))]
    fn download((mut worker, side, mut message): (Worker<'static>, Side, Vec<u8>)) -> (Worker<'static>, Side, Vec<u8>) {
        worker.turn(side, black_box(&mut message));
        (worker, side, message)
    }

    #[library_benchmark]
    #[bench::one_kib(to_relay((Side::Downstream, 1024)))]
    #[bench::sixteen_kib(to_relay((Side::Downstream, 16 * 1024)))]
    fn upload((mut worker, side, mut message): (Worker<'static>, Side, Vec<u8>)) -> (Worker<'static>, Side, Vec<u8>) {
        worker.turn(side, black_box(&mut message));
        (worker, side, message)
    }

    const POLICY: [u8; 32] = [1; 32];

    /// Tickets, and a session to seal or a ticket to open.
    fn with_tickets(of: fn(&Tickets, Vec<u8>) -> Vec<u8>) -> (Arc<Tickets>, Vec<u8>) {
        let tickets = Arc::new(Tickets::new());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("it is later than 1970").as_secs();
        Secrets::new(Arc::clone(&tickets))
            .replace(&[7; 32], Duration::from_secs(3600), now)
            .expect("there is memory");
        // The first random bytes of a process have AWS-LC gather entropy, which takes a thousand times as long as a ticket.
        assert!(tickets.seal(&POLICY, &[]).is_some());
        let value = of(&tickets, vec![0x5a; 250]);
        (tickets, value)
    }

    #[library_benchmark]
    #[bench::of_250_bytes(with_tickets(|_, value| value))]
    fn seal_ticket((tickets, value): (Arc<Tickets>, Vec<u8>)) -> (Arc<Tickets>, Vec<u8>) {
        black_box(tickets.seal(&POLICY, black_box(&value)));
        (tickets, value)
    }

    #[library_benchmark]
    #[bench::of_250_bytes(with_tickets(|tickets, value| tickets.seal(&POLICY, &value).expect("there is a secret").ticket))]
    fn open_ticket((tickets, ticket): (Arc<Tickets>, Vec<u8>)) -> (Arc<Tickets>, Vec<u8>) {
        let opened = tickets.open(&POLICY, black_box(&ticket));
        assert!(opened.is_ok());
        (tickets, ticket)
    }

    /// A wheel with so many timers within 30 s, and when it was made.
    fn wheel(armed: u32) -> (TimerWheel, Instant, Vec<Entry>) {
        let now = Instant::now();
        let mut wheel = TimerWheel::new(now);
        for slot in 0..armed {
            let ms = u64::from(slot.wrapping_mul(2_654_435_761)) % 30_000;
            wheel.arm(now + Duration::from_millis(ms), Entry { slot, generation: 1 });
        }
        (wheel, now, Vec::with_capacity(armed as usize))
    }

    #[library_benchmark]
    #[bench::among_10(wheel(10))]
    #[bench::among_100_000(wheel(100_000))]
    fn arm((mut wheel, now, due): (TimerWheel, Instant, Vec<Entry>)) -> (TimerWheel, Vec<Entry>) {
        let entry = Entry { slot: 1, generation: 1 };
        black_box(wheel.arm(black_box(now + Duration::from_secs(10)), entry));
        (wheel, due)
    }

    #[library_benchmark]
    #[bench::all_of_10(wheel(10))]
    #[bench::all_of_10_000(wheel(10_000))]
    #[bench::all_of_100_000(wheel(100_000))]
    fn expire((mut wheel, now, mut due): (TimerWheel, Instant, Vec<Entry>)) -> (TimerWheel, Vec<Entry>) {
        wheel.expire(black_box(now + Duration::from_secs(31)), &mut due);
        (wheel, due)
    }

    /// So many names of customers, and a wildcard; the name that is looked for.
    fn name_map((count, wanted): (u32, &str)) -> (NameMap<u32>, String) {
        let mut names = NameMap::default();
        for number in 0..count {
            names.insert(&NamePattern::Exact(format!("customer-{number}.example")), number);
        }
        names.insert(&NamePattern::Wildcard("wild.example".to_owned()), count);
        (names, wanted.to_owned())
    }

    #[library_benchmark]
    #[bench::one_of_1(name_map((1, "customer-0.example")))]
    #[bench::one_of_15_000(name_map((15_000, "customer-7919.example")))]
    #[bench::by_wildcard(name_map((15_000, "www.wild.example")))]
    #[bench::unknown(name_map((15_000, "www.nowhere.example")))]
    fn find((names, wanted): (NameMap<u32>, String)) -> (NameMap<u32>, String) {
        black_box(names.find(black_box(&wanted)));
        (names, wanted)
    }
}
