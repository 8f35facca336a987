"""`p2pgrid serve`: flags over file over defaults, and the command as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli.serve import with_flags
from p2pgrid.config import Config, ModelConfig, ProviderConfig
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.errors import UsageError

PRICES: dict[str, Any] = {"price_input_eur": "0.10", "price_output_eur": "0.40"}
FILE = Config(
    provider=ProviderConfig(
        country="DE",
        listen="127.0.0.1:1",
        models=(
            ModelConfig(name="a", model_path="tiny", concurrency=3, **PRICES),
            ModelConfig(name="b", engine_url="http://h:1", **PRICES),
        ),
    )
)


def flags(model: str | None = None, /, config: Config = FILE, **given: Any) -> ProviderConfig:
    keys = ("model_path", "engine_url", "price_input_eur", "price_cached_input_eur", "price_output_eur")
    return with_flags(
        config, {k: v for k, v in given.items() if k not in keys}, model, {k: given.get(k) for k in keys}
    ).provider


def test_no_flag_changes_nothing() -> None:
    assert flags(listen=None, announce=()) == FILE.provider


def test_flags_beat_the_file() -> None:
    provider = flags(listen="127.0.0.1:2", announce=("h:1",), country=None)
    assert (provider.listen, provider.announce, provider.country) == ("127.0.0.1:2", ("h:1",), "DE")


def test_the_number_of_processes_is_a_flag_and_a_key() -> None:
    assert flags().processes == 1
    assert flags(processes=4).processes == 4
    for wrong in (0, 65):
        with pytest.raises(UsageError, match="processes"):
            flags(processes=wrong)


def test_the_direct_road_can_be_left_out() -> None:
    def without_direct(**given: Any) -> ProviderConfig:
        return with_flags(FILE, given, None, {}, no_direct=True).provider

    assert (without_direct().listen, FILE.provider.listen) == ("", "127.0.0.1:1")
    for given in ({"listen": "127.0.0.1:2"}, {"announce": ("h:1",)}):
        with pytest.raises(UsageError, match="--no-direct and an address"):
            without_direct(**given)


def test_one_model_of_the_file_with_another_engine() -> None:
    (model,) = flags("a", engine_url="unix:/e").models
    assert (model.name, model.engine_url, model.model_path, model.concurrency) == ("a", "unix:/e", None, 3)


def test_a_model_that_is_not_in_the_file() -> None:
    (model,) = flags("c", model_path="smollm2", **PRICES).models
    assert model == ModelConfig(name="c", model_path="smollm2", **PRICES)


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        ("c", {"model_path": "tiny"}, "--price-input is missing"),
        (None, {"engine_url": "http://h:1"}, "not clear for which model"),
        (None, {"country": "Germany"}, "a flag is wrong"),
    ],
)
def test_flags_that_do_not_fit(model: str | None, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        flags(model, **given)


async def start(data: DataFolder, *arguments: str) -> asyncio.subprocess.Process:
    data.path.mkdir(parents=True, exist_ok=True)
    peers = data.path / "peers.toml"
    peers.write_text("[networks.main]\npeers = []\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "P2PGRID_SERVE_COUNTRY": "FR"}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "p2pgrid", "--data", str(data.path), "serve", "--bootstrap-peers", str(peers)),
        *("--libp2p-listen", "/ip4/127.0.0.1/tcp/0", "--json", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )


@pytest.mark.process
async def test_a_process_that_serves_and_stops(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "node")
    data.make()
    create_key(data.key_file)
    async with serve_fake(FakeVllm()) as url:
        model = ("--model", "fake", "--engine-url", url, "--price-input", "0.10", "--price-output", "0.40")
        process = await start(data, "--listen", "127.0.0.1:0", "--pages", "127.0.0.1:0", *model)
        assert process.stdout is not None
        try:
            ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
            assert (ready["ready"], ready["country"], ready["peer_id"]) == (
                True,
                "FR",
                data.load_key().public_key.peer_id,
            )
            assert ready["models"][0]["price_output_eur"] == "0.40"
            assert ready["pages"].startswith("http://127.0.0.1:")
            port = ready["addresses"][0].split("/")[4]

            second = DataFolder(tmp_path / "second")
            second.make()
            create_key(second.key_file)
            refused = await start(second, "--listen", f"127.0.0.1:{port}", *model)
            _, errors = await asyncio.wait_for(refused.communicate(), 60)
            assert refused.returncode == 3
            assert "cannot listen" in json.loads(errors.splitlines()[-1])["error"]["message"]

            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.process
async def test_without_a_key_it_says_what_to_do(tmp_path: Path) -> None:
    process = await start(DataFolder(tmp_path / "node"), "--model", "m", "--engine-url", "http://127.0.0.1:1")
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert "--price-input" in json.loads(errors.splitlines()[-1])["error"]["message"]
    prices = ("--price-input", "0.1", "--price-output", "0.1")
    process = await start(DataFolder(tmp_path / "node"), "--model", "m", "--engine-url", "http://127.0.0.1:1", *prices)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert "p2pgrid init" in json.loads(errors.splitlines()[-1])["error"]["hint"]
