"""What a judgement may leave out because it was found plain before (`plain`): the sums and the few facts about it that
the rest of a channel is judged by.

`verdict.audit_records` gives the same verdict for all records, and for those that are not plain together with what this
module says of the others. Without anything left out every value here is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.proto.attachments import ProofFact
from p2pgrid.proto.findings import Absence, Place
from p2pgrid.proto.messages import Receipt

Activity = dict[tuple[int, str, str], list[int]]
"""By hour since 1970, currency and model: receipts, tokens in, tokens out, pico."""

MOST_ACTIVITY_ROWS: Final = 20_000
"""Beyond so many rows receipts count to the last one: only made-up times and models come to that."""


@dataclass(slots=True)
class Sums:
    """What receipts add up to."""

    orders: int = 0
    receipts: int = 0
    countersigned: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    amount_pico: int = 0
    countersigned_pico: int = 0
    latest_ms: int = 0
    """The latest time of a receipt."""

    def add(self, other: Sums) -> None:
        """Add another's."""
        latest_ms = max(self.latest_ms, other.latest_ms)
        for name in Sums.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latest_ms = latest_ms

    def count(self, receipt: Receipt, *, countersigned: bool) -> None:
        """Add a receipt; its order is counted apart."""
        usage, amount = receipt.usage, receipt.amount_pico
        self.receipts += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.output_tokens += usage.output_tokens
        self.amount_pico += amount
        if receipt.issued_ms > self.latest_ms:
            self.latest_ms = receipt.issued_ms
        if countersigned:
            self.countersigned += 1
            self.countersigned_pico += amount


@dataclass(slots=True)
class ElidedOrders:
    """The plain orders of one channel.

    The judgement must still be given the first `shortened` shows of each kind that is only counted here, every
    receipt that stands beside one that is not plain, and whatever else findings name.
    """

    sums: Sums = field(default_factory=Sums)
    counted: set[int] = field(default_factory=set)
    """Orders that are among those summed and counted here, and stand before the judgement all the same."""
    open_links: set[int] | None = None
    """Receipts whose link to the one before is to be judged; every one if None. The one before is then at hand."""
    highest_final: int = 0
    """The highest receipt number with the client's signature."""
    waiting: int = 0
    """Proposals above it."""
    overtaken: int = 0
    """Proposals below it."""
    unlogged: int = 0
    """Receipts with both signatures that no proof shows in the provider's log, where proofs are demanded."""
    open_orders: int = 0
    """Served and without a receipt."""
    served: bool = False
    bundles: set[int] = field(default_factory=set)
    offers: set[bytes] = field(default_factory=set)
    """Named by receipts."""
    absences: list[tuple[tuple[int, ...], Absence]] = field(default_factory=list)
    """What one side's bundles lack of the others', by `comparison.rank_of`: the first of each kind."""
    more_absences: Counter[Hashable] = field(default_factory=Counter)
    """How many more there are, by `Absence.merge`."""

    def is_link_judged(self, receipt_number: int) -> bool:
        """True if the receipt's link to the one before it is to be judged, and was not found plain before."""
        return self.open_links is None or receipt_number in self.open_links


@dataclass(slots=True)
class ElidedOrphans:
    """Records whose channel no bundle holds, sound by themselves."""

    records: int = 0
    first: Place | None = None
    bundles: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Elided:
    """All that is left out."""

    channels: dict[bytes, ElidedOrders] = field(default_factory=dict)
    orphans: dict[bytes, ElidedOrphans] = field(default_factory=dict)
    repeats: dict[int, tuple[int, Place]] = field(default_factory=dict)
    """For each bundle: lines that say again what stands in it, and the first of them."""
    sizes: list[tuple[int, int]] | None = None
    """For each bundle: lines, and how many of them are records. Counted where every line is read if None."""
    activity: Activity = field(default_factory=dict)
    proofs: Mapping[bytes, ProofFact] = field(default_factory=dict)
    """Proofs of inclusion that were read before, by the attachment's id: not left out, and not worked out again."""
    unjudged: int = 0
    """Orders that are not plain, and too many to be judged."""
    unjudged_records: int = 0
    """Records about no order that are too many to be looked at."""


def note_repeats(repeats: dict[int, tuple[int, Place]], places: Iterable[Place]) -> None:
    """Count lines that say again what stands in their bundle."""
    for place in places:
        count, first = repeats.get(place.bundle, (0, place))
        repeats[place.bundle] = count + 1, min(first, place)


def add_repeats(repeats: dict[int, tuple[int, Place]], others: Mapping[int, tuple[int, Place]]) -> None:
    """Add what `note_repeats` counted elsewhere."""
    for bundle, (more, place) in others.items():
        count, first = repeats.get(bundle, (0, place))
        repeats[bundle] = count + more, min(first, place)


def note_activity(activity: Activity, receipt: Receipt, currency: str) -> None:
    """Add a receipt to the hour and model that it is of."""
    key = receipt.issued_ms // 3_600_000, currency, receipt.model
    row = activity.get(key)
    if row is None:
        row = activity.setdefault(key if len(activity) < MOST_ACTIVITY_ROWS else (0, currency, ""), [0, 0, 0, 0])
    row[0] += 1
    row[1] += receipt.usage.prompt_tokens
    row[2] += receipt.usage.output_tokens
    row[3] += receipt.amount_pico
