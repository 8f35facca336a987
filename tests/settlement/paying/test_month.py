"""From the client's payment file to the provider's books, through both banks' files, by the commands alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.errors import UsageError
from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.payments.pain001 import validate_pain001
from tests.factories import secret_key
from tests.settlement.paying.scene import ALICE, OURS, Scene, as_debits, carried_out
from tests.settlement.payments.bank import Movement
from tests.settlement.records import Billed

LATER = ("--until", "2028-01-01")


def test_a_month_is_paid_booked_and_confirmed(scene: Scene) -> None:
    first, second = scene.billed.bill(1_240), scene.billed.bill(5_000)
    scene.meet()
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert [(one["payee"], one["iban"], one["amount_cents"]) for one in shown["payments"]] == [
        ("UAB Vilniaus skaičiavimai", OURS, 1_240),
        ("UAB Vilniaus skaičiavimai", OURS, 5_000),
    ]
    (path,) = scene.out.iterdir()
    validate_pain001(path.read_bytes())
    assert shown["total_cents"] == 6_240 and shown["files"] == [str(path)]

    again = scene.client.json("pay", "--out", scene.out, *LATER)
    assert (again["payments"], again["files"], again["waiting_cents"]) == ([], [], 6_240)

    movements = carried_out(path)
    rent = Movement(cents=-90_000, text="Nuoma", name="Nuomotojas", iban="LV80BANK0000435195001")
    file = scene.camt([*movements, rent])
    done = scene.provider.json("bank", "import", file)
    assert done["payments_booked"] == 2 and done["known"] == 0
    assert sorted(one["kind"] for one in done["decided"]) == ["exact", "exact", "unrelated"]
    for _ in range(2):
        once_more = scene.provider.json("bank", "import", file)
        assert (once_more["payments_booked"], once_more["decided"], once_more["known"]) == (0, [], 3)
    booked = scene.provider.payments(scene.billed.id)
    assert {(one.message.invoice_number, one.message.amount_cents, one.message.kind) for one in booked} == {
        (first.message.invoice_number, 1_240, PaymentKind.RECEIVED),
        (second.message.invoice_number, 5_000, PaymentKind.RECEIVED),
    }
    assert scene.open_cents() == 0

    own = scene.client.json("bank", "import", scene.camt(as_debits(movements), iban=ALICE))
    assert own["payments_booked"] == 0
    orders = scene.client.json("pay", "--list")["orders"]
    assert [one["state"] for one in orders] == ["executed", "executed"]
    scene.meet()
    listed = scene.client.json("pay", "--list")
    assert [one["state"] for one in listed["orders"]] == ["confirmed", "confirmed"] and listed["open"] == []


def test_nothing_is_written_twice_nor_over_another_file(scene: Scene) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    (first,) = scene.client.json("pay", "--dry-run", "--out", scene.out, *LATER)["payments"]
    assert list(scene.out.iterdir()) == []
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert shown["payments"][0]["key"] == first["key"]
    with pytest.raises(UsageError, match="has nothing left to pay"):
        scene.client("pay", "--out", scene.out, "--invoice", scene.billed.invoices[0].message.invoice_number)


def test_what_a_bank_refused_is_ordered_again_under_another_key(scene: Scene) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    (first,) = scene.client.json("pay", "--out", scene.out, *LATER)["payments"]
    shown = scene.client.json("pay", "--out", scene.out, "--again", first["key"][:8], *LATER)
    (second,) = shown["payments"]
    assert second["key"] != first["key"] and second["amount_cents"] == first["amount_cents"]
    states = {one["key"]: one["state"] for one in scene.client.json("pay", "--list")["orders"]}
    assert states == {first["key"]: "withdrawn", second["key"]: "ordered"}
    assert len(list(scene.out.iterdir())) == 2


def test_a_payment_that_came_back_is_to_be_paid_again_once_our_bank_says_so(scene: Scene) -> None:
    invoice = scene.billed.bill(1_240)
    scene.meet()
    (sent,) = scene.pay(*LATER)
    scene.provider("bank", "import", scene.camt([sent]))
    back = Movement(
        cents=-1_240, day="2026-11-22", end_to_end_id=sent.end_to_end_id, reason="AC04", name="Alice GmbH", iban=ALICE
    )
    done = scene.provider.json("bank", "import", scene.camt([back]))
    assert [one["kind"] for one in done["decided"]] == ["returned"]
    kinds = [(one.message.kind, one.message.amount_cents) for one in scene.provider.payments(scene.billed.id)]
    assert kinds == [(PaymentKind.RECEIVED, 1_240), (PaymentKind.RETURNED, -1_240)]
    assert scene.open_cents() == 1_240
    scene.meet()
    assert scene.pay(*LATER) == [], "the provider's word alone does not make us pay twice"
    (out,) = as_debits([sent])
    returned = Movement(cents=1_240, day="2026-11-22", end_to_end_id=sent.end_to_end_id, reason="AC04", iban=OURS)
    scene.client("bank", "import", scene.camt([out, returned], iban=ALICE))
    assert [one["state"] for one in scene.client.json("pay", "--list")["orders"]] == ["returned"]
    (again,) = scene.pay(*LATER)
    assert again.cents == 1_240 and again.end_to_end_id == sent.end_to_end_id
    scene.provider("bank", "import", scene.camt([Movement(**{**again.__dict__, "day": "2026-11-25"})]))
    assert scene.open_cents() == 0
    assert invoice.message.gross_cents == 1_240


def test_too_much_too_little_and_the_wrong_reference(scene: Scene) -> None:
    first, second = scene.billed.bill(1_000), scene.billed.bill(2_000)
    scene.meet()
    one, other = scene.pay(*LATER)
    short = Movement(**{**one.__dict__, "cents": 990})
    much = Movement(**{**other.__dict__, "cents": 2_500})
    wrong = Movement(cents=10, text="p2pgrid rest", day="2026-11-21", iban=ALICE, name="Alice GmbH")
    done = scene.provider.json("bank", "import", scene.camt([short, much]))
    assert sorted(one["kind"] for one in done["decided"]) == ["over", "part"]
    assert done["allocated"] == 2, "what is over is booked on what is open"
    by_place: dict[str, list[tuple[str, int]]] = {}
    for payment in scene.provider.payments(scene.billed.id):
        message = payment.message
        by_place.setdefault(message.invoice_number, []).append((message.kind.value, message.amount_cents))
    assert by_place == {
        first.message.invoice_number: [("received", 990), ("reallocated", 10)],
        second.message.invoice_number: [("received", 2_000)],
        "": [("received", 500), ("reallocated", -10)],
    }
    done = scene.provider.json("bank", "import", scene.camt([wrong]))
    assert [one["kind"] for one in done["decided"]] == ["ambiguous"] and done["waiting"] == 1
    (waiting,) = scene.provider.json("bank", "list", "--ambiguous")["entries"]
    peer = scene.client.key.public_key.peer_id
    scene.provider("bank", "assign", waiting["entry"][:8], "--ahead", peer)
    assert scene.provider.json("bank", "list", "--ambiguous")["entries"] == []
    assert scene.open_cents() == -500


def test_money_ahead_is_recognised_covers_what_is_billed_next_and_goes_back(scene: Scene) -> None:
    peer, client = scene.provider.key.public_key.peer_id, scene.client.key.public_key.peer_id
    (sent,) = scene.pay("--prepay", peer, "100.00")
    assert scene.pay("--prepay", peer, "100.00"), "a second one on purpose is another"
    done = scene.provider.json("bank", "import", scene.camt([sent]))
    assert [one["kind"] for one in done["decided"]] == ["prepayment"]
    scene.billed.bill(6_000)
    scene.meet()
    assert scene.client.json("pay", "--out", scene.out, *LATER)["payments"] == []
    assert scene.provider.json("bank", "allocate")["allocated"] == 2
    (ahead,) = scene.provider.json("bank", "list", "--open")["ahead"]
    assert ahead["cents"] == 4_000
    with pytest.raises(UsageError, match=r"of what .* paid ahead 40.00 EUR are open"):
        scene.provider("bank", "refund", client, "40.01", "--out", scene.out)
    shown = scene.provider.json("bank", "refund", client, "40.00", "--out", scene.out)
    with pytest.raises(UsageError, match=r"and 40\.00 are on their way back"):
        scene.provider("bank", "refund", client, "0.01", "--out", scene.out)
    assert shown["payments"][0]["iban"] == ALICE
    (back,) = as_debits(carried_out(Path(shown["files"][0])), "Alice GmbH", ALICE)
    done = scene.provider.json("bank", "import", scene.camt([back]))
    assert [one["kind"] for one in done["decided"]] == ["refund"]
    assert scene.provider.payments(scene.billed.id)[-1].message.kind is PaymentKind.REFUNDED
    assert scene.open_cents() == 0


def test_what_is_on_its_way_back_covers_nothing(scene: Scene) -> None:
    peer, client = scene.provider.key.public_key.peer_id, scene.client.key.public_key.peer_id
    scene.provider("bank", "import", scene.camt(scene.pay("--prepay", peer, "100.00")))
    shown = scene.provider.json("bank", "refund", client, "40.00", "--out", scene.out)
    scene.billed.bill(8_000)
    scene.meet()
    assert scene.provider.json("bank", "allocate")["allocated"] == 2
    (left,) = scene.provider.json("bank", "list", "--open")["open"]
    assert left["open_cents"] == 2_000
    (back,) = as_debits(carried_out(Path(shown["files"][0])), "Alice GmbH", ALICE)
    done = scene.provider.json("bank", "import", scene.camt([back]))
    assert [one["kind"] for one in done["decided"]] == ["refund"] and scene.open_cents() == 2_000


def test_a_credit_note_is_taken_off_or_paid_back(scene: Scene) -> None:
    invoice, note = scene.billed.bill(2_000), scene.billed.bill(-500)
    scene.meet()
    assert "5.00 EUR of credit notes and money ahead taken off" in scene.client("pay", "--dry-run", *LATER)
    (sent,) = scene.pay(*LATER)
    assert sent.cents == 1_500 and invoice.message.invoice_number in sent.text
    done = scene.provider.json("bank", "import", scene.camt([sent]))
    assert (done["payments_booked"], done["allocated"]) == (1, 2)
    assert scene.provider.json("bank", "list", "--open") == {"open": [], "ahead": []}
    scene.meet()
    assert scene.client.json("pay", "--list")["open"] == []
    later = scene.billed.bill(-300)
    scene.meet()
    shown = scene.provider.json("bank", "refund", later.message.invoice_number, "3.00", "--out", scene.out)
    (back,) = as_debits(carried_out(Path(shown["files"][0])), "Alice GmbH", ALICE)
    done = scene.provider.json("bank", "import", scene.camt([back]))
    assert [one["kind"] for one in done["decided"]] == ["refund"]
    assert scene.open_cents() == 0 and note.message.gross_cents == -500
    with pytest.raises(UsageError, match="only a credit note is paid back"):
        scene.provider("bank", "refund", invoice.message.invoice_number, "1.00", "--out", scene.out)


def test_what_was_booked_wrongly_is_moved_and_a_return_follows_it(scene: Scene) -> None:
    first, second = scene.billed.bill(1_000), scene.billed.bill(1_000)
    scene.meet()
    one, other = scene.pay(*LATER)
    scene.provider("bank", "import", scene.camt([one]))
    (entry,) = scene.provider.json("bank", "list")["entries"]
    assert entry["bookings"][0]["invoice"] == first.message.invoice_number
    done = scene.provider.json("bank", "assign", entry["entry"], second.message.invoice_number)
    assert done["payments_booked"] == 2
    (left,) = scene.provider.json("bank", "list", "--open")["open"]
    assert (left["invoice"], left["open_cents"]) == (first.message.invoice_number, 1_000)
    with pytest.raises(UsageError, match="are booked so already"):
        scene.provider("bank", "assign", entry["entry"], second.message.invoice_number)
    with pytest.raises(UsageError, match=r"is booked .* cannot be put aside"):
        scene.provider("bank", "assign", entry["entry"], "--not-ours")
    back = Movement(cents=-1_000, day="2026-11-22", end_to_end_id=one.end_to_end_id, reason="AC04", iban=ALICE)
    scene.provider("bank", "import", scene.camt([back]))
    opened = [row["invoice"] for row in scene.provider.json("bank", "list", "--open")["open"]]
    assert opened == [first.message.invoice_number, second.message.invoice_number]
    assert scene.open_cents() == 2_000 and other.cents == 1_000


def test_a_return_that_matching_leaves_open_is_assigned(scene: Scene) -> None:
    number = scene.billed.bill(1_000).message.invoice_number
    scene.meet()
    (sent,) = scene.pay(*LATER)
    scene.provider("bank", "import", scene.camt([sent]))
    back = Movement(cents=-1_000, day="2026-11-22", reason="MD06", name="Somebody", iban="EE382200221020145685")
    done = scene.provider.json("bank", "import", scene.camt([back]))
    key = done["decided"][0]["entry"]
    assert done["decided"][0]["kind"] in ("ambiguous", "unrelated")
    scene.provider("bank", "assign", key, number)
    assert scene.provider.payments(scene.billed.id)[-1].message.kind is PaymentKind.RETURNED
    assert scene.open_cents() == 1_000


def test_what_a_person_puts_aside_stays_there(scene: Scene) -> None:
    scene.billed.bill(1_000)
    scene.meet()
    unclear = Movement(cents=7, day="2026-11-20", text="?", name="Alice GmbH", iban=ALICE)
    file = scene.camt([unclear])
    (found,) = scene.provider.json("bank", "import", file)["decided"]
    scene.provider("bank", "assign", found["entry"], "--not-ours")
    for again in (file, scene.camt([unclear])):
        assert scene.provider.json("bank", "import", again)["waiting"] == 0
    assert scene.provider.json("bank", "list")["entries"] == []
    assert [one["kind"] for one in scene.provider.json("bank", "list", "--all")["entries"]] == ["not-ours"]


def test_an_invoice_that_is_named_twice_is_paid_once(scene: Scene) -> None:
    number = scene.billed.bill(10_000).message.invoice_number
    scene.meet()
    unclear = Movement(cents=15_000, day="2026-11-20", text="?", name="Alice GmbH", iban=ALICE)
    (found,) = scene.provider.json("bank", "import", scene.camt([unclear]))["decided"]
    (decided,) = scene.provider.json("bank", "assign", found["entry"], number, number)["decided"]
    assert [(one["invoice"], one["cents"]) for one in decided["bookings"]] == [(number, 10_000), ("", 5_000)]


def test_a_credit_note_of_which_there_are_two_is_paid_back_to_nobody(scene: Scene) -> None:
    other = Billed(client=secret_key("bob"), name="bob")
    for billed in (scene.billed, other):
        number = billed.bill(-500).message.invoice_number
    scene.provider.put(*other.records)
    scene.meet()
    with pytest.raises(UsageError, match="more than one"):
        scene.provider("bank", "refund", number, "1.00", "--out", scene.out)


def test_money_ahead_in_euros_is_found_beside_dollars(scene: Scene) -> None:
    dollars = Billed(name="dollars", currency="USD")
    dollars.pay(None, 90_000)
    scene.provider.put(*dollars.records)
    scene.billed.pay(None, 5_000)
    for node in (scene.provider, scene.client):
        node.put(*scene.billed.records)
    client = scene.client.key.public_key.peer_id
    shown = scene.provider.json("bank", "refund", client, "50.00", "--out", scene.out)
    assert shown["total_cents"] == 5_000
