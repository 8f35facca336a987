"""Signed notes: text for people that keys sign (c2sp.org/signed-note).

A note is a text, a blank line, and signature lines `— <key name> <base64 of key id and signature>`. Ed25519 alone is
known here, in two kinds: over the text (1), and a witness's cosignature with a time (4; c2sp.org/tlog-cosignature).
Signatures of other names and ids are kept and prove nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import ALGORITHM_ED25519, PublicKey, SecretKey, parse_public_key

MAX_NOTE_BYTES: Final = 48 * 1024
"""More than ten of the longest signatures there are, and one frame of a link."""
MAX_NOTE_SIGNATURES: Final = 64
MAX_NAME_CHARS: Final = 255
KEY_ID_BYTES: Final = 4

_DASH: Final = "\N{EM DASH} "
_VKEY: Final = re.compile(r"(?P<name>[^+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/=]+)")


class SignatureKind(IntEnum):
    """The signature type byte, which is part of a key's id."""

    TEXT = 1
    COSIGNATURE = 4


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: whose it claims to be, and the bytes behind the key id."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """The line, without its line feed."""
        return f"{_DASH}{self.name} {to_base64(self.key_id + self.signature)}"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signature lines, as received: nothing in it is believed yet."""

    text: str
    """Ends with a line feed."""
    signatures: tuple[NoteSignature, ...]

    def to_bytes(self) -> bytes:
        """The note as it travels."""
        return "".join([self.text, "\n", *(f"{one.line()}\n" for one in self.signatures)]).encode()

    def of(self, key: NoteKey) -> list[NoteSignature]:
        """The signatures that claim to be by `key`; none of them is checked."""
        return [one for one in self.signatures if one.name == key.name and one.key_id == key.id]

    def with_signatures(self, *more: NoteSignature) -> Note:
        """The note with lines added; those that stand there already are not repeated."""
        return Note(self.text, tuple(dict.fromkeys((*self.signatures, *more))))


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A key with its name and the kind of signatures that it makes. Its text is a `vkey`."""

    name: str
    key: PublicKey
    kind: SignatureKind = SignatureKind.TEXT

    @property
    def id(self) -> bytes:
        """The 4 bytes that stand before the signature."""
        return hashlib.sha256(b"%s\n%c%s" % (self.name.encode(), self.kind, self.key.raw[1:])).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{to_base64(bytes([self.kind]) + self.key.raw[1:])}"


def parse_note(data: bytes) -> Note:
    """Take untrusted bytes for a note. Raises InvalidRecord (`oversize`, `malformed`)."""
    if len(data) > MAX_NOTE_BYTES:
        raise InvalidRecord("oversize", f"a note has at most {MAX_NOTE_BYTES} bytes, this has {len(data)}.")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if any(char < " " and char != "\n" for char in whole):
        raise _malformed("it has control characters")
    text, blank, tail = whole.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise _malformed("a text, a blank line and signature lines were expected")
    return Note(text + "\n", parse_signature_lines(tail))


def parse_signature_lines(text: str) -> tuple[NoteSignature, ...]:
    """Signature lines, each with its line feed. Raises InvalidRecord (`malformed`)."""
    lines = text.split("\n")
    if lines.pop() != "" or not lines:
        raise _malformed("a signature line does not end")
    if len(lines) > MAX_NOTE_SIGNATURES:
        raise _malformed(f"it has {len(lines)} signatures, more than {MAX_NOTE_SIGNATURES}")
    return tuple(_parse_line(line) for line in lines)


def parse_note_key(text: str) -> NoteKey:
    """A `vkey`: name, key id and key with `+` between. Raises InvalidRecord (`malformed`, `key-not-admissible`)."""
    found = _VKEY.fullmatch(text) if len(text) < 512 else None
    if found is None or not is_key_name(found["name"]):
        raise InvalidRecord("malformed", "name+id+key was expected as the key of a note.")
    raw = from_base64(found["key"])
    kinds = [int(kind) for kind in SignatureKind]
    if len(raw) != 33 or raw[0] not in kinds:
        raise InvalidRecord("key-not-admissible", f"the key of a note is Ed25519, of kind {kinds}.")
    public = parse_public_key(bytes([ALGORITHM_ED25519]) + raw[1:])
    key = NoteKey(found["name"], public, SignatureKind(raw[0]))
    if key.id.hex() != found["id"]:
        raise InvalidRecord("malformed", f"the key of this note has the id {key.id.hex()}, not {found['id']}.")
    return key


def sign_text(text: str, name: str, key: SecretKey) -> NoteSignature:
    """A signature over a note's text. ValueError for a text or a name that no note can have."""
    if not text.endswith("\n") or any(char < " " and char != "\n" for char in text) or not is_key_name(name):
        raise ValueError("no note has such a text or such a name")
    return NoteSignature(name, NoteKey(name, key.public_key).id, key.sign(text.encode()))


def verify_text(note: Note, key: NoteKey) -> None:
    """Check that `key` signed the text. Raises InvalidRecord (`signature-missing`, `bad-signature`).

    Every line that claims to be by the key must fit.
    """
    lines = note.of(key)
    if not lines:
        raise InvalidRecord("signature-missing", f"{key.name} has not signed this note.")
    if not all(key.key.verify(note.text.encode(), one.signature) for one in lines):
        raise InvalidRecord("bad-signature", f"the signature of {key.name} does not fit this note.")


def is_key_name(text: str) -> bool:
    """True for what may name a key: not empty, no white space, no plus."""
    if not 0 < len(text) <= MAX_NAME_CHARS or "+" in text:
        return False
    # Half a surrogate pair has no bytes to sign.
    return not any(c.isspace() or c < " " or "\ud800" <= c <= "\udfff" for c in text)


def to_base64(raw: bytes) -> str:
    """RFC 4648, section 4, with padding."""
    return base64.b64encode(raw).decode()


def from_base64(text: str) -> bytes:
    """The bytes of canonical base64. Raises InvalidRecord (`malformed`)."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRecord("malformed", f"{text[:60]!r} is no base64.") from None
    if to_base64(raw) != text:
        raise InvalidRecord("malformed", f"{text[:60]!r} is not how these bytes are written in base64.")
    return raw


def parse_decimal(text: str, most: int) -> int:
    """An ASCII decimal without sign or leading zeros, at most `most`. Raises InvalidRecord (`malformed`)."""
    if text.isascii() and text.isdecimal() and len(text) <= 20 and (text == "0" or text[0] != "0"):
        value = int(text)
        if value <= most:
            return value
    raise InvalidRecord("malformed", f"{text[:40]!r} is no number from 0 to {most}.")


def _parse_line(line: str) -> NoteSignature:
    parts = line.removeprefix(_DASH).split(" ") if line.startswith(_DASH) else []
    if len(parts) != 2 or not is_key_name(parts[0]):
        raise _malformed("a signature line is a dash, a name and base64")
    raw = from_base64(parts[1])
    if len(raw) <= KEY_ID_BYTES:
        raise _malformed("a signature is too short")
    return NoteSignature(parts[0], raw[:KEY_ID_BYTES], raw[KEY_ID_BYTES:])


def _malformed(why: str) -> InvalidRecord:
    return InvalidRecord("malformed", f"this is no signed note: {why}.")
