"""A party shows what a commitment is over, to an auditor that it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from p2pgrid.desk.find import Receipts, find_receipt
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.base import OpenOrder
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.dispute import MAX_OPENED_BYTES, Opening, Subject
from p2pgrid.proto.disputing import role_in
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Signed, sign_message
from p2pgrid.proto.request import metered_body

_LOST: Final = bytes(32)


class Keys(Receipts, Protocol):
    """What of a ledger is needed here: any reader has it."""

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None: ...

    def request_key(self, channel: bytes, order_number: int) -> bytes | None: ...


def make_opening(
    ledger: Keys, keys: Sequence[SecretKey], name: str, subject: Subject, content: bytes
) -> Signed[Opening]:
    """The opening of what a receipt's order asked, or of what answered it.

    A request may be given as the program sent it: what the gateway adds is added here. Raises UsageError: no such
    receipt, its key was erased, or the bytes are not those that were committed to.
    """
    receipt, channel = find_receipt(ledger, name)
    message = receipt.message
    commitment_key = ledger.request_key(message.channel, message.order_number)
    placed = ledger.order(message.channel, message.order_number)
    if commitment_key is None or placed is None:
        raise UsageError(
            f"the key of order {message.order_number} is not in this ledger: it was erased, or never kept.",
            hint="The other side may have it still.",
        )
    if subject is Subject.REQUEST:
        content = _fitting_request(commitment_key, content, placed.order.message.request_commitment)
    else:
        _check_response(commitment_key, content, message.response_commitment)
    if len(content) > MAX_OPENED_BYTES:
        raise UsageError(f"an opening shows at most {MAX_OPENED_BYTES} bytes; these are {len(content)}.")
    key = _our_key(channel.message, keys)
    opening = Opening(
        channel=message.channel,
        order_number=message.order_number,
        by=role_in(channel.message, key.public_key),
        subject=subject,
        commitment_key=commitment_key,
        content=content,
    )
    return sign_message(opening, opening.by, key)


def _fitting_request(key: bytes, content: bytes, commitment: bytes) -> bytes:
    for candidate in (content, _metered(content)):
        if candidate is not None and request_commitment(key, candidate) == commitment:
            return candidate
    raise UsageError(
        "these bytes are not the request that was committed to.",
        hint="Give the JSON body exactly as the program sent it: same fields, same order.",
    )


def _metered(content: bytes) -> bytes | None:
    """What the gateway makes of a program's body; None if it is none."""
    try:
        body: Any = msgspec.json.decode(content)
        return metered_body(body) if isinstance(body, dict) else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, P2pgridError):
        return None


def _check_response(key: bytes, content: bytes, commitment: bytes) -> None:
    if commitment == _LOST:
        raise UsageError("a crash lost what the answer was committed to: nothing can be opened.")
    shown = ResponseCommitment(key)
    shown.update(content)
    if shown.digest() != commitment:
        raise UsageError(
            "these bytes are not the answer that was committed to.",
            hint="Give the provider's stream byte for byte, up to what the receipt counts.",
        )


def _our_key(channel: Channel, keys: Sequence[SecretKey]) -> SecretKey:
    for key in keys:
        if key.public_key.raw in (channel.provider, channel.client):
            return key
    raise UsageError("this node's key is no party to that channel.", hint="Name the data folder of a node that is.")
