"""The payment reference: made, mangled, found again."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import UsageError
from p2pgrid.settlement.payments.reference import (
    creditor_reference_of,
    find_references,
    is_creditor_reference,
    is_reference,
    make_creditor_reference,
    make_reference,
    parse_reference,
)
from p2pgrid.settlement.payments.reference_index import Form, ReferenceIndex
from tests.settlement.payments import vectors

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
ids = st.binary(min_size=32, max_size=32)


def test_the_vectors_hold() -> None:
    assert vectors.REFERENCES.read_text() == vectors.as_text(vectors.references())


def test_the_vectors_hold_by_the_words_of_the_page_alone() -> None:
    for one in json.loads(vectors.REFERENCES.read_text())["valid"]:
        number = 0
        for character in one["end_to_end"]:
            number = number * 32 + ALPHABET.index(character)
        assert len(one["end_to_end"]) == 35
        assert number % 32749 == 1
        assert number >> 15 == int(one["id"][:40], 16)
        moved = one["rf"][4:] + one["rf"][:4]
        assert int("".join(str(int(character, 36)) for character in moved)) % 97 == 1
        assert one["rf"][4:] == one["end_to_end"][:21]


def test_readings_and_refusals_of_the_vectors() -> None:
    found = json.loads(vectors.REFERENCES.read_text())
    for one in found["read"]:
        assert parse_reference(one["text"]) == one["end_to_end"]
    for text in found["refused"]:
        with pytest.raises(UsageError):
            parse_reference(text)


def test_it_fits_the_field_and_needs_an_id() -> None:
    assert len(make_reference(bytes(32))) == 35
    assert len(make_creditor_reference(bytes(32))) == 25
    with pytest.raises(ValueError, match="32 bytes, not 20"):
        make_reference(bytes(20))


@settings(deadline=None)
@given(ids, st.integers(0, 34), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_always_noticed(record_id: bytes, at: int, character: str) -> None:
    reference = make_reference(record_id)
    wrong = reference[:at] + character + reference[at + 1 :]
    assert is_reference(wrong) is (wrong == reference)


@settings(deadline=None)
@given(ids, st.integers(0, 33))
def test_swapped_neighbours_are_always_noticed(record_id: bytes, at: int) -> None:
    reference = make_reference(record_id)
    wrong = reference[:at] + reference[at + 1] + reference[at] + reference[at + 2 :]
    assert is_reference(wrong) is (wrong == reference)


@settings(deadline=None)
@given(ids, st.integers(4, 24), st.sampled_from(ALPHABET))
def test_one_wrong_letter_or_digit_of_an_rf_reference_is_noticed(record_id: bytes, at: int, character: str) -> None:
    reference = make_creditor_reference(record_id)
    if character.isdigit() is not reference[at].isdigit():
        return  # a digit for a letter changes the number's length: ISO 11649 promises nothing
    wrong = reference[:at] + character + reference[at + 1 :]
    assert is_creditor_reference(wrong) is (wrong == reference)


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("RF18539007547034", True),
        ("RF45G72UUR", True),
        ("RF19539007547034", False),
        ("RF18", False),
        ("rf18539007547034", False),
        ("RFX8539007547034", False),
        ("RF18" + "1" * 22, False),
        ("RF18-3900754703", False),
    ],
)
def test_rf_references_of_others(text: str, ok: bool) -> None:
    assert is_creditor_reference(text) is ok


@settings(deadline=None)
@given(ids, st.text(max_size=30), st.text(max_size=30), st.integers(1, 34), st.sampled_from([" ", "\n", "-", "\r\n  "]))
def test_it_is_found_in_whatever_surrounds_it(record_id: bytes, before: str, after: str, at: int, gap: str) -> None:
    for reference in (make_reference(record_id), make_creditor_reference(record_id)):
        told = f"{before} {reference[:at]}{gap}{reference[at:].lower()} {after}"
        assert reference in find_references(told)
    assert list(ReferenceIndex([make_reference(record_id)]).find(told)) == [make_reference(record_id)]


@settings(deadline=None)
@given(st.text(max_size=200))
def test_other_text_is_no_reference(text: str) -> None:
    assert not find_references(text)


known = [make_reference(hashlib.sha256(bytes([n])).digest()) for n in range(50)]
INDEX = ReferenceIndex(known)


@settings(deadline=None)
@given(st.integers(0, 49), st.integers(16, 34), st.text("abc 123", max_size=10))
def test_one_that_was_cut_is_still_found(which: int, length: int, before: str) -> None:
    found = INDEX.find(f"{before} {known[which][:length]}")
    assert found == {known[which]: Form.CUT if length < 35 else Form.WHOLE}


edits = st.lists(
    st.tuples(st.sampled_from(["change", "drop", "add"]), st.integers(0, 34), st.sampled_from(ALPHABET)), max_size=3
)


@settings(deadline=None)
@given(st.integers(0, 49), edits)
def test_one_with_three_wrong_characters_is_still_found(which: int, wrong: list[tuple[str, int, str]]) -> None:
    text = known[which]
    for kind, at, character in wrong:
        text = (
            text[:at] + {"change": character, "drop": "", "add": character + text[at : at + 1]}[kind] + text[at + 1 :]
        )
    assert list(INDEX.find(text)) == [known[which]]


def test_one_with_more_wrong_than_that_is_not() -> None:
    reference = known[0]
    text = "".join(vectors.other(c) if at % 4 == 1 else c for at, c in enumerate(reference))
    assert not INDEX.find(text)


def test_a_whole_one_beside_a_cut_one_counts_alone() -> None:
    assert INDEX.find(f"{known[1]} {known[2][:20]}") == {known[1]: Form.WHOLE}
    assert INDEX.find(f"{known[1]} {creditor_reference_of(known[2])}") == {known[1]: Form.WHOLE, known[2]: Form.WHOLE}


@pytest.mark.parametrize(("text", "words"), [("ABC", "too few"), ("A" * 36, "too many"), ("A" * 35, "mistyped")])
def test_refusals_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_reference(text)
