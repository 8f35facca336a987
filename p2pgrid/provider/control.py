"""The exchanges that carry no answer: which offer is in force, a new channel, a channel resumed."""

from __future__ import annotations

import functools
import logging
import secrets
from collections import deque
from typing import Final

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.net.stream import Stream
from p2pgrid.proto.card_chain import pack_cards
from p2pgrid.proto.channel import check_clock, propose_channel, verify_channel
from p2pgrid.proto.messages import Channel, Receipt
from p2pgrid.proto.proposal import accept_countersignature
from p2pgrid.proto.record import Signed, parse_message, parse_record
from p2pgrid.proto.wire import ChannelRequest, Kind, Refusal, Resumed, parse_frame
from p2pgrid.provider.channels import OpenChannel
from p2pgrid.provider.exchange import Exchange, Shop

log = logging.getLogger(__name__)

MAX_PROPOSALS: Final = 4096
"""In one exchange, as `Resumed` counts them; the rest comes when the client resumes again."""


class OfferExchange(Exchange):
    """OFFER_REQUEST -> OFFER."""

    def take(self, kind: int, payload: bytes) -> None:
        if payload:
            raise ProtocolViolation(f"an OFFER_REQUEST carries no bytes, this one {len(payload)}.")
        offer = self.shop.offers.current
        if offer is None:
            raise Refused("withdrawn", "this provider offers nothing now.")
        self.stream.send(Kind.OFFER, offer.record.to_bytes())
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
        self._proposed = propose_channel(
            offer,
            client=client,
            client_nonce=request.client_nonce,
            provider_nonce=secrets.token_bytes(32),
            key=shop.key,
            now_ms=now_ms,
            continues=request.continues,
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
        self.shop.channels.open(signed)
        log.info("channel %s is open with %s", signed.message.channel.hex()[:16], self.stream.peer)
        self.stream.send(Kind.CHANNEL_OPENED, b"")
        self.finish()


class ResumeExchange(Exchange):
    """RESUME -> RESUMED, RECEIPT* -> COUNTERSIGNATURE or RECEIPT_REFUSAL for each, in their order -> END.

    The client's other links are then given up, with what runs on them: it is here now.
    """

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._channel: OpenChannel | None = None
        self._adopting = False
        self._waiting: deque[Signed[Receipt]] = deque()
        self._outbox = self.outbox()

    def take(self, kind: int, payload: bytes) -> None:
        if self._channel is None:
            if kind != Kind.RESUME or self._adopting:
                raise ProtocolViolation(f"message kind {kind} came before the channel was resumed.")
            self._resume(payload)
        elif kind == Kind.COUNTERSIGNATURE:
            self._countersigned(payload, self._channel)
        elif kind == Kind.RECEIPT_REFUSAL:
            self._refused(payload)
        else:
            raise ProtocolViolation(f"message kind {kind} came while a channel was resumed.")

    @property
    def may_end(self) -> bool:
        return self._channel is not None and not self._waiting

    @property
    def is_taken(self) -> bool:
        return self._channel is not None or self._adopting

    def ledger_failed(self, error: LedgerError) -> None:
        if self._channel is not None:
            self.shop.channels.ledger_failed(self._channel, error)

    def _resume(self, payload: bytes) -> None:
        record = parse_record(payload)
        named, channels = parse_message(record, Channel), self.shop.channels
        try:
            channel = channels.find(named.channel, self.stream.peer)
        except Refused:
            self._adopt(verify_channel(record, provider=channels.own_key(named.provider), client=self.stream.peer))
            return
        if record.id != channel.books.signed.id:
            raise InvalidRecord("wrong-channel", "the client resumes a channel on other terms than were signed.")
        self._propose(channel)

    def _adopt(self, signed: Signed[Channel]) -> None:
        """A channel that the client signed, and that a crash kept from our ledger: our signature stands."""
        self.shop.channels.check_room(self.stream.peer)
        self._adopting = True
        self.expect_next()
        self._outbox.persist(signed)
        self._outbox.run(lambda: self._propose(self.shop.channels.open(signed)))

    def _propose(self, channel: OpenChannel) -> None:
        channel.check_usable()
        channel.interrupt_others(self.stream.connection)
        self._channel = channel
        self._waiting.extend(receipt for _, receipt in sorted(channel.stranded.items())[:MAX_PROPOSALS])
        resumed = Resumed(
            last_order_number=channel.books.last_order_number,
            last_receipt_number=channel.books.last_receipt_number,
            proposals=len(self._waiting),
        )
        if self._waiting:
            # Written again, which changes nothing: one of them may be on its way to the disk only now.
            self._outbox.persist(*self._waiting)
        self._outbox.run(functools.partial(self.stream.send, Kind.RESUMED, resumed.to_bytes()))
        for receipt in self._waiting:
            self._outbox.run(functools.partial(self.stream.send, Kind.RECEIPT, receipt.record.to_bytes()))
        self._next_or_finish()

    def _countersigned(self, payload: bytes, channel: OpenChannel) -> None:
        channel.check_usable()
        if not self._waiting:
            raise ProtocolViolation("more answers came than receipts were proposed.")
        proposal = self._waiting[0]
        # Not there if the client resumed twice at once, and has signed it on the other stream.
        if channel.stranded.get(proposal.message.receipt_number) is proposal:
            receipt = accept_countersignature(proposal, payload, channel.books)
            del channel.stranded[proposal.message.receipt_number]
            self._outbox.persist(receipt)
            self._outbox.run(functools.partial(self.shop.tally.settled, receipt.message))
        self._waiting.popleft()
        self._next_or_finish()

    def _refused(self, payload: bytes) -> None:
        refusal = parse_frame(payload, Refusal)
        if not self._waiting:
            raise ProtocolViolation("more answers came than receipts were proposed.")
        note_dispute(self.shop, self._waiting.popleft(), refusal.code, refusal.message)
        self._next_or_finish()

    def _next_or_finish(self) -> None:
        if self._waiting:
            self.expect_next()
        else:
            self._outbox.run(self.finish)


def note_dispute(shop: Shop, receipt: Signed[Receipt], code: str, message: str) -> None:
    """A client refused a receipt: for the operator's log. It stays a proposal in the ledger."""
    shop.tally.disputes += 1
    log.warning(
        "receipt %d of channel %s was refused by the client (%s): %s",
        receipt.message.receipt_number,
        receipt.message.channel.hex()[:16],
        "".join(c if c.isprintable() else "?" for c in code),
        "".join(c if c.isprintable() else "?" for c in message),
    )
