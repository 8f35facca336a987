"""The engine gives the verdict of `audit_records`, whatever is wrong with the bundles and however it cuts them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings

from p2pgrid.audit.engine import Source, run_engine
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.verdict import Bundle, Verdict, audit_records
from tests.proto.chains import LinesBundle, bundle_of
from tests.proto.test_verdict import VECTORS
from tests.proto.test_verdict_hostile import SIDES, mangled


def both_verdicts(bundles: Sequence[LinesBundle], **sizes: int) -> tuple[Verdict, Verdict]:
    """The verdict of all records at once, and the engine's."""
    with TemporaryDirectory() as folder:
        sources = []
        for index, bundle in enumerate(bundles):
            path = Path(folder) / f"{index}.jsonl"
            path.write_bytes(b"".join(line + b"\n" for line in bundle.lines))
            sources.append(Source(path, bundle.source, bundle.side))
        whole = audit_records([Bundle(s.name, read_bundle(s.path), s.side) for s in sources])
        return whole, run_engine(sources, 1, lambda *_: None, **{"chunk_bytes": 3000, "part_bytes": 4000, **sizes})


@pytest.mark.parametrize(("code", "party", "build"), VECTORS, ids=[f"{c}-{b.__name__}" for c, _, b in VECTORS])
def test_every_vector(code: str, party: object, build: Callable[[], list[LinesBundle]]) -> None:
    whole, cut = both_verdicts(build())
    assert cut == whole


@settings(max_examples=60, deadline=None)
@given(mangled())
def test_mangled_bundles(pair: tuple[list[bytes], list[bytes]]) -> None:
    bundles = [bundle_of(lines, side) for lines, side in zip(pair, SIDES, strict=True)]
    if any(all(not is_record(line) for line in bundle.lines[:64]) for bundle in bundles):
        return
    whole, cut = both_verdicts(bundles)
    assert cut == whole


def is_record(line: bytes) -> bool:
    return line.startswith(b'{"type"') and line.endswith(b"}]}")
