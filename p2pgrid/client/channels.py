"""The channels with one provider: opened once, remembered in the ledger, resumed on every new link.

One channel is current: orders are placed on it. Earlier ones, and those under the provider's former keys, are only
settled.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.client.disputes import Exchanged
from p2pgrid.client.exchanges import open_channel
from p2pgrid.client.faults import FaultGuard
from p2pgrid.client.link_life import LinkLife
from p2pgrid.client.resume import recover_channels, resume_channel
from p2pgrid.client.succession import Succession
from p2pgrid.desk.standing import ChannelChanges, changes_since, standing_of
from p2pgrid.errors import Refused, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel, Offer, Usage
from p2pgrid.proto.reconcile import Reconciliation
from p2pgrid.proto.record import Signed
from p2pgrid.proto.restore import restore_credit

log = logging.getLogger(__name__)


class ProviderChannels:
    """Opens, continues and resumes them."""

    def __init__(
        self,
        provider: PublicKey,
        ledger: Ledger,
        life: LinkLife,
        guard: FaultGuard,
        *,
        key: SecretKey,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        succession: Succession | None,
        offer: Callable[[], Signed[Offer] | None] | None,
        has_channel: Callable[[bytes], bool] | None,
        on_settled: Callable[[Sequence[ChannelChanges]], None],
    ) -> None:
        """The arguments are those of `ProviderSession`."""
        self.books: ChannelBooks | None = None
        """The current channel's, once it is open and resumed."""
        self._provider: Final = provider
        self._ledger = ledger
        self._life = life
        self._guard = guard
        self._key = key
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._succession = succession
        self._offer = offer
        self._has_channel = has_channel or (lambda _: True)
        self._on_settled = on_settled
        self._counted: dict[tuple[bytes, int], Usage] = {}
        self._opening: asyncio.Task[ChannelBooks] | None = None

    # -- which ---------------------------------------------------------------------------------------------------

    def all(self) -> list[Signed[Channel]]:
        """With the provider under any of its keys that is known, oldest first."""
        return [*self._former(), *self._own()]

    def books_of(self, channel: bytes) -> ChannelBooks | None:
        """The books of the current channel, if it has that id."""
        return self.books if self.books is not None and self.books.id == channel else None

    def take_settled(self, books: ChannelBooks) -> bool:
        """Count what was settled since; True if that frees credit. Raises LedgerError.

        Statements and payments come by exchanges of their own, and are on record then.
        """
        before = books.credit_left_pico()
        restore_credit(self._ledger, books)
        return books.credit_left_pico() > before

    def _own(self) -> list[Signed[Channel]]:
        return [c for c in self._ledger.channels() if self._is_ours(c.message)]

    def _is_ours(self, channel: Channel) -> bool:
        is_between_us = channel.provider == self._provider.raw and channel.client == self._key.public_key.raw
        return is_between_us and self._has_channel(channel.channel)

    def _former(self) -> list[Signed[Channel]]:
        former = self._succession.former_channels() if self._succession is not None else []
        return [one for one in former if self._has_channel(one.message.channel)]

    # -- opening -------------------------------------------------------------------------------------------------

    async def usable(self, link: LinkConnection, offer: Signed[Offer]) -> ChannelBooks:
        """The books of a channel that takes orders; it is opened if there is none. Raises RemoteError, LedgerError."""
        books = self.books
        if books is not None and not books.is_expired(self._now_ms()):
            return books
        if self._opening is None or self._opening.done():
            # A task of its own: a program that leaves now must not leave a channel half open.
            self._opening = asyncio.create_task(self._open(link, offer))
        return await asyncio.shield(self._opening)

    async def aclose(self) -> None:
        """Open no more."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)

    async def _open(self, link: LinkConnection, offer: Signed[Offer]) -> ChannelBooks:
        continues = b""
        if self._succession is not None:
            await self._guard.watch(self._succession.learn(link, offer))
            continues = self._succession.head_to_continue()
        try:
            channel = await self._continue_or_start_afresh(link, offer, continues)
        except Unreachable:
            # Our ledger may hold the channel and theirs not: resuming it brings both together.
            self._life.close("a channel was left half open")
            raise
        self.books = ChannelBooks(channel, self._ledger.head(channel.message.channel))
        return self.books

    async def _continue_or_start_afresh(
        self, link: LinkConnection, offer: Signed[Offer], continues: bytes
    ) -> Signed[Channel]:
        opening = functools.partial(
            open_channel, link, offer, self._ledger, key=self._key, client_nonce=self._random_bytes(32)
        )
        if continues:
            try:
                return await self._guard.watch(opening(now_ms=self._now_ms, continues=continues))
            except Refused as refusal:
                if refusal.code != "unknown-channel":
                    raise
            # The countersignature that ended the channel may never have come to the provider's former key.
            await self._guard.watch(self._resume_former(link, continues))
            try:
                return await self._guard.watch(opening(now_ms=self._now_ms, continues=continues))
            except Refused as refusal:
                if refusal.code != "unknown-channel":
                    raise
                log.warning("%s does not go on from %s: %s", self._provider, continues.hex()[:16], refusal.message)
        return await self._guard.watch(opening(now_ms=self._now_ms))

    # -- resuming ------------------------------------------------------------------------------------------------

    async def resume(self, link: LinkConnection, *, every: bool = False) -> list[Reconciliation]:
        """Resume the current channel, and earlier ones that have something open; or `every` one. No order may be live.

        What changed, by channel; without `every`, `on_settled` is told. Raises what `resume_channel` does.
        """
        own = self._own()
        ours = self._key.public_key
        if not own and await recover_channels(link, self._ledger, provider=self._provider, client=ours):
            own = self._own()
            log.warning("%d channels with %s are back in the ledger", len(own), self._provider)
        current = own[-1] if own else None
        channels = [*await self._learned_former(link), *own]
        self.books = None
        if channels:
            # A write that changes nothing: once it is durable, so are all that were queued before it.
            await self._ledger.append(channels[-1])
        changes = []
        for channel in channels:
            if not every and channel is not current and self._is_settled(channel.message.channel):
                continue
            change = await self._resume_one(link, channel, is_current=channel is current, is_told=not every)
            if change is not None:
                changes.append(change)
        return changes

    async def _resume_one(
        self, link: LinkConnection, channel: Signed[Channel], *, is_current: bool, is_told: bool
    ) -> Reconciliation | None:
        """What changed; None where the provider does not know the channel any more."""
        channel_id = channel.message.channel
        before = standing_of(self._ledger, channel_id)
        seen = {number: usage for (of, number), usage in self._counted.items() if of == channel_id}
        try:
            books, change = await resume_channel(
                link, channel, self._ledger, key=self._key, delivered=seen, now_ms=self._now_ms
            )
        except Refused as refusal:
            if refusal.code not in ("unknown-channel", "channel-expired"):
                raise
            log.warning("%s does not know the channel %s any more", self._provider, channel_id.hex()[:16])
            return None
        for number in seen:
            del self._counted[(channel_id, number)]
        if is_current and not books.is_expired(self._now_ms()):
            self.books = books
        if is_told:
            self._on_settled([changes_since(self._ledger, channel_id, before, [change])])
        for dispute in change.disputed:
            self._guard.disputed(dispute, books)
        return change

    async def _resume_former(self, link: LinkConnection, head: bytes) -> None:
        """Resume the channel under a former key that ends at `head`, though nothing is open on it here."""
        for channel in self._former():
            if self._ledger.head(channel.message.channel).last_receipt_id == head:
                await self._resume_one(link, channel, is_current=False, is_told=True)

    async def _learned_former(self, link: LinkConnection) -> list[Signed[Channel]]:
        """Channels under the provider's former keys: what they left open is settled on this link."""
        offer = self._offer() if self._offer is not None else None
        if self._succession is None or offer is None or not offer.message.card:
            return []
        await self._succession.learn(link, offer)
        return self._former()

    def _is_settled(self, channel: bytes) -> bool:
        """True if nothing is known that may be left open on an earlier channel."""
        return not self._ledger.open_orders(channel) and self._ledger.head(channel).last_receipt_number > 0

    # -- what others tell ----------------------------------------------------------------------------------------

    def order_lost(self, channel: bytes, number: int, counted: Usage) -> None:
        """An order ended without a receipt: our own count of its answer, for when the channel is resumed."""
        self._counted[(channel, number)] = counted

    def disputes_exchanged(self, channel: bytes, exchanged: Exchanged) -> None:
        """Disputes of a channel moved without being asked for."""
        standing = standing_of(self._ledger, channel)
        moved = Reconciliation(channel, restored=list(exchanged.taken), sent=exchanged.sent)
        self._on_settled([changes_since(self._ledger, channel, standing, [moved])])
