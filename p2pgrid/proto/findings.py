"""Findings, and how one fault is kept from looking like many.

A record whose copy was altered is also a record that is not there: the line does not verify, and where the record
belongs there is a gap. So every line that cannot be used is a *blemish* of its file, and every place where a record
is wanting is an *absence*. `Docket.settle` lets each blemish explain one absence, the likeliest first: the very record,
its slot, its type, any. What is left over is reported. However many lines are spoilt, findings count no fewer than
spoilt lines, and no absence beyond their number is excused. Beyond `MOST_ALIKE` lines of one file that say nothing and
have the same fault, the rest are one finding, with their number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.record import Role

MOST_ALIKE: Final = 100
"""Lines of one file without a readable record and with the same fault that are reported one by one."""

Slot = tuple[bytes | int, ...]


class Place(NamedTuple):
    """Where a copy of a record stands."""

    bundle: int
    line: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the audit found."""

    code: str
    """A key of `codes.CODES`."""
    party: Party
    """`provider`, `client`, `both` or `unclear`."""
    peer_ids: tuple[str, ...]
    """Of the party, provider first; empty where it is unclear."""
    record_id: str
    """In hex; empty where there is no readable record."""
    where: str
    """`file:line`, with commas between several; `file:first-last` where it stands for many lines."""
    sentence: str
    convinces: bool
    """True if the records prove it to anybody, whoever presents them."""
    channel: str = ""
    """The channel's id in hex; empty where it is about none, or where that is not known."""
    time_ms: int = 0
    """When the record was made, as it says itself; 0 where it says nothing, or where it is not there."""
    count: int = 1
    """How many findings it stands for: lines alike beyond the first of them are one finding with their number."""
    difference_cents: int | None = None
    """Of settlement: by how much the record says more than it should, below zero less; None where it is no sum."""
    other_record_ids: tuple[str, ...] = ()
    """Of settlement: the records that it is held against, in hex."""


@dataclass(slots=True)
class Draft:
    """A finding in the making: its holder may not be known until every bundle is read."""

    code: str
    sentence: str
    places: tuple[Place, ...]
    party: Party | None = None
    """The code's usual party if None."""
    record_id: bytes = b""
    channel: bytes = b""
    """The channel it is about, if it is about one."""
    signers: dict[Role, bytes] = field(default_factory=dict)
    """Who signed, with their keys, where `party` is SIGNER."""
    convinces: bool | None = None
    """As the code usually does if None."""
    holders: tuple[int, ...] = ()
    """The bundles whose holders are meant, where `party` is HOLDER; those of `places` if empty."""
    count: int = 1
    """How many lines it is about, if it is about lines alike: from the one of `places` to `last_line`."""
    last_line: int = 0
    cents: int | None = None
    """As in `Fault`, and so is the next."""
    others: tuple[bytes, ...] = ()

    @property
    def blamed(self) -> Party:
        """The party, as far as it is known yet."""
        return self.party if self.party is not None else CODES[self.code].party

    @property
    def proves(self) -> bool:
        """Whether it convinces a third party."""
        return self.convinces if self.convinces is not None else CODES[self.code].convinces


@dataclass(slots=True)
class Blemish:
    """A line that cannot be used."""

    draft: Draft
    payload_type: str = ""
    """Empty if even that is unsure."""
    slot: Slot = ()
    """What the line claims to fill; empty if unreadable."""
    record_id: bytes = b""
    """Of the record it is a copy of, where that is known."""
    left: int = 1
    """How many absences it may still explain: as many as it is lines."""


@dataclass(slots=True)
class Absence:
    """A record that is wanting in some bundles (`holders`), and the finding it makes if nothing explains it."""

    payload_type: str
    slot: Slot
    label: str
    """`receipt 3`, `order 5`."""
    draft: Draft
    holders: tuple[int, ...]
    record_id: bytes = b""
    count: int = 1
    """How many records; a range is explained as a whole or not at all."""
    proof: str = ""
    """A sentence that says what the record was, for the blemish that explains it."""
    merge: Hashable = None
    """Absences that share it become one finding."""
    phrase: Callable[[Sequence[str], int], str] | None = None
    """Makes the merged finding's sentence of the labels, and of how many more there are."""
    other_type: str = ""
    """Another payload type that the record may be of, where that is not known."""


@dataclass(slots=True)
class _Pool:
    """The blemishes of one bundle, by what they might stand for."""

    by_id: dict[bytes, list[Blemish]] = field(default_factory=lambda: defaultdict(list))
    by_slot: dict[tuple[str, Slot], list[Blemish]] = field(default_factory=lambda: defaultdict(list))
    by_type: dict[str, list[Blemish]] = field(default_factory=lambda: defaultdict(list))

    def add(self, blemish: Blemish) -> None:
        if blemish.record_id:
            self.by_id[blemish.record_id].append(blemish)
        for length in range(1, len(blemish.slot) + 1):
            self.by_slot[blemish.payload_type, blemish.slot[:length]].append(blemish)
        self.by_type[blemish.payload_type].append(blemish)


class Docket:
    """Collects drafts, blemishes and absences; settles them into the drafts that are to be reported."""

    def __init__(self) -> None:
        self._drafts: Final[list[Draft]] = []
        self._blemishes: Final[list[Blemish]] = []
        self._absences: Final[list[Absence]] = []
        self._more: Final[Counter[Hashable]] = Counter()

    def add(self, draft: Draft) -> None:
        """Report this."""
        self._drafts.append(draft)

    def add_blemish(self, blemish: Blemish) -> None:
        """Count this line as unusable. Its draft is reported by `add`, once."""
        self._blemishes.append(blemish)

    def add_absence(self, absence: Absence) -> None:
        """Report this unless a blemish explains it."""
        self._absences.append(absence)

    def add_more(self, more: Mapping[Hashable, int]) -> None:
        """Count absences that are not added one by one, by their `merge`. Some of the same must be added."""
        self._more.update(more)

    def settle(self) -> list[Draft]:
        """Every draft that stands, blemishes with what they explain."""
        pools: dict[int, _Pool] = defaultdict(_Pool)
        # Many lines in one are added first, and so taken last: of single ones it is said what they explain.
        for blemish in sorted(self._blemishes, key=lambda b: b.draft.count == 1):
            pools[blemish.draft.places[0].bundle].add(blemish)
        # Faults first: a blemish explains the absence that counts rather than one that is only worth a note.
        open_absences = sorted(self._absences, key=lambda a: CODES[a.draft.code].weight is Weight.NOTE)
        candidates: tuple[Callable[[_Pool, Absence], list[Blemish]], ...] = (
            lambda pool, absence: pool.by_id.get(absence.record_id, []) if absence.record_id else [],
            lambda pool, absence: pool.by_slot.get((absence.payload_type, absence.slot), []),
            lambda pool, absence: pool.by_type.get(absence.payload_type, []),
            lambda pool, absence: pool.by_type.get(absence.other_type, []),
            lambda pool, absence: pool.by_type.get("", []),
        )
        for candidates_of in candidates:
            open_absences = [a for a in open_absences if not _explained(a, pools, candidates_of)]
        return self._drafts + _merged(open_absences, self._more)


def _explained(
    absence: Absence, pools: dict[int, _Pool], candidates_of: Callable[[_Pool, Absence], list[Blemish]]
) -> bool:
    free: list[tuple[Blemish, int]] = []
    found = 0
    for holder in absence.holders:
        waiting = candidates_of(pools[holder], absence) if holder in pools else []
        while waiting and found < absence.count:
            blemish = waiting[-1]
            # A blemish known to be a copy of one record stands for no other.
            if not blemish.left or (blemish.record_id and blemish.record_id != absence.record_id):
                waiting.pop()
                continue
            taken = min(blemish.left, absence.count - found)
            blemish.left -= taken
            found += taken
            free.append((blemish, taken))
            if not blemish.left:
                waiting.pop()
    if found < absence.count:
        for blemish, taken in free:
            if not blemish.left:
                candidates_of(pools[blemish.draft.places[0].bundle], absence).append(blemish)
            blemish.left += taken
        return False
    for blemish, _ in free:
        if absence.proof and not blemish.record_id and blemish.draft.count == 1:
            blemish.draft.sentence += f" {absence.proof}"
    return True


def _merged(absences: Iterable[Absence], more: Mapping[Hashable, int]) -> list[Draft]:
    drafts: list[Draft] = []
    groups: dict[Hashable, list[Absence]] = defaultdict(list)
    for absence in absences:
        if absence.merge is None:
            drafts.append(absence.draft)
        else:
            groups[absence.merge].append(absence)
    for merge, group in groups.items():
        first = group[0]
        if first.phrase is not None:
            first.draft.sentence = first.phrase([absence.label for absence in group], more.get(merge, 0))
        drafts.append(first.draft)
    return drafts
