"""What stands in tests/vectors/machines.json: orders step by step, orders that are refused, what is at risk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from p2pgrid.proto.disputing import sign_dispute
from p2pgrid.proto.messages import Status, Usage
from p2pgrid.proto.wire.kinds import Kind
from tests.proto.machine_trace import Trace, chunk, last, prompt, with_fields
from tests.proto.refused_orders import refused_orders, risks
from tests.proto.simulation import CLIENT, PROVIDER, STRANGER

EIGHT = tuple(range(8))


def machine_vectors() -> dict[str, Any]:
    """Everything, with the keys that sign."""
    return {
        "provider_seed": PROVIDER.expose_seed().hex(),
        "client_seed": CLIENT.expose_seed().hex(),
        "channels": {
            str(window): {
                "offer": Trace(window=window).offer.record.to_bytes().hex(),
                "channel": Trace(window=window).channel.record.to_bytes().hex(),
            }
            for window in (16, 17)
        },
        "orders": [_played(name, play) for name, play in ORDERS.items()],
        "refused": refused_orders(),
        "risks": risks(),
    }


def _played(name: str, play: Callable[[], Trace]) -> dict[str, Any]:
    trace = play()
    return {
        "case": name,
        "window_tokens": trace.channel.message.window_tokens,
        "now_ms": trace.now_ms - trace.steps[-1]["at_ms"],
        "steps": [
            {name: value for name, value in step.items() if value not in ("", None, False, [])} for step in trace.steps
        ],
    }


def served(*events: str, window: int = 16, **changes: Any) -> Trace:
    """An order taken on, its first events under way."""
    return Trace(window=window).place(**changes).engine(*events)


def whole() -> Trace:
    trace = served(prompt(10), chunk(*EIGHT)).settle().more(chunk(*EIGHT)).settle()
    return trace.more(chunk(1, 2, 3, 4, finish="stop"), last(10, 20, 4)).ends().settle()


def short() -> Trace:
    """An answer of three tokens, proposed; the receipt is on its way."""
    return served(prompt(10), chunk(1, 2, 3, finish="stop"), last(10, 3)).ends()


def held() -> Trace:
    """A full window: 16 tokens are out, and 8 wait."""
    return served(prompt(10), chunk(*EIGHT), chunk(*EIGHT), chunk(*EIGHT))


def large() -> Trace:
    """One event larger than the window; the answer has ended."""
    return served(prompt(10), chunk(*range(40)), last(10, 40)).ends()


def two_ticks() -> Trace:
    """Two ticks, and both vouchers on their way to the provider."""
    return served(prompt(10), chunk(*EIGHT), chunk(*EIGHT)).hear()


def wrong_receipt(**fields: Any) -> Callable[[], Trace]:
    return lambda: short().relayed(Kind.RECEIPT, with_fields(**fields))


def wrong_meter(**fields: Any) -> Callable[[], Trace]:
    return lambda: served(prompt(10), chunk(*EIGHT)).relayed(Kind.METER, with_fields(**fields))


def early() -> Trace:
    """A receipt 2 where receipt 1 is due and no other order is open: a gap."""
    return short().relayed(Kind.RECEIPT, with_fields(receipt_number=2))


def status(code: int) -> Callable[[], Trace]:
    return lambda: served("no", status=code).ends().settle()


def usage(output: int, prompt_tokens: int = 10, cached: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt_tokens, cached_tokens=cached, output_tokens=output)


def later_then_earlier() -> Trace:
    trace = two_ticks()
    first, second = trace.to_provider.popleft(), trace.to_provider.popleft()
    return trace.take(*second).take(*first)


def crossing(play: Callable[[], Trace]) -> Trace:
    """A voucher that crosses the receipt."""
    trace = play()
    voucher = trace.to_provider.popleft()
    trace.clock(15_000)
    return trace.take(*voucher).settle()


def stranger_s_receipt() -> Trace:
    return short().relayed(Kind.RECEIPT, with_fields(), key=STRANGER)


ORDERS: dict[str, Callable[[], Trace]] = {
    # How orders end.
    "a whole answer": whole,
    "a window of 17: ticks of 8": lambda: served(
        prompt(1), chunk(*range(7)), chunk(7), chunk(*EIGHT), window=17
    ).settle(),
    "shorter than a tick": lambda: short().settle(),
    "an event larger than the window: the receipt waits for the voucher": lambda: large().settle(),
    "an event larger than the window, no voucher for 15 s": lambda: large().clock(14_999).clock(1).settle(),
    "a full window, then a voucher": lambda: held().settle().more(last(10, 24)).ends().settle(),
    "a full window, no voucher for 15 s": lambda: held().clock(14_999).clock(1).settle(),
    "no token in time": lambda: served(prompt(10)).clock(59_999).clock(1).settle(),
    "the first token too late": lambda: _late(served(prompt(10))),
    "the engine breaks off": lambda: served(prompt(10), chunk(1)).ends(fails=True).settle(),
    "the engine ends without [DONE]": lambda: served(prompt(10), chunk(1)).ends().settle(),
    "the engine sends an error": lambda: (
        served(prompt(10), chunk(1), 'data: {"error":{"message":"x"}}\n\n', "data: [DONE]\n\n").ends().settle()
    ),
    "a choice ends in abort": lambda: served(prompt(10), chunk(1, finish="abort"), last(10, 1)).ends().settle(),
    "the engine contradicts itself": lambda: served(prompt(10), chunk(1), last(10, 2)).settle(),
    "the engine sends no chunk": lambda: served(prompt(10), chunk(1), "data: {\n\n").settle(),
    "the engine goes past the cap": lambda: served(prompt(10), chunk(*EIGHT), chunk(*EIGHT), max_tokens=9).settle(),
    "no token at all": lambda: served(prompt(10), last(10, 0)).ends().settle(),
    **{f"HTTP {code}": status(code) for code in (103, 204, 300, 404, 499, 500, 600)},
    # CANCEL in each state.
    "CANCEL before the body's end": lambda: _cancelled(Trace().place(arrive=False).provide(1)),
    "CANCEL while ASKED": lambda: served(prompt(10)).cancel().settle(),
    "CANCEL while ASKED, too late": lambda: _late_cancel(served(prompt(10))),
    "CANCEL while STREAMING": lambda: served(prompt(10), chunk(1, 2)).hear().cancel().settle(),
    "CANCEL while HELD": lambda: _hold_back(held()).cancel().settle(),
    "CANCEL while one event is beyond the window": lambda: (
        _hold_back(served(prompt(10), chunk(*EIGHT), chunk(*range(40)))).cancel().settle()
    ),
    "CANCEL while PROPOSED": lambda: short().cancel().settle(),
    "CANCEL with a payload": lambda: served(prompt(10)).take(Kind.CANCEL, b"x"),
    "CANCEL twice": lambda: served(prompt(10)).cancel().cancel(),
    # The link lost in each state.
    "the link lost before the body's end": lambda: Trace().place(arrive=False).provide(1).lose(),
    "the link lost while ASKED": lambda: served().lose(),
    "the link lost while STREAMING": lambda: served(prompt(10), chunk(1)).lose(),
    "the link lost while HELD": lambda: held().lose(),
    "the link lost while PROPOSED": lambda: short().lose(),
    "the link lost after the countersignature left": lambda: short().hear().lose(),
    # What no honest client sends.
    "a voucher while ASKED": lambda: served().take(Kind.VOUCHER, _voucher()),
    "a voucher for an earlier tick": later_then_earlier,
    "a voucher twice": lambda: _twice(served(prompt(10), chunk(*EIGHT)).hear()),
    "a voucher with another count": lambda: (
        served(prompt(10), chunk(*EIGHT)).hear().answered(Kind.VOUCHER, with_fields(usage=usage(7)))
    ),
    "a voucher that crosses a receipt by voucher: not recorded": lambda: crossing(lambda: held().hear(5)),
    "a voucher that crosses a receipt: recorded": lambda: _crossing_completed(),
    "a dispute before the receipt": lambda: served(prompt(10)).take(Kind.DISPUTE, b""),
    "a countersignature before the receipt": lambda: served(prompt(10)).take(Kind.COUNTERSIGNATURE, _voucher()),
    "a countersignature twice": lambda: _twice(short().hear()),
    "a METER from the client": lambda: served(prompt(10)).take(Kind.METER, b""),
    # What no honest provider sends.
    "a CHUNK before HEAD": lambda: Trace().place().tell(Kind.CHUNK, b"data: {}\n\n"),
    "HEAD twice": lambda: _twice_told(served()),
    "HEAD that is none": lambda: Trace().place().tell(Kind.HEAD, b"\x90"),
    "a message after the receipt": lambda: short().hear().tell(Kind.CHUNK, b"x"),
    "a voucher from the provider": lambda: served().hear().tell(Kind.VOUCHER, b""),
    "a tick for another order": wrong_meter(order_number=2),
    "a tick for another channel": wrong_meter(channel=bytes(32)),
    "a tick too many": wrong_meter(tick=2),
    "a tick with another count": wrong_meter(usage=usage(9)),
    "a tick with another amount": wrong_meter(amount_pico=1),
    "a tick with another commitment": wrong_meter(response_commitment=bytes(32)),
    "a tick of the future": lambda: served(prompt(10), chunk(*EIGHT)).relayed(Kind.METER, _later(120_001)),
    "a tick 120 s ahead": lambda: served(prompt(10), chunk(*EIGHT)).relayed(Kind.METER, _later(120_000)),
    "a tick by a stranger": lambda: served(prompt(10), chunk(*EIGHT)).relayed(Kind.METER, with_fields(), key=STRANGER),
    "a tick before a byte of it": lambda: served(prompt(10)).hear().tell(Kind.METER, _meter()),
    # Receipts that are disputed.
    "another count": wrong_receipt(usage=usage(4), amount_pico=4_400_000, channel_total_pico=4_400_000),
    "another amount": wrong_receipt(amount_pico=1, channel_total_pico=1),
    "another commitment": wrong_receipt(response_commitment=bytes(32)),
    "another finish reason": wrong_receipt(finish_reason="length"),
    "cancelled unasked": wrong_receipt(status=Status.CANCELLED),
    "failed, and billed": wrong_receipt(status=Status.FAILED),
    "interrupted, beyond the vouchers": wrong_receipt(status=Status.INTERRUPTED),
    "billed, the first token too late": wrong_receipt(first_token_ms=60_001, total_ms=60_002),
    "completed, for nothing, though it came in time": wrong_receipt(amount_pico=0, channel_total_pico=0),
    "a mention of nothing": wrong_receipt(mentions=(bytes(32),)),
    "a receipt that is right, disputed all the same": lambda: _disputed(short()),
    # Receipts that are taken though this side saw otherwise: nothing is owed.
    "completed, for nothing, none in time": wrong_receipt(amount_pico=0, channel_total_pico=0, first_token_ms=60_001),
    "failed, for nothing, though it came": wrong_receipt(status=Status.FAILED, amount_pico=0, channel_total_pico=0),
    "late, for nothing, though it came": wrong_receipt(status=Status.LATE, amount_pico=0, channel_total_pico=0),
    # Receipts that the chain cannot go on with.
    "a receipt for another order": wrong_receipt(order=bytes(32)),
    "a receipt of another channel": wrong_receipt(channel=bytes(32)),
    "a receipt with another link": wrong_receipt(previous=bytes(32)),
    "a receipt with another total": wrong_receipt(channel_total_pico=1),
    "a receipt after a gap": early,
    "a receipt of the future": lambda: short().relayed(Kind.RECEIPT, _issued(120_001)),
    "a receipt by a stranger": stranger_s_receipt,
    "a receipt before HEAD": lambda: _cut_off(Trace().place()),
}


def _late(trace: Trace) -> Trace:
    trace.now_ms += 60_000
    return trace.more(chunk(1)).settle()


def _late_cancel(trace: Trace) -> Trace:
    trace.now_ms += 60_000
    return trace.cancel().settle()


def _hold_back(trace: Trace) -> Trace:
    """The client has heard all, and its vouchers are lost in time."""
    trace.hear()
    trace.to_provider.clear()
    return trace


def _twice(trace: Trace) -> Trace:
    message = trace.to_provider.popleft()
    return trace.take(*message).take(*message)


def _twice_told(trace: Trace) -> Trace:
    message = trace.to_client.popleft()
    return trace.tell(*message).tell(*message)


def _crossing_completed() -> Trace:
    trace = served(prompt(10), chunk(*EIGHT)).hear()
    voucher = trace.to_provider.popleft()
    return trace.more(chunk(1, finish="stop"), last(10, 9)).ends().take(*voucher).settle()


def _disputed(trace: Trace) -> Trace:
    """The client's dispute comes in place of its countersignature."""
    trace.hear()
    trace.to_provider.clear()
    assert trace.seller is not None and trace.seller.receipt is not None
    terms, now_ms = trace.channel.message, trace.now_ms
    dispute = sign_dispute(
        trace.seller.receipt, terms, reason="quality", statement="", owed_pico=1, key=CLIENT, now_ms=now_ms
    )
    return trace.take(Kind.DISPUTE, dispute.record.to_bytes())


def _cut_off(trace: Trace) -> Trace:
    return trace.ends(fails=True).settle()


def _voucher() -> bytes:
    return served(prompt(10), chunk(*EIGHT)).hear().to_provider[0][1]


def _meter() -> bytes:
    trace = served(prompt(10), chunk(*EIGHT))
    return next(payload for kind, payload in trace.to_client if kind == Kind.METER)


def _later(ms: int) -> Callable[[Any], Any]:
    return lambda meter: msgspec.structs.replace(meter, metered_ms=meter.metered_ms + ms)


def _issued(ms: int) -> Callable[[Any], Any]:
    return lambda receipt: msgspec.structs.replace(receipt, issued_ms=receipt.issued_ms + ms)


def _cancelled(trace: Trace) -> Trace:
    """CANCEL reaches the provider before the body."""
    trace.to_provider.clear()
    return trace.cancel().settle()
