"""Which log should hold which of the records that are exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.messages import Channel, Offer, Receipt
from p2pgrid.proto.record import PARTIES, Message, Record, parse_message

_ID_BYTES: Final = 32
_TYPES: Final[dict[str, type[Message]]] = {one.payload_type: one for one in (Offer, Channel, Receipt, Dispute, Answer)}


class WantedProofs:
    """Ids of records by the log (its key's 33 bytes) that should hold them: offers, receipts with both signatures,
    disputes and answers, all in the log of the provider. 32 bytes are kept for each."""

    def __init__(self) -> None:
        self._providers: dict[bytes, bytes] = {}
        self._ids: dict[bytes, dict[str, bytearray]] = {}

    def note(self, record: Record) -> None:
        """Look at a record of the ledger. A channel comes before what is of it."""
        message_type = _TYPES.get(record.payload_type)
        if message_type is None:
            return
        try:
            message = parse_message(record, message_type)
        except InvalidRecord:
            return  # the audit will say so
        if isinstance(message, Channel):
            self._providers[message.channel] = message.provider
        elif isinstance(message, Offer):
            self._add(message.provider, "offer", record.id)
        elif isinstance(message, Dispute | Answer):
            self._add(self._providers.get(message.channel), type(message).__name__.lower(), record.id)
        elif isinstance(message, Receipt) and {one.role for one in record.signatures} >= set(PARTIES):
            self._add(self._providers.get(message.channel), "receipt", record.id)

    @property
    def logs(self) -> list[bytes]:
        """The keys of the logs."""
        return list(self._ids)

    def count(self, log: bytes) -> int:
        """How many records that log should hold."""
        return sum(len(ids) for ids in self._ids[log].values()) // _ID_BYTES

    def batches(self, log: bytes, size: int) -> Iterator[tuple[str, list[bytes]]]:
        """What they are (`receipt`, `offer`, `dispute`, `answer`) and the ids of so many at once."""
        for kind, ids in self._ids[log].items():
            for first in range(0, len(ids), size * _ID_BYTES):
                some = ids[first : first + size * _ID_BYTES]
                yield kind, [bytes(some[at : at + _ID_BYTES]) for at in range(0, len(some), _ID_BYTES)]

    def _add(self, log: bytes | None, kind: str, record_id: bytes) -> None:
        if log is not None:
            self._ids.setdefault(log, {}).setdefault(kind, bytearray()).extend(record_id)
