"""A provider sells nothing any more: its signed word on that, and how it stands to offers (docs/spec/discovery.md, 5).

A withdrawal has a number in the row of the provider's offers, the one after the last of them. An offer that is signed
later has that number or a higher one, so no copy of the withdrawal, however often it is shown again, is about it.
"""

from __future__ import annotations

from typing import ClassVar

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.fields import Key, Number, TimeMs
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Message, Role, Signed, parse_record, verify_self_signed


class Withdrawal(Message, frozen=True, kw_only=True):
    """The provider's offers below a number are on sale no more. Signed by the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/withdrawal/1"

    provider: Key
    sequence: Number
    """One above that of the provider's last offer: offers below it are withdrawn."""
    withdrawn_ms: TimeMs


def withdraws(withdrawal: Withdrawal, offer: Offer) -> bool:
    """True if the offer is one of those that the withdrawal is about."""
    return withdrawal.provider == offer.provider and offer.sequence < withdrawal.sequence


def verify_withdrawal(raw: bytes, peer_id: str, now_ms: int) -> Signed[Withdrawal]:
    """A withdrawal that `peer_id` signed, by this clock no more than 120 s ahead.

    Raises InvalidRecord: what `parse_record` and `verify_self_signed` raise, `wrong-key`, `not-in-force`.
    """
    withdrawal = verify_self_signed(parse_record(raw), Withdrawal, Role.PROVIDER)
    signer = withdrawal.signers[Role.PROVIDER]
    if withdrawal.message.provider != signer.raw or signer.peer_id != peer_id:
        raise InvalidRecord(
            "wrong-key", f"the withdrawal is signed by {signer.peer_id}; only {peer_id} could withdraw its own offers."
        )
    if withdrawal.message.withdrawn_ms > now_ms + CLOCK_TOLERANCE_MS:
        ahead_s = (withdrawal.message.withdrawn_ms - now_ms) // 1000
        raise InvalidRecord(
            "not-in-force",
            f"{peer_id} withdraws its offers in {ahead_s} s by this clock.",
            hint="Check this machine's clock (NTP).",
        )
    return withdrawal
