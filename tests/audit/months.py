"""A seeded month: a channel's receipts, statements, invoices and payments, right by the rules, of any size.

    month = make_month(seed=1, receipts=200, statements=3)
    provider, client = month.bundles()

Statements are made by `proto.statement_making`. Payments come in every way that the rules allow: whole, in parts,
ahead, too much (the rest booked ahead), returned and paid again, booked for the wrong invoice and moved, refunded. Some
is set off, between the two or by a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from p2pgrid.proto.contested import Contest, contest_of
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Receipt, Status, Tariff, Terms, Usage
from p2pgrid.proto.pricing import amount_owed, owes_nothing
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Invoice, InvoiceType, Payment, PaymentKind, Statement
from p2pgrid.proto.statement_making import Period, Stated, make_statement, vat_in
from tests.factories import make_channel, make_cycle, make_legs, make_set_off, make_verdict, set_off_side
from tests.proto.chains import DAY_MS, Dealings, LinesBundle, bundle_of, digest, key, lines_of

TARIFFS = {
    "small": Tariff(input_upm=200_000, cached_input_upm=50_000, output_upm=900_000),
    "large": Tariff(input_upm=1_500_000, cached_input_upm=150_000, output_upm=7_000_001),
    "tiny": Tariff(input_upm=13_337, cached_input_upm=1, output_upm=99_999),
}
CREDIT_LIMIT_PICO = 10**18


class FastDealings(Dealings):
    """Dealings of tens of thousands of orders: nothing that was kept is looked through again."""

    def keep(self, signed: Signed[Any], *, by: str = "both") -> Signed[Any]:
        for side, book in (("provider", self.provider_has), ("client", self.client_has)):
            if by in (side, "both"):
                book.append(signed)
        return signed


@dataclass
class Month:
    """Everything of one channel."""

    grid: FastDealings
    random: Random
    stated: list[Stated] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    statements: list[Signed[Statement]] = field(default_factory=list)
    invoices: list[Signed[Invoice]] = field(default_factory=list)
    payments: list[Signed[Payment]] = field(default_factory=list)

    def bundles(self) -> list[LinesBundle]:
        """Both sides' exports."""
        sides = ((self.grid.provider_has, Role.PROVIDER), (self.grid.client_has, Role.CLIENT))
        return [bundle_of(lines_of(has), side) for has, side in sides]

    def sell(self, count: int) -> None:
        """So many receipts."""
        grid, random = self.grid, self.random
        for _ in range(count):
            model = random.choice(list(TARIFFS))
            status = Status.FAILED if random.random() < 0.02 else Status.COMPLETED
            prompt = random.randrange(1, 40_000)
            usage = Usage(
                prompt_tokens=prompt, cached_tokens=random.randrange(prompt), output_tokens=random.randrange(1, 30_000)
            )
            order = grid.order(model=model, max_prompt_tokens=50_000, max_output_tokens=50_000, max_amount_pico=10**13)
            amount = amount_owed(TARIFFS[model], usage, status)
            receipt = grid.receipt(order, usage, status, amount_pico=amount)
            self.stated.append(Stated(receipt.id, receipt.message, TARIFFS[model]))

    def dispute(self, stated: Stated, disputed_ms: int, answer: Decision | None, answered_ms: int = 0) -> None:
        """The client disputes half of a receipt; the provider answers, or has not yet."""
        receipt, half = stated.receipt, stated.receipt.amount_pico // 2
        dispute = Dispute(
            channel=receipt.channel,
            receipt_number=receipt.receipt_number,
            receipt=stated.receipt_id,
            by=Role.CLIENT,
            reason="not-delivered",
            statement="Half of it never came.",
            owed_pico=half,
            disputed_ms=disputed_ms,
        )
        signed = self.grid.keep(sign_message(dispute, Role.CLIENT, self.grid.client))
        said: Answer | None = None
        if answer is not None:
            said = Answer(
                channel=receipt.channel,
                receipt_number=receipt.receipt_number,
                dispute=signed.id,
                by=Role.PROVIDER,
                decision=answer,
                statement="Looked into.",
                owed_pico=half if answer is Decision.ACCEPTED else receipt.amount_pico,
                answered_ms=answered_ms,
            )
            self.grid.keep(sign_message(said, Role.PROVIDER, self.grid.provider))
        days = self.grid.channel.message.dispute_days
        contest = contest_of(
            dispute, said, receipt=receipt, receipt_id=stated.receipt_id, countersigned=True, days=days
        )
        assert contest is not None
        self.contests.append(contest)

    def state(self, *, rate_bp: int = 0, set_off_cents: int = 0) -> Signed[Statement]:
        """The next statement, over all that no statement holds yet."""
        grid = self.grid
        before = self.statements[-1] if self.statements else None
        last = before.message.last_receipt if before else 0
        counted = sum(statement.message.payments_cents for statement in self.statements)
        booked = sum(p.message.amount_cents for p in self.payments if p.message.booked_ms <= grid.now_ms)
        period = Period(grid.now_ms + 1000, grid.now_ms + 2000, grid.now_ms + 14 * DAY_MS)
        vat = vat_in("S", rate_bp) if rate_bp else vat_in("AE", 0, "VATEX-EU-AE")
        message = make_statement(
            grid.channel.message,
            before=before,
            receipts=self.stated[last:],
            contests=self.contests,
            credited_pico=sum(statement.message.credits_pico for statement in self.statements),
            payments_cents=booked - counted,
            set_off_cents=set_off_cents,
            period=period,
            vat=vat,
        )
        signed = sign_message(message, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client)
        self.statements.append(grid.keep(signed))
        grid.now_ms += 10_000
        return signed

    def set_off(self, cents: int) -> None:
        """So much off what the client owes: of the last invoice, if that is open, else by a cycle that was settled."""
        now_ms = self.grid.now_ms
        self.grid.now_ms += 1000
        last = self.invoices[-1] if self.invoices else None
        paid = {payment.message.statement for payment in self.payments}
        nonce = digest("set-off", now_ms)
        provider, client = self.grid.provider, self.grid.client
        if last is not None and last.message.statement not in paid and last.message.gross_cents >= cents:
            back = make_channel(client, provider, name="back")
            sides = (set_off_side(channel, (last, cents)) for channel in (self.grid.channel, back))
            self.grid.keep(make_set_off(*sides, [provider, client], agreed_ms=now_ms, nonce=nonce))
            return
        third = key("third")
        others = make_channel(third, provider, name="second"), make_channel(client, third, name="third")
        times = {"proposed_ms": now_ms - 1000, "deadline_ms": now_ms}
        cycle = make_cycle([self.grid.channel, *others], provider, amount_cents=cents, nonce=nonce, **times)
        for signed in (cycle, *make_legs(cycle, [provider, client, third]), make_verdict(cycle, judged_ms=now_ms)):
            self.grid.keep(signed)

    def invoice(self, statement: Signed[Statement]) -> Signed[Invoice]:
        """Its invoice, or credit note."""
        message = statement.message
        invoice = Invoice(
            channel=message.channel,
            statement=statement.id,
            invoice_number=f"LT-2026-{len(self.invoices) + 1:06}",
            type_code=InvoiceType.CREDIT_NOTE if message.net_cents < 0 else InvoiceType.INVOICE,
            currency="EUR",
            net_cents=message.net_cents,
            vat_cents=message.gross_cents - message.net_cents,
            gross_cents=message.gross_cents,
            document_sha256=digest("document", len(self.invoices)),
            issued_ms=self.grid.now_ms,
        )
        self.grid.now_ms += 1000
        signed: Signed[Invoice] = self.grid.keep(sign_message(invoice, Role.PROVIDER, self.grid.provider))
        self.invoices.append(signed)
        return signed

    def pay(
        self,
        invoice: Signed[Invoice] | None,
        cents: int,
        kind: PaymentKind = PaymentKind.RECEIVED,
        *,
        entry: bytes | None = None,
        reference: str = "",
    ) -> Signed[Payment]:
        """Money for an invoice, or for none."""
        self.grid.now_ms += 3_600_000
        payment = Payment(
            channel=self.grid.channel.message.channel,
            statement=invoice.message.statement if invoice else b"",
            invoice_number=invoice.message.invoice_number if invoice else "",
            reference=reference or f"REF-{len(self.payments) + 1}",
            currency="EUR",
            amount_cents=cents,
            kind=kind,
            entry=digest("entry", len(self.payments)) if entry is None else entry,
            booked_ms=self.grid.now_ms,
        )
        signed: Signed[Payment] = self.grid.keep(sign_message(payment, Role.PROVIDER, self.grid.provider))
        self.payments.append(signed)
        return signed


def new_month(random: Random, nonce: str = "", **changes: Any) -> Month:
    """A channel in which nothing was sold yet."""
    models = tuple(
        ModelOffer(model=model, tariff=tariff, context_tokens=100_000, concurrency=8, endpoints=ENDPOINTS)
        for model, tariff in TARIFFS.items()
    )
    offer = {"models": models, "terms": Terms(credit_limit_pico=CREDIT_LIMIT_PICO)}
    grid = FastDealings(
        nonce=nonce, offer_changes=offer, channel_changes={"credit_limit_pico": CREDIT_LIMIT_PICO}, **changes
    )
    return Month(grid, random)


def make_month(seed: int, *, receipts: int = 40, statements: int = 3, nonce: str = "", **changes: Any) -> Month:
    """Receipts in several statements, each invoiced (the last not always) and paid in one of the ways there are."""
    random = Random(seed)
    month = new_month(random, nonce, **changes)
    if random.random() < 0.3:
        month.pay(None, random.randrange(1, 2000))
    rate_bp = random.choice([0, 1900, 2100, 2550])
    for number in range(statements):
        month.sell(max(receipts // statements, 1) if random.random() < 0.9 or number == 0 else 0)
        _dispute_some(month)
        set_off = random.randrange(1, 300) if random.random() < 0.2 else 0
        if set_off:
            month.set_off(set_off)
        statement = month.state(rate_bp=rate_bp, set_off_cents=set_off)
        if number < statements - 1 or random.random() < 0.7:
            _pay(month, month.invoice(statement))
    if random.random() < 0.5:
        month.sell(random.randrange(1, 4))
    return month


def _dispute_some(month: Month) -> None:
    random, now_ms = month.random, month.grid.now_ms
    fresh = [one for one in month.stated[-20:] if not owes_nothing(one.receipt.status) and one.receipt.amount_pico > 1]
    known = {contest.receipt for contest in month.contests}
    for stated in [one for one in fresh if one.receipt_id not in known and random.random() < 0.1]:
        answer = random.choice([None, Decision.ACCEPTED, Decision.REJECTED])
        later_ms = random.choice([500, 8000, DAY_MS])
        month.dispute(stated, now_ms + 100, answer, now_ms + 100 + later_ms)


def _pay(month: Month, invoice: Signed[Invoice]) -> None:
    random, gross = month.random, invoice.message.gross_cents
    if gross <= 0:
        if gross and random.random() < 0.6:
            month.pay(
                invoice, gross if random.random() < 0.5 else -random.randrange(1, -gross + 1), PaymentKind.REFUNDED
            )
        return
    how = random.randrange(8)
    if how == 0:
        return
    if how == 1 and gross > 1:
        first = random.randrange(1, gross)
        month.pay(invoice, first)
        if random.random() < 0.5:
            month.pay(invoice, gross - first)
    elif how == 2:
        came = month.pay(invoice, gross)
        month.pay(invoice, -gross, PaymentKind.RETURNED, reference=came.message.reference)
        if random.random() < 0.5:
            month.pay(invoice, gross)
    elif how == 3:  # too much: the rest of one entry is paid ahead
        came = month.pay(invoice, gross)
        month.pay(None, random.randrange(1, 500), entry=came.message.entry, reference=came.message.reference)
    elif how == 4 and len(month.invoices) > 1 and month.invoices[-2].message.gross_cents > 0:
        # booked for the one before, and moved; from there, if it was paid already, it is too much for a moment
        month.pay(None, gross, entry=digest("moved", len(month.payments)), reference="MOVED")
        came_entry = month.payments[-1].message.entry
        month.pay(None, -gross, PaymentKind.REALLOCATED, entry=came_entry, reference="MOVED")
        month.pay(invoice, gross, PaymentKind.REALLOCATED, entry=came_entry, reference="MOVED")
    elif how == 5:
        month.pay(None, gross + random.randrange(3))
    else:
        month.pay(invoice, gross)


def receipts_of(month: Month, numbers: Iterable[int]) -> list[Receipt]:
    """Those with these numbers."""
    return [month.stated[number - 1].receipt for number in numbers]
