"""One movement that several files tell of, each in its own way: it is booked once."""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.settlement.payments.decisions import Booking, Decision, Evidence, Finding, Kind, OpenInvoice
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.manual_rail import ManualRail
from p2pgrid.settlement.payments.matching import match
from p2pgrid.settlement.payments.refusals import BankFileError
from tests.settlement.payments.bank import SHAPES, Bank, Movement, with_references
from tests.settlement.payments.makers import ALICE, BOB, OURS, entry, invoice, read

A = invoice("LT-2026-000001", 10_000, debtor_name="Alice GmbH", debtor_ibans=(ALICE,))
B = invoice("LT-2026-000002", 5_000, debtor_name="Bobas OÜ", debtor_ibans=(BOB,))
PAYS_A = Movement(cents=10_000, end_to_end_id=A.reference, text=A.number)
PAYS_B = Movement(cents=5_000, end_to_end_id=B.reference, text=B.number, iban=BOB)


def one_by_one(*files: tuple[BookedEntry, ...], invoices: tuple[OpenInvoice, ...] = (A, B)) -> list[Decision]:
    """Every decision of file after file, each with what the earlier ones booked."""
    made: list[Decision] = []
    for entries in files:
        booked = [one for one in made if one.is_booked]
        paid = {inv.number: inv.paid_cents for inv in invoices}
        for booking in (b for one in booked for b in one.bookings):
            paid[booking.invoice_number] += booking.amount_cents
        now = [replace(inv, paid_cents=paid[inv.number]) for inv in invoices]
        made += match(entries, now, earlier=booked)
    return made


def total(decisions: list[Decision]) -> int:
    return sum(one.entry.amount_cents for one in decisions if one.is_booked)


def held(decisions: list[Decision]) -> list[Decision]:
    return [one for one in decisions if Finding.LOOKS_BOOKED in one.findings]


def typed(*rows: str) -> tuple[BookedEntry, ...]:
    head = "date;amount;currency;account;name;iban;reference;text\n"
    return ManualRail().read(io.BytesIO((head + "".join(f"{row}\n" for row in rows)).encode()), "list.csv").entries


def test_a_statement_that_is_issued_again_under_its_old_id_in_other_words() -> None:
    """First without the bank's references, then with them."""
    again = Bank(shape="plain").write([PAYS_A])
    first = re.sub(rb"<AcctSvcrRef>.*?</AcctSvcrRef>\n", b"", again)
    for files in permutations([read(first).entries, read(again).entries]):
        assert files[0][0].key != files[1][0].key
        made = one_by_one(*files)
        assert (total(made), len(held(made))) == (10_000, 1)


def test_a_statement_in_both_versions_with_references_at_different_places() -> None:
    old = Bank(shape="plain", statement_id="DAY").write([replace(PAYS_A, reference="E1")])
    new = Bank(shape="wrapped", statement_id="MONTH").write([replace(PAYS_A, reference="E1")]).decode()
    new = new.replace("<Refs>", "<Refs><AcctSvcrRef>T1</AcctSvcrRef>")
    for files in permutations([read(old).entries, read(new.encode()).entries]):
        made = one_by_one(*files)
        assert (total(made), len(held(made))) == (10_000, 1)


@pytest.mark.parametrize("reference", ["0000000000", "XXXX", "NOTPROVIDED", "nonref"])
def test_what_the_bank_writes_for_want_of_a_reference_is_none(reference: str) -> None:
    """Else two payments of one day and amount, in two statements, were one."""
    ours = [replace(one, cents=4_000, reference=reference) for one in (PAYS_A, PAYS_B)]
    files = [read(Bank(statement_id=f"S{n}").write([one])).entries for n, one in enumerate(ours)]
    assert [one.bank_reference for (one,) in files] == ["", ""]
    assert total(one_by_one(*files)) == 8_000


def test_names_and_texts_in_other_letters_are_not_all_the_same() -> None:
    ours = [
        Movement(cents=4_000, text=text, name=name, iban="") for text, name in (("Дължимо", "Иван"), ("Юни", "Петър"))
    ]
    files = [read(Bank(shape="sparse", statement_id=f"S{n}").write([one])).entries for n, one in enumerate(ours)]
    assert files[0][0].key != files[1][0].key


def test_a_list_typed_again_in_other_words() -> None:
    row = f"2026-11-02;40.00;EUR;{OURS};Alice;;;{A.number}"
    made = one_by_one(typed(row), typed(row.replace("Alice", "Alice GmbH")))
    assert (total(made), len(held(made))) == (4_000, 1)


def test_a_list_that_grows() -> None:
    """A second line beside the first, which the list still has, is a second movement."""
    first = f"2026-11-02;40.00;EUR;{OURS};Alice;;;{A.number}"
    made = one_by_one(typed(first), typed(first, first + " second part"))
    assert sorted(one.kind for one in made) == [Kind.DUPLICATE, Kind.PART, Kind.PART]


@pytest.mark.parametrize(
    ("case", "other", "is_held"),
    [
        ("the same reference of the bank's", {"source_kind": "camt.054", "end_to_end_id": ""}, True),
        ("the same end-to-end id", {"source_kind": "camt.054", "bank_reference": "X2"}, True),
        ("no id alike", {"source_kind": "camt.054", "bank_reference": "X2", "end_to_end_id": ""}, False),
        ("another end-to-end id", {"source_kind": "camt.054", "end_to_end_id": "X"}, False),
        ("statements of one kind: a second part", {"statement_id": "T", "bank_reference": "X2"}, False),
    ],
)
def test_a_notification_of_another_day(case: str, other: dict[str, str], is_held: bool) -> None:
    """Saturday's instant payment, which the statement books on Monday."""
    first = entry(4_000, day=7, end_to_end_id=A.reference, bank="X1")
    second = replace(entry(4_000, day=9, bank="X1", end_to_end_id=A.reference, remittance_text=A.number), **other)  # type: ignore[arg-type]
    for files in permutations([(first,), (replace(second, key="other"),)]):
        made = one_by_one(*files)
        assert len(held(made)) == is_held
        assert total(made) == (4_000 if is_held else 8_000)
    late = replace(second, key="other", booking_date=second.booking_date.replace(day=13))
    assert total(one_by_one((first,), (late,))) == 8_000


def test_what_was_left_open_and_is_booked_from_another_file_says_so() -> None:
    """Else a person would book it a second time."""
    bare = entry(4_000, counterparty_iban=ALICE)
    full = entry(4_000, counterparty_iban=ALICE, end_to_end_id=A.reference, source_kind="camt.054")
    made = one_by_one((bare,), (full,), (bare,))
    assert [one.kind for one in made] == [Kind.AMBIGUOUS, Kind.PART, Kind.AMBIGUOUS]
    assert [bool(held([one])) for one in made] == [False, False, True]


# -- batches ----------------------------------------------------------------------------------------------------------


def collective(*parts: Movement) -> tuple[BookedEntry, ...]:
    """The parts as one sum, with the references of all and the amounts of none."""
    data = Bank(shape="batch", statement_id="BATCH").write(parts).decode()
    within = re.sub(r"(</Refs>\n)<Amt.*\n<CdtDbtInd>\w+</CdtDbtInd>", r"\1", data)
    (one,) = read(within.encode()).entries
    assert one.is_collective
    return (one,)


def parts_of(*parts: Movement) -> tuple[BookedEntry, ...]:
    return read(Bank(shape="notice", statement_id="NOTICE").write(parts)).entries


def test_a_batch_and_its_parts_are_one_or_the_other() -> None:
    """The statement has the sum, the notification its parts."""
    files = [collective(PAYS_A, PAYS_B), parts_of(PAYS_A, PAYS_B)]
    made = one_by_one(*files)
    assert [one.kind for one in made] == [Kind.COMBINED, Kind.AMBIGUOUS, Kind.AMBIGUOUS]
    assert (total(made), len(held(made))) == (15_000, 2)
    made = one_by_one(*files[::-1])
    assert [one.kind for one in made] == [Kind.EXACT, Kind.EXACT, Kind.AMBIGUOUS]
    assert (total(made), len(held(made))) == (15_000, 1)
    assert total(list(match([*files[0], *files[1]], [A, B]))) == 15_000


def test_a_batch_of_halves_after_its_parts() -> None:
    halves = [replace(PAYS_A, cents=5_000), replace(PAYS_B, cents=2_500)]
    made = one_by_one(parts_of(*halves), collective(*halves))
    assert (total(made), len(held(made))) == (7_500, 1)


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("one pays too little", [replace(PAYS_A, cents=6_000), PAYS_B]),
        ("one pays too much", [replace(PAYS_A, cents=11_000), PAYS_B]),
        ("a stranger is among them", [PAYS_A, Movement(cents=700, end_to_end_id="GIFT")]),
    ],
)
def test_a_batch_that_is_not_all_that_is_open_is_nobodys(case: str, parts: list[Movement]) -> None:
    (decision,) = match(collective(*parts), [A, B])
    assert decision.kind is Kind.AMBIGUOUS
    assert A.number in decision.candidates


def test_a_batch_that_is_all_that_is_open() -> None:
    (decision,) = match(collective(PAYS_A, PAYS_B), [A, B])
    assert decision.bookings == (Booking(A.number, 10_000), Booking(B.number, 5_000))
    assert decision.evidence is Evidence.REFERENCE


@pytest.mark.parametrize("told", [0, 1])
def test_a_batch_of_which_the_bank_tells_fewer_parts_than_there_are(told: int) -> None:
    """The one that it tells has not paid the whole."""
    data = Bank(shape="plain").write([replace(PAYS_A, cents=9_000)]).decode()
    data = data.replace("<NtryDtls>", "<NtryDtls><Btch><NbOfTxs>3</NbOfTxs></Btch>")
    if not told:
        data = re.sub(r"<TxDtls>.*?</TxDtls>\n", "", data, flags=re.DOTALL)
        data = data.replace("</NtryDtls>", f"</NtryDtls><AddtlNtryInf>{A.number}</AddtlNtryInf>")
    (decision,) = match(read(data.encode()).entries, [A, B])
    assert (decision.kind, decision.entry.is_collective) == (Kind.AMBIGUOUS, True)
    with pytest.raises(BankFileError, match="'x'; expected a number"):
        read(data.replace("<NbOfTxs>3", "<NbOfTxs>x").encode())


def test_a_batch_that_is_all_of_one_invoice_and_names_another_too() -> None:
    """Which of its parts is for which, nobody can tell: one of 10.00 was for B, say."""
    parts = [replace(PAYS_A, cents=9_000), replace(PAYS_B, cents=1_000)]
    (decision,) = match(collective(*parts), [A, B])
    assert (decision.kind, set(decision.candidates)) == (Kind.AMBIGUOUS, {A.number, B.number})
    (decision,) = match(collective(*parts), [A, replace(B, paid_cents=5_000)])
    assert decision.kind is Kind.AMBIGUOUS
    singles = parts_of(*parts)
    for files in permutations([collective(*parts), singles[:1], singles[1:]]):
        assert total(one_by_one(*files)) <= 10_000


def test_a_batch_that_names_a_credit_note_of_the_same_statement_besides() -> None:
    note = replace(invoice("LT-2026-000003", -700, paid=-700), reference=A.reference)
    (decision,) = match(collective(PAYS_A, PAYS_B), [A, B, note])
    assert decision.bookings == (Booking(A.number, 10_000), Booking(B.number, 5_000))


def test_a_batch_of_returns_of_what_was_settled_long_ago() -> None:
    """The caller no longer gives the invoice."""
    paid = match([entry(10_000, end_to_end_id=A.reference)], [A])
    back = entry(-10_000, day=5, end_to_end_id=A.reference, is_return=True, is_collective=True)
    (decision,) = match([back], [B], earlier=paid)
    assert decision.kind is Kind.AMBIGUOUS


# -- references of several sorts --------------------------------------------------------------------------------------


def as_batch(statement_id: str, *parts: Movement, ids: str = "") -> tuple[BookedEntry, ...]:
    data = Bank(shape="batch", statement_id=statement_id).write(parts).decode()
    return read(re.sub(r"<EndToEndId>.*?<", f"<EndToEndId>{ids}<", data).encode() if ids else data.encode()).entries


def by_payers_bank(shape: str, ids: str) -> tuple[BookedEntry, ...]:
    data = Bank(shape=shape, statement_id=shape).write([PAYS_A]).decode()
    data = re.sub(r"<AcctSvcrRef>.*?</AcctSvcrRef>\n", "", data)
    return read(data.replace("</EndToEndId>", f"</EndToEndId>{ids}").encode()).entries


UETR = "<UETR>8a562c67-ca16-48ba-b074-65581be6f001</UETR>"
TENTH_OF_A = replace(PAYS_A, cents=1_000)


@pytest.mark.parametrize(
    ("case", "files", "cents"),
    [
        (
            "a batch of one, and the payment in it",
            [as_batch("S1", TENTH_OF_A), read(Bank(statement_id="S2").write([TENTH_OF_A])).entries],
            1_000,
        ),
        (
            "parts of a batch, without end-to-end ids and with them",
            [as_batch("S1", TENTH_OF_A, PAYS_B, ids="NOTPROVIDED"), as_batch("S2", TENTH_OF_A, PAYS_B)],
            6_000,
        ),
        (
            "TxId in version 2, UETR in version 8",
            [by_payers_bank("sparse", "<TxId>TX1</TxId>"), by_payers_bank("wrapped", f"{UETR}<TxId>TX1</TxId>")],
            10_000,
        ),
    ],
)
def test_references_of_two_sorts_do_not_make_two_of_one(
    case: str, files: list[tuple[BookedEntry, ...]], cents: int
) -> None:
    for told_so in permutations(files):
        made = one_by_one(*told_so)
        assert total(made) == cents
        assert len(held(made)) == len(files[0])


def test_parts_of_a_batch_without_end_to_end_ids_that_stand_in_another_order() -> None:
    """One key must not be the one payer's in a file, and the other's in the next."""
    parts = [TENTH_OF_A, replace(PAYS_B, cents=1_000)]
    files = [as_batch("S1", *told_so, ids="NOTPROVIDED") for told_so in (parts, parts[::-1])]
    keys = [{one.counterparty_iban: one.key for one in entries} for entries in files]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 2


def test_two_batches_of_one_with_two_references_are_two() -> None:
    first, second = as_batch("S1", TENTH_OF_A), as_batch("S2", TENTH_OF_A)
    other = replace(second[0], key="other", bank_reference="BATCH0002")
    assert total(one_by_one(first, (other,))) == 2_000
    assert total(
        one_by_one(first, read(Bank(statement_id="S2").write([replace(TENTH_OF_A, end_to_end_id="X2")])).entries)
    ) == (2_000)


# -- whatever the files -----------------------------------------------------------------------------------------------

days = st.lists(st.sampled_from([1_000, 2_000, 4_000, 5_000, 8_000, 10_000]), min_size=1, max_size=4)
ways = st.tuples(st.sampled_from([*SHAPES, "collective"]), st.sampled_from(["all", "batch", "none"]), st.booleans())
"""How a file tells of a day: shape, which of the bank's references it gives, and whether it gives end-to-end ids."""


def told(way: tuple[str, str, bool], statement_id: str, movements: list[Movement]) -> tuple[BookedEntry, ...]:
    """One day in one file. What two files give of one thing is the same in both, as it is at a bank."""
    shape, references, has_ids = way
    if shape == "collective":
        return collective(*movements) if len(movements) > 1 else ()
    if shape == "batch" and references != "all":
        movements = [replace(one, reference="") for one in movements]
    data = Bank(shape=shape, statement_id=statement_id).write(movements).decode()
    if references == "none":
        data = re.sub(r"<AcctSvcrRef>.*?</AcctSvcrRef>", "", data)
    if not has_ids:
        data = re.sub(r"<EndToEndId>.*?<", "<EndToEndId>NOTPROVIDED<", data)
    return read(data.encode()).entries


@settings(max_examples=200, deadline=None)
@given(days, st.lists(ways, min_size=2, max_size=5), st.randoms(), st.booleans())
def test_whatever_files_tell_of_a_day_no_cent_is_booked_twice(
    cents: list[int], how: list[tuple[str, str, bool]], rng: random.Random, at_once: bool
) -> None:
    """The same payments in every file, each in its bank's words and order: the sum of what is booked is what came, or
    less where a person must look."""
    truth = with_references([replace(rng.choice([PAYS_A, PAYS_B]), cents=one) for one in cents])
    files = [told(way, f"S{n % 2}", rng.sample(truth, len(truth))) for n, way in enumerate(how)]
    if at_once:
        files = [tuple(one for entries in files for one in entries)]
    made = one_by_one(*files, *files)
    assert total(made) <= sum(cents)
    booked = Counter(one.entry.amount_cents for one in made if one.is_booked and not one.entry.is_collective)
    assert not booked - Counter(cents)
