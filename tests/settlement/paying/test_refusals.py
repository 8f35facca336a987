"""What is refused, with the line and what to do; and what is not paid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli import settling
from p2pgrid.cli.main import show_error
from p2pgrid.errors import LocalError, UsageError
from p2pgrid.ledger.lock import WriterLock
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.settlement.bank.store import lock_path
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.payments.refusals import BankFileError
from p2pgrid.units import MAX_UNIX_MS
from tests.factories import secret_key
from tests.settlement.paying.scene import ALICE, OURS, Node, Scene
from tests.settlement.payments.bank import Bank, Movement
from tests.settlement.records import Billed

STOLEN = "EE382200221020145685"
LATER = ("--until", "2028-01-01")
MOVEMENTS = [Movement(cents=1_240, text="one"), Movement(cents=99, text="two")]
BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE lolz [
 <!ENTITY lol "lol">
 <!ENTITY lol2 "&lol;&lol;&lol;&lol;">
]>
<Document>&lol2;</Document>"""
XXE = b"""<?xml version="1.0"?>
<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<Document>&x;</Document>"""


def line_of(data: bytes, piece: bytes) -> int:
    return data[: data.index(piece)].count(b"\n") + 1


GOOD = Bank().write(MOVEMENTS)
COMMA = GOOD.replace(b">12.40<", b">12,40<")
FOREIGN = GOOD.replace(b'<Amt Ccy="EUR">0.99<', b'<Amt Ccy="USD">0.99<')
MISSING = GOOD.replace(b"<CdtDbtInd>CRDT", b"<CdtDbtInd>DBIT", 3)
BAD = {
    "a comma": (COMMA, line_of(COMMA, b"12,40"), "comma"),
    "dollars on an account in euros": (FOREIGN, line_of(FOREIGN, b'"USD"') - 1, "USD"),
    "half a file": (GOOD[: len(GOOD) // 2], GOOD[: len(GOOD) // 2].count(b"\n") + 1, "cut off"),
    "a bomb": (BOMB, 2, "DTD"),
    "another file's contents": (XXE, 2, "DTD"),
    "a missing entry": (MISSING, line_of(MISSING, b"<Stmt>"), "entries come to"),
    "a wrong IBAN": (GOOD.replace(OURS.encode(), b"LT121000011101001001"), line_of(GOOD, OURS.encode()), "IBAN"),
    "not XML": (b"%PDF-1.7 ...", 1, "PDF"),
    "nothing": (b"", 0, "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_as_it_should_be_is_refused_with_its_line_and_nothing_of_any_is_booked(
    scene: Scene, name: str
) -> None:
    data, line, why = BAD[name]
    scene.billed.bill(1_240)
    scene.meet()
    (sent,) = scene.pay(*LATER)
    good, bad = scene.camt([sent]), scene.folder / "bad.xml"
    bad.write_bytes(data)
    with pytest.raises(BankFileError, match=why) as refused:
        scene.provider("bank", "import", good, bad)
    assert refused.value.message.startswith(f"bad.xml, line {line}: " if line else "bad.xml")
    assert "taken" in refused.value.hint
    assert scene.provider.payments(scene.billed.id) == []
    assert scene.provider.json("bank", "import", good)["payments_booked"] == 1


def test_a_typed_list_is_read_and_its_faults_are_told_by_line(scene: Scene) -> None:
    number = scene.billed.bill(1_240).message.invoice_number
    scene.meet()
    path = scene.folder / "list.csv"
    header = "date;amount;currency;account;name;iban;reference;text\n"
    row = f"2026-11-02;12.40;EUR;{OURS};Alice GmbH;{ALICE};;Invoice {number}\n"
    path.write_text(header + row.replace("12.40", "12,40"))
    with pytest.raises(BankFileError, match=r"list.csv, line 2: the amount '12,40' has a comma"):
        scene.provider("bank", "import", path, "--rail", "manual")
    path.write_text(header + row)
    assert scene.provider.json("bank", "import", path, "--rail", "manual")["payments_booked"] == 1
    assert scene.provider.json("bank", "import", path, "--rail", "manual")["payments_booked"] == 0
    assert scene.open_cents() == 0


def test_a_foreign_payment_is_shown_and_booked_to_nobody(scene: Scene) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    (sent,) = scene.pay(*LATER)
    dollars = scene.camt([replace(sent, currency="USD")], currency="USD")
    done = scene.provider.json("bank", "import", dollars)
    assert [one["kind"] for one in done["decided"]] == ["foreign-currency"] and done["payments_booked"] == 0


def test_another_account_than_the_last_time_stops_until_a_person_names_it(scene: Scene) -> None:
    scene.billed.bill(1_000)
    scene.meet()
    scene.pay(*LATER)
    scene.billed.bill(2_000)
    scene.meet()
    stolen = STOLEN
    scene.details.say(scene.billed.provider, Role.PROVIDER, sequence=2, iban=stolen)
    for words in ((), ("--confirm-account", OURS)):
        with pytest.raises(UsageError, match=f"was paid to {OURS} before, and its billing details now say {stolen}"):
            scene.pay(*LATER, *words)
    shown = scene.client.json("pay", "--out", scene.out, "--confirm-account", stolen, *LATER)
    assert [one["iban"] for one in shown["payments"]] == [stolen]
    scene.billed.bill(3_000)
    scene.meet()
    assert scene.pay(*LATER), "it is asked once"


def kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> DetailsBook:
    """The client's own book of billing details, in place of those of the scene."""
    monkeypatch.setattr(settling, "open_details", DetailsBook)
    book = DetailsBook(open_database(scene.client.data.path / FILE_NAME), lambda: MAX_UNIX_MS)
    for signed in scene.details.known.values():
        book.keep(signed)
    return book


def changed(scene: Scene, book: DetailsBook, iban: str) -> None:
    provider = scene.billed.provider
    last = book.of(provider.public_key.raw, Role.PROVIDER)
    assert last is not None
    scene.details.say(provider, Role.PROVIDER, sequence=last.message.sequence + 1, iban=iban)
    book.keep(scene.details.known[provider.public_key.raw, Role.PROVIDER])


def test_an_account_that_changed_before_the_first_payment_stops_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = kept(scene, monkeypatch)
    changed(scene, book, STOLEN)
    scene.billed.bill(1_000)
    scene.meet()
    with pytest.raises(UsageError, match=f"named {OURS} before, and its billing details now say {STOLEN}") as caught:
        scene.pay(*LATER)
    assert f"p2pgrid billing confirm {scene.billed.provider.public_key.peer_id} {STOLEN}" in caught.value.hint
    changed(scene, book, OURS)
    with pytest.raises(UsageError, match=f"named {STOLEN} before"):
        scene.pay(*LATER)


def test_what_was_confirmed_for_billing_is_paid_and_what_was_confirmed_for_pay_is_shown_no_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, party = kept(scene, monkeypatch), scene.billed.provider.public_key.raw
    scene.billed.bill(1_000)
    scene.meet()
    assert scene.pay(*LATER)
    changed(scene, book, STOLEN)
    scene.billed.bill(2_000)
    scene.meet()
    with pytest.raises(UsageError, match=f"was paid to {OURS} before"):
        scene.pay(*LATER)
    assert book.confirm_account(party, Role.PROVIDER, STOLEN)
    assert scene.pay(*LATER)
    changed(scene, book, OURS)
    scene.billed.bill(3_000)
    scene.meet()
    with pytest.raises(UsageError, match=f"was paid to {STOLEN} before"):
        scene.pay(*LATER)
    assert scene.pay(*LATER, "--confirm-account", OURS)
    assert all(change.is_confirmed for change in book.account_changes())


def test_invoices_that_do_not_fit_their_statement_are_named_and_not_paid(scene: Scene) -> None:
    right = scene.billed.bill(1_000)
    more = scene.billed.invoice(scene.billed.state(2_000), 2_001)
    half = scene.billed.state(3_000)
    half = sign_message(half.message, Role.PROVIDER, scene.billed.provider)
    scene.billed.statements[-1] = half
    unsigned = scene.billed.invoice(half)
    scene.meet()
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert [one["invoices"][0]["number"] for one in shown["payments"]] == [right.message.invoice_number]
    why = {one["invoice"]: one["why"] for one in shown["not_payable"]}
    assert why[more.message.invoice_number].startswith("The net of invoice")
    assert why[unsigned.message.invoice_number] == "statement 3 has not been signed by both"
    with pytest.raises(UsageError, match="cannot be paid: statement 3"):
        scene.client("pay", "--invoice", unsigned.message.invoice_number)


def test_an_invoice_whose_document_does_not_fit_is_not_paid(scene: Scene) -> None:
    right, forged = scene.billed.bill(1_000), scene.billed.bill(2_000)
    scene.meet()
    taken = Documents(scene.client.data.path).take_received(
        forged, b"another file", channel=scene.billed.channel.message, statement=None
    )
    assert taken.code == "hash"
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert [one["invoices"][0]["number"] for one in shown["payments"]] == [right.message.invoice_number]
    assert [one["why"] for one in shown["not_payable"]] == [
        "the file is another one than the provider signed (SHA-256)."
    ]


def test_what_is_not_due_waits_unless_it_is_named(scene: Scene) -> None:
    number = scene.billed.bill(1_000).message.invoice_number
    scene.meet()
    shown = scene.client.json("pay", "--out", scene.out)
    assert (shown["payments"], [one["invoices"] for one in shown["not_ordered"]]) == ([], [[number]])
    assert "Nothing is to be paid" in scene.client("pay", "--out", scene.out)
    assert scene.pay("--invoice", number)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("pay", "--until", "31.12.2027"), "is no day"),
        (("pay", "--execution-date", "2020-01-01"), "is over"),
        (("pay", "--rail", "carrier-pigeon"), "no rail"),
        (("pay", "--again", "AAAA"), "the key of no payment"),
        (("pay", "--file", "P"), "no payment file"),
        (("pay", "--peer", "nobody"), "is no peer id"),
        (("pay", "--invoice", "X-1"), "not one that was received"),
        (("pay", "--prepay", "12D3KooWGRUkgrLnMRZ8oAFLuSCzHGV2N6rZQdMcEMNmPvFPUmnJ", "1,00"), "no channel|peer id"),
        (("bank", "import", "missing.xml"), "cannot be read"),
        (("bank", "assign", "AAAA", "X-1"), "no entry"),
        (("bank", "assign", "AAAA"), "one of INVOICE"),
        (("bank", "refund", "X-1", "1.00"), "no invoice"),
        (("bank", "refund", "X-1", "1,00"), "comma"),
    ],
)
def test_wrong_usage_says_what_is_wrong(scene: Scene, arguments: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        scene.client(*arguments)


def test_one_command_at_a_time(scene: Scene) -> None:
    lock = WriterLock(lock_path(scene.client.path / FILE_NAME))
    try:
        with pytest.raises(LocalError, match="another `p2pgrid pay` or `p2pgrid bank` is at work"):
            scene.client("pay", "--list")
    finally:
        lock.release()


def test_a_file_of_that_name_is_never_written_over(scene: Scene) -> None:
    scene.billed.bill(1_000)
    scene.meet()
    shown = scene.client.json("pay", "--dry-run", "--out", scene.out, *LATER)
    path = scene.out / f"pain.001-{shown['message_id']}.xml"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        scene.pay(*LATER)
    assert path.read_text() == "mine"
    path.unlink()
    assert scene.pay(*LATER), "nothing had been remembered as ordered"


def test_a_seller_may_choose_our_own_invoice_number(scene: Scene) -> None:
    """We sell to Alice, and Alice's node sells to us under the same numbers."""
    ours = scene.billed.bill(1_240)
    theirs = Billed(provider=scene.billed.client, client=scene.billed.provider, name="the other way")
    theirs.bill(7_700)
    scene.provider.put(*theirs.records)
    scene.meet()
    assert theirs.invoices[0].message.invoice_number == ours.message.invoice_number
    movement = Movement(cents=1_240, text=f"Invoice {ours.message.invoice_number}", name="Alice GmbH", iban=ALICE)
    done = scene.provider.json("bank", "import", scene.camt([movement]))
    assert [(one["kind"], one["bookings"][0]["is_purchase"]) for one in done["decided"]] == [("exact", False)]
    assert scene.open_cents() == 0


def test_text_of_others_does_not_move_the_cursor(scene: Scene, tmp_path: Path) -> None:
    movement = Movement(cents=5, text="x", name="Evil \u202eGmbH", iban=ALICE)
    shown = scene.provider("bank", "import", scene.camt([movement]))
    assert "\u202e" not in shown and "Evil ?GmbH" in shown


def test_another_companys_money_is_not_taken_for_a_clients_that_claims_its_account(scene: Scene) -> None:
    scene.billed.bill(50_000)
    scene.meet()
    rent = Movement(cents=50_000, text="Miete November", name="Alice GmbH", iban=ALICE)
    done = scene.provider.json("bank", "import", scene.camt([rent]))
    assert [(one["kind"], one["candidates"]) for one in done["decided"]] == [
        ("ambiguous", [scene.billed.invoices[0].message.invoice_number])
    ]
    (sent,) = scene.pay(*LATER)
    scene.billed.bill(7_000)
    scene.meet()
    bare = replace(rent, cents=7_000, text="", day="2026-11-24")
    done = scene.provider.json("bank", "import", scene.camt([sent, bare]))
    assert [one["kind"] for one in done["decided"] if one["amount_cents"] == 50_000] == ["exact"]
    assert [one["kind"] for one in done["decided"] if one["amount_cents"] == 7_000] == ["ambiguous"]
    done = scene.provider.json("bank", "import", scene.camt([replace(bare, day="2026-11-25")]))
    assert "exact" in [one["kind"] for one in done["decided"]], "that account has paid for this client by now"


def test_a_folder_that_cannot_be_locked_is_not_taken_for_a_busy_one(scene: Scene) -> None:
    lock_path(scene.client.path / FILE_NAME).with_name("settlement-commands.lock").mkdir()
    with pytest.raises(LocalError, match="cannot be opened") as refused:
        scene.client("pay", "--list")
    assert "another" not in str(refused.value)


def test_only_euros_are_paid_and_paid_back(scene: Scene) -> None:
    dollars = Billed(name="dollars", currency="USD", provider=secret_key("american"), client=scene.billed.client)
    dollars.bill(1_000)
    note = dollars.bill(-300).message.invoice_number
    seller = Node(scene.folder / "seller", dollars.provider)
    for node in (scene.client, seller):
        node.put(*dollars.records)
    scene.details.say(dollars.provider, Role.PROVIDER)
    with pytest.raises(UsageError, match="is in USD"):
        scene.client("pay", "--prepay", dollars.provider.public_key.peer_id, "10.00", "--out", scene.out)
    with pytest.raises(UsageError, match="is in USD"):
        seller("bank", "refund", note, "3.00", "--out", scene.out)
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert shown["payments"] == [] and "it is in USD" in shown["not_payable"][0]["why"]


def test_an_account_beyond_sepa_is_paid_by_hand(scene: Scene) -> None:
    scene.billed.bill(1_000)
    scene.meet()
    scene.details.say(scene.billed.provider, Role.PROVIDER, iban="TR330006100519786457841326")
    with pytest.raises(UsageError, match="SEPA transfers do not reach") as refused:
        scene.pay(*LATER)
    assert "`manual` rail" in refused.value.hint
    shown = scene.client.json("pay", "--rail", "manual", "--out", scene.out, *LATER)
    assert [one["amount_cents"] for one in shown["payments"]] == [1_000] and len(shown["files"]) == 2


def test_a_day_at_the_end_of_all_days_is_shown(scene: Scene) -> None:
    scene.billed.invoice(scene.billed.state(1_000, due_ms=MAX_UNIX_MS))
    scene.client.put(*scene.billed.records)
    look = settling._sides

    def far_east(*arguments: Any) -> tuple[Side, ...]:
        return tuple(replace(side, utc_offset_minutes=840) for side in look(*arguments))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(settling, "_sides", far_east)
        assert scene.client.json("pay", "--list")["open"][0]["due"] == "9999-12-31"


def test_a_return_is_assigned_to_the_payment_of_which_something_is_left(scene: Scene) -> None:
    number = scene.billed.bill(2_000).message.invoice_number
    scene.meet()
    first, second = (
        Movement(cents=1_000, day=day, text=number, name="Alice GmbH", iban=ALICE, reference=f"B{day}")
        for day in ("2026-11-20", "2026-11-21")
    )
    scene.provider("bank", "import", scene.camt([first, second]))
    for day in ("2026-11-22", "2026-11-23"):
        back = Movement(cents=-1_000, day=day, reason="MD06", name="Somebody", iban="EE382200221020145685")
        (found,) = scene.provider.json("bank", "import", scene.camt([back]))["decided"]
        scene.provider("bank", "assign", found["entry"], number)
    assert scene.open_cents() == 2_000


def test_an_error_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(UsageError("the invoice \u202eX\rY\x1b[2J is odd.", hint="one\ntwo\x07"))
    shown = capsys.readouterr().err
    assert "the invoice ?X?Y?[2J is odd." in shown and "one\ntwo?" in shown
