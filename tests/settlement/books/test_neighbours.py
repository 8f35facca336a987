"""What other rooms of settlement know, where they are there."""

from __future__ import annotations

from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

from hypothesis import given

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.settlement.bank.store import BankStore
from p2pgrid.settlement.bank.stored import StoredDecision
from p2pgrid.settlement.books.booking import bookings_of
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.neighbours import bank_files, parties_in, set_offs_in
from p2pgrid.settlement.books.parties import StoredParties, name_of, vat_id_of
from p2pgrid.settlement.books.records import SetOffLeg
from p2pgrid.settlement.books.trial_balance import channel_balance
from p2pgrid.settlement.database import open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.open_items import SetOffShare, channel_items
from tests.factories import CLIENT, NOW_MS, PROVIDER, digest, make_channel
from tests.settlement.books.makers import EVER, RULES
from tests.settlement.books.test_booking import STEPS, play
from tests.settlement.payments.makers import entry

ALICE = sign_message(
    BillingDetails(
        party=CLIENT.public_key.raw,
        by=Role.CLIENT,
        sequence=1,
        stated_ms=NOW_MS,
        legal_name="Alice GmbH",
        street="Weg 1",
        city="Berlin",
        post_code="10115",
        country="DE",
        vat_id="DE136695976",
    ),
    Role.CLIENT,
    CLIENT,
)


class Told:
    """Details of Alice alone."""

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        return ALICE if (party, by) == (CLIENT.public_key.raw, Role.CLIENT) else None


def test_names_are_those_that_the_other_party_told() -> None:
    parties, key = StoredParties(Told()), CLIENT.public_key.raw
    assert name_of(parties, key, Role.PROVIDER) == "Alice GmbH"
    assert vat_id_of(parties, key, Role.PROVIDER) == "DE136695976"
    assert name_of(parties, key, Role.CLIENT) == CLIENT.public_key.peer_id  # told as client, not as provider
    assert vat_id_of(parties, key, Role.CLIENT) == ""


def test_details_are_read_from_settlement_db(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "settlement.db")) as database:
        DetailsBook(database, lambda: NOW_MS).keep(ALICE)
        assert name_of(parties_in(database), CLIENT.public_key.raw, Role.PROVIDER) == "Alice GmbH"


async def test_set_offs_in_force_are_legs_of_both_channels() -> None:
    from p2pgrid.proto.set_off import Claim, SetOff, SetOffSide

    ours = make_channel()
    theirs = make_channel(CLIENT, PROVIDER, name="back")
    sides = {
        one.message.channel: SetOffSide(
            channel=one.message.channel,
            creditor=one.message.provider,
            debtor=one.message.client,
            card=b"",
            claims=(
                Claim(statement=digest("a"), invoice_number="A", cents=70),
                Claim(statement=digest("b"), invoice_number="B", cents=30),
            ),
        )
        for one in (ours, theirs)
    }
    first, second = (sides[channel] for channel in sorted(sides))
    message = SetOff(
        first=first,
        second=second,
        currency="EUR",
        amount_cents=100,
        agreed_ms=NOW_MS + 5,
        until_ms=NOW_MS + 50,
        nonce=digest("nonce"),
    )
    keys = {PROVIDER.public_key.raw: PROVIDER, CLIENT.public_key.raw: CLIENT}
    proposed = sign_message(message, Role.PROVIDER, keys[first.creditor])
    ledger: Any = MemoryLedger()
    await ledger.append(ours)
    await ledger.append(theirs)
    await ledger.append(proposed)
    assert list(set_offs_in(ledger).legs(first.channel)) == []
    await ledger.append(proposed.countersigned(Role.CLIENT, keys[second.creditor]))
    for channel in sides:
        assert list(set_offs_in(ledger).legs(channel)) == [
            SetOffLeg(
                record=proposed.id,
                channel=channel,
                statement=digest(name),
                invoice_number=name.upper(),
                currency="EUR",
                amount_cents=cents,
                set_off_ms=NOW_MS + 5,
            )
            for name, cents in (("a", 70), ("b", 30))
        ]


def test_the_banks_entries_of_a_year_that_are_about_us(tmp_path: Path) -> None:
    ours, rent, older = entry(500, bank="1"), entry(-9, bank="2"), entry(7, bank="3", booking_date=date(2025, 1, 1))
    kinds = {ours.key: "exact", rent.key: "unrelated", older.key: "exact"}
    with closing(open_database(tmp_path / "settlement.db")) as database:
        store = BankStore(database)
        store.write(
            entries=[(one, "bank.xml") for one in (ours, rent, older)],
            decisions=[
                (one, StoredDecision(kind=kinds[one.key], reason="So.", decided_ms=1)) for one in (ours, rent, older)
            ],
            now_ms=1,
        )
        files = bank_files(database, Span(date(2026, 1, 1), date(2026, 12, 31)))
    (content,) = files.values()
    assert ours.key.encode() in content
    assert rent.key.encode() not in content and older.key.encode() not in content


def test_without_a_bank_there_is_no_file(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "settlement.db")) as database:
        assert bank_files(database, Span(date(2026, 1, 1), date(2026, 12, 31))) == {}


@given(STEPS)
def test_receivables_are_the_open_items_as_payments_know_them(steps: list[tuple[str, int, int]]) -> None:
    s, _ = play(steps)
    items = channel_items(
        s.id,
        s.statements,
        s.invoices,
        [one.message for one in s.payments],
        set_off=[SetOffShare(s.id, one.invoice_number, one.amount_cents) for one in s.set_offs],
    )
    records = s.records()
    assert channel_balance(records, bookings_of([records], RULES), EVER.last).books_cents == items.balance_cents
