"""No megabyte costs its reader more than a tenth of a second or fifty megabytes, however it is made."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.fuzz.heavy import heavy_inputs
from tests.fuzz.targets import MB, TARGETS, Target

MAX_CPU_S: Final = 0.100
MAX_PEAK_BYTES: Final = 50 * MB
TRIES: Final = 8
"""The least of so many counts: another program's work between two looks at the clock is not the parser's."""
_NOT_WORTH_TRACING_S: Final = 0.002
"""What is over so soon has no time to allocate much."""


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


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_what_a_megabyte_costs(target: Target) -> None:
    sizes = {MB, min(MB, target.max_bytes)}
    too_dear = []
    target.accepts(target.samples()[0])
    for size in sorted(sizes):
        for name, data in heavy_inputs(target, size):
            spent_s = cpu_s(lambda d=data: target.accepts(d))  # type: ignore[misc]
            peak = peak_bytes(lambda d=data: target.accepts(d)) if spent_s > _NOT_WORTH_TRACING_S else 0  # type: ignore[misc]
            if spent_s > MAX_CPU_S or peak > MAX_PEAK_BYTES:
                too_dear.append(f"{name} ({size} bytes): {spent_s * 1000:.0f} ms, {peak / MB:.1f} MB")
    assert not too_dear, "\n".join(too_dear)
