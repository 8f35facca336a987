"""The book of offers: what is on sale, each verified, the newest of each provider, none past its time.

Offers are found over the network and asked of the provider itself. The cache file is trusted with nothing: what
it holds is verified again, and deleting it costs one look-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from p2pgrid.client.background import log_end
from p2pgrid.client.offer_cache import read_cache, write_cache
from p2pgrid.errors import InvalidRecord, P2pgridError, Refused, RemoteError
from p2pgrid.net.lookup_keys import PROVIDER, model_key
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Record, Role, Signed, parse_record, verify_self_signed

log = logging.getLogger(__name__)

MAX_OFFERS: Final = 2_000
PARALLEL_FETCHES: Final = 8
FETCH_TIMEOUT_S: Final = 10.0
SEARCH_TIMEOUT_S: Final = 8.0
FIRST_SEARCH_INTERVAL_S: Final = 1.0
SEARCH_INTERVAL_S: Final = 30.0
DEAD_AFTER_FAILURES: Final = 3
"""A provider that did not answer so many times in a row is forgotten until it is found again."""
_FORGET_DEAD_MS: Final = 60_000

OnOffers = Callable[[list[tuple[PeerAddress, Signed[Offer]]]], Awaitable[None]]
"""Called after a search with every offer in the book, and whose it is."""
OnConflict = Callable[[str, Sequence[Record], str], None]
"""Called with a peer id, its two offers under one number, and a sentence: evidence against the provider."""


class Finder(Protocol):
    """How providers are found: `p2pgrid.net.network.Network` is one."""

    async def find_providers(self, key: str, *, limit: int = 50, timeout_s: float = 10.0) -> list[PeerAddress]:
        """Peers said to provide `key`. Raises RemoteError."""
        ...

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """The raw offer record of a peer. Raises RemoteError."""
        ...


AskOverLink = Callable[[str], Awaitable[bytes] | None]
"""By peer id: the provider's raw offer over a link that is up, or None where there is none."""


@dataclass(slots=True)
class _Entry:
    peer: PeerAddress
    offer: Signed[Offer] | None = None
    failures: int = 0
    failed_ms: int = 0


def verify_offer(raw: bytes, peer_id: str, now_ms: int) -> Signed[Offer]:
    """An offer that `peer_id` signed and that is in force, by this clock give or take 120 s at its beginning.

    Raises InvalidRecord: what `parse_record` and `verify_self_signed` raise, `wrong-key`, `not-in-force`.
    """
    offer = verify_self_signed(parse_record(raw), Offer, Role.PROVIDER)
    message = offer.message
    signer = offer.signers[Role.PROVIDER]
    if message.provider != signer.raw or signer.peer_id != peer_id:
        raise InvalidRecord("wrong-key", f"the offer is signed by {signer.peer_id}; {peer_id} was asked for its own.")
    if message.valid_until_ms <= now_ms:
        raise InvalidRecord(
            "not-in-force",
            f"the offer of {peer_id} ended {(now_ms - message.valid_until_ms) // 1000} s ago by this clock.",
            hint="Check this machine's clock (NTP) if all offers look so.",
        )
    if message.valid_from_ms > now_ms + CLOCK_TOLERANCE_MS:
        raise InvalidRecord(
            "not-in-force",
            f"the offer of {peer_id} begins in {(message.valid_from_ms - now_ms) // 1000} s by this clock.",
            hint="Check this machine's clock (NTP) if all offers look so.",
        )
    return offer


class OfferBook:
    """What is on sale now. `async with` searches in the background; without it, `search` does so once."""

    def __init__(
        self,
        finder: Finder,
        *,
        now_ms: Callable[[], int],
        keys: Sequence[str] = (PROVIDER,),
        cache: Path | None = None,
        on_conflict: OnConflict | None = None,
        ask_over_link: AskOverLink | None = None,
    ) -> None:
        """`keys` are the look-up keys that are searched again and again; `cache` is read and written if given."""
        self.last_fault = ""
        """Why an offer was last refused or not had, in a sentence; for whoever finds the book empty."""
        self.ask_over_link = ask_over_link
        self.on_conflict = on_conflict
        self.on_offers: OnOffers | None = None
        self._finder = finder
        self._now_ms = now_ms
        self._keys = tuple(keys)
        self._cache = cache
        self.version = 0
        """Another number after every change."""
        self._entries: dict[str, _Entry] = {}
        self._faulty: set[str] = set()
        """Those of the entries that have failed of late, or have no offer."""
        self._by_model: dict[str, dict[str, Signed[Offer]]] = {}
        self._barred: set[str] = set()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PARALLEL_FETCHES)
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._written: frozenset[bytes] = frozenset()

    async def __aenter__(self) -> OfferBook:
        await self._load()
        self._task = asyncio.create_task(self._keep_searching(), name="offers")
        self._task.add_done_callback(log_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._fetching.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._save()

    # -- reading -------------------------------------------------------------------------------------------------

    def offers(self) -> list[Signed[Offer]]:
        """Every offer in force, one of each provider."""
        now_ms = self._now_ms()
        return [
            entry.offer
            for peer_id, entry in self._entries.items()
            if entry.offer is not None and peer_id not in self._barred and entry.offer.message.valid_until_ms > now_ms
        ]

    def offers_of(self, model: str) -> list[tuple[str, Signed[Offer]]]:
        """Every offer in force of a model, with its provider's peer id. What else is on sale costs nothing here."""
        now_ms = self._now_ms()
        return [
            (peer_id, offer)
            for peer_id, offer in self._by_model.get(model, {}).items()
            if offer.message.valid_until_ms > now_ms and peer_id not in self._barred
        ]

    def models(self) -> tuple[str, ...]:
        """Every model in force, sorted."""
        return tuple(sorted(model for model in self._by_model if self.offers_of(model)))

    def offer_of(self, peer_id: str) -> Signed[Offer] | None:
        """The provider's offer in force, or None."""
        entry = self._entries.get(peer_id)
        if entry is None or entry.offer is None or peer_id in self._barred:
            return None
        return entry.offer if entry.offer.message.valid_until_ms > self._now_ms() else None

    def addresses_of(self, provider: PublicKey) -> Sequence[str]:
        """Where the provider's offer in force says that it is."""
        offer = self.offer_of(provider.peer_id)
        return offer.message.addresses if offer is not None else ()

    def tell(self) -> None:
        """Something that whoever waits for a change may want to look at again."""
        self._tell()

    def address_of(self, peer_id: str) -> PeerAddress:
        """Where the provider was last said to be."""
        entry = self._entries.get(peer_id)
        return entry.peer if entry is not None else PeerAddress(peer_id, ())

    async def wait_for_change(self) -> None:
        """Return when an offer was added or dropped."""
        await self._changed.wait()

    # -- writing -------------------------------------------------------------------------------------------------

    def add(self, raw: bytes, peer: PeerAddress) -> Signed[Offer]:
        """Verify an offer and take it in, unless a newer one is known; the one now in the book is returned.

        Raises InvalidRecord; `two-offers-one-number` for a second offer under one number, upon which the provider is
        barred.
        """
        offer = verify_offer(raw, peer.peer_id, self._now_ms())
        if peer.peer_id in self._barred:
            raise InvalidRecord("two-offers-one-number", f"{peer.peer_id} has signed two offers under one number.")
        entry = self._entries.get(peer.peer_id)
        known = entry.offer if entry is not None else None
        if known is not None and known.message.sequence == offer.message.sequence and known.id != offer.id:
            self._bar(peer.peer_id, known, offer)
        if entry is None:
            self._make_room()
            entry = self._entries[peer.peer_id] = _Entry(peer)
        entry.failures = 0
        if peer.addresses:
            entry.peer = peer
        self._faulty.discard(peer.peer_id)
        if known is not None and known.message.sequence >= offer.message.sequence:
            return known
        self._put(peer.peer_id, offer)
        self._tell()
        return offer

    def forget(self, peer_id: str) -> None:
        """The provider sells nothing to us any more, until it is found again."""
        if peer_id in self._entries:
            self._forget(peer_id)
            self._tell()

    def unbar(self, peer_id: str) -> None:
        """Take offers of a provider again that signed two under one number. A person has decided so."""
        if peer_id in self._barred:
            self._barred.discard(peer_id)
            self._forget(peer_id)
            self._tell()

    def note_dead(self, peer_id: str) -> None:
        """The provider did not answer. After three times in a row it is forgotten until it is found again."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return
        entry.failures += 1
        self._faulty.add(peer_id)
        entry.failed_ms = self._now_ms()
        if entry.failures >= DEAD_AFTER_FAILURES and entry.offer is not None:
            log.info("%s does not answer and is forgotten for now", peer_id)
            self._put(peer_id, None)
            self._tell()

    async def search(self, *keys: str, timeout_s: float = SEARCH_TIMEOUT_S) -> int:
        """Look the keys up and fetch what is new or due; how many peers were found. Raises RemoteError if none could be
        looked up."""
        found: dict[str, PeerAddress] = {}
        results = await asyncio.gather(
            *(self._finder.find_providers(key, timeout_s=timeout_s) for key in keys or self._keys),
            return_exceptions=True,
        )
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
        await self._fetch_all(found.values())
        await self._show_offers()
        return len(found)

    async def search_model(self, model: str) -> int:
        """Look for providers of one model: in a large network not all providers are in the book."""
        return await self.search(model_key(model))

    async def renew(self, peer_id: str) -> Signed[Offer] | None:
        """Ask the provider for its offer now, over its link if there is one. None if it gave none that is good."""
        entry = self._entries.get(peer_id)
        if entry is not None:
            await self._fetch(entry.peer)
        return self.offer_of(peer_id)

    # -- inside --------------------------------------------------------------------------------------------------

    async def _keep_searching(self) -> None:
        interval_s = FIRST_SEARCH_INTERVAL_S
        while True:
            try:
                await self.search()
            except RemoteError as error:
                log.info("no offers could be looked for: %s", error)
            await self._fetch_all(entry.peer for entry in list(self._entries.values()) if entry.offer is not None)
            await self._show_offers()
            self._drop_expired()
            await self._save()
            await asyncio.sleep(min(interval_s, self._until_next_end_s()))
            interval_s = min(2 * interval_s, SEARCH_INTERVAL_S)

    async def _show_offers(self) -> None:
        if self.on_offers is not None:
            entries = self._entries.values()
            await self.on_offers([(entry.peer, entry.offer) for entry in entries if entry.offer is not None])

    def _until_next_end_s(self) -> float:
        """Until an offer ends that is not renewed before: one may, where its provider's clock goes to summer time."""
        now_ms = self._now_ms()
        ends = [e.offer.message.valid_until_ms for e in self._entries.values() if e.offer is not None]
        return max(min((end - now_ms for end in ends if end >= now_ms), default=10**6) / 1000, 0.05)

    async def _fetch_all(self, peers: Iterable[PeerAddress]) -> None:
        await asyncio.gather(*(self._fetch(peer) for peer in peers if self._is_due(peer)))

    def _is_due(self, peer: PeerAddress) -> bool:
        """True for a new peer, and once half of an offer's time is over."""
        if peer.peer_id in self._barred:
            return False
        entry = self._entries.get(peer.peer_id)
        now_ms = self._now_ms()
        if entry is None:
            return True
        if entry.failures and now_ms < entry.failed_ms + min(1000 << min(entry.failures, 6), _FORGET_DEAD_MS):
            return False
        if entry.offer is None:
            return True
        message = entry.offer.message
        return now_ms > (message.valid_from_ms + message.valid_until_ms) // 2

    async def _fetch(self, peer: PeerAddress) -> None:
        """Fetch one offer; two who ask for the same wait for the same."""
        task = self._fetching.get(peer.peer_id)
        if task is None:
            task = self._fetching[peer.peer_id] = asyncio.create_task(self._fetch_now(peer))
            task.add_done_callback(lambda _: self._fetching.pop(peer.peer_id, None))
        await asyncio.shield(task)

    async def _fetch_now(self, peer: PeerAddress) -> None:
        try:
            async with self._slots:
                over_link = self.ask_over_link(peer.peer_id) if self.ask_over_link is not None else None
                raw = await (over_link or self._finder.fetch_offer(peer, timeout_s=FETCH_TIMEOUT_S))
            self.add(raw, peer)
        except InvalidRecord as error:
            self._note_fault(peer, error)
        except Refused as error:
            self._note_fault(peer, error)
            if (
                error.code in ("no-offer", "withdrawn")
                and (entry := self._entries.get(peer.peer_id))
                and entry.offer is not None
            ):
                self._put(peer.peer_id, None)  # it sells nothing any more
                self._tell()
        except RemoteError as error:
            self._note_fault(peer, error)

    def _note_fault(self, peer: PeerAddress, error: P2pgridError) -> None:
        self.last_fault = error.message
        log.info("no offer from %s: %s", peer.peer_id, error.message)
        if peer.peer_id not in self._entries:
            self._make_room()
            self._entries[peer.peer_id] = _Entry(peer)
        self.note_dead(peer.peer_id)

    def _bar(self, peer_id: str, known: Signed[Offer], offer: Signed[Offer]) -> None:
        reason = f"two-offers: {peer_id} signed two offers under number {offer.message.sequence}."
        log.error("%s It is dealt with no more.", reason)
        self._barred.add(peer_id)
        self._tell()
        if self.on_conflict is not None:
            self.on_conflict(peer_id, (known.record, offer.record), reason)
        raise InvalidRecord(
            "two-offers-one-number", f"{peer_id} has signed two offers under number {offer.message.sequence}."
        )

    def _make_room(self) -> None:
        """Forget the peer that is most surely of no use, once there are too many: the oldest where all are well."""
        while len(self._entries) >= MAX_OFFERS:
            faulty = ((peer_id, self._entries[peer_id]) for peer_id in self._faulty)
            worst = min(faulty, key=lambda one: (one[1].offer is not None, -one[1].failures), default=None)
            self._forget(worst[0] if worst is not None else next(iter(self._entries)))

    def _drop_expired(self) -> None:
        now_ms = self._now_ms()
        for peer_id, entry in list(self._entries.items()):
            ended = entry.offer is None or entry.offer.message.valid_until_ms <= now_ms
            if ended and entry.failures >= DEAD_AFTER_FAILURES and now_ms > entry.failed_ms + _FORGET_DEAD_MS:
                self._forget(peer_id)

    def _put(self, peer_id: str, offer: Signed[Offer] | None) -> None:
        """Change what the peer offers."""
        entry = self._entries[peer_id]
        if entry.offer is not None:
            for one in entry.offer.message.models:
                del self._by_model[one.model][peer_id]
                if not self._by_model[one.model]:
                    del self._by_model[one.model]
        if offer is not None:
            for one in offer.message.models:
                self._by_model.setdefault(one.model, {})[peer_id] = offer
        else:
            self._faulty.add(peer_id)
        entry.offer = offer
        self.version += 1

    def _forget(self, peer_id: str) -> None:
        if peer_id in self._entries:
            self._put(peer_id, None)
            del self._entries[peer_id]
            self._faulty.discard(peer_id)

    def _tell(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _load(self) -> None:
        if self._cache is None:
            return
        for peer, raw in await asyncio.to_thread(read_cache, self._cache):
            with contextlib.suppress(InvalidRecord):  # expired or damaged: it is found anew
                self.add(raw, peer)

    async def _save(self) -> None:
        offers = [(entry.peer, entry.offer) for entry in self._entries.values() if entry.offer is not None]
        ids = frozenset(offer.id for _, offer in offers)
        if self._cache is None or ids == self._written:
            return
        records = [(peer, offer.record.to_bytes()) for peer, offer in offers if peer.peer_id not in self._barred]
        if await asyncio.to_thread(write_cache, self._cache, records):
            self._written = ids
