//! Which server a connection goes to: the state of all upstream groups for one worker.
//!
//! [`Balancer::choose`] starts an attempt. It ends in exactly one of [`Balancer::connect_failed`],
//! [`Balancer::abandoned`], or [`Balancer::connected`], which [`Balancer::released`] follows when the connection is
//! over. A [`ServerId`] belongs to the balancer that gave it: after a reload the old one is kept until its connections
//! are gone.

use std::time::{Duration, Instant};

use crate::config::{Balance, UpstreamId};
use crate::limits::{CONNECT_FAILURES_TO_EJECT, EJECTION_MAX, EJECTION_MIN, SERVERS_PER_UPSTREAM_MAX};

/// One server of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    /// The group.
    pub group: UpstreamId,
    /// Position in the group's `servers`.
    pub index: usize,
}

/// The servers of one group that a connection has been sent to already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried(u128);

impl Tried {
    fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }
}

/// What a balancer needs to know of a group; the position in the slice is its [`UpstreamId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// How servers are chosen.
    pub balance: Balance,
    /// How many servers, 1 to [`SERVERS_PER_UPSTREAM_MAX`].
    pub servers: usize,
}

/// Chooses servers and remembers how they fare.
#[derive(Debug)]
pub struct Balancer {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    balance: Balance,
    servers: Vec<Server>,
    /// Whose turn it is; `< servers.len()`.
    next: usize,
}

#[derive(Clone, Debug)]
struct Server {
    /// Attempts chosen and not yet ended.
    opening: usize,
    /// Connections established and not yet released.
    open: usize,
    health: Health,
}

#[derive(Clone, Copy, Debug)]
enum Health {
    /// Chosen in turn.
    Serving {
        /// Connect failures since the last success; `< CONNECT_FAILURES_TO_EJECT`.
        failures: u32,
    },
    /// Not chosen before `until` while the group has another; then for one trial.
    Ejected { until: Instant, backoff: Duration },
    /// The trial is under way, so `opening > 0`; not chosen while the group has another.
    Trial { until: Instant, backoff: Duration },
}

impl Balancer {
    /// All servers serving, nothing connected. Workers pass different `offset`s so that they start at different
    /// servers.
    ///
    /// # Panics
    /// When a group has no server or more than [`SERVERS_PER_UPSTREAM_MAX`]: the configuration refuses both.
    #[must_use]
    pub fn new(groups: &[GroupDescription], offset: usize) -> Balancer {
        let server = Server {
            opening: 0,
            open: 0,
            health: Health::Serving { failures: 0 },
        };
        let group = |description: &GroupDescription| {
            assert!(
                (1..=SERVERS_PER_UPSTREAM_MAX).contains(&description.servers),
                "the configuration checks this"
            );
            Group {
                balance: description.balance,
                servers: vec![server.clone(); description.servers],
                next: offset % description.servers,
            }
        };
        Balancer {
            groups: groups.iter().map(group).collect(),
        }
    }

    /// The server to connect to next, noted in `tried`; `None` when all of the group have been tried. Ejection alone
    /// never makes it `None`: when every server left is ejected, the one whose ejection ends first is chosen.
    pub fn choose(&mut self, group: UpstreamId, tried: &mut Tried, now: Instant) -> Option<ServerId> {
        let state = &mut self.groups[group.0];
        let index = state.pick(*tried, now)?;
        debug_assert!(!tried.contains(index));
        tried.insert(index);
        state.next = (index + 1) % state.servers.len();
        let server = &mut state.servers[index];
        server.opening += 1;
        if let Health::Ejected { until, backoff } = server.health
            && until <= now
        {
            server.health = Health::Trial { until, backoff };
        }
        server.check_invariants();
        Some(ServerId { group, index })
    }

    /// The attempt succeeded: whatever the server's past, it serves.
    pub fn connected(&mut self, server: ServerId) {
        let server = self.server_mut(server);
        server.end_attempt();
        server.open += 1;
        server.health = Health::Serving { failures: 0 };
        server.check_invariants();
    }

    /// The attempt failed, by refusal, timeout or otherwise by the server's fault.
    pub fn connect_failed(&mut self, server: ServerId, now: Instant) {
        let server = self.server_mut(server);
        server.end_attempt();
        server.health = match server.health {
            Health::Serving { failures } if failures + 1 < CONNECT_FAILURES_TO_EJECT => {
                Health::Serving { failures: failures + 1 }
            }
            Health::Serving { .. } => Health::Ejected {
                until: now + EJECTION_MIN,
                backoff: EJECTION_MIN,
            },
            Health::Trial { backoff, .. } => {
                let backoff = (backoff * 2).min(EJECTION_MAX);
                Health::Ejected {
                    until: now + backoff,
                    backoff,
                }
            }
            // Begun before the ejection, or for want of another server: no trial, so it proves nothing new.
            ejected @ Health::Ejected { .. } => ejected,
        };
        server.check_invariants();
    }

    /// The attempt was given up for a reason that is not the server's: the client left, or the worker drains.
    pub fn abandoned(&mut self, server: ServerId) {
        let server = self.server_mut(server);
        server.end_attempt();
        if let Health::Trial { until, backoff } = server.health {
            // `until` has passed, so the next choice is the next trial.
            server.health = Health::Ejected { until, backoff };
        }
        server.check_invariants();
    }

    /// A connection that was [`Balancer::connected`] is over.
    pub fn released(&mut self, server: ServerId) {
        let server = self.server_mut(server);
        debug_assert!(server.open > 0, "released more often than connected");
        server.open = server.open.saturating_sub(1);
        server.check_invariants();
    }

    /// Connections of this worker to the server, open or opening.
    #[must_use]
    pub fn connections(&self, server: ServerId) -> usize {
        self.server(server).connections()
    }

    /// Connections of this worker to all servers, open or opening.
    #[must_use]
    pub fn all_connections(&self) -> usize {
        let servers = self.groups.iter().flat_map(|group| &group.servers);
        servers.map(Server::connections).sum()
    }

    /// Whether the server is held for failing: true from the failure that ejects it until a connection to it succeeds,
    /// trials included.
    #[must_use]
    pub fn ejected(&self, server: ServerId) -> bool {
        match self.server(server).health {
            Health::Serving { .. } => false,
            Health::Ejected { .. } | Health::Trial { .. } => true,
        }
    }

    fn server(&self, server: ServerId) -> &Server {
        &self.groups[server.group.0].servers[server.index]
    }

    fn server_mut(&mut self, server: ServerId) -> &mut Server {
        &mut self.groups[server.group.0].servers[server.index]
    }
}

impl Group {
    fn pick(&self, tried: Tried, now: Instant) -> Option<usize> {
        let n = self.servers.len();
        // From whose turn it is; `min_by_key` takes the first of equals, so ties are broken in turn.
        let untried = || {
            (self.next..n)
                .chain(0..self.next)
                .filter(move |&index| !tried.contains(index))
        };
        let mut healthy = untried().filter(|&index| self.servers[index].may_serve(now));
        let picked = match self.balance {
            Balance::RoundRobin => healthy.next(),
            Balance::LeastConnections => healthy.min_by_key(|&index| self.servers[index].connections()),
        };
        picked.or_else(|| untried().min_by_key(|&index| self.servers[index].ejected_until()))
    }
}

impl Server {
    fn connections(&self) -> usize {
        self.opening + self.open
    }

    fn may_serve(&self, now: Instant) -> bool {
        match self.health {
            Health::Serving { .. } => true,
            Health::Ejected { until, .. } => until <= now,
            Health::Trial { .. } => false,
        }
    }

    /// When its ejection ends or ended.
    fn ejected_until(&self) -> Option<Instant> {
        match self.health {
            Health::Serving { .. } => None,
            Health::Ejected { until, .. } | Health::Trial { until, .. } => Some(until),
        }
    }

    fn end_attempt(&mut self) {
        debug_assert!(self.opening > 0, "more attempts ended than were chosen");
        self.opening = self.opening.saturating_sub(1);
    }

    fn check_invariants(&self) {
        match self.health {
            Health::Serving { failures } => debug_assert!(failures < CONNECT_FAILURES_TO_EJECT),
            Health::Ejected { backoff, .. } => debug_assert!((EJECTION_MIN..=EJECTION_MAX).contains(&backoff)),
            Health::Trial { backoff, .. } => {
                debug_assert!((EJECTION_MIN..=EJECTION_MAX).contains(&backoff));
                debug_assert!(self.opening > 0, "a trial needs an attempt");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: UpstreamId = UpstreamId(0);

    fn balancer(balance: Balance, servers: usize) -> Balancer {
        Balancer::new(&[GroupDescription { balance, servers }], 0)
    }

    fn server(index: usize) -> ServerId {
        ServerId { group: GROUP, index }
    }

    /// Any instant will do: only differences matter.
    #[allow(clippy::disallowed_methods, reason = "an instant for tests cannot be made otherwise")]
    fn start() -> Instant {
        Instant::now()
    }

    fn first_choice(balancer: &mut Balancer, now: Instant) -> usize {
        balancer.choose(GROUP, &mut Tried::default(), now).unwrap().index
    }

    /// Sends attempts to the server until it is ejected.
    fn eject(balancer: &mut Balancer, index: usize, now: Instant) {
        for _ in 0..CONNECT_FAILURES_TO_EJECT {
            assert!(!balancer.ejected(server(index)));
            choose_only(balancer, index, now);
            balancer.connect_failed(server(index), now);
        }
        assert!(balancer.ejected(server(index)));
    }

    /// Makes the balancer choose this server by marking all the others as tried.
    fn choose_only(balancer: &mut Balancer, index: usize, now: Instant) {
        let mut tried = Tried(!(1 << index));
        assert_eq!(balancer.choose(GROUP, &mut tried, now), Some(server(index)));
    }

    #[test]
    fn round_robin_goes_in_turn_from_the_offset() {
        let now = start();
        let group = GroupDescription {
            balance: Balance::RoundRobin,
            servers: 3,
        };
        let mut balancer = Balancer::new(&[group], 7);
        let chosen: Vec<_> = (0..5).map(|_| first_choice(&mut balancer, now)).collect();
        assert_eq!(chosen, [1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_connections_counts_attempts_and_breaks_ties_in_turn() {
        let now = start();
        let mut balancer = balancer(Balance::LeastConnections, 3);
        let chosen: Vec<_> = (0..4).map(|_| first_choice(&mut balancer, now)).collect();
        assert_eq!(chosen, [0, 1, 2, 0]);
        balancer.connected(server(2));
        balancer.released(server(2));
        assert_eq!(
            (0..3)
                .map(|index| balancer.connections(server(index)))
                .collect::<Vec<_>>(),
            [2, 1, 0]
        );
        assert_eq!(first_choice(&mut balancer, now), 2);
        // 1 and 2 have one each, and it is the turn of 0, then 1.
        assert_eq!(first_choice(&mut balancer, now), 1);
        assert_eq!(first_choice(&mut balancer, now), 2);
    }

    #[test]
    fn a_connection_tries_every_server_once() {
        let now = start();
        for balance in [Balance::RoundRobin, Balance::LeastConnections] {
            let mut balancer = balancer(balance, 3);
            let mut tried = Tried::default();
            let mut chosen = Vec::new();
            while let Some(server) = balancer.choose(GROUP, &mut tried, now) {
                balancer.connect_failed(server, now);
                chosen.push(server.index);
            }
            assert_eq!(chosen, [0, 1, 2]);
        }
    }

    #[test]
    fn groups_do_not_share_state() {
        let now = start();
        let group = GroupDescription {
            balance: Balance::RoundRobin,
            servers: 2,
        };
        let mut balancer = Balancer::new(&[group, group], 0);
        eject(&mut balancer, 0, now);
        let other = ServerId {
            group: UpstreamId(1),
            index: 0,
        };
        assert!(!balancer.ejected(other));
        assert_eq!(balancer.choose(UpstreamId(1), &mut Tried::default(), now), Some(other));
    }

    #[test]
    fn only_failures_in_a_row_eject() {
        let now = start();
        let mut balancer = balancer(Balance::RoundRobin, 1);
        for fails in [true, true, false, true, true, false] {
            assert_eq!(first_choice(&mut balancer, now), 0);
            if fails {
                balancer.connect_failed(server(0), now);
            } else {
                balancer.connected(server(0));
            }
            assert!(!balancer.ejected(server(0)));
        }
        eject(&mut balancer, 0, now);
    }

    #[test]
    fn an_ejected_server_gets_one_trial_and_the_back_off_doubles_to_its_limit() {
        let mut now = start();
        let mut balancer = balancer(Balance::RoundRobin, 2);
        eject(&mut balancer, 1, now);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let before = now + Duration::from_secs(seconds) - Duration::from_millis(1);
            assert_eq!(
                [0; 4],
                std::array::from_fn(|_| first_choice(&mut balancer, before)),
                "{seconds} s"
            );
            now += Duration::from_secs(seconds);
            let chosen: Vec<_> = (0..4).map(|_| first_choice(&mut balancer, now)).collect();
            assert_eq!(
                chosen.iter().filter(|&&index| index == 1).count(),
                1,
                "{seconds} s: {chosen:?}"
            );
            balancer.connect_failed(server(1), now);
        }
        now += EJECTION_MAX;
        let chosen: Vec<_> = (0..2).map(|_| first_choice(&mut balancer, now)).collect();
        assert!(chosen.contains(&1));
        balancer.connected(server(1));
        assert!(!balancer.ejected(server(1)));
        let chosen: Vec<_> = (0..4).map(|_| first_choice(&mut balancer, now)).collect();
        assert_eq!(chosen.iter().filter(|&&index| index == 1).count(), 2, "{chosen:?}");
        // A success forgets the back-off too.
        eject(&mut balancer, 1, now);
        choose_only(&mut balancer, 1, now + EJECTION_MIN);
        assert!(matches!(
            balancer.server(server(1)).health,
            Health::Trial {
                backoff: EJECTION_MIN,
                ..
            }
        ));
    }

    #[test]
    fn an_abandoned_trial_is_followed_by_another() {
        let mut now = start();
        let mut balancer = balancer(Balance::LeastConnections, 2);
        eject(&mut balancer, 0, now);
        assert_eq!(first_choice(&mut balancer, now), 1);
        now += EJECTION_MIN;
        assert_eq!(first_choice(&mut balancer, now), 0);
        assert_eq!([1, 1], std::array::from_fn(|_| first_choice(&mut balancer, now)));
        balancer.abandoned(server(0));
        assert!(balancer.ejected(server(0)));
        assert_eq!(first_choice(&mut balancer, now), 0);
    }

    #[test]
    fn when_all_are_ejected_the_first_to_return_is_chosen() {
        let now = start();
        let mut balancer = balancer(Balance::LeastConnections, 3);
        let later = now + Duration::from_millis(10);
        eject(&mut balancer, 0, later);
        eject(&mut balancer, 2, now);
        eject(&mut balancer, 1, later);
        let mut tried = Tried::default();
        assert_eq!(balancer.choose(GROUP, &mut tried, later), Some(server(2)));
        // That was no trial: its failure neither lengthens the ejection nor ends it.
        balancer.connect_failed(server(2), later);
        assert!(matches!(
            balancer.server(server(2)).health,
            Health::Ejected {
                backoff: EJECTION_MIN,
                ..
            }
        ));
        let others = [
            balancer.choose(GROUP, &mut tried, later),
            balancer.choose(GROUP, &mut tried, later),
        ];
        assert_eq!(others, [Some(server(0)), Some(server(1))]);
        assert_eq!(balancer.choose(GROUP, &mut tried, later), None);
        balancer.connected(server(0));
        assert!(!balancer.ejected(server(0)));
    }

    #[test]
    fn the_largest_group_fits_the_set_of_tried_servers() {
        let now = start();
        let mut balancer = balancer(Balance::RoundRobin, SERVERS_PER_UPSTREAM_MAX);
        let mut tried = Tried::default();
        let mut chosen = Vec::new();
        while let Some(server) = balancer.choose(GROUP, &mut tried, now) {
            chosen.push(server.index);
        }
        assert_eq!(chosen, (0..SERVERS_PER_UPSTREAM_MAX).collect::<Vec<_>>());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Choose,
        RetryLastFailed,
        Connect(prop::sample::Index),
        Fail(prop::sample::Index),
        Abandon(prop::sample::Index),
        Release(prop::sample::Index),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let index = any::<prop::sample::Index>;
        prop::collection::vec(
            prop_oneof![
                4 => Just(Step::Choose),
                1 => Just(Step::RetryLastFailed),
                2 => index().prop_map(Step::Connect),
                3 => index().prop_map(Step::Fail),
                1 => index().prop_map(Step::Abandon),
                2 => index().prop_map(Step::Release),
                1 => (0_u64..70_000).prop_map(Step::Wait),
            ],
            1..200,
        )
    }

    proptest! {
        /// The model is the lists of attempts and connections themselves.
        #[test]
        fn counts_match_and_no_server_is_tried_twice_or_starved(
            balance in prop::sample::select(vec![Balance::RoundRobin, Balance::LeastConnections]),
            servers in 1_usize..6,
            offset in any::<u16>(),
            steps in steps(),
        ) {
            let mut now = start();
            let mut balancer = Balancer::new(&[GroupDescription { balance, servers }], offset.into());
            let mut opening: Vec<(ServerId, Tried)> = Vec::new();
            let mut open: Vec<ServerId> = Vec::new();
            let mut last_failed: Option<Tried> = None;

            for step in steps {
                match step {
                    Step::Choose | Step::RetryLastFailed => {
                        let retried = matches!(step, Step::RetryLastFailed).then(|| last_failed.take()).flatten();
                        let mut tried = retried.unwrap_or_default();
                        let before = tried;
                        let serving = (0..servers).any(|i| !before.contains(i) && !balancer.ejected(server(i)));
                        match balancer.choose(GROUP, &mut tried, now) {
                            Some(chosen) => {
                                prop_assert!(!before.contains(chosen.index));
                                prop_assert_eq!(tried.0, before.0 | 1 << chosen.index);
                                // With a serving server at hand an ejected one gets its one trial and no more.
                                if serving && balancer.ejected(chosen) {
                                    let health = balancer.server(chosen).health;
                                    let is_trial = matches!(health, Health::Trial { until, .. } if until <= now);
                                    prop_assert!(is_trial);
                                }
                                opening.push((chosen, tried));
                            }
                            None => prop_assert_eq!(before.0.count_ones() as usize, servers),
                        }
                    }
                    Step::Connect(at) if !opening.is_empty() => {
                        let (chosen, _) = opening.swap_remove(at.index(opening.len()));
                        balancer.connected(chosen);
                        prop_assert!(!balancer.ejected(chosen));
                        open.push(chosen);
                    }
                    Step::Fail(at) if !opening.is_empty() => {
                        let (chosen, tried) = opening.swap_remove(at.index(opening.len()));
                        balancer.connect_failed(chosen, now);
                        last_failed = Some(tried);
                    }
                    Step::Abandon(at) if !opening.is_empty() => {
                        balancer.abandoned(opening.swap_remove(at.index(opening.len())).0);
                    }
                    Step::Release(at) if !open.is_empty() => {
                        balancer.released(open.swap_remove(at.index(open.len())));
                    }
                    Step::Connect(_) | Step::Fail(_) | Step::Abandon(_) | Step::Release(_) => {}
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                }
                for index in 0..servers {
                    let expected = opening.iter().filter(|(chosen, _)| chosen.index == index).count()
                        + open.iter().filter(|chosen| chosen.index == index).count();
                    prop_assert_eq!(balancer.connections(server(index)), expected);
                }
            }

            // Once the attempts are over and the longest ejection has passed, every server gets a connection again.
            for (chosen, _) in opening.drain(..) {
                balancer.abandoned(chosen);
            }
            now += EJECTION_MAX;
            let mut seen = vec![false; servers];
            for _ in 0..servers * (open.len() + 2) {
                let chosen = balancer.choose(GROUP, &mut Tried::default(), now).unwrap();
                balancer.connected(chosen);
                seen[chosen.index] = true;
            }
            prop_assert!(seen.iter().all(|&seen| seen), "{:?}", seen);
        }
    }
}
