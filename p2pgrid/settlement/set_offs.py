"""What was set off of invoices, by the ledger's records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pgrid.settlement.open_items import SetOffShare, SettlementRecords
from p2pgrid.settlement.set_off.claims import in_force, shares_in_force


def set_off_shares(ledger: SettlementRecords, channels: Sequence[bytes]) -> Iterable[SetOffShare]:
    """Of each invoice of these channels, what set-offs and cycles in force take off. Raises LedgerError."""
    return [share for channel in dict.fromkeys(channels) for share in shares_in_force(ledger, channel)]


def set_off_cents(ledger: SettlementRecords, channel: bytes) -> int:
    """All that set-offs and cycles in force take off what the channel's client owes. Raises LedgerError."""
    return sum(one.cents for one in in_force(ledger, channel))
