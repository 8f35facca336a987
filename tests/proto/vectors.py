"""What stands in tests/vectors/*.json: made from fixed keys and times, so that any implementation can compare.

`scripts/make_vectors` writes the files; `test_vectors.py` holds them against this code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Status, Tariff, TariffPeriod, Usage
from p2pgrid.proto.pricing import amount_owed, price_of
from p2pgrid.proto.record import Message, Role, Signed, signature_input
from tests import factories
from tests.proto.audit_vectors import audit_vectors
from tests.proto.batch_vectors import batch_vectors
from tests.proto.card_vectors import card_vectors, discovery_vectors, proof_vectors
from tests.proto.counting_vectors import counting_vectors
from tests.proto.credit_vectors import credit_vectors, default_vectors
from tests.proto.exchange_vectors import exchange_vectors
from tests.proto.link_vectors import link_vectors
from tests.proto.log_vectors import log_vectors, merkle_vectors
from tests.proto.machine_vectors import machine_vectors
from tests.proto.network_vectors import network_vectors
from tests.proto.refusal_vectors import refusal_vectors
from tests.proto.request_vectors import request_vectors
from tests.proto.simulation import (
    CLIENT,
    PROVIDER,
    TARIFF,
    Grid,
    Lane,
    answer,
    audit,
    receipts,
    script,
    usage,
)
from tests.proto.speccheck import signature_vectors, speccheck_vectors
from tests.proto.statement_vectors import statement_vectors
from tests.proto.withdrawal_vectors import withdrawal_vectors

FOLDER = Path(__file__).parent.parent / "vectors"


def all_vectors() -> dict[str, Any]:
    """The content of every file, by name."""
    return {
        "keys.json": _keys(),
        "records.json": _records(),
        "commitments.json": _commitments(),
        "pricing.json": _pricing(),
        "counting.json": counting_vectors(),
        "session.json": _session(),
        "requests.json": request_vectors(),
        "refused.json": refusal_vectors(),
        "speccheck.json": speccheck_vectors(),
        "signatures.json": signature_vectors(),
        "exchanges.json": exchange_vectors(),
        "link.json": link_vectors(),
        "network.json": network_vectors(),
        "machines.json": machine_vectors(),
        "batches.json": batch_vectors(),
        "merkle.json": merkle_vectors(),
        "log.json": log_vectors(),
        "audit.json": audit_vectors(),
        "proofs.json": proof_vectors(),
        "cards.json": card_vectors(),
        "discovery.json": discovery_vectors(),
        "withdrawals.json": withdrawal_vectors(),
        "statements.json": statement_vectors(),
        "credit.json": credit_vectors(),
        "defaults.json": default_vectors(),
        "billing-details.json": _billing_details(),
    }


def to_text(content: Any) -> str:
    """A file's text."""
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


def _keys() -> list[dict[str, str]]:
    seeds = [bytes(32), PROVIDER.expose_seed(), CLIENT.expose_seed(), b"\xff" * 32]
    keys = [(seed, SecretKey(seed).public_key) for seed in seeds]
    return [{"seed": s.hex(), "public_key": k.raw.hex(), "peer_id": k.peer_id} for s, k in keys]


def _sale(counts: list[int], **changes: Any) -> Grid:
    grid = Grid(window=16)
    grid.ordered(script(answer(10, counts, **changes)))
    grid.settle()
    return grid


def _record(signed: Signed[Message]) -> dict[str, Any]:
    record = signed.record
    return {
        "message": type(signed.message).__name__,
        "fields": _readable(msgspec.to_builtins(signed.message, builtin_types=(bytes,)), signed.message),
        "payload": record.payload.hex(),
        "signature_input": signature_input(record.payload_type, record.payload).hex(),
        "id": signed.id.hex(),
        "wire": record.to_bytes().hex(),
        "text": record.to_json_line().decode(),
    }


def _readable(value: Any, struct: Any = None) -> Any:
    if isinstance(struct, msgspec.Struct):
        names = struct.__struct_fields__
        return {n: _readable(v, getattr(struct, n)) for n, v in zip(names, value, strict=True)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_readable(v, s) for v, s in zip(value, struct if isinstance(struct, tuple) else value, strict=True)]
    return value


def _records() -> list[dict[str, Any]]:
    grid = _sale([1] * 8, cached=4)
    one_of_each: dict[str, Signed[Message]] = {"Offer": grid.offer, "Channel": grid.channel}
    for signed in [*grid.client_ledger]:
        one_of_each.setdefault(type(signed.message).__name__, signed)
    for signed in _other_records():
        one_of_each.setdefault(type(signed.message).__name__, signed)
    return [_record(signed) for signed in one_of_each.values()]


def _other_records() -> list[Signed[Message]]:
    """The messages that no plain sale makes."""
    dealings = factories.Dealings()
    order = dealings.order()
    receipt = dealings.countersign(dealings.proposal(order))
    dispute = factories.make_dispute(receipt)
    statement = factories.make_statement([receipt], hashlib.sha256(b"\0" + receipt.id).digest(), rate_bp=2100)
    invoice = factories.make_invoice(statement)
    return [
        dispute,
        factories.make_answer(dispute),
        factories.make_card(),
        factories.make_opening(order, b'{"model":"m"}', bytes(range(32))),
        statement,
        invoice,
        factories.make_payment(invoice, dealings.id, amount_cents=121),
        *factories.set_off_records(invoice, dealings),
        factories.make_claim(statement, unpaid_cents=121),
        factories.make_withdrawal(),
    ]


def _billing_details() -> dict[str, Any]:
    """Records that a peer keeps, and fields with which it does not (messages.md, rule 23c)."""
    kept = [factories.make_billing_details(), factories.make_billing_details(Role.CLIENT, sequence=7, iban="")]
    refused = [
        ("iban", "LT121000011101001001"),
        ("iban", "LT12 1000 0111 0100 1000"),
        ("iban", "lt121000011101001000"),
        ("bic", "HABALT2"),
        ("vat_id", "LT100001919018"),
        ("vat_id", "DE136695976"),
        ("vat_id", "LT 100001919017"),
        ("legal_name", "Vilnius\u202eUAB"),
        ("legal_name", "Vilnius "),
        ("city", "Vil\nnius"),
        ("street", "e\u0301 1"),
        ("profile", "zugferd"),
        ("electronic_address", "books@vilnius.example"),
    ]
    return {
        "records": [_record(signed) for signed in kept],
        "refused": [{"field": field, "value": value} for field, value in refused],
    }


def _commitments() -> list[dict[str, str]]:
    key = bytes(range(32))
    response = ResponseCommitment(key)
    pieces = [b"", b"data: 1\n\n", b"data: [DONE]\n\n"]
    running = []
    for piece in pieces:
        response.update(piece)
        running.append(
            {"of": "response", "key": key.hex(), "piece": piece.hex(), "commitment": response.digest().hex()}
        )
    bodies = [b"", b'{"model":"m"}']
    return [
        *(
            {"of": "request", "key": key.hex(), "body": b.hex(), "commitment": request_commitment(key, b).hex()}
            for b in bodies
        ),
        *running,
    ]


def _pricing() -> dict[str, Any]:
    return {"amounts": _amounts(), "schedules": _schedules()}


def _schedules() -> list[dict[str, Any]]:
    """Which tariff an order of a time costs: by the offer's offset, the first period that holds, else the entry's."""

    def tariff(price: int) -> Tariff:
        return Tariff(input_upm=price, cached_input_upm=price, output_upm=price)

    def period(weekdays: int, from_minute: int, until_minute: int, price: int) -> TariffPeriod:
        return TariffPeriod(weekdays=weekdays, from_minute=from_minute, until_minute=until_minute, tariff=tariff(price))

    saturday = 1_800_057_600_000  # 2027-01-16 00:00 UTC, a Saturday; by a clock behind UTC, a Friday
    minute = 60_000
    night = [period(31, 1320, 1440, 2), period(62, 0, 360, 3)]
    overlapping = [period(96, 0, 1440, 4), period(127, 0, 1440, 5)]
    cases: list[tuple[int, list[TariffPeriod], list[int]]] = [
        (0, [], [0, saturday]),
        (
            0,
            night,
            [saturday - 120 * minute - 1, saturday - 120 * minute, saturday - 1, saturday, saturday + 360 * minute],
        ),
        (120, night, [saturday - 241 * minute, saturday - 240 * minute, saturday - 120 * minute, saturday]),
        (-300, night, [saturday, saturday + 180 * minute, saturday + 300 * minute, saturday + 660 * minute]),
        (-840, night, [0, 839 * minute, 840 * minute, 1439 * minute]),
        (-840, [period(4, 0, 1440, 6)], [0, 840 * minute - 1, 840 * minute]),
        (-1, overlapping, [0, 3 * minute, 60_000 * 4320]),
        (345, overlapping, [saturday - 345 * minute - 1, saturday - 345 * minute, saturday + 86_400_000 * 2]),
    ]
    made = []
    for offset, periods, times in cases:
        entry = ModelOffer(
            model="m", tariff=tariff(1), context_tokens=64, concurrency=1, endpoints=ENDPOINTS, schedule=tuple(periods)
        )
        offer = factories.make_offer(models=(entry,), utc_offset_minutes=offset).message
        made.append(
            {
                "utc_offset_minutes": offset,
                "tariff": msgspec.to_builtins(entry.tariff),
                "schedule": [
                    {**_readable(msgspec.to_builtins(p), p), "tariff": msgspec.to_builtins(p.tariff)} for p in periods
                ],
                "prices": [
                    {"ordered_ms": at, "tariff": msgspec.to_builtins(offer.tariff_at(entry, at))} for at in times
                ],
            }
        )
    return made


def _amounts() -> list[dict[str, Any]]:
    tariffs = [TARIFF, Tariff(input_upm=0, cached_input_upm=0, output_upm=10**12)]
    cases = [usage(0, 0), usage(1, 1), usage(1000, 256, 512), usage(8_000_000, 1_000_000, 8_000_000)]
    dearest = Tariff(input_upm=10**12, cached_input_upm=10**12, output_upm=10**12)
    most, beyond = usage(1_223_372, 8_000_000), usage(1_223_373, 8_000_000)
    priced = [*((t, u) for t in tariffs for u in cases), (dearest, most), (dearest, beyond), (TARIFF, usage(5, 1, 6))]
    return [_amount(tariff, one) for tariff, one in priced]


def _amount(tariff: Tariff, used: Usage) -> dict[str, Any]:
    told = {"tariff": msgspec.to_builtins(tariff), "usage": msgspec.to_builtins(used)}
    try:
        owed = {s.value: amount_owed(tariff, used, s) for s in Status}
    except InvalidRecord as invalid:
        return {**told, "code": invalid.code}
    return {**told, "price_pico": price_of(tariff, used), "owed_pico": owed}


def _session() -> dict[str, Any]:
    """Two orders on one channel: a whole one, and one whose link was lost. As bundles: a record a line."""
    grid = _sale([1] * 20)
    lane = grid.ordered(script(answer(10, [1] * 100)))
    while lane.acknowledged < 16:
        for name in grid.enabled(lane):
            grid.step(lane, name)
        if grid.to_provider:
            grid.step_provider()
    grid.lose_link()
    grid.resume()

    def lines(ledger: list[Signed[Message]]) -> list[str]:
        common: list[Signed[Message]] = [grid.offer, grid.channel]
        return [s.record.to_json_line().decode() for s in [*common, *ledger]]

    chain = receipts(grid.client_ledger)
    verdict = audit(grid)
    return {
        "orders": [_delivered(grid.lanes[number]) for number in sorted(grid.lanes)],
        "verdict": {"clean": verdict.clean, "notes": [note.code for note in verdict.notes]},
        "receipts": [
            {"id": r.id.hex(), "status": r.message.status.value, "amount_pico": r.message.amount_pico} for r in chain
        ],
        "channel_total_pico": grid.client.total_pico,
        "provider": lines(grid.provider_ledger),
        "client": lines(grid.client_ledger),
    }


def _delivered(lane: Lane) -> dict[str, Any]:
    """What was asked and what came: with the key, all that commitments are over."""
    assert lane.opening is not None
    return {
        "order_number": lane.number,
        "commitment_key": lane.opening.commitment_key.hex(),
        "body": lane.body.decode(),
        "answer": lane.delivered.decode(),
    }
