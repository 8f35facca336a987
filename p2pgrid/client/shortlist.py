"""The few sellers that a request is ranked among, kept for a moment: no request may cost more in a larger market.

Of all who sell a model to one who wishes so, the list holds the best at each of several mixtures of prompt and output,
so that whatever mixture a request is, somebody near its cheapest is on it, and nobody can fill it with offers that are
cheap at one mixture alone. It is made anew when offers change, and every few seconds: standings, prices by the hour and
cards change with time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.client.choice import Listing, Preselection, Standing
from p2pgrid.client.wishes import Wishes

PER_MIXTURE: Final = 6
"""Sellers of each mixture; a request is ordered from at most four, one after the other."""
MIXTURES: Final = ((1, 0), (256, 1), (64, 1), (16, 1), (4, 1), (1, 1), (1, 4), (1, 16), (1, 64), (0, 1))
"""Prompt tokens to output tokens, each four times the next: a request between two of them pays at most four times what
the cheapest would have cost, and far less where prices are not made up to show this."""
KEPT_MS: Final = 5_000
_MOST_LISTS: Final = 256


@dataclass(frozen=True, slots=True)
class _Kept:
    version: int
    until_ms: int
    preselection: Preselection


class Shortlists:
    """Preselections by model, endpoint and wishes."""

    def __init__(
        self,
        preselect: Callable[[str, str, Wishes], Preselection],
        is_here: Callable[[str], bool] = lambda _: True,
        on_listed: Callable[[Sequence[Listing]], None] = lambda _: None,
    ) -> None:
        """`preselect` looks through all offers of a model: model, endpoint, wishes. `is_here`: by peer id. `on_listed`
        is called with every list that is made."""
        self._preselect = preselect
        self._is_here = is_here
        self._on_listed = on_listed
        self._kept: dict[tuple[str, str, Wishes], _Kept] = {}

    def of(
        self,
        model: str,
        endpoint: str,
        wishes: Wishes,
        *,
        version: int,
        now_ms: int,
        standing_of: Callable[[str], Standing],
    ) -> Preselection:
        """The list; `version` is that of the offers."""
        key = (model, endpoint, wishes)
        kept = self._kept.get(key)
        if kept is not None and kept.version == version and now_ms < kept.until_ms:
            return kept.preselection
        found = self._preselect(model, endpoint, wishes)
        short = Preselection(shortened(found.listings, now_ms, standing_of, self._is_here), found.rejected)
        if len(self._kept) >= _MOST_LISTS:
            self._kept.clear()  # wishes come from programs: they could be many
        ends_ms = [one.offer.message.valid_until_ms for one in short.listings]
        self._on_listed(short.listings)
        self._kept[key] = _Kept(version, min([now_ms + KEPT_MS, *ends_ms]), short)
        return short


def shortened(
    listings: Iterable[Listing],
    now_ms: int,
    standing_of: Callable[[str], Standing],
    is_here: Callable[[str], bool] = lambda _: True,
) -> tuple[Listing, ...]:
    """The best at each mixture: those that work before those that failed of late, or are not known to be there; then by
    price, then by speed."""
    all_of_them = tuple(listings)
    if len(all_of_them) <= PER_MIXTURE:
        return all_of_them
    working: list[tuple[int, int, float, Listing]] = []
    late: list[tuple[int, int, float, Listing]] = []
    for one in all_of_them:
        standing, tariff = standing_of(one.peer_id), one.tariff_at(now_ms)
        is_late = bool(standing.quarantine) or standing.retry_ms() > now_ms or not is_here(one.peer_id)
        known = (tariff.input_upm, tariff.output_upm, standing.first_token_ms or 0.0, one)
        (late if is_late else working).append(known)
    chosen: dict[str, Listing] = {}
    for group in (working, late):
        if len(chosen) >= PER_MIXTURE:
            break
        for prompt, output in MIXTURES:
            # First the price that lets so many in, then who is in: a tuple for everybody in a market would cost more.
            prices = heapq.nsmallest(PER_MIXTURE, [prompt * one[0] + output * one[1] for one in group])
            most = prices[-1] if prices else 0
            near = [
                (p, one[2], one[3].peer_id, one[3]) for one in group if (p := prompt * one[0] + output * one[1]) <= most
            ]
            chosen.update((one[2], one[3]) for one in sorted(near, key=lambda one: one[:3])[:PER_MIXTURE])
    return tuple(chosen.values())
