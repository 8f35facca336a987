"""The client's half of exchanging disputes with one provider (docs/spec/disputes.md, section 3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.client.exchanges import DisputedRecord, Exchange, exchange
from p2pgrid.client.wanted import Wanted
from p2pgrid.errors import InvalidRecord, LedgerError, P2pgridError, ProtocolViolation, Refused, RemoteError
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.printable import printable
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.dispute import Answer
from p2pgrid.proto.dispute_exchange import (
    CONFLICT,
    MAX_DISPUTE_BYTES,
    Checked,
    Said,
    check_sent,
    note_held,
    page_of,
    record_of,
)
from p2pgrid.proto.dispute_rules import DAY_MS
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Role, Signed, parse_record
from p2pgrid.proto.wire.base import MAX_COMPARED, MAX_NUMBER, parse_frame
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews
from p2pgrid.proto.wire.kinds import Kind

log = logging.getLogger(__name__)

MOST_CHANNELS: Final = 16
"""Of one provider: the last ones in which something may still be disputed or answered."""
_MAX_WAITING_BYTES: Final = MAX_COMPARED * MAX_DISPUTE_BYTES


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What one exchange brought."""

    taken: tuple[Said, ...]
    sent: int


class Disputes:
    """The disputes with one provider. `keep` runs while there is a link; `exchange` does it now."""

    def __init__(
        self,
        ledger: Ledger,
        channels: Callable[[], list[Signed[Channel]]],
        books: Callable[[bytes], ChannelBooks | None],
        *,
        now_ms: Callable[[], int],
        keep_evidence: Callable[[Record, str], None],
        guard: Callable[[Awaitable[Any]], Awaitable[Any]],
        on_exchanged: Callable[[bytes, Exchanged], None] = lambda _channel, _exchanged: None,
    ) -> None:
        """`channels`: all with the provider, oldest first. `books`: of a channel in use.

        `guard` awaits an exchange, and sees to what the provider did wrong. `on_exchanged` is told what an exchange
        moved that `keep` began by itself.
        """
        self._ledger = ledger
        self._channels = channels
        self._books = books
        self._now_ms = now_ms
        self._keep_evidence = keep_evidence
        self._guard = guard
        self._on_exchanged = on_exchanged
        self._turn = asyncio.Lock()
        self._wanted = Wanted()

    def covers(self, channel: bytes) -> bool:
        """True for a channel with this provider, under any of its keys."""
        return any(one.message.channel == channel for one in self._channels())

    def said(self, signed: Said) -> None:
        """Our own dispute or answer is on record: the provider hears of it as soon as there is a link."""
        self._wanted.add(signed.message.channel)

    async def exchange(self, link: LinkConnection, channel: Signed[Channel]) -> Exchanged:
        """Bring both ledgers' disputes of the channel together. Raises RemoteError, LedgerError."""
        async with self._turn:
            exchanged: Exchanged = await self._guard(self._exchange(link, channel))
            return exchanged

    async def exchange_all(self, link: LinkConnection) -> dict[bytes, Exchanged]:
        """The same for every channel in which something may still be said, by its id; one that the provider refuses is
        passed over."""
        done = {}
        for channel in self._live_channels():
            try:
                done[channel.message.channel] = await self.exchange(link, channel)
            except Refused as refusal:
                _log_not_exchanged(channel, refusal)
        return done

    async def keep(self, link: LinkConnection) -> None:
        """Exchange all, then whenever either side has news, until cancelled or until the provider breaks a rule."""
        self._want_live()
        watching = asyncio.create_task(self._watch(link), name="disputes: news")
        try:
            while True:
                await self._wanted.wait()
                try:
                    channels = self._channels()
                except LedgerError as error:
                    log.error("no disputes are exchanged until the ledger can be read: %s", error.message)
                    continue  # what is wanted stays wanted, until something wakes us
                wanted = self._wanted.take()
                for channel in channels:
                    if channel.message.channel in wanted:
                        await self._try(link, channel)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _want_live(self) -> None:
        try:
            for channel in self._live_channels():
                self._wanted.add(channel.message.channel)
        except LedgerError as error:
            log.error("what may still be disputed cannot be seen in the ledger: %s", error.message)
        self._wanted.wake()

    def _live_channels(self) -> list[Signed[Channel]]:
        now_ms = self._now_ms()
        # A receipt may be disputed for so long, and the dispute answered for so long again.
        live = [c for c in self._channels() if now_ms <= c.message.expires_ms + _open_ms(c.message)]
        return live[-MOST_CHANNELS:]

    async def _try(self, link: LinkConnection, channel: Signed[Channel]) -> None:
        try:
            exchanged = await self.exchange(link, channel)
            if exchanged.taken or exchanged.sent:
                self._on_exchanged(channel.message.channel, exchanged)
        except (RemoteError, LedgerError) as error:
            _log_not_exchanged(channel, error)
            if isinstance(error, Refused) and error.code == "busy":
                self._wanted.add_later(channel.message.channel)

    async def _watch(self, link: LinkConnection) -> None:
        try:
            async with exchange(link, max_messages=MAX_COMPARED) as talk:
                talk.send(Kind.DISPUTES_WATCH)
                while True:
                    news = parse_frame(await talk.expect(Kind.DISPUTES_NEWS, timeout_s=None), DisputesNews)
                    if len(self._wanted) >= MAX_COMPARED:
                        raise ProtocolViolation("it has news of more channels than anybody has with it.")
                    self._wanted.add(news.channel)
        except P2pgridError as error:
            log.info("%s tells of no disputes: %s", link.name, error.message)

    async def _exchange(self, link: LinkConnection, channel: Signed[Channel]) -> Exchanged:
        after, sent, taken = 0, 0, list[Said]()
        while after < MAX_NUMBER:
            async with exchange(link, max_messages=2 * MAX_COMPARED, max_bytes=_MAX_WAITING_BYTES) as talk:
                held = page_of(self._ledger, channel.message.channel, after)
                # Before it can mention them, the provider has to hear that we hold them.
                self._note([one.id for one in held.held], channel)
                talk.send(Kind.DISPUTES, held.to_bytes())
                compared = parse_frame(await talk.expect(Kind.DISPUTES_COMPARED), DisputesCompared)
                _check(compared, held)
                taken += await self._take(talk, compared, channel)
                talk.send(Kind.DISPUTES_TAKEN)
                for record_id in compared.lacks:
                    talk.send(Kind.RECORD, record_of(self._ledger, record_id).to_bytes())
                await talk.expect(Kind.DISPUTES_TAKEN)
                sent += len(compared.lacks)
                after = compared.until
        return Exchanged(tuple(taken), sent)

    async def _take(self, talk: Exchange, compared: DisputesCompared, channel: Signed[Channel]) -> tuple[Said, ...]:
        records = [parse_record(await talk.expect(Kind.RECORD)) for _ in range(compared.records)]
        if not records:
            return ()
        checked = self._check_sent(records, channel)
        for record in checked.conflicting:
            self._keep_evidence(record, CONFLICT)
        if checked.keep:
            await self._ledger.append(*checked.keep)
            self._note([one.id for one in checked.keep], channel)
        for one in checked.keep:
            _tell(one)
        return checked.keep

    def _check_sent(self, records: list[Record], channel: Signed[Channel]) -> Checked:
        try:
            return check_sent(records, self._ledger, channel, now_ms=self._now_ms())
        except InvalidRecord as fault:
            raise DisputedRecord(fault, records[0]) from fault

    def _note(self, ids: list[bytes], channel: Signed[Channel]) -> None:
        books = self._books(channel.message.channel)
        if books is not None:
            note_held(books, self._ledger, ids)


def _log_not_exchanged(channel: Signed[Channel], error: P2pgridError) -> None:
    what = channel.message.channel.hex()[:16]
    level = logging.ERROR if isinstance(error, LedgerError | ProtocolViolation) else logging.INFO
    log.log(level, "the disputes of channel %s were not exchanged: %s", what, error.message)


def _open_ms(channel: Channel) -> int:
    return 2 * channel.dispute_days * DAY_MS + CLOCK_TOLERANCE_MS


def _check(compared: DisputesCompared, held: DisputesHeld) -> None:
    """Raises ProtocolViolation for a reply that does not fit what was sent."""
    listed = {one.id for one in held.held if one.receipt_number <= compared.until}
    if not held.after < compared.until <= held.until:
        raise ProtocolViolation(f"disputes up to receipt {held.until} were listed, and {compared.until} was compared.")
    if not set(compared.lacks) <= listed or len(set(compared.lacks)) < len(compared.lacks):
        raise ProtocolViolation("the provider asks for disputes that were not listed.")


def _tell(signed: Said) -> None:
    """For the owner's log."""
    message = signed.message
    if message.by is not Role.PROVIDER:
        return
    name = f"receipt {message.receipt_number} of channel {message.channel.hex()[:16]}"
    if isinstance(message, Answer):
        log.info("the provider has %s the dispute of %s: %s", message.decision, name, printable(message.statement))
    else:
        log.warning("the provider disputes %s (%s): %s", name, message.reason, printable(message.statement))
