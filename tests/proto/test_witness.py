"""The witness: every answer of c2sp.org/tlog-witness, and that no order of requests makes it sign a fork."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.checkpoint import SignedCheckpoint, sign_checkpoint, verify_cosignature, witness_key
from p2pgrid.proto.merkle import consistency_proof, verify_consistency
from p2pgrid.proto.note import Note, parse_signature_lines, sign_text, to_base64
from p2pgrid.proto.witness import (
    AddCheckpoint,
    Judgement,
    WitnessAnswer,
    cosigned_answer,
    judge,
    open_request,
    parse_add_checkpoint,
)
from tests.factories import CLIENT, PROVIDER
from tests.proto.trees import checkpoint_of, entries_of, hash_at_of_entries

TRUE, FORKED = entries_of(40), entries_of(10) + entries_of(30, "forked")


def request(old: int, new: int, entries: list[bytes] = TRUE, **changes: object) -> bytes:
    proof = consistency_proof(hash_at_of_entries(entries), old, new) if old <= new else ()
    fields = {"old_size": old, "proof": proof, "note": checkpoint_of(entries[:new]).note.to_bytes(), **changes}
    return AddCheckpoint(**fields).to_bytes()  # type: ignore[arg-type]


def ask(body: bytes, last: SignedCheckpoint | None = None) -> Judgement:
    opened = open_request(body)
    return Judgement(opened) if isinstance(opened, WitnessAnswer) else judge(*opened, last)


def status(judgement: Judgement) -> int:
    assert (judgement.answer is None) == (judgement.advance is not None)
    return judgement.answer.status if judgement.answer is not None else 200


LAST = checkpoint_of(TRUE[:10])


def test_what_is_cosigned() -> None:
    for old, new, last in ((0, 10, None), (0, 0, None), (10, 33, LAST), (10, 10, LAST)):
        judgement = ask(request(old, new), last)
        assert judgement.advance is not None and judgement.advance.size == new
        assert judgement.fork is None
    answer = cosigned_answer(LAST, CLIENT, 77)
    (line,) = parse_signature_lines(answer.body.decode())
    assert (answer.status, verify_cosignature(LAST.note.text, line, witness_key(CLIENT.public_key)).time_s) == (200, 77)


def test_a_wrong_old_size_is_told_the_right_one() -> None:
    for old, new, last, size in ((0, 33, LAST, 10), (9, 33, LAST, 10), (11, 33, LAST, 10), (10, 33, None, 0)):
        answer = ask(request(old, new), last).answer
        assert answer is not None
        assert (answer.status, answer.size, answer.content_type) == (409, size, "text/x.tlog.size")


def test_a_smaller_tree_is_never_signed() -> None:
    assert status(ask(request(0, 9), LAST)) == 409
    assert status(ask(request(10, 9), LAST)) == 400


def test_a_bad_proof() -> None:
    assert status(ask(request(10, 33, proof=()), LAST)) == 422
    assert status(ask(request(10, 33, proof=(bytes(32),) * 4), LAST)) == 422
    assert status(ask(request(10, 10, proof=(bytes(32),)), LAST)) == 422
    assert status(ask(request(0, 10, proof=(bytes(32),)))) == 422


def test_a_fork_is_refused_and_proven() -> None:
    same_size = ask(request(20, 20, FORKED), checkpoint_of(TRUE[:20]))
    assert status(same_size) == 409 and same_size.fork is not None
    later = ask(request(20, 30, FORKED), checkpoint_of(TRUE[:20]))
    assert status(later) == 422
    # 20 is no power of two, so the honest proof of the other branch states both roots.
    assert later.fork is not None and later.fork.smaller.root == checkpoint_of(TRUE[:20]).root
    unseen = ask(request(0, 20, FORKED), checkpoint_of(TRUE[:20]))
    assert status(unseen) == 409 and unseen.fork is not None


def test_who_may_ask() -> None:
    text = LAST.note.text
    foreign = Note(text.replace("p2pgrid/", "example.com/"), LAST.note.signatures)
    unsigned = Note(text, (sign_text(text, "somebody", PROVIDER),))
    forged = Note(text.replace("\n10\n", "\n11\n"), LAST.note.signatures)
    for note, expected in ((foreign, 404), (unsigned, 403), (forged, 403)):
        assert status(ask(request(0, 10, note=note.to_bytes()))) == expected
    nobody = text.replace(PROVIDER.public_key.peer_id, "12D3KooW")
    assert status(ask(request(0, 10, note=Note(nobody, LAST.note.signatures).to_bytes()))) == 404


def test_requests_read_back() -> None:
    body = request(10, 33)
    assert parse_add_checkpoint(body).to_bytes() == body
    assert body.startswith(b"old 10\n")


def test_what_is_no_request() -> None:
    good = request(10, 33)
    hash_line = f"{to_base64(bytes(32))}\n".encode()
    for bad in (
        b"",
        good.replace(b"old 10", b"old 010"),
        good.replace(b"old 10", b"new 10"),
        good.replace(b"\n\n", b"\n", 1),
        good.replace(b"old 10\n", b"old 10\nAAAA\n"),
        good.replace(b"old 10\n", b"old 10\n" + hash_line * 64),
        good + b"x" * 100_000,
    ):
        assert status(ask(bad)) == 400


@given(st.binary(max_size=200))
def test_hostile_requests(data: bytes) -> None:
    good = request(10, 33)
    for body in (data, b"old 0\n\n" + data, good[: -len(data) or None] + data):
        opened = open_request(body)
        assert not isinstance(opened, WitnessAnswer) or opened.status in (400, 403, 404)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40), st.booleans()), max_size=12))
def test_whatever_comes_what_is_signed_is_one_tree(asked: list[tuple[bool, int, int, bool]]) -> None:
    last: SignedCheckpoint | None = None
    signed: list[tuple[bool, int]] = []
    for forked, old, new, honest in asked:
        entries = FORKED if forked else TRUE
        old = min(last.size if honest and last is not None else old, new)
        judgement = ask(request(old, new, entries), last)
        if judgement.advance is not None:
            last = judgement.advance
            signed.append((forked, new))
    assert [size for _, size in signed] == sorted(size for _, size in signed)
    branches = {forked for forked, size in signed if size > 10}
    assert len(branches) <= 1
    for (_, old), (_, new) in itertools.pairwise(signed):
        tree = FORKED if True in branches else TRUE
        proof = consistency_proof(hash_at_of_entries(tree), old, new)
        verify_consistency(old, new, proof, checkpoint_of(tree[:old]).root, checkpoint_of(tree[:new]).root)


def test_a_size_is_a_number() -> None:
    import pytest

    from p2pgrid.errors import InvalidRecord

    for body in (b"", b"10", b"x\n", b"010\n"):
        with pytest.raises(InvalidRecord):
            _ = WitnessAnswer(409, body).size
    assert sign_checkpoint(0, bytes(32), PROVIDER).size == 0
