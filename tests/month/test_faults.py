"""The same month with one fault at a time: who notices at once, and what an audit of both exports calls it.

Each fault is put into a copy of one channel's ledgers, by the side that could do it; docs/settlement/faults.md is the
same table for people. The control: the month itself, in which nothing is found.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from p2pgrid.audit.documents import check_documents
from p2pgrid.cli import pay as paying
from p2pgrid.cli import pay_choice, settling
from p2pgrid.errors import UsageError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.proto.codes import CODES
from p2pgrid.proto.invoice_sums import vat_of
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.statement_making import Period, make_statement
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.invoices.totals import read_totals
from p2pgrid.settlement.payments.decisions import Finding, Kind
from p2pgrid.settlement.statements.position import read_books, read_position
from p2pgrid.settlement.statements.taxes import vat_of_period
from tests.factories import digest
from tests.month.faults import GROSS, NUMBER, faults, first, ledger_of, notes, said, unstated
from tests.month.past import write
from tests.month.scene import ALICE, BERTA, RECEIPTS, VILNIUS
from tests.month.settled import LATER_MS, PAID_ON, STATED_MS, Deal, Month, audit_of
from tests.proto.chains import DAY_MS
from tests.settlement.paying.scene import Node


def test_the_month_itself_is_clean(month: Month) -> None:
    verdict = month.audit()
    assert sum(one.countersigned for one in verdict.channels) == RECEIPTS
    assert faults(verdict) == []
    assert {one.code for one in verdict.notes} == {"invoice-open"}
    assert sum(one.difference_cents or 0 for one in verdict.notes) == -sum(one.gross_cents for one in month.deals)


# -- statements ------------------------------------------------------------------------------------------------------


async def test_a_receipt_is_missing_with_the_client(deal: Deal) -> None:
    """The client lost it, or says so."""
    await unstated(deal)
    lost = deal.past.receipts[699]
    deal.client = await ledger_of(*deal.past.client_has, without=lost.id)
    found = (await deal.judge(await deal.draft())).differences
    assert (found[0].field, found[0].receipt_number) == ("receipt", 700)
    assert found[0].about == "is not on record here; so are those after it"
    assert said(found, "gross_cents") == [("327", "588")]
    (fault,) = (verdict := deal.audit()).findings
    assert faults(verdict) == [("left-out", "client", None)] and fault.record_id == lost.id.hex()
    assert "client lacks what the client signed and provider shows: receipt 700" in fault.sentence


async def test_a_receipt_is_left_out_of_the_statement(deal: Deal) -> None:
    """By the provider: what was paid in cash, say."""
    await unstated(deal)
    dearest = max(deal.past.receipts[:300], key=lambda one: one.message.amount_pico).message
    made = await deal.draft()
    position = await read_position(deal.provider, read_books(deal.provider, deal.past.channel))
    lie = make_statement(
        deal.past.channel.message,
        before=None,
        receipts=[one for one in position.receipts if one.receipt.receipt_number != dearest.receipt_number],
        contests=position.books.contests,
        credited_pico=0,
        payments_cents=0,
        set_off_cents=0,
        period=Period(made.statement.until_ms, made.statement.stated_ms, made.statement.due_ms),
        vat=vat_of_period(deal.details, deal.past.channel.message, made.first_day, made.last_day),
    )
    lie = msgspec.structs.replace(lie, last_receipt=1250)
    judged = await deal.judge(replace(made, statement=lie))
    assert judged.is_of_other_receipts
    assert said(judged.differences, "gross_cents") == [("588", str(lie.gross_cents))]
    await deal.provider.append(signed := deal.signed(lie))
    verdict = deal.audit()
    cents = round(dearest.amount_pico / 10**10)
    assert faults(verdict) == [("statement-omits-receipt", "provider", -cents)] and cents > 0
    assert verdict.findings[0].record_id == signed.id.hex() and verdict.findings[0].convinces
    assert "is of 1250 receipts, 1 to 1250, and counts 1249 of them. The others come to 0.0" in first(verdict)


async def test_a_receipt_stands_in_two_statements(deal: Deal) -> None:
    """The provider states the last ten again, two days later."""
    await unstated(deal)
    made = await deal.draft()
    position = await read_position(deal.provider, read_books(deal.provider, deal.past.channel))
    for ledger in (deal.provider, deal.client):
        await ledger.append(deal.signed(made.statement, by="both"))
    period = Period(LATER_MS - DAY_MS, LATER_MS - DAY_MS, LATER_MS + 13 * DAY_MS)
    again = make_statement(
        deal.past.channel.message,
        before=deal.statement,
        receipts=position.receipts[-10:],
        contests=(),
        credited_pico=deal.statement.message.credits_pico,
        payments_cents=0,
        set_off_cents=0,
        period=period,
        vat=vat_of_period(deal.details, deal.past.channel.message, made.first_day, made.last_day),
    )
    lie = msgspec.structs.replace(again, first_receipt=1241, last_receipt=1250)
    (found,) = (await deal.judge(replace(made, statement=lie))).differences
    assert (found.field, found.client, found.provider) == ("first_receipt", "1251", "1241")
    await deal.provider.append(deal.signed(lie))
    verdict = deal.audit()
    assert faults(verdict)[:1] == [("receipt-in-two-statements", "provider", round(again.total_pico / 10**10))]
    assert verdict.findings[0].other_record_ids == (deal.statement.id.hex(),)
    assert "Receipts 1241 to 1250 of both come to" in first(verdict)


@pytest.mark.parametrize(
    ("rate_bp", "vat_cents", "code"), [(2100, 112, ("statement-mismatch", "provider", 10)), (1900, 92, None)]
)
async def test_a_statement_has_the_wrong_vat(
    deal: Deal, rate_bp: int, vat_cents: int, code: tuple[str, str, int] | None
) -> None:
    """Reckoned wrongly, or by another rate. An audit knows sums, and no country's rates: both nodes do."""
    await unstated(deal)
    made = await deal.draft()
    (right,) = made.statement.vat
    assert (right.rate_bp, right.net_cents, right.vat_cents) == (2100, 486, vat_of(486, 2100))
    gross = 486 + vat_cents
    lies = {
        "vat": (msgspec.structs.replace(right, rate_bp=rate_bp, vat_cents=vat_cents),),
        "gross_cents": gross,
        "closing_cents": gross,
    }
    found = (await deal.judge(made, **lies)).differences
    assert f"{vat_cents} cents on 486" in {theirs for _, theirs in said(found, "vat")}
    assert said(found, "vat")[0][0] == "102 cents on 486" and said(found, "gross_cents") == [("588", str(gross))]
    await deal.provider.append(deal.signed(msgspec.structs.replace(made.statement, **lies)))
    assert faults(verdict := deal.audit()) == ([code] if code else [])
    assert code is None or "The VAT of statement 1 at 21.00 % (S) is 1.12 EUR; 4.86 make 1.02." in first(verdict)


async def test_the_client_denies_the_statement(deal: Deal) -> None:
    """It signed, and hands in an export without it."""
    deal.client = await ledger_of(*deal.past.client_has)
    verdict = deal.audit()
    assert faults(verdict) == [("left-out", "client", None)] and "statement 1" in first(verdict)
    assert notes(verdict, "invoice-open") == [("invoice-open", "client", -GROSS)]


# -- invoices --------------------------------------------------------------------------------------------------------


async def test_a_second_invoice_of_one_statement(deal: Deal) -> None:
    """By the provider, under another number: the client's node does not keep it, so that nothing of it is paid."""
    more = deal.changed(deal.invoice, invoice_number="VS-2026-000009", issued_ms=STATED_MS + 9000)
    taken = deal.taken(more)
    assert not taken.keep
    sentence = f"The net of invoice {NUMBER}, VS-2026-000009 is 9.72 EUR; statement 1 has 4.86."
    assert [why for _, why in taken.waiting] == [sentence]
    await deal.provider.append(more)
    verdict = deal.audit()
    assert faults(verdict) == [("invoice-mismatch", "provider", 486)] and first(verdict) == sentence
    assert verdict.findings[0].record_id == more.id.hex()


async def test_a_second_invoice_under_one_number(deal: Deal) -> None:
    """Two records for one slot: kept as evidence; the provider's own ledger would not have it."""
    more = deal.changed(deal.invoice, document_sha256=digest("another file"))
    taken = deal.taken(more)
    assert not taken.keep and [why.partition(":")[0] for _, why in taken.conflicting] == ["two-records-one-slot"]
    with pytest.raises(SlotTaken, match=NUMBER):
        await deal.provider.append(more)
    deal.provider = await ledger_of(*deal.past.provider_has, deal.statement, more)
    verdict = deal.audit()
    assert faults(verdict) == [("two-records-one-slot", "provider", None)]
    assert first(verdict) == f"There are 2 different records for invoice {NUMBER}, all signed by provider."


async def test_one_number_for_two_clients(deal: Deal, month: Month) -> None:
    """By the provider. Each client sees one of them; whoever has both exports, or the provider's, sees it."""
    other = month.deal(VILNIUS, BERTA)
    same = other.changed(other.invoice, invoice_number=NUMBER)
    other.client = await ledger_of(*other.past.client_has, other.statement)
    assert [one.id for one in other.taken(same).keep] == [same.id]
    assert faults(audit_of([(deal.client, Role.CLIENT), (other.client, Role.CLIENT)], now_ms=LATER_MS)) == []
    await other.client.append(same)
    verdict = audit_of([(deal.client, Role.CLIENT), (other.client, Role.CLIENT)], now_ms=LATER_MS)
    later = max((deal.invoice, same), key=lambda one: (one.message.issued_ms, one.id))
    assert faults(verdict) == [("invoice-mismatch", "provider", later.message.gross_cents)]
    assert f"The invoice {NUMBER} over" in first(verdict) and "in another channel of the provider's." in first(verdict)
    assert verdict.findings[0].record_id == later.id.hex()


async def test_an_invoice_has_the_wrong_vat(deal: Deal) -> None:
    """By the provider: ten cents more than both signed."""
    deal.client = await ledger_of(*deal.past.client_has, statement := deal.statement)
    wrong = deal.changed(deal.invoice, vat_cents=112, gross_cents=GROSS + 10)
    taken = deal.taken(wrong)
    sentence = f"The VAT of invoice {NUMBER} is 1.12 EUR; statement 1 has 1.02."
    assert not taken.keep and [why for _, why in taken.waiting] == [sentence]
    deal.provider = await ledger_of(*deal.past.provider_has, statement, wrong)
    verdict = deal.audit()
    assert faults(verdict) == [("invoice-mismatch", "provider", 10)] and first(verdict) == sentence


def documents_of(deal: Deal, folder: Path) -> Documents:
    """The client's."""
    book = DetailsBook(connection := open_database(folder / FILE_NAME), lambda: LATER_MS)
    for one in deal.details.kept.values():
        book.keep(one)
    return Documents(folder, connection, now_ms=lambda: LATER_MS)


def signed_file(deal: Deal, content: bytes) -> Signed[Invoice]:
    """The record, as the provider would sign it of that file."""
    return deal.changed(deal.invoice, document_sha256=hashlib.sha256(content).digest())


ON_THE_WAY, BY_THE_PROVIDER = False, True


@pytest.mark.parametrize(
    ("by", "old", "new", "code"),
    [
        (ON_THE_WAY, b">5.88</ram:DuePayableAmount", b">9.88</ram:DuePayableAmount", "hash"),
        (BY_THE_PROVIDER, b">5.88</ram:DuePayableAmount", b">9.88</ram:DuePayableAmount", "due"),
        (BY_THE_PROVIDER, VILNIUS.iban.encode(), BERTA.iban.encode(), "iban"),
        (BY_THE_PROVIDER, b"ApplicablePercent>21", b"ApplicablePercent>19", "vat"),
        (BY_THE_PROVIDER, b"", b"", ""),
    ],
    ids=["on the way", "another amount", "another account", "another rate", "as it was"],
)
async def test_an_invoices_file_is_altered(
    deal: Deal, tmp_path: Path, by: bool, old: bytes, new: bytes, code: str
) -> None:
    """What does not fit is kept apart, and `p2pgrid pay` leaves it; an audit with the files says which it is."""
    content = deal.document.replace(old, new)
    assert (content != deal.document) is bool(code)
    invoice = signed_file(deal, content if by is BY_THE_PROVIDER else deal.document)
    documents, channel = documents_of(deal, tmp_path), deal.past.channel.message
    taken = documents.take_received(invoice, content, channel=channel, statement=deal.statement)
    assert taken.code == code, taken.message
    assert taken.files[0].is_relative_to(tmp_path / "invoices" / ("refused" if code else "received"))
    if code in ("hash", ""):
        deal.provider = await ledger_of(*deal.past.provider_has, deal.statement, invoice)
        settlement = audit_of([(deal.provider, Role.PROVIDER)], now_ms=LATER_MS).settlement
        (check,) = check_documents(settlement, taken.files[0].parent, read_totals, lambda *_: None)
        assert check.state == ("altered" if code else "ok"), check.sentence


async def test_the_payees_account_is_changed(
    deal: Deal, month: Month, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever has the provider's key, before it was ever paid. Billing details are in no export, so that an audit
    cannot tell; the client's node does, and pays nothing until a person has asked."""
    for module in (settling, paying, pay_choice):
        monkeypatch.setattr(module, "unix_ms", lambda: LATER_MS)
    monkeypatch.setattr(settling, "today", lambda: PAID_ON)
    node = Node(tmp_path / "alice", deal.past.client)
    node.data.config_file.write_text(month.scene.data(ALICE).joinpath("config.toml").read_text())
    await write(node.data.ledger_file, [[*deal.past.client_has, deal.statement, deal.invoice]])
    known = deal.details.of(deal.past.channel.message.provider, Role.PROVIDER)
    assert known is not None
    book = DetailsBook(open_database(node.path / FILE_NAME), lambda: LATER_MS)
    book.keep(known)
    pay = ("pay", "--dry-run", "--until", "2027-02-01")
    ordered = (await asyncio.to_thread(node.json, *pay))["payments"]
    assert [(one["iban"], one["amount_cents"]) for one in ordered] == [(VILNIUS.iban, GROSS)]
    change = book.keep(deal.changed(known, sequence=2, iban=BERTA.iban)).account_change
    assert change is not None and f"was paid at {VILNIUS.iban} and now names {BERTA.iban}" in str(change)
    with pytest.raises(UsageError, match=f"named {VILNIUS.iban} before.* now say {BERTA.iban}") as refused:
        await asyncio.to_thread(node.json, *pay)
    assert f"--confirm-account {BERTA.iban}" in refused.value.hint
    assert faults(deal.audit()) == []
    await asyncio.to_thread(node.json, "billing", "confirm", node_peer(deal), BERTA.iban)
    ordered = (await asyncio.to_thread(node.json, *pay))["payments"]
    assert [one["iban"] for one in ordered] == [BERTA.iban]


def node_peer(deal: Deal) -> str:
    return deal.past.provider.public_key.peer_id


# -- the page --------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "settlement" / "faults.md"
OTHERS = {*Kind, *Finding, "hash", "iban", "due", "vat", "altered"}
FIELDS = {*Statement.__struct_fields__, "receipt", "payment", "set_off", "line"}


def test_every_code_of_the_page_is_one() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 20
    for _, _fault, _by, at_once, audit, *_ in rows:
        assert set(re.findall(r"`([a-z_-]+)`", audit)) <= CODES.keys() | {"altered", "--documents"}, audit
        assert set(re.findall(r"`([a-z_-]+)`", at_once)) <= CODES.keys() | OTHERS | FIELDS, at_once
    told = {code for row in rows for code in re.findall(r"`([a-z_-]+)`", row[4])}
    source = Path(__file__).read_text()
    asserted = {code for code in CODES if f'"{code}"' in source}
    assert asserted <= told, "what is shown here stands there"
