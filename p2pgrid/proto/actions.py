"""What a session machine asks its shell to do. The machine decides, the shell moves bytes.

Actions are carried out in order, with one rule: a `Send` that stands after a `Persist` waits until that record is
durable. `Deliver`, `AskEngine` and `AbortEngine` wait for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Message, Record, Signed
from p2pgrid.proto.wire.kinds import Kind


class Persist(msgspec.Struct, frozen=True):
    """Write a record to the ledger."""

    signed: Signed[Message]


class KeepEvidence(msgspec.Struct, frozen=True):
    """Keep an unacceptable record that the peer signed."""

    record: Record
    reason: str


class Send(msgspec.Struct, frozen=True):
    """Send a message on the order's stream."""

    kind: Kind
    payload: bytes


class AskEngine(msgspec.Struct, frozen=True):
    """Pass the order's body to the engine (provider)."""


class AbortEngine(msgspec.Struct, frozen=True):
    """Stop the engine's work on the order now (provider)."""


class AskEngineFor(msgspec.Struct, frozen=True):
    """Pass the body of one request of a batch order to the engine (provider)."""

    index: int
    body: bytes


class AbortEngineFor(msgspec.Struct, frozen=True):
    """Stop the engine's work on one request of a batch order now (provider)."""

    index: int


class Deliver(msgspec.Struct, frozen=True):
    """Hand answer bytes to the program (client)."""

    data: bytes


class Settled(msgspec.Struct, frozen=True):
    """The order has ended, and its receipt carries both signatures."""

    receipt: Signed[Receipt]


class Turn(msgspec.Struct, frozen=True):
    """The receipt of another order of this channel waited for this one: call that order's `proceed` now (client)."""

    order_number: int


class EndStream(msgspec.Struct, frozen=True):
    """Nothing more will be sent on the stream."""


class Disputed(msgspec.Struct, frozen=True):
    """The order has ended, and the client disputes its receipt. The chain goes on above it."""

    receipt: Signed[Receipt]
    dispute: Signed[Dispute]


class Breach(msgspec.Struct, frozen=True):
    """The peer broke the rules in a way that the chain cannot go on from: close the link, deal with the peer no more,
    tell a person.

    `code` is a finding code, `message` a sentence.
    """

    code: str
    message: str


Action = (
    Persist
    | KeepEvidence
    | Send
    | AskEngine
    | AbortEngine
    | AskEngineFor
    | AbortEngineFor
    | Deliver
    | Settled
    | Disputed
    | Turn
    | EndStream
    | Breach
)
Actions = Sequence[Action]
