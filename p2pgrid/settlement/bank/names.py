"""Invoices as matching knows them: each by a name of its own, its number where only one has it.

Our own numbers are ours to keep apart. Those of purchases are chosen by others, who may choose ours, or one another's:
these are then called by number and channel, and found by their reference alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Names:
    """What `match` is given, and what its names stand for."""

    invoices: tuple[OpenInvoice, ...]
    prepaid: tuple[PrepaidAccount, ...]
    _targets: Mapping[str, Target] = field(repr=False)
    _names: Mapping[Target, str] = field(repr=False)

    def target_of(self, name: str) -> Target:
        """Raises KeyError for a name that this run did not give."""
        return self._targets[name]

    def name_of(self, target: Target) -> str:
        """Also of what is on record no more."""
        return self._names.get(target) or _long_name(target)


def names_of(dealings: Sequence[Dealing], booked: Mapping[Target, int], ordered_ahead: Mapping[bytes, int]) -> Names:
    """Everything that a bank's entry may be for.

    `booked`: of purchases, what decisions booked on each so far, below zero what went out: by what the bank says, not
    the seller. `ordered_ahead`: by channel, how many cents we ordered to be paid ahead.
    """
    invoices: list[OpenInvoice] = []
    prepaid: list[PrepaidAccount] = []
    targets: dict[str, Target] = {}
    numbers = Counter(item.number for dealing in _euro(dealings) if dealing.is_purchase for item in dealing.found.items)
    ours = {item.number for dealing in _euro(dealings) if not dealing.is_purchase for item in dealing.found.items}
    sold = Counter(
        item.number for dealing in _euro(dealings) if not dealing.is_purchase for item in dealing.found.items
    )
    for dealing in sorted(_euro(dealings), key=lambda one: one.is_purchase):
        for item in dealing.found.items:
            target = Target(item.channel, item.place, dealing.is_purchase)
            is_one = numbers[item.number] == 1 and item.number not in ours if dealing.is_purchase else True
            is_one = is_one and (dealing.is_purchase or sold[item.number] == 1) and not _is_taken(item.number)
            name = item.number if is_one else _long_name(target)
            if name not in targets:
                targets[name] = target
                invoices.append(_invoice(name, item, dealing, booked.get(target, 0)))
        ahead = Target(dealing.found.channel, AHEAD, dealing.is_purchase)
        name = ahead_name(ahead)
        targets[name] = ahead
        reference = make_reference(ahead.channel)
        if not dealing.is_purchase:
            prepaid.append(
                PrepaidAccount(
                    name=name,
                    reference=reference,
                    debtor_name=dealing.other_name,
                    debtor_ibans=dealing.other_ibans,
                )
            )
        elif ordered_ahead.get(ahead.channel) or booked.get(ahead):
            invoices.append(
                OpenInvoice(
                    number=name,
                    reference=reference,
                    gross_cents=-ordered_ahead.get(ahead.channel, 0),
                    paid_cents=booked.get(ahead, 0),
                    debtor_name=dealing.other_name,
                    debtor_ibans=dealing.other_ibans,
                    is_purchase=True,
                )
            )
    return Names(tuple(invoices), tuple(prepaid), targets, {target: name for name, target in targets.items()})


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


def _euro(dealings: Iterable[Dealing]) -> list[Dealing]:
    return [dealing for dealing in dealings if dealing.currency == CURRENCY]


def _is_taken(number: str) -> bool:
    """True for a number that reads like the name of money ahead."""
    return " on channel " in number


def _long_name(target: Target) -> str:
    """No number is as long: it cannot be another's name."""
    return f"{target.number} of channel {target.channel.hex()}" if target.number else ahead_name(target)
