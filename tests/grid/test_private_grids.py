"""Closed grids beside an open one, on one machine, as real processes: none sees another, and outsiders see none."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import P2pgridError, Refused, RemoteError, Unreachable
from p2pgrid.net import direct
from p2pgrid.net.member_books import ListBook, SecretBook
from p2pgrid.net.network import Network
from p2pgrid.net.own_networks import OwnNetwork, OwnNetworks
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.closed_network import listed_network, secret_network
from p2pgrid.proto.keys import SecretKey, parse_peer_id
from tests.grid.closed import LOOPBACK, Gateway, Machine
from tests.grid.conftest import FakeEngine, p2pgrid, until

pytestmark = [pytest.mark.process, pytest.mark.timeout(420)]


@pytest.fixture
async def machine(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path, fake_engine.url)
    try:
        yield machine
    finally:
        await machine.stop()


def peers_of(addresses: list[str]) -> list[str]:
    return [word for address in addresses for word in ("--bootstrap", address)]


async def refused(asking: Awaitable[Any]) -> P2pgridError:
    """What was said to an outsider."""
    with pytest.raises((Refused, Unreachable)) as caught:
        await asking
    return caught.value


async def outsider(
    networks: str | OwnNetworks, bootstrap: list[str], provider: dict[str, Any], *, at_look_up: str
) -> list[str]:
    """Somebody who knows name, addresses and peer ids dials everything; the messages of what it is told.

    A look-up ends with what was said by then, so it is made until that is `at_look_up`.
    """
    key = SecretKey(os.urandom(32))
    peer = PeerAddress(provider["peer_id"], tuple(provider["libp2p_addresses"]))
    seller = parse_peer_id(provider["peer_id"])
    host, port = provider["addresses"][0].split("/")[2], int(provider["addresses"][0].split("/")[4])
    own = networks if isinstance(networks, OwnNetworks) else None
    async with Network(key, networks, bootstrap=bootstrap, listen=[LOOPBACK], serve_dht=True) as network:

        async def look_up() -> str:
            return str(await refused(network.find_providers("provider", timeout_s=2)))

        said = [await until(look_up, lambda told: at_look_up in told)]
        for asking in (
            network.fetch_offer(peer),
            network.fetch_cards(peer),
            network.ask_log(peer, b""),
            network.dial_link(seller, peer.addresses),
            direct.dial(host, port, seller, key, networks=own),
        ):
            said.append(str(await refused(asking)))
        assert await network.advertise(["provider", "model/fake"], timeout_s=2) == 0
    return said


async def doctor(machine: Machine, name: str) -> dict[str, dict[str, Any]]:
    """What `p2pgrid doctor` finds beside a node, by the checks' names; no fault is among it."""
    report = json.loads(await machine.command(name, "doctor", "--json"))
    return {one["name"]: one for one in report["checks"]}


async def test_two_closed_grids_and_an_open_one_never_see_one_another(machine: Machine) -> None:
    # The same name twice: what closes them is another secret.
    await asyncio.gather(
        machine.command("lab-door", "network", "create", "lab"),
        machine.command("lab2-door", "network", "create", "lab"),
    )
    doors = dict(
        zip(
            ("lab", "lab2", "open"),
            await asyncio.gather(
                machine.bootstrap("lab-door"),
                machine.bootstrap("lab2-door"),
                machine.bootstrap("open-door", "--network", "lab", "--bootstrap-peers", str(no_peers(machine))),
            ),
            strict=True,
        )
    )
    for grid in ("lab", "lab2"):
        await machine.share(f"{grid}-door", [f"{grid}-operator", f"{grid}-buyer"], doors[grid])
    arguments = {"lab": [], "lab2": [], "open": ["--network", "lab", *peers_of(doors["open"])]}
    operators = {grid: await machine.operator(f"{grid}-operator", *arguments[grid]) for grid in doors}
    started = await asyncio.gather(*(machine.gateway(f"{grid}-buyer", *arguments[grid]) for grid in doors))
    buyers: dict[str, Gateway] = dict(zip(doors, started, strict=True))
    own = {grid: operators[grid].ready["peer_id"] for grid in doors}
    for grid in doors:
        await until(buyers[grid].providers, {own[grid]})
        assert await buyers[grid].buy() == own[grid]

    # All have looked for offers several times by now, and bought: still each knows its own alone.
    for grid in doors:
        assert await buyers[grid].providers() == {own[grid]}
        await audited(machine, f"{grid}-operator", f"{grid}-buyer")

    wrong = OwnNetworks([OwnNetwork("lab", tuple(doors["lab"]), SecretBook(secret_network("lab", os.urandom(32))))])
    ready = operators["lab"].ready
    nobody = "no bootstrap peer of the network 'lab' answered"
    no_member = "does not take this node for a member of 'lab'"
    for networks, peers, told in (("lab", doors["lab"], nobody), (wrong, [], no_member)):
        look_up, offer, cards, log, session, link = await outsider(networks, peers, ready, at_look_up=told)
        assert nobody in look_up
        if networks is wrong:
            assert no_member in look_up and "secrets" in look_up
            assert no_member in offer
        else:
            assert "does not speak /p2pgrid/offer/1" in offer and "does not speak /p2pgrid/card/1" in cards
            assert "does not speak /p2pgrid/log/1" in log and "does not speak /p2pgrid/session/1" in session
        assert "closed networks" in link

    # A command with the wrong secret says what is wrong, and shows none.
    await machine.command("stranger", "network", "create", "lab")

    async def offers() -> tuple[int, str, str]:
        return await p2pgrid(machine.data("stranger").path, "offers", "--timeout", "3", *peers_of(doors["lab"]))

    await until(offers, lambda said: said[0] == 0 and no_member in said[1], deadline_s=60)
    for node in machine.nodes:
        text = node.log.read_text()
        for grid in ("lab-door", "lab2-door"):
            secret = (machine.data(grid).networks_folder / "lab.secret").read_text().strip()
            assert secret not in text


async def test_a_node_in_two_networks_sells_and_buys_in_both(machine: Machine) -> None:
    await machine.command("lab-door", "network", "create", "lab")
    lab, demo = await asyncio.gather(
        machine.bootstrap("lab-door"),
        machine.bootstrap("demo-door", "--network", "demo", "--bootstrap-peers", str(no_peers(machine))),
    )
    members = ["both-operator", "picky-operator", "lab-buyer", "both-buyer"]
    await machine.share("lab-door", members, lab)
    listed = machine.folder / "peers.toml"
    listed.write_text(f"[networks.demo]\npeers = {json.dumps(demo)}\n")
    both = f'network = "demo"\nbootstrap-peers = "{listed}"\n'
    operator = await machine.operator("both-operator", top=both)
    picky = await machine.operator("picky-operator", top=both, more='sell-in = ["lab"]')
    assert operator.ready["networks"] == ["demo", "lab"] and operator.ready["sells_in"] == ["demo", "lab"]
    assert picky.ready["sells_in"] == ["lab"]
    machine.data("both-buyer").config_file.write_text(both)
    lab_buyer, demo_buyer, both_buyer = await asyncio.gather(
        machine.gateway("lab-buyer"),
        machine.gateway("demo-buyer", "--network", "demo", *peers_of(demo)),
        machine.gateway("both-buyer"),
    )
    ids = operator.ready["peer_id"], picky.ready["peer_id"]
    await until(lab_buyer.providers, set(ids))
    await until(both_buyer.providers, set(ids))
    await until(demo_buyer.providers, {ids[0]})
    assert await demo_buyer.buy() == ids[0]
    for buyer in (lab_buyer, both_buyer):
        for peer_id in ids:
            assert await buyer.buy(provider=peer_id) == peer_id
    assert await demo_buyer.providers() == {ids[0]}

    rows = json.loads(await machine.command("both-buyer", "offers", "--json"))
    assert {row["provider"]: row["networks"] for row in rows} == {ids[0]: ["demo", "lab"], ids[1]: ["lab"]}
    rows = json.loads(await machine.command("both-buyer", "offers", "--json", "--network", "demo"))
    assert {row["provider"]: row["networks"] for row in rows} == {ids[0]: ["demo"]}

    checks = await doctor(machine, "both-operator")
    assert {checks[name]["state"] for name in ("bootstrap demo", "bootstrap lab", "look-up")} == {"ok"}, checks

    # Who is in the open network alone is told nothing where the node sells to members alone.
    key, ready = SecretKey(os.urandom(32)), picky.ready
    peer = PeerAddress(ready["peer_id"], tuple(ready["libp2p_addresses"]))
    async with Network(key, "demo", bootstrap=demo) as network:
        assert [one.peer_id for one in await network.find_providers("provider", timeout_s=5)] == [ids[0]]
        assert "does not speak /p2pgrid/offer/1" in str(await refused(network.fetch_offer(peer)))
        place = ready["addresses"][0].split("/")
        with pytest.raises(RemoteError) as caught:
            await direct.dial(place[2], int(place[4]), parse_peer_id(ready["peer_id"]), key)
        assert isinstance(caught.value, Refused) and caught.value.code == "not-a-member"
    await audited(machine, *members, "demo-buyer")


async def test_nodes_of_several_processes_keep_to_their_list(machine: Machine) -> None:
    names = ["door", "operator", "buyer"]
    ids = {name: machine.peer_id(name) for name in names}
    for name in names:
        await machine.command(name, "network", "create", "crew", "--members")
        for peer_id in ids.values():
            await machine.command(name, "network", "admit", "crew", peer_id)
    door = peers_of(await machine.bootstrap("door"))
    operator = await machine.operator("operator", "--processes", "2", *door)
    buyer = await machine.gateway("buyer", "--processes", "2", *door)
    await until(buyer.providers, {ids["operator"]})
    assert {await buyer.buy() for _ in range(6)} == {ids["operator"]}

    for name in ("operator", "door"):
        checks = await doctor(machine, name)
        assert checks["network crew"]["state"] == "ok", checks

    # The outsider is on its own list, and on nobody else's: whichever worker has its link refuses it.
    stranger = SecretKey(os.urandom(32))
    own = OwnNetworks(
        [OwnNetwork("crew", (), ListBook(listed_network("crew"), (ids["operator"], stranger.public_key.peer_id)))]
    )
    place = operator.ready["addresses"][0].split("/")
    for _ in range(4):
        said = await refused(
            direct.dial(place[2], int(place[4]), parse_peer_id(ids["operator"]), stranger, networks=own)
        )
        assert "is not on the list of members of 'crew'" in str(said)

    await machine.command("operator", "network", "expel", "crew", ids["buyer"])

    async def can_buy() -> bool:
        return (await buyer.post())[0] == 200

    await until(can_buy, False)
    await machine.command("operator", "network", "admit", "crew", ids["buyer"])
    await until(can_buy, True, deadline_s=60)
    await audited(machine, "operator", "buyer")


def no_peers(machine: Machine) -> Path:
    """A list for a first peer, which nobody introduces."""
    path = machine.folder / "nobody.toml"
    path.write_text("[networks.lab]\n[networks.demo]\n")
    return path


async def audited(machine: Machine, *names: str) -> None:
    """Every ledger of these nodes is exported, and the audit finds nothing."""
    for name in names:
        if name in machine.gateways:
            await machine.gateways[name].settled()  # a receipt that one file has and the other not is a finding
    files = []
    for name in names:
        files.append(str(machine.folder / f"{name}.jsonl"))
        await machine.command(name, "receipts", "export", files[-1])
    code, output, errors = await p2pgrid(machine.folder, "audit", "--json", *files)
    assert code == 0 and json.loads(output)["clean"], output + errors
