"""Bank files: every shape is read alike, and what is wrong is refused with its line."""

from __future__ import annotations

import io
import re
import time
import tracemalloc
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.settlement.payments import camt053, xml_stream
from p2pgrid.settlement.payments.camt053 import read_camt
from p2pgrid.settlement.payments.refusals import BankFileError
from tests.settlement.payments.bank import SHAPES, Bank, Movement, with_references
from tests.settlement.payments.makers import ALICE, BOB, OURS, read, reference
from tests.settlement.payments.schemas import assert_valid

REF = reference("LT-2026-000001")
MOVEMENTS = [
    Movement(cents=1_240, end_to_end_id=REF, text="Invoice LT-2026-000001", name="Ąžuolas & Söhne <GmbH>"),
    Movement(cents=500, end_to_end_id="OTHER-1", structured="RF18539007547034", iban=BOB),
    Movement(cents=-700, end_to_end_id="REFUND-1", text="Refund", iban=BOB, name="Bobas OÜ"),
    Movement(cents=-300, end_to_end_id="R-1", reason="FOCR", is_reversal=True, day="2026-11-03"),
    Movement(cents=99, end_to_end_id="LATER", status="PDNG"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_holds_to_the_schema_of_iso(shape: str) -> None:
    bank = Bank(shape=shape)
    for movements in (MOVEMENTS, with_references(MOVEMENTS), []):
        assert_valid(bank.write(movements), f"camt.{'054' if bank.is_notice else '053'}.001.{bank.version}")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_tells_the_same(shape: str) -> None:
    statement = read(Bank(shape=shape).write(MOVEMENTS)).statements[0]
    assert statement.is_balanced is ("notice" not in shape)
    booked = sorted(statement.entries, key=lambda one: -one.amount_cents)
    assert [one.amount_cents for one in booked] == [1_240, 500, -300, -700]
    first, second, returned, refund = booked
    assert first.counterparty_name == "Ąžuolas & Söhne <GmbH>"
    assert (first.counterparty_iban, second.counterparty_iban, refund.counterparty_iban) == (ALICE, BOB, BOB)
    assert second.structured_reference == "RF18539007547034"
    assert (returned.is_return, returned.return_reason) == (True, "FOCR")
    assert not (first.is_return or refund.is_return)
    assert first.booking_date == date(2026, 11, 2)
    assert first.account_iban == OURS
    assert REF in re.sub(r"\s", "", first.all_text).upper()
    assert first.end_to_end_id == ("" if shape == "sparse" else REF)
    assert [(one.amount_cents, one.currency) for one in statement.pending] == [(99, "EUR")]


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_are_the_same_in_another_file(shape: str) -> None:
    daily = Bank(shape=shape, statement_id="DAY")
    monthly = Bank(shape=shape, statement_id="MONTH", opening_cents=7)
    twice = [*MOVEMENTS[:4], MOVEMENTS[0]]
    keys = [one.key for one in read(daily.write(twice)).entries]
    assert len(set(keys)) == 5, "two equal movements of one statement are two"
    assert [one.key for one in read(monthly.write(twice)).entries] == keys


def test_the_reference_of_the_transaction_comes_before_that_of_its_batch() -> None:
    movements = with_references(MOVEMENTS[:2])
    batch, notice = (read(Bank(shape=shape).write(movements)).entries for shape in ("batch", "notice"))
    assert sorted(one.bank_reference for one in batch) == ["T000001", "T000002"]
    assert {one.key for one in batch} == {one.key for one in notice}


def test_the_balances_decide_how_a_reversal_is_read() -> None:
    bank = Bank(reversals_the_other_way=True)
    assert [one.amount_cents for one in read(bank.write(MOVEMENTS)).entries] == [1_240, 500, -700, -300]


def test_a_batch_whose_parts_have_no_amounts_is_one_entry() -> None:
    data = Bank(shape="batch").write(MOVEMENTS[:2]).decode()
    within = re.sub(r"(</Refs>\n)<Amt.*\n<CdtDbtInd>\w+</CdtDbtInd>", r"\1", data)
    (one,) = read(within.encode()).entries
    assert (one.amount_cents, one.is_collective) == (1_740, True)
    assert REF in one.all_text
    assert "OTHER-1" in one.all_text


def test_the_other_side_of_a_return_is_not_ourselves() -> None:
    data = Bank().write([MOVEMENTS[3]]).decode()
    told = (
        data.replace("<Cdtr>", "<Dbtr><Nm>Kunde AG</Nm></Dbtr><Cdtr>").replace(ALICE, OURS).replace("Kunde", "Wir", 1)
    )
    told = told.replace("<Cdtr><Nm>Kunde AG", "<Cdtr><Nm>Wir")
    (one,) = read(told.encode()).entries
    assert (one.counterparty_name, one.counterparty_iban) == ("Wir AG", "")


PLAIN = Bank().write(MOVEMENTS).decode()
BATCH = Bank(shape="batch").write(MOVEMENTS).decode()
NOTICE = Bank(shape="notice").write(MOVEMENTS).decode()


def entry_of(data: str) -> str:
    found = re.search(r"<Ntry>.*?</Ntry>\n", data, re.DOTALL)
    assert found
    return found[0]


def doubled(data: str) -> str:
    return data.replace(entry_of(data), entry_of(data) * 2, 1)


def without(tag: str, data: str = PLAIN) -> str:
    start = data.index("<Ntry>")
    return data[:start] + re.sub(rf"<{tag}>.*?</{tag}>\n?", "", data[start:], count=1, flags=re.DOTALL)


TWO = Bank().document([Bank().statement(MOVEMENTS), Bank(statement_id="B").statement([])]).decode()


@pytest.mark.parametrize(
    ("case", "data", "marked", "words"),
    [
        ("comma", PLAIN.replace(">12.40<", ">12,40<"), "12,40", "'12,40' has a comma"),
        ("negative", PLAIN.replace(">12.40<", ">-12.40<"), "-12.40", "'-12.40' has a sign"),
        ("plus", PLAIN.replace(">12.40<", ">+12.40<"), "+12.40", "has a sign"),
        ("exponent", PLAIN.replace(">12.40<", ">1e3<"), "1e3", "'1e3' is no amount"),
        ("half a cent", PLAIN.replace(">12.40<", ">12.405<"), "12.405", "finer than a cent"),
        ("too much", PLAIN.replace(">12.40<", f">{'9' * 15}<"), "9" * 15, "is more than"),
        ("no amount", PLAIN.replace(">12.40<", "><"), '<Amt Ccy="EUR"></Amt>', "'' is no amount"),
        ("no currency", PLAIN.replace('<Amt Ccy="EUR">12.40', "<Amt>12.40"), "<Amt>12.40", "no ISO 4217 code"),
        ("other currency", PLAIN.replace('<Amt Ccy="EUR">12.40', '<Amt Ccy="USD">12.40'), "<Ntry>", "is in USD"),
        ("no direction", without("CdtDbtInd"), "<Ntry>", "has no <CdtDbtInd>, which tells whether money"),
        (
            "wrong direction",
            PLAIN.replace(entry_of(PLAIN), entry_of(PLAIN).replace("CRDT", "CREDIT")),
            "CREDIT",
            "'CREDIT'; expected CRDT or DBIT",
        ),
        ("no status", without("Sts"), "<Ntry>", "has no <Sts>"),
        ("wrong status", PLAIN.replace("<Sts>BOOK", "<Sts>DONE", 1), "DONE", "'DONE'; expected BOOK"),
        ("no day", without("ValDt", without("BookgDt")), "<Ntry>", "has no <BookgDt>"),
        (
            "no such day",
            PLAIN.replace("2026-11-02</Dt></BookgDt>", "2026-02-30</Dt></BookgDt>", 1),
            "02-30",
            "expected a date",
        ),
        (
            "German day",
            PLAIN.replace("2026-11-02</Dt></BookgDt>", "02.11.2026</Dt></BookgDt>", 1),
            "02.11",
            "expected a date",
        ),
        ("our IBAN", PLAIN.replace(OURS, OURS[:-1] + "1"), OURS[:-1] + "1", "is no IBAN"),
        ("their IBAN", PLAIN.replace(ALICE, "DE89370400440532013001"), "013001", "is no IBAN"),
        ("no IBAN", re.sub(r"<IBAN>LT\w+</IBAN>", "<Othr><Id>1</Id></Othr>", PLAIN), "<Stmt>", "has no IBAN"),
        ("no account", re.sub(r"<Acct>.*?</Acct>\n", "", PLAIN, flags=re.DOTALL), "<Stmt>", "has no <Acct>"),
        (
            "two amounts",
            PLAIN.replace('<Amt Ccy="EUR">12.40</Amt>', '<Amt Ccy="EUR">12.40</Amt>' * 2),
            "12.40",
            "second time",
        ),
        ("reversal", PLAIN.replace("<RvslInd>true", "<RvslInd>perhaps"), "perhaps", "expected true or false"),
        ("entry twice", doubled(PLAIN), "<Stmt>", "an entry is missing or stands twice"),
        (
            "entry gone",
            PLAIN.replace(entry_of(PLAIN), ""),
            "<Stmt>",
            "by 7.40 EUR, and the 3 booked entries come to -5.00",
        ),
        ("entry twice in a notice", doubled(NOTICE), None, "'B000001' of 12.40 stands here twice"),
        ("batch", BATCH.replace(">5.00<", ">5.01<"), None, "come to 17.41, and the entry to 17.40"),
        ("statement twice", TWO.replace("<Id>B</Id>", "<Id>STMT-2026-306</Id>"), None, "stands in this file twice"),
        ("no statement", re.sub(r"<Stmt>.*</Stmt>\n", "", PLAIN, flags=re.DOTALL), None, "has no statement"),
        ("old version", PLAIN.replace("053.001.02", "053.001.01"), "<Document", "expected a Document of camt.053"),
        ("payment file", PLAIN.replace("camt.053.001.02", "pain.001.001.09"), "<Document", "pain.001.001.09"),
        ("no namespace", re.sub(r" xmlns=\S+\"", "", PLAIN), "<Document", "the file is <Document>; expected"),
        ("web page", "<html>\n<body/>\n</html>", "<html>", "the file is <html>"),
        ("other namespace", PLAIN.replace("<Ntry>", '<Ntry xmlns="urn:x">', 1), "<Stmt>", "the 3 booked entries"),
        (
            "doctype",
            PLAIN.replace("\n", '\n<!DOCTYPE Document SYSTEM "file:///etc/passwd">\n', 1),
            "<!DOCTYPE",
            "(DTD)",
        ),
        ("entity", PLAIN.replace(">12.40<", ">&xxe;<"), "&xxe;", "undefined entity"),
        ("mixed up tags", PLAIN.replace("</Sts>", "</Ntry>", 1), "<Sts>", "mismatched tag"),
        (
            "balances in two currencies",
            PLAIN.replace('<Amt Ccy="EUR">1000', '<Amt Ccy="USD">1000', 1),
            "<Stmt>",
            "opening balance is in USD",
        ),
    ],
)
def test_bad_input_is_refused_with_its_line(case: str, data: str, marked: str | None, words: str) -> None:
    with pytest.raises(BankFileError) as refusal:
        read(data.encode())
    assert words in str(refusal.value)
    if marked is not None:
        lines = [number for number, line in enumerate(data.split("\n"), start=1) if marked in line]
        assert refusal.value.line == lines[0]
        assert f"bank.xml, line {lines[0]}:" in str(refusal.value)


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE Document [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + "]>\n"
    + PLAIN.split("\n", 1)[1].replace("Invoice", "&j;")
)
XXE = PLAIN.replace("?>\n", '?>\n<!DOCTYPE D [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n', 1).replace("Invoice", "&x;")


@pytest.mark.parametrize(
    ("case", "data", "words"),
    [
        ("billion laughs", BOMB.encode(), "(DTD)"),
        ("external entity", XXE.encode(), "(DTD)"),
        ("external DTD", b'<!DOCTYPE D SYSTEM "http://192.0.2.1/x.dtd"><D/>', "(DTD)"),
        ("in UTF-16", XXE.replace("UTF-8", "UTF-16").encode("utf-16"), "(DTD)"),
        ("deep", b"<a>" * 100_000, "nested more than 32"),
        ("wide", PLAIN.replace("<Ntry>", "<Ntry>" + "<x/>" * 6_000, 1).encode(), "more than 5000 elements"),
        ("long text", PLAIN.replace("Invoice", "x" * 20_000).encode(), "longer than 10000 characters"),
        ("long tag", b"<" + b"a" * 5_000_000, "longer than 64 KiB"),
        ("long comment", PLAIN[:150].encode() + b"<!--" + b"a" * 5_000_000, "longer than 64 KiB"),
        ("empty", b"", "is empty"),
        ("blank", b" \n ", "ends before any element"),
        ("zip", b"PK\x03\x04....", "a ZIP archive; unpack it"),
        ("gzip", b"\x1f\x8b....", "compressed with gzip"),
        ("pdf", b"%PDF-1.7", "a PDF"),
        ("mt940", b":20:STARTUMS\n", "MT940"),
        ("csv", b"date;amount\n", "is no XML"),
        ("binary", bytes(range(256)), "is no XML"),
        ("odd encoding", b"<?xml version='1.0' encoding='utf-7'?><a/>", "encoding that cannot be read"),
        ("codec", b"<?xml version='1.0' encoding='zip'?><a/>", "encoding that cannot be read"),
        ("wrong bytes", PLAIN.encode("iso-8859-1", "replace").replace(b"S\xf6hne", b"S\xf6\xf6hne"), "is no XML"),
    ],
)
def test_hostile_files(case: str, data: bytes, words: str) -> None:
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(BankFileError) as refusal:
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert words in str(refusal.value)
    assert "root:" not in str(refusal.value)
    assert time.process_time() - started < 2


def test_other_encodings_are_read() -> None:
    for encoding in ("iso-8859-15", "utf-16", "utf-8-sig"):
        data = PLAIN.replace("Ąž", "Az").replace("UTF-8", encoding.removesuffix("-sig")).encode(encoding)
        assert read(data).entries[0].counterparty_name == "Azuolas & Söhne <GmbH>"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PLAIN, BATCH, NOTICE]), st.floats(0, 1))
def test_a_file_cut_anywhere_is_refused(data: str, where: float) -> None:
    raw = data.rstrip().encode()
    cut = raw[: int(where * (len(raw) - 1))]
    with pytest.raises(BankFileError) as refusal:
        read(cut)
    lines = cut.count(b"\n") + 1
    assert refusal.value.line <= lines
    if b"<Stmt>" in cut:
        assert "cut off" in str(refusal.value)
        assert f"line {lines}" in str(refusal.value)


def test_nothing_is_half_taken() -> None:
    """The last statement of three is wrong: none of the entries of the others comes out."""
    statements = [Bank(statement_id=name).statement(MOVEMENTS) for name in "ABC"]
    with pytest.raises(BankFileError):
        read(Bank().document([*statements[:2], statements[2].replace("12.40", "12.41", 1)]))


def test_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camt053, "MAX_ENTRIES", 5)
    with pytest.raises(BankFileError, match="more than 5 entries"):
        read(PLAIN.encode())
    monkeypatch.setattr(xml_stream, "MAX_FILE_BYTES", 100)
    with pytest.raises(BankFileError, match="larger than"):
        read(PLAIN.encode())


def test_pages_are_not_added_up() -> None:
    page = "<MsgPgntn><PgNb>2</PgNb><LastPgInd>false</LastPgInd></MsgPgntn></GrpHdr>"
    data = PLAIN.replace("</GrpHdr>", page).replace(entry_of(PLAIN), "")
    assert not read(data.encode()).statements[0].is_balanced
    last = data.replace("<PgNb>2</PgNb><LastPgInd>false", "<PgNb>1</PgNb><LastPgInd>true")
    with pytest.raises(BankFileError):
        read(last.encode())


def test_an_account_in_another_currency_is_read_and_left_to_matching() -> None:
    dollars = [replace(one, currency="USD") for one in MOVEMENTS]
    both = Bank().document([Bank().statement(MOVEMENTS), Bank(currency="USD").statement(dollars)])
    assert [one.currency for one in read(both).statements] == ["EUR", "USD"]


def test_many_entries_in_little_memory() -> None:
    data = Bank().write([Movement(cents=n + 1, end_to_end_id=f"E{n}", text=f"Invoice {n}") for n in range(300)])
    tracemalloc.start()
    try:
        count = len(read_camt(io.BytesIO(data), "big.xml").entries)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 + 8 * len(data)
    finally:
        tracemalloc.stop()
    assert count == 300
