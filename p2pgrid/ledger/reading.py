"""Records from the ledger, every signature checked again: nobody else may have written them."""

from __future__ import annotations

from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.ledger.signatures import damaged
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import M, Message, Record, Role, Signed, parse_message, verify_record, verify_self_signed
from p2pgrid.proto.set_off_rules import verify_named
from p2pgrid.proto.statement import Invoice, Payment, Statement

_SIGNERS: Final[dict[str, Role]] = {
    Order.payload_type: Role.CLIENT,
    Meter.payload_type: Role.PROVIDER,
    Voucher.payload_type: Role.CLIENT,
    Receipt.payload_type: Role.PROVIDER,
    Statement.payload_type: Role.PROVIDER,
    Invoice.payload_type: Role.PROVIDER,
    Payment.payload_type: Role.PROVIDER,
}


def read_offer(record: Record) -> Signed[Offer]:
    """An offer from the ledger, its signature checked again. Raises LedgerError."""
    try:
        signed = verify_self_signed(record, Offer, Role.PROVIDER)
    except InvalidRecord as error:
        raise damaged(error.message) from None
    if signed.signers[Role.PROVIDER].raw != signed.message.provider:
        raise damaged("an offer is signed by another key than it names")
    return signed


def read_channel(record: Record) -> Signed[Channel]:
    """A channel with both signatures from the ledger, checked again. Raises LedgerError."""
    keys = {s.role: s.key for s in record.signatures}
    try:
        return verify_channel(
            record,
            provider=parse_public_key(keys.get(Role.PROVIDER, b"")),
            client=parse_public_key(keys.get(Role.CLIENT, b"")),
        )
    except InvalidRecord as error:
        raise damaged(error.message) from None


def read_signed(record: Record, message_type: type[M], channel: Channel) -> Signed[M]:
    """A channel's record from the ledger, every signature checked again with the channel's keys. Raises LedgerError."""
    keys = {Role.PROVIDER: channel.provider, Role.CLIENT: channel.client}
    try:
        signer = _SIGNERS.get(message_type.payload_type) or _signer_of(parse_message(record, message_type))
        roles = {s.role for s in record.signatures} | {signer}
        return verify_record(record, message_type, {role: parse_public_key(keys[role]) for role in sorted(roles)})
    except InvalidRecord as error:
        raise damaged(error.message) from None


def read_named(record: Record, message_type: type[M]) -> Signed[M]:
    """A record that names its signers from the ledger, its signatures checked again. Raises LedgerError."""
    try:
        return verify_named(record, message_type)
    except InvalidRecord as error:
        raise damaged(error.message) from None


def _signer_of(message: Message) -> Role:
    """Who signs a message that either party may sign."""
    assert isinstance(message, Dispute | Answer)
    return message.by
