"""Orders of one request, and of several (docs/spec/session.md, sections 3, 4 and 11)."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from p2pgrid.proto.fields import Id
from p2pgrid.proto.messages import MAX_BATCH_REQUESTS, Status
from p2pgrid.proto.wire.base import Frame

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Largest request body."""
MAX_REQUEST_BYTES: Final = 16 * 1024
"""Largest body of a request that shares its order with others: it goes in one message."""
MAX_ENGINE_ERROR_BYTES: Final = 64 * 1024
"""Most of an engine's error body (HTTP status other than 200) that is passed on."""
RequestIndex = Annotated[int, Meta(ge=0, lt=MAX_BATCH_REQUESTS)]


class OrderOpening(Frame, frozen=True, kw_only=True):
    """A signed order, and what the provider needs to check the body that follows."""

    order: Annotated[bytes, Meta(max_length=4096)]
    """The Order record in wire form."""
    commitment_key: Id
    body_bytes: Annotated[int, Meta(ge=2, le=MAX_BODY_BYTES)]


class Head(Frame, frozen=True, kw_only=True):
    """The engine's HTTP status and content type."""

    status: Annotated[int, Meta(ge=100, le=599)]
    content_type: Annotated[str, Meta(max_length=128)]


class BatchOpening(Frame, frozen=True, kw_only=True):
    """A signed order of several requests."""

    order: Annotated[bytes, Meta(max_length=4096)]
    """The Order record in wire form."""
    commitment_key: Id
    """What the key of each request is made from."""


class RequestHead(Frame, frozen=True, kw_only=True):
    """The engine's HTTP status and content type for one request of an order."""

    index: RequestIndex
    status: Annotated[int, Meta(ge=100, le=599)]
    content_type: Annotated[str, Meta(max_length=128)]


class RequestRefused(Frame, frozen=True, kw_only=True):
    """No to one request of an order, and why."""

    index: RequestIndex
    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]
    retry_after_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0


class RequestEnded(Frame, frozen=True, kw_only=True):
    """One request of an order is over, and how its line in the receipt will say so."""

    index: RequestIndex
    status: Status


class RequestCancel(Frame, frozen=True, kw_only=True):
    """The client wants no more of one answer."""

    index: RequestIndex
