"""Which records of a ledger go into its operator's log (docs/spec/log.md, section 2)."""

# ruff: noqa: S608 - names in the statements are constants of this package; every value is bound

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.ledger.signatures import BOTH_ROLES
from p2pgrid.ledger.tables import TABLES
from p2pgrid.proto.card import Card
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.messages import Offer, Receipt
from p2pgrid.proto.record import PARTIES, Message, Role, Signed

LOGGED_TYPES: Final = tuple(message_type.payload_type for message_type in (Offer, Card, Receipt, Dispute, Answer))


@dataclass(frozen=True, slots=True)
class Loggable:
    """A record that the log should hold."""

    record_id: bytes
    channel: bytes
    """The channel whose parties may ask for its proof; empty for a record that anyone may see."""


def loggable(signed: Signed[Message], own_key: bytes) -> Loggable | None:
    """What the log of `own_key` (33 bytes) holds of a record; None for what it does not: unfinished, or not its own."""
    message = signed.message
    if isinstance(message, Offer):
        return Loggable(signed.id, b"") if message.provider == own_key else None
    if isinstance(message, Card):
        return Loggable(signed.id, b"") if Role.OPERATOR in signed.signers else None
    if isinstance(message, Receipt):
        return Loggable(signed.id, message.channel) if set(PARTIES) <= set(signed.signers) else None
    if isinstance(message, Dispute | Answer):
        return Loggable(signed.id, message.channel)
    return None


def select_loggable(own_peer_id: str) -> tuple[str, dict[str, Any]]:
    """SQL over the ledger's tables, and its parameters: id and channel of every record for the log, oldest first."""
    arms = []
    for payload_type in LOGGED_TYPES:
        table = TABLES.get(payload_type)
        if table is None:
            continue
        channel = "channel" if "channel" in table.columns else "''"
        where = _WHERE.get(payload_type, "TRUE")
        arms.append(f"SELECT seq, id, {channel} AS channel FROM {table.name} WHERE {where}")
    return " UNION ALL ".join(arms) + " ORDER BY seq", {"own": own_peer_id, "both": BOTH_ROLES}


def of_rows(rows: Sequence[tuple[int, str, str]]) -> list[Loggable]:
    """Rows of `select_loggable`."""
    return [Loggable(bytes.fromhex(record_id), bytes.fromhex(channel)) for _, record_id, channel in rows]


_WHERE: Final = {Offer.payload_type: "provider = :own", Receipt.payload_type: "signed_by = :both"}
