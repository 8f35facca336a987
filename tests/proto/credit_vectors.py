"""What stands in tests/vectors/credit.json and defaults.json: what payments free, and claims judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from p2pgrid.proto.card import PeerKey
from p2pgrid.proto.credit import Balances
from p2pgrid.proto.default_rules import verify_default
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Usage
from p2pgrid.proto.record import Record, Role, Signed, sign_message
from p2pgrid.proto.set_off import Claim, SetOffSide
from p2pgrid.proto.statement import Payment, PaymentKind, Statement
from tests import factories
from tests.factories import CLIENT, DAY_MS, PROVIDER, digest, make_claim, make_invoice, make_payment, make_prepayment
from tests.proto.audit_cases_settlement import made
from tests.proto.chains import START_MS, Dealings, key, make_offer

CENT: Final = 10**10
_OF: Final = "channel", "statement_number", "total_pico", "credits_pico", "held_pico", "gross_cents", "opening_cents"


def credit_vectors() -> list[dict[str, Any]]:
    """Statements of a channel as the rule reads them; by how many of them count, what is paid and credited: freed."""
    return [_freed(name, statements) for name, statements in _CHANNELS]


def _freed(name: str, statements: Sequence[Statement]) -> dict[str, Any]:
    balances = Balances()
    steps = []
    for n, statement in enumerate((None, *statements)):
        if statement is not None:
            balances.add(statement)
        gross = balances.unpaid_cents(0)
        amounts = sorted({-5, 0, 1, 50, gross // 3, gross - 1, gross, gross + 1, gross + 127})
        credited = (0, balances.credits_pico[-1] + 3 * CENT)
        steps += [
            {"statements": n, "paid_cents": paid, "credited_pico": pico, "freed_pico": balances.freed_pico(paid, pico)}
            for paid in amounts
            for pico in credited
        ]
    fields = _OF[2:]
    return {
        "case": name,
        "statements": [
            {**{f: getattr(one, f) for f in fields}, "rate_bp": max(line.rate_bp for line in one.vat)}
            for one in statements
        ],
        "freed": steps,
    }


def _stated(number: int, total: int, gross: int, **changes: Any) -> Statement:
    grid = Dealings()
    fields = {"statement_number": number, "total_pico": total, "gross_cents": gross, "net_cents": gross, "lines": ()}
    start = {"channel": grid.channel.message.channel, "from_ms": START_MS}
    return made(grid, [], None, **{**start, **fields, **changes}).message


_CHANNELS: tuple[tuple[str, list[Statement]], ...] = (
    ("no statement", []),
    ("two months with VAT", [_stated(n, 100 * CENT * n + 7, 121 * n, rate_bp=2100) for n in (1, 2)]),
    ("two rates", [_stated(1, 77 * CENT, 77), _stated(2, 50 * CENT + 1, 63, rate_bp=2550)]),
    (
        "held, then released, then credited",
        [
            _stated(1, 100 * CENT, 97, held_pico=20 * CENT, rate_bp=2100),
            _stated(2, 10 * CENT, 36, rate_bp=2100),
            _stated(3, 0, -24, credits_pico=20 * CENT, rate_bp=2100),
        ],
    ),
    ("less than a cent", [_stated(1, CENT // 3, 0), _stated(2, CENT, 1)]),
    ("a balance from before", [_stated(1, 100 * CENT, 121, opening_cents=30, rate_bp=2100)]),
    ("paid ahead before", [_stated(1, 100 * CENT, 121, opening_cents=-200, rate_bp=2100)]),
)


# -- claims -----------------------------------------------------------------------------------------------------------


class Debt:
    """Two statements with VAT, the second not paid; and a claim over it."""

    def __init__(self) -> None:
        self.grid = Dealings()
        for _ in range(4):
            order = self.grid.order(max_output_tokens=1_000_000, max_amount_pico=10**12)
            self.grid.receipt(order, Usage(output_tokens=500_000))
        self.first = made(self.grid, self.grid.receipts[:2], None, rate_bp=2100, **self.begin())
        self.statement = made(self.grid, self.grid.receipts[2:], self.first, rate_bp=2100)
        self.invoice = make_invoice(self.statement)
        self.claim_changes: dict[str, Any] = {}
        self.payments: list[Signed[Payment]] = []
        self.later: list[Signed[Statement]] = []
        self.left_out: set[bytes] = set()
        self.more: list[Record] = []
        self.now_ms = 0

    def begin(self) -> dict[str, Any]:
        """What the first statement says besides."""
        return {"from_ms": self.grid.channel.message.opened_ms, "channel": self.grid.channel.message.channel}

    @property
    def open_cents(self) -> int:
        """What the client signed that it owes."""
        return self.statement.message.closing_cents

    @property
    def as_of_ms(self) -> int:
        """When the claim speaks of."""
        return self.statement.message.due_ms + 30 * DAY_MS

    def pay(self, cents: int, *, before_ms: int = 5 * DAY_MS, listed: bool = False, **changes: Any) -> Debt:
        """A payment, so long before the time that the claim speaks of."""
        booked = {"booked_ms": self.as_of_ms - before_ms, "reference": f"P{len(self.payments)}"}
        one = make_payment(self.invoice, self.grid.channel.message.channel, amount_cents=cents, **{**booked, **changes})
        self.payments.append(one)
        if listed:
            self.count(one)
        return self

    def ahead(self, cents: int, booked_ms: int) -> Debt:
        """A payment for no invoice."""
        channel = self.grid.channel.message.channel
        entry = digest(f"ahead {booked_ms}")
        self.payments.append(make_prepayment(channel, amount_cents=cents, booked_ms=booked_ms, entry=entry))
        return self

    def count(self, one: Signed[Payment]) -> None:
        """The claim counts the payment."""
        known = (*self.claim_changes.get("payments", ()), one.id)
        self.claim_changes["payments"] = tuple(sorted(known))
        unpaid = self.claim_changes.get("unpaid_cents", self.open_cents)
        self.claim_changes["unpaid_cents"] = unpaid - one.message.amount_cents

    def follow(self, after_ms: int, *, payments_cents: int, **changes: Any) -> Debt:
        """A later statement of no receipts, so long after the time that the claim speaks of."""
        before = self.later[-1] if self.later else self.statement
        stated_ms = self.as_of_ms + after_ms
        times = {"until_ms": stated_ms, "stated_ms": stated_ms}
        self.later.append(
            made(self.grid, [], before, rate_bp=2100, payments_cents=payments_cents, **{**times, **changes})
        )
        return self

    def claiming(self, **changes: Any) -> Debt:
        """The claim says something else."""
        self.claim_changes |= changes
        return self

    def without(self, *signed: Signed[Any]) -> Debt:
        """Records that nobody shows."""
        self.left_out |= {one.id for one in signed}
        return self

    def records(self) -> list[Record]:
        """What is shown beside the claim."""
        shown: list[Signed[Any]] = [self.grid.channel, self.first, self.statement, self.invoice]
        shown += [*self.payments, *self.later]
        return [*(one.record for one in shown if one.id not in self.left_out), *self.more]

    def claim(self) -> Record:
        """As it is signed."""
        return make_claim(self.statement, **self.claim_changes).record

    def at_ms(self) -> int:
        """When it is judged."""
        return self.now_ms or self.as_of_ms + 40 * DAY_MS


def _unsigned(debt: Debt) -> Debt:
    message = debt.statement.message
    debt.statement = sign_message(message, Role.PROVIDER, PROVIDER)
    return debt


def _another_sum(debt: Debt) -> Debt:
    wrong = msgspec.structs.replace(debt.statement.message, closing_cents=debt.open_cents + 1)
    debt.statement = sign_message(wrong, Role.PROVIDER, PROVIDER).countersigned(Role.CLIENT, CLIENT)
    debt.invoice = make_invoice(debt.statement)
    return debt


def _tied() -> Debt:
    """The client's operator has another key, whose offer names the card; and a third, whose offer does not."""
    debt = Debt()
    tied, stranger = key("tied"), key("stranger")
    peers = tuple(
        PeerKey(key=one, valid_from_ms=START_MS, valid_until_ms=START_MS + 900 * DAY_MS)
        for one in (CLIENT.public_key.raw, tied.public_key.raw, stranger.public_key.raw)
    )
    card = factories.make_card(peers=peers)
    offers = [
        sign_message(make_offer(tied, card=card.id), Role.PROVIDER, tied),
        sign_message(make_offer(stranger), Role.PROVIDER, stranger),
    ]
    # A card that has nothing to do with the client, and a key that is bound to it.
    nobody = key("nobody")
    other = factories.make_card(
        key("another operator"), peers=(msgspec.structs.replace(peers[1], key=nobody.public_key.raw),)
    )
    offers.append(sign_message(make_offer(nobody, card=other.id), Role.PROVIDER, nobody))
    debt.more = [card.record, other.record, *(one.record for one in offers)]
    return debt


def _paid_in_the_last_day(before_ms: int) -> Debt:
    debt = Debt()
    return debt.pay(debt.open_cents, before_ms=before_ms)


def _ahead_of_it(cents: int) -> Debt:
    """Booked before the statement was made, and known of later: it is not in it."""
    debt = Debt()
    return debt.ahead(cents, debt.statement.message.stated_ms + 120_000)


def _counted(cents: int) -> Debt:
    debt = Debt()
    debt.first = made(debt.grid, debt.grid.receipts[:2], None, rate_bp=2100, payments_cents=cents, **debt.begin())
    debt.statement = made(debt.grid, debt.grid.receipts[2:], debt.first, rate_bp=2100)
    debt.invoice = make_invoice(debt.statement)
    return debt.ahead(cents, debt.first.message.stated_ms)


def _set_off(cents: int, keys: tuple[SecretKey, ...], *, after_ms: int = DAY_MS, names: bytes = b"") -> Debt:
    """So much of the debt (all if 0) was set off against what the provider owes the client elsewhere."""
    debt = Debt()
    cents = cents or debt.open_cents
    other = keys[-1]
    back = factories.make_channel(other, PROVIDER, name="back")
    claim = Claim(statement=names or debt.statement.id, invoice_number="1", cents=cents)
    debtor = other.public_key.raw
    sides = [
        SetOffSide(channel=channel.channel, creditor=creditor, debtor=owing, card=b"", claims=(claim,))
        for channel, creditor, owing in (
            (debt.grid.channel.message, PROVIDER.public_key.raw, debtor),
            (back.message, debtor, PROVIDER.public_key.raw),
        )
    ]
    agreed = {"agreed_ms": debt.statement.message.stated_ms + after_ms, "amount_cents": cents}
    debt.more = [factories.make_set_off(sides[0], sides[1], keys, **agreed).record]
    return debt


def _two_that_follow() -> Debt:
    debt = Debt()
    debt.follow(DAY_MS, payments_cents=1)
    other = made(debt.grid, [], debt.statement, rate_bp=2100, payments_cents=debt.open_cents)
    debt.more = [other.record]
    return debt


def _returned(*, listed: bool) -> Debt:
    debt = Debt()
    cents = debt.open_cents
    debt.pay(cents, listed=True)
    return debt.pay(-cents, before_ms=4 * DAY_MS, listed=listed, kind=PaymentKind.RETURNED)


_DEBTS: tuple[tuple[str, Callable[[], Debt]], ...] = (
    ("nothing is paid", Debt),
    ("a part is paid and listed", lambda: Debt().pay(5, listed=True)),
    ("paid and listed, and taken back by the bank", lambda: _returned(listed=True)),
    ("paid, and not listed", lambda: Debt().pay(1)),
    ("booked for it later on, from another invoice", lambda: Debt().pay(3, kind=PaymentKind.REALLOCATED)),
    ("paid a day before, and not listed", lambda: _paid_in_the_last_day(DAY_MS)),
    ("paid in the last day", lambda: _paid_in_the_last_day(DAY_MS - 1)),
    ("paid after it", lambda: _paid_in_the_last_day(-5 * DAY_MS)),
    ("a part paid after it", lambda: Debt().pay(7, before_ms=-5 * DAY_MS)),
    ("paid ahead after it", lambda: (d := Debt()).ahead(d.open_cents, d.as_of_ms + DAY_MS)),
    (
        "a payment of before, the first statement not being there",
        lambda: _ahead_of_it(500).without(Debt().first),
    ),
    ("a payment of before that no statement counts", lambda: _ahead_of_it(500)),
    ("of that a part", lambda: _ahead_of_it(9)),
    ("a payment of before that the first statement counts", lambda: _counted(9)),
    ("claims a cent more than is stated", lambda: (d := Debt()).claiming(unpaid_cents=d.open_cents + 1)),
    ("claims a cent less", lambda: (d := Debt()).claiming(unpaid_cents=d.open_cents - 1)),
    ("a later statement leaves nothing", lambda: (d := Debt()).follow(DAY_MS, payments_cents=d.open_cents)),
    (
        "a statement of before says that it is paid",
        lambda: (d := Debt()).follow(-2 * DAY_MS, payments_cents=d.open_cents),
    ),
    ("a later statement counts a part", lambda: Debt().follow(DAY_MS, payments_cents=10)),
    ("a later statement sets it off", lambda: (d := Debt()).follow(2, payments_cents=0, set_off_cents=d.open_cents)),
    ("two statements follow, of which one leaves nothing", _two_that_follow),
    ("set off since, by both", lambda: _set_off(8, (PROVIDER, CLIENT))),
    ("all of it set off since", lambda: _set_off(0, (PROVIDER, CLIENT))),
    ("a set-off that the client alone has signed", lambda: _set_off(8, (CLIENT,))),
    (
        "a set-off of before, the first statement not being there",
        lambda: _set_off(8, (PROVIDER, CLIENT), after_ms=120_000, names=b"1" * 32).without(Debt().first),
    ),
    (
        "a set-off of before that no statement counts",
        lambda: _set_off(8, (PROVIDER, CLIENT), after_ms=120_000, names=b"1" * 32),
    ),
    ("a set-off of another's", lambda: _set_off(8, (PROVIDER, key("somebody")))),
    ("the client has not signed the statement", lambda: _unsigned(Debt())),
    ("the statement does not add up", lambda: _another_sum(Debt())),
    ("no channel", lambda: (d := Debt()).without(d.grid.channel)),
    ("no statement", lambda: (d := Debt()).without(d.statement)),
    ("no invoice", lambda: (d := Debt()).without(d.invoice)),
    ("a payment that is listed is not shown", lambda: (d := Debt().pay(5, listed=True)).without(d.payments[0])),
    ("another currency", lambda: Debt().claiming(currency="CHF")),
    ("as of 120 s after it is due", lambda: (d := Debt()).claiming(as_of_ms=d.statement.message.due_ms + 120_000)),
    ("as of more than that", lambda: (d := Debt()).claiming(as_of_ms=d.statement.message.due_ms + 120_001)),
    ("claimed 120 s ahead", lambda: (d := Debt()).claiming(claimed_ms=d.at_ms() + 120_000)),
    ("claimed more than that ahead", lambda: (d := Debt()).claiming(claimed_ms=d.at_ms() + 120_001)),
    ("the operator's other key", _tied),
)


def default_vectors() -> list[dict[str, Any]]:
    """Claims with the records that are shown, and what follows."""
    return [_claim(name, build()) for name, build in _DEBTS]


def _claim(name: str, debt: Debt) -> dict[str, Any]:
    claim, records = debt.claim(), debt.records()
    verdict = verify_default(claim, records, debt.at_ms())
    return {
        "case": name,
        "at_ms": debt.at_ms(),
        "claim": claim.to_bytes().hex(),
        "records": [one.to_bytes().hex() for one in records],
        "verdict": verdict.state.value,
        "unpaid_cents": verdict.unpaid_cents,
        "other_keys": sorted(one.hex() for one in verdict.other_keys),
    }
