"""The demo's grid: one bootstrap peer, two operators with engines of their own, one client's gateway."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pgrid.demo.processes import NodeProcess
from p2pgrid.errors import UsageError

MODEL: Final = "smollm2-135m-instruct"
NETWORK: Final = "demo"
_MARKER: Final = ".p2pgrid-demo"


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the demo, with a tariff in EUR per million tokens."""

    name: str
    folder: str
    country: str
    price_input_eur: str
    price_cached_input_eur: str
    price_output_eur: str


CHEAPER: Final = Operator("Vilnius Compute", "operator-lt", "LT", "0.10", "0.02", "0.40")
DEARER: Final = Operator("Torino Energia", "operator-it", "IT", "0.15", "0.05", "0.60")

_OPERATOR_CONFIG: Final = """\
network = "{network}"

[provider]
operator = "{operator.name}"
country = "{operator.country}"
listen = "127.0.0.1:0"
libp2p-listen = ["/ip4/127.0.0.1/tcp/0"]

[provider.terms]
window-tokens = 64

[[provider.models]]
name = "{model}"
model-path = "{model_path}"
context-tokens = 2048
concurrency = 8
cpu-threads = {cpu_threads}
price-input-eur = "{operator.price_input_eur}"
price-cached-input-eur = "{operator.price_cached_input_eur}"
price-output-eur = "{operator.price_output_eur}"
"""


def prepare_folder(path: Path) -> None:
    """An empty folder for the demo. One that an earlier demo left is emptied; any other is refused (UsageError)."""
    if path.exists() and any(path.iterdir()):
        if not (path / _MARKER).exists():
            raise UsageError(f"{path} is not empty, and no demo made it.", hint="Give another folder with --folder.")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    (path / _MARKER).touch()


class Grid:
    """The four nodes. `model` is the name on sale, `model_path` what the operators' vLLM loads for it.

    With `engine_url` both operators use that engine, which must serve `model`, and start none.
    """

    def __init__(
        self, folder: Path, *, model: str = MODEL, model_path: str = "smollm2", engine_url: str | None = None
    ) -> None:
        self.folder: Final = folder
        self.model: Final = model
        self._model_path = model_path
        self._engine_url = engine_url
        self.bootstrap = NodeProcess(
            "The bootstrap peer",
            folder / "bootstrap",
            "bootstrap",
            "--network",
            NETWORK,
            "--bootstrap-peers",
            str(folder / "bootstrap_peers.toml"),
            "--libp2p-listen",
            "/ip4/127.0.0.1/tcp/0",
        )
        self.operators: dict[Operator, NodeProcess] = {}
        self.gateway: NodeProcess | None = None

    @property
    def nodes(self) -> list[NodeProcess]:
        """All processes, in the order in which they are stopped."""
        return [*([self.gateway] if self.gateway else []), *self.operators.values(), self.bootstrap]

    async def start_bootstrap(self) -> None:
        """Start the introducing peer, and write the list through which the others find it."""
        peers = self.folder / "bootstrap_peers.toml"
        peers.write_text(f"[networks.{NETWORK}]\npeers = []\n")
        ready = await self.bootstrap.start(timeout_s=60)
        addresses = ", ".join(f'"{address}"' for address in ready["addresses"])
        peers.write_text(f"[networks.{NETWORK}]\npeers = [{addresses}]\n")

    async def start_operator(self, operator: Operator, *arguments: str) -> dict[str, Any]:
        """`p2pgrid init` and `p2pgrid serve` (with further arguments) for one operator, engine and all."""
        data = self.folder / operator.folder
        data.mkdir(mode=0o700)
        config = _OPERATOR_CONFIG.format(
            operator=operator,
            model=self.model,
            model_path=self._model_path,
            network=NETWORK,
            cpu_threads=max(1, (os.cpu_count() or 2) // 2),
        )
        if self._engine_url:
            config += f'engine-url = "{self._engine_url}"\n'
        (data / "config.toml").write_text(config)
        initialise = NodeProcess(operator.name, data, "init")
        await initialise.start(timeout_s=30)
        await initialise.exited()
        peers = str(self.folder / "bootstrap_peers.toml")
        node = NodeProcess(operator.name, data, "serve", "--bootstrap-peers", peers, *arguments)
        self.operators[operator] = node
        return await node.start(timeout_s=600)

    async def start_gateway(self, listen: str, *arguments: str) -> str:
        """Start the client's gateway, with further arguments; its base URL."""
        self.gateway = NodeProcess(
            "The gateway",
            self.folder / "client",
            "gateway",
            "--listen",
            listen,
            "--network",
            NETWORK,
            "--bootstrap-peers",
            str(self.folder / "bootstrap_peers.toml"),
            *arguments,
        )
        ready = await self.gateway.start(timeout_s=60)
        return str(ready["base_url"])

    async def stop(self) -> None:
        """Stop every process and all that it started."""
        await asyncio.gather(*(node.stop() for node in self.nodes))
