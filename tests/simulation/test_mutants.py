"""The simulation can fail: deliberate bugs in the core are found within a few histories."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto import acceptance, batch_seller, buyer, countersigning, metered_order, proposal, reconcile, seller
from p2pgrid.proto import restore as restoring
from p2pgrid.proto.batch_buyer import BuyerBatch
from p2pgrid.proto.batch_seller import SellerBatch
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.messages import Receipt, Usage, Voucher
from p2pgrid.proto.record import Role, Signed, parse_message, parse_record
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.wire.kinds import Kind
from tests.simulation import seller as simulated_seller
from tests.simulation.observer import Broken
from tests.simulation.run import run_many

SEEDS = 200
SEEDS_OF_A_LIAR = 400


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
    patch.setattr(metered_order, "is_billed_by_voucher", lambda status: False)


def as_many_orders_as_you_like(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelBooks, "may_open", lambda self, risk, now_ms=0: True)


def window_for_each_request_alone(patch: pytest.MonkeyPatch) -> None:
    """As if no other request of the batch order were under way."""
    release = SellerBatch._release_part

    def mutant(self: SellerBatch, part: Any, *rest: Any) -> bool:
        acknowledged, self._gone_acknowledged = self._gone_acknowledged, self._gone
        is_held = release(self, part, *rest)
        self._gone_acknowledged = acknowledged
        return is_held

    patch.setattr(SellerBatch, "_release_part", mutant)


def failed_request_billed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batch_seller, "counts", lambda status, usage: usage != Usage())


# -- what only a liar can make use of ---------------------------------------------------------------------------


def client_believes_every_tick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BuyerOrder, "_meter_fault", lambda self, meter, now_ms: None)


def client_believes_every_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BuyerOrder, "_ending_fault", lambda self, receipt: None)


def client_signs_whatever_lines_come(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BuyerBatch, "_ending_fault", lambda self, receipt: None)


def client_does_not_reckon(patch: pytest.MonkeyPatch) -> None:
    for module in (buyer, countersigning):
        patch.setattr(module, "receipt_fault", lambda receipt, order, tariff: None)


def client_follows_any_chain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelBooks, "chain_fault", lambda self, receipt: None)


def client_pays_under_a_second_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reconcile, "_has_receipt", lambda records, order: False)


def client_believes_what_comes_after_a_lost_link(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(countersigning, "resumed_fault", lambda receipt, tariff, **known: None)


def client_keeps_what_nobody_signed(patch: pytest.MonkeyPatch) -> None:
    """Nothing that comes back is looked at."""

    def mutant(record: Any, message_type: Any, keys: Any) -> Any:
        return Signed(parse_message(record, message_type), record, record.id, dict(keys))

    patch.setattr(reconcile, "verify_record", mutant)


def provider_takes_any_voucher(patch: pytest.MonkeyPatch) -> None:
    on_voucher = SellerOrder._on_voucher

    def mutant(self: SellerOrder, payload: bytes, now_ms: int) -> Any:
        told = parse_message(parse_record(payload), Voucher)
        for known, meter in list(self._unanswered.items()):
            said = msgspec.structs.replace(meter, usage=told.usage, amount_pico=told.amount_pico, tick=told.tick)
            if known == told.meter:
                self._unanswered[known] = said
        actions = on_voucher(self, payload, now_ms)
        self._acknowledged = self._delivered
        return actions

    patch.setitem(seller._HANDLERS, Kind.VOUCHER, mutant)


def provider_serves_an_order_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelBooks, "claim_order_number", lambda self, number: None)


def provider_forgets_what_is_open(patch: pytest.MonkeyPatch) -> None:
    restore = restoring.restore_books

    def mutant(records: Any, channel: Any, own: Any) -> ChannelBooks:
        books = restore(records, channel, own)
        if own is Role.PROVIDER:
            for at_risk in (books._risks, books._at_stake, books._unsigned):
                at_risk.clear()
        return books

    patch.setattr(simulated_seller, "restore_books", mutant)


def provider_forgets_what_was_left_unsigned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelBooks, "note_unsigned", lambda self, receipt, order, tariff: None)


def provider_lets_disputes_cost_nothing(patch: pytest.MonkeyPatch) -> None:
    note = ChannelBooks.note_disputed

    def mutant(self: ChannelBooks, receipt: Any, owed_pico: int, risk: int | None = None) -> None:
        note(self, receipt, owed_pico, risk)
        self._at_stake.clear()

    patch.setattr(ChannelBooks, "note_disputed", mutant)


def provider_does_not_check_caps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "most_owed", lambda tariff, **caps: 0)
    patch.setattr(RequestFields, "max_output_tokens", lambda self, entry: 0)


def provider_takes_any_countersignature(patch: pytest.MonkeyPatch) -> None:
    def mutant(proposed: Any, payload: bytes, books: ChannelBooks) -> Any:
        return Signed(parse_message(parse_record(payload), Receipt), proposed.record, proposed.id, proposed.signers)

    patch.setattr(metered_order, "check_countersignature", mutant)
    patch.setattr(proposal, "check_countersignature", mutant)


HONEST = (
    as_many_orders_as_you_like,
    window_not_enforced,
    sent_before_durable,
    receipt_number_used_twice,
    order_number_used_twice,
    one_token_too_many,
    total_forgotten,
    interrupted_billed_in_full,
    provider_forgets_what_was_left_unsigned,
    window_for_each_request_alone,
    failed_request_billed,
)
LYING_PROVIDER = (
    client_believes_every_tick,
    client_believes_every_count,
    client_signs_whatever_lines_come,
    client_does_not_reckon,
    client_follows_any_chain,
    client_pays_under_a_second_number,
    client_believes_what_comes_after_a_lost_link,
    client_keeps_what_nobody_signed,
)
LYING_CLIENT = (
    provider_takes_any_voucher,
    provider_serves_an_order_twice,
    provider_forgets_what_is_open,
    provider_forgets_what_was_left_unsigned,
    provider_lets_disputes_cost_nothing,
    provider_does_not_check_caps,
    provider_takes_any_countersignature,
)
MUTANTS = (
    *((None, mutate) for mutate in HONEST),
    *((Role.PROVIDER, mutate) for mutate in LYING_PROVIDER),
    *((Role.CLIENT, mutate) for mutate in LYING_CLIENT),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("liar", "mutate"), MUTANTS, ids=[f"{liar or 'honest'}-{m.__name__}" for liar, m in MUTANTS])
def test_is_found(liar: Role | None, mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(Broken, match="scripts/simulate --seed"):
        run_many(range(SEEDS if liar is None else SEEDS_OF_A_LIAR), liar=liar)
