"""Fork proofs: what is one, what is none, and that anyone verifies them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import cosign
from p2pgrid.proto.fork import prove_fork, prove_fork_by_tree, verify_fork
from p2pgrid.proto.merkle import prefix_proof
from tests.factories import CLIENT, PROVIDER
from tests.proto.trees import checkpoint_of, entries_of, hash_at_of_entries

TRUE, FORKED = entries_of(40), entries_of(10) + entries_of(30, "forked")


def test_two_roots_of_one_size() -> None:
    one, other = checkpoint_of(TRUE[:20]), checkpoint_of(FORKED[:20])
    proof = prove_fork(one.cosigned(cosign(one, CLIENT, 5)), other)
    assert proof is not None and proof.hashes == ()
    read = verify_fork(proof.to_json())
    assert read == proof and read.smaller.note == one.bare().note
    assert "two trees for its first 20 leaves" in read.describe()


@given(st.integers(1, 40), st.integers(1, 40))
def test_two_sizes(one: int, other: int) -> None:
    old, new = sorted((one, other))
    smaller, larger = checkpoint_of(TRUE[:old]), checkpoint_of(FORKED[:new])
    proof = prove_fork_by_tree(larger, smaller, hash_at_of_entries(FORKED))
    if old <= 10:
        assert proof is None, "the trees part only later"
        return
    assert proof is not None and verify_fork(proof.to_json()) == proof
    assert old == new or proof.shown_root == checkpoint_of(FORKED[:old]).root
    assert {proof.smaller.root, proof.shown_root} == {checkpoint_of(e[:old]).root for e in (TRUE, FORKED)}
    # The true tree's nodes are no proof: they do not lead to the forked root.
    assert old == new or prove_fork_by_tree(smaller, larger, hash_at_of_entries(TRUE)) is None


def test_an_honest_log_is_never_proven_a_liar() -> None:
    for old in range(1, 40):
        smaller, larger = checkpoint_of(TRUE[:old]), checkpoint_of(TRUE)
        assert prove_fork_by_tree(smaller, larger, hash_at_of_entries(TRUE)) is None
        assert prove_fork_by_tree(smaller, larger, hash_at_of_entries(FORKED)) is None


def test_two_logs_are_no_fork() -> None:
    assert prove_fork(checkpoint_of(TRUE[:20]), checkpoint_of(FORKED[:20], CLIENT)) is None
    assert prove_fork(checkpoint_of([]), checkpoint_of(TRUE[:20])) is None
    assert prove_fork_by_tree(checkpoint_of([]), checkpoint_of(TRUE), hash_at_of_entries(TRUE)) is None


def bent(**changes: object) -> bytes:
    smaller, larger = checkpoint_of(TRUE[:20]), checkpoint_of(FORKED)
    proof = prove_fork(smaller, larger, prefix_proof(hash_at_of_entries(FORKED), 20, 40))
    assert proof is not None
    return msgspec.json.encode(msgspec.json.decode(proof.to_json()) | changes)


def test_the_form_of_the_file() -> None:
    assert verify_fork(bent()).larger.size == 40


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b" " * 1_000_000,
        bent(type="p2pgrid/fork-proof/2"),
        bent(surplus=1),
        bent(hashes=[]),
        bent(hashes=["AAAA"]),
        bent(hashes=["A"] * 100),
        bent(smaller=checkpoint_of(FORKED[:20]).note.to_bytes().decode()),
        bent(smaller=checkpoint_of(TRUE[:20], CLIENT).note.to_bytes().decode()),
        bent(larger=checkpoint_of(TRUE).note.to_bytes().decode()),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_proves_nothing(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        verify_fork(data)


@given(st.binary(max_size=100), st.integers(0, 1000))
def test_hostile_bytes(data: bytes, at: int) -> None:
    good = bent()
    for given_bytes in (data, good[:at] + data + good[at + len(data) :]):
        try:
            read = verify_fork(given_bytes)
        except InvalidRecord:
            continue
        assert read.origin.endswith(PROVIDER.public_key.peer_id)
