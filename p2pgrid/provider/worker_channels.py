"""The channels that a worker holds, and how it comes by them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from p2pgrid.clock import unix_ms
from p2pgrid.commands.wire import error_of
from p2pgrid.errors import InvalidRecord, LedgerError, Refused
from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.processes.bus import Bus
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Role, parse_message
from p2pgrid.proto.restore import restore_books
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.open_channel import OpenChannel

log = logging.getLogger(__name__)


class WorkerChannels(Channels):
    """The channels that this process holds."""

    def __init__(
        self, bus: Bus, ledger: RemoteLedger, key: SecretKey, former: Sequence[SecretKey], limits: ProviderLimits
    ) -> None:
        super().__init__(ledger, key, limits, unix_ms, former)
        self._bus = bus
        self._remote = ledger
        self.claimed: Counter[bytes] = Counter()
        """Claims that are not answered yet, by channel. What is held is kept meanwhile: it may be what is granted."""
        bus.on(m.GiveUp, self._give_up)
        bus.on(m.HeldByBoth, self._held_by_both)
        bus.on(m.AnswerSaid, self._answer_said)
        bus.on(m.CreditNews, self._credit_news)

    def find(self, channel_id: bytes, client: PublicKey) -> OpenChannel:
        """The client's channel of that id. Raises Refused (`not-resumed`) for one that this process does not hold."""
        channel = self.get(channel_id)
        if channel is None or channel.books.client != client:
            raise Refused("not-resumed", "the channel was not resumed on this link.", hint="Resume it first.")
        return channel

    def adopt(
        self, record: Record, *, last_order_number: int, away_since_ms: int, link: LinkConnection | None = None
    ) -> OpenChannel:
        """Hold a channel from now on. Raises LedgerError."""
        named = parse_message(record, Channel)
        held = self.get(named.channel)
        if held is None:
            client = parse_public_key(named.client)
            signed = verify_channel(record, provider=self.own_key(named.provider), client=client)
            self._remote.hold(named.channel)
            try:
                books = restore_books(self._remote, signed, Role.PROVIDER)
            except LedgerError:
                self._remote.let_go(named.channel)
                self._bus.send(m.Released(named.channel, last_order_number, away_since_ms))
                raise
            held = self._add(OpenChannel(books, link, away_since_ms))
        held.books.last_order_number = max(held.books.last_order_number, last_order_number)
        return held

    def give_back_idle(self) -> None:
        """Give up every channel on which nothing runs, and whose client's link is gone."""
        for channel in [one for one in self if one.is_idle and not self.claimed[one.books.id]]:
            self._release(channel)

    def _give_up(self, message: m.GiveUp) -> None:
        channel = self.get(message.channel)
        if channel is not None:  # else it was given back just before, and that is on its way
            channel.give_up("the client resumed the channel on another link")
            self._release(channel)

    def _release(self, channel: OpenChannel) -> None:
        channel.is_held = False
        self._remove(channel)
        self._remote.let_go(channel.books.id)
        self._bus.send(m.Released(channel.books.id, channel.books.last_order_number, channel.away_since_ms))

    def _held_by_both(self, message: m.HeldByBoth) -> None:
        if (channel := self.get(message.channel)) is not None:
            self._try(lambda: self.note_held(channel, message.ids))

    def _answer_said(self, message: m.AnswerSaid) -> None:
        if (channel := self.get(message.channel)) is not None:
            self._try(lambda: self._note_said(channel, message.dispute))

    def _credit_news(self, message: m.CreditNews) -> None:
        if (channel := self.get(message.channel)) is not None:
            self.note_arrears(channel, m.arrears_of(message))
            self._try(lambda: self.note_settled(channel))

    def _note_said(self, channel: OpenChannel, dispute: bytes) -> None:
        row = self._remote.dispute(dispute)
        if row is not None and row.answer is not None:
            self.note_answer(channel, row.dispute.message, row.answer.message)

    def _try(self, note: Callable[[], None]) -> None:
        try:
            note()
        except LedgerError as error:
            log.error("what another process recorded could not be looked into: %s", error)


class WorkerClaims:
    """Asks the main process for channels."""

    def __init__(self, bus: Bus, channels: WorkerChannels) -> None:
        self._bus = bus
        self._channels = channels
        self._asked: dict[int, tuple[bytes, asyncio.Future[OpenChannel]]] = {}
        self._next = itertools.count(1)
        bus.on(m.Granted, self._granted)
        bus.on(m.ClaimFailed, lambda failed: self._answered(failed.request).set_exception(error_of(failed.failure)))

    def claim(self, record: Record, named: Channel, link: LinkConnection) -> asyncio.Future[OpenChannel]:
        """As `p2pgrid.provider.exchange.Claims`."""
        request = next(self._next)
        future: asyncio.Future[OpenChannel] = asyncio.get_running_loop().create_future()
        self._asked[request] = named.channel, future
        self._channels.claimed[named.channel] += 1
        self._bus.send(m.Claim(request, link.peer.raw, record))
        return future

    def _answered(self, request: int) -> asyncio.Future[OpenChannel]:
        channel, future = self._asked.pop(request)
        self._channels.claimed[channel] -= 1
        if not self._channels.claimed[channel]:
            del self._channels.claimed[channel]
        return future

    def _granted(self, granted: m.Granted) -> None:
        asked = self._answered(granted.request)
        try:
            channel = self._channels.adopt(
                granted.channel,
                last_order_number=granted.last_order_number,
                away_since_ms=granted.away_since_ms,
            )
        except (LedgerError, InvalidRecord) as error:
            asked.set_exception(error)
        else:
            asked.set_result(channel)
