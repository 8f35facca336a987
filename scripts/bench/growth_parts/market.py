"""A client's book of offers by itself: what taking in an offer costs, its memory, and what a choice costs.

Each size is a process of its own: `python -m growth_parts.market FILE` reads a gateway's file of offers, and prints one
JSON object.
"""

from __future__ import annotations

import base64
import functools
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from path_parts.bench import Cores
from path_parts.process import memory_bytes, say
from path_parts.systems import MODEL
from path_parts.toolbox import ROOT

from p2pgrid.client.choice import UNKNOWN, Preselection, preselect, rank
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.purchase import purchase_of
from p2pgrid.client.shortlist import Shortlists
from p2pgrid.client.wishes import Wishes
from p2pgrid.clock import unix_ms
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.messages import ENDPOINTS

from .fill import BODY
from .grown import Seeds

CHOICES: Final = 2_000
ROUNDS: Final = 3


class _Nowhere:
    """A network in which nobody is found."""

    async def find_providers(self, key: str, **_: Any) -> list[PeerAddress]:
        return []

    async def fetch_offer(self, peer: PeerAddress, **_: Any) -> bytes:
        raise NotImplementedError

    fetch_capacity = fetch_offer


def measure_market(seeds: Seeds, sizes: Sequence[int]) -> dict[str, Any]:
    """Every size in turn, several times: medians."""
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for number in range(ROUNDS):
        for size in sizes:
            say(f"  .. Book of offers, round {number + 1} of {ROUNDS}: {size:,} offers")
            file = seeds.offers(size) / "gateway" / "offers.json"
            core = Cores.of_this_machine().path
            pinned = [] if core is None else ["taskset", "-c", str(core)]
            command = [*pinned, sys.executable, "-m", "growth_parts.market", str(file)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            found[size].append(json.loads(done.stdout))
    return {str(size): {key: median(one[key] for one in rounds) for key in rounds[0]} for size, rounds in found.items()}


def measure(file: Path) -> dict[str, float]:
    """One size, in this process."""
    read = json.loads(file.read_bytes())["offers"]
    offers = [(PeerAddress(one["peer_id"], tuple(one["addresses"])), base64.b64decode(one["record"])) for one in read]
    purchase, wishes = purchase_of(ENDPOINTS[0], BODY), Wishes()
    book = OfferBook(_Nowhere(), now_ms=unix_ms)
    gc.collect()
    memory = memory_bytes(_own_pid())
    # The median: the first few meet cold caches, which among ten offers would be all there is.
    add_us = median([_cpu_us(functools.partial(book.add, raw, peer), 1) for peer, raw in offers])
    gc.collect()
    kept = len(book.offers())
    memory = memory_bytes(_own_pid()) - memory

    def look_through(model: str, endpoint: str, wishes: Wishes) -> Preselection:
        return preselect(
            book.offers_of(model), model=model, endpoint=endpoint, wishes=wishes, operator_of=lambda _, __: None
        )

    def choose(lists: Shortlists) -> None:
        now_ms = unix_ms()
        short = lists.of(
            MODEL, ENDPOINTS[0], wishes, version=book.version, now_ms=now_ms, standing_of=lambda _: UNKNOWN
        )
        choice = rank(
            short,
            fields=purchase.fields,
            body_bytes=len(purchase.body),
            wishes=wishes,
            standing_of=lambda _: UNKNOWN,
            now_ms=now_ms,
        )
        assert choice.candidates

    lists = Shortlists(look_through)
    choose(lists)
    return {
        "kept": kept,
        "add_us": add_us,
        "kb_per_offer": memory / 1000 / kept,
        "first_choice_us": median(_cpu_us(lambda: choose(Shortlists(look_through)), 1) for _ in range(9)),
        "choice_us": _cpu_us(lambda: choose(lists), CHOICES),
    }


def _cpu_us(work: Callable[[], object], times: int) -> float:
    began_ns = time.process_time_ns()
    for _ in range(times):
        work()
    return (time.process_time_ns() - began_ns) / 1e3 / times


def _own_pid() -> int:
    return int(Path("/proc/self").readlink().name)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
