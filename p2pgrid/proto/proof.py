"""Proofs: one finding with the records that it takes, to convince somebody who trusts none of those involved
(docs/audit.md, "Proof files").

Whoever presents a proof may leave out records, and may sign what they like with their own keys. So what speaks against
a party is judged by nothing but what the party is *bound* to: records that it signed; records that these name by their
ids, and so on; and the cards of the operators that these name. Everything else in a proof is passed over. A channel
record with other terms, an order with a lower limit, made afterwards by the accuser alone, proves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.card import Card
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, verify_checkpoint
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.default import Default
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.evidence import slot_of
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Channel, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import Message, Record, parse_message, signature_input_of
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.verdict import audit_records

_NAMED: Final[dict[type[Message], Callable[[Any], tuple[bytes, ...]]]] = {
    Offer: lambda m: (m.card,),
    Channel: lambda m: (m.continues,),
    Order: lambda m: (m.offer,),
    Voucher: lambda m: (m.meter,),
    Receipt: lambda m: (m.previous, m.order, m.offer, *m.mentions),
    Dispute: lambda m: (m.receipt,),
    Answer: lambda m: (m.dispute,),
    Card: lambda m: (m.previous,),
    Statement: lambda m: (m.previous,),
    Invoice: lambda m: (m.statement,),
    Payment: lambda m: (m.statement,),
    SetOff: lambda m: tuple(i for s in m.sides for i in (s.card, *(claim.statement for claim in s.claims))),
    Cycle: lambda m: tuple(debt.card for debt in m.debts),
    Leg: lambda m: (m.cycle,),
    CycleVerdict: lambda m: (m.cycle,),
    Default: lambda m: (m.statement, *m.payments),
}
"""The fields that hold ids of other records. No commitment is among them: its bytes are the other party's choice."""

MOST_AUDITED: Final = 100_000
"""Some ten seconds."""

REFUTABLE: Final[dict[str, str]] = {
    "key-expired": "A later card of the same operator, which gives the key a longer term, would refute it.",
}
"""What the accused could still show, by code. Nothing refutes any other proof."""


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a proof is said to prove."""

    code: str
    """A key of `codes.CODES`."""
    party: Party
    peer_ids: tuple[str, ...]
    """Of the party, provider first."""
    record_id: str
    """Of the record that it is about, in hex."""


def claim_of(finding: Finding) -> Claim:
    """The claim that a finding makes."""
    return Claim(code=finding.code, party=finding.party, peer_ids=finding.peer_ids, record_id=finding.record_id)


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A record as a proof sees it: who signed it and what it names. Made by `exhibit_of`."""

    record: Record
    record_id: bytes
    message: Message | None
    """None if the payload is no message."""
    signers: frozenset[str]
    """Peer ids of the keys whose signatures fit."""
    names: frozenset[bytes]
    """Ids of records."""

    @property
    def channel(self) -> bytes:
        """The channel's id; empty where there is none."""
        channel: bytes = getattr(self.message, "channel", b"")
        return channel

    @property
    def slot(self) -> tuple[object, ...]:
        """What no other record of its type may fill."""
        return (type(self.message), *slot_of(self.message)) if self.message is not None else (self.record_id,)


def exhibit_of(record: Record) -> Exhibit:
    """Look at a record by itself. Raises nothing."""
    signed = signature_input_of(record)
    signers = set()
    if record.payload_type == CHECKPOINT_TYPE:
        try:
            signers.add(verify_checkpoint(record.payload).log_key.peer_id)
        except InvalidRecord:
            pass  # then it binds nobody
    for signature in record.signatures:
        try:
            key = parse_public_key(signature.key)
        except InvalidRecord:
            continue
        if key.verify(signed, signature.signature):
            signers.add(key.peer_id)
    message_type = MESSAGE_TYPES.get(record.payload_type)
    message: Message | None = None
    if message_type is not None:
        try:
            message = parse_message(record, message_type)
        except InvalidRecord:
            message = None
    named = _NAMED[type(message)](message) if message is not None and type(message) in _NAMED else ()
    return Exhibit(record, record.id, message, frozenset(signers), frozenset(named) - {b""})


def follows(claim: Claim, exhibits: Sequence[Exhibit]) -> Finding | None:
    """The finding that the claim is about, if it follows from what its party is bound to; else None. Raises nothing."""
    code = CODES.get(claim.code)
    if code is None or code.weight is not Weight.FAULT or not claim.peer_ids or claim.party is Party.UNCLEAR:
        return None
    bound = list(exhibits)
    for peer_id in claim.peer_ids:
        bound = bound_to(bound, peer_id)
    entries = ((number, exhibit.record) for number, exhibit in enumerate(bound, start=1))
    verdict = audit_records([Bundle("", entries)])
    for finding in verdict.findings:
        if finding.convinces and claim_of(finding) == claim:
            return finding
    return None


def smallest(claim: Claim, exhibits: Sequence[Exhibit], *, most_audited: int = MOST_AUDITED) -> list[Exhibit] | None:
    """Records from which the claim follows, and no longer does without any one of them; None if it does not follow.

    No more is tried once `most_audited` records were audited, each as often as it was: what is left then may hold some
    that could be spared.
    """
    kept = list(exhibits)
    if follows(claim, kept) is None:
        return None
    step = max(1, len(kept) // 2)
    audited = len(kept)
    while True:
        before, at = len(kept), 0
        while at < len(kept):
            without = kept[:at] + kept[at + step :]
            audited += len(without)
            if audited > most_audited:
                return kept
            if follows(claim, without) is not None:
                kept = without
            else:
                at += step
        # A record may be needed only as long as another is there: until a round of single ones finds nothing.
        if step == 1 and len(kept) == before:
            return kept
        step = max(1, min(step, len(kept)) // 2)


def bound_to(exhibits: Iterable[Exhibit], peer_id: str) -> list[Exhibit]:
    """Those that the peer is bound to, in their order."""
    exhibits = list(exhibits)
    by_id: dict[bytes, list[int]] = defaultdict(list)
    cards: dict[str, list[int]] = defaultdict(list)
    for index, exhibit in enumerate(exhibits):
        by_id[exhibit.record_id].append(index)
        if isinstance(exhibit.message, Card):
            for signer in exhibit.signers:
                cards[signer].append(index)
    waiting = [index for index, exhibit in enumerate(exhibits) if peer_id in exhibit.signers]
    bound = set(waiting)
    # A proof of inclusion is nobody's word: hashes that lead to a root which the peer signed hold, whoever shows them.
    bound |= {i for i, exhibit in enumerate(exhibits) if exhibit.record.payload_type == INCLUSION_PROOF_TYPE}
    while waiting:
        exhibit = exhibits[waiting.pop()]
        new = [index for name in exhibit.names for index in by_id.get(name, ())]
        if isinstance(exhibit.message, Card):
            # Who sells under an operator's card is bound to what the operator, or its successor, says of the key.
            keys = [exhibit.message.operator, exhibit.message.successor]
            new += [index for key in keys for index in cards.get(_peer_id(key), ())]
        new = [index for index in new if index not in bound]
        bound.update(new)
        waiting += new
    return [exhibits[index] for index in sorted(bound)]


def _peer_id(key: bytes) -> str:
    try:
        return parse_public_key(key).peer_id
    except InvalidRecord:
        return ""
