"""Disputes judged: each with the receipt it names, its answer, and the receipts that mention them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.codes import Party
from p2pgrid.proto.contested import contest_of
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.dispute_rules import (
    DAY_MS,
    faults_of_answer,
    faults_of_dispute,
    faults_of_mention,
    is_in_term,
    is_unanswered,
    other_party,
)
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role
from p2pgrid.proto.rules import Fault

_MENTION_MS: Final = DAY_MS
"""Receipts made so long after an answer might have mentioned it."""


def judge_disputes(case: Case, book: Book) -> None:
    """Report what is wrong with the channel's disputes, answers and mentions; put into the book what they come to."""
    receipts = {held.record_id: held for held in book.all_receipts}
    for dispute in book.disputes.values():
        _judge_dispute(case, book, dispute, receipts.get(dispute.message.receipt))
    for answer in book.answers.values():
        known = book.disputes.get(answer.message.dispute)
        if known is None:
            sentence = f"No bundle holds the dispute that {answer} is to."
            _miss(case, book, answer, Dispute.payload_type, answer.message.dispute, "the dispute", sentence)
            continue
        for fault in faults_of_answer(answer.message, dispute=known.message):
            case.report(book, answer, fault)
    _sum_up(case, book, receipts)
    _judge_mentions(case, book)


def _judge_dispute(case: Case, book: Book, held: Held[Dispute], receipt: Held[Receipt] | None) -> None:
    dispute = held.message
    if receipt is None:
        standing = book.receipts.get(dispute.receipt_number)
        if standing is not None:
            sentence = f"{_capital(held)} names another record than the receipt with that number."
            case.report(book, held, Fault("wrong-dispute", sentence, Party.UNCLEAR))
        else:
            sentence = f"No bundle holds the receipt that {held} names."
            label = f"receipt {dispute.receipt_number}"
            _miss(case, book, held, Receipt.payload_type, dispute.receipt, label, sentence)
        return
    faults = faults_of_dispute(dispute, receipt=receipt.message)
    for fault in faults:
        case.report(book, held, fault)
    if any(fault.code == "wrong-dispute" for fault in faults):
        return
    days = book.channel.message.dispute_days
    if not _has_force(book, held, receipt):
        sentence = f"{_capital(held)} came more than {days} days after it."
        party = Party(dispute.by.value)
        case.docket.add(Draft("dispute-late", sentence, held.places[:1], party, held.record_id, book.id))
    elif held.record_id not in book.answered and is_unanswered(dispute, dispute_days=days, now_ms=case.now_ms):
        party = other_party(dispute.by)
        sentence = f"The {party} has not answered {held} within {days} days."
        draft = Draft("dispute-unanswered", sentence, held.places, party, held.record_id, book.id)
        slot = book.id, dispute.receipt_number, held.record_id
        proof = f"It stands where the answer to {held} is missing."
        case.docket.add_absence(
            Absence(Answer.payload_type, slot, f"the answer to {held}", draft, book.bundles, proof=proof)
        )


def _has_force(book: Book, held: Held[Dispute], receipt: Held[Receipt]) -> bool:
    return is_in_term(
        held.message,
        receipt=receipt.message,
        countersigned=receipt.claims(Role.CLIENT),
        dispute_days=book.channel.message.dispute_days,
    )


def _judge_mentions(case: Case, book: Book) -> None:
    known = case.mentionable
    mentioned_in: dict[bytes, int] = {}
    for number in sorted(book.receipts):
        held = book.receipts[number]
        for record_id in held.message.mentions:
            about = known.get(record_id)
            if about is None:
                sentence = f"No bundle holds a record that {held} mentions, {record_id.hex()}."
                _miss(case, book, held, Dispute.payload_type, record_id, "what a receipt mentions", sentence)
                continue
            before = mentioned_in.setdefault(record_id, 0)
            for fault in faults_of_mention(held.message, about.message, mentioned_before=before):
                case.report(book, held, fault)
            mentioned_in[record_id] = before or number
    _note_unmentioned(case, book, set(mentioned_in))


def _note_unmentioned(case: Case, book: Book, mentioned: set[bytes]) -> None:
    latest_ms = max([book.elided.sums.latest_ms, *(h.message.issued_ms for h in book.receipts.values())])
    for answer in book.answers.values():
        dispute = book.disputes.get(answer.message.dispute)
        if dispute is None or {dispute.record_id, answer.record_id} & mentioned:
            continue
        if latest_ms > answer.message.answered_ms + _MENTION_MS:
            sentence = f"Receipts were made more than a day after {answer}, and none mentions it or the dispute."
            about = answer.record_id, book.id
            case.docket.add(Draft("dispute-not-mentioned", sentence, answer.places[:1], None, *about))


def _sum_up(case: Case, book: Book, receipts: dict[bytes, Held[Receipt]]) -> None:
    """What is credited and what is contested, each receipt once: by the dispute that takes most off."""
    for held in book.disputes.values():
        receipt = receipts.get(held.message.receipt)
        # A receipt that shares its slot and does not stand bills nothing that could be credited.
        if receipt is None or book.receipts.get(receipt.message.receipt_number) is not receipt:
            continue
        _add_contest(case, book, held, receipt)
    credited: dict[bytes, int] = {}
    contested: dict[bytes, int] = {}
    for contest in book.contests:
        if not contest.has_force:
            continue
        sums = credited if contest.is_accepted else contested
        sums[contest.receipt] = max(contest.amount_pico, sums.get(contest.receipt, 0))
    book.credited_pico = sum(credited.values())
    book.disputed_pico = sum(max(amount - credited.get(receipt, 0), 0) for receipt, amount in contested.items())


def _add_contest(case: Case, book: Book, held: Held[Dispute], receipt: Held[Receipt]) -> None:
    """A dispute with force; or one that had it for the provider, to which the client's signature never came."""
    answer = book.answered.get(held.record_id)
    files = _files_of_provider(case, book)
    shows_signature = {copy.place.bundle for copy in receipt.copies if Role.CLIENT in copy.claimed}
    is_signed = bool(shows_signature)
    is_signed_there = is_signed and (not files or not shows_signature.isdisjoint(files))
    for countersigned in (is_signed, is_signed_there):
        contest = contest_of(
            held.message,
            answer.message if answer is not None else None,
            receipt=receipt.message,
            receipt_id=receipt.record_id,
            countersigned=countersigned,
            days=book.channel.message.dispute_days,
        )
        if contest is not None:
            has_force = countersigned is is_signed
            known = replace(
                contest,
                has_force=has_force,
                is_dispute_known=has_force and _is_known(held, files),
                is_answer_known=answer is None or _is_known(answer, files),
            )
            book.contests.append(known)
            return


def _files_of_provider(case: Case, book: Book) -> set[int]:
    return {bundle for bundle in book.bundles if case.sides[bundle] is Role.PROVIDER}


def _is_known(held: Held[Any], files: set[int]) -> bool:
    """True if the provider had it, as far as the bundles tell: its own files, where there are any, show it."""
    shown = {place.bundle for place in held.places}
    return Role.PROVIDER in held.signers or not files or not shown.isdisjoint(files)


def _miss(
    case: Case, book: Book, held: Held[Any], payload_type: str, record_id: bytes, label: str, sentence: str
) -> None:
    is_mention = isinstance(held.message, Receipt)  # of a dispute or of an answer: nobody can tell
    # Who signs a receipt must hold what it mentions. A client that disputes it may be shown what nobody ever said.
    party = Party.UNCLEAR if is_mention and not held.claims(Role.CLIENT) else None
    draft = Draft("record-missing", sentence, held.places, party, held.record_id, book.id)
    proof = f"It stands where the record {record_id.hex()} is missing, which {held} names."
    case.docket.add_absence(
        Absence(
            payload_type,
            (book.id,),
            label,
            draft,
            book.bundles,
            record_id,
            proof=proof,
            other_type=Answer.payload_type if is_mention else "",
        )
    )


def _capital(held: Held[Any]) -> str:
    text = str(held)
    return text[0].upper() + text[1:]
