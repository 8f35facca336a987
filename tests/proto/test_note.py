"""Signed notes: vectors of other implementations, form, and what is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import verify_cosignature
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.note import (
    MAX_NOTE_BYTES,
    Note,
    NoteKey,
    SignatureKind,
    from_base64,
    parse_decimal,
    parse_note,
    parse_note_key,
    sign_text,
    verify_text,
)
from tests.factories import CLIENT, PROVIDER

# golang.org/x/mod/sumdb/note, note_test.go.
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SKEY = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = (
    "\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
)
NOTE = f"{TEXT}\n{LINE}\n".encode()

# A cosignature made by github.com/transparency-dev/formats/note.
COSIGNER = "vec.example/cosigv10+c12688da+BLMSTPoQj0PojM8eKiPf9xUT8g6b0OuMyvYb5sSu9JH5"
COSIGNED = base64.b64decode(
    "dmVjLmV4YW1wbGUvY29zaWd2MTAKNDIKQ3NVWWFwR0dQbzRka01nSUFVcW9tL1hhamo3aDJmQjJNUEEzajJqeHEyST0KCuKAlCB2ZWMuZXhhbX"
    "BsZS9jb3NpZ3YxMCB3U2FJMmdBQUFBQnFiTDVRM0hqYlRDSmVxTWczdG1wZFlHQWcwNWlqVGk3azBweXJlSlNVTG10djNnK3lYSCtHL0tvODdK"
    "RytRa0xGNmFmOStHVlZObEVJZ2Y2VDBidzB3UXlNRHc9PQo="
)


def test_the_note_of_another_implementation() -> None:
    note, key = parse_note(NOTE), parse_note_key(VKEY)
    assert (note.text, str(key), note.to_bytes()) == (TEXT, VKEY, NOTE)
    verify_text(note, key)
    seed = base64.b64decode(SKEY)[1:]
    assert sign_text(TEXT, "PeterNeumann", SecretKey(seed)).line() == LINE


def test_the_cosignature_of_another_implementation() -> None:
    note, key = parse_note(COSIGNED), parse_note_key(COSIGNER)
    assert (key.kind, str(key)) == (SignatureKind.COSIGNATURE, COSIGNER)
    (line,) = note.of(key)
    assert verify_cosignature(note.text, line, key).time_s > 1_600_000_000
    with pytest.raises(InvalidRecord, match="does not fit"):
        verify_cosignature(note.text + "more\n", line, key)


def test_keys_of_one_name_and_several_signatures() -> None:
    text = "one\n\ntwo\n"
    mine = sign_text(text, "a", PROVIDER)
    note = Note(text, (sign_text(text, "a", CLIENT), mine))
    assert parse_note(note.to_bytes()) == note
    assert note.with_signatures(mine) == note
    verify_text(note, NoteKey("a", PROVIDER.public_key))
    with pytest.raises(InvalidRecord, match="has not signed"):
        verify_text(note, NoteKey("b", PROVIDER.public_key))
    with pytest.raises(InvalidRecord, match="does not fit"):
        verify_text(Note("other\n", note.signatures), NoteKey("a", PROVIDER.public_key))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        NOTE[:-1],
        NOTE.replace(b"\n\n", b"\n"),
        NOTE.replace(b"you", b"\x01ou", 1),
        NOTE.replace(b"you", b"\xffou", 1),
        NOTE.replace(b"\n", b"\r\n"),
        NOTE.replace(LINE.encode()[:4], b"- "),
        NOTE.replace(b"AM=\n", b"AN=\n"),
        NOTE.replace(b"AM=\n", b"AM\n"),
        NOTE.replace(b"PeterNeumann x", b"Peter+Neumann x"),
        NOTE.replace(b"PeterNeumann x", b"Peter\xc2\xa0Neumann x"),
        NOTE.replace(b"PeterNeumann x", b" x"),
        TEXT.encode() + "\n\N{EM DASH} a AAAAAA==\n".encode(),
        TEXT.encode() + b"\n" + f"{LINE}\n".encode() * 65,
        b"x" * MAX_NOTE_BYTES + NOTE,
    ],
    ids=range(17),
)
def test_what_is_no_note(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        parse_note(data)


@pytest.mark.parametrize(
    "text",
    [
        VKEY.replace("c74f20a3", "c74f20a4"),
        VKEY.replace("+ARpc", "+BRpc"),
        VKEY.replace("+ARpc", "+AhRpc"),
        VKEY[:-4],
        "PeterNeumann",
        "a b+00000000+AQ==",
        "zero+" + "00000000+" + base64.b64encode(bytes([1]) + bytes(32)).decode(),
        "x" * 600,
    ],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(InvalidRecord):
        parse_note_key(text)


@given(st.binary(max_size=300))
def test_parsers_leak_nothing_else(data: bytes) -> None:
    for parse in (parse_note, lambda raw: parse_note_key(raw.decode(errors="replace"))):
        try:
            parse(data)
        except InvalidRecord:
            pass


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(lambda text: text + "\n"),
    st.sampled_from(["a", "b.example/log"]),
)
def test_notes_read_back(text: str, name: str) -> None:
    note = Note(text, (sign_text(text, name, PROVIDER),))
    assert parse_note(note.to_bytes()) == note
    verify_text(parse_note(note.to_bytes()), NoteKey(name, PROVIDER.public_key))


def test_nothing_is_signed_that_no_note_can_say() -> None:
    for text, name in (("no line feed", "a"), ("tab\t\n", "a"), ("text\n", "a b"), ("text\n", "")):
        with pytest.raises(ValueError, match="no note"):
            sign_text(text, name, PROVIDER)


@pytest.mark.parametrize("text", ["", "01", "+1", "-1", "1 ", "\u0661", "101", "9" * 30, "1_0"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InvalidRecord):
        parse_decimal(text, 100)


def test_base64_has_one_form() -> None:
    assert from_base64("AAA=") == bytes(2)
    for text in ("AAB=", "AAA", "AA A=", "\u0661"):
        with pytest.raises(InvalidRecord):
            from_base64(text)
