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
