"""Cases of disputes, openings and commitments; see `audit_cases`."""

from __future__ import annotations

from typing import Any

from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.dispute import Answer, Decision, Dispute, Subject
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Receipt, Status, Usage
from p2pgrid.proto.record import Role, Signed
from tests.factories import make_answer, make_dispute, make_opening, resigned
from tests.proto.audit_cases import BOTH, UNCLEAR, USAGE, C, P, both, two_receipts, vector
from tests.proto.chains import DAY_MS, START_MS, TARIFF, Dealings, LinesBundle, digest

KEY = bytes(range(32))
BODY = b'{"model":"small","prompt":"How high is the Zugspitze?","max_tokens":300}'
AFTER_A_DAY = START_MS + DAY_MS
AFTER_A_MONTH = START_MS + 30 * DAY_MS


def disputed(*, countersign: bool = True, **changes: Any) -> tuple[Dealings, Signed[Receipt], Signed[Dispute]]:
    """Three receipts, the second of them disputed by the client, and both sides have that."""
    grid = Dealings()
    grid.deal(output=200)
    receipt = grid.deal(output=200, countersign=countersign)
    by = changes.get("by", Role.CLIENT)
    dispute = resigned(make_dispute(receipt, by), grid.client if by is Role.CLIENT else grid.provider, by, **changes)
    grid.keep(dispute)
    return grid, receipt, dispute


def answered(**changes: Any) -> tuple[Dealings, Signed[Dispute], Signed[Answer]]:
    """As `disputed`, and answered; the provider accepts."""
    grid, _, dispute = disputed()
    return grid, dispute, grid.keep(make_answer(dispute, **changes))


def billed_later(grid: Dealings, *mentions: bytes, after_ms: int = 60_000) -> Signed[Receipt]:
    """Another order, and its receipt with mentions."""
    grid.now_ms += after_ms
    return grid.receipt(grid.order(), USAGE, mentions=mentions)


@vector("wrong-dispute", C)
def dispute_with_another_number() -> list[LinesBundle]:
    return both(disputed(receipt_number=1)[0])


@vector("wrong-dispute", C)
def dispute_for_more_than_billed() -> list[LinesBundle]:
    return both(disputed(owed_pico=10**12)[0])


@vector("wrong-dispute", UNCLEAR)
def dispute_of_a_record_that_nobody_has() -> list[LinesBundle]:
    return both(disputed(receipt=digest("nowhere"))[0])


@vector("record-missing", BOTH)
def dispute_of_a_receipt_that_is_not_there() -> list[LinesBundle]:
    return both(disputed(receipt=digest("nowhere"), receipt_number=7)[0])


@vector("time-backwards", C)
def dispute_before_its_receipt() -> list[LinesBundle]:
    return both(disputed(disputed_ms=START_MS - DAY_MS)[0])


@vector("two-records-one-slot", C)
def two_disputes_of_one_receipt() -> list[LinesBundle]:
    grid, receipt, _ = disputed()
    grid.keep(make_dispute(receipt, owed_pico=1))
    return both(grid)


@vector("dispute-unanswered", P, now_ms=AFTER_A_MONTH)
def dispute_left_unanswered() -> list[LinesBundle]:
    return both(disputed(countersign=False)[0])


@vector("dispute-unanswered", C, now_ms=AFTER_A_MONTH)
def provider_s_dispute_left_unanswered() -> list[LinesBundle]:
    return both(disputed(by=Role.PROVIDER, reason="other", statement="Billed too little.", owed_pico=10**9)[0])


@vector("wrong-answer", P)
def accepted_for_another_amount() -> list[LinesBundle]:
    return both(answered(owed_pico=77)[0])


@vector("wrong-answer", C)
def answer_to_one_s_own_dispute() -> list[LinesBundle]:
    grid, _, dispute = disputed()
    grid.keep(resigned(make_answer(dispute), grid.client, Role.CLIENT, by=Role.CLIENT))
    return both(grid)


@vector("wrong-answer", P)
def answer_about_another_receipt() -> list[LinesBundle]:
    return both(answered(receipt_number=1)[0])


@vector("time-backwards", P)
def answer_before_its_dispute() -> list[LinesBundle]:
    return both(answered(answered_ms=START_MS - DAY_MS)[0])


@vector("wrong-mention", P)
def mentioned_twice() -> list[LinesBundle]:
    grid, dispute, answer = answered()
    billed_later(grid, dispute.id, answer.id)
    billed_later(grid, dispute.id)
    return both(grid)


@vector("wrong-mention", P)
def mention_of_another_channel_s_dispute() -> list[LinesBundle]:
    other = Dealings(nonce="other")
    stray = make_dispute(other.deal(output=10))
    other.keep(stray)
    grid = two_receipts()
    for signed in other.client_has:
        grid.keep(signed)
    billed_later(grid, stray.id)
    return both(grid)


@vector("time-backwards", P)
def mention_of_what_comes_later() -> list[LinesBundle]:
    grid, _, dispute = disputed(disputed_ms=START_MS + DAY_MS)
    billed_later(grid, dispute.id)
    return both(grid)


@vector("record-missing", BOTH)
def mention_of_nothing() -> list[LinesBundle]:
    grid = two_receipts()
    billed_later(grid, digest("nothing"))
    return both(grid)


@vector("dispute-late", C)
def dispute_after_its_term() -> list[LinesBundle]:
    grid = two_receipts()
    grid.keep(make_dispute(grid.receipts[-1].countersigned(Role.CLIENT, grid.client), disputed_ms=AFTER_A_MONTH))
    return both(grid)


@vector("dispute-not-mentioned", P)
def answered_and_never_mentioned() -> list[LinesBundle]:
    grid, _, _ = answered()
    billed_later(grid, after_ms=2 * DAY_MS)
    return both(grid)


# -- openings -----------------------------------------------------------------------------------------------------


def opened(content: bytes = BODY, **changes: Any) -> Dealings:
    """An order whose request and answer the client shows."""
    grid = Dealings()
    order = grid.order(request_commitment=request_commitment(KEY, BODY))
    response = ResponseCommitment(KEY)
    response.update(b"data: 1\n\n")
    grid.receipt(order, USAGE, response_commitment=response.digest())
    grid.keep(make_opening(order, content, KEY, **changes), by="client")
    return grid


@vector("commitment-mismatch", C)
def another_prompt_shown() -> list[LinesBundle]:
    return both(opened(BODY + b" "))


@vector("commitment-mismatch", P)
def another_answer_shown() -> list[LinesBundle]:
    grid = opened()
    order = next(s for s in grid.client_has if s.message.payload_type.startswith("/p2pgrid/order"))
    grid.keep(make_opening(order, b"data: 2\n\n", KEY, by=Role.PROVIDER, subject=Subject.RESPONSE), by="provider")
    return both(grid)


@vector("wrong-commitment", P)
def another_answer_receipted() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, USAGE, Status.INTERRUPTED, response_commitment=digest("another answer"))
    return both(grid)


@vector("too-fast", P)
def faster_than_the_hardware() -> list[LinesBundle]:
    grid = opened_with_rate(60)
    return both(grid)


def opened_with_rate(most_tokens_per_s: int) -> Dealings:
    """An answer of 300 tokens in 0.86 s, where a rate is stated, and the request shows that it was one answer."""
    entry = ModelOffer(
        model="small",
        tariff=TARIFF,
        context_tokens=4096,
        concurrency=8,
        endpoints=ENDPOINTS,
        most_tokens_per_s=most_tokens_per_s,
    )
    grid = Dealings(offer_changes={"models": (entry,)})
    order = grid.order(request_commitment=request_commitment(KEY, BODY), endpoint=ENDPOINTS[1])
    usage = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=300)
    grid.receipt(order, usage)
    grid.keep(make_opening(order, BODY, KEY), by="client")
    return grid


def rejected(dispute: Signed[Dispute], owed_pico: int) -> Signed[Answer]:
    """The provider stands by its receipt."""
    return make_answer(dispute, decision=Decision.REJECTED, statement="It was delivered.", owed_pico=owed_pico)
