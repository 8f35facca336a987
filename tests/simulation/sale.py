"""One order as it really went: what left the provider, what reached the program, what was signed for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from p2pgrid.proto.batch import sum_of
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import Order, Receipt, Status, Tariff, Usage, Voucher
from p2pgrid.proto.pricing import is_billed_by_voucher, owes_nothing, price_of, usage_of
from p2pgrid.proto.sse import EventSplitter

MAX_TIME_MS: Final = 2**53


class Delivery:
    """The answer to one request, on both ends of the wire."""

    def __init__(self, n: int = 1) -> None:
        self.sent: Final = TokenCounter(n)
        """What left the provider."""
        self.got: Final = TokenCounter(n)
        """What reached the client's program."""
        self.sent_bytes = bytearray()
        self.got_bytes = bytearray()
        self.sent_status = 0
        self.got_status = 0
        self.ended: Status | None = None
        """What REQUEST_ENDED said, once it left."""
        self.is_taken = False
        """True once the provider has asked its engine."""
        self._sent_events = EventSplitter()
        self._got_events = EventSplitter()

    @property
    def is_borne(self) -> bool:
        """True if the provider bears it, and has said so."""
        return self.ended is not None and owes_nothing(self.ended)

    def sent_events(self, data: bytes) -> list[bytes]:
        """The events of an answer that bytes which leave complete."""
        self.sent_bytes += data
        return self._sent_events.feed(data) if self.sent_status == 200 else []

    def get(self, data: bytes) -> str:
        """Bytes reach the program; what is wrong with that, if anything."""
        self.got_bytes += data
        if self.got_status == 200:
            for event in self._got_events.feed(data):
                self.got.feed(event)
        if not self.sent_bytes.startswith(self.got_bytes):
            return "the program got other bytes than were sent."
        return ""


@dataclass(slots=True)
class Sale:
    """One order, as it really went."""

    order: Order
    tariff: Tariff
    largest_event: int = 0
    parts: list[Delivery] = field(default_factory=list)
    """By request: of an order of one, one."""
    secured: Usage = field(default_factory=Usage)
    """What the client has signed for, in the provider's ledger."""
    admitted_pico: int = 0
    """What the client says is owed, in a dispute of its own in the provider's ledger."""
    signed_pico: int = 0
    """The most that the client has signed for, in its own ledger."""
    signed_receipt: bytes = b""
    """The id of the receipt that the client has signed, in its own ledger."""
    counts_until_ms: int = MAX_TIME_MS
    """Until when what went out unsigned counts: an hour after its receipt, if that goes by a voucher."""
    is_answered: bool = False
    """True if the provider's ledger has the client's signature on the receipt, or its dispute."""
    knows_prompt: bool = True
    """False if the client's process is gone that counted the prompt, and no voucher tells it."""
    is_cut: bool = False
    """True once the client has lost the link on which it was placed."""
    proposed: Receipt | None = None
    """In the provider's ledger, whoever signed it."""
    receipt: Receipt | None = None
    """With both signatures, in the provider's ledger."""
    _gone_acknowledged: int = 0
    """Output tokens that had left when the tick was made that the last voucher names."""
    _gone_at: dict[bytes, int] = field(default_factory=dict)
    """The same, by the meter's id."""

    def part(self, index: int) -> Delivery:
        """The answer to one request; a liar may have more of them than were asked."""
        while len(self.parts) <= index:
            self.parts.append(Delivery())
        return self.parts[index]

    @property
    def has_left(self) -> bool:
        """True once a prompt was read, and something of its answer is out."""
        return any(one.sent.prompt_tokens for one in self.parts)

    @property
    def sent(self) -> Usage:
        """What left the provider, whatever became of it."""
        return sum_of(usage_of(one.sent) for one in self.parts)

    @property
    def sent_for_pay(self) -> Usage:
        """What left the provider, without the requests that it said it bears."""
        return sum_of(usage_of(one.sent) for one in self.parts if not one.is_borne)

    @property
    def got(self) -> Usage:
        """What reached the program, whatever became of it."""
        return sum_of(usage_of(one.got) for one in self.parts)

    def meter(self, meter_id: bytes) -> None:
        """A METER leaves: all that it counts has left before."""
        self._gone_at[meter_id] = self.sent.output_tokens

    def send(self, index: int, data: bytes, window: int) -> str:
        """Bytes leave the provider; what is wrong with that, if anything."""
        part = self.part(index)
        others = sum(one.sent.output_tokens for one in self.parts if one is not part)
        for event in part.sent_events(data):
            before = others + part.sent.output_tokens
            part.sent.feed(event)
            gone = others + part.sent.output_tokens
            acknowledged = self._gone_acknowledged if self.order.is_batch else self.secured.output_tokens
            if gone - acknowledged > window and before > acknowledged and gone > before:
                ahead = gone - acknowledged
                return f"{ahead} tokens ran ahead of the last voucher, in more than one event; W is {window}."
        return ""

    def secure(self, signed: Voucher | Receipt) -> None:
        """The provider's ledger has the client's signature on this."""
        if self.order.is_batch and isinstance(signed, Voucher):
            # What a failed request brought leaves the counts: a later voucher may say less.
            gone = self._gone_at.get(signed.meter, 0)
            if gone >= self._gone_acknowledged:
                self._gone_acknowledged, self.secured = gone, signed.usage
        elif self.order.is_batch or signed.amount_pico >= price_of(self.tariff, self.secured):
            self.secured = signed.usage

    def lacking_pico(self, window: int) -> int:
        """What the provider has delivered and cannot prove, a single event larger than the window apart."""
        sent, secured = self.sent_for_pay, self.secured
        output = min(sent.output_tokens, secured.output_tokens + window)
        billed = msgspec.structs.replace(sent, output_tokens=output)
        return max(0, price_of(self.tariff, billed) - max(price_of(self.tariff, secured), self.admitted_pico))

    def answer(self) -> None:
        """The client signs or disputes its receipt."""
        self.is_answered = True
        if self.proposed is not None and is_billed_by_voucher(self.proposed.status):
            self.counts_until_ms = self.proposed.issued_ms + UNSIGNED_COUNTS_MS

    @property
    def is_borne(self) -> bool:
        """True if it ended in a way that the provider bears, by a receipt that the client has answered."""
        return self.is_answered and self.proposed is not None and owes_nothing(self.proposed.status)

    def most_signed_pico(self, window: int) -> int:
        """The most that the client may lose its signature for: what it got, one window more, and its prompts."""
        # That tokens were cached is known at the answer's end alone: what was signed before was right without.
        prompt = self.got.prompt_tokens if self.knows_prompt else 0
        if self.order.is_batch and self.is_cut and window:
            prompt = 0  # Requests may have gone on of which nothing arrived.
        prompt = prompt or self.order.max_prompt_tokens
        most = Usage(prompt_tokens=prompt, output_tokens=self.got.output_tokens + window)
        return price_of(self.tariff, most)
