"""What was set off of invoices, by the ledger's records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pgrid.settlement.open_items import SetOffShare, SettlementRecords


def set_off_shares(ledger: SettlementRecords, channels: Sequence[bytes]) -> Iterable[SetOffShare]:
    """Of each invoice of these channels, what was set off. No record says so yet."""
    return ()
