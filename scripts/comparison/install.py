"""What a comparison needs before it can begin: packages, builds, and the network namespace."""

import ctypes
import os
import resource
import shutil
import subprocess
from pathlib import Path

from comparison.place import ROOT, die, say

CLONE_NEWNET = 0x40000000
# What the comparison itself uses: Debian package, program.
OWN = {"openssl": "openssl", "iproute2": "ss", "util-linux": "chrt", "procps": "ps"}


def install_missing(servers):
    missing = {package for package, program in OWN.items() if not shutil.which(program)}
    for server in servers:
        missing |= {package for package, file in server.packages.items() if not Path(file).exists()}
    if missing:
        say(f"installing {' '.join(sorted(missing))}")
        apt = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(missing)]
        if subprocess.run(apt, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdout=2, check=False).returncode:
            die(f"apt-get could not install what is missing: {' '.join(sorted(missing))}")


def build_missing(place, with_ringlock):
    def build(package):
        if subprocess.run(["cargo", "build", "--release", "-p", package], cwd=ROOT, stdout=2, check=False).returncode:
            die(f"cargo could not build {package}")

    if not place.perf.exists():
        build("ringlock-perf")
    if with_ringlock and not os.access(place.ringlock, os.X_OK):
        if place.ringlock != place.target / "release" / "ringlock":
            die(f"--ringlock: {place.ringlock} is no executable file")
        build("ringlock")


def can(place, command):
    """Whether this ringlock-perf has a command."""
    return subprocess.run([place.perf, command, "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          check=False).returncode == 0


def enter_namespace(congestion):
    """A network of its own, so that the congestion control is the same for all and nothing outside is changed. Returns its
    name."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        die(f"a network namespace is not permitted here: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_local_port_range").write_text("10000 65535", encoding="ascii")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in [congestion] if congestion else ["cubic", "reno"]:
        try:
            (settings / "tcp_congestion_control").write_text(name, encoding="ascii")
            return name
        except OSError:
            continue
    allowed = (settings / "tcp_allowed_congestion_control").read_text(encoding="ascii").strip()
    die(f"--congestion: '{congestion}' is not allowed in a namespace, expected one of {allowed}")
