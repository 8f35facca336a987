"""The command: exit codes, what people and programs read, and files that are no bundles."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from p2pgrid.audit import audit_files
from p2pgrid.audit.check import side_of
from p2pgrid.audit.report import print_verdict
from p2pgrid.cli.audit import audit
from p2pgrid.errors import UsageError
from p2pgrid.proto.messages import Usage
from p2pgrid.proto.record import Role
from tests.proto.audit_cases_disputes import disputed
from tests.proto.chains import Dealings, everyday_dealings, key


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


def test_what_is_demanded_of_logs(bundles: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(audit, ["--json", "--logged", "--witnesses", "1", *map(str, bundles)])
    assert result.exit_code == 1
    codes = [finding["code"] for finding in json.loads(result.stdout)["findings"]]
    assert sorted(codes) == ["not-logged", "too-few-witnesses"]


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


# -- what people are shown ------------------------------------------------------------------------------------------


def test_the_summary_says_who_is_at_fault_and_what_is_owed(bundles: tuple[Path, Path]) -> None:
    flip_a_byte(bundles[1])
    lines = CliRunner().invoke(audit, [str(path) for path in bundles]).stdout.splitlines()
    assert lines[1] == f"At fault: client {Dealings().client.public_key.peer_id} (1)."
    assert lines[2].startswith("EUR: 0.0014 owed (0.0014 billed, 0.00 credited), 0.00 disputed, 0.00")
    assert lines[3].startswith("Terms held against 2026-05-")
    assert any(line.startswith("  What to do: ") for line in lines)


def test_findings_of_one_kind_stand_together(tmp_path: Path) -> None:
    grid = Dealings()
    for _ in range(8):
        grid.receipt(grid.order(), Usage(prompt_tokens=10, output_tokens=10), amount_pico=7)
    path = tmp_path / "provider.jsonl"
    path.write_bytes(b"\n".join(grid.bundles()[0]))
    shown = CliRunner().invoke(audit, [str(path)]).stdout
    assert shown.startswith("8 findings.")
    assert shown.count("wrong-amount  at fault: provider") == 1
    assert "(8 times)" in shown
    assert shown.count("  - The amount of receipt") == 5
    assert "and 3 more, which --json and --html tell of" in shown
    assert len(json.loads(CliRunner().invoke(audit, [str(path), "--json"]).stdout)["findings"]) == 8


def test_the_shape_of_the_json(bundles: tuple[Path, Path]) -> None:
    """What docs/audit.md promises."""
    flip_a_byte(bundles[0])
    shown = json.loads(CliRunner().invoke(audit, ["--json", *map(str, bundles)]).stdout)
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    for name in (*shown, *shown["channels"][0], *shown["findings"][0], *shown["bundles"][0], *shown["activity"][0]):
        assert f"`{name}`" in page, name
    for name in (*shown["totals"], *shown["totals"]["sums"]["EUR"], *shown["at_fault"][0]):
        assert f"`{name}`" in page, name


def test_hundreds_of_channels_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "provider.jsonl"
    with path.open("wb") as file:
        for number in range(200):
            grid = Dealings(client=key(f"client {number}"), nonce=f"{number}")
            grid.deal(output=20)
            file.writelines(line + b"\n" for line in grid.bundles()[0])
    result = CliRunner().invoke(audit, [str(path)])
    assert result.exit_code == 0
    assert "200 channel(s), 200 receipts" in result.stdout
    assert "and 170 more; --json and --html list them all" in result.stdout


def test_standard_input(bundles: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(audit, ["-", str(bundles[1])], input=bundles[0].read_bytes())
    assert result.exit_code == 0
    assert result.stdout.startswith("Clean. 107 records in 2 bundle(s)")
    with pytest.raises(UsageError, match="is no bundle: it is empty"):
        CliRunner().invoke(audit, ["-"], input=b"", catch_exceptions=False)


def test_terms_are_held_against_the_day_that_is_named(tmp_path: Path) -> None:
    grid, _, _ = disputed()
    path = tmp_path / "both.jsonl"
    path.write_bytes(b"\n".join(grid.bundles()[0]))
    assert CliRunner().invoke(audit, [str(path)]).exit_code == 0
    result = CliRunner().invoke(audit, [str(path), "--at", "2027-01-01"])
    assert result.exit_code == 1
    assert "dispute-unanswered  at fault: provider" in result.stdout
    assert "Terms held against 2027-01-01 23:59 UTC." in result.stdout
    shown = json.loads(CliRunner().invoke(audit, [str(path), "--json", "--at", "2027-01-01T01:00+01:00"]).stdout)
    assert shown["at_ms"] == 1_798_761_600_000
    for wrong in ("tomorrow", "2027-13-01", ""):
        assert CliRunner().invoke(audit, [str(path), "--at", wrong]).exit_code == 2


def test_help_tells_the_exit_codes() -> None:
    shown = CliRunner().invoke(audit, ["--help"]).stdout
    assert "Exit codes: 0 clean" in shown
    for option in ("--json", "--html", "--proofs", "--proof", "--at"):
        assert option in shown


def test_usage() -> None:
    with pytest.raises(UsageError, match="no bundle is named"):
        CliRunner().invoke(audit, [], catch_exceptions=False)
    with pytest.raises(UsageError, match="verifies one file alone"):
        CliRunner().invoke(audit, ["x.jsonl", "--proof", "y.jsonl"], catch_exceptions=False)


@pytest.mark.skipif(sys.platform != "linux", reason="process groups and a terminal")
@pytest.mark.parametrize(
    ("to_all", "signal_"), [(True, signal.SIGINT), (False, signal.SIGINT), (False, signal.SIGKILL)]
)
def test_however_it_ends_no_worker_is_left(tmp_path: Path, to_all: bool, signal_: signal.Signals) -> None:
    """A large bundle is audited by several processes, on a terminal, which shows how far it is."""
    lines = everyday_dealings().bundles()[0]
    path, temporary = tmp_path / "provider.jsonl", tmp_path / "tmp"
    path.write_bytes(b"".join(line + b"\n" for line in lines) * 600)
    temporary.mkdir()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pgrid.cli.main", "audit", str(path), "--processes", "2"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(temporary), "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a shell's background jobs ignore it
    )
    os.close(theirs)
    try:
        seen = b""
        while b"checking" not in seen:
            seen += os.read(ours, 4096)
        if to_all:
            os.killpg(process.pid, signal_)
        else:
            process.send_signal(signal_)
        assert process.wait(20) == (-signal.SIGKILL if signal_ is signal.SIGKILL else 130)
        deadline = time.monotonic() + 20
        while is_group_alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if signal_ is signal.SIGINT:
            assert not list(temporary.iterdir())
    finally:
        os.close(ours)
        if is_group_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
