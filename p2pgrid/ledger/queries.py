"""The longer SELECTs of the ledger's reader: a channel's head, open orders, whole channels and whole ledgers."""

# ruff: noqa: S608 - names in the statements are constants of this package

from __future__ import annotations

from typing import Final

from p2pgrid.ledger.tables import TABLES
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Status, Voucher
from p2pgrid.proto.pricing import is_billed_by_voucher


def _union(payload_types: list[str], columns: str, where: str = "") -> str:
    """Rows of several tables in the order of arrival. SQLite merges them on `seq`; nothing is sorted or held."""
    arms = [f"SELECT '{t}' AS payload_type, {columns} FROM {TABLES[t].name} {where}" for t in payload_types]
    return " UNION ALL ".join(arms) + " ORDER BY seq"


def _union_of(payload_types: list[str]) -> str:
    """As `_union`, of one channel: type and `seq` alone."""
    arms = [
        f"SELECT '{t}' AS payload_type, seq FROM {TABLES[t].name} WHERE {TABLES[t].of_channel}" for t in payload_types
    ]
    return " UNION ALL ".join(arms) + " ORDER BY seq"


_FRAME_TYPES: Final = [Offer.payload_type, Channel.payload_type]
_DEALING_TYPES: Final = [t for t in TABLES if t not in _FRAME_TYPES]
ORDER_COLUMNS: Final = "o.payload, o.signatures, o.order_number"
"""Of `orders AS o`."""
BY_VOUCHER: Final = ", ".join(f"'{status.value}'" for status in Status if is_billed_by_voucher(status))
"""Statuses of receipts that bill what a voucher acknowledged."""

# One statement sees one moment, whatever the writer does meanwhile.
HEAD: Final = """
    SELECT c.id, (SELECT max(order_number) FROM orders WHERE channel = :channel),
           r.receipt_number, r.id, r.channel_total_pico,
           :counted + (SELECT count(*) FROM receipts WHERE channel = :channel AND receipt_number > :until),
           (SELECT count(*) FROM receipts WHERE channel = :channel AND signed_by = 'provider'),
           coalesce(r.channel_total_pico, 0) - coalesce(
               (SELECT sum(amount_pico) FROM receipts WHERE channel = :channel AND signed_by = 'provider'), 0),
           (SELECT min(receipt_number) FROM receipts WHERE channel = :channel AND signed_by = 'provider')
    FROM channels AS c LEFT JOIN receipts AS r ON r.seq =
        (SELECT seq FROM receipts WHERE channel = :channel ORDER BY receipt_number DESC LIMIT 1)
    WHERE c.channel = :channel
"""
# The inner query stays within two indexes: rows are fetched of the few orders without a receipt alone.
OPEN_ORDERS: Final = f"""
    SELECT {ORDER_COLUMNS} FROM orders AS o WHERE outcome IS NULL AND seq IN (
        SELECT seq FROM orders AS i WHERE channel = ? AND order_number >= ? AND NOT EXISTS (
            SELECT 1 FROM receipts AS r WHERE r.channel = i.channel AND r.order_number = i.order_number))
    ORDER BY order_number
"""
FRAME: Final = _union(_FRAME_TYPES, "payload, signatures, seq")
DEALINGS: Final = _union(_DEALING_TYPES, "payload, signatures, seq")
FRAME_OF: Final = f"""
    SELECT '{Offer.payload_type}' AS payload_type, payload, signatures, seq FROM offers
    WHERE id IN (SELECT offer FROM orders WHERE channel = :channel)
    UNION ALL
    SELECT '{Channel.payload_type}', payload, signatures, seq FROM channels WHERE channel = :channel
    ORDER BY seq
"""
DEALINGS_OF: Final = _union_of(_DEALING_TYPES)
ORDER_RECORDS: Final = _union(
    [Order.payload_type, Meter.payload_type, Voucher.payload_type, Receipt.payload_type],
    "payload, signatures, seq",
    "WHERE channel = :channel AND order_number = :order_number",
)
BY_SEQ: Final = {
    t: f"SELECT '{t}', payload, signatures, seq FROM {TABLES[t].name} WHERE seq = ?" for t in _DEALING_TYPES
}
