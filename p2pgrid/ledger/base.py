"""The ledger's interface. One implementation keeps SQLite on disk, one keeps memory; one suite tests both.

Durable before visible: `append` returns at once, and its future is done when the records would survive `kill -9` and
a power cut. Whoever sends a record to a peer awaits that future first. Records appended in one call are durable
together or not at all; futures are done in the order of the calls.

Never twice: a slot (a channel's order number, receipt number, an order's tick) holds one record. Appending the same
record again is no error and adds the signatures it brings; appending another one for a taken slot raises `SlotTaken`
from the future and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel_records import ChannelRecords, DisputeRow, OpenOrder
from p2pgrid.proto.messages import Channel, Order, Receipt
from p2pgrid.proto.record import Message, Record, Signed


__all__ = ["DisputeRow", "Ledger", "OpenOrder", "ReceiptRow", "SlotTaken"]


class SlotTaken(LedgerError):
    """Another record holds the slot already. The new one was not stored; keep it as evidence if a peer signed it."""


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A receipt for people: what `p2pgrid receipts list` shows."""

    record_id: bytes
    receipt: Receipt
    channel: Channel
    countersigned: bool


class Ledger(ChannelRecords, Protocol):
    """What both sides of a channel write to. One writer; any number of readers.

    Its reads for the session core are those of `ChannelRecords`.
    """

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        """Store checked records, all or none. The future raises LedgerError (disk full, closed) or SlotTaken."""

    def append_evidence(self, record: Record, reason: str) -> asyncio.Future[None]:
        """Keep an unacceptable record that a peer signed, with a reason in one sentence. Never part of a channel."""

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        """Close an order that will get no receipt, with a word of ours (`refused:busy`, `never-arrived`)."""

    def keep_request_key(self, order: Signed[Order], key: bytes) -> asyncio.Future[None]:
        """Keep an order's 32-byte commitment key. The first one stays; it is no part of any export."""

    def erase_request_key(self, channel: bytes, order_number: int) -> asyncio.Future[None]:
        """Erase an order's commitment key: what its commitments are over can then be shown to nobody any more.

        Done when no copy is left in the ledger's files. An order without a key is no error.
        """

    def channels(self) -> list[Signed[Channel]]:
        """Every channel with both signatures on record, oldest first."""

    def cards(self) -> list[Signed[Card]]:
        """Every operator's Card on record, in the order of arrival."""

    def receipts(self, *, channel: bytes | None = None, limit: int | None = None) -> list[ReceiptRow]:
        """Receipts, newest first."""

    def records(self, *, channel: bytes | None = None) -> Iterator[Record]:
        """Every record that an audit needs, in the order of arrival: cards, offers and channels, then the rest.

        With `channel`, only that channel's records, the offers that its orders name, and the cards that those name.
        """

    def counts(self) -> dict[str, int]:
        """Rows by payload type, and `evidence`."""

    async def aclose(self) -> None:
        """Finish what is queued, and close. Later appends raise LedgerError."""
