"""What could make money leave twice: runs that ended in between, files of payments that were taken back, --again."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.cli import settling
from p2pgrid.errors import LedgerError, LocalError, UsageError
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
    assert f"p2pgrid pay --file {message_id}" in str(failed.value), "and what to do is told at once"
    (order,) = scene.client.json("pay", "--list")["orders"]
    (again,) = scene.pay("--again", order["key"], *LATER)
    assert again.cents == 1_240
    assert scene.client.json("pay", "--list")["unwritten"] == []
