"""A party shows what a commitment is over, to an auditor that it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from p2pgrid.desk.find import Receipts, find_receipt
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.base import OpenOrder
from p2pgrid.proto.batch import request_key
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
    commitments = [(commitment_key, placed.order.message.request_commitment, message.response_commitment)]
    if placed.order.message.is_batch:
        # Which of them the bytes are of is found by trying: one that was refused has a key and no line.
        keys_of_requests = [request_key(commitment_key, i) for i in range(placed.order.message.max_requests)]
        commitments = [
            (key, line.request_commitment, line.response_commitment)
            for line in message.requests
            for key in keys_of_requests
        ]
    if subject is Subject.REQUEST:
        commitment_key, content = _fitting_request([(key, asked) for key, asked, _ in commitments], content)
    else:
        commitment_key = _fitting_response([(key, answered) for key, _, answered in commitments], content)
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


def _fitting_request(commitments: Sequence[tuple[bytes, bytes]], content: bytes) -> tuple[bytes, bytes]:
    """The key of the commitment that the content opens, and the content in full."""
    for candidate in (content, _metered(content)):
        for key, commitment in commitments:
            if candidate is not None and request_commitment(key, candidate) == commitment:
                return key, candidate
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


def _fitting_response(commitments: Sequence[tuple[bytes, bytes]], content: bytes) -> bytes:
    """The key of the commitment that the content opens."""
    if all(commitment == _LOST for _, commitment in commitments):
        raise UsageError("a crash lost what the answer was committed to: nothing can be opened.")
    for key, commitment in commitments:
        shown = ResponseCommitment(key)
        shown.update(content)
        if shown.digest() == commitment:
            return key
    raise UsageError(
        "these bytes are not the answer that was committed to.",
        hint="Give the provider's stream byte for byte, up to what the receipt counts.",
    )


def _our_key(channel: Channel, keys: Sequence[SecretKey]) -> SecretKey:
    for key in keys:
        if key.public_key.raw in (channel.provider, channel.client):
            return key
    raise UsageError("this node's key is no party to that channel.", hint="Name the data folder of a node that is.")
