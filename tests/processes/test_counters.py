"""Counters that processes share: their sums, and how far a limit can be passed."""

from __future__ import annotations

import os
from itertools import permutations

import pytest

from p2pgrid.clock import unix_ms
from p2pgrid.config import ModelConfig
from p2pgrid.engine.http import HttpEngine
from p2pgrid.errors import Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.processes.counters import SharedCounters, make_memory
from p2pgrid.provider.admission import BODY_BYTES, Admission, ServedModel, running_column
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.limits import ProviderLimits
from tests.factories import CLIENT, PROVIDER

COLUMNS = (BODY_BYTES, running_column("m"))


def shared(rows: int) -> list[SharedCounters]:
    memory = make_memory(rows, len(COLUMNS))
    try:
        return [SharedCounters(memory, rows, COLUMNS, row) for row in range(rows)]
    finally:
        os.close(memory)


def admissions(
    n: int, *, concurrency: int, limits: ProviderLimits | None = None
) -> list[tuple[Admission, ServedModel]]:
    """What each of `n` processes goes by."""
    limits = limits or ProviderLimits()
    config = ModelConfig(name="m", price_input_eur="1", price_output_eur="1", concurrency=concurrency)
    made = []
    for counters in shared(n):
        engine = HttpEngine("http://127.0.0.1:1")
        model = ServedModel(name="m", engine=engine, concurrency=config.concurrency, is_up=True, counters=counters)
        channels = Channels(MemoryLedger(), PROVIDER, limits, unix_ms)
        made.append((Admission({"m": model}, channels, limits, counters), model))
    return made


def test_each_process_writes_its_row_and_reads_the_sum() -> None:
    one, two, three = shared(3)
    one.set(BODY_BYTES, 5)
    two.set(BODY_BYTES, 2**40)
    three.set(running_column("m"), 1)
    assert {counters.total(BODY_BYTES) for counters in (one, two, three)} == {5 + 2**40}
    assert two.others(BODY_BYTES) == 5 and one.own(BODY_BYTES) == 5
    one.clear_row(1)
    assert three.total(BODY_BYTES) == 5


def test_slots_are_one_pool_whoever_takes_them() -> None:
    processes = admissions(3, concurrency=4)
    for (admission, model), _ in zip(processes + processes, range(4), strict=False):
        assert admission.check("m") is model
        model.running += 1
    for admission, _ in processes:
        with pytest.raises(Refused, match="4 orders") as refused:
            admission.check("m")
        assert refused.value.code == "busy"
    processes[1][1].running -= 1
    for admission, model in processes:
        assert admission.check("m") is model


def test_a_limit_is_passed_by_one_for_each_further_process_at_most() -> None:
    """Whatever the order in which processes look and take: between the two a process does nothing else."""
    n, concurrency = 3, 2
    steps = [(process, step) for process in range(n) for step in ("look", "take")]
    worst = 0
    for order in permutations(steps):
        if any(order.index((process, "look")) > order.index((process, "take")) for process in range(n)):
            continue
        processes = admissions(n, concurrency=concurrency)
        processes[0][1].running += 1
        may: set[int] = set()
        for process, step in order:
            admission, model = processes[process]
            if step == "look":
                try:
                    admission.check("m")
                except Refused:
                    continue
                may.add(process)
            elif process in may:
                model.running += 1
        worst = max(worst, processes[0][1].running_in_all)
    assert worst == concurrency + n - 1


def test_room_for_bodies_is_one_pool() -> None:
    (one, _), (two, _) = admissions(2, concurrency=1, limits=ProviderLimits(body_bytes=100))
    client = CLIENT.public_key
    one.reserve_body(client, 60)
    with pytest.raises(Refused):
        two.reserve_body(client, 41)
    two.reserve_body(client, 40)
    one.release_body(client, 60)
    two.reserve_body(client, 60)
