"""A cancel scope that outer cancellation does not reach into, for a bounded time."""

from __future__ import annotations

import trio


def shielded_for(timeout_s: float) -> trio.CancelScope:
    """`trio.move_on_after` that finishes what must not be left half-done, and gives up after `timeout_s`."""
    return trio.move_on_after(timeout_s, shield=True)  # type: ignore[call-arg]  # trio-typing's stub lags behind
