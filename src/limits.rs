//! Every bound of the program, with its reason. Nothing that grows lacks one here (invariant 12).

use std::time::Duration;

/// Largest TLS record on the wire: 5 bytes of header, 2^14 of payload, 256 of expansion (RFC 8446 section 5.2), and
/// the 2,048 of expansion that TLS 1.2 allows (RFC 5246 section 6.2.3).
pub const RECORD_BYTES_MAX: usize = 5 + 16 * 1024 + 2048;

/// A ClientHello longer than this is refused. Chromium with X25519MLKEM768 sends about 1.9 KB; 16 KiB leaves room for long ticket lists.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024;

/// A session with more than this is not put into a ticket: a client whose certificate chain is that long does full handshakes. Two such
/// tickets still fit a ClientHello.
pub const TICKET_VALUE_BYTES_MAX: usize = 6 * 1024;

/// Tickets that a client of TLS 1.3 gets at most, when it asks for a number of them (RFC 9149).
pub const TICKETS_PER_HANDSHAKE_MAX: usize = 4;

/// A secret of tickets has at least as many bytes as what is derived from it.
pub const TICKET_SECRET_BYTES_MIN: usize = 32;

/// A file with more is not what was meant.
pub const TICKET_SECRET_BYTES_MAX: usize = 4096;

/// How often the file of a secret is looked at. It is read when it has not changed since the look before.
pub const TICKET_SECRET_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often certificates, keys, CAs and revocation lists are looked at, where the kernel does not tell of changes.
pub const FILES_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// And where it does: it is silent about network and overlay file systems.
pub const FILES_LOOK_INTERVAL_HINTED: Duration = Duration::from_secs(5);

/// A file that has changed is read when it has stayed as it is for so long: it may be half-written.
pub const FILES_SETTLE: Duration = Duration::from_millis(250);

/// Changed files that cannot be used, or do not fit each other, are an alarm after this: more of them may be about to be replaced.
pub const FILES_ALARM_AFTER: Duration = Duration::from_secs(10);

/// What is still wrong then is tried again so often, even if the files stay as they are.
pub const FILES_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// What the kernel tells of folders is heard this often at most.
pub const FILES_HINTS_INTERVAL: Duration = Duration::from_millis(50);

/// Links followed on the way to one file; the kernel's own bound is 40.
pub const SYMLINKS_MAX: usize = 40;

/// Snapshots whose connections are shown one by one; those of older ones are shown together.
pub const EPOCHS_SHOWN_MAX: usize = 16;

/// Secrets whose tickets are opened: the present one, and those before it until their epochs are over.
pub const TICKET_SECRETS_MAX: usize = 4;

/// Bytes queued towards one side beyond which the other side is not read: the backpressure.
/// Bytes per send were the largest lever on throughput: 2.6 times between 16 and 256 KiB.
pub const HIGH_WATER_BYTES: usize = 256 * 1024;

/// What one receive may bring; two of them fill a send. Measured: with 64 KiB bulk transfers cost 10 % more.
pub const RECEIVE_BYTES_MAX: usize = 128 * 1024;

/// Receives of this size serve connections that carry little at a time.
pub const RECEIVE_SMALL_BYTES: usize = 4 * 1024;

/// A PROXY v2 header with more than this is refused, and none is sent: 16 bytes, addresses, and TLVs (HAProxy sends a few hundred). nginx takes
/// as many; HAProxy takes 16 KiB. A client's certificate that would make it longer is left out.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;

/// KeyUpdate requests accepted in one second before the connection ends. HAProxy's limit is 100; a well-behaved
/// peer sends one per 2^24 records.
pub const KEY_UPDATES_PER_SECOND_MAX: u32 = 16;

/// When a turn of a worker's loop has taken so long, no more operations of handshakes are begun in it: a flood of handshakes holds
/// up established traffic for this, and for one call more (100 µs to 1 ms).
pub const TURN_BUDGET: Duration = Duration::from_micros(100);

/// Sessions looked at in one turn after a reload, for clients that it revokes: 5 µs for each that has to be, within [`TURN_BUDGET`].
pub const SESSIONS_LOOKED_AT_PER_TURN: usize = 256;

/// Calls of operations in one turn, however quick they are.
pub const CALLS_PER_TURN: usize = 4;

/// Completions that a turn takes. Those of a flood are taken quickly and let others' through.
pub const COMPLETIONS_PER_TURN: usize = 256;

/// Operations that share a call: the lanes of AVX-512.
pub const LANES: usize = 8;

/// Stack of a call that can be suspended. Used at most by a release build: 12 KiB, with ML-KEM after a HelloRetryRequest or with six
/// intermediates of a client 28 KiB; by a debug build 77 KiB. Signatures are verified elsewhere: ML-DSA-87 would take 77 KiB.
pub const SUSPENDED_STACK_BYTES: usize = 128 * 1024;

/// What lies below it and cannot be touched: more than any frame of C code is long.
pub const SUSPENDED_STACK_GUARD_BYTES: usize = 64 * 1024;

/// Calls of one worker that are suspended at a time: eight queues of tokens by their default length. Beyond that they compute inline what they ask for, and what
/// only a token could answer is refused. So it is when the kernel has no more mappings for their stacks (vm.max_map_count).
pub const SUSPENDED_CALLS_MAX: usize = 8192;

/// Stacks that a worker keeps for the next calls; what comes back beyond that goes to the kernel.
pub const SUSPENDED_STACKS_KEEP: usize = 64;

/// How often signers are looked after: a signer that ends is started again within this.
pub const CUSTODY_INTERVAL: Duration = Duration::from_millis(20);

/// A token that has said that it cannot be used is asked again after this long.
pub const TOKEN_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Longest an unanswered end of stream is waited for, and what is read and dropped meanwhile.
pub const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// How long a worker that could not accept (EMFILE, ENFILE, ENOBUFS, ENOMEM) waits before it tries again.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Connection records that wait to be written as log lines, per worker. When full, records are dropped and counted.
pub const LOG_QUEUE_RECORDS: usize = 8192;

/// Lines that wait for the log file or standard error, about 5 MiB. When full, lines are dropped and counted.
pub const LOG_LINES: usize = 16 * 1024;

/// How often the workers' records are collected. Workers wake nobody: a wake-up costs the worker 15 to 30 µs.
pub const LOG_COLLECT_INTERVAL: Duration = Duration::from_millis(50);

/// Connections the admin server holds at once; more wait in the kernel.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// What an admin request may take, from accept to the last byte of the answer.
pub const ADMIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What the drawing of a profile may take while somebody waits for it: all functions get their names, which in a debug build takes seconds.
pub const PROFILE_DRAWING_TIME_MAX: Duration = Duration::from_secs(60);

/// The longest profile: what its samples take of memory and disk is bounded by this.
pub const PROFILE_TIME_MAX: Duration = Duration::from_secs(300);

/// Names and certificates that `/certs` shows in all, some 100 bytes each; those that end last are left out.
pub const CERTIFICATE_NAMES_SHOWN_MAX: usize = 100_000;

/// What `/certs` tells at most of why a reload has failed.
pub const RELOAD_ERROR_BYTES_MAX: usize = 16 * 1024;

/// Lines that the log gets at once of certificates that near their end: many are issued, and so end, together.
pub const EXPIRY_LINES_MAX: usize = 100;

/// Longest request head the admin server reads: the least that hyper allows.
pub const ADMIN_HEAD_BYTES_MAX: usize = 8 * 1024;

/// Connections the demo's origin holds at once; more wait in the kernel. Below the usual limit of 1,024 descriptors, of
/// which the gateway's own two per connection leave this.
pub const DEMO_CONNECTIONS_MAX: usize = 256;

/// Largest answer of the demo's origin, in bytes. It is made while it is sent.
pub const DEMO_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Connections the kernel holds for us before accept.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Servers in one upstream group: each session notes in one 128-bit word which of them it has tried.
pub const SERVERS_PER_UPSTREAM_MAX: usize = 128;

/// Connect failures in a row after which a server is ejected. One or two happen when it restarts or its backlog is
/// full.
pub const CONNECT_FAILURES_TO_EJECT: u32 = 3;

/// How long a server is ejected at first; doubles with every trial connection that fails.
pub const EJECTION_MIN: Duration = Duration::from_secs(1);

/// Longest ejection: a server that comes back is found again within this time.
pub const EJECTION_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(
    SERVERS_PER_UPSTREAM_MAX <= u128::BITS as usize,
    "Tried has one bit for each server"
);
const _: () = assert!(
    CONNECT_FAILURES_TO_EJECT > 0,
    "a server is not ejected without a failure"
);
const _: () = assert!(
    HIGH_WATER_BYTES >= RECEIVE_BYTES_MAX,
    "one receive must fit below the high-water mark"
);
const _: () = assert!(
    CLIENT_HELLO_BYTES_MAX <= RECEIVE_BYTES_MAX,
    "a ClientHello fits one receive"
);

/// Size classes of send buffers: a handshake flight or a small message; one full record; the high-water mark and one receive,
/// either sealed (at most 29 bytes for each 16 KiB), or with the record that this receive completes.
pub const POOL_CLASS_BYTES: [usize; 3] = [4 * 1024, 24 * 1024, 408 * 1024];

const _: () = assert!(
    POOL_CLASS_BYTES[2] >= HIGH_WATER_BYTES + RECEIVE_BYTES_MAX + RECORD_BYTES_MAX,
    "what one side may have queued fits one buffer"
);

/// Free buffers a worker keeps of each class (at most 13 MiB); what comes back beyond that goes to the allocator.
pub const POOL_CLASS_KEEP: [usize; 3] = [256, 64, 24];

/// Large receive buffers of a worker (512 KiB). A completion gives its buffer back within one turn, so these bound a turn, not the
/// number of connections. More of them no longer fit the processor's cache: with 2 MiB bulk transfers cost 20 % more.
pub const RECEIVE_LARGE_BUFFERS: usize = 4;

/// Small receive buffers of a worker (512 KiB): as many small messages are taken in one turn.
pub const RECEIVE_SMALL_BUFFERS: usize = 128;

/// Connections accepted from one listener in one turn, so that a flood does not starve what is established.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Events taken from epoll in one turn.
pub const EPOLL_EVENTS: usize = 512;

/// Submission queue of a ring; when full, it is submitted early.
pub const URING_ENTRIES: u32 = 1024;

/// Completion queue of a ring. The kernel keeps what does not fit.
pub const URING_COMPLETIONS: u32 = 8192;

const _: () = assert!(
    RECEIVE_LARGE_BUFFERS.is_power_of_two() && RECEIVE_SMALL_BUFFERS.is_power_of_two(),
    "the kernel's buffer rings have a power of two of entries"
);

/// Of each kind, so many are made ahead by a worker: as many as arrive while it is busy with something else.
pub const MADE_AHEAD_MAX: usize = 64;

/// Exchanges of one group that aws-lc has begun ahead on a worker.
pub const MADE_AHEAD_STARTED_MAX: usize = 16;

/// What was made ahead is thrown away no later than this.
pub const MADE_AHEAD_AGE_MAX: Duration = Duration::from_secs(60);

/// A certificate or key file larger than this is refused: a chain of RSA-4096 certificates has about 10 KB.
pub const CERTIFICATE_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A longer answer of an OCSP responder is refused: one with a certificate of the responder has about 2 KB, with ML-DSA-87 some 15.
pub const OCSP_RESPONSE_BYTES_MAX: usize = 32 * 1024;

/// Certificates in an OCSP answer that are tried for its signature: a responder sends its own, and perhaps its CA's.
pub const OCSP_RESPONDER_CERTIFICATES_MAX: usize = 4;

/// Responders that are asked at the same time.
pub const OCSP_FETCHES_MAX: usize = 8;

/// How often it is seen which have answered: with [`OCSP_FETCHES_MAX`] it bounds the fetches of a second.
pub const OCSP_FETCH_INTERVAL: Duration = Duration::from_millis(50);

/// What an answer may take, from the name's look-up to its last byte, redirects included.
pub const OCSP_FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// And the connection to one of a responder's addresses: there may be others.
pub const OCSP_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest head of a responder's HTTP response.
pub const OCSP_HEAD_BYTES_MAX: usize = 16 * 1024;

/// Redirects that are followed: to another name, and perhaps another path there.
pub const OCSP_REDIRECTS_MAX: usize = 3;

/// How long after a failure a responder is asked again at first; doubles with each further one.
pub const OCSP_RETRY_SECONDS_MIN: i64 = 2;

/// Longest pause between attempts: a responder that comes back is found again within this time.
pub const OCSP_RETRY_SECONDS_MAX: i64 = 3600;

/// However long an answer may be believed, the responder is asked again after this: who runs the gateway hears of a revocation.
pub const OCSP_REFRESH_SECONDS_MAX: i64 = 24 * 3600;

/// A staple is not sent any more so long before its end: it travels, and clocks differ.
pub const OCSP_STAPLE_MARGIN_SECONDS: i64 = 10;

/// Files of responses that are of no certificate in use are removed when they are as old: hardly any response is believed as long.
pub const OCSP_FILE_AGE_MAX: Duration = Duration::from_secs(14 * 24 * 3600);

/// How far the clock of an OCSP responder may be ahead of ours.
pub const OCSP_CLOCK_TOLERANCE_SECONDS: i64 = 300;

/// Certificates of one folder; a larger one is the wrong path. Each takes some 10 KB of memory.
pub const IDENTITIES_PER_FOLDER_MAX: usize = 100_000;

/// Problems, and warnings of one kind, that are told of one folder: the others are counted.
pub const FOLDER_MESSAGES_MAX: usize = 10;

/// CAs of clients whose names take more than this are not named to the client: the list has 16 bits for its length, and a
/// handshake that names hundreds of them is slow. The client then chooses by itself.
pub const CLIENT_CA_NAMES_BYTES_MAX: usize = 16 * 1024;

/// Certificates behind a client's own that are tried, each once; those behind them are as if they were not sent. A right chain has at most
/// six. Where CAs have signed each other there are more paths than anybody can try: sixty kept a worker for half a minute (debug build).
pub const CLIENT_INTERMEDIATES_MAX: usize = 16;

/// A file of revocation lists larger than this is refused: it has 1,700,000 revoked certificates, which take eight times the memory when
/// they are loaded.
pub const CRL_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Names of a client's certificate that a log line repeats, and the characters of each: others have written them.
pub const CLIENT_NAMES_SHOWN_MAX: usize = 4;

/// See [`CLIENT_NAMES_SHOWN_MAX`].
pub const CLIENT_NAME_CHARS_SHOWN_MAX: usize = 64;

/// The subject of a client's certificate is kept while its connection lasts, for the log and the PROXY header, if it has no more bytes (DER): a
/// name has some 50. Of a longer one only the serial number is.
pub const CLIENT_SUBJECT_BYTES_MAX: usize = 1024;

/// Characters of it that a log line repeats.
pub const CLIENT_SUBJECT_CHARS_SHOWN_MAX: usize = 256;

/// Handshake bytes that wait for the rest of their message: rustls takes messages of 64 KiB at most.
pub const HANDSHAKE_BYTES_MAX: usize = 80 * 1024;

/// A session larger than this is not cached. One without client certificates has some 200 bytes, and one with a chain of three
/// RSA-4096 certificates about 6 KiB.
pub const SESSION_BYTES_MAX: usize = 16 * 1024;

/// One lock of a session cache guards so much: a few thousand sessions, so that a table that grows holds up others for some tens of microseconds.
pub const SESSION_SHARD_BYTES: usize = 1024 * 1024;

/// Of a session cache, what sessions may take that were resumed from. The rest is there for new ones, however many clients return.
pub const SESSION_PROTECTED_PERCENT: usize = 80;

const _: () = assert!(
    SESSION_PROTECTED_PERCENT < 100,
    "a client that comes for the first time can return"
);
