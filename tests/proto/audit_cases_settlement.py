"""Cases of statements, invoices and payments; see `audit_cases`."""

from __future__ import annotations

from typing import Any

from p2pgrid.proto.messages import Status, Usage
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Statement, StatementLine
from tests.factories import make_answer, make_dispute, make_invoice, make_payment, make_statement
from tests.proto.audit_cases import BOTH, UNCLEAR, C, P, both, vector
from tests.proto.chains import DAY_MS, TARIFF, Dealings, LinesBundle, digest
from tests.proto.trees import tree_hash


def statement(
    grid: Dealings, first: int, last: int, before: Signed[Statement] | None = None, **changes: Any
) -> Signed[Statement]:
    """A right statement over receipts `first` to `last`, signed by both and kept by both."""
    receipts = grid.receipts[first - 1 : last]
    billed = [r.message.usage for r in receipts if r.message.status is not Status.FAILED]
    total = sum(r.message.amount_pico for r in receipts)
    opening = before.message.closing_pico if before else 0
    line = StatementLine(
        model="small",
        input_upm=TARIFF.input_upm,
        cached_input_upm=TARIFF.cached_input_upm,
        output_upm=TARIFF.output_upm,
        receipts=len(receipts),
        prompt_tokens=sum(usage.prompt_tokens for usage in billed),
        cached_tokens=sum(usage.cached_tokens for usage in billed),
        output_tokens=sum(usage.output_tokens for usage in billed),
        amount_pico=total,
    )
    fields: dict[str, Any] = {
        "statement_number": before.message.statement_number + 1 if before else 1,
        "previous": before.id if before else b"",
        "lines": (line,),
        "opening_pico": opening,
        "closing_pico": opening + total - changes.get("credits_pico", 0) - changes.get("payments_pico", 0),
    }
    root = changes.pop("root", tree_hash([r.id for r in receipts]))
    return grid.keep(make_statement(receipts, root, **{**fields, **changes}))


def sold(count: int = 5) -> Dealings:
    """So many receipts, the second of them of an order that failed."""
    grid = Dealings()
    for number in range(count):
        order = grid.order(max_output_tokens=100_000, max_amount_pico=10**12)
        usage = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=50_000 + number)
        grid.receipt(order, usage, Status.FAILED if number == 1 else Status.COMPLETED)
    return grid


def settled() -> tuple[Dealings, Signed[Statement], Signed[Statement]]:
    """Two statements over five receipts, the first of them invoiced and paid, and counted as paid in the second."""
    grid = sold()
    first = statement(grid, 1, 3)
    invoice = grid.keep(make_invoice(first))
    payment = grid.keep(make_payment(invoice))
    paid_pico = payment.message.amount_cents * 10**10
    stated_ms = payment.message.booked_ms + DAY_MS
    return grid, first, statement(grid, 4, 5, first, payments_pico=paid_pico, stated_ms=stated_ms)


@vector("receipt-in-two-statements", P)
def statements_overlap() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 3, 5, statement(grid, 1, 3))
    return both(grid)


@vector("statement-omits-receipt", P)
def receipt_between_statements() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 4, 5, statement(grid, 1, 2))
    return both(grid)


@vector("statement-omits-receipt", P)
def statements_begin_late() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 2, 5)
    return both(grid)


@vector("statement-omits-receipt", P)
def receipt_left_out_of_the_range() -> list[LinesBundle]:
    grid = sold()
    right = statement(grid, 1, 4).message
    grid.provider_has.pop(), grid.client_has.pop()
    statement(grid, 1, 5, lines=right.lines, total_pico=right.total_pico, closing_pico=right.closing_pico)
    return both(grid)


@vector("statement-mismatch", P)
def another_root() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, root=digest("root"))
    return both(grid)


@vector("statement-mismatch", P)
def another_total() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, total_pico=1)
    return both(grid)


@vector("statement-mismatch", P)
def closes_with_more() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, closing_pico=10**12)
    return both(grid)


@vector("statement-mismatch", P)
def another_currency() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, currency="CHF")
    return both(grid)


@vector("statement-mismatch", P)
def another_tariff_stated() -> list[LinesBundle]:
    grid = sold()
    (line,) = statement(grid, 1, 5).message.lines
    grid.provider_has.pop(), grid.client_has.pop()
    fields = {name: getattr(line, name) for name in line.__struct_fields__}
    statement(grid, 1, 5, lines=(StatementLine(**{**fields, "output_upm": 5}),))
    return both(grid)


@vector("statement-mismatch", P)
def credit_left_out() -> list[LinesBundle]:
    grid = sold()
    dispute = grid.keep(make_dispute(grid.receipts[2].countersigned(Role.CLIENT, grid.client)))
    grid.keep(make_answer(dispute))
    statement(grid, 1, 5)
    return both(grid)


@vector("statement-mismatch", P)
def another_statement_before() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 4, 5, statement(grid, 1, 3), previous=digest("another"))
    return both(grid)


@vector("statement-mismatch", P)
def payment_never_counted() -> list[LinesBundle]:
    grid = sold(6)
    first = statement(grid, 1, 3)
    payment = grid.keep(make_payment(grid.keep(make_invoice(first))))
    second = statement(grid, 4, 5, first, stated_ms=payment.message.booked_ms + DAY_MS)
    statement(grid, 6, 6, second, stated_ms=payment.message.booked_ms + 9 * DAY_MS)
    return both(grid)


@vector("wrong-opening-balance", P)
def opens_with_more() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 3)
    total = sum(r.message.amount_pico for r in grid.receipts[3:])
    statement(grid, 4, 5, first, opening_pico=10**12, closing_pico=10**12 + total)
    return both(grid)


@vector("record-missing", BOTH)
def first_statement_not_there() -> list[LinesBundle]:
    grid, first, _ = settled()
    return without(grid, first.id, *(s.id for s in grid.client_has if hasattr(s.message, "invoice_number")))


def without(grid: Dealings, *ids: bytes) -> list[LinesBundle]:
    """Both bundles without some records."""
    for book in (grid.provider_has, grid.client_has):
        book[:] = [s for s in book if s.id not in ids]
    return both(grid)


@vector("record-missing", BOTH)
def invoice_of_a_statement_that_is_not_there() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 5)
    grid.keep(make_invoice(first))
    return without(grid, first.id)


@vector("record-missing", BOTH)
def counted_payment_not_there() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, payments_pico=10**10)
    return both(grid)


@vector("awaiting-countersignature", C)
def statement_waits() -> list[LinesBundle]:
    grid = sold()
    message = statement(grid, 1, 5).message
    grid.keep(sign_message(message, Role.PROVIDER, grid.provider))
    return both(grid)


# -- invoices and payments ----------------------------------------------------------------------------------------


def invoiced(**changes: Any) -> tuple[Dealings, Any]:
    """A statement over receipts worth some cents, and its invoice."""
    grid = sold(3)
    return grid, grid.keep(make_invoice(statement(grid, 1, 3), **changes))


@vector("invoice-mismatch", P)
def invoice_for_more() -> list[LinesBundle]:
    grid, invoice = invoiced(net_cents=100, gross_cents=100)
    grid.keep(make_payment(invoice))
    return both(grid)


@vector("invoice-mismatch", P)
def invoice_in_another_currency() -> list[LinesBundle]:
    grid, invoice = invoiced(currency="CHF")
    grid.keep(make_payment(invoice, currency="CHF"))
    return both(grid)


@vector("payment-mismatch", P)
def payment_in_another_currency() -> list[LinesBundle]:
    grid, invoice = invoiced()
    grid.keep(make_payment(invoice, currency="CHF"))
    return both(grid)


@vector("payment-mismatch", P)
def payment_booked_twice() -> list[LinesBundle]:
    grid, invoice = invoiced()
    half = invoice.message.gross_cents // 2
    for later_ms in (0, 1000):
        booked_ms = invoice.message.issued_ms + DAY_MS + later_ms
        grid.keep(make_payment(invoice, amount_cents=half, booked_ms=booked_ms))
    grid.keep(make_payment(invoice, reference="REST", amount_cents=invoice.message.gross_cents - 2 * half))
    return both(grid)


@vector("payment-mismatch", UNCLEAR)
def paid_too_much() -> list[LinesBundle]:
    grid, invoice = invoiced()
    grid.keep(make_payment(invoice, amount_cents=invoice.message.gross_cents + 1))
    return both(grid)


@vector("record-missing", BOTH)
def paid_invoice_not_there() -> list[LinesBundle]:
    grid, invoice = invoiced()
    grid.keep(make_payment(invoice))
    return without(grid, invoice.id)


@vector("invoice-open", C)
def half_paid() -> list[LinesBundle]:
    grid, invoice = invoiced()
    grid.keep(make_payment(invoice, amount_cents=1))
    return both(grid)
