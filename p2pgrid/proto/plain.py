"""The part of an audit that most records need: orders that are in order, proven so with little work a line.

An order is *plain* if every line that names it is a record in its usual text form, with all signatures good and by the
channel's own keys, no two records in one slot, and nothing to say under `rules`. A plain order adds nothing to a
verdict but its sums, so the judgement of the rest (`verdict`) may do without it. Whatever is not plain is left to that
judgement: this module decides only what need not be looked at twice, and by the same rules.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, Final
from zlib import crc32

import msgspec
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.elided import Activity, ElidedOrphans, Sums, note_activity, note_repeats
from p2pgrid.proto.evidence import REQUIRED_ROLES
from p2pgrid.proto.findings import Place
from p2pgrid.proto.key_rules import KeyState, KeyTerm
from p2pgrid.proto.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, parse_public_key
from p2pgrid.proto.messages import Channel, Meter, ModelOffer, Offer, Order, Receipt, Tariff, Voucher
from p2pgrid.proto.record import (
    MAX_SIGNATURES,
    PARTIES,
    Message,
    Role,
    Signature,
    parse_json_line,
    parse_message,
    signature_head,
)
from p2pgrid.proto.request import MAX_CHOICES
from p2pgrid.proto.rules import (
    faults_of_commitment,
    faults_of_meter,
    faults_of_order,
    faults_of_receipt,
    faults_of_speed,
    faults_of_voucher,
)

OrderKey = tuple[bytes, int]
"""A channel's id and an order number."""
PlainMessage = Order | Meter | Voucher | Receipt

PLAIN_TYPES: Final[dict[str, type[PlainMessage]]] = {t.payload_type: t for t in (Order, Meter, Voucher, Receipt)}
"""The messages of an order, by payload type. A receipt counts to the order that it bills."""
_CHECKS_AT_ONCE: Final = 2048
ORDERS_A_BLOCK: Final = 512
"""Orders with neighbouring numbers are checked together: their lines usually stand near one another."""

_PROVIDER: Final = 1
_CLIENT: Final = 2
_STRANGE: Final = 4
"""In a role that a channel does not have."""
_MASKS: Final = {Role.PROVIDER: _PROVIDER, Role.CLIENT: _CLIENT, **dict.fromkeys(set(Role) - set(PARTIES), _STRANGE)}
_REQUIRED: Final = {t: sum(_MASKS[r] for r in REQUIRED_ROLES[t]) for t in PLAIN_TYPES.values()}


_FORM_BYTES: Final = 22
"""So many bytes of a line tell the four types apart."""
_FORMS: Final = {
    start[:_FORM_BYTES]: (start, 3 if name == Receipt.payload_type else 1, name == Receipt.payload_type)
    for name, start in ((name, f'{{"type":"{name}","payload":"'.encode()) for name in PLAIN_TYPES)
}
"""How a line begins, how long its payload's array header is, and whether it is a receipt."""
_UINT_BYTES: Final = {**dict.fromkeys(range(0x80), 1), 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
"""How long a MessagePack unsigned integer is, by its first byte."""
_HEAD_CHARS: Final = 60
"""Base64 of array header, channel and order number at their longest."""
_RECEIPT_HEAD_CHARS: Final = 120
"""The same with receipt number and previous between."""


# -- where a line belongs -----------------------------------------------------------------------------------------


def partition_of(key: OrderKey, partitions: int, orders_a_block: int = ORDERS_A_BLOCK) -> int:
    """Which of `partitions` parts a block of orders is checked in."""
    return crc32(key[0], key[1] // orders_a_block) % partitions


def route_of(line: bytes) -> OrderKey | None:
    """The order that a line says it is about, by its first bytes if it is in its usual form; None if by nothing.

    Nothing is believed. JSON can name a thing twice, and then what comes first is not what counts: whoever reads the
    line whole compares, and tells of a stray (`PlainBlock.strays`).
    """
    form = _FORMS.get(line[:_FORM_BYTES])
    if form is not None and line.startswith(form[0]):
        start, at, is_receipt = form
        try:
            head = a2b_base64(line[len(start) : len(start) + (_RECEIPT_HEAD_CHARS if is_receipt else _HEAD_CHARS)])
            if head[at] == 0xC4 and head[at + 1] == 32:
                channel = head[at + 2 : at + 34]
                at += 34
                if is_receipt:  # its own number and the id of the one before it come first
                    at += _UINT_BYTES[head[at]] + 34
                size = _UINT_BYTES[head[at]]
                return channel, int.from_bytes(head[at + 1 : at + size], "big") if size > 1 else head[at]
        except (Base64Error, IndexError, KeyError):
            pass
    return _slow_route(line)


def _slow_route(line: bytes) -> OrderKey | None:
    try:
        record = parse_json_line(line)
        message_type = PLAIN_TYPES.get(record.payload_type)
        if message_type is None:
            return None
        message = parse_message(record, message_type)
    except InvalidRecord:
        return None
    return message.channel, message.order_number


def roles_of_mask(mask: int) -> tuple[Role, ...]:
    """The roles that `PlainRecord` has as a bit mask."""
    return tuple(role for role in PARTIES if mask & _MASKS[role])


# -- one line -----------------------------------------------------------------------------------------------------


class _LineSignature(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Role
    key: bytes
    signature: bytes


class _Line(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Annotated[str, msgspec.Meta(max_length=64)]
    payload: bytes
    signatures: Annotated[tuple[_LineSignature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]


class PlainRecord:
    """One record of an order, and the lines that show it."""

    __slots__ = ("claimed", "copies", "message", "record_id", "usable")

    def __init__(self, message: PlainMessage, record_id: bytes) -> None:
        self.message = message
        self.record_id = record_id
        self.copies: list[tuple[int, int, _Shown]] = []
        """Bundle, line, and what the line shows."""
        self.usable = False
        """Some copy is."""
        self.claimed = 0
        """The roles of all usable copies. Of a plain record every one is proven."""


@dataclass(slots=True)
class PlainChannel:
    """What the check of an order has to know of its channel."""

    message: Channel
    provider: bytes
    client: bytes
    group_of: Mapping[int, int]
    """For each bundle in which a line names the channel: the side it counts with (`comparison.groups_of`)."""
    groups: int

    def shows_all(self, record: PlainRecord) -> bool:
        """True if every side's bundles hold the record with all its signatures."""
        shown = [0] * self.groups
        for bundle, _, line in record.copies:
            shown[self.group_of[bundle]] |= line.claimed
        return shown.count(record.claimed) == self.groups


class _OrderLines:
    """All that a block holds of one order."""

    __slots__ = ("records", "repeated", "spoilt")

    def __init__(self) -> None:
        self.records: list[PlainRecord] = []
        self.spoilt = False
        """Some line is not plain by itself."""
        self.repeated: list[Place] | tuple[()] = ()
        """Lines that say again what their bundle said already."""


class _Shown:
    """What a line shows."""

    __slots__ = ("claimed", "good", "order", "record", "signatures", "usable")

    def __init__(
        self, record: PlainRecord, order: _OrderLines, claimed: int, signatures: Sequence[_LineSignature | Signature]
    ) -> None:
        self.record = record
        self.order = order
        self.claimed = claimed
        """The roles that it has a signature for (a bit mask)."""
        self.good = 0
        """Those whose signature is the channel's party's, and fits."""
        self.usable = False
        """The signature that gives the record its force is good."""
        self.signatures: Sequence[_LineSignature | Signature] = signatures


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
    bundles: set[int] = field(default_factory=set)
    """Those that hold usable records."""
    offers: set[bytes] = field(default_factory=set)
    """Named by plain receipts."""
    served: bool = False
    """Some plain order was."""
    odd: list[int] = field(default_factory=list)
    """Numbers of orders that are not plain."""
    wanted: set[int] = field(default_factory=set)
    """Orders, plain or not, that the full judgement must see because of others."""
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
    """Checks lines of orders: `take` them all, then `judge`."""

    def __init__(
        self,
        channels: Mapping[bytes, PlainChannel],
        offers: Mapping[bytes, Offer],
        whole: Collection[bytes] = frozenset(),
        odd: Collection[OrderKey] = frozenset(),
        *,
        key_terms: Mapping[bytes, KeyTerm] | None = None,
        several: bool = True,
        verify: bool = True,
    ) -> None:
        """`whole`: channels whose orders are all to be judged in full, and are not looked at here. `odd`: such orders.

        `key_terms`: by offer, the term that an operator's cards give the key that signed it, where there are cards.
        `several`: there are several bundles, which often hold the same lines. `verify`: False where every signature
        was verified before.
        """
        self._channels: Final = channels
        self._offers: Final = offers
        self._whole: Final = whole
        self._odd: Final = odd
        self._key_terms: Final = key_terms or {}
        self._several: Final = several
        self._is_verifying: Final = verify
        self._suspects: Final[list[tuple[bytes, ...]]] = []
        self._lines: Final[dict[bytes, _Shown]] = {}
        self._read_lines: Final[list[_Shown]] = []
        self._checks: Final[list[tuple[bytes, bytes, _Shown, int, bytes, bytes]]] = []
        self._orders: Final[dict[bytes, dict[int, _OrderLines]]] = defaultdict(lambda: defaultdict(_OrderLines))
        self._by_id: Final[dict[bytes, PlainRecord]] = {}
        self._proven: Final[dict[bytes, tuple[bytes, bytes]]] = {}
        self._entries: Final[dict[tuple[bytes, str], ModelOffer]] = {}
        self.strays: Final[set[OrderKey]] = set()
        """Orders that some line is about which was sorted to another: they are to be named in `odd`."""
        self._points: Final[dict[bytes, bytes]] = {}

    def take(self, lines: Iterable[tuple[int, int, bytes]]) -> None:
        """Take lines: bundle, number, and the line without its line feed. Each must have a route (`route_of`)."""
        known_lines, read, several = self._lines, self._read, self._several
        for bundle, number, line in lines:
            known = known_lines.get(line) if several else None
            if known is None:
                known = read(line)
                if known is None:
                    self._spoil(line)
                    continue
                if several:
                    known_lines[line] = known
                if len(self._checks) >= _CHECKS_AT_ONCE:
                    self._verify()
            copies = known.record.copies
            if copies:  # the record was shown before
                for copy in copies:
                    if copy[0] == bundle:
                        known.order.repeated = [*known.order.repeated, Place(bundle, number)]
                        break
            copies.append((bundle, number, known))
        self._verify()

    def records_of(self, channel: bytes, number: int) -> list[PlainRecord]:
        """The records of an order."""
        return self._orders[channel][number].records

    def wanted(self) -> tuple[set[OrderKey], set[bytes], set[bytes]]:
        """What the full judgement of odd orders needs beside them, to be asked after `judge`.

        Orders of this block; signatures, and ids of meters, that would be of use and are not in this block.
        """
        orders: set[OrderKey] = set()
        signatures: set[bytes] = set()
        meters: set[bytes] = set()
        for suspect in self._suspects:
            of = [self._by_id[self._proven[s][0]].message for s in suspect if s in self._proven]
            orders |= {(message.channel, message.order_number) for message in of}
            signatures |= set() if of else set(suspect)
        for record in self._by_id.values():
            if type(record.message) is Voucher:
                meter = self._by_id.get(record.message.meter)
                if meter is None:
                    meters.add(record.message.meter)
                elif meter.message.order_number != record.message.order_number:
                    orders.add((meter.message.channel, meter.message.order_number))
        return orders, signatures, meters

    def forget(self) -> None:
        """Let go of every record, so that memory is free at once: records and what shows them hold one another."""
        for record in self._by_id.values():
            record.copies.clear()
        self._by_id.clear()
        self._orders.clear()

    def judge(self) -> dict[bytes, ChannelPart]:
        """What there is to say of each channel."""
        parts = {}
        for channel_id, orders in self._orders.items():
            part = parts[channel_id] = ChannelPart()
            channel = self._channels.get(channel_id)
            for number in sorted(orders):
                order = orders[number]
                if order.spoilt or (channel_id, number) in self._odd:
                    part.odd.append(number)
                    _note_usable(part, order)
                elif channel is None:
                    _count_orphans(part, order)
                else:
                    self._judge_order(part, channel, number, order)
            _look_at_times(part)
        return parts

    # -- a line ---------------------------------------------------------------------------------------------------

    def _spoil(self, line: bytes) -> None:
        channel, number = route_of(line) or (b"", 0)
        self._orders[channel][number].spoilt = True
        if channel not in self._whole:
            try:
                self._suspects.append(tuple(s.signature for s in parse_json_line(line).signatures))
            except InvalidRecord:
                return

    def _read(self, line: bytes) -> _Shown | None:
        """The record of a line that is plain by itself."""
        if self._whole and (route_of(line) or (b"",))[0] in self._whole:
            return None
        try:
            shown = _decode_line(line)
            if _encode_line(shown) != line:
                return self._read_unusual(line)
            payload = shown.payload
            message_type, decode, most_bytes = _READERS[shown.type]
            message: PlainMessage = decode(payload)
            if _encode_payload(message) != payload or len(payload) > most_bytes:
                return None
            if message_type in _CHECKED:
                message.check()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidRecord, KeyError):
            return None
        return self._file(message, _head_of(shown.type, len(payload)) + payload, shown.signatures)

    def _read_unusual(self, line: bytes) -> _Shown | None:
        """The same for JSON written in another way."""
        try:
            record = parse_json_line(line)
            message = parse_message(record, PLAIN_TYPES[record.payload_type])
        except (InvalidRecord, KeyError):
            return None
        key = message.channel, message.order_number
        if key != route_of(line):
            self.strays.add(key)
            return None
        signed = signature_head(record.payload_type, len(record.payload)) + record.payload
        return self._file(message, signed, record.signatures)

    def _file(
        self, message: PlainMessage, signed: bytes, signatures: Sequence[_LineSignature] | Sequence[Signature]
    ) -> _Shown | None:
        channel = self._channels.get(message.channel)
        record_id = sha256(signed).digest()
        order = self._orders[message.channel][message.order_number]
        claimed, checks = 0, []
        for signature in signatures:
            mask = _MASKS[signature.role]
            if claimed & mask:
                return None
            claimed |= mask
            key = signature.key
            if mask == _PROVIDER:
                is_theirs = channel is None or key == channel.provider
            else:
                is_theirs = mask == _CLIENT and (channel is None or key == channel.client)
            if len(key) != PUBLIC_KEY_BYTES or len(signature.signature) != SIGNATURE_BYTES:
                return None
            if is_theirs:
                checks.append((mask, key, signature.signature))
        record = self._by_id.get(record_id)
        if record is None:
            record = self._by_id[record_id] = PlainRecord(message, record_id)
            order.records.append(record)
        shown = _Shown(record, order, claimed, signatures)
        self._read_lines.append(shown)
        for mask, key, raw in checks:
            if not self._is_verifying or (raw in self._proven and self._proven[raw] == (record_id, key)):
                shown.good |= mask
            else:
                point = self._points.get(key) or self._admit(key)
                if point:
                    self._checks.append((raw + signed, point, shown, mask, raw, key))
        return shown

    def _admit(self, key: bytes) -> bytes:
        """The point that a key is, empty if it is not admissible."""
        try:
            point = self._points[key] = parse_public_key(key).raw[1:]
        except InvalidRecord:
            return b""
        return point

    def _verify(self) -> None:
        """Verify what was read. Many at a time: among other work each one takes longer, for caches hold less of it."""
        for message, point, shown, mask, signature, key in self._checks:
            try:
                crypto_sign_open(message, point)
            except BadSignatureError:
                continue
            shown.good |= mask
            self._proven[signature] = shown.record.record_id, key
        self._checks.clear()
        for shown in self._read_lines:
            record, order, good = shown.record, shown.order, shown.good
            required = _REQUIRED[type(record.message)]
            if good & required == required:
                shown.usable = record.usable = True
                record.claimed |= shown.claimed
            elif record.message.channel in self._channels:
                order.spoilt = True
            if good != shown.claimed:
                order.spoilt = True
                self._suspects.append(tuple(s.signature for s in shown.signatures))
            shown.signatures = ()
        self._read_lines.clear()

    # -- an order -------------------------------------------------------------------------------------------------

    def _judge_order(self, part: ChannelPart, channel: PlainChannel, number: int, lines: _OrderLines) -> None:
        records = lines.records
        receipt = self._plain_receipt(part, channel, records)
        if receipt is _ODD:
            part.odd.append(number)
            _note_usable(part, lines)
            return
        if self._several:
            if channel.groups > 1 and not all(map(channel.shows_all, records)):
                part.partial.append(number)
            part.bundles.update([copy[0] for record in records for copy in record.copies])
        elif not part.bundles:
            part.bundles.add(records[0].copies[0][0])
        for record in records:
            if type(record.message) is Order:
                part.times.append((number, record.message.ordered_ms))
        if lines.repeated:
            note_repeats(part.repeats, lines.repeated)
        part.sums.orders += 1
        if receipt is not None:
            message: Receipt = receipt.message  # type: ignore[assignment]
            countersigned = receipt.claimed & _CLIENT != 0
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
    ) -> PlainRecord | None:
        """The order's receipt, None if it has none; `_ODD` if the order is not plain."""
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
                    return _ODD
            else:
                return _ODD
        if order is None or (receipt is not None and receipt.message.mentions):  # type: ignore[union-attr]
            return _ODD
        ordered: Order = order.message  # type: ignore[assignment]
        if self._key_terms and not self._is_key_in_term(ordered, receipt, meters):
            return _ODD
        offer = self._offers.get(ordered.offer)
        served = bool(meters) or (receipt is not None and receipt.message.amount_pico > 0)  # type: ignore[union-attr]
        if offer is None or not served:
            if receipt is not None and receipt.message.order != order.record_id:  # type: ignore[union-attr]
                return _ODD
            if served:
                part.without_offer.setdefault(ordered.offer, ordered.order_number)
            return receipt
        if faults_of_order(ordered, channel=channel.message, offer=offer):
            return _ODD
        entry = self._entry(ordered.offer, offer, ordered.model)
        tariff = offer.tariff_at(entry, ordered.ordered_ms)
        last_meter = _plain_ticks(ordered, tariff, meters, vouchers) if meters or vouchers else None
        if last_meter is _ODD:
            return _ODD
        if receipt is not None and faults_of_receipt(
            receipt.message,  # type: ignore[arg-type]
            channel=channel.message,
            order=ordered,
            order_id=order.record_id,
            tariff=tariff,
            meter=last_meter.message if last_meter is not None else None,  # type: ignore[arg-type]
            voucher=vouchers[max(vouchers)].message if vouchers else None,  # type: ignore[arg-type]
            countersigned=bool(receipt.claimed & _CLIENT),
        ):
            return _ODD
        if receipt is not None and (meters or entry.most_tokens_per_s):
            billed: Receipt = receipt.message  # type: ignore[assignment]
            if faults_of_commitment(billed, (meter.message for meter in meters.values())):  # type: ignore[misc]
                return _ODD
            if faults_of_speed(billed, entry, MAX_CHOICES):
                return _ODD
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
) -> PlainRecord | None:
    """The last meter, `_ODD` if a tick or its voucher is not in order."""
    previous: Meter | None = None
    last: PlainRecord | None = None
    for tick in sorted(meters):
        last = meters[tick]
        meter: Meter = last.message  # type: ignore[assignment]
        if faults_of_meter(meter, order=order, tariff=tariff, previous=previous):
            return _ODD
        previous = meter
    for tick, record in vouchers.items():
        voucher: Voucher = record.message  # type: ignore[assignment]
        of = meters.get(tick)
        # Which meter another order's voucher may mean is for the full judgement.
        if of is None or voucher.meter != of.record_id:
            return _ODD
        if faults_of_voucher(
            voucher,
            tariff=tariff,
            meter=of.message,  # type: ignore[arg-type]
            meter_id=of.record_id,
            previous=None,  # with the meter at hand the voucher before does not matter
        ):
            return _ODD
    return last


def _note_usable(part: ChannelPart, lines: _OrderLines) -> None:
    """What chain and clock have to know of an order that is judged in full."""
    for record in lines.records:
        message = record.message
        if not record.usable:
            continue
        part.bundles.update(bundle for bundle, _, shown in record.copies if shown.usable)
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
        record.claimed & _CLIENT != 0,
        plain,
    )


def _count_orphans(part: ChannelPart, lines: _OrderLines) -> None:
    orphans = part.orphans
    for record in lines.records:
        orphans.records += 1
        places = [Place(bundle, line) for bundle, line, _ in record.copies]
        orphans.bundles.update(place.bundle for place in places)
        orphans.first = min(places if orphans.first is None else [orphans.first, *places])
    note_repeats(part.repeats, lines.repeated)


def _look_at_times(part: ChannelPart) -> None:
    """An order out of time is judged in full, and so is the one that it is held against."""
    latest_ms = holder = 0
    for number, ordered_ms in part.times:
        if ordered_ms < latest_ms - CLOCK_TOLERANCE_MS:
            part.wanted |= {number, holder}
        if ordered_ms > latest_ms:
            latest_ms, holder = ordered_ms, number


_ODD: Final = PlainRecord.__new__(PlainRecord)
_encode_line: Final = msgspec.json.Encoder().encode
_head_of: Final = lru_cache(4096)(signature_head)
_decode_line: Final = msgspec.json.Decoder(_Line).decode
_encode_payload: Final = msgspec.msgpack.Encoder().encode
_READERS: Final[dict[str, tuple[type[PlainMessage], Callable[[bytes], Any], int]]] = {
    name: (kind, msgspec.msgpack.Decoder(kind).decode, kind.max_payload_bytes) for name, kind in PLAIN_TYPES.items()
}
_CHECKED: Final = tuple(kind for kind in PLAIN_TYPES.values() if kind.check is not Message.check)
"""Types with rules between their fields."""
