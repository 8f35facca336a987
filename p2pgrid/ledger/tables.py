"""Which record goes into which table, under which decoded columns, and what may stand there only once.

Table names are the specification's words in the plural (`order` alone is a word of SQL's). Beside the decoded columns
every table has:

    seq         order of arrival over all tables; the primary key
    id          the record's id, hex
    signed_by   roles whose signatures were checked: `provider`, `client` or `client,provider`
    payload     the signed bytes, exactly as they came
    signatures  a MessagePack array of [role, key, signature]

Ids are hex, peers are peer ids (`12D3KooW...`), times Unix milliseconds; amounts are in the unit that ends the column's
name, pico or cents of the currency.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from p2pgrid.ledger.table import Table
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import channels_named
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement

_CHANNEL_ORDER: Final = {"channel": str, "order_number": int}
_USAGE: Final = {"prompt_tokens": int, "cached_tokens": int, "output_tokens": int, "amount_pico": int}


_USAGE_FIELDS: Final = {name: f"usage.{name}" for name in _USAGE if name.endswith("_tokens")}


def _peer_id(field_name: str) -> Callable[[Any], str]:
    key_of = attrgetter(field_name)
    return lambda m: parse_public_key(key_of(m)).peer_id


OFFERS: Final = Table(
    name="offers",
    message_type=Offer,
    columns={
        "provider": str,
        "sequence": int,
        "operator": str,
        "country": str,
        "models": str,
        "valid_from_ms": int,
        "valid_until_ms": int,
    },
    fields={"country": "data_terms.country"},
    made={
        "provider": _peer_id("provider"),
        "models": lambda m: ", ".join(entry.model for entry in m.models),
    },
    slots=(("provider", "sequence"),),
    references_channel=False,
)
CHANNELS: Final = Table(
    name="channels",
    message_type=Channel,
    columns={
        "channel": str,
        "provider": str,
        "client": str,
        "currency": str,
        "credit_limit_pico": int,
        "window_tokens": int,
        "opened_ms": int,
        "expires_ms": int,
    },
    made={"provider": _peer_id("provider"), "client": _peer_id("client")},
    slots=(("channel",),),
    references_channel=False,
)
ORDERS: Final = Table(
    name="orders",
    message_type=Order,
    columns={
        **_CHANNEL_ORDER,
        "offer": str,
        "model": str,
        "endpoint": str,
        "max_prompt_tokens": int,
        "max_output_tokens": int,
        "max_amount_pico": int,
        "ordered_ms": int,
    },
    slots=(("channel", "order_number"),),
    references_channel=True,
)
METERS: Final = Table(
    name="meters",
    message_type=Meter,
    columns={**_CHANNEL_ORDER, "tick": int, **_USAGE, "metered_ms": int},
    fields=_USAGE_FIELDS,
    slots=(("channel", "order_number", "tick"),),
    references_channel=True,
)
VOUCHERS: Final = Table(
    name="vouchers",
    message_type=Voucher,
    columns={**_CHANNEL_ORDER, "tick": int, **_USAGE, "meter": str},
    fields=_USAGE_FIELDS,
    slots=(("channel", "order_number", "tick"),),
    references_channel=True,
)
RECEIPTS: Final = Table(
    name="receipts",
    message_type=Receipt,
    columns={
        "channel": str,
        "receipt_number": int,
        "previous": str,
        "order_number": int,
        "model": str,
        **_USAGE,
        "channel_total_pico": int,
        "status": str,
        "finish_reason": str,
        "first_token_ms": int,
        "total_ms": int,
        "issued_ms": int,
        "mentions": str,
    },
    fields=_USAGE_FIELDS,
    made={"mentions": lambda m: " ".join(one.hex() for one in m.mentions)},
    # One receipt a number, and one receipt an order: an order is billed once.
    slots=(("channel", "receipt_number"), ("channel", "order_number")),
    references_channel=True,
)

DISPUTES: Final = Table(
    name="disputes",
    message_type=Dispute,
    columns={
        "channel": str,
        "receipt_number": int,
        "receipt": str,
        "side": str,
        "reason": str,
        "statement": str,
        "owed_pico": int,
        "disputed_ms": int,
    },
    fields={"side": "by"},
    slots=(("channel", "receipt_number", "side"),),
    references_channel=True,
)
ANSWERS: Final = Table(
    name="answers",
    message_type=Answer,
    columns={
        "channel": str,
        "receipt_number": int,
        "dispute": str,
        "side": str,
        "decision": str,
        "statement": str,
        "owed_pico": int,
        "answered_ms": int,
    },
    fields={"side": "by"},
    slots=(("channel", "dispute"),),
    references_channel=True,
)

STATEMENTS: Final = Table(
    name="statements",
    message_type=Statement,
    columns={
        "channel": str,
        "statement_number": int,
        "first_receipt": int,
        "last_receipt": int,
        "currency": str,
        "net_cents": int,
        "gross_cents": int,
        "payments_cents": int,
        "set_off_cents": int,
        "opening_cents": int,
        "closing_cents": int,
        "from_ms": int,
        "until_ms": int,
        "due_ms": int,
        "stated_ms": int,
    },
    slots=(("channel", "statement_number"),),
    references_channel=True,
)
INVOICES: Final = Table(
    name="invoices",
    message_type=Invoice,
    columns={
        "channel": str,
        "statement": str,
        "invoice_number": str,
        "type_code": int,
        "currency": str,
        "net_cents": int,
        "vat_cents": int,
        "gross_cents": int,
        "document_sha256": str,
        "issued_ms": int,
    },
    slots=(("channel", "invoice_number"),),
    references_channel=True,
)


def _booking(m: Payment) -> str:
    """What makes it one booking (docs/spec/audit.md, 43a): the bank's entry, for an invoice or ahead. What was typed in
    is one by all that it says, and so is what is reallocated: that may come back to an invoice, and leave it again."""
    where = f"for {m.invoice_number!r}" if m.statement else "ahead"
    if m.entry and m.kind is not PaymentKind.REALLOCATED:
        return f"{m.entry.hex()} {where}"
    how = f"{m.entry.hex() or 'by hand'}, {m.kind.value}"
    return f"{how}, {m.reference!r} of {m.amount_cents} at {m.booked_ms} {where}"


PAYMENTS: Final = Table(
    name="payments",
    message_type=Payment,
    columns={
        "channel": str,
        "booking": str,
        "statement": str,
        "invoice_number": str,
        "reference": str,
        "currency": str,
        "amount_cents": int,
        "kind": str,
        "entry": str,
        "booked_ms": int,
    },
    made={"booking": _booking},
    # One movement of money is booked once for an invoice.
    slots=(("channel", "booking"),),
    references_channel=True,
)

SET_OFFS: Final = Table(
    name="set_offs",
    message_type=SetOff,
    columns={
        "channel": str,
        "other_channel": str,
        "nonce": str,
        "currency": str,
        "amount_cents": int,
        "agreed_ms": int,
        "until_ms": int,
    },
    fields={"channel": "first.channel", "other_channel": "second.channel"},
    slots=(("channel", "other_channel", "nonce"),),
    references_channel=False,  # an operator that buys with another node has one of the two in each ledger
    of_channel="channel = :channel OR other_channel = :channel",
)
_OF_CYCLE: Final = "cycle IN (SELECT id FROM cycles WHERE instr(channels, :channel))"
CYCLES: Final = Table(
    name="cycles",
    message_type=Cycle,
    columns={
        "proposer": str,
        "nonce": str,
        "channels": str,
        "currency": str,
        "amount_cents": int,
        "proposed_ms": int,
        "deadline_ms": int,
    },
    made={
        "proposer": _peer_id("proposer"),
        "channels": lambda m: " ".join(channel.hex() for channel in channels_named(m)),
    },
    slots=(("proposer", "nonce"),),
    references_channel=False,
    of_channel="instr(channels, :channel)",
)
LEGS: Final = Table(
    name="legs",
    message_type=Leg,
    columns={"channel": str, "cycle": str, "currency": str, "amount_cents": int},
    slots=(("channel", "cycle"),),
    references_channel=False,  # all legs of a cycle are kept, those between others too
    of_channel=f"channel = :channel OR {_OF_CYCLE}",
)
VERDICTS: Final = Table(
    name="verdicts",
    message_type=CycleVerdict,
    columns={"timekeeper": str, "cycle": str, "is_complete": int, "judged_ms": int},
    made={"timekeeper": _peer_id("timekeeper")},
    # Whoever was shown another word than the other side must come to the same state: see `cycle_rules.state_of`.
    slots=(("timekeeper", "cycle", "is_complete"),),
    references_channel=False,
    of_channel=_OF_CYCLE,
)

TABLES: Final[dict[str, Table]] = {
    table.message_type.payload_type: table
    for table in (
        OFFERS,
        CHANNELS,
        ORDERS,
        METERS,
        VOUCHERS,
        RECEIPTS,
        DISPUTES,
        ANSWERS,
        STATEMENTS,
        INVOICES,
        PAYMENTS,
        SET_OFFS,
        CYCLES,
        LEGS,
        VERDICTS,
    )
}
"""Every table by its payload type."""

PLACED_BY: Final = {
    Statement.payload_type: "statement_number",
    Invoice.payload_type: "issued_ms",
    Payment.payload_type: "booked_ms",
}
"""What orders the records of a type of settlement's that a channel's parties sign (`Ledger.settlement_marks`)."""


def table_of(signed: Signed[Message]) -> Table:
    """Where a record belongs. Raises TypeError for a type that no table keeps, or a record without its signer.

    Both are mistakes of the caller's, not of a peer's.
    """
    table = TABLES.get(signed.record.payload_type)
    if table is None:
        raise TypeError(f"the ledger keeps no {signed.record.payload_type}")
    if not signed.signers:
        raise TypeError(f"nobody's signature on this {signed.record.payload_type} was checked")
    return table
