"""The laboratory itself: does it translate, drop, cut and heal as real networks do, and does it leave nothing?"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import nft, probe
from tests.lab.conftest import BuildLab
from tests.lab.namespaces import Namespaces, Unavailable
from tests.lab.network import Lab
from tests.lab.plan import STANDARD, Host, Nat, Plan, Segment

pytestmark = [pytest.mark.process, pytest.mark.lab]

PORT = 4801
PYTHON = (sys.executable, "-S", "-E", probe.__file__)
ONE_OF_EACH = STANDARD.only("hub", "vilnius", "home", "shop-west")


@contextlib.contextmanager
def inside(lab: Lab, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Have a host run the probe, which is ready, and is killed in the end."""
    process = subprocess.Popen([*lab[name].prefix, *PYTHON, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def listening(lab: Lab, *names: str, port: int = PORT) -> Iterator[None]:
    """Have hosts answer calls."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(inside(lab, name, "listen", str(port)))
        yield


def call(lab: Lab, who: str, whom: str, own_port: int = 0, *, port: int = PORT) -> str:
    """What comes of it when `who` calls the public address of `whom`."""
    return lab[who].run(*PYTHON, "call", lab.public_address(whom), str(port), str(own_port)).strip()


def test_a_host_behind_a_router_reaches_the_world_and_nobody_reaches_it(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH)
    with listening(lab, "hub", "vilnius", "home", "shop-west"):
        assert call(lab, "home", "hub", 5000) == "seen 192.52.193.51 5000"
        assert call(lab, "home", "shop-west", 5000) == "seen 192.52.193.51 5000"
        assert call(lab, "hub", "shop-west", 5000) == "seen 192.52.193.10 5000"
        for stranger in ("hub", "home", "shop-west"):
            assert call(lab, stranger, "vilnius") == "silence"
    assert call(lab, "home", "hub") == "refused"  # a public host without a firewall says so


def test_a_forwarded_port_is_open_and_no_other(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH.with_router("vilnius-nat", forwards=((PORT, "vilnius"),)))
    with listening(lab, "vilnius"), listening(lab, "vilnius", port=PORT + 1):
        assert call(lab, "home", "vilnius", 5000) == "seen 192.52.193.51 5000"
        assert call(lab, "home", "vilnius", port=PORT + 1) == "silence"


def test_a_symmetric_router_shows_another_port_to_everyone(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH.with_router("home-nat", nat=Nat.SYMMETRIC))
    with listening(lab, "hub", "shop-west"):
        seen = [call(lab, "home", whom, 5000) for whom in ("hub", "shop-west")]
        assert [one.rpartition(" ")[0] for one in seen] == ["seen 192.52.193.51"] * 2
        assert len({*seen, "seen 192.52.193.51 5000"}) == 3
        lab.translate("home-nat", Nat.PRESERVING)
        assert call(lab, "home", "hub", 5001) == "seen 192.52.193.51 5001"


def test_cables_and_partitions_are_cut_and_healed(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH)
    with listening(lab, "hub", "shop-west"):
        lab.partition()
        assert call(lab, "home", "hub").startswith("seen")
        assert call(lab, "home", "shop-west") == "silence"
        lab.reunite()
        assert call(lab, "home", "shop-west").startswith("seen")
        lab.cut("hub")
        assert call(lab, "home", "hub") in ("silence", "unreachable")
        lab.heal("hub")
        assert call(lab, "home", "hub").startswith("seen")
        lab.cut("home")  # from its router
        assert call(lab, "home", "hub") in ("silence", "unreachable")
        lab.heal("home")
        assert call(lab, "home", "hub").startswith("seen")


def test_addresses_change_on_either_side_of_a_router(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH.with_router("vilnius-nat", forwards=((PORT, "vilnius"),)))
    with listening(lab, "hub", "vilnius"):
        lab.change_address("home-nat", "192.52.193.77")
        assert call(lab, "home", "hub", 5000) == "seen 192.52.193.77 5000"
        lab.change_address("home", "192.168.1.33")
        assert call(lab, "home", "hub", 5001) == "seen 192.52.193.77 5001"
        lab.change_address("vilnius-nat", "192.52.193.78")
        assert lab.public_address("vilnius") == "192.52.193.78"
        assert call(lab, "home", "vilnius").startswith("seen")
        lab.change_address("hub", "192.52.193.79")
        assert call(lab, "home", "hub").startswith("seen")


def test_packets_get_lost_in_the_share_that_was_asked_for(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH)
    lab.lose("home-nat", 50)
    with inside(lab, "hub", "count", str(PORT)) as counting:
        lab["home"].run(*PYTHON, "pour", lab.address("hub"), str(PORT), "400")
        assert counting.stdout is not None
        assert 130 < int(counting.stdout.readline()) < 270  # seven standard deviations
    with listening(lab, "hub"):
        lab.lose("home-nat", 100)
        assert call(lab, "home", "hub") == "silence"
        lab.lose("home-nat", 0)
        assert call(lab, "home", "hub").startswith("seen")


def test_packets_are_held_back_where_the_kernel_can_do_that(build: BuildLab) -> None:
    lab = build(ONE_OF_EACH)
    try:
        lab.delay("home-nat", 300)
    except Unavailable as reason:
        pytest.skip(f"{reason}")
    with listening(lab, "hub"):
        began = time.monotonic()
        assert call(lab, "home", "hub").startswith("seen")
        assert time.monotonic() - began > 0.6


def test_whoever_is_not_root_builds_it_in_a_user_namespace(build: BuildLab, monkeypatch: pytest.MonkeyPatch) -> None:
    build(ONE_OF_EACH)  # or it is skipped
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    lab = build(ONE_OF_EACH)
    assert "--user" in lab["hub"].enter
    with listening(lab, "hub", "vilnius"):
        assert call(lab, "home", "hub", 5000) == "seen 192.52.193.51 5000"
        assert call(lab, "home", "vilnius") == "silence"


def test_a_killed_laboratory_leaves_nothing(tmp_path: Path, build: BuildLab) -> None:
    build(ONE_OF_EACH)  # or it is skipped
    killed = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "--json"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert killed.stdout is not None
    hosts = json.loads(killed.stdout.readline())
    assert hosts["home"]["pid"]
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    for host in hosts.values():
        _ended(host["pid"])


def _ended(pid: int) -> None:
    """Return once a process is gone."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], 10)[0], f"process {pid} still runs"
        finally:
            os.close(descriptor)


def test_where_nft_cannot_be_had_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="nft is not installed"):
        nft.nft_command(tmp_path)


def test_where_a_program_is_missing_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="nsenter"):
        Namespaces()


def test_a_plan_that_cannot_be_built_is_refused() -> None:
    east = Segment(name="east", network="192.52.193.0/24")
    with pytest.raises(ValueError, match=r"192\.0\.2\.1 is no address of east"):
        Plan(segments=(east,), hosts=(Host(name="a", at="east", address="192.0.2.1"),))
    with pytest.raises(ValueError, match="'east'"):
        Plan(segments=(east,), hosts=(Host(name="east", at="east", address="192.52.193.2"),))
