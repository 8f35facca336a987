"""`p2pgrid credit show|default|import|allow|history`, on ledgers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pgrid.cli.main import cli
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.keys import SecretKey
from tests.factories import CLIENT, DAY_MS, PROVIDER, make_invoice, secret_key
from tests.proto.credit_vectors import Debt

PROVIDER_ID, CLIENT_ID = PROVIDER.public_key.peer_id, CLIENT.public_key.peer_id


class Command:
    """`p2pgrid --data FOLDER credit ...`"""

    def __init__(self, folder: Path, key: SecretKey) -> None:
        self.data = DataFolder(folder)
        self.data.make()
        self.data.key_file.write_text(key.expose_seed().hex())
        self.data.key_file.chmod(0o600)

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["--data", str(self.data.path), "credit", *arguments])
        if isinstance(result.exception, P2pgridError):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


async def with_ledger(folder: Path, key: SecretKey, debt: Debt) -> Command:
    """A folder whose ledger has a channel with two statements; what `debt` has been paid is on record."""
    command = Command(folder, key)
    ledger = SqliteLedger.open(command.data.ledger_file)
    await ledger.append(debt.grid.offer, debt.grid.channel)
    for signed in debt.grid.provider_has:
        await ledger.append(signed)
    await ledger.append(debt.first, make_invoice(debt.first), debt.statement, debt.invoice, *debt.payments)
    await ledger.aclose()
    return command


@pytest.fixture
async def sides(tmp_path: Path) -> tuple[Command, Command, Debt]:
    debt = Debt().pay(5, before_ms=30 * DAY_MS)
    client = await with_ledger(tmp_path / "client", CLIENT, debt)
    return client, await with_ledger(tmp_path / "provider", PROVIDER, debt), debt


def test_what_is_open_is_shown_to_both(sides: tuple[Command, Command, Debt]) -> None:
    client, seller, debt = sides
    left = debt.open_cents - 5
    for command, role, peer in ((seller, "provider", CLIENT_ID), (client, "client", PROVIDER_ID)):
        (one,) = command.json("show")["peers"]
        assert (one["peer"], one["role"]) == (peer, role)
        assert (one["unpaid_cents"], one["overdue_cents"], one["statements"]) == (left, left, 2)
        assert sum(invoice["open_cents"] for invoice in one["open_invoices"]) == left
        assert command.json("show", peer)["peers"] == [one]
        assert command.json("show", secret_key("other").public_key.peer_id)["peers"] == []
    assert "OVERDUE" in seller("show") and debt.invoice.message.invoice_number in seller("show")


def test_a_claim_goes_from_one_operator_to_another_and_is_cleared(
    sides: tuple[Command, Command, Debt], tmp_path: Path
) -> None:
    client, seller, debt = sides
    file = tmp_path / "unpaid.jsonl"
    written = seller.json("default", CLIENT_ID, "-o", str(file))
    assert written["claims"][0]["unpaid_cents"] == debt.open_cents - 5
    other = Command(tmp_path / "other", secret_key("other"))
    (claim,) = other.json("import", str(file))["claims"]
    assert (claim["state"], claim["at_fault"], claim["client"]) == ("stands", "client", CLIENT_ID)
    assert "stands" in other.__class__(tmp_path / "other", secret_key("other"))("import", str(file))
    assert other.json("allow", CLIENT_ID) == {"peer": CLIENT_ID, "allowed": True, "changed": True}
    assert other.json("allow", CLIENT_ID, "--revoke")["changed"] is True

    paid = tmp_path / "paid.jsonl"
    assert client.json("history", "-o", str(paid))["records"] == 6
    (history,) = other.json("import", str(paid))["histories"]
    assert (history["client"], history["statements"], history["believed"]) == (CLIENT_ID, 2, False)


def test_what_is_refused(sides: tuple[Command, Command, Debt], tmp_path: Path) -> None:
    client, seller, _ = sides
    out = str(tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="no statement of"):
        seller("default", PROVIDER_ID, "-o", out)
    with pytest.raises(UsageError, match="no statement of"):
        seller("default", CLIENT_ID, "-o", out, "--as-of", "2026-05-01")
    with pytest.raises(UsageError, match="no day"):
        seller("default", CLIENT_ID, "-o", out, "--as-of", "1 May")
    with pytest.raises(UsageError, match="still to come"):
        seller("default", CLIENT_ID, "-o", out, "--as-of", "2999-01-31")
    assert not Path(out).exists()
    with pytest.raises(UsageError, match="no peer id"):
        seller("show", "somebody")
    with pytest.raises(UsageError, match="nothing was settled"):
        seller("history", "-o", out)
    assert client("show")


async def test_what_was_paid_after_the_day_is_not_claimed_and_does_not_fail(tmp_path: Path) -> None:
    debt = Debt().ahead(1000, Debt().as_of_ms + 5 * DAY_MS)
    seller = await with_ledger(tmp_path / "provider", PROVIDER, debt)
    with pytest.raises(UsageError, match="no statement of"):
        seller("default", CLIENT_ID, "-o", str(tmp_path / "out.jsonl"), "--as-of", "2026-07-01")
    assert f"Nothing was lent to {PROVIDER_ID}" in seller("show", PROVIDER_ID)


def test_a_file_that_proves_nothing_fails(sides: tuple[Command, Command, Debt], tmp_path: Path) -> None:
    _, seller, _ = sides
    file = tmp_path / "unpaid.jsonl"
    seller("default", CLIENT_ID, "-o", str(file))
    lines = [line for line in file.read_text().splitlines() if "/invoice/" not in line]
    file.write_text("\n".join(lines))
    assert "Not taken" in Command(tmp_path / "other", secret_key("other"))("import", str(file), exit_code=1)
