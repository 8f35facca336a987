"""What all messages of the session share: the form of the unsigned payloads, limits, the refusal of any exchange."""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from p2pgrid.errors import ProtocolViolation

MAX_NUMBER: Final = 2**53
MAX_COMPARED: Final = 256
"""Records that are compared in one exchange: of disputes (with their answers), or of settlement."""
CHUNK_BYTES: Final = 32 * 1024
"""Bulk bytes are cut to frames of at most this size."""


class Frame(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the unsigned payloads."""

    def to_bytes(self) -> bytes:
        """The wire form."""
        return msgspec.msgpack.encode(self)


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


class Refusal(Frame, frozen=True, kw_only=True):
    """No, and why."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]
    retry_after_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0
