"""Lines about orders as records, each with the roles whose signatures fit: what `plain` judges orders by.

This is where an audit's time goes, so a line is read once and little is kept of it. A line that is not a record in its
usual form, with good signatures by the channel's own keys, spoils its order: `verdict` judges that one in full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.elided import note_repeats
from p2pgrid.proto.evidence import REQUIRED_ROLES
from p2pgrid.proto.findings import Place
from p2pgrid.proto.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed, parse_public_key
from p2pgrid.proto.messages import Channel, Voucher
from p2pgrid.proto.record import (
    MAX_SIGNATURES,
    PARTIES,
    Message,
    Role,
    Signature,
    encode_payload,
    parse_json_line,
    parse_message,
    signature_head,
)
from p2pgrid.proto.route import PLAIN_TYPES, OrderKey, PlainMessage, route_of

MOST_LINES_AN_ORDER: Final = 50_000
"""Lines about one order that are looked at. An answer of a million tokens takes some 16,000 a bundle."""

_CHECKS_AT_ONCE: Final = 2048
_PROVIDER: Final = 1
CLIENT: Final = 2
"""The client's bit in `PlainRecord.claimed`."""
_STRANGE: Final = 4
"""In a role that a channel does not have."""
_MASKS: Final = {Role.PROVIDER: _PROVIDER, Role.CLIENT: CLIENT, **dict.fromkeys(set(Role) - set(PARTIES), _STRANGE)}
_REQUIRED: Final = {t: sum(_MASKS[r] for r in REQUIRED_ROLES[t]) for t in PLAIN_TYPES.values()}


class _LineSignature(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Role
    key: bytes
    signature: bytes


class _Line(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Annotated[str, msgspec.Meta(max_length=64)]
    payload: bytes
    signatures: Annotated[tuple[_LineSignature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]


class PlainRecord(msgspec.Struct, gc=False):
    """One record of an order, and the lines that show it."""

    message: PlainMessage
    record_id: bytes
    lines: list[ShownLine] = []
    """The different ones."""
    bundles: int = 0
    """Those that hold it, as bits."""
    usable: bool = False
    """Some line shows the signature that gives it its force, and it is good."""
    claimed: int = 0
    """The roles of all usable lines (a bit mask). Of a plain record every one is proven."""


class ShownLine(msgspec.Struct, gc=False):
    """What a line shows, and where it stands."""

    record: PlainRecord
    signatures: tuple[_LineSignature | Signature, ...]
    claimed: int = 0
    """The roles that it has a signature for (a bit mask)."""
    good: int = 0
    """Those whose signature is the channel's party's, and fits."""
    bundles: int = 0
    places: list[tuple[int, int]] = []
    """The first of each bundle: bundle and line."""

    @property
    def usable(self) -> bool:
        """The signature that gives the record its force is good."""
        required = _REQUIRED[type(self.record.message)]
        return self.good & required == required


class OrderLines(msgspec.Struct, gc=False):
    """All that there is of one order."""

    records: list[PlainRecord] = []
    read: int = 0
    """Different lines that were read."""
    unread: int = 0
    """Lines that were not, or could not be."""
    spoilt: bool = False
    """Some line is not plain by itself."""
    repeats: dict[int, tuple[int, Place]] | None = None
    """For each bundle: lines that say again what stands in it already, and the first of them."""

    def count(self) -> int:
        """How many lines are about the order."""
        shown = sum(len(line.places) for record in self.records for line in record.lines)
        repeated = sum(count for count, _ in self.repeats.values()) if self.repeats else 0
        return shown + self.unread + repeated


class PlainLines:
    """Reads lines, and verifies every signature in them."""

    def __init__(
        self,
        channels: Mapping[bytes, Channel],
        whole: Collection[bytes] = frozenset(),
        *,
        several: bool = True,
        verify: bool = True,
        most_lines: int = MOST_LINES_AN_ORDER,
    ) -> None:
        """`whole`: channels whose orders are not looked at here. `several`: there are several bundles, which often
        hold the same lines. `verify`: False where every signature was verified before. `most_lines`: of one order."""
        self._channels: Final = channels
        self._whole: Final = whole
        self._several: Final = several
        self._is_verifying: Final = verify
        self._most_lines: Final = most_lines
        self._known: Final[dict[bytes, ShownLine]] = {}
        self._doubtful: Final[list[ShownLine]] = []
        """Lines that are not good as far as is known, or not their record's first."""
        self._checks: Final[list[tuple[bytes, bytes, ShownLine, int]]] = []
        self._by_id: Final[dict[bytes, PlainRecord]] = {}
        self._keys: Final[dict[bytes, tuple[bytes, ...] | None]] = {}
        self._suspects: Final[list[tuple[bytes, ...]]] = []
        self.orders: Final[dict[bytes, dict[int, OrderLines]]] = defaultdict(lambda: defaultdict(OrderLines))
        """By channel and order number."""
        self.strays: Final[set[OrderKey]] = set()
        """Orders that some line is about which was sorted to another."""

    def take(self, lines: Iterable[tuple[int, int, bytes]]) -> None:
        """Take lines: bundle, number, and the line without its line feed. Each must have a route (`route_of`)."""
        known_lines, read, several = self._known, self._read, self._several
        for bundle, number, line in lines:
            shown = known_lines.get(line) if several else None
            if shown is None:
                shown = read(line)
                if shown is None:
                    self._spoil(line)
                    continue
                if several:
                    known_lines[line] = shown
                if len(self._checks) >= _CHECKS_AT_ONCE:
                    self._verify()
            record, bit = shown.record, 1 << bundle
            if record.bundles & bit:  # what this bundle shows already
                order = self._order_of(record)
                order.repeats = order.repeats or {}
                note_repeats(order.repeats, [Place(bundle, number)])
            if not shown.bundles & bit:
                record.bundles |= bit
                shown.bundles |= bit
                shown.places.append((bundle, number))
        self._verify()

    def wanted(self) -> tuple[set[OrderKey], set[bytes], set[bytes]]:
        """What the full judgement of odd orders needs beside them.

        Orders that are here; signatures, and ids of meters, that would be of use and are not here.
        """
        orders: set[OrderKey] = set()
        signatures: set[bytes] = set()
        meters: set[bytes] = set()
        proven: dict[bytes, PlainRecord] = {}
        for record in self._by_id.values() if self._suspects else ():
            for line in record.lines:
                proven.update((s.signature, record) for s in line.signatures if line.good & _MASKS[s.role])
        for suspect in self._suspects:
            of = [proven[s].message for s in suspect if s in proven]
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
        """Let go of every record, so that memory is free at once: records and lines hold one another."""
        for record in self._by_id.values():
            record.lines.clear()
        self._by_id.clear()
        self._known.clear()
        self.orders.clear()

    # -- a line ---------------------------------------------------------------------------------------------------

    def _spoil(self, line: bytes) -> None:
        channel, number = route_of(line) or (b"", 0)
        order = self.orders[channel][number]
        order.spoilt = True
        order.unread += 1
        if channel not in self._whole and order.unread <= self._most_lines:
            try:
                self._suspects.append(tuple(s.signature for s in parse_json_line(line).signatures))
            except InvalidRecord:
                return

    def _read(self, line: bytes) -> ShownLine | None:
        """The record of a line that is plain by itself."""
        if self._whole and (route_of(line) or (b"",))[0] in self._whole:
            return None
        try:
            text = _decode_line(line)
            if _encode_line(text) != line:
                return self._read_unusual(line)
            payload = text.payload
            decode, most_bytes, is_checked = _READERS[text.type]
            if len(payload) > most_bytes:
                return None
            message: PlainMessage = decode(payload)
            if encode_payload(message) != payload:
                return None
            if is_checked:
                message.check()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidRecord, KeyError):
            return None
        return self._file(message, _head_of(text.type, len(payload)) + payload, text.signatures)

    def _read_unusual(self, line: bytes) -> ShownLine | None:
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
        self, message: PlainMessage, signed: bytes, signatures: tuple[_LineSignature | Signature, ...]
    ) -> ShownLine | None:
        channel, number = message.channel, message.order_number
        order = self.orders[channel][number]
        if order.read >= self._most_lines:
            return None
        record_id = sha256(signed).digest()
        record = self._by_id.get(record_id)
        is_new = record is None
        if record is None:
            record = PlainRecord(message, record_id)
        else:
            self._verify()  # what the record's first line proved need not be proven again
        shown = ShownLine(record, signatures)
        claimed, good, checks, keys = 0, 0, [], self._keys_of(channel)
        for signature in signatures:
            mask, key, raw = _MASKS[signature.role], signature.key, signature.signature
            if claimed & mask or len(key) != PUBLIC_KEY_BYTES or len(raw) != SIGNATURE_BYTES:
                return None
            claimed |= mask
            if (keys is not None and key != keys[mask]) or mask == _STRANGE:
                continue
            if not self._is_verifying or (not is_new and _is_proven_by(record.lines[0], signature, mask)):
                good |= mask
            elif point := point_of(key):
                good |= mask  # until it is found that it does not fit
                checks.append((raw + signed, point, shown, mask))
        shown.claimed, shown.good = claimed, good
        if is_new and good == claimed and shown.usable:
            record.usable = True
            record.claimed |= claimed
        else:
            self._doubtful.append(shown)
        order.read += 1
        if is_new:
            self._by_id[record_id] = record
            order.records.append(record)
        record.lines.append(shown)
        self._checks.extend(checks)
        return shown

    def _keys_of(self, channel_id: bytes) -> tuple[bytes, ...] | None:
        """The keys of a channel's parties, by their bits; None where the channel is not known: then any key will do."""
        if channel_id not in self._keys:
            channel = self._channels.get(channel_id)
            unnamed = b""
            known = None if channel is None else (unnamed, channel.provider, channel.client, unnamed, unnamed)
            self._keys[channel_id] = known
        return self._keys[channel_id]

    def _order_of(self, record: PlainRecord) -> OrderLines:
        return self.orders[record.message.channel][record.message.order_number]

    def _verify(self) -> None:
        """Verify what was read. Many at a time: among other work each one takes longer, for caches hold less of it."""
        for signed, point, shown, mask in self._checks:
            if not is_signed(signed, point):
                shown.good &= ~mask
                self._doubtful.append(shown)
        self._checks.clear()
        for shown in {id(shown): shown for shown in self._doubtful}.values():
            record, is_usable = shown.record, shown.usable
            if shown is record.lines[0]:
                record.usable, record.claimed = is_usable, shown.claimed if is_usable else 0
            elif is_usable:
                record.usable = True
                record.claimed |= shown.claimed
            if not is_usable and record.message.channel in self._channels:
                self._order_of(record).spoilt = True
            if shown.good != shown.claimed:
                self._order_of(record).spoilt = True
                self._suspects.append(tuple(s.signature for s in shown.signatures))
        self._doubtful.clear()


def roles_of_mask(mask: int) -> tuple[Role, ...]:
    """The roles that `PlainRecord` has as a bit mask."""
    return tuple(role for role in PARTIES if mask & _MASKS[role])


def bundles_of_mask(mask: int) -> set[int]:
    """The bundles that `PlainRecord` has as a bit mask."""
    return {bundle for bundle in range(mask.bit_length()) if mask >> bundle & 1}


@lru_cache(maxsize=8192)
def point_of(key: bytes) -> bytes:
    """The point that a key is, empty if it is not admissible."""
    try:
        return parse_public_key(key).raw[1:]
    except InvalidRecord:
        return b""


def _is_proven_by(earlier: ShownLine, signature: _LineSignature | Signature, mask: int) -> bool:
    """True if the line shows the same signature of the same record, and it was verified."""
    return earlier.good & mask != 0 and any(
        s.signature == signature.signature and s.key == signature.key and s.role is signature.role
        for s in earlier.signatures
    )


_head_of: Final = lru_cache(4096)(signature_head)
_encode_line: Final = msgspec.json.Encoder().encode
_decode_line: Final = msgspec.json.Decoder(_Line).decode
_READERS: Final[dict[str, tuple[Callable[[bytes], Any], int, bool]]] = {
    name: (msgspec.msgpack.Decoder(kind).decode, kind.max_payload_bytes, kind.check is not Message.check)
    for name, kind in PLAIN_TYPES.items()
}
"""By payload type: its decoder, the most bytes, and whether there are rules between its fields."""
