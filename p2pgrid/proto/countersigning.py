"""What the client makes of a proposed receipt: it countersigns it, or disputes it (docs/spec/session.md, 7 and 10)."""

from __future__ import annotations

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.disputing import sign_dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Order, Receipt, Tariff, Usage
from p2pgrid.proto.pricing import is_billed_by_voucher, owes_nothing, price_of
from p2pgrid.proto.receipt_check import DISPUTABLE, Fault, clock_fault, receipt_fault, resumed_fault
from p2pgrid.proto.record import Record, Role, Signed, verify_record


def conclude(
    books: ChannelBooks, receipt: Signed[Receipt], fault: Fault | None, *, owed_pico: int, key: SecretKey, now_ms: int
) -> tuple[Signed[Receipt], Signed[Dispute] | None]:
    """Make a proposal that fits the chain its last receipt, and close its order in the books.

    Without a fault it is countersigned. With one it is disputed: the receipt as it came, and our dispute of it.
    """
    message = receipt.message
    books.append(receipt)
    if fault is None:
        books.settle(message)
        return receipt.countersigned(Role.CLIENT, key), None
    dispute = sign_dispute(
        receipt, books.terms, reason=fault[0], statement=fault[1], owed_pico=owed_pico, key=key, now_ms=now_ms
    )
    books.note_disputed(message, dispute.message.owed_pico)
    books.note_held(dispute.id, dispute.message)
    return receipt, dispute


def check_resumed(
    books: ChannelBooks,
    proposal: Record,
    order: Signed[Order],
    tariff: Tariff,
    *,
    vouched: Usage,
    delivered: Usage | None,
    key: SecretKey,
    now_ms: int,
    is_closed: bool = False,
) -> tuple[Signed[Receipt], Signed[Dispute] | None]:
    """Judge a receipt that comes after a lost link, within what this side can still know: see `resumed_fault`.

    `is_closed`: both sides went on without a receipt for the order, because it never became the provider's business.
    The order is then closed in the books, which are those that it was placed in, or were restored with it. Returns what
    `conclude` does. Raises InvalidRecord with the finding's code for a receipt that the chain cannot go on with.
    """
    receipt = verify_record(proposal, Receipt, {Role.PROVIDER: books.provider})
    message = receipt.message
    broken = books.chain_fault(message) or clock_fault(message.issued_ms, now_ms)
    fault = (
        broken
        or receipt_fault(message, order, tariff)
        or resumed_fault(
            message,
            tariff,
            vouched=vouched,
            delivered=delivered,
            window_tokens=books.terms.window_tokens,
            is_closed=is_closed,
            is_batch=order.message.is_batch,
        )
        or books.mention_fault(message)
    )
    if fault is not None and fault[0] not in DISPUTABLE:
        raise InvalidRecord(*fault)
    by_count = delivered if delivered is not None and not is_billed_by_voucher(message.status) else vouched
    owed = 0 if owes_nothing(message.status) else min(price_of(tariff, by_count), message.amount_pico)
    return conclude(books, receipt, fault, owed_pico=owed, key=key, now_ms=now_ms)
