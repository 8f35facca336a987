"""`p2pgrid card`: what it signs, and the files it leaves behind."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.card import card
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.vat_id import parse_vat_id
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.errors import UsageError
from p2pgrid.ledger.card_file import read_cards
from p2pgrid.proto.card_chain import KeyState, key_state
from p2pgrid.proto.keys import parse_peer_id
from p2pgrid.proto.well_known import parse_well_known
from tests.factories import secret_key

LOST = secret_key("lost").public_key
WHO = ("--legal-name", "Vilnius Compute UAB", "--country", "LT")


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "node")
    folder.make()
    create_key(folder.key_file)
    return folder


def call(data: DataFolder, *arguments: str) -> Result:
    return CliRunner().invoke(card, arguments, obj=CliContext(data=data), catch_exceptions=False)


def run(data: DataFolder, *arguments: str) -> dict[str, Any]:
    result = call(data, *arguments, "--json")
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.output)
    return shown


def fails(data: DataFolder, *arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        call(data, *arguments)
    return str(error.value)


def own(data: DataFolder) -> str:
    return data.load_key().public_key.peer_id


def test_the_first_card(data: DataFolder) -> None:
    shown = run(data, "init", *WHO, "--vat-id", "LT 100001919017", "--domain", "Compute.example")
    assert stat.S_IMODE(data.operator_key_file.stat().st_mode) == 0o600
    assert shown["operator"] != own(data), "the operator's key is not the node's"
    assert (shown["legal_name"], shown["vat_id"], shown["domain"]) == (
        "Vilnius Compute UAB",
        "LT100001919017",
        "compute.example",
    )
    assert (shown["country"], shown["parent_country"], shown["sequence"]) == ("LT", "LT", 1)
    assert [(peer["peer"], peer["state"]) for peer in shown["peers"]] == [(own(data), "bound")]
    assert run(data, "show")["id"] == shown["id"]
    assert "there is a card already" in fails(data, "init", *WHO)
    text = call(data, "show").output
    assert "Vilnius Compute UAB" in text and own(data) in text


def test_it_takes_the_name_from_the_configuration(data: DataFolder) -> None:
    assert "needs a name" in fails(data, "init")
    data.config_file.write_text('[provider]\noperator = "Roma Compute Srl"\ncountry = "IT"\n')
    shown = run(data, "init", "--parent-country", "fr")
    assert (shown["legal_name"], shown["country"], shown["parent_country"]) == ("Roma Compute Srl", "IT", "FR")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--country", "LTU"), "no country code"),
        (("--vat-id", "DE123"), "no VAT id of LT"),
        (("--domain", "https://compute.example"), "no DNS name"),
        (("--domain", "192.0.2.1"), "no DNS name"),
        (("--legal-name", "x" * 200), "cannot be signed"),
    ],
)
def test_what_no_card_says(data: DataFolder, arguments: tuple[str, ...], words: str) -> None:
    assert words in fails(data, "init", *WHO, *arguments)
    assert not data.card_file.exists()


@pytest.mark.parametrize(
    ("text", "country", "compact"),
    [
        ("", "LT", ""),
        ("lt 100001919017", "LT", "LT100001919017"),
        ("DE 123.456.789", "DE", "DE123456789"),
        ("EL123456789", "GR", "EL123456789"),
        ("NL123456789B01", "NL", "NL123456789B01"),
        ("CHE-123.456.788", "CH", "CHE-123456788"),
    ],
)
def test_vat_ids(text: str, country: str, compact: str) -> None:
    assert parse_vat_id(text, country) == compact


@pytest.mark.parametrize(("text", "country"), [("123456789", "DE"), ("DE12345678", "DE"), ("ü" * 9, "US")])
def test_what_is_no_vat_id(text: str, country: str) -> None:
    with pytest.raises(UsageError):
        parse_vat_id(text, country)


def test_terms_that_are_over_and_what_is_revoked_already(data: DataFolder) -> None:
    run(data, "init", *WHO)
    assert "is over already" in fails(data, "sign", "--peer", LOST.peer_id, "--until", "2020-01-01")
    assert "no date" in fails(data, "sign", "--peer", LOST.peer_id, "--until", "9999-12-31")
    assert run(data, "show")["sequence"] == 1, "nothing was signed"
    run(data, "sign", "--peer", LOST.peer_id, "--until", "2099-12-31")
    text = call(data, "show").output
    assert f"{LOST.peer_id} until 2099-12-31 (bound)" in text
    run(data, "revoke", LOST.peer_id, "--reason", "lost")
    assert "is revoked already" in fails(data, "revoke", LOST.peer_id, "--reason", "again")
    # From an earlier time on says more than before.
    assert run(data, "revoke", LOST.peer_id, "--reason", "lost long ago", "--since", "2026-01-01")["sequence"] == 4


def test_what_is_no_domain(data: DataFolder) -> None:
    for name in ("localhost", "192.0.2.1", "", "a b.example"):
        assert "is no DNS name" in fails(data, "check", name)


def test_cards_follow_one_another(data: DataFolder) -> None:
    run(data, "init", *WHO, "--days", "10")
    added = run(data, "sign", "--peer", LOST.peer_id, "--until", "2199-12-31", "--domain", "compute.example")
    assert [peer["peer"] for peer in added["peers"]] == [own(data), LOST.peer_id]
    assert (added["sequence"], added["domain"], len(added["chain"])) == (2, "compute.example", 2)
    first, second = read_cards(data.card_file)
    assert second.message.previous == first.id
    renewed = run(data, "sign")["peers"]
    assert [peer["peer"] for peer in renewed] == [LOST.peer_id, own(data)]
    assert renewed[1]["valid_from_ms"] == first.message.peers[0].valid_from_ms, "a term that is renewed goes on"
    revoked = run(data, "revoke", LOST.peer_id, "--reason", "the disk was stolen", "--since", "2020-01-01T00:00")
    assert [(one["peer"], one["reason"]) for one in revoked["revoked"]] == [(LOST.peer_id, "the disk was stolen")]
    assert {peer["peer"]: peer["state"] for peer in revoked["peers"]} == {own(data): "bound", LOST.peer_id: "revoked"}
    known, chain = parse_well_known(call(data, "well-known").output.encode())
    assert known.peers == (own(data),) and len(chain) == 4
    assert run(data, "sign", "--domain", "")["domain"] == ""


def test_without_a_card(data: DataFolder) -> None:
    for arguments in (("sign",), ("show",), ("well-known",), ("rotate",), ("successor",)):
        assert "card init" in fails(data, *arguments)
    assert "no card of" in fails(data, "show", LOST.peer_id)


def test_the_operators_key_may_be_elsewhere(data: DataFolder, tmp_path: Path) -> None:
    office = DataFolder(tmp_path / "office")
    run(office, "init", *WHO)
    assert run(office, "show")["peers"] == [], "there is no node here"
    run(office, "sign", "--peer", own(data))
    shutil.copy(office.card_file, data.card_file)
    assert run(data, "show")["peers"][0]["peer"] == own(data)
    assert "operator's key is not at" in fails(data, "sign")
    stranger = tmp_path / "stranger"
    create_key(stranger)
    assert "may not sign" in fails(data, "sign", "--operator-key", str(stranger))

    old = own(data)
    refusal = fails(data, "rotate")
    assert own(data) == old, "nothing is exchanged before the card names the new key"
    new, *_ = [word.strip("`") for word in refusal.split() if word.startswith("12D3KooW")]
    run(office, "sign", "--peer", new)
    run(office, "sign", "--peer", old, "--until", "2199-01-01")
    shutil.copy(office.card_file, data.card_file)
    run(data, "rotate")
    assert own(data) == new
    assert [key.public_key.peer_id for key in data.load_retired_keys()] == [old]


def test_a_rotation_keeps_the_old_key(data: DataFolder) -> None:
    run(data, "init", *WHO)
    old = own(data)
    shown = run(data, "rotate", "--overlap-days", "30")
    assert own(data) != old and own(data) in shown["note"] and old in shown["note"]
    assert stat.S_IMODE(data.key_file.stat().st_mode) == 0o600
    (kept,) = data.load_retired_keys()
    assert kept.public_key.peer_id == old
    assert stat.S_IMODE(data.retired_key_files[0].stat().st_mode) == 0o600
    ends = {peer["peer"]: peer["valid_until_ms"] for peer in shown["peers"]}
    assert ends[old] < ends[own(data)]
    chain, day_ms = read_cards(data.card_file), 86_400_000
    now_ms = chain[-1].message.valid_from_ms
    assert key_state(chain, parse_peer_id(old).raw, now_ms + 29 * day_ms) is KeyState.BOUND
    assert key_state(chain, parse_peer_id(old).raw, now_ms + 31 * day_ms) is KeyState.EXPIRED
    run(data, "rotate")
    assert len(data.load_retired_keys()) == 2 and len(data.own_public_keys()) == 3


def test_a_rotation_that_was_broken_off_goes_on_with_the_same_key(data: DataFolder) -> None:
    run(data, "init", *WHO)
    draft = data.path / "key.new"
    create_key(draft)
    seed = draft.read_text()
    run(data, "rotate")
    assert data.key_file.read_text() == seed and not draft.exists()


def test_a_successor_takes_over(data: DataFolder, tmp_path: Path) -> None:
    run(data, "init", *WHO)
    shown = run(data, "successor")
    following = tmp_path / "elsewhere"
    shutil.move(data.path / "operator-key.successor", following)
    assert stat.S_IMODE(following.stat().st_mode) == 0o600
    taken = run(data, "sign", "--operator-key", str(following))
    assert (taken["operator"], taken["successor"]) == (shown["successor"], None)
    assert "may not sign" in fails(data, "sign")
    named = run(data, "successor", LOST.peer_id, "--operator-key", str(following))
    assert named["successor"] == LOST.peer_id


def test_a_damaged_file_is_not_signed_on(data: DataFolder) -> None:
    run(data, "init", *WHO)
    run(data, "sign")
    lines = data.card_file.read_text().splitlines()
    for text in ("\n".join(lines[::-1]), lines[0][:-40], "{}", lines[0].replace("operator", "provider")):
        data.card_file.write_text(text)
        assert "no chain of cards" in fails(data, "sign")
