"""No megabyte costs its reader more than a tenth of a second or fifty megabytes, however it is made."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import pytest

from tests.fuzz.heavy import heavy_inputs
from tests.fuzz.targets import MB, TARGETS, Target

MAX_CPU_S: Final = 0.100
MAX_PEAK_BYTES: Final = 50 * MB
TRIES: Final = 8
"""The least of so many counts: another program's work between two looks at the clock is not the parser's."""
_NOT_WORTH_TRACING_S: Final = 0.010
"""What is over so soon has no time to allocate much: the decoders fill less than a megabyte in a millisecond."""
_TOO_SHORT_TO_COMPARE_S: Final = 0.020


@pytest.fixture(scope="module", autouse=True)
def own_garbage_only() -> Iterator[None]:
    """The collector's passes over the rest of this process are not the parser's cost."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def cpu_s(run: Callable[[], object]) -> float:
    """CPU time of `run`: the least of several tries, one if that is good enough."""
    least = float("inf")
    for _ in range(TRIES):
        started = time.process_time()
        run()
        least = min(least, time.process_time() - started)
        if least < MAX_CPU_S * 0.8 or least > MAX_CPU_S * 10:
            break
    return least


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that `run` had allocated at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


PARSERS = {name: target for name, target in TARGETS.items() if not target.is_machine}
MACHINES = {name: target for name, target in TARGETS.items() if target.is_machine}


@pytest.mark.parametrize("target", PARSERS.values(), ids=PARSERS.keys())
def test_what_a_megabyte_costs(target: Target) -> None:
    too_dear = []
    target.accepts(target.samples()[0])
    for size in sorted({MB, min(MB, target.max_bytes)}):
        for name, data in heavy_inputs(target, size):
            spent_s = cpu_s(partial(target.accepts, data))
            peak = peak_bytes(partial(target.accepts, data)) if spent_s > _NOT_WORTH_TRACING_S else 0
            if spent_s > MAX_CPU_S or peak > MAX_PEAK_BYTES:
                too_dear.append(f"{name} ({size} bytes): {spent_s * 1000:.0f} ms, {peak / MB:.1f} MB")
    assert not too_dear, "\n".join(too_dear)


@pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES.keys())
def test_what_a_machine_costs_grows_with_the_bytes_alone(target: Target) -> None:
    """Four times the bytes: linear is four times the cost, quadratic sixteen times."""
    small, large = min(MB, target.max_bytes) // 20, min(MB, target.max_bytes) // 5
    too_dear = []
    target.accepts(target.samples()[0])
    for (name, less), (_, more) in zip(heavy_inputs(target, small), heavy_inputs(target, large), strict=True):
        spent_s = cpu_s(partial(target.accepts, more))
        if spent_s < _TOO_SHORT_TO_COMPARE_S:
            continue
        at_first_s = cpu_s(partial(target.accepts, less))
        peak = peak_bytes(partial(target.accepts, more))
        if spent_s > 8 * at_first_s or peak > MAX_PEAK_BYTES:
            too_dear.append(f"{name}: {at_first_s * 1000:.1f} ms, then {spent_s * 1000:.1f} ms, {peak / MB:.1f} MB")
    assert not too_dear, "\n".join(too_dear)
