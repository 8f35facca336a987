"""Messages: ranges, rules between fields, canonical form."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Channel, DataTerms, Offer, Receipt, Status, Tariff, channel_id
from p2pgrid.proto.record import Record, Role, encode_payload, parse_message, sign_message
from tests.proto.simulation import CLIENT, PROVIDER, Grid, answer, make_channel, make_offer, script, usage

ENTRY = make_offer().message.models[0]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"valid_until_ms": 0}, "out-of-range"),
        ({"models": (ENTRY, ENTRY)}, "out-of-range"),
        ({"models": ()}, "malformed"),
        (
            {"models": (msgspec.structs.replace(ENTRY, tariff=Tariff(input_upm=1, cached_input_upm=2, output_upm=3)),)},
            "out-of-range",
        ),
        ({"currency": "eur"}, "malformed"),
        ({"currency": "EUR\n"}, "malformed"),
        ({"currency": "EURO"}, "malformed"),
        ({"data_terms": DataTerms(country="LT\n")}, "malformed"),
        ({"data_terms": DataTerms(country="Lt")}, "malformed"),
        ({"data_terms": DataTerms(country="LT", prompt_retention_days=-1)}, "malformed"),
        ({"provider": bytes(32)}, "malformed"),
        ({"sequence": 0}, "malformed"),
        ({"operator": "x" * 129}, "malformed"),
        ({"addresses": ("x",) * 17}, "malformed"),
        ({"window": 15}, "malformed"),
        ({"window": 65_537}, "malformed"),
        ({"credit_pico": 2**63}, "malformed"),
        ({"max_open_orders": 0}, "malformed"),
        ({"models": (msgspec.structs.replace(ENTRY, model=""),)}, "malformed"),
        ({"models": (msgspec.structs.replace(ENTRY, endpoints=()),)}, "malformed"),
        ({"models": (msgspec.structs.replace(ENTRY, weights_sha256=bytes(33)),)}, "malformed"),
    ],
)
def test_offers_that_nobody_may_sign(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidRecord) as invalid:
        make_offer(**changes)
    assert invalid.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expires_ms": 0}, "out-of-range"),
        ({"channel": bytes(32)}, "channel-id"),
        ({"client": PROVIDER.public_key.raw}, "channel-id"),
        ({"provider_nonce": bytes(32)}, "channel-id"),
    ],
)
def test_channels_that_nobody_may_sign(changes: dict[str, Any], code: str) -> None:
    message = msgspec.structs.replace(make_channel(make_offer()).message, **changes)
    with pytest.raises(InvalidRecord) as invalid:
        sign_message(message, Role.PROVIDER, PROVIDER)
    assert invalid.value.code == code


def test_channel_id_depends_on_everything() -> None:
    parts = [PROVIDER.public_key.raw, CLIENT.public_key.raw, bytes(32), b"\x01" * 32]
    ids = {channel_id(*parts), channel_id(parts[1], parts[0], *parts[2:]), channel_id(*parts[:2], parts[3], parts[2])}
    assert len(ids) == 3


def test_more_cached_than_prompt_is_no_receipt() -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(5, [1])))
    grid.settle()
    receipt = lane.settled[0].message
    with pytest.raises(InvalidRecord):
        sign_message(msgspec.structs.replace(receipt, usage=usage(5, 1, 6)), Role.PROVIDER, PROVIDER)


def test_the_longest_names_fit_their_messages() -> None:
    """A model's name of 128 characters of four bytes, in every message that carries it."""
    grid = Grid()
    lane = grid.ordered(script(answer(5, [1])))
    grid.settle()
    long = {"model": "\U0001f600" * 128}
    top = {
        "order_number": 2**53,
        "channel_total_pico": 2**63 - 1,
        "total_ms": 10**9,
        "finish_reason": "\U0001f600" * 32,
    }
    sign_message(msgspec.structs.replace(lane.settled[0].message, **long, **top), Role.PROVIDER, PROVIDER)
    sign_message(msgspec.structs.replace(lane.buyer.order.message, **long), Role.CLIENT, CLIENT)


@given(st.sampled_from([Offer, Channel, Receipt]), st.data())
def test_one_message_has_one_encoding(message_type: Any, data: st.DataObject) -> None:
    """Whatever is accepted is exactly what would be written for it."""
    grid_message = {
        Offer: make_offer().message,
        Channel: make_channel(make_offer()).message,
        Receipt: _RECEIPT,
    }[message_type]
    payload = bytearray(encode_payload(grid_message))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] = data.draw(st.integers(0, 255))
    try:
        message = parse_message(Record(message_type.payload_type, bytes(payload), ()), message_type)
    except InvalidRecord:
        return
    assert encode_payload(message) == payload


def _receipt() -> Receipt:
    grid = Grid()
    lane = grid.ordered(script(answer(5, [1])))
    grid.settle()
    return lane.settled[0].message


_RECEIPT = _receipt()


def test_every_type_is_listed() -> None:
    assert sorted(MESSAGE_TYPES) == [
        f"/p2pgrid/{n}/1"
        for n in (
            *(
                "answer",
                "card",
                "channel",
                "cycle-verdict",
                "cycle",
                "default",
                "dispute",
                "invoice",
                "leg",
                "meter",
                "offer",
            ),
            *("opening", "order", "payment", "receipt", "set-off", "statement", "voucher", "withdrawal"),
        )
    ]
    assert {s.value for s in Status} == {
        "completed",
        "cancelled",
        "interrupted",
        "unacknowledged",
        "failed",
        "empty",
        "refused",
        "late",
    }
