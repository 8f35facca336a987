"""Records that a client had listed and this side asked for: each comes, in the order in which it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.record import Record, parse_record


class ListedRecords:
    """What has come so far."""

    def __init__(self, asked_for: Sequence[bytes], *, max_bytes: int) -> None:
        """`asked_for`: the records' ids. `max_bytes`: what one has at most, in wire form."""
        self._asked_for: Final = asked_for
        self._max_bytes: Final = max_bytes
        self.records: Final[list[Record]] = []

    @property
    def is_whole(self) -> bool:
        """True once all are here."""
        return len(self.records) == len(self._asked_for)

    def take(self, payload: bytes) -> None:
        """The next one. Raises ProtocolViolation for another, InvalidRecord for what is no record."""
        if len(payload) > self._max_bytes:
            raise ProtocolViolation(f"a record that was asked for here has at most {self._max_bytes} bytes.")
        record = parse_record(payload)
        if self.is_whole or record.id != self._asked_for[len(self.records)]:
            raise ProtocolViolation("another record came than the client had listed.")
        self.records.append(record)
