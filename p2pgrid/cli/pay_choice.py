"""Which payments `p2pgrid pay` orders, and which it leaves, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date

import msgspec

from p2pgrid.cli.asking import parse_peer
from p2pgrid.cli.settling import Workbench, parse_euros
from p2pgrid.clock import unix_ms
from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.paying.carried_out import CarriedOut
from p2pgrid.settlement.paying.make_orders import (
    account_of,
    ahead_order,
    batch_of,
    invoice_order,
)
from p2pgrid.settlement.paying.orders_book import Ordered, Purpose
from p2pgrid.settlement.paying.plan import Due, Plan, plan
from p2pgrid.settlement.payments.orders import Account, PaymentBatch, PaymentOrder


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the person asked for."""

    peers: frozenset[str]
    """Empty: all."""
    numbers: frozenset[str]
    """Empty: what is due by `last_day`."""
    last_day: date
    taken_back: Sequence[Ordered] = ()
    """Orders that are ordered anew, due or not."""
    is_that_all: bool = False
    """True: and nothing besides."""

    def has(self, due: Due) -> bool:
        anew = {(one.channel, one.shares[0].target.place[0]) for one in self.taken_back}
        if (due.side.id, due.statement_id) in anew:
            return True
        if self.is_that_all or (self.peers and due.side.peer_id not in self.peers):
            return False
        return bool(self.numbers & set(due.numbers)) if self.numbers else due.side.day_of(due.due_ms) <= self.last_day


@dataclass(kw_only=True)
class Chosen:
    """What is ordered, and what is not."""

    plan: Plan
    made: list[tuple[PaymentOrder, Ordered]] = field(default_factory=list)
    refused: list[tuple[Due, UsageError]] = field(default_factory=list)
    """Wanted, and not to be ordered as things stand: the account is unknown, or another than before, or no bank's."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How payments are ordered."""

    execution_date: date
    instant: bool
    is_sepa: bool
    confirmed: str | None
    """The IBAN that a person has agreed to, in its one form."""

    def batch(
        self, bench: Workbench, made: Sequence[tuple[PaymentOrder, Ordered]], before: Sequence[Ordered]
    ) -> tuple[PaymentBatch, list[Ordered]]:
        """Raises UsageError."""
        return batch_of(
            bench.own_account(Role.CLIENT), made, before,
            execution_date=self.execution_date, instant=self.instant, is_sepa=self.is_sepa, now_ms=unix_ms(),
        )  # fmt: skip


def take_back(bench: Workbench, keys: Sequence[str], sides: Sequence[Side], carried: CarriedOut) -> list[Ordered]:
    """The orders that no bank has carried out, counted as such in `carried` from here on; nothing is written. Raises
    UsageError."""
    chosen = {order.key: carried.fates[order.key] for key in keys for order in bench.orders.find(key)}
    waiting = plan(sides, carried, bench.refused).waiting
    for fate in chosen.values():
        order = fate.order
        if order.withdrawn_ms is not None:
            raise UsageError(
                f"the payment {order.key} was taken back before.", hint="What it was for is due as anything else is."
            )
        if fate.entry is not None:
            raise UsageError(
                f"your bank's file shows that the payment {order.key} was carried out on {fate.entry.booking_date}.",
                hint="It is ordered again by itself once the bank's file shows that it came back.",
            )
        if order.purpose is not Purpose.REFUND and not waiting.get((order.channel, order.shares[0].target.place[0])):
            raise UsageError(
                f"the payee has confirmed the payment {order.key}.",
                hint="`p2pgrid pay --list` shows what is waited for.",
            )
    for fate in chosen.values():
        fate.order = msgspec.structs.replace(fate.order, withdrawn_ms=unix_ms())
    return [fate.order for fate in chosen.values()]


def choose(
    bench: Workbench, sides: Sequence[Side], carried: CarriedOut, before: Sequence[Ordered], wanted: Wanted, how: How
) -> Chosen:
    """What is to be paid of what is wanted. Raises UsageError for what was named and cannot be, and if nothing can."""
    chosen = Chosen(plan=plan(sides, carried, bench.refused))
    _check_numbers(chosen.plan, [side for side in sides if side.is_purchase], wanted)
    for due in filter(wanted.has, chosen.plan.due):
        try:
            made = invoice_order(due, payee_of(bench, due.side, how.confirmed), before)
            how.batch(bench, [made], before)
        except UsageError as error:
            if wanted.numbers or wanted.peers:
                raise
            chosen.refused.append((due, error))
        else:
            chosen.made.append(made)
    by_id = {side.id: side for side in sides}
    for order in wanted.taken_back:
        if order.purpose is Purpose.AHEAD:
            side = by_id[order.channel]
            chosen.made.append(ahead_order(side, payee_of(bench, side, how.confirmed), order.amount_cents, before))
    if chosen.refused and not chosen.made:
        raise chosen.refused[0][1]
    return chosen


def prepayment(
    bench: Workbench, sides: Sequence[Side], carried: CarriedOut, before: Sequence[Ordered], peer: str, euros: str,
    how: How,
) -> Chosen:  # fmt: skip
    """So much ahead to a provider. Raises UsageError."""
    side = channel_with(sides, parse_peer(peer), unix_ms())
    cents = parse_euros(euros)
    order = ahead_order(side, payee_of(bench, side, how.confirmed), cents, before)
    return Chosen(plan=plan(sides, carried, bench.refused), made=[order])


def channel_with(sides: Sequence[Side], peer: str, at_ms: int) -> Side:
    """The channel on which this provider is paid ahead: the last that is in force. Raises UsageError."""
    found = [side for side in sides if side.is_purchase and side.peer_id == peer]
    if not found:
        raise UsageError(
            f"there is no channel with {peer} in which this node buys.", hint="Buy there once, then prepay."
        )
    chosen = ([side for side in found if side.channel.expires_ms > at_ms] or found)[-1]
    chosen.require_euros()
    return chosen


def payee_of(bench: Workbench, side: Side, confirmed: str | None) -> Account:
    """The account of a channel's other side, if it is the one that was paid before. Raises UsageError."""
    if side.details is None:
        raise UsageError(
            f"the account of {side.peer_id} is not known: it has sent no billing details.",
            hint=f"`p2pgrid settle {side.peer_id}` fetches them.",
        )
    payee = account_of(side.details)
    bench.check_account(side, payee, confirmed)
    return payee


def _check_numbers(found: Plan, sides: Collection[Side], wanted: Wanted) -> None:
    def is_meant(side: Side) -> bool:
        return not wanted.peers or side.peer_id in wanted.peers

    for number in sorted(wanted.numbers):
        payees = {one.side.peer_id for one in found.due if number in one.numbers and is_meant(one.side)}
        if len(payees) > 1:
            raise UsageError(
                f"more than one provider has an invoice {number!r}: {', '.join(sorted(payees))}.",
                hint="Say which with --peer.",
            )
        if payees:
            continue
        unfit = next((one for one in found.unfit if one.item.number == number and is_meant(one.side)), None)
        if unfit is not None:
            raise UsageError(f"the invoice {number!r} cannot be paid: {unfit.why}.")
        known = any(item.number == number for side in sides if is_meant(side) for item in side.found.items)
        what = "has nothing left to pay: it is paid, covered or ordered" if known else "is not one that was received"
        raise UsageError(f"the invoice {number!r} {what}.", hint="`p2pgrid pay --list` shows what is open.")
