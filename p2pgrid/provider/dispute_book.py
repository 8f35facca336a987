"""The provider's disputes: clients are told of news, and answered at once where the records alone decide."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Final

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.dispute_exchange import Said
from p2pgrid.proto.disputing import automatic_rejection, sign_answer
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.restore import tariff_of
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.watchers import Watcher, Watchers

log = logging.getLogger(__name__)


class DisputeBook:
    """One for a node. Nothing is granted to a client without the operator."""

    def __init__(self, ledger: Ledger, channels: Channels, now_ms: Callable[[], int]) -> None:
        self._ledger: Final = ledger
        self._channels: Final = channels
        self._now_ms: Final = now_ms
        self._watchers: Final = Watchers[Watcher]()

    def watch(self, watcher: Watcher) -> None:
        """Tell it of news from now on. A link has one watcher."""
        self._watchers.watch(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Its stream is gone."""
        self._watchers.unwatch(watcher)

    def review(self) -> int:
        """At the start: see to what came just before an earlier run ended. How many disputes wait for the operator.

        Raises LedgerError.
        """
        waiting = 0
        for row in self._ledger.disputes(unanswered=True):
            if row.dispute.message.by is Role.CLIENT and self._channels.get(row.dispute.message.channel) is not None:
                waiting += not self._answer_by_records(row.dispute)
        return waiting

    def taken(self, dispute: Signed[Dispute]) -> None:
        """A client's dispute is on record: refute it if order, tariff and vouchers do, else leave it to the operator.

        A ledger that fails is logged: the operator, or the client's next exchange, finds the dispute as it is.
        """
        message = dispute.message
        try:
            if not self._answer_by_records(dispute):
                name = message.receipt.hex()[:16]
                log.warning("it waits for your answer: p2pgrid receipts answer %s --accept, or --reject", name)
                self._tell(message.channel)
        except LedgerError as error:
            log.error("the dispute of receipt %d could not be looked into: %s", message.receipt_number, error)

    def said(self, signed: Said) -> None:
        """Our own dispute or answer is on record."""
        message = signed.message
        channel = self._channels.get(message.channel)
        if isinstance(message, Answer) and channel is not None:
            row = self._ledger.dispute(message.dispute)
            if row is not None:
                self._channels.note_answer(channel, row.dispute.message, message)
        self._tell(message.channel)

    def _answer_by_records(self, dispute: Signed[Dispute]) -> bool:
        answer = self._refuted(dispute)
        if answer is not None:
            self._ledger.append(answer).add_done_callback(functools.partial(self._answered, answer))
        return answer is not None

    def _refuted(self, dispute: Signed[Dispute]) -> Signed[Answer] | None:
        message = dispute.message
        channel = self._channels.get(message.channel)
        receipt = self._ledger.receipt(message.channel, message.receipt_number)
        known = self._ledger.dispute(dispute.id)
        if message.by is not Role.CLIENT or channel is None or receipt is None or known is None or known.answer:
            return None
        placed = self._ledger.order(message.channel, receipt.message.order_number)
        if placed is None:
            return None
        tariff = tariff_of(self._ledger, placed.order.message)
        voucher = placed.voucher.message if placed.voucher is not None else None
        why = automatic_rejection(message, receipt.message, placed.order, tariff, voucher)
        if not why:
            return None
        return sign_answer(
            dispute,
            receipt.message,
            decision=Decision.REJECTED,
            statement=why,
            owed_pico=None,
            key=self._channels.key_of(channel),
            now_ms=self._now_ms(),
        )

    def _answered(self, answer: Signed[Answer], written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if written.cancelled() or error is not None:
            log.error("an answer to a dispute could not be kept: %s", error)
            return
        log.info("the dispute of receipt %d was rejected by the records", answer.message.receipt_number)
        self._tell(answer.message.channel)

    def _tell(self, channel_id: bytes) -> None:
        channel = self._channels.get(channel_id)
        if channel is None:
            return
        for watcher in self._watchers.of(channel.books.client):
            watcher.tell(channel_id)
