"""Whatever the bytes, a parser takes them or raises an error of ours."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import P2pgridError
from p2pgrid.proto.wire.base import Frame
from tests.fuzz.mutation import MUTATIONS, TOKENS, mutate
from tests.fuzz.targets import TARGETS, Target

ROOT: Final = Path(__file__).resolve().parents[2]
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
    assert {f"frame-{frame.__name__.lower()}" for frame in Frame.__subclasses__()} <= set(TARGETS)


def test_only_errors_of_ours_are_allowed() -> None:
    assert all(issubclass(error, P2pgridError) for target in TARGETS.values() for error in target.allowed)


def _public_parsers() -> set[str]:
    """Functions that read bytes or text of somebody else's, by their names' first word."""
    found = set()
    for path in sorted((ROOT / "p2pgrid").rglob("*.py")):
        if path.relative_to(ROOT / "p2pgrid").parts[0] in ("cli", "demo", "engine"):
            continue  # what their owner writes
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or not node.args.args:
                continue
            annotation = node.args.args[0].annotation
            takes = {name.id for name in ast.walk(annotation) if isinstance(name, ast.Name)} if annotation else set()
            if node.name.split("_")[0] in ("parse", "unpack", "verify") and takes & {"bytes", "str"}:
                found.add(node.name)
    return found


ELSEWHERE: Final = {
    # read within another parser that has a target
    "parse_version", "parse_hello", "verify_proof", "parse_reason", "parse_credit", "parse_ping", "parse_line",
    "parse_move", "verify_claim", "verify_any_membership",
    "parse_decimal", "verify_cosignature", "verify_inclusion", "parse_frame", "parse_countries", "parse_price",
    "parse_tokens", "parse_flag",
    # what the node's owner writes
    "parse_host_port", "parse_tariff", "parse_witness", "parse_price_eur", "parse_amount_eur", "parse_budget",
    "parse_days", "parse_relay_use", "parse_group_key",
}  # fmt: skip


def test_every_parser_has_a_target() -> None:
    registry = (Path(__file__).parent / "targets.py").read_text()
    missing = {name for name in _public_parsers() if not re.search(rf"\b{name}\b", registry)} - ELSEWHERE
    assert not missing, f"add a target to tests/fuzz/targets.py for {sorted(missing)}, with what an honest peer sends"
    assert _public_parsers() >= ELSEWHERE, "ELSEWHERE names what is no parser any more"
