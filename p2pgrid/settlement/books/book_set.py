"""Bookings together with what names them: accounts, counterparties. What every export is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import AccountRole, Chart, name_in
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.journal import Booking, BookingLine
from p2pgrid.settlement.books.personal import Personal, peer_id, personal_number

PERSONAL_ROLES = (AccountRole.RECEIVABLES, AccountRole.PAYABLES)
"""Lines of these roles are on the counterparty's own account."""


class Account(NamedTuple):
    """An account as exports name it."""

    number: str
    name: str


@dataclass(frozen=True, kw_only=True)
class BookSet:
    """All that an export needs."""

    span: Span
    bookings: Sequence[Booking]
    chart: Chart
    personal: Personal
    names: Mapping[tuple[Role, bytes], str] = field(default_factory=dict)
    vat_ids: Mapping[tuple[Role, bytes], str] = field(default_factory=dict)

    def name(self, booking: Booking) -> str:
        """The counterparty's."""
        return self.names.get((booking.side, booking.counterparty)) or peer_id(booking.counterparty)

    def account(self, booking: Booking, line: BookingLine) -> Account:
        """Where a line is booked."""
        if line.role in PERSONAL_ROLES:
            number = self.personal[booking.side, booking.counterparty]
            return Account(personal_number(number, self.chart.account_length), self.name(booking))
        return self.general(line.role)

    def general(self, role: AccountRole) -> Account:
        """A general account."""
        return Account(self.chart.number(role), name_in(self.chart, role))
