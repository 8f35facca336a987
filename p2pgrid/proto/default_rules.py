"""Is a claim of default true, by the records that anybody shows? (docs/spec/messages.md, rule 24g)

Pure: the same records give the same verdict to everybody. Nobody is believed: the client has signed the debt, and the
provider what it was paid. More records can only turn a claim that stands into one that is cleared or false.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.card_chain import verify_card
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS, verify_channel
from p2pgrid.proto.codes import Party
from p2pgrid.proto.default import Default, open_by_all, payments_since, set_off_since
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import M, Record, Role, Signed, parse_message, verify_record, verify_self_signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import faults_of_parties, is_in_force, verify_named
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement
from p2pgrid.proto.statement_rules import faults_of_sums

_BANK_DAY_MS: Final = 86_400_000
"""A booking's day is known, not its hour."""
_CARD, _OFFER = "/p2pgrid/card/1", Offer.payload_type


class DefaultState(StrEnum):
    """What becomes of a claim."""

    STANDS = "stands"
    """The client owes it, and is at fault."""
    CLEARED = "cleared"
    """It was paid since. Nobody is at fault any more."""
    FALSE = "false"
    """The provider's own records contradict it."""
    UNPROVEN = "unproven"
    """What is shown proves nothing."""


@dataclass(frozen=True, slots=True)
class DefaultVerdict:
    """What the records say of one claim."""

    state: DefaultState
    sentence: str
    at_fault: Party | None = None
    unpaid_cents: int = 0
    """What is left of it."""
    claim: Signed[Default] | None = None
    """None where the claim itself is no good."""
    client: PublicKey | None = None
    provider: PublicKey | None = None
    other_keys: frozenset[bytes] = frozenset()
    """Further keys of the client's operator: its card names them, and an offer of each names the card."""


@dataclass(slots=True)
class ShownRecords:
    """Records of one channel that were checked; whatever does not fit is left aside."""

    channel: Signed[Channel]
    statements: dict[bytes, Signed[Statement]] = field(default_factory=dict)
    """By id: those that the provider has signed, with the client's signature where it fits too."""
    invoices: list[Signed[Invoice]] = field(default_factory=list)
    payments: dict[bytes, Signed[Payment]] = field(default_factory=dict)
    set_offs: dict[bytes, Signed[SetOff]] = field(default_factory=dict)
    """In force, and of this channel's parties."""

    @property
    def countersigned(self) -> list[Signed[Statement]]:
        """Statements with both signatures."""
        return [one for one in self.statements.values() if Role.CLIENT in one.signers]


def shown_of(records: Iterable[Record], channel_id: bytes | None = None) -> list[ShownRecords]:
    """What records show of each channel that both have signed, or of the one with that id."""
    taken = list(records)
    channels: dict[bytes, Signed[Channel]] = {}
    for record in taken:
        signed = _channel_of(record) if record.payload_type == Channel.payload_type else None
        if signed is not None and channel_id in (None, signed.message.channel):
            channels.setdefault(signed.message.channel, signed)
    found = {key: ShownRecords(channel) for key, channel in channels.items()}
    for record in taken:
        _add(found, record)
    return list(found.values())


def verify_default(claim: Record, records: Iterable[Record], now_ms: int) -> DefaultVerdict:
    """Judge a claim by the records beside it. Raises nothing for whatever they say."""
    taken = list(records)
    try:
        named = parse_message(claim, Default)
    except InvalidRecord as error:
        return _unproven(f"The claim is no good: {error.message}")
    shown = next(iter(shown_of(taken, named.channel)), None)
    if shown is None:
        return _unproven("The channel that it names, signed by both, is not shown.")
    provider, client = (parse_public_key(raw) for raw in (shown.channel.message.provider, shown.channel.message.client))
    try:
        signed = verify_record(claim, Default, {Role.PROVIDER: provider})
    except InvalidRecord as error:
        return _unproven(f"The claim is not the provider's: {error.message}")
    others = _other_keys(taken, client.raw)
    state, sentence, unpaid = _judge(signed.message, shown, now_ms)
    fault = {DefaultState.STANDS: Party.CLIENT, DefaultState.FALSE: Party.PROVIDER}.get(state)
    return DefaultVerdict(state, sentence, fault, unpaid, signed, client, provider, others)


def _judge(claim: Default, shown: ShownRecords, now_ms: int) -> tuple[DefaultState, str, int]:
    statement = shown.statements.get(claim.statement)
    if statement is None or Role.CLIENT not in statement.signers:
        return DefaultState.UNPROVEN, "The statement that it names, signed by both, is not shown.", 0
    gap = _gap_in(claim, statement, shown, now_ms)
    if gap:
        return DefaultState.UNPROVEN, gap, 0
    closing = statement.message.closing_cents
    since = payments_since(statement, shown.payments.values())
    listed = [one for one in since if one.id in claim.payments]
    stated = closing - sum(one.message.amount_cents for one in listed)
    if claim.unpaid_cents > stated:
        sentence = f"It claims {claim.unpaid_cents} cents; statement and payments listed leave {stated}."
        return DefaultState.FALSE, sentence, 0
    unlisted = [one for one in since if one.id not in claim.payments]
    until_ms = claim.as_of_ms - _BANK_DAY_MS
    # What is only booked for another invoice than before is no money that was overlooked.
    came = [one for one in unlisted if one.message.kind is PaymentKind.RECEIVED]
    hidden = [one for one in came if one.message.booked_ms <= until_ms]
    if hidden:
        sentence = f"It leaves out a payment that the provider had booked, {hidden[0].message.reference!r}."
        return DefaultState.FALSE, sentence, 0
    later = _successors(statement, shown)
    if later and later[-1].message.closing_cents <= 0 and later[-1].message.stated_ms <= until_ms:
        return DefaultState.FALSE, "A statement of before the claim leaves nothing open.", 0
    paid = sum(one.message.amount_cents for one in since) + set_off_since(statement, shown.set_offs.values())
    set_off_cents = sum(one.message.amount_cents for one in shown.set_offs.values())
    by_all = open_by_all(statement, shown.statements.values(), shown.payments.values(), set_off_cents)
    return _left(claim, statement, paid, later, by_all)


def _left(
    claim: Default,
    statement: Signed[Statement],
    paid_cents: int,
    later: Sequence[Signed[Statement]],
    by_all: int | None,
) -> tuple[DefaultState, str, int]:
    """What is open by now: what came is what records since say, or what later statements count, whichever is more; or,
    where all statements are there, what all records say that was paid in the channel."""
    left = statement.message.closing_cents - paid_cents
    if by_all is not None:
        left = min(left, by_all)
    counted = statement.message.closing_cents
    for one in later:
        counted -= one.message.payments_cents + one.message.set_off_cents
        if one.message.closing_cents <= 0:
            left = min(left, 0)
        left = min(left, counted)
    if left <= 0:
        return DefaultState.CLEARED, "It was paid since.", 0
    left = min(left, claim.unpaid_cents)
    what = f"statement {statement.message.statement_number}"
    return DefaultState.STANDS, f"Of {what} {left} cents are not paid, which the client has signed that it owes.", left


def _gap_in(claim: Default, statement: Signed[Statement], shown: ShownRecords, now_ms: int) -> str:
    """Why the claim proves nothing even if nobody answers it; empty if there is no reason."""
    stated = statement.message
    if faults_of_sums(stated, channel=shown.channel.message):
        return "The statement does not add up."
    if claim.currency != stated.currency:
        return f"The claim is in {claim.currency}, the statement in {stated.currency}."
    if claim.as_of_ms <= stated.due_ms + CLOCK_TOLERANCE_MS:
        return "It speaks of a time at which the statement was not due yet."
    if claim.claimed_ms > now_ms + CLOCK_TOLERANCE_MS:
        return "It is of a time to come."
    missing = set(claim.payments) - {one.id for one in payments_since(statement, shown.payments.values())}
    if missing:
        return f"The payment {min(missing).hex()[:16]}, which it lists, is not shown."
    billed = [one.message for one in shown.invoices if one.message.statement == statement.id]
    if stated.gross_cents > 0 and sum(one.gross_cents for one in billed) != stated.gross_cents:
        return "The invoices of the statement are not shown: what is not invoiced need not be paid."
    return ""


def _successors(statement: Signed[Statement], shown: ShownRecords) -> list[Signed[Statement]]:
    """The statements that follow one another from it on. The provider's signature is enough: it says what it got."""
    ranked = sorted(shown.statements.values(), key=lambda one: (one.message.closing_cents, one.id), reverse=True)
    following = {one.message.previous: one for one in ranked if one.message.previous}  # of several the best for debtors
    found = []
    at = statement
    while (after := following.get(at.id)) is not None and after.message.statement_number > at.message.statement_number:
        found.append(after)
        at = after
    return found


def _channel_of(record: Record) -> Signed[Channel] | None:
    try:
        named = parse_message(record, Channel)
        provider, client = parse_public_key(named.provider), parse_public_key(named.client)
        return verify_channel(record, provider=provider, client=client)
    except InvalidRecord:
        return None


def _add(found: dict[bytes, ShownRecords], record: Record) -> None:
    if record.payload_type == SetOff.payload_type:
        _add_set_off(found, record)
    for message_type in (Statement, Invoice, Payment):
        if record.payload_type != message_type.payload_type:
            continue
        signed = _signed(record, message_type, found)
        if signed is None:
            return
        shown = found[getattr(signed.message, "channel", b"")]
        if isinstance(signed.message, Statement):
            known = shown.statements.get(signed.id)
            if known is None or len(known.signers) < len(signed.signers):
                shown.statements[signed.id] = signed  # type: ignore[assignment]
        elif isinstance(signed.message, Payment):
            if signed.message.currency == shown.channel.message.currency:
                shown.payments[signed.id] = signed  # type: ignore[assignment]
        elif all(one.id != signed.id for one in shown.invoices):
            shown.invoices.append(signed)  # type: ignore[arg-type]


def _add_set_off(found: dict[bytes, ShownRecords], record: Record) -> None:
    try:
        signed = verify_named(record, SetOff)
    except InvalidRecord:
        return
    for side in signed.message.sides:
        shown = found.get(side.channel)
        if shown is not None and is_in_force(signed) and not faults_of_parties(signed.message, shown.channel.message):
            shown.set_offs[signed.id] = signed


def _signed(record: Record, message_type: type[M], found: dict[bytes, ShownRecords]) -> Signed[M] | None:
    """The record with the signatures that fit: the provider's at least."""
    try:
        channel = found[getattr(parse_message(record, message_type), "channel", b"")].channel.message
        keys = {Role.PROVIDER: parse_public_key(channel.provider)}
        if record.signature_of(Role.CLIENT) is not None:
            try:
                return verify_record(record, message_type, {**keys, Role.CLIENT: parse_public_key(channel.client)})
            except InvalidRecord:
                pass
        return verify_record(record, message_type, keys)
    except (InvalidRecord, KeyError):
        return None


def _other_keys(records: Iterable[Record], client: bytes) -> frozenset[bytes]:
    """Keys that a card names beside the client's, and that name the card themselves, in an offer."""
    cards: dict[bytes, set[bytes]] = {}
    offers: list[Offer] = []
    for record in records:
        try:
            if record.payload_type == _CARD:
                card = verify_card(record)
                cards[card.id] = {peer.key for peer in card.message.peers} - {one.key for one in card.message.revoked}
            elif record.payload_type == _OFFER:
                offer = verify_self_signed(record, Offer, Role.PROVIDER)
                if offer.message.provider == offer.signers[Role.PROVIDER].raw:
                    offers.append(offer.message)
        except InvalidRecord:
            continue
    found = {one.provider for one in offers if {client, one.provider} <= cards.get(one.card, set())}
    return frozenset(found - {client})


def _unproven(sentence: str) -> DefaultVerdict:
    return DefaultVerdict(DefaultState.UNPROVEN, sentence)
