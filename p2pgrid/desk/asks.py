"""What a person may ask of a node, and what comes of it. Over the command socket these travel as JSON."""

from __future__ import annotations

import msgspec


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is asked."""


class AllowPeer(Ask, frozen=True, kw_only=True, tag="allow-peer"):
    """Lift a provider's quarantine (client)."""

    peer: str


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """What `AllowPeer` changed."""

    peer: str
    was_held: bool
    reason: str = ""
    since_ms: int = 0


class Reconcile(Ask, frozen=True, kw_only=True, tag="reconcile"):
    """Bring both ledgers of the channels with a peer together."""

    peer: str


class MakeDispute(Ask, frozen=True, kw_only=True, tag="dispute"):
    """Sign that a receipt is not accepted."""

    receipt: str
    """As a person names it: see `p2pgrid.desk.find`."""
    reason: str
    statement: str = ""
    owed_pico: int | None = None
    """What is owed for the order, by this side; left out, nothing."""


class GiveAnswer(Ask, frozen=True, kw_only=True, tag="answer"):
    """Answer the other side's dispute."""

    receipt: str
    accept: bool
    statement: str = ""
    owed_pico: int | None = None
    """Where it is rejected: what is owed, by this side; left out, what the receipt says."""


class Erase(Ask, frozen=True, kw_only=True, tag="erase"):
    """Destroy the commitment keys of one request, or of all ordered before a time."""

    receipt: str = ""
    before_ms: int = 0
