"""Both session machines, joined: what each ending bills, and what no history may break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS, ChannelBooks, risk_pico, unsigned_pico
from p2pgrid.proto.countersigning import check_resumed
from p2pgrid.proto.messages import Meter, Receipt, Status, Tariff, Usage, Voucher
from p2pgrid.proto.metered_order import VOUCHER_TIMEOUT_MS
from p2pgrid.proto.order_states import (
    BUYER_TRANSITIONS,
    SELLER_TRANSITIONS,
    BuyerEvent,
    BuyerState,
    SellerEvent,
    SellerState,
)
from p2pgrid.proto.placement import place_order
from p2pgrid.proto.proposal import Ending, check_countersignature, propose_receipt
from p2pgrid.proto.receipt_check import DISPUTABLE
from p2pgrid.proto.record import Record, Role, parse_record, sign_message, verify_record
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import MAX_ENGINE_ERROR_BYTES, OrderOpening
from tests.proto.simulation import (
    CHAT,
    CLIENT,
    MODEL,
    NOW_MS,
    PROVIDER,
    STRANGER,
    TARIFF,
    Engine,
    Grid,
    Lane,
    answer,
    assert_equal_books,
    audit,
    final_events,
    first_event,
    make_books,
    make_channel,
    make_offer,
    receipts,
    script,
    signed_by_client,
    sse,
    token_event,
    usage,
)

IN, CACHED, OUT = TARIFF.input_upm, TARIFF.cached_input_upm, TARIFF.output_upm


def run(events: list[bytes], *, window: int = 16, **changes: Any) -> tuple[Grid, Lane]:
    """One order, from start to end, in step."""
    grid = Grid(window=window)
    lane = grid.ordered(script(events, **changes))
    grid.settle()
    return grid, lane


# -- endings ------------------------------------------------------------------------------------------------------


ENDINGS: list[tuple[str, list[bytes], dict[str, Any], Status, Usage, int]] = [
    ("whole", answer(10, [1] * 50), {}, Status.COMPLETED, usage(10, 50), 10 * IN + 50 * OUT),
    ("shorter than a tick", answer(10, [3]), {}, Status.COMPLETED, usage(10, 3), 10 * IN + 3 * OUT),
    (
        "cached",
        answer(200, [1] * 9, cached=128),
        {},
        Status.COMPLETED,
        usage(200, 9, 128),
        72 * IN + 128 * CACHED + 9 * OUT,
    ),
    ("events over the window", answer(5, [40, 2, 100]), {}, Status.COMPLETED, usage(5, 142), 5 * IN + 142 * OUT),
    ("no token", answer(10, []), {}, Status.EMPTY, usage(10, 0), 0),
    ("nothing at all", [sse("[DONE]")], {}, Status.EMPTY, usage(0, 0), 0),
    ("no [DONE]", answer(10, [1] * 20)[:-1], {}, Status.FAILED, usage(10, 20), 0),
    ("half an event", [*answer(10, [1] * 20)[:-1], b"data: [DO"], {}, Status.FAILED, usage(10, 20), 0),
    ("no answer", [], {"fails": True}, Status.FAILED, usage(0, 0), 0),
    ("broken off", answer(10, [1] * 40)[:20], {"fails": True}, Status.FAILED, usage(10, 19), 0),
    (
        "error event",
        [*answer(10, [1] * 5)[:4], sse({"error": {"message": "out of memory", "code": 500}}), sse("[DONE]")],
        {},
        Status.FAILED,
        usage(10, 3),
        0,
    ),
    ("garbage", [*answer(10, [1] * 5)[:3], b"data: {{{\n\n"], {}, Status.FAILED, usage(10, 2), 0),
    (
        "contradiction",
        [first_event(10), token_event(10, 0, 2), *final_events(10, 7)],
        {},
        Status.FAILED,
        usage(10, 2),
        0,
    ),
    ("400", [b'{"error": "no"}'], {"status": 400, "content_type": "application/json"}, Status.REFUSED, usage(0, 0), 0),
    ("500", [b"oops"], {"status": 500, "content_type": "text/plain"}, Status.FAILED, usage(0, 0), 0),
    ("redirect", [], {"status": 307}, Status.REFUSED, usage(0, 0), 0),
    ("early hints", [], {"status": 103}, Status.FAILED, usage(0, 0), 0),
    ("no content", [], {"status": 204}, Status.FAILED, usage(0, 0), 0),
    ("300", [], {"status": 300}, Status.REFUSED, usage(0, 0), 0),
    ("499", [], {"status": 499}, Status.REFUSED, usage(0, 0), 0),
    ("abort", answer(10, [1] * 5, finish="abort"), {}, Status.FAILED, usage(10, 5), 0),
    ("status 999", [b"?"], {"status": 999}, Status.FAILED, usage(0, 0), 0),
    ("error page without end", [b"x" * 50_000] * 4, {"status": 503}, Status.FAILED, usage(0, 0), 0),
]


@pytest.mark.parametrize(
    ("events", "changes", "status", "billed", "amount"), [e[1:] for e in ENDINGS], ids=[e[0] for e in ENDINGS]
)
def test_endings(events: list[bytes], changes: dict[str, Any], status: Status, billed: Usage, amount: int) -> None:
    grid, lane = run(events, **changes)
    assert not lane.complaints and not grid.violations
    receipt = lane.settled[0].message
    assert (receipt.status, receipt.usage, receipt.amount_pico) == (status, billed, amount)
    assert_equal_books(grid)
    if lane.engine.status == 200:
        assert b"".join(events).startswith(lane.delivered)
        assert lane.buyer.usage == billed
    else:
        assert lane.delivered == b"".join(events)[:MAX_ENGINE_ERROR_BYTES]


@given(
    st.lists(st.sampled_from([0, 1, 1, 1, 2, 5, 20, 40]), max_size=40),
    st.sampled_from([16, 64, 200]),
    st.sampled_from([5, 30, 4000]),
)
def test_events_that_come_whole_are_billed_as_events_that_come_in_halves(
    counts: list[int], window: int, max_tokens: int
) -> None:
    """The seller has a short way for what engines send, one whole event a read, and a long way for everything."""
    events = answer(10, counts)
    halves = [half for event in events for half in (event[: len(event) // 2], event[len(event) // 2 :])]
    found = []
    for pieces in (events, halves):
        grid = Grid(window=window)
        lane = grid.ordered(script(pieces), max_tokens=max_tokens)
        grid.settle()
        assert not lane.complaints and not grid.violations
        message = lane.settled[0].message
        found.append((message.status, message.usage, message.amount_pico, lane.delivered))
    assert found[0] == found[1]


def test_two_choices_are_counted_together() -> None:
    events = [first_event(10), first_event(10, index=1)]
    for i in range(20):
        events += [token_event(10, i, 1), token_event(10, i, 1, index=1)]
    grid = Grid()
    lane = grid.ordered(script([*events, *final_events(10, 40)]), n=2, max_tokens=20)
    grid.settle()
    assert lane.settled[0].message.usage == usage(10, 40)
    assert_equal_books(grid)


def test_past_the_orders_caps_what_was_vouched_is_billed() -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(10, [1] * 60)), max_tokens=30)
    grid.settle()
    receipt = lane.settled[0].message
    assert receipt.status is Status.INTERRUPTED
    assert lane.buyer.usage == usage(10, 30)
    assert receipt.usage == lane.buyer.vouched == usage(10, 24)
    assert_equal_books(grid)


def test_a_prompt_over_the_cap_costs_nothing_and_shows_nothing() -> None:
    _, lane = run(answer(9000, [1] * 10))
    assert lane.settled[0].message.amount_pico == 0
    assert lane.delivered == b""


def test_cancel_bills_what_was_delivered() -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(10, [1] * 100)))
    for _ in range(8):
        grid.step_engine(lane)
    grid.cancel(lane)
    assert grid.client.open_orders == 1
    grid.settle()
    receipt = lane.settled[0].message
    assert (receipt.status, receipt.usage) == (Status.CANCELLED, usage(10, 6))
    assert receipt.finish_reason == ""
    assert lane.buyer.usage == usage(10, 6)
    assert_equal_books(grid)


def test_cancel_before_the_engine_answers_costs_nothing() -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(10, [1] * 100)))
    grid.cancel(lane)
    assert grid.client.reserved_pico > 0
    grid.settle()
    assert lane.settled[0].message.amount_pico == 0
    assert_equal_books(grid)


def test_cancel_that_crosses_the_end_changes_nothing() -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(10, [1] * 5)))
    while "engine" in grid.enabled(lane):
        grid.step_engine(lane)
    grid.cancel(lane)
    grid.settle()
    assert lane.settled[0].message.status is Status.COMPLETED
    assert_equal_books(grid)


def test_cancel_while_held_bills_without_what_was_held() -> None:
    grid = Grid()
    lane = grid.ordered(script([b"".join(answer(10, [1] * 20))]))
    grid.step_engine(lane)
    grid.step_engine(lane)
    assert lane.seller is not None and lane.seller.state is SellerState.HELD
    grid.cancel(lane)
    while grid.to_provider:
        grid.step_provider()
    grid.settle()
    receipt = lane.settled[0].message
    assert (receipt.usage, receipt.finish_reason) == (usage(10, 16), "")
    assert_equal_books(grid)


@pytest.mark.parametrize("by", ["timer", "first token", "cancel"])
def test_a_first_token_after_the_deadline_costs_nothing(by: str) -> None:
    grid = Grid()
    lane = grid.ordered(script([first_event(10), b"".join(answer(10, [1] * 5)[1:])]), timeout_ms=1000)
    grid.step_engine(lane)
    grid.step_engine(lane)
    if by == "timer":
        grid.step_clock(lane)
    grid.now_ms = NOW_MS + 1000
    if by == "cancel":
        grid.cancel(lane)
        grid.step_provider()
    grid.settle()
    receipt = lane.settled[0].message
    assert (receipt.status, receipt.amount_pico, receipt.usage.output_tokens) == (Status.LATE, 0, 0)
    assert_equal_books(grid)


def test_the_deadline_is_a_duration_whatever_the_clocks_say() -> None:
    grid = Grid()
    lane = grid.place(script(answer(10, [1] * 5)), timeout_ms=1000)
    grid.now_ms += 100_000  # The provider's clock is 100 s ahead of the client's.
    grid.step_body(lane)
    assert lane.seller is not None and lane.seller.deadline_ms() == grid.now_ms + 1000
    grid.settle()
    assert lane.settled[0].message.status is Status.COMPLETED


# -- the window ---------------------------------------------------------------------------------------------------


def test_a_client_that_never_signs_gets_one_window_and_no_second_order() -> None:
    grid = Grid(window=16)
    grid.never_signs = True
    lane = grid.ordered(script(answer(10, [1] * 100)))
    grid.settle()
    assert lane.buyer.usage.output_tokens == 16
    assert lane.seller is not None and lane.seller.receipt is not None
    receipt = lane.seller.receipt.message
    assert (receipt.status, receipt.usage, receipt.amount_pico) == (Status.UNACKNOWLEDGED, usage(0, 0), 0)
    assert grid.now_ms == NOW_MS + VOUCHER_TIMEOUT_MS
    assert not grid.provider.may_open(1)
    grid.client.countersigned_pico = 10**12  # The client says otherwise.
    second = grid.ordered(script(answer(10, [1])))
    assert second.refused is not None and second.refused.code == "too-many-open-orders"


def test_ticks_come_at_half_a_window() -> None:
    grid, _ = run(answer(10, [1] * 40), window=16)
    meters = [s.message for s in grid.provider_ledger if isinstance(s.message, Meter)]
    assert [m.usage.output_tokens for m in meters] == [8, 16, 24, 32, 40]
    assert [m.tick for m in meters] == [1, 2, 3, 4, 5]


def test_a_late_voucher_is_taken_while_the_receipt_is_proposed() -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script(answer(10, [1] * 12)))
    while "engine" in grid.enabled(lane):
        grid.step_engine(lane)
    assert lane.seller is not None and lane.seller.state is SellerState.PROPOSED
    while lane.to_client:
        grid.step_client(lane)
    assert [k for _, k, _ in grid.to_provider] == [Kind.VOUCHER, Kind.COUNTERSIGNATURE]
    grid.settle()
    assert_equal_books(grid)


# -- several orders -----------------------------------------------------------------------------------------------


def test_what_is_countersigned_covers_more_orders_at_once() -> None:
    grid = Grid(max_open_orders=3)
    for wanted in (1, 2, 3):
        lanes = [grid.ordered(script(answer(5, [1, 1])))]
        while len(lanes) < wanted and grid.client.may_open(at_risk(lanes[0])):
            lanes.append(grid.ordered(script(answer(5, [1, 1]))))
        covered = grid.client.countersigned_pico
        assert sum(at_risk(lane) for lane in lanes[1:]) <= covered
        with pytest.raises(Refused) as refusal:
            grid.place(script([]))
        assert refusal.value.code == "too-many-open-orders"
        grid.settle()
        assert all(lane.settled for lane in lanes)
        if wanted == 2:
            grid.client.countersigned_pico = grid.provider.countersigned_pico = 10**12
    assert len(lanes) == 3


def at_risk(lane: Lane) -> int:
    return risk_pico(lane.buyer.order.message, lane.buyer.tariff, 16)


def test_an_event_larger_than_the_window_is_acknowledged_before_it_is_billed() -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script(answer(10, [40])))
    while lane.seller is None or lane.seller.state is not SellerState.HELD:
        grid.step(lane, next(iter(grid.enabled(lane))))
    assert lane.seller.receipt is None
    grid.lose_link()
    grid.resume()
    assert not lane.complaints
    assert_equal_books(grid)


def test_an_event_larger_than_the_window_is_billed_once_it_is_acknowledged() -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script(answer(10, [40])))
    grid.settle()
    (receipt,) = receipts(grid.client_ledger)
    assert lane.settled and (receipt.message.status, receipt.message.usage) == (Status.COMPLETED, usage(10, 40))


def test_bodies_may_arrive_in_any_order() -> None:
    grid = Grid(countersigned=8)
    first, second = grid.place(script(answer(5, [1]))), grid.place(script(answer(5, [1])))
    while second.bodies:
        grid.step_body(second)
    while first.bodies:
        grid.step_body(first)
    assert first.refused is None and second.refused is None
    grid.settle()
    assert_equal_books(grid)


def test_an_order_number_is_used_once() -> None:
    grid = Grid(countersigned=8)
    lane = grid.ordered(script(answer(5, [1])))
    assert lane.opening is not None
    with pytest.raises(Refused) as refused:
        verify_order(lane.opening.to_bytes(), grid.provider)
    assert refused.value.code == "order-number"


def test_a_receipt_waits_for_the_one_before_it() -> None:
    grid = Grid(countersigned=8)
    lanes = [grid.ordered(script(answer(5, [1, 2]))) for _ in range(3)]
    for lane in lanes:
        while "engine" in grid.enabled(lane):
            grid.step_engine(lane)
    for lane in (lanes[2], lanes[1]):
        while lane.to_client:
            grid.step_client(lane)
        assert lane.buyer.state is BuyerState.WAITING and lane.buyer.is_open
        assert not lane.settled and not lane.complaints
    while lanes[0].to_client:
        grid.step_client(lanes[0])
    assert all(lane.buyer.state is BuyerState.SETTLED for lane in lanes)
    grid.settle()
    assert_equal_books(grid)


def test_a_gap_that_no_open_order_can_fill_is_a_fault() -> None:
    grid = Grid(countersigned=8)
    grid.provider.last_receipt_number = 1
    lane = grid.ordered(script(answer(5, [1])))
    grid.settle()
    assert lane.complaints[0] == "receipt-gap"
    assert lane.evidence


def test_credit_is_reserved_and_given_back() -> None:
    grid = Grid(countersigned=8)
    limit = grid.channel.message.credit_limit_pico
    lane = grid.ordered(script(answer(5, [1])))
    reserved = lane.buyer.order.message.max_amount_pico
    assert grid.client.credit_left_pico() == grid.provider.credit_left_pico() == limit - reserved
    grid.settle()
    spent = lane.settled[0].message.amount_pico
    assert grid.client.credit_left_pico() == grid.provider.credit_left_pico() == limit - spent


# -- a lost link --------------------------------------------------------------------------------------------------


def test_a_lost_link_bills_what_a_voucher_acknowledged() -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script(answer(10, [1] * 100)))
    while lane.acknowledged < 24:
        for name in grid.enabled(lane):
            grid.step(lane, name)
        if grid.to_provider:
            grid.step_provider()
    acknowledged = lane.acknowledged
    grid.lose_link()
    assert lane.buyer.state is BuyerState.LOST
    assert grid.client.reserved_pico > 0
    grid.resume()
    receipt = receipts(grid.client_ledger)[-1].message
    assert (receipt.status, receipt.usage) == (Status.INTERRUPTED, lane.buyer.vouched)
    assert receipt.usage.output_tokens >= acknowledged
    meters = {s.message.usage: s.message for s in grid.client_ledger if isinstance(s.message, Meter)}
    assert receipt.response_commitment == meters[receipt.usage].response_commitment
    assert_equal_books(grid)


def test_windows_that_nobody_signs_for_add_up() -> None:
    """Whoever takes a window, signs for none of it and settles the receipt of 0 gets no second one for an hour."""
    grid = Grid(window=16)
    for settled in (0, 1):
        grid.never_signs = True
        lane = grid.ordered(script(answer(10, [1] * 100)))
        while lane.seller is not None and lane.seller.is_running and lane.sent.output_tokens < 16:
            grid.step_engine(lane)
        grid.lose_link()
        grid.never_signs = False
        grid.resume()
        last = receipts(grid.client_ledger)[-1].message
        assert (last.status, last.amount_pico, lane.sent.output_tokens) == (Status.INTERRUPTED, 0, 16)
        assert grid.provider.open_orders == 0 and grid.provider.countersigned == settled + 1
        for books in (grid.provider, grid.client):
            assert not books.may_open(1, grid.now_ms)
            assert books.may_open(1, grid.now_ms + UNSIGNED_COUNTS_MS)
        assert_equal_books(grid)
        grid.now_ms += UNSIGNED_COUNTS_MS


def test_what_was_broken_off_is_covered_by_receipts() -> None:
    grid = Grid(window=16)
    grid.ordered(script(answer(10, [1] * 800)))
    grid.settle()
    paid = grid.provider.countersigned_pico
    lane = grid.ordered(script(answer(10, [1] * 100)))
    grid.step_engine(lane)
    grid.lose_link()
    grid.resume()
    left_out = unsigned_pico(receipts(grid.client_ledger)[-1].message, lane.buyer.order.message, TARIFF, 16)
    assert left_out == at_risk(lane)
    for books in (grid.provider, grid.client):
        assert books.at_risk_pico(10**12, grid.now_ms) == left_out <= paid
        assert books.may_open(10**12, grid.now_ms)


def test_an_answer_that_ended_before_the_link_was_lost_is_settled_on_resume() -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script(answer(10, [1] * 12)))
    while "engine" in grid.enabled(lane):
        grid.step_engine(lane)
    grid.step_client(lane)
    grid.lose_link()
    grid.resume()
    assert receipts(grid.client_ledger)[-1].message.status is Status.COMPLETED
    assert_equal_books(grid)


def test_a_countersignature_lost_on_its_way_is_sent_again() -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script(answer(10, [1] * 12)))
    while steps := grid.enabled(lane):
        grid.step(lane, steps[0])
    assert lane.settled and grid.provider.open_orders == 1
    grid.lose_link()
    grid.resume()
    assert_equal_books(grid)


def test_an_order_that_never_arrived_is_closed_by_resume() -> None:
    grid = Grid()
    lane = grid.place(script([]))
    grid.lose_link()
    assert grid.client.open_orders == 1 and lane.seller is None
    grid.resume()
    assert (grid.client.open_orders, grid.client.reserved_pico) == (0, 0)
    assert grid.client.may_open(10**12)


RESUMED: list[tuple[str, Status, Usage, Usage, Usage | None, str]] = [
    ("vouched", Status.INTERRUPTED, usage(10, 16), usage(10, 16), usage(10, 20), ""),
    ("less than vouched", Status.INTERRUPTED, usage(10, 8), usage(10, 16), usage(10, 20), ""),
    ("nothing", Status.INTERRUPTED, usage(0, 0), usage(0, 0), usage(0, 0), ""),
    ("beyond the voucher", Status.INTERRUPTED, usage(10, 17), usage(10, 16), usage(10, 20), "wrong-count"),
    ("unacknowledged", Status.UNACKNOWLEDGED, usage(10, 17), usage(10, 16), usage(10, 20), "wrong-count"),
    ("fewer cached", Status.INTERRUPTED, usage(10, 16, 0), usage(10, 16, 8), usage(10, 16, 8), "wrong-count"),
    ("delivered", Status.COMPLETED, usage(10, 20), usage(10, 16), usage(10, 20), ""),
    ("one window ahead", Status.COMPLETED, usage(10, 32), usage(10, 16), usage(10, 20), ""),
    ("over a window ahead", Status.COMPLETED, usage(10, 33), usage(10, 16), usage(10, 20), "beyond-window"),
    ("a large event", Status.COMPLETED, usage(10, 90), usage(10, 16), usage(10, 90), ""),
    ("after a crash", Status.COMPLETED, usage(10, 32), usage(10, 16), None, ""),
    ("after a crash, too much", Status.COMPLETED, usage(10, 33), usage(10, 16), None, "beyond-window"),
    ("another prompt", Status.COMPLETED, usage(11, 20), usage(10, 16), usage(10, 20), "wrong-count"),
    ("another prompt than vouched", Status.COMPLETED, usage(11, 20), usage(10, 16), None, "wrong-count"),
    ("cached left out", Status.COMPLETED, usage(10, 20), usage(10, 16), usage(10, 20, 8), "wrong-count"),
    ("over the caps", Status.COMPLETED, usage(10, 4001), usage(10, 16), usage(10, 4001), "over-caps"),
    ("failed", Status.FAILED, usage(99, 99), usage(10, 16), usage(10, 20), ""),
]


@pytest.mark.parametrize(
    ("status", "billed", "vouched", "delivered", "code"), [r[1:] for r in RESUMED], ids=[r[0] for r in RESUMED]
)
def test_check_resumed(status: Status, billed: Usage, vouched: Usage, delivered: Usage | None, code: str) -> None:
    grid = Grid(window=16)
    lane = grid.ordered(script([]))
    grid.client.chain_fault = lambda receipt: None  # type: ignore[method-assign]  # judged in test_channel
    proposal = propose_receipt(
        grid.provider, lane.buyer.order, lane.buyer.tariff, billed, Ending(status=status), key=PROVIDER, now_ms=NOW_MS
    )

    def check() -> str:
        _, dispute = check_resumed(
            grid.client,
            proposal.record,
            lane.buyer.order,
            lane.buyer.tariff,
            vouched=vouched,
            delivered=delivered,
            key=CLIENT,
            now_ms=NOW_MS,
        )
        return dispute.message.reason if dispute is not None else ""

    assert check() == code
    assert (grid.client.open_orders, grid.client.last_receipt_number) == (0, 1)
    assert (grid.client.countersigned, grid.client.disputed) == ((0, 1) if code else (1, 0))


# -- a provider that lies -----------------------------------------------------------------------------------------


def resigned(record: bytes, message_type: type[Any], change: Callable[[Any], Any]) -> bytes:
    """The provider's record with another content, under the provider's good signature."""
    signed = verify_record(parse_record(record), message_type, {Role.PROVIDER: PROVIDER.public_key})
    return sign_message(change(signed.message), Role.PROVIDER, PROVIDER).record.to_bytes()


def change(**fields: Any) -> Callable[[Any], Any]:
    return lambda message: msgspec.structs.replace(message, **fields)


def more(field: str, by: int = 1) -> Callable[[Any], Any]:
    """One count higher, the amount fitting it."""

    def raised(message: Any) -> Any:
        counts = msgspec.structs.replace(message.usage, **{field: getattr(message.usage, field) + by})
        amount = (
            (counts.prompt_tokens - counts.cached_tokens) * IN
            + counts.cached_tokens * CACHED
            + counts.output_tokens * OUT
        )
        fields = {"usage": counts, "amount_pico": amount}
        if isinstance(message, Receipt):
            fields["channel_total_pico"] = amount
        return msgspec.structs.replace(message, **fields)

    return raised


METER_LIES: list[tuple[str, Callable[[Any], Any], str]] = [
    ("output", more("output_tokens"), "wrong-count"),
    ("prompt", more("prompt_tokens"), "wrong-count"),
    ("cached", more("cached_tokens"), "wrong-count"),
    ("amount", lambda m: msgspec.structs.replace(m, amount_pico=m.amount_pico + 1), "wrong-amount"),
    ("tick", change(tick=7), "meter-gap"),
    ("order", change(order_number=7), "wrong-order"),
    ("channel", change(channel=bytes(32)), "wrong-order"),
    ("commitment", change(response_commitment=bytes(32)), "wrong-commitment"),
    ("clock", change(metered_ms=NOW_MS + 200_000), "clock-skew"),
]


@pytest.mark.parametrize(("lie", "code"), [x[1:] for x in METER_LIES], ids=[x[0] for x in METER_LIES])
def test_a_wrong_meter_gets_no_voucher(lie: Callable[[Any], Any], code: str) -> None:
    grid = Grid()

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        yield kind, resigned(payload, Meter, lie) if kind == Kind.METER else payload

    grid.tamper_provider = tamper
    lane = grid.ordered(script(answer(10, [1] * 40)))
    grid.settle()
    assert lane.complaints == [code]
    assert lane.evidence[0].reason.startswith(code)
    assert not signed_by_client(grid)
    assert lane.buyer.state is BuyerState.BREACHED


RECEIPT_LIES: list[tuple[str, Callable[[Any], Any], str]] = [
    ("output", more("output_tokens"), "wrong-count"),
    ("prompt", more("prompt_tokens"), "wrong-count"),
    ("less prompt", more("prompt_tokens", -1), "wrong-count"),
    ("amount", lambda m: msgspec.structs.replace(m, amount_pico=m.amount_pico + 1), "wrong-total"),
    (
        "amount and total",
        lambda m: msgspec.structs.replace(
            m, amount_pico=m.amount_pico + 1, channel_total_pico=m.channel_total_pico + 1
        ),
        "wrong-amount",
    ),
    ("total", lambda m: msgspec.structs.replace(m, channel_total_pico=m.channel_total_pico + 1), "wrong-total"),
    ("number", change(receipt_number=2), "receipt-gap"),
    ("number again", change(receipt_number=9), "receipt-gap"),
    ("previous", change(previous=bytes(32)), "broken-link"),
    ("channel", change(channel=bytes(32)), "wrong-channel"),
    ("order number", change(order_number=2), "wrong-order"),
    ("order", change(order=bytes(32)), "wrong-order"),
    ("offer", change(offer=bytes(32)), "wrong-order"),
    ("model", change(model="gpt-9"), "wrong-order"),
    ("request", change(request_commitment=bytes(32)), "wrong-order"),
    ("response", change(response_commitment=bytes(32)), "wrong-commitment"),
    ("finish reason", change(finish_reason="length"), "wrong-status"),
    ("cancelled", change(status=Status.CANCELLED), "wrong-status"),
    ("failed, yet billed", change(status=Status.FAILED), "refund-rule"),
    ("late, yet billed", change(first_token_ms=60_001), "refund-rule"),
    ("interrupted, beyond the vouchers", change(status=Status.INTERRUPTED), "wrong-count"),
    ("dated tomorrow", change(issued_ms=NOW_MS + 86_400_000), "clock-skew"),
    ("dated yesterday", change(issued_ms=NOW_MS - 86_400_000), "time-backwards"),
    ("over the caps", more("output_tokens", 5000), "over-caps"),
    (
        "without a price",
        lambda m: msgspec.structs.replace(
            m, usage=usage(8_000_000, 8_000_000), amount_pico=2**63 - 1, channel_total_pico=2**63 - 1
        ),
        "over-caps",
    ),
]


@pytest.mark.parametrize(("lie", "code"), [x[1:] for x in RECEIPT_LIES], ids=[x[0] for x in RECEIPT_LIES])
def test_a_wrong_receipt_gets_no_countersignature(lie: Callable[[Any], Any], code: str) -> None:
    grid = Grid()

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        yield kind, resigned(payload, Receipt, lie) if kind == Kind.RECEIPT else payload

    grid.tamper_provider = tamper
    lane = grid.ordered(script(answer(10, [1] * 20)))
    grid.settle()
    assert lane.complaints == [code]
    assert not [one for one in receipts(grid.client_ledger) if Role.CLIENT in one.signers]
    # The dispute names the record that came, which is not what the provider's machine made.
    assert lane.seller is not None and lane.seller.state is SellerState.PROPOSED
    if code in DISPUTABLE:
        assert lane.buyer.state is BuyerState.DISPUTED and not lane.evidence
        assert (grid.client.open_orders, grid.client.disputed, grid.client.last_receipt_number) == (0, 1, 1)
        assert [type(one.message).__name__ for one in grid.client_ledger[-2:]] == ["Receipt", "Dispute"]
        assert grid.violations
        return
    assert lane.buyer.state is BuyerState.BREACHED
    assert lane.evidence[0].reason.startswith(code)
    assert not receipts(grid.client_ledger)
    assert grid.client.open_orders == grid.provider.open_orders == 1


OWED: list[tuple[str, Callable[[Any], Any], int]] = [
    ("output", more("output_tokens"), 10 * IN + 20 * OUT),
    (
        "amount",
        lambda m: msgspec.structs.replace(
            m, amount_pico=m.amount_pico + 1, channel_total_pico=m.channel_total_pico + 1
        ),
        10 * IN + 20 * OUT,
    ),
    ("failed, yet billed", change(status=Status.FAILED), 0),
    ("interrupted, beyond the vouchers", change(status=Status.INTERRUPTED), 10 * IN + 16 * OUT),
]


@pytest.mark.parametrize(("lie", "owed"), [x[1:] for x in OWED], ids=[x[0] for x in OWED])
def test_a_dispute_says_what_is_owed(lie: Callable[[Any], Any], owed: int) -> None:
    grid = Grid(window=16)

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        yield kind, resigned(payload, Receipt, lie) if kind == Kind.RECEIPT else payload

    grid.tamper_provider = tamper
    lane = grid.ordered(script(answer(10, [1] * 20)))
    grid.settle()
    assert [one.dispute.message.owed_pico for one in lane.disputes] == [owed]


def test_the_chain_goes_on_above_a_disputed_receipt() -> None:
    """The provider bills another tariff than was offered: that receipt is disputed, the next one signed."""
    grid = Grid(window=16, countersigned=1)
    lane = grid.ordered(script(answer(10, [1] * 3)))
    assert lane.seller is not None
    lane.seller._tariff = Tariff(input_upm=2 * IN, cached_input_upm=2 * IN, output_upm=2 * OUT)
    grid.settle()
    assert lane.complaints == ["wrong-amount"] and lane.seller.state is SellerState.DISPUTED
    assert grid.provider.disputed == grid.client.disputed == 1
    assert grid.provider.at_risk_pico(10**12) == grid.client.at_risk_pico(10**12) == 10 * IN + 3 * OUT
    following = grid.ordered(script(answer(10, [1] * 3)))
    grid.settle()
    assert following.buyer.state is BuyerState.SETTLED
    assert following.buyer.receipt is not None and lane.buyer.dispute is not None
    assert following.buyer.receipt.message.mentions == (lane.buyer.dispute.id,)
    third = grid.ordered(script(answer(10, [1] * 3)))
    grid.settle()
    assert third.buyer.receipt is not None and third.buyer.receipt.message.mentions == ()


def test_a_mention_of_what_the_client_does_not_hold_is_disputed() -> None:
    grid = Grid()

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        yield kind, resigned(payload, Receipt, change(mentions=(bytes(32),))) if kind == Kind.RECEIPT else payload

    grid.tamper_provider = tamper
    lane = grid.ordered(script(answer(10, [1] * 3)))
    grid.settle()
    assert lane.complaints == ["wrong-mention"]
    assert lane.disputes[0].dispute.message.owed_pico == lane.disputes[0].receipt.message.amount_pico


@pytest.mark.parametrize("signer", [CLIENT, STRANGER])
def test_a_receipt_signed_by_another_key_is_a_breach(signer: Any) -> None:
    grid = Grid()

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        if kind == Kind.RECEIPT:
            message = msgspec.msgpack.decode(parse_record(payload).payload, type=Receipt)
            payload = sign_message(message, Role.PROVIDER, signer).record.to_bytes()
        yield kind, payload

    grid.tamper_provider = tamper
    lane = grid.ordered(script(answer(10, [1] * 3)))
    grid.settle()
    assert lane.complaints[0] == "wrong-key"
    assert not signed_by_client(grid)


def test_a_second_proposal_gets_no_second_signature() -> None:
    grid = Grid()

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        yield kind, payload
        if kind == Kind.RECEIPT:
            yield kind, resigned(payload, Receipt, change(total_ms=1))

    grid.tamper_provider = tamper
    grid.ordered(script(answer(10, [1] * 3)))
    grid.settle()
    assert len(signed_by_client(grid)) == 1


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (Kind.REFUSAL, b"\xff", "protocol-violation"),
        (Kind.REFUSAL, b"\x93\xa1\xff\xa0\x00", "protocol-violation"),
        (Kind.HEAD, b"\xff", "protocol-violation"),
        (Kind.METER, b"\xff", "malformed"),
        (Kind.METER, b"\x93\xa1\xff\xc4\x00\x90", "malformed"),
        (Kind.RECEIPT, b"", "malformed"),
        (Kind.CHUNK, b"x", "protocol-violation"),
        (Kind.ORDER, b"", "protocol-violation"),
        (77, b"", "protocol-violation"),
    ],
)
def test_nonsense_from_the_provider_is_a_breach_and_never_raises(kind: int, payload: bytes, code: str) -> None:
    grid = Grid()
    lane = grid.ordered(script([]))
    lane.to_client.append((kind, payload))
    grid.step_client(lane)
    assert lane.complaints[0] == code
    assert lane.buyer.state is BuyerState.BREACHED


# -- a client that lies -------------------------------------------------------------------------------------------


VOUCHER_LIES: list[tuple[str, Callable[[Any], Any]]] = [
    ("usage", change(usage=usage(10, 1))),
    ("amount", change(amount_pico=0)),
    ("tick", change(tick=9)),
    ("meter", change(meter=bytes(32))),
    ("order", change(order_number=9)),
    ("channel", change(channel=bytes(32))),
]


@pytest.mark.parametrize("lie", [x[1] for x in VOUCHER_LIES], ids=[x[0] for x in VOUCHER_LIES])
def test_a_wrong_voucher_ends_the_order(lie: Callable[[Any], Any]) -> None:
    grid = Grid()

    def tamper(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        if kind == Kind.VOUCHER:
            voucher = verify_record(parse_record(payload), Voucher, {Role.CLIENT: CLIENT.public_key})
            payload = sign_message(lie(voucher.message), Role.CLIENT, CLIENT).record.to_bytes()
        yield kind, payload

    grid.tamper_client = tamper
    lane = grid.ordered(script(answer(10, [1] * 40)))
    grid.settle()
    assert isinstance(grid.violations[0], ProtocolViolation)
    assert lane.seller is not None and lane.seller.state is SellerState.SUSPENDED
    assert lane.seller.receipt is None
    assert lane.sent.output_tokens <= 16
    assert lane.engine.over


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.VOUCHER, b"\xff"),
        (Kind.COUNTERSIGNATURE, b"\xff"),
        (Kind.DISPUTE, b""),
        (Kind.CANCEL, b"x"),
        (99, b""),
    ],
)
def test_nonsense_from_the_client_raises(kind: int, payload: bytes) -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(10, [1] * 40)))
    assert lane.seller is not None
    with pytest.raises((ProtocolViolation, InvalidRecord)):
        lane.seller.message(kind, payload, NOW_MS)
    assert lane.seller.state is SellerState.ASKED


def test_another_receipt_is_no_countersignature() -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(10, [1] * 3)))
    while "engine" in grid.enabled(lane):
        grid.step_engine(lane)
    assert lane.seller is not None and lane.seller.receipt is not None
    other = msgspec.structs.replace(lane.seller.receipt.message, amount_pico=0)
    forged = sign_message(other, Role.CLIENT, CLIENT)
    with pytest.raises(ProtocolViolation):
        lane.seller.message(Kind.COUNTERSIGNATURE, forged.record.to_bytes(), NOW_MS)
    unsigned = lane.seller.receipt.record.to_bytes()
    with pytest.raises(InvalidRecord):
        lane.seller.message(Kind.COUNTERSIGNATURE, unsigned, NOW_MS)
    wrong = lane.seller.receipt.countersigned(Role.CLIENT, STRANGER).record.to_bytes()
    with pytest.raises(InvalidRecord):
        check_countersignature(lane.seller.receipt, wrong, grid.provider)
    assert lane.seller.state is SellerState.PROPOSED


# -- the tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SellerState)
@pytest.mark.parametrize("event", SellerEvent)
def test_seller_table_is_closed(state: SellerState, event: SellerEvent) -> None:
    lane = Grid().ordered(script([]))
    assert lane.seller is not None
    lane.seller.state = state
    following = SELLER_TRANSITIONS.get((state, event))
    if following is None:
        with pytest.raises(ProtocolViolation):
            lane.seller._move(event)
        assert lane.seller.state is state
    else:
        lane.seller._move(event)
        assert lane.seller.state is following


@pytest.mark.parametrize("state", BuyerState)
@pytest.mark.parametrize("event", BuyerEvent)
def test_buyer_table_is_closed(state: BuyerState, event: BuyerEvent) -> None:
    lane = Grid().ordered(script([]))
    lane.buyer.state = state
    following = BUYER_TRANSITIONS.get((state, event))
    if following is None:
        with pytest.raises(ProtocolViolation):
            lane.buyer._move(event)
    else:
        lane.buyer._move(event)
        assert lane.buyer.state is following


def test_a_client_that_is_done_may_not_cancel() -> None:
    _, lane = run(answer(10, [1]))
    assert lane.seller is not None and lane.seller.state is SellerState.SETTLED
    with pytest.raises(ProtocolViolation):
        lane.seller.message(Kind.CANCEL, b"", NOW_MS)


# -- taking orders ------------------------------------------------------------------------------------------------


def full_books() -> ChannelBooks:
    grid = Grid()
    grid.place(script([]))
    return grid.client


def placed(offer: Any = None, books: ChannelBooks | None = None, **changes: Any) -> Any:
    offer = offer or make_offer()
    body = metered_body({"model": MODEL, "messages": [], "max_tokens": 10})
    fields = parse_request(CHAT, body)
    defaults: dict[str, Any] = {"endpoint": CHAT, "now_ms": NOW_MS, "first_token_timeout_ms": 1000}
    arguments = {**defaults, **changes}
    endpoint = arguments.pop("endpoint")
    return place_order(
        books or make_books(make_channel(make_offer())),
        offer,
        arguments.pop("fields", fields),
        endpoint,
        body,
        key=CLIENT,
        commitment_key=bytes(32),
        **arguments,
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"offer": make_offer(currency="USD")}, "wrong-currency"),
        ({"offer": make_offer(provider=STRANGER.public_key.raw)}, "unknown-offer"),
        ({"endpoint": "/v1/embeddings"}, "unknown-endpoint"),
        ({"now_ms": NOW_MS + 3_600_001}, "offer-expired"),
        ({"now_ms": NOW_MS + 91 * 86_400_000, "offer": make_offer(valid_until_ms=2 * NOW_MS)}, "channel-expired"),
        ({"max_amount_pico": 1}, "over-budget"),
        ({"fields": parse_request(CHAT, b'{"model": "x"}')}, "unknown-model"),
        (
            {"books": full_books()},
            "too-many-open-orders",
        ),
        ({"books": make_books(make_channel(make_offer(credit_pico=1)))}, "credit-exhausted"),
    ],
)
def test_orders_that_are_not_placed(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        placed(**changes)
    assert refused.value.code == code


ORDER_LIES: list[tuple[str, Callable[[Any], Any], str]] = [
    ("clock", change(ordered_ms=NOW_MS - 130_000), "clock-skew"),
    ("clock ahead", change(ordered_ms=NOW_MS + 130_000, first_token_deadline_ms=NOW_MS + 140_000), "clock-skew"),
    ("offer", change(offer=bytes(32)), "unknown-offer"),
    ("model", change(model="gpt-9"), "unknown-model"),
    ("endpoint", change(endpoint="/v1/audio"), "unknown-endpoint"),
    ("commitment", change(request_commitment=bytes(32)), "commitment"),
    ("output cap", change(max_output_tokens=9), "order-caps"),
    ("amount cap", change(max_amount_pico=5), "order-caps"),
    ("no time", change(first_token_deadline_ms=NOW_MS), "order-caps"),
    ("credit", change(max_amount_pico=10**14), "credit-exhausted"),
]


@pytest.mark.parametrize(("lie", "code"), [x[1:] for x in ORDER_LIES], ids=[x[0] for x in ORDER_LIES])
def test_orders_that_are_refused(lie: Callable[[Any], Any], code: str) -> None:
    offer = make_offer()
    books = make_books(make_channel(offer))
    buyer, _ = placed(offer)
    body = metered_body({"model": MODEL, "messages": [], "max_tokens": 10})
    order = sign_message(lie(buyer.order.message), Role.CLIENT, CLIENT)
    opening = OrderOpening(order=order.record.to_bytes(), commitment_key=bytes(32), body_bytes=len(body))
    signed, opening = verify_order(opening.to_bytes(), books)
    with pytest.raises(Refused) as refused:
        accept_order(books, signed, opening, body, offer, key=PROVIDER, now_ms=NOW_MS)
    assert refused.value.code == code
    assert (books.open_orders, books.reserved_pico) == (0, 0)


def test_a_refused_order_is_closed_at_the_client() -> None:
    grid = Grid()
    lane = grid.place(script([]))
    lane.to_client.append((Kind.REFUSAL, Refusal(code="busy", message="full").to_bytes()))
    grid.step_client(lane)
    assert lane.buyer.state is BuyerState.REFUSED
    assert (grid.client.open_orders, grid.client.reserved_pico) == (0, 0)


def test_an_order_of_a_stranger_is_invalid() -> None:
    buyer, _ = placed()
    order = sign_message(buyer.order.message, Role.CLIENT, STRANGER)
    opening = OrderOpening(order=order.record.to_bytes(), commitment_key=bytes(32), body_bytes=2)
    books = make_books(make_channel(make_offer()))
    with pytest.raises(InvalidRecord):
        verify_order(opening.to_bytes(), books)
    assert books.last_order_number == 0


# -- any history --------------------------------------------------------------------------------------------------


def random_engine(random: Random) -> Engine:
    """An engine that does anything."""
    prompt = random.randint(1, 60)
    counts = [random.choice((1, 1, 1, 2, 3, 20, 40)) for _ in range(random.randint(0, 40))]
    events = answer(prompt, counts, cached=random.choice((0, 0, prompt)))
    match random.randint(0, 9):
        case 0:
            return script(events[: random.randint(0, len(events))], random)
        case 1:
            return script(events[: random.randint(0, len(events))], random, fails=True)
        case 2:
            return script([b'{"error": {}}'], random, status=random.choice((400, 404, 429, 500, 503)))
        case 3:
            at = random.randint(0, len(events) - 1)
            odd = random.choice((b"data: nonsense\n\n", sse({"error": {"message": "x"}}), sse("[DONE]")))
            return script([*events[:at], odd, *events[at:]], random)
    return script(events, random)


def random_history(seed: int, *, after: Callable[[Grid, Random], None]) -> Grid:
    """Up to six orders on one channel, everything in any order, cancelled or cut anywhere."""
    random = Random(seed)
    grid = Grid(window=16, max_open_orders=3)
    for _ in range(random.randint(1, 6)):
        while random.random() < 0.7:
            try:
                grid.place(random_engine(random), max_tokens=random.choice((4000, 4000, 30)))
            except Refused as refused:
                assert refused.code == "too-many-open-orders"
                break
        for _ in range(random.randint(0, 60)):
            after(grid, random)
            live = [(x, name) for x in grid.lanes.values() for name in grid.enabled(x)]
            if grid.to_provider and random.random() < 0.5:
                grid.step_provider()
            elif live:
                lane, name = random.choice(live)
                grid.step(lane, name)
            if random.random() < 0.02 and grid.lanes:
                grid.cancel(random.choice(list(grid.lanes.values())))
        if random.random() < 0.3:
            grid.lose_link()
            grid.resume()
    grid.settle(random)
    if grid.never_signs or grid.violations:
        return grid
    grid.lose_link()
    grid.resume()
    return grid


def nothing(grid: Grid, random: Random) -> None:
    pass


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**64))
def test_an_honest_pair_always_agrees(seed: int) -> None:
    grid = random_history(seed, after=nothing)
    assert not grid.violations
    assert not [d for lane in grid.lanes.values() for d in lane.complaints]
    assert_equal_books(grid)
    verdict = audit(grid)
    assert verdict.clean, verdict.findings
    billed = {r.message.order_number: r.message for r in receipts(grid.client_ledger)}
    for lane in grid.lanes.values():
        receipt = billed.get(lane.number)
        if receipt is None:
            assert lane.seller is None
            continue
        assert receipt.usage.output_tokens <= lane.sent.output_tokens
        if receipt.status in (Status.INTERRUPTED, Status.UNACKNOWLEDGED):
            assert receipt.usage.output_tokens <= lane.buyer.vouched.output_tokens
        ahead = receipt.usage.output_tokens - lane.buyer.usage.output_tokens
        assert ahead <= 40  # a window, or one event larger than it
        if lane.settled:
            assert ahead <= 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64))
def test_a_client_that_never_signs_costs_one_window_in_all(seed: int) -> None:
    random = Random(seed)
    grid = Grid(window=16)
    grid.never_signs = True
    lane = grid.ordered(script(answer(10, [random.choice((1, 2, 3)) for _ in range(60)]), random))
    grid.settle(random)
    assert lane.sent.output_tokens <= 16
    assert grid.provider.total_pico == 0
    assert not grid.provider.may_open(1)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**64))
def test_one_flipped_byte_never_gets_a_wrong_signature(seed: int) -> None:
    random = Random(seed)
    grid = Grid(window=16)
    flips = {random.randint(0, 20): random.random() for _ in range(2)}
    count = 0

    def flip(kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        nonlocal count
        share = flips.get(count)
        count += 1
        if share is not None and payload:
            at = int(share * len(payload))
            payload = payload[:at] + bytes([payload[at] ^ (1 << random.randint(0, 7))]) + payload[at + 1 :]
        yield kind, payload

    grid.tamper_provider = flip
    lane = grid.ordered(script(answer(10, [1] * 40)))
    grid.settle()
    # Whatever was signed states what this side counted, for what the provider itself signed.
    for signed in signed_by_client(grid):
        assert isinstance(signed.message, Voucher | Receipt)
        assert signed.message.usage.output_tokens <= lane.buyer.usage.output_tokens
        if isinstance(signed.message, Receipt):
            assert signed.id in {r.id for r in receipts(grid.provider_ledger)}


def test_records_of_one_side_are_readable_by_the_other() -> None:
    grid, _ = run(answer(10, [1] * 40))
    for signed in grid.client_ledger:
        record: Record = parse_record(signed.record.to_bytes())
        assert record == signed.record and record.id == signed.id
