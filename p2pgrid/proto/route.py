"""Which order a line of a bundle is about, seen from its first bytes: how an audit sorts lines before it reads them."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import Final
from zlib import crc32

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.messages import Meter, Order, Receipt, Voucher
from p2pgrid.proto.record import SHORTEST_LINE_BYTES, TOO_SHORT, parse_json_line, parse_message

OrderKey = tuple[bytes, int]
"""A channel's id and an order number."""
PlainMessage = Order | Meter | Voucher | Receipt

PLAIN_TYPES: Final[dict[str, type[PlainMessage]]] = {t.payload_type: t for t in (Order, Meter, Voucher, Receipt)}
"""The messages of an order, by payload type. A receipt counts to the order that it bills."""
ORDERS_A_BLOCK: Final = 512
"""Orders with neighbouring numbers are checked together: their lines usually stand near one another."""

_FORM_BYTES: Final = 22
"""So many bytes of a line tell the four types apart."""
_HEAD_CHARS: Final = 60
"""Base64 of array header, channel and order number at their longest."""
_RECEIPT_HEAD_CHARS: Final = 120
"""The same with receipt number and previous between."""
_FORMS: Final = {
    start[:_FORM_BYTES]: (start, slice(len(start), len(start) + _RECEIPT_HEAD_CHARS), 3, True)
    if name == Receipt.payload_type
    else (start, slice(len(start), len(start) + _HEAD_CHARS), 1, False)
    for name, start in ((name, f'{{"type":"{name}","payload":"'.encode()) for name in PLAIN_TYPES)
}
"""How a line begins, where its payload's first fields stand, how long the payload's array header is, and whether it is
a receipt."""
_UINT_BYTES: Final = {**dict.fromkeys(range(0x80), 1), 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
"""How long a MessagePack unsigned integer is, by its first byte."""


def partition_of(key: OrderKey, partitions: int, orders_a_block: int = ORDERS_A_BLOCK) -> int:
    """Which of `partitions` parts a block of orders is checked in."""
    return crc32(key[0], key[1] // orders_a_block) % partitions


def route_of(line: bytes) -> OrderKey | None:
    """The order that a line says it is about, None if it is about none, or cannot be read."""
    route = read_route(line)
    return route if isinstance(route, tuple) else None


def read_route(line: bytes) -> OrderKey | InvalidRecord | None:
    """The order that a line says it is about, by its first bytes if it is in its usual form.

    None if it is about none, InvalidRecord if it cannot be read.

    Nothing is believed. JSON can name a thing twice, and then what comes first is not what counts: whoever reads the
    line whole compares, and tells of a stray (`PlainBlock.strays`).
    """
    form = _FORMS.get(line[:_FORM_BYTES])
    if form is not None and line.startswith(form[0]):
        _, of_head, at, is_receipt = form
        try:
            head = a2b_base64(line[of_head])
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


def _slow_route(line: bytes) -> OrderKey | InvalidRecord | None:
    if len(line) < SHORTEST_LINE_BYTES:
        return TOO_SHORT
    try:
        record = parse_json_line(line)
    except InvalidRecord as error:
        return error.with_traceback(None)
    try:
        message_type = PLAIN_TYPES.get(record.payload_type)
        if message_type is None:
            return None
        message = parse_message(record, message_type)
    except InvalidRecord:
        return None
    return message.channel, message.order_number
