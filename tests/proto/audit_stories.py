"""Bundles beside the cases of the audit: what is just within a rule, and what breaks several at once.

Each says which codes an audit gives, and all of them: most say none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands
from p2pgrid.proto.messages import Status, Usage
from tests.factories import make_answer, make_invoice, make_opening
from tests.proto.audit_cases import USAGE, both, by_the_hour, two_receipts, with_line
from tests.proto.audit_cases_batch import LINES, batch, line, opened_by_voucher, used
from tests.proto.audit_cases_batch import opened as opened_in_batch
from tests.proto.audit_cases_credit import credited_before, half_paid_by_its_vat, just_enough_ahead
from tests.proto.audit_cases_disputes import BODY, KEY, answered, billed_later, disputed, opened, opened_with_rate
from tests.proto.audit_cases_disputes import rejected as rejection
from tests.proto.audit_cases_keys import both_keys, card, peer, rotated, sold_under
from tests.proto.audit_cases_log import (
    ALL_PROOFS,
    TWO_WITNESSES,
    WITNESSES,
    attached,
    log_of,
    logged_dealings,
    note_of,
    proved,
)
from tests.proto.audit_cases_settlement import held_then, invoiced, paid, settled, statement
from tests.proto.audit_more_cases import (
    CLOCKS_MS,
    LESS,
    billed_after_the_answer,
    credited,
    disputed_after,
    half_cents,
    held,
    metered,
    paid_at,
    sale,
    sold_until,
    unanswered,
    witnessed_at,
)
from tests.proto.audit_stories_set_off import (
    all_four,
    by_two_keys,
    cycle_of_a_timekeeper_alone,
    cycle_settled,
    lapsed,
    of_one_key_each,
    of_one_side,
)
from tests.proto.audit_stories_settlement import (
    OVERLAP,
    ahead,
    idle_months,
    netted,
    never_arrived,
    one_entry,
    overbilled,
    overdue,
    overlapping,
    put_right,
    refunded,
    returned,
    stated_early,
    two_rates,
    waived,
)
from tests.proto.chains import DAY_MS, START_MS, Dealings, LinesBundle, digest, everyday_dealings, key

Build = Callable[[], list[LinesBundle]]
AMOUNT = 70 * 200_000 + 30 * 50_000 + 200 * 900_000
"""What USAGE costs."""


@dataclass(frozen=True, slots=True)
class Story:
    """Bundles, and the codes that an audit of them gives: findings and notes, in the order of their codes."""

    name: str
    build: Build
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    now_ms: int | None = None
    demands: LogDemands = NO_DEMANDS

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `audit_records`."""
        return {"now_ms": self.now_ms, "log_demands": self.demands}


def of(make: Callable[..., Dealings], *args: Any, **changes: Any) -> Build:
    """Both bundles of dealings."""
    return lambda: both(make(*args, **changes))


def within(start: dict[str, Any], **order: Any) -> Build:
    """One sale whose channel or offer is changed."""
    return lambda: both(sale(order=order, grid=Dealings(**start)))


def two_lost_one_spoilt() -> list[LinesBundle]:
    grid = Dealings()
    for _ in range(4):
        grid.deal(output=10)
    return with_line(grid, lambda lines: [*lines[:2], lines[2][:-10], *lines[3:5], *lines[7:]])


def unserved() -> list[LinesBundle]:
    grid = two_receipts()
    failed = grid.order(max_output_tokens=1)
    grid.receipt(failed, USAGE, Status.FAILED)
    grid.order(ordered_ms=START_MS + 300 * DAY_MS, offer=digest("nowhere"), model="none")
    return both(grid)


def forged_opening() -> list[LinesBundle]:
    """The client shows a request for one answer; it had committed to another."""
    grid = opened_with_rate(60)
    order = next(s for s in grid.client_has if s.message.payload_type.startswith("/p2pgrid/order"))
    grid.client_has[:] = [s for s in grid.client_has if not s.message.payload_type.startswith("/p2pgrid/opening")]
    grid.keep(make_opening(order, BODY + b" ", KEY), by="client")
    return both(grid)


def mention_of_a_later_receipt() -> list[LinesBundle]:
    grid, _, dispute = disputed(receipt_number=3, receipt=digest("nowhere"))
    grid.receipt(grid.order(), USAGE, mentions=(dispute.id,))
    return both(grid)


def accepted_and_forgotten(now_ms: int) -> Story:
    return Story("an answered dispute, long after", lambda: both(answered()[0]), now_ms=now_ms)


def zero_response() -> Dealings:
    """A response whose commitment a crash lost, and which the client shows."""
    grid = Dealings()
    order = grid.order()
    grid.receipt(order, USAGE, response_commitment=bytes(32))
    grid.keep(make_opening(order, b"data: 1\n\n", KEY, subject="response"), by="client")
    return grid


def paid_twice(apart_ms: int) -> list[LinesBundle]:
    grid, invoice = invoiced()
    half = invoice.message.gross_cents // 2
    for later_ms in (0, apart_ms):
        booked_ms = invoice.message.issued_ms + DAY_MS + later_ms
        paid(grid, invoice, amount_cents=half, booked_ms=booked_ms, entry=b"")
    paid(grid, invoice, reference="REST", amount_cents=invoice.message.gross_cents - 2 * half)
    return both(grid)


def taken_back() -> list[LinesBundle]:
    """An invoice, the same again as a credit note, and another in its place, which is paid."""
    grid, invoice = invoiced(2100)
    cents = {"net_cents": -invoice.message.net_cents, "vat_cents": -invoice.message.vat_cents}
    stated = next(s for s in grid.client_has if s.message.payload_type == "/p2pgrid/statement/1")
    grid.keep(make_invoice(stated, invoice_number="2027-0002", **cents))
    paid(grid, grid.keep(make_invoice(stated, invoice_number="2027-0003")))
    return both(grid)


def continued() -> Dealings:
    """A channel that goes on under a new key; its first statement opens with what was owed before."""
    grid = rotated(both_keys())
    grid.keep(both_keys())
    statement(grid, 1, 1, opening_cents=10)
    return grid


def unsigned_and_logged() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    grid.deal(output=10, countersign=False)
    return attached(grid, *proved(grid, log, log.checkpoint()))


def own_word_of_yesterday() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    return attached(grid, *proved(grid, log, log.checkpoint(0, (grid.provider,), grid.now_ms - DAY_MS), 2))


def seen(margin_s: int) -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    seen_s = -(-grid.receipts[1].message.issued_ms // 1000) + margin_s
    return attached(grid, *proved(grid, log, log.checkpoint(0, WITNESSES, seen_s * 1000), 2))


def stranger_s_fork() -> list[LinesBundle]:
    grid = two_receipts()
    logs = [log_of(grid, name, key("stranger")) for name in ("shown", "hidden")]
    return attached(grid, *(note_of(log.checkpoint()) for log in logs))


def bad_cosignature() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    other = log.checkpoint(2, WITNESSES[:1], grid.now_ms).note.signatures[-1]
    return attached(grid, note_of(log.checkpoint().cosigned(other)))


def two_that_follow_with_one_number() -> list[LinesBundle]:
    first = card()
    after = [card(sequence=2, previous=first.id, domain=domain) for domain in ("", "elsewhere.example")]
    return both(sold_under(first, *after))


def successor() -> list[LinesBundle]:
    heir = key("heir")
    first = card(successor=heir.public_key.raw)
    return both(sold_under(first, card(heir, operator=heir.public_key.raw, sequence=2, previous=first.id)))


def renewed() -> list[LinesBundle]:
    first = card(peers=(peer(key("provider"), valid_until_ms=START_MS + DAY_MS),))
    second = card(sequence=2, previous=first.id)
    return both(sold_under(first, second, after_ms=2 * DAY_MS))


def named_no_more() -> list[LinesBundle]:
    first = card()
    return both(sold_under(first, card(sequence=2, previous=first.id, peers=()), after_ms=2 * DAY_MS))


def rejected() -> list[LinesBundle]:
    grid, _, dispute = disputed()
    grid.keep(rejection(dispute, 77))
    return both(grid)


def rate(most_tokens_per_s: int) -> Build:
    """300 tokens in 860 ms after the first: 299 x 10000 <= 11 x rate x 1860 holds from 147 on."""
    return lambda: both(opened_with_rate(most_tokens_per_s))


STORIES: tuple[Story, ...] = (
    Story("everyday dealings", of(everyday_dealings), notes=("awaiting-countersignature", "not-received")),
    Story("every word of a log", lambda: attached(logged_dealings()[0], *logged_dealings()[1])),
    Story("one line spoilt, two records more not there", two_lost_one_spoilt, ("malformed", "left-out"), ()),
    # Orders, ticks and receipts.
    Story("orders that were not served", unserved),
    Story("cached as many as the prompt has", of(sale, Usage(prompt_tokens=100, cached_tokens=100, output_tokens=9))),
    Story("ordered 120 s before the channel", of(sale, order={"ordered_ms": START_MS - CLOCKS_MS})),
    Story(
        "ordered 120 s after the channel's end",
        within({"channel_changes": {"expires_ms": START_MS + 1}}, ordered_ms=START_MS + 1 + CLOCKS_MS),
    ),
    Story(
        "ordered 120 s before the offer",
        within({"offer_changes": {"valid_from_ms": START_MS + CLOCKS_MS}}, ordered_ms=START_MS),
    ),
    Story(
        "ordered 120 s after the offer's end",
        within({"offer_changes": {"valid_until_ms": START_MS + 1}}, ordered_ms=START_MS + 1 + CLOCKS_MS),
    ),
    Story("the price of the hour", of(by_the_hour)),
    Story("as many tokens as ordered", of(sale, order={"max_output_tokens": 200, "max_prompt_tokens": 100})),
    Story("as dear as ordered", of(sale, order={"max_amount_pico": AMOUNT})),
    Story("the prompt that the client counted", of(metered, USAGE, order={"prompt_tokens": 100})),
    Story("another prompt count, and nothing billed", of(sale, USAGE, Status.FAILED, order={"prompt_tokens": 99})),
    Story(
        "no prompt yet where the client counted one",
        of(metered, Usage(output_tokens=9), USAGE, order={"prompt_tokens": 100}),
    ),
    Story("counts that stay", of(metered, USAGE, USAGE)),
    Story("as much as was metered", of(metered, LESS, USAGE, vouched=0)),
    Story(
        "interrupted below an unacknowledged tick",
        of(metered, LESS, USAGE, vouched=1, billed=LESS, status=Status.INTERRUPTED),
    ),
    Story("failed below its meter", of(metered, USAGE, billed=Usage(), status=Status.FAILED)),
    Story(
        "a proposal a window beyond nothing",
        of(sale, Usage(prompt_tokens=900, output_tokens=256), countersign=False),
        notes=("awaiting-countersignature",),
    ),
    Story("signed a thousand tokens beyond the last voucher", of(sale, Usage(prompt_tokens=9, output_tokens=1256))),
    Story("completed for nothing, without a token", of(metered, Usage(prompt_tokens=9), amount_pico=0)),
    Story(
        "completed for nothing, too late",
        of(metered, USAGE, amount_pico=0, first_token_ms=30_000 + CLOCKS_MS + 1, total_ms=200_000),
    ),
    Story("the first token 120 s late", of(sale, first_token_ms=30_000 + CLOCKS_MS, total_ms=200_000)),
    Story(
        "completed with a meter's counts and more bytes",
        of(metered, USAGE, response_commitment=digest("and the end of the stream")),
    ),
    Story(
        "interrupted, the commitment lost",
        of(metered, USAGE, status=Status.INTERRUPTED, response_commitment=bytes(32)),
    ),
    Story("as much as the credit", within({"channel_changes": {"credit_limit_pico": AMOUNT}})),
    Story("as fast as the hardware", rate(147)),
    Story("a token a second too fast for the hardware", rate(146), ("too-fast",)),
    Story(
        "too fast for one answer, and nobody shows how many were asked for", forged_opening, ("commitment-mismatch",)
    ),
    Story(
        "receipts 120 s out of order",
        lambda: both(sale(grid=sale(issued_ms=START_MS + DAY_MS), issued_ms=START_MS + DAY_MS - CLOCKS_MS)),
    ),
    # Disputes, openings.
    Story("disputed in the last millisecond", of(disputed_after, 14 * DAY_MS + CLOCKS_MS)),
    Story(
        "unanswered for as long as may be",
        unanswered(0),
        now_ms=START_MS + 30 * DAY_MS,
    ),
    accepted_and_forgotten(START_MS + 90 * DAY_MS),
    Story("rejected, with another amount", rejected),
    Story("a receipt a day after an answer", of(billed_after_the_answer, DAY_MS)),
    Story("mentioned both", lambda: mentioned()),
    Story("a mention about a receipt that comes later", mention_of_a_later_receipt, ("wrong-dispute", "wrong-mention")),
    Story("what was asked, shown", of(opened)),
    Story("what was answered, shown", lambda: both(opened(b"data: 1\n\n", subject="response"))),
    Story("an answer whose commitment was lost, shown", of(zero_response)),
    # Batch orders.
    Story("a batch order, one of its requests failed, one cancelled", of(batch)),
    Story("a batch order in which nothing was taken", of(batch, ())),
    Story("a batch order whose requests owe nothing", of(batch, LINES[1:2])),
    Story("a tick that fell when a request failed", of(batch, metered=(used(150, 80, 30), used(100, 60, 30)))),
    Story("below a meter that counts what failed", of(batch, LINES[:2], metered=(used(150, 80, 30),))),
    Story("a batch order by voucher, what was asked shown", of(opened_by_voucher)),
    Story("a request of a batch order and its answer, shown", of(opened_in_batch, 2)),
    Story(
        "a request of a batch 120 s too late",
        of(batch, (line(0, used(9, 9), first_token_ms=30_000 + CLOCKS_MS, total_ms=200_000),)),
    ),
    Story("a request of a batch too late, and not billed", of(batch, (line(0, used(9, 9), Status.LATE),))),
    # Cards and keys.
    Story("a key used until 120 s after its term", of(sold_until, -CLOCKS_MS)),
    Story("a card by the successor", successor),
    Story("a term that a later card extends", renewed),
    Story("a later card that does not name the key", named_no_more),
    Story("two cards with one number that follow one", two_that_follow_with_one_number, ("two-records-one-slot",)),
    Story("a channel that goes on, with its balance", of(continued)),
    # Settlement.
    Story("two statements, an invoice and its payment", lambda: both(settled()[0])),
    Story("the same with VAT", lambda: both(settled(2100)[0])),
    Story("a credit of 120 s later, counted", lambda: both(credited(-CLOCKS_MS, is_counted=True))),
    Story("a credit of just before, not counted", lambda: both(credited(CLOCKS_MS - 1, is_counted=False))),
    Story("half a cent six times", of(half_cents, 6)),
    Story("a dispute of 120 s later, held", of(held, -CLOCKS_MS, is_counted=True)),
    Story("a dispute of just before, not held", of(held, CLOCKS_MS - 1, is_counted=False)),
    Story("held, and then credited", lambda: both(held_then(Decision.ACCEPTED)[0])),
    Story("held, and then released", lambda: both(held_then(Decision.REJECTED)[0])),
    Story("a dispute that never arrived, not held", never_arrived, notes=("not-received",)),
    Story("a receipt billed too high, disputed and credited", of(overbilled), ("wrong-amount",)),
    Story("an amount waived where no token came", of(waived)),
    Story("a receipt 120 s after its period", of(stated_early)),
    Story("statements of no receipts", of(idle_months)),
    Story("a statement missing, and its receipts again after it", overlapping, OVERLAP),
    Story("two categories of VAT", of(two_rates)),
    Story("paid ahead, and used up", of(ahead)),
    Story("a payment returned by the bank, and made again", returned),
    Story("an entry of the bank that pays two invoices", of(one_entry)),
    Story("booked for the wrong invoice, and put right", of(put_right)),
    Story("set off both ways, and counted", all_four),
    Story("a set-off counted one statement late", lambda: all_four(late=True)),
    Story("a set-off, of one channel alone", of_one_side),
    Story("a set-off, in one file of each operator", of_one_key_each),
    Story("a set-off that was proposed and lapsed", lapsed, now_ms=START_MS + 60 * DAY_MS),
    Story("a set-off by an operator of two keys", by_two_keys, notes=("not-received",)),
    Story("a cycle that was settled", cycle_settled),
    Story("a cycle that was not complete in time", lambda: cycle_settled(verdicts=(False,), counted=0)),
    Story(
        "a cycle of which the timekeeper said both",
        lambda: cycle_settled(verdicts=(True, False)),
        ("two-records-one-slot",),
    ),
    Story("the records of a timekeeper", cycle_of_a_timekeeper_alone),
    Story("a credit note, refunded", of(refunded)),
    Story("a credit note, taken off the next payment", of(netted)),
    Story("an invoice unpaid after its term", of(overdue), notes=("invoice-open",), now_ms=START_MS + 300 * DAY_MS),
    Story("the same payment a day later", lambda: paid_twice(DAY_MS)),
    Story("the same payment just within a day", lambda: paid_twice(DAY_MS - 1), ("payment-mismatch",)),
    Story("an invoice taken back and made again", taken_back),
    Story("a payment of 120 s later, counted", of(paid_at, CLOCKS_MS, counted=True)),
    Story("a payment of just before, not counted yet", of(paid_at, -1000, counted=False, third=True)),
    Story("as much paid ahead as a receipt takes", of(just_enough_ahead)),
    Story("a receipt credited before the next", of(credited_before), notes=("dispute-not-mentioned",)),
    Story("half of a statement paid, with its VAT", of(half_paid_by_its_vat), notes=("invoice-open",)),
    # Logs.
    Story(
        "a receipt that awaits its signature, and its log",
        unsigned_and_logged,
        notes=("awaiting-countersignature",),
        demands=ALL_PROOFS,
    ),
    Story("the log's own cosignature of yesterday", own_word_of_yesterday),
    Story("a witness 120 s before the receipt", lambda: seen(-120)),
    Story("a stranger's log forked", stranger_s_fork, ("log-forked",)),
    Story("a cosignature over another checkpoint", bad_cosignature),
    Story(
        "one witness of yesterday, one of long ago",
        lambda: witnessed_at(START_MS + 8 * DAY_MS - CLOCKS_MS),
        now_ms=START_MS + 9 * DAY_MS,
        demands=TWO_WITNESSES,
    ),
)


def mentioned() -> list[LinesBundle]:
    """Three receipts; the last mentions the dispute of the second, and its answer."""
    grid, _, dispute = disputed()
    answer = grid.keep(make_answer(dispute))
    billed_later(grid, dispute.id, answer.id, after_ms=2 * DAY_MS)
    return both(grid)
