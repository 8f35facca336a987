"""The session with one provider: a link that is kept, its channels, orders in turn (docs/spec/session.md).

The parts can be read alone: `link_life` (the link, and whether the provider is dealt with), `faults` (what it did
wrong), `channels` (opened, resumed), `open_orders` (placed, under way) and `disputes`. Here they are put together, and
here orders wait, first come first served, until the channel's books have room for them (proto.books).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from p2pgrid.client.background import log_end
from p2pgrid.client.batch import SharedRequest
from p2pgrid.client.channels import ProviderChannels
from p2pgrid.client.disputes import Disputes
from p2pgrid.client.exchanges import request_cards, request_offer
from p2pgrid.client.faults import FaultGuard
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.link_life import LinkLife
from p2pgrid.client.open_orders import OpenOrders
from p2pgrid.client.order import OrderStream
from p2pgrid.client.purchase import Purchase
from p2pgrid.client.statements import Statements
from p2pgrid.client.succession import Succession
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.desk.standing import ChannelChanges
from p2pgrid.errors import LedgerError, Refused, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.keeper import Dial
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.reconcile import Reconciliation
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.wiring import Buying

_PASSING_CODES: Final = ("too-many-open-orders", "credit-exhausted")
"""What a receipt may change."""


class ProviderSession:
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
        on_signed: Callable[[Signed[Statement]], None] = lambda _: None,
        watch_offer: Callable[[LinkConnection], Coroutine[Any, Any, None]] | None = None,
        buying: Buying | None = None,
    ) -> None:
        """With `succession`, channels under the provider's former keys are settled too. `offer`: what it sells now.

        `has_channel`: which channels (32-byte ids) on record are this process's; left out, all are.
        `on_quarantine` is called with the reason when the provider broke a rule on a link that it proved its own,
        `on_settled` with what an exchange changed that nobody asked for, `on_signed` with every statement that both
        have signed. `watch_offer` runs while a link is used.
        `buying` is what statements are settled with; left out, none are.
        """
        self.provider: Final = provider
        self._now_ms = now_ms
        self._limits = limits or SessionLimits()
        self.life: Final = LinkLife(provider, dial, rng=rng)
        """Whether the provider is there, and dealt with."""
        self._guard = FaultGuard(
            provider,
            self.life,
            evidence or EvidenceKeeper(ledger, now_ms),
            most_disputed=self._limits.most_disputed,
            on_quarantine=on_quarantine,
            on_ledger_failed=self._ledger_failed,
        )
        self._channels = ProviderChannels(
            provider,
            ledger,
            self.life,
            self._guard,
            key=key,
            now_ms=now_ms,
            random_bytes=random_bytes,
            succession=succession,
            offer=offer,
            has_channel=has_channel,
            on_settled=on_settled,
        )
        self._orders = OpenOrders(
            ledger,
            self.life,
            self._guard,
            self._channels,
            key=key,
            now_ms=now_ms,
            random_bytes=random_bytes,
            limits=self._limits,
        )
        self.disputes: Final = Disputes(
            ledger,
            self._channels.all,
            self._channels.books_of,
            now_ms=now_ms,
            keep_evidence=self._guard.keep_evidence,
            guard=self._guard.watch,
            on_exchanged=self._channels.disputes_exchanged,
        )
        self.statements: Final = Statements(
            ledger,
            self._channels.all,
            self.disputes,
            key=key,
            buying=buying or Buying(),
            now_ms=now_ms,
            keep_evidence=self._guard.keep_evidence,
            guard=self._guard.watch,
            offer=offer or (lambda: None),
            on_signed=on_signed,
        )
        self._settles = buying is not None
        self._watch_offer = watch_offer
        self._turn = asyncio.Lock()
        self._queued = 0
        keeping = self.life.keep(self._settle, self._listen_until_retired)
        self._task = asyncio.get_running_loop().create_task(keeping, name=f"session {provider}")
        self._task.add_done_callback(log_end)

    # -- how it stands -------------------------------------------------------------------------------------------

    @property
    def link(self) -> LinkConnection | None:
        """The link while it is ready."""
        return self.life.link

    @property
    def quarantine(self) -> str:
        """Why the provider is dealt with no more; empty while it is."""
        return self.life.quarantine

    @property
    def n_orders(self) -> int:
        """Orders that are not over."""
        return self._orders.n_orders

    # -- for whoever buys ----------------------------------------------------------------------------------------

    async def ready(self, timeout_s: float, *, patient: bool = True) -> LinkConnection:
        """The link, everything settled on it: see `LinkLife.ready`. Raises RemoteError, LedgerError."""
        return await self.life.ready(timeout_s, patient=patient)

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
            await self.life.ready(timeout_s, patient=patient)
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
        return await request_offer(await self.life.ready(timeout_s))

    async def request_cards(self, timeout_s: float) -> bytes:
        """The raw cards over the link. Raises RemoteError."""
        return await request_cards(await self.life.ready(timeout_s))

    async def reconcile(self, timeout_s: float) -> list[Reconciliation]:
        """Settle everything with the provider now, once the orders that run have ended. What changed, by channel.

        New orders wait meanwhile. Raises RemoteError, LedgerError, and Refused (`busy`) where orders run for longer.
        """
        await self.life.ready(self._limits.link_timeout_s, patient=False)
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                while True:
                    await self._orders.over()
                    link = await self.life.ready(self._limits.link_timeout_s)
                    try:
                        changes = await self._guard.watch(self._channels.resume(link, every=True))
                        await self._exchange_disputes(link, changes)
                    except Unreachable:
                        if not link.closed.done():
                            raise
                    else:
                        return changes
        except TimeoutError:
            raise Refused(
                "busy",
                f"{self.n_orders} orders of {self.provider} are still running after {timeout_s:g} s.",
                hint="Try again when they have ended.",
            ) from None

    def bar(self, reason: str) -> None:
        """Deal with the provider no more: something proves that it cheats."""
        self._guard.bar(reason)

    async def aclose(self) -> None:
        """Cancel open orders, give them a moment to be settled, close the link."""
        await self._orders.cancel(self._limits.drain_s)
        self._task.cancel()
        await asyncio.gather(self._task, self._channels.aclose(), return_exceptions=True)
        await self.life.aclose()

    # -- orders in turn ------------------------------------------------------------------------------------------

    def _order_at_once(self, offer: Signed[Offer], purchase: Purchase) -> OrderStream | SharedRequest | None:
        """The order, where nobody is in line and nothing is missing; None where it has to wait."""
        life = self.life
        link, books = life.link, self._channels.books
        if link is None or books is None or life.quarantine or self._turn.locked() or books.is_expired(self._now_ms()):
            return None
        try:
            return self._orders.place(link, books, offer, purchase)
        except Refused as refusal:
            if refusal.code in _PASSING_CODES:
                return None
            raise

    async def _order_in_turn(
        self, offer: Signed[Offer], purchase: Purchase, timeout_s: float
    ) -> OrderStream | SharedRequest:
        while True:
            link = await self.life.ready(timeout_s)
            books = await self._channels.usable(link, offer)
            if not self.life.is_current(link):
                continue
            try:
                return self._orders.place(link, books, offer, purchase)
            except Refused as refusal:
                # A receipt makes room: for what is at risk, and for what its order did not cost of what was reserved.
                may_pass = {"too-many-open-orders": books.open_orders, "credit-exhausted": books.reserved_pico}
                if refusal.code == "credit-exhausted" and self._channels.take_settled(books):
                    continue
                if not may_pass.get(refusal.code):
                    raise
            await self.life.changed()

    # -- on every new link ---------------------------------------------------------------------------------------

    async def _settle(self, link: LinkConnection) -> None:
        """Resume the channels, before the link is used."""
        await self._orders.over()
        await self._guard.watch(self._channels.resume(link))

    async def _listen_until_retired(self, link: LinkConnection) -> None:
        """Disputes are exchanged, and the provider's offer is watched, for as long as the link is used."""
        tasks = [asyncio.create_task(self.disputes.keep(link), name=f"disputes {self.provider}")]
        if self._settles:
            tasks.append(asyncio.create_task(self.statements.keep(link), name=f"statements {self.provider}"))
        if self._watch_offer is not None:
            tasks.append(asyncio.create_task(self._watch_offer(link), name=f"offer of {self.provider}"))
        for task in tasks:
            task.add_done_callback(log_end)
        try:
            await asyncio.shield(link.retired)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _exchange_disputes(self, link: LinkConnection, changes: list[Reconciliation]) -> None:
        """Exchange all now, and add to `changes` what came of it."""
        exchanged = await self.disputes.exchange_all(link)
        for change in changes:
            if (said := exchanged.get(change.channel)) is not None:
                change.restored += said.taken
                change.sent += said.sent

    def _ledger_failed(self, error: LedgerError) -> None:
        """Nothing that the books in memory say beyond the ledger was ever sent: go back to what the ledger has."""
        self._orders.forget_stored()
        self._channels.books = None
        self.life.ledger_failed(error)
