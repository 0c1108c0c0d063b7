//! Bugs planted on purpose, one at a time, to see that simulation and tests find each (`docs/simulator.md`). They exist under the
//! feature `mutants` only: without it [`active`] is a constant, and what it guards is gone from the program.

/// A planted bug. Its place in the program is where [`active`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A socket is closed while operations are in flight on it.
    CloseWithoutJoin,
    /// Results reach whoever has the slot, not the session that asked.
    NoSlotGeneration,
    /// The rest of a partial send is dropped.
    PartialSendForgotten,
    /// Both sides are read however much is queued.
    NoBackpressure,
    /// A crypto result is taken in whatever the session waits for.
    StaleCryptoResult,
    /// A crypto result is given to another session.
    CryptoResultToWrongSlot,
    /// What was made ahead stays after it was used.
    NonceUsedTwice,
    /// Operations that are more than a batch are never answered.
    FlushForgotten,
    /// Our end is sent before what is queued.
    EarlyHalfClose,
    /// What is left of a cancelled send stays with a session that is over.
    BufferLeakedWhileClosing,
    /// A receive buffer of a session that is over is not given back.
    ReceiveBufferLost,
    /// The server's socket is forgotten, not closed.
    SocketLeakedWhileClosing,
    /// The client is not told that the server's stream ended in order.
    CloseNotifyMissing,
    /// A client's stream that was cut off looks to the server like one that ended.
    TruncationPassedAsEnd,
    /// A session that ends early does so towards the server as if the client had.
    ResetNotPassedOn,
    /// A receive is armed while one is in flight.
    ReceiveArmedTwice,
    /// The handshake has no deadline.
    HandshakeTimeoutNotArmed,
    /// A server that does not answer is waited for.
    ConnectTimeoutNotArmed,
    /// A silent connection lives for ever.
    IdleTimeoutNotArmed,
    /// A peer that reads nothing is waited for.
    WriteTimeoutNotArmed,
    /// A client that does not close is waited for.
    LingerTimeoutNotArmed,
    /// A connection may get as old as it likes.
    ConnectionAgeNotArmed,
    /// The first connect failure ends the session.
    NextServerNotTried,
    /// The listener counts a connection for ever.
    ListenerCountKept,
    /// The balancer counts a connection for ever.
    ServerCountKept,
    /// Bytes after a close_notify are still relayed.
    WriteAfterShutdown,
    /// What a signer had been asked is forgotten when it ends.
    RequestsLostWithSigner,
    /// A request is made again as often as it fails.
    RetriedWithoutEnd,
    /// A token's signature is not verified.
    WrongSignatureBelieved,
    /// A token that does not answer is waited for.
    TokenNotTimed,
    /// A token is sent whatever waits.
    TokenOverfilled,
    /// A listener whose clients wait in a long queue refuses those of others.
    QueueUnfair,
    /// A session that has closed everything does not say so.
    DoneMissing,
    /// A session is done twice.
    DoneTwice,
    /// An accept that failed is never tried again.
    AcceptNotRetried,
    /// A reload lets go of the snapshot that sessions still use.
    SnapshotDroppedEarly,
    /// What was held back to gather more is sent only when more comes.
    HeldBytesForgotten,
    /// Relayed bytes change their order.
    BytesOutOfOrder,
    /// The key of a ticket does not depend on the policy.
    PolicyNotInTicketKey,
    /// An epoch that is over can still be opened.
    OldEpochStaysOpen,
    /// A session is resumed whatever identity it was made with.
    IdentityNotCompared,
    /// A session is resumed whatever revocation lists were in force.
    RevocationNotCompared,
    /// A renewed ticket begins a life of its own.
    RenewalBeginsAnew,
    /// After a full handshake a session is bound to what the client had offered.
    OfferedBindingKept,
    /// When the client's certificates expire is forgotten.
    ClientExpiryNotNoted,
    /// Whatever runs while a call is left changes that call's attempt.
    AttemptNotPutAside,
}

impl Mutant {
    /// Those that the simulation of a worker's requests to tokens has to find.
    pub const OF_REQUESTS: [Mutant; 6] = [
        Mutant::RequestsLostWithSigner,
        Mutant::RetriedWithoutEnd,
        Mutant::WrongSignatureBelieved,
        Mutant::TokenNotTimed,
        Mutant::TokenOverfilled,
        Mutant::QueueUnfair,
    ];

    /// Those that the simulation of whole workers has to find.
    pub const ALL: [Mutant; 32] = [
        Mutant::CloseWithoutJoin,
        Mutant::NoSlotGeneration,
        Mutant::PartialSendForgotten,
        Mutant::NoBackpressure,
        Mutant::StaleCryptoResult,
        Mutant::CryptoResultToWrongSlot,
        Mutant::FlushForgotten,
        Mutant::NonceUsedTwice,
        Mutant::EarlyHalfClose,
        Mutant::BufferLeakedWhileClosing,
        Mutant::ReceiveBufferLost,
        Mutant::SocketLeakedWhileClosing,
        Mutant::CloseNotifyMissing,
        Mutant::TruncationPassedAsEnd,
        Mutant::ResetNotPassedOn,
        Mutant::ReceiveArmedTwice,
        Mutant::HandshakeTimeoutNotArmed,
        Mutant::ConnectTimeoutNotArmed,
        Mutant::IdleTimeoutNotArmed,
        Mutant::WriteTimeoutNotArmed,
        Mutant::LingerTimeoutNotArmed,
        Mutant::ConnectionAgeNotArmed,
        Mutant::NextServerNotTried,
        Mutant::ListenerCountKept,
        Mutant::ServerCountKept,
        Mutant::WriteAfterShutdown,
        Mutant::DoneMissing,
        Mutant::DoneTwice,
        Mutant::AcceptNotRetried,
        Mutant::SnapshotDroppedEarly,
        Mutant::HeldBytesForgotten,
        Mutant::BytesOutOfOrder,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Panics unless each of these bugs, planted, fails the check beside it, which passes without.
#[cfg(all(test, feature = "mutants"))]
pub(crate) fn assert_found(bugs: &[(Mutant, fn())]) {
    // A thread for each: what a check that fails leaves behind ends with it.
    let passes = |check: fn(), planted: Option<Mutant>| {
        let run = move || {
            plant(planted);
            check();
        };
        std::thread::spawn(run).join().is_ok()
    };
    for &(mutant, check) in bugs {
        assert!(passes(check, None), "the check for {mutant:?} fails without it");
        assert!(!passes(check, Some(mutant)), "{mutant:?} is not found");
    }
}

/// Plants a bug for the calling thread, or with `None` takes it out.
#[cfg(feature = "mutants")]
pub fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}

/// Whether this bug is planted.
#[cfg(feature = "mutants")]
#[must_use]
pub fn active(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}

/// Whether this bug is planted: never, without the feature.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn active(_: Mutant) -> bool {
    false
}
