"""Where a comparison runs: its folders, cores and ports, and what is said when it cannot go on."""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Failed(Exception):
    """One measurement could not be made. The others go on."""


def die(message):
    print(f"compare: {message}", file=sys.stderr)
    sys.exit(1)


def say(message):
    print(message, file=sys.stderr, flush=True)


@dataclass
class Place:
    """What configurations, commands and facts are made from."""

    target: Path  # what is built and installed
    ringlock: Path
    io: str
    multibuffer: str
    server_cpu: int
    client_cpu: int
    work: Path = Path("DIR")  # certificates and configurations; a word in --show-config
    port: int = 8443
    origin_port: int = 9000

    @property
    def perf(self):
        return self.target / "release" / "ringlock-perf"

    @property
    def tools(self):
        """A virtual environment of Python."""
        return self.target / "tools"

    def cpus(self, workers):
        """The cores of so many workers."""
        return [self.server_cpu] if workers == 1 else [self.server_cpu, self.client_cpu]


def shown(path):
    """A path without this machine in it, where it is below the repository."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def cpu_list(cpus):
    return ",".join(str(cpu) for cpu in cpus)
