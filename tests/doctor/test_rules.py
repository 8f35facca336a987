"""What the doctor makes of what it found, without looking at anything."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from p2pgrid import __version__
from p2pgrid.doctor.check import Check, State, fault, has_faults, ok, skipped, warning
from p2pgrid.doctor.closed import judge_closed
from p2pgrid.doctor.disk import file_system_of, judge_file_system, judge_space
from p2pgrid.doctor.folder import Role
from p2pgrid.doctor.network import (
    Verdict,
    judge_bootstrap,
    judge_clock,
    judge_found,
    judge_reach,
    judge_table,
    verdict_of,
    verdict_of_node,
)
from p2pgrid.doctor.versions import LIBP2P, PYTHONS, check_peers_versions, check_version
from p2pgrid.net.peer_address import BootstrapState
from p2pgrid.net.reach_watch import ReachWatch, shown
from p2pgrid.net.reach_wire import Outcome
from p2pgrid.net.reachability import Reach
from tests.net.test_reach_watch import PORTS, said

ROOT = Path(__file__).parents[2]
OK, WARNING, FAULT, SKIPPED = State.OK, State.WARNING, State.FAULT, State.SKIPPED


def test_what_is_wrong_has_a_fix_and_nothing_else_has() -> None:
    for make in (warning, fault):
        assert make("a", "b", "c").fix == "c"
        with pytest.raises(ValueError, match="fix"):
            make("a", "b", "")
    for state in (OK, SKIPPED):
        with pytest.raises(ValueError, match="fix"):
            Check("a", state, "b", "c")
    assert not has_faults([ok("a", "b"), warning("a", "b", "c"), skipped("a", "b")])
    assert has_faults([ok("a", "b"), fault("a", "b", "c")])


# -- the machine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free_bytes", "expected"), [(0, FAULT), (64 * 2**20 - 1, FAULT), (2**30 - 1, WARNING), (2**30, OK), (2**40, OK)]
)
def test_room(free_bytes: int, expected: State) -> None:
    found = judge_space(free_bytes, Path("/data"))
    assert found.state is expected
    assert "df -h" in found.fix or expected is OK


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(None, SKIPPED), ("ext4", OK), ("overlay", OK), ("tmpfs", WARNING), ("nfs4", FAULT), ("fuse.sshfs", FAULT)],
)
def test_file_systems(kind: str | None, expected: State) -> None:
    found = judge_file_system(kind, Path("/data"))
    assert found.state is expected
    assert ("--data" in found.fix) is (expected in (WARNING, FAULT))


MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /mnt rw - tmpfs tmpfs rw
23 22 0:21 / /mnt/with\040space rw,relatime shared:3 master:1 - nfs4 host:/x rw
24 21 0:22 / /mntother rw - xfs /dev/sdb rw
25 22 0:23 / /mnt rw - btrfs /dev/sdc rw
not a line
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib", "ext4"),
        ("/mnt", "btrfs"),  # the later mount covers the earlier
        ("/mnt/x", "btrfs"),
        ("/mnt/with space/y", "nfs4"),
        ("/mntother/x", "xfs"),
        ("/mntothers", "ext4"),
    ],
)
def test_which_file_system(path: str, expected: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == expected


def test_where_mounts_are_not_told() -> None:
    assert file_system_of(Path("/x"), "") is None


@pytest.mark.parametrize(
    ("python", "libp2p", "running", "expected"),
    [
        ((3, 11), "0.8.1", None, OK),
        ((3, 13), "0.8.1", __version__, OK),
        ((3, 10), "0.8.1", None, FAULT),
        ((3, 14), "0.8.1", None, FAULT),
        ((3, 11), "0.9.0", None, FAULT),
        ((3, 11), "missing", None, FAULT),
        ((3, 11), "0.8.1", "0.0.9", WARNING),
    ],
)
def test_versions(python: tuple[int, int], libp2p: str, running: str | None, expected: State) -> None:
    assert check_version(python, libp2p, running).state is expected


def test_the_versions_expected_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (low, high) = PYTHONS
    assert project["requires-python"] == f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    assert f"libp2p=={LIBP2P}" in project["dependencies"]


@pytest.mark.parametrize(
    ("newer", "silent", "asked", "expected"),
    [
        ([], 0, 3, None),
        ([], 1, 3, None),
        ([], 2, 3, "2 of 3 peers do not know"),
        (["/p2pgrid/offer/2"], 0, 3, "/p2pgrid/offer/2"),
    ],
)
def test_peers_of_another_version(newer: list[str], silent: int, asked: int, expected: str | None) -> None:
    found = check_peers_versions(newer, silent, asked)
    assert [one.state for one in found] == ([WARNING] if expected else [])
    assert all(expected in one.text and "pip" in one.fix for one in found if expected)


# -- the network -----------------------------------------------------------------------------------------------


def verdict(reach: Reach, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "reach": reach,
        "text": "a sentence",
        "advice": ("open it",) if reach is not Reach.OUTSIDE else (),
        "roads": {"direct": reach.value, "libp2p": reach.value},
        "outside": 2,
        "clock_ms": 0,
        "answered": 2,
        "asked": 2,
        "silent": 0,
        "newer": (),
    }
    return Verdict(**fields | changes)


CLOSED_DIRECT = {"direct": "unreachable", "libp2p": "outside"}
CLOSED_LIBP2P = {"direct": "outside", "libp2p": "unreachable"}


@pytest.mark.parametrize(
    ("found", "is_relayed", "expected", "fix"),
    [
        (None, False, SKIPPED, ""),
        (verdict(Reach.UNKNOWN), False, SKIPPED, ""),
        (verdict(Reach.OUTSIDE), False, OK, ""),
        (verdict(Reach.OUTSIDE, roads=CLOSED_DIRECT, advice=("open 4801",)), False, WARNING, "open 4801"),
        (verdict(Reach.OUTSIDE, roads=CLOSED_LIBP2P, advice=("open 4802",)), False, FAULT, "open 4802"),
        (verdict(Reach.OUTSIDE, roads=CLOSED_LIBP2P, advice=("open 4802",)), True, WARNING, "open 4802"),
        (verdict(Reach.OUTSIDE, roads={"direct": "outside"}), False, OK, ""),
        (verdict(Reach.LOCAL, outside=0), False, WARNING, "--bootstrap"),
        (verdict(Reach.LOCAL), False, FAULT, "open it"),
        (verdict(Reach.NOT), False, FAULT, "open it"),
        (verdict(Reach.NOT, advice=()), False, FAULT, "firewall"),
        (verdict(Reach.NOT), True, WARNING, "open it"),
    ],
)
def test_reachability(found: Verdict | None, is_relayed: bool, expected: State, fix: str) -> None:
    check = judge_reach(found, is_relayed=is_relayed)
    assert check.state is expected
    assert fix in check.fix


@pytest.mark.parametrize(
    ("clock_ms", "expected", "text"),
    [
        (None, SKIPPED, "no peer"),
        (0, OK, "within 0.1 s"),
        (10_000, OK, "within 10.0 s"),
        (-10_001, WARNING, "10 s ahead of"),
        (10_001, WARNING, "10 s behind"),
        (120_000, WARNING, "120 s behind"),
        (120_001, FAULT, "120 s behind"),
        (-(10**9), FAULT, "1000000 s ahead of"),
    ],
)
def test_clocks(clock_ms: int | None, expected: State, text: str) -> None:
    check = judge_clock([None, verdict(Reach.UNKNOWN, clock_ms=clock_ms)])
    assert check.state is expected
    assert text in check.text
    assert ("timedatectl" in check.fix) is (expected in (WARNING, FAULT))


UP = BootstrapState("main", "12D3KooWa", ("/ip4/192.0.2.7/tcp/1",), "")
DOWN = BootstrapState("main", "12D3KooWb", (), "no answer")


@pytest.mark.parametrize(
    ("states", "role", "known", "expected"),
    [
        ([], Role.PROVIDER, 0, FAULT),
        ([], Role.CLIENT, 0, FAULT),
        ([], Role.BOOTSTRAP, 0, OK),
        ([], Role.PROVIDER, 3, WARNING),
        ([UP], Role.PROVIDER, 0, OK),
        ([UP, UP], Role.PROVIDER, 0, OK),
        ([UP, DOWN], Role.PROVIDER, 0, WARNING),
        ([DOWN], Role.PROVIDER, 0, FAULT),
        ([DOWN, DOWN], Role.CLIENT, 0, FAULT),
        ([DOWN], Role.BOOTSTRAP, 0, WARNING),
    ],
)
def test_bootstrap_peers(states: list[BootstrapState], role: Role, known: int, expected: State) -> None:
    [check] = judge_bootstrap(states, role, known)
    assert check.state is expected
    assert ("12D3KooWb: no answer" in check.text) is (DOWN in states)
    assert ("--bootstrap" in check.fix) is (expected in (WARNING, FAULT))


def test_bootstrap_peers_of_one_network_among_several() -> None:
    [check] = judge_bootstrap([DOWN], Role.PROVIDER, network="lab")
    assert (check.name, check.state) == ("bootstrap lab", FAULT)


@pytest.mark.parametrize(
    ("reached", "size", "expected"),
    [(True, 3, OK), (True, 0, OK), (False, 0, FAULT), (None, 0, SKIPPED), (None, 2, OK)],
)
def test_a_network_that_knows_keys(reached: bool | None, size: int, expected: State) -> None:
    check = judge_closed("crew", {"bootstrap_reached": reached, "routing_table_size": size})
    assert (check.name, check.state) == ("network crew", expected)
    assert judge_closed("crew", None).state is SKIPPED


@pytest.mark.parametrize(
    ("size", "role", "has_bootstrap", "expected"),
    [
        (1, Role.CLIENT, True, OK),
        (5, Role.PROVIDER, True, OK),
        (0, Role.PROVIDER, True, FAULT),
        (0, Role.BOOTSTRAP, True, OK),
        (0, Role.PROVIDER, False, SKIPPED),
    ],
)
def test_routing_tables(size: int, role: Role, has_bootstrap: bool, expected: State) -> None:
    assert judge_table(size, role, has_bootstrap).state is expected


@pytest.mark.parametrize(("is_found", "expected"), [(None, SKIPPED), (True, OK), (False, WARNING)])
def test_look_ups(is_found: bool | None, expected: State) -> None:
    assert judge_found(is_found).state is expected


async def test_a_verdict_asked_here_and_one_of_the_running_node_are_the_same() -> None:
    found = said(Outcome.REACHED, Outcome.TIMED_OUT, Outcome.TIMED_OUT)

    async def ask() -> Any:
        return found

    watch = ReachWatch(ask, addresses=tuple, listening=lambda: PORTS)
    await watch.ask_now()
    of_node = shown(watch)
    assert of_node is not None
    assert verdict_of_node(of_node) == verdict_of(found, watch.advice)
    assert judge_reach(verdict_of_node(of_node)).state is FAULT
