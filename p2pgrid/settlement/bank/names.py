"""Invoices as matching knows them: each by a name of its own, its number where only one has it.

Our own numbers are ours to keep apart. Those of purchases are chosen by others, who may choose ours, or one another's:
these are then called by number and channel, and found by their reference alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.settlement.bank.stored import Target
from p2pgrid.settlement.open_items import AHEAD, ChannelItems, OpenItem
from p2pgrid.settlement.payments.decisions import OpenInvoice, PrepaidAccount
from p2pgrid.settlement.payments.reference import make_reference

CURRENCY: Final = "EUR"
_SHOWN: Final = 16


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """One channel as the bank's side sees it."""

    found: ChannelItems
    is_purchase: bool
    currency: str
    other_name: str = ""
    """Of the other side, as its account is called."""
    other_ibans: tuple[str, ...] = ()


class Names:
    """What `match` is given, and what its names stand for."""

    def __init__(
        self, invoices: Sequence[OpenInvoice], prepaid: Sequence[PrepaidAccount], targets: Mapping[str, Target]
    ) -> None:
        """`targets`: every name's, no two the same."""
        self.invoices: Final = tuple(invoices)
        self.prepaid: Final = tuple(prepaid)
        self._targets = dict(targets)
        self._names = {target: name for name, target in targets.items()}

    def target_of(self, name: str) -> Target:
        """Raises KeyError for a name that this run did not give."""
        return self._targets[name]

    def name_of(self, target: Target) -> str:
        """Also of what is on record no more: it gets a name that no invoice has."""
        if target not in self._names:
            self._names[target] = _long_name(target)
            self._targets[self._names[target]] = target
        return self._names[target]

    def find(self, number: str) -> list[Target]:
        """The invoices that a person may mean: of that name, or else of that number."""
        if number in self._targets and self._targets[number].number:
            return [self._targets[number]]
        return [target for target in self._names if target.number == number]


def names_of(dealings: Sequence[Dealing], booked: Mapping[Target, int], ordered_ahead: Mapping[bytes, int]) -> Names:
    """Everything that a bank's entry may be for.

    `booked`: of purchases, what decisions booked on each so far, below zero what went out: by what the bank says, not
    the seller. `ordered_ahead`: by channel, how many cents we ordered to be paid ahead.
    """
    euro = [dealing for dealing in dealings if dealing.currency == CURRENCY]
    owners = {
        is_purchase: Counter(item.number for one in euro if one.is_purchase is is_purchase for item in one.found.items)
        for is_purchase in (False, True)
    }
    invoices: list[OpenInvoice] = []
    prepaid: list[PrepaidAccount] = []
    targets: dict[str, Target] = {}
    for dealing in euro:
        for item in dealing.found.items:
            target = Target(item.channel, item.place, dealing.is_purchase)
            is_own = owners[dealing.is_purchase][item.number] == 1 and not _reads_like_money_ahead(item.number)
            is_own = is_own and not (dealing.is_purchase and owners[False][item.number])
            name = item.number if is_own else _long_name(target)
            targets[name] = target
            invoices.append(_invoice(name, item, dealing, booked.get(target, 0)))
        ahead = Target(dealing.found.channel, AHEAD, dealing.is_purchase)
        targets[ahead_name(ahead)] = ahead
        if dealing.is_purchase:
            invoices += _ordered_ahead(ahead, dealing, ordered_ahead.get(ahead.channel, 0), booked.get(ahead, 0))
        else:
            prepaid.append(
                PrepaidAccount(
                    name=ahead_name(ahead),
                    reference=make_reference(ahead.channel),
                    debtor_name=dealing.other_name,
                    debtor_ibans=dealing.other_ibans,
                )
            )
    return Names(invoices, prepaid, targets)


def _ordered_ahead(ahead: Target, dealing: Dealing, ordered_cents: int, booked_cents: int) -> list[OpenInvoice]:
    """What we ordered to be paid ahead, as an invoice that we got over so much."""
    if not (ordered_cents or booked_cents):
        return []
    invoice = OpenInvoice(
        number=ahead_name(ahead),
        reference=make_reference(ahead.channel),
        gross_cents=-ordered_cents,
        paid_cents=booked_cents,
        debtor_name=dealing.other_name,
        debtor_ibans=dealing.other_ibans,
        is_purchase=True,
    )
    return [invoice]


def ahead_name(target: Target) -> str:
    """What money ahead on a channel is called."""
    return f"{'prepayment on' if target.is_purchase else 'money ahead on'} channel {target.channel.hex()[:_SHOWN]}"


def _invoice(name: str, item: OpenItem, dealing: Dealing, booked_cents: int) -> OpenInvoice:
    sign = -1 if dealing.is_purchase else 1
    return OpenInvoice(
        number=name,
        reference=make_reference(item.invoice.statement),
        gross_cents=sign * (item.gross_cents - item.set_off_cents),
        paid_cents=booked_cents if dealing.is_purchase else item.paid_cents,
        debtor_name=dealing.other_name,
        debtor_ibans=dealing.other_ibans,
        is_purchase=dealing.is_purchase,
    )


def _reads_like_money_ahead(number: str) -> bool:
    return " on channel " in number


def _long_name(target: Target) -> str:
    """No number is as long: it cannot be another's name."""
    return f"{target.number} of channel {target.channel.hex()}" if target.number else ahead_name(target)
