"""The engine gives the verdict of `audit_records`, whatever is wrong with the bundles and however it cuts them up."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.audit.engine import Sizes, Source, run_engine
from p2pgrid.errors import UsageError
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.log_case import LogDemands
from p2pgrid.proto.messages import Status, Usage
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import Verdict, audit_records
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.audit_cases_log import WITNESSES, log_of, proved
from tests.proto.chains import Dealings, LinesBundle, bundle_of, everyday_dealings, key, lines_of
from tests.proto.test_verdict_hostile import SIDES, mangled

SMALL = Sizes(chunk_bytes=3000, part_bytes=8000, orders_a_block=2, links_a_group=3)
"""So that even a short bundle is cut into many pieces."""


def both_verdicts(
    bundles: Sequence[LinesBundle], sizes: Sizes = SMALL, end: bytes = b"\n", **options: Any
) -> tuple[Verdict, Verdict]:
    """The verdict of all records at once, and the engine's."""
    with TemporaryDirectory() as folder:
        sources = []
        for index, bundle in enumerate(bundles):
            path = Path(folder) / f"{index}.jsonl"
            path.write_bytes(b"\n".join(bundle.lines) + end)
            sources.append(Source(path, bundle.source, bundle.side))
        whole = audit_records([Bundle(s.name, read_bundle(s.path), s.side) for s in sources], **options)
        return whole, run_engine(sources, 1, lambda *_: None, sizes, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.name}")
def test_every_case(case: AuditCase) -> None:
    whole, cut = both_verdicts(case.build(), **case.options)
    assert cut == whole


@settings(max_examples=40, deadline=None)
@given(mangled())
def test_mangled_bundles(pair: tuple[list[bytes], list[bytes]]) -> None:
    try:
        whole, cut = both_verdicts([bundle_of(lines, side) for lines, side in zip(pair, SIDES, strict=True)])
    except UsageError:
        return  # nothing of a bundle is left
    assert cut == whole


@cache
def three_channels() -> tuple[tuple[bytes, ...], ...]:
    """What one provider and two clients hold: two channels of one client, one of another."""
    grids = [everyday_dealings(), everyday_dealings("again"), Dealings(client=key("other"), nonce="other")]
    for grid in grids:
        grid.deal(countersign=False)
        for _ in range(4):
            grid.deal(output=40)
        grid.meter(grid.order(), Usage(prompt_tokens=9, output_tokens=128))
        grid.deal(Status.CANCELLED, output=140, countersign=False)
        grid.deal(output=150, countersign=False)
    provider = lines_of([s for grid in grids for s in grid.provider_has])
    log = log_of(grids[0])
    attachments = proved(grids[0], log, log.checkpoint(0, WITNESSES, grids[0].now_ms), 0, 1, 5)
    provider += [attachment.to_json_line() for attachment in attachments]
    first = lines_of([s for grid in grids[:2] for s in grid.client_has])
    return tuple(dict.fromkeys(provider)), tuple(dict.fromkeys(first)), tuple(lines_of(grids[2].client_has))


def altered(line: bytes, random: Random) -> bytes:
    """A byte of the payload or a signature changed, in base64 that stays base64."""
    try:
        shown = json.loads(line)
        of = random.choice([(shown, "payload"), *((s, "signature") for s in shown["signatures"])])
        raw = bytearray(base64.b64decode(of[0][of[1]]))
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        of[0][of[1]] = base64.b64encode(raw).decode()
    except (ValueError, KeyError, IndexError, TypeError):
        return line[:-1]
    return json.dumps(shown, separators=(",", ":")).encode()


def without_a_signature(line: bytes, random: Random) -> bytes:
    try:
        shown = json.loads(line)
        shown["signatures"].pop(random.randrange(len(shown["signatures"])))
    except (ValueError, KeyError, TypeError):
        return b""
    return json.dumps(shown, separators=(",", ":")).encode()


def said_twice(line: bytes, random: Random) -> bytes:
    """Seems to be about another order than it is."""
    other = random.choice([each for lines in three_channels() for each in lines])
    payload = other.split(b'"payload":"')[1].split(b'"')[0]
    return line.replace(b'"payload":', b'"payload":"' + payload + b'","payload":', 1)


def spread_out(line: bytes, random: Random) -> bytes:
    try:
        return json.dumps(json.loads(line)).encode() + b" \r"
    except ValueError:
        return line


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    altered,
    altered,
    without_a_signature,
    said_twice,
    spread_out,
    lambda line, random: line[: random.randrange(len(line) + 1)],
    lambda line, random: b"",
    lambda line, random: b" " + line,
)


def damage(bundles: list[list[bytes]], random: Random, times: int) -> None:
    for _ in range(times):
        lines = random.choice(bundles)
        if not lines:
            continue
        at = random.randrange(len(lines))
        match random.randrange(7):
            case 0:
                del lines[at : at + random.choice([1, 1, 2, 20])]
            case 1:
                lines += lines[at : at + random.choice([1, 5, 30])]
            case 2:
                lines += random.choice(bundles)[at : at + 5]
            case 3:
                random.shuffle(lines)
            case _:
                lines[at] = random.choice(CHANGES)(lines[at], random)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6), st.booleans(), st.sampled_from([b"", b"\n", b"\n\n  \n"]))
def test_damaged_bundles_of_several_channels(seed: int, times: int, is_named: bool, end: bytes) -> None:
    random = Random(seed)
    lines = [list(each) for each in three_channels()][: random.choice([1, 2, 3, 3])]
    damage(lines, random, times)
    sides = (Role.PROVIDER, Role.CLIENT, Role.CLIENT) if is_named else (None, None, None)
    bundles = [bundle_of(each, side, f"{i}") for i, (each, side) in enumerate(zip(lines, sides, strict=False))]
    sizes = Sizes(
        chunk_bytes=random.choice([700, 5000, 10**6]),
        part_bytes=random.choice([2000, 20_000, 10**6]),
        orders_a_block=random.choice([1, 3, 100]),
        links_a_group=random.choice([1, 4, 100]),
    )
    try:
        whole, cut = both_verdicts(bundles, sizes, end, log_demands=LogDemands(proofs=random.random() < 0.5))
    except UsageError:
        return
    assert cut == whole
