"""Proofs convince by themselves, are as small as can be, and nothing that an honest party signed makes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.codes import CODES, Party
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Usage
from p2pgrid.proto.proof import REFUTABLE, Exhibit, bound_to, claim_of, exhibit_of, follows, smallest
from p2pgrid.proto.record import Record, Role, parse_message
from p2pgrid.proto.statement import PaymentKind, Statement
from p2pgrid.proto.verdict import audit_records
from tests.factories import make_invoice
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.audit_cases_disputes import answered, billed_later
from tests.proto.audit_cases_keys import card, sold_under
from tests.proto.audit_cases_settlement import held_then, paid_ahead, settled
from tests.proto.audit_stories_settlement import credited_later
from tests.proto.chains import DAY_MS, START_MS, Dealings, everyday_dealings, key, sign_unchecked


def proven_cases() -> list[AuditCase]:
    return [case for case in CASES if any(f.convinces for f in audit_records(case.build(), **case.options).findings)]


def exhibits_of(case: AuditCase) -> list[Exhibit]:
    records = [entry for bundle in case.build() for _, entry in bundle.entries if isinstance(entry, Record)]
    return [exhibit_of(record) for record in dict.fromkeys(records)]


@pytest.mark.parametrize("case", proven_cases(), ids=lambda case: f"{case.code}-{case.name}")
def test_every_convincing_finding_has_a_smallest_proof(case: AuditCase) -> None:
    exhibits = exhibits_of(case)
    (finding,) = audit_records(case.build(), **case.options).findings
    claim = claim_of(finding)
    proof = smallest(claim, exhibits)
    assert proof is not None, claim
    proved = follows(claim, proof)
    assert proved is not None and proved.convinces and proved.code == case.code
    assert len(proof) <= len(exhibits)
    for index in range(len(proof)):
        assert follows(claim, proof[:index] + proof[index + 1 :]) is None


@pytest.mark.parametrize("case", proven_cases(), ids=lambda case: f"{case.code}-{case.name}")
def test_a_proof_says_nothing_else(case: AuditCase) -> None:
    exhibits = exhibits_of(case)
    (finding,) = audit_records(case.build(), **case.options).findings
    claim = claim_of(finding)
    others = {key(name).public_key.peer_id for name in ("provider", "client", "operator", "nobody")} - {*claim.peer_ids}
    for other in sorted(others):
        assert follows(replace(claim, peer_ids=(other,)), exhibits) is None
    for party in Party:
        assert party is claim.party or follows(replace(claim, party=party), exhibits) is None
    for code in CODES:
        assert code == claim.code or follows(replace(claim, code=code), exhibits) is None
    assert follows(replace(claim, code="bad-deal"), exhibits) is None
    assert follows(replace(claim, peer_ids=()), exhibits) is None
    assert follows(replace(claim, record_id="00" * 32), exhibits) is None


# -- nothing that an honest party signed is a proof against it ------------------------------------------------------


def disputed_world() -> Dealings:
    grid, _, answer = answered()
    billed_later(grid, answer.message.dispute, answer.id)
    return grid


def carded_world() -> Dealings:
    first = card()
    second = card(sequence=2, previous=first.id, valid_until_ms=START_MS + 400 * DAY_MS)
    return sold_under(first, second, after_ms=DAY_MS)


def refuted_by_what_is_left_out() -> Dealings:
    """Settled by way of credits, a credit note, an invoice taken back, and payments there and back."""
    grid = credited_later(refund=False)
    stated = next(s for s in grid.client_has if isinstance(s.message, Statement))
    cents = {"net_cents": -stated.message.net_cents, "vat_cents": stated.message.net_cents - stated.message.gross_cents}
    grid.keep(make_invoice(stated, invoice_number="A", **cents))
    grid.keep(make_invoice(stated, invoice_number="B"))
    came = paid_ahead(grid, booked_ms=grid.now_ms + 41 * DAY_MS).message
    paid_ahead(
        grid, amount_cents=-came.amount_cents, kind=PaymentKind.REFUNDED, entry=b"", booked_ms=came.booked_ms + 1
    )
    return grid


WORLDS: tuple[Callable[[], Dealings], ...] = (
    everyday_dealings,
    disputed_world,
    lambda: settled()[0],
    carded_world,
    lambda: held_then(Decision.ACCEPTED)[0],
    lambda: held_then(Decision.REJECTED)[0],
    refuted_by_what_is_left_out,
)
KEYS = {role: key(role) for role in (Role.PROVIDER, Role.CLIENT)}


@cache
def world(index: int) -> tuple[Record, ...]:
    grid = WORLDS[index]()
    records = [s.record for s in (*grid.provider_has, *grid.client_has)]
    assert audit_records([Bundle("", enumerate(records, start=1))]).clean
    return tuple(dict.fromkeys(records))


def forged(records: Sequence[Record], liar: Role, random: Random) -> Record | None:
    """A record of the liar's, one value in it made up or taken from another, with the liar's signature alone."""
    record = random.choice(records)
    message = parse_message(record, MESSAGE_TYPES[record.payload_type])
    name = random.choice(message.__struct_fields__)
    value = getattr(message, name)
    known = [parse_message(r, MESSAGE_TYPES[r.payload_type]) for r in random.sample(records, 3)]
    made_up: object
    match value:
        case bool():
            made_up = not value
        case int():
            others = [v for m in known for v in map(partial(getattr, m), m.__struct_fields__) if isinstance(v, int)]
            made_up = random.choice([0, 1, value + 1, value - 1, value * 2, value // 2, value + DAY_MS, *others])
        case bytes():
            made_up = random.choice([b"", *(r.id for r in records), *(s.key for r in records for s in r.signatures)])
        case Usage():
            field = random.choice(Usage.__struct_fields__)
            made_up = msgspec.structs.replace(value, **{field: random.choice([0, 1, 10, 10_000])})
        case tuple():
            made_up = value[1:]
        case _:
            return None
    return sign_unchecked(msgspec.structs.replace(message, **{name: made_up}), liar, KEYS[liar]).record


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(range(len(WORLDS))), st.sampled_from(sorted(KEYS)), st.integers(0, 2**32))
def test_no_accuser_can_make_a_proof_against_an_honest_party(index: int, liar: Role, seed: int) -> None:
    """The accuser leaves out what it likes, and signs what it likes with its own key."""
    random, records = Random(seed), list(world(index))
    left = random.sample(records, random.randrange(len(records) + 1)) if random.random() < 0.7 else list(records)
    for _ in range(random.choice([0, 1, 1, 2, 5])):
        record = forged(records, liar, random)
        left += [record] if record is not None else []
    random.shuffle(left)
    (honest,) = (k.public_key.peer_id for role, k in KEYS.items() if role is not liar)
    exhibits = [exhibit_of(record) for record in left]
    for finding in findings_against(honest, exhibits):
        assert follows(claim_of(finding), exhibits) is None, finding
    assert not findings_against(honest, bound_to(exhibits, honest))


def findings_against(peer_id: str, exhibits: Sequence[Exhibit]) -> list[Finding]:
    verdict = audit_records([Bundle("", enumerate((e.record for e in exhibits), start=1))])
    return [f for f in verdict.findings if f.convinces and peer_id in f.peer_ids and f.code not in REFUTABLE]
