"""The book of offers: what is on sale, looked for, asked of the providers themselves, and asked again and again.

A look-up, and the cache file, say where to ask; the file is trusted with nothing, and deleting it costs one look-up.
Providers that have said nothing for half a minute are asked, so many a second however many there are, those first that
somebody wants (`ask_schedule.py`); those that the client has a link with say by themselves what changes. One that does
not answer is looked up afresh, for it may have moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from p2pgrid.client.ask_schedule import ASKS_PER_S, AskSchedule, Due
from p2pgrid.client.background import log_end
from p2pgrid.client.early_asks import EarlyAsks
from p2pgrid.client.offer_cache import read_cache, write_cache
from p2pgrid.client.offer_store import Entry, OfferStore, OnConflict
from p2pgrid.errors import InvalidRecord, P2pgridError, ProtocolViolation, Refused, RemoteError
from p2pgrid.net.lookup_keys import PROVIDER, model_key
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Signed
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.offers import Capacity

log = logging.getLogger(__name__)

PARALLEL_FETCHES: Final = 64
PARALLEL_RETRIES: Final = 8
"""Of those that did not answer the last time, who must not take the others' places."""
FETCH_TIMEOUT_S: Final = 10.0
CONFIRM_TIMEOUT_S: Final = 5.0
"""For one that is known."""
SEARCH_TIMEOUT_S: Final = 60.0
"""Nobody waits for the end of a look-up: who is named is asked at once, and a siege only makes it last."""
FIRST_SEARCH_INTERVAL_S: Final = 1.0
SEARCH_INTERVAL_S: Final = 30.0
ASK_TICK_S: Final = 0.5
LOOK_AGAIN_MS: Final = 5_000
"""For providers that do not answer, one key is looked up no more often than this."""
MAX_LOOKING: Final = 4
"""Such look-ups at once."""

OnOffers = Callable[[list[tuple[PeerAddress, Signed[Offer]]]], Awaitable[None]]
"""Called after a search with every offer in the book, and whose it is."""


class Finder(Protocol):
    """How providers are found: `p2pgrid.net.network.Network` is one."""

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """Peers said to provide `key`; `on_found` hears of them as they are named. Raises RemoteError."""
        ...

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """The raw record that a peer shows: its offer, or that it is withdrawn. Raises RemoteError."""
        ...

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """What a peer says it has free. Raises RemoteError."""
        ...


AskOverLink = Callable[[str], Awaitable[bytes] | None]
"""By peer id: the provider's raw offer, or withdrawal, over a link that is up; or None where there is none."""


class OfferBook(OfferStore):
    """What is on sale now. `async with` searches and asks in the background; without it, `search` does so once."""

    def __init__(
        self,
        finder: Finder,
        *,
        now_ms: Callable[[], int],
        keys: Sequence[str] = (PROVIDER,),
        cache: Path | None = None,
        on_conflict: OnConflict | None = None,
        ask_over_link: AskOverLink | None = None,
        asks_per_s: float = ASKS_PER_S,
    ) -> None:
        """`keys` are the look-up keys that are searched again and again; `cache` is read and written if given."""
        super().__init__(now_ms, on_conflict)
        self.last_fault = ""
        """Why an offer was last refused or not had, in a sentence; for whoever finds the book empty."""
        self.ask_over_link = ask_over_link
        self.on_offers: OnOffers | None = None
        self._finder = finder
        self._keys = tuple(keys)
        self._cache = cache
        self._schedule = AskSchedule(asks_per_s)
        self.wanted: Final = self._schedule.wanted
        """What is bought and looked at: whoever sells that is asked first."""
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._looked_ms: dict[str, int] = {}
        """When a key was last looked up for one that did not answer."""
        self._slots = asyncio.Semaphore(PARALLEL_FETCHES)
        self._retry_slots = asyncio.Semaphore(PARALLEL_RETRIES)
        self._tasks: list[asyncio.Task[None]] = []
        self._showing: asyncio.Task[None] | None = None
        self._shown_version = 0
        self._written: frozenset[bytes] = frozenset()

    async def __aenter__(self) -> OfferBook:
        await self._load()
        for name, work in (("offers: searching", self._keep_searching()), ("offers: asking", self._keep_asking())):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(log_end)
            self._tasks.append(task)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *self._looking.values(), *self._fetching.values()]
        tasks += [self._showing] if self._showing is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._save()

    # -- looking -------------------------------------------------------------------------------------------------

    async def search(self, *keys: str, timeout_s: float = SEARCH_TIMEOUT_S, is_urgent: bool = False) -> int:
        """Look the keys up, and ask those who are new, due, or said to have moved while they did not answer.

        Some are asked as soon as they are named, the others at the end. If it is urgent, all those are asked that did
        not answer. Returns how many peers were found. Raises RemoteError if none of the keys could be looked up.
        """
        found: dict[str, PeerAddress] = {}
        asked: dict[str, tuple[PeerAddress, asyncio.Task[None]]] = {}

        def ask(peer: PeerAddress) -> asyncio.Task[None] | None:
            if not self._is_due(peer.peer_id, self.found(peer) or is_urgent):
                return None
            task = self._fetch_task(peer, is_confirming=True)
            asked[peer.peer_id] = (peer, task)
            return task

        async def finish(peer: PeerAddress) -> None:
            begun, task = asked.get(peer.peer_id, (None, None))
            if begun is None:
                task = ask(peer)
            elif task is not None:
                await asyncio.shield(task)
                was_misled = not set(peer.addresses) <= set(begun.addresses)
                task = ask(peer) if was_misled and not self.presence_of(peer.peer_id).is_here else None
            if task is not None:
                await asyncio.shield(task)
            else:
                self.found_by_more(peer)

        async def look_up(key: str) -> list[PeerAddress]:
            early = EarlyAsks(ask)
            try:
                return await self._finder.find_providers(key, timeout_s=timeout_s, on_found=early.found)
            finally:
                early.close()

        results = await asyncio.gather(*map(look_up, keys or self._keys), return_exceptions=True)
        failures: list[RemoteError] = []
        for result in results:
            if isinstance(result, RemoteError):
                failures.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                found.update((peer.peer_id, peer) for peer in result)
        if failures and len(failures) == len(results):
            self.last_fault = failures[0].message
            raise failures[0]
        await asyncio.gather(*map(finish, found.values()))
        await self._show_offers()
        return len(found)

    async def search_model(self, model: str, is_enough: Callable[[], bool], timeout_s: float) -> None:
        """Look for providers of one model, until enough are there or the time is over: then it goes on without us.

        In a large network not all are in the book. Two who want the same wait for the same.
        """
        key = model_key(model)
        looking = self._looking.get(key) or self._begin_look(key, is_urgent=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not is_enough() and not looking.done():
                    await self.wait_for_change()

    def is_looking_for(self, model: str) -> bool:
        """True while a look-up for the model goes on."""
        return model_key(model) in self._looking

    async def renew(self, peer_id: str) -> Signed[Offer] | None:
        """Ask the provider for its offer now, over its link if there is one. None if it gave none that is good."""
        entry = self._entries.get(peer_id)
        if entry is not None:
            await asyncio.shield(self._fetch_task(entry.peer, is_confirming=False))
        return self.offer_of(peer_id)

    def doubt(self, peer_id: str) -> None:
        """Something says that the provider is gone, or has moved: ask it now, in the background."""
        entry = self._entries.get(peer_id)
        if entry is not None and entry.presence.is_here:
            self._fetch_task(entry.peer, is_confirming=True)

    # -- again and again -----------------------------------------------------------------------------------------

    async def _keep_searching(self) -> None:
        interval_s = FIRST_SEARCH_INTERVAL_S
        while True:
            try:
                await self.search()
            except RemoteError as error:
                log.info("no offers could be looked for: %s", error)
            self.drop_expired()
            await self._save()
            await asyncio.sleep(interval_s)
            interval_s = min(2 * interval_s, SEARCH_INTERVAL_S)

    async def _keep_asking(self) -> None:
        """Ask those who are due, at a bounded rate."""
        loop = asyncio.get_running_loop()
        while True:
            for peer_id in self._schedule.choose(self._due(), now_ms=self._now_ms(), now_s=loop.time()):
                self._fetch_task(self._entries[peer_id].peer, is_confirming=True)
            if self.version != self._shown_version and (self._showing is None or self._showing.done()):
                self._showing = asyncio.create_task(self._show_offers(), name="offers: showing")
                self._showing.add_done_callback(log_end)
            await asyncio.sleep(min(ASK_TICK_S, self._until_next_end_s()))

    def _due(self) -> Iterator[Due]:
        now_ms = self._now_ms()
        for peer_id, entry in self._entries.items():
            if peer_id in self._fetching or peer_id in self._barred or not _is_overdue(entry, now_ms):
                continue
            since_ms, is_failing = entry.presence.ask_ms(), entry.presence.failures > 0
            if entry.offer is None:
                yield Due(peer_id, since_ms, is_failing)
            else:
                message = entry.offer.message
                models = [one.model for one in message.models]
                yield Due(peer_id, since_ms, is_failing, models, message.data_terms.country)

    def _until_next_end_s(self) -> float:
        """Until an offer ends that is not renewed before: one may, where its provider's clock goes to summer time."""
        now_ms = self._now_ms()
        ends = [e.offer.message.valid_until_ms for e in self._entries.values() if e.offer is not None]
        return max(min((end - now_ms for end in ends if end >= now_ms), default=10**6) / 1000, 0.05)

    async def _show_offers(self) -> None:
        self._shown_version = self.version
        if self.on_offers is not None:
            entries = self._entries.values()
            await self.on_offers([(entry.peer, entry.offer) for entry in entries if entry.offer is not None])

    # -- asking --------------------------------------------------------------------------------------------------

    def _is_due(self, peer_id: str, is_wanted: bool) -> bool:
        """For one that was just found: True if it is new, or due, or wanted and did not answer the last time."""
        if peer_id in self._barred:
            return False
        entry = self._entries.get(peer_id)
        if entry is None:
            return True
        if is_wanted and not entry.presence.is_here:
            return True
        return _is_overdue(entry, self._now_ms())

    def _fetch_task(self, peer: PeerAddress, *, is_confirming: bool) -> asyncio.Task[None]:
        """Ask one provider; two who want the same wait for the same."""
        task = self._fetching.get(peer.peer_id)
        if task is None:
            task = self._fetching[peer.peer_id] = asyncio.create_task(self._fetch_now(peer, is_confirming))
            task.add_done_callback(lambda _: self._fetching.pop(peer.peer_id, None))
            task.add_done_callback(log_end)
        return task

    async def _fetch_now(self, peer: PeerAddress, is_confirming: bool) -> None:
        peer_id, known = peer.peer_id, self._entries.get(peer.peer_id)
        slots = self._retry_slots if known is not None and known.presence.failures else self._slots
        capacity: Capacity | None = None
        try:
            async with slots:
                over_link = self.ask_over_link(peer_id) if self.ask_over_link is not None else None
                at = peer if known is None else self.address_of(peer_id)
                if over_link is not None:
                    raw = await over_link
                elif is_confirming and await self._confirm_now(at):
                    return
                else:
                    raw, capacity = await self._ask(at, FETCH_TIMEOUT_S if known is None else CONFIRM_TIMEOUT_S)
            self.take(raw, peer if known is None else PeerAddress(peer_id, ()))
            if capacity is not None:
                self.confirm(peer_id, capacity)
        except InvalidRecord as error:
            self._note_fault(peer, error)
        except Refused as error:
            self._note_fault(peer, error)
            if error.code in ("no-offer", "withdrawn"):
                self.drop_offer(peer_id)
        except RemoteError as error:
            if isinstance(error, ProtocolViolation):
                self.refused["protocol-violation"] += 1
            self._note_fault(peer, error)
            self._look_again(peer_id)

    async def _confirm_now(self, peer: PeerAddress) -> bool:
        """Ask what is free, which takes less than an offer. False if the offer has to be asked for. Raises RemoteError.

        An offer that is half over is asked for in any case: there should be a newer one.
        """
        offer = self.offer_of(peer.peer_id)
        if offer is None or _is_half_over(offer, self._now_ms()):
            return False
        try:
            raw = await self._finder.fetch_capacity(peer, timeout_s=CONFIRM_TIMEOUT_S)
        except Refused:
            return False  # it does not say
        return self.confirm(peer.peer_id, parse_frame(raw, Capacity))

    async def _ask(self, peer: PeerAddress, timeout_s: float) -> tuple[bytes, Capacity | None]:
        """The offer and, over the same connection, what is free, which a provider need not say. Raises RemoteError."""
        raw, free = await asyncio.gather(
            self._finder.fetch_offer(peer, timeout_s=timeout_s),
            self._finder.fetch_capacity(peer, timeout_s=timeout_s),
            return_exceptions=True,
        )
        if isinstance(raw, BaseException):
            raise raw
        if isinstance(free, BaseException):
            if not isinstance(free, RemoteError):
                raise free
            return raw, None
        return raw, parse_frame(free, Capacity)

    def _note_fault(self, peer: PeerAddress, error: P2pgridError) -> None:
        self.last_fault = error.message
        log.info("no offer from %s: %s", peer.peer_id, error.message)
        self.note_fault(peer)

    def _look_again(self, peer_id: str) -> None:
        """Look a provider up afresh that does not answer, in the background: it may be somewhere else now."""
        entry, now_ms = self._entries.get(peer_id), self._now_ms()
        if entry is None or not entry.presence.was_here or len(self._looking) >= MAX_LOOKING:
            return
        key = PROVIDER
        if entry.offer is not None:
            message = entry.offer.message
            key = model_key(message.models[0].model, message.data_terms.country)
        self._looked_ms = {one: at for one, at in self._looked_ms.items() if now_ms < at + LOOK_AGAIN_MS}
        if key in self._looked_ms or key in self._looking:
            return
        self._looked_ms[key] = now_ms
        self._begin_look(key, is_urgent=False)

    def _begin_look(self, key: str, *, is_urgent: bool) -> asyncio.Task[None]:
        task = self._looking[key] = asyncio.create_task(self._look(key, is_urgent), name=f"looking for {key}")
        task.add_done_callback(lambda _: self._looking.pop(key, None))
        task.add_done_callback(lambda _: self.tell())
        task.add_done_callback(log_end)
        return task

    async def _look(self, key: str, is_urgent: bool) -> None:
        try:
            await self.search(key, is_urgent=is_urgent)
        except RemoteError as error:
            log.info("nobody could be looked for: %s", error)

    # -- the file ------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self._cache is None:
            return
        for peer, raw in await asyncio.to_thread(read_cache, self._cache):
            with contextlib.suppress(InvalidRecord):  # expired or damaged: it is found anew
                self.remember(raw, peer)

    async def _save(self) -> None:
        offers = [(entry.peer, entry.offer) for entry in self._entries.values() if entry.offer is not None]
        ids = frozenset(offer.id for _, offer in offers)
        if self._cache is None or ids == self._written:
            return
        records = [(peer, offer.record.to_bytes()) for peer, offer in offers if peer.peer_id not in self._barred]
        if await asyncio.to_thread(write_cache, self._cache, records):
            self._written = ids


def _is_overdue(entry: Entry, now_ms: int) -> bool:
    """True if it has said nothing for long enough, or if its offer has ended since: there should be another."""
    presence, offer = entry.presence, entry.offer
    if presence.ask_ms() <= now_ms:
        return True
    return offer is not None and presence.confirmed_ms < offer.message.valid_until_ms <= now_ms and presence.is_here


def _is_half_over(offer: Signed[Offer], now_ms: int) -> bool:
    return now_ms > (offer.message.valid_from_ms + offer.message.valid_until_ms) // 2
