"""The exchanges that carry no answer: which offer is in force, a new channel, which channels there are."""

from __future__ import annotations

import functools
import logging
import secrets

from p2pgrid.errors import ProtocolViolation, Refused
from p2pgrid.proto.card_chain import pack_cards
from p2pgrid.proto.channel import check_clock, propose_channel, verify_channel
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Signed, parse_record
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.channels import MAX_CHANNELS, ChannelRequest, Channels
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.client_credit import check_standing
from p2pgrid.provider.exchange import Exchange, Shop

log = logging.getLogger(__name__)


class OfferExchange(Exchange):
    """OFFER_REQUEST -> OFFER, or WITHDRAWAL."""

    def take(self, kind: int, payload: bytes) -> None:
        if payload:
            raise ProtocolViolation(f"an OFFER_REQUEST carries no bytes, this one {len(payload)}.")
        offer, withdrawal = self.shop.offers.current, self.shop.offers.withdrawal
        if offer is not None:
            self.stream.send(Kind.OFFER, offer.record.to_bytes())
        elif withdrawal is not None:
            self.stream.send(Kind.WITHDRAWAL, withdrawal.record.to_bytes())
        else:
            raise Refused("withdrawn", "this provider offers nothing now.")
        self.finish()


class CardExchange(Exchange):
    """CARD_REQUEST -> CARDS."""

    def take(self, kind: int, payload: bytes) -> None:
        if payload:
            raise ProtocolViolation(f"a CARD_REQUEST carries no bytes, this one {len(payload)}.")
        self.stream.send(Kind.CARDS, pack_cards(self.shop.cards()))
        self.finish()


class ChannelExchange(Exchange):
    """CHANNEL_REQUEST -> CHANNEL (ours signed) -> CHANNEL (both) -> CHANNEL_OPENED, once it is durable."""

    _proposed: Signed[Channel] | None = None
    _accepted = False

    def take(self, kind: int, payload: bytes) -> None:
        if self._proposed is None:
            self._propose(parse_frame(payload, ChannelRequest))
        elif kind == Kind.CHANNEL and not self._accepted:
            self._accept(payload, self._proposed)
        else:
            raise ProtocolViolation(f"message kind {kind} came while a channel was being opened.")

    @property
    def may_end(self) -> bool:
        return self._accepted

    @property
    def is_taken(self) -> bool:
        return self._accepted

    def _propose(self, request: ChannelRequest) -> None:
        shop, client = self.shop, self.stream.peer
        now_ms = shop.now_ms()
        if shop.admission.is_draining:
            raise Refused("withdrawn", "this provider is shutting down.", hint="Ask another.")
        check_clock(request.now_ms, now_ms, "the client")
        offer = shop.offers.find(request.offer)
        if offer is None or offer.message.valid_until_ms < now_ms:
            raise Refused(
                "unknown-offer", "the channel names no offer of ours in force.", hint="Fetch the offer again."
            )
        shop.channels.check_room(client)
        if request.continues:
            shop.channels.check_head(request.continues, client)
        else:
            shop.links.check_opening(self.stream.connection)
        limit_pico = check_standing(shop.credit, client)
        self._proposed = propose_channel(
            offer,
            client=client,
            client_nonce=request.client_nonce,
            provider_nonce=secrets.token_bytes(32),
            key=shop.key,
            now_ms=now_ms,
            continues=request.continues,
            credit_limit_pico=limit_pico,
        )
        self.stream.send(Kind.CHANNEL, self._proposed.record.to_bytes())
        self.expect_next()

    def _accept(self, payload: bytes, proposed: Signed[Channel]) -> None:
        shop = self.shop
        record = parse_record(payload)
        if record.id != proposed.id:
            raise ProtocolViolation("the client signed another channel than the one proposed.")
        signed = verify_channel(record, provider=shop.key.public_key, client=self.stream.peer)
        shop.channels.check_room(self.stream.peer)
        self._accepted = True
        self.expect_next()
        outbox = self.outbox()
        outbox.persist(signed)
        outbox.run(functools.partial(self._opened, signed))

    def _opened(self, signed: Signed[Channel]) -> None:
        self.shop.channels.open(signed, self.stream.connection)
        if self.shop.credit is not None:
            self.shop.credit.opened(self.stream.peer)
        log.info("channel %s is open with %s", signed.message.channel.hex()[:16], self.stream.peer)
        self.stream.send(Kind.CHANNEL_OPENED, b"")
        self.finish()


class ChannelsExchange(Exchange):
    """CHANNELS_REQUEST -> CHANNELS: for a client whose ledger is lost."""

    def take(self, kind: int, payload: bytes) -> None:
        if payload:
            raise ProtocolViolation(f"a CHANNELS_REQUEST carries no bytes, this one {len(payload)}.")
        found = self.shop.channels.channels_of(self.stream.peer)[-MAX_CHANNELS:]
        frame = Channels(channels=tuple(one.record.to_bytes() for one in found))
        self.stream.send(Kind.CHANNELS, frame.to_bytes())
        self.finish()


def note_dispute(shop: Shop, dispute: Signed[Dispute]) -> None:
    """A client disputes a receipt, and that is on record: it is told to the operator, and answered if it can be."""
    message = dispute.message
    shop.tally.disputes += 1
    log.warning(
        "receipt %d of channel %s is disputed by the client (%s), who says that %d pico-EUR are owed: %s",
        message.receipt_number,
        message.channel.hex()[:16],
        message.reason,
        message.owed_pico,
        "".join(c if c.isprintable() else "?" for c in message.statement),
    )
    shop.disputes.taken(dispute)
