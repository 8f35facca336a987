"""Links before they are needed: no request should wait for a dial, nor what an earlier run left open for a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from p2pgrid.client.offers import OfferBook
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.sessions import Sessions
from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.dispute_rules import is_unanswered
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Signed
from p2pgrid.settlement.statements.drafting import is_due

log = logging.getLogger(__name__)

WARM_LINKS: Final = 8
"""Links that are dialled before they are needed: a dial costs milliseconds that a first token should not wait for."""
_HOUSEKEEPING_S: Final = 30.0
_STATEMENTS_MS: Final = 3_600_000


class Housekeeper:
    """Begins sessions that will be wanted, and ends those of providers that are gone."""

    def __init__(
        self,
        sessions: Sessions,
        book: OfferBook,
        ledger: Ledger,
        client: PublicKey,
        quarantine: Quarantine,
        *,
        is_wanted: Callable[[Signed[Offer]], bool],
        now_ms: Callable[[], int],
    ) -> None:
        """`is_wanted`: whether the owner would buy under an offer."""
        self._sessions = sessions
        self._book = book
        self._ledger = ledger
        self._client = client
        self._quarantine = quarantine
        self._is_wanted = is_wanted
        self._now_ms = now_ms
        self._due: list[str] = []
        """Providers with whom a statement is due, when it was last looked."""
        self._next_look_ms = 0

    async def run(self) -> None:
        """Do so whenever offers change, and every now and then, until cancelled."""
        while True:
            try:
                await self._look_for_statements()
                for peer_id in self._worth_a_link():
                    self._sessions.with_provider(peer_id)
            except LedgerError as error:
                log.error("the ledger cannot be read: %s", error)
            gone = [
                peer_id
                for peer_id, session in self._sessions.items()
                if not session.n_orders and not session.quarantine and self._book.offer_of(peer_id) is None
            ]
            for peer_id in gone:
                await self._sessions.end(peer_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOUSEKEEPING_S):
                    await self._book.wait_for_change()

    def _worth_a_link(self) -> list[str]:
        """Providers on sale with whom something is open, and the cheapest few."""
        on_sale = {parse_public_key(offer.message.provider).peer_id: offer for offer in self._book.worth_dialling()}
        unsettled = [
            parse_public_key(channel.message.provider).peer_id
            for channel in self._ledger.channels()
            if channel.message.client == self._client.raw and self._ledger.open_orders(channel.message.channel)
        ]
        now_ms = self._now_ms()
        unsettled += self._disputing(now_ms)
        cheapest = sorted(
            (min(offer.message.tariff_at(entry, now_ms).output_upm for entry in offer.message.models), peer_id)
            for peer_id, offer in on_sale.items()
            if self._is_wanted(offer)
        )
        wanted = [*unsettled, *self._due, *(peer_id for _, peer_id in cheapest[:WARM_LINKS])]
        return [peer_id for peer_id in wanted if peer_id in on_sale and peer_id not in self._quarantine]

    async def _look_for_statements(self) -> None:
        """Once in an hour: a session settles by itself, but it has to be there."""
        now_ms = self._now_ms()
        if self._sessions.buying is None or now_ms < self._next_look_ms:
            return
        self._next_look_ms = now_ms + _STATEMENTS_MS
        ours = [c for c in self._ledger.channels() if c.message.client == self._client.raw]
        due = [
            parse_public_key(c.message.provider).peer_id for c in ours if await is_due(self._ledger, c, now_ms=now_ms)
        ]
        self._due = list(dict.fromkeys(due))

    def _disputing(self, now_ms: int) -> list[str]:
        """Providers with whom a dispute waits for an answer, theirs or ours."""
        terms = {c.message.channel: c.message for c in self._ledger.channels()}
        disputed = {
            row.dispute.message.channel
            for row in self._ledger.disputes(unanswered=True)
            if row.dispute.message.channel in terms
            and not is_unanswered(
                row.dispute.message, dispute_days=terms[row.dispute.message.channel].dispute_days, now_ms=now_ms
            )
        }
        ours = [terms[channel] for channel in disputed if terms[channel].client == self._client.raw]
        return sorted({parse_public_key(channel.provider).peer_id for channel in ours})
