//! The table of every key of the file: name, kind, default, meaning. The reader accepts a key only if it is here, takes
//! its default from here, and `ringlock config schema` prints this table: the three cannot drift apart.

use super::*;
use crate::config::tls::{GROUPS, SUITES};

/// The whole file.
pub(in crate::config) static ROOT: Section = Section {
    doc: "Configuration of Ringlock. Relative paths are relative to this file. Durations are strings of a whole \
          number and a unit: ms, s, m, h or d.",
    keys: &[
        key(
            "global",
            Kind::Section(&GLOBAL),
            Presence::Optional,
            "What concerns the whole process.",
        ),
        key(
            "listener",
            Kind::Sections(&LISTENER),
            Presence::Required,
            "Where clients connect: one or more.",
        ),
        key(
            "identity",
            Kind::Sections(&IDENTITY),
            Presence::Optional,
            "Certificates with their keys.",
        ),
        key(
            "upstream",
            Kind::Sections(&UPSTREAM),
            Presence::Optional,
            "Groups of servers.",
        ),
        key(
            "crypto",
            Kind::Section(&CRYPTO),
            Presence::Optional,
            "How cryptography is computed.",
        ),
        key(
            "keys",
            Kind::Named(&TOKEN),
            Presence::Optional,
            "PKCS#11 tokens, each with a name of its own, to which keys and certificates refer by pkcs11: URIs.",
        ),
        key(
            "tickets",
            Kind::Section(&TICKETS),
            Presence::Optional,
            "What session tickets are sealed with, and how long sessions can be resumed.",
        ),
    ],
};

static TICKETS: Section = Section {
    doc: "What session tickets are sealed with, and how long sessions can be resumed. The same for all listeners.",
    keys: &[
        key(
            "secret",
            Kind::Text(TICKET_SECRET),
            Presence::Default(r#""random""#),
            "Where the keys of tickets come from. random: made at the start, for this process alone. file:PATH: the content of a file, at least 32 random bytes; hosts with the same file accept each other's tickets. When the file is replaced both are accepted for a while.",
        ),
        key(
            "rotation",
            Kind::WholeSeconds { max: TICKET_DAYS_MAX },
            Presence::Default(r#""1h""#),
            "How often the key changes. A ticket is accepted until the end of the period after the one it was issued in.",
        ),
        key(
            "lifetime",
            Kind::WholeSeconds { max: TICKET_DAYS_MAX },
            Presence::Default(r#""12h""#),
            "How long after the full handshake a session can be resumed, however often it was renewed. Concerns session_cache too.",
        ),
    ],
};

static GLOBAL: Section = Section {
    doc: "What concerns the whole process.",
    keys: &[
        key(
            "workers",
            Kind::Workers,
            Presence::Default(r#""auto""#),
            r#"Worker threads: "auto" (one per processor this process may use), a number, or a list of processors such as "0-3,8"."#,
        ),
        key(
            "io",
            Kind::Word(&[word("auto"), word("io_uring"), word("epoll")]),
            Presence::Default(r#""auto""#),
            "How the kernel is asked: auto takes io_uring where the kernel allows it and epoll otherwise.",
        ),
        key(
            "admin",
            Kind::Text(ADMIN_ADDRESS),
            Presence::Optional,
            "Where metrics, health and version are served: an address, or a path for a UNIX socket. Absent: nowhere.",
        ),
        key(
            "drain_timeout",
            Kind::Duration { zero: true },
            Presence::Default(r#""30s""#),
            "How long SIGTERM waits for connections to finish.",
        ),
        key(
            "user",
            Kind::Text("the name of a user"),
            Presence::Optional,
            "User to become after binding.",
        ),
        key(
            "group",
            Kind::Text("the name of a group"),
            Presence::Optional,
            "Main group of this user after binding. Absent: the user's own. Its other groups come with the user.",
        ),
        key(
            "unsafe_keep_capabilities",
            Kind::Flag,
            Presence::Default("false"),
            "Keep what capabilities the process has after binding; without it all are given up.",
        ),
        key(
            "unsafe_dumpable",
            Kind::Flag,
            Presence::Default("false"),
            "Allow core dumps, and debuggers of the same user: both show private keys.",
        ),
        key(
            "unsafe_no_landlock",
            Kind::Flag,
            Presence::Default("false"),
            "Leave all files within reach; without it only the folders of configured files are, where the kernel has Landlock.",
        ),
        key(
            "unsafe_no_seccomp",
            Kind::Flag,
            Presence::Default("false"),
            "Leave all system calls; without it only those are left that a gateway needs.",
        ),
        key(
            "watch_files",
            Kind::Flag,
            Presence::Default("true"),
            "Certificates, keys, CAs and revocation lists are loaded again by themselves when their files change. The configuration file is not.",
        ),
        key(
            "ocsp_dir",
            Kind::Text("the path of a directory"),
            Presence::Optional,
            "Where OCSP responses that were fetched are kept over restarts: a directory of this gateway's own, which its user can write to. Absent: they are fetched anew at each start.",
        ),
        key(
            "ocsp_proxy",
            Kind::Text(OCSP_PROXY),
            Presence::Optional,
            "HTTP proxy through which OCSP responders are asked. Absent: directly.",
        ),
        key(
            "must_staple",
            Kind::Word(&[word("warn"), word("refuse")]),
            Presence::Default(r#""warn""#),
            "What becomes of a certificate that demands an OCSP staple (must-staple) while there is none. warn: it is served, and clients that hold to the demand refuse it. refuse: it is not served.",
        ),
        key("log", Kind::Section(&LOG), Presence::Optional, "Logging."),
    ],
};

static LOG: Section = Section {
    doc: "Logging.",
    keys: &[
        key(
            "format",
            Kind::Word(&[word("text"), word("json")]),
            Presence::Default(r#""text""#),
            "Readable lines, or one JSON object a line.",
        ),
        key(
            "level",
            Kind::Word(&[word("error"), word("warn"), word("info"), word("debug")]),
            Presence::Default(r#""info""#),
            "Least severe level that is logged.",
        ),
        key(
            "file",
            Kind::Text("a path"),
            Presence::Optional,
            "File to write to, reopened on SIGUSR1. Absent: standard error.",
        ),
        key(
            "connections",
            Kind::Word(&[word("off"), word("failures"), word("all")]),
            Presence::Default(r#""all""#),
            "Which connections get a line at their end.",
        ),
        key(
            "connections_sample",
            Kind::Share,
            Presence::Default("1.0"),
            "Share of the successful connections that get a line; failures always do.",
        ),
    ],
};

static LISTENER: Section = Section {
    doc: "Where clients connect.",
    keys: &[
        key(
            "name",
            Kind::Text(NAME),
            Presence::Required,
            "Unique among the listeners; used in logs and metrics.",
        ),
        key(
            "address",
            Kind::TextOrTexts(LISTEN_ADDRESS),
            Presence::Required,
            "IP address and port, or a list of them.",
        ),
        key(
            "mode",
            Kind::Word(&[word("tcp"), later("http")]),
            Presence::Default(r#""tcp""#),
            "What is inside TLS: tcp passes the bytes on as they are.",
        ),
        key(
            "accept_proxy",
            Kind::Flag,
            Presence::Default("false"),
            "Every connection begins with a PROXY protocol header (v1 or v2) of the balancer in front.",
        ),
        key(
            "identities",
            Kind::Texts {
                what: "the name of an [[identity]]",
                empty: false,
            },
            Presence::Required,
            "Identities to choose from by SNI and signature scheme. The first is the default unless strict_sni.",
        ),
        key(
            "strict_sni",
            Kind::Flag,
            Presence::Default("false"),
            "Refuse clients that ask for a name no identity has, or for none.",
        ),
        key(
            "upstream",
            Kind::Text("the name of an [[upstream]]"),
            Presence::Required,
            "Where connections go that no route takes.",
        ),
        key(
            "routes",
            Kind::Sections(&ROUTE),
            Presence::Optional,
            "Upstreams by SNI, and who gets there; an exact name beats a wildcard.",
        ),
        key(
            "connections_max",
            Kind::Count(CONNECTIONS_MAX),
            Presence::Default("100000"),
            "Connections beyond this many are closed at once.",
        ),
        key(
            "handshake_timeout",
            Kind::Duration { zero: false },
            Presence::Default(r#""10s""#),
            "From accept to the end of the handshake, PROXY header included.",
        ),
        key(
            "idle_timeout",
            Kind::Duration { zero: false },
            Presence::Default(r#""5m""#),
            "A connection on which nothing moves either way for this long is closed.",
        ),
        key(
            "write_timeout",
            Kind::Duration { zero: false },
            Presence::Default(r#""30s""#),
            "A peer that takes nothing of what is queued for it for this long is cut off.",
        ),
        key(
            "linger_timeout",
            Kind::Duration { zero: true },
            Presence::Default(r#""5s""#),
            "How long the peer's end of stream is waited for after ours.",
        ),
        key(
            "connection_age_max",
            Kind::Duration { zero: false },
            Presence::Optional,
            "A connection that is open for this long, or up to a tenth less, is closed in order. Absent: none is.",
        ),
        key(
            "congestion_control",
            Kind::Text("the name of a TCP congestion control of this kernel"),
            Presence::Optional,
            "TCP congestion control, such as cubic or bbr. Absent: the system's.",
        ),
        key(
            "tls",
            Kind::Section(&TLS),
            Presence::Optional,
            "TLS towards the clients.",
        ),
        key(
            "client_auth",
            Kind::Section(&CLIENT_AUTH),
            Presence::Optional,
            "Client certificates.",
        ),
    ],
};

static ROUTE: Section = Section {
    doc: "An upstream for some names.",
    keys: &[
        key(
            "sni",
            Kind::TextOrTexts(NAME_PATTERN),
            Presence::Required,
            "Host name, or a wildcard for exactly one leftmost label; or a list of them.",
        ),
        key(
            "upstream",
            Kind::Text("the name of an [[upstream]]"),
            Presence::Required,
            "Where these names go.",
        ),
        key(
            "client_auth",
            Kind::Section(&CLIENT_AUTH),
            Presence::Optional,
            "Client certificates of those who ask for these names. Absent: as the listener has it.",
        ),
    ],
};

const VERSIONS: Kind = Kind::Word(&[word("1.2"), word("1.3")]);

static TLS: Section = Section {
    doc: "TLS towards the clients.",
    keys: &[
        key(
            "min_version",
            VERSIONS,
            Presence::Default(r#""1.2""#),
            "Lowest TLS version.",
        ),
        key(
            "max_version",
            VERSIONS,
            Presence::Default(r#""1.3""#),
            "Highest TLS version.",
        ),
        key(
            "cipher_suites",
            Kind::AutoOrNames(|| SUITES.iter().map(|suite| suite.name).collect()),
            Presence::Default(r#""auto""#),
            "IANA names in order of preference, or auto: the order this machine is fastest at.",
        ),
        key(
            "groups",
            Kind::AutoOrNames(|| GROUPS.iter().map(|group| group.name).collect()),
            Presence::Default(r#""auto""#),
            "Groups for the key exchange in order of preference, or auto.",
        ),
        key(
            "alpn",
            Kind::Texts {
                what: "a protocol of 1 to 255 bytes such as \"h2\"",
                empty: true,
            },
            Presence::Default("[]"),
            "Application protocols in order of preference. Empty: not negotiated.",
        ),
        key(
            "tickets",
            Kind::Flag,
            Presence::Default("true"),
            "Session tickets: what clients need to resume sessions is kept by them, sealed (see [tickets]).",
        ),
        key(
            "session_cache",
            Kind::OffOrSize {
                min: SESSION_CACHE_MIN,
                max: SESSION_CACHE_MAX,
            },
            Presence::Default(r#""off""#),
            "Sessions kept here, in at most so much memory: for clients of TLS 1.2 that take no tickets, and for all clients where tickets is false. Shared by the workers.",
        ),
    ],
};

static CLIENT_AUTH: Section = Section {
    doc: "Client certificates.",
    keys: &[
        key(
            "mode",
            Kind::Word(&[word("off"), word("optional"), word("required")]),
            Presence::Default(r#""off""#),
            "Whether clients are asked for a certificate. With optional they may send none; one that is sent must be right.",
        ),
        key(
            "ca",
            Kind::Text("the path of a PEM file with the CAs whose clients are accepted"),
            Presence::Optional,
            "PEM file with the certificates of the CAs that are trusted. Needed unless mode is off.",
        ),
        key(
            "crl",
            Kind::Texts {
                what: CRL,
                empty: false,
            },
            Presence::Optional,
            "Files with revocation lists, PEM or DER: one of every CA whose signature is on a client's chain. Absent: nothing is revoked.",
        ),
        key(
            "crl_check",
            Kind::Word(&[word("chain"), word("leaf")]),
            Presence::Default(r#""chain""#),
            "Which certificates are looked up in the lists: the whole chain of a client, or only its own.",
        ),
        key(
            "crl_expired",
            Kind::Word(&[word("refuse"), word("accept")]),
            Presence::Default(r#""refuse""#),
            "What becomes of clients of a CA whose list has expired. With accept the old list still counts.",
        ),
        key(
            "verify_depth",
            Kind::UpTo(VERIFY_DEPTH_MAX),
            Presence::Default("6"),
            "Most certificates between a client's own and a trusted CA, as nginx counts ssl_verify_depth.",
        ),
        key(
            "allow",
            Kind::Texts {
                what: CLIENT_NAME,
                empty: false,
            },
            Presence::Optional,
            "Names of which a client's certificate must have one. Absent: every client of the CAs.",
        ),
        key(
            "deny",
            Kind::Texts {
                what: CLIENT_DENIED,
                empty: true,
            },
            Presence::Optional,
            "Clients that are refused whatever else is said: certificates by serial number, keys, and names as in allow.",
        ),
        key(
            "close_revoked",
            Kind::Flag,
            Presence::Default("false"),
            "After a reload, close established connections whose client has been revoked or denied meanwhile.",
        ),
    ],
};

static IDENTITY: Section = Section {
    doc: "A certificate with its key.",
    keys: &[
        key(
            "name",
            Kind::Text(NAME),
            Presence::Required,
            "Unique among the identities; listeners refer to it.",
        ),
        key(
            "certificate",
            Kind::Text(CERTIFICATE),
            Presence::Optional,
            "File with the certificate chain (PEM, DER or PKCS#12), with or without the key; or the URI of a certificate in a token. This or certificates.",
        ),
        key(
            "certificates",
            Kind::Text("the path of a folder with certificates and their keys"),
            Presence::Optional,
            "Folder with any number of certificates and their keys, each pair an identity. Listeners that name this identity have them all, in the order of the files' names.",
        ),
        key(
            "key",
            Kind::Text(PRIVATE_KEY),
            Presence::Optional,
            "File with the private key (PEM, DER or PKCS#12); or the URI (RFC 7512) of a key in a token. Absent: in the file of the certificate.",
        ),
        key(
            "passphrase_file",
            Kind::Text("the path of a file whose first line is the pass phrase"),
            Presence::Optional,
            "File whose first line is the pass phrase of the encrypted key or of the PKCS#12 file. Absent: they have none.",
        ),
        key(
            "key_isolation",
            Kind::Word(&[word("none"), word("process")]),
            Presence::Default(r#""none""#),
            "Where a key from a file is used: in this process, or in the signer process, which alone reads it. A key in a token is always where its token is.",
        ),
        key(
            "ocsp",
            Kind::Text(OCSP),
            Presence::Default(r#""off""#),
            "OCSP stapling. auto: the responder that the certificate names is asked over HTTP, its answer is verified and stapled; a certificate that names none is served without. A path: a DER file with a response that somebody else fetches. off: nobody is asked.",
        ),
    ],
};

static TOKEN: Section = Section {
    doc: "A PKCS#11 token.",
    keys: &[
        key(
            "module",
            Kind::Text("the path of a PKCS#11 module such as \"/usr/lib/softhsm/libsofthsm2.so\""),
            Presence::Required,
            "The vendor's library.",
        ),
        key(
            "token",
            Kind::Text(TOKEN_ATTRIBUTES),
            Presence::Optional,
            "Which token: its label, or a pkcs11: URI with what it is known by. Absent: the one whose label is the name of this table.",
        ),
        key(
            "group",
            Kind::Text(NAME),
            Presence::Optional,
            "Tokens of one group hold the same keys and stand in for each other. A URI names all of them by the group's name.",
        ),
        key(
            "pin_source",
            Kind::Text(PIN_SOURCE),
            Presence::Optional,
            "Where the PIN is: a file, whose first line it is, or a credential of systemd. Absent: the token wants none, or URIs say where.",
        ),
        key(
            "sessions",
            Kind::Count(SESSIONS_MAX),
            Presence::Default("8"),
            "Signatures that the token makes side by side: sessions, each with a thread.",
        ),
        key(
            "isolation",
            Kind::Word(&[word("process"), word("thread")]),
            Presence::Default(r#""process""#),
            "Where the module is loaded: in a signer process, or in this one. The same for all tokens of a module.",
        ),
        key(
            "timeout",
            Kind::Duration { zero: false },
            Presence::Default(r#""2s""#),
            "What a signature may take, waiting included.",
        ),
        key(
            "queue",
            Kind::Count(QUEUE_MAX),
            Presence::Default("1024"),
            "Signatures that may wait, for each worker; beyond that handshakes are refused at once. No more \
             than 8,192 handshakes of a worker wait in all, whatever the tables allow together.",
        ),
        key(
            "when_down",
            Kind::Word(&[word("wait"), word("fail")]),
            Presence::Default(r#""wait""#),
            "While the token is not there handshakes wait until their time is over, or fail at once.",
        ),
        key(
            "keep_alive",
            Kind::Duration { zero: true },
            Presence::Default(r#""20s""#),
            "A session that has been idle for so long is used for something harmless, so that the token does not drop it. \"0s\": never.",
        ),
        key(
            "user",
            Kind::Text("the name of a user"),
            Presence::Optional,
            "User that the signer process becomes. Absent: the gateway's. The same for all tokens of a module.",
        ),
        key(
            "sandbox",
            Kind::Word(&[word("auto"), word("off")]),
            Presence::Default(r#""auto""#),
            "With auto the signer process gives up the rights that no module needs. The same for all tokens of a module.",
        ),
    ],
};

static UPSTREAM: Section = Section {
    doc: "A group of servers.",
    keys: &[
        key(
            "name",
            Kind::Text(NAME),
            Presence::Required,
            "Unique among the upstreams; listeners refer to it.",
        ),
        key(
            "servers",
            Kind::Texts {
                what: SERVER_ADDRESS,
                empty: false,
            },
            Presence::Required,
            "host:port, or unix:/path. Host names are resolved when the file is loaded.",
        ),
        key(
            "balance",
            Kind::Word(&[word("round_robin"), word("least_connections")]),
            Presence::Default(r#""least_connections""#),
            "How a server is chosen.",
        ),
        key(
            "connect_timeout",
            Kind::Duration { zero: false },
            Presence::Default(r#""1s""#),
            "For each server that is tried.",
        ),
        key(
            "connect_on",
            Kind::Word(&[word("handshake"), word("first_byte")]),
            Presence::Default(r#""handshake""#),
            "Connect when the handshake is complete, or (for protocols in which the client speaks first) at the client's first byte.",
        ),
        key(
            "send_proxy",
            Kind::Word(&[word("off"), word("v1"), word("v2"), word("v2_certificate")]),
            Presence::Default(r#""off""#),
            "PROXY protocol header to the server: v1 is text, v2 binary with TLS details, v2_certificate the same with the client's certificate.",
        ),
    ],
};

const MULTIBUFFER: &str = r#""auto", "off", or the path of libcrypto_mb.so"#;

static CRYPTO: Section = Section {
    doc: "How cryptography is computed.",
    keys: &[
        key(
            "multibuffer",
            Kind::Text(MULTIBUFFER),
            Presence::Default(r#""auto""#),
            "Batches of up to eight operations at once, by libcrypto_mb. With auto it is used where it is found and the processor has AVX-512 IFMA; with a path it must be usable.",
        ),
        key(
            "made_ahead",
            Kind::Word(&[word("auto"), word("on"), word("off")]),
            Presence::Default(r#""auto""#),
            "Key pairs and signature set-ups made before they are needed. With auto, set-ups are made ahead only where no hypervisor is seen: a machine that is copied while it runs would use one twice, which gives the key away.",
        ),
    ],
};
