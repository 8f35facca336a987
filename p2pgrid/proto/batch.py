"""Several short requests under one order: what both sides and an auditor share (docs/spec/session.md, section 11).

A batch order commits to no request: each has a key of its own, made from the order's, and its commitments stand in a
line of the receipt. Counts, amount and commitment of the order are those of its requests together; a request that owes
nothing is in none of them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from p2pgrid.proto.messages import Order, Receipt, RequestLine, Status, Tariff, Usage
from p2pgrid.proto.pricing import amount_owed, is_billed_by_voucher, owes_nothing

NO_COMMITMENT: Final = bytes(32)
"""The request commitment of a batch order, and of its receipt."""
GATHER_MS: Final = 100
"""Most time for which the provider gathers what an engine makes, to let it go together."""
CLOSE_GRACE_MS: Final = 1_000
"""How much later than the offer says a request still joins: it was on its way, and clocks tick differently."""
_DOMAIN: Final = b"p2pgrid/batch/1"
_NOTHING: Final = Usage()


def request_key(batch_key: bytes, index: int) -> bytes:
    """The commitment key of one request: whoever is shown it learns nothing of the others."""
    return hmac.digest(batch_key, _DOMAIN + bytes([index]), hashlib.sha256)


def batch_commitment(commitments: Iterable[bytes]) -> bytes:
    """What a meter or a receipt commits to: the response commitments of all requests that count, by index."""
    return hashlib.sha256(_DOMAIN + b"".join(commitments)).digest()


def counts(status: Status | None, usage: Usage) -> bool:
    """True for a request that is in the order's counts: something was delivered, and its status owes for it.

    `status` is None while it runs.
    """
    return usage != _NOTHING and (status is None or not owes_nothing(status))


def sum_of(usages: Iterable[Usage]) -> Usage:
    """Counts of several requests together."""
    prompt = cached = output = 0
    for usage in usages:
        prompt += usage.prompt_tokens
        cached += usage.cached_tokens
        output += usage.output_tokens
    return Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


def counted_lines(receipt: Receipt) -> list[RequestLine]:
    """The lines that the receipt bills."""
    return [line for line in receipt.requests if counts(line.status, line.usage)]


def line_amount(line: RequestLine, tariff: Tariff) -> int:
    """What is owed for one request, in pico-units. Raises InvalidRecord (`out-of-range`)."""
    return amount_owed(tariff, line.usage, line.status)


def fault_of_lines(receipt: Receipt, order: Order, *, late_after_ms: int) -> tuple[str, str] | None:
    """A code and a sentence if the receipt's lines are not what its order and its own sums allow, or None.

    `late_after_ms`: a first token later than that after its request's arrival owes nothing.
    """
    what, lines = f"receipt {receipt.receipt_number}", receipt.requests
    if len(lines) > (order.max_requests if order.is_batch else 0):
        return "over-caps", f"{len(lines)} requests stand in {what}; order {order.order_number} allows fewer."
    if not order.is_batch or is_billed_by_voucher(receipt.status):
        return None
    for number, line in enumerate(lines, 1):
        if not counts(line.status, line.usage):
            continue
        if line.status is Status.COMPLETED and not line.usage.output_tokens:
            return "refund-rule", f"An answer without a token owes nothing, and {what} bills one (request {number})."
        if line.first_token_ms > late_after_ms:
            return "refund-rule", f"The first token of request {number} came after the deadline, and {what} bills it."
    if receipt.usage != sum_of(line.usage for line in counted_lines(receipt)):
        return "wrong-amount", f"The counts of {what} are not those of the requests that it lists."
    if receipt.response_commitment != batch_commitment(line.response_commitment for line in counted_lines(receipt)):
        return "wrong-commitment", f"Of {what} the commitment is not that of the requests that it lists."
    return None
