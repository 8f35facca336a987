"""Bundles that trigger one code of the audit each, and only it.

Every case is an honest dealing with one thing changed; what is signed, is signed with the real keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from p2pgrid.proto.codes import Party
from p2pgrid.proto.messages import ENDPOINTS, Meter, Offer, Order, Receipt, Status, Tariff, TariffPeriod, Usage
from p2pgrid.proto.pricing import price_of
from p2pgrid.proto.record import Record, Role, Signature, Signed, encode_payload, sign_message
from tests.proto.chains import (
    DAY_MS,
    START_MS,
    TARIFF,
    Dealings,
    LinesBundle,
    bundle_of,
    digest,
    key,
    lines_of,
    make_offer,
    sign_payload,
)

Build = Callable[[], list[LinesBundle]]


@dataclass(frozen=True, slots=True)
class AuditCase:
    """Bundles, and the one thing that an audit of them finds."""

    code: str
    party: Party
    build: Build
    options: dict[str, Any]
    """Arguments of `audit_records`."""
    proven: bool | None
    """Whether it convinces a third party; as the code usually does if None."""
    operator: str
    """The name of the operator's key, where it is at fault."""

    @property
    def name(self) -> str:
        return self.build.__name__.replace("_", "-")


CASES: list[AuditCase] = []
P, C, BOTH, UNCLEAR = Party.PROVIDER, Party.CLIENT, Party.BOTH, Party.UNCLEAR
USAGE = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=200)


def vector(
    code: str, party: Party, *, proven: bool | None = None, operator: str = "operator", **options: Any
) -> Callable[[Build], Build]:
    """Make a case of a function that builds bundles."""

    def register(build: Build) -> Build:
        CASES.append(AuditCase(code, party, build, options, proven, operator))
        return build

    return register


def both(grid: Dealings) -> list[LinesBundle]:
    provider, client = grid.bundles()
    return [bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)]


def with_line(grid: Dealings, change: Callable[[list[bytes]], list[bytes]]) -> list[LinesBundle]:
    """Both bundles, the client's lines changed."""
    provider, client = grid.bundles()
    return [bundle_of(provider, Role.PROVIDER), bundle_of(change(client), Role.CLIENT)]


def two_receipts() -> Dealings:
    grid = Dealings()
    grid.deal(output=200)
    grid.deal(output=200)
    return grid


def replaced(grid: Dealings, old: Signed, new: Record) -> list[LinesBundle]:  # type: ignore[type-arg]
    """Both bundles, one record replaced in the client's copy."""
    line = old.record.to_json_line()
    return with_line(grid, lambda lines: [new.to_json_line() if each == line else each for each in lines])


def last_receipt(grid: Dealings) -> Signed[Receipt]:
    return next(s for s in reversed(grid.client_has) if isinstance(s.message, Receipt))


# -- form and signatures ------------------------------------------------------------------------------------------


@vector("malformed", C)
def unreadable_line() -> list[LinesBundle]:
    return with_line(two_receipts(), lambda lines: [*lines[:-1], lines[-1][:-10]])


@vector("malformed", P)
def signed_nonsense() -> list[LinesBundle]:
    grid = two_receipts()
    grid.keep(sign_payload(Meter.payload_type, b"\x93\x01\x02\x03", {Role.PROVIDER: grid.provider}))
    return both(grid)


@vector("oversize", C)
def endless_line() -> list[LinesBundle]:
    return with_line(two_receipts(), lambda lines: [*lines, b"x" * 300_000])


@vector("oversize", P)
def signed_beyond_its_type() -> list[LinesBundle]:
    grid = two_receipts()
    grid.keep(sign_payload(Meter.payload_type, bytes(1025), {Role.PROVIDER: grid.provider}))
    return both(grid)


@vector("not-canonical", P)
def signed_in_another_encoding() -> list[LinesBundle]:
    grid = two_receipts()
    payload = last_receipt(grid).record.payload
    assert payload[0] == 0xDC  # array 16, two bytes of length
    longer = b"\xdd\x00\x00" + payload[1:]
    grid.keep(sign_payload(Receipt.payload_type, longer, {Role.PROVIDER: grid.provider}))
    return both(grid)


@vector("out-of-range", BOTH)
def more_cached_than_prompt() -> list[LinesBundle]:
    grid = two_receipts()
    usage = Usage(prompt_tokens=3, cached_tokens=5, output_tokens=2)
    grid.receipt(grid.order(), usage, amount_pico=7)
    return both(grid)


@vector("out-of-range", P)
def meter_without_a_price() -> list[LinesBundle]:
    grid = two_receipts()
    usage = Usage(prompt_tokens=3, cached_tokens=5, output_tokens=2)
    grid.meter(grid.order(), usage, amount_pico=7)
    return both(grid)


@vector("wrong-type", C)
def type_of_tomorrow() -> list[LinesBundle]:
    grid = two_receipts()
    grid.keep(sign_payload("/p2pgrid/tomorrow/1", b"\x90", {Role.CLIENT: grid.client}))
    return both(grid)


@vector("key-not-admissible", C)
def small_order_key() -> list[LinesBundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    sane = receipt.record.signature_of(Role.PROVIDER)
    assert sane is not None
    small = Signature(Role.PROVIDER, b"\x01" + b"\x01" + bytes(31), sane.signature)
    return replaced(grid, receipt, receipt.record.with_signature(small))


@vector("signature-missing", C)
def unsigned_order() -> list[LinesBundle]:
    grid = two_receipts()
    order = next(s for s in grid.client_has if isinstance(s.message, Order))
    return replaced(grid, order, Record(order.record.payload_type, order.record.payload, ()))


@vector("wrong-key", C)
def signed_by_a_stranger() -> list[LinesBundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    forged = sign_payload(Receipt.payload_type, receipt.record.payload, {Role.PROVIDER: key("stranger")})
    return replaced(grid, receipt, forged.record)


@vector("bad-signature", C)
def altered_payload() -> list[LinesBundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    payload = encode_payload(msgspec.structs.replace(receipt.message, amount_pico=1))
    return replaced(grid, receipt, Record(Receipt.payload_type, payload, receipt.record.signatures))


@vector("bad-signature", C)
def altered_payload_alone() -> list[LinesBundle]:
    return altered_payload()[1:]


@vector("bad-signature", C)
def altered_countersignature() -> list[LinesBundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    other = Signature(Role.CLIENT, grid.client.public_key.raw, bytes(64))
    return replaced(grid, receipt, receipt.record.with_signature(other))


# -- channel and offer --------------------------------------------------------------------------------------------


@vector("channel-id", BOTH)
def channel_id_made_up() -> list[LinesBundle]:
    grid = Dealings(channel_changes={"channel": digest("made up")})
    grid.deal(output=10)
    return both(grid)


@vector("channel-not-countersigned", P)
def channel_signed_by_one() -> list[LinesBundle]:
    grid = two_receipts()
    half = sign_message(grid.channel.message, Role.PROVIDER, grid.provider)
    grid.keep(half)
    return both(grid)


@vector("same-party", BOTH)
def dealing_with_oneself() -> list[LinesBundle]:
    grid = Dealings(client=key("provider"))
    grid.deal()
    return both(grid)


@vector("outside-channel-term", P)
def order_after_expiry() -> list[LinesBundle]:
    grid = Dealings(channel_changes={"expires_ms": START_MS + 1})
    grid.now_ms += 200_000
    grid.deal()
    return both(grid)


@vector("not-in-force", P)
def offer_run_out() -> list[LinesBundle]:
    grid = Dealings(offer_changes={"valid_until_ms": START_MS + 1})
    grid.now_ms += 200_000
    grid.deal()
    return both(grid)


@vector("not-on-offer", P)
def model_not_offered() -> list[LinesBundle]:
    grid = Dealings()
    grid.receipt(grid.order(model="huge"), USAGE)
    return both(grid)


@vector("not-on-offer", P)
def endpoint_not_offered() -> list[LinesBundle]:
    grid = Dealings()
    grid.receipt(grid.order(model="chat-only", endpoint=ENDPOINTS[1]), USAGE)
    return both(grid)


@vector("not-on-offer", P)
def offer_of_another_provider() -> list[LinesBundle]:
    grid = Dealings()
    theirs = grid.keep(sign_message(make_offer(key("other")), Role.PROVIDER, key("other")))
    grid.receipt(grid.order(offer=theirs.id), USAGE)
    return both(grid)


@vector("two-offers-one-number", P)
def two_offers() -> list[LinesBundle]:
    grid = two_receipts()
    again = sign_message(make_offer(grid.provider, operator="Someone else"), Role.PROVIDER, grid.provider)
    grid.keep(again, by="client")
    return both(grid)


@vector("two-records-one-slot", P)
def two_proposals() -> list[LinesBundle]:
    grid = two_receipts()
    other = msgspec.structs.replace(last_receipt(grid).message, finish_reason="length")
    grid.keep(sign_message(other, Role.PROVIDER, grid.provider), by="provider")
    return both(grid)


@vector("two-records-one-slot", BOTH)
def two_receipts_for_one_number() -> list[LinesBundle]:
    grid = two_receipts()
    other = msgspec.structs.replace(last_receipt(grid).message, finish_reason="length")
    grid.keep(sign_message(other, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client), by="provider")
    grid.deal()
    return both(grid)


@vector("two-records-one-slot", C)
def two_orders() -> list[LinesBundle]:
    grid = two_receipts()
    order = next(s.message for s in grid.client_has if isinstance(s.message, Order))
    other = msgspec.structs.replace(order, max_output_tokens=1)
    grid.keep(sign_message(other, Role.CLIENT, grid.client), by="provider")
    return both(grid)


@vector("two-records-one-slot", C)
def two_vouchers() -> list[LinesBundle]:
    grid = two_receipts()
    voucher = grid.vouchers[1][0].message
    other = msgspec.structs.replace(voucher, amount_pico=voucher.amount_pico + 1)
    grid.keep(sign_message(other, Role.CLIENT, grid.client), by="provider")
    return [bundle_of(lines_of(grid.client_has + grid.provider_has[-1:]), Role.PROVIDER)]


@vector("two-records-one-slot", BOTH)
def two_channels() -> list[LinesBundle]:
    grid = two_receipts()
    other = msgspec.structs.replace(grid.channel.message, credit_limit_pico=5)
    # Signed by both as well, yet nothing names it.
    signed = sign_message(other, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client)
    grid.keep(signed)
    return both(grid)


# -- counts and money ---------------------------------------------------------------------------------------------


@vector("wrong-amount", P)
def overcharged() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, amount_pico=10**9)
    grid.deal()
    return both(grid)


@vector("wrong-amount", P)
def overcharged_tick() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    grid.meter(order, USAGE, amount_pico=10**9)
    grid.receipt(order, USAGE)
    return both(grid)


@vector("wrong-amount", C)
def voucher_for_a_wrong_amount() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    meter = grid.meter(order, USAGE, by="nobody")
    grid.voucher(meter, amount_pico=3)
    grid.receipt(order, USAGE)
    return both(grid)


@vector("refund-rule", P)
def charged_for_a_failure() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, Status.FAILED, amount_pico=5)
    return both(grid)


@vector("refund-rule", P)
def charged_for_an_empty_answer() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), Usage(prompt_tokens=100))
    return both(grid)


@vector("refund-rule", P)
def charged_for_a_late_answer() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, first_token_ms=200_000, total_ms=201_000)
    return both(grid)


@vector("usage-falls", P)
def tick_falls() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    lower = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=150)
    grid.voucher(grid.meter(order, lower))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("usage-falls", C)
def voucher_falls() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    lower = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=150)
    grid.voucher(grid.meter(order, lower, by="nobody"))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("over-caps", P)
def more_output_than_ordered() -> list[LinesBundle]:
    grid = two_receipts()
    grid.finish(grid.order(max_output_tokens=150), output=400)
    return both(grid)


@vector("over-caps", P)
def dearer_than_ordered() -> list[LinesBundle]:
    grid = two_receipts()
    grid.finish(grid.order(max_amount_pico=1000))
    return both(grid)


@vector("over-caps", P)
def longer_prompt_than_ordered() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(max_prompt_tokens=99), USAGE)
    return both(grid)


@vector("prompt-count", P)
def another_prompt_count() -> list[LinesBundle]:
    grid = two_receipts()
    grid.finish(grid.order(prompt_tokens=90))
    return both(grid)


@vector("over-credit-limit", P)
def beyond_credit() -> list[LinesBundle]:
    grid = Dealings(channel_changes={"credit_limit_pico": 300_000_000})
    for _ in range(4):
        grid.deal(output=200)
    return both(grid)


@vector("beyond-window", P)
def proposal_beyond_the_window() -> list[LinesBundle]:
    grid = two_receipts()
    grid.deal(output=1000, acknowledged=2, countersign=False)
    return both(grid)


@vector("beyond-window", P)
def interrupted_beyond_the_voucher() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, msgspec.structs.replace(USAGE, output_tokens=201), Status.INTERRUPTED)
    return both(grid)


@vector("beyond-window", P)
def unacknowledged_without_a_voucher() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, Status.UNACKNOWLEDGED)
    return both(grid)


@vector("wrong-order", P)
def another_request() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, request_commitment=digest("another"))
    return both(grid)


@vector("wrong-order", P)
def another_model() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, model="chat-only")
    return both(grid)


@vector("below-meter", P)
def less_than_acknowledged() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, msgspec.structs.replace(USAGE, output_tokens=100))
    return both(grid)


@vector("wrong-voucher", C)
def voucher_for_less() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE), usage=Usage(), amount_pico=0)
    grid.receipt(order, USAGE)
    return both(grid)


@vector("wrong-voucher", UNCLEAR)
def voucher_for_an_unknown_meter() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE), meter=digest("unknown"))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("order-billed-twice", P)
def billed_twice() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.receipt(order, USAGE)
    grid.receipt(order, USAGE)
    return both(grid)


def by_the_hour(**changes: int) -> Dealings:
    """One order that a schedule makes dearer at its hour, and its receipt at that price, or another."""
    dear = msgspec.structs.replace(TARIFF, output_upm=2 * TARIFF.output_upm)
    minute = START_MS // 60_000 % 1440
    period = TariffPeriod(weekdays=127, from_minute=minute, until_minute=minute + 2, tariff=dear)
    entry = make_offer(key("provider")).models[0]
    scheduled = msgspec.structs.replace(entry, schedule=(period,))
    grid = Dealings(offer_changes={"models": (scheduled,)})
    grid.receipt(grid.order(), USAGE, **{"amount_pico": price_of(dear, USAGE), **changes})
    return grid


@vector("wrong-amount", P)
def the_day_s_price_at_night() -> list[LinesBundle]:
    return both(by_the_hour(amount_pico=price_of(TARIFF, USAGE)))


@vector("out-of-range", P)
def price_beyond_all_bounds() -> list[LinesBundle]:
    grid = Dealings()
    dear = Tariff(input_upm=10**12, cached_input_upm=10**12, output_upm=10**12)
    entry = msgspec.structs.replace(make_offer(grid.provider).models[0], tariff=dear)
    offer = grid.keep(
        sign_message(make_offer(grid.provider, sequence=2, models=(entry,)), Role.PROVIDER, grid.provider)
    )
    most = {"max_prompt_tokens": 8_000_000, "max_output_tokens": 8_000_000, "max_amount_pico": 2**63 - 1}
    usage = Usage(prompt_tokens=8_000_000, output_tokens=8_000_000)
    grid.receipt(grid.order(offer=offer.id, **most), usage, amount_pico=7)
    return both(grid)


@vector("malformed", P)
def negative_amount() -> list[LinesBundle]:
    grid = two_receipts()
    meter = msgspec.structs.replace(grid.meters[1][0].message, tick=2, amount_pico=-1)
    grid.keep(sign_payload(Meter.payload_type, msgspec.msgpack.encode(meter), {Role.PROVIDER: grid.provider}))
    return both(grid)


# -- the chain ----------------------------------------------------------------------------------------------------


@vector("receipt-gap", BOTH)
def receipt_in_nobody_s_books() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, by="nobody")
    grid.deal()
    return both(grid)


@vector("receipt-gap", C)
def several_receipts_left_out() -> list[LinesBundle]:
    grid = Dealings()
    for _ in range(5):
        grid.deal(output=10)
    kept = [s for s in grid.client_has if not isinstance(s.message, Receipt) or s.message.receipt_number not in (2, 3)]
    return [bundle_of(lines_of(kept), Role.CLIENT)]


@vector("meter-gap", BOTH)
def tick_in_nobody_s_books() -> list[LinesBundle]:
    grid = Dealings()
    order = grid.order()
    grid.meter(order, Usage(prompt_tokens=100, cached_tokens=30, output_tokens=10), by="nobody")
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("broken-link", P)
def link_to_nowhere() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, previous=digest("nowhere"))
    grid.deal()
    return both(grid)


@vector("broken-link", P)
def first_link_not_the_channel() -> list[LinesBundle]:
    grid = Dealings()
    grid.receipt(grid.order(), USAGE, previous=digest("nowhere"))
    return both(grid)


@vector("wrong-total", P)
def total_too_high() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, channel_total_pico=10**10)
    grid.deal()
    return both(grid)


@vector("time-backwards", P)
def receipt_before_its_order() -> list[LinesBundle]:
    grid = two_receipts()
    grid.now_ms += DAY_MS
    order = grid.order()
    grid.receipt(order, USAGE, issued_ms=grid.now_ms - 130_000)
    return both(grid)


@vector("time-backwards", P)
def receipts_out_of_time() -> list[LinesBundle]:
    grid = Dealings()
    first, second = grid.order(), grid.order()
    grid.receipt(first, USAGE, issued_ms=grid.now_ms + 400_000)
    grid.receipt(second, USAGE)
    return both(grid)


@vector("time-backwards", C)
def orders_out_of_time() -> list[LinesBundle]:
    grid = two_receipts()
    grid.receipt(grid.order(ordered_ms=grid.now_ms + 110_000), USAGE)
    grid.receipt(grid.order(ordered_ms=grid.now_ms - 30_000), USAGE)
    return both(grid)


# -- what is not there --------------------------------------------------------------------------------------------


@vector("record-missing", BOTH)
def order_in_nobody_s_books() -> list[LinesBundle]:
    grid = two_receipts()
    grid.finish(grid.order(by="nobody"))
    return both(grid)


@vector("record-missing", P)
def offer_left_out() -> list[LinesBundle]:
    grid = two_receipts()
    kept = [s for s in grid.provider_has if not isinstance(s.message, Offer)]
    return [bundle_of(lines_of(kept), Role.PROVIDER)]


@vector("record-missing", UNCLEAR)
def channel_left_out() -> list[LinesBundle]:
    grid = two_receipts()
    return [bundle_of(lines_of(s for s in grid.provider_has if s.id != grid.channel.id))]


@vector("left-out", C)
def receipt_left_out() -> list[LinesBundle]:
    grid = two_receipts()
    line = last_receipt(grid).record.to_json_line()
    return with_line(grid, lambda lines: [each for each in lines if each != line])


@vector("left-out", P)
def ends_early() -> list[LinesBundle]:
    grid = two_receipts()
    provider, client = grid.bundles()
    return [bundle_of(provider[:6], Role.PROVIDER), bundle_of(client, Role.CLIENT)]


@vector("left-out", C)
def own_signature_left_out() -> list[LinesBundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    half = Record(Receipt.payload_type, receipt.record.payload, receipt.record.signatures[:1])
    return replaced(grid, receipt, half)


@vector("left-out", UNCLEAR)
def left_out_by_somebody() -> list[LinesBundle]:
    grid = two_receipts()
    provider, client = grid.bundles()
    line = last_receipt(grid).record.to_json_line()
    return [bundle_of(provider, source="a"), bundle_of([each for each in client if each != line], source="b")]


# -- notes --------------------------------------------------------------------------------------------------------


@vector("awaiting-countersignature", C)
def waiting() -> list[LinesBundle]:
    grid = two_receipts()
    grid.deal(countersign=False)
    return both(grid)


@vector("awaiting-countersignature", C)
def channel_half_open() -> list[LinesBundle]:
    grid = Dealings()
    grid.keep(sign_message(grid.channel.message, Role.PROVIDER, grid.provider))
    return both(grid)


@vector("proposal-overtaken", C)
def overtaken() -> list[LinesBundle]:
    grid = two_receipts()
    grid.deal(countersign=False)
    grid.deal()
    return both(grid)


@vector("not-received", UNCLEAR)
def countersignature_lost() -> list[LinesBundle]:
    grid = two_receipts()
    provider, client = grid.bundles()
    receipt = last_receipt(grid)
    half = Record(Receipt.payload_type, receipt.record.payload, receipt.record.signatures[:1])
    provider[-1] = half.to_json_line()
    return [bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)]


@vector("voucher-not-counted", UNCLEAR)
def voucher_lost() -> list[LinesBundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    later = msgspec.structs.replace(USAGE, output_tokens=250)
    grid.voucher(grid.meter(order, later), by="client")
    grid.receipt(order, USAGE, Status.INTERRUPTED)
    return [bundle_of(lines_of(grid.client_has), Role.CLIENT)]


@vector("order-open", UNCLEAR)
def still_running() -> list[LinesBundle]:
    grid = two_receipts()
    grid.voucher(grid.meter(grid.order(), USAGE))
    return both(grid)


@vector("same-record-twice", C)
def said_twice() -> list[LinesBundle]:
    return with_line(two_receipts(), lambda lines: [*lines, lines[3], lines[5]])
