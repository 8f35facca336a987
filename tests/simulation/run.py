"""Histories by their seeds: run one, run many, tell one step by step."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Final

from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import Role
from tests.simulation.buyer import Buyer
from tests.simulation.checks import check_agreement, check_audit, check_honest
from tests.simulation.ledgers import Disk, MemoryDisk, SqliteDisk, make_template
from tests.simulation.lies import Lies
from tests.simulation.lying_batches import LyingBuyer, LyingSeller
from tests.simulation.lying_client import CLIENT_LIES
from tests.simulation.lying_provider import PROVIDER_LIES
from tests.simulation.observer import Broken
from tests.simulation.plans import describe, plan_for_a_liar, random_plan
from tests.simulation.seller import Seller
from tests.simulation.world import SIDES, World

Trace = Callable[[str], None]
RAM: Path | None = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


class Shelf:
    """Where a run's SQLite files are, in memory where the machine has room for that; gone at the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="p2pgrid-simulation-", dir=RAM)
        self.path = Path(self._folder.name)
        self._template = make_template(self.path / "template.sqlite")
        self._made = 0

    def sqlite_disk(self) -> SqliteDisk:
        return SqliteDisk(self.new_folder(), self._template)

    def new_folder(self) -> Path:
        self._made += 1
        return self.path / str(self._made)

    def close(self) -> None:
        self._folder.cleanup()


@contextmanager
def each_signature_checked_once() -> Iterator[None]:
    """Whether a signature fits does not change: within, what was checked before is remembered."""
    verify = PublicKey.verify
    PublicKey.verify = lru_cache(maxsize=100_000)(verify)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        PublicKey.verify = verify  # type: ignore[method-assign]


def memory_disks() -> dict[Role, Disk]:
    return {side: MemoryDisk() for side in SIDES}


def sqlite_disks(shelf: Shelf) -> dict[Role, Disk]:
    return {side: shelf.sqlite_disk() for side in SIDES}


async def honest_history(seed: int, disks: dict[Role, Disk], trace: Trace | None = None) -> World:
    """One history of two honest sides. Raises Broken."""
    random = Random(seed)
    plan = random_plan(random)
    if trace is not None:
        trace(describe(plan))
    world = World(plan, random, disks, trace=trace)
    try:
        await world.run()
        check_agreement(world)
        check_audit(world, *SIDES)
        if seed % 4 == 0:
            check_audit(world, Role.PROVIDER)
            check_audit(world, Role.CLIENT)
    finally:
        await world.close()
    return world


async def history(seed: int, liar: Role | None, disks: dict[Role, Disk], trace: Trace | None = None) -> World:
    """One history, of two honest sides where none lies."""
    return await (honest_history(seed, disks, trace) if liar is None else lying_history(seed, liar, disks, trace))


LIARS: Final[dict[Role, tuple[tuple[str, ...], ...]]] = {Role.PROVIDER: PROVIDER_LIES, Role.CLIENT: CLIENT_LIES}


async def lying_history(seed: int, liar: Role, disks: dict[Role, Disk], trace: Trace | None = None) -> World:
    """One history in which one side lies. Raises Broken where the other loses more than is published."""
    random = Random(f"{liar} {seed}")
    plan, lies = plan_for_a_liar(random), Lies(random, LIARS[liar])
    if any(name.startswith("batch:") for name in lies.repertoire):
        plan = replace(plan, shared=1.0)
    if trace is not None:
        trace(describe(plan))
        trace(f"the {liar} may lie, {lies.chance:g} of the times: {', '.join(sorted(lies.repertoire))}")
    honest = Role.CLIENT if liar is Role.PROVIDER else Role.PROVIDER
    world = World(
        plan,
        random,
        disks,
        honest=frozenset({honest}),
        lies=lies,
        trace=trace,
        seller_type=LyingSeller if liar is Role.PROVIDER else Seller,
        buyer_type=LyingBuyer if liar is Role.CLIENT else Buyer,
    )
    try:
        await world.run()
        check_honest(world, honest)
    finally:
        await world.close()
    return world


@dataclass
class Tally:
    """What happened in many histories."""

    histories: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    """Lies."""
    found: Counter[str] = field(default_factory=Counter)
    """What an audit found against the liar."""

    def add(self, world: World) -> None:
        self.histories += 1
        self.happened += world.happened
        self.told += world.lies.told
        self.found += world.found
        self.endings.update(str(s.receipt.status) if s.receipt else "no receipt" for s in world.observer.sales.values())


def run_many(seeds: Iterable[int], *, sqlite: bool = False, liar: Role | None = None) -> Tally:
    """Many histories. Raises Broken, with the command that tells the first that failed."""
    shelf, tally = Shelf() if sqlite else None, Tally()
    try:
        with asyncio.Runner() as runner, each_signature_checked_once():
            for seed in seeds:
                disks = memory_disks() if shelf is None else sqlite_disks(shelf)
                try:
                    tally.add(runner.run(history(seed, liar, disks)))
                except Exception as error:
                    options = (f" --liar {liar}" if liar else "") + (" --sqlite" if sqlite else "")
                    command = f"scripts/simulate --seed {seed} --trace{options}"
                    raise Broken(f"history {seed}: {error!r}\nReplay it: {command}") from error
    finally:
        if shelf is not None:
            shelf.close()
    return tally
