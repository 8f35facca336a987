"""Set-offs and cycles on a ledger that this process writes, and how they are shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from p2pgrid.desk.asks import KeepSetOffs, KeptSetOffs
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.keys import SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Message, Record, Signed, parse_json_line, parse_message
from p2pgrid.proto.set_off import SetOff, SetOffSide
from p2pgrid.proto.set_off_rules import channels_named, is_in_force, signer_keys
from p2pgrid.settlement.set_off.agree import check_channels, our_side, verify_set_off
from p2pgrid.settlement.set_off.claims import open_claims
from p2pgrid.settlement.set_off.cycle_file import CycleFile, read_cycle_file
from p2pgrid.settlement.set_off.parties import AllBooks, Books, Operator
from p2pgrid.units import format_cents


class SetOffSideView(msgspec.Struct, frozen=True, kw_only=True):
    """What one side gives up."""

    channel: str
    creditor: str
    """Peer id; likewise the debtor."""
    debtor: str
    invoices: tuple[dict[str, str | int], ...]
    """`invoice_number` and `cents` of each."""
    is_signed: bool


class SetOffView(msgspec.Struct, frozen=True, kw_only=True):
    """A set-off, as it is shown to one of its sides."""

    id: str
    state: str
    """`waits-for-us`, `waits-for-them`, `in-force`, `lapsed`; `refused` if we did."""
    amount_cents: int
    currency: str
    agreed_ms: int
    until_ms: int
    ours: SetOffSideView
    """What we give up: we are its creditor."""
    theirs: SetOffSideView


class CycleView(msgspec.Struct, frozen=True, kw_only=True):
    """A cycle, as it is shown to anybody."""

    id: str
    state: str
    """`open`, `settled`, `void`."""
    amount_cents: int
    currency: str
    parties: int
    deadline_ms: int
    timekeeper: str
    """Peer id."""
    missing: tuple[dict[str, str], ...]
    """The signatures that are missing: `channel`, and the peer id of the `signer`."""


async def keep_set_offs(ledger: Ledger, keys: Sequence[SecretKey], ask: KeepSetOffs, now_ms: int) -> KeptSetOffs:
    """Check what was handed over, and keep it, all or nothing; durable when this returns.

    Nothing that one of `keys` has signed is kept that gives up more than is open. Raises UsageError, SlotTaken,
    LedgerError.
    """
    records = [_parse(number, line) for number, line in enumerate(ask.lines, start=1)]
    set_offs = [record for record in records if record.payload_type == SetOff.payload_type]
    channels = {one.message.channel: one.message for one in ledger.channels()}
    kept: list[Signed[SetOff]] = []
    for record in set_offs:
        try:
            kept.append(verify_set_off(record, channels))
        except InvalidRecord as error:
            raise UsageError(f"the set-off cannot be kept ({error.code}): {error.message}") from None
        _check_not_beyond(ledger, keys, kept, channels, now_ms)
    others = [line for line, record in zip(ask.lines, records, strict=True) if record not in set_offs]
    cycle = _checked_cycle([line.encode() for line in others], keys, channels) if others else None
    said = {} if cycle is None else _said_first(ledger, cycle, keys)
    ours = [] if cycle is None else [one for one in cycle.records if not _contradicts(one, said)]
    if kept or ours:
        await ledger.append(*kept, *ours)
    for one in cycle.verdicts if cycle is not None else ():
        if _contradicts(one, said):
            await ledger.append_evidence(one.record, "two-records-one-slot: the timekeeper has said it otherwise")
    return KeptSetOffs(ids=tuple(one.id.hex() for one in (*kept, *ours)))


def channels_of(ask: KeepSetOffs) -> set[bytes]:
    """The channels that its records name: whose other side has something to come for. Raises UsageError."""
    records = [_parse(number, line) for number, line in enumerate(ask.lines, start=1)]
    kinds: dict[str, type[Message]] = {kind.payload_type: kind for kind in (SetOff, Cycle)}
    named = [parse_message(one, kinds[one.payload_type]) for one in records if one.payload_type in kinds]
    return {channel for message in named for channel in channels_named(message)}


def set_off_views(books: AllBooks, us: Operator, *, refused: Collection[bytes], now_ms: int) -> list[SetOffView]:
    """All set-offs of which we are a side, those that wait for us first, then the latest. Raises LedgerError."""
    found = [
        view for one in all_set_offs(books).values() if (view := set_off_view(one, us, refused, now_ms)) is not None
    ]
    order = {"waits-for-us": 0, "waits-for-them": 1}
    return sorted(found, key=lambda view: (order.get(view.state, 2), -view.agreed_ms, view.id))


def all_set_offs(books: Iterable[Books]) -> dict[bytes, Signed[SetOff]]:
    """By id, each with all signatures that some ledger has. Raises LedgerError."""
    found: dict[bytes, Signed[SetOff]] = {}
    for ledger in books:
        for channel in ledger.channels():
            for one in ledger.settlement(SetOff, channel.message.channel):
                known = found.get(one.id)
                if known is None or len(one.signers) > len(known.signers):
                    found[one.id] = one
    return found


def set_off_view(signed: Signed[SetOff], us: Operator, refused: Collection[bytes], now_ms: int) -> SetOffView | None:
    """As it is shown to us; None if we are not one of its sides."""
    sides = our_side(signed.message, us)
    if sides is None:
        return None
    message = signed.message
    ours, theirs = (_side_view(signed, side) for side in sides)
    if is_in_force(signed):
        state = "in-force"
    elif signed.id in refused:
        state = "refused"
    elif now_ms > message.until_ms:
        state = "lapsed"
    else:
        state = "waits-for-them" if ours.is_signed else "waits-for-us"
    return SetOffView(
        id=signed.id.hex(),
        state=state,
        amount_cents=message.amount_cents,
        currency=message.currency,
        agreed_ms=message.agreed_ms,
        until_ms=message.until_ms,
        ours=ours,
        theirs=theirs,
    )


def cycle_view(file: CycleFile) -> CycleView:
    """As it is shown."""
    message = file.cycle.message
    missing = []
    for number, role in file.missing:
        debt = message.debts[number]
        key = {"provider": debt.creditor, "client": debt.debtor}[role.value]
        missing.append({"channel": debt.channel.hex(), "signer": _peer_id(key)})
    return CycleView(
        id=file.cycle.id.hex(),
        state=file.state.value,
        amount_cents=message.amount_cents,
        currency=message.currency,
        parties=len(message.debts),
        deadline_ms=message.deadline_ms,
        timekeeper=_peer_id(message.timekeeper),
        missing=tuple(missing),
    )


def _parse(number: int, line: str) -> Record:
    try:
        return parse_json_line(line.encode())
    except InvalidRecord as error:
        raise UsageError(f"record {number} cannot be read ({error.code}): {error.message}") from None


def _check_not_beyond(
    ledger: Ledger,
    keys: Sequence[SecretKey],
    kept: Sequence[Signed[SetOff]],
    channels: dict[bytes, Channel],
    now_ms: int,
) -> None:
    """Between the look at the books and now another command may have promised the same claims.

    What both have signed is kept all the same: it is in force.
    """
    signed = kept[-1]
    ours = {key.public_key.raw for key in keys}
    is_ours = ours & {key.raw for key in signed.signers.values()}
    for side in signed.message.sides if is_ours and not is_in_force(signed) else ():
        if side.channel not in channels:
            continue
        standing = {one.id: one for one in ledger.settlement(SetOff, side.channel)}.get(signed.id)
        if standing is not None and set(standing.signers) >= set(signed.signers):
            continue
        claims = open_claims(ledger, channels[side.channel], at_ms=now_ms, ours=ours, besides=(signed.id,))
        left = {(claim.statement, claim.invoice_number): claim.open_cents for claim in claims}
        for other in kept[:-1]:
            for claimed in next((s.claims for s in other.message.sides if s.channel == side.channel), ()):
                place = claimed.statement, claimed.invoice_number
                left[place] = left.get(place, 0) - claimed.cents
        for claimed in side.claims:
            cents = left.get((claimed.statement, claimed.invoice_number), 0)
            if claimed.cents > cents:
                raise UsageError(
                    f"of invoice {claimed.invoice_number} {format_cents(max(cents, 0))} are open, and "
                    f"{format_cents(claimed.cents)} are to be taken off.",
                    hint="Propose again: something was paid or set off meanwhile.",
                )


def _checked_cycle(lines: list[bytes], keys: Sequence[SecretKey], channels: dict[bytes, Channel]) -> CycleFile:
    file = read_cycle_file(lines)
    is_ours = file.cycle.message.timekeeper in {key.public_key.raw for key in keys}
    if not is_ours:
        try:
            check_channels(file.cycle.message, channels)
        except InvalidRecord as error:
            raise UsageError(f"the cycle cannot be kept ({error.code}): {error.message}") from None
    return file


def _said_first(ledger: Ledger, file: CycleFile, keys: Sequence[SecretKey]) -> dict[bool, bytes]:
    """The ids of the words that stand, "complete" and "not complete": those on record, else the earliest.

    A timekeeper that says both is a fraud; the other parties keep both, and so come to the same state. One whose key is
    among `keys` never does: raises UsageError.
    """
    channel = file.cycle.message.debts[0].channel
    before = [one for one in ledger.settlement(CycleVerdict, channel) if one.message.cycle == file.cycle.id]
    said: dict[bool, bytes] = {}
    for one in (*before, *sorted(file.verdicts, key=lambda one: (one.message.judged_ms, one.id))):
        said.setdefault(one.message.is_complete, one.id)
    if len(said) > 1 and file.cycle.message.timekeeper in {key.public_key.raw for key in keys}:
        raise UsageError("another word on this cycle is on record: a timekeeper says one thing, for ever.")
    return said


def _contradicts(one: Signed[Message], said: Mapping[bool, bytes]) -> bool:
    return isinstance(one.message, CycleVerdict) and one.id != said[one.message.is_complete]


def _side_view(signed: Signed[SetOff], side: SetOffSide) -> SetOffSideView:
    role = next(role for role, key in signer_keys(signed.message).items() if key == side.creditor)
    return SetOffSideView(
        channel=side.channel.hex(),
        creditor=_peer_id(side.creditor),
        debtor=_peer_id(side.debtor),
        invoices=tuple({"invoice_number": c.invoice_number, "cents": c.cents} for c in side.claims),
        is_signed=role in signed.signers,
    )


def _peer_id(key: bytes) -> str:
    try:
        return parse_public_key(key).peer_id
    except InvalidRecord:
        return key.hex()


def cycle_files(books: Iterable[Books]) -> dict[bytes, CycleFile]:
    """Every cycle on record, by id, with all that some ledger has of it. Raises LedgerError."""
    found: dict[bytes, CycleFile] = {}
    for ledger in books:
        for channel in ledger.channels():
            own = channel.message.channel
            for cycle in ledger.settlement(Cycle, own):
                file = read_cycle_file([record.to_json_line() for record in _of_cycle(ledger, own, cycle)])
                found[cycle.id] = found[cycle.id].joined(file) if cycle.id in found else file
    return found


def _of_cycle(ledger: Books, channel: bytes, cycle: Signed[Cycle]) -> list[Record]:
    legs = [one for one in ledger.settlement(Leg, channel) if one.message.cycle == cycle.id]
    said = [one for one in ledger.settlement(CycleVerdict, channel) if one.message.cycle == cycle.id]
    return [cycle.record, *(leg.record for leg in legs), *(verdict.record for verdict in said)]
