"""More cases of rules that have several clauses: each breaks one clause and keeps the others; see `audit_cases`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE
from p2pgrid.proto.messages import ModelOffer, Receipt, Status, Tariff, Usage
from p2pgrid.proto.record import PARTIES, Record, Role, Signed, sign_message
from tests.factories import line_of, make_answer, make_dispute, make_invoice
from tests.proto.audit_cases import UNCLEAR, USAGE, C, P, both, last_receipt, two_receipts, vector
from tests.proto.audit_cases_disputes import disputed
from tests.proto.audit_cases_keys import card, peer, sold_under
from tests.proto.audit_cases_log import ALL_PROOFS, TWO_WITNESSES, WITNESSES, attached, log_of, note_of, proved
from tests.proto.audit_cases_settlement import contested, invoiced, made, paid, sold, statement
from tests.proto.chains import DAY_MS, START_MS, TARIFF, Dealings, LinesBundle, bundle_of, digest, key, make_offer

CLOCKS_MS = 120_000
LESS = msgspec.structs.replace(USAGE, output_tokens=150)


def sale(
    usage: Usage = USAGE,
    status: Status = Status.COMPLETED,
    *,
    order: dict[str, Any] | None = None,
    countersign: bool = True,
    grid: Dealings | None = None,
    **receipt: Any,
) -> Dealings:
    """One order and its receipt, without a tick; changes to either."""
    grid = grid or Dealings()
    grid.receipt(grid.order(**order or {}), usage, status, countersign=countersign, **receipt)
    return grid


def metered(
    *usages: Usage, status: Status = Status.COMPLETED, billed: Usage | None = None, vouched: int = 99, **changes: Any
) -> Dealings:
    """One order with a tick for each of the usages, the first `vouched` of them accepted, and its receipt."""
    grid = Dealings()
    order = grid.order(**changes.pop("order", {}))
    for number, usage in enumerate(usages):
        meter = grid.meter(order, usage)
        if number < vouched:
            grid.voucher(meter)
    grid.receipt(order, billed or usages[-1], status, **changes)
    return grid


def variant(
    receipt: Signed[Receipt], grid: Dealings, *, is_lower: bool, roles: tuple[Role, ...] = PARTIES
) -> Signed[Any]:
    """Another record for the receipt's slot whose id is lower, or higher, than the receipt's."""
    keys = {Role.PROVIDER: grid.provider, Role.CLIENT: grid.client}
    for total_ms in range(901, 1000):
        other = sign_message(msgspec.structs.replace(receipt.message, total_ms=total_ms), roles[0], keys[roles[0]])
        if (other.id < receipt.id) is is_lower:
            return other.countersigned(roles[1], keys[roles[1]]) if len(roles) > 1 else other
    raise AssertionError("one of a hundred ids is lower")


@vector("malformed", C)
def unreadable_line_of_a_file_with_another_name() -> list[LinesBundle]:
    provider, client = two_receipts().bundles()
    return [bundle_of(provider, Role.PROVIDER), bundle_of([*client[:-1], client[-1][:-10]], Role.CLIENT, "mine.jsonl")]


@vector("two-records-one-slot", P)
def the_one_with_both_signatures_stands_though_its_id_is_higher() -> list[LinesBundle]:
    grid = two_receipts()
    grid.keep(variant(last_receipt(grid), grid, is_lower=True, roles=(Role.PROVIDER,)), by="provider")
    return both(grid)


@vector("two-records-one-slot", P)
def the_one_that_is_named_stands_though_it_has_one_signature() -> list[LinesBundle]:
    grid = Dealings()
    grid.deal(output=200)
    named = grid.deal(output=200, countersign=False)
    grid.deal(output=200)
    grid.keep(make_dispute(named))  # it was not forgotten
    grid.keep(variant(named, grid, is_lower=True), by="provider")
    return both(grid)


# -- orders -------------------------------------------------------------------------------------------------------


@vector("outside-channel-term", P)
def order_before_the_channel() -> list[LinesBundle]:
    return both(sale(order={"ordered_ms": START_MS - CLOCKS_MS - 1}))


@vector("outside-channel-term", P)
def order_just_after_the_channel() -> list[LinesBundle]:
    grid = Dealings(channel_changes={"expires_ms": START_MS + 1})
    return both(sale(order={"ordered_ms": START_MS + CLOCKS_MS + 2}, grid=grid))


@vector("not-in-force", P)
def order_before_the_offer() -> list[LinesBundle]:
    grid = Dealings(offer_changes={"valid_from_ms": START_MS + 1 + CLOCKS_MS})
    return both(sale(order={"ordered_ms": START_MS}, grid=grid))


@vector("not-in-force", P)
def order_just_after_the_offer() -> list[LinesBundle]:
    grid = Dealings(offer_changes={"valid_until_ms": START_MS + 1})
    return both(sale(order={"ordered_ms": START_MS + CLOCKS_MS + 2}, grid=grid))


@vector("not-on-offer", P)
def offer_in_another_currency() -> list[LinesBundle]:
    return both(sale(grid=Dealings(offer_changes={"currency": "CHF"})))


@vector("over-caps", P)
def tick_beyond_the_cap() -> list[LinesBundle]:
    caps = {"max_output_tokens": 160}
    return both(metered(LESS, USAGE, vouched=1, billed=LESS, status=Status.INTERRUPTED, order=caps))


@vector("over-caps", P)
def tick_beyond_the_amount() -> list[LinesBundle]:
    most = {"max_amount_pico": 70 * 200_000 + 30 * 50_000 + 160 * 900_000}
    return both(metered(LESS, USAGE, vouched=1, billed=LESS, status=Status.INTERRUPTED, order=most))


@vector("over-caps", P)
def one_token_beyond_the_cap() -> list[LinesBundle]:
    return both(sale(order={"max_output_tokens": 199}))


@vector("over-caps", P)
def one_pico_beyond_the_amount() -> list[LinesBundle]:
    return both(sale(order={"max_amount_pico": 70 * 200_000 + 30 * 50_000 + 200 * 900_000 - 1}))


@vector("prompt-count", P)
def tick_with_another_prompt_count() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order(prompt_tokens=99)
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, Usage(), Status.FAILED)
    return both(grid)


@vector("usage-falls", P)
def cached_count_falls() -> list[LinesBundle]:
    later = Usage(prompt_tokens=100, cached_tokens=29, output_tokens=210)
    return both(metered(USAGE, later))


@vector("wrong-voucher", C)
def voucher_with_another_count() -> list[LinesBundle]:
    return both(vouched(usage=LESS))


@vector("wrong-voucher", C)
def voucher_with_another_amount() -> list[LinesBundle]:
    return both(vouched(amount_pico=7))


@vector("wrong-voucher", C)
def voucher_with_another_tick() -> list[LinesBundle]:
    return both(vouched(tick=2))


def vouched(**changes: Any) -> Dealings:
    """One order with one tick, whose voucher is changed."""
    grid = Dealings()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE), **changes)
    grid.receipt(order, USAGE)
    return grid


@vector("wrong-order", P)
def another_offer_than_the_order_s() -> list[LinesBundle]:
    return both(sale(offer=digest("another offer")))


@vector("wrong-order", P, proven=False)
def another_order_of_that_number() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    named = sign_message(msgspec.structs.replace(order.message, max_output_tokens=1999), Role.CLIENT, grid.client)
    grid.receipt(Signed(order.message, named.record, named.id, named.signers), USAGE)
    return both(grid)


@vector("below-meter", P)
def smaller_prompt_than_metered() -> list[LinesBundle]:
    return both(metered(USAGE, billed=msgspec.structs.replace(USAGE, prompt_tokens=99)))


@vector("below-meter", P)
def fewer_cached_than_metered() -> list[LinesBundle]:
    return both(metered(USAGE, billed=msgspec.structs.replace(USAGE, cached_tokens=29)))


@vector("below-meter", P)
def one_token_less_than_metered_and_not_acknowledged() -> list[LinesBundle]:
    return both(metered(USAGE, vouched=0, billed=msgspec.structs.replace(USAGE, output_tokens=199)))


@vector("below-meter", P, proven=False)
def interrupted_below_its_voucher() -> list[LinesBundle]:
    return both(metered(USAGE, billed=LESS, status=Status.INTERRUPTED))


@vector("beyond-window", P)
def proposal_one_token_beyond_the_window() -> list[LinesBundle]:
    return both(sale(Usage(prompt_tokens=9, output_tokens=257), countersign=False))


@vector("wrong-amount", P)
def completed_for_nothing_though_it_came() -> list[LinesBundle]:
    return both(metered(USAGE, amount_pico=0))


@vector("refund-rule", P)
def first_token_just_too_late() -> list[LinesBundle]:
    return both(sale(first_token_ms=30_000 + CLOCKS_MS + 1, total_ms=200_000))


@vector("over-credit-limit", P)
def one_pico_beyond_the_credit() -> list[LinesBundle]:
    limit = 70 * 200_000 + 30 * 50_000 + 200 * 900_000 - 1
    return both(sale(grid=Dealings(channel_changes={"credit_limit_pico": limit})))


@vector("time-backwards", P)
def receipt_just_before_its_order() -> list[LinesBundle]:
    grid = Dealings()
    later = {"ordered_ms": START_MS + DAY_MS, "first_token_deadline_ms": START_MS + 2 * DAY_MS}
    order = grid.order(**later)
    grid.receipt(order, USAGE, issued_ms=START_MS + DAY_MS - CLOCKS_MS - 1)
    return both(grid)


@vector("time-backwards", P)
def tick_before_its_order() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    grid.meter(order, USAGE, metered_ms=order.message.ordered_ms - CLOCKS_MS - 1)
    grid.receipt(order, USAGE)
    return both(grid)


# -- disputes -----------------------------------------------------------------------------------------------------


@vector("dispute-unanswered", P, now_ms=START_MS + 60 * DAY_MS)
def late_dispute_of_a_receipt_that_was_never_signed() -> list[LinesBundle]:
    return both(disputed(countersign=False, disputed_ms=START_MS + 40 * DAY_MS)[0])


def unanswered(after_ms: int) -> Callable[[], list[LinesBundle]]:
    """A dispute made so that its answer is due `after_ms` before START_MS + 30 days."""
    return lambda: both(disputed(disputed_ms=START_MS + 16 * DAY_MS - CLOCKS_MS - after_ms, countersign=False)[0])


@vector("dispute-unanswered", P, now_ms=START_MS + 30 * DAY_MS)
def dispute_unanswered_for_a_millisecond_too_long() -> list[LinesBundle]:
    return unanswered(1)()


@vector("dispute-late", C)
def dispute_a_millisecond_too_late() -> list[LinesBundle]:
    return both(disputed_after(14 * DAY_MS + CLOCKS_MS + 1))


def disputed_after(ms: int) -> Dealings:
    """A signed receipt that the client disputes so long after it was issued."""
    grid = two_receipts()
    receipt = grid.receipts[-1].countersigned(Role.CLIENT, grid.client)
    grid.keep(make_dispute(receipt, disputed_ms=receipt.message.issued_ms + ms))
    return grid


@vector("wrong-dispute", C)
def dispute_for_a_pico_more_than_billed() -> list[LinesBundle]:
    grid = two_receipts()
    receipt = grid.receipts[-1].countersigned(Role.CLIENT, grid.client)
    grid.keep(make_dispute(receipt, owed_pico=receipt.message.amount_pico + 1))
    return both(grid)


@vector("dispute-not-mentioned", P)
def not_mentioned_a_day_and_a_millisecond_later() -> list[LinesBundle]:
    return both(billed_after_the_answer(DAY_MS + 1))


def billed_after_the_answer(ms: int) -> Dealings:
    """A dispute, its answer, and a receipt so long after it that mentions neither."""
    grid, _, dispute = disputed()
    answer = grid.keep(make_answer(dispute))
    grid.now_ms = answer.message.answered_ms
    grid.receipt(grid.order(), USAGE, issued_ms=answer.message.answered_ms + ms)
    return grid


# -- cards --------------------------------------------------------------------------------------------------------


@vector("key-expired", P)
def key_used_a_millisecond_too_long() -> list[LinesBundle]:
    return both(sold_until(-CLOCKS_MS - 1))


def sold_until(margin_ms: int) -> Dealings:
    """The key's term ends so long after the last receipt, which is at START_MS + 2 days and a bit."""
    last_ms = sold_under(card(), after_ms=2 * DAY_MS).receipts[-1].message.issued_ms
    return sold_under(card(peers=(peer(key("provider"), valid_until_ms=last_ms + margin_ms),)), after_ms=2 * DAY_MS)


@vector("key-expired", P)
def term_cut_by_a_later_card() -> list[LinesBundle]:
    first = card()
    shorter = peer(key("provider"), valid_until_ms=START_MS + DAY_MS)
    return both(sold_under(first, card(sequence=2, previous=first.id, peers=(shorter,)), after_ms=2 * DAY_MS))


# -- settlement ---------------------------------------------------------------------------------------------------


@vector("statement-mismatch", P)
def another_total_and_what_follows_from_it() -> list[LinesBundle]:
    grid = sold()
    right = made(grid, grid.receipts).message
    wrong = msgspec.structs.replace(right.lines[0], amount_pico=right.total_pico + 1)
    statement(grid, 1, 5, lines=(wrong,), total_pico=right.total_pico + 1)
    return both(grid)


@vector("statement-mismatch", P)
def lines_that_do_not_make_the_total() -> list[LinesBundle]:
    grid = sold()
    total = sum(r.message.amount_pico for r in grid.receipts)
    statement(grid, 1, 5, total_pico=total + 1)
    return both(grid)


@vector("statement-mismatch", P, proven=False)
def credits_of_nothing() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, credits_pico=1)
    return both(grid)


def credited(answered_before_ms: int, *, is_counted: bool) -> Dealings:
    """A dispute accepted so long before the statement was made, and whether it is a credit there, or held."""
    grid = sold()
    stated_ms = grid.now_ms + DAY_MS
    amount = contested(grid, answered_ms=stated_ms - answered_before_ms)
    statement(grid, 1, 5, stated_ms=stated_ms, **{"credits_pico" if is_counted else "held_pico": amount})
    return grid


@vector("statement-mismatch", P)
def credit_of_before_not_counted() -> list[LinesBundle]:
    return both(credited(CLOCKS_MS, is_counted=False))


@vector("statement-mismatch", P, proven=False)
def credit_of_later_counted() -> list[LinesBundle]:
    return both(credited(-CLOCKS_MS - 1, is_counted=True))


def held(disputed_before_ms: int, *, is_counted: bool) -> Dealings:
    """A dispute made so long before the statement, which holds it back or not."""
    grid = sold()
    stated_ms = grid.now_ms + DAY_MS
    amount = contested(grid, disputed_ms=stated_ms - disputed_before_ms)
    statement(grid, 1, 5, stated_ms=stated_ms, held_pico=amount if is_counted else 0)
    return grid


@vector("statement-mismatch", P, proven=False)
def dispute_of_before_not_held() -> list[LinesBundle]:
    return both(held(CLOCKS_MS, is_counted=False))


@vector("statement-mismatch", P, proven=False)
def dispute_of_later_held() -> list[LinesBundle]:
    return both(held(-CLOCKS_MS - 1, is_counted=True))


def half_cents(net_cents: int) -> Dealings:
    """An answer that comes to half a cent in each of its three counts, of each of two models; its statement."""
    half = Tariff(input_upm=5 * 10**9, cached_input_upm=5 * 10**9, output_upm=5 * 10**9)
    of_one = make_offer(key("provider")).models[0]
    models: tuple[ModelOffer, ...] = tuple(
        msgspec.structs.replace(of_one, model=name, tariff=half) for name in ("a", "b")
    )
    grid = Dealings(offer_changes={"models": models})
    usage = Usage(prompt_tokens=2, cached_tokens=1, output_tokens=1)
    for name in ("a", "b"):
        order = grid.order(model=name, max_amount_pico=10**13)
        grid.receipt(order, usage, model=name, amount_pico=15 * 10**9)
    lines = tuple(line_of([receipt], half) for receipt in grid.receipts)
    statement(grid, 1, 2, lines=lines, net_cents=net_cents)
    return grid


@vector("statement-mismatch", P)
def rounded_down() -> list[LinesBundle]:
    return both(half_cents(0))


@vector("statement-mismatch", P)
def rounded_once_for_all_lines() -> list[LinesBundle]:
    return both(half_cents(3))


@vector("statement-mismatch", P)
def rounded_once_for_each_line() -> list[LinesBundle]:
    return both(half_cents(4))


@vector("payment-mismatch", P)
def payment_of_another_statement_s_invoice() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 3)
    invoice = grid.keep(make_invoice(first))
    second = statement(grid, 4, 5, first)
    paid(grid, invoice)
    paid(grid, invoice, statement=second.id, reference="AGAIN", amount_cents=1)
    return both(grid)


@vector("payment-mismatch", UNCLEAR)
def a_cent_too_much() -> list[LinesBundle]:
    grid, invoice = invoiced()
    for reference, cents in (("P2PGRID-1", invoice.message.gross_cents), ("P2PGRID-2", 1)):
        paid(grid, invoice, reference=reference, amount_cents=cents)
    return both(grid)


@vector("record-missing", P)
def payment_counted_of_later() -> list[LinesBundle]:
    grid = paid_at(CLOCKS_MS + 1, counted=True)
    return [bundle_of(grid.bundles()[0], Role.PROVIDER)]


def paid_at(after_ms: int, *, counted: bool, third: bool = False) -> Dealings:
    """A payment booked so long after the second statement was made, which counts it or not; a third that does not."""
    grid = sold(6)
    first = statement(grid, 1, 3)
    invoice = grid.keep(make_invoice(first))
    stated_ms = invoice.message.issued_ms + 5 * DAY_MS
    cents = paid(grid, invoice, booked_ms=stated_ms + after_ms).message.amount_cents
    second = statement(grid, 4, 5, first, stated_ms=stated_ms, payments_cents=cents if counted else 0)
    if third:
        statement(grid, 6, 6, second, stated_ms=stated_ms + 9 * DAY_MS)
    return grid


@vector("statement-mismatch", P, proven=False)
def payment_left_out_by_the_statement_after() -> list[LinesBundle]:
    return both(paid_at(-CLOCKS_MS, counted=False, third=True))


# -- logs ---------------------------------------------------------------------------------------------------------


@vector("after-checkpoint", P)
def one_witness_saw_it_too_early() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    seen_s = grid.receipts[1].message.issued_ms // 1000
    early = log.checkpoint(0, WITNESSES[:1], (seen_s - 121) * 1000)
    late = log.checkpoint(0, WITNESSES[1:], (seen_s + 60) * 1000)
    return attached(grid, *proved(grid, log, early, 2), note_of(late))


@vector("not-logged", P, log_demands=ALL_PROOFS)
def proof_in_the_client_s_log_alone() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid, secret=grid.client)
    return attached(grid, *proved(grid, log, log.checkpoint()))


@vector("too-few-witnesses", P, log_demands=TWO_WITNESSES)
def only_a_smaller_checkpoint_was_witnessed() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    return attached(grid, note_of(log.checkpoint(2, WITNESSES, grid.now_ms)), note_of(log.checkpoint()))


@vector("checkpoint-stale", P, log_demands=TWO_WITNESSES, now_ms=START_MS + 9 * DAY_MS)
def witnessed_a_second_too_long_ago() -> list[LinesBundle]:
    return witnessed_at(START_MS + 8 * DAY_MS - CLOCKS_MS - 1000)


def witnessed_at(latest_ms: int) -> list[LinesBundle]:
    """Two witnesses, one of them at START_MS, the other then."""
    grid = two_receipts()
    log = log_of(grid)
    first, second = WITNESSES
    notes = (log.checkpoint(0, (first,), START_MS), log.checkpoint(0, (second,), latest_ms))
    return attached(grid, *map(note_of, notes))


@vector("bad-signature", C)
def one_of_two_signatures_of_the_log_is_bad() -> list[LinesBundle]:
    grid = two_receipts()
    note = log_of(grid).checkpoint().note
    (good,) = note.signatures
    bad = replace(good, signature=good.signature[:-1] + bytes([good.signature[-1] ^ 1]))
    return attached(grid, Record(CHECKPOINT_TYPE, note.with_signatures(bad).to_bytes(), ()))


assert TARIFF.output_upm == 900_000, "amounts above are written out"
