"""Whether a node is to be reached through relays, as its owner says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from multiaddr import Multiaddr

from p2pgrid.errors import UsageError
from p2pgrid.net.addresses import parse_peer_multiaddr

AUTO: Final = "auto"
NEVER: Final = "never"


class Mode(Enum):
    """When reservations are held."""

    AUTO = AUTO
    """While nobody outside can dial us."""
    NEVER = NEVER
    LISTED = "listed"
    """Always, and at the relays that were named."""


@dataclass(frozen=True, slots=True)
class RelayUse:
    """The setting `relay`."""

    mode: Mode
    relays: tuple[tuple[str, Multiaddr], ...] = ()
    """(peer id, address without it), where the mode is LISTED."""


NO_RELAY: Final = RelayUse(Mode.NEVER)


def parse_relay_use(words: Sequence[str]) -> RelayUse:
    """`auto`, `never`, or the multiaddrs of relays, each with its `/p2p/<peer id>`. None at all: `never`.

    Raises UsageError.
    """
    if words in ((), [], (NEVER,), [NEVER]):
        return NO_RELAY
    if words in ((AUTO,), [AUTO]):
        return RelayUse(Mode.AUTO)
    if AUTO in words or NEVER in words:
        raise UsageError(
            f"{AUTO!r} and {NEVER!r} stand alone; {', '.join(words)} came together.",
            hint="Name relays, or one of the two.",
        )
    return RelayUse(Mode.LISTED, tuple(map(parse_peer_multiaddr, words)))
