"""Which invoice each entry is for: every kind of decision, and what holds whatever comes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import UsageError
from p2pgrid.settlement.payments.by_hand import book_by_hand, undo_by_hand
from p2pgrid.settlement.payments.decisions import (
    Booking,
    Decision,
    Evidence,
    Finding,
    Kind,
    OpenInvoice,
    PrepaidAccount,
)
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.matching import match
from p2pgrid.settlement.payments.reference import creditor_reference_of
from tests.settlement.payments.bank import SHAPES, Bank, Movement
from tests.settlement.payments.makers import ALICE, BOB, CAROL, entry, invoice, read, reference

A = invoice("LT-2026-000001", 10_000, debtor_name="Alice GmbH", debtor_ibans=(ALICE,))
B = invoice("LT-2026-000002", 5_000, debtor_name="Bobas OÜ", debtor_ibans=(BOB,))
A2 = invoice("LT-2026-000003", 2_500, debtor_name="Alice GmbH", debtor_ibans=(ALICE,))
NAMELESS = invoice("LT-2026-000004", 777, debtor_name="Järvi Laskenta Oy")
PAID = invoice("LT-2026-000005", 4_000, 4_000, debtor_name="Alice GmbH", debtor_ibans=(ALICE,))
CREDIT_NOTE = invoice("LT-2026-000006", -1_500, debtor_name="Bobas OÜ", debtor_ibans=(BOB,))
PURCHASE = invoice("RG-77-2026-11", -8_000, debtor_name="Carol Oy", debtor_ibans=(CAROL,), is_purchase=True)
SHORT = invoice("17", 321)
OPEN = (A, B, A2, NAMELESS, PAID, CREDIT_NOTE, PURCHASE, SHORT)
CHANNEL = PrepaidAccount(name="channel-9", reference=reference("channel-9"), debtor_ibans=(CAROL,))

REF_A, REF_B = A.reference, B.reference
MISTYPED = REF_A[:10] + "7" + REF_A[11:20] + REF_A[21:]
assert REF_A[10] != "7"


def one(
    entry: BookedEntry, *, earlier: tuple[Decision, ...] = (), invoices: tuple[OpenInvoice, ...] = OPEN
) -> Decision:
    (decision,) = match([entry], invoices, prepaid=[CHANNEL], earlier=earlier)
    assert decision.reason.endswith(".")
    return decision


K, E, F = Kind, Evidence, Finding


@pytest.mark.parametrize(
    ("case", "given", "kind", "evidence", "bookings", "on_account", "findings"),
    [
        ("reference", entry(10_000, end_to_end_id=REF_A), K.EXACT, E.REFERENCE, {A: 10_000}, 0, ()),
        ("part", entry(4_000, end_to_end_id=REF_A), K.PART, E.REFERENCE, {A: 4_000}, 0, ()),
        ("over", entry(10_001, end_to_end_id=REF_A), K.OVER, E.REFERENCE, {A: 10_000}, 1, ()),
        (
            "a part whose amount is that of another invoice: the payer's word counts",
            entry(2_500, end_to_end_id=REF_A, counterparty_iban=ALICE),
            K.PART,
            E.REFERENCE,
            {A: 2_500},
            0,
            (),
        ),
        (
            "the RF reference, as structured remittance",
            entry(10_000, structured_reference=creditor_reference_of(REF_A)),
            K.EXACT,
            E.REFERENCE,
            {A: 10_000},
            0,
            (),
        ),
        ("cut", entry(10_000, remittance_text=REF_A[:20]), K.EXACT, E.CUT_REFERENCE, {A: 10_000}, 0, ()),
        ("mistyped", entry(10_000, remittance_text=MISTYPED), K.EXACT, E.MISTYPED_REFERENCE, {A: 10_000}, 0, ()),
        ("number", entry(9, remittance_text="Rg. lt2026/1 Danke"), K.PART, E.INVOICE_NUMBER, {A: 9}, 0, ()),
        ("broken number", entry(9, remittance_text="LT-2026-00\n0001"), K.PART, E.INVOICE_NUMBER, {A: 9}, 0, ()),
        (
            "a short number and its amount",
            entry(321, remittance_text="17"),
            K.EXACT,
            E.INVOICE_NUMBER,
            {SHORT: 321},
            0,
            (),
        ),
        ("a short number alone", entry(320, remittance_text="17 November"), K.UNRELATED, E.NONE, {}, 0, ()),
        ("amount and account", entry(5_000, counterparty_iban=BOB), K.EXACT, E.AMOUNT_AND_DEBTOR, {B: 5_000}, 0, ()),
        (
            "amount and name",
            entry(777, counterparty_name="JARVI LASKENTA OY"),
            K.EXACT,
            E.AMOUNT_AND_DEBTOR,
            {NAMELESS: 777},
            0,
            (),
        ),
        (
            "amount and cut name",
            entry(777, counterparty_name="Järvi Laskenta"),
            K.EXACT,
            E.AMOUNT_AND_DEBTOR,
            {NAMELESS: 777},
            0,
            (),
        ),
        (
            "two named",
            entry(15_000, remittance_text=f"{REF_A} {REF_B}"),
            K.COMBINED,
            E.REFERENCE,
            {A: 10_000, B: 5_000},
            0,
            (),
        ),
        (
            "two named, too little: in the order named",
            entry(12_000, remittance_text=f"{REF_A} {REF_B}"),
            K.COMBINED,
            E.REFERENCE,
            {A: 10_000, B: 2_000},
            0,
            (),
        ),
        (
            "reference of one, number of the other, amount of both",
            entry(15_000, end_to_end_id=REF_A, remittance_text=f"and {B.number}"),
            K.COMBINED,
            E.REFERENCE,
            {A: 10_000, B: 5_000},
            0,
            (F.NAMES_MORE,),
        ),
        (
            "the sum of what the payer owes",
            entry(12_500, counterparty_iban=ALICE),
            K.COMBINED,
            E.AMOUNT_AND_DEBTOR,
            {A: 10_000, A2: 2_500},
            0,
            (),
        ),
        (
            "paid by another",
            entry(10_000, end_to_end_id=REF_A, counterparty_iban=CAROL),
            K.EXACT,
            E.REFERENCE,
            {A: 10_000},
            0,
            (F.OTHER_PAYER,),
        ),
        (
            "reused reference, amount of another invoice",
            entry(2_500, end_to_end_id=PAID.reference, counterparty_iban=ALICE),
            K.EXACT,
            E.AMOUNT_AND_DEBTOR,
            {A2: 2_500},
            0,
            (F.REUSED_REFERENCE,),
        ),
        (
            "paid twice",
            entry(4_000, end_to_end_id=PAID.reference, counterparty_iban=ALICE),
            K.OVER,
            E.REFERENCE,
            {},
            4_000,
            (F.REUSED_REFERENCE,),
        ),
        ("ahead", entry(50_000, end_to_end_id=CHANNEL.reference), K.PREPAYMENT, E.REFERENCE, {}, 50_000, ()),
        (
            "credit note paid",
            entry(-1_500, end_to_end_id=CREDIT_NOTE.reference),
            K.REFUND,
            E.REFERENCE,
            {CREDIT_NOTE: -1_500},
            0,
            (),
        ),
        (
            "purchase paid",
            entry(-8_000, end_to_end_id=PURCHASE.reference),
            K.EXACT,
            E.REFERENCE,
            {PURCHASE: -8_000},
            0,
            (),
        ),
        ("rent", entry(-90_000, remittance_text="Rent November"), K.UNRELATED, E.NONE, {}, 0, ()),
        (
            "a stranger's money",
            entry(10_000, counterparty_iban=CAROL[:-1], remittance_text="hello"),
            K.UNRELATED,
            E.NONE,
            {},
            0,
            (),
        ),
        ("nothing", entry(0, end_to_end_id=REF_A), K.UNRELATED, E.NONE, {}, 0, ()),
        ("dollars", entry(10_000, currency="USD", end_to_end_id=REF_A), K.FOREIGN_CURRENCY, E.NONE, {}, 0, ()),
        (
            "unknown reference",
            entry(1, end_to_end_id=reference("?")),
            K.AMBIGUOUS,
            E.NONE,
            {},
            0,
            (F.UNKNOWN_REFERENCE,),
        ),
    ],
)
def test_kinds(
    case: str,
    given: BookedEntry,
    kind: Kind,
    evidence: Evidence,
    bookings: dict[OpenInvoice, int],
    on_account: int,
    findings: tuple[Finding, ...],
) -> None:
    decision = one(given)
    assert (decision.kind, decision.evidence) == (kind, evidence), decision.reason
    assert decision.bookings == tuple(Booking(inv.number, cents) for inv, cents in bookings.items())
    assert (decision.on_account_cents, decision.findings) == (on_account, findings)


@pytest.mark.parametrize(
    ("case", "given", "candidates"),
    [
        ("a known payer, and an amount that fits nothing", entry(3_000, counterparty_iban=ALICE), {A, A2}),
        (
            "the reference names one, text and amount the other",
            entry(5_000, end_to_end_id=REF_A, remittance_text=B.number),
            {A, B},
        ),
        (
            "the number is another debtor's",
            entry(10_000, remittance_text=A.number, counterparty_iban=BOB),
            {A, B},
        ),
        ("the number of a paid invoice", entry(4_000, remittance_text=PAID.number), {PAID}),
        ("reused reference, nothing fits", entry(-4_100, end_to_end_id=PAID.reference), {PAID}),
    ],
)
def test_what_is_not_clear_is_booked_to_nobody(case: str, given: BookedEntry, candidates: set[OpenInvoice]) -> None:
    decision = one(given)
    assert decision.kind is Kind.AMBIGUOUS, decision.reason
    assert set(decision.candidates) == {inv.number for inv in candidates}
    assert not decision.bookings


def test_an_amount_that_fits_twice_is_nobodys() -> None:
    twin = replace(A2, number="LT-2026-000099", reference=reference("twin"))
    decision = one(entry(2_500, counterparty_iban=ALICE), invoices=(A2, twin))
    assert decision.kind is Kind.AMBIGUOUS
    assert set(decision.candidates) == {A2.number, twin.number}


def test_a_sum_that_fits_twice_is_nobodys() -> None:
    four = [invoice(f"I-2026-{n}", cents, debtor_ibans=(ALICE,)) for n, cents in enumerate((100, 200, 150, 150))]
    decision = one(entry(300, counterparty_iban=ALICE), invoices=tuple(four))
    assert decision.kind is Kind.AMBIGUOUS


def test_an_invoice_number_that_looks_like_a_date_needs_more() -> None:
    dated = invoice("2026-11-05", 4_321, debtor_ibans=(ALICE,))
    text = "payment of 2026-11-05"
    assert one(entry(1, remittance_text=text), invoices=(dated,)).kind is Kind.AMBIGUOUS
    assert one(entry(4_321, remittance_text=text), invoices=(dated,)).kind is Kind.EXACT
    assert one(entry(1, remittance_text=text, counterparty_iban=ALICE), invoices=(dated,)).kind is Kind.PART


def paid(inv: OpenInvoice, *decisions: Decision) -> OpenInvoice:
    """The invoice as it stands after those decisions."""
    booked = sum(b.amount_cents for d in decisions for b in d.bookings if b.invoice_number == inv.number)
    return replace(inv, paid_cents=inv.paid_cents + booked)


def test_a_return_opens_its_invoice_again() -> None:
    came = one(entry(10_000, end_to_end_id=REF_A, bank="X1"))
    went = entry(-10_000, day=5, end_to_end_id=REF_A, bank="X2", return_reason="FOCR", is_return=True)
    decision = one(went, earlier=(came,), invoices=(paid(A, came), B))
    assert decision.kind is Kind.RETURNED
    assert decision.bookings == (Booking(A.number, -10_000),)
    assert decision.undoes == came.entry.key
    assert "FOCR" in decision.reason
    again = one(replace(went, key="other", bank_reference="X3"), earlier=(came, decision), invoices=(A, B))
    assert again.kind is Kind.AMBIGUOUS, "a payment goes back once"


def test_a_return_of_an_invoice_that_is_handed_in_no_more() -> None:
    came = one(entry(10_000, end_to_end_id=REF_A, bank="X1"))
    went = entry(-10_000, day=5, end_to_end_id=REF_A, bank="X2", is_return=True)
    assert one(went, earlier=(came,), invoices=(B,)).bookings == (Booking(A.number, -10_000),)


def test_a_return_that_names_its_invoice_by_number() -> None:
    came = one(entry(10_000, end_to_end_id=REF_A, bank="X1"))
    went = entry(-10_000, day=5, bank="X2", is_return=True, remittance_text=f"return of {A.number}")
    assert one(went, earlier=(came,), invoices=(paid(A, came),)).bookings == (Booking(A.number, -10_000),)


def test_a_return_in_the_same_run_and_in_any_order() -> None:
    went = entry(-10_000, end_to_end_id=REF_A, bank="Y", is_return=True)
    for n in range(12):  # keys that sort before and after the return's
        came = entry(10_000, end_to_end_id=REF_A, bank=f"X{n}")
        for order in ([came, went], [went, came]):
            decisions = match(order, OPEN)
            assert [d.kind for d in decisions] == [Kind.EXACT, Kind.RETURNED]
    assert {entry(10_000, end_to_end_id=REF_A, bank=f"X{n}").key < went.key for n in range(12)} == {True, False}


def test_a_return_before_its_payment_waits() -> None:
    went = entry(-10_000, day=5, end_to_end_id=REF_A, is_return=True, bank="X2")
    held = one(went)
    assert held.kind is Kind.AMBIGUOUS
    came = entry(10_000, day=3, end_to_end_id=REF_A, bank="X1")
    assert [d.kind for d in match([went, came], OPEN)] == [Kind.EXACT, Kind.RETURNED]


def test_nothing_is_returned_before_it_came() -> None:
    came = one(entry(10_000, day=5, end_to_end_id=REF_A, bank="X1"))
    went = entry(-10_000, day=3, end_to_end_id=REF_A, is_return=True, bank="X2")
    assert one(went, earlier=(came,), invoices=(paid(A, came),)).kind is Kind.AMBIGUOUS


def test_a_return_that_may_undo_either_of_two_waits() -> None:
    one_of = replace(A, gross_cents=5_000)
    came = match(
        [
            entry(5_000, end_to_end_id=REF_A, bank="X1", counterparty_iban=CAROL),
            entry(5_000, end_to_end_id=REF_B, bank="X2", counterparty_iban=CAROL),
        ],
        [one_of, B],
    )
    settled = (paid(one_of, *came), paid(B, *came), replace(A2, debtor_ibans=(CAROL,)))
    went = entry(-5_000, day=4, is_return=True, bank="X3", counterparty_iban=CAROL)
    assert one(went, earlier=came, invoices=settled).kind is Kind.AMBIGUOUS
    told = replace(went, end_to_end_id=REF_B)
    assert one(told, earlier=came, invoices=settled).bookings == (Booking(B.number, -5_000),)
    other = replace(went, end_to_end_id=reference("?"))
    assert one(other, earlier=came[:1], invoices=settled).kind is Kind.AMBIGUOUS, "another id is another transfer"


def test_a_number_that_is_broken_within() -> None:
    assert one(entry(9, remittance_text="Rg LT-20\n26-0\n00001"), invoices=(A,)).bookings == (Booking(A.number, 9),)


def test_a_number_is_read_as_it_is_written() -> None:
    short, long = invoice("LT-2026-17", 500), invoice("LT-2026-178", 500)
    for text, meant in (
        ("LT-2026-17 8", short),
        ("LT 2026 178", long),
        ("lt-2026-0017, 8 Nov", short),
        ("LT202617", short),
    ):
        assert one(entry(500, remittance_text=text), invoices=(short, long)).bookings == (Booking(meant.number, 500),)


def test_a_decision_handed_in_twice_counts_once() -> None:
    came = one(entry(10_001, end_to_end_id=REF_A, bank="X1"))
    back = entry(-2, day=4, end_to_end_id=REF_A, bank="X2")
    assert one(back, earlier=(came, came), invoices=(paid(A, came),)).kind is not Kind.REFUND


def test_a_part_that_goes_back_comes_from_the_account_first_and_then_from_the_last_invoice() -> None:
    came = one(entry(16_000, remittance_text=f"{REF_A} {REF_B}", bank="X1", counterparty_iban=CAROL))
    assert (came.on_account_cents, came.on_account_of) == (1_000, A.number)
    first = entry(-3_000, day=4, is_return=True, bank="X2", counterparty_iban=CAROL, remittance_text=REF_A)
    second = entry(-5_000, day=5, is_return=True, bank="X3", counterparty_iban=CAROL, remittance_text=REF_A)
    decisions = match([first, second], [paid(A, came), paid(B, came)], earlier=[came])
    assert [d.kind for d in decisions] == [Kind.RETURNED, Kind.RETURNED]
    assert (decisions[0].on_account_cents, decisions[0].bookings) == (-1_000, (Booking(B.number, -2_000),))
    assert decisions[1].bookings == (Booking(B.number, -3_000), Booking(A.number, -2_000))


def test_our_own_transfer_that_came_back() -> None:
    went = one(entry(-8_000, end_to_end_id=PURCHASE.reference, instruction_id="KEY1", bank="X1"))
    back = entry(8_000, day=4, end_to_end_id=PURCHASE.reference, is_return=True, return_reason="AC04", bank="X2")
    decision = one(back, earlier=(went,), invoices=(paid(PURCHASE, went),))
    assert decision.kind is Kind.RETURNED
    assert decision.bookings == (Booking(PURCHASE.number, 8_000),)


def test_our_own_transfer_that_came_back_without_a_word_of_the_bank() -> None:
    """It is no money of the payee's: the purchase is open again."""
    went = one(entry(-8_000, end_to_end_id=PURCHASE.reference, bank="X1"))
    back = entry(8_000, day=4, end_to_end_id=PURCHASE.reference, bank="X2")
    decision = one(back, earlier=(went,), invoices=(paid(PURCHASE, went),))
    assert (decision.kind, decision.bookings) == (Kind.RETURNED, (Booking(PURCHASE.number, 8_000),))
    early = one(back)
    assert (early.kind, early.candidates) == (Kind.AMBIGUOUS, (PURCHASE.number,)), "it waits for the transfer"


def test_what_stood_on_account_is_paid_back() -> None:
    came = one(entry(12_000, end_to_end_id=REF_A, bank="X1"))
    back = entry(-2_000, day=4, end_to_end_id=REF_A, bank="X2", counterparty_iban=ALICE)
    decision = one(back, earlier=(came,), invoices=(paid(A, came),))
    assert (decision.kind, decision.on_account_cents, decision.on_account_of) == (Kind.REFUND, -2_000, A.number)
    more = replace(back, key="k", bank_reference="X3")
    assert one(more, earlier=(came, decision), invoices=(paid(A, came),)).kind is not Kind.REFUND


def test_two_documents_of_one_statement() -> None:
    """A wrong invoice, its credit note, and the right one: all of one statement, so of one reference."""
    wrong = replace(A, number="LT-2026-000010", gross_cents=12_100)
    note = replace(A, number="LT-2026-000011", gross_cents=-12_100)
    right = replace(A, number="LT-2026-000012", gross_cents=10_000)
    came = entry(12_100, end_to_end_id=REF_A)
    decision = one(came, invoices=(replace(wrong, paid_cents=12_100), replace(note, paid_cents=-12_100), right))
    assert (decision.kind, decision.bookings, decision.on_account_cents) == (
        Kind.OVER,
        (Booking(right.number, 10_000),),
        2_100,
    )


def test_one_movement_that_two_files_tell_differently_is_not_booked_twice() -> None:
    movement = [Movement(cents=10_000, end_to_end_id=REF_A)]
    told = [read(Bank(shape=shape, statement_id=shape).write(movement)).entries[0] for shape in ("sparse", "notice")]
    told[0] = replace(told[0], remittance_text=A.number)
    assert told[0].key != told[1].key
    decisions = match(told, OPEN)
    assert sorted(d.kind for d in decisions) == [Kind.AMBIGUOUS, Kind.EXACT]
    assert next(d for d in decisions if not d.is_booked).findings == (Finding.LOOKS_BOOKED,)
    (later,) = match([told[1]], [replace(A, paid_cents=5_000)], earlier=match([told[0]], OPEN))
    assert later.findings == (Finding.LOOKS_BOOKED,)


def test_of_two_tellings_in_one_run_the_one_that_says_more_is_booked() -> None:
    """A notification with nothing but the bank's reference, and the statement with all: as if they came one by one."""
    bare = entry(10_000, bank="X1")
    full = replace(bare, end_to_end_id=REF_A)
    for poor, rich in ((bare, replace(full, source_kind="camt.054")), (replace(bare, source_kind="camt.054"), full)):
        assert poor.key == rich.key
        decisions = match([poor, rich], OPEN)
        assert [d.entry for d in decisions if d.kind is Kind.EXACT] == [rich]
        assert len([d for d in decisions if d.is_booked]) == 1


TOLD = entry(4_000, end_to_end_id=REF_A, bank="X1", counterparty_iban=ALICE)


@pytest.mark.parametrize(
    ("case", "other", "is_held"),
    [
        ("another statement of the kind, another reference", {"statement_id": "T", "bank_reference": "X2"}, False),
        ("the same statement", {"source_kind": "camt.053", "bank_reference": ""}, False),
        ("another kind, another reference", {"source_kind": "camt.054", "bank_reference": "X2"}, True),
        ("another kind, no reference", {"source_kind": "camt.054", "bank_reference": ""}, True),
        ("another kind, no end-to-end id", {"source_kind": "camt.054", "end_to_end_id": ""}, True),
        ("another kind, another account", {"source_kind": "camt.054", "counterparty_iban": BOB}, False),
        ("another kind, another end-to-end id", {"source_kind": "camt.054", "end_to_end_id": "X"}, False),
        ("typed by hand", {"source_kind": "manual", "statement_id": "manual", "bank_reference": ""}, True),
    ],
)
def test_what_looks_like_an_entry_that_was_booked(case: str, other: dict[str, str], is_held: bool) -> None:
    second = replace(TOLD, key="B", remittance_text=REF_A, **other)  # type: ignore[arg-type]
    decisions = match([replace(TOLD, key="A"), second], OPEN)
    assert [d.findings == (Finding.LOOKS_BOOKED,) for d in decisions] == [False, is_held]
    assert [d.kind for d in decisions] == [Kind.PART, Kind.AMBIGUOUS if is_held else Kind.PART]


def test_the_number_in_the_text_says_which_document_of_one_reference_is_meant() -> None:
    wrong, right = replace(A, number="LT-2026-000010", gross_cents=12_100), replace(A, number="LT-2026-000012")
    for cents, bookings in (
        (10_000, (Booking(right.number, 10_000),)),
        (4_000, (Booking(right.number, 4_000),)),
        (11_000, (Booking(right.number, 10_000), Booking(wrong.number, 1_000))),
    ):
        came = entry(cents, end_to_end_id=REF_A, remittance_text=f"{right.number} {creditor_reference_of(REF_A)}")
        assert one(came, invoices=(wrong, right)).bookings == bookings
    bare = entry(10_000, end_to_end_id=REF_A)
    assert one(bare, invoices=(wrong, right)).bookings == (Booking(right.number, 10_000),), "so does the amount"


def test_documents_of_one_reference_are_paid_in_the_order_of_their_numbers() -> None:
    both = [replace(A, number=number, gross_cents=500) for number in ("N-2", "N-1")]
    for given_order in (both, both[::-1]):
        (decision,) = match([entry(600, end_to_end_id=REF_A)], given_order)
        assert decision.bookings == (Booking("N-1", 500), Booking("N-2", 100))


def test_two_equal_payments_of_one_day_are_two() -> None:
    movements = [Movement(cents=5_000, end_to_end_id=REF_A, text="half")] * 2
    for shape in SHAPES:
        if shape != "sparse":
            decisions = match(read(Bank(shape=shape).write(movements)).entries, OPEN)
            assert [d.kind for d in decisions] == [Kind.PART, Kind.EXACT], shape


def test_by_hand() -> None:
    came = entry(3_000, counterparty_iban=ALICE)
    decision = book_by_hand(came, {A.number: 2_000}, OPEN, earlier=(), reason="She wrote.", on_account_of=A.number)
    assert (decision.kind, decision.evidence, decision.on_account_cents) == (Kind.OVER, Evidence.PERSON, 1_000)
    assert one(came, earlier=(decision,)).kind is Kind.DUPLICATE
    for shares, account in (
        ({A.number: 2_000}, ""),
        ({A.number: 3_001}, A.number),
        ({A2.number: 2_501, A.number: 499}, ""),
        ({A.number: 4_000, A2.number: -1_000}, ""),
        ({CREDIT_NOTE.number: 3_000}, ""),
        ({"none": 3_000}, ""),
    ):
        with pytest.raises(UsageError):
            book_by_hand(came, shares, OPEN, earlier=(), reason="x", on_account_of=account)
    with pytest.raises(UsageError, match="booked already"):
        book_by_hand(came, {A.number: 3_000}, OPEN, earlier=(decision,), reason="x")


def test_a_return_by_hand_and_the_reversal_of_a_return() -> None:
    came = one(entry(12_000, end_to_end_id=REF_A, bank="X1"))
    went = entry(-12_000, day=4, is_return=True, bank="X2")
    assert one(went, earlier=(came,), invoices=(paid(A, came),)).kind is Kind.UNRELATED, "it names nothing"
    back = undo_by_hand(went, came.entry.key, earlier=(came,), reason="The bank said so by telephone.")
    assert (back.kind, back.evidence, back.on_account_cents, back.on_account_of) == (
        K.RETURNED,
        E.PERSON,
        -2_000,
        A.number,
    )
    assert back.bookings == (Booking(A.number, -10_000),)
    again = entry(12_000, day=5, end_to_end_id=REF_A, is_return=True, bank="X3")
    assert one(again, earlier=(came, back), invoices=(A,)).kind is Kind.AMBIGUOUS
    for order in ((came, back), (back, came)):
        forth = undo_by_hand(again, back.entry.key, earlier=order, reason="The recall was turned down.")
        assert (forth.bookings, forth.on_account_cents) == ((Booking(A.number, 10_000),), 2_000)
    third = entry(-12_000, day=6, end_to_end_id=REF_A, is_return=True, bank="X4")
    for order in ((came, back, forth), (forth, back, came)):
        decision = one(third, earlier=order, invoices=(paid(A, came),))
        assert (decision.kind, decision.bookings) == (Kind.RETURNED, back.bookings), "all of it is there again"
    for entry_, key, words in (
        (went, "none", "no entry 'none' was booked"),
        (replace(went, amount_cents=-12_001), came.entry.key, "120.00 of that entry"),
        (replace(went, amount_cents=12_000), came.entry.key, "cannot undo"),
        (replace(went, currency="USD"), came.entry.key, "cannot undo"),
        (came.entry, came.entry.key, "booked already"),
    ):
        with pytest.raises(UsageError, match=words):
            undo_by_hand(entry_, key, earlier=(came,), reason="x")


# -- what holds whatever comes ----------------------------------------------------------------------------------------

NUMBERS = [inv.number for inv in OPEN]
TEXTS = ["", "thanks", A.number, B.number, f"{A.number} {A2.number}", REF_A.lower(), MISTYPED, "17", REF_B[:18], "2026"]
movements = st.builds(
    Movement,
    cents=st.sampled_from([1, 321, 2_500, 5_000, 7_500, 10_000, 12_500, -1_500, -8_000, -10_000, 100]),
    day=st.sampled_from(["2026-11-02", "2026-11-03"]),
    end_to_end_id=st.sampled_from(["", REF_A, REF_B, PAID.reference, CREDIT_NOTE.reference, CHANNEL.reference]),
    text=st.sampled_from(TEXTS),
    name=st.sampled_from(["Alice GmbH", "Bobas OU", "Somebody"]),
    iban=st.sampled_from(["", ALICE, BOB, CAROL]),
    is_reversal=st.booleans(),
)
banks = st.sampled_from(SHAPES)


def open_after(decisions: list[Decision]) -> tuple[OpenInvoice, ...]:
    return tuple(paid(inv, *decisions) for inv in OPEN)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(movements, min_size=1, max_size=6), min_size=1, max_size=4), banks, st.randoms())
def test_no_entry_books_twice_and_no_cent_is_lost(days: list[list[Movement]], shape: str, rng: random.Random) -> None:
    files = [read(Bank(shape=shape, statement_id=f"S{n}").write(day)) for n, day in enumerate(days)]
    told = {e.key: e for file in files for e in file.entries}
    again = files + files
    rng.shuffle(again)
    booked: list[Decision] = []
    for file in again:
        for decision in match(file.entries, open_after(booked), prepaid=[CHANNEL], earlier=booked):
            if decision.is_booked:
                booked.append(decision)
    keys = [d.entry.key for d in booked]
    assert len(keys) == len(set(keys))
    assert set(keys) <= set(told)
    moved = sum(e.amount_cents for e in (told[key] for key in keys))
    on_invoices = sum(inv.paid_cents for inv in open_after(booked)) - sum(inv.paid_cents for inv in OPEN)
    assert moved == on_invoices + sum(d.on_account_cents for d in booked)
    for inv in open_after(booked):
        assert abs(inv.paid_cents) <= abs(inv.gross_cents), "an invoice takes no more than it asks"
        assert inv.paid_cents * inv.gross_cents >= 0


@settings(max_examples=150, deadline=None)
@given(st.lists(movements, min_size=1, max_size=8), banks, st.randoms())
def test_the_order_of_what_is_given_changes_nothing(told: list[Movement], shape: str, rng: random.Random) -> None:
    entries = list(read(Bank(shape=shape).write(told)).entries)
    first = match(entries, OPEN, prepaid=[CHANNEL])
    mixed, invoices = entries * 2, list(OPEN)
    rng.shuffle(mixed)
    rng.shuffle(invoices)
    second = [d for d in match(mixed, invoices, prepaid=[CHANNEL]) if d.kind is not Kind.DUPLICATE]
    assert list(first) == second
