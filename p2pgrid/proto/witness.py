"""What a witness answers: the rules of c2sp.org/tlog-witness, without clock, store or socket.

A witness keeps, for each log, the last checkpoint that it cosigned. `judge` says what becomes of a request against
that: an answer, the checkpoint that must be on record *before* the answer leaves, and a proof where the log was found
to have forked. Whoever calls it reads, judges and writes in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import SignedCheckpoint, cosign, verify_checkpoint
from p2pgrid.proto.fork import ForkProof, prove_fork
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PROOF_HASHES, MAX_SIZE, verify_consistency
from p2pgrid.proto.note import MAX_NOTE_BYTES, from_base64, parse_decimal, to_base64

MAX_ADD_CHECKPOINT_BYTES: Final = MAX_NOTE_BYTES + 4096
SIZE_TYPE: Final = "text/x.tlog.size"
TEXT_TYPE: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """The request `add-checkpoint`, its signature not yet checked."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes

    def to_bytes(self) -> bytes:
        """The request's body."""
        head = "".join(f"{line}\n" for line in (f"old {self.old_size}", *map(to_base64, self.proof)))
        return f"{head}\n".encode() + self.note


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """An HTTP status and a body; over other roads the same."""

    status: int
    body: bytes
    content_type: str = TEXT_TYPE

    @property
    def size(self) -> int:
        """The size that a 409 tells. Raises InvalidRecord (`malformed`) for another body."""
        text = self.body.decode("ascii", "replace")
        if not text.endswith("\n"):
            raise InvalidRecord("malformed", "a size and a line feed were expected.")
        return parse_decimal(text[:-1], MAX_SIZE)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of a request."""

    answer: WitnessAnswer | None
    """What to say; None where the cosignature is to be made, after `advance` is on record."""
    advance: SignedCheckpoint | None = None
    """The checkpoint to keep from now on."""
    fork: ForkProof | None = None
    """The log has signed two trees."""


def parse_add_checkpoint(data: bytes) -> AddCheckpoint:
    """Read a request's body. Raises InvalidRecord (`oversize`, `malformed`)."""
    if len(data) > MAX_ADD_CHECKPOINT_BYTES:
        raise InvalidRecord("oversize", f"add-checkpoint has at most {MAX_ADD_CHECKPOINT_BYTES} bytes.")
    head, blank, note = data.partition(b"\n\n")
    lines = head.decode("ascii", "replace").split("\n")
    word, _, size = lines[0].partition(" ")
    if not blank or word != "old" or len(lines) > 1 + MAX_PROOF_HASHES:
        raise InvalidRecord("malformed", "`old <size>`, hashes, a blank line and a checkpoint were expected.")
    proof = tuple(map(from_base64, lines[1:]))
    if any(len(one) != HASH_BYTES for one in proof):
        raise InvalidRecord("malformed", f"a hash has {HASH_BYTES} bytes.")
    return AddCheckpoint(parse_decimal(size, MAX_SIZE), proof, note)


def open_request(data: bytes) -> tuple[AddCheckpoint, SignedCheckpoint] | WitnessAnswer:
    """Read a request and check the log's signature: what `judge` takes, or the answer that ends it (400, 403, 404)."""
    try:
        request = parse_add_checkpoint(data)
        checkpoint = verify_checkpoint(request.note)
    except InvalidRecord as error:
        status = _STATUS_OF.get(error.code, HTTPStatus.BAD_REQUEST)
        return WitnessAnswer(status, f"{error.message}\n".encode())
    if request.old_size > checkpoint.size:
        return WitnessAnswer(HTTPStatus.BAD_REQUEST, b"the old size is above the checkpoint's.\n")
    return request, checkpoint


def judge(request: AddCheckpoint, checkpoint: SignedCheckpoint, last: SignedCheckpoint | None) -> Judgement:
    """Hold a request against the last checkpoint of that log on record. `checkpoint` is the request's, verified.

    Never advances to a smaller tree, nor to one that is not shown to begin with the last.
    """
    fork = prove_fork(last, checkpoint, request.proof) if last is not None else None
    last_size = last.size if last is not None else 0
    if request.old_size != last_size:
        return Judgement(_conflict(last_size), fork=fork)
    last_root = last.root if last is not None else EMPTY_ROOT
    if request.old_size == checkpoint.size:
        if checkpoint.root != last_root:
            return Judgement(_conflict(last_size), fork=fork)
        if request.proof:
            return Judgement(_unproven(b"the proof between equal sizes is empty.\n"))
        return Judgement(None, advance=checkpoint.bare())
    try:
        verify_consistency(request.old_size, checkpoint.size, request.proof, last_root, checkpoint.root)
    except InvalidRecord as error:
        return Judgement(_unproven(f"{error.message}\n".encode()), fork=fork)
    return Judgement(None, advance=checkpoint.bare())


def cosigned_answer(checkpoint: SignedCheckpoint, key: SecretKey, time_s: int) -> WitnessAnswer:
    """The answer 200. Only for a checkpoint that is on record."""
    return WitnessAnswer(HTTPStatus.OK, f"{cosign(checkpoint, key, time_s).line()}\n".encode())


def unknown_log(origin_key: PublicKey) -> WitnessAnswer:
    """The answer where this witness does not follow that log."""
    return WitnessAnswer(HTTPStatus.NOT_FOUND, f"this witness does not follow the log of {origin_key}.\n".encode())


def _conflict(size: int) -> WitnessAnswer:
    return WitnessAnswer(HTTPStatus.CONFLICT, f"{size}\n".encode(), SIZE_TYPE)


def _unproven(why: bytes) -> WitnessAnswer:
    return WitnessAnswer(HTTPStatus.UNPROCESSABLE_ENTITY, why)


_STATUS_OF: Final[dict[str, HTTPStatus]] = {
    "wrong-origin": HTTPStatus.NOT_FOUND,
    "key-not-admissible": HTTPStatus.NOT_FOUND,
    "signature-missing": HTTPStatus.FORBIDDEN,
    "bad-signature": HTTPStatus.FORBIDDEN,
}
