"""A relay's signed word that it holds a reservation for a peer (libp2p specs, relay/circuit-v2.md; RFC 0002)."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from libp2p.crypto.keys import PrivateKey
from libp2p.peer.envelope import Envelope, make_unsigned, unmarshal_envelope
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import Voucher

from p2pgrid.errors import ProtocolViolation

DOMAIN: Final = "libp2p-relay-rsvp"
PAYLOAD_TYPE: Final = b"\x03\x02"
_MAX_VOUCHER_BYTES: Final = 1024


def seal_voucher(key: PrivateKey, relay: ID, peer: ID, ends_unix_s: int) -> bytes:
    """The voucher of the relay that `key` belongs to."""
    # Fields in the order of their numbers: the specs' canonical form, and the only one that protobuf writes.
    payload = Voucher(relay=relay.to_bytes(), peer=peer.to_bytes(), expiration=ends_unix_s).SerializeToString()
    signature = key.sign(make_unsigned(DOMAIN, PAYLOAD_TYPE, payload))
    envelope: bytes = Envelope(key.get_public_key(), PAYLOAD_TYPE, payload, signature).marshal_envelope()
    return envelope


def check_voucher(raw: bytes, relay: ID, peer: ID) -> int:
    """When the reservation ends, Unix seconds. Raises ProtocolViolation for what `relay` did not sign for `peer`."""
    if len(raw) > _MAX_VOUCHER_BYTES:
        raise ProtocolViolation(f"a relay's voucher of {len(raw)} bytes; at most {_MAX_VOUCHER_BYTES} were expected.")
    voucher = Voucher()
    try:
        envelope = unmarshal_envelope(raw)
        if envelope.payload_type != PAYLOAD_TYPE or ID.from_pubkey(envelope.public_key) != relay:
            raise ValueError("another peer's, or of another kind")
        envelope.validate(DOMAIN)
        voucher.ParseFromString(envelope.raw_payload)
    except (DecodeError, ValueError, TypeError, KeyError) as error:  # what key and protobuf parsers raise
        raise ProtocolViolation(f"a relay's voucher is not good: {error}.") from None
    if voucher.relay != relay.to_bytes() or voucher.peer != peer.to_bytes():
        raise ProtocolViolation("a relay's voucher names other peers than the two that speak.")
    return int(voucher.expiration)
