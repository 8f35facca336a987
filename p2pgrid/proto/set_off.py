"""Set-off between two who owe one another (docs/spec/messages.md, section 7): SetOff.

Each side gives up so much of what the other owes it, against the same amount of what it owes. Invoices stay as they
are; what is taken off is money that nobody transfers. The record names both creditors and both debtors, so that whoever
has the two channels can see that each signer gives up its own claim, and what it gets for it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import CurrencyCode, Digest, Id, Key, Nested, TimeMs
from p2pgrid.proto.record import Message
from p2pgrid.proto.statement import MAX_CENTS, InvoiceNumber

MAX_CLAIMS: Final = 32
CentsOff = Annotated[int, Meta(ge=1, le=MAX_CENTS)]
"""Cents of the currency that are taken off what is owed."""


class Claim(Nested, frozen=True, kw_only=True):
    """What is taken off one invoice."""

    statement: Id
    invoice_number: InvoiceNumber
    """Of that statement's Invoice."""
    cents: CentsOff


class SetOffSide(Nested, frozen=True, kw_only=True):
    """What one creditor gives up."""

    channel: Id
    creditor: Key
    """The channel's provider, who signs."""
    debtor: Key
    """The channel's client. It is the other side's creditor, or another key of that one's operator."""
    card: Digest
    """The id of a Card that names the creditor's key and, as another of its operator's, the debtor's in the other side;
    empty where the two are one key."""
    claims: Annotated[tuple[Claim, ...], Meta(min_length=1, max_length=MAX_CLAIMS)]
    """They come to the set-off's amount."""


class SetOff(Message, frozen=True, kw_only=True):
    """Two creditors set off what they owe one another. Signed by both: in force with the second signature.

    The creditor of the first side signs as provider, that of the second as client: in one channel, where each operator
    has one key, that is what they are in the first.
    """

    payload_type: ClassVar[str] = "/p2pgrid/set-off/1"
    max_payload_bytes: ClassVar[int] = 24 * 1024

    first: SetOffSide
    """The side with the lower channel id, so that one content has one form."""
    second: SetOffSide
    currency: CurrencyCode
    amount_cents: CentsOff
    """Taken off each side."""
    agreed_ms: TimeMs
    """When it was proposed. Statements of both channels count it by this time."""
    until_ms: TimeMs
    """Up to when the second side may sign."""
    nonce: Id
    """Random. Of two set-offs of the same channels with one nonce one counts."""

    @property
    def sides(self) -> tuple[SetOffSide, SetOffSide]:
        """Both sides, the first one first."""
        return self.first, self.second

    def side_of(self, channel: bytes) -> SetOffSide | None:
        """The side that takes something off a channel's debt; None if neither does."""
        return next((side for side in self.sides if side.channel == channel), None)

    def check(self) -> None:
        if self.first.channel >= self.second.channel:
            raise InvalidRecord("out-of-range", "a set-off's first side is that with the lower channel id.")
        if self.first.creditor == self.second.creditor or self.first.debtor == self.second.debtor:
            raise InvalidRecord("out-of-range", "a set-off is between two creditors, and between two debtors.")
        for side, other in (self.sides, self.sides[::-1]):
            if side.creditor == side.debtor:
                raise InvalidRecord("out-of-range", "nobody owes itself.")
            if len(side.card) not in (0, 32):
                raise InvalidRecord("out-of-range", "an id has 32 bytes, or none where there is none.")
            if bool(side.card) is (side.creditor == other.debtor):
                raise InvalidRecord("out-of-range", "a side names a card if its creditor owes with another key.")
            if sum(claim.cents for claim in side.claims) != self.amount_cents:
                raise InvalidRecord("out-of-range", "the claims of each side come to the set-off's amount.")
            if len({(claim.statement, claim.invoice_number) for claim in side.claims}) != len(side.claims):
                raise InvalidRecord("out-of-range", "a side names one invoice twice.")
        if self.until_ms <= self.agreed_ms:
            raise InvalidRecord("out-of-range", "the second side may sign until after the set-off is proposed.")
