"""The command: exit codes, what people and programs read, and files that are no bundles."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from p2pgrid.audit import audit_files
from p2pgrid.audit.check import side_of
from p2pgrid.audit.report import print_verdict
from p2pgrid.cli.audit import audit
from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role
from tests.proto.chains import Dealings, everyday_dealings


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    """Both sides' exports as files."""
    paths = tmp_path / "provider.jsonl", tmp_path / "client.jsonl"
    for path, lines in zip(paths, everyday_dealings().bundles(), strict=True):
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    return paths


def flip_a_byte(path: Path) -> None:
    """In the payload of the first receipt, where it is still base64."""
    data = bytearray(path.read_bytes())
    at = data.index(b'"payload":"', data.index(b"/p2pgrid/receipt/1")) + 60
    data[at] = ord("A") if data[at] != ord("A") else ord("B")
    path.write_bytes(data)


def test_clean_bundles_end_with_exit_code_0(bundles: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(audit, [str(path) for path in bundles])
    assert result.exit_code == 0
    assert result.stdout.startswith("Clean. 107 records in 2 bundle(s): 1 channel(s), 13 receipts, 12 of them")
    assert "Rechenwerk Nord" in result.stdout
    assert "12D3KooW" in result.stdout


def test_a_flipped_byte_is_exit_code_1_with_the_party_named(bundles: tuple[Path, Path]) -> None:
    flip_a_byte(bundles[1])
    result = CliRunner().invoke(audit, [str(path) for path in bundles])
    assert result.exit_code == 1
    client = Dealings().client.public_key.peer_id
    assert result.stdout.startswith("1 finding.")
    assert f"bad-signature  at fault: client {client}" in result.stdout
    assert "It is receipt 1, which provider.jsonl:" in result.stdout


def test_json_is_one_object(bundles: tuple[Path, Path]) -> None:
    flip_a_byte(bundles[0])
    result = CliRunner().invoke(audit, ["--json", *map(str, bundles)])
    shown = json.loads(result.stdout)
    assert result.exit_code == 1
    assert shown["clean"] is False
    (finding,) = shown["findings"]
    assert (finding["code"], finding["party"]) == ("bad-signature", "provider")
    assert finding["where"].startswith("provider.jsonl:")
    assert shown["totals"]["receipts"] == 13
    assert shown["totals"]["amounts"] == {"EUR": "0.0014"}
    assert {bundle["side"] for bundle in shown["bundles"]} == {"provider", "client"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "it is empty"),
        (b"\n\n  \n", "it is empty"),
        (b"hello\nworld\n", "is no bundle"),
        (b"{}\n" * 5000, "is no bundle"),
        (b"\x00\xff" * 1_000_000, "is no bundle"),
    ],
)
def test_unusable_input_is_a_usage_error(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "bundle.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        audit_files([path])
    assert said in raised.value.message
    assert str(path) in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 2


def test_a_folder_and_a_file_named_twice_are_usage_errors(tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        audit_files([tmp_path])
    with pytest.raises(UsageError, match="named twice"):
        audit_files([bundles[0], bundles[0]])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("provider.jsonl", Role.PROVIDER),
        ("nord-Provider-2026.jsonl", Role.PROVIDER),
        ("operator-lt.jsonl", Role.PROVIDER),
        ("client.jsonl", Role.CLIENT),
        ("gateway-tampered.jsonl", Role.CLIENT),
        ("receipts.jsonl", None),
        ("client-and-provider.jsonl", None),
    ],
)
def test_a_file_s_name_says_its_side(name: str, side: Role | None) -> None:
    assert side_of(Path("provider") / name) is side


def test_names_of_peers_cannot_write_on_the_terminal() -> None:
    from p2pgrid.proto.verdict import audit_records
    from tests.proto.chains import bundle_of

    grid = Dealings(offer_changes={"operator": "\x1b[2J[bold]Nord\u202e"})
    grid.deal()
    out = io.StringIO()
    print_verdict(audit_records([bundle_of(grid.bundles()[0])]), Console(file=out, force_terminal=False, width=200))
    assert "\x1b" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert "[bold]Nord" in out.getvalue()
