"""Nodes on the hosts of a laboratory: real processes, each in its own namespace with its own data folder.

Every operator's engine is one fake engine at a Unix socket, which knows no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from p2pgrid.data_folder import DataFolder
from p2pgrid.demo.processes import NodeProcess
from tests.grid.conftest import MODEL, until
from tests.lab import probe
from tests.lab.network import Lab

NETWORK: Final = "lab"
DIRECT_PORT: Final = 4801
LIBP2P_PORT: Final = 4802
HUB_PORT: Final = 4803
GATEWAY_PORT: Final = 8480
FORWARDS: Final = (DIRECT_PORT, LIBP2P_PORT)
_START_S: Final = 60.0


@dataclass
class Client:
    """A gateway, and a door to it: programs in the laboratory's host would use its port, tests use a Unix socket."""

    node: NodeProcess
    door: Path

    @contextlib.asynccontextmanager
    async def request(self, method: str, path: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request to the gateway, as `aiohttp.ClientSession.request` makes it."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.door))) as session,
            session.request(method, f"http://127.0.0.1:{GATEWAY_PORT}{path}", **more) as response,
        ):
            yield response

    async def get(self, path: str) -> dict[str, Any]:
        """A page of the gateway."""
        async with self.request("GET", path) as response:
            body: dict[str, Any] = await response.json()
            return body

    async def offers(self) -> dict[str, dict[str, Any]]:
        """What the gateway says of each offer it knows, by provider."""
        models = (await self.get("/v1/models"))["data"]
        return {offer["provider"]: offer for model in models for offer in model["p2pgrid"]["offers"]}

    async def knows(self, *providers: str, within_s: float = 30.0) -> None:
        """Wait until the offers of these are known, whatever others are."""
        await until(self.offers, lambda offers: set(providers) <= set(offers), deadline_s=within_s, pause_s=0.2)

    async def can_buy(self, *providers: str, within_s: float = 30.0) -> None:
        """Wait until each of them sells."""
        for provider in providers:
            await until(functools.partial(self.buy, provider), "sold", deadline_s=within_s, pause_s=0.2)

    async def link(self, provider: str) -> str | None:
        """The road that the link with a provider is on."""
        road: str | None = (await self.offers())[provider]["link"]
        return road

    async def buy(self, provider: str = "", *, timeout_s: float = 20.0) -> str:
        """One short chat, with that provider if one is named: `sold`, or why not. Nothing is tried twice."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        headers = {"X-P2pgrid-Provider": provider} if provider else {}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.request("POST", "/v1/chat/completions", json=body, headers=headers) as response,
            ):
                answer = await response.json()
        except TimeoutError:
            return f"no answer in {timeout_s:g} s"
        if response.status != 200:
            return str(answer["error"]["message"])
        return "sold" if answer["usage"]["completion_tokens"] > 0 else "an empty answer"


@contextlib.contextmanager
def fake_engine() -> Iterator[str]:
    """A fake engine in a process of its own; its URL, a Unix socket's."""
    with tempfile.TemporaryDirectory(prefix="p2pgrid-lab-") as folder:
        command = [sys.executable, "-m", "p2pgrid.engine.fake", "--model", MODEL, "--uds", f"{folder}/engine"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.wait()


class LabGrid:
    """A grid in a laboratory. `hubs` are the hosts of its bootstrap peers, which everybody's list names.

    Their keys are made at once, so that the list is whole before any of them runs.
    """

    def __init__(self, lab: Lab, folder: Path, engine_url: str, *, hubs: Iterable[str] = ("hub",)) -> None:
        self.lab: Final = lab
        self.nodes: dict[str, NodeProcess] = {}
        self._folder = folder
        self._engine_url = engine_url
        self._peers = folder / "bootstrap_peers.toml"
        self._doors: list[asyncio.subprocess.Process] = []
        self._sockets = tempfile.TemporaryDirectory(prefix="p2pgrid-lab-")  # a socket's path is short
        self.hubs: Final = {
            name: f"/ip4/{lab.address(name)}/tcp/{HUB_PORT}/p2p/"
            f"{self._data(name).load_or_create_key().public_key.peer_id}"
            for name in hubs
        }
        """Where each is."""
        peers = ", ".join(f'"{address}"' for address in self.hubs.values())
        self._peers.write_text(f"[networks.{NETWORK}]\npeers = [{peers}]\n")

    def peer_id(self, name: str) -> str:
        """Who the node at that host is."""
        return self._data(name).load_key().public_key.peer_id

    async def start(
        self, *, operators: Sequence[str] = (), clients: Sequence[str] = (), serve: Sequence[str] = ()
    ) -> list[Client]:
        """Start all hubs, then operators, with `serve` as further arguments, and clients. The clients."""
        await asyncio.gather(*map(self.start_hub, self.hubs))
        selling = [asyncio.create_task(self.start_operator(name, *serve)) for name in operators]
        started = await asyncio.gather(*map(self.start_client, clients))
        await asyncio.gather(*selling)
        return started

    async def start_hub(self, name: str, *arguments: str) -> NodeProcess:
        """`p2pgrid bootstrap` on a public host."""
        return await self._start(name, "bootstrap", "--libp2p-listen", f"/ip4/0.0.0.0/tcp/{HUB_PORT}", *arguments)

    async def start_operator(self, name: str, *arguments: str, price_eur: str = "0.80") -> NodeProcess:
        """`p2pgrid serve` on a host. Behind a router with forwarded ports it announces the router's address."""
        self._data(name).load_or_create_key()
        direct = () if "--no-direct" in arguments else ("--listen", f"0.0.0.0:{DIRECT_PORT}")
        return await self._start(
            *(name, "serve", "--operator", name, "--country", "LT", "--model", MODEL, "--engine-url", self._engine_url),
            *("--price-input", "0.20", "--price-output", price_eur, *direct),
            *("--libp2p-listen", f"/ip4/0.0.0.0/tcp/{LIBP2P_PORT}", *self._announcing(name), *arguments),
        )

    async def start_client(self, name: str, *arguments: str) -> Client:
        """`p2pgrid gateway` on a host, and a door to it."""
        node = await self._start(name, "gateway", "--verbose", "--listen", f"127.0.0.1:{GATEWAY_PORT}", *arguments)
        door = Path(self._sockets.name) / name
        process = await asyncio.create_subprocess_exec(
            *(*self.lab[name].prefix, sys.executable, "-S", "-E", probe.__file__, "door", str(door), str(GATEWAY_PORT)),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._doors.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return Client(node, door)

    async def kill(self, name: str) -> None:
        """End a host's node without a word."""
        node = self.nodes.pop(name)
        os.killpg(node.pid, signal.SIGKILL)
        await node.exited()

    def configure(self, name: str) -> None:
        """Write the operator's arguments into its config.toml, for commands where no node runs."""
        self._data(name).config_file.write_text(
            f"""
[provider]
operator = "{name}"
country = "LT"
listen = "0.0.0.0:{DIRECT_PORT}"
libp2p-listen = ["/ip4/0.0.0.0/tcp/{LIBP2P_PORT}"]

[[provider.models]]
name = "{MODEL}"
engine-url = "{self._engine_url}"
price-input-eur = "0.20"
price-output-eur = "0.80"
"""
        )

    async def doctor(self, name: str) -> dict[str, Any]:
        """`p2pgrid doctor --json` on a host, whose node may run."""
        process = await asyncio.create_subprocess_exec(
            *(*self.lab[name].prefix, sys.executable, "-m", "p2pgrid", "--data", str(self._data(name).path)),
            *("doctor", "--json", "--network", NETWORK, "--bootstrap-peers", str(self._peers)),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        report: dict[str, Any] = json.loads(output)
        assert process.returncode == (0 if report["healthy"] else 1)
        return report

    async def stop(self) -> None:
        """Stop everything."""
        await asyncio.gather(*(node.stop(grace_s=10) for node in self.nodes.values()))
        for door in self._doors:
            door.kill()
            await door.wait()
        self._sockets.cleanup()

    def _announcing(self, name: str) -> list[str]:
        host = self.lab.plan.host(name)
        router = next((one for one in self.lab.plan.routers if one.name == host.at), None)
        ports = [port for port, inside in router.forwards if inside == name] if router is not None else []
        outside = self.lab.public_address(name)
        return [
            *(["--announce", f"{outside}:{DIRECT_PORT}"] if DIRECT_PORT in ports else []),
            *(["--libp2p-announce", f"/ip4/{outside}/tcp/{LIBP2P_PORT}"] if LIBP2P_PORT in ports else []),
        ]

    def _data(self, name: str) -> DataFolder:
        return DataFolder(self._folder / name)

    async def _start(self, name: str, command: str, *arguments: str) -> NodeProcess:
        node = NodeProcess(
            f"{command} at {name}",
            self._data(name).path,
            *(command, *arguments, "--network", NETWORK, "--bootstrap-peers", str(self._peers)),
            prefix=self.lab[name].prefix,
        )
        self.nodes[name] = node
        await node.start(timeout_s=_START_S)
        return node
