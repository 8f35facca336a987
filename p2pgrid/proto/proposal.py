"""A receipt as the provider proposes it, and as it comes back (docs/spec/session.md)."""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.disputing import verify_dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    Order,
    Receipt,
    RequestLine,
    Status,
    Tariff,
    Usage,
)
from p2pgrid.proto.pricing import (
    amount_owed,
)
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message, verify_countersigned


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an order ended, for its receipt."""

    status: Status
    finish_reason: str = ""
    response_commitment: bytes = bytes(32)
    """All zero where a crash lost it."""
    first_token_ms: int = 0
    total_ms: int = 0
    requests: tuple[RequestLine, ...] = ()
    """Of a batch order."""


def propose_receipt(
    books: ChannelBooks,
    order: Signed[Order],
    tariff: Tariff,
    usage: Usage,
    ending: Ending,
    *,
    key: SecretKey,
    now_ms: int,
) -> Signed[Receipt]:
    """Sign the channel's next receipt and make it the chain's last. The order stays open until it is countersigned."""
    message = order.message
    amount = amount_owed(tariff, usage, ending.status)
    receipt = sign_message(
        Receipt(
            channel=books.id,
            receipt_number=books.last_receipt_number + 1,
            previous=books.last_receipt_id,
            order_number=message.order_number,
            order=order.id,
            offer=message.offer,
            model=message.model,
            usage=usage,
            amount_pico=amount,
            channel_total_pico=books.total_pico + amount,
            status=ending.status,
            finish_reason=ending.finish_reason,
            request_commitment=message.request_commitment,
            response_commitment=ending.response_commitment,
            first_token_ms=ending.first_token_ms,
            total_ms=ending.total_ms,
            issued_ms=now_ms,
            mentions=books.mentions(now_ms),
            requests=ending.requests,
        ),
        Role.PROVIDER,
        key,
    )
    books.append(receipt)
    books.release(message.order_number)
    return receipt


def check_countersignature(proposed: Signed[Receipt] | None, payload: bytes, books: ChannelBooks) -> Signed[Receipt]:
    """The proposed receipt as the client sent it back: the provider's signature as it was, the client's checked.

    Raises ProtocolViolation when it is another receipt, InvalidRecord when a signature is bad.
    """
    record = parse_record(payload)
    if proposed is None or record.payload != proposed.record.payload:
        raise ProtocolViolation("the client countersigned another receipt than the one proposed.")
    return verify_countersigned(record, proposed, Role.CLIENT, books.client)


def accept_countersignature(proposed: Signed[Receipt], payload: bytes, books: ChannelBooks) -> Signed[Receipt]:
    """A countersignature that came when the channel was resumed: check it, and close the order in the books.

    Call it once for each proposal; the caller then persists what is returned. Raises as `check_countersignature` does.
    """
    receipt = check_countersignature(proposed, payload, books)
    books.settle(receipt.message)
    return receipt


def accept_dispute(proposed: Signed[Receipt], payload: bytes, books: ChannelBooks, now_ms: int) -> Signed[Dispute]:
    """The client's dispute of a receipt that was proposed to it: check it, and note it in the books.

    The chain goes on above the receipt. The caller persists what is returned. Raises InvalidRecord.
    """
    dispute = verify_dispute(parse_record(payload), proposed, books.terms, now_ms=now_ms)
    if dispute.message.by is not Role.CLIENT:
        raise ProtocolViolation("the client sent a dispute that is not its own.")
    books.note_disputed(proposed.message, dispute.message.owed_pico)
    books.note_held(dispute.id, dispute.message)
    return dispute
