"""What was sold on each channel and in each hour, summed up from the receipts.

A part of the audit's verdict. What is paid of it is `settlement_summary`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.elided import Elided, Sums, note_activity
from p2pgrid.proto.evidence import Evidence
from p2pgrid.proto.keys import peer_id_or_hex
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Role


class ChannelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One channel's sums over its receipts, those with both signatures apart."""

    channel: str
    provider: str
    client: str
    operator: str
    """The provider's name by its latest offer; empty if there is none."""
    currency: str
    orders: int
    receipts: int
    countersigned: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    amount_pico: int
    countersigned_pico: int
    credited_pico: int
    """What accepted disputes take off."""
    disputed_pico: int
    """What other disputes contest: unanswered, or rejected."""
    owed_pico: int
    """The receipts' amounts less what is credited; payments are not taken off."""


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What was billed in one hour for one model."""

    hour_ms: int
    """The hour's beginning, Unix milliseconds; by the receipts' `issued_ms`."""
    currency: str
    model: str
    receipts: int
    prompt_tokens: int
    output_tokens: int
    amount_pico: int


def summary_of(book: Book, operator: str) -> ChannelSummary:
    """The sums of one channel; `operator`: the provider's name."""
    channel = book.channel.message
    counted = book.elided.counted
    sums = Sums(orders=sum(number not in counted for number in book.order_numbers()))
    sums.add(book.elided.sums)
    for held in book.receipts.values():
        if held.message.order_number not in counted:
            sums.count(held.message, countersigned=Role.CLIENT in held.signers)
    return ChannelSummary(
        channel=channel.channel.hex(),
        provider=peer_id_or_hex(channel.provider),
        client=peer_id_or_hex(channel.client),
        operator=operator,
        currency=channel.currency,
        orders=sums.orders,
        receipts=sums.receipts,
        countersigned=sums.countersigned,
        prompt_tokens=sums.prompt_tokens,
        cached_tokens=sums.cached_tokens,
        output_tokens=sums.output_tokens,
        amount_pico=sums.amount_pico,
        countersigned_pico=sums.countersigned_pico,
        credited_pico=book.credited_pico,
        disputed_pico=book.disputed_pico,
        owed_pico=sums.amount_pico - book.credited_pico,
    )


def activity_of(books: Iterable[Book], elided: Elided) -> tuple[Activity, ...]:
    """What was billed, by hour, currency and model."""
    rows = {key: list(row) for key, row in elided.activity.items()}
    for book in books:
        for held in book.receipts.values():
            if held.message.order_number not in book.elided.counted:
                note_activity(rows, held.message, book.channel.message.currency)
    return tuple(
        Activity(
            hour_ms=hour * 3_600_000,
            currency=currency,
            model=model,
            receipts=receipts,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            amount_pico=amount_pico,
        )
        for (hour, currency, model), (receipts, prompt_tokens, output_tokens, amount_pico) in sorted(rows.items())
    )


def operators_of(evidence: Evidence) -> dict[bytes, str]:
    """By provider, its name by its latest offer."""
    offers = sorted(evidence.of(Offer).values(), key=lambda h: h.message.sequence)
    return {h.message.provider: h.message.operator for h in offers}
