"""The measurements of a comparison: what is done with one server for one work. Each makes a record."""

import re
import subprocess
import time

from comparison.lab import milliseconds, parsed, sockets
from comparison.place import Failed, cpu_list, say
from comparison.works import Shape

# The echo beside a flood: 1 to 2 % of a server's core.
PROBE_CONNECTIONS = 64
PROBE = ["echo", "--rate", 1000, "--connections", PROBE_CONNECTIONS, "--insecure"]
# Handshakes of the flood that may wait for the server at once; both sides have descriptors for so many.
FLOOD_WAITING = 6000
FLOOD_SETTLES = 2000  # milliseconds


def check_server(lab, server):
    """Certificate and name are checked here; later runs save the client that work."""
    lab.shape = Shape()
    lab.start_origin("echo")
    lab.start_server(server)
    report = lab.drive("report", ["handshake", "--exchange", "--ca", lab.place.work / "ca.pem", "--connections", 1,
                                  "--count", 5, "--warmup", "0s"])
    # Tickets come with the handshake: a moment, and the end of the input ends the client.
    with subprocess.Popen(["timeout", "5", "openssl", "s_client", "-connect", f"127.0.0.1:{lab.place.port}", "-tls1_3"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as client:
        time.sleep(0.3)
        said, _ = client.communicate()
    tickets = said.count("Post-Handshake New Session Ticket")
    return {"kind": "sanity", "server": server.name, "work": "exchange", "round": 0, "tickets": tickets, "report": report,
            "origin": lab.stop()}


def reason_to_leave_out(lab, server, work):
    """Why a server cannot do a work, by its nature or because its library does not know the key exchange."""
    reason = server.cannot(work)
    if reason:
        return reason
    lab.shape = work.shape
    said = server.complaints(lab.place, lab.configure(server), work.shape)
    complaint = re.search(rf"[^] :}}\n][^]:}}\n]*{work.shape.group}[\"')]*( failed)?", said)
    return f"it has no {work.shape.group} ({complaint[0].strip()})" if complaint else None


def run_cell(lab, server, work):
    lab.shape = work.shape
    lab.start_origin(work.origin)
    lab.start_server(server, contend=lab.options.contend)
    numbers = {"CONNECTIONS": lab.options.connections, "IDLE": lab.options.idle}
    flags = [numbers.get(word, word) for word in work.flags.split()]
    # Idle connections have no window.
    window = [] if work.name == "idle" else lab.window
    report = lab.drive("report", [*flags, "--insecure", *lab.server_flags, *window])
    return {"report": report, "origin": lab.stop()}


def run_flood(lab, server, work):
    """How many handshakes the server can do; the echo alone; the echo while twice as many handshakes are asked for."""
    lab.shape = work.shape
    lab.start_origin(work.origin, priority=1)
    lab.start_server(server, contend=lab.options.contend)
    capacity = lab.drive("capacity", ["handshake", "--insecure", "--connections", lab.options.connections, *lab.server_flags,
                                      *lab.window])
    quiet = lab.drive("quiet", [*PROBE, *lab.window], priority=2)

    # The echo's connections are there before the flood, and its window begins and ends inside of it.
    duration, warmup = milliseconds(lab.options.duration), milliseconds(lab.options.warmup)
    echo = lab.begin("beside", [*PROBE, "--duration", f"{duration}ms", "--warmup", f"{warmup + FLOOD_SETTLES}ms"], priority=2)
    while len(sockets("state", "established", f"sport = :{lab.place.port}")) < PROBE_CONNECTIONS:
        if echo.poll() is not None:
            raise Failed("the echo has ended before the flood")
        time.sleep(0.05)
    flood = lab.begin("flood", ["handshake", "--insecure", "--rate", round(2 * capacity["rate_per_s"]),
                                "--connections", FLOOD_WAITING, "--timeout", "1m", "--errors-max", 1_000_000,
                                "--duration", f"{duration + FLOOD_SETTLES + 500}ms", "--warmup", lab.options.warmup])
    # Some of its handshakes may fail. The table says how many.
    flood = lab.finish("flood", flood, may_fail=True)
    beside = lab.finish("beside", echo)
    return {"capacity": capacity, "quiet": quiet, "beside": beside, "flood": flood, "origin": lab.stop()}


def run_scaling(lab, server, work):
    """The CPU time of a resumed handshake with one worker and with two. Both times a client on each of the two cores, and the
    origin on both, so that nothing differs for a worker but that there is another; in flight as many for each worker. Clients
    and origin go first, or they would be the limit sooner with two workers than with one."""
    record = {}
    place = lab.place
    for workers in (1, 2):
        lab.shape = Shape(tickets=work.shape.tickets, workers=workers)
        lab.origin_cpus = [place.server_cpu, place.client_cpu]
        lab.start_origin(work.origin)
        lab.origin_cpus = [place.client_cpu]
        lab.start_server(server, niceness=10)
        flags = ["resume", "--insecure", "--connections", lab.options.connections * workers // 2, *lab.server_flags, *lab.window]
        halves = {}
        for name, cpu in (("first", place.server_cpu), ("second", place.client_cpu)):
            lab.client_cpu = cpu
            halves[f"{name}_{workers}"] = lab.begin(name, flags)
        lab.client_cpu = place.client_cpu
        for key, process in halves.items():
            record[key] = lab.finish(key.removesuffix(f"_{workers}"), process)
        record["origin"] = lab.stop()
    return record


RUNS = {"cell": run_cell, "flood": run_flood, "scaling": run_scaling}


def measure(lab, server, work, number):
    """One cell of the table in one round."""
    return {"kind": work.kind, "server": server.name, "work": work.name, "round": number, **RUNS[work.kind](lab, server, work)}


def check_crypto(lab, server, when):
    """What the binary's cryptography costs on the servers' core, before and after: no round is to be trusted blindly."""
    lab.shape = Shape()
    file = lab.configure(server)
    command = ["timeout", "30", "taskset", "-c", cpu_list(lab.place.cpus(1)), lab.place.ringlock, "hw", "--json", "--config",
               file]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=False)
    report = None
    if done.returncode == 0:
        try:
            report = parsed(done.stdout, "ringlock hw --json")
        except Failed as problem:
            say(str(problem))
    return {"kind": "crypto", "server": server.name, "work": when, "round": 0, "report": report}
