"""What a lying side says, and when: a history's repertoire of lies, and how records are forged.

A lie told at once is found at once. So a liar behaves in between, lets chances pass, and tells several lies in one
history; all of it follows from the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final, TypeVar

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Message, Record, Role, Signature, Signed, sign_message
from p2pgrid.proto.wire.kinds import Kind

M = TypeVar("M", bound=Message)
Frame = tuple[int, bytes]

FRAMES: Final = (
    "a frame twice",
    "a frame withheld",
    "a frame late",
    "a frame of before",
    "a frame altered",
    "a frame of another kind",
)
"""What may be done to any message."""
MOST_HELD_BACK: Final = 200
"""Frames that a liar keeps to show them again."""


class Lies:
    """Which lies are told in a history, how often, and after how many chances that were let pass."""

    def __init__(self, random: Random, kinds: Sequence[Sequence[str]]) -> None:
        """`kinds`: lies of one kind each. Some kinds are told in a history, and of each some."""
        self._random = random
        chosen: list[str] = []
        for names in random.sample(kinds, min(random.choice((1, 1, 2, 2, 3, len(kinds))), len(kinds))):
            chosen += random.sample(sorted(names), min(random.choice((1, 1, 2, 4, len(names))), len(names)))
        if kinds and random.random() < 0.2:
            chosen += random.sample(FRAMES, random.randint(1, 3))
        self.repertoire: Final = frozenset(chosen)
        self.chance: Final = random.choice((0.1, 0.3, 0.3, 1.0))
        self.patience = random.choice((0, 0, 0, 2, 5, 20))
        self.told: Counter[str] = Counter()
        self.are_over = False
        """True once the liar has thought better of it."""

    def tell(self, name: str) -> bool:
        """True if this lie is told now."""
        if self.are_over or name not in self.repertoire:
            return False
        if self.patience > 0:
            self.patience -= 1
            return False
        # There are many frames to each thing that is signed.
        if self._random.random() >= (self.chance if name not in FRAMES else self.chance / 10):
            return False
        self.told[name] += 1
        return True

    def frames(self, frame: Frame, before: list[Frame]) -> list[Frame]:
        """What leaves in place of a message. `before` holds what left earlier, and is added to."""
        random = self._random
        before.append(frame)
        del before[:-MOST_HELD_BACK]
        out = [frame]
        if self.tell("a frame withheld"):
            out = []
        if self.tell("a frame twice"):
            out = [*out, frame]
        if self.tell("a frame late") and len(before) > 1:
            out = [before[-2], *out]
        if self.tell("a frame of before"):
            out.insert(random.randint(0, len(out)), random.choice(before))
        if self.tell("a frame altered") and frame[1]:
            at = random.randrange(len(frame[1]))
            out = [(frame[0], frame[1][:at] + bytes([frame[1][at] ^ (1 << random.randint(0, 7))]) + frame[1][at + 1 :])]
        if self.tell("a frame of another kind"):
            out = [(random.choice([int(k) for k in Kind]), frame[1])]
        return out


def forged(signed: Signed[M], role: Role, key: SecretKey, **changes: Any) -> Signed[M]:
    """The record with other contents, signed anew by one side; as it was where no record may say that."""
    try:
        return sign_message(msgspec.structs.replace(signed.message, **changes), role, key)
    except InvalidRecord:
        return signed


def with_bad_signature(record: Record, role: Role) -> Record:
    """The record with one bit of the side's signature turned."""
    signatures = tuple(
        Signature(s.role, s.key, bytes([s.signature[0] ^ 1]) + s.signature[1:]) if s.role is role else s
        for s in record.signatures
    )
    return Record(record.payload_type, record.payload, signatures)
