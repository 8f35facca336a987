"""The receipts of one channel as a chain: link, extend, verify (docs/spec/audit.md, section 4).

Receipt 1 names the channel's record; every other names the receipt before it, and carries the sum so far. Whoever
holds the last receipt with both signatures holds them all: none can be left out or changed without a trace.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.codes import Party
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.rules import Fault


class ChainHead(msgspec.Struct, frozen=True, gc=False):
    """Where a chain stands: what the next receipt must build on."""

    receipt_number: int
    """0 before the first receipt."""
    record_id: bytes
    """The last receipt's id; the channel's record id before the first."""
    total_pico: int
    issued_ms: int


def chain_start(channel: Channel, channel_record_id: bytes) -> ChainHead:
    """The head of a chain without receipts."""
    return ChainHead(0, channel_record_id, 0, channel.opened_ms)


def extend(receipt: Linked, record_id: bytes) -> ChainHead:
    """The head after a receipt. It takes what the receipt states, so that one fault does not spoil those after it."""
    return ChainHead(receipt.receipt_number, record_id, receipt.channel_total_pico, receipt.issued_ms)


class Linked(Protocol):
    """What of a receipt makes the chain."""

    @property
    def receipt_number(self) -> int: ...
    @property
    def previous(self) -> bytes: ...
    @property
    def amount_pico(self) -> int: ...
    @property
    def channel_total_pico(self) -> int: ...
    @property
    def issued_ms(self) -> int: ...


def is_total_right(head: ChainHead, receipt: Linked) -> bool:
    """Does the channel's total follow from that of `head`? Behind a gap it need only be no less than what is known."""
    least = head.total_pico + receipt.amount_pico
    total = receipt.channel_total_pico
    return total == least if receipt.receipt_number == head.receipt_number + 1 else total >= least


def faults_of_link(head: ChainHead, receipt: Linked) -> list[Fault]:
    """Does the receipt follow `head`? `receipt-gap`, `broken-link`, `wrong-total`, `time-backwards`."""
    number, total = receipt.receipt_number, receipt.channel_total_pico
    faults = []
    if number != head.receipt_number + 1:
        faults.append(Fault("receipt-gap", f"After receipt {head.receipt_number} comes receipt {number}."))
    elif receipt.previous != head.record_id:
        before = f"receipt {head.receipt_number}" if head.receipt_number else "the channel"
        faults.append(Fault("broken-link", f"Receipt {number} does not name {before} as the one before it."))
    if not is_total_right(head, receipt):
        sentence = (
            f"The total of receipt {number} is {total} pico; its amount of {receipt.amount_pico} "
            f"follows a total of {head.total_pico}."
        )
        faults.append(Fault("wrong-total", sentence))
    if receipt.issued_ms < head.issued_ms - CLOCK_TOLERANCE_MS:
        sentence = f"By its time receipt {number} comes before what it follows."
        faults.append(Fault("time-backwards", sentence, Party.PROVIDER))
    return faults
