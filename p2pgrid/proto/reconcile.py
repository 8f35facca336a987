"""A channel resumed: what each side holds is brought together before anything goes on (docs/spec/session.md).

Pure, over what a ledger holds; both sides call the same functions. Each says what it holds (`held_of`), sends the
signed records that the other lacks (`lacking`), and takes what comes only if it is signed by those who have to
(`check_restored`). Then the provider gives orders without a receipt one (`interrupt_open_orders`), and the client
answers every proposal (`answer_proposal`). No number is used again: a side whose ledger lost its tail gets it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.countersigning import check_resumed
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.dispute_rules import faults_of_dispute
from p2pgrid.proto.keys import SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Status, Usage, Voucher
from p2pgrid.proto.pricing import is_billed_by_voucher, is_within_caps, price_of
from p2pgrid.proto.proposal import Ending, propose_receipt
from p2pgrid.proto.record import Message, Record, Role, Signed, parse_message, verify_record
from p2pgrid.proto.restore import ChannelRecords, PlacedOrder, disputed_by_client, order_of, tariff_of
from p2pgrid.proto.wire.channels import MAX_BATCH_RECORDS, MAX_OPEN_TICKS, Held, OpenTick
from p2pgrid.proto.wire.kinds import Kind

MAX_BATCH_BYTES: Final = 256 * 1024
"""Of records that one side sends in one exchange, before the last order's."""
MAX_SKIPPED_NUMBERS: Final = 1_000_000
"""Order numbers that the provider may say were used and of which the client knows nothing."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that the other side lacks, in the order in which they are to be taken."""

    records: tuple[Record, ...]
    is_all: bool
    """False if there are more."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The client's answer to a proposal: `persist` it, then send `payload` as a message of `kind`."""

    persist: tuple[Signed[Message], ...]
    kind: Kind
    payload: bytes
    receipt: Signed[Receipt]
    dispute: Signed[Dispute] | None
    is_new: bool
    """False if it was signed before, and the provider does not know."""


@dataclass(slots=True)
class Reconciliation:
    """What resuming a channel changed on the client's side."""

    channel: bytes
    restored: list[Signed[Message]] = field(default_factory=list)
    """Records that our ledger lacked."""
    sent: int = 0
    """Records that the provider's ledger lacked."""
    countersigned: list[Signed[Receipt]] = field(default_factory=list)
    disputed: list[Signed[Dispute]] = field(default_factory=list)
    closed_orders: list[int] = field(default_factory=list)
    """Orders that never became the provider's business."""


# -- what each holds ------------------------------------------------------------------------------------------------


def held_of(records: ChannelRecords, channel: bytes, *, last_order_number: int = 0) -> Held:
    """What this side's ledger holds. `last_order_number`: the highest number used, where more than the ledger knows of.

    Raises KeyError for a channel that is not on record.
    """
    head = records.head(channel)
    ticks = tuple(
        OpenTick(order_number=one.order.message.order_number, tick=_tick(one))
        for one in records.open_orders(channel)[:MAX_OPEN_TICKS]
    )
    return Held(
        last_order_number=max(head.last_order_number, last_order_number),
        last_receipt_number=head.last_receipt_number,
        last_receipt=head.last_receipt_id,
        open_orders=ticks,
    )


def check_same_chain(
    records: ChannelRecords, channel: Signed[Channel], theirs: Held, *, is_caught_up: bool = False
) -> None:
    """Raises Refused (`forked-chain`) if the other side's last receipt is another than ours of that number.

    Also if we have none, where `is_caught_up` says that all the other side holds was sent.
    """
    number = theirs.last_receipt_number
    own = channel if number == 0 else records.receipt(channel.message.channel, number)
    if (own is None and is_caught_up) or (own is not None and own.id != theirs.last_receipt):
        raise Refused(
            "forked-chain",
            f"the two sides hold different receipts {number} of channel {channel.message.channel.hex()[:16]}.",
            hint="`p2pgrid audit` of both sides' exports shows who signed two.",
        )


def lacking(records: ChannelRecords, channel: bytes, theirs: Held, own: Role) -> Batch:
    """What this side holds and the other lacks, by what it says it holds: order after order, receipts by number."""
    taken: dict[bytes, Record] = {}
    size = 0
    for unit in _lacking(records, channel, theirs, own):
        new = {record.id: record for record in unit if record.id not in taken}
        if taken and (size > MAX_BATCH_BYTES or len(taken) + len(new) > MAX_BATCH_RECORDS):
            return Batch(tuple(taken.values()), is_all=False)
        taken.update(new)
        size += sum(len(record.payload) for record in new.values())
    return Batch(tuple(taken.values()), is_all=True)


def _lacking(records: ChannelRecords, channel: bytes, theirs: Held, own: Role) -> Iterator[list[Record]]:
    """In units that are taken whole: an order is never shown without something that the provider signed on it."""
    disputes = disputed_by_client(records, channel)
    ticks = {one.order_number: one.tick for one in theirs.open_orders}
    for number in range(theirs.last_receipt_number + 1, records.head(channel).last_receipt_number + 1):
        receipt = records.receipt(channel, number)
        if receipt is None:
            raise LedgerError(f"the ledger lacks receipt {number}.", hint="Restore the ledger from a backup.")
        dispute = disputes.get(number)
        if Role.CLIENT not in receipt.signers and dispute is None:
            break  # What follows are proposals: the client has yet to see them.
        placed = _placed(records, receipt.message)
        last = [receipt.record] if dispute is None else [receipt.record, dispute.record]
        yield from _order_units(records, placed, ticks.get(receipt.message.order_number), last)
    proposals = (one.message for one in open_proposals(records, channel))
    unseen = [_placed(records, one) for one in proposals if one.receipt_number > theirs.last_receipt_number]
    for placed in (*unseen, *records.open_orders(channel)):
        number = placed.order.message.order_number
        # What the client ordered and nobody vouched for costs nothing: the provider need not hear of it.
        is_news = _tick(placed) > ticks.get(number, 0) or (number not in ticks and own is Role.PROVIDER)
        if is_news:
            yield from _order_units(records, placed, ticks.get(number), [])


def _order_units(
    records: ChannelRecords, placed: PlacedOrder, their_tick: int | None, last: list[Record]
) -> Iterator[list[Record]]:
    """The order and its offer where they lack it (`their_tick` is None), each vouched tick above theirs, `last`."""
    unit: list[Record] = []
    if their_tick is None:
        offer = records.offer(placed.order.message.offer)
        unit = [one.record for one in (offer, placed.order) if one is not None]
    for meter, voucher in _ticks(records, placed, above=their_tick or 0):
        yield [*unit, meter, voucher]
        unit = []
    if unit or last:
        yield [*unit, *last]


def _placed(records: ChannelRecords, receipt: Receipt) -> PlacedOrder:
    placed = records.order(receipt.channel, order_of(records, receipt).message.order_number)
    assert placed is not None, "order_of has found it"
    return placed


def _ticks(records: ChannelRecords, placed: PlacedOrder, *, above: int) -> Iterator[tuple[Record, Record]]:
    """Each voucher of the order for a tick above that, after the meter tick it names; by tick."""
    if _tick(placed) <= above:
        return
    order = placed.order.message
    of_order = list(records.order_records(order.channel, order.order_number))
    meters = {one.id: one for one in of_order if one.payload_type == Meter.payload_type}
    vouchers = [(parse_message(one, Voucher), one) for one in of_order if one.payload_type == Voucher.payload_type]
    for voucher, record in sorted(vouchers, key=lambda pair: pair[0].tick):
        if voucher.tick > above:
            yield meters[voucher.meter], record


def _meter_of(records: ChannelRecords, placed: PlacedOrder) -> Meter | None:
    """The meter tick that the order's last voucher names."""
    if placed.voucher is None:
        return None
    order, voucher = placed.order.message, placed.voucher.message
    of_order = records.order_records(order.channel, order.order_number)
    found = (one for one in of_order if one.payload_type == Meter.payload_type and one.id == voucher.meter)
    return next((parse_message(one, Meter) for one in found), None)


def _tick(placed: PlacedOrder) -> int:
    return placed.voucher.message.tick if placed.voucher is not None else 0


# -- what comes from the other side ---------------------------------------------------------------------------------


def check_restored(
    sent: Sequence[Record], records: ChannelRecords, channel: Signed[Channel], own: Role
) -> list[Signed[Message]]:
    """The records that the other side says we lack, checked: each carries the signatures of those whom it binds.

    The caller persists them in one write. What we are held to by them we signed ourselves: the client its orders,
    vouchers and countersignatures, the provider its meters and receipts. Raises InvalidRecord, ProtocolViolation.
    """
    restoring = _Restoring(records, channel, own)
    for record in sent:
        restoring.take(record)
    restoring.finish()
    return restoring.taken


class _Restoring:
    """One batch under way: what was taken, and the chain's end with it."""

    def __init__(self, records: ChannelRecords, channel: Signed[Channel], own: Role) -> None:
        self.taken: list[Signed[Message]] = []
        self._records = records
        self._channel = channel.message
        self._own = own
        self._provider = parse_public_key(channel.message.provider)
        self._client = parse_public_key(channel.message.client)
        self._head = ChannelBooks(channel, records.head(channel.message.channel))
        self._offers: dict[bytes, Signed[Offer]] = {}
        self._orders: dict[int, Signed[Order]] = {}
        self._shown: set[int] = set()
        """Orders of which we signed something, or that we hold."""
        self._meters: dict[bytes, Signed[Meter]] = {}
        self._undisputed: Signed[Receipt] | None = None

    def take(self, record: Record) -> None:
        takers = {
            Offer.payload_type: self._offer,
            Order.payload_type: self._order,
            Meter.payload_type: self._meter,
            Voucher.payload_type: self._voucher,
            Receipt.payload_type: self._receipt,
            Dispute.payload_type: self._dispute,
        }
        taker = takers.get(record.payload_type)
        if taker is None or (self._undisputed is not None and taker != self._dispute):
            raise ProtocolViolation(f"a record of type {record.payload_type!r} came where a channel was resumed.")
        signed = taker(record)
        if not self._came_too_late(signed.message):
            self.taken.append(signed)

    def finish(self) -> None:
        if self._undisputed is not None:
            raise ProtocolViolation("a receipt without the client's signature came, and no dispute of it.")
        strangers = set(self._orders) - self._shown
        if self._own is Role.PROVIDER and strangers:
            raise ProtocolViolation(f"order {min(strangers)} came with nothing that this provider signed.")

    def _came_too_late(self, message: Message) -> bool:
        """True for a tick of an order that has a receipt already, which goes by an earlier one (provider).

        The session drops such a voucher too: on record it would contradict the receipt.
        """
        if self._own is not Role.PROVIDER or not isinstance(message, Meter | Voucher):
            return False
        of_order = self._records.order_records(message.channel, message.order_number)
        receipts = (parse_message(one, Receipt) for one in of_order if one.payload_type == Receipt.payload_type)
        return any(is_billed_by_voucher(one.status) for one in receipts)

    def _offer(self, record: Record) -> Signed[Offer]:
        offer = verify_record(record, Offer, {Role.PROVIDER: self._provider})
        self._offers[offer.id] = offer
        return offer

    def _order(self, record: Record) -> Signed[Order]:
        order = verify_record(record, Order, {Role.CLIENT: self._client})
        number = order.message.order_number
        self._check_channel(order.message.channel)
        known = self._records.order(order.message.channel, number)
        if known is not None:
            if known.order.id != order.id:
                raise InvalidRecord("wrong-order", f"another order with number {number} is on record.")
            self._shown.add(number)
        elif order.message.offer not in self._offers and self._records.offer(order.message.offer) is None:
            raise ProtocolViolation(f"order {number} came without the offer it names.")
        self._orders[number] = order
        return order

    def _meter(self, record: Record) -> Signed[Meter]:
        meter = verify_record(record, Meter, {Role.PROVIDER: self._provider})
        self._check_channel(meter.message.channel)
        self._check_of_order(meter.message, self._find_order(meter.message.order_number).message)
        self._meters[meter.id] = meter
        self._shown.add(meter.message.order_number)
        return meter

    def _voucher(self, record: Record) -> Signed[Voucher]:
        voucher = verify_record(record, Voucher, {Role.CLIENT: self._client})
        message = voucher.message
        self._check_channel(message.channel)
        meter = self._meters.get(message.meter)
        if meter is None:
            raise ProtocolViolation("a voucher came without the meter tick it names.")
        named = meter.message
        wanted = (named.channel, named.order_number, named.tick, named.usage, named.amount_pico)
        if (message.channel, message.order_number, message.tick, message.usage, message.amount_pico) != wanted:
            raise InvalidRecord("wrong-count", "the voucher differs from the meter tick it names.")
        return voucher

    def _receipt(self, record: Record) -> Signed[Receipt]:
        keys = {Role.PROVIDER: self._provider}
        if record.signature_of(Role.CLIENT) is not None:
            keys[Role.CLIENT] = self._client
        receipt = verify_record(record, Receipt, keys)
        message = receipt.message
        fault = self._head.chain_fault(message)
        if fault is not None:
            raise InvalidRecord(*fault)
        if self._find_order(message.order_number).id != message.order:
            raise InvalidRecord("wrong-order", f"receipt {message.receipt_number} is for another order of that number.")
        self._head.append(receipt)
        self._shown.add(message.order_number)
        self._undisputed = receipt if Role.CLIENT not in keys else None
        return receipt

    def _dispute(self, record: Record) -> Signed[Dispute]:
        dispute = verify_record(record, Dispute, {Role.CLIENT: self._client})
        message, receipt = dispute.message, self._undisputed
        if receipt is None or message.receipt != receipt.id or message.by is not Role.CLIENT:
            raise ProtocolViolation("a dispute came that is not the client's of the receipt before it.")
        for fault in faults_of_dispute(message, receipt=receipt.message):
            raise InvalidRecord(fault.code, fault.sentence)
        self._undisputed = None
        return dispute

    def _check_of_order(self, meter: Meter, order: Order) -> None:
        """A tick names no order by its id: one of the same number and other terms must not take its place."""
        offer = self._offers.get(order.offer) or self._records.offer(order.offer)
        entry = offer.message.model_offer(order.model) if offer is not None else None
        if offer is None or entry is None:
            raise ProtocolViolation(f"a tick of order {order.order_number} came without the offer that prices it.")
        if meter.amount_pico != price_of(offer.message.tariff_at(entry, order.ordered_ms), meter.usage):
            raise InvalidRecord("wrong-amount", f"the tick is not priced as order {order.order_number} is.")
        if not is_within_caps(meter.usage, order):
            raise InvalidRecord("over-caps", f"the tick passes the caps of order {order.order_number}.")

    def _check_channel(self, channel: bytes) -> None:
        if channel != self._channel.channel:
            raise InvalidRecord("wrong-channel", "a record of another channel came where this one was resumed.")

    def _find_order(self, number: int) -> Signed[Order]:
        order = self._orders.get(number)
        if order is None:
            known = self._records.order(self._channel.channel, number)
            order = known.order if known is not None else None
        if order is None:
            raise ProtocolViolation(f"a record came without its order {number}.")
        return order


# -- what is then closed --------------------------------------------------------------------------------------------


def interrupt_open_orders(
    records: ChannelRecords, books: ChannelBooks, *, key: SecretKey, now_ms: int
) -> list[Signed[Receipt]]:
    """The provider's receipts for orders without one, by what the last voucher acknowledged. To be persisted."""
    made = []
    for one in records.open_orders(books.id):
        usage = one.voucher.message.usage if one.voucher is not None else Usage()
        meter = _meter_of(records, one)
        commitment = meter.response_commitment if meter is not None else bytes(32)
        ending = Ending(status=Status.INTERRUPTED, response_commitment=commitment)
        tariff = tariff_of(records, one.order.message)
        made.append(propose_receipt(books, one.order, tariff, usage, ending, key=key, now_ms=now_ms))
    return made


def open_proposals(records: ChannelRecords, channel: bytes) -> list[Signed[Receipt]]:
    """Receipts that the client has neither signed nor disputed, by number."""
    disputed = disputed_by_client(records, channel)
    return [one for one in records.proposals(channel) if one.message.receipt_number not in disputed]


def answer_proposal(
    proposal: Record,
    records: ChannelRecords,
    books: ChannelBooks,
    *,
    key: SecretKey,
    delivered: Mapping[int, Usage],
    now_ms: int,
) -> Answered:
    """The client's answer to a receipt that was proposed when the channel was resumed.

    `delivered` holds, by order number, our own count of the answers that this process saw, whole or in part. Raises
    ProtocolViolation for what the provider has not signed, InvalidRecord for what it has and the chain cannot go on
    with: keep that as evidence.
    """
    try:
        message = verify_record(proposal, Receipt, {Role.PROVIDER: books.provider}).message
    except InvalidRecord as fault:
        raise ProtocolViolation(f"no receipt of the provider's was proposed: {fault.message}") from fault
    known = records.receipt(books.id, message.receipt_number)
    if known is not None and known.id == proposal.id:
        return _answered_before(known, disputed_by_client(records, books.id))
    placed = records.order(books.id, message.order_number)
    if placed is None or placed.order.id != message.order:
        raise InvalidRecord("wrong-order", f"the receipt is for order {message.order_number}, which was never placed.")
    if _has_receipt(records, placed.order.message):
        raise InvalidRecord("order-billed-twice", f"order {message.order_number} has a receipt already.")
    receipt, dispute = check_resumed(
        books,
        proposal,
        placed.order,
        tariff_of(records, placed.order.message),
        vouched=_vouched(records, placed, message),
        delivered=delivered.get(message.order_number),
        is_closed=not books.is_open(message.order_number),
        key=key,
        now_ms=now_ms,
    )
    if dispute is None:
        return Answered((receipt,), Kind.COUNTERSIGNATURE, receipt.record.to_bytes(), receipt, None, is_new=True)
    return Answered((receipt, dispute), Kind.DISPUTE, dispute.record.to_bytes(), receipt, dispute, is_new=True)


def _vouched(records: ChannelRecords, placed: PlacedOrder, receipt: Receipt) -> Usage:
    """What the last voucher said; or, of a batch order, whose counts may fall, an earlier one that the receipt goes by.

    The provider may have had no later one when it broke the order off.
    """
    if placed.voucher is None:
        return Usage()
    if placed.order.message.is_batch and is_billed_by_voucher(receipt.status):
        of_order = records.order_records(receipt.channel, receipt.order_number)
        vouchers = [parse_message(one, Voucher) for one in of_order if one.payload_type == Voucher.payload_type]
        if any(one.usage == receipt.usage for one in vouchers):
            return receipt.usage
    return placed.voucher.message.usage


def _has_receipt(records: ChannelRecords, order: Order) -> bool:
    of_order = records.order_records(order.channel, order.order_number)
    return any(one.payload_type == Receipt.payload_type for one in of_order)


def _answered_before(known: Signed[Receipt], disputes: Mapping[int, Signed[Dispute]]) -> Answered:
    dispute = disputes.get(known.message.receipt_number)
    if Role.CLIENT in known.signers:
        return Answered((), Kind.COUNTERSIGNATURE, known.record.to_bytes(), known, None, is_new=False)
    if dispute is None:
        raise LedgerError(
            f"the ledger holds receipt {known.message.receipt_number} neither signed nor disputed.",
            hint="Restore the ledger from a backup.",
        )
    return Answered((), Kind.DISPUTE, dispute.record.to_bytes(), known, dispute, is_new=False)
