"""Histories by their seeds: run one, run many, tell one step by step."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from p2pgrid.proto.record import Role
from tests.simulation.checks import check_agreement, check_audit
from tests.simulation.ledgers import Disk, MemoryDisk, SqliteDisk, make_template
from tests.simulation.observer import Broken
from tests.simulation.plans import describe, random_plan
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


@dataclass
class Tally:
    """What happened in many histories."""

    histories: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)

    def add(self, world: World) -> None:
        self.histories += 1
        self.happened += world.happened
        self.endings.update(str(s.receipt.status) if s.receipt else "no receipt" for s in world.observer.sales.values())


def run_honest(seeds: Iterable[int], *, sqlite: bool = False) -> Tally:
    """Many histories. Raises Broken, with the command that tells the first that failed."""
    shelf, tally = Shelf() if sqlite else None, Tally()
    try:
        with asyncio.Runner() as runner:
            for seed in seeds:
                disks = memory_disks() if shelf is None else sqlite_disks(shelf)
                try:
                    tally.add(runner.run(honest_history(seed, disks)))
                except Exception as error:
                    option = " --sqlite" if sqlite else ""
                    command = f"scripts/simulate --seed {seed} --trace{option}"
                    raise Broken(f"history {seed}: {error!r}\nReplay it: {command}") from error
    finally:
        if shelf is not None:
            shelf.close()
    return tally
