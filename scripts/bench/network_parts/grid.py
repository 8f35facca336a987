"""The network under measurement: an introducing peer, a relay, providers on one fake engine, peers behind relays."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from path_parts.bench import Cores
from path_parts.process import BenchError, Process

from .worker import Client, Failed

NETWORK: Final = "bench"
MODEL: Final = "bench"
"""What all providers sell that can be dialled."""
ROADS: Final = ("direct", "libp2p", "relayed")
"""Roads to a provider. Each has a provider of its own, and that a model of its own."""
LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
_READY_S: Final = 120.0

_PROVIDER: Final = """\
network = "{network}"

[provider]
operator = "{name}"
country = "LT"
listen = "{listen}"
libp2p-listen = ["/ip4/127.0.0.1/tcp/0"]
relay-through = {relays}
punch = false

[provider.terms]
window-tokens = 4096
"""
_MODEL: Final = """
[[provider.models]]
name = "{model}"
engine-url = "{engine}"
context-tokens = 4096
concurrency = 64
price-input-eur = "0.10"
price-output-eur = "0.40"
"""
_RELAY: Final = """\
network = "bench"

[relay]
circuit-kib-per-s = 10000000
kib-per-s = 10000000
reservations-per-ip = 64
circuits-per-ip = 1024
circuits-per-peer = 1024
"""
"""No pace: what is measured is the relay, not its limits."""


@dataclass(frozen=True, slots=True)
class Seller:
    """A provider that is reached over one road."""

    road: str
    model: str
    peer: str
    direct: tuple[str, ...]
    libp2p: tuple[str, ...]

    def where(self) -> dict[str, Any]:
        """For a client: who it is, and where."""
        return {"road": self.road, "peer": self.peer, "direct": self.direct, "libp2p": self.libp2p}


@dataclass(frozen=True, slots=True)
class Source:
    """A peer behind a relay that sends what it is asked for."""

    peer: str
    address: str

    def where(self) -> dict[str, Any]:
        """For a client."""
        return {"peer": self.peer, "address": self.address}


class Grid:
    """All of it, and the two clients. Use it with `with`: at its end nothing is left running."""

    def __init__(self, folder: Path, providers: int, js: Path, node: str) -> None:
        """`providers`: how many sell `MODEL`, 2 or more. `js`: the folder of js_packages.programs."""
        self.cores: Final = Cores.of_this_machine()
        self.folder: Final = folder
        self.providers: Final = providers
        self.sellers: Final[dict[str, Seller]] = {}
        self.clients: Final[dict[str, Client]] = {}
        self.bootstrap: list[str] = []
        self._js, self._node = js, node
        self._processes: list[Process] = []
        self.relays: Final[dict[str, Process]] = {}
        """Ours and js-libp2p's."""
        self.sources: Final[dict[tuple[str, str], Source]] = {}
        """By whose relay leads there, and whose it is."""

    def __enter__(self) -> Grid:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients.values():
            client.close()
        for process in reversed(self._processes):
            process.stop(5.0)

    def once(self, system: str) -> list[str]:
        """The command of a whole program that does one cold look-up."""
        order = {"network": NETWORK, "bootstrap": self.bootstrap, "model": MODEL, "wanted": self.providers}
        program = {
            "ours": [sys.executable, "-m", "network_parts.ours"],
            "js": [self._node, str(self._js / "client.mjs")],
        }
        return [*program[system], "once", json.dumps(order)]

    def _start(self) -> None:
        path, load = self.cores.path, self.cores.load
        models = [MODEL, *(f"{MODEL}-{road}" for road in ROADS)]
        words = [word for model in models for word in ("--model", model)]
        engine = self._launch("engine", [sys.executable, "-m", "p2pgrid.engine.fake", *words], path)
        url = engine.ready_line(_READY_S)["url"]
        peers = self.folder / "bootstrap_peers.toml"
        peers.write_text(f"[networks.{NETWORK}]\npeers = []\n")
        introducer = self._p2pgrid("bootstrap", "bootstrap", "--libp2p-listen", LOOPBACK, "--no-relay")
        self.bootstrap = introducer.ready_line(_READY_S)["addresses"]
        peers.write_text(f"[networks.{NETWORK}]\npeers = {json.dumps(self.bootstrap)}\n")
        self._config("relay", _RELAY)
        self.relays["ours"] = self._p2pgrid("relay", "bootstrap", "--libp2p-listen", LOOPBACK)
        through = {"ours": self.relays["ours"].ready_line(_READY_S)["addresses"][0]}
        self.relays["js"] = self._js_peer("js-relay", "relay", core=path)
        through["js"] = self.relays["js"].ready_line(_READY_S)["address"]
        self._start_providers(url, through["ours"])
        for of, by in (("ours", "ours"), ("ours", "js"), ("js", "js")):
            source = self._source(of, by, through[of])
            self.sources[of, by] = Source(**source.ready_line(_READY_S))
        programs = {
            "ours": [sys.executable, "-m", "network_parts.ours"],
            "js": [self._node, str(self._js / "client.mjs")],
        }
        for system, command in programs.items():
            process = self._launch(f"client-{system}", command, load)
            port = process.ready_line(_READY_S)["port"]
            self.clients[system] = Client(system, process, port, NETWORK, self.bootstrap)
        self._wait_on_sale()

    def _start_providers(self, engine: str, relay: str) -> None:
        started: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        roads = ["direct", "libp2p", *[""] * (self.providers - 2), "relayed"]
        for n, road in enumerate(roads):
            name = road or f"provider-{n}"
            listen = "127.0.0.1:0" if road == "direct" else ""
            relays = json.dumps([relay] if road == "relayed" else ["never"])
            text = _PROVIDER.format(network=NETWORK, name=name, listen=listen, relays=relays)
            sold = [*([] if road == "relayed" else [MODEL]), *([f"{MODEL}-{road}"] if road else [])]
            self._config(name, text + "".join(_MODEL.format(model=model, engine=engine) for model in sold))
            initialise = self._p2pgrid(name, "init", joins=False)
            initialise.ready_line(_READY_S)
            initialise.stop()
            process = self._p2pgrid(name, "serve")
            started.append((road, lambda process=process: process.ready_line(_READY_S)))  # type: ignore[misc]
        for road, ready in started:
            said = ready()
            if road:
                self.sellers[road] = Seller(
                    road, f"{MODEL}-{road}", said["peer_id"], tuple(said["addresses"]), _addresses(road, said)
                )

    def _wait_on_sale(self) -> None:
        """Until all providers are found: then their records are where they belong."""
        until = time.monotonic() + _READY_S
        for model, wanted in [(MODEL, self.providers), *((one.model, 1) for one in self.sellers.values())]:
            while True:
                try:
                    self.clients["ours"].order("cold", model=model, wanted=wanted)
                    break
                except Failed:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.5)

    def _source(self, of: str, by: str, relay: str) -> Process:
        if by == "js":
            return self._js_peer(f"source-{of}-js", "source", relay, core=self.cores.load)
        return self._launch("source-ours", [sys.executable, "-m", "network_parts.source", relay], self.cores.load)

    def _js_peer(self, name: str, *words: str, core: int | None) -> Process:
        return self._launch(name, [self._node, str(self._js / "peer.mjs"), *words], core)

    def _p2pgrid(self, name: str, command: str, *arguments: str, joins: bool = True) -> Process:
        data, peers = self.folder / name, str(self.folder / "bootstrap_peers.toml")
        joining = ["--network", NETWORK, "--bootstrap-peers", peers] if joins else []
        words = [sys.executable, "-m", "p2pgrid", "--data", str(data), command, *joining, *arguments, "--json"]
        return self._launch(name, words, self.cores.path)

    def _config(self, name: str, text: str) -> None:
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "config.toml").write_text(text)

    def _launch(self, name: str, command: list[str], core: int | None) -> Process:
        process = Process(name, command, log=self.folder / f"{name}.log", core=core)
        self._processes.append(process)
        return process


def _addresses(road: str, said: dict[str, Any]) -> tuple[str, ...]:
    """Where a client dials over libp2p: for the one behind the relay, the circuit alone."""
    found = [one for one in said["libp2p_addresses"] if ("/p2p-circuit/" in one) == (road == "relayed")]
    if not found:
        raise BenchError(f"the provider of the {road} road has no address for it: {said['libp2p_addresses']}")
    return tuple(found)
