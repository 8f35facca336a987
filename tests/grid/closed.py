"""Real processes in networks of their own: what the tests of closed networks start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from p2pgrid.data_folder import DataFolder
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.ledger.sqlite import SqliteLedger
from tests.grid.conftest import MODEL, p2pgrid, until

LOOPBACK = "/ip4/127.0.0.1/tcp/0"

_OPERATOR = """\
{top}
[provider]
operator = "{name}"
country = "LT"
listen = "127.0.0.1:0"
libp2p-listen = ["{listen}"]
drain-s = 2
{more}
[provider.terms]
window-tokens = 16

[[provider.models]]
name = "{model}"
engine-url = "{url}"
concurrency = 8
price-input-eur = "0.10"
price-output-eur = "0.40"
"""


@dataclass
class Machine:
    """A folder with a data folder for each node, and the processes that were started."""

    folder: Path
    engine_url: str
    nodes: list[NodeProcess] = field(default_factory=list)
    gateways: dict[str, Gateway] = field(default_factory=dict)

    def data(self, name: str) -> DataFolder:
        data = DataFolder(self.folder / name)
        data.make()
        return data

    def peer_id(self, name: str) -> str:
        return self.data(name).load_or_create_key().public_key.peer_id

    async def command(self, name: str, *arguments: str) -> str:
        """Run a command on a node's data folder; its output."""
        code, output, errors = await p2pgrid(self.data(name).path, *arguments)
        assert code == 0, errors
        return output

    async def bootstrap(self, name: str, *arguments: str) -> list[str]:
        """An introducing peer; its addresses."""
        node = await self._start(name, "bootstrap", "--libp2p-listen", LOOPBACK, "--no-relay", *arguments)
        addresses: list[str] = node.ready["addresses"]
        return addresses

    async def operator(self, name: str, *arguments: str, top: str = "", more: str = "") -> NodeProcess:
        data = self.data(name)
        data.load_or_create_key()
        text = _OPERATOR.format(name=name, top=top, more=more, listen=LOOPBACK, model=MODEL, url=self.engine_url)
        data.config_file.write_text(text)
        return await self._start(name, "serve", *arguments)

    async def gateway(self, name: str, *arguments: str) -> Gateway:
        node = await self._start(name, "gateway", "--listen", "127.0.0.1:0", *arguments)
        self.gateways[name] = gateway = Gateway(node)
        return gateway

    async def share(self, name: str, to: Sequence[str], bootstrap: Sequence[str], network: str = "lab") -> None:
        """Invite other nodes to a network that a secret closes."""
        peers = [word for address in bootstrap for word in ("--bootstrap", address)]
        file = self.folder / f"{network}-invitation"
        await self.command(name, "network", "invite", network, "--out", str(file), *peers)
        await asyncio.gather(*(self.command(one, "network", "join", str(file)) for one in to))

    async def _start(self, name: str, *arguments: str) -> NodeProcess:
        node = NodeProcess(name, self.data(name).path, *arguments)
        self.nodes.append(node)
        await node.start(timeout_s=60)
        return node

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in reversed(self.nodes)))


@dataclass
class Gateway:
    node: NodeProcess
    answered: int = field(default=0, init=False)
    """How many requests were."""

    async def get(self, path: str) -> Any:
        async with aiohttp.ClientSession() as session, session.get(f"{self.node.ready['base_url']}{path}") as response:
            return await response.json()

    async def providers(self) -> set[str]:
        """Peer ids of the providers whose offers are known."""
        models = (await self.get("/models"))["data"]
        return {offer["provider"] for model in models for offer in model["p2pgrid"]["offers"]}

    async def post(self, provider: str = "", **body: Any) -> tuple[int, str, Any]:
        """Ask for an answer: HTTP status, who served it, the answer."""
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64} | body
        headers = {"X-P2pgrid-Provider": provider} if provider else {}
        url = f"{self.node.ready['base_url']}/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=asked, headers=headers) as response:
            answer = await response.json()
            self.answered += response.status == 200
            return response.status, response.headers.get("X-P2pgrid-Provider", ""), answer

    async def settled(self) -> None:
        """Wait until all that was answered stands on receipts which both have signed: they come after the answers."""

        def on_receipts() -> int:
            with SqliteLedger.open_readonly(DataFolder(self.node.data).ledger_file) as ledger:
                return sum(len(row.receipt.requests) or 1 for row in ledger.receipts() if row.countersigned)

        await until(lambda: asyncio.to_thread(on_receipts), lambda found: found >= self.answered)

    async def buy(self, provider: str = "", **body: Any) -> str:
        """Buy an answer, of that provider if one is named; who sold it."""
        status, seller, answer = await self.post(provider, **body)
        assert status == 200, answer
        return seller
