"""`p2pgrid network`: what it prints, what it keeps, and that no secret is shown where none belongs."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network_commands import network
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError
from p2pgrid.proto.keys import SecretKey

PEER = SecretKey(b"k" * 32).public_key.peer_id
DOOR = "/ip4/127.0.0.1/tcp/4803/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "node")


def run(data: DataFolder, *arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(network, arguments, obj=CliContext(data=data), catch_exceptions=False, input=stdin)
    assert result.exit_code == 0, result.output
    return result


def fails(data: DataFolder, *arguments: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(network, arguments, obj=CliContext(data=data), catch_exceptions=False)
    return caught.value


def secret_of(data: DataFolder) -> str:
    return (data.networks_folder / "lab.secret").read_text().strip()


def test_make_invite_join_list_and_leave(data: DataFolder, tmp_path: Path) -> None:
    created = run(data, "create", "lab", "--bootstrap", DOOR).output
    assert "closed by a secret" in created and "p2pgrid network invite lab" in created and "restarted" in created
    file = tmp_path / "invitation"
    assert str(file) in run(data, "invite", "lab", "--out", str(file)).output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret_of(data) in file.read_text()

    friend = DataFolder(tmp_path / "friend")
    assert "closed by a secret" in run(friend, "join", str(file)).output
    assert secret_of(friend) == secret_of(data)
    rows = json.loads(run(friend, "list", "--json").output)
    assert rows == [{"network": "lab", "kind": "secret", "bootstrap": [DOOR]}]
    assert "1 bootstrap peer" in run(friend, "list").output
    third = DataFolder(tmp_path / "third")
    run(third, "join", "-", stdin=file.read_text())
    assert secret_of(third) == secret_of(data)

    for shown in (created, *(run(friend, "list", *flags).output for flags in ([], ["--json"]))):
        assert secret_of(data) not in shown
    run(friend, "leave", "lab")
    assert json.loads(run(friend, "list", "--json").output) == [{"network": "main", "kind": "open", "bootstrap": []}]
    assert "no closed network 'lab'" in fails(friend, "leave", "lab").message


def test_standard_output_to_a_file_is_made_private(data: DataFolder, tmp_path: Path) -> None:
    run(data, "create", "lab", "--bootstrap", DOOR)
    file = tmp_path / "invitation"
    with file.open("wb") as out:
        file.chmod(0o644)
        command = [sys.executable, "-m", "p2pgrid", "--data", str(data.path), "network", "invite", "lab"]
        subprocess.run(command, stdout=out, check=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and secret_of(data) in file.read_text()


def test_an_invitation_that_others_can_read_is_refused_if_it_holds_a_secret(data: DataFolder, tmp_path: Path) -> None:
    run(data, "create", "lab")
    run(data, "create", "crew", "--members")
    friend = DataFolder(tmp_path / "friend")
    for name in ("lab", "crew"):
        run(data, "invite", name, "--out", str(tmp_path / name))
        (tmp_path / name).chmod(0o644)
    assert "can be read by others (mode 0644" in fails(friend, "join", str(tmp_path / "lab")).message
    assert "list of members" in run(friend, "join", str(tmp_path / "crew")).output
    assert "cannot be read" in fails(friend, "join", str(tmp_path / "none")).message
    assert "is no invitation" in fails(friend, "join", str(data.networks_folder / "lab.toml")).message


def test_admit_and_expel(data: DataFolder, tmp_path: Path) -> None:
    run(data, "create", "crew", "--members")
    file = tmp_path / "invitation"
    shown = run(data, "admit", "crew", PEER, "--out", str(file), "--json").stdout
    assert json.loads(shown) == {"network": "crew", "kind": "members", "file": str(file)}
    assert PEER in json.loads(run(data, "list", "--json").output)[0]["members"]
    assert "off the list" in run(data, "expel", "crew", PEER).output
    assert json.loads(run(data, "expel", "crew", PEER, "--json").output)["was_member"] is False
    assert "Leave --days out" in fails(data, "admit", "crew", PEER, "--days", "3").hint
    assert "is no peer id" in fails(data, "admit", "crew", "me").message


def test_a_group_admits_for_some_days(data: DataFolder, tmp_path: Path) -> None:
    run(data, "create", "guild", "--group-key", "--bootstrap", DOOR)
    friend = DataFolder(tmp_path / "friend")
    peer = friend.load_or_create_key().public_key.peer_id
    bare, file = tmp_path / "bare", tmp_path / "invitation"
    run(data, "invite", "guild", "--out", str(bare))
    assert f"p2pgrid network admit guild {peer}" in run(friend, "join", str(bare)).output
    assert "no membership yet" in run(friend, "list").output
    result = run(data, "admit", "guild", peer, "--days", "3", "--out", str(file))
    assert "is a member until" in result.output
    run(friend, "join", str(file))
    (row,) = json.loads(run(friend, "list", "--json").output)
    assert row["member_until_ms"] > 0 and row["admits_here"] is False
    assert json.loads(run(data, "list", "--json").output)[0]["admits_here"] is True
    assert "ends by itself" in fails(data, "expel", "guild", peer).hint
    assert "--delete-group-key" in fails(data, "leave", "guild").hint
    run(data, "leave", "guild", "--delete-group-key")


def test_a_secret_admits_nobody_by_name(data: DataFolder) -> None:
    run(data, "create", "lab")
    assert "p2pgrid network invite lab" in fails(data, "admit", "lab", PEER).hint
    assert "Make a new network" in fails(data, "expel", "lab", PEER).hint
    assert "--json needs --out" in fails(data, "invite", "lab", "--json").message
    assert "no closed network 'main'" in fails(data, "invite", "main").message
