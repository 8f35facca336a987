"""The simulation can fail: deliberate bugs in the core are found within a few histories."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto import seller
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.seller import SellerOrder
from tests.simulation.observer import Broken
from tests.simulation.run import run_many

SEEDS = 60


def window_not_enforced(patch: pytest.MonkeyPatch) -> None:
    release = SellerOrder._release

    def mutant(self: SellerOrder, now_ms: int) -> Any:
        if self._held:
            self._acknowledged = self._held[-1].usage
        return release(self, now_ms)

    patch.setattr(SellerOrder, "_release", mutant)


def sent_before_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "run", lambda self, effect: effect())


def receipt_number_used_twice(patch: pytest.MonkeyPatch) -> None:
    append = ChannelBooks.append

    def mutant(self: ChannelBooks, receipt: Any) -> None:
        append(self, receipt)
        self.last_receipt_number = max(1, self.last_receipt_number - 1)

    patch.setattr(ChannelBooks, "append", mutant)


def order_number_used_twice(patch: pytest.MonkeyPatch) -> None:
    opened = ChannelBooks.open_order

    def mutant(self: ChannelBooks, order: Any, tariff: Any) -> None:
        before = self.last_order_number
        opened(self, order, tariff)
        self.last_order_number = before

    patch.setattr(ChannelBooks, "open_order", mutant)


def one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    count = seller.usage_of

    def mutant(counter: Any) -> Any:
        usage = count(counter)
        return msgspec.structs.replace(usage, output_tokens=usage.output_tokens + 1)

    patch.setattr(seller, "usage_of", mutant)


def total_forgotten(patch: pytest.MonkeyPatch) -> None:
    append = ChannelBooks.append

    def mutant(self: ChannelBooks, receipt: Any) -> None:
        append(self, receipt)
        self.total_pico = 0

    patch.setattr(ChannelBooks, "append", mutant)


def interrupted_billed_in_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(seller, "is_billed_by_voucher", lambda status: False)


def as_many_orders_as_you_like(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelBooks, "may_open", lambda self, risk, now_ms=0: True)


MUTANTS = (
    as_many_orders_as_you_like,
    window_not_enforced,
    sent_before_durable,
    receipt_number_used_twice,
    order_number_used_twice,
    one_token_too_many,
    total_forgotten,
    interrupted_billed_in_full,
)


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda m: m.__name__)
def test_is_found(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(Broken, match="scripts/simulate --seed"):
        run_many(range(SEEDS))
