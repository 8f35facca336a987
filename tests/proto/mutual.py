"""Two operators that buy from one another, for cases of the audit: each sells in a channel of its own.

pair = mutual()                     # each side has invoiced nine cents
pair.keep(pair.set_off(9))          # signed by both
pair.files()                        # what the four ledgers export
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Statement
from tests.factories import make_invoice, make_payment, make_set_off, set_off_side
from tests.proto.audit_cases_settlement import made, sold
from tests.proto.chains import DAY_MS, Dealings, LinesBundle, bundle_of, key


@dataclass
class Pair:
    """Both channels, with a statement and an invoice in each. The first side of a set-off is that of `sells`."""

    sells: Dealings
    """The provider of the other cases sells."""
    buys: Dealings
    """It buys from its client."""
    statements: dict[int, list[Signed[Statement]]] = field(default_factory=dict)
    invoices: dict[int, list[Signed[Invoice]]] = field(default_factory=dict)

    @property
    def both(self) -> tuple[Dealings, Dealings]:
        return self.sells, self.buys

    @property
    def keys(self) -> list[SecretKey]:
        return [self.sells.provider, self.buys.provider]

    def state(self, grid: Dealings, first: int, last: int, **changes: Any) -> Signed[Statement]:
        """The next statement of a channel and its invoice, which both have."""
        before = self.statements.setdefault(id(grid), [])
        right = made(grid, grid.receipts[first - 1 : last], before[-1] if before else None, **changes)
        signed = grid.keep(signed_in(grid, right))
        before.append(signed)
        invoice = make_invoice(signed).message
        kept = grid.keep(sign_message(invoice, Role.PROVIDER, grid.provider))
        self.invoices.setdefault(id(grid), []).append(kept)
        return signed

    def set_off(self, cents: int = 9, *, keys: Sequence[SecretKey] | None = None, **changes: Any) -> Signed[SetOff]:
        """So much off the first invoice of each side."""
        sides = [set_off_side(grid.channel, (self.invoices[id(grid)][0], cents)) for grid in self.both]
        agreed_ms = self.statements[id(self.sells)][0].message.stated_ms + DAY_MS
        return make_set_off(*sides, self.keys if keys is None else keys, **{"agreed_ms": agreed_ms, **changes})

    def pay(self, grid: Dealings, index: int, **changes: Any) -> None:
        """An invoice of a channel is paid, in full or so many cents."""
        invoice = self.invoices[id(grid)][index]
        reference = {"reference": f"P2PGRID-{index}", **changes}
        payment = make_payment(invoice, grid.channel.message.channel, **reference).message
        grid.keep(sign_message(payment, Role.PROVIDER, grid.provider))

    def keep(self, signed: Signed[Any]) -> Signed[Any]:
        """A record that all four ledgers have."""
        for grid in self.both:
            grid.keep(signed)
        return signed

    def files(self) -> list[LinesBundle]:
        """A ledger each for selling and buying, of both."""
        provider, client = self.sells.bundles()
        other_provider, other_client = self.buys.bundles()
        return [
            bundle_of(provider, Role.PROVIDER, "a-sells.jsonl"),
            bundle_of(client, Role.CLIENT, "b-buys.jsonl"),
            bundle_of(other_provider, Role.PROVIDER, "b-sells.jsonl"),
            bundle_of(other_client, Role.CLIENT, "a-buys.jsonl"),
        ]

    def files_of_one(self) -> list[LinesBundle]:
        """What the two ledgers of the first channel export."""
        return self.files()[:2]


def signed_in(grid: Dealings, right: Signed[Any], **changes: Any) -> Signed[Any]:
    """The message, changed, with the signatures of a channel's parties."""
    message = msgspec.structs.replace(right.message, **changes)
    return sign_message(message, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client)


def mutual(**start: Any) -> Pair:
    """Nine cents each way, of five receipts in each channel, three of them stated and invoiced."""
    sells = sold(5, **start)
    nonces = (f"back {n}" for n in range(100))
    buys = next(grid for grid in map(_back, nonces) if sells.channel.message.channel < grid.channel.message.channel)
    buys = sold(5, provider=key("client"), client=key("provider"), nonce=buys.nonce)
    pair = Pair(sells, buys)
    for grid in pair.both:
        assert pair.state(grid, 1, 3).message.gross_cents == 9
    return pair


def _back(nonce: str) -> Dealings:
    return Dealings(provider=key("client"), client=key("provider"), nonce=nonce)
