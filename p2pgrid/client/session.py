"""The session with one provider: a link that is kept, the channel, orders in turn (docs/spec/session.md).

The channel is opened once and remembered in the ledger; on every new link it is resumed before anything is ordered.
Orders wait, first come first served, until the channel's books have room for them (proto.books).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from p2pgrid.client.background import log_end
from p2pgrid.client.batch import Batcher, BatchStream, SharedRequest
from p2pgrid.client.disputes import Disputes, Exchanged
from p2pgrid.client.exchanges import DisputedRecord, open_channel, request_cards, request_offer
from p2pgrid.client.order import OrderOwner, OrderStream
from p2pgrid.client.prompt_sizes import PromptSizes, Shape
from p2pgrid.client.resume import recover_channels, resume_channel
from p2pgrid.client.succession import Succession
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.desk.standing import ChannelChanges, changes_since, standing_of
from p2pgrid.errors import (
    InvalidRecord,
    LedgerError,
    P2pgridError,
    ProtocolViolation,
    Refused,
    RemoteError,
    Unreachable,
)
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.keeper import Backoff, Dial, KeeperState, LinkKeeper
from p2pgrid.proto.actions import Actions, Breach
from p2pgrid.proto.batch_buyer import Need
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.commitment import COMMITMENT_KEY_BYTES
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel, Offer, Usage
from p2pgrid.proto.order_states import BuyerState
from p2pgrid.proto.placement import place_batch, place_order
from p2pgrid.proto.reconcile import Reconciliation
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.request import RequestFields

log = logging.getLogger(__name__)

T = TypeVar("T")

_LINK_WAIT_S: Final = 3600.0
_BACKOFF: Final = Backoff(most_s=15.0)
_PASSING_CODES: Final = ("too-many-open-orders", "credit-exhausted")
"""What a receipt may change."""
_CLOCK_HINT: Final = "Set the clocks (NTP): this machine's, and the provider's."


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long and how many. Tests shorten the times."""

    queue: int = 256
    """Orders that may wait for a slot of one channel."""
    queue_timeout_s: float = 20.0
    link_timeout_s: float = 10.0
    """How long a request waits for a link to the only provider there is."""
    drain_s: float = 2.0
    """How long orders that are cancelled on closing may take to be settled."""
    first_token_timeout_s: float = 120.0
    shares_receipts: bool = True
    """Short unstreamed requests may share an order and its receipt, where the provider's offer allows it."""
    most_disputed: int = 3
    """Receipts that we dispute and the provider stands by, before it is dealt with no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What is to be ordered, the same for every provider."""

    endpoint: str
    body: bytes
    """Made by `metered_body`."""
    fields: RequestFields
    max_amount_pico: int | None = None
    shape: Shape | None = None
    """Of its prompt, where sizes can be learned."""
    whole: bool = False
    """The program wants the answer whole: it may share an order with others."""


class ProviderSession(OrderOwner):
    """All dealings with one provider. `aclose` ends them; orders that are open are then closed on the next resume."""

    def __init__(
        self,
        provider: PublicKey,
        dial: Dial,
        ledger: Ledger,
        *,
        key: SecretKey,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        rng: random.Random,
        limits: SessionLimits | None = None,
        succession: Succession | None = None,
        offer: Callable[[], Signed[Offer] | None] | None = None,
        evidence: EvidenceKeeper | None = None,
        has_channel: Callable[[bytes], bool] | None = None,
        on_quarantine: Callable[[str], None] | None = None,
        on_settled: Callable[[Sequence[ChannelChanges]], None] = lambda _: None,
    ) -> None:
        """With `succession`, channels under the provider's former keys are settled too. `offer`: what it sells now.

        `has_channel`: which channels (32-byte ids) on record are this process's; left out, all are.
        `on_quarantine` is called with the reason when the provider broke a rule on a link that it proved its own,
        `on_settled` with what an exchange changed that nobody asked for.
        """
        self.provider: Final = provider
        self.quarantine: str = ""
        """Why the provider is dealt with no more; empty while it is."""
        self._ledger = ledger
        self._evidence = evidence or EvidenceKeeper(ledger, now_ms)
        self._on_quarantine = on_quarantine
        self._on_settled = on_settled
        self._has_channel = has_channel or (lambda _: True)
        self._key = key
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._limits = limits or SessionLimits()
        self._succession = succession
        self._offer = offer
        self._dial = dial
        self._keeper = LinkKeeper(self._dial_and_tell, rng=rng, backoff=_BACKOFF, name=provider.peer_id)
        self._books: ChannelBooks | None = None
        self._orders: dict[OrderStream, Shape | None] = {}
        self._prompt_sizes = PromptSizes()
        self._batcher = Batcher(self._place_batch)
        self._counted: dict[tuple[bytes, int], Usage] = {}
        self._stored_offers: set[bytes] = set()
        self._link: LinkConnection | None = None
        """The link on which the channels are resumed."""
        self._error: P2pgridError | None = None
        self._ledger_failures = 0
        """In a row."""
        self._changed = asyncio.Event()
        self._opening: asyncio.Task[ChannelBooks] | None = None
        self._turn = asyncio.Lock()
        self._queued = 0
        self._closing: set[asyncio.Task[None]] = set()
        self.disputes: Final = Disputes(
            ledger,
            self._all_channels,
            self._books_of,
            now_ms=now_ms,
            keep_evidence=self.keep_evidence,
            guard=self._record_faults,
            on_exchanged=self._note_exchanged,
        )
        self._task = asyncio.get_running_loop().create_task(self._keep_settled(), name=f"session {provider}")
        self._task.add_done_callback(log_end)

    # -- for whoever buys ----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """True while an order can leave at once, or wait for nothing but a slot."""
        return self._link is not None and not self._link.retired.done()

    @property
    def is_down(self) -> bool:
        """True while the last attempt to reach the provider failed and the next is not yet due."""
        return not self.is_ready and self._keeper.state in (KeeperState.WAITING, KeeperState.BARRED)

    @property
    def link(self) -> LinkConnection | None:
        """The link while it is ready."""
        return self._link if self.is_ready else None

    def bar(self, reason: str) -> None:
        """Deal with the provider no more: something proves that it cheats."""
        self._set_quarantine(reason)

    @property
    def n_orders(self) -> int:
        """Orders that are not over."""
        return len(self._orders)

    async def ready(self, timeout_s: float, *, patient: bool = True) -> LinkConnection:
        """The link, everything settled on it. Raises RemoteError, or LedgerError where that is what keeps it back.

        Without patience, Unreachable comes as soon as a dial fails, and not only after the time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self.quarantine:
                        raise ProtocolViolation(f"{self.provider} is not dealt with any more: {self.quarantine}")
                    if self._link is not None and self.is_ready:
                        return self._link
                    if isinstance(self._error, LedgerError) and self._ledger_failures > 1:
                        raise self._error
                    if self.is_down and not patient:
                        raise TimeoutError
                    await self._wait_for_change()
        except TimeoutError:
            error = self._error or self._keeper.last_error
            if isinstance(error, LedgerError):
                raise error from None
            why = error.message if error else "no link could be made in time."
            raise Unreachable(f"{self.provider} is not there: {why}") from error

    async def order(
        self, offer: Signed[Offer], purchase: Purchase, timeout_s: float, *, patient: bool = True
    ) -> OrderStream | SharedRequest:
        """Place an order; the answer is read from what is returned.

        `timeout_s` and `patient` are about the wait for a link: see `ready`. Raises RemoteError and LedgerError.
        Refused before anything was sent: `busy` when no slot came free in time, and all codes of `place_order`.
        """
        if not self._queued and (placed := self._order_at_once(offer, purchase)) is not None:
            return placed
        if self._queued >= self._limits.queue:
            raise Refused("busy", f"{self._queued} requests already wait for {self.provider}.")
        self._queued += 1
        try:
            await self.ready(timeout_s, patient=patient)
            async with asyncio.timeout(self._limits.queue_timeout_s), self._turn:
                return await self._order_in_turn(offer, purchase, timeout_s)
        except TimeoutError:
            raise Refused(
                "busy",
                f"{self.provider} had no free slot within {self._limits.queue_timeout_s:g} s.",
                hint="What may be open at once grows with every receipt signed.",
            ) from None
        finally:
            self._queued -= 1

    async def request_offer(self, timeout_s: float) -> bytes:
        """The raw offer record over the link. Raises RemoteError."""
        return await request_offer(await self.ready(timeout_s))

    async def request_cards(self, timeout_s: float) -> bytes:
        """The raw cards over the link. Raises RemoteError."""
        return await request_cards(await self.ready(timeout_s))

    async def reconcile(self, timeout_s: float) -> list[Reconciliation]:
        """Settle everything with the provider now, once the orders that run have ended. What changed, by channel.

        New orders wait meanwhile. Raises RemoteError, LedgerError, and Refused (`busy`) where orders run for longer.
        """
        await self.ready(self._limits.link_timeout_s, patient=False)
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                while True:
                    await self._orders_over()
                    link = await self.ready(self._limits.link_timeout_s)
                    try:
                        changes = await self._record_faults(self._resume(link, every=True))
                        await self._exchange_disputes(link, changes)
                    except Unreachable:
                        if not link.closed.done():
                            raise
                    else:
                        return changes
        except TimeoutError:
            raise Refused(
                "busy",
                f"{len(self._orders)} orders of {self.provider} are still running after {timeout_s:g} s.",
                hint="Try again when they have ended.",
            ) from None

    async def aclose(self) -> None:
        """Cancel open orders, give them a moment to be settled, close the link."""
        open_orders = list(self._orders)
        for order in open_orders:
            order.cancel()
        if open_orders and self._limits.drain_s:
            await asyncio.wait([order.ended_future for order in open_orders], timeout=self._limits.drain_s)
        tasks = [self._task, *([self._opening] if self._opening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._link = None
        await self._keeper.aclose()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # -- orders ----------------------------------------------------------------------------------------------------

    def _order_at_once(self, offer: Signed[Offer], purchase: Purchase) -> OrderStream | SharedRequest | None:
        """The order, where nobody is in line and nothing is missing; None where it has to wait."""
        link, books = self.link, self._books
        if link is None or books is None or self.quarantine or self._turn.locked() or books.is_expired(self._now_ms()):
            return None
        try:
            return self._place(link, books, offer, purchase)
        except Refused as refusal:
            if refusal.code in _PASSING_CODES:
                return None
            raise

    async def _order_in_turn(
        self, offer: Signed[Offer], purchase: Purchase, timeout_s: float
    ) -> OrderStream | SharedRequest:
        while True:
            link = await self.ready(timeout_s)
            books = await self._usable_books(link, offer)
            if link is not self._link:
                continue
            try:
                return self._place(link, books, offer, purchase)
            except Refused as refusal:
                # A receipt makes room: for what is at risk, and for what its order did not cost of what was reserved.
                may_pass = {"too-many-open-orders": books.open_orders, "credit-exhausted": books.reserved_pico}
                if not may_pass.get(refusal.code):
                    raise
            await self._wait_for_change()

    def _place(
        self, link: LinkConnection, books: ChannelBooks, offer: Signed[Offer], purchase: Purchase
    ) -> OrderStream | SharedRequest:
        if purchase.whole and offer.message.batch.batch_requests > 1 and self._limits.shares_receipts:
            return self._place_short(link, books, offer, purchase)
        return self._place_alone(link, books, offer, purchase)

    def _place_short(
        self, link: LinkConnection, books: ChannelBooks, offer: Signed[Offer], purchase: Purchase
    ) -> OrderStream | SharedRequest:
        """Under an order with others, if the request is short and others are on their way."""
        fields, body = purchase.fields, purchase.body
        entry = offer.message.model_offer(fields.model)
        most = self._prompt_sizes.most(offer.id, purchase.shape, len(body))
        need = self._batcher.need_of(entry, fields, body, most) if entry is not None else None
        if need is None:
            return self._place_alone(link, books, offer, purchase)
        shared = self._batcher.ask(
            offer,
            fields,
            purchase.endpoint,
            body,
            need,
            max_amount_pico=purchase.max_amount_pico,
            now_ms=self._now_ms(),
        )
        if shared is not None:
            return shared
        order = self._place_alone(link, books, offer, purchase)
        self._batcher.note_alone(order)
        return order

    def _place_batch(
        self, offer: Signed[Offer], fields: RequestFields, endpoint: str, need: Need, close_s: float
    ) -> BatchStream:
        link, books = self.link, self._books
        if link is None or books is None:
            raise Refused("not-resumed", f"{self.provider} is not there.")
        commitment_key = self._random_bytes(COMMITMENT_KEY_BYTES)
        buyer, actions = place_batch(
            books,
            offer,
            fields,
            endpoint,
            need,
            key=self._key,
            commitment_key=commitment_key,
            now_ms=self._now_ms(),
            first_token_timeout_ms=int(self._limits.first_token_timeout_s * 1000),
        )
        batch = BatchStream(buyer, self._ledger, self, self._now_ms, self._unstored(offer), close_s)
        self._start(link, batch, actions, offer, commitment_key)
        return batch

    def _place_alone(
        self, link: LinkConnection, books: ChannelBooks, offer: Signed[Offer], purchase: Purchase
    ) -> OrderStream:
        commitment_key = self._random_bytes(COMMITMENT_KEY_BYTES)
        buyer, actions = place_order(
            books,
            offer,
            purchase.fields,
            purchase.endpoint,
            purchase.body,
            key=self._key,
            commitment_key=commitment_key,
            now_ms=self._now_ms(),
            first_token_timeout_ms=int(self._limits.first_token_timeout_s * 1000),
            max_amount_pico=purchase.max_amount_pico,
            most_prompt_tokens=self._prompt_sizes.most(offer.id, purchase.shape, len(purchase.body)),
        )
        order = OrderStream(buyer, self._ledger, self, self._now_ms, self._unstored(offer))
        self._start(link, order, actions, offer, commitment_key, purchase.shape)
        return order

    def _unstored(self, offer: Signed[Offer]) -> tuple[Signed[Offer], ...]:
        """The offer, if it has to be written with the order."""
        return () if offer.id in self._stored_offers else (offer,)

    def _start(
        self,
        link: LinkConnection,
        order: OrderStream,
        actions: Actions,
        offer: Signed[Offer],
        commitment_key: bytes,
        shape: Shape | None = None,
    ) -> None:
        signed = order.buyer.order
        try:
            stream = link.open_stream(order)
        except RemoteError:
            order.buyer.books.close_order(signed.message.order_number)
            raise
        self._stored_offers.add(offer.id)
        self._orders[order] = shape
        self._ledger.keep_request_key(signed, commitment_key)
        order.start(stream, actions)

    async def _usable_books(self, link: LinkConnection, offer: Signed[Offer]) -> ChannelBooks:
        books = self._books
        if books is not None and not books.is_expired(self._now_ms()):
            return books
        if self._opening is None or self._opening.done():
            # A task of its own: a program that leaves now must not leave a channel half open.
            self._opening = asyncio.create_task(self._open_channel(link, offer))
        return await asyncio.shield(self._opening)

    async def _open_channel(self, link: LinkConnection, offer: Signed[Offer]) -> ChannelBooks:
        continues = b""
        if self._succession is not None:
            await self._record_faults(self._succession.learn(link, offer))
            continues = self._succession.head_to_continue()
        try:
            channel = await self._open_or_start_afresh(link, offer, continues)
        except Unreachable:
            # Our ledger may hold the channel and theirs not: resuming it brings both together.
            self._close_link("a channel was left half open")
            raise
        self._books = ChannelBooks(channel, self._ledger.head(channel.message.channel))
        return self._books

    async def _open_or_start_afresh(
        self, link: LinkConnection, offer: Signed[Offer], continues: bytes
    ) -> Signed[Channel]:
        opening = functools.partial(
            open_channel, link, offer, self._ledger, key=self._key, client_nonce=self._random_bytes(32)
        )
        if continues:
            try:
                return await self._record_faults(opening(now_ms=self._now_ms, continues=continues))
            except Refused as refusal:
                if refusal.code != "unknown-channel":
                    raise
                log.warning("%s does not go on from %s: %s", self.provider, continues.hex()[:16], refusal.message)
        return await self._record_faults(opening(now_ms=self._now_ms))

    # -- what orders tell --------------------------------------------------------------------------------------------

    def receipt_signed(self, order: OrderStream) -> None:
        self._tell()

    def order_turn(self, order: OrderStream, number: int) -> None:
        for other in list(self._orders):
            if other.buyer.books is order.buyer.books and other.buyer.order.message.order_number == number:
                other.proceed()

    def keep_evidence(self, record: Record, reason: str) -> None:
        self._evidence.keep(self.provider, record, reason)

    def order_ended(self, order: OrderStream) -> None:
        buyer = order.buyer
        shape = self._orders.pop(order, None)
        signed = buyer.receipt.message if buyer.receipt is not None and buyer.dispute is None else None
        self._prompt_sizes.learn(buyer.order.message.offer, shape, signed)
        if buyer.state in (BuyerState.LOST, BuyerState.BREACHED) and buyer.usage.prompt_tokens:
            self._counted[(buyer.books.id, buyer.order.message.order_number)] = buyer.usage
        self._tell()

    def order_disputed(self, order: OrderStream, dispute: Signed[Dispute]) -> None:
        self._note_disputed(dispute, order.buyer.books)
        self._tell()

    def order_breached(self, order: OrderStream, breach: Breach) -> None:
        if breach.code == "clock-skew":
            self._error = Refused("clock-skew", breach.message, hint=_CLOCK_HINT)
            self._close_link(breach.message)
        else:
            self._set_quarantine(f"{breach.code}: {breach.message}")

    def order_cut(self, order: OrderStream) -> None:
        # Its receipt may be the chain's next: nothing more can be settled before the channel is resumed.
        self._close_link("an order's stream was cut")

    def ledger_failed(self, error: LedgerError) -> None:
        """Nothing that the books in memory say beyond the ledger was ever sent: go back to what the ledger has."""
        log.error("the ledger failed: %s", error)
        self._error = error
        self._ledger_failures += 1
        self._stored_offers.clear()
        self._books = None
        if self._link is not None:
            self._link.abort()
        self._tell()

    async def _dial_and_tell(self) -> LinkConnection:
        try:
            return await self._dial()
        finally:
            self._tell()

    # -- the link ----------------------------------------------------------------------------------------------------

    async def _keep_settled(self) -> None:
        """Resume the channels on every new link, before it is used."""
        while not self.quarantine:
            try:
                link = await self._keeper.link(_LINK_WAIT_S)
            except Unreachable:
                continue
            except ProtocolViolation as violation:
                # Whoever answered there proved no key: nothing of it is held against the provider for long.
                self._set_quarantine(violation.message, is_proven=False)
                return
            if link.retired.done():
                await asyncio.sleep(0)  # the keeper has yet to notice
                continue
            await self._orders_over()
            try:
                await self._record_faults(self._resume(link))
            except (P2pgridError, TimeoutError) as error:
                self._error = error if isinstance(error, P2pgridError) else Unreachable("resuming took too long.")
                log.warning("the channel with %s cannot be resumed: %s", self.provider, self._error)
                await link.aclose("the channel could not be resumed")
            else:
                self._error, self._ledger_failures = None, 0
                self._link = link
                self._tell()
                await self._exchange_disputes_until_retired(link)
                self._link = None
            self._tell()
        await self._keeper.aclose()

    async def _exchange_disputes(self, link: LinkConnection, changes: list[Reconciliation]) -> None:
        """Exchange all now, and add to `changes` what came of it."""
        exchanged = await self.disputes.exchange_all(link)
        for change in changes:
            if (said := exchanged.get(change.channel)) is not None:
                change.restored += said.taken
                change.sent += said.sent

    async def _exchange_disputes_until_retired(self, link: LinkConnection) -> None:
        keeping = asyncio.create_task(self.disputes.keep(link), name=f"disputes {self.provider}")
        keeping.add_done_callback(log_end)
        try:
            await asyncio.shield(link.retired)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _orders_over(self) -> None:
        """Wait for the orders on an earlier link: resuming would interrupt them."""
        for order in list(self._orders):
            await asyncio.shield(order.ended_future)

    async def _resume(self, link: LinkConnection, *, every: bool = False) -> list[Reconciliation]:
        """Resume the current channel, and earlier ones that have something open; or `every` one."""
        channels = [c for c in self._ledger.channels() if self._is_ours(c.message)]
        ours = self._key.public_key
        if not channels and await recover_channels(link, self._ledger, provider=self.provider, client=ours):
            channels = [c for c in self._ledger.channels() if self._is_ours(c.message)]
            log.warning("%d channels with %s are back in the ledger", len(channels), self.provider)
        now_ms = self._now_ms()
        current = channels[-1] if channels else None
        channels = [*await self._former_channels(link), *channels]
        self._books = None
        if channels:
            # A write that changes nothing: once it is durable, so are all that were queued before it.
            await self._ledger.append(channels[-1])
        changes = []
        for channel in channels:
            channel_id = channel.message.channel
            if not every and channel is not current and self._is_settled(channel_id):
                continue
            before = standing_of(self._ledger, channel_id)
            seen = {number: usage for (of, number), usage in self._counted.items() if of == channel_id}
            try:
                books, change = await resume_channel(
                    link, channel, self._ledger, key=self._key, delivered=seen, now_ms=self._now_ms
                )
            except Refused as refusal:
                if refusal.code not in ("unknown-channel", "channel-expired"):
                    raise
                log.warning("%s does not know the channel %s any more", self.provider, channel_id.hex()[:16])
                continue
            for number in seen:
                del self._counted[(channel_id, number)]
            if channel is current and not books.is_expired(now_ms):
                self._books = books
            changes.append(change)
            if not every:
                self._on_settled([changes_since(self._ledger, channel_id, before, [change])])
            for dispute in change.disputed:
                self._note_disputed(dispute, books)
        return changes

    def _note_exchanged(self, channel: bytes, exchanged: Exchanged) -> None:
        standing = standing_of(self._ledger, channel)
        moved = Reconciliation(channel, restored=list(exchanged.taken), sent=exchanged.sent)
        self._on_settled([changes_since(self._ledger, channel, standing, [moved])])

    def _is_settled(self, channel: bytes) -> bool:
        """True if nothing is known that may be left open on an earlier channel."""
        return not self._ledger.open_orders(channel) and self._ledger.head(channel).last_receipt_number > 0

    def _note_disputed(self, dispute: Signed[Dispute], books: ChannelBooks) -> None:
        message = dispute.message
        log.warning("receipt %d of %s is disputed: %s", message.receipt_number, self.provider, message.statement)
        if books.disputed >= self._limits.most_disputed:
            self._set_quarantine(
                f"{message.reason}: {books.disputed} of its receipts are disputed, the last because {message.statement}"
            )

    async def _former_channels(self, link: LinkConnection) -> list[Signed[Channel]]:
        """Channels under the provider's former keys: what they left open is settled on this link."""
        offer = self._offer() if self._offer is not None else None
        if self._succession is None or offer is None or not offer.message.card:
            return []
        await self._succession.learn(link, offer)
        return self._own_former_channels()

    def _own_former_channels(self) -> list[Signed[Channel]]:
        former = self._succession.former_channels() if self._succession is not None else []
        return [one for one in former if self._has_channel(one.message.channel)]

    def _all_channels(self) -> list[Signed[Channel]]:
        """With the provider under any of its keys that is known, oldest first."""
        return [*self._own_former_channels(), *(c for c in self._ledger.channels() if self._is_ours(c.message))]

    def _books_of(self, channel: bytes) -> ChannelBooks | None:
        return self._books if self._books is not None and self._books.id == channel else None

    def _is_ours(self, channel: Channel) -> bool:
        is_between_us = channel.provider == self.provider.raw and channel.client == self._key.public_key.raw
        return is_between_us and self._has_channel(channel.channel)

    async def _record_faults(self, exchange: Awaitable[T]) -> T:
        """Await an exchange. What the provider signed wrongly is kept as evidence, and ends the dealings with it."""
        try:
            return await exchange
        except InvalidRecord as fault:
            if fault.code == "clock-skew":
                raise Refused(fault.code, fault.message, hint=_CLOCK_HINT) from fault
            if isinstance(fault, DisputedRecord):
                self.keep_evidence(fault.record, f"{fault.code}: {fault.message}")
            self._set_quarantine(f"{fault.code}: {fault.message}")
            raise ProtocolViolation(f"{self.provider} broke the rules: {fault.message}") from fault
        except ProtocolViolation as violation:
            self._set_quarantine(violation.message)
            raise
        except LedgerError as error:
            self.ledger_failed(error)
            raise

    def _set_quarantine(self, reason: str, *, is_proven: bool = True) -> None:
        if not self.quarantine:
            log.error("%s is dealt with no more: %s", self.provider, reason)
            self.quarantine = reason
            if is_proven and self._on_quarantine is not None:
                self._on_quarantine(reason)
            self._close_link("a rule was broken")
            self._tell()

    def _close_link(self, reason: str) -> None:
        if self._link is not None and not self._link.closed.done():
            task = asyncio.get_running_loop().create_task(self._link.aclose(reason))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _tell(self) -> None:
        self._changed.set()  # who waits now is woken, whatever follows
        self._changed.clear()

    async def _wait_for_change(self) -> None:
        await self._changed.wait()
