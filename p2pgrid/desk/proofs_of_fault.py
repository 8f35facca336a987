"""What a peer signed and this node could not accept, as it can be shown to an auditor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.record import Message, Record, parse_message, signature_input_of


class KeptEvidence(Protocol):
    """A ledger, opened for reading."""

    def evidence(self) -> Iterator[tuple[Record, str]]:
        """Unacceptable records with their reasons, in the order of arrival."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """One record that was not accepted, and why."""

    record: Record
    reason: str
    message: Message | None
    """None where the payload is no message of its type."""
    signers: tuple[str, ...]
    """Peer ids of the signatures that fit. Without one the record proves nothing against anybody."""

    @property
    def channel(self) -> bytes:
        """The channel that it speaks of; empty where it speaks of none."""
        return getattr(self.message, "channel", b"")


def kept_evidence(ledger: KeptEvidence, channel: bytes | None = None) -> Iterator[Kept]:
    """What is kept, in the order of arrival; with `channel`, what speaks of it."""
    for record, reason in ledger.evidence():
        kept = Kept(record, reason, _message_of(record), tuple(_signers_of(record)))
        if channel is None or kept.channel == channel:
            yield kept


def shown_records(kept: Iterable[Kept]) -> Iterator[Record]:
    """The records that somebody's signature stands under, each once: an auditor would hold any other against us."""
    seen = set[bytes]()
    for one in kept:
        if one.signers and one.record.id not in seen:
            seen.add(one.record.id)
            yield one.record


def _message_of(record: Record) -> Message | None:
    message_type = MESSAGE_TYPES.get(record.payload_type)
    if message_type is None:
        return None
    try:
        return parse_message(record, message_type)
    except InvalidRecord:
        return None


def _signers_of(record: Record) -> Iterator[str]:
    data = signature_input_of(record)
    for signature in record.signatures:
        try:
            key = parse_public_key(signature.key)
        except InvalidRecord:
            continue
        if key.verify(data, signature.signature):
            yield key.peer_id
