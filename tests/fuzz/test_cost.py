"""No megabyte costs its reader more than a tenth of a second or fifty megabytes, however it is made.

The tenth of a second is of an idle machine with cores like those of CI. How fast this one is just now is measured
beside each input that takes longer (`tests.pace`).
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Final

import pytest

from tests.fuzz.heavy import heavy_inputs, own_inputs
from tests.fuzz.targets import MB, TARGETS, Target
from tests.pace import cpu_s, slowness

MAX_CPU_S: Final = 0.100
MAX_PEAK_BYTES: Final = 50 * MB
TRIES: Final = 8
"""The least of so many counts: another program's work between two looks at the clock is not the parser's."""
_NOT_WORTH_TRACING_S: Final = 0.010
"""What is over so soon has no time to allocate much: the decoders fill less than a megabyte in a millisecond."""
_TOO_SHORT_TO_COMPARE_S: Final = 0.020

PARSERS = [target for target in TARGETS.values() if target.is_peers and not target.is_machine]
PARSERS = [target for target in PARSERS if "audit" not in target.name]  # an audit's cost is of its records' signatures
PARSERS.sort(key=lambda target: (target.form, target.max_bytes))  # neighbours share their inputs
MACHINES = [
    target for target in TARGETS.values() if target.is_peers and target.is_machine and "audit" not in target.name
]


@pytest.fixture(scope="module", autouse=True)
def own_garbage_only() -> Iterator[None]:
    """The collector's passes over the rest of this process are not the parser's cost."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def is_too_dear(run: Callable[[], object]) -> str:
    """Empty if the run costs less than `MAX_CPU_S` on the machine that it is for; else what it costs there."""
    spent_s = cpu_s(run)
    if spent_s < MAX_CPU_S:
        return ""
    least = float("inf")
    for _ in range(TRIES):
        beside = slowness()
        least = min(least, cpu_s(run) / beside)
        if least < MAX_CPU_S:
            return ""
    return f"{least * 1000:.0f} ms"


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that `run` had allocated at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@lru_cache(maxsize=1)
def inputs(form: str, size: int) -> list[tuple[str, bytes]]:
    """The inputs of a form that are not a target's own."""
    return list(heavy_inputs(form, size))


@pytest.mark.parametrize("target", PARSERS, ids=lambda target: target.name)
def test_what_a_megabyte_costs(target: Target) -> None:
    too_dear = []
    target.accepts(target.samples()[0])
    # What is longer than the parser looks at is refused by its length: one input shows it.
    sizes = [(MB, 1), (target.max_bytes, None)] if target.max_bytes < MB else [(MB, None)]
    for size, n in sizes:
        for name, data in [*inputs(target.form, size)[:n], *own_inputs(target, size)][:n]:
            run = partial(target.accepts, data)
            cost = is_too_dear(run)
            peak = peak_bytes(run) if cpu_s(run) > _NOT_WORTH_TRACING_S else 0
            if cost or peak > MAX_PEAK_BYTES:
                too_dear.append(f"{name} ({size} bytes): {cost}, {peak / MB:.1f} MB")
    assert not too_dear, "\n".join(too_dear)


@pytest.mark.parametrize("target", MACHINES, ids=lambda target: target.name)
def test_what_a_machine_costs_grows_with_the_bytes_alone(target: Target) -> None:
    """Four times the bytes: linear is four times the cost, quadratic sixteen times."""
    small, large = min(MB, target.max_bytes) // 20, min(MB, target.max_bytes) // 5
    too_dear = []
    target.accepts(target.samples()[0])
    lesser = [*heavy_inputs(target.form, small), *own_inputs(target, small)]
    greater = [*heavy_inputs(target.form, large), *own_inputs(target, large)]
    for (name, less), (_, more) in zip(lesser, greater, strict=True):
        spent_s = cpu_s(partial(target.accepts, more))
        if spent_s < _TOO_SHORT_TO_COMPARE_S:
            continue
        ratio = min(
            cpu_s(partial(target.accepts, more)) / max(cpu_s(partial(target.accepts, less)), 0.001) for _ in range(3)
        )
        peak = peak_bytes(partial(target.accepts, more))
        if ratio > 8 or peak > MAX_PEAK_BYTES:
            too_dear.append(f"{name}: {ratio:.1f} times for four times the bytes, {peak / MB:.1f} MB")
    assert not too_dear, "\n".join(too_dear)
