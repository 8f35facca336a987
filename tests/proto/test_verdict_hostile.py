"""Whatever is done to a bundle, an audit ends in a verdict; and no altered byte goes unseen."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.codes import CODES, Party
from p2pgrid.proto.record import Record, Role
from p2pgrid.proto.verdict import Verdict, audit_records
from tests.proto.chains import bundle_of, entries_of, everyday_dealings

SIDES = (Role.PROVIDER, Role.CLIENT)


@cache
def clean_pair() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    provider, client = everyday_dealings().bundles()
    return tuple(provider), tuple(client)


def audit(provider: list[bytes], client: list[bytes]) -> Verdict:
    return audit_records([bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)])


def is_unchanged(before: list[bytes], after: list[bytes]) -> bool:
    """True if a reader makes the same of both."""

    def read(lines: list[bytes]) -> list[Record | str]:
        return [e.code if isinstance(e, InvalidRecord) else e for _, e in entries_of(lines)]

    return read(before) == read(after)


positions = st.tuples(st.sampled_from((0, 1)), st.integers(0, 60), st.integers(0, 2000), st.integers(1, 255))


@settings(max_examples=150, deadline=None)
@given(positions)
def test_any_flipped_byte_is_found_once_and_the_holder_named(where: tuple[int, int, int, int]) -> None:
    side, line, byte, mask = where
    pair = [list(clean_pair()[0]), list(clean_pair()[1])]
    line %= len(pair[side])
    altered = bytearray(pair[side][line])
    altered[byte % len(altered)] ^= mask
    pair[side][line : line + 1] = bytes(altered).split(b"\n")
    verdict = audit(*pair)
    if is_unchanged(list(clean_pair()[side]), pair[side]):
        assert verdict.clean
        return
    assert {finding.party for finding in verdict.findings} == {Party(SIDES[side].value)}
    # A byte that became a line feed leaves two halves, each of them unreadable.
    assert len(verdict.findings) == 1 + altered.count(b"\n")


@settings(max_examples=60, deadline=None)
@given(positions)
def test_a_flipped_byte_in_a_lone_bundle_is_found(where: tuple[int, int, int, int]) -> None:
    side, line, byte, mask = where
    before = list(clean_pair()[side])
    line %= len(before)
    altered = bytearray(before[line])
    altered[byte % len(altered)] ^= mask
    after = [*before[:line], bytes(altered), *before[line + 1 :]]
    verdict = audit_records([bundle_of(after, SIDES[side])])
    assert verdict.clean is is_unchanged(before, after)
    if not verdict.clean:
        assert [finding.party for finding in verdict.findings] == [Party(SIDES[side].value)]


@st.composite
def mangled(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Lines cut, dropped, moved, repeated, swapped between the bundles, or made up."""
    pair = [list(clean_pair()[0]), list(clean_pair()[1])]
    for _ in range(draw(st.integers(1, 6))):
        lines = pair[draw(st.integers(0, 1))]
        at = draw(st.integers(0, len(lines)))
        match draw(st.sampled_from(("cut", "drop", "move", "repeat", "tail", "swap", "junk"))):
            case "cut":
                lines[at : at + 1] = [line[: draw(st.integers(0, 200))] for line in lines[at : at + 1]]
            case "drop":
                del lines[at : at + draw(st.integers(1, 5))]
            case "move":
                lines[at:at] = [lines.pop() for _ in range(min(len(lines), draw(st.integers(1, 5))))]
            case "repeat":
                lines += lines[at : at + draw(st.integers(1, 9))]
            case "tail":
                del lines[at:]
            case "swap":
                pair[0], pair[1] = pair[1], pair[0]
            case "junk":
                lines.insert(at, draw(st.binary(max_size=60)))
    return pair[0], pair[1]


@settings(max_examples=80, deadline=None)
@given(mangled())
def test_mangled_bundles_give_a_verdict_and_always_the_same(pair: tuple[list[bytes], list[bytes]]) -> None:
    verdict = audit(*pair)
    assert {finding.code for finding in (*verdict.findings, *verdict.notes)} <= set(CODES)
    assert verdict.clean is not bool(verdict.findings)
    assert audit(*pair) == verdict


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_lines_changes_nothing_but_places(random: object) -> None:
    pair = [list(lines) for lines in clean_pair()]
    for lines in pair:
        random.shuffle(lines)  # type: ignore[attr-defined]
    verdict = audit(*pair)
    assert verdict.clean, verdict.findings
    assert verdict.channels == audit(*(list(lines) for lines in clean_pair())).channels


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
@pytest.mark.parametrize("side", [0, 1])
def test_an_end_cut_off_is_one_finding_against_its_holder(cut: int, side: int) -> None:
    pair = [list(lines) for lines in clean_pair()]
    kept = [*pair[side][:3], *pair[side][3:-cut]]
    dropped_own = True  # the last line is a receipt, which both sides... the provider signed alone
    pair[side] = kept
    verdict = audit(*pair)
    if side == 1 and cut == 1:
        # The provider's last proposal may never have reached the client.
        dropped_own = False
    assert [f.code for f in verdict.findings] == (["left-out"] if dropped_own else [])
    assert all(f.party is Party(SIDES[side].value) for f in verdict.findings)


def test_two_bundles_run_together_are_the_same_as_one() -> None:
    provider, client = (list(lines) for lines in clean_pair())
    verdict = audit_records([bundle_of([*provider, *client])])
    assert verdict.clean, verdict.findings
    assert "same-record-twice" in {note.code for note in verdict.notes}


def test_nothing_at_all_is_clean_and_says_so() -> None:
    verdict = audit_records([])
    assert (verdict.clean, verdict.channels) == (True, ())
