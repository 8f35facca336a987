"""What `p2pgrid pay` and `p2pgrid bank` stand on: settlement.db, the ledger, and whoever signs Payments."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Final

import msgspec

from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import BookPayments, PaymentsBooked
from p2pgrid.errors import InvalidRecord, LocalError, UsageError
from p2pgrid.ledger.lock import LedgerInUse, WriterLock
from p2pgrid.ledger.schema import missing_ledger
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import Payment
from p2pgrid.settlement.bank.runs import Runs
from p2pgrid.settlement.bank.store import BankStore, lock_path
from p2pgrid.settlement.bank.view import Details, Side, look
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.paying.make_orders import account_of, account_that_changed
from p2pgrid.settlement.paying.orders_book import OrdersBook
from p2pgrid.settlement.payments.cents import NotAnAmount, cents_of
from p2pgrid.settlement.payments.days import day_of
from p2pgrid.settlement.payments.orders import Account
from p2pgrid.settlement.set_offs import set_off_shares

_MAX_ASK_BYTES: Final = 256 * 1024
"""A command socket takes four times as much."""
_ASK_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class Workbench:
    """One command's hold on a data folder, as long as `workbench` lasts: no other pays or books meanwhile."""

    data: DataFolder
    orders: OrdersBook
    details: Details
    runs: Runs
    refused: Mapping[bytes, str]
    """Invoices (record ids) whose document does not fit, and why: they are not paid."""

    def own_account(self, by: Role) -> Account:
        """This node's own, from which it pays. Raises UsageError."""
        billing = self.data.load_config().billing
        if isinstance(self.details, DetailsBook) and billing.iban:
            try:
                self.details.make_own(billing, self.data.load_key(), by)
            except InvalidRecord as error:
                raise UsageError(error.message, hint=error.hint) from None
        for key in self.data.own_public_keys():
            known = self.details.of(key.raw, by)
            if known is not None and known.message.iban:
                return account_of(known.message)
        raise UsageError(
            "your own account is not known.", hint="Write name, address and iban under [billing] in config.toml."
        )

    def check_account(self, side: Side, payee: Account, confirmed: str | None) -> None:
        """Raises UsageError for an account that changed and that nobody has confirmed. `confirmed`: what a person named
        now, which counts as `p2pgrid billing confirm` does."""
        by = Role.PROVIDER if side.is_purchase else Role.CLIENT
        book = self.details if isinstance(self.details, DetailsBook) else None
        change = book.account_change(side.other, by) if book is not None else None
        account_that_changed(payee, self.orders.account_of(side.peer_id), change, confirmed, side.peer_id)
        if book is not None and confirmed == payee.iban:
            book.confirm_account(side.other, by, payee.iban)


@contextmanager
def workbench(data: DataFolder) -> Iterator[Workbench]:
    """Raises LocalError where another such command runs or the disk refuses, UsageError where there is no ledger."""
    if not data.ledger_file.exists():
        raise missing_ledger(data.ledger_file)
    path = data.path / FILE_NAME
    try:
        lock = WriterLock(lock_path(path))
    except LedgerInUse:
        raise LocalError(
            f"another `p2pgrid pay` or `p2pgrid bank` is at work in {data.path}.", hint="Wait until it has ended."
        ) from None
    try:
        with closing(open_database(path)) as connection:
            details = open_details(connection)
            orders = OrdersBook(connection)

            async def book(groups: Sequence[tuple[Payment, ...]]) -> Sequence[str]:
                return await _book(data, groups)

            runs = Runs(BankStore(connection), orders, lambda: _sides(data, details), book, unix_ms)
            documents = Documents(data.path, connection).all_received()
            refused = {one.invoice: one.message for one in documents if one.is_refused}
            yield Workbench(data, orders, details, runs, refused)
    finally:
        lock.release()


def open_details(connection: sqlite3.Connection) -> Details:
    """Billing details of ours and of others, as settlement.db keeps them."""
    return DetailsBook(connection)


def parse_day(text: str) -> date:
    """Raises UsageError for what is no day."""
    try:
        return day_of(text)
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no day.", hint="Write it like 2027-01-31.") from None


def parse_euros(text: str) -> int:
    """Cents, above zero. Raises UsageError."""
    try:
        cents = cents_of(text)
    except NotAnAmount as error:
        raise UsageError(f"{error}.", hint='Write EUR with a point, like "12.40".') from None
    if not cents:
        raise UsageError("0 EUR cannot be paid.", hint='Write EUR, like "12.40".')
    return cents


def today() -> date:
    """By this machine's clock and time zone."""
    return date.today()


def _sides(data: DataFolder, details: Details) -> tuple[Side, ...]:
    from p2pgrid.ledger.sqlite import SqliteLedger

    ours = [key.raw for key in data.own_public_keys()]
    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        return look(ledger, ours, details, set_off_shares)


async def _book(data: DataFolder, groups: Sequence[tuple[Payment, ...]]) -> list[str]:
    """By the node that runs, or here on the ledger; as many asks as it takes."""
    from p2pgrid.cli.asking import ask_or_do
    from p2pgrid.desk.bookings import book_payments
    from p2pgrid.ledger.sqlite import SqliteLedger

    keys = [data.load_key(), *data.load_retired_keys()]
    refused: list[str] = []
    for ask in _asks(groups):

        async def here(ask: BookPayments = ask) -> PaymentsBooked:
            ledger = SqliteLedger.open(data.ledger_file)
            try:
                return await book_payments(ledger, keys, ask, now_ms=unix_ms())
            finally:
                await ledger.aclose()

        done = await ask_or_do(data, ask, PaymentsBooked, here, timeout_s=_ASK_TIMEOUT_S)
        refused += done.refused
    return refused


def _asks(groups: Sequence[tuple[Payment, ...]]) -> Iterator[BookPayments]:
    chunk: list[tuple[Payment, ...]] = []
    size = 0
    for group in groups:
        length = len(msgspec.json.encode(group)) + 1
        if chunk and (size + length > _MAX_ASK_BYTES or len(chunk) == 1000):
            yield BookPayments(groups=tuple(chunk))
            chunk, size = [], 0
        chunk.append(group)
        size += length
    if chunk:
        yield BookPayments(groups=tuple(chunk))
