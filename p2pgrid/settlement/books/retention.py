"""Which keys to requests may be destroyed, and from when on (docs/settlement/books.md, section 6). Pure over a ledger.

A commitment key can show what was asked and answered. It is kept as long as somebody may have to show that: until
nobody can dispute the receipt any more, and whoever disputed it has got its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from p2pgrid.ledger.base import DisputeRow, KeptKey, ReceiptRow
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Signed

DAY_MS: Final = 86_400_000


class Stay(StrEnum):
    """Why a key is kept."""

    DISPUTABLE = "disputable"
    """A party may dispute the receipt still, or answer a dispute of it."""
    DISPUTED = "disputed"
    """A dispute of it has no answer."""
    ANSWERED_LATELY = "answered-lately"
    """A dispute of it was answered: the parties have as long again to show an auditor what was asked."""
    NOT_COUNTERSIGNED = "not-countersigned"
    """The client can dispute the receipt as long as it has not signed it."""
    OPEN = "open"
    """The order has no receipt yet."""


class KeysLedger(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def kept_keys(self, before_ms: int) -> Iterator[KeptKey]: ...

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]: ...

    def receipts(self, *, channel: bytes | None = None, limit: int | None = None) -> list[ReceiptRow]: ...

    def dispute_ids(self, channel: bytes, *, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]: ...


@dataclass(frozen=True, kw_only=True)
class KeyPlan:
    """What may go now, and what stays."""

    orders: tuple[tuple[bytes, int], ...]
    """Channel and number of the orders whose keys may be destroyed."""
    staying: Mapping[Stay, int] = field(default_factory=dict)
    next_ms: int = 0
    """When the first of those that stay may go, Unix milliseconds; 0 if none has a day."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said about one receipt."""

    unanswered: bool = False
    answered_ms: int = 0


def plan_keys(ledger: KeysLedger, now_ms: int) -> KeyPlan:
    """Every kept key, judged. Raises LedgerError."""
    channels = {one.message.channel: one.message for one in ledger.channels()}
    said = _said(ledger.disputes())
    orders: list[tuple[bytes, int]] = []
    staying: Counter[Stay] = Counter()
    next_ms = 0
    for key in ledger.kept_keys(now_ms):
        terms = channels.get(key.channel)
        if terms is None:
            continue  # a channel that was never in force has no receipts
        why, until_ms = judge(key, terms, *_of(said, key))
        if until_ms is not None and now_ms > until_ms:
            orders.append((key.channel, key.order_number))
            continue
        staying[why] += 1
        if until_ms is not None:
            next_ms = min(next_ms or until_ms + 1, until_ms + 1)
    return KeyPlan(orders=tuple(orders), staying=dict(sorted(staying.items())), next_ms=next_ms)


def judge(key: KeptKey, terms: Channel, unanswered: bool, answered_ms: int) -> tuple[Stay, int | None]:
    """Why a key is kept, and the last moment at which it has to be; None as long as nobody can say.

    `unanswered`: a dispute of its receipt has no answer. `answered_ms`: when the last one got its answer, 0 if none.
    """
    term_ms = terms.dispute_days * DAY_MS + CLOCK_TOLERANCE_MS
    if unanswered:
        return Stay.DISPUTED, None
    if not key.receipt:
        if key.outcome is not None:
            return Stay.DISPUTABLE, key.ordered_ms + 2 * term_ms
        return Stay.OPEN, max(terms.expires_ms, key.ordered_ms) + 2 * term_ms
    until_ms, why = key.issued_ms + 2 * term_ms, Stay.DISPUTABLE
    if not key.countersigned:
        until_ms, why = max(terms.expires_ms + 2 * term_ms, until_ms), Stay.NOT_COUNTERSIGNED
    if answered_ms + term_ms > until_ms:
        return Stay.ANSWERED_LATELY, answered_ms + term_ms
    return why, until_ms


def plan_salts(ledger: KeysLedger, now_ms: int) -> tuple[bytes, ...]:
    """Ids of the receipts, disputes and answers whose salts in the log may go: where nobody can dispute the receipt any
    more. Raises LedgerError."""
    said = _said(ledger.disputes())
    found: list[bytes] = []
    for channel in ledger.channels():
        terms = channel.message
        gone = set()
        for row in ledger.receipts(channel=terms.channel):
            key = KeptKey(
                channel=terms.channel,
                order_number=row.receipt.order_number,
                ordered_ms=row.receipt.issued_ms,
                outcome=None,
                receipt=row.record_id,
                receipt_number=row.receipt.receipt_number,
                issued_ms=row.receipt.issued_ms,
                countersigned=row.countersigned,
            )
            _, until_ms = judge(key, terms, *_of(said, key))
            if until_ms is not None and now_ms > until_ms:
                found.append(row.record_id)
                gone.add(row.receipt.receipt_number)
        found += [record_id for number, record_id in ledger.dispute_ids(terms.channel) if number in gone]
    return tuple(found)


def _said(disputes: Iterable[DisputeRow]) -> dict[tuple[bytes, int], _Said]:
    said: dict[tuple[bytes, int], _Said] = {}
    for row in disputes:
        place = row.dispute.message.channel, row.dispute.message.receipt_number
        before = said.get(place, _Said())
        answered_ms = row.answer.message.answered_ms if row.answer is not None else 0
        said[place] = _Said(before.unanswered or row.answer is None, max(before.answered_ms, answered_ms))
    return said


def _of(said: Mapping[tuple[bytes, int], _Said], key: KeptKey) -> tuple[bool, int]:
    one = said.get((key.channel, key.receipt_number), _Said()) if key.receipt else _Said()
    return one.unanswered, one.answered_ms
