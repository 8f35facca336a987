"""Every message that is signed, by its payload type."""

from __future__ import annotations

from typing import Final

from p2pgrid.proto.card import Card
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.default import Default
from p2pgrid.proto.dispute import Answer, Dispute, Opening
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import Message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.withdrawal import Withdrawal

MESSAGE_TYPES: Final[dict[str, type[Message]]] = {
    message_type.payload_type: message_type
    for message_type in (
        Offer,
        Channel,
        Order,
        Meter,
        Voucher,
        Receipt,
        Dispute,
        Answer,
        Card,
        Opening,
        Statement,
        Invoice,
        Payment,
        SetOff,
        Cycle,
        Leg,
        CycleVerdict,
        Default,
        Withdrawal,
    )
}
"""Every message by its payload type."""
