"""`p2pgrid receipts show|dispute|disputes|answer|open|erase`, on ledgers alone and on running nodes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pgrid.audit.check import audit_files
from p2pgrid.cli.main import cli
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.log import TransparencyLog
from p2pgrid.log.store import LogStore
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.log_case import LogDemands
from p2pgrid.proto.record import Role, parse_json_line
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.factories import CLIENT, NOW_MS, PROVIDER, Dealings, make_dispute, secret_key
from tests.provider.rig import provider

RECEIPTS = 3


class Command:
    """`p2pgrid --data FOLDER receipts ...`"""

    def __init__(self, folder: Path) -> None:
        self.data = DataFolder(folder)

    def __call__(self, *arguments: str) -> str:
        """What it prints; its error is raised."""
        result = CliRunner().invoke(cli, ["--data", str(self.data.path), "receipts", *arguments])
        if isinstance(result.exception, P2pgridError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def ids(self) -> list[str]:
        """Of the receipts, by number."""
        return [row["id"] for row in reversed(self.json("list"))]

    def files_with(self, secret: bytes) -> list[str]:
        return [one.name for one in self.data.path.iterdir() if one.is_file() and secret in one.read_bytes()]


def folder(path: Path, key: SecretKey) -> Command:
    command = Command(path)
    command.data.make()
    command.data.key_file.write_text(key.expose_seed().hex())
    command.data.key_file.chmod(0o600)
    return command


@pytest.fixture
async def sides(tmp_path: Path) -> tuple[Command, Command]:
    """The client's folder and the provider's, with the ledgers of real dealings; no node runs."""
    client, seller = folder(tmp_path / "client", CLIENT), folder(tmp_path / "provider", PROVIDER)
    bought, sold = SqliteLedger.open(client.data.ledger_file), SqliteLedger.open(seller.data.ledger_file)
    async with provider(sold) as rig, buying(rig, bought, queue_timeout_s=30) as (purchaser, _):
        for _ in range(RECEIPTS):
            async with await purchaser.buy(CHAT, BODY, whole=True) as answer:
                await answer.assemble()
        await until(lambda: len(signed_receipts(bought)) == len(signed_receipts(sold)) == RECEIPTS)
    await bought.aclose()
    await sold.aclose()
    return client, seller


async def exchange(client: Command, seller: Command) -> None:
    """Both nodes run for a moment."""
    bought, sold = SqliteLedger.open(client.data.ledger_file), SqliteLedger.open(seller.data.ledger_file)
    async with provider(sold) as rig, buying(rig, bought, queue_timeout_s=30, keeps_links=False) as (purchaser, _):
        await purchaser.sessions.reconcile(PROVIDER.public_key)
    await bought.aclose()
    await sold.aclose()


async def run(command: Command, *arguments: str) -> Any:
    """In a thread with a loop of its own."""
    return await asyncio.to_thread(command.json, *arguments)


async def test_a_dispute_is_made_answered_and_listed_without_a_node(sides: tuple[Command, Command]) -> None:
    client, seller = sides
    receipt = client.ids()[1]
    made = await run(
        client, "dispute", receipt[:12], "--reason", "quality", "--statement", "Poor.", "--owed", "0.000001"
    )
    assert not made["is_sent"]
    shown = made["dispute"]
    assert (shown["receipt_number"], shown["receipt"], shown["by"], shown["is_ours"]) == (2, receipt, "client", True)
    assert (shown["reason"], shown["statement"], shown["owed_pico"]) == ("quality", "Poor.", 10**6)
    assert shown["due_ms"] == shown["disputed_ms"] + 14 * 86_400_000
    assert await run(client, "disputes") == [shown]
    for name in (receipt[:12], shown["id"]):
        with pytest.raises(UsageError, match="is not the other side's"):
            await run(client, "answer", name, "--accept")
    text = await asyncio.to_thread(client, "disputes")
    assert "disputed by you" in text and "the other side has until" in text

    await exchange(client, seller)
    (waiting,) = await run(seller, "disputes")
    assert waiting == shown | {"is_ours": False, "peer": CLIENT.public_key.peer_id}
    text = await asyncio.to_thread(seller, "disputes")
    assert "waits for you until" in text and f"receipts answer {shown['id'][:16]} --accept" in text

    answered = await run(seller, "answer", shown["id"][:10], "--reject", "--statement", "No.")
    assert answered["dispute"]["answer"]["decision"] == "rejected"
    assert answered["dispute"]["answer"]["owed_pico"] == shown["billed_pico"]
    await exchange(client, seller)
    (row,) = await run(client, "disputes")
    assert row["answer"] == answered["dispute"]["answer"]
    shown = await run(client, "show", receipt)
    assert shown["disputes"] == [row] and shown["request_key"]
    assert "rejected: No." in await asyncio.to_thread(client, "show", receipt)
    both = [await run(one, "disputes") for one in (client, seller)]
    assert [one[0]["answer"] for one in both] == [row["answer"]] * 2


async def test_accepting_owes_what_the_dispute_says(sides: tuple[Command, Command]) -> None:
    client, seller = sides
    receipt = client.ids()[0]
    await run(client, "dispute", receipt, "--reason", "not-delivered")
    await exchange(client, seller)
    text = await asyncio.to_thread(seller, "answer", receipt, "--accept")
    assert "is accepted: 0.00 EUR are owed" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dispute", "{0}", "--reason", "ugly"), "no reason.*not-delivered"),
        (("dispute", "{0}", "--reason", "quality", "--owed", "x"), "no number"),
        (("dispute", "{0}", "--reason", "quality", "--owed", "7"), r"7\.00 EUR are more than the 0\.0"),
        (("dispute", "{0}", "--reason", "quality", "--statement", "x" * 257), "at most 256"),
        (("dispute", "abcd" * 10, "--reason", "quality"), "no receipt whose id begins"),
        (("answer", "{0}"), "neither --accept nor --reject"),
        (("answer", "{0}", "--accept", "--reject"), "both --accept and --reject"),
        (("answer", "{0}", "--accept"), "nobody disputes receipt 1"),
        (("erase",), "either ID or --before"),
        (("erase", "{0}", "--before", "2027-01-01"), "either ID or --before"),
        (("erase", "--before", "tomorrow"), "no day.*2027-01-31"),
        (("open", "{0}"), "one of --request and --response"),
        (("open", "{0}", "--request", "/nothing"), "cannot be read"),
        (("show", "xyz"), "names no receipt"),
    ],
)
async def test_what_cannot_be_done_is_said(
    sides: tuple[Command, Command], arguments: tuple[str, ...], words: str
) -> None:
    client, _ = sides
    receipt = client.ids()[0]
    with pytest.raises(P2pgridError, match=f"(?s){words}"):
        await run(client, *(one.format(receipt) for one in arguments))
    assert await run(client, "disputes") == []


async def test_a_client_has_offered_nothing(sides: tuple[Command, Command]) -> None:
    """Its ledger holds offers, of others."""
    client, _ = sides
    offers = [CliRunner().invoke(cli, ["--data", str(one.data.path), "offers", "--own", "--json"]) for one in sides]
    assert [result.exit_code for result in offers] == [0, 0]
    assert [len(json.loads(result.stdout)) for result in offers] == [0, 1]
    text = CliRunner().invoke(cli, ["--data", str(client.data.path), "offers", "--own"])
    assert text.exit_code == 0 and "no offer" in text.stdout.lower()


async def test_a_receipt_is_disputed_once_and_in_time(sides: tuple[Command, Command], tmp_path: Path) -> None:
    client, seller = sides
    receipt = client.ids()[0]
    await run(client, "dispute", receipt, "--reason", "quality")
    with pytest.raises(P2pgridError, match="disputed by this node already"):
        await run(client, "dispute", receipt, "--reason", "other")
    await exchange(client, seller)
    await run(seller, "answer", receipt, "--reject")
    with pytest.raises(P2pgridError, match="answered already: rejected"):
        await run(seller, "answer", receipt, "--accept")

    stranger = folder(tmp_path / "stranger", secret_key("a stranger"))
    stranger.data.ledger_file.write_bytes(client.data.ledger_file.read_bytes())
    with pytest.raises(P2pgridError, match="no party to that channel"):
        await run(stranger, "dispute", client.ids()[1], "--reason", "quality")

    old = folder(tmp_path / "old", CLIENT)
    ledger, d = SqliteLedger.open(old.data.ledger_file), Dealings()
    order = d.order(ordered_ms=1_700_000_000_000, first_token_deadline_ms=1_700_000_030_000)
    await ledger.append(d.offer, d.channel, order, d.countersign(d.proposal(order)))
    await ledger.aclose()
    with pytest.raises(P2pgridError, match="disputed for 14 days"):
        await run(old, "dispute", d.receipts[0].id.hex(), "--reason", "quality")


async def test_an_overdue_dispute_is_shown_as_such(tmp_path: Path) -> None:
    client = folder(tmp_path, CLIENT)
    ledger, d = SqliteLedger.open(client.data.ledger_file), Dealings()
    order = d.order(ordered_ms=1_700_000_000_000, first_token_deadline_ms=1_700_000_030_000)
    await ledger.append(d.offer, d.channel, order, d.countersign(d.proposal(order)), make_dispute(d.receipts[0]))
    await ledger.aclose()
    assert "not answered, and overdue since 2023-11-28" in await asyncio.to_thread(client, "disputes")
    (row,) = await run(client, "disputes")
    assert row["is_overdue"] and row["answer"] is None


async def test_a_commitment_is_opened_for_an_auditor(sides: tuple[Command, Command], tmp_path: Path) -> None:
    client, seller = sides
    receipt = client.ids()[0]
    body = tmp_path / "body.json"
    body.write_text(json.dumps(BODY))
    out, bundle = tmp_path / "opening.jsonl", tmp_path / "client.jsonl"
    written = await run(client, "open", receipt, "--request", str(body), "--out", str(out))
    assert written["subject"] == "request" and out.stat().st_mode & 0o077 == 0
    opening = parse_json_line(out.read_bytes())
    assert opening.id.hex() == written["id"] and opening.signature_of(Role.CLIENT) is not None
    await run(client, "export", str(bundle))
    bundle.write_bytes(bundle.read_bytes() + out.read_bytes())
    report = audit_files([bundle])
    assert report.clean, report.findings
    # The provider can, too: it got the same bytes.
    assert (await run(seller, "open", receipt, "--request", str(body), "--out", str(out)))["subject"] == "request"

    body.write_text(json.dumps(BODY | {"max_tokens": 65}))
    with pytest.raises(P2pgridError, match="not the request that was committed to"):
        await run(client, "open", receipt, "--request", str(body), "--out", str(out))
    with pytest.raises(P2pgridError, match="not the answer that was committed to"):
        await run(client, "open", receipt, "--response", str(body), "--out", str(out))


async def test_erasing_leaves_proofs_and_audit_and_no_key_in_any_file(
    sides: tuple[Command, Command], tmp_path: Path
) -> None:
    client, seller = sides
    ids = seller.ids()
    await run(client, "dispute", ids[0], "--reason", "quality")
    await exchange(client, seller)
    log_file, guard = (
        path(PROVIDER.public_key.peer_id) for path in (seller.data.log_file, seller.data.log_checkpoint_file)
    )
    sold = SqliteLedger.open(seller.data.ledger_file)
    async with TransparencyLog(log_file, guard, PROVIDER, sold, now_ms=lambda: NOW_MS) as log:
        checkpoint, proof = log.checkpoint, await log.prove(bytes.fromhex(ids[1]))
    (channel,) = sold.channels()
    keys = [sold.request_key(channel.message.channel, number) for number in (1, 2, 3)]
    await sold.aclose()
    with LogStoreOf(seller) as store:
        found = [store.find(bytes.fromhex(one)) for one in ids]
    salts = [one.salt for one in found if one is not None]
    assert all(seller.files_with(secret or b"") for secret in [*keys, *salts])

    handed_out = tmp_path / "before.jsonl"
    assert (await run(seller, "export", str(handed_out), "--logged"))["complete"]

    # The receipt's leaf, and that of the dispute.
    assert await run(seller, "erase", ids[0]) == {"request_keys": 1, "log_salts": 2}
    assert seller.files_with(keys[0] or b"") == seller.files_with(salts[0] or b"") == []
    assert seller.files_with(keys[1] or b"") and seller.files_with(salts[1] or b"")
    assert await run(seller, "erase", ids[0]) == {"request_keys": 0, "log_salts": 2}
    assert not (await run(seller, "show", ids[0]))["request_key"]
    with pytest.raises(P2pgridError, match="erased, or never kept"):
        await run(seller, "open", ids[0], "--request", str(guard), "--out", str(tmp_path / "no"))

    done = await run(seller, "erase", "--before", "2100-01-01")
    assert done["request_keys"] == 2
    assert not any(seller.files_with(secret or b"") for secret in [*keys, *salts])
    assert client.files_with(keys[0] or b"")  # the other side's copy is its own affair

    with LogStoreOf(seller) as store:
        last = store.checkpoint()
        assert last is not None and checkpoint is not None and last.root == checkpoint.root
    assert proof.verify(PROVIDER.public_key).size == checkpoint.size
    file = tmp_path / "bundle.jsonl"
    await run(seller, "export", str(file))
    report = audit_files([file])
    assert report.clean, report.findings
    # What was handed out proves what it proved; from now on nobody can be shown what the leaves were.
    report = audit_files([handed_out], log_demands=LogDemands(proofs=True))
    assert report.clean, report.findings
    after = await asyncio.to_thread(
        CliRunner().invoke, cli, ["--data", str(seller.data.path), "receipts", "export", str(file), "--logged"]
    )
    assert after.exit_code == 1 and f"erased: receipt {ids[0][:16]}" in after.stdout
    assert [one.code for one in audit_files([file], log_demands=LogDemands(proofs=True)).findings] == ["not-logged"]


class LogStoreOf:
    """A node's log, opened while nothing runs."""

    def __init__(self, command: Command) -> None:
        peer_id = PROVIDER.public_key.peer_id
        self.store = LogStore(command.data.log_file(peer_id), command.data.log_checkpoint_file(peer_id), PROVIDER)

    def __enter__(self) -> LogStore:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()


async def test_a_log_without_its_key_stops_an_erasure_before_it_begins(sides: tuple[Command, Command]) -> None:
    _, seller = sides
    seller.data.log_file(secret_key("gone").public_key.peer_id).touch()
    with pytest.raises(P2pgridError, match="no key for the log"):
        await run(seller, "erase", seller.ids()[0])
    assert (await run(seller, "show", seller.ids()[0]))["request_key"]


def test_there_has_to_be_a_ledger(tmp_path: Path) -> None:
    client = folder(tmp_path, CLIENT)
    for arguments in (("disputes",), ("dispute", "abcd", "--reason", "quality"), ("erase", "--before", "2027-01-01")):
        with pytest.raises(P2pgridError, match="there is no ledger at"):
            client(*arguments)
    assert not client.data.ledger_file.exists()
    assert [one.name for one in tmp_path.iterdir()] == ["key"]
