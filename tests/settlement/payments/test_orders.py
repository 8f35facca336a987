"""Orders and pain.001: what is written, what is refused, and that it is the same twice."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.settlement.payments import pain001
from p2pgrid.settlement.payments.accounts import NotAnAccount, checked_bic, checked_iban
from p2pgrid.settlement.payments.cents import NotAnAmount, cents_of, signed_cents_of
from p2pgrid.settlement.payments.latin import is_sepa_identifier, to_sepa_latin
from p2pgrid.settlement.payments.orders import MAX_ORDER_CENTS, Account, Address, PaymentBatch, PaymentOrder, make_batch
from p2pgrid.settlement.payments.pain001 import NAMESPACE, InvalidPaymentFile, validate_pain001, write_pain001
from p2pgrid.settlement.payments.reference import make_creditor_reference
from p2pgrid.settlement.payments.refusals import PaymentOrderError
from p2pgrid.units import format_cents
from tests.settlement.payments.makers import ALICE, BOB, CAROL, OURS, reference, statement_id

NOW = datetime(2026, 11, 27, 10, 0, 0, 123, tzinfo=UTC)
DAY = date(2026, 12, 1)
VILNIUS = Address(street="Gedimino pr.", building="1", postcode="01103", town="Vilnius", country="LT")
PAYER = Account(name="UAB Vilniaus skaičiavimai", iban=OURS, address=VILNIUS)
PAYEE = Account(
    name="Müller & Söhne Großrechner GmbH",
    iban=ALICE,
    bic="COBADEFFXXX",
    address=replace(VILNIUS, town="Köln", country="DE"),
)
ORDER = PaymentOrder(
    payee=PAYEE, amount_cents=1_240, end_to_end_id=reference("1"), remittance_text="LT-2026-000001 ačiū"
)
SWISS, BRITISH, BRAZIL = "CH9300762011623852957", "GB29NWBK60161331926819", "BR1500000000000010932840814P2"


def batch(*orders: PaymentOrder, payer: Account = PAYER, **others: bool) -> PaymentBatch:
    return make_batch(payer, orders or [ORDER], execution_date=DAY, **others)


def texts(data: bytes, path: str) -> list[str]:
    return [
        str(e.text) for e in etree.fromstring(data).findall("/".join(f"{{{NAMESPACE}}}{t}" for t in path.split("/")))
    ]


TX = "CstmrCdtTrfInitn/PmtInf/CdtTrfTxInf"


def test_what_stands_in_the_file() -> None:
    second = replace(
        ORDER, payee=replace(PAYEE, iban=BOB, bic="", address=None), amount_cents=5, end_to_end_id=reference("2")
    )
    data = write_pain001(batch(ORDER, second), created=NOW)
    first = texts(data, f"{TX}/PmtId/EndToEndId").index(reference("1"))
    assert sorted(texts(data, f"{TX}/Amt/InstdAmt")) == ["0.05", "12.40"]
    assert texts(data, f"{TX}/CdtrAcct/Id/IBAN")[first] == ALICE
    assert texts(data, f"{TX}/CdtrAgt/FinInstnId/BICFI") == ["COBADEFFXXX"]
    assert texts(data, f"{TX}/Cdtr/Nm")[first] == "Muller + Sohne Grossrechner GmbH"
    assert texts(data, f"{TX}/Cdtr/PstlAdr/TwnNm") == ["Koln"]
    assert texts(data, f"{TX}/Cdtr/PstlAdr/Ctry") == ["DE"]
    assert not texts(data, f"{TX}/Cdtr/PstlAdr/AdrLine")
    assert texts(data, f"{TX}/RmtInf/Ustrd")[first] == "LT-2026-000001 aciu"
    for level in ("GrpHdr", "PmtInf"):
        assert texts(data, f"CstmrCdtTrfInitn/{level}/NbOfTxs") == ["2"]
        assert texts(data, f"CstmrCdtTrfInitn/{level}/CtrlSum") == ["12.45"]
    assert texts(data, "CstmrCdtTrfInitn/PmtInf/ReqdExctnDt/Dt") == ["2026-12-01"]
    assert texts(data, "CstmrCdtTrfInitn/PmtInf/PmtTpInf/LclInstrm/Cd") == []
    assert texts(data, "CstmrCdtTrfInitn/PmtInf/Dbtr/PstlAdr/TwnNm") == ["Vilnius"]


def test_instant_and_structured() -> None:
    rf = make_creditor_reference(statement_id("1"))
    data = write_pain001(batch(replace(ORDER, remittance_text="", creditor_reference=rf), instant=True), created=NOW)
    assert texts(data, "CstmrCdtTrfInitn/PmtInf/PmtTpInf/LclInstrm/Cd") == ["INST"]
    assert texts(data, f"{TX}/RmtInf/Strd/CdtrRefInf/Ref") == [rf]
    assert texts(data, f"{TX}/RmtInf/Strd/CdtrRefInf/Tp/CdOrPrtry/Cd") == ["SCOR"]


def test_the_same_batch_is_the_same_message() -> None:
    orders = [replace(ORDER, amount_cents=n, end_to_end_id=reference(str(n))) for n in range(1, 6)]
    first = write_pain001(batch(*orders), created=NOW)
    random.Random(1).shuffle(orders)
    assert write_pain001(batch(*orders), created=NOW) == first
    later = write_pain001(make_batch(PAYER, orders, execution_date=date(2026, 12, 5)), created=NOW.replace(hour=11))
    assert later != first
    for path in ("GrpHdr/MsgId", "PmtInf/PmtInfId", "PmtInf/CdtTrfTxInf/PmtId/InstrId"):
        assert texts(later, f"CstmrCdtTrfInitn/{path}") == texts(first, f"CstmrCdtTrfInitn/{path}")


@pytest.mark.parametrize(
    "change",
    [{"amount_cents": 1_241}, {"end_to_end_id": "X"}, {"attempt": 2}, {"payee": replace(PAYEE, iban=BOB)}],
)
def test_other_payments_are_another_message(change: dict[str, object]) -> None:
    other = replace(ORDER, **change)  # type: ignore[arg-type]
    assert (other.key != ORDER.key) is ("amount_cents" not in change)
    assert batch(other).message_id != batch().message_id
    assert is_sepa_identifier(batch().message_id)
    assert is_sepa_identifier(f"{batch().message_id}-1")


def test_nothing_is_ordered_twice() -> None:
    with pytest.raises(PaymentOrderError, match="was ordered already"):
        make_batch(PAYER, [ORDER], execution_date=DAY, already_ordered={ORDER.key})
    with pytest.raises(PaymentOrderError, match="was ordered already"):
        batch(ORDER, ORDER)
    with pytest.raises(PaymentOrderError, match="was ordered already, of this amount or another"):
        make_batch(PAYER, [replace(ORDER, amount_cents=1_239)], execution_date=DAY, already_ordered={ORDER.key})
    assert make_batch(PAYER, [replace(ORDER, attempt=2)], execution_date=DAY, already_ordered={ORDER.key})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"amount_cents": 0}, "cannot be ordered"),
        ({"amount_cents": -5}, "cannot be ordered"),
        ({"amount_cents": MAX_ORDER_CENTS + 1}, "cannot be ordered"),
        ({"end_to_end_id": ""}, "cannot be an end-to-end reference"),
        ({"end_to_end_id": "A" * 36}, "cannot be an end-to-end reference"),
        ({"end_to_end_id": "/A"}, "cannot be an end-to-end reference"),
        ({"end_to_end_id": "A//B"}, "cannot be an end-to-end reference"),
        ({"end_to_end_id": "ĄB"}, "cannot be an end-to-end reference"),
        ({"remittance_text": ""}, "one of them, not both"),
        ({"creditor_reference": "RF18539007547034"}, "one of them, not both"),
        ({"remittance_text": "", "creditor_reference": "RF19539007547034"}, "right check digits"),
        ({"remittance_text": "x" * 141}, "has 141 characters"),
        ({"remittance_text": "ß" * 71}, "has 142 characters"),
        ({"attempt": 0}, "the first is 1"),
    ],
)
def test_orders_that_no_bank_would_take(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(ORDER, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Account(name="", iban=ALICE), "is empty"),
        (lambda: Account(name="日" * 0 + "☃", iban=ALICE), "is empty"),
        (lambda: Account(name="x" * 71, iban=ALICE), "has 71 characters"),
        (lambda: Account(name="x", iban=ALICE[:-1] + "1"), "is no IBAN"),
        (lambda: Account(name="x", iban=ALICE, bic="COBADE"), "is no BIC"),
        (lambda: Address(town="", country="LT"), "town '' is empty"),
        (lambda: Address(town="Vilnius", country="Lithuania"), "no ISO 3166 code"),
        (lambda: Address(town="Vilnius", country="lt"), "no ISO 3166 code"),
        (lambda: make_batch(PAYER, [], execution_date=DAY), "a batch of 0"),
        (lambda: batch(replace(ORDER, payee=replace(PAYEE, iban=OURS))), "the account that pays"),
        (lambda: batch(replace(ORDER, payee=replace(PAYEE, iban=BRAZIL))), "SEPA transfers do not reach"),
        (lambda: batch(payer=replace(PAYER, iban=BRAZIL)), "SEPA transfers do not reach"),
        (
            lambda: batch(replace(ORDER, payee=replace(PAYEE, iban=SWISS)), payer=replace(PAYER, address=None)),
            "your address",
        ),
        (lambda: batch(payer=replace(PAYER, iban=BRITISH, address=None)), "your address"),
        (lambda: batch(replace(ORDER, payee=replace(PAYEE, iban=SWISS, bic=""))), "needs the BIC"),
    ],
)
def test_accounts_and_batches_that_are_none(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]


names = st.text(min_size=1, max_size=40).filter(lambda text: 0 < len(to_sepa_latin(text)) <= 70)


@settings(deadline=None, max_examples=60)
@given(
    names,
    names.filter(lambda t: len(to_sepa_latin(t)) <= 35),
    st.lists(st.integers(1, MAX_ORDER_CENTS), min_size=1, max_size=6),
    st.booleans(),
)
def test_whatever_can_be_ordered_holds_to_the_schema(name: str, town: str, cents: list[int], instant: bool) -> None:
    payee = Account(name=name, iban=CAROL, address=Address(town=town, country="FI"))
    orders = [
        PaymentOrder(payee=payee, amount_cents=one, end_to_end_id=reference(str(n)), remittance_text=name)
        for n, one in enumerate(cents)
    ]
    data = write_pain001(batch(*orders, instant=instant), created=NOW)
    validate_pain001(data)
    assert data.isascii()
    assert sum(cents_of(text) for text in texts(data, f"{TX}/Amt/InstdAmt")) == sum(cents)


def test_the_schema_says_no() -> None:
    good = write_pain001(batch(), created=NOW)
    for before, after in (
        (b"<Ctry>DE", b"<Ctry>Germany"),
        (b"12.40", b"12,40"),
        (b"<ChrgBr>SLEV</ChrgBr>", b"<ChrgBr/>"),
    ):
        assert before in good
        with pytest.raises(InvalidPaymentFile, match="line "):
            validate_pain001(good.replace(before, after))
    with pytest.raises(InvalidPaymentFile, match="no XML"):
        validate_pain001(good[:-10])


def test_the_sums_are_read_back() -> None:
    good = write_pain001(batch(), created=NOW)
    for wrong in (
        good.replace(b"12.40", b"12.41"),
        good.replace(b"<NbOfTxs>1<", b"<NbOfTxs>2<"),
        good.replace(b">12.40</C", b">12.41</C"),
    ):
        validate_pain001(wrong)
        with pytest.raises(InvalidPaymentFile, match="sums"):
            pain001._check_sums(wrong, batch())


def test_a_judge_that_cannot_judge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the schema, no file comes out."""
    head = '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" targetNamespace="{}">'
    empty = f'{head}<xs:element name="Document"/></xs:schema>'

    class Folder:
        def __init__(self, text: str) -> None:
            self.text = text

        def __truediv__(self, _: str) -> Folder:
            return self

        def read_bytes(self) -> bytes:
            if not self.text:
                raise FileNotFoundError("no such schema")
            return self.text.encode()

    for text in ("", empty.format("urn:x"), empty.format(NAMESPACE)):
        pain001._schema.cache_clear()
        monkeypatch.setattr(pain001, "files", lambda _, text=text: Folder(text))
        with pytest.raises(P2pgridError, match="sepaxml"):
            write_pain001(batch(), created=NOW)
    pain001._schema.cache_clear()


def test_beyond_the_eea() -> None:
    abroad = replace(ORDER, payee=replace(PAYEE, iban=SWISS, bic="POFICHBEXXX"))
    assert b"POFICHBEXXX" in write_pain001(batch(abroad), created=NOW)
    assert batch(payer=replace(PAYER, iban=BRITISH))


# -- letters, cents, accounts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("ĄČĘĖĮŠŲŪŽ ąčęėįšųūž", "ACEEISUUZ aceeisuuz"),
        ("ĀČĒĢĪĶĻŅŠŪŽ āčēģīķļņšūž", "ACEGIKLNSUZ acegiklnsuz"),
        ("ÕÄÖÜŠŽ õäöüšž", "OAOUSZ oaousz"),
        ("Straße Å Ø Æ ł Đ", "Strasse A O AE l D"),
        ("Ελλάδα Съединение", "Ellada Sedinenie"),
        ('A&B_C@d.e; "x" [y]\n\tz €5', "A+B-C(at)d.e, 'x' (y) z EUR5"),
        ("a\u0301\u200b b", "a b"),
        ("☃", ""),
    ],
)
def test_letters_that_banks_take(text: str, latin: str) -> None:
    assert to_sepa_latin(text) == latin


@settings(deadline=None)
@given(st.text(max_size=60))
def test_latin_is_latin(text: str) -> None:
    latin = to_sepa_latin(text)
    assert set(latin) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-?:().,'+ ")
    assert to_sepa_latin(latin) == latin


@given(st.integers(-(10**15), 10**15))
def test_cents_there_and_back(cents: int) -> None:
    assert signed_cents_of(format_cents(cents)) == cents


@pytest.mark.parametrize(
    ("text", "cents"), [("12", 1200), ("12.4", 1240), ("0.05", 5), ("12.40000", 1240), ("007", 700)]
)
def test_cents(text: str, cents: int) -> None:
    assert cents_of(text) == cents


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "1,5", "1.000,00", "-1", "1e2", "1.", ".5", "1.234", "\u0661", "1_0", "NaN", "9" * 16],
)
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(NotAnAmount):
        cents_of(text)


def test_accounts() -> None:
    assert checked_iban("de89 3704 0044 0532 0130 00") == ALICE
    assert checked_bic("habalt22") == "HABALT22"
    for wrong in (
        "",
        "DE89",
        ALICE + "0",
        ALICE[:-1],
        "ĄE89370400440532013000",
        "X" * 100,
        "DE89-3704-0044-0532-0130-01",
    ):
        with pytest.raises(NotAnAccount):
            checked_iban(wrong)
    for wrong in ("", "COBA", "COBADEFFXX", "COBAXXFF", "ĄOBADEFF"):
        with pytest.raises(NotAnAccount):
            checked_bic(wrong)
