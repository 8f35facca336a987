"""Checkpoints: what a log says of its tree at one size, and what witnesses say of it.

c2sp.org/tlog-checkpoint and c2sp.org/tlog-cosignature (cosignature/v1, Ed25519). A log's origin is `p2pgrid/<peer id>`:
it names the key, so nobody has to be told which key belongs to which log. A witness signs under the same form of name.
None of these texts can be taken for another thing that a node's key signs: a record's signature input begins with
the byte 7, a cosignature with `cosignature/v1`, a checkpoint with `p2pgrid/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import SIGNATURE_BYTES, PublicKey, SecretKey, parse_peer_id
from p2pgrid.proto.merkle import HASH_BYTES, MAX_SIZE
from p2pgrid.proto.note import (
    Note,
    NoteKey,
    NoteSignature,
    SignatureKind,
    from_base64,
    parse_decimal,
    parse_note,
    sign_text,
    to_base64,
    verify_text,
)

ORIGIN_PREFIX: Final = "p2pgrid/"
CHECKPOINT_TYPE: Final = "/p2pgrid/checkpoint/1"
"""Payload type of a checkpoint in a bundle: the payload is the note."""
MAX_EXTENSIONS: Final = 16
_TIME_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log at one size."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The note's text."""
        return "".join(f"{line}\n" for line in (self.origin, str(self.size), to_base64(self.root), *self.extensions))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint whose log's signature was checked. `verify_checkpoint` and `sign_checkpoint` alone make one."""

    checkpoint: Checkpoint
    note: Note
    log_key: PublicKey

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.checkpoint.origin

    @property
    def size(self) -> int:
        """Leaves in the tree."""
        return self.checkpoint.size

    @property
    def root(self) -> bytes:
        """The tree's root."""
        return self.checkpoint.root

    def bare(self) -> SignedCheckpoint:
        """The same without cosignatures and without lines of strangers."""
        lines = self.note.of(NoteKey(self.origin, self.log_key))
        return SignedCheckpoint(self.checkpoint, Note(self.note.text, tuple(lines[:1])), self.log_key)

    def cosigned(self, *lines: NoteSignature) -> SignedCheckpoint:
        """The same with cosignature lines added."""
        return SignedCheckpoint(self.checkpoint, self.note.with_signatures(*lines), self.log_key)


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness's checked word: at this time this was the largest consistent tree of the log that it knew."""

    witness: PublicKey
    time_s: int
    line: NoteSignature


def origin_of(key: PublicKey) -> str:
    """The name of a peer's log, and of a peer as a witness."""
    return ORIGIN_PREFIX + key.peer_id


def key_of_origin(origin: str) -> PublicKey:
    """The key that an origin names. Raises InvalidRecord (`wrong-origin`, `key-not-admissible`)."""
    if not origin.startswith(ORIGIN_PREFIX):
        raise InvalidRecord(
            "wrong-origin", f"{origin[:80]!r} is no log of this protocol: p2pgrid/<peer id> was expected."
        )
    return parse_peer_id(origin.removeprefix(ORIGIN_PREFIX))


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a note's text as a checkpoint. Raises InvalidRecord (`malformed`)."""
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() != "" or "" in lines or len(lines) > 3 + MAX_EXTENSIONS:
        raise InvalidRecord("malformed", "a checkpoint is origin, size and root, a line each, none of them empty.")
    origin, size_text, root_text, *extensions = lines
    size, root = parse_decimal(size_text, MAX_SIZE), from_base64(root_text)
    if len(root) != HASH_BYTES:
        raise InvalidRecord("malformed", f"a checkpoint's root has {HASH_BYTES} bytes, this has {len(root)}.")
    return Checkpoint(origin, size, root, tuple(extensions))


def sign_checkpoint(size: int, root: bytes, key: SecretKey) -> SignedCheckpoint:
    """The log's own checkpoint. The caller has made sure that it never signs two that disagree."""
    origin = origin_of(key.public_key)
    checkpoint = Checkpoint(origin, size, root)
    text = checkpoint.text()
    return SignedCheckpoint(checkpoint, Note(text, (sign_text(text, origin, key),)), key.public_key)


def verify_checkpoint(data: bytes | Note, key: PublicKey | None = None) -> SignedCheckpoint:
    """A checkpoint that the log named in it signed; with `key`, that of this very log.

    Raises InvalidRecord: `malformed`, `oversize`, `wrong-origin`, `key-not-admissible`, `signature-missing`,
    `bad-signature`.
    """
    note = data if isinstance(data, Note) else parse_note(data)
    checkpoint = parse_checkpoint(note.text)
    named = key_of_origin(checkpoint.origin)
    if key is not None and named != key:
        raise InvalidRecord("wrong-origin", f"this is a checkpoint of {named}; one of {key} was expected.")
    verify_text(note, NoteKey(checkpoint.origin, named))
    return SignedCheckpoint(checkpoint, note, named)


def witness_key(key: PublicKey) -> NoteKey:
    """A peer as a witness."""
    return NoteKey(origin_of(key), key, SignatureKind.COSIGNATURE)


def cosign(checkpoint: SignedCheckpoint, key: SecretKey, time_s: int) -> NoteSignature:
    """A witness's signature line. The caller has checked consistency, and has it on record durably."""
    signer = witness_key(key.public_key)
    signature = key.sign(_cosigned_text(checkpoint.note.text, time_s))
    return NoteSignature(signer.name, signer.id, time_s.to_bytes(_TIME_BYTES) + signature)


def verify_cosignature(text: str, line: NoteSignature, key: NoteKey) -> Cosignature:
    """This witness's signature line over a checkpoint's text. Raises InvalidRecord (`wrong-key`, `bad-signature`)."""
    if line.name != key.name or line.key_id != key.id:
        raise InvalidRecord("wrong-key", f"this is no cosignature of {key.name}.")
    time_s = int.from_bytes(line.signature[:_TIME_BYTES])
    if (
        len(line.signature) != _TIME_BYTES + SIGNATURE_BYTES
        or time_s >= 2**63
        or not key.key.verify(_cosigned_text(text, time_s), line.signature[_TIME_BYTES:])
    ):
        raise InvalidRecord("bad-signature", f"the cosignature of {key.name} does not fit this checkpoint.")
    return Cosignature(key.key, time_s, line)


def cosignatures_of(checkpoint: SignedCheckpoint) -> list[Cosignature]:
    """The cosignatures by peers of this protocol that fit, one a witness. Others are passed over."""
    found: dict[bytes, Cosignature] = {}
    for line in checkpoint.note.signatures:
        try:
            key = witness_key(key_of_origin(line.name))
            one = verify_cosignature(checkpoint.note.text, line, key)
        except InvalidRecord:
            continue
        found.setdefault(one.witness.raw, one)
    return list(found.values())


def _cosigned_text(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()
