"""From the lines of bundles to the records that they prove: the audit's first half.

Every signature is checked against the key beside it before a payload is believed; later, when the channels are known,
that key is held against the party's. Copies of one record are merged: what one bundle lacks another may bring.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.attachments import ATTACHMENT_TYPES, Attachments, ProofFact
from p2pgrid.proto.card import Card
from p2pgrid.proto.codes import Party
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.default import Default
from p2pgrid.proto.dispute import Answer, Dispute, Opening
from p2pgrid.proto.findings import MOST_ALIKE, Blemish, Docket, Draft, Place, Slot
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import Message, Record, Role, Signature, parse_message, signature_input_of
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.withdrawal import Withdrawal
from p2pgrid.units import format_cents

M = TypeVar("M", bound=Message)

REQUIRED_ROLES: Final[dict[type[Message], frozenset[Role]]] = {
    Offer: frozenset({Role.PROVIDER}),
    Channel: frozenset(),  # either one makes it evidence; whether both signed is judged later
    Order: frozenset({Role.CLIENT}),
    Meter: frozenset({Role.PROVIDER}),
    Voucher: frozenset({Role.CLIENT}),
    Receipt: frozenset({Role.PROVIDER}),
    Card: frozenset({Role.OPERATOR}),
    Dispute: frozenset(),  # of these three it is the party that the record names: `required_roles`
    Answer: frozenset(),
    Opening: frozenset(),
    Statement: frozenset({Role.PROVIDER}),
    Invoice: frozenset({Role.PROVIDER}),
    Payment: frozenset({Role.PROVIDER}),
    SetOff: frozenset(),  # likewise: either one proposes it
    Cycle: frozenset({Role.PROVIDER}),
    Leg: frozenset(),
    CycleVerdict: frozenset({Role.PROVIDER}),
    Default: frozenset({Role.PROVIDER}),
    Withdrawal: frozenset({Role.PROVIDER}),
}
"""Whose signature gives a record its force. A receipt's or statement's second signature makes it final, not valid."""

_SLOTS: Final[dict[type[Message], Callable[[Any], Slot]]] = {
    Offer: lambda m: (m.provider, m.sequence),
    Channel: lambda m: (m.channel,),
    Order: lambda m: (m.channel, m.order_number),
    Meter: lambda m: (m.channel, m.order_number, m.tick),
    Voucher: lambda m: (m.channel, m.order_number, m.tick),
    Receipt: lambda m: (m.channel, m.receipt_number),
    Card: lambda m: (m.operator, m.sequence),
    Dispute: lambda m: (m.channel, m.receipt_number, m.receipt, m.by.encode()),
    Answer: lambda m: (m.channel, m.receipt_number, m.dispute),
    Opening: lambda m: (m.channel, m.order_number, m.by.encode(), m.subject.encode()),
    Statement: lambda m: (m.channel, m.statement_number),
    Invoice: lambda m: (m.channel, m.statement, m.invoice_number.encode()),
    Payment: lambda m: (
        *(m.channel, m.statement, m.invoice_number.encode(), m.reference.encode()),
        *(m.entry, m.kind.encode(), m.booked_ms, m.amount_cents),
    ),
    SetOff: lambda m: (m.first.channel, m.second.channel, m.nonce),
    Cycle: lambda m: (m.proposer, m.nonce),
    Leg: lambda m: (m.channel, m.cycle),
    CycleVerdict: lambda m: (m.timekeeper, m.cycle),
    Default: lambda m: (m.channel, m.statement, m.as_of_ms, m.claimed_ms, m.unpaid_cents, *m.payments),
    Withdrawal: lambda m: (m.provider, m.sequence, m.withdrawn_ms),
}
_LABELS: Final[dict[type[Message], Callable[[Any], str]]] = {
    Offer: lambda m: f"offer {m.sequence}",
    Channel: lambda m: "the channel",
    Order: lambda m: f"order {m.order_number}",
    Meter: lambda m: f"meter {m.tick} of order {m.order_number}",
    Voucher: lambda m: f"voucher {m.tick} of order {m.order_number}",
    Receipt: lambda m: f"receipt {m.receipt_number}",
    Card: lambda m: f"card {m.sequence}",
    Dispute: lambda m: f"the {m.by}'s dispute of receipt {m.receipt_number}",
    Answer: lambda m: f"the {m.by}'s answer about receipt {m.receipt_number}",
    Opening: lambda m: f"the {m.by}'s opening of the {m.subject} of order {m.order_number}",
    Statement: lambda m: f"statement {m.statement_number}",
    Invoice: lambda m: f"invoice {m.invoice_number}",
    Payment: lambda m: f"the payment {m.reference!r} " + (f"of invoice {m.invoice_number}" if m.statement else "ahead"),
    SetOff: lambda m: f"the set-off of {format_cents(m.amount_cents)} {m.currency}",
    Cycle: lambda m: f"the cycle of {len(m.debts)} debts",
    Leg: lambda m: f"the leg of {format_cents(m.amount_cents)} {m.currency}",
    CycleVerdict: lambda m: "the timekeeper's verdict",
    Default: lambda m: f"the claim that {m.unpaid_cents} cents are not paid",
    Withdrawal: lambda m: f"the withdrawal of offers below {m.sequence}",
}

_TIMES: Final = (
    "issued_ms",
    "ordered_ms",
    "metered_ms",
    "disputed_ms",
    "answered_ms",
    "stated_ms",
    "booked_ms",
    "agreed_ms",
    "proposed_ms",
    "judged_ms",
    "claimed_ms",
    "opened_ms",
    "valid_from_ms",
    "withdrawn_ms",
)


@dataclass(slots=True)
class Copy:
    """One line that holds the record."""

    place: Place
    signers: dict[Role, bytes]
    """Roles whose signature fits the key beside it, with that key."""
    claimed: frozenset[Role]
    """Roles that the line shows a signature for, fitting or not."""
    draft: Draft | None
    """What was found about the line, if anything."""


@dataclass(slots=True)
class Held(Generic[M]):
    """One record, with every copy of it."""

    record_id: bytes
    message: M
    copies: list[Copy] = field(default_factory=list)
    signers: dict[Role, bytes] = field(default_factory=dict)
    """Roles proven by the party's own key in some copy. Filled by `Evidence.admit`."""

    @property
    def slot(self) -> Slot:
        """What no other record of its type may fill."""
        return slot_of(self.message)

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(copy.place for copy in self.copies)

    def claims(self, role: Role) -> bool:
        """True if some copy shows a signature in that role. One that does not fit has its own finding already."""
        return any(role in copy.claimed for copy in self.copies)

    def __str__(self) -> str:
        return label_of(self.message)


def slot_of(message: Message) -> Slot:
    """What no other message of its type may fill."""
    return _SLOTS[type(message)](message)


def label_of(message: Message) -> str:
    """The message for people: `receipt 3`."""
    return _LABELS[type(message)](message)


def time_of(message: Message) -> int:
    """When the message was made, as it says itself, Unix milliseconds; 0 if it does not say."""
    times = (getattr(message, name, 0) for name in _TIMES)
    return next((time_ms for time_ms in times if time_ms), 0)


def required_roles(message: Message) -> frozenset[Role]:
    """Whose signature gives this record its force."""
    by: Role | None = getattr(message, "by", None)
    return REQUIRED_ROLES[type(message)] if by is None else frozenset({by})


@dataclass(slots=True)
class Alike:
    """Lines of one bundle that have the same fault, and of which only the number is told."""

    count: int = 0
    first: int = 0
    last: int = 0

    def add(self, count: int, first: int, last: int) -> None:
        """Add others."""
        self.first = min(self.first, first) if self.count else first
        self.last = max(self.last, last)
        self.count += count


class Evidence:
    """Every record of every bundle whose signatures fit the keys beside them, and what was found on the way."""

    def __init__(self, docket: Docket, known_proofs: Mapping[bytes, ProofFact] | None = None) -> None:
        """`known_proofs`: as for `Attachments`."""
        self._docket: Final = docket
        self.attachments: Final = Attachments(docket, self._is_one_of_many, known_proofs)
        self._held: Final[dict[type[Message], dict[bytes, Held[Any]]]] = defaultdict(dict)
        self._verified: Final[dict[bytes, tuple[bytes, bytes]]] = {}
        self._suspects: Final[list[tuple[Draft, Blemish | None, tuple[bytes, ...]]]] = []
        self._told: Final[dict[tuple[str, bytes], Draft]] = {}
        self._keys: Final[dict[bytes, PublicKey | None]] = {}
        self._singles: Final[Counter[tuple[int, str, str]]] = Counter()
        self._alike: Final[dict[tuple[int, str, str], Alike]] = defaultdict(Alike)
        """By bundle, code and payload type (empty if unsure)."""

    def take(self, place: Place, entry: Record | InvalidRecord) -> None:
        """Take one line of a bundle."""
        if isinstance(entry, InvalidRecord):
            if not self._is_one_of_many(place, entry.code):
                draft = Draft(entry.code, f"The line cannot be read: {entry.message}", (place,))
                self._docket.add(draft)
                self._docket.add_blemish(Blemish(draft))
            return
        if entry.payload_type in ATTACHMENT_TYPES:
            self.attachments.take(place, entry)
            return
        signed = signature_input_of(entry)
        record_id = hashlib.sha256(signed).digest()
        good: dict[Role, bytes] = {}
        bad: list[tuple[str, str]] = []
        for signature in entry.signatures:
            fault = self._fault_of_signature(signature, record_id, signed)
            if fault is None:
                good.setdefault(signature.role, signature.key)
            else:
                bad.append(fault)
        self._file(place, entry, record_id, good, bad)

    def take_more(self, bundle: int, code: str, lines: Alike) -> None:
        """Count lines that cannot be read and are not taken one by one: those after the first `MOST_ALIKE`."""
        self._alike[bundle, code, ""].add(lines.count, lines.first, lines.last)

    def sum_up(self) -> None:
        """Report lines alike beyond the first of them, when every line is taken."""
        # By where they begin: counted or told one by one, the same line is taken for a lost record.
        alike = sorted(self._alike.items(), key=lambda one: (one[0][0], one[1].first))
        for (bundle, code, payload_type), lines in alike:
            if lines.count > 0:
                what = "of this kind" if payload_type or code == "wrong-type" else "cannot be read"
                sentence = f"{lines.count} more lines {what}, from line {lines.first} to line {lines.last}."
                draft = Draft(code, sentence, (Place(bundle, lines.first),), count=lines.count, last_line=lines.last)
                self._docket.add(draft)
                self._docket.add_blemish(Blemish(draft, payload_type, left=lines.count))

    def _is_one_of_many(self, place: Place, code: str, payload_type: str = "") -> bool:
        """True if a line is alike many, and only counted."""
        key = place.bundle, code, payload_type
        if self._singles[key] < MOST_ALIKE:
            self._singles[key] += 1
            return False
        self._alike[key].add(1, place.line, place.line)
        return True

    def of(self, message_type: type[M]) -> dict[bytes, Held[M]]:
        """The records of a type by id."""
        return cast("dict[bytes, Held[M]]", self._held[message_type])

    def all(self) -> Iterator[Held[Any]]:
        """Every record."""
        for records in self._held.values():
            yield from records.values()

    def admit(self, held: Held[M], expected: Mapping[Role, bytes]) -> bool:
        """Hold the signers against the parties' keys; True if the record has the signature that gives it force."""
        required = required_roles(held.message)
        channel = _channel(held.message)
        kept = []
        for copy in held.copies:
            wrong = [role for role, key in copy.signers.items() if key != expected.get(role, key)]
            for role in wrong:
                sentence = f"This copy of {held} is signed as {role} by another key than the {role}'s."
                draft = Draft("wrong-key", sentence, (copy.place,), record_id=held.record_id, channel=channel)
                copy.draft = self._report(draft)
                del copy.signers[role]
            if not required <= copy.claimed or not copy.claimed:
                missing = " and ".join(sorted(required)) or "provider"
                sentence = f"In this copy of {held} the {missing}'s signature is missing."
                draft = Draft("signature-missing", sentence, (copy.place,), record_id=held.record_id, channel=channel)
                copy.draft = self._report(draft)
            if copy.signers and required <= set(copy.signers):
                kept.append(copy)
                held.signers.update(copy.signers)
            elif copy.draft is not None:
                blemish = Blemish(copy.draft, held.message.payload_type, held.slot, held.record_id)
                self._docket.add_blemish(blemish)
        held.copies[:] = kept
        if not kept:
            del self._held[type(held.message)][held.record_id]
        return bool(kept)

    def name_originals(self, sources: Sequence[str]) -> None:
        """Say of every altered copy what it is a copy of, where its id or a signature in it is known from intact ones.

        A signature fits one record only: whoever finds it under other bytes looks at an altered copy of that record.
        """
        for draft, blemish, signatures in self._suspects:
            ids = [draft.record_id, *(self._verified[s][0] for s in signatures if s in self._verified)]
            held = next((records[i] for i in ids for records in self._held.values() if i in records), None)
            intact = [c for c in held.copies if c.draft is None] if held is not None else []
            if held is None or not intact:
                continue
            if blemish is not None:
                blemish.record_id = held.record_id
            draft.record_id, draft.channel = held.record_id, _channel(held.message)
            signed = " and ".join(sorted(intact[0].signers))
            where = f"{sources[intact[0].place.bundle]}:{intact[0].place.line}"
            draft.sentence += f" It is {held}, which {where} holds intact with the signature of {signed}."

    def suspects(self) -> tuple[tuple[bytes, ...], ...]:
        """The signatures of every altered copy."""
        return tuple(signatures for _, _, signatures in self._suspects)

    def _fault_of_signature(self, signature: Signature, record_id: bytes, signed: bytes) -> tuple[str, str] | None:
        if self._verified.get(signature.signature) == (record_id, signature.key):
            return None
        key = self._key(signature.key)
        if key is None:
            return "key-not-admissible", f"the key beside the {signature.role}'s signature is not admissible"
        if not key.verify(signed, signature.signature):
            return "bad-signature", f"the {signature.role}'s signature does not fit"
        self._verified[signature.signature] = (record_id, signature.key)
        return None

    def _key(self, raw: bytes) -> PublicKey | None:
        if raw not in self._keys:
            try:
                self._keys[raw] = parse_public_key(raw)
            except InvalidRecord:
                self._keys[raw] = None
        return self._keys[raw]

    def _file(
        self, place: Place, record: Record, record_id: bytes, good: dict[Role, bytes], bad: list[tuple[str, str]]
    ) -> None:
        message, fault = _read(record)
        if fault is not None and not record.signatures:
            known_type = record.payload_type if record.payload_type in MESSAGE_TYPES else ""
            if self._is_one_of_many(place, fault.code, known_type):
                return
        draft = None
        if bad:
            what = label_of(message) if message is not None and good else "a record"
            sentence = f"In this copy of {what} {' and '.join(text for _, text in bad)}: the copy was altered."
            draft = Draft(bad[0][0], sentence, (place,), record_id=record_id, channel=_channel(message))
        elif fault is not None:
            sentence = f"{'The signature fits, and ' if good else ''}{fault.message}"
            party = Party.SIGNER if good else Party.HOLDER
            draft = Draft(fault.code, sentence, (place,), party, record_id, signers=dict(good), convinces=bool(good))
        if draft is not None and (bad or not good or not self._is_told(draft)):
            self._report(draft)
        blemish = None
        if message is not None and (good or not bad):
            held = self._held[type(message)].setdefault(record_id, Held(record_id, message))
            held.copies.append(Copy(place, good, frozenset(s.role for s in record.signatures), draft))
        elif draft is not None:
            known_type = record.payload_type if good or record.payload_type in MESSAGE_TYPES else ""
            blemish = Blemish(draft, known_type, slot_of(message) if message is not None else ())
            self._docket.add_blemish(blemish)
        if bad and draft is not None:
            self._suspects.append((draft, blemish, tuple(s.signature for s in record.signatures)))

    def _is_told(self, draft: Draft) -> bool:
        """What a signer signed wrongly is one fault, however many copies there are: only the place is added."""
        first = self._told.setdefault((draft.code, draft.record_id), draft)
        if first is not draft:
            first.places += draft.places
        return first is not draft

    def _report(self, draft: Draft) -> Draft:
        self._docket.add(draft)
        return draft


def _read(record: Record) -> tuple[Message | None, InvalidRecord | None]:
    message_type = MESSAGE_TYPES.get(record.payload_type)
    if message_type is None or message_type not in REQUIRED_ROLES:
        return None, InvalidRecord("wrong-type", f"the payload type {record.payload_type!r} is unknown.")
    try:
        return parse_message(record, message_type), None
    except InvalidRecord as error:
        return None, error


def _channel(message: Message | None) -> bytes:
    channel: bytes = getattr(message, "channel", b"")
    return channel


def by_slot(held: Iterable[Held[M]]) -> dict[Slot, list[Held[M]]]:
    """Records by what they fill. More than one in a slot is a fault of whoever signed both."""
    slots: dict[Slot, list[Held[M]]] = defaultdict(list)
    for each in held:
        slots[each.slot].append(each)
    return slots
