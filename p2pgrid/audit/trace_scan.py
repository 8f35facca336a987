"""Receipts that no statement holds, looked for in the bundles themselves.

Of a large bundle the audit keeps no plain order of a channel that has never been settled: it is verified and counted.
Whoever asks for one of its receipts gets it from the file, its signatures checked once more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from p2pgrid.audit.trace_book import TraceBook
from p2pgrid.errors import InvalidRecord
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.channel_book import roles_of
from p2pgrid.proto.evidence import Copy, Held
from p2pgrid.proto.findings import Place
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Record, Role, parse_message, verify_record

_NAMED: Final = re.compile(r"(?:receipt:)?(?:([0-9a-f]{4,64})|([0-9a-f]{1,64}):([1-9][0-9]{0,15}))", re.IGNORECASE)


def add_receipts(book: TraceBook, paths: Sequence[Path], name: str) -> None:
    """Put into the book the receipts of this name that the audit counted and did not keep."""
    named = _NAMED.fullmatch(name.strip())
    if named is None:
        return
    start, channel_start = (named[1] or "").lower(), (named[2] or "").lower()
    number = int(named[3] or 0)
    lacking = {c.id: c for c in book.channels if c.book.elided.sums.receipts and c.id.hex().startswith(channel_start)}
    if not lacking:
        return
    for receipt, record, place in _receipts_in(paths, lambda message: message.channel in lacking):
        if not record.id.hex().startswith(start) or number not in (0, receipt.receipt_number):
            continue
        channel = lacking[receipt.channel]
        if receipt.receipt_number in channel.book.receipts:
            continue
        roles = {Role.PROVIDER, *(signature.role for signature in record.signatures)}
        keys = {role: key for role, key in roles_of(channel.book.channel.message).items() if role in roles}
        try:
            verify_record(record, Receipt, {role: parse_public_key(key) for role, key in keys.items()})
        except InvalidRecord:
            continue  # an altered copy: the audit has a finding about it
        held = Held(record.id, receipt, [Copy(place, keys, frozenset(keys), None)], dict(keys))
        channel.book.receipts[receipt.receipt_number] = held


def _receipts_in(
    paths: Sequence[Path], is_wanted: Callable[[Receipt], bool]
) -> Iterator[tuple[Receipt, Record, Place]]:
    for index, path in enumerate(paths):
        for line, entry in read_bundle(path):
            if isinstance(entry, Record) and entry.payload_type == Receipt.payload_type:
                try:
                    message = parse_message(entry, Receipt)
                except InvalidRecord:
                    continue
                if is_wanted(message):
                    yield message, entry, Place(index, line)
