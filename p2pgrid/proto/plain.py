"""The part of an audit that most records need: orders that are in order, proven so with little work a line.

An order is *plain* if every line that names it is a record in its usual text form, with all signatures good and by the
channel's own keys, no two records in one slot, and nothing to say under `rules`. A plain order adds nothing to a
verdict but its sums, so the judgement of the rest (`verdict`) may do without it. Whatever is not plain is left to that
judgement: this module decides only what need not be looked at twice, and by the same rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.elided import Activity, ElidedOrphans, Sums, add_repeats, note_activity
from p2pgrid.proto.findings import Place
from p2pgrid.proto.key_rules import KeyState, KeyTerm
from p2pgrid.proto.messages import Channel, Meter, ModelOffer, Offer, Order, Receipt, Tariff, Voucher
from p2pgrid.proto.plain_lines import CLIENT, OrderLines, PlainLines, PlainRecord, bundles_of_mask
from p2pgrid.proto.request import MAX_CHOICES
from p2pgrid.proto.route import OrderKey
from p2pgrid.proto.rules import (
    faults_of_commitment,
    faults_of_meter,
    faults_of_order,
    faults_of_receipt,
    faults_of_speed,
    faults_of_voucher,
)


@dataclass(slots=True)
class PlainChannel:
    """What the check of an order has to know of its channel."""

    message: Channel
    groups: tuple[int, ...]
    """For each side the bundles that count with it (`comparison.groups_of`), as bits, of those in which a line names
    the channel."""

    full: set[int] = field(default_factory=set)
    """Bundles, as bits, that were found to be of all sides."""

    def shows_all(self, record: PlainRecord) -> bool:
        """True if every side's bundles hold the plain record with all its signatures."""
        if len(record.lines) > 1:
            return all(_claimed_in(group, record) == record.claimed for group in self.groups)
        if not all(record.bundles & group for group in self.groups):
            return False
        self.full.add(record.bundles)
        return True


class Link(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the chain has to know of a usable receipt."""

    receipt_number: int
    order_number: int
    record_id: bytes
    previous: bytes
    amount_pico: int
    channel_total_pico: int
    issued_ms: int
    claims_client: bool
    plain: bool


@dataclass(slots=True)
class ChannelPart:
    """What a block says of one channel."""

    sums: Sums = field(default_factory=Sums)
    """Of plain orders."""
    bundles: int = 0
    """Those that hold usable records, as bits."""
    offers: set[bytes] = field(default_factory=set)
    """Named by plain receipts."""
    served: bool = False
    """Some plain order was."""
    odd: list[int] = field(default_factory=list)
    """Numbers of orders that are not plain."""
    odd_lines: list[int] = field(default_factory=list)
    """For each of them, how many lines are about it."""
    late: set[int] = field(default_factory=set)
    """Orders, plain or not, that are out of time, and those that they are held against."""
    partial: list[int] = field(default_factory=list)
    """Plain orders that not every side shows whole."""
    open: list[int] = field(default_factory=list)
    """Plain orders that were served and have no receipt."""
    without_offer: dict[bytes, int] = field(default_factory=dict)
    """Offers that no bundle holds, with the first order that was served under them."""
    times: list[tuple[int, int]] = field(default_factory=list)
    """(order number, `ordered_ms`) of usable orders, by number."""
    links: list[Link] = field(default_factory=list)
    """Of usable receipts."""
    activity: Activity = field(default_factory=dict)
    """Of plain receipts."""
    orphans: ElidedOrphans = field(default_factory=ElidedOrphans)
    repeats: dict[int, tuple[int, Place]] = field(default_factory=dict)
    """For each bundle: how many lines of plain orders say again what stands in it, and the first such line."""


class PlainBlock:
    """Judges orders by their lines."""

    def __init__(
        self,
        lines: PlainLines,
        channels: Mapping[bytes, PlainChannel],
        offers: Mapping[bytes, Offer],
        odd: Collection[OrderKey] = frozenset(),
        *,
        key_terms: Mapping[bytes, KeyTerm] | None = None,
    ) -> None:
        """`odd`: orders that are to be judged in full whatever they look like.

        `key_terms`: by offer, the term that an operator's cards give the key that signed it, where there are cards.
        """
        self._lines: Final = lines
        self._channels: Final = channels
        self._offers: Final = offers
        self._odd: Final = odd
        self._key_terms: Final = key_terms or {}
        self._entries: Final[dict[tuple[bytes, str], ModelOffer]] = {}

    def judge(self) -> dict[bytes, ChannelPart]:
        """What there is to say of each channel."""
        parts = {}
        for channel_id, orders in self._lines.orders.items():
            part = parts[channel_id] = ChannelPart()
            channel = self._channels.get(channel_id)
            for number in sorted(orders):
                order = orders[number]
                if order.spoilt or (self._odd and (channel_id, number) in self._odd):
                    _note_odd(part, number, order)
                elif channel is None:
                    _count_orphans(part, order)
                else:
                    self._judge_order(part, channel, number, order)
            _look_at_times(part)
        return parts

    # -- an order -------------------------------------------------------------------------------------------------

    def _judge_order(self, part: ChannelPart, channel: PlainChannel, number: int, lines: OrderLines) -> None:
        records = lines.records
        receipt = self._plain_receipt(part, channel, records)
        if receipt is False:
            _note_odd(part, number, lines)
            return
        is_partial = False
        for record in records:
            part.bundles |= record.bundles
            if type(record.message) is Order:
                part.times.append((number, record.message.ordered_ms))
            if record.bundles not in channel.full or len(record.lines) > 1:
                is_partial = is_partial or not channel.shows_all(record)
        if is_partial:
            part.partial.append(number)
        if lines.repeats:
            add_repeats(part.repeats, lines.repeats)
        part.sums.orders += 1
        if receipt is not None:
            message: Receipt = receipt.message  # type: ignore[assignment]
            countersigned = receipt.claimed & CLIENT != 0
            part.links.append(_link_of(receipt, message, plain=True))
            part.sums.count(message, countersigned=countersigned)
            part.offers.add(message.offer)
            part.served = True
            note_activity(part.activity, message, channel.message.currency)
        elif any(type(record.message) is Meter for record in records):
            part.served = True
            part.open.append(number)

    def _plain_receipt(
        self, part: ChannelPart, channel: PlainChannel, records: list[PlainRecord]
    ) -> PlainRecord | Literal[False] | None:
        """The order's receipt, None if it has none; False if the order is not plain."""
        order = receipt = None
        meters: dict[int, PlainRecord] = {}
        vouchers: dict[int, PlainRecord] = {}
        for record in records:
            message = record.message
            kind = type(message)
            if kind is Order and order is None:
                order = record
            elif kind is Receipt and receipt is None:
                receipt = record
            elif kind is Meter or kind is Voucher:
                ticks = meters if kind is Meter else vouchers
                if ticks.setdefault(message.tick, record) is not record:  # type: ignore[union-attr]
                    return False
            else:
                return False
        if order is None or (receipt is not None and receipt.message.mentions):  # type: ignore[union-attr]
            return False
        ordered: Order = order.message  # type: ignore[assignment]
        if self._key_terms and not self._is_key_in_term(ordered, receipt, meters):
            return False
        offer = self._offers.get(ordered.offer)
        served = bool(meters) or (receipt is not None and receipt.message.amount_pico > 0)  # type: ignore[union-attr]
        if offer is None or not served:
            if receipt is not None and receipt.message.order != order.record_id:  # type: ignore[union-attr]
                return False
            if served:
                part.without_offer.setdefault(ordered.offer, ordered.order_number)
            return receipt
        if faults_of_order(ordered, channel=channel.message, offer=offer):
            return False
        entry = self._entry(ordered.offer, offer, ordered.model)
        tariff = offer.tariff_at(entry, ordered.ordered_ms)
        last_meter = _plain_ticks(ordered, tariff, meters, vouchers) if meters or vouchers else None
        if last_meter is False:
            return False
        if receipt is not None and faults_of_receipt(
            receipt.message,  # type: ignore[arg-type]
            channel=channel.message,
            order=ordered,
            order_id=order.record_id,
            tariff=tariff,
            meter=last_meter.message if last_meter is not None else None,  # type: ignore[arg-type]
            voucher=vouchers[max(vouchers)].message if vouchers else None,  # type: ignore[arg-type]
            countersigned=bool(receipt.claimed & CLIENT),
        ):
            return False
        if receipt is not None and (meters or entry.most_tokens_per_s):
            billed: Receipt = receipt.message  # type: ignore[assignment]
            if faults_of_commitment(billed, (meter.message for meter in meters.values())):  # type: ignore[misc]
                return False
            if faults_of_speed(billed, entry, MAX_CHOICES):
                return False
        return receipt

    def _is_key_in_term(self, order: Order, receipt: PlainRecord | None, meters: dict[int, PlainRecord]) -> bool:
        """Might the provider's key sign the receipt, or the first meter where there is none?"""
        if receipt is not None:
            billed: Receipt = receipt.message  # type: ignore[assignment]
            offer_id, time_ms = billed.offer, billed.issued_ms
        elif meters:
            offer_id, time_ms = order.offer, meters[min(meters)].message.metered_ms  # type: ignore[union-attr]
        else:
            return True
        term = self._key_terms.get(offer_id)
        return term is None or term.state_at(time_ms) is KeyState.BOUND

    def _entry(self, offer_id: bytes, offer: Offer, model: str) -> ModelOffer:
        entry = self._entries.get((offer_id, model))
        if entry is None:
            entry = offer.model_offer(model)
            assert entry is not None  # `faults_of_order` found it
            self._entries[offer_id, model] = entry
        return entry


def _plain_ticks(
    order: Order, tariff: Tariff, meters: dict[int, PlainRecord], vouchers: dict[int, PlainRecord]
) -> PlainRecord | Literal[False] | None:
    """The last meter, False if a tick or its voucher is not in order."""
    previous: Meter | None = None
    last: PlainRecord | None = None
    for tick in sorted(meters):
        last = meters[tick]
        meter: Meter = last.message  # type: ignore[assignment]
        if faults_of_meter(meter, order=order, tariff=tariff, previous=previous):
            return False
        previous = meter
    for tick, record in vouchers.items():
        voucher: Voucher = record.message  # type: ignore[assignment]
        of = meters.get(tick)
        # Which meter another order's voucher may mean is for the full judgement.
        if of is None or voucher.meter != of.record_id:
            return False
        if faults_of_voucher(
            voucher,
            tariff=tariff,
            meter=of.message,  # type: ignore[arg-type]
            meter_id=of.record_id,
            previous=None,  # with the meter at hand the voucher before does not matter
        ):
            return False
    return last


def _note_odd(part: ChannelPart, number: int, lines: OrderLines) -> None:
    """Note an order that is judged in full, and what chain and clock have to know of it."""
    part.odd.append(number)
    part.odd_lines.append(lines.count())
    for record in lines.records:
        message = record.message
        if not record.usable:
            continue
        for line in record.lines:
            if line.usable:
                part.bundles |= line.bundles
        if type(message) is Order:
            part.times.append((message.order_number, message.ordered_ms))
        elif type(message) is Receipt:
            part.links.append(_link_of(record, message, plain=False))


def _link_of(record: PlainRecord, receipt: Receipt, *, plain: bool) -> Link:
    return Link(
        receipt.receipt_number,
        receipt.order_number,
        record.record_id,
        receipt.previous,
        receipt.amount_pico,
        receipt.channel_total_pico,
        receipt.issued_ms,
        record.claimed & CLIENT != 0,
        plain,
    )


def _count_orphans(part: ChannelPart, lines: OrderLines) -> None:
    orphans = part.orphans
    for record in lines.records:
        orphans.records += 1
        orphans.bundles |= bundles_of_mask(record.bundles)
        places = [Place(*place) for line in record.lines for place in line.places]
        orphans.first = min(places if orphans.first is None else [orphans.first, *places])
    if lines.repeats:
        add_repeats(part.repeats, lines.repeats)


def _claimed_in(group: int, record: PlainRecord) -> int:
    """The roles whose signature some bundle of a group shows (a bit mask)."""
    claimed = 0
    for line in record.lines:
        if line.bundles & group:
            claimed |= line.claimed
    return claimed


def _look_at_times(part: ChannelPart) -> None:
    """An order out of time is judged in full, and so is the one that it is held against."""
    latest_ms = holder = 0
    for number, ordered_ms in part.times:
        if ordered_ms < latest_ms - CLOCK_TOLERANCE_MS:
            part.late |= {number, holder}
        if ordered_ms > latest_ms:
            latest_ms, holder = ordered_ms, number
