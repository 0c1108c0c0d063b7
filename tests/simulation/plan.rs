//! What happens in one run: the configuration, the clients, the servers and the commands, all from the seed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ringlock::config;
use ringlock::limits::RECEIVE_BYTES_MAX;
use ringlock::net::sim::faults::Faults;
use ringlock::net::sim::random::Random;
use ringlock::snapshot::Snapshot;
use ringlock_hsm::custody::Custody;

use super::client::{self, ClientPlan, Ends, Hello};
use super::server::{self, Health, ServerPlan};

/// The timeouts of the configuration.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Timer ticks, late completions and late cancellations.
pub(crate) const SLACK: Duration = Duration::from_millis(200);

/// Two certificates and their keys, made once a process.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    pub(crate) certificates: [rustls::pki_types::CertificateDer<'static>; 2],
}

pub(crate) static SITE: LazyLock<Site> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("the simulation is set up");
    // Ed25519 signatures all have one length, so that the steps of a run do not depend on chance outside the seed. Those of
    // P-256 do not, but are computed in batches.
    let kinds = [
        ("ed25519", &rcgen::PKCS_ED25519),
        ("p256", &rcgen::PKCS_ECDSA_P256_SHA256),
    ];
    let certificates = kinds.map(|(name, kind)| {
        let key = rcgen::KeyPair::generate_for(kind).expect("a key pair");
        let params = rcgen::CertificateParams::new(vec!["site.example".to_owned()]).expect("a legal name");
        let certificate = params.self_signed(&key).expect("the simulation is set up");
        let write = |kind: &str, pem: String| {
            let file = folder.path().join(format!("{name}.{kind}"));
            std::fs::write(file, pem).expect("the simulation is set up");
        };
        write("pem", certificate.pem());
        write("key", key.serialize_pem());
        certificate.der().clone()
    });
    Site { folder, certificates }
});

/// A command to the worker, at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Reload,
    /// With the second listener gone or back.
    ReloadListeners,
    EndSessions,
}

/// See the module.
pub(crate) struct Plan {
    /// By server address, 10.0.0.n.
    pub(crate) health: Vec<Health>,
    pub(crate) send_proxy: bool,
    /// The site's key is one of P-256.
    ecdsa: bool,
    pub(crate) clients: Vec<ClientPlan>,
    pub(crate) actions: Vec<(Duration, Action)>,
    /// Sessions end so many turns after the first was accepted, and then the other clients come: slots are taken anew while
    /// results for those who had them are outstanding.
    pub(crate) upheaval_after_turns: Option<usize>,
    connections_max: usize,
    pub(crate) connection_age_max: Option<Duration>,
    first_byte: bool,
    round_robin: bool,
    /// Largest stream of an ordinary connection, and of a few.
    sizes: (usize, usize),
    /// Every peer does as it should.
    calm: bool,
}

impl Plan {
    pub(crate) fn draw(random: &mut Random, faults: &mut Faults) -> Plan {
        let servers = random.between(1, 4);
        let mut health: Vec<Health> =
            std::iter::repeat_with(|| random.pick(&[Health::Up, Health::Refuses, Health::Silent]))
                .take(servers)
                .collect();
        if random.chance(900) {
            let up = random.below(servers);
            health[up] = Health::Up;
        }
        let burst = random.chance(150);
        let upheaval_after_turns = (burst && random.chance(700)).then(|| random.between(1, 4));
        if upheaval_after_turns.is_some() {
            // All hellos arrive together, so that there is a queue for the key exchanges; and sessions that wait in it cannot end
            // at once, for what they send takes its time.
            faults.latency_max = Duration::ZERO;
            faults.late = 500;
            faults.receive_max = RECEIVE_BYTES_MAX;
            faults.receive_buffers = 128;
        }
        let sizes = if burst {
            (300, 300)
        } else if faults.carries_bulk() {
            (70_000, 900_000)
        } else {
            // In so many steps at most.
            let most = faults.segment_max.min(faults.receive_max) * 100;
            (most.min(70_000), most.min(70_000))
        };
        let calm = random.chance(250);
        let count = if burst { 110 } else { random.between(4, 14) };
        let clients = (0..count)
            .map(|_| draw_client(random, faults, burst, sizes, calm))
            .collect();
        let mut actions = Vec::new();
        for action in [Action::Reload, Action::ReloadListeners, Action::EndSessions] {
            if random.chance(250) {
                actions.push((Duration::from_micros(random.below(20_000) as u64 * 100), action));
            }
        }
        actions.sort_by_key(|(at, _)| *at);
        Plan {
            health,
            send_proxy: random.chance(300),
            clients,
            actions,
            upheaval_after_turns,
            connections_max: if random.chance(150) { random.between(1, 6) } else { 1000 },
            first_byte: random.chance(400),
            round_robin: random.chance(500),
            sizes,
            calm,
            ecdsa: count.is_multiple_of(2),
            connection_age_max: random
                .chance(150)
                .then(|| Duration::from_millis(random.between(200, 5_000) as u64)),
        }
    }

    pub(crate) fn draw_server(&self, random: &mut Random) -> ServerPlan {
        use server::Mischief as M;
        let download = size(random, self.sizes);
        let mischief = match random.below(20) {
            _ if self.calm => None,
            0 => Some(M::ResetAt(random.below(download + 1))),
            1 => Some(M::CloseAt(random.below(download + 1))),
            2 => Some(M::DeafAt(random.below(100_000))),
            3 => Some(M::Mute),
            _ => None,
        };
        ServerPlan {
            download,
            chunk: random.pick(&[700, 20_000, 200_000]),
            pace: pace(random),
            read_max: random.pick(&[1000, 20_000, 100_000]),
            ends_first: random.chance(500),
            mischief,
        }
    }

    /// The configuration, one listener or two.
    pub(crate) fn snapshot(&self, previous: Option<&Snapshot>, both: bool) -> Arc<Snapshot> {
        let servers: Vec<String> = (0..self.health.len()).map(|n| format!("\"10.0.0.{n}:80\"")).collect();
        let key = if self.ecdsa { "p256" } else { "ed25519" };
        let mut text = format!(
            "[[identity]]\nname = \"site\"\ncertificate = \"{key}.pem\"\nkey = \"{key}.key\"\n\
             [[upstream]]\nname = \"app\"\nservers = [{}]\nconnect_timeout = \"{}s\"\nsend_proxy = \"{}\"\n\
             connect_on = \"{}\"\nbalance = \"{}\"\n",
            servers.join(","),
            CONNECT_TIMEOUT.as_secs(),
            if self.send_proxy { "v1" } else { "off" },
            if self.first_byte { "first_byte" } else { "handshake" },
            if self.round_robin {
                "round_robin"
            } else {
                "least_connections"
            },
        );
        let age = |age: Duration| format!("connection_age_max = \"{}ms\"\n", age.as_millis());
        let age = self.connection_age_max.map(age).unwrap_or_default();
        for (number, address) in listener_addresses().into_iter().enumerate().take(1 + usize::from(both)) {
            text += &format!(
                "[[listener]]\nname = \"l{number}\"\naddress = \"{address}\"\nidentities = [\"site\"]\nupstream = \"app\"\n\
                 accept_proxy = {}\nconnections_max = {}\nhandshake_timeout = \"{}s\"\nidle_timeout = \"{}s\"\n\
                 write_timeout = \"{}s\"\nlinger_timeout = \"{}s\"\n{age}[listener.tls]\ngroups = [\"X25519\"]\n",
                number == 1,
                self.connections_max,
                HANDSHAKE_TIMEOUT.as_secs(),
                IDLE_TIMEOUT.as_secs(),
                WRITE_TIMEOUT.as_secs(),
                LINGER_TIMEOUT.as_secs(),
            );
        }
        let origin: PathBuf = SITE.folder.path().join("ringlock.toml");
        let (config, _) = config::parse(&text, &origin).unwrap_or_else(|problems| panic!("{problems}"));
        Arc::new(
            Snapshot::load(config, 1, previous, &mut Custody::without_signers()).expect("the simulation is set up"),
        )
    }

    /// The longest that any connection may be open, if there is such a time.
    pub(crate) fn longest_life(&self) -> Option<Duration> {
        let to_relaying = HANDSHAKE_TIMEOUT + CONNECT_TIMEOUT * u32::try_from(self.health.len()).expect("a few");
        Some(self.connection_age_max?.max(to_relaying) + LINGER_TIMEOUT + SLACK)
    }

    /// Some server would accept a connection.
    pub(crate) fn has_server(&self) -> bool {
        self.health.contains(&Health::Up)
    }

    pub(crate) fn sheds(&self) -> bool {
        self.connections_max < self.clients.len()
    }
}

/// The second one expects a PROXY header.
pub(crate) fn listener_addresses() -> [SocketAddr; 2] {
    ["192.0.2.1:443", "192.0.2.1:444"].map(|address| address.parse().expect("the simulation is set up"))
}

fn size(random: &mut Random, (ordinary, bulk): (usize, usize)) -> usize {
    match random.below(10) {
        0 => 0,
        1 => 1,
        2 => random.between(bulk / 3, bulk),
        3 => random.between(1, ordinary),
        4 => ordinary.min(64 * 1024),
        _ => random.between(1, ordinary.min(8_000)),
    }
}

fn pace(random: &mut Random) -> Duration {
    Duration::from_micros(random.pick(&[0, 0, 0, 100, 5_000]))
}

fn draw_client(random: &mut Random, faults: &Faults, burst: bool, sizes: (usize, usize), calm: bool) -> ClientPlan {
    use client::Mischief as M;
    let upload = size(random, sizes);
    // Positions fall into the handshake as often as into the data.
    let position = |random: &mut Random| match random.below(8) {
        0 => 0,
        1..=4 => random.below(500),
        _ => random.below(upload + 500),
    };
    let mischief = match random.below(if burst { 200 } else { 28 }) {
        _ if calm => None,
        0 | 1 => Some(M::ResetAt(position(random))),
        2..=4 => Some(M::TruncateAt(position(random))),
        5 | 6 => Some(M::MuteAt(position(random))),
        7 => Some(M::DeafAt(random.below(50_000))),
        8 => Some(M::Garbage),
        9 => Some(M::BadHello(Hello::Refused)),
        10 => Some(M::BadHello(Hello::BadShare)),
        11 => Some(M::KeyUpdates(random.between(1, 40))),
        12 | 13 => Some(M::TailAfterClose(random.below(400))),
        14 | 15 => Some(M::Stays),
        _ => None,
    };
    let at = if burst {
        // Two waves: the second takes the slots of the first.
        random.below(10) / 7 * (1_000 + faults.latency_max.as_micros() as usize)
    } else {
        random.below(20) * 100_000
    };
    ClientPlan {
        at: Duration::from_micros(at as u64),
        listener: random.below(2),
        upload,
        chunk: random.pick(&[300, 5_000, 40_000, 200_000]),
        pace: pace(random),
        read_max: random.pick(&[1000, 20_000, 200_000]),
        ends: random.pick(&[Ends::AtOnce, Ends::AfterAnswer, Ends::AfterServer]),
        fin_with_close: random.chance(400),
        mischief,
    }
}
