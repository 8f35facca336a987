"""All checks of one node, in about 15 seconds at most, whoever does not answer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from p2pgrid.commands.client import RunningNode, find_node
from p2pgrid.config import Config, NetworkEntry
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import Condition, Examine
from p2pgrid.doctor.check import Check, fault, ok, skipped
from p2pgrid.doctor.closed import judge_closed
from p2pgrid.doctor.disk import check_disk, check_ledger
from p2pgrid.doctor.folder import Role, check_config, check_keys, role_of
from p2pgrid.doctor.ports import Port, check_port, ports_of, ports_open, try_listening
from p2pgrid.doctor.versions import check_peers_versions, check_version
from p2pgrid.errors import P2pgridError
from p2pgrid.proto.keys import SecretKey

MOST_S: Final = 14.0
"""For all that waits for others."""
ASK_NODE_S: Final = 10.0

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Told what is being looked at, how much of it is done, and how much there is."""
Choice = Callable[[Config], tuple[NetworkEntry, ...]]
"""From the configuration to the networks, with their bootstrap peers. Raises UsageError."""
STEPS: Final = ("the data folder", "the disk", "the engines", "the network", "the ports", "who can reach this node")


@dataclass(slots=True)
class Report:
    """What was found."""

    role: Role
    peer_id: str | None
    running: str | None
    """Version and process id of the node that runs on the folder, in words; None where none does."""
    checks: list[Check] = field(default_factory=list)


async def examine(
    data: DataFolder,
    *,
    role: Role | None = None,
    choice: Choice | None = None,
    progress: Progress = lambda _step, _done, _total: None,
    most_s: float = MOST_S,
) -> Report:
    """Look at everything that concerns the folder's role. Never raises P2pgridError: what fails is a check.

    choice: the networks to join, and through whom; left out, those of the running node, or of config.toml.
    """
    examination = _Examination(data, role, choice, progress)
    try:
        async with asyncio.timeout(most_s):
            await examination.run()
    except TimeoutError:
        examination.report.checks.append(skipped("time", f"what is missing here was not answered within {most_s:g} s."))
    return examination.report


class _Examination:
    def __init__(self, data: DataFolder, role: Role | None, choice: Choice | None, progress: Progress) -> None:
        self._data = data
        self._role = role
        self._choice = choice
        self._progress = progress
        self._done = 0
        self._node: RunningNode | None = None
        self._condition: Condition | None = None
        self._key: SecretKey | None = None
        self._config: Config | None = None
        self.report = Report(role or role_of(data), None, None)

    async def run(self) -> None:
        self._step()
        await self._find_node()
        await self._look_at_folder()
        self._step()
        await self._look_at_disk()
        self._step()
        engines = asyncio.create_task(self._engine_checks())  # waited for beside the network, and told of before it
        at = len(self.report.checks)
        try:
            self._step()
            await self._look_at_network()
            await engines
        finally:
            if engines.done() and not engines.cancelled() and engines.exception() is None:
                self.report.checks[at:at] = engines.result()
            engines.cancel()
            await asyncio.gather(engines, return_exceptions=True)

    @property
    def _running(self) -> str:
        return self.report.running or ""

    def _add(self, *checks: Check) -> None:
        self.report.checks += checks

    def _step(self) -> None:
        self._progress(STEPS[self._done], self._done, len(STEPS))
        self._done += 1

    async def _find_node(self) -> None:
        name, report = "node", self.report
        try:
            node = await find_node(self._data.path)
        except P2pgridError as error:
            self._add(fault(name, error.message, error.hint or "Restart the node."))
            return
        if node is None:
            self._add(skipped(name, "none runs on this data folder, or it takes no commands."))
            return
        about = node.about
        report.role = self._role or role_of(self._data, about.role)
        report.running = f"pid {about.pid}, p2pgrid {about.version}"
        self._node = node
        self._add(ok(name, f"a {about.role} runs on this data folder: {report.running}."))
        if about.role == report.role:
            try:
                self._condition = await node.ask(Examine(ask_peers=False), Condition, timeout_s=ASK_NODE_S)
            except P2pgridError as error:
                self._add(skipped(name, f"it could not be asked how it is: {error.message}"))

    async def _look_at_folder(self) -> None:
        report = self.report
        if self._role is None and not self._data.key_file.exists() and not self._data.config_file.exists():
            text = "nothing is set up here: `p2pgrid init` makes a provider's folder, `p2pgrid gateway` a client's."
            self._add(skipped("folder", text))
        self._add(check_version(running=self._node.about.version if self._node is not None else None))
        sold = self._condition.health.get("models", ()) if self._condition is not None else ()
        self._config, found = check_config(self._data, report.role, tuple(sold))
        self._add(*found)
        self._key, found = check_keys(self._data, report.role)
        self._add(*found)
        report.peer_id = self._key.public_key.peer_id if self._key is not None else None

    async def _look_at_disk(self) -> None:
        self._add(*await asyncio.to_thread(check_disk, self._data.path))
        if self.report.role is not Role.BOOTSTRAP:
            look = functools.partial(check_ledger, self._data.ledger_file, is_running=self._node is not None)
            self._add(*await asyncio.to_thread(look))

    async def _engine_checks(self) -> list[Check]:
        if self.report.role is not Role.PROVIDER or self._config is None:
            return []
        from p2pgrid.doctor.engines import check_engines

        running = self._condition.health.get("models") if self._condition is not None else None
        if self._node is not None and running is None:
            return [skipped("engine", "the node that runs is starting it, or could not be asked.")]
        return await check_engines(self._config.provider.models, self._data, running)

    async def _look_at_network(self) -> None:
        """As a stranger; and as the node itself where none runs."""
        from p2pgrid.doctor import network as rules

        config = self._config
        if config is None:
            self._add(skipped("network", "without a configuration it is not known which network to join."))
            return
        role, ports = self.report.role, self._ports(config)
        busy = [port for port in ports if try_listening(port) is not None]
        try:
            networks = self._as_a_stranger(self._chosen(config))
            if not networks:
                return
            async with rules.stranger(networks, self._key, self._node is not None) as network:
                states = await network.check_bootstrap(timeout_s=rules.BOOTSTRAP_TIMEOUT_S)
                for entry in networks:
                    known = self._health_of(entry.name)
                    self._add(
                        *rules.judge_bootstrap(
                            [one for one in states if one.network == entry.name],
                            role,
                            int(known["routing_table_size"]) if known else 0,
                            network=entry.name if len(networks) > 1 else None,
                        )
                    )
                is_joined = any(not one.fault for one in states)
                self._step()
                whose = functools.partial(_whose, network, self._key) if self._key is not None else None
                self._add(*await asyncio.gather(*(check_port(port, whose, self._running) for port in ports)))
                self._step()
                probing = asyncio.create_task(self._probe(rules, config, networks if is_joined else (), busy))
                looking = asyncio.create_task(self._look_up(rules, network, is_joined))
                timing = asyncio.create_task(_or_none(rules.ask_the_time(network), is_joined))
                try:
                    found, verdict, told = await looking, await probing, await timing
                finally:
                    for task in (probing, looking, timing):
                        task.cancel()
                    await asyncio.gather(probing, looking, timing, return_exceptions=True)
                self._add(rules.judge_table(network.health().routing_table_size, role, bool(states)), *found)
                if role is not Role.CLIENT:
                    is_relayed = any("/p2p-circuit" in one for one in self._offered())
                    self._add(rules.judge_reach(verdict, is_relayed=is_relayed))
                self._add(rules.judge_clock([told, verdict]))
                best = told or verdict
                if best is not None:
                    self._add(*check_peers_versions(best.newer, best.silent, best.asked))
        except P2pgridError as error:
            self._add(fault("network", error.message, error.hint or "See --network, --bootstrap and config.toml."))

    def _chosen(self, config: Config) -> tuple[NetworkEntry, ...]:
        """The networks, with their bootstrap peers. Raises UsageError."""
        from p2pgrid.networks.entries import choose_networks

        if self._choice is not None:
            return self._choice(config)
        return self._condition.networks if self._condition is not None else choose_networks(self._data, config)

    def _as_a_stranger(self, networks: Sequence[NetworkEntry]) -> tuple[NetworkEntry, ...]:
        """Those of the networks that can be looked at beside the node, without its own bootstrap addresses.

        Of a network that knows its members by their keys the node itself is asked, if it runs: two with one key would
        take one another's connections.
        """
        from p2pgrid.networks.entries import knows_keys

        looked_at = []
        for entry in networks:
            if self._node is not None and knows_keys(entry):
                self._add(judge_closed(entry.name, self._health_of(entry.name)))
            else:
                others = tuple(one for one in entry.bootstrap if not self._is_own(one))
                looked_at.append(msgspec.structs.replace(entry, bootstrap=others))
        return tuple(looked_at)

    def _health_of(self, network: str) -> dict[str, Any] | None:
        """What the running node says of one of its networks."""
        shown = self._condition.health.get("network") if self._condition is not None else None
        rows = shown.get("networks", ()) if shown else ()
        return next((row for row in rows if row["name"] == network), None)

    def _is_own(self, bootstrap: str) -> bool:
        return self._key is not None and bootstrap.endswith(f"/p2p/{self._key.public_key.peer_id}")

    def _offered(self) -> Sequence[str]:
        return self._condition.addresses if self._condition is not None else ()

    def _ports(self, config: Config) -> list[Port]:
        """Of the running node, what it says it has open; else by the configuration."""
        planned = ports_of(config, self.report.role)
        if self._condition is None or self.report.role is Role.CLIENT:
            return planned
        return [*ports_open(self._condition.listening), *(port for port in planned if port.road is None)]

    async def _look_up(self, rules: Any, network: Any, is_joined: bool) -> list[Check]:
        if self.report.role is not Role.PROVIDER:
            return []
        condition = self._condition
        if condition is None or condition.health.get("offer_sequence") is None or self._key is None:
            return [skipped("look-up", "nothing is on sale here now, so there is nothing to find.")]
        found = await rules.is_found(network, self._key.public_key.peer_id) if is_joined else None
        return [rules.judge_found(found)]

    async def _probe(self, rules: Any, config: Config, networks: Sequence[NetworkEntry], busy: Sequence[Port]) -> Any:
        """Have other peers dial this node: what they say, or None if nobody can be asked."""
        role, key = self.report.role, self._key
        if role is Role.CLIENT or key is None:
            return None
        if self._node is not None:
            if self._condition is None:
                return None
            condition = await _or_none(self._node.ask(Examine(), Condition, timeout_s=ASK_NODE_S))
            shown = condition.health.get("reachability") if condition is not None else None
            return rules.verdict_of_node(shown) if shown else None
        if busy or not any(one.bootstrap for one in networks):
            return None  # who has the node's ports, or why nobody can be asked, is told of elsewhere
        return await _or_none(rules.probe_as_node(key, config, role, networks))


async def _whose(network: Any, key: SecretKey, host: str, port: int, road: Any) -> Any:
    return await network.dial_back(key.public_key, host, port, road, timeout_s=2.0)


async def _or_none(asked: Coroutine[Any, Any, T], is_worth_it: bool = True) -> T | None:
    """What comes of it, or None where it could not be asked, or is not worth it: the checks beside it say why."""
    if not is_worth_it:
        asked.close()
        return None
    try:
        return await asked
    except P2pgridError:
        return None
