"""The Python client: everything a buyer needs, from a data folder.

async with Client() as client:
    answer = await client.chat(model="qwen3-8b", messages=[{"role": "user", "content": "Hello!"}])
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from p2pgrid import __version__
from p2pgrid.client.answer import Answer
from p2pgrid.client.cards import CardBook
from p2pgrid.client.choice import Candidate
from p2pgrid.client.desk import CLIENT_ASKS, ClientDesk
from p2pgrid.client.late_network import LateNetwork
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.log_watch import LogWatch
from p2pgrid.client.member_watch import MemberWatch
from p2pgrid.client.offer_query import OfferQuery
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.road_memory import RoadMemory
from p2pgrid.client.roads import ProviderRoads
from p2pgrid.client.wishes import Wishes, parse_budget
from p2pgrid.clock import unix_ms
from p2pgrid.commands.address import socket_path
from p2pgrid.commands.server import serve_commands
from p2pgrid.commands.wire import About
from p2pgrid.config import ClientConfig, NetworkEntry
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import Condition
from p2pgrid.desk.erasing import ErasesDaily
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.errors import Refused, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.erasing import LogFiles, check_all_known, erase_salts
from p2pgrid.log.witness import WitnessStore
from p2pgrid.net.lookup_keys import PROVIDER, country_key
from p2pgrid.net.peer_address import Health
from p2pgrid.networks.entries import choose_networks, own_networks
from p2pgrid.settlement.wiring import Buying, buying

if TYPE_CHECKING:
    from p2pgrid.client.domains import DomainChecker

CHAT: Final = "/v1/chat/completions"


class Client:
    """A buyer: key, ledger, network, offers and sessions. Use it with `async with`.

    `data` is the data folder; key and ledger are made at first use. What is left out comes from its config.toml.
    """

    def __init__(
        self,
        data: DataFolder | Path | str | None = None,
        *,
        network: str | None = None,
        bootstrap: Sequence[str] | None = None,
        networks: Sequence[NetworkEntry] | None = None,
        config: ClientConfig | None = None,
        keeps_links: bool = True,
        joins_late: bool = False,
        settles_with: Buying | None = None,
    ) -> None:
        """Raises UsageError for a config.toml that cannot be used.

        `network` names the one network to buy in, `networks` describes each; left out, all that are configured.
        Without `keeps_links` no provider is dialled before it is needed. With `joins_late` it is started before the
        network is joined: what needs the network waits for it. `settles_with`: left out, what the data folder has.
        """
        self._keeps_links = keeps_links
        self._joins_late = joins_late
        self._settles_with = settles_with
        if data is None:
            data = DataFolder.default()
        self.data: Final = data if isinstance(data, DataFolder) else DataFolder(Path(data))
        whole = self.data.load_config()
        self.config: Final = config or whole.client
        self._retention: Final = whole.retention
        if networks is None:
            networks = choose_networks(self.data, whole, network=network, bootstrap=bootstrap)
        self.networks: Final = tuple(networks)
        self.network_name: Final = ", ".join(one.name for one in networks)
        """All their names, for people."""
        self.bootstrap: Final = tuple(dict.fromkeys(peer for one in networks for peer in one.bootstrap))
        self._wishes = wishes_of(self.config)
        self.peer_id = ""
        """Who buys, `12D3KooW...`; known once it is started."""
        self._stack = AsyncExitStack()
        self._purchaser: Purchaser | None = None
        self._finder: LateNetwork | None = None

    async def __aenter__(self) -> Self:
        """Start. Raises UsageError (the key), LocalError (the ledger is in use, or cannot be written)."""
        self.data.make()
        key = self.data.load_or_create_key()
        self.peer_id = key.public_key.peer_id
        async with AsyncExitStack() as stack:
            ledger = await asyncio.to_thread(SqliteLedger.open, self.data.ledger_file)
            stack.push_async_callback(ledger.aclose)
            own = own_networks(self.networks, key.public_key)
            finder = await stack.enter_async_context(LateNetwork(key, own))
            self._finder = finder
            if not self._joins_late:
                await finder.joined()
            keys = [PROVIDER, *map(country_key, self.config.countries)]
            book = OfferBook(finder, now_ms=unix_ms, keys=keys, cache=self.data.offers_file)
            limits = SessionLimits(
                queue_timeout_s=self.config.slot_timeout_s,
                first_token_timeout_s=self.config.first_token_timeout_s,
                shares_receipts=not self.config.receipt_each,
            )
            cards = CardBook(
                finder,
                now_ms=unix_ms,
                domains=_domain_checker() if self.config.verify_domains else None,
                folder=self.data.cards_folder,
            )
            stack.push_async_callback(cards.aclose)
            own_keys = [key, *self.data.load_retired_keys()]
            purchaser = Purchaser(
                key,
                ledger,
                book,
                wishes=self._wishes,
                limits=limits,
                dial=ProviderRoads(
                    finder,
                    punches=self.config.punch,
                    addresses_of=book.addresses_of,
                    networks=own,
                    memory=await stack.enter_async_context(RoadMemory(self.data.roads_file)),
                ).dial,
                cards=cards,
                quarantine=Quarantine(self.data.quarantine_file),
                keeps_links=self._keeps_links,
                buying=self._settles_with or buying(self.data, ledger, own_keys),
            )
            await stack.enter_async_context(book)
            self._purchaser = await stack.enter_async_context(purchaser)
            await stack.enter_async_context(MemberWatch(own, purchaser.sessions, book))
            seen = await asyncio.to_thread(WitnessStore, self.data.witness_file)
            stack.callback(seen.close)
            if self._keeps_links:
                watch = LogWatch(key, seen, lambda: purchaser.sessions, forks=self.data.forks, now_ms=unix_ms)
                await stack.enter_async_context(watch)
            about = About(version=__version__, peer_id=self.peer_id, role="client", pid=os.getpid())
            records = RecordsDesk(
                ledger,
                own_keys,
                unix_ms,
                deliver=purchaser.sessions.deliver_dispute,
                erase_salts=self._erase_salts,
            )
            await stack.enter_async_context(ErasesDaily(records, is_on=self._retention.erase_keys_after_disputes))
            desk = ClientDesk(purchaser, key.public_key, records, self._condition)
            await stack.enter_async_context(
                serve_commands(socket_path(self.data.path), about, CLIENT_ASKS, desk.perform)
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._purchaser = None
        await self._stack.aclose()

    def _condition(self) -> Condition:
        """For `p2pgrid doctor`: a gateway is dialled by nobody, so there is little to say of it."""
        found = self.network_health
        networks = [asdict(one) for one in found.networks] if found is not None else []
        health = {"status": "ok", "network": {"networks": networks}}
        return Condition(health=health, addresses=(), listening=(), networks=self.networks)

    async def _erase_salts(self, record_ids: Sequence[bytes]) -> int:
        """In the logs of a node that sold from this data folder."""
        logs = self.data.logs_of_own_keys()
        check_all_known([LogFiles(*one) for one in logs], self.data.log_files)
        return await asyncio.to_thread(erase_salts, [LogFiles(*one) for one in logs], record_ids)

    @property
    def network_health(self) -> Health | None:
        """How the network fares; None while it is not joined."""
        return self._finder.health() if self._finder is not None else None

    @property
    def purchaser(self) -> Purchaser:
        """What buys. UsageError outside of `async with`."""
        if self._purchaser is None:
            raise UsageError("the client is not started.", hint="Use it with `async with`.")
        return self._purchaser

    async def request(self, endpoint: str, body: Mapping[str, Any], wishes: Wishes | None = None) -> Answer:
        """Buy one answer: an object with provider, offer, cost and receipt, and iteration over the answer's bytes.

        Raises RemoteError (Refused above all) where nobody serves it, LedgerError where nothing can be recorded.
        """
        return await self.purchaser.buy(endpoint, body, wishes)

    async def chat(self, *, wishes: Wishes | None = None, **body: Any) -> dict[str, Any]:
        """Buy one chat, unstreamed: OpenAI's `chat.completion` object. The arguments are the request's fields."""
        async with await self.purchaser.buy(CHAT, body, wishes, whole=True) as answer:
            return await answer.assemble()

    def offers(self, query: OfferQuery | None = None) -> list[Candidate]:
        """What is on sale now, each model in each offer: what the query is about, in its order.

        `OfferQuery(model="qwen3-8b", wishes=Wishes(only_free=True), sort=Sort.FREE)`, say. Asks nobody: every offer
        shown was confirmed by its provider, at `presence.confirmed_ms`.
        """
        return self.purchaser.market.models(query or OfferQuery())

    async def wait_for_offer(self, model: str, timeout_s: float) -> None:
        """Return once somebody sells the model. Raises Refused (`no-provider`)."""
        book = self.purchaser.book
        try:
            async with asyncio.timeout(timeout_s):
                while not any(one.entry.model == model for one in self.purchaser.market.models()):
                    await book.wait_for_change()
        except TimeoutError:
            raise Refused(
                "no-provider", f"nobody was found within {timeout_s:g} s who sells {model!r}.", hint=book.last_fault
            ) from None


def _domain_checker() -> DomainChecker:
    """Imported here: with it comes an HTTP client of 20 MB."""
    from p2pgrid.client.domains import DomainChecker

    return DomainChecker(unix_ms)


def wishes_of(config: ClientConfig) -> Wishes:
    """The owner's wishes, as config.toml states them. Raises UsageError."""
    try:
        most = None if config.max_cost_eur is None else parse_budget(config.max_cost_eur)
    except Refused as refusal:
        raise UsageError(refusal.message, hint=refusal.hint) from None
    return Wishes(
        countries=frozenset(config.countries),
        parent_countries=frozenset(config.parent_countries),
        verify_domains=config.verify_domains,
        max_cost_pico=most,
    )
