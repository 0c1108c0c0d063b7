"""Processes of a comparison: the server under test, the origin behind it and the client, each on its core."""

import json
import os
import re
import shutil
import subprocess
import time

from comparison.place import Failed, cpu_list, die

SECOND_CHANCE = 5  # seconds that a process has to end by itself
# Seconds that a run of the client may take beside its window, as for opening connections. It should never take that long.
SPARE = 300
# A server and an origin have so many runs at most, one after the other: those of a flood.
RUNS_MAX = 3


def milliseconds(text):
    """A time as ringlock-perf takes it."""
    match = re.fullmatch(r"([0-9.]+)(ms|s|m|h)?", text)
    if not match:
        die(f"found '{text}', expected a time like 5s or 200ms")
    return int(float(match[1]) * {"ms": 1, "m": 60_000, "h": 3_600_000}.get(match[2], 1000))


def parsed(text, what):
    """JSON that a program has written."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise Failed(f"{what}: found no JSON ({problem}), expected a report; it begins with {text[:80]!r}") from problem


def sockets(*wanted):
    """What ss lists, a line for each socket."""
    done = subprocess.run(["ss", "-Htn", *wanted], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                          check=False)
    if done.returncode:
        raise Failed(f"ss {' '.join(wanted)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout.splitlines()


class Lab:
    """What runs at the moment. Everything in it was started here, and ends with it."""

    def __init__(self, place, options):
        self.place = place
        self.options = options
        self.running = []
        self.server = None
        self.origin = None
        self.shape = None
        window = milliseconds(options.duration) + milliseconds(options.warmup)
        # Seconds; what this program can not end, because it was killed, ends by itself.
        self.run_max = SPARE + window // 1000 + 1
        self.server_max = RUNS_MAX * self.run_max
        # The client's core, and those of the origin.
        self.client_cpu = place.client_cpu
        self.origin_cpus = [place.client_cpu]
        # Where client and origin share a core, the echo and the origin go before a flood's client, or the latency would be
        # the client's.
        permitted = subprocess.run(["chrt", "--fifo", "2", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0
        self.first = (lambda priority: ["chrt", "--fifo", str(priority)]) if permitted else (lambda priority: [])
        self.priority = ("the echo goes before the flood's client (SCHED_FIFO)" if permitted else
                         "not permitted here (chrt --fifo): the latencies beside the flood hold the client's own queue")

    def end_all(self):
        for process in list(reversed(self.running)):
            self.end(process)

    def close(self):
        self.end_all()
        shutil.rmtree(self.place.work, ignore_errors=True)

    def start(self, command, log, output=None):
        with open(self.place.work / log, "wb") as errors, open(self.place.work / (output or os.devnull), "wb") as out:
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                       stdout=out if output else errors, stderr=errors, cwd=self.place.work)
        self.running.append(process)
        return process

    def end(self, process):
        """Ends a process that was started here, and those that it started, by their ids."""
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], stdout=subprocess.PIPE, text=True,
                                  check=False).stdout.split()
        process.terminate()
        try:
            process.wait(SECOND_CHANCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            try:
                os.kill(int(child), 9)
            except ProcessLookupError:
                pass
        self.running.remove(process)

    def wait_for_port(self, port, process, log):
        for _ in range(200):
            if sockets("-l", f"sport = :{port}"):
                return
            if process.poll() is not None:
                break
            time.sleep(0.05)
        raise Failed(f"nothing listens on port {port}; its log says: {self.read(log)}")

    def read(self, name):
        return (self.place.work / name).read_text(encoding="utf-8", errors="replace")

    def configure(self, server):
        """Writes the configuration of a server for the shape that was taken."""
        file = self.place.work / f"{server.name}.conf"
        file.write_text(server.config(self.place, self.shape), encoding="utf-8")
        return file

    def start_server(self, server, niceness=0, contend=False):
        log = f"{server.name}.log"
        cpus = cpu_list(self.place.cpus(self.shape.workers))
        command = server.command(self.place, self.configure(server), self.shape)
        self.server = self.start(["nice", "-n", niceness, "taskset", "-c", cpus, *command], log)
        self.wait_for_port(self.place.port, self.server, log)
        if contend:
            self.start(["taskset", "-c", self.place.server_cpu, "timeout", self.server_max, "sh", "-c", "while :; do :; done"],
                       "rival.log")

    def start_origin(self, mode, priority=None):
        self.origin = self.start(
            [*(self.first(priority) if priority else []), "taskset", "-c", cpu_list(self.origin_cpus), self.place.perf, "origin",
             "--listen", f"127.0.0.1:{self.place.origin_port}", "--mode", mode, "--duration",
             f"{self.server_max}s"],
            "origin.log", "origin.json")
        self.wait_for_port(self.place.origin_port, self.origin, "origin.log")

    def stop(self):
        """Ends everything; what the origin counted. The server ends before the origin: connections that it still has are then
        closed and counted."""
        for process in list(reversed(self.running)):
            if process is not self.origin:
                self.end(process)
        self.end(self.origin)
        return parsed(self.read("origin.json"), "the origin")

    def client(self, flags):
        """The command line of the client, for the shape that was taken."""
        place, shape = self.place, self.shape
        # In TLS 1.2 OpenSSL wants a client of which it uses a P-256 certificate to offer P-256 too. The servers know only one.
        group = shape.group if shape.version == "1.3" else "any"
        certificate = []
        if shape.clients != "open":
            certificate = ["--client-cert", place.work / f"client-{shape.clients}.chain.pem",
                           "--client-key", place.work / f"client-{shape.clients}.key"]
        return ["timeout", self.run_max, place.perf, *flags, "--target", f"127.0.0.1:{place.port}", "--cpu", self.client_cpu,
                "--tls", shape.version, "--group", group, *certificate, "--json"]

    def begin(self, name, flags, priority=None):
        """Starts a run of the client."""
        return self.start([*(self.first(priority) if priority else []), *self.client(flags)], f"{name}.log", f"{name}.json")

    def finish(self, name, process, may_fail=False):
        """The report of a run. Fails when a connection failed, unless that may be."""
        status = process.wait()
        self.running.remove(process)
        # 2: a result, but some connections failed.
        if status not in ((0, 2) if may_fail else (0,)):
            raise Failed(f"{' '.join(process.args)}: exit status {status}\n{self.read(f'{name}.log')}{self.read(f'{name}.json')}")
        return parsed(self.read(f"{name}.json"), " ".join(process.args))

    def drive(self, name, flags, priority=None):
        return self.finish(name, self.begin(name, flags, priority))

    @property
    def window(self):
        return ["--duration", self.options.duration, "--warmup", self.options.warmup]

    @property
    def server_flags(self):
        return ["--server-pid", self.server.pid, "--server-children"]
