"""Reading the ledger on disk, beside its writer or without one.

What is read back to be acted on (channels, orders, vouchers, receipts, offers) has its signatures checked again; what
is only listed or exported has not: the audit does that.
"""

# ruff: noqa: S608 - names in the statements are constants of this package; every value is bound

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from p2pgrid.errors import InvalidRecord
from p2pgrid.ledger.base import BilledReceipt, DisputeRow, KeptKey, OpenOrder, ReceiptRow, SettlementMark
from p2pgrid.ledger.journal import Mark, settled_mark
from p2pgrid.ledger.logged import Loggable, of_rows, select_loggable
from p2pgrid.ledger.prefix import Prefix, Prefixes
from p2pgrid.ledger.queries import (
    BY_SEQ,
    BY_VOUCHER,
    DEALINGS,
    DEALINGS_OF,
    FRAME,
    FRAME_OF,
    HEAD,
    OPEN_ORDERS,
    ORDER_COLUMNS,
    ORDER_RECORDS,
)
from p2pgrid.ledger.reading import read_channel, read_named, read_offer, read_signed
from p2pgrid.ledger.schema import (
    SCHEMA_VERSION,
    check_version,
    connect_reader,
    missing_ledger,
    outdated_ledger,
    storage_errors,
)
from p2pgrid.ledger.signatures import BOTH_ROLES, damaged, decode_signatures
from p2pgrid.ledger.tables import PLACED_BY, TABLES
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.messages import Channel, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import M, Message, Record, Role, Signed, parse_message
from p2pgrid.proto.set_off_rules import NAMING_TYPES, is_of_channel

_FETCH_ROWS: Final = 256


class SqliteReader:
    """A ledger opened for reading, in step with its writer's last commit. Its methods block; use it from any thread.

    Every method raises LedgerError when the file cannot be read or a record in it is damaged.
    """

    def __init__(self, path: Path) -> None:
        """For `open_readonly` and `open`."""
        self.path: Final = path
        self._reading = threading.Lock()
        self._prefixes: Prefixes | None = None
        """Where the writer of the ledger reads, too; else every channel is read as a whole."""
        with storage_errors(path):
            self._reader = connect_reader(path)
            try:
                version = check_version(path, self._reader)
                if not version:
                    raise missing_ledger(path)
                if version < SCHEMA_VERSION:
                    raise outdated_ledger(path, version)
            except BaseException:
                self._reader.close()
                raise

    def channels(self) -> list[Signed[Channel]]:
        """Every channel with both signatures on record, oldest first."""
        rows = self._rows("SELECT payload, signatures FROM channels WHERE signed_by = ? ORDER BY seq", BOTH_ROLES)
        return [read_channel(_record(Channel, row)) for row in rows]

    def head(self, channel: bytes) -> ChannelHead:
        """Where the channel (32-byte id) stands. Raises KeyError for a channel that is not on record."""
        prefix = self._prefix(channel)
        rows = self._rows(HEAD, {"channel": channel.hex(), "until": prefix.counted_until, "counted": prefix.counted})
        if not rows:
            raise KeyError(channel.hex())
        channel_record, last_order, last_receipt, receipt_id, total, receipts, proposals, signed_pico, first = rows[0]
        countersigned = receipts - proposals
        if prefix.is_certain and first is None:
            prefix.counted_until, prefix.counted = last_receipt or 0, receipts
        return ChannelHead(
            last_order_number=last_order or 0,
            last_receipt_number=last_receipt or 0,
            last_receipt_id=bytes.fromhex(receipt_id or channel_record),
            total_pico=total or 0,
            countersigned=countersigned,
            countersigned_pico=signed_pico,
        )

    def open_orders(self, channel: bytes) -> list[OpenOrder]:
        """Orders without a receipt and without an outcome, by number."""
        prefix = self._prefix(channel)
        # In this order: what is written between the two is above the first, and is read anew the next time.
        ((last,),) = self._rows("SELECT max(order_number) FROM orders WHERE channel = ?", channel.hex())
        rows = self._rows(OPEN_ORDERS, channel.hex(), prefix.open_from)
        if prefix.is_certain:
            prefix.open_from = rows[0][2] if rows else (last or 0) + 1
        return self._orders(channel, rows)

    def _prefix(self, channel: bytes) -> Prefix:
        return self._prefixes.of(channel) if self._prefixes is not None else Prefix(is_certain=False)

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None:
        """One order with its last voucher, whatever became of it."""
        rows = self._rows(
            f"SELECT {ORDER_COLUMNS} FROM orders AS o WHERE channel = ? AND order_number = ?",
            channel.hex(),
            order_number,
        )
        return next(iter(self._orders(channel, rows)), None)

    def proposals(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that the provider signed and the client has not, by number."""
        return self._channel_receipts(channel, "signed_by = 'provider' ORDER BY receipt_number")

    def billed_by_voucher(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that bill what a voucher acknowledged, issued within the hour before the channel's latest."""
        where = (
            f"status IN ({BY_VOUCHER}) AND issued_ms > (SELECT issued_ms FROM receipts AS last WHERE channel = ?1 "
            "ORDER BY receipt_number DESC LIMIT 1) - ?2 ORDER BY receipt_number"
        )
        return self._channel_receipts(channel, where, UNSIGNED_COUNTS_MS)

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None:
        """One receipt with the signatures it has (`signers` tells which), or None."""
        return next(iter(self._channel_receipts(channel, "receipt_number = ?2", receipt_number)), None)

    def offer(self, offer_id: bytes) -> Signed[Offer] | None:
        """One offer by its record id, or None."""
        rows = self._rows("SELECT payload, signatures FROM offers WHERE id = ?", offer_id.hex())
        return read_offer(_record(Offer, rows[0])) if rows else None

    def receipts(self, *, channel: bytes | None = None, limit: int | None = None) -> list[ReceiptRow]:
        """Receipts, newest first."""
        parameters = {"channel": channel.hex() if channel else None, "limit": -1 if limit is None else limit}
        where, order = ("", "r.seq") if channel is None else ("WHERE r.channel = :channel", "r.receipt_number")
        return self._receipt_rows(f"{where} ORDER BY {order} DESC LIMIT :limit", parameters)

    def billed_receipts(self, channel: bytes, *, after: int, limit: int) -> list[BilledReceipt]:
        """Receipts of the channel above number `after`, by number. Signatures are not checked again."""
        rows = self._rows(
            "SELECT r.id, r.payload, r.signatures, r.signed_by, o.ordered_ms FROM receipts AS r "
            "JOIN orders AS o USING (channel, order_number) "
            "WHERE r.channel = ? AND r.receipt_number > ? ORDER BY r.receipt_number LIMIT ?",
            channel.hex(),
            after,
            limit,
        )
        return [
            BilledReceipt(bytes.fromhex(record_id), _message(Receipt, columns), signed_by == BOTH_ROLES, ordered_ms)
            for record_id, *columns, signed_by, ordered_ms in rows
        ]

    def find_receipts(self, prefix: str, *, limit: int = 2) -> list[ReceiptRow]:
        """Receipts whose id, as 64 lower-case hex digits, begins so; by id."""
        # `g` follows every hex digit.
        parameters = {"from": prefix, "until": prefix + "g", "limit": limit}
        return self._receipt_rows("WHERE r.id >= :from AND r.id < :until ORDER BY r.id LIMIT :limit", parameters)

    def order_records(self, channel: bytes, order_number: int) -> list[Record]:
        """The order, its meters, vouchers and receipt, in the order of arrival."""
        rows = self._rows(ORDER_RECORDS, {"channel": channel.hex(), "order_number": order_number})
        return [Record(payload_type, payload, decode_signatures(blob)) for payload_type, payload, blob, _ in rows]

    def _receipt_rows(self, rest: str, parameters: dict[str, Any]) -> list[ReceiptRow]:
        rows = self._rows(
            "SELECT r.id, r.payload, r.signatures, r.signed_by, c.channel, c.payload, c.signatures FROM receipts AS r "
            f"JOIN channels AS c USING (channel) {rest}",
            parameters,
        )
        channels: dict[str, Channel] = {}
        listed: list[ReceiptRow] = []
        for record_id, payload, signatures, signed_by, channel_id, *channel_columns in rows:
            if channel_id not in channels:
                channels[channel_id] = _message(Channel, channel_columns)
            receipt = _message(Receipt, (payload, signatures))
            listed.append(ReceiptRow(bytes.fromhex(record_id), receipt, channels[channel_id], signed_by == BOTH_ROLES))
        return listed

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]:
        """Disputes with their answers, in the order of arrival; or those alone that have none."""
        where = " AND ".join(
            ["TRUE", *(["d.channel = ?"] if channel is not None else []), *(["a.seq IS NULL"] if unanswered else [])]
        )
        return self._dispute_rows(where, *([channel.hex()] if channel is not None else []))

    def dispute(self, record_id: bytes) -> DisputeRow | None:
        """The dispute with that id, or that to which the answer of that id is; None if neither is on record."""
        own = record_id.hex()
        where = "d.id IN (SELECT ? UNION SELECT dispute FROM answers WHERE id = ?)"
        return next(iter(self._dispute_rows(where, own, own)), None)

    def dispute_ids(self, channel: bytes, *, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]:
        """Number of the receipt and id of each dispute and answer about receipts above number `after`, by number."""
        parameters = {"channel": channel.hex(), "after": after, "limit": -1 if limit is None else limit}
        arms = [
            f"SELECT receipt_number, id, seq FROM {name} WHERE channel = :channel AND receipt_number > :after"
            for name in ("disputes", "answers")
        ]
        rows = self._rows(f"{' UNION ALL '.join(arms)} ORDER BY receipt_number, seq LIMIT :limit", parameters)
        return [(number, bytes.fromhex(record_id)) for number, record_id, _ in rows]

    def _dispute_rows(self, where: str, *values: str) -> list[DisputeRow]:
        rows = self._rows(
            "SELECT d.channel, d.payload, d.signatures, a.payload, a.signatures FROM disputes AS d "
            f"LEFT JOIN answers AS a ON a.channel = d.channel AND a.dispute = d.id WHERE {where} ORDER BY d.seq",
            *values,
        )
        found = []
        for channel_id, *columns in rows:
            parties = self._channel(bytes.fromhex(channel_id))
            dispute = read_signed(_record(Dispute, columns[:2]), Dispute, parties)
            answer = read_signed(_record(Answer, columns[2:]), Answer, parties) if columns[2] is not None else None
            found.append(DisputeRow(dispute, answer))
        return found

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]:
        """All records of a type of settlement's in a channel, in the order of arrival. Raises LedgerError."""
        table = TABLES[message_type.payload_type]
        sql = f"SELECT payload, signatures FROM {table.name} WHERE {table.of_channel} ORDER BY seq"
        rows = [_record(message_type, row) for row in self._rows(sql, {"channel": channel.hex()})]
        if message_type in NAMING_TYPES:
            named = [read_named(record, message_type) for record in rows]
            known = self._rows("SELECT payload, signatures FROM channels WHERE channel = ?", channel.hex())
            of_it = _message(Channel, known[0]) if named and known else None
            return [one for one in named if of_it is None or is_of_channel(one.message, of_it)]
        parties = self._channel(channel) if rows else None
        return [read_signed(record, message_type, parties) for record in rows if parties is not None]

    def settlement_marks(self, message_type: type[Message], channel: bytes) -> list[SettlementMark]:
        """Which statements, invoices or payments a channel has; no signature is checked. Raises LedgerError."""
        table = TABLES[message_type.payload_type]
        columns = f"{PLACED_BY[message_type.payload_type]}, id, signed_by"
        rows = self._rows(f"SELECT {columns} FROM {table.name} WHERE channel = ? ORDER BY seq", channel.hex())
        return [SettlementMark(place, bytes.fromhex(record_id), _roles(roles)) for place, record_id, roles in rows]

    def settlement_records(self, message_type: type[M], channel: bytes, ids: Sequence[bytes]) -> Iterator[Signed[M]]:
        """Some of them, in this order, each one's signatures checked as it is taken; what is not on record is left out.

        Raises LedgerError.
        """
        where = "channel = ? AND id IN (SELECT value FROM json_each(?))"
        sql = f"SELECT id, payload, signatures FROM {TABLES[message_type.payload_type].name} WHERE {where}"
        wanted = [one.hex() for one in ids]
        rows = {record_id: row for record_id, *row in self._rows(sql, channel.hex(), json.dumps(wanted))}
        parties = self._channel(channel) if rows else None
        for record_id in wanted:
            if parties is not None and record_id in rows:
                yield read_signed(_record(message_type, rows[record_id]), message_type, parties)

    def mentioned(self, channel: bytes, after: int) -> set[bytes]:
        """Ids that receipts of the channel above number `after` mention."""
        rows = self._rows(
            "SELECT mentions FROM receipts WHERE channel = ? AND receipt_number > ? AND mentions <> ''",
            channel.hex(),
            after,
        )
        return {bytes.fromhex(mention) for (mentions,) in rows for mention in mentions.split()}

    def request_key(self, channel: bytes, order_number: int) -> bytes | None:
        """The commitment key of an order's request, or None: never kept, or erased."""
        sql = "SELECT key FROM request_keys WHERE channel = ? AND order_number = ?"
        rows = self._rows(sql, channel.hex(), order_number)
        return bytes(rows[0][0]) if rows else None

    def request_keys_before(self, time_ms: int) -> list[tuple[bytes, int]]:
        """Channel and number of the orders of before that time whose commitment key is kept."""
        rows = self._rows(
            "SELECT k.channel, k.order_number FROM request_keys AS k JOIN orders AS o USING (channel, order_number) "
            "WHERE o.ordered_ms < ? ORDER BY o.seq",
            time_ms,
        )
        return [(bytes.fromhex(channel), number) for channel, number in rows]

    def kept_keys(self, before_ms: int) -> Iterator[KeptKey]:
        """Those of the orders of before that time, in the order of arrival. Memory does not grow with them."""
        self._before_reading()
        with storage_errors(self.path), closing(connect_reader(self.path)) as conn:
            cursor = conn.execute(
                "SELECT k.channel, k.order_number, o.ordered_ms, o.outcome, r.id, r.receipt_number, r.issued_ms, "
                "r.signed_by FROM request_keys AS k JOIN orders AS o USING (channel, order_number) "
                "LEFT JOIN receipts AS r USING (channel, order_number) WHERE o.ordered_ms < ? ORDER BY o.seq",
                (before_ms,),
            )
            while rows := cursor.fetchmany(_FETCH_ROWS):
                for channel, number, ordered_ms, outcome, receipt, receipt_number, issued_ms, signed_by in rows:
                    yield KeptKey(
                        channel=bytes.fromhex(channel),
                        order_number=number,
                        ordered_ms=ordered_ms,
                        outcome=outcome,
                        receipt=bytes.fromhex(receipt or ""),
                        receipt_number=receipt_number or 0,
                        issued_ms=issued_ms or 0,
                        countersigned=signed_by == BOTH_ROLES,
                    )

    def receipts_before(self, time_ms: int) -> list[bytes]:
        """Ids of the receipts for orders of before that time, and of the disputes and answers about them."""
        receipts = (
            "SELECT r.channel, r.receipt_number, r.id, r.seq FROM orders AS o "
            "JOIN receipts AS r USING (channel, order_number) WHERE o.ordered_ms < :time"
        )
        about = [
            f"SELECT a.id, a.seq FROM {name} AS a JOIN early USING (channel, receipt_number)"
            for name in ("disputes", "answers")
        ]
        arms = " UNION ALL ".join(["SELECT id, seq FROM early", *about])
        rows = self._rows(f"WITH early AS ({receipts}) {arms} ORDER BY seq", {"time": time_ms})
        return [bytes.fromhex(record_id) for record_id, _ in rows]

    def records(self, *, channel: bytes | None = None) -> Iterator[Record]:
        """Every record that an audit needs, in the order of arrival: offers and channels first to last, then the rest.

        With `channel`, only that channel's records and the offers that its orders name. What it yields is the ledger
        at one moment, however long the reading takes; memory does not grow with the ledger.
        """
        self._before_reading()
        with storage_errors(self.path), closing(connect_reader(self.path)) as conn:
            conn.execute("BEGIN")
            if channel is None:
                for sql in (FRAME, DEALINGS):
                    yield from _stream(conn.execute(sql))
            else:
                parameters = {"channel": channel.hex()}
                yield from _stream(conn.execute(FRAME_OF, parameters))
                arrivals = conn.execute(DEALINGS_OF, parameters)
                while some := arrivals.fetchmany(_FETCH_ROWS):
                    for payload_type, seq in some:
                        yield from _stream(conn.execute(BY_SEQ[payload_type], (seq,)))

    def evidence(self) -> Iterator[tuple[Record, str]]:
        """Unacceptable records that peers signed, each with the reason, in the order of arrival."""
        self._before_reading()
        with storage_errors(self.path), closing(connect_reader(self.path)) as conn:
            cursor = conn.execute("SELECT payload_type, payload, signatures, reason FROM evidence ORDER BY seq")
            while rows := cursor.fetchmany(_FETCH_ROWS):
                for payload_type, payload, signatures, reason in rows:
                    yield Record(payload_type, payload, decode_signatures(signatures)), reason

    def loggable(self, own_peer_id: str) -> Iterator[Loggable]:
        """Every record that the log of this peer should hold, in the order of arrival."""
        self._before_reading()
        with storage_errors(self.path), closing(connect_reader(self.path)) as conn:
            cursor = conn.execute(*select_loggable(own_peer_id))
            while rows := cursor.fetchmany(_FETCH_ROWS):
                yield from of_rows(rows)

    def counts(self) -> dict[str, int]:
        """Rows by payload type, and `evidence`. It counts them one by one: not for a hot path."""
        names = {**{payload_type: table.name for payload_type, table in TABLES.items()}, "evidence": "evidence"}
        sql = ", ".join(f"(SELECT count(*) FROM {name})" for name in names.values())
        return dict(zip(names, self._rows(f"SELECT {sql}")[0], strict=True))

    def close(self) -> None:
        """Close the file. Blocks until all that is queued is durable or has failed; the futures say which."""
        with self._reading:
            self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of one statement, which sees one moment of the ledger. A lone dict is named parameters."""
        named = parameters[0] if len(parameters) == 1 and isinstance(parameters[0], dict) else parameters
        self._before_reading()
        return self._committed(sql, named)

    def _committed(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """As `_rows`, of what the file has now."""
        named = parameters[0] if len(parameters) == 1 and isinstance(parameters[0], dict | tuple) else parameters
        with self._reading, storage_errors(self.path):
            return self._reader.execute(sql, named).fetchall()

    def _before_reading(self) -> None:
        """The writer, which knows more than the file has, settles it first."""

    def settled(self) -> Mark:
        """Up to where the journal is settled."""
        with self._reading, storage_errors(self.path):
            return settled_mark(self._reader)

    def _orders(self, channel: bytes, rows: list[tuple[Any, ...]]) -> list[OpenOrder]:
        if not rows:
            return []
        parties = self._channel(channel)
        return [
            OpenOrder(
                order=read_signed(_record(Order, row[:2]), Order, parties),
                voucher=self._last_voucher(channel, row[2], parties),
            )
            for row in rows
        ]

    def _last_voucher(self, channel: bytes, order_number: int, parties: Channel) -> Signed[Voucher] | None:
        rows = self._rows(
            "SELECT payload, signatures FROM vouchers WHERE channel = ? AND order_number = ? "
            "ORDER BY tick DESC LIMIT 1",
            channel.hex(),
            order_number,
        )
        return read_signed(_record(Voucher, rows[0]), Voucher, parties) if rows else None

    def _channel_receipts(self, channel: bytes, where: str, *parameters: int) -> list[Signed[Receipt]]:
        rows = self._rows(
            f"SELECT payload, signatures FROM receipts WHERE channel = ?1 AND {where}",
            channel.hex(),
            *parameters,
        )
        if not rows:
            return []
        parties = self._channel(channel)
        return [read_signed(_record(Receipt, row), Receipt, parties) for row in rows]

    def _channel(self, channel: bytes) -> Channel:
        rows = self._rows("SELECT payload, signatures FROM channels WHERE channel = ?", channel.hex())
        if not rows:
            raise damaged("its channel is gone")
        return _message(Channel, rows[0])


@cache
def _roles(signed_by: str) -> frozenset[Role]:
    return frozenset(Role(role) for role in signed_by.split(","))


def _record(message_type: type[Message], row: Any) -> Record:
    payload, signatures = row
    return Record(message_type.payload_type, payload, decode_signatures(signatures))


def _message(message_type: type[M], row: Any) -> M:
    try:
        return parse_message(_record(message_type, row), message_type)
    except InvalidRecord as error:
        raise damaged(error.message) from None


def _stream(cursor: sqlite3.Cursor) -> Iterator[Record]:
    """Records from rows of payload type, payload, signatures, seq."""
    while rows := cursor.fetchmany(_FETCH_ROWS):
        for payload_type, payload, signatures, _ in rows:
            yield Record(payload_type, payload, decode_signatures(signatures))
