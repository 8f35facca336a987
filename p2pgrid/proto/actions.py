"""What a session machine asks its shell to do. The machine decides, the shell moves bytes.

Actions are carried out in order, with one rule: a `Send` that stands after a `Persist` waits until that record is
durable. `Deliver`, `AskEngine` and `AbortEngine` wait for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.messages import Order, Receipt
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
class Disputed:
    """A receipt was disputed, by a record that is persisted: the order has ended, the chain goes on above it.

    What it means for further dealings with the peer is for the shell to decide.
    """

    dispute: Signed[Dispute]


@dataclass(frozen=True, slots=True)
class KeepKey:
    """Keep an order's commitment key beside the order, until somebody erases it."""

    order: Signed[Order]
    key: bytes


@dataclass(frozen=True, slots=True)
class NoteOutcome:
    """Close an order that gets no receipt, with a word of ours (client)."""

    order: Signed[Order]
    outcome: str


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """The receipt of another order of this channel waited for this one: call that order's `proceed` now (client)."""

    order_number: int


@dataclass(frozen=True, slots=True)
class WhenDurable:
    """Call the machine's `durable` as soon as every Persist, KeepKey and NoteOutcome before this is durable, and so
    readable."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Both ledgers agree: the machine's `books` are the channel's from now on, `result` says what changed."""

    result: Reconciliation


@dataclass(frozen=True, slots=True)
class EndStream:
    """Nothing more will be sent on the stream."""


@dataclass(frozen=True, slots=True)
class Breach:
    """The peer broke the rules: close the link, deal with the peer no more, tell a person.

    `code` is a finding code or one of `live_codes`, `message` a sentence.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What taking up a channel has changed, for people and tests."""

    channel: bytes
    shown: Mapping[str, int]
    """Records sent that the other side lacked, by payload type."""
    adopted: Mapping[str, int]
    """Records that this side lacked and has now, by payload type."""
    interrupted: tuple[Receipt, ...]
    """Receipts made for suspended orders (provider)."""
    countersigned: tuple[int, ...]
    """Numbers of the receipts that got their second signature now."""
    disputed: tuple[Signed[Dispute], ...]
    """Disputes of proposed receipts."""
    never_served: tuple[int, ...]
    """Numbers of orders closed without a receipt (client)."""
    total_before_pico: int
    total_after_pico: int
    """The channel's total, proposals included."""
    countersigned_before_pico: int
    countersigned_after_pico: int

    @property
    def changed(self) -> bool:
        """True if anything is other than before, on either side."""
        parts = (self.shown, self.adopted, self.interrupted, self.countersigned, self.disputed, self.never_served)
        return any(parts)


Action = (
    Persist
    | KeepKey
    | NoteOutcome
    | KeepEvidence
    | Send
    | AskEngine
    | AbortEngine
    | Deliver
    | Settled
    | Disputed
    | TakeTurn
    | WhenDurable
    | Reconciled
    | EndStream
    | Breach
)
Actions = Sequence[Action]
