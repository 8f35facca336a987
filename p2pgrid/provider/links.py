"""Which client holds which links, and what a client loses for breaking the rules."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter

from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.limits import Rates
from p2pgrid.net.road import Road
from p2pgrid.proto.keys import PublicKey
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.tally import Tally

log = logging.getLogger(__name__)


class ClientLinks:
    """The links that have opened a stream, by client. They may come over any road."""

    def __init__(self, limits: ProviderLimits, tally: Tally) -> None:
        self._limits = limits
        self._tally = tally
        self._by_client: dict[bytes, list[LinkConnection]] = {}
        self._faults: Counter[LinkConnection] = Counter()
        self._closing: set[asyncio.Task[None]] = set()
        self._openings = Rates(limits.channels_burst, limits.channels_per_hour / 3600)
        self._log_questions = Rates(limits.log_burst, limits.log_per_s)
        self._settlements = Rates(limits.settlement_burst, limits.settlement_per_s)

    @property
    def n_clients(self) -> int:
        """Clients with a link."""
        return len(self._by_client)

    def is_connected(self, client: PublicKey) -> bool:
        """True while the client has a link."""
        return client.raw in self._by_client

    def by_road(self) -> dict[str, int]:
        """How many links run on each road."""
        roads = Counter(link.road.value for links in self._by_client.values() for link in links)
        return {road.value: roads[road.value] for road in Road}

    def note(self, connection: LinkConnection) -> None:
        """A stream was opened on `connection`. A client with one link too many loses its oldest."""
        links = self._by_client.setdefault(connection.peer.raw, [])
        if connection in links:
            return
        links.append(connection)
        connection.closed.add_done_callback(functools.partial(self._gone, connection))
        if len(links) > self._limits.links_per_client:
            self.close(links[0], "the client has opened another link")

    def check_opening(self, connection: LinkConnection) -> None:
        """Raises Refused (`busy`) where too many channels were opened from the link's address of late."""
        if not self._openings.take(connection.caller, time.monotonic()):
            raise Refused("busy", "too many channels are being opened from your address.", hint="Try again later.")

    def check_log_question(self, connection: LinkConnection) -> None:
        """Raises Refused (`busy`) where the link's address has asked too much about the log of late."""
        if not self._log_questions.take(connection.caller, time.monotonic()):
            raise Refused("busy", "too many questions about the log come from your address.", hint="Ask again later.")

    def check_settlement(self, connection: LinkConnection, cost: float) -> None:
        """Raises Refused (`busy`) where the link's address has settled too often of late."""
        if not self._settlements.take(connection.caller, time.monotonic(), cost):
            raise Refused("busy", "your address settles too often.", hint="Settle again later.")

    def fault(self, connection: LinkConnection, fault: P2pgridError) -> None:
        """The client broke a rule on a stream; with too many such streams it loses the link."""
        self._tally.faults += 1
        self._faults[connection] += 1
        log.warning("%s broke the rules: %s", connection.name, fault.message)
        if self._faults[connection] >= self._limits.faults_per_link:
            self.close(connection, "too many streams broke the rules")

    def close(self, connection: LinkConnection, reason: str) -> None:
        """Close a link now, with a word to the client; whatever runs on it is interrupted at once."""
        if connection.closed.done():
            return
        task = asyncio.get_running_loop().create_task(connection.aclose(reason), name=f"close {connection.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _gone(self, connection: LinkConnection, _: object) -> None:
        self._faults.pop(connection, None)
        client = connection.peer.raw
        links = self._by_client[client]
        links.remove(connection)
        if not links:
            del self._by_client[client]
