"""What each code means for those who have to act on it, and what to do. Shown by the text report and the HTML page."""

from __future__ import annotations

from typing import Final, NamedTuple


class Advice(NamedTuple):
    """Two sentences for people."""

    means: str
    do: str


_ALTERED: Final = "What the file says there counts for nothing. Only its holder can have let it in."
_AGAIN: Final = (
    "Ask the file's holder to export again from the ledger; if it comes out the same, ask where it came from."
)
_UNPAID: Final = "Pay what the rules make of it and no more; send the proof file (--proofs) with a dispute."
_STOP: Final = "Buy nothing more under this key until its operator explains; keep the proof file (--proofs)."
_RESTATE: Final = "Do not pay by it; ask for a corrected one, and keep the proof file (--proofs)."
_CHAIN: Final = "The amounts of single orders stand; what the channel comes to has to be summed up anew from them."

ADVICE: Final[dict[str, Advice]] = {
    "malformed": Advice(_ALTERED, _AGAIN),
    "oversize": Advice(_ALTERED, _AGAIN),
    "not-canonical": Advice("One record could be written in two ways; only one of them is allowed.", _AGAIN),
    "out-of-range": Advice("The numbers in the record cannot all be true.", _AGAIN),
    "wrong-type": Advice(
        "The record is of a kind that this protocol version does not know.", "Audit with the newest p2pgrid; else ask."
    ),
    "key-not-admissible": Advice("A signature under such a key would prove nothing.", _AGAIN),
    "signature-missing": Advice("Without it nobody has said what the record says.", _AGAIN),
    "wrong-key": Advice("Somebody other than the channel's party signed this copy.", _AGAIN),
    "bad-signature": Advice("The copy was changed after it was signed, by a fault of the disk or on purpose.", _AGAIN),
    "channel-id": Advice("The channel was made up outside the protocol.", _STOP),
    "channel-not-countersigned": Advice(
        "Its terms were never agreed: the limit, the window, the length of disputes.",
        "Open a channel anew; settle this by hand.",
    ),
    "same-party": Advice(
        "Somebody bought from itself: the figures show no sale.", "Leave the channel out of all totals."
    ),
    "outside-channel-term": Advice("The order came before the channel was open, or after it had ended.", _UNPAID),
    "not-in-force": Advice("The offer's prices did not hold when the order came.", _UNPAID),
    "not-on-offer": Advice("There is no agreed price for what was served.", _UNPAID),
    "two-offers-one-number": Advice(
        "The provider showed different prices or terms under one number, to different clients perhaps.", _STOP
    ),
    "two-records-one-slot": Advice("The signer told two stories about one thing. Honest software never does.", _STOP),
    "key-not-bound": Advice("The operator on the offer has not said that this key is its own.", _STOP),
    "key-expired": Advice(
        "The operator answers for the key at other times only.", "Ask the operator for its latest card."
    ),
    "key-revoked": Advice("The operator had said that the key is no longer its own: it may be stolen.", _STOP),
    "broken-card-chain": Advice("The card is not the word of the operator before it.", "Trust the earlier card."),
    "wrong-amount": Advice("More or less was billed than the tariff of the offer makes of the counts.", _UNPAID),
    "refund-rule": Advice("The answer failed, came late, or was refused: it costs nothing.", _UNPAID),
    "usage-falls": Advice("What was delivered cannot become less.", _UNPAID),
    "over-caps": Advice("The client had said how much at most, and the provider accepted.", _UNPAID),
    "prompt-count": Advice("Both had agreed how long the prompt is.", _UNPAID),
    "over-credit-limit": Advice(
        "The provider lent more than was agreed, by all that its records show of what was paid.",
        "Ask the provider which payments it had booked by then.",
    ),
    "beyond-window": Advice(
        "More is claimed than the client acknowledged and one window.",
        "Look for the missing vouchers; else pay the less.",
    ),
    "wrong-order": Advice("The bill is for something other than what was ordered.", _UNPAID),
    "below-meter": Advice(
        "The receipt leaves out what the provider's own meter shows.", "Ask the provider for its reason."
    ),
    "wrong-voucher": Advice("The client acknowledged something that was never metered.", "Go by the meter."),
    "order-billed-twice": Advice("One answer was billed more than once.", _UNPAID),
    "too-fast": Advice(
        "The offer says that its hardware cannot do this: tokens may not have been made by the model named.",
        "Ask for an answer again with a fixed seed and compare; ask the provider.",
    ),
    "wrong-commitment": Advice("There are two different answers to one order.", _STOP),
    "commitment-mismatch": Advice(
        "The text shown is not the one that was sold.", "Believe the commitment, not the text."
    ),
    "receipt-gap": Advice("Nothing can be said about what is missing.", _AGAIN),
    "meter-gap": Advice("Nothing can be said about what is missing.", _AGAIN),
    "broken-link": Advice("The chain was cut, or forked: what came before may not be all there is.", _STOP),
    "wrong-total": Advice(_CHAIN, _UNPAID),
    "time-backwards": Advice(
        "A clock was set back, or records were made afterwards.", "Ask the signer; see what else falls into that time."
    ),
    "wrong-origin": Advice("It says nothing about the log that it was to speak of.", _AGAIN),
    "bad-proof": Advice(
        "It does not show that the record is in the log.", "Ask for a new one: `p2pgrid log prove ID`."
    ),
    "log-forked": Advice("Its owner shows different histories to different peers.", _STOP),
    "after-checkpoint": Advice(
        "The record's time was made up: it is older than it says.",
        "Hold it against both sides' other records of that day.",
    ),
    "not-logged": Advice(
        "Nobody but the two sides can see that it was there then.", "Ask for proofs: `p2pgrid log prove ID`."
    ),
    "too-few-witnesses": Advice(
        "Too few peers have seen this history to vouch that there is no other.",
        "Ask other peers what they have seen of it.",
    ),
    "checkpoint-stale": Advice(
        "What was logged since nobody has seen.", "Export again with a fresh checkpoint: `p2pgrid log check PEER`."
    ),
    "wrong-dispute": Advice(
        "It is about something that the receipt does not say.", "Pass it over; ask for a right one."
    ),
    "wrong-answer": Advice("It is about something that the dispute does not say.", "Treat the dispute as unanswered."),
    "wrong-mention": Advice("The chain shows a dispute where there is none, or twice.", _CHAIN),
    "dispute-unanswered": Advice(
        "The term for an answer has run out; the amount stays contested.",
        "Settle by hand, without the contested amount.",
    ),
    "receipt-in-two-statements": Advice("Something would be paid twice.", _RESTATE),
    "statement-omits-receipt": Advice("The statement does not cover all that it says it covers.", _RESTATE),
    "statement-mismatch": Advice("Its sums are not those of its receipts.", _RESTATE),
    "wrong-opening-balance": Advice("Money appears or disappears between two statements.", _RESTATE),
    "invoice-mismatch": Advice("The invoice asks for something other than the statement.", _RESTATE),
    "payment-mismatch": Advice(
        "What was booked is not what was invoiced.", "Compare with the bank; ask for a new record."
    ),
    "set-off-mismatch": Advice(
        "What was set off is not what the channels, invoices or the cycle say.",
        "Both agree on a new set-off, and say so; show the records to whoever decides.",
    ),
    "record-missing": Advice("What is built on the missing record cannot be checked.", _AGAIN),
    "left-out": Advice("The side signed these records, so it had them.", _AGAIN),
    "awaiting-countersignature": Advice(
        "The provider's claim stands alone for now.",
        "The client countersigns or disputes: `p2pgrid receipts reconcile PEER`.",
    ),
    "proposal-overtaken": Advice(
        "The client has accepted what is built on it.", "Countersign it: `p2pgrid receipts reconcile PEER`."
    ),
    "dispute-late": Advice("The receipt stands as it is.", "Nothing."),
    "dispute-not-mentioned": Advice("It is not part of the chain yet.", "The next receipt should mention it."),
    "card-missing": Advice(
        "Who stands behind the key was not checked.", "Ask the operator for its card and audit again."
    ),
    "receipt-not-stated": Advice(
        "It is not invoiced, though its period is long over.", "The provider states it, or says why it does not."
    ),
    "credit-not-shown": Advice(
        "More was sold than the limit and what these bundles show of payments.",
        "Add the provider's own bundle: it has every payment.",
    ),
    "invoice-open": Advice("Money is still owed.", "Pay it, or look for the payment record."),
    "not-received": Advice(
        "A link or a machine failed at the wrong moment.", "`p2pgrid receipts reconcile PEER` mends it."
    ),
    "voucher-not-counted": Advice("The last voucher may have been lost on its way.", "Nothing."),
    "order-open": Advice(
        "The answer is under way, or a crash cut it off.", "`p2pgrid receipts reconcile PEER` closes what was cut off."
    ),
    "same-record-twice": Advice("Files were joined, or exported twice.", "Nothing: each record is counted once."),
}
"""By code, for every one of `codes.CODES`."""
