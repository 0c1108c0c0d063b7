"""What a server of scripts/compare is to it, and Ringlock in its variants. The others are in peers.py.

Equivalent settings for all, and nothing that one of them gets and another does not. What a work does not ask for is as the
server comes, or as its own documentation recommends for TLS termination.
"""

import re
import subprocess
from dataclasses import dataclass

from comparison.place import ROOT, cpu_list, shown


def output_of(*command):
    """What a program says, on either stream, whatever its exit status."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    return done.stdout


def find(pattern, text):
    """The first group of the first match, or a word that says that there is none."""
    match = re.search(pattern, text)
    return match[1] if match else "unknown"


def locked(lock, name):
    """The version of a crate in a Cargo.lock."""
    return find(rf'name = "{name}"\nversion = "([^"]+)"', lock.read_text(encoding="utf-8"))


def rustls_of(lock):
    """What does TLS where it is rustls on AWS-LC."""
    return f"rustls {locked(lock, 'rustls')}, aws-lc-rs {locked(lock, 'aws-lc-rs')}"


class Server:
    """One column of the table."""

    name = ""
    # Debian packages, each with what has to be there when it is installed.
    packages = {}

    def cannot(self, work):
        """Why the server cannot do a work by its nature."""

    def unavailable(self, place):
        """Why the server cannot be had on this machine, after an attempt to install it."""

    def config(self, place, shape):
        """The text of the file that it is given."""
        raise NotImplementedError

    def command(self, place, file, shape):
        raise NotImplementedError

    def complaints(self, place, file, shape):
        """What it says of its configuration."""
        raise NotImplementedError

    def version(self, place):
        raise NotImplementedError

    def library(self, place):
        """What does its TLS."""
        raise NotImplementedError


@dataclass
class Ringlock(Server):
    """With io_uring where the machine has it, and computing together where that pays, as it comes."""

    name: str = "ringlock"
    about: str = ""
    io: str = ""
    batch: bool = True
    confined: bool = True

    def config(self, place, shape):
        suite = f"TLS_{shape.suite.replace('-', '_').replace('AES128', 'WITH_AES_128')}"
        if shape.version == "1.3":
            suite = "TLS_AES_128_GCM_SHA256"
        client_auth = 'mode = "off"'
        if shape.clients != "open":
            client_auth = f'mode = "required"\nca = "{place.work}/clients-ca-{shape.clients}.pem"'
        confinement = "" if self.confined else "unsafe_no_seccomp = true\nunsafe_no_landlock = true\n"
        return f"""\
[global]
workers = "{cpu_list(place.cpus(shape.workers))}"
io = "{self.io or place.io}"
drain_timeout = "1s"
{confinement}
[crypto]
multibuffer = "{place.multibuffer if self.batch else 'off'}"
made_ahead = "{'auto' if self.batch else 'off'}"

[global.log]
format = "text"
level = "warn"

[[listener]]
name = "compare"
address = "127.0.0.1:{place.port}"
identities = ["site"]
upstream = "origin"
idle_timeout = "1h"

[listener.tls]
min_version = "{shape.version}"
max_version = "{shape.version}"
cipher_suites = ["{suite}"]
groups = ["{shape.group}"]
tickets = {str(shape.tickets).lower()}

[listener.client_auth]
{client_auth}

[[identity]]
name = "site"
certificate = "{place.work}/{shape.certificate}.pem"
key = "{place.work}/{shape.certificate}.key"

[[upstream]]
name = "origin"
servers = ["127.0.0.1:{place.origin_port}"]
connect_on = "{'handshake' if shape.connected else 'first_byte'}"
"""

    def command(self, place, file, shape):
        return [place.ringlock, "run", "--config", file]

    def complaints(self, place, file, shape):
        return output_of(place.ringlock, "check", "--config", file)

    def version(self, place):
        multibuffer = place.multibuffer
        if multibuffer not in ("off", "auto"):
            multibuffer = shown(multibuffer)
        about = self.about or f"libcrypto_mb: {multibuffer}"
        return f"{output_of(place.ringlock, '--version').strip()}, {rustls_of(ROOT / 'Cargo.lock')}; {about}"

    def library(self, place):
        return "rustls, AWS-LC"


RINGLOCKS = (
    Ringlock(),
    Ringlock("ringlock-epoll", "with epoll", io="epoll"),
    Ringlock("inline", "libcrypto_mb: off, nothing made ahead", batch=False),
    Ringlock("inline-epoll", "libcrypto_mb: off, nothing made ahead, with epoll", io="epoll", batch=False),
    Ringlock("unconfined", "without seccomp and Landlock", confined=False),
)
