"""One channel as each side keeps it: numbers, the chain of receipts, credit, what is at risk (docs/spec/session.md, 8).

The provider numbers receipts and proposes them; the client checks that each fits the chain, and countersigns or
disputes it. Both sides reach the same decision from the same messages, and `restore.restore_books` gives either its
books back from what is durable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.chain import ChainHead, extend, faults_of_link
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.live_codes import LiveCode
from p2pgrid.proto.messages import MAX_MENTIONS, Channel, Order, Receipt, Tariff, Usage
from p2pgrid.proto.pricing import price_of
from p2pgrid.proto.record import Signed
from p2pgrid.proto.rules import Fault
from p2pgrid.units import AmountPico


@dataclass(frozen=True, slots=True)
class ChannelHead:
    """Where a channel stands: with the orders that are open, all that a session needs to go on after a restart."""

    last_order_number: int
    """Highest order number on record; 0 if none."""
    chain: ChainHead
    """What the next receipt builds on: the last receipt on record, proposals among them, or the channel itself."""
    countersigned_pico: int
    """Sum of the amounts of the receipts that carry both signatures."""


def risk_pico(order: Order, tariff: Tariff, window_tokens: int) -> AmountPico:
    """What the provider can lose on the order: the prompt and one window of output, unpaid."""
    usage = Usage(
        prompt_tokens=order.max_prompt_tokens, output_tokens=min(window_tokens, order.max_output_tokens)
    )
    try:
        return AmountPico(min(price_of(tariff, usage), order.max_amount_pico))
    except InvalidRecord:
        return AmountPico(order.max_amount_pico)


class ChannelBooks:
    """What both sides track alike, from the messages that passed between them.

    An order is open from `open_order` until its receipt is countersigned or disputed; a suspended one stays open.
    """

    def __init__(self, channel: Signed[Channel], head: ChannelHead) -> None:
        self.signed: Final = channel
        self.terms: Final = channel.message
        self.id: Final = channel.message.channel
        self.provider: Final = parse_public_key(channel.message.provider)
        self.client: Final = parse_public_key(channel.message.client)
        self.chain = head.chain
        self.last_order_number = head.last_order_number
        self.countersigned_pico = head.countersigned_pico
        self._risks: dict[int, int] = {}
        self._reserved: dict[int, int] = {}
        self._at_stake: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._unmentioned: dict[bytes, bool] = {}

    # -- orders and money -------------------------------------------------------------------------------------------

    @property
    def total_pico(self) -> int:
        """The channel's total, proposals and disputed receipts included."""
        return self.chain.total_pico

    @property
    def last_receipt_number(self) -> int:
        """0 before the first receipt."""
        return self.chain.receipt_number

    @property
    def last_receipt_id(self) -> bytes:
        """The last receipt's id; the channel's record id before the first."""
        return self.chain.record_id

    @property
    def open_orders(self) -> int:
        """Orders without a countersigned or disputed receipt."""
        return len(self._risks)

    @property
    def reserved_pico(self) -> int:
        """Most that orders without a receipt can add to the total."""
        return sum(self._reserved.values())

    def is_open(self, order_number: int) -> bool:
        """True while the order is open."""
        return order_number in self._risks

    def at_risk_pico(self, more_pico: int = 0) -> int:
        """What is unpaid for sure to be covered: all that is at risk and `more_pico`, the dearest one apart."""
        risks = [*self._risks.values(), *self._at_stake.values(), more_pico]
        return sum(risks) - max(risks)

    def may_open(self, risk: int) -> bool:
        """True if an order of that risk may be opened now: there is a place for it, and what the client has
        countersigned covers all that is then at risk, the dearest order apart. The first order needs no cover."""
        return self.open_orders < self.terms.max_open_orders and self.at_risk_pico(risk) <= self.countersigned_pico

    @property
    def may_order(self) -> bool:
        """True if some order, however small, may be opened now."""
        return self.may_open(0)

    def check_may_open(self, risk: int) -> None:
        """Raises Refused (`too-many-open-orders`) unless `may_open`."""
        if self.may_open(risk):
            return
        raise Refused(
            "too-many-open-orders",
            f"{self.open_orders} orders of this channel are open, with {self.at_risk_pico(risk)} pico-EUR at risk; "
            f"{self.countersigned_pico} are countersigned.",
            hint="Wait for one to end; receipts that are signed make room for more.",
        )

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

    def open_order(self, order: Order, tariff: Tariff) -> None:
        """An order is under way: reserve the most that it may cost, and count what it puts at risk."""
        self.last_order_number = max(self.last_order_number, order.order_number)
        self._risks[order.order_number] = risk_pico(order, tariff, self.terms.window_tokens)
        self._reserved[order.order_number] = order.max_amount_pico

    def release(self, order_number: int) -> None:
        """The order's cost is known: reserve nothing for it any more."""
        self._reserved.pop(order_number, None)

    def close_order(self, order_number: int) -> None:
        """The order needs nothing more: refused, never arrived, or its receipt carries both signatures."""
        self.release(order_number)
        self._risks.pop(order_number, None)

    def settle(self, receipt: Receipt) -> None:
        """A receipt carries both signatures now."""
        self.countersigned_pico += receipt.amount_pico
        self.close_order(receipt.order_number)

    def note_disputed(self, receipt: Receipt, risk: int | None = None) -> None:
        """The client has disputed the chain's receipt: its order is closed.

        What was at risk on it stays so until the provider accepts the dispute: whoever disputes everything gets no
        further than whoever signs nothing. `risk` is given where the order is not open in these books.
        """
        self._at_stake[receipt.receipt_number] = self._risks.get(receipt.order_number, 0) if risk is None else risk
        self.close_order(receipt.order_number)

    def note_accepted(self, receipt_number: int) -> None:
        """The dispute of the receipt was accepted: nothing is at risk on it any more."""
        self._at_stake.pop(receipt_number, None)

    # -- receipts that come early (client) --------------------------------------------------------------------------

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

    # -- the chain --------------------------------------------------------------------------------------------------

    def append(self, receipt: Signed[Receipt]) -> None:
        """Make the receipt the chain's last. The caller has checked that it fits."""
        self.chain = extend(receipt.message, receipt.id)
        for record_id in receipt.message.mentions:
            self._unmentioned.pop(record_id, None)

    def chain_faults(self, receipt: Receipt) -> list[Fault]:
        """Why the receipt is not the chain's next; empty if it is."""
        if receipt.channel != self.id:
            return [Fault(LiveCode.WRONG_CHANNEL, "The receipt is for another channel.")]
        return faults_of_link(self.chain, receipt, credit_limit_pico=self.terms.credit_limit_pico)

    def mention_faults(self, receipt: Receipt) -> list[Fault]:
        """Why the receipt's mentions do not fit what this side holds; empty if they do (client)."""
        unknown = [record_id for record_id in receipt.mentions if record_id not in self._unmentioned]
        if not unknown:
            return []
        sentence = f"The receipt mentions {unknown[0].hex()[:16]}, which is not here or was mentioned before."
        return [Fault(LiveCode.WRONG_MENTION, sentence)]

    def hold_unmentioned(self, record_ids: Iterable[bytes], *, both: bool) -> None:
        """Disputes or answers that no receipt mentions yet are durable here; with `both`, at the peer too."""
        for record_id in record_ids:
            self._unmentioned[record_id] = both or self._unmentioned.get(record_id, False)

    def next_mentions(self) -> tuple[bytes, ...]:
        """What the next receipt must mention: up to 16 of the disputes and answers that both sides hold (provider)."""
        return tuple([record_id for record_id, both in self._unmentioned.items() if both][:MAX_MENTIONS])
