"""How a channel is opened, and where one stands (docs/spec/session.md, sections 1 and 5). `books` keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Offer, Terms, channel_id
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
    countersigned_pico: int = 0
    """Sum of their amounts: what covers the risk of orders that are open (`books`)."""


def propose_channel(
    offer: Signed[Offer],
    *,
    client: PublicKey,
    client_nonce: bytes,
    provider_nonce: bytes,
    key: SecretKey,
    now_ms: int,
    continues: bytes = b"",
    credit_limit_pico: int | None = None,
) -> Signed[Channel]:
    """The provider's half: a channel on the offer's terms, signed by the provider.

    `credit_limit_pico`: what this client is lent; left out, what the offer says. `continues` is the head of the
    client's channel under a former key, which the caller has found in its own ledger.
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
        credit_limit_pico=terms.credit_limit_pico if credit_limit_pico is None else credit_limit_pico,
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
    _check_parties(channel)
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
    _check_parties(signed.message)
    return signed


def _check_parties(channel: Channel) -> None:
    if channel.provider == channel.client:
        raise InvalidRecord("same-party", "the channel's provider and client are one key.")


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
