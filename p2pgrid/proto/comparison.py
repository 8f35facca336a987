"""One side's export against the other's.

Whoever signs a record keeps it first (durable before visible): its own bundle must show it. What only the other side
signed may never have arrived: that is a note.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.evidence import Held, slot_of
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import PARTIES, Message, Role
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import signer_keys

Group = tuple[Role | None, frozenset[int]]
Rank = tuple[int, ...]
"""The order in which a book's absences are told: that of `Book.held`."""

_KINDS: Final[tuple[type[Message], ...]] = (Receipt, Order, Meter, Voucher, Channel, Offer)


def compare_sides(case: Case, book: Book, sources: Sequence[str]) -> None:
    """Report what a side's bundles lack of what another bundle shows: `left-out`, `not-received`."""
    found = absences_of(case, book, sources) + book.elided.absences
    for _, absence in sorted(found, key=lambda ranked: ranked[0]):
        case.docket.add_absence(absence)
    case.docket.add_more(book.elided.more_absences)


def absences_of(case: Case, book: Book, sources: Sequence[str]) -> list[tuple[Rank, Absence]]:
    """What one side's bundles lack of the book's records, with the rank that they are told in."""
    groups = groups_of(book.bundles, case.sides)
    found: list[tuple[Rank, Absence]] = []
    if len(groups) < 2:
        return found
    for held in _compared(case, book):
        if held.record_id in book.rivals:
            continue
        for index, group in enumerate(groups):
            if (held.record_id, group[1]) in case.compared:
                continue
            absence = _absence(book, held, group, sources)
            if isinstance(held.message, SetOff):
                case.compared.add((held.record_id, group[1]))
            if absence is not None:
                found.append(((*_rank_of(held.message), index), absence))
    return found


def _rank_of(message: Message) -> Rank:
    kind = type(message)
    return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), *(n for n in slot_of(message) if isinstance(n, int)))


def groups_of(bundles: Iterable[int], sides: Sequence[Role | None]) -> list[Group]:
    """Bundles of one side count together; one whose side is unknown counts alone."""
    known: dict[Hashable, set[int]] = {}
    for bundle in bundles:
        known.setdefault(sides[bundle] or bundle, set()).add(bundle)
    return [(key if isinstance(key, Role) else None, frozenset(members)) for key, members in known.items()]


def _compared(case: Case, book: Book) -> list[Held[Any]]:
    """The channel's records, and the offers that its served orders name."""
    served = book.elided.offers.union(h.message.offer for h in book.receipts.values())
    offers = [case.offers[offer] for offer in sorted(served) if offer in case.offers]
    return [*book.held(), *book.set_offs, *offers]


def _absence(book: Book, held: Held[Any], group: Group, sources: Sequence[str]) -> Absence | None:
    side, members = group
    copies = [copy for copy in held.copies if copy.place.bundle in members]
    others = [copy for copy in held.copies if copy.place.bundle not in members]
    if not others:
        return None
    shown = frozenset[Role]().union(*(copy.claimed for copy in copies))
    lacking = [role for role in PARTIES if role in held.signers and role not in shown]
    if not lacking:
        return None
    # A bundle of unknown side: whichever it is, it signed what both signed.
    parties = [_party_of(role, held.message, book.channel.message) for role in lacking]
    own = side in parties if side is not None else not copies and set(parties) == set(PARTIES)
    label = str(held) if not copies else f"the {' and '.join(lacking)}'s signature on {held}"
    files = ", ".join(sources[bundle] for bundle in sorted(members))
    shows = sources[others[0].place.bundle]
    signer = f"the {side}" if side is not None else "its own side"
    code, phrase = ("left-out", _LeftOut(files, shows, signer)) if own else ("not-received", _NotReceived(files, shows))
    draft = Draft(code, "", (others[0].place,), None, held.record_id, book.id, holders=tuple(sorted(members)))
    return Absence(
        held.message.payload_type,
        held.slot,
        label,
        draft,
        tuple(sorted(members)),
        record_id=held.record_id,
        proof=f"It stands where {held} is missing, which {shows}:{others[0].place.line} holds intact.",
        merge=(code, book.id, members),
        phrase=phrase,
    )


def _party_of(role: Role, message: Message, channel: Channel) -> Role | None:
    """What the signer in a role is in the channel; None for another key, as a creditor's that buys with another one."""
    if not isinstance(message, SetOff):
        return role
    key = signer_keys(message)[role]
    return Role.PROVIDER if key == channel.provider else Role.CLIENT if key == channel.client else None


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """The sentence of a `left-out`."""

    files: str
    shows: str
    signer: str

    def __call__(self, labels: Sequence[str], more: int) -> str:
        return (
            f"{self.files} lacks what {self.signer} signed and {self.shows} shows: {shortened(labels, more)}. "
            "If it was exported earlier, export it again."
        )


@dataclass(frozen=True, slots=True)
class _NotReceived:
    """The sentence of a `not-received`."""

    files: str
    shows: str

    def __call__(self, labels: Sequence[str], more: int) -> str:
        lacks = shortened(labels, more)
        return f"{self.files} lacks {lacks}, which {self.shows} shows: it may not have arrived, or was refused."
