"""A cycle as a file that goes round: a record a line, to which each party adds its signatures, and the timekeeper its
word (docs/settlement/set-off.md, "Cycles").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import CycleState, judge, legs_of, state_of
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import PARTIES, Role, Signed, parse_json_line, sign_message
from p2pgrid.proto.set_off_rules import is_in_force, signer_keys, verify_named
from p2pgrid.settlement.set_off.agree import verify_leg, verify_verdict
from p2pgrid.settlement.set_off.claims import open_claims
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.units import format_cents

MOST_FILE_BYTES: Final = 256 * 1024
"""A cycle of six with all its signatures has some ten kilobytes."""


@dataclass(frozen=True, slots=True)
class CycleFile:
    """A cycle, the signatures on its legs so far, and what its timekeeper said."""

    cycle: Signed[Cycle]
    legs: tuple[Signed[Leg], ...]
    """One at most for each debt, in their order."""
    verdicts: tuple[Signed[CycleVerdict], ...]

    @property
    def state(self) -> CycleState:
        """What has become of it."""
        both = [leg.message for leg in self.legs if is_in_force(leg)]
        said = [verdict.message for verdict in self.verdicts]
        return state_of(self.cycle.message, self.cycle.id, both, said)

    @property
    def records(self) -> tuple[Signed[Cycle] | Signed[Leg] | Signed[CycleVerdict], ...]:
        """All of it, what others name first."""
        return (self.cycle, *self.legs, *self.verdicts)

    @property
    def missing(self) -> list[tuple[int, Role]]:
        """Which signatures are missing: the debt's number, from 0, and the side of it."""
        signed = {leg.message.channel: leg.signers for leg in self.legs}
        debts = self.cycle.message.debts
        return [
            (n, role) for n, debt in enumerate(debts) for role in PARTIES if role not in signed.get(debt.channel, ())
        ]

    def lines(self) -> list[bytes]:
        """As the file has it, without line feeds."""
        return [one.record.to_json_line() for one in self.records]

    def joined(self, other: CycleFile) -> CycleFile:
        """With the signatures and words of another copy of the same cycle. Raises UsageError for another cycle."""
        if self.cycle.id != other.cycle.id:
            raise UsageError("the files are of two cycles.", hint="Give copies of one.")
        return _of(self.cycle, [*self.legs, *other.legs], [*self.verdicts, *other.verdicts])

    def signed(self, keys: Iterable[SecretKey]) -> CycleFile:
        """With the signatures of these keys on every leg of theirs. `why_not_join` says whether to."""
        made = []
        for leg in legs_of(self.cycle.message, self.cycle.id):
            named = signer_keys(leg)
            made += [sign_message(leg, r, key) for key in keys for r, raw in named.items() if key.public_key.raw == raw]
        return _of(self.cycle, [*self.legs, *made], self.verdicts)

    def judged(self, key: SecretKey, said: Signed[CycleVerdict] | None, *, now_ms: int) -> CycleFile | None:
        """With the word of its timekeeper, whose `key` is; None for "not yet". Whatever it `said` before, by its
        ledger or by what the file holds, it says again.

        It is to be kept, durable, before anybody hears it. Raises UsageError if the timekeeper is another.
        """
        if key.public_key.raw != self.cycle.message.timekeeper:
            raise UsageError("this node is not the timekeeper of the cycle.", hint="Its key is in another data folder.")
        if said is None:
            # Its word is in the file, though no ledger here has it: that of a lost or another folder.
            said = min(self.verdicts, key=lambda one: one.message.judged_ms, default=None)
        both = [leg.message for leg in self.legs if is_in_force(leg)]
        known = said.message if said is not None else None
        verdict = judge(self.cycle.message, self.cycle.id, both, said=known, now_ms=now_ms)
        if verdict is None:
            return None
        signed = said if said is not None else sign_message(verdict, Role.PROVIDER, key)
        return _of(self.cycle, self.legs, [*self.verdicts, signed])


def make_file(cycle: Signed[Cycle]) -> CycleFile:
    """A proposal that nobody has joined yet."""
    return CycleFile(cycle, (), ())


def read_cycle_file(lines: Sequence[bytes]) -> CycleFile:
    """What a file holds, every signature checked. Raises UsageError, with the line."""
    if sum(map(len, lines)) > MOST_FILE_BYTES:
        raise UsageError(f"a cycle's file has at most {MOST_FILE_BYTES} bytes.", hint="Name the file of one cycle.")
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append((number, parse_json_line(line.strip())))
            except InvalidRecord as error:
                raise _wrong(number, error) from None
    cycles, legs, verdicts = [], [], []
    for number, record in records:
        if record.payload_type == Cycle.payload_type:
            try:
                cycles.append(verify_named(record, Cycle))
            except InvalidRecord as error:
                raise _wrong(number, error) from None
    if len({cycle.id for cycle in cycles}) != 1:
        what = "several cycles" if cycles else "no cycle"
        raise UsageError(
            f"the file holds {what}; one was expected.", hint="`set-off cycles propose` writes such a file."
        )
    for number, record in records:
        try:
            if record.payload_type == Leg.payload_type:
                legs.append(verify_leg(record, cycles[0]))
            elif record.payload_type == CycleVerdict.payload_type:
                verdicts.append(verify_verdict(record, cycles[0]))
            elif record.payload_type != Cycle.payload_type:
                raise InvalidRecord("wrong-type", f"a {record.payload_type!r} is no part of a cycle.")
        except InvalidRecord as error:
            raise _wrong(number, error) from None
    return _of(cycles[0], legs, verdicts)


def why_not_join(
    cycle: Signed[Cycle], books: AllBooks, us: Operator, *, now_ms: int, most_cents: int | None = None
) -> list[str]:
    """Why we should not sign our two legs, from our own books alone; empty if we may. Raises LedgerError.

    Whether the debts of others are real is for them to know: if one is not, a party of it does not sign, and all is
    void.
    """
    message = cycle.message
    owed = [n for n, debt in enumerate(message.debts) if debt.creditor in us.keys]
    owing = [n for n, debt in enumerate(message.debts) if debt.debtor in us.keys]
    if len(owed) != 1 or len(owing) != 1 or (owed[0] + 1) % len(message.debts) != owing[0]:
        return ["We are not creditor of one of its debts and debtor of the next."]
    reasons = []
    if message.timekeeper in us.keys:
        reasons.append("Its timekeeper is we ourselves.")
    if now_ms >= message.deadline_ms:
        reasons.append("Its deadline is over.")
    if most_cents is not None and message.amount_cents > most_cents:
        reasons.append(f"It is of {format_cents(message.amount_cents)}, more than {format_cents(most_cents)}.")
    for n, what in ((owed[0], "we are owed"), (owing[0], "we owe")):
        debt = message.debts[n]
        if debt.channel not in books.channels:
            reasons.append(f"The channel in which {what}, {debt.channel.hex()[:16]}, is in none of our ledgers.")
            continue
        channel, ledger = books.channels[debt.channel]
        if (channel.provider, channel.client, channel.currency) != (debt.creditor, debt.debtor, message.currency):
            reasons.append(f"The channel in which {what} has other parties, or another currency.")
        claims = open_claims(ledger, channel, at_ms=now_ms, ours=us.keys, besides=(cycle.id,))
        cents = sum(claim.open_cents for claim in claims)
        if cents < message.amount_cents:
            reasons.append(f"There {what} {format_cents(cents)}, less than {format_cents(message.amount_cents)}.")
    return reasons


def _of(cycle: Signed[Cycle], legs: Iterable[Signed[Leg]], verdicts: Iterable[Signed[CycleVerdict]]) -> CycleFile:
    """All signatures on one leg are one record."""
    merged: dict[bytes, Signed[Leg]] = {}
    for leg in legs:
        known = merged.get(leg.message.channel)
        merged[leg.message.channel] = leg if known is None else _merged(known, leg)
    ordered = tuple(merged[debt.channel] for debt in cycle.message.debts if debt.channel in merged)
    return CycleFile(cycle, ordered, tuple({verdict.id: verdict for verdict in verdicts}.values()))


def _merged(one: Signed[Leg], other: Signed[Leg]) -> Signed[Leg]:
    record = one.record
    for role in other.signers:
        signature = other.record.signature_of(role)
        if role not in one.signers and signature is not None:
            record = record.with_signature(signature)
    return Signed(one.message, record, one.id, {**other.signers, **one.signers})


def _wrong(number: int, error: InvalidRecord) -> UsageError:
    return UsageError(f"line {number} of the file cannot be used ({error.code}): {error.message}", hint=error.hint)
