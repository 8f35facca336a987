"""An operator's data folder, as its accountant sees it: channels, chart, rules, names, all put together."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from p2pgrid.config import Config
from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import Chart
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.booking import Rules, bookings_of
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.journal import Booking
from p2pgrid.settlement.books.neighbours import bank_files, parties_in, set_offs_in
from p2pgrid.settlement.books.parties import Parties, name_of, vat_id_of
from p2pgrid.settlement.books.personal import Personal, PersonalAccounts, peer_id
from p2pgrid.settlement.books.records import ChannelRecords, SetOffs, records_of_ledger
from p2pgrid.settlement.books.settings import chart_from, rules_of
from p2pgrid.settlement.clock import Days, days_of_zone
from p2pgrid.settlement.database import FILE_NAME, open_database


@dataclass(frozen=True, kw_only=True)
class Office:
    """All that books are made from. Its database is open as long as `open_office` is."""

    ledger: SqliteReader
    channels: tuple[ChannelRecords, ...]
    chart: Chart
    rules: Rules
    country: str
    """Where the operator is established; empty if nobody said."""
    stated_country: str
    """The same by config.toml alone."""
    parties: Parties
    accounts: PersonalAccounts
    days: Days
    set_offs: SetOffs
    database: sqlite3.Connection

    def books(self, span: Span, side: Role | None = None) -> BookSet:
        """The bookings of these days, named. Whoever has no personal account is given one."""
        bookings = bookings_of(self.channels, self.rules, span=span, side=side)
        parties = self._parties(side)
        names = {one: name_of(self.parties, one[1], one[0]) for one in parties}
        return BookSet(
            span=span,
            bookings=bookings,
            chart=self.chart,
            personal=self.personal(parties),
            names={one: name for one, name in names.items() if name != peer_id(one[1])},
            vat_ids={one: vat_id_of(self.parties, one[1], one[0]) for one in parties},
        )

    def before(self, span: Span, side: Role | None = None) -> list[Booking]:
        """The bookings of all days before."""
        eve = span.first - timedelta(days=1)
        return bookings_of(self.channels, self.rules, span=Span(eve.min, eve), side=side)

    def personal(self, parties: Collection[tuple[Role, bytes]]) -> Personal:
        """Their accounts."""
        return self.accounts.of(parties)

    def bank_files(self, span: Span) -> Mapping[str, bytes]:
        """What the bank's entries of these days were taken for."""
        return bank_files(self.database, span)

    def _parties(self, side: Role | None) -> list[tuple[Role, bytes]]:
        """By the age of their first channel, so that numbers do not depend on what is exported first."""
        return list(
            dict.fromkeys((one.side, one.counterparty) for one in self.channels if side is None or one.side is side)
        )


@contextmanager
def open_office(
    data: DataFolder, *, chart: str | None = None, mapping: Path | None = None, country: str = ""
) -> Iterator[Office]:
    """The books of a data folder, beside a running node or without one. Raises UsageError, LedgerError."""
    config = data.load_config()
    own_keys = [key.raw for key in data.own_public_keys()]
    days = days_of_zone(config.provider.time_zone)
    chosen = chart_from(config.billing.accounts, chart=chart, mapping=mapping)
    with (
        SqliteLedger.open_readonly(data.ledger_file) as ledger,
        closing(open_database(data.path / FILE_NAME)) as database,
    ):
        stated = country_of(config)
        where = country or stated
        set_offs, parties = set_offs_in(ledger), parties_in(database)
        yield Office(
            ledger=ledger,
            channels=tuple(records_of_ledger(ledger, own_keys, set_offs=set_offs, days=days)),
            chart=chosen,
            rules=rules_of(chosen, where, parties),
            country=where,
            stated_country=stated,
            parties=parties,
            accounts=PersonalAccounts(database),
            days=days,
            set_offs=set_offs,
            database=database,
        )


def country_of(config: Config) -> str:
    """Where the operator is established: `[billing] country`; empty where it does not say. Where its GPUs stand is
    another matter."""
    stated: str = getattr(config.billing, "country", "")
    return stated
