"""Statements, invoices and payments in an audit: what the cases and stories of `audit.json` do not say."""

from __future__ import annotations

import pytest

from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.proto.verdict import audit_records
from tests.factories import make_invoice
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import contested, sold, statement
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


@pytest.mark.parametrize("decision", [Decision.ACCEPTED, None])
def test_a_provider_to_which_the_signature_never_came_goes_by_a_late_dispute(decision: Decision | None) -> None:
    """The client kept its signature for itself, disputed what it had signed, and shows both to an auditor."""
    grid = sold(3)
    late_ms = grid.now_ms + (grid.channel.message.dispute_days + 1) * DAY_MS
    receipt = grid.receipts[2]
    amount = contested(grid, disputed_ms=late_ms, answered_ms=late_ms + 1000 if decision else None)
    statement(grid, 1, 3, stated_ms=late_ms + DAY_MS, **{"credits_pico" if decision else "held_pico": amount})
    signed = audit_records(both(grid))
    assert [finding.code for finding in signed.findings] == ["statement-mismatch"], "it had the signature"
    (index,) = [i for i, one in enumerate(grid.provider_has) if one.id == receipt.id]
    grid.provider_has[index] = sign_message(receipt.message, Role.PROVIDER, grid.provider)
    verdict = audit_records(both(grid))
    assert not [finding for finding in verdict.findings if finding.code == "statement-mismatch"]
    assert verdict.channels[0].credited_pico == verdict.channels[0].disputed_pico == 0
