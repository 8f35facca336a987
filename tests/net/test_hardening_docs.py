"""docs/hardening.md names tests that exist, every mend that `scripts/unmend` takes away, and the bounds of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pgrid.net.doors import ALLOWANCES, KAD_ALLOWANCE, OTHERS
from p2pgrid.net.host import HostLimits
from p2pgrid.net.limits import Allowance
from p2pgrid.net.listening import ListenLimits
from p2pgrid.provider.limits import ProviderLimits
from tests.net.unmend import MENDS, Mend

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "hardening.md").read_text()


def named_tests() -> set[str]:
    """Every test of the page, as pytest names it."""
    return {
        name if name.startswith("tests/") else f"tests/net/test_{name.replace('::', '.py::')}"
        for name in re.findall(r"`([\w/.]+::test_\w+)`", TEXT)
    }


@pytest.mark.parametrize("name", sorted(named_tests()))
def test_every_test_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_mends_of_libp2p_are_all_named() -> None:
    """Those of our own bounds are in the second half, which names no tests."""
    taken_away = [test for mend in MENDS for test in mend.tests]
    assert {f"tests/net/{test}" for test in taken_away if test.startswith(("test_host", "test_dht"))} <= named_tests()


@pytest.mark.parametrize("mend", MENDS, ids=[mend.name for mend in MENDS])
def test_what_is_taken_away_stands_once_and_its_tests_are_there(mend: Mend) -> None:
    """So that `scripts/unmend` still takes away what it says when the code around it has changed."""
    for edit in mend.edits:
        assert (ROOT / "p2pgrid" / "net" / edit.file).read_text().count(edit.there) == 1, edit.there
    for name in mend.tests:
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / "tests" / "net" / file).read_text(), name


def row(first: str) -> list[str]:
    """The cells behind a row's first."""
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] == first:
            return cells[1:]
    raise AssertionError(f"no row {first}")


ALL_ALLOWANCES = {**ALLOWANCES, "/p2pgrid/<network>/kad/1.0.0": KAD_ALLOWANCE, "any other": OTHERS}


@pytest.mark.parametrize(("protocol", "allowance"), ALL_ALLOWANCES.items())
def test_streams_of_a_protocol(protocol: str, allowance: Allowance) -> None:
    name = protocol if protocol == "any other" else f"`{protocol}`"
    assert row(name)[:3] == [str(allowance.total), str(allowance.per_address), str(allowance.per_peer)]


def test_the_other_bounds() -> None:
    host, listen, provider = HostLimits(), ListenLimits(), ProviderLimits()
    connections = row("connections")
    assert connections[0] == str(host.max_connections)
    assert connections[1] == f"{host.max_inbound_per_ip}; {host.max_inbound_per_ip // 8} once half are taken"
    assert f"{host.connects_per_s:g} a second after {host.connects_burst}" in connections[3]
    assert f"{host.opens_per_s:g} a second after {host.opens_burst}" in row("streams")[3]
    assert f"{host.frames_per_s:g} a second after {host.frames_burst}" in row("frames of yamux, messages of Noise")[3]
    assert f"{host.answers_per_s:g} answers a second after {host.answers_burst}" in TEXT
    assert f"{listen.connects_per_s:g} a second after {listen.connects_burst}" in row("connecting")[1]
    assert f"{listen.max_connections_per_peer}" == row("`/p2pgrid/session/1`")[2]
    assert row("channels") == [
        str(provider.channels),
        f"{provider.channels_per_hour:g} an hour after {provider.channels_burst}",
        f"{provider.channels_per_client} in force",
    ]
    assert f"{provider.log_per_s:g} a second after {provider.log_burst}" in row("questions about the log")[1]
