"""Every code that an audit can give, with its title, the party it speaks against, and its weight.

docs/spec/audit.md holds the same table for people; a test holds the two together. `InvalidRecord` carries these codes
too, so that what a peer refuses to act on and what an auditor reports have one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Party(StrEnum):
    """Whom a code speaks against. A finding names one of the first five; the others are resolved to them."""

    PROVIDER = "provider"
    CLIENT = "client"
    BOTH = "both"
    UNCLEAR = "unclear"
    OPERATOR = "operator"
    """The company that signs cards."""
    SIGNER = "signer"
    """Whoever signed the record."""
    OTHER = "other"
    """The other party of the channel than the one that signed the record."""
    HOLDER = "holder"
    """Whoever presents the file: nobody keeps what it did not verify, so what does not verify was altered there."""


class Weight(StrEnum):
    """What a code does to the verdict."""

    FAULT = "fault"
    """A rule was broken: the verdict is not clean."""
    NOTE = "note"
    """Worth knowing and no fault: the verdict stays clean."""


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding."""

    code: str
    title: str
    party: Party
    convinces: bool
    """True if the records themselves prove it to anybody, with no trust in whoever presents them."""
    weight: Weight


def _fault(code: str, party: Party, title: str, *, convinces: bool = False) -> Code:
    return Code(code, title, party, convinces, Weight.FAULT)


def _note(code: str, party: Party, title: str) -> Code:
    return Code(code, title, party, False, Weight.NOTE)


_ALL: Final = (
    # Form and signatures. A form fault under a signature that fits is the signer's, and convinces.
    _fault("malformed", Party.HOLDER, "The line is no record, or the payload is no message of its type."),
    _fault("oversize", Party.HOLDER, "The line or the payload is larger than its type may be."),
    _fault("not-canonical", Party.HOLDER, "The payload is not in its one canonical encoding."),
    _fault("out-of-range", Party.HOLDER, "A value overflows, or contradicts another in the same record."),
    _fault("wrong-type", Party.HOLDER, "The payload type is not one of this protocol."),
    _fault("key-not-admissible", Party.HOLDER, "A key is no canonical Ed25519 point of prime order."),
    _fault("signature-missing", Party.HOLDER, "The signature that gives the record its force is not there."),
    _fault("wrong-key", Party.HOLDER, "The record is signed by another key than the party's."),
    _fault("bad-signature", Party.HOLDER, "A signature does not fit the record: this copy was altered."),
    # Channel and offer.
    _fault("channel-id", Party.SIGNER, "The channel's id does not derive from its keys and nonces.", convinces=True),
    _fault("channel-not-countersigned", Party.PROVIDER, "A channel was used without both signatures."),
    _fault("same-party", Party.BOTH, "Client and provider are the same key.", convinces=True),
    _fault("outside-channel-term", Party.PROVIDER, "An order outside the channel's term was served.", convinces=True),
    _fault("not-in-force", Party.PROVIDER, "An order was served under an offer not in force.", convinces=True),
    _fault("not-on-offer", Party.PROVIDER, "What was served is not in the offer that the order names.", convinces=True),
    _fault("two-offers-one-number", Party.PROVIDER, "Two different offers carry one sequence number.", convinces=True),
    _fault("two-records-one-slot", Party.SIGNER, "Two different records fill one slot.", convinces=True),
    # Keys.
    _fault("key-not-bound", Party.PROVIDER, "A key acts for an operator whose cards do not name it.", convinces=True),
    _fault(
        "key-expired", Party.PROVIDER, "A key acted outside the term that its operator's cards give.", convinces=True
    ),
    _fault("key-revoked", Party.PROVIDER, "A key acted after its operator had revoked it.", convinces=True),
    _fault("broken-card-chain", Party.OPERATOR, "A card does not follow the one that it names.", convinces=True),
    # Counts and money.
    _fault("wrong-amount", Party.PROVIDER, "The amount is not the counts times the tariff.", convinces=True),
    _fault("refund-rule", Party.PROVIDER, "An amount is claimed where the refund rule owes nothing.", convinces=True),
    _fault("usage-falls", Party.PROVIDER, "A cumulative count falls from one tick to the next.", convinces=True),
    _fault("over-caps", Party.PROVIDER, "More tokens or money than the order allows.", convinces=True),
    _fault("prompt-count", Party.PROVIDER, "The prompt count is not the one the client stated.", convinces=True),
    _fault("over-credit-limit", Party.PROVIDER, "More is signed and unpaid than the channel's credit limit."),
    _fault("beyond-window", Party.PROVIDER, "A receipt claims more than the last voucher allows."),
    _fault("wrong-order", Party.PROVIDER, "The receipt contradicts the order it bills.", convinces=True),
    _fault("below-meter", Party.PROVIDER, "The receipt counts less than was metered.", convinces=True),
    _fault("wrong-voucher", Party.CLIENT, "The voucher is not what the meter it names says.", convinces=True),
    _fault("order-billed-twice", Party.PROVIDER, "Two receipts of one channel bill the same order.", convinces=True),
    _fault("too-fast", Party.PROVIDER, "The answer came faster than the hardware offered can give it."),
    # Commitments.
    _fault("wrong-commitment", Party.PROVIDER, "A receipt by voucher commits to another answer.", convinces=True),
    _fault("commitment-mismatch", Party.SIGNER, "What was opened is not what was committed to.", convinces=True),
    # The chain.
    _fault("receipt-gap", Party.HOLDER, "Receipts are missing before others."),
    _fault("meter-gap", Party.HOLDER, "Meter ticks are missing before others."),
    _fault("broken-link", Party.PROVIDER, "The receipt does not name the one before it.", convinces=True),
    _fault("wrong-total", Party.PROVIDER, "The channel's total is not the sum of its receipts.", convinces=True),
    _fault("time-backwards", Party.SIGNER, "Time runs backwards by more than clocks may differ."),
    # The log.
    _fault("wrong-origin", Party.HOLDER, "A checkpoint or a proof is of another log than it should be."),
    _fault("bad-proof", Party.HOLDER, "A proof does not lead to the root that it is for."),
    _fault("log-forked", Party.SIGNER, "A log signed two trees of which neither begins the other.", convinces=True),
    _fault("after-checkpoint", Party.PROVIDER, "A witness saw a record in the log before its own time."),
    _fault("not-logged", Party.PROVIDER, "A receipt is not shown to be in the log, and that is demanded."),
    _fault("too-few-witnesses", Party.PROVIDER, "Fewer witnesses than are demanded cosigned the log."),
    _fault("checkpoint-stale", Party.PROVIDER, "No witness has seen the log of late, and that is demanded."),
    # Disputes.
    _fault("wrong-dispute", Party.SIGNER, "The dispute contradicts the receipt that it names.", convinces=True),
    _fault("wrong-answer", Party.SIGNER, "The answer contradicts the dispute that it names.", convinces=True),
    _fault("wrong-mention", Party.PROVIDER, "The receipt mentions what it must not, or again.", convinces=True),
    _fault("dispute-unanswered", Party.OTHER, "A dispute was not answered in its term."),
    # Settlement.
    _fault("receipt-in-two-statements", Party.PROVIDER, "Two statements hold the same receipt.", convinces=True),
    _fault("statement-omits-receipt", Party.PROVIDER, "A statement leaves out a receipt of its range.", convinces=True),
    _fault("statement-mismatch", Party.PROVIDER, "The statement is not what its receipts come to.", convinces=True),
    _fault("wrong-opening-balance", Party.PROVIDER, "A balance does not begin where the last ended.", convinces=True),
    _fault("invoice-mismatch", Party.PROVIDER, "The invoice is not what its statement says.", convinces=True),
    _fault("payment-mismatch", Party.PROVIDER, "The payment is not of the invoice that it names.", convinces=True),
    _fault("set-off-mismatch", Party.SIGNER, "The set-off is not of the debts that it names.", convinces=True),
    # What is not there.
    _fault("record-missing", Party.HOLDER, "A record that others build on is in no bundle."),
    _fault("left-out", Party.HOLDER, "A bundle lacks what its own side signed and the other side shows."),
    # Notes.
    _note("awaiting-countersignature", Party.CLIENT, "The provider has signed and the client not yet."),
    _note("proposal-overtaken", Party.CLIENT, "A receipt without countersignature has a countersigned one above it."),
    _note("dispute-late", Party.SIGNER, "A dispute came after its term, and has no force."),
    _note("dispute-not-mentioned", Party.PROVIDER, "No receipt mentions a dispute that both sides hold."),
    _note("card-missing", Party.UNCLEAR, "The operator's card that is named is in no bundle."),
    _note("receipt-not-stated", Party.PROVIDER, "A receipt is in no statement, two periods after it."),
    _note(
        "credit-not-shown", Party.UNCLEAR, "The total passes what bundles show of the credit; payments may be missing."
    ),
    _note("invoice-open", Party.CLIENT, "An invoice is not, or not wholly, paid."),
    _note("not-received", Party.UNCLEAR, "A bundle lacks what the other side signed: it may never have arrived."),
    _note("voucher-not-counted", Party.UNCLEAR, "A receipt goes by an earlier voucher than the last."),
    _note("order-open", Party.UNCLEAR, "An order was served and has no receipt yet."),
    _note("same-record-twice", Party.HOLDER, "A bundle holds the same record more than once."),
)

CODES: Final[dict[str, Code]] = {code.code: code for code in _ALL}
"""Every code by its name, in the order of docs/spec/audit.md."""
