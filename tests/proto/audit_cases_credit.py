"""Cases of the credit limit, and what payments and credits make of it; see `audit_cases`."""

from __future__ import annotations

from typing import Any

from p2pgrid.proto.messages import Usage
from p2pgrid.proto.record import Role
from tests.factories import make_answer, make_dispute, make_invoice
from tests.proto.audit_cases import UNCLEAR, P, both, vector
from tests.proto.audit_cases_settlement import paid, paid_ahead, statement
from tests.proto.chains import DAY_MS, START_MS, TARIFF, Dealings, LinesBundle, bundle_of

CENT = 10**10
EACH = 50 * CENT
"""What each receipt here costs: 50 cents."""
LIMIT = 2 * EACH
CLOCKS_MS = 120_000


def lent(count: int = 3, **channel: Any) -> Dealings:
    """So many receipts of 50 cents, a day after one another, on a limit of two of them."""
    grid = Dealings(
        channel_changes={"credit_limit_pico": LIMIT, **channel},
        offer_changes={"valid_until_ms": START_MS + 300 * DAY_MS},
    )
    for _ in range(count):
        buy(grid)
    return grid


def buy(grid: Dealings, after_ms: int = DAY_MS) -> Dealings:
    """One receipt more."""
    grid.now_ms += after_ms
    usage = Usage(output_tokens=EACH // TARIFF.output_upm + 1)
    order = grid.order(max_output_tokens=1_000_000, max_amount_pico=EACH + CENT)
    grid.receipt(order, Usage(output_tokens=usage.output_tokens - 1))
    return grid


@vector("over-credit-limit", P)
def paid_too_little_ahead() -> list[LinesBundle]:
    """Of 62 cents with 27 % in them 48.8 are free: less than the third receipt costs."""
    grid = lent(2)
    paid_ahead(grid, amount_cents=62, booked_ms=grid.now_ms)
    return both(buy(grid))


@vector("over-credit-limit", P)
def paid_five_days_too_late() -> list[LinesBundle]:
    grid = lent(3)
    paid_ahead(grid, amount_cents=1000, booked_ms=grid.now_ms + 5 * DAY_MS)
    return both(grid)


@vector("over-credit-limit", P)
def a_credit_of_after() -> list[LinesBundle]:
    grid = lent(3)
    dispute = grid.keep(make_dispute(grid.receipts[0], disputed_ms=grid.now_ms + CLOCKS_MS))
    grid.keep(make_answer(dispute, answered_ms=grid.now_ms + CLOCKS_MS + 1))
    return both(grid)


def stated_and_paid(cents: int, **changes: Any) -> Dealings:
    """Two receipts, stated with 21 % on them, so much of which is paid; then a third."""
    grid = lent(2)
    first = statement(grid, 1, 2, rate_bp=2100)
    grid.keep(make_invoice(first))
    invoice = make_invoice(first)
    paid(grid, invoice, amount_cents=cents, **changes)
    grid.now_ms = first.message.stated_ms + DAY_MS
    return buy(grid)


@vector("over-credit-limit", P)
def a_cent_less_than_the_third_receipt_takes() -> list[LinesBundle]:
    return both(stated_and_paid(60))


@vector("credit-not-shown", UNCLEAR)
def the_client_alone_shows_no_payment() -> list[LinesBundle]:
    grid = lent(3)
    return [bundle_of(grid.bundles()[1], Role.CLIENT)]


@vector("credit-not-shown", UNCLEAR)
def a_file_of_nobody_knows_whom() -> list[LinesBundle]:
    return [bundle_of(lent(3).bundles()[1])]


def just_enough_ahead() -> Dealings:
    """64 cents with 27 % in them free 50."""
    grid = lent(2)
    paid_ahead(grid, amount_cents=64, booked_ms=grid.now_ms + 4 * DAY_MS)
    return buy(grid)


def credited_before() -> Dealings:
    grid = lent(2)
    dispute = grid.keep(make_dispute(grid.receipts[0], disputed_ms=grid.now_ms))
    grid.keep(make_answer(dispute, answered_ms=grid.now_ms))
    return buy(grid)


def half_paid_by_its_vat() -> Dealings:
    """61 of 121 cents pay for half of two receipts."""
    return stated_and_paid(61)
