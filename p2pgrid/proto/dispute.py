"""What a party signs when it does not agree (docs/spec/messages.md): Dispute, Answer, Opening."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import Amount, Id, Number, Sentence, TimeMs
from p2pgrid.proto.record import Message, Role

MAX_OPENED_BYTES: Final = 96 * 1024
"""Most of a body or an answer that an Opening can show."""

_PARTIES: Final = frozenset({Role.PROVIDER, Role.CLIENT})


class Dispute(Message, frozen=True, kw_only=True):
    """A party does not accept a receipt. Signed by that party; one for each receipt and side."""

    payload_type: ClassVar[str] = "/p2pgrid/dispute/1"

    channel: Id
    receipt_number: Number
    receipt: Id
    by: Role
    reason: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,62}\Z")]
    """A code of docs/spec/audit.md, or one of `REASONS`."""
    statement: Sentence
    """What is wrong, in a sentence for people. No prompt, answer or personal data belongs here."""
    owed_pico: Amount
    """What this party says is owed for the order."""
    disputed_ms: TimeMs

    def check(self) -> None:
        if self.by not in _PARTIES:
            raise InvalidRecord("out-of-range", f"a dispute is a party's, not the {self.by}'s.")


class Decision(StrEnum):
    """What the other side says to a dispute."""

    ACCEPTED = "accepted"
    """It agrees: `owed_pico` is what the dispute says."""
    REJECTED = "rejected"
    """It stands by the receipt, or offers another amount."""


class Answer(Message, frozen=True, kw_only=True):
    """The reply to a dispute. Signed by the other party; one for each dispute."""

    payload_type: ClassVar[str] = "/p2pgrid/answer/1"

    channel: Id
    receipt_number: Number
    dispute: Id
    by: Role
    """Who answers."""
    decision: Decision
    statement: Sentence
    owed_pico: Amount
    """What this party says is owed for the order: the dispute's amount where it accepts."""
    answered_ms: TimeMs

    def check(self) -> None:
        if self.by not in _PARTIES:
            raise InvalidRecord("out-of-range", f"an answer is a party's, not the {self.by}'s.")


class Subject(StrEnum):
    """Which commitment an opening opens."""

    REQUEST = "request"
    RESPONSE = "response"


class Opening(Message, frozen=True, kw_only=True):
    """A party shows what a commitment in an order or a receipt is over, to an auditor it chooses. Signed by that party.

    It holds a prompt or an answer, so it travels to nobody else, and is in no ledger's export.
    """

    payload_type: ClassVar[str] = "/p2pgrid/opening/1"
    max_payload_bytes: ClassVar[int] = MAX_OPENED_BYTES + 1024

    channel: Id
    order_number: Number
    by: Role
    subject: Subject
    commitment_key: Id
    content: Annotated[bytes, Meta(max_length=MAX_OPENED_BYTES)]

    def check(self) -> None:
        if self.by not in _PARTIES:
            raise InvalidRecord("out-of-range", f"an opening is a party's, not the {self.by}'s.")


REASONS: Final = ("not-delivered", "not-countersigned", "quality", "duplicate", "other")
"""Reasons for a dispute that no audit can see in the records."""
