"""A batch order between its two machines: counts, window, endings and the receipt of several requests."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.acceptance import accept_batch
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.batch import batch_commitment, request_key
from p2pgrid.proto.commitment import request_commitment
from p2pgrid.proto.countersigning import check_resumed
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import BatchTerms, Meter, Receipt, RequestLine, Status, Usage, Voucher
from p2pgrid.proto.metered_order import VOUCHER_TIMEOUT_MS
from p2pgrid.proto.order_states import BuyerState, SellerState
from p2pgrid.proto.pricing import price_of
from p2pgrid.proto.record import Role, encode_payload, parse_message, parse_record, sign_message
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import RequestEnded, RequestHead, RequestRefused
from tests.proto.batch_rig import KEY, BatchRig, body_of
from tests.proto.machine_trace import with_fields
from tests.proto.machine_vectors import short
from tests.proto.simulation import CLIENT, PROVIDER, TARIFF, answer, final_events, first_event, sse, token_event, usage


def started(count: int = 2, **rig: object) -> tuple[BatchRig, list[AskedRequest]]:
    """A batch order with some requests at the engine, all of which have answered with 200."""
    grid = BatchRig(**rig)  # type: ignore[arg-type]
    asked = [grid.ask(text=f"Labas {i}") for i in range(count)]
    grid.settle()
    for index in range(count):
        grid.head(index)
    grid.settle()
    return grid, [one for one in asked if one is not None]


def ended(grid: BatchRig) -> Receipt:
    grid.close()
    grid.settle()
    assert not grid.complaints()
    return grid.receipt


# -- how it goes well ----------------------------------------------------------------------------------------------


def test_two_requests_share_a_receipt() -> None:
    grid, asked = started()
    grid.engine(0, *answer(10, [3], cached=4))
    grid.ends(0)
    grid.engine(1, *answer(7, [2, 3]))
    grid.ends(1)
    grid.settle()
    assert [one.usage for one in asked] == [usage(10, 3, 4), usage(7, 5)]
    receipt = ended(grid)
    assert receipt.status is Status.COMPLETED
    assert receipt.usage == usage(17, 8, 4) and receipt.amount_pico == price_of(TARIFF, usage(17, 8, 4))
    assert [(line.status, line.usage, line.finish_reason) for line in receipt.requests] == [
        (Status.COMPLETED, usage(10, 3, 4), "stop"),
        (Status.COMPLETED, usage(7, 5), "stop"),
    ]
    keys = [request_key(KEY, index) for index in range(2)]
    bodies = [body_of(text=f"Labas {i}") for i in range(2)]
    commitments = [request_commitment(key, body) for key, body in zip(keys, bodies, strict=True)]
    assert [line.request_commitment for line in receipt.requests] == commitments
    assert receipt.response_commitment == batch_commitment(line.response_commitment for line in receipt.requests)
    assert grid.sold.open_orders == grid.bought.open_orders == 0
    assert not grid.audit().findings


def test_one_order_one_receipt_and_no_voucher_for_short_answers() -> None:
    """What is signed for sixteen requests: an order and a receipt, however many they are."""
    grid, _ = started(16, requests=16, window=256, output=32)
    for index in range(16):
        grid.engine(index, *answer(10, [4]))
        grid.ends(index)
    assert len(ended(grid).requests) == 16
    assert [type(signed.message).__name__ for signed in grid.client_ledger] == ["Order", "Receipt"]


def test_answers_gather_and_leave_together() -> None:
    grid, _ = started(1, window=256)
    grid.engine(0, *answer(10, [1] * 8)[:-1])
    assert not grid.to_client
    grid.engine(0, sse("[DONE]"))
    grid.ends(0)
    assert [kind for kind, _ in grid.to_client] == [Kind.PART]


def test_answers_in_step_are_each_sent_once() -> None:
    grid, asked = started(4, window=256)
    events = [answer(10, [1] * 8) for _ in asked]
    for step in range(len(events[0])):
        for index, one in enumerate(events):
            grid.engine(index, one[step])
    assert not grid.to_client
    for index in range(4):
        grid.ends(index)
        assert [kind for kind, _ in grid.to_client] == [Kind.PART] * (index + 1)
    assert ended(grid).usage == usage(40, 32)


def test_what_is_gathered_leaves_in_time() -> None:
    grid, asked = started(1, window=256)
    grid.engine(0, first_event(10), token_event(10, 0, 1))
    assert grid.sale.deadline_ms() == grid.now_ms + 100
    grid.clock(100)
    grid.settle()
    assert asked[0].usage == usage(10, 1)


def test_the_window_counts_all_requests_together() -> None:
    grid, _ = started(2, window=16)
    grid.engine(0, first_event(5), token_event(5, 0, 8))
    assert not grid.to_client
    grid.engine(1, first_event(5), token_event(5, 0, 8))
    assert [kind for kind, _ in grid.to_client] == [Kind.PART, Kind.PART, Kind.METER]
    grid.engine(0, token_event(5, 8, 1), token_event(5, 9, 8))
    grid.clock(100)
    assert grid.sale.state is SellerState.HELD and not grid.sale.wants_engine
    grid.settle()
    assert grid.sale.state is SellerState.STREAMING
    for index, count in ((0, 17), (1, 8)):
        grid.engine(index, *final_events(5, count))
        grid.ends(index)
    assert ended(grid).usage == usage(10, 25)
    meters = [s.message for s in grid.client_ledger if isinstance(s.message, Meter)]
    assert [meter.usage for meter in meters] == [usage(10, 16), usage(10, 25)]
    assert not grid.audit().findings


def test_a_request_may_join_while_others_run_and_after_they_ended() -> None:
    grid, _ = started(1)
    grid.engine(0, *answer(10, [3]))
    grid.ends(0)
    grid.settle()
    assert grid.ask(text="again") is not None
    grid.settle()
    grid.head(1)
    grid.engine(1, *answer(3, [1]))
    grid.ends(1)
    assert len(ended(grid).requests) == 2


def test_a_batch_without_requests_owes_nothing() -> None:
    grid = BatchRig()
    receipt = ended(grid)
    assert (receipt.amount_pico, receipt.requests, receipt.usage) == (0, (), Usage())
    assert not grid.audit().findings


# -- one request ends otherwise ------------------------------------------------------------------------------------


def fails(grid: BatchRig, _: AskedRequest) -> None:
    grid.fails(1)


def breaks_off(grid: BatchRig, _: AskedRequest) -> None:
    grid.ends(1)


def contradicts(grid: BatchRig, _: AskedRequest) -> None:
    grid.engine(1, sse({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 99}}))


def talks_nonsense(grid: BatchRig, _: AskedRequest) -> None:
    grid.engine(1, b"data: []\n\n")


def is_cancelled(grid: BatchRig, asked: AskedRequest) -> None:
    grid.clock(100)
    grid.settle()
    grid.cancel(asked)


ENDINGS: list[tuple[Callable[[BatchRig, AskedRequest], None], Status]] = [
    (fails, Status.FAILED),
    (breaks_off, Status.FAILED),
    (contradicts, Status.FAILED),
    (talks_nonsense, Status.FAILED),
    (is_cancelled, Status.CANCELLED),
]


@pytest.mark.parametrize(("end", "status"), ENDINGS, ids=lambda one: getattr(one, "__name__", ""))
@pytest.mark.parametrize("tokens", [3, 8, 11])
def test_one_request_ends_alone(end: Callable[[BatchRig, AskedRequest], None], status: Status, tokens: int) -> None:
    """Under each ending the other request is billed whole, and this one by the refund rule; metered before or not."""
    grid, asked = started()
    grid.engine(1, first_event(9), token_event(9, 0, tokens))
    grid.engine(0, first_event(10))
    end(grid, asked[1])
    grid.settle()
    assert asked[1].ended is status
    grid.engine(0, *answer(10, [3])[1:])
    grid.ends(0)
    receipt = ended(grid)
    assert [line.status for line in receipt.requests] == [Status.COMPLETED, status]
    billed = usage(19, 3 + tokens) if status is Status.CANCELLED else usage(10, 3)
    assert receipt.usage == billed and receipt.amount_pico == price_of(TARIFF, billed)
    assert not grid.audit().findings


def test_what_was_metered_of_a_failed_request_is_taken_back_at_once() -> None:
    """A link that is lost later bills the last voucher: the failed request must be out of it by then."""
    grid, _ = started()
    grid.engine(1, first_event(9), token_event(9, 0, 8))
    grid.engine(0, first_event(10), token_event(10, 0, 2))
    grid.clock(100)
    grid.settle()
    grid.fails(1)
    assert [kind for kind, _ in grid.to_client] == [Kind.REQUEST_ENDED, Kind.METER]
    grid.settle()
    vouched = [s.message for s in grid.client_ledger if isinstance(s.message, Voucher)]
    assert [voucher.usage for voucher in vouched] == [usage(19, 10), usage(10, 2)]


def test_an_order_that_is_broken_off_before_the_lower_voucher_came_goes_by_the_one_before() -> None:
    """The provider bills what it can prove; the client signs, since its last voucher was on its way."""
    grid, _ = started()
    grid.engine(1, first_event(9), token_event(9, 0, 8))
    grid.engine(0, first_event(10), token_event(10, 0, 2))
    grid.clock(100)
    grid.settle()
    grid.fails(1)
    while grid.to_client:
        grid.tell_client(*grid.to_client.popleft())
    assert [kind for kind, _ in grid.to_provider] == [Kind.VOUCHER]
    grid._run_provider(grid.sale.interrupt(grid.now_ms))
    grid.settle()
    assert not grid.complaints()
    assert (grid.receipt.status, grid.receipt.usage) == (Status.INTERRUPTED, usage(19, 10))
    assert not grid.audit().findings


@pytest.mark.parametrize(("http", "status"), [(400, Status.REFUSED), (500, Status.FAILED)])
def test_the_engine_refuses_one_request(http: int, status: Status) -> None:
    grid = BatchRig()
    asked = [grid.ask(), grid.ask()]
    grid.settle()
    grid.head(0, http)
    grid.engine(0, b'{"error": {"message": "too long"}}')
    grid.ends(0)
    grid.head(1)
    grid.engine(1, *answer(4, [2]))
    grid.ends(1)
    receipt = ended(grid)
    assert [line.status for line in receipt.requests] == [status, Status.COMPLETED]
    assert receipt.usage == usage(4, 2) and asked[0] is not None and asked[0].head is not None
    assert asked[0].head.status == http and not grid.audit().findings


def test_an_answer_without_a_token_is_empty() -> None:
    grid, asked = started()
    grid.engine(0, first_event(10), *final_events(10, 0))
    grid.ends(0)
    grid.engine(1, *answer(4, [2]))
    grid.ends(1)
    receipt = ended(grid)
    assert asked[0].ended is Status.EMPTY and receipt.usage == usage(4, 2)


def test_a_request_without_a_token_in_time_is_late_and_the_others_go_on() -> None:
    grid = BatchRig(timeout_ms=1000)
    grid.ask()
    grid.settle()
    grid.head(0)
    grid.clock(600)
    grid.ask()
    grid.settle()
    grid.head(1)
    grid.clock(400)
    assert grid.aborted == {0}
    grid.engine(1, *answer(4, [2]))
    grid.ends(1)
    assert [line.status for line in ended(grid).requests] == [Status.LATE, Status.COMPLETED]


def test_a_token_that_comes_too_late_does_not_leave() -> None:
    grid = BatchRig(timeout_ms=1000)
    asked = grid.ask()
    grid.settle()
    grid.head(0)
    grid.now_ms += 1000
    grid.engine(0, *answer(4, [2]))
    grid.ends(0)
    assert [line.status for line in ended(grid).requests] == [Status.LATE]
    assert asked is not None and asked.usage.output_tokens == 0


REFUSED = [
    ("bad-request", body_of().replace(b"smollm2", b"another")),
    ("bad-request", b"no JSON"),
    ("not-metered", b'{"model": "smollm2-135m"}'),
    ("unsupported", b'{"model": "smollm2-135m", "priority": 1}'),
    ("order-caps", body_of(33)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "body"), REFUSED)
def test_a_request_is_refused_alone(code: str, body: bytes) -> None:
    grid, asked = started(1, requests=2, output=16)
    grid.tell_provider(Kind.REQUEST, body)
    kind, payload = grid.to_client.popleft()
    assert (kind, parse_frame(payload, RequestRefused).code) == (Kind.REQUEST_REFUSED, code)
    grid.engine(0, *answer(10, [3]))
    grid.ends(0)
    assert len(ended(grid).requests) == 1 and asked[0].usage == usage(10, 3)


def test_the_shell_has_no_room_for_a_request() -> None:
    grid = BatchRig()
    asked = grid.ask()
    kind, payload = grid.to_provider[0]
    grid.tell_provider(kind, payload)
    actions = grid.sale.request(grid.to_provider[1][1], grid.now_ms, Refused("busy", "full."), 1000)
    assert [type(action).__name__ for action in actions] == ["Send"]
    grid.to_provider.clear()
    grid._run_provider(actions)
    grid.settle()
    assert asked is not None and asked.refusal is not None
    assert (asked.refusal.code, asked.refusal.retry_after_ms) == ("busy", 1000)
    assert ended(grid).requests == ()


# -- the whole order ends ------------------------------------------------------------------------------------------


def test_no_voucher_comes_for_a_full_window() -> None:
    grid, _ = started(2, window=16)
    grid.engine(0, first_event(5), token_event(5, 0, 8))
    grid.clock(100)
    grid.settle()
    grid.engine(1, first_event(5), token_event(5, 0, 8), token_event(5, 8, 9))
    assert grid.sale.state is SellerState.HELD
    grid.clock(VOUCHER_TIMEOUT_MS)
    grid.settle()
    assert (grid.receipt.status, grid.receipt.usage, grid.receipt.requests) == (
        Status.UNACKNOWLEDGED,
        usage(5, 8),
        (),
    )
    assert not grid.audit().findings


def test_an_engine_past_the_caps_ends_the_order_by_voucher() -> None:
    grid, _ = started(2, requests=2, output=8)
    grid.engine(0, first_event(5), token_event(5, 0, 8))
    grid.clock(100)
    grid.settle()
    grid.engine(1, first_event(5), token_event(5, 0, 9))
    grid.settle()
    assert (grid.receipt.status, grid.receipt.usage) == (Status.INTERRUPTED, usage(5, 8))
    assert grid.aborted == {0, 1} and not grid.audit().findings


def test_a_lost_link_bills_what_was_vouched_for() -> None:
    grid, _ = started(2, window=16)
    grid.engine(0, first_event(5), token_event(5, 0, 8))
    grid.clock(100)
    grid.settle()
    grid.engine(1, first_event(6), token_event(6, 0, 7))
    proposal = grid.lose_link()
    assert proposal is not None and proposal.message.usage == usage(5, 8)
    assert grid.sale.state is SellerState.SUSPENDED and grid.buyer.state is BuyerState.LOST
    receipt, dispute = check_resumed(
        grid.bought,
        proposal.record,
        grid.buyer.order,
        TARIFF,
        vouched=grid.buyer.vouched,
        delivered=grid.buyer.usage,
        key=CLIENT,
        now_ms=grid.now_ms,
    )
    assert dispute is None and Role.CLIENT in receipt.signers


def test_the_prompts_that_no_voucher_knows_stay_at_risk() -> None:
    """Rule 8.2: of a batch that was broken off, all prompts but those billed may have been read."""
    grid, _ = started(2, window=16, requests=4, prompt=100, output=32)
    grid.engine(0, first_event(5), token_event(5, 0, 8))
    grid.clock(100)
    grid.settle()
    proposal = grid.lose_link()
    assert proposal is not None
    for books in (grid.sold, grid.bought):
        books.settle(proposal.message)
        unsigned = price_of(TARIFF, usage(400 - 5, 16))
        assert books.at_risk_pico(unsigned, grid.now_ms) == unsigned


def test_the_provider_closes_what_the_client_leaves_open() -> None:
    grid, _ = started(1, batch_ms=100)
    grid.engine(0, *answer(10, [3]))
    grid.ends(0)
    grid.settle()
    grid.clock(1099)
    assert grid.sale.is_running
    grid.clock(1)
    late = grid.ask()
    grid.settle()
    assert len(grid.receipt.requests) == 1 and late is not None and late.head is None
    assert not grid.complaints()


def test_a_request_after_the_provider_closed_is_refused() -> None:
    grid, _ = started(1, batch_ms=100)
    grid.clock(1100)
    late = grid.ask()
    grid.settle()
    assert late is not None and late.refusal is not None and late.refusal.code == "batch-closed"


def test_a_node_that_stops_ends_what_runs_and_bills_what_ended() -> None:
    grid, _ = started(2)
    grid.engine(0, *answer(10, [3]))
    grid.ends(0)
    grid.engine(1, first_event(4), token_event(4, 0, 1))
    grid._run_provider(grid.sale.engine_failed(grid.now_ms))
    grid.settle()
    assert [line.status for line in grid.receipt.requests] == [Status.COMPLETED, Status.FAILED]
    assert grid.receipt.usage == usage(10, 3) and not grid.complaints()


# -- taking it on --------------------------------------------------------------------------------------------------


def test_a_provider_takes_no_more_requests_than_its_offer_says() -> None:
    grid = BatchRig(requests=4)
    other = BatchRig(requests=2)
    grid.offer = other.offer
    message = msgspec.structs.replace(grid.buyer.order.message, offer=other.offer.id)
    order = sign_message(message, Role.CLIENT, CLIENT)
    with pytest.raises(Refused, match="offer has 2") as refused:
        accept_batch(grid.sold, order, KEY, other.offer, key=PROVIDER, now_ms=grid.now_ms)
    assert refused.value.code == "order-caps"


def test_room_for_fewer_requests_makes_a_smaller_order() -> None:
    """A client without history is trusted with one order; of the dearest nothing need be covered, so it fits whole."""
    wide = BatchRig(requests=16, prompt=100, output=32)
    assert wide.buyer.order.message.max_requests == 16
    tight = price_of(TARIFF, usage(500, 160))
    offer_terms = wide.offer.message.terms
    small = BatchRig(
        requests=16,
        prompt=100,
        output=32,
        terms=msgspec.structs.replace(offer_terms, credit_limit_pico=tight),
    )
    assert small.buyer.order.message.max_requests == 4
    with pytest.raises(Refused):
        BatchRig(prompt=100, output=32, terms=msgspec.structs.replace(offer_terms, credit_limit_pico=1))


def test_a_request_that_does_not_fit_is_not_asked() -> None:
    grid = BatchRig(requests=2)
    assert grid.ask() is not None and grid.ask() is not None and grid.ask() is None
    grid = BatchRig(requests=2)
    grid.close()
    assert grid.ask() is None


HOSTILE_TO_PROVIDER = [
    ("one request too many", lambda g: [(Kind.REQUEST, body_of())] * 5),
    ("a request after CLOSE", lambda g: [(Kind.BATCH_CLOSE, b""), (Kind.REQUEST, body_of())]),
    ("closed twice", lambda g: [(Kind.BATCH_CLOSE, b""), (Kind.BATCH_CLOSE, b"")]),
    ("CLOSE with a payload", lambda g: [(Kind.BATCH_CLOSE, b"x")]),
    ("a request of one byte", lambda g: [(Kind.REQUEST, b"{")]),
    ("a request of 16385 bytes", lambda g: [(Kind.REQUEST, b" " * 16385)]),
    ("cancels what it never sent", lambda g: [(Kind.REQUEST_CANCEL, b"\x91\x03")]),
    ("cancels index 16", lambda g: [(Kind.REQUEST_CANCEL, b"\x91\x10")]),
    ("CANCEL, which is for one request's order", lambda g: [(Kind.CANCEL, b"")]),
    ("BODY", lambda g: [(Kind.BODY, b"{}")]),
    ("ORDER", lambda g: [(Kind.ORDER, b"")]),
    ("a voucher for nothing", lambda g: [(Kind.VOUCHER, g.buyer.order.record.to_bytes())]),
    ("a countersignature of nothing", lambda g: [(Kind.COUNTERSIGNATURE, g.buyer.order.record.to_bytes())]),
]


@pytest.mark.parametrize(("_", "messages"), HOSTILE_TO_PROVIDER, ids=[name for name, _ in HOSTILE_TO_PROVIDER])
def test_what_no_honest_client_sends(_: str, messages: Callable[[BatchRig], list[tuple[int, bytes]]]) -> None:
    grid = BatchRig()
    grid.settle()
    with pytest.raises((ProtocolViolation, InvalidRecord)):
        for kind, payload in messages(grid):
            grid.tell_provider(kind, payload)


def head(index: int) -> tuple[int, bytes]:
    return Kind.REQUEST_HEAD, RequestHead(index=index, status=200, content_type="").to_bytes()


def over(index: int, status: Status = Status.FAILED) -> tuple[int, bytes]:
    return Kind.REQUEST_ENDED, RequestEnded(index=index, status=status).to_bytes()


def no(index: int) -> tuple[int, bytes]:
    return Kind.REQUEST_REFUSED, RequestRefused(index=index, code="busy", message="").to_bytes()


HOSTILE_TO_CLIENT = [
    ("a head for what was never asked", [head(1)]),
    ("two heads", [head(0), head(0)]),
    ("an answer without a head", [(Kind.PART, b"\0x")]),
    ("an empty part", [(Kind.PART, b"")]),
    ("a part of index 255", [head(0), (Kind.PART, b"\xffx")]),
    ("a part of what was refused", [no(0), (Kind.PART, b"\0x")]),
    ("a part of what is over", [head(0), over(0), (Kind.PART, b"\0x")]),
    ("over twice", [over(0), over(0)]),
    ("refused after its head", [head(0), no(0)]),
    ("a head after the refusal", [no(0), head(0)]),
    ("over as completed", [over(0, Status.COMPLETED)]),
    ("over as interrupted", [over(0, Status.INTERRUPTED)]),
    ("CHUNK", [head(0), (Kind.CHUNK, b"x")]),
    ("HEAD", [(Kind.HEAD, b"\x93\xcc\xc8\xa0")]),
    ("nonsense in the stream", [head(0), (Kind.PART, b"\0data: []\n\n")]),
    ("refused as a whole once it is under way", [head(0), (Kind.REFUSAL, b"\x93\xa4busy\xa0\x00")]),
]  # fmt: skip


@pytest.mark.parametrize(("_", "messages"), HOSTILE_TO_CLIENT, ids=[name for name, _ in HOSTILE_TO_CLIENT])
def test_what_no_honest_provider_sends(_: str, messages: list[tuple[int, bytes]]) -> None:
    grid = BatchRig()
    grid.ask()
    for kind, payload in messages:
        assert not grid.breaches
        grid.tell_client(kind, payload)
    assert [breach.code for breach in grid.breaches] == ["protocol-violation"]
    assert grid.buyer.state is BuyerState.BREACHED


def test_an_error_without_end_is_a_breach() -> None:
    grid = BatchRig()
    grid.ask()
    grid.tell_client(Kind.REQUEST_HEAD, RequestHead(index=0, status=500, content_type="").to_bytes())
    for _ in range(3):
        grid.tell_client(Kind.PART, b"\0" + bytes(30_000))
    assert grid.complaints() == ["protocol-violation"]


# -- the receipt ---------------------------------------------------------------------------------------------------


def line(index: int, **fields: object) -> Callable[[Receipt], dict[str, object]]:
    """Another line in place of one."""

    def changed(receipt: Receipt) -> dict[str, object]:
        lines = list(receipt.requests)
        lines[index] = msgspec.structs.replace(lines[index], **fields)
        return {"requests": tuple(lines)}

    return changed


def billed_again(receipt: Receipt) -> dict[str, object]:
    """A request that stands twice, and is in the sums twice."""
    lines = (*receipt.requests, receipt.requests[1])
    total = usage(14 + 4, 5 + 2)
    owed = price_of(TARIFF, total)
    commitment = batch_commitment(one.response_commitment for one in lines)
    return {
        "requests": lines,
        "usage": total,
        "amount_pico": owed,
        "channel_total_pico": owed,
        "response_commitment": commitment,
    }


def billed_though_failed(receipt: Receipt) -> dict[str, object]:
    total = usage(14, 5)
    owed = price_of(TARIFF, total)
    return {"usage": total, "amount_pico": owed, "channel_total_pico": owed}


def only_first(receipt: Receipt) -> dict[str, object]:
    first = receipt.requests[:1]
    owed = price_of(TARIFF, first[0].usage)
    return {
        "requests": first,
        "usage": first[0].usage,
        "amount_pico": owed,
        "channel_total_pico": owed,
        "response_commitment": batch_commitment([first[0].response_commitment]),
    }


WRONG_RECEIPTS: list[tuple[str, Callable[[Receipt], dict[str, object]], str]] = [
    ("a line's counts", line(0, usage=usage(10, 2)), "wrong-amount"),
    ("another request", line(0, request_commitment=bytes(32)), "wrong-count"),
    ("another answer", line(0, response_commitment=bytes(32)), "wrong-commitment"),
    ("another finish reason", line(0, finish_reason="length"), "wrong-status"),
    ("a line cancelled", line(0, status=Status.CANCELLED), "wrong-status"),
    ("late, and billed", line(0, first_token_ms=60_001), "refund-rule"),
    ("a request twice", billed_again, "wrong-commitment"),
    ("one left out", only_first, "wrong-count"),
    ("the sum of something else", lambda r: {"requests": r.requests[:1]}, "wrong-amount"),
    ("the commitment of something else", lambda _: {"response_commitment": bytes(32)}, "wrong-commitment"),
    ("no lines", lambda _: {"requests": ()}, "wrong-amount"),
    ("by voucher", lambda _: {"requests": (), "status": Status.INTERRUPTED, "finish_reason": ""}, "wrong-count"),
    ("cancelled as a whole", lambda _: {"requests": (), "status": Status.CANCELLED}, "wrong-amount"),
    ("more lines than the order has", lambda r: {"requests": r.requests * 3}, "over-caps"),
]


def proposed() -> tuple[BatchRig, bytes]:
    """Two answers are whole; their receipt is on its way, and is returned."""
    grid, _ = started(2)
    grid.engine(0, *answer(10, [3]))
    grid.ends(0)
    grid.engine(1, *answer(4, [2]))
    grid.ends(1)
    grid.close()
    while grid.to_provider:
        grid.tell_provider(*grid.to_provider.popleft())
    while grid.to_client[0][0] != Kind.RECEIPT:
        grid.tell_client(*grid.to_client.popleft())
    return grid, grid.to_client.popleft()[1]


@pytest.mark.parametrize(("_", "change", "code"), WRONG_RECEIPTS, ids=[name for name, _, _ in WRONG_RECEIPTS])
def test_a_wrong_receipt_is_disputed(_: str, change: Callable[[Receipt], dict[str, object]], code: str) -> None:
    grid, payload = proposed()
    right = parse_message(parse_record(payload), Receipt)
    wrong = msgspec.structs.replace(right, **change(right))
    grid.tell_client(Kind.RECEIPT, sign_message(wrong, Role.PROVIDER, PROVIDER).record.to_bytes())
    assert grid.complaints() == [code]
    assert not grid.breaches and grid.disputes[0].dispute.message.owed_pico <= wrong.amount_pico


def test_a_failed_request_that_is_billed_all_the_same_is_disputed() -> None:
    grid, _ = started(2)
    grid.engine(0, *answer(10, [3]))
    grid.ends(0)
    grid.engine(1, first_event(4), token_event(4, 0, 2))
    grid.clock(100)
    grid.fails(1)
    grid.close()
    while grid.to_provider:
        grid.tell_provider(*grid.to_provider.popleft())
    while grid.to_client[0][0] != Kind.RECEIPT:
        grid.tell_client(*grid.to_client.popleft())
    right = parse_message(parse_record(grid.to_client.popleft()[1]), Receipt)
    wrong = msgspec.structs.replace(right, **billed_though_failed(right))
    grid.tell_client(Kind.RECEIPT, sign_message(wrong, Role.PROVIDER, PROVIDER).record.to_bytes())
    assert grid.complaints() == ["wrong-amount"]
    assert grid.disputes[0].dispute.message.owed_pico == price_of(TARIFF, usage(10, 3))


def test_a_receipt_for_one_request_lists_none() -> None:
    buyer = short().relayed(Kind.RECEIPT, with_fields(requests=(LINE,))).buyer
    assert buyer is not None and buyer.dispute is not None
    assert buyer.dispute.message.reason == "over-caps"


# -- the form ------------------------------------------------------------------------------------------------------

LINE = RequestLine(
    status=Status.COMPLETED,
    finish_reason="\U0001f600" * 32,
    usage=Usage(prompt_tokens=8_000_000, cached_tokens=8_000_000, output_tokens=8_000_000),
    request_commitment=bytes(32),
    response_commitment=bytes(32),
    first_token_ms=10**9,
    total_ms=10**9,
)


def test_the_largest_receipt_fits() -> None:
    grid, payload = proposed()
    right = parse_message(parse_record(payload), Receipt)
    largest = msgspec.structs.replace(
        right, requests=(LINE,) * 16, model="\U0001f600" * 128, mentions=tuple(bytes([i] * 32) for i in range(16))
    )
    assert len(encode_payload(largest)) <= Receipt.max_payload_bytes
    sign_message(largest, Role.PROVIDER, PROVIDER)
    assert grid.buyer.is_open


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.UNACKNOWLEDGED])
def test_a_line_goes_by_no_voucher(status: Status) -> None:
    _, payload = proposed()
    right = parse_message(parse_record(payload), Receipt)
    for changes in ({"requests": (msgspec.structs.replace(LINE, status=status),)}, {"status": status}):
        with pytest.raises(InvalidRecord) as refused:
            sign_message(msgspec.structs.replace(right, **changes), Role.PROVIDER, PROVIDER)
        assert refused.value.code == "out-of-range"


def test_what_is_at_its_default_is_left_out_and_may_not_be_written() -> None:
    """A record of one request has the same bytes, and the same id, as before there were batches."""
    grid, payload = proposed()
    receipt = parse_message(parse_record(payload), Receipt)
    single = [
        (msgspec.structs.replace(grid.offer.message, batch=BatchTerms()), 13),
        (msgspec.structs.replace(grid.buyer.order.message, max_requests=1), 12),
        (msgspec.structs.replace(receipt, requests=()), 18),
    ]
    for message, fields in single:
        assert len(msgspec.msgpack.decode(encode_payload(message))) == fields
        written = parse_record(msgspec.msgpack.encode([message.payload_type, msgspec.msgpack.encode(message), []]))
        with pytest.raises(InvalidRecord) as refused:
            parse_message(written, type(message))
        assert refused.value.code == "malformed"
    assert len(msgspec.msgpack.decode(encode_payload(receipt))) == 19


# -- anything, in any order ----------------------------------------------------------------------------------------


class Play:
    """One batch order under a random course of events, and what was out at each moment."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.grid = BatchRig(window=16, requests=random.choice((2, 4, 16)), timeout_ms=5_000)
        self.asked: list[AskedRequest] = []
        self.plans: dict[int, list[bytes]] = {}
        self.headed: set[int] = set()
        self.over: set[int] = set()
        self.sent: dict[int, tuple[EventSplitter, TokenCounter]] = {}
        self.biggest = 0

    def step(self) -> None:
        grid, random = self.grid, self.random
        moves: list[Callable[[], None]] = [self.wait]
        if grid.to_provider:
            moves += [self.provide] * 3
        if grid.to_client:
            moves += [self.hear] * 3
        if grid.seller is not None and grid.seller.wants_engine:
            moves += [self.engine] * 6
        if not grid.buyer.is_closed:
            moves += [self.ask, self.ask]
        moves += [self.cancel] if self.asked and random.random() < 0.1 else []
        moves += [self.close] if random.random() < 0.1 else []
        random.choice(moves)()
        self.check()

    def wait(self) -> None:
        self.grid.clock(self.random.choice((1, 10, 60, 100)))

    def provide(self) -> None:
        self.grid.tell_provider(*self.grid.to_provider.popleft())

    def hear(self) -> None:
        self.grid.tell_client(*self.grid.to_client.popleft())

    def ask(self) -> None:
        asked = self.grid.ask(text=f"Labas {len(self.asked)}")
        if asked is not None:
            self.asked.append(asked)

    def close(self) -> None:
        self.grid.close()

    def cancel(self) -> None:
        self.grid.cancel(self.random.choice(self.asked))

    def engine(self) -> None:
        grid, random = self.grid, self.random
        open_ones = [i for i in grid.at_engine if i not in self.over and i not in grid.aborted]
        if not open_ones:
            return
        index = random.choice(open_ones)
        if index not in self.headed:
            self.headed.add(index)
            status = random.choice((200,) * 9 + (400, 503))
            counts = [random.choice((1, 1, 2, 5)) for _ in range(random.randrange(0, 6))]
            body = answer(random.randrange(1, 9), counts) if counts else [first_event(3), *final_events(3, 0)]
            self.plans[index] = body if status == 200 else [b"no"]
            grid.head(index, status)
            return
        plan = self.plans[index]
        if plan and random.random() < 0.95:
            grid.engine(index, plan.pop(0))
        elif plan:
            self.over.add(index)
            (grid.ends if random.random() < 0.5 else grid.fails)(index)
        else:
            self.over.add(index)
            grid.ends(index)

    def check(self) -> None:
        """What is out beyond the last voucher that the provider has: at most a window, or one event."""
        seller = self.grid.seller
        if seller is None:
            return
        ahead = seller._gone - seller._gone_acknowledged
        assert ahead <= 16 + 5
        if seller.state is SellerState.STREAMING:
            assert ahead <= 16 or not seller._waiting_events

    def finish(self) -> None:
        grid = self.grid
        grid.close()
        for _ in range(400):
            grid.settle()
            if grid.settled or grid.complaints():
                return
            for _ in range(20):
                if grid.sale.wants_engine:
                    self.engine()
            grid.clock(100)


@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.randoms(use_true_random=False), st.integers(0, 120))
def test_honest_sides_agree_whatever_happens(random: Random, steps: int) -> None:
    play = Play(random)
    for _ in range(steps):
        play.step()
    play.finish()
    grid = play.grid
    assert grid.complaints() == [] and len(grid.settled) == 1
    receipt = grid.receipt
    counted = [one for one in play.asked if one.counts]
    if receipt.status is Status.COMPLETED:
        assert receipt.amount_pico == sum(one.cost_pico() for one in counted)
    assert grid.sold.total_pico == grid.bought.total_pico == receipt.amount_pico
    assert grid.sold.open_orders == grid.bought.open_orders == 0
    assert not grid.audit().findings


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 120))
def test_a_lost_link_never_bills_more_than_was_vouched(random: Random, steps: int) -> None:
    play = Play(random)
    for _ in range(steps):
        play.step()
    grid = play.grid
    if grid.settled:
        return
    vouched = grid.buyer.vouched
    proposal = grid.lose_link()
    if proposal is None:
        if grid.seller is None or grid.seller.receipt is None:
            return
        proposal = grid.seller.receipt
    else:
        assert proposal.message.usage == vouched
    _, dispute = check_resumed(
        grid.bought,
        proposal.record,
        grid.buyer.order,
        TARIFF,
        vouched=vouched,
        delivered=grid.buyer.usage,
        key=CLIENT,
        now_ms=grid.now_ms,
    )
    assert dispute is None
