"""Medians, spreads and winners, and the tables that scripts/compare prints and docs/benchmarks.md has."""

from statistics import median

from comparison.works import cost, reports, worker_cost

# Below this share of the core that it may have, a server was not what limited a work that can saturate it.
SATURATED = 0.9
# A flood that asked for twice the capacity and got less than this is said to have been weaker.
FLOOD_LEAST = 1.9
CRYPTO = ("X25519", "ECDSA P-256")
BEST, IDLE = "*", "~"
LEGEND = (f"{BEST} the best of its row; {IDLE} the server was not the limit; in parentheses Ringlock / peer: below 1 Ringlock is "
          "cheaper")


def figure(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Result:
    """What the records of all rounds say."""

    def __init__(self, document, works):
        self.facts = document["facts"]
        self.servers = document["servers"]
        self.works = works
        self.records = document["records"]
        self.cells = [record for record in self.records if record["kind"] in ("cell", "flood", "scaling")]
        self.names = [server["name"] for server in self.servers]
        measured = {record["work"] for record in self.cells}
        # A row of dashes says that nobody can do it; the reasons are below the table.
        asked = measured | {record["work"] for record in self.of_kind("left_out")}
        self.rows = [name for name in works if name in asked]
        self.summary = {}
        for work in self.rows:
            for server in self.names:
                own = [record for record in self.cells if (record["work"], record["server"]) == (work, server)]
                if own:
                    self.summary[work, server] = self.summarise(own)

    def of_kind(self, kind):
        return [record for record in self.records if record["kind"] == kind]

    def summarise(self, records):
        work = self.works[records[0]["work"]]
        costs = [cost(record) for record in records]
        # A flood's shares and rate are those of the run that found the capacity; those of a scaling are in its own table.
        runs = [reports(record)[0] for record in records]
        share = median(run["server"]["cpu_share"] for run in runs)
        warnings = list(dict.fromkeys(warning for run in runs for warning in run.get("warnings", ())))
        return {
            "median": median(costs),
            "least": min(costs),
            "most": max(costs),
            "rounds": len(costs),
            "rate_per_s": median(run["rate_per_s"] for run in runs),
            "server_cpu_share": share,
            "client_cpu_share": median(run["client"]["cpu_share"] for run in runs),
            "saturated": not work.saturates or share >= SATURATED * self.facts["server_cpu_share_max"],
            "warnings": warnings,
        }

    def best(self, work):
        """The server with the best median of a row."""
        medians = {server: self.summary[work, server]["median"] for server in self.names if (work, server) in self.summary}
        choose = max if self.works[work].more_is_better else min
        return choose(medians, key=medians.get) if len(medians) > 1 else None

    def ratio(self, work, server):
        """Ringlock's share of a peer's cost."""
        own, one = self.summary.get((work, "ringlock")), self.summary.get((work, server))
        if not own or not one or server == "ringlock" or one["median"] <= 0 or self.works[work].kind != "cell":
            return None
        return own["median"] / one["median"]

    def cell(self, work, server):
        one = self.summary.get((work, server))
        if not one:
            return "–"
        marks = (BEST if server == self.best(work) else "") + ("" if one["saturated"] else IDLE)
        ratio = self.ratio(work, server)
        return marks + figure(one["median"]) + (f" ({ratio:.2f})" if ratio is not None else "")

    def spread(self, work, server):
        one = self.summary.get((work, server))
        if not one:
            return "–"
        return (f"{figure(one['least'])}-{figure(one['most'])} {one['server_cpu_share']:.0%} "
                f"{one['client_cpu_share']:.0%}")

    def main_table(self):
        heading = ["work", "unit", *self.names]
        libraries = ["", "", *(server["library"] for server in self.servers)]
        rows = [[work, self.works[work].unit, *(self.cell(work, server) for server in self.names)] for work in self.rows]
        return heading, libraries, rows

    def spread_table(self):
        return (["work", *self.names],
                [[work, *(self.spread(work, server) for server in self.names)] for work in self.rows])

    def flood_table(self):
        """Latencies of the echo alone and beside the flood, with what the flood was; medians over the rounds."""
        rows, notes = [], []
        for server, own in self.by_server("flood"):
            def middle(read):
                return median(read(record) for record in own)

            capacity = middle(lambda record: record["capacity"]["rate_per_s"])
            begun = middle(lambda record: record["flood"]["open_loop"]["started"]
                           / (record["flood"]["open_loop"]["due"] / record["flood"]["open_loop"]["rate_per_s"]))
            done = middle(lambda record: record["flood"]["rate_per_s"])
            failed = middle(lambda record: sum(error["count"] for error in record["flood"]["errors"].values()))
            latencies = []
            for quantile in ("p50", "p99", "p999"):
                quiet = middle(lambda record: record["quiet"]["latency_us"][quantile])
                beside = middle(lambda record: record["beside"]["latency_us"][quantile])
                latencies.append(f"{figure(quiet)} -> {figure(beside)} ({beside / quiet:.1f})")
            rows.append([server, figure(capacity), f"{figure(begun)} ({begun / capacity:.1f} x)", figure(done),
                         figure(failed), *latencies])
            if begun < FLOOD_LEAST * capacity:
                busy = middle(lambda record: record["flood"]["client"]["cpu_share"])
                waiting = own[0]["flood"]["connections"]
                notes.append(f"{server}: the flood was {begun / capacity:.1f} x the capacity, not 2: {waiting:,} handshakes "
                             f"were waiting, which is the bound, or its client had no more CPU ({busy:.0%} of a core)")
        return ["server", "handshakes/s", "flood begun/s", "done/s", "failed", "p50", "p99", "p99.9"], rows, notes

    def scaling_table(self):
        """What a handshake costs with one worker and with two; medians over the rounds."""
        rows = []
        for server, own in self.by_server("scaling"):
            def middle(read, workers):
                return median(read(record, workers) for record in own)

            def rate(record, workers):
                return sum(record[f"{client}_{workers}"]["rate_per_s"] for client in ("first", "second"))

            def share(record, workers):
                return record[f"first_{workers}"]["server"]["cpu_share"]

            rows.append([server, *(f"{middle(worker_cost, count):.1f}" for count in (1, 2)),
                         f"{median(cost(record) for record in own):.2f}",
                         *(f"{middle(rate, count):,.0f} ({middle(share, count):.0%})" for count in (1, 2))])
        return ["server", "CPU-µs with 1", "with 2", "scaling", "handshakes/s with 1 (CPU)", "with 2"], rows

    def by_server(self, kind):
        for server in self.names:
            own = [record for record in self.of_kind(kind) if record["server"] == server]
            if own:
                yield server, own

    def notes(self):
        """Why cells are missing, and what else has to be known of those that are there. Servers with one reason share a line."""
        reasons = {}
        for record in self.of_kind("left_out"):
            reasons.setdefault((record["work"], record["reason"]), []).append(record["server"])
        for (work, reason), servers in reasons.items():
            yield f"{work}, {', '.join(servers)}: left out, {reason}"
        for record in self.cells:
            # A run of resumptions may have a few full handshakes in its window.
            if self.works[record["work"]].resumes:
                full = sum(report["handshakes"]["full"] for report in reports(record))
                done = full + sum(report["handshakes"]["resumed"] for report in reports(record))
                if full:
                    yield (f"{record['server']}, {record['work']}, round {record['round']}: {full} of {done} handshakes were "
                           f"not resumed ({full / done:.2%})")
        warned = sum(bool(one["warnings"]) for one in self.summary.values())
        if warned:
            yield (f"the client has warnings for {warned} of {len(self.summary)} cells, in --json and --html: about rates "
                   "and latencies, as client and origin share a core here; CPU time per unit is hardly touched by that")

    def sanity(self):
        """What each server settled on, and how many tickets it sent although tickets were off."""
        for record in self.of_kind("sanity"):
            negotiated = record["report"]["negotiated"][0]
            yield record["server"], (f"{negotiated['version']} {negotiated['suite']} {negotiated['group']}, "
                                     f"{record['tickets']} session tickets")

    def crypto(self):
        """µs of X25519 and ECDSA P-256, inline and as one of a full batch, before and after: no round is to be trusted when
        it moved."""
        for record in self.of_kind("crypto"):
            if not record["report"]:
                yield f"{record['work']:6} not available: no `ringlock hw --json`"
                continue
            found = {operation["name"]: operation for operation in record["report"]["operations"]}
            parts = []
            for name in CRYPTO:
                batch = found[name]["batch"]
                together = f"{batch['operation_us']:.2f}" if batch else "none"
                parts.append(f"{name} {found[name]['alone_us']:.2f} / {together}")
            yield f"{record['work']:6} {', '.join(parts)}"


CRYPTO_TITLE = "Cryptography of this Ringlock before and after, µs inline / in a batch of 8"
MAIN_TITLE = ("Server CPU time per unit (idle: memory; lone: latency of one handshake at a time; flood: ratio of latencies; "
              "resume-scaling: two workers' work to one's, for the same CPU time each), median over the rounds.")
SPREAD_TITLE = "Least to most over the rounds; share of a CPU that the server was busy, and the client"
FLOOD_TITLE = ("Echo of 1 KiB, 1,000/s over 64 connections, µs: without -> beside a flood of 2 x the handshakes that the "
               "server can do")
SCALING_TITLE = "Resumed handshakes, servers and clients on the same two cores: one worker -> two"


def aligned(rows):
    """Columns of text, the first two to the left where the second is text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = 2 if rows[0][1:2] == ["unit"] else 1
    return "\n".join("  ".join(text.ljust(width) if at < left else text.rjust(width)
                               for at, (text, width) in enumerate(zip(row, widths))).rstrip() for row in rows)


def as_text(result):
    """Everything, for the terminal."""
    parts = ["\n".join(f"{name:11} {value}" for name, value in result.facts["lines"].items())]
    parts.append("\n".join(f"{server['name']:14} {server['version']}" for server in result.servers))
    parts.append("\n".join(f"{server:14} {line}" for server, line in result.sanity()))
    heading, libraries, rows = result.main_table()
    parts += [f"{MAIN_TITLE}\n{LEGEND}", aligned([heading, libraries, *rows])]
    heading, rows = result.spread_table()
    parts += [SPREAD_TITLE, aligned([heading, *rows])]
    notes = "\n".join(f"– {note}" for note in result.notes())
    parts += [notes] if notes else []
    if result.of_kind("scaling"):
        heading, rows = result.scaling_table()
        parts += [SCALING_TITLE, aligned([heading, *rows])]
    if result.of_kind("flood"):
        heading, rows, notes = result.flood_table()
        parts += [FLOOD_TITLE, aligned([heading, *rows]), *(["\n".join(notes)] if notes else [])]
    crypto = "\n".join(result.crypto())
    parts += [f"{CRYPTO_TITLE}\n{crypto}"] if crypto else []
    return "\n\n".join(parts)
