"""What the node tells the world: an offer of what is up, in force and signed anew in time, and where to find it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.errors import LedgerError, P2pgridError
from p2pgrid.net import lookup_keys
from p2pgrid.net.network import Network
from p2pgrid.proto.card_chain import pack_cards
from p2pgrid.proto.messages import ModelOffer, Offer
from p2pgrid.provider.admission import Admission
from p2pgrid.provider.capacity import capacity_of
from p2pgrid.provider.cards import OwnCards
from p2pgrid.provider.engines import EngineSet
from p2pgrid.provider.offers import MAX_ADDRESSES, OfferBook

log = logging.getLogger(__name__)

ADVERTISE_TIMEOUT_S: Final = 10.0
FIRST_PEER_TIMEOUT_S: Final = 0.5
OFFER_RETRY_S: Final = 30.0
LOOK_INTERVAL_S: Final = 2.0
"""How often the card's file and our addresses are looked at."""


class Advertiser:
    """Keeps the node's offer in force, and the network told of it."""

    def __init__(
        self,
        offers: OfferBook,
        engines: EngineSet,
        admission: Admission,
        cards: OwnCards,
        *,
        addresses: Callable[[], Sequence[str]],
        country: str,
        has_bootstrap: bool,
        now_ms: Callable[[], int],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`addresses`: where the offer says that clients reach the node. `has_bootstrap`: peers introduce it.

        `on_change` is called when another offer is in force, or none.
        """
        self.network: Network | None = None
        """Set once the network is joined; None if it is not."""
        self._offers = offers
        self._engines = engines
        self._admission = admission
        self._cards = cards
        self._addresses = addresses
        self._country = country
        self._has_bootstrap = has_bootstrap
        self._now_ms = now_ms
        self._on_change = on_change

    def shown_offer(self) -> bytes | None:
        """What a peer of the network that asks for the offer is given: the offer, or that it is withdrawn."""
        shown = self._offers.current or self._offers.withdrawal
        return shown.record.to_bytes() if shown is not None else None

    def shown_capacity(self) -> bytes:
        """What one is given that asks what is free."""
        return capacity_of(self._offers.current, self._admission).to_bytes()

    def shown_cards(self) -> bytes | None:
        """What one is given that asks for the operator's cards."""
        chain = self._cards.chain()
        return pack_cards(chain) if chain else None

    async def publish(self) -> None:
        """Sign and show an offer of what is up; withdraw if nothing is. Raises LedgerError."""
        entries = self._engines.entries
        if not entries or self._admission.is_draining:
            self._offers.withdraw()
            self._on_change()
            return
        offer = await self._offers.publish(entries, self._addresses())
        self._on_change()
        log.info("offer %d: %s", offer.message.sequence, ", ".join(entry.model for entry in entries))

    async def advertise(self) -> None:
        """Tell the network of what is on sale. Raises P2pgridError."""
        network, entries = self.network, self._engines.entries
        if network is None:
            return
        if not entries:
            await network.withdraw(self._withdrawal())
            return
        started = time.monotonic()
        # Without an introducing peer there is nobody to tell yet: whoever joins through us will be told.
        timeout_s = ADVERTISE_TIMEOUT_S if self._has_bootstrap else FIRST_PEER_TIMEOUT_S
        holders = await network.advertise(advertised_keys(entries, self._country), timeout_s=timeout_s)
        log.info("advertised: %d peers hold it (%.1f s)", holders, time.monotonic() - started)
        if not holders:
            log.warning("nobody in the network holds our advertisement yet; it is tried on")

    async def reoffer(self) -> None:
        """A model went down or came back."""
        try:
            await self.publish()
        except LedgerError as error:
            log.error("no new offer: %s", error)
            self._offers.withdraw()
            self._on_change()
        try:
            await self.advertise()
        except P2pgridError as error:
            log.error("the network was not told: %s", error)

    async def renew(self) -> None:
        """A new offer at half time, and when it no longer says the operator's card or our addresses, for ever."""
        while True:
            left_s = max(self._offers.renewal_ms - self._now_ms(), 0) / 1000
            await asyncio.sleep(min(left_s, LOOK_INTERVAL_S))
            offer = self._offers.current
            if left_s > LOOK_INTERVAL_S and (offer is None or self._is_true(offer.message)):
                continue
            try:
                await self.publish()
            except LedgerError as error:
                log.error("the offer could not be renewed; trying again in %g s: %s", OFFER_RETRY_S, error)
                await asyncio.sleep(OFFER_RETRY_S)
            if self._offers.current is None:
                await asyncio.sleep(OFFER_RETRY_S)

    def _is_true(self, offer: Offer) -> bool:
        return offer.card == self._cards.offered_id() and offer.addresses == tuple(self._addresses())[:MAX_ADDRESSES]

    async def withdraw(self) -> None:
        """Nothing is on sale any more: clients with a link are told, then the peers that hold our records."""
        self._offers.withdraw()
        self._on_change()
        if self.network is not None:
            try:
                told = await self.network.withdraw(self._withdrawal())
                log.info("withdrawn: %d peers that held our records were told", told)
            except P2pgridError as error:
                log.warning("the network was not told: %s", error)

    def _withdrawal(self) -> bytes | None:
        withdrawal = self._offers.withdrawal
        return withdrawal.record.to_bytes() if withdrawal is not None else None


def advertised_keys(entries: Sequence[ModelOffer], country: str) -> list[str]:
    """The keys under which a provider of these models in this country is found."""
    keys = [lookup_keys.PROVIDER, lookup_keys.country_key(country)]
    for entry in entries:
        keys += [lookup_keys.model_key(entry.model), lookup_keys.model_key(entry.model, country)]
    return keys
