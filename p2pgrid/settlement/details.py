"""Billing details kept in settlement.db: this node's own, each version signed, and its peers'.

A peer's are checked before they are kept. A changed account is noted and stays shown until a person has confirmed it:
an invoice with another IBAN, sent in a supplier's name, is the commonest fraud there is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pgrid.clock import unix_ms
from p2pgrid.config import BillingConfig
from p2pgrid.errors import InvalidRecord, LedgerError
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.record import Record, Role, Signed, parse_record, sign_message, verify_self_signed
from p2pgrid.settlement.billing import draft_details, faults_of
from p2pgrid.settlement.database import prepare, transaction

MAX_SEQUENCES: Final = 1000
"""Versions of one peer's details that are kept; more is no business any more."""

_STEPS: Final = (
    """CREATE TABLE billing_details (
        party BLOB NOT NULL, role TEXT NOT NULL, sequence INTEGER NOT NULL, is_own INTEGER NOT NULL,
        stated_ms INTEGER NOT NULL, kept_ms INTEGER NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (party, role, sequence)) STRICT""",
    """CREATE TABLE account_changes (
        party BLOB NOT NULL, role TEXT NOT NULL, sequence INTEGER NOT NULL, noticed_ms INTEGER NOT NULL,
        iban_before TEXT NOT NULL, iban_now TEXT NOT NULL, confirmed_ms INTEGER,
        PRIMARY KEY (party, role, sequence)) STRICT""",
)


@dataclass(frozen=True, slots=True)
class AccountChange:
    """A peer that was paid at one account wants to be paid at another."""

    party: bytes
    """The peer's key, 33 bytes."""
    by: Role
    noticed_ms: int
    """By our own clock."""
    iban_before: str
    iban_now: str
    is_confirmed: bool
    """True once a person has said that the new account is the peer's."""

    def __str__(self) -> str:
        peer = parse_public_key(self.party).peer_id
        return (
            f"ACCOUNT CHANGED: {peer} was paid at {self.iban_before} and now names {self.iban_now or 'no account'}. "
            "Ask them on a way that you know of old, not by what came with the change."
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of keeping a peer's details."""

    is_new: bool
    """False where this version, or a later one, was known."""
    account_change: AccountChange | None = None
    """Not None: show it, loudly."""


class DetailsBook:
    """The billing details of this node and of those it deals with."""

    def __init__(self, connection: sqlite3.Connection, now_ms: Callable[[], int] = unix_ms) -> None:
        """`connection`: of `database.open_database`. Raises LedgerError."""
        self._connection: Final = connection
        self._now_ms: Final = now_ms
        prepare(connection, "details", _STEPS)

    # -- own --------------------------------------------------------------------------------------------------------

    def own(self, by: Role) -> Signed[BillingDetails] | None:
        """This node's own, as it signed them last; None before `make_own`."""
        rows = self._connection.execute(
            "SELECT record FROM billing_details WHERE is_own = 1 AND role = ? ORDER BY rowid DESC LIMIT 1", (by.value,)
        ).fetchall()
        return _read(rows[0][0]) if rows else None

    def make_own(self, billing: BillingConfig, key: SecretKey, by: Role) -> Signed[BillingDetails]:
        """Sign `[billing]`, with the next sequence if it says anything else than what was signed last.

        Durable when this returns. Raises InvalidRecord where something is wrong, or a name and a country are missing;
        LedgerError; LocalError where a library is missing.
        """
        now_ms = self._now_ms()
        draft = draft_details(billing, party=key.public_key, by=by, stated_ms=now_ms)
        faults = faults_of(draft)
        if faults:
            raise InvalidRecord("out-of-range", f"[billing]: {faults[0]}", hint="Run: p2pgrid billing check")
        with transaction(self._connection):
            last = self.of(key.public_key.raw, by)
            if last is not None:
                message = msgspec.structs.replace(
                    draft, sequence=last.message.sequence, stated_ms=last.message.stated_ms
                )
                if message == last.message:
                    return last
                draft = msgspec.structs.replace(draft, sequence=last.message.sequence + 1)
            try:
                signed = sign_message(draft, by, key)
            except InvalidRecord as error:
                raise InvalidRecord(
                    error.code,
                    "[billing] in config.toml has not enough for billing details: a legal name and a country are the "
                    f"least ({error.message})",
                    hint="Run: p2pgrid billing check",
                ) from None
            self._insert(signed, now_ms, is_own=True)
        return signed

    def make_own_of_all(self, billing: BillingConfig, keys: Sequence[SecretKey], by: Role) -> Signed[BillingDetails]:
        """`make_own` for each of a node's keys, the present one first: former ones may be parties of channels."""
        for key in reversed(keys[1:]):
            self.make_own(billing, key, by)
        return self.make_own(billing, keys[0], by)

    # -- peers ------------------------------------------------------------------------------------------------------

    def keep(self, signed: Signed[BillingDetails]) -> Kept:
        """Keep a peer's details. Its signature was verified; that its key is the channel's is the caller's to know
        (`parse_details`).

        Raises InvalidRecord: a field is wrong (`out-of-range`), another version had this sequence (`malformed`), or it
        is of the future (`time-backwards`); LedgerError.
        """
        message, now_ms = signed.message, self._now_ms()
        faults = faults_of(message)
        if faults:
            raise InvalidRecord("out-of-range", f"the billing details of a peer are refused: {faults[0]}")
        if message.stated_ms > now_ms + CLOCK_TOLERANCE_MS:
            raise InvalidRecord("time-backwards", "the billing details are dated later than now.")
        with transaction(self._connection):
            same = self._row(message.party, message.by, message.sequence)
            if same is not None:
                if same.id != signed.id:
                    raise InvalidRecord(
                        "malformed", f"the peer has signed two billing details with the sequence {message.sequence}."
                    )
                return Kept(is_new=False)
            last = self.of(message.party, message.by)
            if last is not None and last.message.sequence > message.sequence:
                return Kept(is_new=False)
            count = self._connection.execute(
                "SELECT count(*) FROM billing_details WHERE party = ? AND role = ?", (message.party, message.by.value)
            ).fetchone()[0]
            if count >= MAX_SEQUENCES:
                raise InvalidRecord("out-of-range", f"the peer has changed its billing details {count} times.")
            self._insert(signed, now_ms, is_own=False)
            change = self._note_account(last, signed, now_ms)
        return Kept(is_new=True, account_change=change)

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        """What a party (33 bytes of its key) last said of itself in that role: the highest sequence."""
        row = self._connection.execute(
            "SELECT record FROM billing_details WHERE party = ? AND role = ? ORDER BY sequence DESC LIMIT 1",
            (party, by.value),
        ).fetchone()
        return _read(row[0]) if row is not None else None

    def all_of(self, party: bytes, by: Role) -> list[Signed[BillingDetails]]:
        """Every version that is kept, by sequence."""
        rows = self._connection.execute(
            "SELECT record FROM billing_details WHERE party = ? AND role = ? ORDER BY sequence", (party, by.value)
        )
        return [_read(record) for (record,) in rows]

    def peers(self) -> list[Signed[BillingDetails]]:
        """The last details of every peer, by name."""
        rows = self._connection.execute(
            "SELECT record, max(sequence) FROM billing_details WHERE is_own = 0 GROUP BY party, role"
        )
        return sorted((_read(record) for record, _ in rows), key=lambda signed: signed.message.legal_name)

    # -- accounts ---------------------------------------------------------------------------------------------------

    def account_change(self, party: bytes, by: Role) -> AccountChange | None:
        """The change by which the party came to the account that it names now; None if it never named another."""
        last = self.of(party, by)
        found = [change for change in self.account_changes() if (change.party, change.by) == (party, by)]
        return found[-1] if found and last is not None and last.message.iban == found[-1].iban_now else None

    def account_changes(self) -> list[AccountChange]:
        """All of them, in the order in which they were noticed."""
        rows = self._connection.execute(
            "SELECT party, role, noticed_ms, iban_before, iban_now, confirmed_ms FROM account_changes ORDER BY rowid"
        )
        return [
            AccountChange(party, Role(role), noticed, before, now, is_confirmed=confirmed is not None)
            for party, role, noticed, before, now, confirmed in rows
        ]

    def confirm_account(self, party: bytes, by: Role, iban: str) -> bool:
        """A person says that this account is the party's. False unless it is the one that it names now, changed."""
        with transaction(self._connection):  # what comes meanwhile is not what the person looked at
            last = self.of(party, by)
            if last is None or last.message.iban != iban:
                return False
            changed = self._connection.execute(
                "UPDATE account_changes SET confirmed_ms = ? WHERE party = ? AND role = ? AND confirmed_ms IS NULL",
                (self._now_ms(), party, by.value),
            ).rowcount
        return changed > 0

    # -- inside -----------------------------------------------------------------------------------------------------

    def _row(self, party: bytes, by: Role, sequence: int) -> Signed[BillingDetails] | None:
        rows = self._connection.execute(
            "SELECT record FROM billing_details WHERE party = ? AND role = ? AND sequence = ?",
            (party, by.value, sequence),
        ).fetchall()
        return _read(rows[0][0]) if rows else None

    def _insert(self, signed: Signed[BillingDetails], now_ms: int, *, is_own: bool) -> None:
        m = signed.message
        self._connection.execute(
            "INSERT INTO billing_details VALUES (?, ?, ?, ?, ?, ?, ?)",
            (m.party, m.by.value, m.sequence, int(is_own), m.stated_ms, now_ms, signed.record.to_bytes()),
        )

    def _note_account(
        self, last: Signed[BillingDetails] | None, signed: Signed[BillingDetails], now_ms: int
    ) -> AccountChange | None:
        """What is compared is the last account that there was: one that is left out and comes back is no change."""
        m = signed.message
        if last is None:
            return None
        known = [d.message.iban for d in self.all_of(m.party, m.by) if d.message.iban and d.id != signed.id]
        if not known or not m.iban or known[-1] == m.iban:
            return None
        before = known[-1]
        self._connection.execute(
            "INSERT INTO account_changes VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (m.party, m.by.value, m.sequence, now_ms, before, m.iban),
        )
        return AccountChange(m.party, m.by, now_ms, before, m.iban, is_confirmed=False)


def parse_details(record: Record, *, party: PublicKey, by: Role) -> Signed[BillingDetails]:
    """A peer's details as they came, verified: signed by the channel's party, in its role, and naming it.

    Raises InvalidRecord.
    """
    signed = verify_self_signed(record, BillingDetails, by)
    if signed.signers[by] != party or signed.message.party != party.raw or signed.message.by is not by:
        raise InvalidRecord("wrong-key", f"these billing details are not those of {party.peer_id} as {by}.")
    return signed


def _read(record: bytes) -> Signed[BillingDetails]:
    """A record that was verified when it was written; it is verified again, for the file may have been touched."""
    try:
        parsed = parse_record(record)
        role = parsed.signatures[0].role
        return verify_self_signed(parsed, BillingDetails, role)
    except (InvalidRecord, IndexError) as error:
        raise LedgerError(
            f"settlement.db holds billing details that do not verify: {error}.", hint="Restore it from a backup."
        ) from None
