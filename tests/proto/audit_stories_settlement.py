"""Dealings that are settled in other ways than the plain one, and stay within the rules; see `audit_stories`."""

from __future__ import annotations

import msgspec

from p2pgrid.proto.messages import Usage
from p2pgrid.proto.statement import PaymentKind
from tests.factories import (
    CLIENT,
    PROVIDER,
    make_answer,
    make_channel,
    make_dispute,
    make_invoice,
    make_set_off,
    set_off_side,
    vat_line,
)
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import (
    contested,
    invoiced,
    made,
    paid,
    paid_ahead,
    sold,
    sold_over_days,
    statement,
    without,
)
from tests.proto.chains import DAY_MS, Dealings, LinesBundle, digest


def never_arrived() -> list[LinesBundle]:
    """The client's dispute is in its own file alone; the provider's statement does not know of it."""
    grid = sold()
    contested(grid, by="client")
    statement(grid, 1, 5)
    return both(grid)


def overbilled() -> Dealings:
    """A receipt bills two cents more than its tokens cost; the client disputes them, and they are credited."""
    grid = sold(2)
    order = grid.order(max_output_tokens=100_000, max_amount_pico=10**12)
    right = 70 * 200_000 + 30 * 50_000 + 50_000 * 900_000
    usage = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=50_000)
    receipt = grid.receipt(order, usage, amount_pico=right + 2 * 10**10)
    dispute = grid.keep(make_dispute(receipt, owed_pico=right, reason="wrong-amount"))
    grid.keep(make_answer(dispute))
    last = statement(grid, 1, 3, credits_pico=2 * 10**10)
    assert last.message.net_cents == 9
    return grid


def waived() -> Dealings:
    """The provider bills nothing for a prompt to which no token came: its tokens are in no line."""
    grid = sold(1)
    grid.receipt(grid.order(), Usage(prompt_tokens=100, cached_tokens=30), amount_pico=0)
    (line,) = made(grid, grid.receipts[:1]).message.lines
    statement(grid, 1, 2, lines=(msgspec.structs.replace(line, receipts=2),))
    return grid


def stated_early() -> Dealings:
    grid = sold_over_days()
    statement(grid, 1, 2, until_ms=grid.receipts[1].message.issued_ms - 120_000)
    return grid


def idle_months() -> Dealings:
    """A statement before anything was sold, one with receipts, and two after."""
    grid = sold()
    last = grid.keep(made(grid, [], until_ms=grid.channel.message.opened_ms + 1))
    last = statement(grid, 1, 5, last)
    for _ in range(2):
        last = grid.keep(made(grid, [], last))
        assert last.message.closing_cents == 18
    return grid


OVERLAP = ("receipt-in-two-statements", "record-missing")


def overlapping() -> list[LinesBundle]:
    """Of three statements the second is not there, and the third begins within the first."""
    grid = sold()
    second = statement(grid, 4, 4, statement(grid, 1, 3))
    statement(grid, 3, 5, second)
    return without(grid, second.id)


def two_rates() -> Dealings:
    grid = sold(7)
    assert made(grid, grid.receipts).message.net_cents == 27
    last = statement(grid, 1, 7, vat=(vat_line(20, 2100), vat_line(7)))
    assert last.message.gross_cents == 31  # 4.2 of VAT
    paid(grid, grid.keep(make_invoice(last)))
    return grid


def ahead() -> Dealings:
    """Money for one invoice and a half comes first; the rest of the second is paid."""
    grid = sold()
    before = paid_ahead(grid, amount_cents=13, booked_ms=grid.now_ms).message
    first = statement(grid, 1, 3, payments_cents=13)
    assert first.message.closing_cents == 9 - before.amount_cents
    second = statement(grid, 4, 5, first)
    grid.keep(make_invoice(first))
    paid(grid, grid.keep(make_invoice(second)), amount_cents=second.message.closing_cents)
    return grid


def returned() -> list[LinesBundle]:
    """The bank books both on one day."""
    grid, invoice = invoiced()
    cents = invoice.message.gross_cents
    came = paid(grid, invoice)
    later_ms = came.message.booked_ms + DAY_MS
    back = {"amount_cents": -cents, "kind": PaymentKind.RETURNED}
    paid(grid, invoice, **back, booked_ms=later_ms)
    paid(grid, invoice, booked_ms=later_ms, reference="P2PGRID-2")
    return both(grid)


def one_entry() -> Dealings:
    grid = sold()
    first = statement(grid, 1, 3)
    second = statement(grid, 4, 5, first)
    for each in (first, second):
        paid(grid, grid.keep(make_invoice(each)), entry=digest("one entry"), reference="BOTH")
    return grid


def put_right() -> Dealings:
    """All that came for the second invoice was booked for the first, again; it is moved, back, and moved once more."""
    grid = sold()
    first = statement(grid, 1, 3)
    second = statement(grid, 4, 5, first)
    right, wrong = grid.keep(make_invoice(second)), grid.keep(make_invoice(first))
    paid(grid, wrong)
    came = paid(grid, wrong, reference="P2PGRID-2").message
    for later, cents in enumerate((came.amount_cents, -came.amount_cents, came.amount_cents), start=1):
        moved = {"kind": PaymentKind.REALLOCATED, "entry": came.entry, "booked_ms": came.booked_ms + later}
        paid(grid, wrong, **moved, amount_cents=-cents)
        paid(grid, right, **moved, amount_cents=cents)
    return grid


def set_off() -> Dealings:
    """An invoice is set off against what the provider owes in a channel that is not here."""
    grid = sold()
    first = statement(grid, 1, 3)
    invoice = grid.keep(make_invoice(first))
    back = make_channel(CLIENT, PROVIDER, name="back")
    sides = (set_off_side(channel, (invoice, 9)) for channel in (grid.channel, back))
    agreed_ms = first.message.stated_ms + DAY_MS
    grid.keep(make_set_off(*sides, [PROVIDER, CLIENT], agreed_ms=agreed_ms))
    second = statement(grid, 4, 5, first, set_off_cents=9, stated_ms=agreed_ms + DAY_MS)
    paid(grid, grid.keep(make_invoice(second)))
    return grid


def credited_later(*, refund: bool) -> Dealings:
    """An invoice that is paid, and a credit note for a third of it in the next period."""
    grid = sold()
    amount = contested(grid, answered_ms=grid.now_ms + 20 * DAY_MS, disputed_ms=grid.now_ms + 10 * DAY_MS)
    first = statement(grid, 1, 4, rate_bp=2100)
    paid(grid, grid.keep(make_invoice(first)))
    cents = first.message.gross_cents
    last_ms = grid.now_ms + 30 * DAY_MS
    taken = {"credits_pico": amount, "stated_ms": last_ms, "payments_cents": cents}
    if refund:
        note = grid.keep(make_invoice(grid.keep(made(grid, [], first, rate_bp=2100, **taken))))
        paid(grid, note)
    else:
        empty = grid.keep(made(grid, [], first, rate_bp=2100, **taken))
        grid.keep(make_invoice(empty))
        last = statement(grid, 5, 5, empty, rate_bp=2100, stated_ms=last_ms + DAY_MS)
        assert 0 <= last.message.closing_cents < last.message.gross_cents
        if last.message.closing_cents:
            paid(grid, grid.keep(make_invoice(last)), amount_cents=last.message.closing_cents)
    return grid


def refunded() -> Dealings:
    return credited_later(refund=True)


def netted() -> Dealings:
    return credited_later(refund=False)


def overdue() -> Dealings:
    grid, _ = invoiced()
    return grid
