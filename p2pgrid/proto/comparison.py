"""One side's export against the other's.

Whoever signs a record keeps it first (durable before visible): its own bundle must show it. What only the other side
signed may never have arrived: that is a note.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.record import PARTIES, Role

Group = tuple[Role | None, frozenset[int]]


def compare_sides(case: Case, book: Book, sources: Sequence[str]) -> None:
    """Report what a side's bundles lack of what another bundle shows: `left-out`, `not-received`."""
    groups = _groups(book.bundles, case.sides)
    if len(groups) < 2:
        return
    for held in _compared(case, book):
        if held.record_id in book.rivals:
            continue
        for group in groups:
            _compare(case, book, held, group, sources)


def _groups(bundles: Iterable[int], sides: Sequence[Role | None]) -> list[Group]:
    """Bundles of one side count together; one whose side is unknown counts alone."""
    known: dict[Hashable, set[int]] = {}
    for bundle in bundles:
        known.setdefault(sides[bundle] or bundle, set()).add(bundle)
    return [(key if isinstance(key, Role) else None, frozenset(members)) for key, members in known.items()]


def _compared(case: Case, book: Book) -> list[Held[Any]]:
    """The channel's records, and the offers that its served orders name."""
    served = {h.message.offer for h in book.receipts.values()}
    offers = [case.offers[offer] for offer in sorted(served) if offer in case.offers]
    return [*book.held(), *offers]


def _compare(case: Case, book: Book, held: Held[Any], group: Group, sources: Sequence[str]) -> None:
    side, members = group
    copies = [copy for copy in held.copies if copy.place.bundle in members]
    others = [copy for copy in held.copies if copy.place.bundle not in members]
    if not others:
        return
    shown = frozenset[Role]().union(*(copy.claimed for copy in copies))
    lacking = [role for role in PARTIES if role in held.signers and role not in shown]
    if not lacking:
        return
    # A bundle of unknown side: whichever it is, it signed what both signed.
    own = side in lacking if side is not None else not copies and len(lacking) == len(PARTIES)
    label = str(held) if not copies else f"the {' and '.join(lacking)}'s signature on {held}"
    files = ", ".join(sources[bundle] for bundle in sorted(members))
    shows = sources[others[0].place.bundle]
    signer = f"the {side}" if side is not None else "its own side"

    def left_out(labels: Sequence[str]) -> str:
        return (
            f"{files} lacks what {signer} signed and {shows} shows: {shortened(list(labels))}. "
            "If it was exported earlier, export it again."
        )

    def not_received(labels: Sequence[str]) -> str:
        return f"{files} lacks {shortened(list(labels))}, which {shows} shows: it may not have arrived, or was refused."

    code, phrase = ("left-out", left_out) if own else ("not-received", not_received)
    draft = Draft(code, "", (others[0].place,), None, held.record_id, book.id, holders=tuple(sorted(members)))
    case.docket.add_absence(
        Absence(
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
    )
