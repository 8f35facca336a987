"""What could make money leave twice: runs that ended in between, files of payments that were taken back, --again."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.cli import settling
from p2pgrid.errors import LedgerError, LocalError, UsageError
from p2pgrid.proto.record import Role
from p2pgrid.settlement.paying import deliver
from tests.settlement.paying.scene import ALICE, Scene, as_debits, carried_out

LATER = ("--until", "2028-01-01")


def test_a_refund_of_which_the_booking_did_not_end_is_not_ordered_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, client = scene.provider.key.public_key.peer_id, scene.client.key.public_key.peer_id
    (sent,) = scene.pay("--prepay", peer, "100.00")
    scene.provider("bank", "import", scene.camt([sent]))
    shown = scene.provider.json("bank", "refund", client, "100.00", "--out", scene.out)
    (back,) = as_debits(carried_out(Path(shown["files"][0])), "Alice GmbH", ALICE)

    async def disk_is_full(*_: object) -> list[str]:
        raise LedgerError("the disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(settling, "_book", disk_is_full)
        with pytest.raises(LedgerError):
            scene.provider("bank", "import", scene.camt([back]))
    with pytest.raises(UsageError, match=r"cannot be paid back"):
        scene.provider("bank", "refund", client, "100.00", "--out", scene.out)
    assert scene.open_cents() == 0


def test_the_file_of_a_payment_that_was_taken_back_is_not_written_again(scene: Scene) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    first = scene.client.json("pay", "--out", scene.out, *LATER)
    scene.client("pay", "--out", scene.out, "--again", first["payments"][0]["key"], *LATER)
    with pytest.raises(UsageError, match="was taken back"):
        scene.client("pay", "--file", first["message_id"], "--out", scene.folder)


def test_a_file_that_did_not_come_to_disk_is_not_offered_once_its_payments_are_taken_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.billed.bill(1_240)
    scene.meet()

    def disk_is_full(*_: object) -> Path:
        raise LocalError("x.xml cannot be written: the disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(deliver, "write_new", disk_is_full)
        with pytest.raises(LocalError, match="cannot be written") as failed:
            scene.pay(*LATER)
    (message_id,) = scene.client.json("pay", "--list")["unwritten"]
    assert f"p2pgrid pay --file {message_id}" in scene.client("pay", "--out", scene.out), "and by whoever runs it again"
    assert f"p2pgrid pay --file {message_id}" in str(failed.value), "and what to do is told at once"
    (order,) = scene.client.json("pay", "--list")["orders"]
    (again,) = scene.pay("--again", order["key"], *LATER)
    assert again.cents == 1_240
    assert scene.client.json("pay", "--list")["unwritten"] == []


def test_again_orders_that_payment_and_no_other_due_or_not(scene: Scene) -> None:
    number = scene.billed.bill(1_240).message.invoice_number
    scene.meet()
    (first,) = scene.client.json("pay", "--out", scene.out, "--invoice", number)["payments"]
    scene.billed.bill(700)
    scene.meet()
    states = scene.client.json("pay", "--list")["orders"]
    would = scene.client.json("pay", "--out", scene.out, "--again", first["key"], "--dry-run")
    assert scene.client.json("pay", "--list")["orders"] == states, "nothing is remembered of a dry run"
    shown = scene.client.json("pay", "--out", scene.out, "--again", first["key"])
    (again,) = shown["payments"]
    assert again == would["payments"][0] and again["key"] != first["key"] and again["amount_cents"] == 1_240
    assert [one["key"] for one in shown["taken_back"]] == [first["key"]]
    with pytest.raises(UsageError, match="was taken back before"):
        scene.client("pay", "--out", scene.out, "--again", first["key"])


def test_again_orders_money_ahead_once_more(scene: Scene) -> None:
    peer = scene.provider.key.public_key.peer_id
    (first,) = scene.client.json("pay", "--out", scene.out, "--prepay", peer, "50.00")["payments"]
    (again,) = scene.client.json("pay", "--out", scene.out, "--again", first["key"])["payments"]
    assert (again["purpose"], again["amount_cents"]) == ("ahead", 5_000) and again["key"] != first["key"]
    assert scene.client.json("pay", "--out", scene.out)["waiting_cents"] == 5_000
    text = scene.client("pay", "--out", scene.out, "--again", again["key"])
    assert f"Taken back: {again['key']}, 50.00 EUR. Never upload the file of P" in text


def test_a_refund_is_taken_back_and_may_be_ordered_anew(scene: Scene) -> None:
    peer, client = scene.provider.key.public_key.peer_id, scene.client.key.public_key.peer_id
    scene.provider("bank", "import", scene.camt(scene.pay("--prepay", peer, "100.00")))
    (first,) = scene.provider.json("bank", "refund", client, "100.00", "--out", scene.out)["payments"]
    assert "p2pgrid bank refund" in scene.provider("pay", "--again", first["key"])
    (again,) = scene.provider.json("bank", "refund", client, "100.00", "--out", scene.out)["payments"]
    assert again["key"] != first["key"]


def test_what_the_payee_has_confirmed_is_not_ordered_again(scene: Scene) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    (sent,) = scene.pay(*LATER)
    scene.provider("bank", "import", scene.camt([sent]))
    scene.meet()
    (order,) = scene.client.json("pay", "--list")["orders"]
    with pytest.raises(UsageError, match="has confirmed"):
        scene.client("pay", "--out", scene.out, "--again", order["key"])


def test_an_order_that_cannot_be_made_anew_is_not_taken_back(scene: Scene) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    (first,) = scene.client.json("pay", "--out", scene.out, *LATER)["payments"]
    scene.details.say(scene.billed.provider, Role.PROVIDER, sequence=2, iban="EE382200221020145685")
    with pytest.raises(UsageError, match="was paid to"):
        scene.client("pay", "--out", scene.out, "--again", first["key"])
    assert [one["state"] for one in scene.client.json("pay", "--list")["orders"]] == ["ordered"]
