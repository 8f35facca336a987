"""A provider that changed its key: which channels are with the same operator, and which one a new channel goes on from.

Three words make one operator of two keys (docs/decisions/key-rotation.md): its card names both; the new key's offer
names that card; and the old key's own offer, under which this client bought, named a card of the same chain.
"""

from __future__ import annotations

import logging
from typing import Final

from p2pgrid.client.cards import CardBook
from p2pgrid.client.exchanges import request_cards
from p2pgrid.errors import LocalError
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import Signed

log = logging.getLogger(__name__)


class Succession:
    """What the cards say of one provider's former keys."""

    def __init__(self, provider: PublicKey, client: PublicKey, cards: CardBook, ledger: Ledger) -> None:
        self._provider: Final = provider
        self._client: Final = client
        self._cards = cards
        self._ledger = ledger

    async def learn(self, link: LinkConnection, offer: Signed[Offer]) -> None:
        """Have the provider show its cards, if they are not known. Raises RemoteError."""
        if not self._cards.is_known(offer):
            await self._cards.take(offer, await request_cards(link))
        try:
            await self._cards.keep(self._provider.peer_id)
        except LocalError as error:
            log.warning("the cards of %s are not kept: %s", self._provider, error)

    def former_channels(self) -> list[Signed[Channel]]:
        """Our channels with the operator's former keys, oldest first."""
        other_keys = self._cards.other_keys(self._provider.peer_id)
        return [
            channel
            for channel in (self._ledger.channels() if other_keys else ())
            if channel.message.provider in other_keys
            and channel.message.client == self._client.raw
            and self._was_acknowledged(channel.message.channel)
        ]

    def head_to_continue(self) -> bytes:
        """The head of the last settled channel under a former key; empty if there is none, or a channel goes on from it
        already."""
        ours = [one.message for one in self._ledger.channels() if one.message.client == self._client.raw]
        if any(channel.provider == self._provider.raw for channel in ours):
            return b""
        for channel in reversed(self.former_channels()):
            if not self._ledger.open_orders(channel.message.channel):
                head = self._ledger.head(channel.message.channel).last_receipt_id
                return b"" if any(one.continues == head for one in ours) else head
        return b""

    def _was_acknowledged(self, channel: bytes) -> bool:
        """True if an offer under which the channel was used names one of the operator's cards."""
        named = [row.receipt.offer for row in self._ledger.receipts(channel=channel, limit=1)]
        named += [one.order.message.offer for one in self._ledger.open_orders(channel)[:1]]
        offers = [offer for offer in map(self._ledger.offer, named) if offer is not None]
        ids = {card.id for card in self._cards.chain_of(self._provider.peer_id)}
        return any(offer.message.card in ids for offer in offers)
