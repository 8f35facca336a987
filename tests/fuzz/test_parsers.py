"""Whatever the bytes, a parser takes them or raises an error of ours."""

from __future__ import annotations

import os
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import P2pgridError
from p2pgrid.proto import wire
from tests.fuzz.mutation import MUTATIONS, TOKENS, mutate
from tests.fuzz.targets import TARGETS, Target

EXAMPLES: Final = int(os.environ.get("P2PGRID_FUZZ_EXAMPLES", "50"))
"""For each target. `scripts/fuzz` looks longer."""

_settings = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)
steps = st.lists(st.tuples(st.integers(0, len(MUTATIONS) - 1), st.integers(0, 5000), st.integers(0, 600)), max_size=5)
made_up = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(TOKENS)), max_size=8).map(b"".join)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_what_an_honest_peer_sends_is_taken(target: Target) -> None:
    samples = target.samples()
    assert samples
    assert any(target.accepts(sample) for sample in samples)
    assert all(len(sample) <= target.max_bytes for sample in samples)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_no_error_but_ours_escapes(target: Target) -> None:
    samples = target.samples()

    @_settings
    @given(st.one_of(made_up, st.sampled_from(samples)), steps)
    def run(data: bytes, mutations: list[tuple[int, int, int]]) -> None:
        target.accepts(mutate(data, mutations, samples))

    run()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_every_sample_cut_anywhere(target: Target) -> None:
    for sample in target.samples():
        step = max(1, len(sample) // 60)
        for end in range(0, len(sample), step):
            target.accepts(sample[:end])
            target.accepts(sample[end:])


def test_every_unsigned_frame_has_a_target() -> None:
    assert {f"frame-{frame.__name__.lower()}" for frame in wire.Frame.__subclasses__()} <= set(TARGETS)


def test_only_errors_of_ours_are_allowed() -> None:
    assert all(issubclass(error, P2pgridError) for target in TARGETS.values() for error in target.allowed)
