"""The roads that a link can run on."""

from __future__ import annotations

from enum import StrEnum


class Road(StrEnum):
    """What carries a link, the fastest first. Nothing above the dialling cares."""

    DIRECT = "direct"
    PUNCHED = "punched"
    """The direct road, over a connection that both sides opened at the same time through their NATs."""
    LIBP2P = "libp2p"
    RELAYED = "relayed"
    """Over libp2p, through a relay."""
