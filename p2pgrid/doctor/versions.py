"""Is this the Python, and are these the packages, that p2pgrid is made for?"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Final

from p2pgrid import __version__
from p2pgrid.doctor.check import Check, fault, ok, warning

PYTHONS: Final = ((3, 11), (3, 14))
"""From the first on, and before the second."""
LIBP2P: Final = "0.8.1"
"""The one version whose faults are mended here."""


def check_version(
    python: tuple[int, int] = sys.version_info[:2], libp2p: str | None = None, running: str | None = None
) -> Check:
    """`libp2p`: its version, if it is not to be looked up. `running`: the version of the node that runs."""
    name = "version"
    if libp2p is None:
        try:
            libp2p = importlib.metadata.version("libp2p")
        except importlib.metadata.PackageNotFoundError:
            libp2p = "missing"
    shown = f"{python[0]}.{python[1]}"
    if not PYTHONS[0] <= python < PYTHONS[1]:
        return fault(
            name,
            f"Python {shown} runs p2pgrid; 3.11 to 3.13 were expected.",
            "Install it under Python 3.11, 3.12 or 3.13.",
        )
    if libp2p != LIBP2P:
        return fault(name, f"libp2p is {libp2p}; {LIBP2P} was expected.", f"pip install libp2p=={LIBP2P}")
    if running is not None and running != __version__:
        return warning(name, f"the node that runs is p2pgrid {running}; this is {__version__}.", "Restart the node.")
    return ok(name, f"p2pgrid {__version__}, libp2p {libp2p}, Python {shown}.")


def check_peers_versions(newer: Sequence[str], silent: int, asked: int) -> list[Check]:
    """`newer`: what peers speak and we do not. `silent`: how many of the `asked` do not know our probe."""
    name, upgrade = "peers", "Upgrade p2pgrid: pip install --upgrade p2pgrid"
    if newer:
        return [
            warning(name, f"peers speak newer protocols, which this node does not know: {', '.join(newer)}.", upgrade)
        ]
    if silent and silent * 2 > asked:
        return [
            warning(
                name,
                f"{silent} of {asked} peers do not know /p2pgrid/reach/1: they run another version.",
                "See whether there is a newer p2pgrid: pip index versions p2pgrid",
            )
        ]
    return []
