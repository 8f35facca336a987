"""Who is there: tables of what was heard, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.client.presence import ASK_INTERVAL_MS, FREE_MS, LIVE_MS, UNSEEN, Presence
from p2pgrid.proto.wire.offers import Capacity, ModelCapacity
from tests.factories import NOW_MS

THREE = Capacity(sequence=1, models=(ModelCapacity(model="m", free=3), ModelCapacity(model="full", free=0)))


def heard(*events: tuple[str, int]) -> Presence:
    """What is known after events, each so many milliseconds after NOW_MS."""
    presence = UNSEEN
    for name, after_ms in events:
        at_ms = NOW_MS + after_ms
        match name:
            case "confirmed":
                presence = presence.confirmed(at_ms)
            case "told":
                presence = presence.told(THREE, at_ms)
            case _:
                presence = presence.failed(at_ms)
    return presence


@pytest.mark.parametrize(
    ("events", "is_here", "live_until_ms", "ask_after_ms"),
    [
        ([], False, None, -NOW_MS),
        ([("told", 0)], False, None, -NOW_MS),
        ([("confirmed", 0)], True, LIVE_MS, ASK_INTERVAL_MS),
        ([("confirmed", 0), ("told", 7)], True, LIVE_MS, ASK_INTERVAL_MS),
        ([("confirmed", 0), ("failed", 5)], False, None, 5 + 2_000),
        ([("confirmed", 0), ("failed", 5), ("failed", 3_000)], False, None, 3_000 + 4_000),
        ([("confirmed", 0), *[("failed", 9)] * 5], False, None, 9 + 15_000),
        ([("confirmed", 0), *[("failed", 200_000)] * 9], False, None, 200_000 + 60_000),
        ([("failed", 0)], False, None, 2_000),
        ([*[("failed", 0)] * 9], False, None, 60_000),
        ([("confirmed", 0), ("failed", 5), ("confirmed", 9)], True, 9 + LIVE_MS, 9 + ASK_INTERVAL_MS),
    ],
)
def test_what_was_heard_and_what_follows(
    events: list[tuple[str, int]], is_here: bool, live_until_ms: int | None, ask_after_ms: int
) -> None:
    presence = heard(*events)
    assert presence.is_here is is_here
    assert presence.ask_ms() == NOW_MS + ask_after_ms
    assert presence.is_live(NOW_MS + (live_until_ms or 0)) is (live_until_ms is not None)
    assert not presence.is_live(NOW_MS + (live_until_ms or 0) + 1)


@pytest.mark.parametrize(
    ("events", "model", "after_ms", "free"),
    [
        ([("confirmed", 0), ("told", 0)], "m", FREE_MS, 3),
        ([("confirmed", 0), ("told", 0)], "full", 0, 0),
        ([("confirmed", 0), ("told", 0)], "other", 0, None),
        ([("confirmed", 0), ("told", 0)], "m", FREE_MS + 1, None),
        ([("confirmed", 0)], "m", 0, None),
        ([("told", 0)], "m", 0, None),
        ([("confirmed", 0), ("told", 0), ("failed", 1)], "m", 2, None),
    ],
)
def test_what_is_free_is_worth_something_for_a_moment(
    events: list[tuple[str, int]], model: str, after_ms: int, free: int | None
) -> None:
    assert heard(*events).free(model, NOW_MS + after_ms) == free


@given(st.lists(st.sampled_from(["confirmed", "told", "failed"]), max_size=12))
def test_only_its_own_word_makes_it_live_and_silence_ends_it(names: list[str]) -> None:
    presence = heard(*((name, 1_000 * n) for n, name in enumerate(names)))
    words = [name for name in names if name != "told"]
    assert presence.is_here is (bool(words) and words[-1] == "confirmed")
    assert not presence.is_live(NOW_MS + 1_000 * len(names) + LIVE_MS)
    last_ms = max((1_000 * n for n, name in enumerate(names) if name != "told"), default=0)
    assert presence.ask_ms() <= NOW_MS + last_ms + 60_000, "nobody is left unasked for longer than a minute"
