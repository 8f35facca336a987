"""Whose a data folder is, and what is wrong with what lies in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2pgrid.cli.config_template import render_config
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.doctor.check import Check, State
from p2pgrid.doctor.folder import Role, check_config, check_keys, role_of

MODEL = """
[[provider.models]]
name = "a"
engine-url = "http://127.0.0.1:1"
price-input-eur = "0.10"
price-output-eur = "0.40"
"""
WELL = f'[provider]\noperator = "X"\n{MODEL}'


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    return folder


def write(data: DataFolder, config: str) -> None:
    data.config_file.write_text(config)


@pytest.mark.parametrize(
    ("config", "files", "running", "expected"),
    [
        (None, [], None, Role.CLIENT),
        (None, ["key"], None, Role.BOOTSTRAP),
        (None, ["key", "ledger.sqlite"], None, Role.PROVIDER),
        (None, ["key", "ledger.sqlite", "offers.json"], None, Role.CLIENT),
        (WELL, ["key"], None, Role.PROVIDER),
        (WELL, ["key", "offers.json"], None, Role.PROVIDER),
        ("[client]\n", ["key"], None, Role.CLIENT),
        ("[bootstrap]\n", ["key"], None, Role.BOOTSTRAP),
        (render_config(), ["key"], None, Role.PROVIDER),
        (render_config(), ["key", "offers.json"], None, Role.CLIENT),
        ("no toml", ["key"], None, Role.PROVIDER),
        (WELL, ["key"], "client", Role.CLIENT),
        (WELL, ["key"], "something newer", Role.PROVIDER),
    ],
)
def test_roles(data: DataFolder, config: str | None, files: list[str], running: str | None, expected: Role) -> None:
    for name in files:
        (data.path / name).touch()
    if config is not None:
        write(data, config)
    assert role_of(data, running) is expected


def faults(checks: list[Check]) -> list[tuple[State, str]]:
    return [(one.state, one.fix) for one in checks if one.state is not State.OK]


@pytest.mark.parametrize(
    ("role", "config", "state", "fix"),
    [
        (Role.PROVIDER, "network = 'Main'\n" + WELL, State.FAULT, "--print-config"),
        (Role.PROVIDER, "nonsense", State.FAULT, "Mend that line"),
        (Role.PROVIDER, '[provider]\noperator = "X"\n', State.FAULT, "[[provider.models]]"),
        (Role.PROVIDER, "[provider]\n" + MODEL, State.WARNING, "Set operator"),
        (Role.PROVIDER, WELL.replace('"X"', '"X"\nlisten = "4801"'), State.FAULT, "host:port"),
        (Role.PROVIDER, WELL.replace('"X"', '"X"\nlisten = ""\nlibp2p-listen = []'), State.FAULT, "Set listen"),
        (Role.PROVIDER, WELL.replace('"X"', '"X"\nlibp2p-listen = ["0.0.0.0:1"]'), State.FAULT, "/ip4/"),
        (Role.PROVIDER, WELL.replace('"X"', '"X"\nannounce = ["0.0.0.0:1"]'), State.FAULT, "Announce a host"),
        (Role.PROVIDER, WELL.replace('"X"', '"X"\nlibp2p-announce = ["x"]'), State.FAULT, "/dns4/"),
        (Role.PROVIDER, WELL.replace('"X"', '"X"\ntime-zone = "Mars/Olympus"'), State.FAULT, ""),
        (Role.PROVIDER, WELL.replace("0.40", "cheap"), State.FAULT, ""),
        (Role.CLIENT, '[client]\nmax-cost-eur = "much"\n', State.FAULT, ""),
        (Role.CLIENT, '[client]\nlisten = "0.0.0.0:8480"\n', State.FAULT, "api-key-file"),
        (Role.CLIENT, '[client]\napi-key-file = "/nowhere/key"\n', State.FAULT, "openssl rand"),
        (Role.BOOTSTRAP, '[bootstrap]\nlibp2p-listen = ["x"]\n', State.FAULT, "/ip4/"),
    ],
)
def test_what_is_wrong_with_the_configuration(
    data: DataFolder, role: Role, config: str, state: State, fix: str
) -> None:
    write(data, config)
    _, checks = check_config(data, role)
    found = faults(checks)
    assert [one[0] for one in found] == [state]
    assert fix in found[0][1]


@pytest.mark.parametrize("role", Role)
def test_a_configuration_without_fault(data: DataFolder, role: Role) -> None:
    if role is Role.PROVIDER:
        write(data, WELL)
    config, checks = check_config(data, role)
    assert config is not None
    assert [one.state for one in checks] == [State.OK]


def test_an_api_key_that_others_can_read(data: DataFolder) -> None:
    key = data.path / "api-key"
    key.write_text("x" * 32)
    key.chmod(0o644)
    write(data, f'[client]\nlisten = "0.0.0.0:1"\napi-key-file = "{key}"\n')
    assert faults(check_config(data, Role.CLIENT)[1]) == [(State.FAULT, f"chmod 600 {key}")]
    key.chmod(0o600)
    assert faults(check_config(data, Role.CLIENT)[1]) == []


def _none(data: DataFolder) -> None:
    data.key_file.unlink()


def _open_to_others(data: DataFolder) -> None:
    data.key_file.chmod(0o640)


def _garbled(data: DataFolder) -> None:
    data.key_file.write_text("no key")


def _retired_open(data: DataFolder) -> None:
    create_key(data.path / "key.12D3KooWold")
    (data.path / "key.12D3KooWold").chmod(0o604)


def _operators_open(data: DataFolder) -> None:
    create_key(data.operator_key_file)
    data.operator_key_file.chmod(0o644)


def _folder_open(data: DataFolder) -> None:
    data.path.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "state", "fix"),
    [
        (_none, State.FAULT, "p2pgrid --data {} init"),
        (_open_to_others, State.FAULT, "chmod 600 {}/key"),
        (_garbled, State.FAULT, "Restore it from a backup."),
        (_retired_open, State.FAULT, "chmod 600 {}/key.12D3KooWold"),
        (_operators_open, State.FAULT, "chmod 600 {}/operator-key"),
        (_folder_open, State.WARNING, "chmod 700 {}"),
    ],
)
def test_what_is_wrong_with_keys(data: DataFolder, spoil: Callable[[DataFolder], None], state: State, fix: str) -> None:
    create_key(data.key_file)
    key, checks = check_keys(data, Role.PROVIDER)
    assert key is not None
    assert [one.state for one in checks] == [State.OK]
    spoil(data)
    _, checks = check_keys(data, Role.PROVIDER)
    found = faults(checks)
    assert [one[0] for one in found] == [state]
    assert fix.format(data.path) in found[0][1]


@pytest.mark.parametrize("role", [Role.CLIENT, Role.BOOTSTRAP])
def test_who_makes_a_key_by_itself_needs_none_yet(data: DataFolder, role: Role) -> None:
    key, checks = check_keys(data, role)
    assert key is None
    assert [one.state for one in checks] == [State.SKIPPED]
    assert not any(data.path.iterdir())


def test_a_node_that_was_told_by_its_command_what_to_sell(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    data.config_file.write_text('[provider]\noperator = "X"\n')
    (check,) = check_config(data, Role.PROVIDER, ("qwen3-8b",))[1]
    assert check.state is State.WARNING
    assert "qwen3-8b" in check.text
    (check,) = check_config(data, Role.PROVIDER)[1]
    assert check.state is State.FAULT
