"""Checkpoints and cosignatures: form, whose they are, and that no text serves two purposes."""

from __future__ import annotations

import pytest

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    cosign,
    cosignatures_of,
    key_of_origin,
    origin_of,
    parse_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
    verify_cosignature,
    witness_key,
)
from p2pgrid.proto.note import Note, parse_note, sign_text, to_base64
from p2pgrid.proto.record import signature_input
from tests.factories import CLIENT, PROVIDER, digest, secret_key

ROOT = digest("root")
ORIGIN = origin_of(PROVIDER.public_key)
SIGNED = sign_checkpoint(7, ROOT, PROVIDER)


def test_a_checkpoint_is_three_lines_and_names_its_key() -> None:
    assert SIGNED.note.text == f"p2pgrid/{PROVIDER.public_key.peer_id}\n7\n{to_base64(ROOT)}\n"
    assert key_of_origin(ORIGIN) == PROVIDER.public_key
    again = verify_checkpoint(SIGNED.note.to_bytes(), PROVIDER.public_key)
    assert (again, again.size, again.root, again.origin) == (SIGNED, 7, ROOT, ORIGIN)


def test_the_specifications_example() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    read = parse_checkpoint(text)
    assert (read.origin, read.size, read.text()) == ("example.com/behind-the-sofa", 20852163, text)
    assert parse_checkpoint(text + "an extension\n").extensions == ("an extension",)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [ORIGIN, "7"],
        ["", "7", to_base64(ROOT)],
        [ORIGIN, "07", to_base64(ROOT)],
        [ORIGIN, "-7", to_base64(ROOT)],
        [ORIGIN, str(2**53 + 1), to_base64(ROOT)],
        [ORIGIN, "7", to_base64(ROOT[:31])],
        [ORIGIN, "7", "?"],
        [ORIGIN, "7", to_base64(ROOT), ""],
        [ORIGIN, "7", to_base64(ROOT), *["x"] * 17],
    ],
)
def test_what_is_no_checkpoint(lines: list[str]) -> None:
    with pytest.raises(InvalidRecord) as caught:
        parse_checkpoint("".join(f"{line}\n" for line in lines))
    assert caught.value.code == "malformed"


def signed_by(text: str, origin: str = ORIGIN) -> bytes:
    return Note(text, (sign_text(text, origin, PROVIDER),)).to_bytes()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (signed_by(Checkpoint("example.com/log", 7, ROOT).text(), "example.com/log"), "wrong-origin"),
        (signed_by(Checkpoint(origin_of(CLIENT.public_key), 7, ROOT).text()), "wrong-origin"),
        (signed_by(Checkpoint("p2pgrid/12D3", 7, ROOT).text()), "key-not-admissible"),
        (signed_by(Checkpoint(ORIGIN, 7, ROOT).text(), "other"), "signature-missing"),
        (SIGNED.note.to_bytes().replace(b"\n7\n", b"\n8\n"), "bad-signature"),
    ],
)
def test_whose_checkpoint_it_is(data: bytes, code: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        verify_checkpoint(data, PROVIDER.public_key)
    assert caught.value.code == code


def test_cosignatures_are_found_among_others_lines() -> None:
    other = secret_key("witness")
    lines = [cosign(SIGNED, key, 1_800_000_000) for key in (CLIENT, other)]
    stranger = sign_text(SIGNED.note.text, "example.com/w", other)
    misplaced = cosign(sign_checkpoint(8, ROOT, PROVIDER), secret_key("late"), 1_800_000_000)
    again = verify_checkpoint(SIGNED.cosigned(*lines, stranger, misplaced, lines[0]).note.to_bytes())
    found = cosignatures_of(again)
    assert [(one.witness, one.time_s) for one in found] == [
        (CLIENT.public_key, 1_800_000_000),
        (other.public_key, 1_800_000_000),
    ]
    assert again.bare() == SIGNED


def test_a_cosignature_is_for_one_text_one_time_one_witness() -> None:
    line = cosign(SIGNED, CLIENT, 5)
    assert verify_cosignature(SIGNED.note.text, line, witness_key(CLIENT.public_key)).time_s == 5
    later = type(line)(line.name, line.key_id, (6).to_bytes(8) + line.signature[8:])
    for text, changed, key in (
        (SIGNED.note.text + "x\n", line, CLIENT),
        (SIGNED.note.text, later, CLIENT),
        (SIGNED.note.text, line, PROVIDER),
        (SIGNED.note.text, type(line)(line.name, line.key_id, b""), CLIENT),
    ):
        with pytest.raises(InvalidRecord):
            verify_cosignature(text, changed, witness_key(key.public_key))


def test_what_a_node_signs_is_never_two_things() -> None:
    beginnings = [SIGNED.note.text.encode(), b"cosignature/v1\n", signature_input("/p2pgrid/offer/1", b"")]
    assert len({one[:7] for one in beginnings}) == 3
    with pytest.raises(InvalidRecord):
        parse_note(b"cosignature/v1\n")


def test_only_the_maker_makes_them() -> None:
    assert isinstance(SIGNED, SignedCheckpoint)
