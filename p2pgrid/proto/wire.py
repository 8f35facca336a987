"""What travels on a link between a client and a provider (docs/spec/session.md, section 2).

Every exchange has a stream of its own, which the client opens. Numbers below 128 are control messages; from 128 on
they carry bulk bytes and count against the stream's credit. Payloads are signed records in wire form, or one of the
unsigned MessagePack arrays below; both are refused unless they are canonical.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.fields import Digest, Id

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Largest request body."""
MAX_ENGINE_ERROR_BYTES: Final = 64 * 1024
"""Most of an engine's error body (HTTP status other than 200) that is passed on."""
MAX_CARD_BYTES: Final = 20 * 1024
"""Of a Card's record in wire form."""
MAX_CARDS_BYTES: Final = 60 * 1024
"""Of a Cards message."""
CHUNK_BYTES: Final = 32 * 1024
"""Bulk bytes are cut to frames of at most this size."""


class Kind(IntEnum):
    """Message kinds of the session."""

    OFFER_REQUEST = 16
    """client -> provider, empty: which offer is in force?"""
    OFFER = 17
    """provider -> client: a signed Offer."""
    CHANNEL_REQUEST = 18
    """client -> provider: ChannelRequest."""
    CHANNEL = 19
    """A Channel: signed by the provider on its way out, by both on its way back."""
    CHANNEL_OPENED = 20
    """provider -> client, empty: the channel is in the provider's ledger."""
    RESUME = 21
    """client -> provider: a Channel with both signatures."""
    RESUMED = 22
    """provider -> client: Resumed, followed by the proposals it names."""
    CARD_REQUEST = 24
    """client -> provider, empty: who stands behind this key?"""
    CARDS = 25
    """provider -> client: Cards."""
    ORDER = 32
    """client -> provider: OrderOpening; the body follows as BODY, then the client's end of the stream's bulk."""
    REFUSAL = 33
    """provider -> client: Refusal. Nothing else follows."""
    HEAD = 34
    """provider -> client: Head. The answer follows as CHUNK."""
    METER = 35
    """provider -> client: a signed Meter, about all bytes of the answer before it in the stream."""
    VOUCHER = 36
    """client -> provider: a signed Voucher."""
    RECEIPT = 37
    """provider -> client: a Receipt that the provider signed."""
    COUNTERSIGNATURE = 38
    """client -> provider: the same Receipt with both signatures."""
    RECEIPT_REFUSAL = 39
    """client -> provider: Refusal of a proposed receipt."""
    CANCEL = 40
    """client -> provider, empty: stop the answer."""
    LOG_REQUEST = 48
    """client -> provider: a path of the provider's log, UTF-8 (docs/spec/log.md, section 5)."""
    LOG_RESPONSE = 49
    """provider -> client: what stands there."""
    WITNESS_REQUEST = 50
    """client -> provider: an add-checkpoint request about any log."""
    WITNESS_RESPONSE = 51
    """provider -> client: LogReply."""
    COSIGNATURE = 52
    """client -> provider: a checkpoint of the provider's log with the client's cosignature."""
    COSIGNATURE_TAKEN = 53
    """provider -> client, empty: it is on record."""
    BODY = 128
    """client -> provider: a piece of the request's body."""
    CHUNK = 129
    """provider -> client: a piece of the answer's bytes, as the engine made them."""


class Frame(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the unsigned payloads."""

    def to_bytes(self) -> bytes:
        """The wire form."""
        return msgspec.msgpack.encode(self)


class ChannelRequest(Frame, frozen=True, kw_only=True):
    """The client asks for a channel under the provider's offer. Its key is known from the link."""

    client_nonce: Id
    offer: Id
    now_ms: Annotated[int, Meta(ge=0)]
    continues: Digest = b""
    """After a change of the provider's key: the head of the channel under its former key; see `Channel.continues`."""


class Resumed(Frame, frozen=True, kw_only=True):
    """What the provider holds of a channel."""

    last_order_number: Annotated[int, Meta(ge=0)]
    """Orders above this never arrived."""
    last_receipt_number: Annotated[int, Meta(ge=0)]
    proposals: Annotated[int, Meta(ge=0, le=4096)]
    """How many RECEIPT messages follow, in order of their numbers."""


class Cards(Frame, frozen=True, kw_only=True):
    """The last of an operator's cards, oldest first; none if it has no card."""

    cards: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_CARD_BYTES)], ...], Meta(max_length=64)]
    """Card records in wire form."""


class OrderOpening(Frame, frozen=True, kw_only=True):
    """A signed order, and what the provider needs to check the body that follows."""

    order: Annotated[bytes, Meta(max_length=4096)]
    """The Order record in wire form."""
    commitment_key: Id
    body_bytes: Annotated[int, Meta(ge=2, le=MAX_BODY_BYTES)]


class Refusal(Frame, frozen=True, kw_only=True):
    """No, and why."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]
    retry_after_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0


class Head(Frame, frozen=True, kw_only=True):
    """The engine's HTTP status and content type."""

    status: Annotated[int, Meta(ge=100, le=599)]
    content_type: Annotated[str, Meta(max_length=128)]


class LogCall(Frame, frozen=True, kw_only=True):
    """A request about a log on the libp2p road: a path, or `add-checkpoint` with its body."""

    path: Annotated[str, Meta(max_length=128)]
    body: Annotated[bytes, Meta(max_length=56 * 1024)] = b""


class LogReply(Frame, frozen=True, kw_only=True):
    """An HTTP status and a body: the resource, a witness's answer, or a word on what is wrong."""

    status: Annotated[int, Meta(ge=100, le=599)]
    body: Annotated[bytes, Meta(max_length=56 * 1024)]


F = TypeVar("F", bound=Frame)


def parse_frame(data: bytes, frame_type: type[F]) -> F:
    """Turn a peer's bytes into a frame. Raises ProtocolViolation unless they are its canonical encoding."""
    try:
        frame = msgspec.msgpack.decode(data, type=frame_type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolViolation(f"the peer sent no {frame_type.__name__}: {error}.") from None
    if frame.to_bytes() != data:
        raise ProtocolViolation(f"the peer sent a {frame_type.__name__} that is not canonical.")
    return frame
