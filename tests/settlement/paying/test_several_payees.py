"""Several providers at once: what is wrong with one of them keeps nobody else's money back."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role
from tests.factories import secret_key
from tests.settlement.paying.scene import ALICE, Scene
from tests.settlement.records import Billed

LATER = ("--until", "2028-01-01")
OTHER = secret_key("second provider")
THEIRS = "EE382200221020145685"


@pytest.fixture
def other(scene: Scene) -> Billed:
    """A second provider of the same client. Its invoice has the number of the first one's."""
    made = Billed(provider=OTHER, name="second")
    made.bill(500)
    scene.billed.bill(1_000)
    scene.meet()
    scene.client.put(*made.records)
    scene.details.say(OTHER, Role.PROVIDER, legal_name="OÜ Teine", iban=THEIRS)
    return made


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no account": ({"iban": ""}, "has given no IBAN"),
    "no IBAN": ({"iban": "EE382200221020145686"}, "EE382200221020145686"),
    "beyond SEPA": ({"iban": "TR330006100519786457841326"}, "TR"),
    "our own account": ({"iban": ALICE}, "the account that pays"),
    "a name that banks cut": ({"legal_name": "x" * 71}, "characters"),
    "a town that banks cut": ({"city": "x" * 36}, "characters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_others_are_paid(scene: Scene, other: Billed, name: str) -> None:
    changes, why = WRONG[name]
    scene.details.say(OTHER, Role.PROVIDER, **{"iban": THEIRS, **changes})
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert [one["peer"] for one in shown["payments"]] == [scene.provider.key.public_key.peer_id]
    (left,) = shown["not_payable"]
    assert left["peer"] == OTHER.public_key.peer_id and why in left["why"]
    assert left["invoice"] == other.invoices[0].message.invoice_number
    assert shown["total_cents"] == 1_000 and shown["not_ordered"] == []
    with pytest.raises(UsageError, match=why):
        scene.client("pay", "--out", scene.out, *LATER)  # and where nothing else is left, it is an error
    with pytest.raises(UsageError, match=why):
        scene.client("pay", "--out", scene.out, "--peer", OTHER.public_key.peer_id, *LATER)


def test_nobody_is_paid_for_one_whose_details_are_not_known(scene: Scene, other: Billed) -> None:
    scene.details.known.pop((OTHER.public_key.raw, Role.PROVIDER))
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert shown["total_cents"] == 1_000 and "no billing details" in shown["not_payable"][0]["why"]


def test_an_account_that_changed_stops_its_own_payment_alone(scene: Scene, other: Billed) -> None:
    scene.pay(*LATER)
    other.bill(700)
    scene.billed.bill(2_000)
    scene.meet()
    scene.client.put(*other.records)
    scene.details.say(OTHER, Role.PROVIDER, sequence=2, iban="LV80BANK0000435195001")
    shown = scene.client.json("pay", "--out", scene.out, *LATER)
    assert shown["total_cents"] == 2_000 and f"was paid to {THEIRS} before" in shown["not_payable"][0]["why"]
    with pytest.raises(UsageError, match=f"was paid to {THEIRS} before"):
        scene.client("pay", "--out", scene.out, *LATER)


def test_a_number_that_two_providers_chose_is_asked_about(scene: Scene, other: Billed) -> None:
    number, peer = other.invoices[0].message.invoice_number, OTHER.public_key.peer_id
    assert number == scene.billed.invoices[0].message.invoice_number
    with pytest.raises(UsageError, match="more than one provider"):
        scene.client("pay", "--out", scene.out, "--invoice", number)
    shown = scene.client.json("pay", "--out", scene.out, "--invoice", number, "--peer", peer)
    assert [one["amount_cents"] for one in shown["payments"]] == [500]


def test_an_invoice_of_another_peer_is_not_taken_for_paid(scene: Scene, other: Billed) -> None:
    more = scene.billed.bill(900).message.invoice_number
    scene.meet()
    with pytest.raises(UsageError, match="not one that was received"):
        scene.client("pay", "--out", scene.out, "--invoice", more, "--peer", OTHER.public_key.peer_id)


@pytest.mark.parametrize("number", ["€" * 64, "№" * 64, "請求書一", "-", "a\nb", "\x1b[2J", "RF18539007547034"])
def test_whatever_number_a_provider_chooses_it_is_paid(scene: Scene, number: str) -> None:
    scene.billed.invoice(scene.billed.state(1_000), invoice_number=number)
    scene.meet()
    (payment,) = scene.client.json("pay", "--out", scene.out, *LATER)["payments"]
    assert payment["amount_cents"] == 1_000 and payment["invoices"] == [{"number": number, "cents": 1_000}]


def test_a_number_cannot_move_the_cursor(scene: Scene) -> None:
    number = "\u202eX\n"
    scene.billed.invoice(scene.billed.state(700), 701, invoice_number=number)
    scene.meet()
    for shown in (scene.client("pay", "--list"), scene.client("pay", "--out", scene.out, *LATER)):
        assert "\u202e" not in shown and "?X?" in shown and "The net of invoice ?X?" in shown
