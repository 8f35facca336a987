"""`p2pgrid receipts evidence`: what a peer broke a rule with, handed to an auditor."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
from click.testing import CliRunner

from p2pgrid.audit.check import audit_files
from p2pgrid.cli.main import cli
from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.codes import Party
from p2pgrid.proto.record import Record, Role, sign_message
from tests.factories import PROVIDER, Dealings, secret_key


def run(data: Path, *arguments: str) -> str:
    result = CliRunner().invoke(cli, ["--data", str(data), "receipts", "evidence", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def keep(data: Path, dealings: Dealings, evidence: list[tuple[Record, str]]) -> None:
    """A client's ledger with three receipts, and evidence."""
    folder = DataFolder(data)
    folder.make()

    async def write() -> None:
        ledger = SqliteLedger.open(folder.ledger_file)
        for signed in dealings.chain(3):
            await ledger.append(signed)
        for record, reason in evidence:
            await ledger.append_evidence(record, reason)
        await ledger.aclose()

    asyncio.run(write())


def test_a_second_receipt_for_a_number_convicts_its_signer(tmp_path: Path) -> None:
    dealings = Dealings()
    dealings.chain(3)
    other = msgspec.structs.replace(dealings.receipts[2].message, finish_reason="length")
    second = sign_message(other, Role.PROVIDER, PROVIDER)
    altered = Record(second.record.payload_type, second.record.payload + b"\0", second.record.signatures)
    stranger = sign_message(other, Role.PROVIDER, secret_key("somebody"))
    kept = [(second.record, "two: receipt 3 is another."), (altered, "altered."), (stranger.record, "not the key.")]
    keep(tmp_path / "client", Dealings(), kept)

    shown = json.loads(run(tmp_path / "client", "--json"))
    assert [(row["id"], row["reason"]) for row in shown] == [(one.id.hex(), why) for one, why in kept]
    assert [row["signers"] for row in shown] == [
        [PROVIDER.public_key.peer_id],
        [],
        [secret_key("somebody").public_key.peer_id],
    ]
    out = tmp_path / "client.jsonl"
    said = run(tmp_path / "client", "--out", str(out))
    assert "two: receipt 3 is another." in said and f"p2pgrid audit {out}" in said
    verdict = audit_files([out])
    found = {(finding.code, finding.party) for finding in verdict.findings if finding.convinces}
    assert found == {("two-records-one-slot", Party.PROVIDER)}
    assert not any(finding.party is Party.CLIENT for finding in verdict.findings), verdict.findings


def test_where_nothing_was_wrong_it_says_so(tmp_path: Path) -> None:
    keep(tmp_path / "client", Dealings(), [])
    assert run(tmp_path / "client") == "Nothing that a peer signed was unacceptable.\n"
    assert json.loads(run(tmp_path / "client", "--json")) == []
