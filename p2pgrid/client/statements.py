"""The statements with one provider: settled when they are due, when the provider has news, and when a person asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from p2pgrid.client.disputes import Disputes
from p2pgrid.client.exchanges import exchange
from p2pgrid.client.statement_exchange import ChannelSettled, StatementClient
from p2pgrid.client.wanted import Wanted
from p2pgrid.errors import LedgerError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.printable import printable
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.wire.base import MAX_COMPARED, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.settlement import SettlementNews
from p2pgrid.settlement.statements.drafting import is_due
from p2pgrid.settlement.wiring import Buying

log = logging.getLogger(__name__)

MOST_CHANNELS: Final = 16
"""Of one provider: the last ones."""
MOST_STATEMENTS: Final = 12
"""Of a channel in one go: a period may end early, where a rate of VAT changes."""
CHECK_INTERVAL_S: Final = 3600.0
_QUIET: Final = frozenset({"not-due", "nothing-happened", "stated-already"})
"""Why there is no statement, and nobody need be told."""


_INVOICE_PAUSE_S: Final = 0.7
_INVOICE_ROUNDS: Final = 20


class Statements:
    """One provider's. `keep` runs while there is a link; `settle` does it now."""

    def __init__(
        self,
        ledger: Ledger,
        channels: Callable[[], list[Signed[Channel]]],
        disputes: Disputes,
        *,
        key: SecretKey,
        buying: Buying,
        now_ms: Callable[[], int],
        keep_evidence: Callable[[Record, str], None],
        guard: Callable[[Awaitable[Any]], Awaitable[Any]],
        offer: Callable[[], Signed[Offer] | None] = lambda: None,
        on_signed: Callable[[Signed[Statement]], None] = lambda _: None,
    ) -> None:
        """`channels`: all with the provider, oldest first. `offer`: what it sells by now.

        `guard` awaits an exchange, and sees to what the provider did wrong. `on_signed` with every statement that both
        have signed.
        """
        self._ledger = ledger
        self._channels = channels
        self._disputes = disputes
        self._hooks = buying.hooks
        self._now_ms = now_ms
        self._guard = guard
        self._client = StatementClient(
            ledger,
            key,
            details=buying.details,
            hooks=buying.hooks,
            agreed=buying.agreed,
            now_ms=now_ms,
            keep_evidence=keep_evidence,
            offer=offer,
            on_signed=on_signed,
        )
        self._turn = asyncio.Lock()
        self._wanted = Wanted()
        self._told: dict[bytes, str] = {}
        """What was last logged of a channel, so that it is said once."""

    async def settle(
        self,
        link: LinkConnection,
        channel: Signed[Channel],
        *,
        is_wanted: bool,
        until_day: int = 0,
        accepts_due: bool = False,
        asks: bool = True,
    ) -> ChannelSettled:
        """Bring records together, sign what is due (or wanted), fetch invoices. Raises RemoteError, LedgerError.

        `until_day`: the last day of a period that is wanted, by the provider's calendar; 0: up to now. `accepts_due`:
        sign also what the provider had signed before and is due within a day.
        Where the two sides differ, disputes and records are exchanged once more first: it may have been in between.
        Without `asks` the provider is asked for a statement only where this side sees that one is due.
        """
        async with self._turn:
            done: ChannelSettled = await self._guard(
                self._settle(link, channel, is_wanted, until_day, asks, accepts_due)
            )
            return done

    async def wait_for_invoices(
        self, link: LinkConnection, channel: Signed[Channel], signed: Sequence[Signed[Statement]], done: ChannelSettled
    ) -> bool:
        """Until the invoices of statements just signed are here; the provider makes them in some seconds.

        False where they are not by then: they come by themselves, later. Raises RemoteError, LedgerError.
        """
        wanted = {one.id for one in signed if one.message.gross_cents}
        for _ in range(_INVOICE_ROUNDS):
            invoices = self._ledger.settlement(Invoice, channel.message.channel)
            if wanted <= {one.message.statement for one in invoices}:
                return True
            await asyncio.sleep(_INVOICE_PAUSE_S)
            async with self._turn:
                await self._guard(self._fetch(link, channel, done))
        return False

    async def keep(self, link: LinkConnection) -> None:
        """Settle all, then whenever the provider has news, and every hour what is due; until cancelled."""
        self._want_live()
        others = [
            asyncio.create_task(self._watch(link), name="statements: news"),
            asyncio.create_task(self._tick(), name="statements: due"),
        ]
        try:
            while True:
                await self._wanted.wait()
                try:
                    channels = self._channels()
                except LedgerError as error:
                    log.error("nothing is settled with %s until the ledger can be read: %s", link.name, error.message)
                    continue  # what is wanted stays wanted: it is looked at again with the next news, or the next hour
                wanted = self._wanted.take()
                for channel in channels:
                    if channel.message.channel in wanted:
                        await self._try(link, channel, asks=wanted[channel.message.channel])
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def soon(self, channel: bytes) -> None:
        """Bring a channel's records together as soon as there is a link: this side has something new."""
        self._wanted.add(channel)

    def all_channels(self) -> list[Signed[Channel]]:
        """With the provider under any of its keys, oldest first. Raises LedgerError."""
        return self._channels()

    def live_channels(self) -> list[Signed[Channel]]:
        """The last ones with the provider in which something was bought. Raises LedgerError."""
        live = [c for c in self._channels() if self._ledger.head(c.message.channel).last_receipt_number]
        return live[-MOST_CHANNELS:]

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _settle(
        self,
        link: LinkConnection,
        channel: Signed[Channel],
        is_wanted: bool,
        until_day: int,
        asks: bool,
        accepts_due: bool = False,
    ) -> ChannelSettled:
        done = ChannelSettled(channel.message.channel)
        # One moment for all that follow one another, or there would always be a few milliseconds to state.
        end = {"until_ms": self._now_ms() if is_wanted else 0, "until_day": until_day}
        for attempt in (1, 2):
            if is_wanted or asks or attempt == 2:
                await self._disputes.exchange(link, channel)
            await self._client.bring_together(link, channel, done)
            if not (is_wanted or asks or done.to_judge) and await is_due(self._ledger, channel, now_ms=self._now_ms()):
                await self._disputes.exchange(link, channel)
                asks = True
            if is_wanted or asks or done.to_judge:
                for _ in range(MOST_STATEMENTS):
                    if not await self._client.state(
                        link, channel, done, is_wanted=is_wanted, accepts_due=accepts_due, **end
                    ):
                        break
            if not done.differences:
                break
        await self._client.fetch_documents(link, channel, done)
        return done

    async def _fetch(self, link: LinkConnection, channel: Signed[Channel], done: ChannelSettled) -> None:
        await self._client.bring_together(link, channel, done)
        await self._client.fetch_documents(link, channel, done)

    async def _try(self, link: LinkConnection, channel: Signed[Channel], *, asks: bool) -> None:
        channel_id = channel.message.channel
        try:
            done = await self.settle(link, channel, is_wanted=False, asks=asks)
        except P2pgridError as error:
            loud = isinstance(error, LedgerError | ProtocolViolation)
            level = logging.ERROR if loud else logging.INFO
            self._tell(channel_id, level, f"could not be settled: {error.message}")
            if isinstance(error, Refused) and error.code == "busy":
                self._wanted.add_later(channel_id, has_news=asks)
            return
        for statement in done.statements:
            cents = statement.message.gross_cents
            log.info("statement %d with %s is signed: %d cents", statement.message.statement_number, link.name, cents)
        if done.differences:
            fields = ", ".join(dict.fromkeys(one.field for one in done.differences))
            text = f"is stated differently by the provider ({fields}): p2pgrid settle shows it"
            self._tell(channel_id, logging.WARNING, text)
        elif done.waiting:
            self._tell(channel_id, logging.WARNING, done.waiting[0])
        elif done.nothing is not None and done.nothing.code not in _QUIET:
            self._tell(channel_id, logging.WARNING, f"has no statement: {done.nothing.message}")

    def _tell(self, channel: bytes, level: int, text: str) -> None:
        if self._told.get(channel) != text:
            self._told[channel] = text
            log.log(level, "channel %s %s", channel.hex()[:16], printable(text))

    async def _watch(self, link: LinkConnection) -> None:
        try:
            async with exchange(link, max_messages=MAX_COMPARED) as talk:
                talk.send(Kind.SETTLE_WATCH)
                while True:
                    news = parse_frame(await talk.expect(Kind.SETTLE_NEWS, timeout_s=None), SettlementNews)
                    if len(self._wanted) >= MAX_COMPARED:
                        raise ProtocolViolation("it has news of more channels than anybody has with it.")
                    self._wanted.add(news.channel, has_news=True)
        except P2pgridError as error:
            log.info("%s tells of no statements: %s", link.name, error.message)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self._want_live()

    def _want_live(self) -> None:
        try:
            for channel in self.live_channels():
                self._wanted.add(channel.message.channel)
        except LedgerError as error:
            log.error("what is due cannot be seen in the ledger: %s", error.message)
        self._wanted.wake()
