use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;
/// The beginning of an epoch of an hour.
const NOON: u64 = 498_000 * HOUR;
const ROTATION: Duration = Duration::from_secs(HOUR);
const POLICY: PolicyDigest = [1; 32];
const SECRET: &[u8; 32] = b"thirty-two bytes that are secret";
const OTHER: &[u8; 32] = b"thirty-two others that are, too.";

/// A host with this secret.
struct Host {
    tickets: Arc<Tickets>,
    secrets: Secrets,
}

impl Host {
    fn new(secret: &[u8], now: u64) -> Host {
        Host::rotating(secret, ROTATION, now)
    }

    fn rotating(secret: &[u8], rotation: Duration, now: u64) -> Host {
        let tickets = Arc::new(Tickets::new());
        let mut secrets = Secrets::new(Arc::clone(&tickets));
        assert!(secrets.replace(secret, rotation, now).unwrap());
        Host { tickets, secrets }
    }

    fn seal(&self) -> Vec<u8> {
        self.tickets.seal(&POLICY, b"value").unwrap().ticket
    }

    fn open(&self, ticket: &[u8]) -> Result<Vec<u8>, Unopened> {
        self.tickets.open(&POLICY, ticket)
    }
}

fn value() -> Result<Vec<u8>, Unopened> {
    Ok(b"value".to_vec())
}

#[test]
fn without_a_secret_nothing_is_sealed_or_opened() {
    let tickets = Tickets::new();
    assert!(tickets.seal(&POLICY, b"value").is_none());
    let ticket = Host::new(SECRET, NOON).seal();
    assert_eq!(tickets.open(&POLICY, &ticket), Err(Unopened::UnknownSecret));
    assert_eq!(tickets.in_use(), InUse::default());
}

#[test]
fn a_ticket_is_opened_under_its_policy_and_no_other() {
    let host = Host::new(SECRET, NOON);
    let ticket = host.seal();
    assert_eq!(host.open(&ticket), value());
    assert_eq!(host.tickets.open(&[2; 32], &ticket), Err(Unopened::Policy));
    assert_ne!(host.seal(), ticket, "each has a key of its own");
}

/// Each host at its own time. Tickets go from the first to the second.
fn between(now: u64, theirs: u64) -> Result<Vec<u8>, Unopened> {
    let ticket = Host::new(SECRET, now).seal();
    Host::new(SECRET, theirs).open(&ticket)
}

#[test]
fn hosts_with_one_secret_agree_when_their_clocks_are_up_to_an_epoch_apart() {
    assert_eq!(between(NOON, NOON), value());
    assert_eq!(between(NOON, NOON + HOUR), value());
    assert_eq!(between(NOON + HOUR, NOON), value());
    assert_eq!(between(NOON + HOUR - 1, NOON), value());
    for apart in [2, 3, 1000] {
        assert_eq!(between(NOON, NOON + apart * HOUR), Err(Unopened::Epoch));
        assert_eq!(between(NOON + apart * HOUR, NOON), Err(Unopened::Epoch));
    }
}

#[test]
fn hosts_with_other_secrets_or_rotations_do_not_agree() {
    let ticket = Host::new(SECRET, NOON).seal();
    assert_eq!(Host::new(OTHER, NOON).open(&ticket), Err(Unopened::UnknownSecret));
    assert_eq!(
        Host::rotating(SECRET, ROTATION * 2, NOON).open(&ticket),
        Err(Unopened::UnknownSecret)
    );
}

#[test]
fn epochs_are_opened_and_closed_by_the_clock() {
    let mut host = Host::new(SECRET, NOON + 10);
    assert_eq!(host.secrets.advance(NOON + 20).unwrap(), HOUR - 20);
    let first = host.seal();
    assert_eq!(host.tickets.in_use().epoch, 498_000);
    assert_eq!(host.secrets.advance(NOON + HOUR).unwrap(), HOUR);
    assert_eq!(host.tickets.in_use().epoch, 498_001);
    assert_eq!(host.open(&first), value());
    let second = host.seal();
    host.secrets.advance(NOON + 2 * HOUR - 1).unwrap();
    assert_eq!(host.open(&first), value());
    host.secrets.advance(NOON + 2 * HOUR).unwrap();
    assert_eq!(host.open(&first), Err(Unopened::Epoch));
    assert_eq!(host.open(&second), value());
}

#[test]
fn a_ticket_says_until_when_it_is_accepted() {
    let host = Host::new(SECRET, NOON + 10);
    let sealed = host.tickets.seal(&POLICY, b"value").unwrap();
    assert_eq!(sealed.accepted_until, NOON + 2 * HOUR);
}

/// What has been closed cannot be opened any more, not even by the host itself.
#[test]
fn a_clock_that_is_set_back_opens_no_epoch_again() {
    let mut host = Host::new(SECRET, NOON);
    let old = host.seal();
    host.secrets.advance(NOON + 3 * HOUR).unwrap();
    let present = host.seal();
    for now in [NOON + 2 * HOUR, NOON, 0] {
        host.secrets.advance(now).unwrap();
        assert_eq!(host.open(&old), Err(Unopened::Epoch));
        assert_eq!(host.open(&present), value());
        assert_eq!(host.open(&host.seal()), value());
        assert_eq!(host.tickets.in_use().epoch, 498_003);
    }
}

#[test]
fn a_secret_that_was_replaced_is_accepted_until_its_tickets_are_over() {
    let mut host = Host::new(SECRET, NOON);
    let old = host.seal();
    assert!(host.secrets.replace(OTHER, ROTATION, NOON + 10).unwrap());
    assert_eq!(host.tickets.in_use().secrets, 2);
    let last = host.seal();
    assert_eq!(Host::new(SECRET, NOON).open(&last), value(), "in this epoch, as before");
    let new = Host::new(OTHER, NOON).seal();
    for now in [NOON + 10, NOON + HOUR, NOON + 2 * HOUR - 1] {
        host.secrets.advance(now).unwrap();
        for ticket in [&old, &last, &new, &host.seal()] {
            assert_eq!(host.open(ticket), value(), "{now}");
        }
    }
    assert_eq!(host.tickets.in_use().epoch, 498_001);
    assert_eq!(
        Host::new(OTHER, NOON + HOUR).open(&host.seal()),
        value(),
        "from the next epoch on sealed with the new one"
    );
    host.secrets.advance(NOON + 2 * HOUR).unwrap();
    assert_eq!(host.open(&last), Err(Unopened::UnknownSecret));
    assert_eq!(host.tickets.in_use().secrets, 1);
}

/// Whoever has the new one first is understood by those who get it before the epoch ends, and understands them.
#[test]
fn hosts_may_get_a_secret_one_after_the_other() {
    let [mut first, mut second] = [SECRET; 2].map(|secret| Host::new(secret, NOON));
    let agree = |first: &Host, second: &Host| {
        assert_eq!(second.open(&first.seal()), value());
        assert_eq!(first.open(&second.seal()), value());
    };
    first.secrets.replace(OTHER, ROTATION, NOON + 10).unwrap();
    agree(&first, &second);
    second.secrets.replace(OTHER, ROTATION, NOON + HOUR - 1).unwrap();
    agree(&first, &second);
    first.secrets.advance(NOON + HOUR).unwrap();
    agree(&first, &second);
    second.secrets.advance(NOON + HOUR).unwrap();
    agree(&first, &second);
}

/// The old one is used until the first epoch of the new one begins, and its tickets are opened as long as always.
#[test]
fn the_rotation_may_change_with_the_secret() {
    let minute = Duration::from_secs(60);
    for (old, new, begins) in [(ROTATION, minute, NOON + 60), (minute, ROTATION, NOON + HOUR)] {
        let mut host = Host::rotating(SECRET, old, NOON + 10);
        host.secrets.replace(OTHER, new, NOON + 10).unwrap();
        host.secrets.advance(begins - 1).unwrap();
        let last = host.seal();
        assert_eq!(Host::rotating(SECRET, old, begins - 1).open(&last), value());
        host.secrets.advance(begins).unwrap();
        assert_eq!(Host::rotating(OTHER, new, begins).open(&host.seal()), value());
        let closed = ((begins - 1) / old.as_secs() + 2) * old.as_secs();
        host.secrets.advance(closed - 1).unwrap();
        assert_eq!(host.open(&last), value());
        host.secrets.advance(closed).unwrap();
        assert_eq!(host.open(&last), Err(Unopened::UnknownSecret));
    }
}

#[test]
fn the_same_secret_again_changes_nothing_and_the_one_before_may_come_back() {
    let mut host = Host::new(SECRET, NOON);
    let first = host.seal();
    assert!(!host.secrets.replace(SECRET, ROTATION, NOON).unwrap());
    assert!(host.secrets.replace(OTHER, ROTATION, NOON).unwrap());
    let second = Host::new(OTHER, NOON).seal();
    assert_eq!(host.open(&second), value());
    assert!(host.secrets.replace(SECRET, ROTATION, NOON).unwrap());
    let third = host.seal();
    assert_eq!(Host::new(SECRET, NOON).open(&third), value());
    host.secrets.advance(NOON + 2 * HOUR).unwrap();
    assert_eq!(host.open(&second), Err(Unopened::UnknownSecret));
    assert_eq!(host.open(&first), Err(Unopened::Epoch));
    assert_eq!(host.open(&host.seal()), value());
}

#[test]
fn a_few_secrets_are_kept_at_most() {
    let mut host = Host::new(SECRET, NOON);
    let first = host.seal();
    for number in 0..10_u8 {
        host.secrets.replace(&[number; 33], ROTATION, NOON).unwrap();
    }
    assert_eq!(host.tickets.in_use().secrets, crate::limits::TICKET_SECRETS_MAX);
    assert_eq!(host.open(&first), Err(Unopened::UnknownSecret));
}

#[test]
fn nothing_is_shown_of_secrets() {
    let host = Host::new(SECRET, NOON);
    let shown = format!("{:?} {:?}", host.tickets, host.secrets);
    assert_eq!(shown, "Tickets(InUse { epoch: 498000, secrets: 1 }) Secrets(1 in use)");
}

proptest! {
    #[test]
    fn what_was_sealed_is_opened(content: Vec<u8>) {
        let host = Host::new(SECRET, NOON);
        let ticket = host.tickets.seal(&POLICY, &content).unwrap().ticket;
        prop_assert_eq!(host.open(&ticket), Ok(content));
    }

    #[test]
    fn a_ticket_that_was_changed_is_not_opened(position: prop::sample::Index, change in 1..=u8::MAX) {
        let host = Host::new(SECRET, NOON);
        let mut ticket = host.seal();
        *position.get_mut(&mut ticket[..]) ^= change;
        prop_assert!(host.open(&ticket).is_err());
    }

    #[test]
    fn a_ticket_that_is_longer_or_shorter_is_not_opened(cut: prop::sample::Index, more in prop::collection::vec(any::<u8>(), 1..100)) {
        let host = Host::new(SECRET, NOON);
        let ticket = host.seal();
        prop_assert!(host.open(&ticket[..cut.index(ticket.len())]).is_err());
        prop_assert!(host.open(&[&ticket[..], &more].concat()).is_err());
        prop_assert!(host.open(&more).is_err());
    }
}

#[cfg(feature = "mutants")]
#[test]
fn every_planted_mutant_of_tickets_is_found() {
    crate::mutants::assert_found(&[
        (
            Mutant::PolicyNotInTicketKey,
            a_ticket_is_opened_under_its_policy_and_no_other,
        ),
        (Mutant::OldEpochStaysOpen, epochs_are_opened_and_closed_by_the_clock),
    ]);
}
