"""`p2pgrid receipts fetch`: a provider's books as its client is shown them, over libp2p and on a port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pgrid.audit import audit_files
from p2pgrid.cli.main import cli
from p2pgrid.client.pages import HttpPages
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.errors import ProtocolViolation, Refused, Unreachable, UsageError
from p2pgrid.proto.keys import SecretKey
from tests.factories import secret_key
from tests.provider.rig import CLIENT
from tests.provider.test_pages import STRANGER, Site, site

FORMER = secret_key("a key that was changed")


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "node")
    folder.make()
    create_key(folder.key_file)
    return folder


def client_folder(path: Path, key: SecretKey, *former: SecretKey) -> Path:
    folder = DataFolder(path)
    folder.make()
    for file, one in [(folder.key_file, key), *((path / f"key.{one.public_key.peer_id}", one) for one in former)]:
        file.write_text(one.expose_seed().hex())
        file.chmod(0o600)
    return path


async def fetch(folder: Path, *arguments: str) -> Result:
    """The command in a thread with loops of its own, beside what this test serves."""
    whole = ["--data", str(folder), "receipts", "fetch", *arguments]
    return await asyncio.to_thread(lambda: CliRunner().invoke(cli, whole))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def multiaddr(s: Site) -> str:
    return s.provider.libp2p_addresses[0]


@pytest.mark.parametrize("road", ["libp2p", "port"])
async def test_the_providers_books_of_us(data: DataFolder, tmp_path: Path, road: str) -> None:
    async with site(data) as s:
        for key in (CLIENT, FORMER):
            await s.buy(key)
        await s.buy(STRANGER)
        folder, file = client_folder(tmp_path / "client", CLIENT, FORMER), tmp_path / "theirs.jsonl"
        more = [multiaddr(s)] if road == "libp2p" else [s.provider.peer_id, "--url", s.url]
        got = await fetch(folder, *more, str(file), "--json")
        assert got.exit_code == 0, got.exception or got.output
        shown = json.loads(got.stdout)
        assert (shown["provider"], shown["channels"]) == (s.provider.peer_id, 2)
        assert len(file.read_bytes().splitlines()) == shown["records"]
        verdict = audit_files([file])
        assert verdict.clean, verdict.findings
        assert STRANGER.public_key.raw.hex() not in file.read_text()
        assert leftovers(tmp_path) == []

        text = await fetch(folder, *more, str(file))
        assert "records of 2 channels" in text.stdout
        assert f"p2pgrid audit mine.jsonl {file}" in text.stdout


async def test_what_goes_wrong_says_what_and_leaves_no_file(data: DataFolder, tmp_path: Path) -> None:
    async with site(data) as s:
        folder, file = client_folder(tmp_path / "client", CLIENT), tmp_path / "theirs.jsonl"
        other = STRANGER.public_key.peer_id
        for arguments, error, words in (
            ([multiaddr(s)], Refused, "has no channel with"),
            (["nobody"], UsageError, "names no peer"),
            ([other, "--url", s.url], ProtocolViolation, "belongs to"),
            ([s.provider.peer_id, "--url", "http://192.0.2.1:4880"], UsageError, "not encrypted"),
            ([s.provider.peer_id, "--url", "https://127.0.0.1:1"], Unreachable, "cannot be read"),
            ([f"{multiaddr(s).rpartition('/')[0]}/{other}"], Unreachable, "cannot be reached"),
        ):
            got = await fetch(folder, *arguments, str(file))
            assert isinstance(got.exception, error), (arguments, got.exception, got.output)
            assert words in str(got.exception)
            assert not file.exists()
            assert leftovers(tmp_path) == []
        missing = await fetch(folder, multiaddr(s), str(tmp_path / "no such folder" / "file"))
        assert isinstance(missing.exception, UsageError)


async def test_pages_on_a_port_refuse_as_pages_do(data: DataFolder) -> None:
    async with site(data) as s:
        url = s.url.replace("127.0.0.1", "localhost")
        async with HttpPages(url, s.provider.key.public_key, CLIENT, 5) as pages:
            listed = b"".join([piece async for piece in pages.get("/receipts")])
            assert json.loads(listed)["client"] == CLIENT.public_key.peer_id
            with pytest.raises(Refused, match="404"):
                _ = [piece async for piece in pages.get("/receipts/0")]
            with pytest.raises(ProtocolViolation, match="over 10 bytes"):
                _ = [piece async for piece in pages.get("/receipts", max_bytes=10)]
