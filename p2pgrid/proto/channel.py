"""One channel as each side keeps it: numbers, the chain of receipts, credit (docs/spec/session.md, sections 1 and 5).

The provider numbers receipts and proposes them; the client checks that each fits the chain and countersigns. Either
side's state is restored from its ledger's `ChannelHead`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Offer, Order, Receipt, Terms, channel_id
from p2pgrid.proto.record import Record, Role, Signed, sign_message, verify_record

CLOCK_TOLERANCE_MS: Final = 120_000
"""Clocks further apart than this are not dealt with."""
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class ChannelHead:
    """Where a channel stands: all that a session needs to go on after a restart."""

    last_order_number: int
    """Highest order number on record; 0 if none."""
    last_receipt_number: int
    """Highest receipt number on record, proposals among them; 0 if none."""
    last_receipt_id: bytes
    """That receipt's id; the channel's record id if there is none."""
    total_pico: int
    """That receipt's channel total; 0 if there is none."""
    countersigned: int
    """How many receipts carry both signatures."""


def allowed_open_orders(channel: Channel, countersigned: int) -> int:
    """How many orders may be open at once: one more than the receipts the client has countersigned, up to the cap.

    So a client that never signs has one window to take, not `max_open_orders` of them.
    """
    return min(channel.max_open_orders, 1 + countersigned)


class ChannelBooks:
    """What both sides track alike. `open_orders` counts orders without a countersigned receipt.

    After a restart the provider passes as `open_orders` how many the ledger holds of those, proposals among them; the
    client calls `open_order` for each of its own, so that their cost is reserved until the channel is resumed.
    """

    def __init__(self, channel: Signed[Channel], head: ChannelHead, *, open_orders: int = 0) -> None:
        self.signed: Final = channel
        self.terms: Final = channel.message
        self.id: Final = channel.message.channel
        self.provider: Final = parse_public_key(channel.message.provider)
        self.client: Final = parse_public_key(channel.message.client)
        self.last_order_number = head.last_order_number
        self.last_receipt_number = head.last_receipt_number
        self.last_receipt_id = head.last_receipt_id
        self.total_pico = head.total_pico
        self.countersigned = head.countersigned
        self.open_orders = open_orders
        self._reserved: dict[int, int] = {}
        self._waiting: dict[int, int] = {}

    @property
    def reserved_pico(self) -> int:
        """Most that orders without a receipt can add to the total."""
        return sum(self._reserved.values())

    @property
    def may_order(self) -> bool:
        """True if one more order may be opened now."""
        return self.open_orders < allowed_open_orders(self.terms, self.countersigned)

    def credit_left_pico(self) -> int:
        """What may still be ordered before the channel's credit is used up."""
        return self.terms.credit_limit_pico - self.total_pico - self.reserved_pico

    def is_expired(self, now_ms: int) -> bool:
        """True once no order may be placed on the channel."""
        return now_ms >= self.terms.expires_ms

    def claim_order_number(self, number: int) -> None:
        """Use up an order's number when the order arrives (provider). Raises Refused (`order-number`).

        Orders arrive in order, their bodies may not: the number must not be judged only when the body is whole.
        """
        if number <= self.last_order_number:
            raise Refused("order-number", f"order number {number} was used; a higher one was expected.")
        self.last_order_number = number

    def open_order(self, order: Order) -> None:
        """An order is under way: reserve the most that it may cost."""
        self.open_orders += 1
        self.last_order_number = max(self.last_order_number, order.order_number)
        self._reserved[order.order_number] = order.max_amount_pico

    def release(self, order_number: int) -> None:
        """The order's cost is known: reserve nothing for it any more."""
        self._reserved.pop(order_number, None)

    def close_order(self, order_number: int) -> None:
        """The order needs nothing more: refused, never arrived, or its receipt carries both signatures."""
        self.release(order_number)
        self.open_orders = max(self.open_orders - 1, 0)

    def settle(self, receipt: Receipt) -> None:
        """A receipt carries both signatures now."""
        self.countersigned += 1
        self.close_order(receipt.order_number)

    def wait_for_turn(self, receipt: Receipt) -> None:
        """The receipt of an order came before one that stands before it in the chain (client)."""
        self._waiting[receipt.receipt_number] = receipt.order_number

    def is_turn_free(self, receipt: Receipt) -> bool:
        """True if no other order waits with a receipt of that number."""
        return receipt.receipt_number not in self._waiting

    def leave_turn(self, order_number: int) -> None:
        """The order waits no more: its stream is gone."""
        self._waiting = {n: o for n, o in self._waiting.items() if o != order_number}

    def order_in_turn(self) -> int | None:
        """The number of the order whose waiting receipt is the chain's next, or None. It waits no more."""
        return self._waiting.pop(self.last_receipt_number + 1, None)

    def append(self, receipt: Signed[Receipt]) -> None:
        """Make the receipt the chain's last. The caller has checked that it fits."""
        self.last_receipt_number = receipt.message.receipt_number
        self.last_receipt_id = receipt.id
        self.total_pico = receipt.message.channel_total_pico

    def chain_fault(self, receipt: Receipt) -> tuple[str, str] | None:
        """The finding code and a sentence if the receipt is not the chain's next, or None."""
        if receipt.channel != self.id:
            return "wrong-channel", "the receipt is for another channel."
        if receipt.receipt_number != self.last_receipt_number + 1:
            return (
                "receipt-gap",
                f"receipt {receipt.receipt_number} came; {self.last_receipt_number + 1} was expected.",
            )
        if receipt.previous != self.last_receipt_id:
            return "broken-link", f"receipt {receipt.receipt_number} does not name the receipt before it."
        if receipt.channel_total_pico != self.total_pico + receipt.amount_pico:
            return "wrong-total", f"receipt {receipt.receipt_number} does not add up to the channel's total."
        return None


def propose_channel(
    offer: Signed[Offer],
    *,
    client: PublicKey,
    client_nonce: bytes,
    provider_nonce: bytes,
    key: SecretKey,
    now_ms: int,
    continues: bytes = b"",
) -> Signed[Channel]:
    """The provider's half: a channel on the offer's terms, signed by the provider.

    `continues` is the head of the client's channel under a former key, which the caller has found in its own ledger.
    """
    terms: Terms = offer.message.terms
    provider = offer.message.provider
    message = Channel(
        channel=channel_id(provider, client.raw, provider_nonce, client_nonce),
        provider=provider,
        client=client.raw,
        provider_nonce=provider_nonce,
        client_nonce=client_nonce,
        currency=offer.message.currency,
        credit_limit_pico=terms.credit_limit_pico,
        window_tokens=terms.window_tokens,
        max_open_orders=terms.max_open_orders,
        opened_ms=now_ms,
        expires_ms=now_ms + terms.channel_days * _DAY_MS,
        dispute_days=terms.dispute_days,
        continues=continues,
    )
    return sign_message(message, Role.PROVIDER, key)


def accept_channel(
    record: Record,
    offer: Signed[Offer],
    *,
    key: SecretKey,
    client_nonce: bytes,
    now_ms: int,
    continues: bytes = b"",
) -> Signed[Channel]:
    """The client's half: check that the proposed channel is the one asked for, and countersign.

    The credit limit is the provider's to set for each client; all other terms are the offer's. `continues` is the head
    that was asked for: what both hold is what both sign. Raises InvalidRecord,
    or Refused (`clock-skew`) when the clocks are too far apart.
    """
    provider = parse_public_key(offer.message.provider)
    signed = verify_record(record, Channel, {Role.PROVIDER: provider})
    channel, terms = signed.message, offer.message.terms
    if (channel.provider, channel.client, channel.client_nonce) != (provider.raw, key.public_key.raw, client_nonce):
        raise InvalidRecord("wrong-channel", "the provider signed a channel that was not asked for.")
    if channel.continues != continues:
        raise InvalidRecord("wrong-channel", "the provider's channel goes on from another head than was asked for.")
    as_offered = (
        channel.currency == offer.message.currency
        and channel.expires_ms - channel.opened_ms == terms.channel_days * _DAY_MS
        and channel.window_tokens == terms.window_tokens
        and channel.max_open_orders == terms.max_open_orders
        and channel.dispute_days == terms.dispute_days
    )
    if not as_offered:
        raise InvalidRecord("wrong-channel", "the channel's terms are not the offer's.")
    check_clock(channel.opened_ms, now_ms, "the provider")
    return signed.countersigned(Role.CLIENT, key)


def verify_channel(record: Record, *, provider: PublicKey, client: PublicKey) -> Signed[Channel]:
    """A channel that both have signed. Raises InvalidRecord."""
    signed = verify_record(record, Channel, {Role.PROVIDER: provider, Role.CLIENT: client})
    if signed.message.provider != provider.raw or signed.message.client != client.raw:
        raise InvalidRecord("wrong-channel", "the channel names other parties than those who signed it.")
    return signed


def check_clock(their_ms: int, our_ms: int, who: str) -> None:
    """Raises Refused (`clock-skew`) when a time just signed by a peer is more than 120 s from ours."""
    apart_s = (their_ms - our_ms) / 1000
    if abs(their_ms - our_ms) > CLOCK_TOLERANCE_MS:
        raise Refused(
            "clock-skew",
            f"the clock of {who} is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} ours; "
            f"at most {CLOCK_TOLERANCE_MS // 1000} s are accepted.",
            hint="Set both clocks (NTP), then try again.",
        )
