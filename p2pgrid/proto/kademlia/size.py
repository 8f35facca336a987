"""How many servers a network has, as one peer can tell from how close together they lie."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from p2pgrid.proto.kademlia import PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.places import Node

_SAMPLES: Final = 9
_NOT_CHANCE: Final = 6
"""From so many nodes on their distance says something."""
_CROWD: Final = 2.0
_CROWD_AT_FIRST: Final = 2.75
"""Times what is expected: with one sample the expectation itself may be off by half."""


def size_around(place: int, closest: Sequence[Node]) -> float | None:
    """The size of a network in which `closest` are the nodes near `place`, closest first; None if too few.

    Places are evenly spread, so the m-th closest of n lies at about m / n of the whole. The median over several m does
    not depend on the last ones, in whose stead a look-up that missed some ends with others from far away.
    """
    sizes = [
        m * 2**PLACE_BITS / ((node.place ^ place) or 1)
        for m, node in enumerate(closest[:REPLICATION], 1)
        if m >= min(_NOT_CHANCE, len(closest))
    ]
    return median(sizes) if len(closest) > 1 else None


class SizeEstimate:
    """The median of several places that nobody could have crowded beforehand: our own, and random ones."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: list[float] = []

    def add(self, place: int, closest: Sequence[Node]) -> None:
        """Take in the end of a look-up for `place`."""
        size = size_around(place, closest)
        if size is not None:
            self._samples = [*self._samples[1 - _SAMPLES :], size]

    @property
    def size(self) -> float | None:
        """Servers in the network; None before the first look-up."""
        return median(self._samples) if self._samples else None

    def radius_of(self, nodes: int) -> int:
        """The distance within which so many nodes are expected; 0 where the size is not known."""
        size = self.size
        return int(nodes / size * 2**PLACE_BITS) if size else 0

    def crowd_of(self, nodes: int) -> int:
        """How many nodes within `radius_of(nodes)` are more than chance explains; 0 where the size is not known."""
        return round(nodes * (_CROWD if len(self._samples) > 1 else _CROWD_AT_FIRST)) if self._samples else 0
