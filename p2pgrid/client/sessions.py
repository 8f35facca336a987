"""The sessions with all providers: begun when one is asked for, and what brings both sides' books together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from p2pgrid.client.cards import CardBook
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.offer_watch import keep_watching
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.quarantine import Held, Quarantine
from p2pgrid.client.roads import Dialler
from p2pgrid.client.session import ProviderSession
from p2pgrid.client.settling import EarlierExchanges, SignedStatements
from p2pgrid.client.standings import Standings
from p2pgrid.client.statement_exchange import ChannelSettled
from p2pgrid.client.succession import Succession
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.desk.standing import last_offer
from p2pgrid.errors import Refused, RemoteError, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.dispute_exchange import Said
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.reconcile import Reconciliation
from p2pgrid.proto.record import Record, Signed
from p2pgrid.settlement.wiring import Buying

log = logging.getLogger(__name__)

SEARCH_TIMEOUT_S: Final = 4.0
DELIVER_TIMEOUT_S: Final = 10.0
RECONCILE_TIMEOUT_S: Final = 60.0


class Sessions(Mapping[str, ProviderSession]):
    """The dealings with each provider, by peer id."""

    def __init__(
        self,
        key: SecretKey,
        ledger: Ledger,
        book: OfferBook,
        *,
        limits: SessionLimits,
        dial: Dialler,
        now_ms: Callable[[], int],
        rng: random.Random,
        random_bytes: Callable[[int], bytes],
        quarantine: Quarantine,
        cards: CardBook | None,
        has_channel: Callable[[bytes], bool] | None,
        buying: Buying | None = None,
    ) -> None:
        """The arguments are those of `Purchaser`. Offers and cards of the two books are asked for over its links."""
        self._key = key
        self._ledger = ledger
        self._book = book
        self._limits = limits
        self._dial = dial
        self._now_ms = now_ms
        self._rng = rng
        self._random_bytes = random_bytes
        self._quarantine = quarantine
        self._cards = cards
        self._has_channel = has_channel
        self.buying: Final = buying
        """What statements are settled with; None where none are."""
        self._evidence = EvidenceKeeper(ledger, now_ms)
        self._sessions: dict[str, ProviderSession] = {}
        self.standings: Final = Standings(self._sessions, quarantine, now_ms)
        self.earlier: Final = EarlierExchanges(now_ms)
        """What exchanges on new links changed without being asked for."""
        self.signed: Final = SignedStatements()
        book.ask_over_link = self._offer_over_link
        book.on_conflict = self._two_offers
        book.on_back = self._dial_now
        if cards is not None:
            cards.ask_over_link = self._cards_over_link

    def __getitem__(self, peer_id: str) -> ProviderSession:
        return self._sessions[peer_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def n_ready(self) -> int:
        """Providers with a link that is ready for orders."""
        return sum(session.life.is_ready for session in self._sessions.values())

    def road_to(self, provider: PublicKey) -> str | None:
        """The road of the link that is up to a provider; None without one."""
        session = self._sessions.get(provider.peer_id)
        link = session.link if session is not None else None
        return link.road if link is not None else None

    # -- beginning and ending ------------------------------------------------------------------------------------

    def with_provider(self, peer_id: str) -> ProviderSession:
        """The session with a provider; its link is dialled from now on, if it was not before."""
        session = self._sessions.get(peer_id)
        if session is None:
            provider = parse_peer_id(peer_id)
            session = self._sessions[peer_id] = ProviderSession(
                provider,
                lambda: self._dial_provider(provider),
                self._ledger,
                key=self._key,
                now_ms=self._now_ms,
                random_bytes=self._random_bytes,
                rng=self._rng,
                limits=self._limits,
                succession=self._succession(provider),
                offer=lambda: self._book.offer_of(peer_id),
                evidence=self._evidence,
                has_channel=self._has_channel,
                on_settled=lambda changes: self.earlier.note(peer_id, changes),
                on_signed=self.signed.add,
                on_quarantine=lambda reason: self._quarantine.add(peer_id, reason, self._now_ms()),
                watch_offer=lambda link: keep_watching(link, self._book),
                buying=self.buying,
            )
        return session

    async def end(self, peer_id: str) -> None:
        """End the session with a provider, which there is."""
        await self._sessions.pop(peer_id).aclose()

    async def aclose(self) -> None:
        """End all."""
        await asyncio.gather(*(session.aclose() for session in self._sessions.values()))

    def _succession(self, provider: PublicKey) -> Succession | None:
        return Succession(provider, self._key.public_key, self._cards, self._ledger) if self._cards else None

    async def _dial_provider(self, provider: PublicKey) -> LinkConnection:
        """Dial the addresses of the offer as it is now."""
        addresses = self._dial_addresses(provider)
        if not addresses:
            raise Unreachable(f"{provider} has no offer that says where to reach it.")
        try:
            return await self._dial(addresses, provider, self._key)
        except Unreachable:
            self._book.doubt(provider.peer_id)
            raise

    def _dial_addresses(self, provider: PublicKey) -> Sequence[str]:
        """Where the provider's offer says that it is; where it was last bought from, if it offers nothing now."""
        offer = self._book.offer_of(provider.peer_id) or last_offer(self._ledger, self._key.public_key, provider)
        return offer.message.addresses if offer is not None else ()

    # -- for the owner -------------------------------------------------------------------------------------------

    async def allow(self, peer_id: str) -> Held | None:
        """Lift a provider's quarantine; what it was held for, or None if it was not. Raises LocalError."""
        held = self._quarantine.lift(peer_id)
        self._book.unbar(peer_id)
        self.standings.forget(peer_id)
        session = self._sessions.get(peer_id)
        if session is not None and session.quarantine:
            await self.end(peer_id)
        return held

    async def reconcile(
        self, provider: PublicKey, timeout_s: float = RECONCILE_TIMEOUT_S
    ) -> tuple[list[Reconciliation], Held | None]:
        """Bring both sides' books together now: what changed, and what the provider was held for, if that is lifted.

        Raises RemoteError where the provider is away or does not agree, and LedgerError.
        """
        known = self._dial_addresses(provider)
        if not known:
            await self._search()
        try:
            changes = await self._reconcile(provider.peer_id, timeout_s)
        except Unreachable:
            # It may be elsewhere than when it was last bought from.
            if not known:
                raise
            await self._search()
            if self._dial_addresses(provider) == known:
                raise
            changes = await self._reconcile(provider.peer_id, timeout_s)
        return changes, await self.allow(provider.peer_id)

    async def _search(self) -> None:
        """Look for all who sell; nothing, where that fails."""
        with contextlib.suppress(RemoteError, TimeoutError):
            async with asyncio.timeout(SEARCH_TIMEOUT_S):
                await self._book.search()

    async def _reconcile(self, peer_id: str, timeout_s: float) -> list[Reconciliation]:
        session = self._sessions.get(peer_id)
        was_known = session is not None
        if session is not None and (session.quarantine or session.life.is_down):
            # Dialled afresh: one that is down may wait for a while before it tries again.
            await self.end(peer_id)
        try:
            return await self.with_provider(peer_id).reconcile(timeout_s)
        finally:
            if not was_known and self._is_closed_after_use(peer_id):
                await self.end(peer_id)

    async def settle(
        self, provider: PublicKey, prefix: str, until_day: int, *, accepts_due: bool = False
    ) -> tuple[list[tuple[Signed[Channel], ChannelSettled]], list[str]]:
        """Settle every channel with a provider whose id begins so, now; and what a person should know besides.

        What came of each has all statements that were signed meanwhile, whoever wanted them. Receipts and disputes are
        brought together first. Raises RemoteError, LedgerError.
        """
        notes = []
        with self.signed.watched() as signed:
            try:
                await self.reconcile(provider)
            except Refused as refusal:
                if refusal.code != "busy":
                    raise
                notes.append("Orders are running: what has no receipt yet goes to the next statement.")
            was_known = provider.peer_id in self._sessions
            session = self.with_provider(provider.peer_id)
            try:
                link = await session.ready(self._limits.link_timeout_s, patient=False)
                found = [c for c in session.statements.all_channels() if c.message.channel.hex().startswith(prefix)]
                settled = [
                    (
                        channel,
                        await session.statements.settle(
                            link, channel, is_wanted=True, until_day=until_day, accepts_due=accepts_due
                        ),
                    )
                    for channel in found
                ]
                for channel, done in settled:
                    new = [one for one in signed if one.message.channel == channel.message.channel]
                    if not await session.statements.wait_for_invoices(link, channel, new, done):
                        notes.append(
                            "The provider has not made the invoice yet. It comes by itself, or with the next settle."
                        )
            finally:
                if not was_known and self._is_closed_after_use(provider.peer_id):
                    await self.end(provider.peer_id)
        for channel, done in settled:
            done.statements = [one for one in signed if one.message.channel == channel.message.channel]
        return settled, notes

    async def deliver_dispute(self, signed: Said) -> bool:
        """Exchange the disputes of a channel now, something of ours among them; False if the provider is not there.

        It then hears of it on the next link.
        """
        channel_id = signed.message.channel
        channel = next(c for c in self._ledger.channels() if c.message.channel == channel_id)
        holding = [one for one in self._sessions.values() if one.disputes.covers(channel_id)]
        try:
            provider = parse_public_key(channel.message.provider)
            session = holding[0] if holding else self.with_provider(provider.peer_id)
            await session.disputes.exchange(await session.ready(DELIVER_TIMEOUT_S, patient=False), channel)
        except RemoteError as error:
            log.info("the dispute is not with the provider yet: %s", error.message)
            for one in holding:
                one.disputes.said(signed)
            return False
        return True

    def settle_soon(self, channels: Collection[bytes]) -> None:
        """These channels have records of settlement that their providers lack: bring them together now, or on the next
        link. Channels of others are passed over. Raises LedgerError.
        """
        for channel in self._ledger.channels():
            channel_id, terms = channel.message.channel, channel.message
            if self.buying is None or channel_id not in channels or terms.client != self._key.public_key.raw:
                continue
            if self._has_channel is not None and not self._has_channel(channel_id):
                continue
            holding = [one for one in self._sessions.values() if one.disputes.covers(channel_id)]
            provider = parse_public_key(terms.provider).peer_id
            if not holding and provider not in self._quarantine:
                holding = [self.with_provider(provider)]
            for session in holding:
                session.statements.soon(channel_id)

    def _is_closed_after_use(self, peer_id: str) -> bool:
        session = self._sessions.get(peer_id)
        return session is not None and not session.n_orders and self._book.offer_of(peer_id) is None

    # -- for the books of offers and cards -----------------------------------------------------------------------

    def _offer_over_link(self, peer_id: str) -> Awaitable[bytes] | None:
        session = self._ready(peer_id)
        return session.request_offer(self._limits.link_timeout_s) if session is not None else None

    def _cards_over_link(self, peer_id: str) -> Awaitable[bytes] | None:
        session = self._ready(peer_id)
        return session.request_cards(self._limits.link_timeout_s) if session is not None else None

    def _ready(self, peer_id: str) -> ProviderSession | None:
        session = self._sessions.get(peer_id)
        return session if session is not None and session.life.is_ready else None

    def _dial_now(self, peer_id: str) -> None:
        """The provider is back, or somewhere else: a session that waits with its next dial need not."""
        session = self._sessions.get(peer_id)
        if session is not None:
            session.life.dial_now()

    def _two_offers(self, peer_id: str, offers: Sequence[Record], reason: str) -> None:
        provider = parse_peer_id(peer_id)
        for record in offers:
            self._evidence.keep(provider, record, reason)
        self._quarantine.add(peer_id, reason, self._now_ms())
