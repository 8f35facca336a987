"""What the parts of an audit came to, put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.audit.parts import Catalog, CheckedPart, GroupKey
from p2pgrid.proto.elided import MOST_ACTIVITY_ROWS, Elided, ElidedOrders, ElidedOrphans, add_repeats
from p2pgrid.proto.route import OrderKey

_MOST_SOUGHT: Final = 200_000
"""About so many altered lines are held against all others, to say what they are copies of."""


@dataclass(slots=True)
class Checked:
    """What the parts came to, together."""

    channels: dict[bytes, ElidedOrders] = field(default_factory=lambda: defaultdict(ElidedOrders))
    odd: dict[bytes, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """Orders that are not plain, with the number of their lines."""
    late: dict[bytes, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Orders that may be out of time, those that they are held against, and those with proofs that may not hold."""
    wanted: dict[bytes, set[int]] = field(default_factory=lambda: defaultdict(set))
    partial: dict[int, dict[bytes, Sequence[int]]] = field(default_factory=lambda: defaultdict(dict))
    """By partition."""
    first_open: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    without_offer: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    times: dict[bytes, dict[int, tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(dict))
    groups: dict[GroupKey, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    highest_total_pico: dict[bytes, int] = field(default_factory=dict)
    """What a channel's receipts say at most that it comes to."""
    elided: Elided = field(default_factory=Elided)
    strays: set[OrderKey] = field(default_factory=set)
    signatures: set[bytes] = field(default_factory=set)
    meters: set[bytes] = field(default_factory=set)


def add_part(checked: Checked, part: CheckedPart, catalog: Catalog) -> None:
    """Add what the check of a partition found."""
    for channel_id, summary in part.channels.items():
        checked.odd[channel_id].update(zip(summary.odd, summary.odd_lines, strict=True))
        checked.late[channel_id] |= summary.late
        add_repeats(checked.elided.repeats, summary.repeats)
        if channel_id not in catalog.channels:
            _add_orphans(checked.elided, channel_id, summary.orphans)
            continue
        elided = checked.channels[channel_id]
        elided.sums.add(summary.sums)
        elided.bundles |= summary.bundles
        elided.offers |= summary.offers
        elided.served |= summary.served
        elided.open_orders += summary.open_orders
        checked.first_open[channel_id] += summary.first_open
        for offer_id, number in summary.without_offer.items():
            key = channel_id, offer_id
            checked.without_offer[key] = min(number, checked.without_offer.get(key, number))
        checked.times[channel_id].update(summary.times)
        if summary.partial:
            checked.partial[part.partition][channel_id] = summary.partial
    activity = checked.elided.activity
    for hour, row in part.activity.items():
        kept = activity.get(hour)
        if kept is None:
            full = len(activity) >= MOST_ACTIVITY_ROWS
            kept = activity.setdefault((0, hour[1], "") if full else hour, [0, 0, 0, 0])
        kept[:] = [a + b for a, b in zip(kept, row, strict=True)]
    checked.strays |= part.strays
    for channel_id, number in part.wanted_orders:
        checked.wanted[channel_id].add(number)
    if len(checked.signatures) + len(checked.meters) < _MOST_SOUGHT:
        checked.signatures |= part.wanted_signatures
        checked.meters |= part.wanted_meters


def _add_orphans(elided: Elided, channel_id: bytes, orphans: ElidedOrphans) -> None:
    if not orphans.records or orphans.first is None:
        return
    kept = elided.orphans.setdefault(channel_id, ElidedOrphans())
    kept.records += orphans.records
    kept.bundles |= orphans.bundles
    kept.first = orphans.first if kept.first is None else min(kept.first, orphans.first)
