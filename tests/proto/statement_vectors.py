"""What stands in tests/vectors/statements.json: what receipts and disputes come to, statement by statement."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from p2pgrid.proto.contested import Contest
from p2pgrid.proto.invoice_sums import PICO_PER_CENT, cents_of, vat_of
from p2pgrid.proto.messages import Channel, Receipt, Status, Tariff, Usage
from p2pgrid.proto.pricing import amount_owed
from p2pgrid.proto.record import Role, Signed, encode_payload, sign_message
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_making import Period, Stated, make_statement, receipts_of_period, vat_in
from p2pgrid.proto.statement_rules import components_of
from tests import factories
from tests.factories import NOW_MS, PROVIDER

HOUR_MS: Final = 3_600_000
_CHEAP: Final = Tariff(input_upm=200_000, cached_input_upm=50_000, output_upm=800_000)
_DEAR: Final = Tariff(input_upm=5_000_000_000, cached_input_upm=2_500_000_000, output_upm=10**12)
_HALF: Final = PICO_PER_CENT // 2


def statement_vectors() -> dict[str, Any]:
    """Rounding by itself, then whole channels."""
    edges = (0, 1, _HALF - 1, _HALF, _HALF + 1, 3 * _HALF - 1, 3 * _HALF, 2**63 - 1)
    pico = [*edges, *(-each for each in edges if each)]
    nets = [
        (net, rate) for net in (0, 1, 23, 24, 26, 50, 10**15, -23, -26, -50) for rate in (0, 1, 700, 1900, 2550, 10_000)
    ]
    return {
        "cents": [{"pico": each, "cents": cents_of(each)} for each in pico],
        "vat": [{"net_cents": net, "rate_bp": rate, "vat_cents": vat_of(net, rate)} for net, rate in nets],
        "channels": [_channel(*each) for each in _CHANNELS],
    }


def _receipt(number: int, tariff: Tariff, counts: tuple[int, int, int], hour: int, **changes: Any) -> Stated:
    usage = Usage(prompt_tokens=counts[0], cached_tokens=counts[1], output_tokens=counts[2])
    status = changes.get("status", Status.COMPLETED)
    dealings = factories.Dealings()
    fields = {
        "receipt_number": number,
        "model": "dear" if tariff is _DEAR else "cheap",
        "usage": usage,
        "amount_pico": amount_owed(tariff, usage, status),
        "issued_ms": NOW_MS + hour * HOUR_MS,
        **changes,
    }
    receipt: Receipt = msgspec.structs.replace(dealings.proposal(dealings.order()).message, **fields)
    return Stated(factories.digest(f"receipt {number}"), receipt, tariff)


def _contest(
    stated: Stated, amount_pico: int, hour: int, answered: int | None = None, *, accepted: bool = True
) -> Contest:
    return Contest(
        receipt=stated.receipt_id,
        receipt_number=stated.receipt.receipt_number,
        amount_pico=amount_pico,
        disputed_ms=NOW_MS + hour * HOUR_MS,
        answered_ms=None if answered is None else NOW_MS + answered * HOUR_MS,
        is_accepted=answered is not None and accepted,
    )


_PLAIN = [
    _receipt(1, _CHEAP, (10, 4, 1_000_000), 1),
    _receipt(2, _DEAR, (3, 1, 0), 2, status=Status.CANCELLED),
    _receipt(3, _CHEAP, (500_000, 0, 40_000), 3, status=Status.FAILED),
    _receipt(4, _CHEAP, (700_000, 200_000, 0), 4, amount_pico=0),
    _receipt(5, _CHEAP, (700_000, 200_000, 7), 5),
]
_WRONG = [
    _receipt(1, _DEAR, (10, 5, 1), 1, amount_pico=95 * _HALF),
    _receipt(2, _DEAR, (10, 5, 1), 2, amount_pico=2 * _HALF - 1),
    _receipt(3, _DEAR, (10, 5, 1), 3, status=Status.FAILED, amount_pico=3 * _HALF),
]
_MANY = [_receipt(n, _DEAR if n % 3 else _CHEAP, (n, n // 2, n % 2), n) for n in range(1, 10)]
_Step = tuple[int, int, int]
"""Hour at which the period ends, payments and set-offs in cents."""
_CHANNELS: list[tuple[str, list[Stated], list[Contest], list[_Step], tuple[str, int]]] = [
    ("every kind of receipt", _PLAIN, [], [(10, 0, 0)], ("S", 2100)),
    ("a statement of no receipts", [], [], [(1, 0, 0), (2, 5, 0)], ("E", 0)),
    ("late receipts, paid ahead, set off", _MANY, [], [(3, 500, 0), (3, 0, 0), (7, 0, 300), (12, 60, 7)], ("AE", 0)),
    (
        "disputes held, then credited, rejected, or open",
        _MANY,
        [
            _contest(_MANY[1], 1_234_567_890, 2, 5),
            _contest(_MANY[3], 3 * _HALF, 4, 8, accepted=False),
            _contest(_MANY[3], _HALF, 5, 7),
            _contest(_MANY[4], _HALF + 1, 6),
            _contest(_MANY[7], 4 * _HALF, 9, 20),
        ],
        [(4, 0, 0), (6, 0, 0), (10, 0, 0), (11, 0, 0), (30, 0, 0)],
        ("S", 1900),
    ),
    (
        "receipts with wrong amounts, and their credit",
        _WRONG,
        [_contest(_WRONG[0], 10 * _HALF, 2, 6), _contest(_WRONG[2], 3 * _HALF, 4, 6)],
        [(5, 0, 0), (7, 0, 0)],
        ("S", 700),
    ),
]


def _channel(
    name: str, receipts: list[Stated], contests: list[Contest], steps: list[_Step], vat: tuple[str, int]
) -> dict[str, Any]:
    channel: Channel = factories.make_channel().message
    before: Signed[Statement] | None = None
    made: list[Statement] = []
    for hour, payments_cents, set_off_cents in steps:
        # The first step of one hour twice is a period of a millisecond: nothing is in it.
        until_ms = max(NOW_MS + hour * HOUR_MS, before.message.until_ms + 1 if before else 0)
        stated = sum(message.last_receipt - message.first_receipt + 1 for message in made)
        message = make_statement(
            channel,
            before=before,
            receipts=receipts_of_period(receipts[stated:], until_ms=until_ms),
            contests=contests,
            credited_pico=sum(message.credits_pico for message in made),
            payments_cents=payments_cents,
            set_off_cents=set_off_cents,
            period=Period(until_ms=until_ms, stated_ms=until_ms + 1000, due_ms=until_ms + 14 * 24 * HOUR_MS),
            vat=vat_in(*vat),
        )
        made.append(message)
        before = sign_message(message, Role.PROVIDER, PROVIDER)
    return {
        "case": name,
        "opened_ms": channel.opened_ms,
        "receipts": [_shown(stated) for stated in receipts],
        "disputes": [
            {
                "receipt_number": contest.receipt_number,
                "contested_pico": contest.amount_pico,
                "disputed_ms": contest.disputed_ms,
                "answered_ms": contest.answered_ms,
                "is_accepted": contest.is_accepted,
            }
            for contest in contests
        ],
        "vat": {"category": vat[0], "rate_bp": vat[1]},
        "statements": [
            {"payload": encode_payload(message).hex(), "components": [_components(line) for line in message.lines]}
            for message in made
        ],
    }


def _components(line: Any) -> list[dict[str, Any]]:
    return [
        {"kind": component.kind.value, "amount_pico": component.amount_pico, "net_cents": component.net_cents}
        for component in components_of(line)
    ]


def _shown(stated: Stated) -> dict[str, Any]:
    receipt = stated.receipt
    return {
        "id": stated.receipt_id.hex(),
        "model": receipt.model,
        "tariff": list(msgspec.structs.astuple(stated.tariff)),
        "status": receipt.status.value,
        "usage": list(msgspec.structs.astuple(receipt.usage)),
        "amount_pico": receipt.amount_pico,
        "issued_ms": receipt.issued_ms,
    }
