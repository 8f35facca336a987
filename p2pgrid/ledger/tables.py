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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from p2pgrid.errors import InvalidRecord, LedgerError
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import (
    M,
    Message,
    Record,
    Role,
    Signature,
    Signed,
    parse_message,
    verify_record,
    verify_self_signed,
)
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import channels_named, verify_named
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement

Value = int | str | bytes | None
Decoded = int | str

BOTH_ROLES: Final = "client,provider"
"""`signed_by` of a record with both signatures."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where records of one type are kept."""

    name: str
    message_type: type[Message]
    columns: Mapping[str, type]
    """The decoded columns, int or str, in order."""
    values: Callable[[Any], tuple[Decoded, ...]]
    """Their values from a message of `message_type`."""
    slots: tuple[tuple[str, ...], ...]
    """Columns that together hold one record only."""
    references_channel: bool
    """True if the record's channel must be on record before it."""
    of_channel: str = "channel = :channel"
    """SQL: which rows are of a channel, given by its id in hex."""

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Every column that an insert fills, in the order of `row`."""
        return ("seq", "id", *self.columns, "signed_by", "payload", "signatures")

    def row(self, seq: int, signed: Signed[Message]) -> tuple[Value, ...]:
        """The row of a checked record. Signatures that nobody checked are not kept."""
        record = checked_record(signed)
        return (
            seq,
            signed.id.hex(),
            *self.values(signed.message),
            signed_by(record),
            record.payload,
            encode_signatures(record.signatures),
        )

    def slot_values(self, message: Message) -> list[tuple[Decoded, ...]]:
        """The values of each of `slots`."""
        named = dict(zip(self.columns, self.values(message), strict=True))
        return [tuple(named[column] for column in slot) for slot in self.slots]

    def describe(self, message: Message) -> str:
        """The record's place for people: `orders: channel 12ab..., order_number 3`."""
        named = dict(zip(self.columns, self.values(message), strict=True))
        return f"{self.name}: " + ", ".join(f"{column} {named[column]}" for column in self.slots[0])


_CHANNEL_ORDER: Final = {"channel": str, "order_number": int}
_USAGE: Final = {"prompt_tokens": int, "cached_tokens": int, "output_tokens": int, "amount_pico": int}


def _usage(m: Meter | Voucher | Receipt) -> tuple[int, int, int, int]:
    return m.usage.prompt_tokens, m.usage.cached_tokens, m.usage.output_tokens, m.amount_pico


def _peer_id(key: bytes) -> str:
    return parse_public_key(key).peer_id


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
    values=lambda m: (
        _peer_id(m.provider),
        m.sequence,
        m.operator,
        m.data_terms.country,
        ", ".join(entry.model for entry in m.models),
        m.valid_from_ms,
        m.valid_until_ms,
    ),
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
    values=lambda m: (
        m.channel.hex(),
        _peer_id(m.provider),
        _peer_id(m.client),
        m.currency,
        m.credit_limit_pico,
        m.window_tokens,
        m.opened_ms,
        m.expires_ms,
    ),
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
    values=lambda m: (
        m.channel.hex(),
        m.order_number,
        m.offer.hex(),
        m.model,
        m.endpoint,
        m.max_prompt_tokens,
        m.max_output_tokens,
        m.max_amount_pico,
        m.ordered_ms,
    ),
    slots=(("channel", "order_number"),),
    references_channel=True,
)
METERS: Final = Table(
    name="meters",
    message_type=Meter,
    columns={**_CHANNEL_ORDER, "tick": int, **_USAGE, "metered_ms": int},
    values=lambda m: (m.channel.hex(), m.order_number, m.tick, *_usage(m), m.metered_ms),
    slots=(("channel", "order_number", "tick"),),
    references_channel=True,
)
VOUCHERS: Final = Table(
    name="vouchers",
    message_type=Voucher,
    columns={**_CHANNEL_ORDER, "tick": int, **_USAGE, "meter": str},
    values=lambda m: (m.channel.hex(), m.order_number, m.tick, *_usage(m), m.meter.hex()),
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
    values=lambda m: (
        m.channel.hex(),
        m.receipt_number,
        m.previous.hex(),
        m.order_number,
        m.model,
        *_usage(m),
        m.channel_total_pico,
        m.status.value,
        m.finish_reason,
        m.first_token_ms,
        m.total_ms,
        m.issued_ms,
        " ".join(one.hex() for one in m.mentions),
    ),
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
    values=lambda m: (
        m.channel.hex(),
        m.receipt_number,
        m.receipt.hex(),
        m.by.value,
        m.reason,
        m.statement,
        m.owed_pico,
        m.disputed_ms,
    ),
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
    values=lambda m: (
        m.channel.hex(),
        m.receipt_number,
        m.dispute.hex(),
        m.by.value,
        m.decision.value,
        m.statement,
        m.owed_pico,
        m.answered_ms,
    ),
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
    values=lambda m: (
        m.channel.hex(),
        m.statement_number,
        m.first_receipt,
        m.last_receipt,
        m.currency,
        m.net_cents,
        m.gross_cents,
        m.payments_cents,
        m.set_off_cents,
        m.opening_cents,
        m.closing_cents,
        m.from_ms,
        m.until_ms,
        m.due_ms,
        m.stated_ms,
    ),
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
    values=lambda m: (
        m.channel.hex(),
        m.statement.hex(),
        m.invoice_number,
        int(m.type_code),
        m.currency,
        m.net_cents,
        m.vat_cents,
        m.gross_cents,
        m.document_sha256.hex(),
        m.issued_ms,
    ),
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
    values=lambda m: (
        m.channel.hex(),
        _booking(m),
        m.statement.hex(),
        m.invoice_number,
        m.reference,
        m.currency,
        m.amount_cents,
        m.kind.value,
        m.entry.hex(),
        m.booked_ms,
    ),
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
    values=lambda m: (
        m.first.channel.hex(),
        m.second.channel.hex(),
        m.nonce.hex(),
        m.currency,
        m.amount_cents,
        m.agreed_ms,
        m.until_ms,
    ),
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
    values=lambda m: (
        _peer_id(m.proposer),
        m.nonce.hex(),
        " ".join(channel.hex() for channel in channels_named(m)),
        m.currency,
        m.amount_cents,
        m.proposed_ms,
        m.deadline_ms,
    ),
    slots=(("proposer", "nonce"),),
    references_channel=False,
    of_channel="instr(channels, :channel)",
)
LEGS: Final = Table(
    name="legs",
    message_type=Leg,
    columns={"channel": str, "cycle": str, "currency": str, "amount_cents": int},
    values=lambda m: (m.channel.hex(), m.cycle.hex(), m.currency, m.amount_cents),
    slots=(("channel", "cycle"),),
    references_channel=False,  # all legs of a cycle are kept, those between others too
    of_channel=f"channel = :channel OR {_OF_CYCLE}",
)
VERDICTS: Final = Table(
    name="verdicts",
    message_type=CycleVerdict,
    columns={"timekeeper": str, "cycle": str, "is_complete": int, "judged_ms": int},
    values=lambda m: (_peer_id(m.timekeeper), m.cycle.hex(), int(m.is_complete), m.judged_ms),
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

_SIGNERS: Final[dict[str, Role]] = {
    Order.payload_type: Role.CLIENT,
    Meter.payload_type: Role.PROVIDER,
    Voucher.payload_type: Role.CLIENT,
    Receipt.payload_type: Role.PROVIDER,
    Statement.payload_type: Role.PROVIDER,
    Invoice.payload_type: Role.PROVIDER,
    Payment.payload_type: Role.PROVIDER,
}


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


def checked_record(signed: Signed[Message]) -> Record:
    """The record with those signatures that were checked; a peer may have added others, and they prove nothing."""
    record, signers = signed.record, signed.signers
    for signature in record.signatures:
        if signature.role not in signers or signature.key != signers[signature.role].raw:
            break
    else:
        return record
    checked = tuple(s for s in record.signatures if s.role in signers and s.key == signers[s.role].raw)
    return Record(record.payload_type, record.payload, checked)


def merged_signatures(stored: Sequence[Signature], new: Sequence[Signature]) -> tuple[Signature, ...]:
    """What stands stays as it is; signatures in other roles are added."""
    roles = {s.role for s in stored}
    return (*stored, *(s for s in new if s.role not in roles))


def signed_by(record: Record) -> str:
    """The roles of a record's signatures, as the column `signed_by` has them."""
    if len(record.signatures) == 1:
        return record.signatures[0].role.value
    return ",".join(sorted({s.role.value for s in record.signatures}))


def encode_signatures(signatures: Sequence[Signature]) -> bytes:
    """The column `signatures`."""
    return msgspec.msgpack.encode(signatures)


def decode_signatures(blob: bytes) -> tuple[Signature, ...]:
    """The column `signatures`, read back. Raises LedgerError if it is damaged."""
    try:
        return _signatures_decoder.decode(blob)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(f"its signatures cannot be read ({error})") from None


def read_offer(record: Record) -> Signed[Offer]:
    """An offer from the ledger, its signature checked again. Raises LedgerError."""
    try:
        signed = verify_self_signed(record, Offer, Role.PROVIDER)
    except InvalidRecord as error:
        raise damaged(error.message) from None
    if signed.signers[Role.PROVIDER].raw != signed.message.provider:
        raise damaged("an offer is signed by another key than it names")
    return signed


def read_channel(record: Record) -> Signed[Channel]:
    """A channel with both signatures from the ledger, checked again. Raises LedgerError."""
    keys = {s.role: s.key for s in record.signatures}
    try:
        return verify_channel(
            record,
            provider=parse_public_key(keys.get(Role.PROVIDER, b"")),
            client=parse_public_key(keys.get(Role.CLIENT, b"")),
        )
    except InvalidRecord as error:
        raise damaged(error.message) from None


def read_signed(record: Record, message_type: type[M], channel: Channel) -> Signed[M]:
    """A channel's record from the ledger, every signature checked again with the channel's keys. Raises LedgerError."""
    keys = {Role.PROVIDER: channel.provider, Role.CLIENT: channel.client}
    try:
        signer = _SIGNERS.get(message_type.payload_type) or _signer_of(parse_message(record, message_type))
        roles = {s.role for s in record.signatures} | {signer}
        return verify_record(record, message_type, {role: parse_public_key(keys[role]) for role in sorted(roles)})
    except InvalidRecord as error:
        raise damaged(error.message) from None


def read_named(record: Record, message_type: type[M]) -> Signed[M]:
    """A record that names its signers from the ledger, its signatures checked again. Raises LedgerError."""
    try:
        return verify_named(record, message_type)
    except InvalidRecord as error:
        raise damaged(error.message) from None


def _signer_of(message: Message) -> Role:
    """Who signs a message that either party may sign."""
    assert isinstance(message, Dispute | Answer)
    return message.by


def damaged(what: str) -> LedgerError:
    """The error for rows that are not what was written."""
    return LedgerError(
        f"a record in the ledger is damaged: {what.rstrip('.')}.",
        hint="Stop the node, keep a copy of the file, and restore the ledger from a backup.",
    )


_signatures_decoder: Final = msgspec.msgpack.Decoder(tuple[Signature, ...])
