"""What an audit says of set-offs and cycles, beyond the cases of the vectors."""

from __future__ import annotations

import time

import msgspec

from p2pgrid.proto.codes import Party
from p2pgrid.proto.proof import claim_of, exhibit_of, follows
from p2pgrid.proto.record import Signed, parse_json_line
from p2pgrid.proto.verdict import Verdict, audit_records
from tests.factories import make_cycle, make_legs, make_set_off, make_verdict, secret_key, set_off_side, signed_by_names
from tests.proto.audit_cases_set_off import in_a_cycle, set_off_in_another_currency
from tests.proto.audit_stories_set_off import set_off_both_ways
from tests.proto.chains import DAY_MS, Dealings, bundle_of, digest, key
from tests.proto.mutual import Pair, mutual


def told(verdict: Verdict) -> list[tuple[str, Party, bool]]:
    return [(one.code, one.party, one.convinces) for one in verdict.findings]


def peer_of(name: str) -> str:
    return secret_key(name).public_key.peer_id


def test_the_summary_counts_what_was_set_off() -> None:
    verdict = audit_records(set_off_both_ways().files())
    assert [(one.set_off_cents, one.open_cents, one.paid_ahead_cents) for one in verdict.settlement] == [(9, 0, 0)] * 2


def with_cycle(*records: Signed) -> Verdict:  # type: ignore[type-arg]
    pair, cycle = in_a_cycle()
    for signed in (cycle, *make_legs(cycle, [*pair.keys, key("third")]), *records):
        pair.sells.keep(signed)
    return audit_records(pair.files_of_one())


def test_a_timekeeper_answers_for_what_it_says() -> None:
    _, cycle = in_a_cycle()
    early = make_verdict(cycle, is_complete=False, judged_ms=cycle.message.deadline_ms)
    (finding,) = with_cycle(early).findings
    assert (finding.code, finding.peer_ids, finding.convinces) == ("set-off-mismatch", (peer_of("timekeeper"),), True)
    (finding,) = with_cycle(make_verdict(cycle, secret_key("another"))).findings
    assert (finding.code, finding.peer_ids) == ("set-off-mismatch", (peer_of("another"),))
    both = [make_verdict(cycle), make_verdict(cycle, is_complete=False, judged_ms=cycle.message.deadline_ms + 1)]
    (finding,) = with_cycle(*both).findings
    assert (finding.code, finding.peer_ids, finding.convinces) == (
        "two-records-one-slot",
        (peer_of("timekeeper"),),
        True,
    )


def test_a_cycle_of_other_parties_than_its_channels_have() -> None:
    pair, right = in_a_cycle()
    stranger = key("stranger")
    channels = [Dealings(provider=pair.sells.provider, client=stranger).channel]
    channels += [Dealings(provider=key("third"), client=pair.sells.provider).channel]
    channels += [Dealings(provider=stranger, client=key("third")).channel]
    other = make_cycle(channels, pair.sells.provider, nonce=digest("other"))
    own = pair.sells.channel.message.channel
    debts = tuple(
        type(debt)(
            channel=own if debt.debtor == stranger.public_key.raw else debt.channel,
            creditor=debt.creditor,
            debtor=debt.debtor,
            card=b"",
        )
        for debt in other.message.debts
    )
    at = min(range(3), key=lambda n: debts[n].channel)
    message = msgspec.structs.replace(other.message, debts=(*debts[at:], *debts[:at]))
    wrong = signed_by_names(message, [pair.sells.provider])
    pair.sells.keep(wrong)
    assert told(audit_records(pair.files_of_one())) == [("set-off-mismatch", Party.PROVIDER, False)]
    assert right.id != wrong.id


def test_a_fault_of_both_follows_from_what_both_are_bound_to() -> None:
    bundles = set_off_in_another_currency()
    (finding,) = audit_records(set_off_in_another_currency()).findings
    exhibits = [exhibit_of(parse_json_line(line)) for one in bundles for line in one.lines]
    assert finding.convinces and follows(claim_of(finding), exhibits) == follows(claim_of(finding), exhibits)
    assert follows(claim_of(finding), exhibits) is not None
    alone = [one for one in exhibits if one.record.payload_type == "/p2pgrid/set-off/1"]
    assert follows(claim_of(finding), alone) is None


def test_one_channel_s_file_says_nothing_of_the_other_channel() -> None:
    """Nor does a file that has both make the other sides of the channels look incomplete."""
    pair = mutual()
    pair.keep(pair.set_off())
    for files in (pair.files_of_one(), pair.files()[2:], pair.files()[:1], pair.files()[3:], pair.files()):
        assert told(audit_records(files)) == []


def test_many_set_offs_cost_no_product_with_channels() -> None:
    """A thousand channels with a set-off each, and one invoice that all of them name."""
    pair: Pair = mutual()
    lines = [one.record.to_json_line() for one in pair.sells.provider_has]
    invoice = pair.invoices[id(pair.sells)][0]
    for n in range(300):
        back = Dealings(provider=key("client"), client=key("provider"), nonce=f"many {n}").channel
        sides = set_off_side(pair.sells.channel, (invoice, 1)), set_off_side(back, (invoice, 1))
        agreed_ms = pair.statements[id(pair.sells)][0].message.stated_ms + DAY_MS
        one = make_set_off(*sides, pair.keys, agreed_ms=agreed_ms, nonce=digest("many", n))
        lines += [back.record.to_json_line(), one.record.to_json_line()]
    started = time.process_time()
    verdict = audit_records([bundle_of(lines)])
    assert {one.code for one in verdict.findings} == {"set-off-mismatch"}
    assert time.process_time() - started < 10
