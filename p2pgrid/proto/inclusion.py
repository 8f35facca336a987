"""That a record is in a log: the salted entry, the proof, and their two forms (docs/spec/log.md, sections 2 and 4).

An entry is SHA-256(salt || record id), 32 bytes. Whoever holds the salt can show which record a leaf stands for;
where it is destroyed, nobody can, and the tree stays what it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.fields import Id
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.merkle import HASH_BYTES, MAX_PROOF_HASHES, MAX_SIZE, leaf_hash, verify_inclusion
from p2pgrid.proto.note import MAX_NOTE_BYTES, Note, from_base64, parse_decimal, parse_note, to_base64
from p2pgrid.proto.record import Record

SALT_BYTES: Final = 32
INCLUSION_PROOF_TYPE: Final = "/p2pgrid/inclusion-proof/1"
"""Payload type of an inclusion proof in a bundle."""
MAX_INCLUSION_PROOF_BYTES: Final = 4096
MAX_PROOF_TEXT_BYTES: Final = MAX_NOTE_BYTES + 8192
_HEADER: Final = "c2sp.org/tlog-proof@v1"


def log_entry(salt: bytes, record_id: bytes) -> bytes:
    """The entry of a record: 32 bytes that say nothing without the salt."""
    if len(salt) != SALT_BYTES or len(record_id) != HASH_BYTES:
        raise ValueError("a salt and a record id have 32 bytes each")
    return hashlib.sha256(salt + record_id).digest()


class InclusionProof(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proof that a record is leaf `leaf_index` of the tree of `tree_size` leaves. Its root is in a checkpoint."""

    record_id: Id
    salt: Id
    leaf_index: Annotated[int, Meta(ge=0, lt=MAX_SIZE)]
    tree_size: Annotated[int, Meta(ge=1, le=MAX_SIZE)]
    hashes: Annotated[tuple[Id, ...], Meta(max_length=MAX_PROOF_HASHES)]

    @property
    def entry(self) -> bytes:
        """The log's entry."""
        return log_entry(self.salt, self.record_id)

    def to_bytes(self) -> bytes:
        """The canonical form: a MessagePack array of the fields in order."""
        return msgspec.msgpack.encode(self)

    def verify(self, checkpoint: SignedCheckpoint) -> None:
        """Check it against a checkpoint of the log. Raises InvalidRecord (`bad-proof`)."""
        if checkpoint.size != self.tree_size:
            raise InvalidRecord(
                "bad-proof",
                f"the proof is for a tree of {self.tree_size} leaves, the checkpoint for {checkpoint.size}.",
            )
        verify_inclusion(leaf_hash(self.entry), self.leaf_index, self.tree_size, self.hashes, checkpoint.root)


def parse_inclusion_proof(data: bytes) -> InclusionProof:
    """Untrusted bytes as a proof. Raises InvalidRecord (`oversize`, `malformed`, `not-canonical`)."""
    if len(data) > MAX_INCLUSION_PROOF_BYTES:
        raise InvalidRecord("oversize", f"an inclusion proof has at most {MAX_INCLUSION_PROOF_BYTES} bytes.")
    try:
        proof = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRecord("malformed", f"these bytes are no inclusion proof: {error}.") from None
    if proof.to_bytes() != data:
        raise InvalidRecord("not-canonical", "the inclusion proof is not in its one canonical MessagePack encoding.")
    return proof


@dataclass(frozen=True, slots=True)
class LogProof:
    """An inclusion proof with the checkpoint that it leads to: all that a stranger needs. Not verified yet."""

    inclusion: InclusionProof
    note: Note

    def verify(self, key: PublicKey | None = None) -> SignedCheckpoint:
        """Check all: the log's signature (with `key`, that this is its log) and the proof. Raises InvalidRecord."""
        checkpoint = verify_checkpoint(self.note, key)
        self.inclusion.verify(checkpoint)
        return checkpoint

    def to_text(self) -> str:
        """The form of c2sp.org/tlog-proof. The `extra` line holds record id and salt, 64 bytes."""
        inclusion = self.inclusion
        lines = [
            _HEADER,
            f"extra {to_base64(inclusion.record_id + inclusion.salt)}",
            f"index {inclusion.leaf_index}",
            *map(to_base64, inclusion.hashes),
        ]
        return "".join(f"{line}\n" for line in lines) + "\n" + self.note.to_bytes().decode()

    def attachments(self) -> tuple[Record, Record]:
        """Checkpoint and proof as the unsigned records that bundles carry."""
        return (
            Record(CHECKPOINT_TYPE, self.note.to_bytes(), ()),
            Record(INCLUSION_PROOF_TYPE, self.inclusion.to_bytes(), ()),
        )


def parse_log_proof(data: bytes) -> LogProof:
    """Read the text form. The tree's size is the checkpoint's. Raises InvalidRecord (`oversize`, `malformed`)."""
    if len(data) > MAX_PROOF_TEXT_BYTES:
        raise InvalidRecord("oversize", f"a proof has at most {MAX_PROOF_TEXT_BYTES} bytes, this has {len(data)}.")
    head, blank, tail = data.partition(b"\n\n")
    try:
        lines = head.decode().split("\n")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if not blank or len(lines) < 3 or lines[0] != _HEADER or len(lines) > 3 + MAX_PROOF_HASHES:
        raise _malformed(f"{_HEADER}, extra, index and hashes were expected, then a checkpoint")
    extra, index = _after("extra", lines[1]), _after("index", lines[2])
    identity = from_base64(extra)
    hashes = tuple(map(from_base64, lines[3:]))
    if len(identity) != HASH_BYTES + SALT_BYTES or any(len(one) != HASH_BYTES for one in hashes):
        raise _malformed("the extra line has 64 bytes, every hash 32")
    note = parse_note(tail)
    # Signed or not is for `verify` to say; the size alone is taken from it here.
    size = parse_decimal(note.text.split("\n")[1], MAX_SIZE)
    leaf_index = parse_decimal(index, MAX_SIZE)
    if leaf_index >= size:
        raise _malformed(f"leaf {leaf_index} is not in a tree of {size}")
    inclusion = InclusionProof(
        record_id=identity[:HASH_BYTES],
        salt=identity[HASH_BYTES:],
        leaf_index=leaf_index,
        tree_size=size,
        hashes=hashes,
    )
    return LogProof(inclusion, note)


def _after(word: str, line: str) -> str:
    name, space, value = line.partition(" ")
    if name != word or not space:
        raise _malformed(f"a line `{word} ...` was expected")
    return value


def _malformed(why: str) -> InvalidRecord:
    return InvalidRecord("malformed", f"this is no log proof: {why}.")


_decoder: Final = msgspec.msgpack.Decoder(InclusionProof)
