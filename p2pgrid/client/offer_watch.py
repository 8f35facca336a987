"""OFFER_WATCH, the client's half: on a link, the provider says by itself what changes (docs/spec/discovery.md, 6)."""

from __future__ import annotations

import logging
from typing import Final

from p2pgrid.client.exchanges import exchange
from p2pgrid.client.offer_store import OfferStore
from p2pgrid.errors import InvalidRecord, P2pgridError
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.offers import Capacity

log = logging.getLogger(__name__)

SILENCE_S: Final = 60.0
"""A provider says every 20 s that its offer stands; one that does not is asked, as those without a link are."""
_NEWS: Final = (Kind.OFFER, Kind.WITHDRAWAL, Kind.CAPACITY)


async def watch_offer(link: LinkConnection, store: OfferStore) -> None:
    """Take in what the provider says on this link, until it says nothing more. Raises RemoteError: why it does not."""
    peer = PeerAddress(link.peer.peer_id, ())
    async with exchange(link) as talk:
        talk.send(Kind.OFFER_WATCH)
        while True:
            received = await talk.receive(*_NEWS, timeout_s=SILENCE_S)
            if received.kind == Kind.CAPACITY:
                store.confirm(peer.peer_id, parse_frame(received.payload, Capacity))
                continue
            try:
                store.take(received.payload, peer)
            except InvalidRecord as error:
                log.warning("%s tells of an offer that is none: %s", peer.peer_id, error.message)


async def keep_watching(link: LinkConnection, store: OfferStore) -> None:
    """The same for a task of its own: how it ends is logged."""
    try:
        await watch_offer(link, store)
    except P2pgridError as error:
        log.info("%s says no more of its offer: %s", link.name, error.message)
