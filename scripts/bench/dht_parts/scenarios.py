"""The attacks that `scripts/bench/dht` tries, each once with what they leave to chance (`attack.py`)."""

from __future__ import annotations

from typing import Final

from .attack import RULES, Scenario
from .hostile import ALIKE, NOBODY, ONE_ANOTHER

_SIZE: Final = 10_000
_SYBILS: Final = 1_000

FIFTH: Final = [
    Scenario(peers, 0.2, lie, keys=6, trials=50)
    for peers in (1_000, 10_000, 100_000)
    for lie in (ALIKE, ONE_ANOTHER, NOBODY)
    if peers < 100_000 or lie == ALIKE
]
"""A fifth of the network lies: what look-ups are held to. Of 300 that all succeed, 99 % do with 95 % confidence."""
SHARES: Final = [Scenario(_SIZE, share, keys=4, trials=25) for share in (0.0, 0.1, 0.3, 0.4, 0.5)]
CROWDS: Final = [
    Scenario(_SIZE, 0.2, sybils=_SYBILS, replicas=replicas, reach=reach, keys=2, trials=15)
    for replicas in (1, 8)
    for reach in (1.0, 20.0)
]
"""A fifth lies, and a thousand more have come to sit beside one key, each in an IP prefix of its own."""
EARLY: Final = [
    Scenario(_SIZE, 0.2, sybils=sybils, replicas=replicas, prefixes=prefixes, is_late=False, keys=2, trials=15)
    for replicas in (1, 8)
    for sybils in (100, _SYBILS)
    for prefixes in (10, 0)
]
"""The same, but they were there before any honest peer had filled its table: the worst that they could do."""
WITHOUT: Final = [
    Scenario(_SIZE, 0.2, sybils=_SYBILS, is_late=False, rules=rules, keys=2, trials=15)
    for rules in RULES
    if rules != "all"
]
"""What each measure is worth: a thousand sybils at a key from the first, with one measure left out."""
SCENARIOS: Final = [*SHARES, *CROWDS, *EARLY, *WITHOUT, *FIFTH]
SHORT: Final = [
    Scenario(1_000, 0.2, keys=1, trials=40),
    Scenario(1_000, 0.2, sybils=300, keys=1, trials=6),
    Scenario(1_000, 0.2, sybils=300, prefixes=5, is_late=False, keys=1, trials=6),
]
