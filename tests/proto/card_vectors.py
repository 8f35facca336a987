"""What stands in tests/vectors/cards.json, discovery.json and proofs.json."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from p2pgrid.net.lookup_keys import country_key, model_key, record_key
from p2pgrid.proto.card import PeerKey, Revocation
from p2pgrid.proto.card_chain import key_state, verify_chain
from p2pgrid.proto.proof import Claim, Exhibit, claim_of, exhibit_of, follows, smallest
from p2pgrid.proto.record import Record
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.well_known import parse_well_known, well_known_of
from tests.factories import DAY_MS, NOW_MS, PROVIDER, make_card, secret_key
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.record_refusals import code_of

_TERM = {"valid_from_ms": NOW_MS, "valid_until_ms": NOW_MS + 10 * DAY_MS}
_KEY = PROVIDER.public_key.raw


def card_vectors() -> dict[str, Any]:
    """Chains of cards, what they say of a key at times, and a domain's file."""
    first = make_card(**_TERM, peers=(PeerKey(key=_KEY, **_TERM),))
    after = {"sequence": 2, "previous": first.id}
    heir = secret_key("heir")
    until = {**_TERM, "valid_until_ms": NOW_MS + 20 * DAY_MS}
    gone = Revocation(key=_KEY, since_ms=NOW_MS + 5 * DAY_MS, reason="stolen")
    chains: list[tuple[str, list[Any]]] = [
        ("one card", [first]),
        ("a later card extends the term", [first, make_card(**until, **after, peers=(PeerKey(key=_KEY, **until),))]),
        ("a later card that ends later does not name the key", [first, make_card(**until, **after, peers=())]),
        ("a later card revokes it", [first, make_card(**until, **after, peers=(), revoked=(gone,))]),
        ("another number", [first, make_card(**_TERM, sequence=1, previous=first.id)]),
        ("another card before", [first, make_card(**_TERM, sequence=2, previous=bytes(32))]),
        ("another operator", [first, make_card(heir, operator=heir.public_key.raw, **_TERM, **after)]),
        ("a first card that is not the chain's first", [make_card(**_TERM, sequence=7, previous=bytes(32))]),
    ]
    days = (-1, 0, 4, 5, 10, 11, 20, 21)
    cards = verify_chain([first.record])
    file = well_known_of(cards, NOW_MS + DAY_MS)
    files = [
        ("as it should be", file),
        ("with a field more", {**file, "more": [1]}),
        ("without cards", {k: v for k, v in file.items() if k != "cards"}),
        ("of another version", {**file, "p2pgrid": 2}),
        ("without peers", {k: v for k, v in file.items() if k != "peers"}),
        ("with a peer id that is none", {**file, "peers": ["12D3KooW"]}),
        ("with 65 peers", {**file, "peers": file["peers"] * 65}),
    ]
    return {
        "key": _KEY.hex(),
        "chains": [
            {
                "case": name,
                "cards": [card.record.to_bytes().hex() for card in chain],
                "code": code_of(lambda c=chain: verify_chain([card.record for card in c])),
                "states": _states([card.record for card in chain], [NOW_MS + day * DAY_MS for day in days]),
            }
            for name, chain in chains
        ],
        "well_known": [
            {
                "case": name,
                "file": json.dumps(content),
                "code": code_of(lambda c=content: parse_well_known(json.dumps(c).encode())),
            }
            for name, content in files
        ],
    }


def _states(records: list[Record], times_ms: list[int]) -> dict[str, str]:
    if code_of(lambda: verify_chain(records)):
        return {}
    chain = verify_chain(records)
    return {str(at_ms): key_state(chain, _KEY, at_ms).value for at_ms in times_ms}


def discovery_vectors() -> list[dict[str, str]]:
    """The DHT's keys."""
    keys = ("provider", country_key("LT"), model_key("smollm2-135m-instruct"), model_key("smollm2-135m-instruct", "LT"))
    return [
        {"network": network, "key": key, "dht_key": record_key(network, key).hex()}
        for network in ("main", "test-2")
        for key in keys
    ]


PROVEN = (
    "overcharged",
    "two_orders",
    "voucher_for_less",
    "two_roots_of_one_size",
    "key_s_term_over",
    "charged_for_a_failure",
    "less_than_acknowledged",
)


def proof_vectors() -> list[dict[str, Any]]:
    """Proof files: a claim, the lines below it, and whether they prove it."""
    made: list[dict[str, Any]] = []
    for name in PROVEN:
        made += _proofs(next(case for case in CASES if case.build.__name__ == name))
    return made


def _proofs(case: AuditCase) -> list[dict[str, Any]]:
    bundles = case.build()
    records = [entry for bundle in bundles for _, entry in bundle.entries if isinstance(entry, Record)]
    exhibits = [exhibit_of(record) for record in dict.fromkeys(records)]
    (finding,) = audit_records(case.build(), **case.options).findings
    claim = claim_of(finding)
    proof = smallest(claim, exhibits)
    assert proof is not None
    nobody = secret_key("nobody").public_key.peer_id
    changed: list[tuple[str, Claim, list[Exhibit]]] = [
        ("", claim, proof),
        ("a record fewer", claim, proof[1:]),
        ("another peer", msgspec.structs.replace(claim, peer_ids=(nobody,)), proof),
        ("another code", msgspec.structs.replace(claim, code="broken-link"), proof),
        ("another record", msgspec.structs.replace(claim, record_id="00" * 32), proof),
    ]
    return [
        {
            "case": f"{case.code}: {case.name.replace('-', ' ')}{', ' if what else ''}{what}",
            "claim": {"type": "/p2pgrid/proof/1", **msgspec.to_builtins(one)},
            "lines": [exhibit.record.to_json_line().decode() for exhibit in shown],
            "proves": follows(one, shown) is not None,
        }
        for what, one, shown in changed
    ]
