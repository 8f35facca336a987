"""How a person names a receipt: its id or the beginning of it, or CHANNEL:NUMBER."""

from __future__ import annotations

import re
from typing import Final, Protocol

from p2pgrid.errors import UsageError
from p2pgrid.ledger.base import ReceiptRow
from p2pgrid.proto.messages import Channel, Receipt
from p2pgrid.proto.record import Signed

MIN_PREFIX_CHARS: Final = 4
_NUMBERED: Final = re.compile(r"([0-9a-fA-F]{1,64}):([1-9][0-9]{0,15})")
_ID: Final = re.compile(r"[0-9a-fA-F]{1,64}")
_HINT: Final = "`p2pgrid receipts list --json` shows ids, channels and numbers."


class Receipts(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def find_receipts(self, prefix: str, *, limit: int = 2) -> list[ReceiptRow]: ...

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None: ...


def find_receipt(ledger: Receipts, name: str) -> tuple[Signed[Receipt], Signed[Channel]]:
    """The receipt of that name with its channel. Raises UsageError: no such name, none of that name, more than one."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        channel = find_channel(ledger, numbered[1])
        number = int(numbered[2])
        receipt = ledger.receipt(channel.message.channel, number)
        if receipt is None:
            raise UsageError(f"channel {numbered[1]} has no receipt {number}.", hint=_HINT)
        return receipt, channel
    if not _ID.fullmatch(name):
        raise UsageError(f"{name!r} names no receipt.", hint="Give an id, the beginning of one, or CHANNEL:NUMBER.")
    if len(name) < MIN_PREFIX_CHARS:
        raise UsageError(f"{name!r} is too short.", hint=f"Give at least {MIN_PREFIX_CHARS} digits of the id.")
    rows = ledger.find_receipts(name.lower())
    if not rows:
        raise UsageError(f"there is no receipt whose id begins with {name}.", hint=_HINT)
    if len(rows) > 1:
        raise UsageError(f"more than one receipt's id begins with {name}.", hint="Give more of it.")
    row = rows[0].receipt
    found = ledger.receipt(row.channel, row.receipt_number)
    assert found is not None
    return found, next(c for c in ledger.channels() if c.message.channel == row.channel)


def find_channel(ledger: Receipts, prefix: str) -> Signed[Channel]:
    """The channel whose id begins so. Raises UsageError."""
    found = [c for c in ledger.channels() if c.message.channel.hex().startswith(prefix.lower())]
    if len(found) != 1:
        what = "no channel's" if not found else "more than one channel's"
        raise UsageError(f"{what} id begins with {prefix}.", hint=_HINT if not found else "Give more of it.")
    return found[0]
