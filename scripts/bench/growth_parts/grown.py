"""Systems under test that have grown: nodes that find records of a long life in their data folders."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from path_parts.bench import Bench
from path_parts.process import BenchError, say
from path_parts.systems import P2pgrid, get
from path_parts.toolbox import BUILD, ROOT

from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.sqlite import SqliteLedger

from .fill import add_channels, enter_log, fill_both, offers_like, write_offers

FOLDER: Final = BUILD / "growth"
_KEPT_S: Final = 7 * 86_400
"""A filled ledger is used again for so long: its channel lasts for 90 days."""
_MADE_BY: Final = ("p2pgrid/ledger", "p2pgrid/proto/messages.py", "scripts/bench/growth_parts/fill.py")


class Grown(P2pgrid):
    """Nodes that begin with copies of the data folders in `seed`. See `grown`."""

    seed: ClassVar[Path]
    ready_s = 600.0

    def prepare_data(self, config: str) -> None:
        for node in ("gateway", "provider"):
            shutil.copytree(self.seed / node, self.folder / node)
        self.write_config(config)

    def _is_on_sale(self) -> bool:
        """The offers of sellers that are gone do not count: a link has to be up."""
        page = get(self.port, "/health")
        return page is not None and json.loads(page)["links"] > 0

    def heads(self) -> dict[str, int]:
        """Receipts that both have signed, of the channel between the two, by each side's ledger."""
        client = DataFolder(self.folder / "gateway").load_key().public_key.raw
        found = {}
        for node in ("gateway", "provider"):
            with SqliteLedger.open_readonly(self.folder / node / "ledger.sqlite") as ledger:
                own = [one for one in ledger.channels() if one.message.client == client]
                found[node] = sum(ledger.head(one.message.channel).countersigned for one in own)
        return found


@dataclass(frozen=True, slots=True)
class Dimension:
    """What grows, its sizes, and what makes the data folders of a size."""

    name: str
    title: str
    sizes: tuple[int, ...]
    make: Callable[[Seeds, int], Path]

    def systems(self, seeds: Seeds, sizes: Sequence[int]) -> list[type[Grown]]:
        """One system for each size."""
        found = []
        for size in sizes:
            fields = {"name": f"{self.name}-{size}", "label": f"{size:,} {self.title}", "seed": self.make(seeds, size)}
            found.append(type(f"Grown{size}", (Grown,), fields))
        return found


class Seeds:
    """Data folders to begin with, made once: `base` by nodes that have sold a little, the others from it."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder: Final = folder / _fingerprint()
        self.base: Final = self.folder / "base"

    def make_base(self) -> None:
        """Run a gateway and a provider, buy some answers, and keep what they leave. Raises BenchError."""
        if self._is_there(self.base):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        run = self.folder / "run"
        with Bench([P2pgrid], most_streams=16, folder=run):
            pass
        for node in ("gateway", "provider"):
            shutil.copytree(run / P2pgrid.name / node, self.base / node)
        shutil.rmtree(run)
        (self.base / "gateway" / "offers.json").unlink(missing_ok=True)
        self._finish(self.base, {})

    def ledger(self, receipts: int) -> Path:
        """Both sides' folders with `receipts` more than the base has, made from the next smaller ones that are there.

        Raises BenchError.
        """
        if receipts == 0:
            return self.base
        wanted = self.folder / f"ledger-{receipts}"
        if not self._is_there(wanted):
            smaller = [size for size in self._ledgers() if size < receipts]
            start = max(smaller, default=0)
            self._copy(self.ledger(start), wanted)
            say(f"  .. Fill both ledgers with {receipts - start:,} receipts that both have signed")
            began_s = time.monotonic()
            head = fill_both(wanted / "gateway", wanted / "provider", receipts - start)
            asyncio.run(enter_log(DataFolder(wanted / "provider")))
            self._finish(wanted, {"head": head.last_receipt_id.hex(), "took_s": time.monotonic() - began_s})
        return wanted

    def channels(self, count: int) -> Path:
        """A provider with `count` channels of other clients."""
        wanted = self.folder / f"channels-{count}"
        if not self._is_there(wanted):
            self._copy(self.base, wanted)
            say(f"  .. Open {count:,} channels of other clients, with a sale each")
            provider = DataFolder(wanted / "provider")
            asyncio.run(add_channels(provider.ledger_file, count, provider=provider.load_key()))
            asyncio.run(enter_log(provider))
            self._finish(wanted, {})
        return wanted

    def offers(self, count: int) -> Path:
        """A gateway that remembers `count` offers of the model, all dearer than that of the base."""
        wanted = self.folder / f"offers-{count}"
        if not self._is_there(wanted):
            self._copy(self.base, wanted)
            say(f"  .. Sign {count:,} offers of other providers")
            self.write_market(wanted / "gateway", count)
            self._finish(wanted, {})
        return wanted

    def write_market(self, gateway: Path, count: int) -> None:
        """The gateway's file of offers."""
        with SqliteLedger.open_readonly(self.base / "gateway" / "ledger.sqlite") as ledger:
            [channel] = ledger.channels()
            [last] = ledger.receipts(channel=channel.message.channel, limit=1)
            offer = ledger.offer(last.receipt.offer)
        if offer is None:
            raise BenchError("the base's ledger lacks the offer of its last receipt.")
        made = offers_like(offer.message, count, now_ms=time.time_ns() // 1_000_000)
        write_offers(DataFolder(gateway).offers_file, made)

    def _ledgers(self) -> list[int]:
        found = [path for path in self.folder.glob("ledger-*") if self._is_there(path)]
        return [int(path.name.removeprefix("ledger-")) for path in found]

    def _copy(self, source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("made.json"))

    def _finish(self, folder: Path, about: dict[str, Any]) -> None:
        """It is whole only with this file."""
        (folder / "made.json").write_text(json.dumps({"at": time.time(), **about}))

    def _is_there(self, folder: Path) -> bool:
        made = folder / "made.json"
        return made.exists() and time.time() - json.loads(made.read_text())["at"] < _KEPT_S


DIMENSIONS: Final = (
    Dimension("ledger", "receipts on record before", (0, 10_000, 100_000, 1_000_000), Seeds.ledger),
    Dimension("channels", "channels of other clients", (10, 1_000, 10_000), Seeds.channels),
    Dimension("offers", "offers known", (10, 1_000, 10_000), Seeds.offers),
)


def _fingerprint() -> str:
    """Another one where records, ledgers or their making changed."""
    digest = hashlib.sha256()
    for name in _MADE_BY:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
