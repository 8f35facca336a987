"""Two ledgers in memory that settle with one another, without a link: as the two shells do it, and cut off anywhere."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.dispute_exchange import check_sent, compare, page_of, record_of
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Record, Role, Signed, sign_message
from p2pgrid.proto.settle_check import check_taken
from p2pgrid.proto.settle_exchange import BEGIN, END
from p2pgrid.proto.settle_exchange import compare as compare_settled
from p2pgrid.proto.settle_exchange import page_of as page_of_settled
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.wire.base import MAX_NUMBER
from p2pgrid.proto.wire.settlement import StatementDifference
from p2pgrid.settlement.statements.agreed import AgreedInMemory
from p2pgrid.settlement.statements.days import LocalDays, period_days
from p2pgrid.settlement.statements.drafting import NOTHING_HAPPENED, Terms, draft
from p2pgrid.settlement.statements.judging import judge
from p2pgrid.settlement.statements.keeping import details_of, keep_taken, read_listed
from p2pgrid.settlement.statements.position import read_books
from p2pgrid.settlement.statements.refused import NotStated
from tests.factories import (
    DAY_MS,
    NOW_MS,
    Dealings,
    digest,
    make_answer,
    make_dispute,
    make_prepayment,
)
from tests.settlement.statements.parts import DictDetails, own_details

STEPS = 5
"""After which a settling can be cut off: drafted, agreed, signed, countersigned, sent."""
SETTLEMENT_CODES = {
    "receipt-in-two-statements",
    "statement-omits-receipt",
    "statement-mismatch",
    "wrong-opening-balance",
    "invoice-mismatch",
    "payment-mismatch",
    "two-records-one-slot",
    "record-missing",
    "time-backwards",
}
UTC = Terms(days=LocalDays.at_offset(0))


class CutOff(Exception):
    """A process ended."""


@dataclass
class Sides:
    """A client and a provider, one channel, and a clock."""

    dealings: Dealings = field(default_factory=Dealings)
    client: MemoryLedger = field(default_factory=MemoryLedger)
    provider: MemoryLedger = field(default_factory=MemoryLedger)
    details: tuple[DictDetails, DictDetails] = field(
        default_factory=lambda: (own_details(Role.CLIENT), own_details(Role.PROVIDER))
    )
    """The client's, and the provider's."""
    agreed: AgreedInMemory = field(default_factory=AgreedInMemory)
    now_ms: int = NOW_MS + 1000
    cents_paid: int = 0
    payments: int = 0
    told_late: bool = False
    """True once the bank told of a payment after a statement that was to count it."""
    evidence: list[tuple[Record, str]] = field(default_factory=list)

    async def begin(self) -> None:
        for ledger in (self.client, self.provider):
            await ledger.append(self.dealings.offer, self.dealings.channel)

    @property
    def channel(self) -> bytes:
        return self.dealings.id

    # -- dealings ---------------------------------------------------------------------------------------------------

    async def buy(self, *, signed: bool = True, with_provider: bool = True, tokens: int = 100_000) -> Signed[Receipt]:
        """One answer. Not `signed`: proposed alone; not `with_provider`: the countersignature is on its way."""
        from p2pgrid.proto.messages import Usage

        d = self.dealings
        self.now_ms += 1000
        order = d.order(
            ordered_ms=self.now_ms,
            first_token_deadline_ms=self.now_ms + 30_000,
            max_output_tokens=8_000_000,
            max_amount_pico=10**12,
        )
        proposal = d.proposal(order, usage=Usage(prompt_tokens=10, output_tokens=min(tokens, 8_000_000)))
        await self.provider.append(order, proposal)
        await self.client.append(order, proposal)
        self.now_ms += 1000
        return await self.sign(proposal, with_provider=with_provider) if signed else proposal

    async def sign(self, proposal: Signed[Receipt], *, with_provider: bool = True) -> Signed[Receipt]:
        both = self.dealings.countersign(proposal)
        await self.client.append(both)
        if with_provider:
            await self.provider.append(both)
        return both

    async def deliver_signatures(self) -> None:
        """As resuming the channel does."""
        for row in self.client.receipts(channel=self.channel):
            if row.countersigned:
                both = self.client.receipt(self.channel, row.receipt.receipt_number)
                assert both is not None
                await self.provider.append(both)

    async def dispute(self, receipt: Signed[Receipt], owed_pico: int) -> bool:
        """By the client; False if it is disputed already."""
        is_late = self.now_ms > receipt.message.issued_ms + 13 * DAY_MS
        if receipt.message.receipt_number in self.disputed() or is_late:
            return False
        self.now_ms += 1000
        owed = min(owed_pico, receipt.message.amount_pico)
        await self.client.append(make_dispute(receipt, owed_pico=owed, disputed_ms=self.now_ms))
        return True

    def disputed(self) -> set[int]:
        return {row.dispute.message.receipt_number for row in self.client.disputes(channel=self.channel)}

    async def answer(self, decision: Decision) -> None:
        """The provider answers the first open dispute that it knows of."""
        rows = self.provider.disputes(channel=self.channel, unanswered=True)
        if rows:
            self.now_ms += 1000
            dispute = rows[0].dispute
            owed = dispute.message.owed_pico
            answer = make_answer(dispute, decision=decision, answered_ms=self.now_ms, owed_pico=owed)
            await self.provider.append(answer)

    async def pay_ahead(self, cents: int, *, ago_ms: int = 0) -> None:
        """The provider books money; `ago_ms`: the bank told late."""
        self.payments += 1
        self.cents_paid += cents
        booked_ms = max(self.now_ms - ago_ms, NOW_MS)
        stated = self.provider.settlement(Statement, self.channel)
        self.told_late |= any(booked_ms <= one.message.stated_ms for one in stated)
        payment = make_prepayment(
            self.channel,
            amount_cents=cents,
            reference=f"AHEAD-{self.payments}",
            entry=digest(f"entry {self.payments}"),
            booked_ms=booked_ms,
        )
        await self.provider.append(payment)

    # -- exchanges --------------------------------------------------------------------------------------------------

    async def exchange_disputes(self) -> None:
        after = 0
        while after < MAX_NUMBER:
            held = page_of(self.client, self.channel, after)
            compared, sent = compare(self.provider, held)
            took = check_sent(sent, self.client, self.dealings.channel, now_ms=self.now_ms)
            if took.keep:
                await self.client.append(*took.keep)
            lacking = [record_of(self.client, one) for one in compared.lacks]
            took = check_sent(lacking, self.provider, self.dealings.channel, now_ms=self.now_ms)
            if took.keep:
                await self.provider.append(*took.keep)
            after = compared.until

    async def bring_together(self) -> int:
        """Records of settlement, both ways. How many messages it took."""
        terms = self.dealings.channel.message
        ours, theirs = self.details
        listing = Listing(self.client, self.channel, details_of(ours, terms), now_ms=self.now_ms)
        by_id = {at.id: at for at in listing.places}
        after, came, pages = BEGIN, list[Record](), 0
        while after < END:
            pages += 1
            kept = Listing(self.provider, self.channel, details_of(theirs, terms), now_ms=self.now_ms)
            page = page_of_settled(listing.places, self.channel, after)
            compared, lacked = compare_settled(kept.places, page)
            assert after < compared.until <= page.until
            came += [one.record for one in kept.read(lacked)]
            lacking = [one.record for one in listing.read(by_id[one] for one in compared.lacks)]
            own = await read_listed(kept)
            taken = check_taken(lacking, own, terms, Role.PROVIDER, now_ms=self.now_ms, left_out=kept.left_out)
            await keep_taken(self.provider, taken, theirs, self.keep_evidence)
            after = compared.until
        own = await read_listed(listing)
        taken = check_taken(came, own, terms, Role.CLIENT, now_ms=self.now_ms, left_out=listing.left_out)
        await keep_taken(self.client, taken, ours, self.keep_evidence)
        return pages

    def keep_evidence(self, record: Record, reason: str) -> None:
        self.evidence.append((record, reason))

    async def state(
        self, *, is_wanted: bool = True, cut_after: int = STEPS, tamper: Any = None
    ) -> list[StatementDifference]:
        """One statement, cut off after a step; what differs. Raises NotStated, CutOff."""
        channel, (ours, theirs) = self.dealings.channel, self.details
        pending = read_books(self.provider, channel).pending
        if pending is None:
            made = await draft(self.provider, channel, theirs, now_ms=self.now_ms, is_wanted=is_wanted, terms=UTC)
            statement, record, days = made.statement, made.record, (made.first_day, made.last_day)
        else:
            statement, record = pending.message, pending.record
            days = period_days(statement.from_ms, statement.until_ms, LocalDays.at_offset(0))
        self.cut(1, cut_after)
        number = statement.statement_number
        if pending is None or not self.agreed.knows(self.channel, number, pending.id):
            judged = await judge(
                self.client, channel, ours, statement, days, now_ms=self.now_ms, is_signed=pending is not None
            )
            if judged.differences:
                return judged.differences
        if pending is None:
            self.agreed.note(record, statement, self.now_ms)
            self.cut(2, cut_after)
            pending = sign_message(statement, Role.PROVIDER, self.dealings.provider)
            await self.provider.append(pending)
            self.cut(3, cut_after)
        both = pending.countersigned(Role.CLIENT, self.dealings.client)
        await self.client.append(both)
        self.cut(4, cut_after)
        await self.provider.append(both)
        self.cut(5, cut_after)
        return []

    def cut(self, step: int, cut_after: int) -> None:
        if step == cut_after and step < STEPS:
            raise CutOff

    async def settle(self, *, is_wanted: bool = True, cut_after: int = STEPS) -> list[StatementDifference]:
        """All of it, as a client does: signatures, disputes, records, statement."""
        self.now_ms += 1000
        await self.deliver_signatures()
        await self.exchange_disputes()
        await self.bring_together()
        return await self.state(is_wanted=is_wanted, cut_after=cut_after)

    async def settle_whole(self) -> list[Signed[Statement]]:
        """Whatever was cut off before is finished, and what is left is stated; the same on both sides."""
        with contextlib.suppress(NotStated):
            was_pending = read_books(self.provider, self.dealings.channel).pending is not None
            for _ in range(1 + was_pending):
                assert await self.settle() == []
        with pytest.raises(NotStated) as nothing:
            await self.settle()
        assert nothing.value.code == NOTHING_HAPPENED
        await self.bring_together()
        return self.statements()

    def statements(self) -> list[Signed[Statement]]:
        ours, theirs = (
            sorted(one.settlement(Statement, self.channel), key=lambda s: s.message.statement_number)
            for one in (self.client, self.provider)
        )
        assert [one.id for one in ours] == [one.id for one in theirs]
        assert all({Role.PROVIDER, Role.CLIENT} <= set(one.signers) for one in (*ours, *theirs))
        return ours

    def faults(self) -> list[Finding]:
        """What an audit of both ledgers finds about settlement."""
        sides = ((self.client, Role.CLIENT), (self.provider, Role.PROVIDER))
        verdict = audit_records(
            (Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides), now_ms=self.now_ms
        )
        return [finding for finding in verdict.findings if finding.code in SETTLEMENT_CODES]

    async def crash(self) -> None:
        """Both processes end; what was durable is there."""
        self.client, self.provider = self.client.crashed(), self.provider.crashed()


def later(sides: Sides, days: float) -> None:
    """Time passes."""
    sides.now_ms += int(days * DAY_MS)
