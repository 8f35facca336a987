"""`p2pgrid set-off`, on data folders as operators have them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.main import cli
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import P2pgridError
from p2pgrid.ledger.card_file import write_cards
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.card import PeerKey
from p2pgrid.proto.set_off import SetOff
from p2pgrid.settlement.set_off.claims import in_force
from tests.factories import make_card, secret_key
from tests.settlement.set_off.rig import AT_MS, DAY_MS, Debt, Party, owes


class Folder(Party):
    """A party whose ledger is a file in a data folder."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.data = DataFolder(path / name)
        self.data.make()
        self.key = secret_key(name)
        self.data.key_file.write_text(self.key.expose_seed().hex())
        self.data.key_file.chmod(0o600)
        self.kept: list[Any] = []

    async def has(self, *records: Any) -> None:
        ledger = SqliteLedger.open(self.data.ledger_file)
        await ledger.append(*records)
        await ledger.aclose()

    @property
    def peer(self) -> str:
        return self.key.public_key.peer_id

    def run(self, *arguments: str, others: tuple[Folder, ...] = ()) -> Result:
        more = [word for other in others for word in ("--with", str(other.data.path))]
        return CliRunner().invoke(cli, ["--data", str(self.data.path), "set-off", *arguments, *more])

    def told(self, *arguments: str, others: tuple[Folder, ...] = ()) -> Any:
        result = self.run(*arguments, "--json", others=others)
        assert result.exception is None, result.exception
        return json.loads(result.output)

    def refused(self, *arguments: str) -> str:
        error = self.run(*arguments).exception
        assert isinstance(error, P2pgridError), error
        return str(error)

    def off(self, debt: Debt) -> int:
        with SqliteLedger.open_readonly(self.data.ledger_file) as ledger:
            return sum(one.cents for one in in_force(ledger, debt.channel.message.channel))


@pytest.fixture(autouse=True)
def at_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("set_off", "set_off_cycles", "set_off_books"):
        monkeypatch.setattr(f"p2pgrid.cli.{room}.unix_ms", lambda: AT_MS)


def two(path: Path) -> tuple[Folder, Folder, Debt, Debt]:
    async def make() -> tuple[Folder, Folder, Debt, Debt]:
        a, b = Folder(path, "a"), Folder(path, "b")
        return a, b, await owes(b, a, 4000), await owes(a, b, 1240)

    return asyncio.run(make())


def test_proposed_handed_over_accepted_and_handed_back(tmp_path: Path) -> None:
    a, b, owed, owing = two(tmp_path)
    file, back = tmp_path / "set-off.jsonl", tmp_path / "back.jsonl"
    made = a.told("propose", b.peer, "--out", str(file))
    assert made["amount_cents"] == 1240 and [one["state"] for one in made["set_offs"]] == ["waits-for-them"]
    assert a.off(owed) == 0
    b.told("import", str(file))
    (waiting,) = b.told("list")
    assert waiting["state"] == "waits-for-us" and waiting["id"] == made["set_offs"][0]["id"]
    text = b.run("list").output
    assert "p2pgrid set-off accept" in text and "12.40 EUR" in text
    b.told("accept", waiting["id"][:8], "--out", str(back))
    assert (b.off(owed), b.off(owing)) == (1240, 1240)
    a.told("import", str(back))
    assert (a.off(owed), a.off(owing)) == (1240, 1240)
    assert [one["state"] for one in a.told("list")] == ["in-force"]
    assert "nothing to set off" in a.refused("propose", b.peer)


def test_a_file_is_accepted_at_once(tmp_path: Path) -> None:
    a, b, owed, _ = two(tmp_path)
    file = tmp_path / "set-off.jsonl"
    a.told("propose", b.peer, "--out", str(file), "--most", "3.00")
    assert b.told("accept", "--from", str(file))["amount_cents"] == 300
    assert b.told("accept", "--from", str(file))["amount_cents"] == 300
    assert b.off(owed) == 300, "twice accepted it is one"


def test_refused_it_is_listed_no_more(tmp_path: Path) -> None:
    a, b, _, _ = two(tmp_path)
    file = tmp_path / "set-off.jsonl"
    made = a.told("propose", b.peer, "--out", str(file))
    b.told("import", str(file))
    assert b.told("refuse", made["set_offs"][0]["id"][:8])["state"] == "refused"
    assert b.told("list") == [] and [one["state"] for one in b.told("list", "--all")] == ["refused"]
    b.told("accept", made["set_offs"][0]["id"])
    assert [one["state"] for one in b.told("list")] == ["in-force"]


def test_what_cannot_be_done_says_why(tmp_path: Path) -> None:
    a, b, owed, _ = two(tmp_path)
    file, none = tmp_path / "set-off.jsonl", tmp_path / "none.jsonl"
    a.told("propose", b.peer, "--out", str(file))
    none.write_text("nonsense\n")
    assert "is no peer id" in a.refused("propose", "b")
    assert "above zero" in a.refused("propose", b.peer, "--most", "0.001")
    assert "line 1" in b.refused("accept", "--from", str(none))
    assert "cannot be read" in b.refused("accept", "--from", str(tmp_path / "no such file"))
    assert "either ID or --from" in b.refused("accept")
    assert "is too short" in b.refused("accept", "ab")
    assert "no set-off's id" in b.refused("accept", "abcd" * 10)
    altered = file.read_text().replace('"role":"provider"', '"role":"client"')
    altered = altered if altered != file.read_text() else altered.replace('"role":"client"', '"role":"provider"')
    none.write_text(altered)
    assert "wrong-key" in b.refused("import", str(none))
    asyncio.run(owed.paid(0, 3999))
    assert "0.01 are open, and 12.40 are to be taken off" in b.refused("accept", "--from", str(file))
    assert b.off(owed) == 0


def test_each_operator_with_a_node_that_sells_and_one_that_buys(tmp_path: Path) -> None:
    async def make() -> tuple[list[Folder], Debt, Debt]:
        folders = [Folder(tmp_path, name) for name in ("a-sells", "a-buys", "b-sells", "b-buys")]
        a_sells, a_buys, b_sells, b_buys = folders
        return folders, await owes(b_buys, a_sells, 700), await owes(a_buys, b_sells, 300)

    (a_sells, a_buys, b_sells, b_buys), owed, owing = asyncio.run(make())
    term = {"valid_from_ms": 0, "valid_until_ms": AT_MS + 300 * DAY_MS}
    for one, two_, others in ((a_sells, a_buys, (b_sells, b_buys)), (b_sells, b_buys, (a_sells, a_buys))):
        keys = tuple(PeerKey(key=each.key.public_key.raw, **term) for each in (one, two_))
        operator = secret_key(f"operator of {one.name}")
        card = make_card(operator, peers=keys)
        write_cards(one.data.card_file, (card,))
        for other in others:
            other.data.cards_folder.mkdir(exist_ok=True)
            write_cards(other.data.cards_folder / f"{operator.public_key.peer_id}.jsonl", (card,))
    file = tmp_path / "set-off.jsonl"
    assert "nothing to set off" in a_sells.refused("propose", b_sells.peer)
    made = a_sells.told("propose", b_sells.peer, "--out", str(file), others=(a_buys,))
    assert made["amount_cents"] == 300
    b_sells.told("accept", "--from", str(file), "--out", str(file), others=(b_buys,))
    a_buys.told("import", str(file), others=(a_sells,))
    assert [one.off(owed) for one in (a_sells, b_buys)] == [300, 300]
    assert [one.off(owing) for one in (a_buys, b_sells)] == [300, 300]
    with SqliteLedger.open_readonly(b_buys.data.ledger_file) as ledger:
        (kept,) = ledger.settlement(SetOff, owed.channel.message.channel)
        assert all(side.card for side in kept.message.sides) and len(kept.signers) == 2


def test_a_cycle_goes_round(tmp_path: Path) -> None:
    async def make() -> tuple[list[Folder], list[Debt]]:
        parties = [Folder(tmp_path, name) for name in ("a", "b", "c")]
        sums = (550, 660, 770)
        return parties, [await owes(parties[n], parties[(n + 1) % 3], cents) for n, cents in enumerate(sums)]

    parties, debts = asyncio.run(make())
    timekeeper = Folder(tmp_path, "timekeeper")
    told, file = tmp_path / "debts.jsonl", tmp_path / "cycle.jsonl"
    assert len(parties[0].told("cycles", "offer", str(told))["told"]) == 2
    terms = ["--timekeeper", timekeeper.peer, "--out", str(file)]
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("")
    assert "no cycle goes through" in parties[1].refused("cycles", "propose", "--from", str(nothing), *terms)
    own = ["--timekeeper", parties[0].peer, "--out", str(file)]
    assert "party of it" in parties[2].refused("cycles", "propose", "--from", str(told), *own)
    terms += ["--from", str(told)]
    view = parties[1].told("cycles", "propose", *terms)
    assert (view["amount_cents"], view["parties"], view["state"]) == (500, 3, "open")
    assert len(view["missing"]) == 4
    assert "more than 4.00" in parties[0].refused("cycles", "accept", str(file), "--most", "4.00")
    view = parties[0].told("cycles", "accept", str(file))
    # The last one has it on record, as a neighbour's node brings it, and names it by its id.
    parties[2].told("cycles", "import", str(file))
    assert "no one cycle's id begins so" in parties[2].refused("cycles", "accept", "ffffffff")
    view = parties[2].told("cycles", "accept", view["id"][:12], "--out", str(file))
    assert view["missing"] == [] and view["state"] == "open"
    assert "not the timekeeper" in parties[0].refused("cycles", "judge", str(file))
    assert timekeeper.told("cycles", "judge", str(file))["state"] == "settled"
    before = file.read_text()
    assert timekeeper.told("cycles", "judge", str(file))["state"] == "settled"
    assert file.read_text() == before, "what was said is said again"
    for n, party in enumerate(parties):
        party.told("cycles", "import", str(file))
        assert [one["state"] for one in party.told("cycles", "list")] == ["settled"]
        assert party.off(debts[n]) == party.off(debts[n - 1]) == 500
