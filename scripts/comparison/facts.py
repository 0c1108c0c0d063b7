"""The machine, the settings and the commands of a comparison: what has to be known to repeat it."""

import datetime
import os
import platform
import re
import shlex
from pathlib import Path

from comparison.place import ROOT, shown
from comparison.servers import output_of

# What says where results go, and nothing about what is measured.
OUTPUTS = ("--json", "--html", "--docs", "--from")


def processor():
    names = re.findall(r"^model name[^:]*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def mitigations():
    """Of the processor's vulnerabilities those that cost something here, and those that are open."""
    mitigated, vulnerable = [], []
    for file in sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*")):
        state = file.read_text(encoding="ascii").strip()
        if state.startswith("Vulnerable"):
            vulnerable.append(file.name)
        elif not state.startswith("Not affected"):
            mitigated.append(file.name)
    return f"on: {', '.join(mitigated) or 'none'}; vulnerable: {', '.join(vulnerable) or 'none'}"


def command(arguments):
    """The command line, without where the results went and without this machine's paths."""
    words, skip = [], False
    for word in arguments:
        name = word.partition("=")[0]
        if skip or name in OUTPUTS:
            skip = name in OUTPUTS and name != "--docs" and "=" not in word
            continue
        words.append(shown(word) if Path(word).is_absolute() else word)
    return shlex.join(["sudo", "scripts/compare", *words])


def drivers(records):
    """What Ringlock makes of --io, as it says itself."""
    for record in records:
        if record["kind"] == "crypto" and record["report"]:
            driver = record["report"]["driver"]
            yield f"{driver['name']}: {driver['reason']}"


def load():
    """Of the last minute, before anything is measured."""
    return f"{os.getloadavg()[0]:.1f} before it began: others that wanted these CPUs (below 1 is quiet)"


def all_facts(place, options, congestion, priority, load_before, records, arguments):
    rounds = "1 round" if options.rounds == 1 else f"{options.rounds} rounds"
    lines = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": processor(),
        "kernel": platform.release(),
        "mitigations": mitigations(),
        "congestion": congestion,
        "load": load_before,
        "commit": output_of("git", "-C", ROOT, "describe", "--always", "--dirty").strip(),
        "setting": f"loopback in a namespace; one worker on CPU {place.server_cpu}, client and origin on CPU {place.client_cpu}; "
                   f"{rounds} of {options.duration}, servers in an order shuffled with seed {options.seed}; "
                   f"{options.connections} in flight, bulk 16, idle {options.idle}"
                   + (f"; an endless loop has half of CPU {place.server_cpu}" if options.contend else ""),
    }
    driver = next(drivers(records), None)
    if driver:
        lines["driver"] = f"ringlock, io = {place.io}: {driver}"
    if "flood" in options.works:
        lines["flood"] = f"{'ECDSA P-256' if options.flood_ecdsa else 'RSA-2048'}; {priority}"
    return {"lines": lines, "command": command(arguments), "server_cpu_share_max": 0.5 if options.contend else 1.0}
