"""Who stands behind an offer: the operator's cards, had from the provider, and what its domain says of it.

A card is the operator's word about its peers; the offer that names the card is the peer's word about the operator. Only
both together bind them (docs/spec/card.md, section 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from p2pgrid.client.background import log_end
from p2pgrid.client.operator import Operator
from p2pgrid.errors import InvalidRecord, P2pgridError, RemoteError
from p2pgrid.ledger.card_file import read_cards, write_cards
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.card_chain import CardChain, KeyState, join_chains, key_state, named_keys, unpack_cards
from p2pgrid.proto.keys import parse_peer_id, parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Signed

if TYPE_CHECKING:
    from p2pgrid.client.domains import DomainChecker

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S: Final = 10.0
PARALLEL_FETCHES: Final = 8
RETRY_MS: Final = 30_000
MAX_OPERATORS: Final = 2_000

AskOverLink = Callable[[str], Awaitable[bytes] | None]
"""By peer id: the provider's cards over a link that is up, or None where there is none."""


class Finder(Protocol):
    """`p2pgrid.net.network.Network` is one."""

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """The raw cards of a peer. Raises RemoteError."""
        ...


@dataclass(slots=True)
class _Entry:
    chain: CardChain = ()
    fault: str = ""
    asked_ms: int = 0
    asked_for: bytes = field(default=b"")
    """The card that was last asked for."""


class CardBook:
    """The cards of the providers on sale."""

    def __init__(
        self,
        finder: Finder,
        *,
        now_ms: Callable[[], int],
        domains: DomainChecker | None = None,
        folder: Path | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """With `domains`, the domain of every card is asked; `folder` keeps the cards of those that are bought from."""
        self.ask_over_link: AskOverLink | None = None
        self.on_change = on_change
        self._finder = finder
        self._now_ms = now_ms
        self._domains = domains
        self._folder = folder
        self._entries: dict[str, _Entry] = {}
        self._learning: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PARALLEL_FETCHES)

    async def aclose(self) -> None:
        """Give up what is under way."""
        tasks = list(self._learning.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._domains is not None:
            await self._domains.aclose()

    # -- reading -------------------------------------------------------------------------------------------------

    def operator_of(self, offer: Signed[Offer]) -> Operator | None:
        """Who stands behind the offer; None if it names no card, or its card has not been asked for yet.

        A provider that was once disowned stays so, whatever its later offers leave out.
        """
        provider = parse_public_key(offer.message.provider)
        entry = self._entries.get(provider.peer_id)
        if entry is None:
            return None
        now_ms, card_id = self._now_ms(), offer.message.card
        state = key_state(entry.chain, provider.raw, now_ms) if entry.chain else KeyState.UNKNOWN
        if state is KeyState.REVOKED:
            return Operator(
                card=entry.chain[-1].message, fault="the operator has revoked the provider's key.", is_disowned=True
            )
        if not card_id:
            return None
        if not any(card.id == card_id for card in entry.chain):
            return Operator(fault=entry.fault) if entry.fault else None
        card = entry.chain[-1].message
        if state is not KeyState.BOUND:
            return Operator(card=card, fault=f"the operator's card does not name the provider now ({state}).")
        known = self._domains.known(card.domain, provider.peer_id) if self._domains and card.domain else None
        return Operator(card=card, domain_check=known)

    def chain_of(self, peer_id: str) -> CardChain:
        """The cards of the provider's operator, as far as they are known."""
        entry = self._entries.get(peer_id)
        return entry.chain if entry is not None else ()

    def other_keys(self, peer_id: str) -> frozenset[bytes]:
        """Keys of other nodes of the operator, in whichever card: the provider's former key may be among them.

        That a channel's provider was one of them, its own offers must say too.
        """
        return named_keys(self.chain_of(peer_id)) - {parse_peer_id(peer_id).raw}

    # -- learning ------------------------------------------------------------------------------------------------

    async def refresh(self, offers: Iterable[tuple[PeerAddress, Signed[Offer]]], *, timeout_s: float = 4.0) -> None:
        """Ask for the cards, and the domains, that are new or due. What takes longer goes on in the background."""
        due = [self._task(peer, offer) for peer, offer in offers if self._is_due(peer.peer_id, offer)]
        if due:
            await asyncio.wait(due, timeout=timeout_s)

    async def learn(self, peer: PeerAddress, offer: Signed[Offer]) -> Operator | None:
        """Who stands behind the offer, asked for now if that is not known. Never raises for what a peer does."""
        if self._is_due(peer.peer_id, offer):
            await asyncio.shield(self._task(peer, offer))
        return self.operator_of(offer)

    def is_known(self, offer: Signed[Offer]) -> bool:
        """True if the card that the offer names is here, or it names none."""
        chain = self.chain_of(parse_public_key(offer.message.provider).peer_id)
        return not offer.message.card or any(card.id == offer.message.card for card in chain)

    async def take(self, offer: Signed[Offer], raw: bytes) -> None:
        """Take in the cards that the provider has just shown. Never raises for what stands in them."""
        peer_id = parse_public_key(offer.message.provider).peer_id
        entry = self._entry(peer_id)
        entry.fault = await self._take(peer_id, offer, entry, raw)

    async def keep(self, peer_id: str) -> None:
        """Keep the operator's cards on disk, since the provider is bought from: an auditor will ask for them.

        Raises LocalError.
        """
        chain = self.chain_of(peer_id)
        if self._folder is None or not chain:
            return
        path = self._folder / f"{peer_id}.jsonl"
        await asyncio.to_thread(_write_if_new, path, chain)

    def _task(self, peer: PeerAddress, offer: Signed[Offer]) -> asyncio.Task[None]:
        """Two who ask for the same wait for the same."""
        task = self._learning.get(peer.peer_id)
        if task is None:
            task = asyncio.create_task(self._learn(peer, offer), name=f"cards of {peer.peer_id}")
            self._learning[peer.peer_id] = task
            task.add_done_callback(lambda _: self._learning.pop(peer.peer_id, None))
            task.add_done_callback(log_end)
        return task

    def _is_due(self, peer_id: str, offer: Signed[Offer]) -> bool:
        card_id, entry = offer.message.card, self._entries.get(peer_id)
        if not card_id:
            return False
        if entry is None or not any(card.id == card_id for card in entry.chain):
            asked = entry is not None and entry.asked_for == card_id and self._now_ms() < entry.asked_ms + RETRY_MS
            return not asked
        domain = entry.chain[-1].message.domain
        return bool(domain) and self._domains is not None and self._domains.known(domain, peer_id) is None

    async def _learn(self, peer: PeerAddress, offer: Signed[Offer]) -> None:
        entry = self._entry(peer.peer_id)
        if not any(card.id == offer.message.card for card in entry.chain):
            entry.asked_ms, entry.asked_for = self._now_ms(), offer.message.card
            async with self._slots:
                entry.fault = await self._ask(peer, offer, entry)
        if entry.fault:
            log.info("the card of %s: %s", peer.peer_id, entry.fault)
        elif self._domains is not None and entry.chain and (domain := entry.chain[-1].message.domain):
            async with self._slots:
                await self._domains.check(domain, peer.peer_id)
            # The operator's own web server may know of a revocation that its node, in other hands, does not show.
            self._spread(self._domains.cards_of(domain))
        if self.on_change is not None:
            self.on_change()

    async def _ask(self, peer: PeerAddress, offer: Signed[Offer], entry: _Entry) -> str:
        """Ask the provider for its cards; why they are none for this offer, or nothing."""
        try:
            over_link = self.ask_over_link(peer.peer_id) if self.ask_over_link is not None else None
            raw = await (over_link or self._finder.fetch_cards(peer, timeout_s=FETCH_TIMEOUT_S))
        except RemoteError as error:
            return error.message
        return await self._take(peer.peer_id, offer, entry, raw)

    async def _take(self, peer_id: str, offer: Signed[Offer], entry: _Entry, raw: bytes) -> str:
        """The same, of cards that are here."""
        try:
            chain = unpack_cards(raw)
        except (RemoteError, InvalidRecord) as error:
            return error.message
        if not any(card.id == offer.message.card for card in chain):
            return "the provider does not show the card that its offer names."
        # Only now does the provider itself say that it is this operator's.
        entry.chain = await asyncio.to_thread(self._kept, peer_id) if not entry.chain else entry.chain
        try:
            entry.chain = join_chains(entry.chain, chain)
        except InvalidRecord as error:
            if error.code == "two-records-one-slot":
                return error.message
            entry.chain = chain  # cards between the two were never shown to us; or the provider has changed hands
        self._spread(entry.chain)
        return ""

    def _spread(self, chain: CardChain) -> None:
        """What one source of an operator's cards says holds for all its nodes."""
        ids = {card.id for card in chain}
        for entry in self._entries.values():
            if entry.chain and any(card.id in ids for card in entry.chain):
                with contextlib.suppress(InvalidRecord):
                    entry.chain = join_chains(entry.chain, chain)

    def _kept(self, peer_id: str) -> CardChain:
        if self._folder is None:
            return ()
        with contextlib.suppress(P2pgridError):
            return read_cards(self._folder / f"{peer_id}.jsonl")
        return ()

    def _entry(self, peer_id: str) -> _Entry:
        entry = self._entries.get(peer_id)
        if entry is None:
            while len(self._entries) >= MAX_OPERATORS:
                del self._entries[next(iter(self._entries))]
            entry = self._entries[peer_id] = _Entry()
        return entry


def _write_if_new(path: Path, chain: CardChain) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(P2pgridError):
        kept = read_cards(path)
        if kept and kept[-1].id == chain[-1].id:
            return
    write_cards(path, chain)
