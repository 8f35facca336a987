"""Payments that came of a bank's file: checked against the ledger once more, signed, appended.

Only the node's own user asks; the check is against errors, not against him: no cent is booked that the ledger does not
have room for, and none twice, whatever a command thinks.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.desk.asks import BookPayments, PaymentsBooked
from p2pgrid.errors import InvalidRecord
from p2pgrid.ledger.base import Ledger, SlotTaken
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.settlement.bank.booking import BookingRefused, check_booking
from p2pgrid.settlement.bank.view import look
from p2pgrid.settlement.set_offs import set_off_shares


async def book_payments(ledger: Ledger, keys: Sequence[SecretKey], ask: BookPayments, *, now_ms: int) -> PaymentsBooked:
    """Sign and append each group that fits; it is durable when this returns. Raises LedgerError where the disk fails:
    then nobody knows of the last group, and the same ask may be made again."""
    by_key = {key.public_key.raw: key for key in keys}
    sides = {side.id: side for side in look(ledger, by_key, set_offs=set_off_shares) if not side.is_purchase}
    on_record = {channel: side.on_record for channel, side in sides.items()}
    refused = []
    for group in ask.groups:
        try:
            new = check_booking(group, on_record, now_ms=now_ms)
            signed = [sign_message(one, Role.PROVIDER, by_key[sides[one.channel].channel.provider]) for one in new]
            if signed:
                await ledger.append(*signed)
        except (BookingRefused, SlotTaken, InvalidRecord) as error:
            refused.append(error.message)
            continue
        for channel in {one.channel for one in new}:
            on_record[channel] = on_record[channel].with_payments([one for one in new if one.channel == channel])
        refused.append("")
    return PaymentsBooked(refused=tuple(refused))
