"""Invoices and payments in an audit: what the cases and stories of `audit.json` do not say."""

from __future__ import annotations

from p2pgrid.proto.verdict import audit_records
from tests.factories import make_invoice
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import sold, statement
from tests.proto.chains import DAY_MS


def test_of_two_invoices_with_one_number_the_later_is_at_fault() -> None:
    """Whichever statement it is of (docs/spec/audit.md, the table of findings)."""
    grid = sold()
    first = statement(grid, 1, 3)
    second = statement(grid, 4, 5, first)
    at_ms = second.message.stated_ms
    whole = first.message.net_cents
    grid.keep(make_invoice(first, invoice_number="1", net_cents=whole - 1, issued_ms=at_ms))
    grid.keep(make_invoice(second, invoice_number="2", issued_ms=at_ms + DAY_MS))
    later = grid.keep(make_invoice(first, invoice_number="2", net_cents=1, issued_ms=at_ms + 2 * DAY_MS))
    (finding,) = audit_records(both(grid)).findings
    assert (finding.code, finding.record_id) == ("invoice-mismatch", later.id.hex())
