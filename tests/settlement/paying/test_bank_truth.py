"""Months of bills, payments, returns, files that repeat, and processes that end anywhere: what the ledger has booked is
what the bank said, once."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.billing_rules import Bookings, fault_of_payments
from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.bank.booking import entry_digest
from p2pgrid.settlement.payments.reference import make_reference
from tests.factories import secret_key
from tests.settlement.paying.world import Killed, World
from tests.settlement.payments.bank import Movement
from tests.settlement.payments.makers import ALICE, BOB
from tests.settlement.records import Billed

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["bill", "bill", "pay", "pay", "part", "over", "ahead", "return", "credit", "noise", "import", "crash"]
        ),
        st.integers(0, 10_000),
    ),
    min_size=3,
    max_size=30,
)


class Months:
    """What happens on the account, and what the provider reads of it."""

    def __init__(self) -> None:
        alice = Billed(prefix="A-2027-00")
        bob = Billed(client=secret_key("bob"), name="bob", prefix="B-2027-00")
        self.world = World(alice, bob)
        self.movements: list[Movement] = []
        self.returned: set[int] = set()
        self.read_until = 0
        self.files = 0

    def payer(self, at: int) -> tuple[Billed, str, str]:
        return (self.world.billed[0], "Alice GmbH", ALICE) if at % 2 else (self.world.billed[1], "Bobas OU", BOB)

    def move(self, cents: int, name: str, iban: str, reference: str = "", **changes: str) -> None:
        number = len(self.movements) + 1
        self.movements.append(
            Movement(
                cents=cents,
                day=f"2027-{1 + number // 28:02d}-{1 + number % 28:02d}",
                end_to_end_id=reference,
                name=name,
                iban=iban,
                reference=f"T{number:06d}",
                **changes,  # type: ignore[arg-type]
            )
        )

    def happen(self, what: str, at: int) -> None:
        billed, name, iban = self.payer(at)
        if what in ("bill", "credit"):
            billed.bill(at + 100 if what == "bill" else -(at % 300) - 1)
            self.world.put()
        elif what in ("pay", "part", "over") and billed.invoices:
            invoice = billed.invoices[at % len(billed.invoices)].message
            gross = max(invoice.gross_cents, 2)
            cents = {"pay": gross, "part": gross // 2, "over": gross + at % 77 + 1}[what]
            self.move(cents, name, iban, make_reference(invoice.statement))
        elif what == "ahead":
            self.move(at + 1, name, iban, make_reference(billed.id))
        elif what == "return":
            whole = [n for n, one in enumerate(self.movements) if one.end_to_end_id and n not in self.returned]
            if whole:
                number = whole[at % len(whole)]
                one = self.movements[number]
                self.returned |= {number, len(self.movements)}
                self.move(-one.cents, one.name, one.iban, one.end_to_end_id, reason="AC04")
        elif what == "noise":
            self.move(-at - 1, "Nuomotojas", "LV80BANK0000435195001", text="rent")
        else:
            self.read(at, kills=what == "crash")

    def read(self, at: int, *, kills: bool) -> None:
        """A file of what is new, and of some of what is not; killed in the middle, perhaps."""
        since = max(self.read_until - at % 5, 0)
        if kills:
            self.world.bookings_left, self.world.is_told = at % 4, bool(at % 3)
        # The bank numbers entries for good, so that a file which begins elsewhere tells the same of each.
        self.files += 1
        try:
            self.world.read(self.movements[since:], statement_id=f"S{self.files}", shape="batch")
            self.read_until = len(self.movements)
        except Killed:
            pass
        finally:
            self.world.bookings_left = -1

    def end(self) -> None:
        self.read_until = 0
        self.read(0, kills=False)
        self.read(0, kills=False)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_the_ledger_is_the_banks_truth(events: list[tuple[str, int]]) -> None:
    months = Months()
    for what, at in events:
        months.happen(what, at)
    months.end()
    world = months.world
    store = world.runs()
    known = store.books().known
    entries = {key: one[0].entry for key, one in known.items()}
    assert sorted(one.cents for one in months.movements) == sorted(e.amount_cents for e in entries.values())
    booked = {key for key, one in known.items() if one[0].decision.is_booked}
    assert world.by_entry() == {entry_digest(key): cents for key in booked if (cents := entries[key].amount_cents)}, (
        "each entry that is booked is booked once and whole, and no other"
    )
    came = Counter(one.end_to_end_id for one in months.movements if one.cents > 0)
    for key, one in known.items():
        named = bool(entries[key].end_to_end_id)
        assert one[0].decision.kind != "unrelated" or not named, "what names a bill or a channel is never passed over"
        # What was paid and came back before any of it was read, may be left to a person, and so may what really was
        # paid more than once under one reference, which is named so; all else is booked.
        is_again = came[entries[key].end_to_end_id] > 1 and "reused-reference" in one[0].decision.findings
        assert not named or one[0].decision.is_booked or entries[key].amount_cents < 0 or is_again, one[0].decision
    check_records(world)
    before = [one.id for one in world.payments()]
    months.end()
    assert [one.id for one in world.payments()] == before, "the same files again change nothing"


def check_records(world: World) -> None:
    """An audit finds no payment at fault, and the balances are those of the bank."""
    for billed in world.billed:
        found = world.items(billed)
        payments = sorted(
            (one for one in world.payments() if one.message.channel == billed.id),
            key=lambda one: (one.message.booked_ms, one.id),
        )
        bookings = Bookings("EUR")
        assert [fault for one in payments if (fault := bookings.fault_of_next(one.message))] == []
        for invoice in billed.invoices:
            of_it = [one.message for one in payments if one.message.statement == invoice.message.statement]
            assert not of_it or fault_of_payments(of_it, invoices=[invoice.message]) is None
        moved = [one.message for one in payments if one.message.kind is PaymentKind.REALLOCATED]
        assert sum(one.amount_cents for one in moved) == 0
        owed = sum(one.message.gross_cents for one in billed.invoices)
        assert found.balance_cents == owed - sum(one.message.amount_cents for one in payments)
        is_owed = [item for item in found.items if item.open_cents > 0]
        assert not is_owed or found.ahead_cents <= 0


def test_settlement_db_is_lost_and_nothing_is_booked_twice() -> None:
    months = Months()
    rng = random.Random(5)
    for what in ["bill", "bill", "pay", "over", "ahead", "import", "pay", "import"]:
        months.happen(what, rng.randint(0, 9_999))
    months.end()
    before = months.world.by_entry()
    lost = World(*months.world.billed)
    lost.ledger = months.world.ledger
    months.world = lost
    months.end()
    assert months.world.by_entry() == before


def test_a_movement_told_with_other_words_is_held() -> None:
    months = Months()
    months.happen("bill", 1)
    months.happen("pay", 1)
    months.read(0, kills=False)
    (sent,) = months.movements
    report = months.world.read([replace(sent, reference="")], shape="sparse", statement_id="OTHER")
    assert [one.decision.kind for one in report.decided] == ["ambiguous"]
    assert [one.decision.findings for one in report.decided] == [("looks-booked",)]
    assert len(months.world.by_entry()) == 1


def test_a_booking_that_comes_after_the_next_statement_is_not_booked_before_it() -> None:
    """Rule 42 of docs/spec/audit.md: what was booked so early, a statement that is signed had to count already."""
    months = Months()
    months.happen("bill", 1)
    months.happen("pay", 1)
    months.world.bookings_left, months.world.is_told = 0, False
    with contextlib.suppress(Killed):
        months.world.read(months.movements)
    assert months.world.by_entry() == {}
    months.world.bookings_left = -1
    billed, _, _ = months.payer(1)
    for _ in range(3):
        months.happen("bill", 1)
    months.world.read(months.movements)
    (paid,) = [one.message for one in months.world.payments()]
    assert paid.booked_ms == billed.statements[-2].message.stated_ms
    assert paid.amount_cents == months.movements[0].cents
