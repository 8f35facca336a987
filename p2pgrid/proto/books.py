"""One channel as each side keeps it: numbers, the chain of receipts, credit, risk (docs/spec/session.md, section 8).

The provider numbers receipts and proposes them; the client checks that each fits the chain and countersigns. Both
decide alike from the same messages; `restore.restore_books` gives either its books back from its ledger.

The bound: an order may be opened when none is open, or when what is at risk on all that are open, the dearest one
apart, is covered by what the client has countersigned on the channel. What an order that was broken off may have
brought without a signature stays at risk for an hour. Who runs away with more than one window has signed for at least
as much before.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS, ChannelHead
from p2pgrid.proto.credit import ChannelCredit
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.dispute_rules import faults_of_mention
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import MAX_MENTIONS, Channel, Order, Receipt, Tariff, Usage
from p2pgrid.proto.pricing import is_billed_by_voucher, price_of
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.statement import Payment, Statement
from p2pgrid.units import AmountPico

UNSIGNED_COUNTS_MS: Final = 3_600_000
"""How long what nobody signed for counts. Whoever lost its first link in its first window may come back then."""


def risk_pico(order: Order, tariff: Tariff, window_tokens: int) -> AmountPico:
    """What the provider can lose on the order: the prompt and one window of output, unpaid."""
    usage = Usage(prompt_tokens=order.max_prompt_tokens, output_tokens=min(window_tokens, order.max_output_tokens))
    try:
        return AmountPico(min(price_of(tariff, usage), order.max_amount_pico))
    except InvalidRecord:
        return AmountPico(order.max_amount_pico)


def unsigned_pico(receipt: Receipt, order: Order, tariff: Tariff, window_tokens: int) -> AmountPico:
    """The most that went out on an order beyond its receipt: nothing, unless the receipt goes by a voucher."""
    if not is_billed_by_voucher(receipt.status):
        return AmountPico(0)
    # Of several requests the voucher may know the prompts of some: the others' may have been read since.
    prompt_tokens = order.max_prompt_tokens - (receipt.usage.prompt_tokens if order.is_batch else 0)
    usage = Usage(
        prompt_tokens=0 if receipt.usage.prompt_tokens and not order.is_batch else max(prompt_tokens, 0),
        output_tokens=max(0, min(window_tokens, order.max_output_tokens - receipt.usage.output_tokens)),
    )
    try:
        return AmountPico(min(price_of(tariff, usage), order.max_amount_pico))
    except InvalidRecord:
        return AmountPico(order.max_amount_pico)


class Arrears(NamedTuple):
    """The client is behind with a payment: from then on its provider lends it nothing."""

    from_ms: int
    sentence: str
    """Which invoice, how much, and since when."""


class ChannelBooks:
    """What both sides track alike. An order is open from `open_order` until its receipt is countersigned or disputed;
    a suspended one stays open."""

    def __init__(self, channel: Signed[Channel], head: ChannelHead) -> None:
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
        self.countersigned_pico = head.countersigned_pico
        self.credit: Final = ChannelCredit()
        """What settling has taken off the credit limit again."""
        self.arrears: Arrears | None = None
        """Kept by the provider's node, in all channels of a client alike."""
        self.reserved_pico = 0
        """Most that orders without a receipt can add to the total."""
        self._risks: dict[int, int] = {}
        self._orders: dict[int, tuple[Order, Tariff]] = {}
        """Those at risk."""
        self._unsigned: dict[int, tuple[int, int]] = {}
        """By receipt: until when (Unix milliseconds) what went out beyond it counts, and how much."""
        self._at_stake: dict[int, int] = {}
        self._reserved: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._mentionable: dict[bytes, Dispute | Answer] = {}
        self._mentioned: set[bytes] = set()

    @property
    def open_orders(self) -> int:
        """Orders without a countersigned or disputed receipt."""
        return len(self._risks)

    def is_open(self, order_number: int) -> bool:
        """True while the order is open."""
        return order_number in self._risks

    def at_risk_pico(self, more_pico: int = 0, now_ms: int = 0) -> int:
        """What must be covered with one more order of that risk: all that is at risk, the dearest apart.

        What counts no more at `now_ms` is left out.
        """
        unsigned = [pico for until_ms, pico in self._unsigned.values() if until_ms > now_ms]
        risks = [*self._risks.values(), *self._at_stake.values(), *unsigned, more_pico]
        return sum(risks) - max(risks)

    def may_open(self, risk: int, now_ms: int = 0) -> bool:
        """True if an order of that risk may be opened at that time."""
        is_covered = self.at_risk_pico(risk, now_ms) <= self.countersigned_pico
        return self.open_orders < self.terms.max_open_orders and is_covered

    def check_may_open(self, risk: int, now_ms: int) -> None:
        """Raises Refused (`too-many-open-orders`) unless `may_open`."""
        if not self.may_open(risk, now_ms):
            raise Refused(
                "too-many-open-orders",
                f"{self.open_orders} orders of this channel are open; with one more, {self.at_risk_pico(risk, now_ms)} "
                f"pico-EUR would have to be covered, and {self.countersigned_pico} are countersigned.",
                hint="Wait for one to end, or an hour after one that was broken off; countersigned receipts make room.",
            )

    def credit_left_pico(self) -> int:
        """What may still be ordered before the channel's credit is used up by what is signed and unpaid."""
        return self.terms.credit_limit_pico + self.paid_ahead_pico()

    def paid_ahead_pico(self) -> int:
        """What may be ordered without any credit. Below zero: so much of the limit is used."""
        return self.credit.freed_pico - self.total_pico - self.reserved_pico

    def note_settled(self, *records: Signed[Message]) -> None:
        """Statements and payments are on record: credit may be free again. What is set off is `credit`'s to note.

        Each counts once, however often it is noted. Other records change nothing.
        """
        for signed in records:
            if getattr(signed.message, "channel", b"") != self.id:
                continue
            if isinstance(signed.message, Statement):
                self.credit.note_statement(signed)  # type: ignore[arg-type]
            elif isinstance(signed.message, Payment):
                self.credit.note_payment(signed)  # type: ignore[arg-type]

    def check_credit(self, max_amount_pico: int, now_ms: int) -> None:
        """Raises Refused (`payment-overdue`, `credit-exhausted`) for an order that may cost more than there is for."""
        arrears = self.arrears
        if arrears is not None and now_ms >= arrears.from_ms and max_amount_pico > self.paid_ahead_pico():
            raise Refused(
                "payment-overdue",
                f"{arrears.sentence} Until it is paid nothing is lent.",
                hint="Pay it (`p2pgrid pay`); once that is booked, orders go on. What is paid ahead can be used.",
            )
        if max_amount_pico > self.credit_left_pico():
            raise Refused(
                "credit-exhausted",
                f"the order may cost {max_amount_pico} pico-EUR; {self.credit_left_pico()} of the channel's credit of "
                f"{self.terms.credit_limit_pico} are left.",
                hint="Pay what is open, or ahead (`p2pgrid pay`), or lower max_tokens.",
            )

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

    def open_order(self, order: Order, tariff: Tariff) -> None:
        """An order is under way: reserve the most that it may cost, and count what it puts at risk."""
        self._risks[order.order_number] = risk_pico(order, tariff, self.terms.window_tokens)
        self._orders[order.order_number] = order, tariff
        self.last_order_number = max(self.last_order_number, order.order_number)
        self.release(order.order_number)
        self._reserved[order.order_number] = order.max_amount_pico
        self.reserved_pico += order.max_amount_pico

    def release(self, order_number: int) -> None:
        """The order's cost is known: reserve nothing for it any more."""
        self.reserved_pico -= self._reserved.pop(order_number, 0)

    def close_order(self, order_number: int) -> None:
        """The order needs nothing more: refused, never arrived, or its receipt carries both signatures."""
        self.release(order_number)
        self._risks.pop(order_number, None)
        self._orders.pop(order_number, None)

    def settle(self, receipt: Receipt) -> None:
        """A receipt carries both signatures now."""
        self.countersigned += 1
        self.countersigned_pico += receipt.amount_pico
        if receipt.order_number in self._orders:
            self.note_unsigned(receipt, *self._orders[receipt.order_number])
        self.close_order(receipt.order_number)

    def note_unsigned(self, receipt: Receipt, order: Order, tariff: Tariff) -> None:
        """The receipt is answered; what may have gone out beyond it stays at risk for `UNSIGNED_COUNTS_MS`."""
        pico = unsigned_pico(receipt, order, tariff, self.terms.window_tokens)
        if pico:
            self._unsigned[receipt.receipt_number] = receipt.issued_ms + UNSIGNED_COUNTS_MS, pico

    def note_disputed(self, receipt: Receipt, owed_pico: int, risk: int | None = None) -> None:
        """The client disputes the chain's receipt, and says that so much is owed: its order is closed.

        What it contests stays at risk, up to the order's own risk, until the provider accepts the dispute: whoever
        disputes everything gets no further than whoever signs nothing. `risk` is given where the order is not open in
        these books.
        """
        risk = self._risks.get(receipt.order_number, 0) if risk is None else risk
        self._at_stake[receipt.receipt_number] = min(risk, max(receipt.amount_pico - owed_pico, 0))
        if receipt.order_number in self._orders:
            self.note_unsigned(receipt, *self._orders[receipt.order_number])
        self.close_order(receipt.order_number)

    def note_accepted(self, receipt_number: int) -> None:
        """The dispute of the receipt was accepted: nothing is at risk on it any more."""
        self._at_stake.pop(receipt_number, None)

    @property
    def disputed(self) -> int:
        """Receipts that the client disputes in place of signing them, the provider not having accepted that."""
        return len(self._at_stake)

    def note_held(self, record_id: bytes, message: Dispute | Answer) -> None:
        """A dispute or an answer that no receipt mentions yet. For the provider: one that the client holds too."""
        if record_id not in self._mentioned:
            self._mentionable[record_id] = message

    def mentions(self, now_ms: int) -> tuple[bytes, ...]:
        """What the next receipt is to mention (provider)."""
        below, until_ms = self.last_receipt_number + 1, now_ms + CLOCK_TOLERANCE_MS
        fit = [i for i, m in self._mentionable.items() if m.receipt_number < below and _said_ms(m) <= until_ms]
        return tuple(fit[:MAX_MENTIONS])

    def mention_fault(self, receipt: Receipt) -> tuple[str, str] | None:
        """The finding code and a sentence if the receipt mentions what it may not, or None (client)."""
        for record_id in receipt.mentions:
            message = self._mentionable.get(record_id)
            if message is None:
                what = f"{record_id.hex()[:16]}, which is not known here or was mentioned before"
                return "wrong-mention", f"receipt {receipt.receipt_number} mentions {what}."
            for fault in faults_of_mention(receipt, message, mentioned_before=0):
                return fault.code, fault.sentence
        return None

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
        for record_id in receipt.message.mentions:
            self._mentionable.pop(record_id, None)
        self._mentioned.update(receipt.message.mentions)

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


def _said_ms(message: Dispute | Answer) -> int:
    return message.disputed_ms if isinstance(message, Dispute) else message.answered_ms
