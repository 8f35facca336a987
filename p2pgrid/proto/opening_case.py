"""What parties opened to the auditor, held against what they had committed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from p2pgrid.errors import Refused
from p2pgrid.proto.batch import NO_COMMITMENT
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.codes import Party
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.dispute import Opening, Subject
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case
from p2pgrid.proto.messages import Order, Receipt
from p2pgrid.proto.request import parse_request
from p2pgrid.proto.rules import Fault


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A commitment that was opened, and is over the content shown. The content itself is not repeated."""

    channel: str
    order_number: int
    subject: Subject
    by: Party
    of: str
    """What holds the commitment: `order 3`, `receipt 2`, `meter 1 of order 3`."""
    content_bytes: int
    where: str = ""


def faults_of_opening(opening: Opening, commitments: dict[str, bytes]) -> tuple[str, list[Fault]]:
    """Which of the commitments, by the name of what holds it, the opening opens; `commitment-mismatch` if none.

    A commitment that is all zero was lost in a crash, and says nothing.
    """
    if opening.subject is Subject.REQUEST:
        shown = request_commitment(opening.commitment_key, opening.content)
    else:
        response = ResponseCommitment(opening.commitment_key)
        response.update(opening.content)
        shown = response.digest()
    fitting = next((name for name, commitment in commitments.items() if commitment == shown), "")
    if fitting or not any(any(commitment) for commitment in commitments.values()):
        return fitting, []
    sentence = f"What the {opening.by} shows as the {opening.subject} of order {opening.order_number} is not what "
    names = " and ".join(commitments)
    return "", [Fault("commitment-mismatch", f"{sentence}{names} committed to.", Party(opening.by.value))]


def judge_openings(case: Case, book: Book) -> None:
    """Report `commitment-mismatch`; note in the case what is opened, and in the book how many choices were asked."""
    for held in book.openings:
        opening = held.message
        commitments = _commitments(book, opening)
        if not commitments:
            sentence = f"No bundle holds what {held} opens."
            draft = Draft("record-missing", sentence, held.places, None, held.record_id, book.id)
            wanted = Order if opening.subject is Subject.REQUEST else Receipt
            slot = (book.id, opening.order_number) if wanted is Order else (book.id,)
            label = f"the {wanted.__name__.lower()} of order {opening.order_number}"
            proof = f"It stands where {label} is missing."
            case.docket.add_absence(Absence(wanted.payload_type, slot, label, draft, book.bundles, proof=proof))
            continue
        fitting, faults = faults_of_opening(opening, commitments)
        for fault in faults:
            case.report(book, held, fault)
        if fitting:
            case.opened.append((held, fitting))
            if opening.subject is Subject.REQUEST and not fitting.startswith("request "):
                _read_choices(book, opening)


def _commitments(book: Book, opening: Opening) -> dict[str, bytes]:
    number = opening.order_number
    orders = book.orders.get(number, {})
    receipts: list[Held[Any]] = [book.receipts[n] for n in sorted(book.receipts)]
    billed = [held for held in receipts if held.message.order_number == number]
    if any(held.message.is_batch for held in orders.values()) or any(held.message.requests for held in billed):
        holders: list[Held[Any]] = [*billed, *(orders[i] for i in sorted(orders))]
        return _commitments_of_lines(opening, billed) or {str(held): NO_COMMITMENT for held in holders}
    if opening.subject is Subject.REQUEST:
        asked: list[Held[Any]] = [orders[i] for i in sorted(orders)] or billed
        return {str(held): held.message.request_commitment for held in asked}
    ticks = book.meters.get(number, {})
    return {str(held): held.message.response_commitment for held in [*billed, *(ticks[t] for t in sorted(ticks))]}


def _commitments_of_lines(opening: Opening, billed: list[Held[Any]]) -> dict[str, bytes]:
    """Of a batch order: each request has its own, and only a receipt states them."""
    return {
        f"request {n} of {held}": line.request_commitment
        if opening.subject is Subject.REQUEST
        else line.response_commitment
        for held in billed
        for n, line in enumerate(held.message.requests, 1)
    }


def _read_choices(book: Book, opening: Opening) -> None:
    endpoints = {held.message.endpoint for held in book.orders.get(opening.order_number, {}).values()}
    for endpoint in endpoints:
        try:
            book.choices[opening.order_number] = parse_request(endpoint, opening.content).choices
        except Refused:
            continue  # whatever was asked, it is not read here: the rule then allows for the most choices


def opened_of(case: Case, sources: Sequence[str]) -> tuple[Opened, ...]:
    """What the case notes as opened, for the verdict; `sources` are the bundles' names."""
    found = [
        Opened(
            channel=held.message.channel.hex(),
            order_number=held.message.order_number,
            subject=held.message.subject,
            by=Party(held.message.by.value),
            of=of,
            content_bytes=len(held.message.content),
            where=", ".join(f"{sources[p.bundle]}:{p.line}" for p in held.places),
        )
        for held, of in case.opened
    ]
    return tuple(sorted(found, key=lambda o: (o.channel, o.order_number, o.subject, o.by, o.where)))
