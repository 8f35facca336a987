"""What a command and a node say to one another: HTTP with JSON over the Unix socket.

    GET  /about     -> 200 About
    POST /1/do      one tagged JSON object (p2pgrid.desk.asks) -> 200 its result; or 4xx, 5xx with Failure

The number in the path is this protocol's version. A node that does not know it answers 404.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pgrid import errors
from p2pgrid.errors import InvalidRecord, LocalError, P2pgridError, Refused

PROTOCOL: Final = 1
ABOUT_PATH: Final = "/about"
DO_PATH: Final = f"/{PROTOCOL}/do"
MAX_COMMAND_BYTES: Final = 1024 * 1024
"""A bank's entry may pay hundreds of invoices, which go into the ledger together."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The node that holds the socket."""

    version: str
    """Of p2pgrid."""
    peer_id: str
    role: str
    """`provider`, `client` or `bootstrap`."""
    pid: int
    protocol: int = PROTOCOL


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way from the node to the command."""

    type: str
    message: str
    hint: str = ""
    code: str = ""


def failure_of(error: P2pgridError) -> Failure:
    """An error as it is sent."""
    code = error.code if isinstance(error, Refused | InvalidRecord) else ""
    return Failure(type=type(error).__name__, message=error.message, hint=error.hint, code=code)


def error_of(failure: Failure) -> P2pgridError:
    """The error that was sent; a type that this version does not know becomes LocalError."""
    kind = getattr(errors, failure.type, None)
    if not isinstance(kind, type) or not issubclass(kind, P2pgridError):
        return LocalError(failure.message, hint=failure.hint)
    if issubclass(kind, Refused | InvalidRecord):
        return kind(failure.code, failure.message, hint=failure.hint)
    return kind(failure.message, hint=failure.hint)
