"""The systems that are compared: all between the same load and the same engine, all up for the whole run."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar, Final

from p2pgrid.ledger.sqlite import SqliteLedger

from . import toolbox
from .load import Load
from .process import BenchError, Process, cpu_ns, free_port, say

MODEL: Final = "bench"
READY_S: Final = 120.0


class System:
    """One way from the load to the engine. `nodes` are its processes on that way, by the part that they play."""

    name: ClassVar[str]
    label: ClassVar[str]
    hops: ClassVar[int]
    keeps_up: ClassVar[bool] = True
    """False for one that is measured over whole batches, because no window of it is like the next."""

    def __init__(self, folder: Path, *, engine_port: int, core: int | None, most_streams: int) -> None:
        self.folder: Final = folder / self.name
        self.most_streams: Final = most_streams
        """Streams that the run will have open at once."""
        self.port = 0
        """Where the load sends its requests."""
        self._engine_port = engine_port
        self._core = core
        self._nodes: dict[str, Process] = {}
        self._others: list[Process] = []
        self.folder.mkdir(parents=True)

    def start(self) -> None:
        """Start everything, and return when it serves. Raises BenchError; Missing where it cannot be had here."""
        raise NotImplementedError

    def warm(self, load: Load) -> None:
        """Bring it to where it would be after a while of work."""
        load.requests(self, 64, connections=4)
        load.requests(self, 16, connections=4, stream=True, tokens=64)

    def pids(self) -> dict[str, list[int]]:
        """The processes on the path, by node. All threads of all of them are its CPU time."""
        return {role: process.pids() for role, process in self._nodes.items()}

    def check_runs(self) -> None:
        """Raise BenchError if a process of it has ended."""
        for process in (*self._nodes.values(), *self._others):
            process.check_runs()

    def stop(self) -> None:
        """Stop its processes, those nearest to the load first."""
        for process in (*self._nodes.values(), *self._others):
            process.stop()


class Direct(System):
    """The load asks the engine itself: what all times are measured from."""

    name, label, hops = "direct", "direct", 0

    def start(self) -> None:
        self.port = self._engine_port


class Nginx(System):
    """nginx to nginx: mutual TLS 1.3, connections kept, nothing buffered, one worker each."""

    name, label, hops = "nginx", "nginx, 2 hops, TLS", 2

    def start(self) -> None:
        program = str(toolbox.nginx())
        write_certificate(self.folder)
        far = free_port()
        self._nodes["provider"] = self._launch(program, "provider", far, _NGINX_PROVIDER)
        self.port = free_port()
        self._nodes["gateway"] = self._launch(program, "gateway", self.port, _NGINX_GATEWAY, far)

    def _launch(self, program: str, role: str, port: int, server: str, upstream: int = 0) -> Process:
        prefix = self.folder / role
        (prefix / "tmp").mkdir(parents=True)
        text = _NGINX.replace("USER", "user root;" if os.geteuid() == 0 else "").replace("SERVER", server)
        for name, value in {"PORT": port, "UPSTREAM": upstream or self._engine_port, "FOLDER": self.folder}.items():
            text = text.replace(name, str(value))
        (prefix / "nginx.conf").write_text(text)
        command = [program, "-p", str(prefix), "-e", "error.log", "-c", "nginx.conf"]
        process = Process(f"nginx ({role})", command, log=prefix / "stderr.log", core=self._core)
        process.wait_for_port(port, READY_S)
        return process


class Relay(System):
    """A plain aiohttp relay, one hop, no TLS: the yardstick where there is no nginx."""

    name, label, hops = "relay", "aiohttp relay, 1 hop", 1

    def start(self) -> None:
        command = [sys.executable, "-m", "path_parts.relay", str(self._engine_port)]
        process = Process("the relay", command, log=self.folder / "stderr.log", core=self._core)
        self._nodes["gateway"] = process
        self.port = process.ready_line(READY_S)["port"]


class LiteLlm(System):
    """LiteLLM's proxy: one hop, one worker, no TLS, no database, no receipts, a key that it checks."""

    name, label, hops, keeps_up = "litellm", "LiteLLM, 1 hop, no receipts", 1, False

    def start(self) -> None:
        program = str(toolbox.litellm())
        self.port = free_port()
        (self.folder / "config.yaml").write_text(_LITELLM.replace("ENGINE", f"http://127.0.0.1:{self._engine_port}/v1"))
        command = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(self.port)]
        command = ["env", "-C", str(self.folder), *command, "--num_workers", "1", "--telemetry", "False"]
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
        quiet |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        process = Process("LiteLLM", command, log=self.folder / "stderr.log", core=self._core, environment=quiet)
        self._nodes["proxy"] = process
        process.wait_for_port(self.port, READY_S)
        wait_until(lambda: get(self.port, "/health/liveliness") is not None, process)

    def warm(self, load: Load) -> None:
        load.requests(self, 100, connections=4)
        load.requests(self, 16, connections=4, stream=True, tokens=64)


class P2pgrid(System):
    """The product: `p2pgrid gateway` and `p2pgrid serve`, found through a bootstrap peer of their own, direct road."""

    name, label, hops = "p2pgrid", "p2pgrid, 2 hops, TLS, receipts", 2
    module: ClassVar[str] = "p2pgrid"
    gateway_flags: ClassVar[tuple[str, ...]] = ("--receipt-each",)
    serve_flags: ClassVar[tuple[str, ...]] = ()
    """What `p2pgrid serve` is told besides."""
    ready_s: ClassVar[float] = READY_S
    """What a node may take to start."""

    def __init__(self, folder: Path, *, engine_port: int, core: int | None, most_streams: int) -> None:
        super().__init__(folder, engine_port=engine_port, core=core, most_streams=most_streams)
        self.started: Final[dict[str, dict[str, float]]] = {}
        """By node: wall and CPU time from its start until it was ready."""

    def start(self) -> None:
        peers = self.folder / "bootstrap_peers.toml"
        network = f"bench-{self.name}"
        peers.write_text(f"[networks.{network}]\npeers = []\n")
        common = ["--network", network, "--bootstrap-peers", str(peers)]
        bootstrap = self._command("bootstrap", *common, "--libp2p-listen", "/ip4/127.0.0.1/tcp/0")
        self._others.append(bootstrap)
        addresses = bootstrap.ready_line(READY_S)["addresses"]
        peers.write_text(f"[networks.{network}]\npeers = {json.dumps(addresses)}\n")
        self.prepare_data(P2PGRID_CONFIG.replace("ENGINE", f"http://127.0.0.1:{self._engine_port}"))
        provider = self._command("serve", *common, *self.serve_flags, data="provider")
        self._others.append(provider)
        self._check_roads(self._ready("provider", provider))
        gateway = self._command("gateway", "--listen", "127.0.0.1:0", *self.gateway_flags, *common)
        self._nodes["gateway"] = gateway
        self._nodes["provider"] = self._others.pop()
        self.port = int(self._ready("gateway", gateway)["base_url"].rpartition(":")[2].partition("/")[0])
        wait_until(lambda: self._is_on_sale(), gateway)

    def prepare_data(self, config: str) -> None:
        """The provider's data folder, with that config.toml and a key; the gateway makes its own."""
        self.write_config(config)
        initialise = self._command("init", data="provider")
        initialise.ready_line(READY_S)
        initialise.stop()

    def write_config(self, config: str) -> None:
        """The provider's config.toml."""
        folder = self.folder / "provider"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "config.toml").write_text(config)

    def warm(self, load: Load) -> None:
        """Sales until the channel has signed for enough to let all streams be open at once (session.md, section 8)."""
        load.requests(self, 64, connections=1)
        load.requests(self, 32 + self.most_streams * 3 // 4, connections=8, stream=True, tokens=WARM_TOKENS)

    def receipts(self) -> dict[str, int]:
        """Requests on receipts that both sides have signed, in each ledger on disk."""
        found = {}
        for node in ("gateway", "provider"):
            with SqliteLedger.open_readonly(self.folder / node / "ledger.sqlite") as ledger:
                signed = [row.receipt for row in ledger.receipts() if row.countersigned]
                found[node] = sum(len(receipt.requests) or 1 for receipt in signed)
        return found

    def _check_roads(self, ready: dict[str, Any]) -> None:
        """Raise BenchError unless the provider listens where this system wants to reach it."""
        if not ready["addresses"]:
            raise BenchError(f"{self.label}: the provider does not listen on the direct road.")

    def _is_on_sale(self) -> bool:
        page = get(self.port, "/v1/models")
        return page is not None and any(one["id"] == MODEL for one in json.loads(page)["data"])

    def _ready(self, node: str, process: Process) -> dict[str, Any]:
        """What a node says when it is ready. What that took is in `started`."""
        began_s = time.monotonic()
        said = process.ready_line(self.ready_s)
        self.started[node] = {"wall_s": time.monotonic() - began_s, "cpu_s": cpu_ns([process.pid]) / 1e9}
        return said

    def _command(self, command: str, *arguments: str, data: str = "") -> Process:
        folder = self.folder / (data or command)
        words = [sys.executable, "-m", self.module, "--data", str(folder), command, *arguments, "--json"]
        return Process(f"p2pgrid {command}", words, log=self.folder / f"{command}.log", core=self._core)


class Batched(P2pgrid):
    """The product as it comes: short unstreamed requests that are asked at once share orders and receipts."""

    name, label, hops = "batched", "p2pgrid batched, 2 hops, TLS, shared receipts", 2
    gateway_flags = ()


class P2pgridOverLibp2p(P2pgrid):
    """The same over a libp2p stream (Noise, yamux), the road where no port is open: the provider has no direct one."""

    name, label, hops = "p2pgrid-libp2p", "p2pgrid over libp2p, 2 hops, receipts", 2
    serve_flags = ("--no-direct",)

    def _check_roads(self, ready: dict[str, Any]) -> None:
        if ready["addresses"] or not ready["libp2p_addresses"]:
            raise BenchError(f"{self.label}: the provider listens on the direct road, or not over libp2p.")


class UnsafeWithoutReceipts(P2pgrid):
    """The same without signatures and records (see `unsafe_without_receipts`): the difference is what receipts cost."""

    name, label, hops = "no-receipts", "p2pgrid without receipts (unsafe)", 2
    module = "path_parts.unsafe_without_receipts"


WARM_TOKENS: Final = 256


def get(port: int, path: str) -> bytes | None:
    """A page of 127.0.0.1, or None where it is not there yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            page: bytes = response.read()
            return page
    except OSError:
        return None


def wait_until(is_so: Any, process: Process, timeout_s: float = READY_S) -> None:
    """Wait for a condition, as long as `process` runs. Raises BenchError."""
    until = time.monotonic() + timeout_s
    while not is_so():
        process.check_runs()
        if time.monotonic() > until:
            raise process.failure(f"was not ready within {timeout_s:.0f} s")
        time.sleep(0.1)


def write_certificate(folder: Path) -> None:
    """A self-signed P-256 certificate for both nginx: each shows it, each asks for it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("bench"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "tls.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


def stop_all(systems: list[System]) -> None:
    """Stop every system, also where one of them does not want to."""
    for system in systems:
        try:
            system.stop()
        except (BenchError, OSError) as error:
            say(f"  !! {system.label}: {error}")


def empty_folder(folder: Path) -> None:
    """The run's own folder, emptied of what an earlier run left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


_NGINX: Final = """\
daemon off;
USER
worker_processes 1;
worker_rlimit_nofile 16384;
pid nginx.pid;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path tmp/body; proxy_temp_path tmp/proxy; fastcgi_temp_path tmp/fastcgi;
    uwsgi_temp_path tmp/uwsgi; scgi_temp_path tmp/scgi;
    tcp_nodelay on;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    upstream next { server 127.0.0.1:UPSTREAM; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 600s; }
    server {
SERVER
        location / {
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
            proxy_pass $scheme_of_next://next;
        }
    }
}
"""
_NGINX_GATEWAY: Final = """\
        listen 127.0.0.1:PORT backlog=4096;
        set $scheme_of_next https;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_certificate FOLDER/tls.crt;
        proxy_ssl_certificate_key FOLDER/tls.key;
        proxy_ssl_trusted_certificate FOLDER/tls.crt;
        proxy_ssl_verify on;
        proxy_ssl_name bench;
"""
_NGINX_PROVIDER: Final = """\
        listen 127.0.0.1:PORT ssl backlog=4096;
        set $scheme_of_next http;
        ssl_protocols TLSv1.3;
        ssl_certificate FOLDER/tls.crt;
        ssl_certificate_key FOLDER/tls.key;
        ssl_verify_client on;
        ssl_client_certificate FOLDER/tls.crt;
"""
_LITELLM: Final = """\
model_list:
  - model_name: bench
    litellm_params:
      model: hosted_vllm/bench
      api_base: ENGINE
      api_key: sk-bench
general_settings:
  master_key: sk-bench
litellm_settings:
  telemetry: false
  request_timeout: 600
  drop_params: true
"""
P2PGRID_CONFIG: Final = """\
[provider]
operator = "Bench"
country = "LT"
listen = "127.0.0.1:0"
libp2p-listen = ["/ip4/127.0.0.1/tcp/0"]

[provider.terms]
credit-limit-eur = "1000000"
max-open-orders = 1024

[[provider.models]]
name = "bench"
engine-url = "ENGINE"
context-tokens = 8192
concurrency = 4096
price-input-eur = "0.01"
price-output-eur = "1.00"
"""
