"""`p2pgrid log`: proofs of one's own and of a provider's log, checks over every road, forks, watching."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from p2pgrid.cli.main import cli
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.errors import Refused
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.store import LogStore
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, cosign
from p2pgrid.proto.fork import verify_fork
from p2pgrid.proto.inclusion import parse_log_proof
from p2pgrid.proto.record import Record, parse_json_line
from p2pgrid.provider.pages import serve_pages
from tests.factories import CLIENT, PROVIDER, Dealings, secret_key
from tests.log.rig import ForkingLog, running_log
from tests.provider.rig import until
from tests.provider.test_node import buyer_of, running

PEER = PROVIDER.public_key.peer_id


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--data", str(folder), "log", *arguments])


async def run_beside(folder: Path, *arguments: str) -> Result:
    """The command in a thread with loops of its own, beside what this test serves."""
    return await asyncio.to_thread(run, folder, *arguments)


async def own_log(folder: Path) -> Dealings:
    """A provider's data folder with two receipts, one of them erased."""
    DataFolder(folder).make()
    ledger, dealings = SqliteLedger.open(folder / "ledger.sqlite"), Dealings()
    await ledger.append(*dealings.chain(2))
    async with running_log(folder, ledger) as log:
        checkpoint = log.checkpoint
        assert checkpoint is not None
        await log.add_cosignature(
            checkpoint.note.to_bytes(), cosign(checkpoint, CLIENT, 1_800_000_000), CLIENT.public_key
        )
        await log.erase(dealings.receipts[1].id)
    await ledger.aclose()
    data = DataFolder(folder)
    (folder / "log.sqlite").rename(data.log_file(PEER))
    (folder / "log.checkpoint").rename(data.log_checkpoint_file(PEER))
    data.key_file.write_text(PROVIDER.expose_seed().hex())
    data.key_file.chmod(0o600)
    return dealings


async def test_proofs_of_ones_own_log(tmp_path: Path) -> None:
    dealings = await own_log(tmp_path / "node")
    folder, receipt = tmp_path / "node", dealings.receipts[0].id
    text = run(folder, "prove", receipt.hex()[:12]).stdout
    assert parse_log_proof(text.encode()).verify(PROVIDER.public_key).size == 3
    file = tmp_path / "receipt.tlog-proof"
    written = run(folder, "prove", receipt.hex(), "--out", str(file))
    assert (written.exit_code, file.read_text()) == (0, text)
    verified = run(folder, "verify", str(file))
    assert verified.exit_code == 0 and f"record {receipt.hex()} is leaf 1" in verified.stdout
    shown = json.loads(run(folder, "prove", receipt.hex(), "--json").stdout)
    assert (shown["record"], shown["index"], shown["size"], shown["proof"]) == (receipt.hex(), 1, 3, text)
    assert [one["witness"] for one in shown["witnesses"]] == [CLIENT.public_key.peer_id]
    lines = run(folder, "prove", receipt.hex(), "--bundle").stdout.splitlines()
    types = [parse_json_line(line.encode()).payload_type for line in lines]
    assert types == ["/p2pgrid/checkpoint/1", "/p2pgrid/inclusion-proof/1"]
    run(folder, "prove", dealings.offer.id.hex()).stdout.encode()

    file.write_text(text.replace("index 1", "index 0"))
    broken = run(folder, "verify", str(file))
    assert broken.exit_code == 1 and "does not lead" in str(broken.exception)
    (tmp_path / "bundle.jsonl").write_text(lines[0])
    for arguments, words in (
        (("verify", str(tmp_path / "bundle.jsonl")), "no proof of a log.*bundles are for `p2pgrid audit`"),
        (("watch", "http://127.0.0.1:1", "nobody"), "'nobody' names no peer"),
        (("watch", "/ip4/127.0.0.1/tcp/1/p2p/nobody"), "names no peer"),
        (("prove", dealings.receipts[1].id.hex()), "erased"),
        (("prove", "abc"), "is no record id"),
        (("prove", "0" * 64), "no receipt whose id begins"),
        (("prove", "abcdefg"), "is no record id"),
        (("prove", "ab:1"), "no channel's id begins"),
        (("prove", receipt.hex(), "--out", str(tmp_path / "no" / "file")), "cannot be written"),
        (("verify", str(tmp_path / "nothing")), "cannot be read"),
    ):
        failed = await run_beside(folder, *arguments)
        said = f"{failed.exception} {getattr(failed.exception, 'hint', '')}"
        assert re.search(words, said), (arguments, said)


async def test_showing_ones_own_log(tmp_path: Path) -> None:
    await own_log(tmp_path / "node")
    text = run(tmp_path / "node", "show").stdout
    assert text.startswith(f"p2pgrid/{PEER}\n  entries   3\n") and CLIENT.public_key.peer_id in text
    assert "1 salt(s)" in text
    shown = json.loads(run(tmp_path / "node", "show", "--json").stdout)
    assert (shown["size"], shown["erased"], shown["last_cosigned_size"]) == (3, 1, 3)
    DataFolder(tmp_path).load_or_create_key()
    assert "there is no log" in str(run(tmp_path, "show").exception)


async def test_a_client_asks_its_provider_for_a_proof(tmp_path: Path) -> None:
    provider_data, client_data = DataFolder(tmp_path / "provider"), DataFolder(tmp_path / "client")
    provider_data.make()
    create_key(provider_data.key_file)
    client_data.make()
    client_data.key_file.write_text(CLIENT.expose_seed().hex() + "\n")
    client_data.key_file.chmod(0o600)
    async with running(provider_data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        placed = buyer.order(max_tokens=20).send()
        await placed.to_end()
        await until(lambda: provider.log.log.checkpoint is not None and provider.log.log.checkpoint.size == 2)
        ledger = SqliteLedger.open(client_data.ledger_file)
        receipt = placed.machine.receipt
        assert receipt is not None
        await ledger.append(rig.offer, buyer.channel, placed.machine.order, receipt)
        result = await run_beside(client_data.path, "prove", receipt.id.hex()[:10])
        assert result.exit_code == 0, result.exception
        proof = parse_log_proof(result.stdout.encode())
        assert proof.verify(provider.key.public_key).size == 2 and proof.inclusion.record_id == receipt.id
        await provider.log.log.erase(receipt.id)
        erased = await run_beside(client_data.path, "prove", receipt.id.hex())
        assert isinstance(erased.exception, Refused) and erased.exception.code == "erased"
        await ledger.aclose()
        await buyer.link.aclose("done")


async def test_checking_over_every_road(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "provider")
    data.make()
    create_key(data.key_file)
    async with running(data) as (provider, rig), serve_pages(provider, "127.0.0.1", 0) as pages:
        await until(lambda: provider.log.log.checkpoint is not None)
        host, port = rig.address
        direct = f"/ip4/{host}/tcp/{port}/tls/p2p/{provider.peer_id}"
        first = await run_beside(tmp_path / "auditor", "check", pages)
        assert first.exit_code == 0 and "Seen for the first time" in first.stdout, first.exception
        again = await run_beside(tmp_path / "auditor", "check", direct, "--json")
        shown = json.loads(again.stdout)
        assert (shown["growth"], shown["size"], shown["peer"], shown["forked"]) == ("same", 1, provider.peer_id, False)
        for wrong, words in (("nobody", "names no peer"), (f"{pages}/offer", "cannot be read|no log|404|nothing")):
            failed = await run_beside(tmp_path / "auditor", "check", wrong, "--network", "main")
            assert failed.exit_code != 0
            assert any(word in str(failed.exception) for word in words.split("|")), failed.exception


@contextlib.asynccontextmanager
async def forking_pages(log: ForkingLog) -> AsyncIterator[str]:
    """The log over HTTP, as pages show it."""

    async def get(request: web.Request) -> web.Response:
        try:
            return web.Response(body=await log.get(request.match_info["path"]))
        except Refused:
            return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/log/{path:.+}", get)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_fork_is_an_exit_code_and_a_file(tmp_path: Path) -> None:
    log = ForkingLog(tmp_path / "logs", 10, (20, 30))
    async with forking_pages(log) as pages:
        assert (await run_beside(tmp_path / "auditor", "check", pages)).exit_code == 0
        log.shown = 1
        for as_json in (False, True):
            result = await run_beside(tmp_path / "auditor", "check", pages, *(["--json"] if as_json else []))
            assert result.exit_code == 1
        shown = json.loads(result.stdout)
        assert shown["forked"] and shown["sizes"] == [20, 30] and shown["peer"] == PEER
        verified = run(tmp_path, "verify", shown["proof"])
        assert verified.exit_code == 0 and "signed two trees" in verified.stdout
        (file,) = (tmp_path / "auditor" / "forks").iterdir()
        assert verify_fork(file.read_bytes()).larger.size == 30 and str(file) == shown["proof"]
        log.shown = 0
        stale = log.branches[0]
        assert stale.size == 20
        assert (await run_beside(tmp_path / "auditor", "check", pages)).exit_code == 0
    log.close()


def heeds_ctrl_c() -> None:
    """In the child: also where the tests are a background job of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def watched(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    root = Path(__file__).parents[2]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "p2pgrid", "--data", str(folder), "log", "watch", "--json", "--interval", "0.2", *arguments),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
        preexec_fn=heeds_ctrl_c,
    )


async def next_line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    shown: dict[str, Any] = json.loads(line)
    return shown


@pytest.mark.process
async def test_watching_until_told_to_stop(tmp_path: Path) -> None:
    log = ForkingLog(tmp_path / "logs", 10, (20, 30))
    async with forking_pages(log) as pages:
        process = await watched(tmp_path / "auditor", pages)
        assert (await next_line(process))["growth"] == "first"
        assert (await next_line(process))["growth"] == "same"
        log.shown = 1
        fork = await next_line(process)
        assert fork["forked"] and list((tmp_path / "auditor" / "forks").iterdir())
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 1
        log.shown = 0
        process = await watched(tmp_path / "auditor", pages)
        await next_line(process)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    log.close()


def exported(folder: Path, file: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(
        cli, ["--data", str(folder), "receipts", "export", str(file), "--logged", "--json", *arguments]
    )
    assert result.exit_code in (0, 1), result.exception
    shown: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, shown


async def test_an_export_waits_for_its_witnesses(tmp_path: Path) -> None:
    dealings = await own_log(tmp_path / "node")
    folder, file = tmp_path / "node", tmp_path / "node.jsonl"
    code, shown = await asyncio.to_thread(exported, folder, file, "--witnesses", "2", "--wait", "0")
    (one,) = shown["logs"]
    assert (code, shown["complete"], one["witnesses"], one["size"]) == (1, False, 1, 3)
    assert one["lacking"] == [{"type": "receipt", "record": dealings.receipts[1].id.hex(), "why": "erased"}]
    assert (one["wanted"], one["proofs"]) == (3, 2)

    async def come() -> None:
        """The second witness, once the command waits for it."""
        await until(lambda: list(tmp_path.glob(".node.jsonl.*.part")))
        data = DataFolder(folder)
        store = LogStore(data.log_file(PEER), data.log_checkpoint_file(PEER), PROVIDER)
        last = store.checkpoint()
        assert last is not None
        store.add_cosignature(last.size, cosign(last, secret_key("second witness"), 1_800_000_000))
        store.close()

    arguments = ("--witnesses", "2", "--wait", "60")
    (_, shown), _ = await asyncio.gather(asyncio.to_thread(exported, folder, file, *arguments), come())
    assert shown["logs"][0]["witnesses"] == 2
    bundle = [line for _, line in read_bundle(file)]
    assert all(isinstance(line, Record) for line in bundle)
    assert sum(isinstance(line, Record) and line.payload_type == CHECKPOINT_TYPE for line in bundle) == 1


@pytest.mark.process
async def test_an_export_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    await own_log(tmp_path / "node")
    out = tmp_path / "out"
    out.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "p2pgrid", "--data", str(tmp_path / "node"), "receipts", "export", str(out / "node.jsonl")),
        *("--logged", "--witnesses", "9", "--wait", "100"),
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=heeds_ctrl_c,
    )
    await until(lambda: list(out.iterdir()), timeout_s=30)
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130 and b"Traceback" not in errors, errors
    assert not list(out.iterdir())
