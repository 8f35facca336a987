"""Inclusion proofs: salted entries, both forms, and what erasing a salt leaves."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import cosign
from p2pgrid.proto.inclusion import InclusionProof, LogProof, log_entry, parse_inclusion_proof, parse_log_proof
from p2pgrid.proto.merkle import inclusion_proof, leaf_hash, verify_inclusion
from p2pgrid.proto.note import to_base64
from tests.factories import CLIENT, PROVIDER, digest
from tests.proto.trees import checkpoint_of, hash_at_of_entries

SALTS = [digest(f"salt {number}") for number in range(11)]
IDS = [digest(f"record {number}") for number in range(11)]
ENTRIES = [log_entry(salt, record) for salt, record in zip(SALTS, IDS, strict=True)]
CHECKPOINT = checkpoint_of(ENTRIES)


def proof_of(index: int) -> LogProof:
    hashes = inclusion_proof(hash_at_of_entries(ENTRIES), index, len(ENTRIES))
    inclusion = InclusionProof(
        record_id=IDS[index], salt=SALTS[index], leaf_index=index, tree_size=len(ENTRIES), hashes=hashes
    )
    return LogProof(inclusion, CHECKPOINT.note)


@pytest.mark.parametrize("index", range(11))
def test_both_forms_read_back_and_hold(index: int) -> None:
    proof = proof_of(index)
    assert proof.verify(PROVIDER.public_key) == CHECKPOINT
    assert parse_log_proof(proof.to_text().encode()) == proof
    assert parse_inclusion_proof(proof.inclusion.to_bytes()) == proof.inclusion
    checkpoint, inclusion = proof.attachments()
    assert (checkpoint.signatures, inclusion.signatures) == ((), ())
    assert parse_inclusion_proof(inclusion.payload) == proof.inclusion


def test_the_text_is_a_c2sp_proof() -> None:
    proof = replace(proof_of(3), note=CHECKPOINT.cosigned(cosign(CHECKPOINT, CLIENT, 5)).note)
    lines = proof.to_text().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == f"extra {to_base64(IDS[3] + SALTS[3])}"
    assert lines[2] == "index 3"
    blank = lines.index("")
    assert (blank, lines[blank + 1]) == (3 + len(proof.inclusion.hashes), CHECKPOINT.origin)
    assert parse_log_proof(proof.to_text().encode()).verify().note == proof.note


def test_a_proof_is_of_one_record_in_one_log() -> None:
    proof = proof_of(3)
    changes = [{"record_id": IDS[4]}, {"salt": SALTS[4]}, {"leaf_index": 4}, {"tree_size": 12}, {"hashes": ()}]
    for change in changes:
        with pytest.raises(InvalidRecord) as caught:
            replace(proof, inclusion=msgspec.structs.replace(proof.inclusion, **change)).verify()
        assert caught.value.code == "bad-proof"
    with pytest.raises(InvalidRecord) as caught:
        proof.verify(CLIENT.public_key)
    assert caught.value.code == "wrong-origin"


def test_an_erased_salt_leaves_the_tree() -> None:
    proof = proof_of(3).inclusion
    # Without the salt: the entry is still in the tree, and any record could be the one.
    verify_inclusion(leaf_hash(ENTRIES[3]), 3, len(ENTRIES), proof.hashes, CHECKPOINT.root)
    assert all(log_entry(salt, IDS[3]) != ENTRIES[3] for salt in SALTS if salt != SALTS[3])


TEXT = proof_of(3).to_text().encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\n\n",
        TEXT.replace(b"@v1", b"@v2"),
        TEXT.replace(b"extra", b"other"),
        TEXT.replace(b"index 3", b"index 03"),
        TEXT.replace(b"index 3", b"index 11"),
        TEXT.replace(b"index 3\n", b""),
        TEXT.replace(b"\n11\n", b"\nx\n"),
        TEXT.replace(to_base64(proof_of(3).inclusion.hashes[0]).encode(), b"AAAA"),
        TEXT.replace(b"\n\n", b"\n", 1),
        TEXT[: len(TEXT) // 2],
        TEXT + b"x" * 100_000,
        b"c2sp.org/tlog-proof@v1\nextra AAAA\nindex 0\n\n\n\n\n",
    ],
    ids=range(13),
)
def test_what_is_no_proof(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        parse_log_proof(data)


@given(st.binary(max_size=200))
def test_hostile_bytes(data: bytes) -> None:
    for parse in (parse_inclusion_proof, parse_log_proof):
        for given_bytes in (data, TEXT[:70] + data, TEXT[: -len(data) or None] + data):
            try:
                parse(given_bytes)
            except InvalidRecord:
                pass


def test_canonical_alone() -> None:
    good = proof_of(3).inclusion.to_bytes()
    for bad in (good + b"\x00", good.replace(b"\x03\x0b", b"\xcc\x03\x0b"), bytes(5000)):
        with pytest.raises(InvalidRecord):
            parse_inclusion_proof(bad)


def test_salts_have_one_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        log_entry(b"short", IDS[0])
