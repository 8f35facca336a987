"""Requests about transparency logs (docs/spec/log.md, section 5)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2pgrid.proto.wire.base import Frame


class LogCall(Frame, frozen=True, kw_only=True):
    """A request about a log on the libp2p road: a path, or `add-checkpoint` with its body."""

    path: Annotated[str, Meta(max_length=128)]
    body: Annotated[bytes, Meta(max_length=56 * 1024)] = b""


class LogReply(Frame, frozen=True, kw_only=True):
    """An HTTP status and a body: the resource, a witness's answer, or a word on what is wrong."""

    status: Annotated[int, Meta(ge=100, le=599)]
    body: Annotated[bytes, Meta(max_length=56 * 1024)]
