"""The channels that are open with clients, each restored from the ledger, and what is live on them.

Receipts of a channel form one chain, and the client signs them in the chain's order. Two things follow, and are kept
here: receipts leave in the order of their numbers, whichever stream they leave on; and where an accepted order's stream
is lost, the link goes too, since the client could sign nothing that comes after it. Such an order is suspended: it has
no receipt before the channel is resumed, which brings both sides to one state, or until the client was away for long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from p2pgrid.errors import LedgerError, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.books import Arrears
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.dispute_exchange import note_answer, note_held
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.reconcile import interrupt_open_orders
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.restore import restore_books, restore_credit
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.open_channel import LiveOrder, OpenChannel

log = logging.getLogger(__name__)

_WATCH_INTERVAL_S: Final = 600.0


class Channels:
    """All channels of the provider."""

    def __init__(
        self,
        ledger: Ledger,
        key: SecretKey,
        limits: ProviderLimits,
        now_ms: Callable[[], int],
        former_keys: Sequence[SecretKey] = (),
    ) -> None:
        """Channels under `former_keys` are resumed, with those keys' signatures, and take no new order."""
        self._ledger = ledger
        self._key = key
        self._keys = {one.public_key.raw: one for one in (*former_keys, key)}
        self._limits = limits
        self._now_ms = now_ms
        self._channels: dict[bytes, OpenChannel] = {}
        self._by_client: dict[bytes, list[OpenChannel]] = {}
        self._repairs: set[asyncio.Task[None]] = set()

    async def restore(self) -> int:
        """Read every channel from the ledger; orders that a crash left open are suspended.

        Returns how many there are. Raises LedgerError. Nothing may be served before it has returned.
        """
        suspended = 0
        for signed in self._ledger.channels():
            key = self._keys.get(signed.message.provider)
            if key is None:
                continue  # a client's node with the same ledger buys on these
            books = restore_books(self._ledger, signed, Role.PROVIDER)
            self._add(OpenChannel(books, None, self._now_ms()))
            suspended += len(self._ledger.open_orders(books.id))
        return suspended

    def refresh(self, channel: OpenChannel) -> None:
        """Take the books from the ledger, with the order numbers that were used besides. Raises LedgerError."""
        books = restore_books(self._ledger, channel.books.signed, Role.PROVIDER)
        books.last_order_number = max(books.last_order_number, channel.books.last_order_number)
        books.arrears = channel.books.arrears
        channel.books = books

    def note_held(self, channel: OpenChannel, ids: Sequence[bytes]) -> None:
        """Both sides hold these disputes and answers: they may be mentioned. Raises LedgerError."""
        note_held(channel.books, self._ledger, ids)

    def note_answer(self, channel: OpenChannel, dispute: Dispute, answer: Answer) -> None:
        """A dispute of the channel is answered: what was at stake may be no more. Raises LedgerError."""
        note_answer(channel.books, self._ledger, dispute, answer)

    def note_settled(self, channel: OpenChannel) -> None:
        """Statements or payments of the channel are on record: what they free is free. Raises LedgerError."""
        restore_credit(self._ledger, channel.books)

    def note_arrears(self, channel: OpenChannel, arrears: Arrears | None) -> None:
        """The channel's client is behind with a payment from a time on, or is no more."""
        channel.books.arrears = arrears

    def key_of(self, channel: OpenChannel) -> SecretKey:
        """Ours in that channel."""
        return self._keys[channel.books.provider.raw]

    def channels_of(self, client: PublicKey) -> list[Signed[Channel]]:
        """The client's channels here, oldest first."""
        return [one.books.signed for one in self.of_client(client)]

    def of_client(self, client: PublicKey) -> Sequence[OpenChannel]:
        """The same, as they are kept."""
        return self._by_client.get(client.raw, ())

    async def close_overdue(self) -> int:
        """Make receipts for suspended orders of clients that were away for `limits.away_s`, as if they had resumed.

        Until then there are none: the client may hold vouchers that we lack, and after a loss of our ledger's end even
        receipts. Returns how many were made. Raises LedgerError.
        """
        since_ms = self._now_ms() - int(self._limits.away_s * 1000)
        made_in_all = 0
        for channel in list(self._channels.values()):
            is_away = channel.link is None or channel.link.closed.done()
            if channel.live or channel.broken or not is_away or channel.away_since_ms > since_ms:
                continue
            if not channel.is_held:
                continue
            if not self._ledger.open_orders(channel.books.id):
                continue
            channel.link, now_ms = None, self._now_ms()
            await self._ledger.append(channel.books.signed)
            if not channel.is_held:
                continue
            self.refresh(channel)
            made = interrupt_open_orders(self._ledger, channel.books, key=self.key_of(channel), now_ms=now_ms)
            await self._ledger.append(*made)
            made_in_all += len(made)
        return made_in_all

    async def watch(self) -> None:
        """Close what is overdue, now and again, until cancelled."""
        while True:
            await asyncio.sleep(min(self._limits.away_s, _WATCH_INTERVAL_S))
            try:
                made = await self.close_overdue()
            except LedgerError as error:
                log.error("orders of clients that are away cannot be closed: %s", error)
                continue
            if made:
                log.info("%d orders of clients that stayed away were closed", made)

    def __iter__(self) -> Iterator[OpenChannel]:
        return iter(self._channels.values())

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def live_orders(self) -> list[LiveOrder]:
        """Every accepted order that has a stream and no countersigned receipt."""
        return [order for channel in self._channels.values() for order in channel.live]

    @property
    def is_broken(self) -> bool:
        """True while the ledger has failed and not yet come back."""
        return bool(self._repairs)

    def find(self, channel_id: bytes, client: PublicKey) -> OpenChannel:
        """The client's channel of that id. Raises Refused (`unknown-channel`): also for another client's channel."""
        channel = self._channels.get(channel_id)
        if channel is None or channel.books.client != client:
            raise Refused("unknown-channel", "the client has no such channel here.", hint="Resume it, or open one.")
        return channel

    def get(self, channel_id: bytes) -> OpenChannel | None:
        """The channel of that id, whoever the client is."""
        return self._channels.get(channel_id)

    def is_party(self, channel_id: bytes, client: PublicKey) -> bool:
        """True for the client's own channel."""
        channel = self._channels.get(channel_id)
        return channel is not None and channel.books.client == client

    def has_client(self, client: PublicKey) -> bool:
        """True if any channel is the client's."""
        return client.raw in self._by_client

    def find_current(self, channel_id: bytes, client: PublicKey) -> OpenChannel:
        """As `find`, for a new order. Raises Refused (`channel-expired`) where the channel is under a former key."""
        channel = self.find(channel_id, client)
        if channel.books.provider != self._key.public_key:
            raise Refused(
                "channel-expired",
                "the channel is under a key that this provider uses no more.",
                hint="Open a channel that continues it.",
            )
        return channel

    def own_key(self, provider: bytes) -> PublicKey:
        """The key of ours that a channel names, this one or a former one; this one where it names a stranger's."""
        return self._keys.get(provider, self._key).public_key

    def check_head(self, head: bytes, client: PublicKey) -> None:
        """Raises Refused (`unknown-channel`) unless `head` ends a settled channel of the client's under a former key,
        and no other channel goes on from it."""
        mine = [channel for channel in self._channels.values() if channel.books.client == client]
        former = [channel for channel in mine if channel.books.provider != self._key.public_key]
        ends = [
            channel for channel in former if channel.books.last_receipt_id == head and not channel.books.open_orders
        ]
        if not ends or any(channel.books.terms.continues == head for channel in mine):
            raise Refused(
                "unknown-channel",
                "no channel of the client's that ended here has that head.",
                hint="Resume the channel under the former key first, or open one that continues nothing.",
            )

    def check_room(self, client: PublicKey) -> None:
        """Raises Refused (`too-many-channels`, `busy`) if the client may open no further channel now."""
        if len(self._channels) >= self._limits.channels:
            raise Refused("busy", "this provider takes no more channels now.")
        if len(self.of_client(client)) < self._limits.channels_per_client:
            return
        now_ms = self._now_ms()
        own = self._key.public_key
        mine = [
            channel
            for channel in self.of_client(client)
            if channel.books.provider == own and not channel.books.is_expired(now_ms)
        ]
        if len(mine) >= self._limits.channels_per_client:
            raise Refused(
                "too-many-channels", f"the client has {len(mine)} channels here already.", hint="Resume one of them."
            )

    def open(self, signed: Signed[Channel], link: LinkConnection | None = None) -> OpenChannel:
        """Take on a channel that both have signed and that is in the ledger; one that is open already stays.

        `link` is where it was opened just now; left out, it has to be resumed.
        """
        known = self._channels.get(signed.message.channel)
        if known is not None:
            return known
        return self._add(OpenChannel(restore_books(self._ledger, signed, Role.PROVIDER), link, self._now_ms()))

    def ledger_failed(self, channel: OpenChannel, error: LedgerError) -> None:
        """A record of the channel could not be made durable: end what runs on it, and go back to what the ledger has.

        Until that is possible the channel is refused, and new orders on all others too: their records would fail.
        """
        if channel.broken is not None:
            return
        log.error("the ledger failed: %s", error)
        channel.broken, channel.link = error, None
        for order in list(channel.live):
            order.abandon(error)
        repair = asyncio.get_running_loop().create_task(self._repair(channel), name="ledger repair")
        self._repairs.add(repair)
        repair.add_done_callback(self._repaired)

    async def aclose(self) -> None:
        """Give up the repairs."""
        for repair in self._repairs:
            repair.cancel()
        await asyncio.gather(*self._repairs, return_exceptions=True)

    def _add(self, channel: OpenChannel) -> OpenChannel:
        self._channels[channel.books.id] = channel
        self._by_client.setdefault(channel.books.client.raw, []).append(channel)
        return channel

    def _remove(self, channel: OpenChannel) -> None:
        del self._channels[channel.books.id]
        others = self._by_client[channel.books.client.raw]
        others.remove(channel)
        if not others:
            del self._by_client[channel.books.client.raw]

    async def _repair(self, channel: OpenChannel) -> None:
        while channel.broken is not None:
            await asyncio.sleep(self._limits.ledger_retry_s)
            try:
                # First a write that changes nothing: all that was queued before it has then succeeded or failed.
                await self._ledger.append(channel.books.signed)
                self.refresh(channel)
            except LedgerError as error:
                log.error("the ledger still fails: %s", error)
                continue
            channel.broken = None
            log.info("the ledger is back; channel %s goes on", channel.books.id.hex()[:16])

    def _repaired(self, repair: asyncio.Task[None]) -> None:
        self._repairs.discard(repair)
        if not repair.cancelled() and (error := repair.exception()) is not None:
            log.error("a channel could not be repaired and stays closed", exc_info=error)
