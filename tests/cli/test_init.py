"""`p2pgrid init`: what it writes, and that it never writes over anything."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.config_template import EXPLAINED, render_config
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.init import init
from p2pgrid.config import Config, ModelConfig, NetworkEntry, parse_config
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError

MODEL = ["--model", "m", "--model-path", "tiny", "--price-input", "0.10", "--price-output", "0.40"]


def run(data: DataFolder, *arguments: str) -> Result:
    return CliRunner().invoke(init, arguments, obj=CliContext(data=data), catch_exceptions=False)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "node")


def uncommented(text: str) -> str:
    """Every setting in force: lines that begin with # and no space are settings."""
    return re.sub(r"(?m)^#(?=[^ #\n])", "", text)


def test_the_file_shows_every_setting_with_its_default() -> None:
    config = parse_config(uncommented(render_config()), "test")
    (model,) = config.provider.models
    provider = msgspec.structs.replace(config.provider, models=())
    assert msgspec.structs.replace(config, provider=provider, networks=()) == Config()
    assert config.networks == (NetworkEntry(name="lab"),)
    example = {key: getattr(model, key) for key in ("name", "price_input_eur", "price_output_eur", "model_path")}
    (period,) = model.schedule
    assert (period.days, period.from_, period.until) == (("mon-fri",), "22:00", "06:00")
    assert msgspec.structs.replace(model, schedule=()) == ModelConfig(**example)


def test_the_file_as_written_changes_nothing() -> None:
    assert parse_config(render_config(), "test") == Config()


@pytest.mark.parametrize("section", EXPLAINED, ids=lambda section: section.__name__)
def test_every_setting_is_explained_and_nothing_else(section: type) -> None:
    keys = {
        field.encode_name
        for field in msgspec.structs.fields(section)
        if not isinstance(field.default, msgspec.Struct) and field.encode_name not in ("models", "schedule", "networks")
    }
    assert keys == set(EXPLAINED[section])


def test_a_new_node(data: DataFolder) -> None:
    result = run(data, "--operator", 'Größe & "Co"', "--country", "DE", *MODEL, "--json")
    assert result.exit_code == 0
    shown = json.loads(result.output)
    assert stat.S_IMODE(data.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(data.path.stat().st_mode) == 0o700
    assert shown["peer_id"] == data.load_key().public_key.peer_id
    assert (shown["key_created"], shown["config_created"], shown["models"]) == (True, True, ["m"])
    config = data.load_config()
    assert (config.provider.operator, config.provider.country) == ('Größe & "Co"', "DE")
    assert config.provider.models[0] == ModelConfig(
        name="m", model_path="tiny", price_input_eur="0.10", price_output_eur="0.40"
    )
    assert any("engine install" in step for step in shown["next"])


def test_a_second_run_changes_nothing_and_says_so(data: DataFolder) -> None:
    run(data)
    before = data.key_file.read_bytes(), data.config_file.read_bytes()
    result = run(data, "--country", "DE")
    assert result.exit_code == 0
    assert result.output.count("was there, kept") == 2
    assert "not written" in result.output
    assert (data.key_file.read_bytes(), data.config_file.read_bytes()) == before


def test_a_config_that_is_there_gets_its_key(data: DataFolder) -> None:
    data.make()
    data.config_file.write_text('network = "demo"\n')
    shown = json.loads(run(data, "--json").output)
    assert (shown["key_created"], shown["config_created"]) == (True, False)
    assert data.load_config().network == "demo"


def test_print_config_writes_nothing(data: DataFolder) -> None:
    result = run(data, "--print-config", "--country", "DE")
    assert tomllib.loads(result.output)["provider"]["country"] == "DE"
    assert not data.path.exists()


def test_people_are_told_what_is_next(data: DataFolder) -> None:
    output = run(data).output
    assert f"Edit {data.config_file}" in output
    assert f"p2pgrid --data {data.path} serve" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--country", "Germany"], "country"),
        (["--model", "m"], "--price-input is missing"),
        (["--price-input", "1"], "--model is missing"),
        ([*MODEL, "--engine-url", "http://h:1"], "either a path or"),
        ([*MODEL[:-1], "cheap"], "no number"),
        (["--network", "No Net"], "network"),
    ],
)
def test_what_serve_would_refuse_is_not_written(data: DataFolder, arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(data, *arguments)
    assert not data.path.exists()


def test_a_broken_config_is_named(data: DataFolder) -> None:
    data.make()
    data.config_file.write_text("country = DE\n")
    with pytest.raises(UsageError, match=r"config\.toml is no TOML"):
        run(data)
