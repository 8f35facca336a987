"""Audits of batch orders: one order, one receipt, several requests (docs/spec/session.md, section 11)."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pgrid.proto.batch import NO_COMMITMENT, batch_commitment, counts, request_key, sum_of
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.messages import BatchTerms, ModelOffer, Order, RequestLine, Status, Usage
from p2pgrid.proto.record import Signed
from tests.factories import make_opening
from tests.proto.audit_cases import C, P, both, vector
from tests.proto.chains import ENDPOINTS, TARIFF, Dealings, LinesBundle

KEY = bytes(range(32))
BODIES = tuple(b'{"model":"small","prompt":"%d","stream":true}' % n for n in range(3))
ANSWERS = tuple(b"data: %d\n\n" % n for n in range(3))
OFFER = {"batch": BatchTerms(batch_requests=4, batch_ms=100)}


def used(prompt: int, output: int, cached: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


def line(number: int, usage: Usage, status: Status = Status.COMPLETED, **changes: Any) -> RequestLine:
    """What a receipt says of request `number`, from 0."""
    key = request_key(KEY, number)
    response = ResponseCommitment(key)
    response.update(ANSWERS[number])
    said = RequestLine(
        status=status,
        finish_reason="stop" if status is Status.COMPLETED else "",
        usage=usage,
        request_commitment=request_commitment(key, BODIES[number]),
        response_commitment=response.digest(),
        first_token_ms=40 if usage.output_tokens else 0,
        total_ms=400,
    )
    return msgspec.structs.replace(said, **changes)


LINES = (line(0, used(100, 60, 30)), line(1, used(50, 20), Status.FAILED), line(2, used(80, 40), Status.CANCELLED))


def batch(
    lines: tuple[RequestLine, ...] = LINES,
    *,
    grid: Dealings | None = None,
    order: dict[str, Any] | None = None,
    metered: tuple[Usage, ...] = (),
    **changes: Any,
) -> Dealings:
    """A batch order, its receipt and a receipt after it."""
    grid = grid or Dealings(offer_changes=OFFER)
    placed = batch_order(grid, **(order or {}))
    for usage in metered:
        grid.voucher(grid.meter(placed, usage))
    billed = [one for one in lines if counts(one.status, one.usage)]
    fields = {"response_commitment": batch_commitment(one.response_commitment for one in billed), "finish_reason": ""}
    grid.receipt(placed, sum_of(one.usage for one in billed), **{**fields, "requests": lines, **changes})
    grid.deal(output=200)
    return grid


def batch_order(grid: Dealings, **changes: Any) -> Signed[Order]:
    return grid.order(**{"max_requests": 4, "request_commitment": NO_COMMITMENT, **changes})


@vector("not-on-offer", P)
def more_requests_than_the_offer_has() -> list[LinesBundle]:
    return both(batch(order={"max_requests": 5}))


@vector("not-on-offer", P)
def a_batch_under_an_offer_without() -> list[LinesBundle]:
    return both(batch(grid=Dealings()))


@vector("over-caps", P)
def more_requests_than_were_ordered() -> list[LinesBundle]:
    return both(batch(order={"max_requests": 2}))


@vector("over-caps", P)
def requests_in_the_receipt_of_one() -> list[LinesBundle]:
    grid = Dealings(offer_changes=OFFER)
    return both(batch(LINES[:1], grid=grid, order={"max_requests": 1}))


@vector("wrong-amount", P)
def counts_that_are_not_the_requests() -> list[LinesBundle]:
    return both(batch((*LINES[:2], line(2, used(80, 41), Status.CANCELLED)), **_of(LINES)))


def _of(lines: tuple[RequestLine, ...]) -> dict[str, Any]:
    """The sums of these lines, in a receipt that shows others."""
    billed = [one for one in lines if counts(one.status, one.usage)]
    usage = sum_of(one.usage for one in billed)
    return {"usage": usage, "amount_pico": _price(usage), "channel_total_pico": _price(usage)}


def _price(usage: Usage) -> int:
    full = usage.prompt_tokens - usage.cached_tokens
    return (
        full * TARIFF.input_upm
        + usage.cached_tokens * TARIFF.cached_input_upm
        + usage.output_tokens * TARIFF.output_upm
    )


@vector("wrong-amount", P)
def a_failed_request_in_the_sums() -> list[LinesBundle]:
    completed = (LINES[0], line(1, used(50, 20)), LINES[2])
    return both(batch(LINES, **_of(completed)))


@vector("wrong-commitment", P)
def a_commitment_to_other_requests() -> list[LinesBundle]:
    return both(batch(response_commitment=batch_commitment([bytes(32)])))


@vector("refund-rule", P)
def an_answer_of_the_batch_without_a_token() -> list[LinesBundle]:
    return both(batch((LINES[0], line(1, used(50, 0)))))


@vector("refund-rule", P)
def a_request_of_the_batch_too_late() -> list[LinesBundle]:
    return both(batch((LINES[0], line(1, used(50, 20), first_token_ms=150_001, total_ms=160_000))))


@vector("below-meter", P)
def a_batch_below_its_meter() -> list[LinesBundle]:
    return both(batch((LINES[0], LINES[2]), metered=(used(180, 101, 30),)))


@vector("too-fast", P)
def a_request_faster_than_the_hardware() -> list[LinesBundle]:
    entry = ModelOffer(
        model="small",
        tariff=TARIFF,
        context_tokens=4096,
        concurrency=8,
        endpoints=ENDPOINTS,
        most_tokens_per_s=1,
    )
    grid = Dealings(offer_changes={**OFFER, "models": (entry,)})
    grid.now_ms += 100_000
    # Of 128 choices the longest has at least three tokens here, and 1.54 of them may come in 1.4 s.
    return both(_alone(batch((line(0, used(100, 385)), line(1, used(10, 1))), grid=grid)))


def _alone(grid: Dealings) -> Dealings:
    """Without the receipt after the batch's."""
    last = grid.receipts[-1].message.order_number
    for book in (grid.provider_has, grid.client_has):
        book[:] = [s for s in book if getattr(s.message, "order_number", 0) != last]
    return grid


@vector("commitment-mismatch", C)
def another_request_shown() -> list[LinesBundle]:
    grid = batch()
    order = next(s for s in grid.client_has if isinstance(s.message, Order))
    grid.keep(make_opening(order, BODIES[0], request_key(KEY, 1)), by="client")
    return both(grid)


def opened(number: int) -> Dealings:
    """A batch of which one request, and its answer, are shown."""
    grid = batch()
    order = next(s for s in grid.client_has if isinstance(s.message, Order))
    grid.keep(make_opening(order, BODIES[number], request_key(KEY, number)), by="client")
    grid.keep(make_opening(order, ANSWERS[number], request_key(KEY, number), subject="response"), by="client")
    return grid


def opened_by_voucher() -> Dealings:
    """A batch that was broken off: its receipt lists nothing, so that nothing can be held against it."""
    grid = Dealings(offer_changes=OFFER)
    order = batch_order(grid)
    meter = grid.meter(order, used(100, 60, 30))
    grid.voucher(meter)
    grid.receipt(order, meter.message.usage, Status.INTERRUPTED, response_commitment=meter.message.response_commitment)
    grid.keep(make_opening(order, BODIES[0], request_key(KEY, 0)), by="client")
    return grid
