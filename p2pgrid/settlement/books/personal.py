"""Personal accounts: one number for each client (debtor) and each provider (creditor), given once and kept for good."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from p2pgrid.errors import LedgerError, UsageError
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.record import Role
from p2pgrid.settlement.database import prepare, transaction

ROOM: Final = "books"
STEPS: Final = (
    "CREATE TABLE personal_accounts (side TEXT NOT NULL, peer TEXT NOT NULL, number INTEGER NOT NULL, "
    "PRIMARY KEY (side, peer), UNIQUE (side, number)) STRICT",
)
RANGES: Final = {Role.PROVIDER: (10_000, 69_999), Role.CLIENT: (70_000, 99_999)}
"""DATEV's debtors and creditors, where general accounts have four digits."""

Personal = Mapping[tuple[Role, bytes], int]
"""By side and the counterparty's key: its number, as of general accounts of four digits; one that only longer numbers
can have, in full."""


class PersonalAccounts:
    """The numbers, in settlement.db. Each is given once and never again to another."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises LedgerError."""
        self._connection: Final = connection
        prepare(connection, ROOM, STEPS)

    def of(self, counterparties: Iterable[tuple[Role, bytes]]) -> dict[tuple[Role, bytes], int]:
        """Their numbers; whoever has none gets the next. Raises LedgerError where there are no more."""
        wanted = list(dict.fromkeys(counterparties))
        known = self.known()
        found = {one: known[one[0], peer_id(one[1])] for one in wanted if (one[0], peer_id(one[1])) in known}
        if len(found) == len(wanted):
            return found
        with transaction(self._connection):
            for side, key in wanted:
                if (side, key) not in found:
                    found[side, key] = self._given(side, peer_id(key))
        return found

    def known(self) -> dict[tuple[Role, str], int]:
        """All that were given, by side and peer id."""
        rows = self._connection.execute("SELECT side, peer, number FROM personal_accounts ORDER BY side, number")
        return {(Role(side), peer): number for side, peer, number in rows}

    def give(self, side: Role, peer: str, number: int, *, account_length: int = 4) -> None:
        """Give a peer a number of the accountant's, as it stands where general accounts have so many digits. Raises
        UsageError if either has another, or it is out of range."""
        more = 10 ** (account_length - 4)
        first, last = RANGES[side][0] * more, (RANGES[side][1] + 1) * more - 1
        if not first <= number <= last:
            raise UsageError(f"{number} is no account of a {_word(side)}: {first} to {last} were expected.")
        number = number // more if number % more == 0 else number
        with transaction(self._connection):
            for (other_side, other), taken in self.known().items():
                if other_side is side and (other == peer) is not (taken == number):
                    raise UsageError(
                        f"{other} has {personal_number(taken, account_length)}: a number that was given is never "
                        "changed.",
                        hint="Exports name it already.",
                    )
            row = side.value, peer, number
            self._connection.execute("INSERT OR IGNORE INTO personal_accounts VALUES (?, ?, ?)", row)

    def _given(self, side: Role, peer: str) -> int:
        """Within a transaction: the number of that peer, another process may have given it meanwhile."""
        sql = "SELECT number FROM personal_accounts WHERE side = ? AND peer = ?"
        if row := self._connection.execute(sql, (side.value, peer)).fetchone():
            return int(row[0])
        first, last = RANGES[side]
        taken = {
            number
            for (number,) in self._connection.execute(
                "SELECT number FROM personal_accounts WHERE side = ? AND number <= ?", (side.value, last)
            )
        }
        number: int = max((*taken, first - 1)) + 1
        if number > last:
            number = next((free for free in range(first, last + 1) if free not in taken), 0)
        if number == 0:
            raise LedgerError(
                f"no account of a {_word(side)} is free: all from {first} to {last} are given.",
                hint="Export with --chart plain, and ask your accountant for longer numbers.",
            )
        self._connection.execute("INSERT INTO personal_accounts VALUES (?, ?, ?)", (side.value, peer, number))
        return number


def personal_number(number: int, account_length: int) -> str:
    """A personal account's number where general ones have so many digits: it has one more."""
    return str(number if number > RANGES[Role.CLIENT][1] else number * 10 ** (account_length - 4))


def peer_id(key: bytes) -> str:
    """The peer id of a key."""
    return parse_public_key(key).peer_id


def _word(side: Role) -> str:
    return "debtor" if side is Role.PROVIDER else "creditor"
