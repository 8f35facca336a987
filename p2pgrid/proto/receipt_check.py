"""What the client holds a proposed receipt against: the order, the tariff, the vouchers (docs/spec/session.md, 7).

Each check gives a finding's code and a sentence, or None.
"""

from __future__ import annotations

from typing import Final

from p2pgrid.proto.batch import fault_of_lines
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import FINISH_REASON_CHARS, Order, Receipt, RequestLine, Status, Tariff, Usage
from p2pgrid.proto.pricing import amount_owed, is_billed_by_voucher, is_within_caps, owes_nothing, price_of, usage_of
from p2pgrid.proto.record import Signed

Fault = tuple[str, str]
"""A code of docs/spec/audit.md, and a sentence."""

DISPUTABLE: Final = frozenset(
    {
        "wrong-count",
        "wrong-amount",
        "wrong-status",
        "wrong-commitment",
        "wrong-mention",
        "refund-rule",
        "over-caps",
        "beyond-window",
    }
)
"""Faults of what a receipt says. The client signs that it disputes it, and the chain goes on; any other breaks it."""


def receipt_fault(receipt: Receipt, order: Signed[Order], tariff: Tariff) -> Fault | None:
    """What can be said of a receipt from its order and tariff alone: a finding code and a sentence, or None."""
    message = order.message
    named = (receipt.order_number, receipt.order, receipt.offer, receipt.model, receipt.request_commitment)
    if named != (message.order_number, order.id, message.offer, message.model, message.request_commitment):
        return "wrong-order", "the receipt is not for the order that was placed."
    if not is_within_caps(receipt.usage, message):
        return "over-caps", f"the receipt's {counts_text(receipt.usage)} pass the order's caps."
    owed = amount_owed(tariff, receipt.usage, receipt.status)
    if receipt.amount_pico != owed and not _is_waived(receipt, message):
        code = "refund-rule" if owes_nothing(receipt.status) else "wrong-amount"
        return code, f"the receipt bills {receipt.amount_pico} pico-EUR; tariff and refund rule give {owed}."
    if receipt.amount_pico > message.max_amount_pico:
        return "over-caps", "the receipt's amount passes the most that the order allows."
    if receipt.amount_pico and receipt.first_token_ms > message.first_token_timeout_ms:
        return "refund-rule", "the receipt bills an answer whose first token came after the deadline."
    if message.is_batch or receipt.requests:
        fault = fault_of_lines(receipt, message, late_after_ms=message.first_token_timeout_ms)
        if fault is not None:
            return fault
    if receipt.issued_ms < message.ordered_ms - CLOCK_TOLERANCE_MS:
        return "time-backwards", "the receipt is dated before its order."
    return None


def _is_waived(receipt: Receipt, order: Order) -> bool:
    """A provider may bill nothing under `completed` where no token came, or none in time (rule 6.1)."""
    if receipt.amount_pico or receipt.status is not Status.COMPLETED or order.is_batch:
        return False
    return not receipt.usage.output_tokens or receipt.first_token_ms > order.first_token_timeout_ms


def resumed_fault(
    receipt: Receipt,
    tariff: Tariff,
    *,
    vouched: Usage,
    delivered: Usage | None,
    window_tokens: int,
    is_closed: bool = False,
    is_batch: bool = False,
) -> Fault | None:
    """Does the receipt bill more than can be known after a lost link?

    `delivered` is our own count where this process made it, None after a crash. The provider may have ended the order
    before it knew that the link was gone, so up to one window beyond the last voucher is accepted although it never
    arrived: that is the most that is ever at risk. For an order that `is_closed` without a receipt nothing is
    accepted but what was vouched. Of an order that `is_batch`, requests may have gone on of which nothing arrived:
    their prompts are bounded by the order's caps alone.
    """
    if owes_nothing(receipt.status):
        return None
    if is_closed or is_billed_by_voucher(receipt.status):
        return beyond_voucher(receipt, vouched, tariff)
    return _beyond_window(receipt.usage, vouched, delivered or vouched, window_tokens, is_batch=is_batch)


def _beyond_window(usage: Usage, vouched: Usage, known: Usage, window_tokens: int, *, is_batch: bool) -> Fault | None:
    # Of several requests one may have failed since: then fewer count than were known.
    if not is_batch and known.prompt_tokens and usage.prompt_tokens != known.prompt_tokens:
        return (
            "wrong-count",
            f"the receipt bills a prompt of {usage.prompt_tokens}; {known.prompt_tokens} were counted.",
        )
    if not is_batch and usage.cached_tokens < known.cached_tokens:
        return "wrong-count", f"the receipt leaves out cached tokens; {known.cached_tokens} were counted."
    if usage.output_tokens > max(known.output_tokens, vouched.output_tokens + window_tokens):
        return "beyond-window", "the receipt bills more than one window beyond the last voucher."
    return None


def answer_fault(
    said: Receipt | RequestLine, counter: TokenCounter, digest: bytes, *, is_cancelled: bool, what: str = ""
) -> Fault | None:
    """Hold a receipt, or its line about one request, against what this side saw of the answer.

    `digest` commits to the bytes that came; `is_cancelled`: this side sent a cancellation; `what` begins the sentence.
    """
    counted = usage_of(counter)
    if said.usage != counted:
        told, own = counts_text(said.usage), counts_text(counted)
        return "wrong-count", f"{what}the receipt says {told}; {own} were counted here."
    if said.response_commitment != digest:
        return "wrong-commitment", f"{what}the receipt commits to other bytes than were delivered."
    if said.finish_reason != (counter.finish_reason or "")[:FINISH_REASON_CHARS]:
        return "wrong-status", f"{what}the receipt's finish reason {said.finish_reason!r} is not the answer's."
    if said.status is Status.CANCELLED and not is_cancelled:
        return "wrong-status", f"{what}the receipt says cancelled; this side did not cancel."
    if said.status is Status.COMPLETED and (counter.has_failed or not counter.done):
        return "wrong-status", f"{what}the receipt says completed; the answer failed or did not end."
    return None


def contradiction_fault(said: Receipt | RequestLine, counter: TokenCounter, what: str = "") -> Fault | None:
    """An answer that contradicts itself owes nothing that its counts could tell. Parameters as `answer_fault`."""
    if not owes_nothing(said.status) and counter.contradiction:
        return "wrong-count", f"{what}the answer contradicts itself: {counter.contradiction}."
    return None


def beyond_voucher(receipt: Receipt, vouched: Usage, tariff: Tariff) -> Fault | None:
    # Fewer cached tokens make the same counts dearer, so the amount is compared too.
    if vouched.covers(receipt.usage) and receipt.amount_pico <= price_of(tariff, vouched):
        return None
    return "wrong-count", f"the receipt bills {counts_text(receipt.usage)}; {counts_text(vouched)} are vouched."


def clock_fault(their_ms: int, our_ms: int) -> Fault | None:
    if their_ms > our_ms + CLOCK_TOLERANCE_MS:
        return "clock-skew", f"the record is dated {(their_ms - our_ms) // 1000} s in the future."
    return None


def counts_text(usage: Usage) -> str:
    return f"{usage.prompt_tokens} in ({usage.cached_tokens} cached), {usage.output_tokens} out"
