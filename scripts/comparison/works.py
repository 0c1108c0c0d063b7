"""The works of scripts/compare: what each asks of a server, what the client does, and what one unit of it is."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """What a server has to be told for a work. Works of one shape get the same configuration."""

    certificate: str = "ecdsa"  # ecdsa (P-256) or rsa (2048 bits)
    version: str = "1.3"  # the only TLS version
    group: str = "X25519"  # the only key exchange
    # Open: nobody is asked. Otherwise the kind of key (p256, rsa, ed25519) in the chains of clients, of whom a certificate
    # of clients-ca-KIND.pem is required.
    clients: str = "open"
    connected: bool = True  # to the origin at the end of the handshake, or not before the client sends something
    tickets: bool = False  # off, or on as the server comes
    workers: int = 1  # 1, on the servers' core, or 2, also on the client's

    @property
    def suite(self):
        """The only suite, by its name in TLS 1.2 as OpenSSL has it."""
        return f"ECDHE-{self.certificate.upper()}-AES128-GCM-SHA256"


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    name: str
    unit: str
    about: str
    flags: str  # of ringlock-perf, where CONNECTIONS and IDLE stand for numbers
    origin: str = "discard"  # mode of the origin
    shape: Shape = field(default_factory=Shape)
    kind: str = "cell"  # cell: one run of the client; flood and scaling: several
    # Whether the server can be the limit. Where it is not although it could be, the cell is marked.
    saturates: bool = True
    more_is_better: bool = False

    @property
    def resumes(self):
        return self.flags.startswith("resume")

    @property
    def expected(self):
        """What client and server are to settle on: version, suite, group, kind of handshake, as the client names them."""
        shape, kind = self.shape, "Resumed" if self.resumes else "Full"
        if shape.version == "1.3":
            return ("TLSv1_3", "TLS13_AES_128_GCM_SHA256", shape.group, kind)
        suite = f"TLS_ECDHE_{shape.certificate.upper()}_WITH_AES_128_GCM_SHA256"
        return ("TLSv1_2", suite, "none" if self.resumes else shape.group, kind)


HANDSHAKE = "handshake --connections CONNECTIONS"
RESUME = "resume --connections CONNECTIONS"


def handshake(name, about, **shape):
    return Work(name, "µs/handshake", about, HANDSHAKE, shape=Shape(**shape))


def all_works(flood_certificate):
    """By name, in the order of --help: those that are done without --works, and the others."""
    usual = [
        handshake("handshake", "TLS 1.3, P-256, X25519, with a connection to the origin"),
        Work("exchange", "µs/handshake", "the same and one byte to the origin and back",
             "handshake --exchange --connections CONNECTIONS", "echo"),
        Work("resume", "µs/handshake", "TLS 1.3 tickets, one byte to the origin and back", RESUME, "echo",
             Shape(tickets=True)),
        Work("resume-tls12", "µs/handshake", "the same in TLS 1.2", RESUME, "echo", Shape(version="1.2", tickets=True)),
        Work("echo", "µs/message", "1 KiB to the origin and back", "echo --connections CONNECTIONS", "echo"),
        Work("http", "µs/request", "HTTP/1.1 requests that keep their connections alive",
             "http --path / --connections CONNECTIONS", "http"),
        Work("download", "µs/MB", "bulk data from the origin", "bulk --direction download --connections 16", "send"),
        Work("upload", "µs/MB", "bulk data to the origin", "bulk --direction upload --connections 16"),
        Work("idle", "bytes/connection", "memory of an idle connection", "idle --connections IDLE", saturates=False),
    ]
    more = [
        handshake("handshake-rsa", "RSA-2048 instead of ECDSA P-256", certificate="rsa"),
        handshake("handshake-mlkem", "X25519MLKEM768 instead of X25519", group="X25519MLKEM768"),
        handshake("handshake-tls12", "TLS 1.2", version="1.2"),
        handshake("handshake-mtls", "the client shows a P-256 certificate below an intermediate", clients="p256"),
        handshake("handshake-mtls-rsa", "its chain has RSA-2048 keys", clients="rsa"),
        handshake("handshake-mtls-ed25519", "its chain has Ed25519 keys", clients="ed25519"),
        handshake("handshake-alone", "no connection to the origin", connected=False),
        Work("lone", "µs, p50 latency", "one handshake at a time", "handshake --connections 1", saturates=False),
        Work("flood", "p99 beside / without", "an echo's p99 beside twice as many handshakes as the server can do", HANDSHAKE,
             "echo", Shape(certificate=flood_certificate), kind="flood"),
        Work("resume-scaling", "x, 1 to 2 workers",
             "CPU time of a resumed handshake with one worker and with two, servers and clients on the same two cores", RESUME,
             "echo", Shape(tickets=True, workers=2), kind="scaling", saturates=False, more_is_better=True),
    ]
    return {work.name: work for work in usual}, {work.name: work for work in more}


def worker_cost(record, workers):
    """CPU-µs of a handshake, which two clients have asked for at the same time."""
    halves = [record[f"{client}_{workers}"] for client in ("first", "second")]
    share = sum(half["server"]["cpu_share"] for half in halves) / len(halves)
    return 1e6 * share / sum(half["rate_per_s"] for half in halves)


def cost(record):
    """CPU-µs per unit, bytes per idle connection, µs of latency, how much longer an echo takes beside the flood, or what two
    workers do for each second of CPU that one has."""
    if record["kind"] == "flood":
        return record["beside"]["latency_us"]["p99"] / record["quiet"]["latency_us"]["p99"]
    if record["kind"] == "scaling":
        return 2 * worker_cost(record, 1) / worker_cost(record, 2)
    if record["work"] == "idle":
        return record["report"]["idle"]["memory"]["bytes_per_connection"]
    if record["work"] == "lone":
        return record["report"]["latency_us"]["p50"]
    return record["report"]["server"]["cpu_us_per_unit"]


# The client's reports in a record of each kind; the first is what the shares of CPU are taken from.
REPORTS = {
    "sanity": ("report",),
    "cell": ("report",),
    "flood": ("capacity", "quiet", "beside", "flood"),
    "scaling": ("first_1", "second_1", "first_2", "second_2"),
}


def reports(record):
    return [record[name] for name in REPORTS[record["kind"]]]


def problems(record, work):
    """What makes a record incomparable, as sentences: other TLS parameters, or connections to the origin that are missing
    (handshake-alone: not missing)."""
    who = f"{record['server']}, {record['work']}, round {record['round']}"
    for report in reports(record):
        # The client refuses a run with more than a few full handshakes among resumed ones; the rest is said below the table.
        found = [tuple(one[key] for key in ("version", "suite", "group", "handshake")) for one in report["negotiated"]
                 if not work.resumes or one["handshake"] == "Resumed"]
        if found != [work.expected]:
            yield f"{who}: negotiated {found}, expected {work.expected}"
    # The origin's counts are those of the two workers.
    seen = reports(record)[2:] if record["kind"] == "scaling" else reports(record)
    established = sum(report["totals"]["established"] for report in seen)
    accepted = record["origin"]["accepted"]
    if not work.shape.connected:
        if accepted:
            yield f"{who}: {accepted} of {established} connections reached the origin, expected none"
    elif accepted < 0.99 * established:
        yield f"{who}: {established} connections, but only {accepted} reached the origin"
