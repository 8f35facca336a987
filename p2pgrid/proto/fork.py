"""Proof that a log forked: it signed two trees of which neither begins the other (docs/spec/log.md, section 6).

Two checkpoints of one size with different roots are such a proof by themselves. For two sizes, hashes that state what
the root of the smaller size is in the larger tree (`merkle.prefix_proof`) are added: they must lead to the larger
tree's signed root, and to another root than the smaller tree's signed one. Both signatures are the log's own, so
nobody else has to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.merkle import HASH_BYTES, MAX_PROOF_HASHES, HashAt, prefix_proof, prefix_roots
from p2pgrid.proto.note import MAX_NOTE_BYTES, from_base64, to_base64

FORK_PROOF_TYPE: Final = "p2pgrid/fork-proof/1"
MAX_FORK_PROOF_BYTES: Final = 4 * MAX_NOTE_BYTES


@dataclass(frozen=True, slots=True)
class ForkProof:
    """Two checkpoints that one log signed and cannot both hold to. Verified: `prove_fork` and `verify_fork` make it."""

    smaller: SignedCheckpoint
    larger: SignedCheckpoint
    hashes: tuple[bytes, ...]
    """Empty for two roots of one size."""

    @property
    def origin(self) -> str:
        """The log."""
        return self.larger.origin

    @property
    def shown_root(self) -> bytes:
        """The root that the larger tree has at the smaller one's size."""
        if not self.hashes:
            return self.larger.root
        return prefix_roots(self.smaller.size, self.larger.size, self.hashes)[0]

    def describe(self) -> str:
        """One sentence."""
        size = self.smaller.size
        return (
            f"the log {self.origin} signed two trees for its first {size} leaves: "
            f"root {self.smaller.root.hex()[:16]} in one checkpoint, {self.shown_root.hex()[:16]} "
            + ("in another." if not self.hashes else f"by its checkpoint of {self.larger.size}.")
        )

    def to_json(self) -> bytes:
        """The file's form: one JSON object on one line, notes as text, hashes in base64."""
        file = _File(
            type=FORK_PROOF_TYPE,
            smaller=self.smaller.note.to_bytes().decode(),
            larger=self.larger.note.to_bytes().decode(),
            hashes=tuple(map(to_base64, self.hashes)),
        )
        return msgspec.json.encode(file) + b"\n"


def prove_fork(one: SignedCheckpoint, other: SignedCheckpoint, hashes: Sequence[bytes] = ()) -> ForkProof | None:
    """The proof, if these two checkpoints and hashes are one; None if they are not.

    `hashes` is the `prefix_proof` from the smaller size to the larger; unused where the sizes are the same.
    """
    smaller, larger = sorted((one.bare(), other.bare()), key=lambda checkpoint: checkpoint.size)
    try:
        return _checked(smaller, larger, () if smaller.size == larger.size else tuple(hashes))
    except InvalidRecord:
        return None


def prove_fork_by_tree(one: SignedCheckpoint, other: SignedCheckpoint, hash_at: HashAt) -> ForkProof | None:
    """As `prove_fork`, from the nodes of the larger tree, which need not be believed."""
    smaller, larger = sorted((one, other), key=lambda checkpoint: checkpoint.size)
    if smaller.size == larger.size or smaller.size == 0:
        return prove_fork(one, other)
    return prove_fork(one, other, prefix_proof(hash_at, smaller.size, larger.size))


def verify_fork(data: bytes) -> ForkProof:
    """Read a proof's file and check all of it. Raises InvalidRecord: `oversize`, `malformed`, `not-a-fork`, and what
    `verify_checkpoint` raises."""
    if len(data) > MAX_FORK_PROOF_BYTES:
        raise InvalidRecord("oversize", f"a fork proof has at most {MAX_FORK_PROOF_BYTES} bytes.")
    try:
        file = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRecord("malformed", f"this is no fork proof: {error}.") from None
    if file.type != FORK_PROOF_TYPE:
        raise InvalidRecord("malformed", f"this is {file.type!r}; {FORK_PROOF_TYPE!r} was expected.")
    hashes = tuple(map(from_base64, file.hashes))
    if any(len(one) != HASH_BYTES for one in hashes):
        raise InvalidRecord("malformed", "a hash has 32 bytes.")
    return _checked(_checkpoint(file.smaller), _checkpoint(file.larger), hashes)


def _checked(smaller: SignedCheckpoint, larger: SignedCheckpoint, hashes: tuple[bytes, ...]) -> ForkProof:
    if smaller.log_key != larger.log_key:
        raise InvalidRecord("not-a-fork", "the two checkpoints are of different logs.")
    if smaller.size == larger.size:
        if hashes or smaller.root == larger.root:
            raise InvalidRecord("not-a-fork", "the two checkpoints say the same.")
        return ForkProof(smaller, larger, ())
    old_root, new_root = prefix_roots(smaller.size, larger.size, hashes)
    if new_root != larger.root:
        raise InvalidRecord("not-a-fork", "the hashes do not lead to the larger tree's root.")
    if old_root == smaller.root:
        raise InvalidRecord("not-a-fork", "the larger tree begins with the smaller one.")
    return ForkProof(smaller, larger, hashes)


def _checkpoint(text: str) -> SignedCheckpoint:
    return verify_checkpoint(text.encode(errors="replace"))


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    smaller: str
    larger: str
    hashes: Annotated[tuple[str, ...], Meta(max_length=MAX_PROOF_HASHES + 1)] = ()


_decoder: Final = msgspec.json.Decoder(_File)
