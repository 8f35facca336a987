"""One vector for each code: it triggers that code, once, against the right party, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.messages import ENDPOINTS, Meter, Offer, Order, Receipt, Status, Usage
from p2pgrid.proto.record import Record, Role, Signature, Signed, sign_message
from p2pgrid.proto.verdict import Bundle, Verdict, audit_records
from tests.proto.chains import (
    DAY_MS,
    START_MS,
    TARIFF,
    Dealings,
    bundle_of,
    digest,
    everyday_dealings,
    key,
    lines_of,
    make_offer,
    sign_payload,
    sign_unchecked,
)

Vector = Callable[[], list[Bundle]]
VECTORS: list[tuple[str, Party, Vector]] = []
P, C, BOTH, UNCLEAR = Party.PROVIDER, Party.CLIENT, Party.BOTH, Party.UNCLEAR
USAGE = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=200)


def vector(code: str, party: Party) -> Callable[[Vector], Vector]:
    def register(build: Vector) -> Vector:
        VECTORS.append((code, party, build))
        return build

    return register


def both(grid: Dealings) -> list[Bundle]:
    provider, client = grid.bundles()
    return [bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)]


def with_line(grid: Dealings, change: Callable[[list[bytes]], list[bytes]]) -> list[Bundle]:
    """Both bundles, the client's lines changed."""
    provider, client = grid.bundles()
    return [bundle_of(provider, Role.PROVIDER), bundle_of(change(client), Role.CLIENT)]


def two_receipts() -> Dealings:
    grid = Dealings()
    grid.deal(output=200)
    grid.deal(output=200)
    return grid


def replaced(grid: Dealings, old: Signed, new: Record) -> list[Bundle]:  # type: ignore[type-arg]
    """Both bundles, one record replaced in the client's copy."""
    line = old.record.to_json_line()
    return with_line(grid, lambda lines: [new.to_json_line() if each == line else each for each in lines])


def last_receipt(grid: Dealings) -> Signed[Receipt]:
    return next(s for s in reversed(grid.client_has) if isinstance(s.message, Receipt))


# -- form and signatures ------------------------------------------------------------------------------------------


@vector("malformed", C)
def unreadable_line() -> list[Bundle]:
    return with_line(two_receipts(), lambda lines: [*lines[:-1], lines[-1][:-10]])


@vector("malformed", P)
def signed_nonsense() -> list[Bundle]:
    grid = two_receipts()
    grid.keep(sign_payload(Meter.payload_type, b"\x93\x01\x02\x03", {Role.PROVIDER: grid.provider}))
    return both(grid)


@vector("oversize", C)
def endless_line() -> list[Bundle]:
    return with_line(two_receipts(), lambda lines: [*lines, b"x" * 300_000])


@vector("not-canonical", P)
def signed_in_another_encoding() -> list[Bundle]:
    grid = two_receipts()
    payload = last_receipt(grid).record.payload
    assert payload[0] == 0xDC  # array 16, two bytes of length
    longer = b"\xdd\x00\x00" + payload[1:]
    grid.keep(sign_payload(Receipt.payload_type, longer, {Role.PROVIDER: grid.provider}))
    return both(grid)


@vector("out-of-range", BOTH)
def more_cached_than_prompt() -> list[Bundle]:
    grid = two_receipts()
    usage = Usage(prompt_tokens=3, cached_tokens=5, output_tokens=2)
    grid.receipt(grid.order(), usage, amount_pico=7)
    return both(grid)


@vector("out-of-range", P)
def meter_without_a_price() -> list[Bundle]:
    grid = two_receipts()
    usage = Usage(prompt_tokens=3, cached_tokens=5, output_tokens=2)
    grid.meter(grid.order(), usage, amount_pico=7)
    return both(grid)


@vector("wrong-type", C)
def type_of_tomorrow() -> list[Bundle]:
    grid = two_receipts()
    grid.keep(sign_payload("/p2pgrid/tomorrow/1", b"\x90", {Role.CLIENT: grid.client}))
    return both(grid)


@vector("key-not-admissible", C)
def small_order_key() -> list[Bundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    sane = receipt.record.signature_of(Role.PROVIDER)
    assert sane is not None
    small = Signature(Role.PROVIDER, b"\x01" + b"\x01" + bytes(31), sane.signature)
    return replaced(grid, receipt, receipt.record.with_signature(small))


@vector("signature-missing", C)
def unsigned_order() -> list[Bundle]:
    grid = two_receipts()
    order = next(s for s in grid.client_has if isinstance(s.message, Order))
    return replaced(grid, order, Record(order.record.payload_type, order.record.payload, ()))


@vector("wrong-key", C)
def signed_by_a_stranger() -> list[Bundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    forged = sign_payload(Receipt.payload_type, receipt.record.payload, {Role.PROVIDER: key("stranger")})
    return replaced(grid, receipt, forged.record)


@vector("bad-signature", C)
def altered_payload() -> list[Bundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    payload = msgspec.msgpack.encode(msgspec.structs.replace(receipt.message, amount_pico=1))
    return replaced(grid, receipt, Record(Receipt.payload_type, payload, receipt.record.signatures))


@vector("bad-signature", C)
def altered_payload_alone() -> list[Bundle]:
    return altered_payload()[1:]


@vector("bad-signature", C)
def altered_countersignature() -> list[Bundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    other = Signature(Role.CLIENT, grid.client.public_key.raw, bytes(64))
    return replaced(grid, receipt, receipt.record.with_signature(other))


# -- channel and offer --------------------------------------------------------------------------------------------


@vector("channel-id", BOTH)
def channel_id_made_up() -> list[Bundle]:
    grid = Dealings(channel_changes={"channel": digest("made up")})
    grid.deal(output=10)
    return both(grid)


@vector("channel-not-countersigned", P)
def channel_signed_by_one() -> list[Bundle]:
    grid = two_receipts()
    half = sign_message(grid.channel.message, Role.PROVIDER, grid.provider)
    grid.keep(half)
    return both(grid)


@vector("same-party", BOTH)
def dealing_with_oneself() -> list[Bundle]:
    grid = Dealings(client=key("provider"))
    grid.deal()
    return both(grid)


@vector("outside-channel-term", P)
def order_after_expiry() -> list[Bundle]:
    grid = Dealings(channel_changes={"expires_ms": START_MS + 1})
    grid.now_ms += 200_000
    grid.deal()
    return both(grid)


@vector("not-in-force", P)
def offer_run_out() -> list[Bundle]:
    grid = Dealings(offer_changes={"valid_until_ms": START_MS + 1})
    grid.now_ms += 200_000
    grid.deal()
    return both(grid)


@vector("not-on-offer", P)
def model_not_offered() -> list[Bundle]:
    grid = Dealings()
    grid.receipt(grid.order(model="huge"), USAGE)
    return both(grid)


@vector("not-on-offer", P)
def endpoint_not_offered() -> list[Bundle]:
    grid = Dealings()
    grid.receipt(grid.order(model="chat-only", endpoint=ENDPOINTS[1]), USAGE)
    return both(grid)


@vector("not-on-offer", P)
def offer_of_another_provider() -> list[Bundle]:
    grid = Dealings()
    theirs = grid.keep(sign_message(make_offer(key("other")), Role.PROVIDER, key("other")))
    grid.receipt(grid.order(offer=theirs.id), USAGE)
    return both(grid)


@vector("two-offers-one-number", P)
def two_offers() -> list[Bundle]:
    grid = two_receipts()
    again = sign_message(make_offer(grid.provider, operator="Someone else"), Role.PROVIDER, grid.provider)
    grid.keep(again, by="client")
    return both(grid)


@vector("two-records-one-slot", P)
def two_proposals() -> list[Bundle]:
    grid = two_receipts()
    other = msgspec.structs.replace(last_receipt(grid).message, finish_reason="length")
    grid.keep(sign_message(other, Role.PROVIDER, grid.provider), by="provider")
    return both(grid)


@vector("two-records-one-slot", BOTH)
def two_receipts_for_one_number() -> list[Bundle]:
    grid = two_receipts()
    other = msgspec.structs.replace(last_receipt(grid).message, finish_reason="length")
    grid.keep(sign_message(other, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client), by="provider")
    grid.deal()
    return both(grid)


@vector("two-records-one-slot", C)
def two_orders() -> list[Bundle]:
    grid = two_receipts()
    order = next(s.message for s in grid.client_has if isinstance(s.message, Order))
    other = msgspec.structs.replace(order, max_output_tokens=1)
    grid.keep(sign_message(other, Role.CLIENT, grid.client), by="provider")
    return both(grid)


@vector("two-records-one-slot", C)
def two_vouchers() -> list[Bundle]:
    grid = two_receipts()
    voucher = grid.vouchers[1][0].message
    other = msgspec.structs.replace(voucher, amount_pico=voucher.amount_pico + 1)
    grid.keep(sign_message(other, Role.CLIENT, grid.client), by="provider")
    return [bundle_of(lines_of(grid.client_has + grid.provider_has[-1:]), Role.PROVIDER)]


@vector("two-records-one-slot", BOTH)
def two_channels() -> list[Bundle]:
    grid = two_receipts()
    other = msgspec.structs.replace(grid.channel.message, credit_limit_pico=5)
    # Signed by both as well, yet nothing names it.
    signed = sign_message(other, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client)
    grid.keep(signed)
    return both(grid)


# -- counts and money ---------------------------------------------------------------------------------------------


@vector("wrong-amount", P)
def overcharged() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, amount_pico=10**9)
    grid.deal()
    return both(grid)


@vector("wrong-amount", P)
def overcharged_tick() -> list[Bundle]:
    grid = Dealings()
    order = grid.order()
    grid.meter(order, USAGE, amount_pico=10**9)
    grid.receipt(order, USAGE)
    return both(grid)


@vector("wrong-amount", C)
def voucher_for_a_wrong_amount() -> list[Bundle]:
    grid = Dealings()
    order = grid.order()
    meter = grid.meter(order, USAGE, by="nobody")
    grid.voucher(meter, amount_pico=3)
    grid.receipt(order, USAGE)
    return both(grid)


@vector("refund-rule", P)
def charged_for_a_failure() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, Status.FAILED, amount_pico=5)
    return both(grid)


@vector("refund-rule", P)
def charged_for_an_empty_answer() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), Usage(prompt_tokens=100))
    return both(grid)


@vector("refund-rule", P)
def charged_for_a_late_answer() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, first_token_ms=200_000, total_ms=201_000)
    return both(grid)


@vector("usage-falls", P)
def tick_falls() -> list[Bundle]:
    grid = Dealings()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    lower = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=150)
    grid.voucher(grid.meter(order, lower))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("usage-falls", C)
def voucher_falls() -> list[Bundle]:
    grid = Dealings()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    lower = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=150)
    grid.voucher(grid.meter(order, lower, by="nobody"))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("over-caps", P)
def more_output_than_ordered() -> list[Bundle]:
    grid = two_receipts()
    grid.finish(grid.order(max_output_tokens=150), output=400)
    return both(grid)


@vector("over-caps", P)
def dearer_than_ordered() -> list[Bundle]:
    grid = two_receipts()
    grid.finish(grid.order(max_amount_pico=1000))
    return both(grid)


@vector("over-caps", P)
def longer_prompt_than_ordered() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(max_prompt_tokens=99), USAGE)
    return both(grid)


@vector("prompt-count", P)
def another_prompt_count() -> list[Bundle]:
    grid = two_receipts()
    grid.finish(grid.order(prompt_tokens=90))
    return both(grid)


@vector("over-credit-limit", P)
def beyond_credit() -> list[Bundle]:
    grid = Dealings(channel_changes={"credit_limit_pico": 300_000_000})
    for _ in range(4):
        grid.deal(output=200)
    return both(grid)


@vector("beyond-window", P)
def proposal_beyond_the_window() -> list[Bundle]:
    grid = two_receipts()
    grid.deal(output=1000, acknowledged=2, countersign=False)
    return both(grid)


@vector("beyond-window", P)
def interrupted_beyond_the_voucher() -> list[Bundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, msgspec.structs.replace(USAGE, output_tokens=201), Status.INTERRUPTED)
    return both(grid)


@vector("beyond-window", P)
def unacknowledged_without_a_voucher() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, Status.UNACKNOWLEDGED)
    return both(grid)


@vector("wrong-order", P)
def another_request() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, request_commitment=digest("another"))
    return both(grid)


@vector("wrong-order", P)
def another_model() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, model="chat-only")
    return both(grid)


@vector("below-meter", P)
def less_than_acknowledged() -> list[Bundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, msgspec.structs.replace(USAGE, output_tokens=100))
    return both(grid)


@vector("wrong-voucher", C)
def voucher_for_less() -> list[Bundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE), usage=Usage(), amount_pico=0)
    grid.receipt(order, USAGE)
    return both(grid)


@vector("wrong-voucher", UNCLEAR)
def voucher_for_an_unknown_meter() -> list[Bundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE), meter=digest("unknown"))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("order-billed-twice", P)
def billed_twice() -> list[Bundle]:
    grid = two_receipts()
    order = grid.order()
    grid.receipt(order, USAGE)
    grid.receipt(order, USAGE)
    return both(grid)


# -- the chain ----------------------------------------------------------------------------------------------------


@vector("receipt-gap", BOTH)
def receipt_in_nobody_s_books() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, by="nobody")
    grid.deal()
    return both(grid)


@vector("receipt-gap", C)
def several_receipts_left_out() -> list[Bundle]:
    grid = Dealings()
    for _ in range(5):
        grid.deal(output=10)
    kept = [s for s in grid.client_has if not isinstance(s.message, Receipt) or s.message.receipt_number not in (2, 3)]
    return [bundle_of(lines_of(kept), Role.CLIENT)]


@vector("meter-gap", BOTH)
def tick_in_nobody_s_books() -> list[Bundle]:
    grid = Dealings()
    order = grid.order()
    grid.meter(order, Usage(prompt_tokens=100, cached_tokens=30, output_tokens=10), by="nobody")
    grid.voucher(grid.meter(order, USAGE))
    grid.receipt(order, USAGE)
    return both(grid)


@vector("broken-link", P)
def link_to_nowhere() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, previous=digest("nowhere"))
    grid.deal()
    return both(grid)


@vector("broken-link", P)
def first_link_not_the_channel() -> list[Bundle]:
    grid = Dealings()
    grid.receipt(grid.order(), USAGE, previous=digest("nowhere"))
    return both(grid)


@vector("wrong-total", P)
def total_too_high() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(), USAGE, channel_total_pico=10**10)
    grid.deal()
    return both(grid)


@vector("time-backwards", P)
def receipt_before_its_order() -> list[Bundle]:
    grid = two_receipts()
    grid.now_ms += DAY_MS
    order = grid.order()
    grid.receipt(order, USAGE, issued_ms=grid.now_ms - 130_000)
    return both(grid)


@vector("time-backwards", P)
def receipts_out_of_time() -> list[Bundle]:
    grid = Dealings()
    first, second = grid.order(), grid.order()
    grid.receipt(first, USAGE, issued_ms=grid.now_ms + 400_000)
    grid.receipt(second, USAGE)
    return both(grid)


@vector("time-backwards", C)
def orders_out_of_time() -> list[Bundle]:
    grid = two_receipts()
    grid.receipt(grid.order(ordered_ms=grid.now_ms + 110_000), USAGE)
    grid.receipt(grid.order(ordered_ms=grid.now_ms - 30_000), USAGE)
    return both(grid)


# -- what is not there --------------------------------------------------------------------------------------------


@vector("record-missing", BOTH)
def order_in_nobody_s_books() -> list[Bundle]:
    grid = two_receipts()
    grid.finish(grid.order(by="nobody"))
    return both(grid)


@vector("record-missing", P)
def offer_left_out() -> list[Bundle]:
    grid = two_receipts()
    kept = [s for s in grid.provider_has if not isinstance(s.message, Offer)]
    return [bundle_of(lines_of(kept), Role.PROVIDER)]


@vector("record-missing", UNCLEAR)
def channel_left_out() -> list[Bundle]:
    grid = two_receipts()
    return [bundle_of(lines_of(s for s in grid.provider_has if s.id != grid.channel.id))]


@vector("left-out", C)
def receipt_left_out() -> list[Bundle]:
    grid = two_receipts()
    line = last_receipt(grid).record.to_json_line()
    return with_line(grid, lambda lines: [each for each in lines if each != line])


@vector("left-out", P)
def ends_early() -> list[Bundle]:
    grid = two_receipts()
    provider, client = grid.bundles()
    return [bundle_of(provider[:6], Role.PROVIDER), bundle_of(client, Role.CLIENT)]


@vector("left-out", C)
def own_signature_left_out() -> list[Bundle]:
    grid = two_receipts()
    receipt = last_receipt(grid)
    half = Record(Receipt.payload_type, receipt.record.payload, receipt.record.signatures[:1])
    return replaced(grid, receipt, half)


@vector("left-out", UNCLEAR)
def left_out_by_somebody() -> list[Bundle]:
    grid = two_receipts()
    provider, client = grid.bundles()
    line = last_receipt(grid).record.to_json_line()
    return [bundle_of(provider, source="a"), bundle_of([each for each in client if each != line], source="b")]


# -- notes --------------------------------------------------------------------------------------------------------


@vector("awaiting-countersignature", C)
def waiting() -> list[Bundle]:
    grid = two_receipts()
    grid.deal(countersign=False)
    return both(grid)


@vector("awaiting-countersignature", C)
def channel_half_open() -> list[Bundle]:
    grid = Dealings()
    grid.keep(sign_message(grid.channel.message, Role.PROVIDER, grid.provider))
    return both(grid)


@vector("proposal-overtaken", C)
def overtaken() -> list[Bundle]:
    grid = two_receipts()
    grid.deal(countersign=False)
    grid.deal()
    return both(grid)


@vector("not-received", UNCLEAR)
def countersignature_lost() -> list[Bundle]:
    grid = two_receipts()
    provider, client = grid.bundles()
    receipt = last_receipt(grid)
    half = Record(Receipt.payload_type, receipt.record.payload, receipt.record.signatures[:1])
    provider[-1] = half.to_json_line()
    return [bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)]


@vector("voucher-not-counted", UNCLEAR)
def voucher_lost() -> list[Bundle]:
    grid = two_receipts()
    order = grid.order()
    grid.voucher(grid.meter(order, USAGE))
    later = msgspec.structs.replace(USAGE, output_tokens=250)
    grid.voucher(grid.meter(order, later), by="client")
    grid.receipt(order, USAGE, Status.INTERRUPTED)
    return [bundle_of(lines_of(grid.client_has), Role.CLIENT)]


@vector("order-open", UNCLEAR)
def still_running() -> list[Bundle]:
    grid = two_receipts()
    grid.voucher(grid.meter(grid.order(), USAGE))
    return both(grid)


@vector("same-record-twice", C)
def said_twice() -> list[Bundle]:
    return with_line(two_receipts(), lambda lines: [*lines, lines[3], lines[5]])


# -- the tests ----------------------------------------------------------------------------------------------------


def told(verdict: Verdict) -> list[tuple[str, Party]]:
    return [(finding.code, finding.party) for finding in (*verdict.findings, *verdict.notes)]


@pytest.mark.parametrize(("code", "party", "build"), VECTORS, ids=[f"{c}-{b.__name__}" for c, _, b in VECTORS])
def test_each_vector_gives_its_code_and_no_other(code: str, party: Party, build: Vector) -> None:
    verdict = audit_records(build())
    is_note = CODES[code].weight is Weight.NOTE
    if is_note:
        assert verdict.clean, verdict.findings
    (finding,) = verdict.notes if is_note else verdict.findings
    assert (finding.code, finding.party) == (code, party)
    assert finding.where
    assert finding.sentence.endswith(".")
    assert "\n" not in finding.sentence
    grid = Dealings()
    peers = {P: (grid.provider,), C: (grid.client,), BOTH: (grid.provider, grid.client), UNCLEAR: ()}[party]
    if code != "same-party":
        assert finding.peer_ids == tuple(peer.public_key.peer_id for peer in peers)


def test_there_is_a_vector_for_every_code() -> None:
    assert {code for code, _, _ in VECTORS} == set(CODES)


@pytest.mark.parametrize("which", ["both", "provider", "client", "unnamed"])
def test_honest_dealings_are_clean(which: str) -> None:
    provider, client = everyday_dealings().bundles()
    bundles = {
        "both": [bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)],
        "provider": [bundle_of(provider, Role.PROVIDER)],
        "client": [bundle_of(client, Role.CLIENT)],
        "unnamed": [bundle_of(provider, source="a"), bundle_of(client, source="b")],
    }[which]
    verdict = audit_records(bundles)
    assert verdict.clean, verdict.findings
    assert {note.code for note in verdict.notes} <= {"awaiting-countersignature", "not-received"}
    (channel,) = verdict.channels
    assert (channel.receipts, channel.countersigned, channel.operator) == (13, 12, "Rechenwerk Nord")
    assert channel.amount_pico > channel.countersigned_pico > 0


def test_a_long_chain_of_many_orders_at_once_is_clean() -> None:
    grid = Dealings()
    for _ in range(20):
        batch = [grid.order() for _ in range(4)]
        for order in reversed(batch):
            grid.finish(order, output=10)
    assert told(audit_records(both(grid))) == []


def test_an_altered_copy_is_named_with_the_intact_one() -> None:
    (finding,) = audit_records(altered_payload()).findings
    assert "It is receipt 2, which provider.jsonl:" in finding.sentence
    assert finding.record_id == last_receipt(two_receipts()).id.hex()
    assert not finding.convinces


def test_an_altered_receipt_is_known_from_the_next_one() -> None:
    grid = two_receipts()
    receipt = last_receipt(grid)
    grid.deal()
    payload = msgspec.msgpack.encode(msgspec.structs.replace(receipt.message, amount_pico=1))
    bundles = replaced(grid, receipt, Record(Receipt.payload_type, payload, receipt.record.signatures))
    (finding,) = audit_records(bundles[1:]).findings
    assert (finding.code, finding.party) == ("bad-signature", C)
    assert f"receipt 3 names the true one by its id, {receipt.id.hex()}" in finding.sentence


def test_the_side_of_a_bundle_shows_in_several_channels() -> None:
    mine, other = Dealings(), Dealings(client=key("another client"), nonce="2")
    mine.deal()
    other.deal()
    lines = lines_of([*mine.provider_has, *other.provider_has])
    verdict = audit_records([bundle_of([*lines[:-1], lines[-1][:-9]], source="export.jsonl")])
    (finding,) = verdict.findings
    assert verdict.bundles[0].side is Role.PROVIDER
    assert (finding.party, finding.peer_ids) == (P, (mine.provider.public_key.peer_id,))


def test_one_spoilt_line_does_not_excuse_two_missing_records() -> None:
    grid = Dealings()
    for _ in range(5):
        grid.deal(output=10)
    kept = [s for s in grid.client_has if not isinstance(s.message, Receipt) or s.message.receipt_number not in (2, 4)]
    verdict = audit_records([bundle_of([*lines_of(kept), b"{}"], Role.CLIENT)])
    assert sorted(told(verdict)) == [("malformed", C), ("receipt-gap", C)]


def test_what_a_signature_proves_convinces_and_what_a_file_shows_does_not() -> None:
    proven = audit_records(overcharged()).findings[0]
    shown = audit_records(unreadable_line()).findings[0]
    nonsense = audit_records(signed_nonsense()).findings[0]
    unclear = audit_records(voucher_for_an_unknown_meter()).findings[0]
    assert (proven.convinces, nonsense.convinces) == (True, True)
    assert (shown.convinces, unclear.convinces) == (False, False)


def test_countersigned_is_consent_to_the_last_window() -> None:
    grid = two_receipts()
    grid.deal(output=1000, acknowledged=0)
    assert told(audit_records(both(grid))) == []


def test_prices_are_those_of_the_order_s_offer() -> None:
    grid = two_receipts()
    dearer = msgspec.structs.replace(grid.offer.message.models[0], tariff=msgspec.structs.replace(TARIFF, output_upm=1))
    later = grid.keep(
        sign_unchecked(make_offer(grid.provider, sequence=2, models=(dearer,)), Role.PROVIDER, grid.provider)
    )
    grid.receipt(grid.order(offer=later.id), USAGE)
    assert told(audit_records(both(grid))) == [("wrong-amount", P)]
