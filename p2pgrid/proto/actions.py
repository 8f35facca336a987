"""What a session machine asks its shell to do. The machine decides, the shell moves bytes.

Actions are carried out in order, with one rule: a `Send` that stands after a `Persist` waits until that record is
durable. `Deliver`, `AskEngine` and `AbortEngine` wait for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Message, Record, Signed
from p2pgrid.proto.wire import Kind


@dataclass(frozen=True, slots=True)
class Persist:
    """Write a record to the ledger."""

    signed: Signed[Message]


@dataclass(frozen=True, slots=True)
class KeepEvidence:
    """Keep an unacceptable record that the peer signed."""

    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message on the order's stream."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True)
class AskEngine:
    """Pass the order's body to the engine (provider)."""


@dataclass(frozen=True, slots=True)
class AbortEngine:
    """Stop the engine's work on the order now (provider)."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand answer bytes to the program (client)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """The order has ended, and its receipt carries both signatures."""

    receipt: Signed[Receipt]


@dataclass(frozen=True, slots=True)
class Turn:
    """The receipt of another order of this channel waited for this one: call that order's `proceed` now (client)."""

    order_number: int


@dataclass(frozen=True, slots=True)
class EndStream:
    """Nothing more will be sent on the stream."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """The order has ended, and the client disputes its receipt. The chain goes on above it."""

    receipt: Signed[Receipt]
    dispute: Signed[Dispute]


@dataclass(frozen=True, slots=True)
class Breach:
    """The peer broke the rules in a way that the chain cannot go on from: close the link, deal with the peer no more,
    tell a person.

    `code` is a finding code, `message` a sentence.
    """

    code: str
    message: str


Action = (
    Persist | KeepEvidence | Send | AskEngine | AbortEngine | Deliver | Settled | Disputed | Turn | EndStream | Breach
)
Actions = Sequence[Action]
