"""What stands in tests/vectors/withdrawals.json: what a peer shows where its offer is asked for, and what follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.withdrawal import verify_withdrawal, withdraws
from tests.factories import NOW_MS, PROVIDER, make_offer, make_withdrawal, secret_key


def withdrawal_vectors() -> list[dict[str, Any]]:
    """`outcome` is `withdrawn`, `stands`, or the code for which the record is refused."""
    known = make_offer(sequence=5)
    return [
        {
            "case": name,
            "peer_id": PROVIDER.public_key.peer_id,
            "now_ms": NOW_MS,
            "offer": known.record.to_bytes().hex(),
            "shown": shown.to_bytes().hex(),
            "outcome": outcome_of(known, shown),
        }
        for name, shown in _shown()
    ]


def outcome_of(known: Signed[Offer], shown: Record) -> str:
    """What becomes of the known offer."""
    try:
        withdrawal = verify_withdrawal(shown.to_bytes(), PROVIDER.public_key.peer_id, NOW_MS)
    except InvalidRecord as invalid:
        return invalid.code
    return "withdrawn" if withdraws(withdrawal.message, known.message) else "stands"


def _shown() -> Iterator[tuple[str, Record]]:
    another: SecretKey = secret_key("another")
    yield "of the next number", make_withdrawal(sequence=6).record
    yield "of a number far above", make_withdrawal(sequence=2**53).record
    yield "of the offer's own number: signed before it, after a clock went back", make_withdrawal(sequence=5).record
    yield "shown again, of an offer before", make_withdrawal(sequence=4).record
    yield "120 s ahead", make_withdrawal(sequence=6, withdrawn_ms=NOW_MS + 120_000).record
    yield "more than that ahead", make_withdrawal(sequence=6, withdrawn_ms=NOW_MS + 120_001).record
    yield "long ago: its time does not count", make_withdrawal(sequence=6, withdrawn_ms=0).record
    yield "another provider's", make_withdrawal(another, sequence=6).record
    yield "another's, in the provider's name", make_withdrawal(another, provider=PROVIDER.public_key.raw).record
    yield "in another's name", make_withdrawal(provider=another.public_key.raw, sequence=6).record
    good = make_withdrawal(sequence=6).record
    yield "without a signature", Record(good.payload_type, good.payload, ())
    yield "the signature of another", Record(good.payload_type, good.payload, make_withdrawal().record.signatures)
    yield "an offer", make_offer(sequence=6).record
