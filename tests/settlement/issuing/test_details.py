"""Billing details: made, kept, compared; whose account changes; and that they go nowhere but to the other side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import InvalidRecord, LedgerError, UsageError
from p2pgrid.ledger.bundle import write_bundle
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.ledger.tables import TABLES
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message
from p2pgrid.proto.settle_check import Taken
from p2pgrid.proto.statement import Invoice
from p2pgrid.settlement.billing import (
    Purpose,
    advice_for,
    bank_account_of,
    draft_details,
    faults_against_card,
    faults_of,
    missing_for,
    party_of,
    payment_account_of,
)
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook, parse_details
from p2pgrid.settlement.statements.keeping import keep_taken
from tests.factories import CLIENT, DAY_MS, NOW_MS, PROVIDER, make_billing_details, make_card, make_invoice, secret_key
from tests.settlement.issuing.scene import BUYER, IBAN, OTHER_IBAN, SELLER, Scene, billing_of, details

LATER = NOW_MS + 10 * DAY_MS


@pytest.fixture
def book(tmp_path: Path) -> DetailsBook:
    return DetailsBook(open_database(tmp_path / FILE_NAME), lambda: LATER)


def test_own_details_are_signed_anew_only_when_they_say_something_else(tmp_path: Path) -> None:
    clock = [NOW_MS]
    book = DetailsBook(open_database(tmp_path / FILE_NAME), lambda: clock[0])
    first = book.make_own(billing_of(SELLER), PROVIDER, Role.PROVIDER)
    clock[0] += DAY_MS
    assert book.make_own(billing_of(SELLER), PROVIDER, Role.PROVIDER).id == first.id
    again = DetailsBook(open_database(tmp_path / FILE_NAME), lambda: clock[0])
    second = again.make_own(billing_of({**SELLER, "city": "Kaunas"}), PROVIDER, Role.PROVIDER)
    assert (first.message.sequence, second.message.sequence, second.message.stated_ms) == (1, 2, clock[0])
    assert book.own(Role.PROVIDER) is not None
    assert book.own(Role.PROVIDER).id == second.id  # type: ignore[union-attr]
    assert book.own(Role.CLIENT) is None
    former = secret_key("former")
    book.make_own_of_all(billing_of({**SELLER, "city": "Kaunas"}), [PROVIDER, former], Role.CLIENT)
    assert book.own(Role.CLIENT).message.party == PROVIDER.public_key.raw  # type: ignore[union-attr]
    assert book.of(former.public_key.raw, Role.CLIENT).message.city == "Kaunas"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"iban": "LT121000011101001001"}, "iban"),
        ({"iban": "lt121000011101001000"}, "iban"),
        ({"iban": "XX00"}, "iban"),
        ({"bic": "NOBIC"}, "bic"),
        ({"vat_id": "DE136695975"}, "vat-id"),
        ({"vat_id": "LT100001738313"}, "vat-id"),
        ({"legal_name": "Evil\u202eGmbH"}, "legal-name"),
        ({"legal_name": " GmbH"}, "legal-name"),
        ({"city": "Ber\nlin"}, "city"),
        ({"street": "\x1b[2J"}, "street"),
        ({"profile": "zugferd"}, "profile"),
        ({"electronic_address": "a@b.example"}, "electronic-address"),
        ({"registration_number": "1", "registration_scheme": "??"}, "registration-scheme"),
        ({"contact_email": "a" * 101}, "contact-email"),
    ],
)
def test_a_peers_details_are_checked_before_they_are_kept(
    book: DetailsBook, changes: dict[str, Any], field: str
) -> None:
    signed = details(BUYER, **changes)
    assert [fault.field for fault in faults_of(signed.message)] == [field]
    with pytest.raises(InvalidRecord, match=field):
        book.keep(signed)
    assert book.of(CLIENT.public_key.raw, Role.CLIENT) is None


VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "billing-details.json").read_text())


def test_the_vectors_records_are_kept(book: DetailsBook) -> None:
    for vector, key, by in zip(VECTORS["records"], (PROVIDER, CLIENT), (Role.PROVIDER, Role.CLIENT), strict=True):
        signed = parse_details(parse_record(bytes.fromhex(vector["wire"])), party=key.public_key, by=by)
        assert signed.id.hex() == vector["id"]
        assert book.keep(signed).is_new


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda v: f"{v['field']}={v['value']!r}")
def test_the_vectors_refused_fields_are_refused(book: DetailsBook, vector: dict[str, str]) -> None:
    with pytest.raises(InvalidRecord, match=vector["field"].replace("_", "-")):
        book.keep(make_billing_details(**{vector["field"]: vector["value"]}))


def test_the_highest_sequence_counts_and_none_is_signed_twice(book: DetailsBook) -> None:
    assert book.keep(details(BUYER, sequence=2)).is_new
    assert not book.keep(details(BUYER, sequence=2)).is_new
    assert not book.keep(details({**BUYER, "city": "Bonn"}, sequence=1)).is_new
    with pytest.raises(InvalidRecord, match="two billing details with the sequence 2"):
        book.keep(details({**BUYER, "city": "Bonn"}, sequence=2))
    with pytest.raises(InvalidRecord, match="later than now"):
        book.keep(details(BUYER, sequence=3, stated_ms=LATER + DAY_MS))
    found = book.of(CLIENT.public_key.raw, Role.CLIENT)
    assert found is not None
    assert (found.message.sequence, found.message.city) == (2, "Berlin")
    assert [one.id for one in book.peers()] == [found.id]


def test_details_of_another_key_or_role_are_nobodys() -> None:
    signed = details(BUYER)
    assert parse_details(signed.record, party=CLIENT.public_key, by=Role.CLIENT).id == signed.id
    for party, by in ((PROVIDER, Role.CLIENT), (CLIENT, Role.PROVIDER)):
        with pytest.raises(InvalidRecord):
            parse_details(signed.record, party=party.public_key, by=by)
    other = sign_message(msgspec.structs.replace(signed.message, party=PROVIDER.public_key.raw), Role.CLIENT, CLIENT)
    with pytest.raises(InvalidRecord, match="are not those of"):
        parse_details(other.record, party=CLIENT.public_key, by=Role.CLIENT)


def test_a_changed_account_stays_shown_until_it_is_confirmed(book: DetailsBook) -> None:
    party = PROVIDER.public_key.raw
    assert book.keep(details(SELLER, PROVIDER, Role.PROVIDER, 1)).account_change is None
    assert book.keep(details({**SELLER, "city": "Kaunas"}, PROVIDER, Role.PROVIDER, 2)).account_change is None
    # Left out in between, so that it seems new: it is compared with the last that there was.
    assert book.keep(details({**SELLER, "iban": ""}, PROVIDER, Role.PROVIDER, 3)).account_change is None
    change = book.keep(details({**SELLER, "iban": OTHER_IBAN}, PROVIDER, Role.PROVIDER, 4)).account_change
    assert change is not None
    assert (change.iban_before, change.iban_now) == (IBAN, OTHER_IBAN)
    assert "ACCOUNT CHANGED" in str(change)
    assert book.account_change(party, Role.PROVIDER) == change
    assert book.account_change(party, Role.CLIENT) is None
    assert not book.confirm_account(party, Role.PROVIDER, IBAN)
    assert book.confirm_account(party, Role.PROVIDER, OTHER_IBAN)
    confirmed = book.account_change(party, Role.PROVIDER)
    assert confirmed is not None
    assert confirmed.is_confirmed
    assert [one.is_confirmed for one in book.account_changes()] == [True]


def test_a_file_that_was_touched_is_noticed(book: DetailsBook, tmp_path: Path) -> None:
    signed = details(BUYER)
    book.keep(signed)
    touched = signed.record.to_bytes().replace(b"Berlin", b"Berlim")
    open_database(tmp_path / FILE_NAME).execute("UPDATE billing_details SET record = ?", (touched,))
    with pytest.raises(LedgerError, match="do not verify"):
        book.of(CLIENT.public_key.raw, Role.CLIENT)


@pytest.mark.parametrize(
    ("purpose", "fields", "missing"),
    [
        (Purpose.ISSUE, SELLER, []),
        (Purpose.ISSUE, {}, ["legal-name", "street", "city", "post-code", "country", "iban", "vat-id",
                             "registration-number"]),
        (Purpose.ISSUE, {**SELLER, "vat-id": "", "small-business": True}, ["vat-id or tax-number"]),
        (Purpose.ISSUE, {**SELLER, "vat-id": "", "country": "DE", "tax-number": "1"}, []),
        (Purpose.BE_INVOICED, BUYER, []),
        (Purpose.BE_INVOICED, {"legal-name": "A"}, ["street", "city", "post-code", "country"]),
        (Purpose.PAY, {"legal-name": "A"}, ["city", "country", "iban"]),
    ],
)  # fmt: skip
def test_what_is_missing_for_what(purpose: Purpose, fields: dict[str, Any], missing: list[str]) -> None:
    draft = draft_details(billing_of(fields), party=CLIENT.public_key, by=Role.CLIENT)
    assert missing_for(draft, purpose) == missing


def test_advice() -> None:
    def advice(purpose: Purpose, **fields: Any) -> str:
        base = SELLER if purpose is Purpose.ISSUE else BUYER
        draft = draft_details(billing_of({**base, **fields}), party=CLIENT.public_key, by=Role.CLIENT)
        return " ".join(advice_for(draft, purpose))

    assert advice(Purpose.ISSUE) == ""
    assert "VAT rates" in advice(Purpose.ISSUE, country="FR")
    assert "XRechnung" in advice(Purpose.ISSUE, **{"contact-email": ""})
    assert "reverse charge" in advice(Purpose.BE_INVOICED, **{"vat-id": ""})
    assert "Leitweg" in advice(Purpose.BE_INVOICED, **{"buyer-reference": "", "profile": "xrechnung"})
    assert "consumers" in advice(Purpose.BE_INVOICED, business=False)


def test_as_invoices_and_payments_need_them() -> None:
    seller = details({**SELLER, "account-holder": "Zaibas"}, PROVIDER, Role.PROVIDER).message
    party = party_of(seller)
    assert (party.name, party.address.city, party.vat_id) == ("Žaibas UAB", "Vilnius", "LT100001738313")
    assert party.contact is not None
    assert party.electronic_address is None
    account = bank_account_of(seller)
    assert account is not None
    assert (account.iban, account.holder) == (IBAN, "Zaibas")
    paid = payment_account_of(seller)
    assert (paid.name, paid.iban, paid.address and paid.address.town) == ("Zaibas", IBAN, "Vilnius")
    nowhere = details({**BUYER, "iban": ""}).message
    assert bank_account_of(nowhere) is None
    with pytest.raises(UsageError, match="no IBAN"):
        payment_account_of(nowhere)


def test_the_card_and_the_details_name_one_company() -> None:
    card = make_card().message
    same = {**SELLER, "legal-name": card.legal_name, "vat-id": card.vat_id}
    assert faults_against_card(details(same, PROVIDER, Role.PROVIDER).message, card) == []
    found = faults_against_card(details(BUYER, PROVIDER, Role.PROVIDER).message, card)
    assert [fault.field for fault in found] == ["legal-name", "vat-id", "country"]


def test_they_are_in_no_ledger_bundle_log_or_audit(tmp_path: Path) -> None:
    """An address and an account stay between the two parties."""
    assert BillingDetails.payload_type not in MESSAGE_TYPES
    assert BillingDetails.payload_type not in TABLES
    signed = details(BUYER)

    async def run() -> bytes:
        ledger = SqliteLedger.open(tmp_path / "ledger.sqlite")
        scene = await Scene(tmp_path, ledger).opened()
        await scene.stated(5_000_000)
        with pytest.raises(TypeError, match="keeps no"):
            await ledger.append(signed)
        write_bundle(tmp_path / "bundle.jsonl", ledger.records())
        loggable = [one.record_id for one in ledger.loggable(PROVIDER.public_key.peer_id)]
        assert signed.id not in loggable
        await ledger.aclose()
        return (tmp_path / "bundle.jsonl").read_bytes()

    bundle = asyncio.run(run())
    assert b"billing" not in bundle
    for path in tmp_path.glob("ledger.sqlite*"):
        assert OTHER_IBAN.encode() not in path.read_bytes()
    assert OTHER_IBAN.encode() in b"".join(path.read_bytes() for path in tmp_path.glob("settlement.db*"))


def test_an_account_that_comes_while_another_is_confirmed_is_not(book: DetailsBook, tmp_path: Path) -> None:
    party, third = PROVIDER.public_key.raw, "EE382200221020145685"
    book.keep(details(SELLER, PROVIDER, Role.PROVIDER, 1))
    book.keep(details({**SELLER, "iban": OTHER_IBAN}, PROVIDER, Role.PROVIDER, 2))

    other = open_database(tmp_path / FILE_NAME)
    other.execute("PRAGMA busy_timeout = 10")

    class Person(DetailsBook):
        def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
            """The node's process keeps what the peer sends, just then; or waits."""
            found = super().of(party, by)
            with contextlib.suppress(LedgerError):
                DetailsBook(other, lambda: LATER).keep(details({**SELLER, "iban": third}, PROVIDER, Role.PROVIDER, 3))
            return found

    person = Person(open_database(tmp_path / FILE_NAME), lambda: LATER)
    person.confirm_account(party, Role.PROVIDER, OTHER_IBAN)
    book.keep(details({**SELLER, "iban": third}, PROVIDER, Role.PROVIDER, 3))
    assert [(one.iban_now, one.is_confirmed) for one in book.account_changes()] == [(OTHER_IBAN, True), (third, False)]


def test_where_a_library_is_missing_what_else_came_is_kept(
    book: DetailsBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        ledger = MemoryLedger()
        scene = await Scene(tmp_path / "node", ledger).opened()
        invoice = make_invoice(await scene.stated(5_000_000))
        monkeypatch.setitem(sys.modules, "stdnum.eu.vat", None)
        taken = Taken(details=[details(SELLER, PROVIDER, Role.PROVIDER)], keep=[invoice])
        await keep_taken(ledger, taken, book, lambda record, reason: None)
        assert ledger.settlement(Invoice, scene.deal.id)
        assert taken.details == []
        assert "pip install 'p2pgrid[settle]'" in taken.waiting[0][1]

    asyncio.run(run())
