"""docs/examples/js, which has nothing of ours but docs/spec: it joins a grid of real processes and buys."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.demo.grid import CHEAPER, DEARER, NETWORK, Grid
from tests.grid.conftest import MODEL, FakeEngine, fake_engine, p2pgrid, receipts, until
from tests.interop.conftest import EXAMPLE, ROOT, Ended, Program

__all__ = ["fake_engine"]

pytestmark = [pytest.mark.process, pytest.mark.timeout(420)]

VECTORS = ROOT / "tests" / "vectors"
PROMPT = "Labas, how are you?"


@pytest.fixture
async def grid(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[Grid]:
    """A bootstrap peer and one operator, in processes of their own."""
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    try:
        await grid.start_bootstrap()
        await grid.start_operator(CHEAPER)
        yield grid
    finally:
        await grid.stop()


async def buy(js: Program, grid: Grid, out: Path, *options: str, node: tuple[str, ...] = (), tokens: int = 16) -> Ended:
    [peer] = grid.bootstrap.ready["addresses"]
    request = json.dumps({"fake": {"tokens": tokens}})
    where = ("--network", NETWORK, "--peer", peer, "--out", str(out))
    what = ("--model", MODEL, "--request", request, "--max-tokens", "1000")
    return await js.run(*node, "main.mjs", "buy", *where, *what, *options, PROMPT)


async def exported(grid: Grid, operator: Any = CHEAPER) -> str:
    """The operator's side of all its channels, as a file."""
    file = grid.folder / "provider.jsonl"
    code, _, errors = await p2pgrid(grid.operators[operator].data, "receipts", "export", str(file))
    assert code == 0, errors
    return str(file)


async def signed(grid: Grid) -> list[dict[str, Any]]:
    """The operator's receipts, once both have signed: what the program sends last is nowhere acknowledged."""
    rows: list[dict[str, Any]] = await until(
        lambda: receipts(grid.operators[CHEAPER].data),
        lambda rows: bool(rows) and all(row["countersigned"] for row in rows),
    )
    return rows


def read_lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()


async def audit(grid: Grid, *files: str) -> dict[str, Any]:
    code, output, errors = await p2pgrid(grid.folder, "audit", "--json", *files)
    assert code in (0, 1), errors
    verdict: dict[str, Any] = json.loads(output)
    return verdict


async def test_the_program_fits_the_vectors(js: Program, tmp_path: Path) -> None:
    ended = await js.run("self-test.mjs", str(VECTORS))
    assert ended.code == 0, ended.errors
    fitting, of, all_of_them, *_ = ended.output.split()
    assert of == "of" and fitting == all_of_them and int(fitting) > 2000

    # Vectors of another protocol are noticed.
    shutil.copytree(VECTORS, tmp_path / "vectors")
    commitments = tmp_path / "vectors" / "commitments.json"
    commitments.write_text(commitments.read_text().replace('"commitment": "', '"commitment": "00', 1))
    ended = await js.run("self-test.mjs", str(tmp_path / "vectors"))
    assert ended.code == 1
    assert "differs: commitment to a request" in ended.errors


async def test_a_stranger_buys_and_both_sides_are_clean(js: Program, grid: Grid, tmp_path: Path) -> None:
    ended = await buy(js, grid, tmp_path / "stranger", "--json", tokens=200)
    assert ended.code == 0, ended.errors
    said = ended.json
    assert said["state"] == "SETTLED"
    assert said["provider"] == grid.operators[CHEAPER].ready["peer_id"]
    assert said["operator"] == CHEAPER.name
    assert said["ping_ms"] >= 0
    assert said["text"].startswith("the grid counts every token") and len(said["text"].split()) == 200
    # W is 64: a tick every 32 tokens, and each was answered.
    assert said["vouchers"] == 6
    assert (said["receipt"]["status"], said["receipt"]["output_tokens"]) == ("completed", 200)

    [row] = await signed(grid)
    assert row["id"] == said["receipt"]["id"]
    assert str(row["amount_pico"]) == said["receipt"]["amount_pico"]

    own = said["bundle"]
    verdict = await audit(grid, await exported(grid), own)
    assert verdict["clean"] and not verdict["notes"], verdict
    assert [channel["countersigned"] for channel in verdict["channels"]] == [1]
    types = [json.loads(line)["type"].split("/")[2] for line in read_lines(own)]
    assert types == ["offer", "channel", "order", *["meter", "voucher"] * 6, "receipt"]
    alone = await audit(grid, own)
    assert alone["clean"] and not alone["notes"], alone

    # What was signed is never written over.
    ended = await buy(js, grid, tmp_path / "stranger", "--json")
    assert (ended.code, ended.output) == (2, "")
    assert "client.jsonl exists" in ended.errors


async def test_the_cheapest_of_two_is_bought_from(js: Program, grid: Grid, tmp_path: Path) -> None:
    await grid.start_operator(DEARER)
    # What a person sees: the answer on standard output, all else beside it.
    ended = await buy(js, grid, tmp_path / "cheaper")
    assert (ended.code, ended.output.split()[:3]) == (0, ["the", "grid", "counts"]), ended.errors
    assert "2 offer(s); buying from Vilnius Compute" in ended.errors
    assert "SETTLED: completed, 8 tokens in, 16 out, 0.000007200 EUR, 0 vouchers" in ended.errors
    ended = await buy(js, grid, tmp_path / "italian", "--country", "IT", "--json")
    assert (ended.code, ended.json["operator"]) == (0, DEARER.name), ended.errors


async def test_a_bad_voucher_is_refused(js: Program, grid: Grid, tmp_path: Path) -> None:
    ended = await buy(js, grid, tmp_path / "liar", "--json", node=("--import", "./bad_voucher.mjs"), tokens=200)
    assert ended.code == 1
    assert "the client's voucher differs from the meter tick it names" in ended.errors
    operator = grid.operators[CHEAPER].data
    assert await receipts(operator) == []

    # Whoever signed it is at fault, by its own file alone; the provider never took it.
    verdict = await audit(grid, str(tmp_path / "liar" / "client.jsonl"))
    assert [(f["code"], f["party"], f["convinces"]) for f in verdict["findings"]] == [("wrong-voucher", "client", True)]
    assert not [line for line in read_lines(await exported(grid)) if '"/p2pgrid/voucher/1"' in line]

    # Nobody else notices.
    ended = await buy(js, grid, tmp_path / "honest", "--json", tokens=200)
    assert ended.code == 0, ended.errors
    assert len(await signed(grid)) == 1


async def test_a_network_whose_only_introducer_is_theirs(js: Program, tmp_path: Path, fake_engine: FakeEngine) -> None:
    """Operator, gateway and program join through a js-libp2p server; it holds the provider records, and answers."""
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--json")
    async with js.running("main.mjs", "serve-dht", "--network", NETWORK, *listen) as introducer:
        assert introducer.stdout is not None
        ready = json.loads(await introducer.stdout.readline())
        [address] = ready["addresses"]
        (tmp_path / "bootstrap_peers.toml").write_text(f'[networks.{NETWORK}]\npeers = ["{address}"]\n')
        try:
            await grid.start_operator(CHEAPER)
            node = grid.operators[CHEAPER]

            async def log() -> str:
                return await asyncio.to_thread(node.log.read_text)

            await until(log, lambda text: "advertised: 1 peers hold it" in text)
            peers = ("--network", NETWORK, "--bootstrap-peers", str(tmp_path / "bootstrap_peers.toml"))
            code, output, errors = await p2pgrid(tmp_path / "onlooker", "offers", *peers, "--json")
            assert code == 0, errors
            assert node.ready["peer_id"] in output
            grid.bootstrap.ready = ready
            ended = await buy(js, grid, tmp_path / "stranger", "--json")
            assert ended.code == 0, ended.errors
        finally:
            await grid.stop()


async def test_look_ups_go_on_through_theirs_when_ours_is_gone(js: Program, grid: Grid, tmp_path: Path) -> None:
    """A js-libp2p server joins by our bootstrap peer, which then dies: what it has learnt is enough."""
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--json")
    [ours] = grid.bootstrap.ready["addresses"]
    async with js.running("main.mjs", "serve-dht", "--network", NETWORK, "--peer", ours, *listen) as server:
        assert server.stdout is not None
        [address] = json.loads(await server.stdout.readline())["addresses"]
        (tmp_path / "theirs.toml").write_text(f'[networks.{NETWORK}]\npeers = ["{address}"]\n')
        peers = ("--network", NETWORK, "--bootstrap-peers", str(tmp_path / "theirs.toml"))

        async def offers() -> str:
            _, output, _ = await p2pgrid(tmp_path / "onlooker", "offers", *peers, "--json")
            return output

        operator = grid.operators[CHEAPER].ready["peer_id"]
        await until(offers, lambda output: operator in output, deadline_s=60)
        await grid.bootstrap.stop()
        await until(offers, lambda output: operator in output, deadline_s=60)


USAGE = [
    ((), "--help"),
    (("sell",), "no command sell"),
    (("buy", "--model", MODEL, "hello"), "--peer"),
    (("buy", "--peer", "nowhere", "--model", MODEL, "hello"), "nowhere is no address"),
    (("buy", "--peer", "/ip4/127.0.0.1/tcp/1", "hello"), "--model"),
    (("buy", "--peer", "/ip4/127.0.0.1/tcp/1", "--model", MODEL, "--max-tokens", "0", "hello"), "--max-tokens"),
    (("buy", "--peer", "/ip4/127.0.0.1/tcp/1", "--model", MODEL, "--request", "[]", "hello"), "--request"),
    (("buy", "--peer", "/ip4/127.0.0.1/tcp/1", "--model", MODEL, "--network", "No!", "hello"), "No!"),
    (("buy", "--speed", "11"), "--speed"),
    (("serve-dht",), "--listen"),
]


async def test_what_it_says_of_wrong_usage(js: Program, tmp_path: Path) -> None:
    ended = await js.run("main.mjs", "--help")
    assert ended.code == 0
    assert "exit codes" in ended.output
    for n, (arguments, wanted) in enumerate(USAGE):
        out = ("--out", str(tmp_path / str(n))) if "hello" in arguments else ()
        ended = await js.run("main.mjs", *arguments, *out)
        assert ended.code == 2, (arguments, ended)
        assert wanted in ended.errors + ended.output, (arguments, ended)
        assert "    at " not in ended.errors, "no stack trace"


async def test_what_it_says_where_nothing_is_to_be_had(js: Program, grid: Grid, tmp_path: Path) -> None:
    [peer] = grid.bootstrap.ready["addresses"]
    nobody = peer.replace(peer.split("/")[4], "1")
    for n, (address, model, wanted) in enumerate(
        [(nobody, MODEL, "no peer answered"), (peer, "another", f"nobody offers another on {NETWORK}")]
    ):
        out = ("--out", str(tmp_path / str(n)))
        ended = await js.run("main.mjs", "buy", "--network", NETWORK, "--peer", address, "--model", model, *out, PROMPT)
        assert ended.code == 1, ended
        assert wanted in ended.errors


def test_nothing_of_ours_is_in_it() -> None:
    """Its modules import one another, Node's own, and packages of the lock file."""
    packages = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    for module in EXAMPLE.glob("*.mjs"):
        for line in module.read_text().splitlines():
            if not line.startswith("import "):
                continue
            name = line.split("'")[1]
            is_beside = name.startswith("./") and (EXAMPLE / name).is_file()
            package = "/".join(name.split("/")[: 2 if name.startswith("@") else 1])
            assert is_beside or name.startswith("node:") or package in packages, (module.name, line)
