"""One vector for each code: it triggers that code, once, against the right party, and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands
from p2pgrid.proto.messages import Receipt, Usage
from p2pgrid.proto.record import Record, Role, encode_payload
from p2pgrid.proto.verdict import Verdict, audit_records
from tests.factories import make_dispute, resigned
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.audit_cases import (
    USAGE,
    C,
    P,
    altered_payload,
    both,
    by_the_hour,
    last_receipt,
    overcharged,
    replaced,
    signed_nonsense,
    two_receipts,
    unreadable_line,
    voucher_for_an_unknown_meter,
)
from tests.proto.audit_cases_log import attached, logged_dealings, one_side
from tests.proto.chains import TARIFF, Dealings, bundle_of, everyday_dealings, key, lines_of, make_offer, sign_unchecked


def told(verdict: Verdict) -> list[tuple[str, Party]]:
    return [(finding.code, finding.party) for finding in (*verdict.findings, *verdict.notes)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.name}")
def test_each_case_gives_its_code_and_no_other(case: AuditCase) -> None:
    verdict = audit_records(case.build(), **case.options)
    usual = CODES[case.code]
    if usual.weight is Weight.NOTE:
        assert verdict.clean, verdict.findings
    (finding,) = verdict.notes if usual.weight is Weight.NOTE else verdict.findings
    assert (finding.code, finding.party) == (case.code, case.party), finding
    if case.proven is not None or usual.convinces:
        assert finding.convinces is (case.proven is not False and case.party is not Party.UNCLEAR)
    assert finding.where
    assert finding.sentence.endswith(".")
    assert "\n" not in finding.sentence
    provider, client = Dealings().provider, Dealings().client
    peers = {P: [provider], C: [client], Party.BOTH: [provider, client], Party.OPERATOR: [key(case.operator)]}
    if case.code != "same-party":
        assert finding.peer_ids == tuple(peer.public_key.peer_id for peer in peers.get(case.party, []))


def test_there_is_a_case_for_every_code() -> None:
    assert {case.code for case in CASES} == set(CODES)


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


@pytest.mark.parametrize("demands", [NO_DEMANDS, LogDemands(proofs=True), LogDemands(proofs=True, witnesses=2)])
def test_an_honest_log_is_clean(demands: LogDemands) -> None:
    grid, attachments = logged_dealings()
    for bundles in (attached(grid, *attachments), one_side(grid, attachments)):
        assert told(audit_records(bundles, log_demands=demands)) == []


def test_the_hour_s_price_is_clean() -> None:
    assert told(audit_records(both(by_the_hour()))) == []


def test_a_proof_alone_beside_a_bundle_is_clean() -> None:
    grid, attachments = logged_dealings()
    assert told(audit_records(attached(grid, *attachments[:2]))) == []


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
    payload = encode_payload(msgspec.structs.replace(receipt.message, amount_pico=1))
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


def both_files(grid: Dealings) -> list[Bundle]:
    return [bundle_of(lines_of(grid.provider_has), P), bundle_of(lines_of(grid.client_has), C)]


def test_what_one_side_alone_shows_is_not_held_against_the_other() -> None:
    """A provider that signs receipts and ticks of its own invention, and shows none of what they build on."""
    grid = Dealings()
    order = grid.order(by="client")
    hidden = grid.receipt(order, Usage(prompt_tokens=5, output_tokens=5), by="nobody", countersign=False)
    grid.receipt(grid.order(), Usage(prompt_tokens=5, output_tokens=5), by="provider", countersign=False)
    unplaced = grid.order(by="nobody")
    grid.meter(unplaced, Usage(prompt_tokens=5, output_tokens=5), by="provider")
    assert hidden not in (*grid.provider_has, *grid.client_has)
    verdict = audit_records(both_files(grid))
    found = {(finding.code, finding.party) for finding in verdict.findings}
    assert found == {("receipt-gap", Party.PROVIDER), ("record-missing", Party.PROVIDER)}


def test_a_client_that_disputes_a_receipt_need_not_hold_what_it_mentions() -> None:
    grid = Dealings()
    receipt = grid.receipt(
        grid.order(), Usage(prompt_tokens=5, output_tokens=5), countersign=False, mentions=(bytes(32),)
    )
    grid.keep(resigned(make_dispute(receipt, Role.CLIENT), grid.client, Role.CLIENT, reason="wrong-mention"))
    for bundles in (both_files(grid), both_files(grid)[1:]):
        assert told(audit_records(bundles)) == [("record-missing", Party.UNCLEAR)]
