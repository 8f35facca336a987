"""The client's half of resuming a channel: both ledgers are brought together, and what was left open is closed.

The rules are in `proto.reconcile`. Both functions raise RemoteError where the provider refuses, is away or breaks the
rules, InvalidRecord for what it signed wrongly, and LedgerError where nothing can be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from p2pgrid.client.exchanges import DisputedRecord, Exchange, exchange
from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.ledger.base import Ledger, SlotTaken
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel, Usage
from p2pgrid.proto.reconcile import (
    MAX_SKIPPED_NUMBERS,
    Reconciliation,
    answer_proposal,
    check_restored,
    check_same_chain,
    held_of,
    lacking,
)
from p2pgrid.proto.record import Message, Record, Role, Signed, parse_message, parse_record
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.channels import MAX_BATCH_RECORDS, Channels, Held, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind

_MAX_WAITING_BYTES: Final = 2 * 1024 * 1024


async def recover_channels(link: LinkConnection, ledger: Ledger, *, provider: PublicKey, client: PublicKey) -> int:
    """Channels with the provider that our ledger lost, from the provider. Returns how many there were."""
    async with exchange(link) as talk:
        talk.send(Kind.CHANNELS_REQUEST)
        frame = parse_frame(await talk.expect(Kind.CHANNELS), Channels)
    known = {one.message.channel for one in ledger.channels()}
    records = [parse_record(one) for one in frame.channels]
    # Those under its former keys are found by its cards.
    own = [one for one in records if parse_message(one, Channel).provider == provider.raw]
    found = [verify_channel(one, provider=provider, client=client) for one in own]
    lost = [one for one in found if one.message.channel not in known]
    if lost:
        await _append(ledger, *lost)
    return len(lost)


async def resume_channel(
    link: LinkConnection,
    channel: Signed[Channel],
    ledger: Ledger,
    *,
    key: SecretKey,
    delivered: Mapping[int, Usage],
    now_ms: Callable[[], int],
) -> tuple[ChannelBooks, Reconciliation]:
    """Settle everything that an earlier link, or an earlier life of this process, left open on the channel.

    No order of the channel may be live, and what was appended to the ledger must be durable. `delivered` holds, by
    order number, our own count of the answers that this process saw, whole or in part. Orders that have no receipt at
    the end never became the provider's business: they are closed without one. Returns the books as they are then, and
    what changed.
    """
    resuming = _Resuming(channel, ledger, key, delivered, now_ms)
    while not await resuming.go_round(link):
        pass
    return resuming.books, resuming.changes


class _Resuming:
    def __init__(
        self,
        channel: Signed[Channel],
        ledger: Ledger,
        key: SecretKey,
        delivered: Mapping[int, Usage],
        now_ms: Callable[[], int],
    ) -> None:
        self.changes = Reconciliation(channel.message.channel)
        self.books = restore_books(ledger, channel, Role.CLIENT)
        self._channel = channel
        self._id = channel.message.channel
        self._ledger = ledger
        self._key = key
        self._delivered = delivered
        self._now_ms = now_ms

    async def go_round(self, link: LinkConnection) -> bool:
        """One exchange. True once nothing is left."""
        before = self._progress()
        async with exchange(link, max_messages=2 * MAX_BATCH_RECORDS, max_bytes=_MAX_WAITING_BYTES) as talk:
            held = held_of(self._ledger, self._id)
            talk.send(Kind.RESUME, Resume(channel=self._channel.record.to_bytes(), held=held).to_bytes())
            theirs = await self._take_records(talk)
            self._send_records(talk, theirs)
            frame = parse_frame(await talk.expect(Kind.PROPOSALS), Proposals)
            self.books = restore_books(self._ledger, self._channel, Role.CLIENT)
            self.books.last_order_number = max(self.books.last_order_number, theirs.last_order_number)
            for _ in range(frame.proposals):
                await self._answer(talk, parse_record(await talk.expect(Kind.RECEIPT)))
        if not frame.is_all:
            if self._progress() == before:
                raise ProtocolViolation("the provider says that it holds more of the channel, and sends nothing.")
            return False
        await self._close_orders(theirs)
        return True

    def _progress(self) -> tuple[int, ...]:
        changes = self.changes
        return len(changes.restored), changes.sent, len(changes.countersigned), len(changes.disputed)

    async def _take_records(self, talk: Exchange) -> Held:
        resumed = parse_frame(await talk.expect(Kind.RESUMED), Resumed)
        sent = [parse_record(await talk.expect(Kind.RECORD)) for _ in range(resumed.records)]
        theirs = resumed.held
        if theirs.last_order_number > self.books.last_order_number + len(sent) + MAX_SKIPPED_NUMBERS:
            raise ProtocolViolation(f"the provider says that order {theirs.last_order_number} was placed.")
        check_same_chain(self._ledger, self._channel, theirs)
        restored = check_restored(sent, self._ledger, self._channel, Role.CLIENT)
        if restored:
            await _append(self._ledger, *restored)
            self.changes.restored += restored
        return theirs

    def _send_records(self, talk: Exchange, theirs: Held) -> None:
        batch = lacking(self._ledger, self._id, theirs, Role.CLIENT)
        talk.send(Kind.RECORDS, Records(records=len(batch.records), is_all=batch.is_all).to_bytes())
        for record in batch.records:
            talk.send(Kind.RECORD, record.to_bytes())
        self.changes.sent += len(batch.records)

    async def _answer(self, talk: Exchange, proposal: Record) -> None:
        try:
            answered = answer_proposal(
                proposal, self._ledger, self.books, key=self._key, delivered=self._delivered, now_ms=self._now_ms()
            )
        except InvalidRecord as fault:
            raise DisputedRecord(fault, proposal) from fault
        if answered.persist:
            await self._ledger.append(*answered.persist)
        talk.send(answered.kind, answered.payload)
        if answered.dispute is not None:
            self.changes.disputed.append(answered.dispute)
        else:
            self.changes.countersigned.append(answered.receipt)

    async def _close_orders(self, theirs: Held) -> None:
        """Close the orders without a receipt: they never became the provider's business."""
        for one in self._ledger.open_orders(self._id):
            number = one.order.message.order_number
            outcome = "never-arrived" if number > theirs.last_order_number else "not-taken"
            await self._ledger.note_outcome(one.order, outcome)
            self.books.close_order(number)
            self.changes.closed_orders.append(number)


async def _append(ledger: Ledger, *signed: Signed[Message]) -> None:
    """Write what the provider sent. Raises ProtocolViolation where our ledger holds something else in its place."""
    try:
        await ledger.append(*signed)
    except SlotTaken as taken:
        raise ProtocolViolation(f"what the provider sent is not what our ledger holds: {taken.message}") from taken
