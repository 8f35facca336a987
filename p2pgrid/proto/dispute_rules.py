"""What a dispute, its answer and a mention of them may say (docs/spec/audit.md, section 6).

Pure, over messages whose form and signatures were checked: a live peer refuses what has a fault, an auditor reports it.
"""

from __future__ import annotations

from typing import Final

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.codes import Party
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role
from p2pgrid.proto.rules import Fault

DAY_MS: Final = 86_400_000


def other_party(role: Role) -> Party:
    """Who answers a dispute of this role's."""
    return Party.CLIENT if role is Role.PROVIDER else Party.PROVIDER


def faults_of_dispute(dispute: Dispute, *, receipt: Receipt) -> list[Fault]:
    """Does it fit the receipt whose id it names? `wrong-dispute`, `time-backwards`."""
    what, party = f"The {dispute.by}'s dispute", Party(dispute.by.value)
    if (dispute.channel, dispute.receipt_number) != (receipt.channel, receipt.receipt_number):
        sentence = f"{what} speaks of receipt {dispute.receipt_number} and names by its id receipt "
        return [Fault("wrong-dispute", f"{sentence}{receipt.receipt_number}.", party)]
    faults = []
    if dispute.by is Role.CLIENT and dispute.owed_pico > receipt.amount_pico:
        sentence = f"{what} says that {dispute.owed_pico} pico are owed, more than the {receipt.amount_pico} billed."
        faults.append(Fault("wrong-dispute", sentence, party))
    if dispute.disputed_ms < receipt.issued_ms - CLOCK_TOLERANCE_MS:
        sentence = f"By its time {what[0].lower()}{what[1:]} comes before receipt {receipt.receipt_number}."
        faults.append(Fault("time-backwards", sentence, party))
    return faults


def is_in_term(dispute: Dispute, *, receipt: Receipt, countersigned: bool, dispute_days: int) -> bool:
    """True if the dispute came in time to have force.

    The term runs from a receipt that the client has: its signature shows that. A proposal may have reached it at any
    time, and can be disputed as long as it is not countersigned.
    """
    if not countersigned and dispute.by is Role.CLIENT:
        return True
    return dispute.disputed_ms <= receipt.issued_ms + dispute_days * DAY_MS + CLOCK_TOLERANCE_MS


def is_unanswered(dispute: Dispute, *, dispute_days: int, now_ms: int) -> bool:
    """True if the time to answer it is over."""
    return now_ms > answer_due_ms(dispute, dispute_days=dispute_days) + CLOCK_TOLERANCE_MS


def answer_due_ms(dispute: Dispute, *, dispute_days: int) -> int:
    """When the time to answer it is over."""
    return dispute.disputed_ms + dispute_days * DAY_MS


def faults_of_answer(answer: Answer, *, dispute: Dispute) -> list[Fault]:
    """Does it fit the dispute whose id it names? `wrong-answer` once, `time-backwards`."""
    what, party = f"The {answer.by}'s answer", Party(answer.by.value)
    faults = []
    if answer.by is dispute.by:
        faults.append(
            Fault("wrong-answer", f"{what} is to its own dispute of receipt {dispute.receipt_number}.", party)
        )
    elif (answer.channel, answer.receipt_number) != (dispute.channel, dispute.receipt_number):
        sentence = f"{what} speaks of receipt {answer.receipt_number}, the dispute of {dispute.receipt_number}."
        faults.append(Fault("wrong-answer", sentence, party))
    elif answer.decision is Decision.ACCEPTED and answer.owed_pico != dispute.owed_pico:
        sentence = f"{what} accepts a dispute that owes {dispute.owed_pico} pico, and states {answer.owed_pico}."
        faults.append(Fault("wrong-answer", sentence, party))
    if answer.answered_ms < dispute.disputed_ms - CLOCK_TOLERANCE_MS:
        sentence = f"By its time {what[0].lower()}{what[1:]} comes before the dispute that it answers."
        faults.append(Fault("time-backwards", sentence, party))
    return faults


def faults_of_mention(receipt: Receipt, mentioned: Dispute | Answer, *, mentioned_before: int) -> list[Fault]:
    """May the receipt mention it? `mentioned_before`: the number of the receipt that did, 0 if none.

    `wrong-mention`, `time-backwards`.
    """
    what = f"Receipt {receipt.receipt_number}"
    if mentioned.channel != receipt.channel:
        return [Fault("wrong-mention", f"{what} mentions a dispute or an answer of another channel.")]
    about = f"a {type(mentioned).__name__.lower()} about receipt {mentioned.receipt_number}"
    if mentioned_before:
        return [Fault("wrong-mention", f"{what} mentions {about}, as receipt {mentioned_before} did.")]
    if mentioned.receipt_number >= receipt.receipt_number:
        return [Fault("wrong-mention", f"{what} mentions {about}, which comes not before it.")]
    said_ms = mentioned.disputed_ms if isinstance(mentioned, Dispute) else mentioned.answered_ms
    if said_ms > receipt.issued_ms + CLOCK_TOLERANCE_MS:
        return [
            Fault(
                "time-backwards",
                f"By its time receipt {receipt.receipt_number} comes before what it mentions.",
                Party.PROVIDER,
            )
        ]
    return []


def is_accepted(answer: Answer, dispute: Dispute) -> bool:
    """True if the other side agrees to the very amount of the dispute."""
    return answer.decision is Decision.ACCEPTED and not [
        fault for fault in faults_of_answer(answer, dispute=dispute) if fault.code == "wrong-answer"
    ]


def contested_pico(dispute: Dispute, *, receipt: Receipt) -> int:
    """How much less is owed by the dispute than by the receipt."""
    return max(receipt.amount_pico - dispute.owed_pico, 0)
