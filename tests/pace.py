"""How fast this machine is just now, measured by a fixed piece of work: a limit in seconds alone would test it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

REFERENCE_S: Final = 0.010
"""What `reference` takes on the machine that limits are for: an idle one, with cores like those of CI."""


def reference() -> int:
    """Work of the kind that parsers do: small objects, short texts, a dictionary."""
    found: dict[str, int] = {}
    for number in range(45_000):
        found[f"k{number & 1023}"] = number
    return len(found)


def cpu_s(run: Callable[[], object]) -> float:
    """CPU time of one run."""
    started = time.process_time()
    run()
    return time.process_time() - started


def slowness() -> float:
    """How many times longer than on the machine that limits are for things take now; never less than 1."""
    return max(min(cpu_s(reference), cpu_s(reference)) / REFERENCE_S, 1.0)
