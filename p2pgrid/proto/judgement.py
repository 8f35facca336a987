"""One channel judged: the rules of `rules` and `chain` over the records that bundles proved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from p2pgrid.proto.card import Card
from p2pgrid.proto.chain import ChainHead, chain_start, extend, faults_of_link
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.codes import CODES, Party
from p2pgrid.proto.dispute import Opening
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Docket, Draft, Slot
from p2pgrid.proto.invoice_sums import cents_of
from p2pgrid.proto.key_rules import KeyTerm
from p2pgrid.proto.messages import Meter, ModelOffer, Offer, Order, Receipt, Tariff, Voucher
from p2pgrid.proto.record import PARTIES, Message, Role
from p2pgrid.proto.request import MAX_CHOICES
from p2pgrid.proto.rules import (
    Fault,
    bills_by_voucher,
    faults_of_channel,
    faults_of_commitment,
    faults_of_meter,
    faults_of_order,
    faults_of_receipt,
    faults_of_speed,
    faults_of_voucher,
)
from p2pgrid.units import format_amount_eur

MOST_LABELS: Final = 3


@dataclass(slots=True)
class Case:
    """What the judgement of every channel shares."""

    docket: Docket
    offers: Mapping[bytes, Held[Offer]]
    sides: tuple[Role | None, ...]
    """Whose export each bundle is, None where it is not known."""
    now_ms: int = 0
    """When the audit is made: what terms have run out by then."""
    cards: Mapping[bytes, Held[Card]] = field(default_factory=dict)
    chains: Mapping[bytes, Sequence[Card]] = field(default_factory=dict)
    """For each card, by its id, those of its chain."""
    mentionable: Mapping[bytes, Held[Any]] = field(default_factory=dict)
    """Every dispute and answer by its id."""
    heads: Mapping[bytes, Book] = field(default_factory=dict)
    """The book of each record that another channel goes on from."""
    stated_in: Mapping[bytes, bytes] = field(default_factory=dict)
    """The channel of each statement, by the statement's id."""
    missing_offers: set[bytes] = field(default_factory=set)
    """Already reported: an offer that is not there is one finding, however many orders name it."""
    key_terms: dict[bytes, KeyTerm | None] = field(default_factory=dict)
    """By offer: looked up once."""
    opened: list[tuple[Held[Opening], str]] = field(default_factory=list)
    """Openings that fit, and what of."""
    compared: set[tuple[bytes, frozenset[int]]] = field(default_factory=set)
    """Set-offs that one side's bundles were seen to lack, with those: they are of two channels, and told once."""

    def report(self, book: Book, held: Held[Any], fault: Fault) -> None:
        """Make a finding of a broken rule."""
        self.docket.add(draft_of(book, held, fault))

    def note(self, book: Book, code: str, about: list[Held[Any]], sentence: str, *, cents: int | None = None) -> None:
        """Report a note about several records of the channel, at the first of them."""
        first = about[0]
        draft = Draft(code, sentence, first.places[:1], record_id=first.record_id, channel=book.id, cents=cents)
        self.docket.add(draft)


def draft_of(book: Book, held: Held[Any], fault: Fault) -> Draft:
    """The finding for a broken rule. Where the blame is unclear nothing is proven.

    A fault of form that a rule finds stands under a signature that fits, and so it is proven.
    """
    usual = CODES[fault.code]
    convinces = (usual.convinces or usual.party is Party.HOLDER) and fault.party is not Party.UNCLEAR and fault.proven
    return Draft(
        fault.code,
        fault.sentence,
        held.places,
        fault.party,
        held.record_id,
        book.id,
        convinces=convinces,
        cents=fault.cents,
        others=fault.others,
    )


def judge_channel(case: Case, book: Book) -> None:
    """Report every broken rule of the channel, its orders and its chain."""
    channel = book.channel.message
    for fault in faults_of_channel(channel):
        case.report(book, book.channel, fault)
    _judge_countersigning(case, book)
    _judge_order_times(case, book)
    receipts: dict[int, list[Held[Receipt]]] = {}
    for number in sorted(book.receipts):
        receipt = book.receipts[number]
        receipts.setdefault(receipt.message.order_number, []).append(receipt)
    still_open: list[Held[Any]] = []
    for number in book.order_numbers():
        billed = receipts.get(number, [])
        _OrderCase(case, book, number, billed).judge()
        if not billed and book.meters.get(number):
            still_open.extend(book.meters[number][tick] for tick in sorted(book.meters[number])[:1])
    if still_open:
        more = book.elided.open_orders - _counted(book, still_open)
        numbers = shortened([f"order {h.message.order_number}" for h in still_open], more)
        case.note(book, "order-open", still_open, f"Served and without a receipt: {numbers}.")
    _judge_chain(case, book)


def _judge_countersigning(case: Case, book: Book) -> None:
    missing = [role for role in PARTIES if not book.channel.claims(role)]
    if not missing:
        return
    if book.receipts or book.meters or book.elided.served:
        sentence = f"The provider served in a channel that the {missing[0]} has not signed."
        case.report(book, book.channel, Fault("channel-not-countersigned", sentence))
    elif book.orders or book.elided.sums.orders:
        sentence = f"The client ordered in a channel that the {missing[0]} has not signed."
        case.report(book, book.channel, Fault("channel-not-countersigned", sentence, Party.CLIENT))
    else:
        sentence = f"The channel awaits the {missing[0]}'s signature; nothing was done in it."
        case.docket.add(
            Draft(
                "awaiting-countersignature",
                sentence,
                book.channel.places,
                Party(missing[0]),
                book.channel.record_id,
                book.id,
            )
        )


def _judge_order_times(case: Case, book: Book) -> None:
    latest_ms = 0
    for number in sorted(book.orders):
        for held in book.orders[number].values():
            if held.message.ordered_ms < latest_ms - CLOCK_TOLERANCE_MS:
                sentence = f"By its time order {number} comes before an order with a lower number."
                case.report(book, held, Fault("time-backwards", sentence, Party.CLIENT))
            latest_ms = max(latest_ms, held.message.ordered_ms)


def _judge_chain(case: Case, book: Book) -> None:
    head = chain_start(book.channel.message, book.channel.record_id)
    for number in sorted(book.receipts):
        held = book.receipts[number]
        for fault in faults_of_link(head, held.message) if book.elided.is_link_judged(number) else ():
            if fault.code == "receipt-gap":
                _note_gap(case, book, held, head)
            else:
                case.report(book, held, fault)
        head = extend(held.message, held.record_id)
    _note_proposals(case, book)


def _note_gap(case: Case, book: Book, held: Held[Receipt], head: ChainHead) -> None:
    first, after = head.receipt_number + 1, held.message.receipt_number
    single = after - first == 1
    pico = held.message.channel_total_pico - held.message.amount_pico - head.total_pico
    label = f"receipt {first}" if single else f"receipts {first} to {after - 1}"
    named = held.message.previous.hex()
    case.docket.add_absence(
        Absence(
            Receipt.payload_type,
            (book.id, first) if single else (book.id,),
            label,
            Draft(
                "receipt-gap",
                f"No bundle holds {label}; receipt {after} builds on what is missing. "
                f"By the channel's total it comes to {format_amount_eur(pico)} {book.channel.message.currency}.",
                held.places,
                record_id=held.record_id,
                channel=book.id,
                cents=-cents_of(pico),
            ),
            book.bundles,
            record_id=held.message.previous if single else b"",
            count=after - first,
            proof=f"It stands where {label} is missing; receipt {after} names the true one by its id, {named}.",
        )
    )


def _note_proposals(case: Case, book: Book) -> None:
    numbers = sorted(book.receipts)
    final = [n for n in numbers if book.receipts[n].claims(Role.CLIENT)]
    highest = max(final[-1] if final else 0, book.elided.highest_final)
    # What the client disputes it has not forgotten to sign.
    disputed = {h.message.receipt for h in book.disputes.values() if h.message.by is Role.CLIENT}
    unsigned = [n for n in numbers if not book.receipts[n].claims(Role.CLIENT)]
    proposals = [n for n in unsigned if book.receipts[n].record_id not in disputed]
    waiting = [book.receipts[n] for n in proposals if n > highest]
    overtaken = [book.receipts[n] for n in proposals if n < highest]
    if waiting:
        more = book.elided.waiting - _counted(book, waiting)
        labels = shortened([str(h) for h in waiting], more)
        case.note(book, "awaiting-countersignature", waiting, f"The client has not countersigned {labels}.")
    if overtaken:
        labels = shortened([str(h) for h in overtaken], book.elided.overtaken - _counted(book, overtaken))
        sentence = f"The client countersigned receipt {highest} and not {labels}."
        case.note(book, "proposal-overtaken", overtaken, sentence)


def _counted(book: Book, records: Iterable[Held[Any]]) -> int:
    """How many of them are among what the book leaves out."""
    return sum(h.message.order_number in book.elided.counted for h in records)


@dataclass(slots=True)
class _OrderCase:
    """One order with its meters, vouchers and receipt."""

    case: Case
    book: Book
    number: int
    receipts: list[Held[Receipt]]
    _found: dict[tuple[str, Party | None], Draft] = field(default_factory=dict)

    def judge(self) -> None:
        for again in self.receipts[1:]:
            first = self.receipts[0].message.receipt_number
            sentence = f"Receipt {again.message.receipt_number} bills order {self.number}, as receipt {first} did."
            self._add(again, [Fault("order-billed-twice", sentence)])
        order = self._order()
        if order is None:
            self._miss_order()
            return
        served = bool(self.book.meters.get(self.number)) or any(r.message.amount_pico for r in self.receipts)
        offer = self.case.offers.get(order.message.offer)
        if served and offer is None:
            self._miss_offer(order)
        if offer is None or not served:
            self._judge_without_tariff(order)
            return
        self._add(order, faults_of_order(order.message, channel=self.book.channel.message, offer=offer.message))
        entry = offer.message.model_offer(order.message.model)
        if entry is not None:
            # The receipt first: what it repeats of a meter's fault is one fault, and the receipt is the bill.
            tariff = offer.message.tariff_at(entry, order.message.ordered_ms)
            self._judge_receipt(order, entry, tariff)
            self._judge_meters(order, tariff)
            self._judge_vouchers(order, tariff)

    def _order(self) -> Held[Order] | None:
        orders = self.book.orders.get(self.number, {})
        named = [orders[r.message.order] for r in self.receipts if r.message.order in orders]
        return named[0] if named else orders[min(orders)] if orders else None

    def _judge_receipt(self, order: Held[Order], entry: ModelOffer, tariff: Tariff) -> None:
        if not self.receipts:
            return
        held = self.receipts[0]
        meters = self.book.meters.get(self.number, {})
        last_meter = meters[max(meters)].message if meters else None
        faults = faults_of_receipt(
            held.message,
            channel=self.book.channel.message,
            order=order.message,
            order_id=order.record_id,
            tariff=tariff,
            meter=last_meter,
            voucher=self._voucher_for(held),
            countersigned=held.claims(Role.CLIENT),
        )
        if all(fault.code == "beyond-window" for fault in faults):  # a voucher may come to light; two answers stay two
            faults += faults_of_commitment(held.message, (meter.message for meter in meters.values()))
            faults += faults_of_speed(held.message, entry, self.book.choices.get(self.number, MAX_CHOICES))
        for fault in faults:
            if fault.code == "beyond-window":
                self._absent(Voucher, "a voucher", held, fault)
            else:
                self._add(held, [fault])

    def _judge_without_tariff(self, order: Held[Order]) -> None:
        """What can be said without prices: the receipt is of this order."""
        for held in self.receipts[:1]:
            if held.message.order != order.record_id:
                sentence = f"Receipt {held.message.receipt_number} names another record as order {self.number}."
                self._add(held, [Fault("wrong-order", sentence, proven=False)])

    def _judge_meters(self, order: Held[Order], tariff: Tariff) -> None:
        previous: Meter | None = None
        meters = self.book.meters.get(self.number, {})
        # A meter names no order by its id: until a receipt does, the client could put another in its place.
        is_bound = any(receipt.message.order == order.record_id for receipt in self.receipts)
        for tick in sorted(meters):
            held = meters[tick]
            for fault in faults_of_meter(held.message, order=order.message, tariff=tariff, previous=previous):
                if fault.code == "meter-gap":
                    self._miss_ticks(held, previous.tick + 1 if previous else 1, tick)
                else:
                    self._add(held, [fault if is_bound else replace(fault, proven=False)])
            previous = held.message

    def _judge_vouchers(self, order: Held[Order], tariff: Tariff) -> None:
        previous: Voucher | None = None
        vouchers = self.book.vouchers.get(self.number, {})
        for tick in sorted(vouchers):
            held = vouchers[tick]
            meter = self.book.meters_by_id.get(held.message.meter) or self.book.meters.get(self.number, {}).get(tick)
            faults = faults_of_voucher(
                held.message,
                tariff=tariff,
                meter=meter.message if meter else None,
                meter_id=meter.record_id if meter else b"",
                previous=previous,
            )
            self._add(held, faults)
            previous = None if order.message.is_batch else held.message

    def _voucher_for(self, receipt: Held[Receipt]) -> Voucher | None:
        """The last voucher; for a receipt that goes by vouchers, the last that surely reached the provider, or a later
        one that the receipt agrees with."""
        vouchers = self.book.vouchers.get(self.number, {})
        by_tick = [vouchers[tick] for tick in sorted(vouchers)]
        last = by_tick[-1].message if by_tick else None
        if last is None or not bills_by_voucher(receipt.message.status) or receipt.message.usage == last.usage:
            return last
        delivered = max((i for i, held in enumerate(by_tick) if self._surely_delivered(held)), default=-1)
        allowed: list[Voucher | None] = [None] if delivered < 0 else []
        allowed += [held.message for held in by_tick[max(delivered, 0) :]]
        for voucher in allowed:
            if receipt.message.usage == (voucher.usage if voucher else type(receipt.message.usage)()):
                which = f"voucher {voucher.tick}" if voucher else "no voucher"
                sentence = f"The {receipt} goes by {which} of order {self.number}, not by voucher {last.tick}."
                self.case.note(self.book, "voucher-not-counted", [receipt], sentence)
                return voucher
        return last

    def _surely_delivered(self, voucher: Held[Voucher]) -> bool:
        of_provider = [b for b in self.book.bundles if self.case.sides[b] is Role.PROVIDER]
        holders = {place.bundle for place in voucher.places}
        if of_provider:
            return not holders.isdisjoint(of_provider)
        return len(self.book.bundles) > 1 and holders.issuperset(self.book.bundles)

    def _miss_order(self) -> None:
        dependents: list[Held[Any]] = [*self.receipts]
        for records in (self.book.meters, self.book.vouchers):
            ticks: Mapping[int, Held[Any]] = records.get(self.number, {})
            dependents += [ticks[tick] for tick in sorted(ticks)]
        named = self.receipts[0].message.order if self.receipts else b""
        sentence = f"No bundle holds order {self.number}, on which {dependents[0]} builds."
        self._absence(Order, (self.number,), f"order {self.number}", dependents[0], sentence, record_id=named)

    def _miss_offer(self, order: Held[Order]) -> None:
        wanted = order.message.offer
        if wanted in self.case.missing_offers:
            return
        self.case.missing_offers.add(wanted)
        sentence = f"No bundle holds the offer that {order} names; its prices cannot be checked."
        absence = Absence(
            Offer.payload_type,
            (self.book.channel.message.provider,),
            "the offer",
            Draft("record-missing", sentence, order.places, None, order.record_id, self.book.id),
            self.book.bundles,
            record_id=wanted,
            proof=f"It stands where the offer is missing that order {self.number} names, {wanted.hex()}.",
        )
        self.case.docket.add_absence(absence)

    def _miss_ticks(self, held: Held[Meter], first: int, after: int) -> None:
        single = after - first == 1
        label = f"meter {first}" if single else f"meters {first} to {after - 1}"
        sentence = f"No bundle holds {label} of order {self.number}; {held} came after."
        slot = (self.number, first) if single else (self.number,)
        self._absence(Meter, slot, f"{label} of order {self.number}", held, sentence, "meter-gap", count=after - first)

    def _absence(
        self,
        message_type: type[Message],
        slot: Slot,
        label: str,
        held: Held[Any],
        sentence: str,
        code: str = "record-missing",
        *,
        record_id: bytes = b"",
        count: int = 1,
    ) -> None:
        bundles = self.book.bundles
        draft = Draft(code, sentence, held.places, None, held.record_id, self.book.id)
        self.case.docket.add_absence(
            Absence(
                message_type.payload_type,
                (self.book.id, *slot),
                label,
                draft,
                bundles,
                record_id,
                count,
                proof=f"It stands where {label} is missing.",
            )
        )

    def _absent(self, message_type: type[Message], label: str, held: Held[Any], fault: Fault) -> None:
        """A fault that a missing record would explain."""
        absence = Absence(
            message_type.payload_type,
            (self.book.id, self.number),
            label,
            draft_of(self.book, held, fault),
            self.book.bundles,
            proof=f"It stands where {held} would need it.",
        )
        self.case.docket.add_absence(absence)

    def _add(self, held: Held[Any], faults: Iterable[Fault]) -> None:
        """Report each code once for an order and party: a wrong count runs on through ticks to the receipt."""
        for fault in faults:
            key = fault.code, fault.party
            if key not in self._found:
                draft = self._found[key] = draft_of(self.book, held, fault)
                self.case.docket.add(draft)


def shortened(labels: Sequence[str], more: int = 0) -> str:
    """`receipt 1, receipt 2, receipt 3 and 9 more`. `more`: how many there are beside."""
    shown, left = ", ".join(labels[:MOST_LABELS]), len(labels[MOST_LABELS:]) + more
    return f"{shown} and {left} more" if left else shown
