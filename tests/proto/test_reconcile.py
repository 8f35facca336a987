"""What is left of two ledgers is brought together, whatever either of them lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, P2pgridError, ProtocolViolation, Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Receipt, Status, Usage, Voucher
from p2pgrid.proto.reconcile import answer_proposal, check_restored
from p2pgrid.proto.record import Record, Role, Signed, parse_message, sign_message
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.verdict import audit_records
from tests.factories import resigned
from tests.proto.chains import WINDOW, Dealings, key
from tests.proto.reconciling import Resuming


def history(random: Random) -> Dealings:
    """Honest dealings, up to a moment at which the link was lost."""
    d = Dealings()
    for _ in range(random.randrange(4)):
        if random.random() < 0.2:
            d.deal(Status.FAILED, output=random.randrange(300))
        else:
            d.deal(Status.COMPLETED, output=random.randrange(1, 700))
    for _ in range(random.randrange(4)):
        open_order(d, random, proposed=random.random() < 0.4)
    return d


def open_order(d: Dealings, random: Random, *, proposed: bool) -> None:
    """An order under way when the link went: its last vouchers may be on their way, or its receipt."""
    order = d.order(by=random.choice(("both", "both", "client")))
    if order not in d.provider_has:
        return
    n = random.randrange(4)
    lost_from = n - random.choice((0, 0, 1, 2))
    for tick in range(n):
        arrives = tick < lost_from
        meter = d.meter(order, Usage(prompt_tokens=40, output_tokens=(tick + 1) * WINDOW // 2), by="both")
        d.voucher(meter, by="both" if arrives else "client")
    if proposed and lost_from >= n:
        usage = Usage(prompt_tokens=40, output_tokens=n * WINDOW // 2 + 5)
        receipt = d.receipt(order, usage, by="provider", countersign=False)
        if random.random() < 0.5 and all(Role.CLIENT in one.signers for one in known_to_client(d)[:-1]):
            d.keep(receipt.countersigned(Role.CLIENT, d.client), by="client")


def known_to_client(d: Dealings) -> list[Signed[Receipt]]:
    signed = {one.id: one for one in d.client_has}
    return [signed.get(one.id, one) for one in d.receipts]


def cut_off(records: Sequence[Signed[Any]], at: int) -> Sequence[Signed[Any]]:
    """What was written before some moment; a tick and its voucher are one write of the client's."""
    while at < len(records) and isinstance(records[at].message, Voucher):
        at += 1
    return records[:at]


async def ledger_of(records: Sequence[Signed[Any]]) -> MemoryLedger:
    ledger = MemoryLedger()
    for one in records:
        await ledger.append(one)
    return ledger


async def resuming(d: Dealings, provider: Sequence[Signed[Any]], client: Sequence[Signed[Any]]) -> Resuming:
    return Resuming(
        channel=d.channel,
        provider=await ledger_of(provider),
        client=await ledger_of(client),
        provider_key=d.provider,
        client_key=d.client,
        now_ms=d.now_ms + 1000,
    )


def bundles(r: Resuming) -> list[Bundle]:
    return [
        Bundle("provider", list(enumerate(r.provider.records(), 1)), Role.PROVIDER),
        Bundle("client", list(enumerate(r.client.records(), 1)), Role.CLIENT),
    ]


def check_agreed(r: Resuming, sold: ChannelBooks, bought: ChannelBooks) -> None:
    """Nothing is open, both hold the same chain, and an auditor finds nothing."""
    ours, theirs = r.provider.head(r.id), r.client.head(r.id)
    chain = ("last_receipt_number", "last_receipt_id", "total_pico", "countersigned", "countersigned_pico")
    for name in chain:
        assert getattr(ours, name) == getattr(theirs, name) == getattr(sold, name) == getattr(bought, name), name
    assert ours.countersigned == ours.last_receipt_number
    assert sold.open_orders == bought.open_orders == sold.disputed == bought.disputed == 0
    assert r.provider.open_orders(r.id) == r.client.open_orders(r.id) == []
    assert bought.last_order_number >= ours.last_order_number
    verdict = audit_records(bundles(r))
    assert verdict.clean, verdict.findings
    for bundle in bundles(r):
        verdict = audit_records([bundle])
        assert verdict.clean, verdict.findings


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**64))
def test_a_lost_link_leaves_both_sides_agreed(seed: int) -> None:
    async def run() -> None:
        d = history(Random(seed))
        vouched = {one.message.order_number: one.message for one in (v for vs in d.vouchers.values() for v in vs)}
        r = await resuming(d, d.provider_has, d.client_has)
        check_agreed(r, *await r.run())
        for row in r.client.receipts():
            if row.receipt.status is Status.INTERRUPTED:
                last = vouched.get(row.receipt.order_number)
                assert row.receipt.usage == (last.usage if last is not None else Usage())
        again = Resuming(d.channel, r.provider, r.client, d.provider, d.client, d.now_ms)
        check_agreed(again, *await again.run())
        assert (again.restored[Role.PROVIDER], again.restored[Role.CLIENT], again.rounds) == (0, 0, 1)

    asyncio.run(run())


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**64))
def test_whatever_end_of_a_ledger_is_lost_comes_back(seed: int) -> None:
    """Either side, or both, lose everything that was written after some moment."""

    async def run() -> None:
        random = Random(seed)
        d = history(random)
        sides = random.choice(("provider", "client", "both"))
        has = {"provider": d.provider_has, "client": d.client_has}
        cut = {
            side: cut_off(records, random.randint(2, len(records))) if sides in (side, "both") else records
            for side, records in has.items()
        }
        r = await resuming(d, cut["provider"], cut["client"])
        before = {row.record_id for ledger in (r.provider, r.client) for row in ledger.receipts()}
        sold, bought = await r.run()
        check_agreed(r, sold, bought)
        after = {row.record_id for row in r.provider.receipts()}
        assert before <= after, "a receipt that either side held has gone"
        known = {one.id for one in d.receipts}
        replaced = [row for row in r.provider.receipts() if row.record_id not in known]
        assert all(row.receipt.status is Status.INTERRUPTED for row in replaced)

    asyncio.run(run())


async def test_more_than_one_exchange_holds_takes_several() -> None:
    d = Dealings()
    for _ in range(500):
        d.deal(Status.COMPLETED, output=300)
    for provider, client in ((d.provider_has, d.client_has[:2]), (d.provider_has[:2], d.client_has)):
        r = await resuming(d, provider, client)
        check_agreed(r, *await r.run())
        assert r.rounds > 1
        assert sum(r.restored.values()) > 1024


async def test_two_receipts_of_one_number_end_the_resume() -> None:
    """The provider came back with an old ledger, and did not wait for the client."""
    d = Dealings()
    d.deal(Status.COMPLETED, output=10)
    order = d.order()
    ledgers = [list(d.provider_has), list(d.client_has)]
    one = d.receipt(order, Usage(prompt_tokens=40, output_tokens=5), by="client")
    d.receipts.pop()
    other = d.receipt(order, Usage(prompt_tokens=40, output_tokens=6), by="provider", countersign=False)
    assert one.message.receipt_number == other.message.receipt_number == 2
    r = await resuming(d, [*ledgers[0], other], [*ledgers[1], one])
    with pytest.raises(Refused, match="different receipts 2") as refused:
        await r.run()
    assert refused.value.code == "forked-chain"


async def test_a_client_that_keeps_its_receipts_back_is_not_resumed() -> None:
    """The provider lost its ledger's end and asks for it: what it does not get it must not number again."""
    d = Dealings()
    d.deal(Status.COMPLETED, output=10)
    kept = list(d.provider_has)
    d.deal(Status.COMPLETED, output=10)
    r = await resuming(d, kept, d.client_has)
    r.to_provider = lambda records: ()
    with pytest.raises(Refused) as refused:
        await r.run()
    assert refused.value.code == "forked-chain"


def without(payload_type: str) -> Callable[[Sequence[Record]], Sequence[Record]]:
    return lambda records: [one for one in records if one.payload_type != payload_type]


def unsigned_by(role: Role, payload_type: str) -> Callable[[Sequence[Record]], Sequence[Record]]:
    """As if that role had not signed the records of the type."""

    def change(records: Sequence[Record]) -> Sequence[Record]:
        return [
            Record(one.payload_type, one.payload, tuple(s for s in one.signatures if s.role is not role))
            if one.payload_type == payload_type
            else one
            for one in records
        ]

    return change


def resigned_by(name: str, role: Role, payload_type: str) -> Callable[[Sequence[Record]], Sequence[Record]]:
    def change(records: Sequence[Record]) -> Sequence[Record]:
        bare = unsigned_by(role, payload_type)(records)
        return [
            Signed(None, one, one.id, {}).countersigned(role, key(name)).record  # type: ignore[type-var]
            if one.payload_type == payload_type
            else one
            for one in bare
        ]

    return change


def never_taken(records: Sequence[Record]) -> Sequence[Record]:
    """Orders, and nothing that the provider signed on them."""
    return [one for one in records if one.payload_type in ("/p2pgrid/offer/1", "/p2pgrid/order/1")]


OFFER, ORDER, METER, VOUCHER, RECEIPT = (
    f"/p2pgrid/{name}/1" for name in ("offer", "order", "meter", "voucher", "receipt")
)
PROVIDER, CLIENT = Role.PROVIDER, Role.CLIENT
LIES: list[tuple[str, Role, Callable[[Sequence[Record]], Sequence[Record]], str]] = [
    ("a voucher of the provider's own making", CLIENT, resigned_by("provider", CLIENT, VOUCHER), "wrong-key"),
    ("an order of the provider's own making", CLIENT, resigned_by("provider", CLIENT, ORDER), "wrong-key"),
    ("a receipt that the client did not sign", CLIENT, unsigned_by(CLIENT, RECEIPT), "protocol"),
    ("a voucher without its tick", CLIENT, without(METER), "protocol"),
    ("receipts without their orders", CLIENT, without(ORDER), "protocol"),
    ("orders without their offer", CLIENT, without(OFFER), "protocol"),
    ("receipts in another order", CLIENT, lambda records: records[::-1], "receipt-gap"),
    ("a meter of the client's own making", PROVIDER, resigned_by("client", PROVIDER, METER), "wrong-key"),
    ("a receipt of the client's own making", PROVIDER, resigned_by("client", PROVIDER, RECEIPT), "wrong-key"),
    ("orders that were never taken", PROVIDER, never_taken, "protocol"),
]


@pytest.mark.parametrize(("victim", "lie", "code"), [x[1:] for x in LIES], ids=[x[0] for x in LIES])
async def test_what_is_not_signed_by_whom_it_binds_is_not_taken(
    victim: Role, lie: Callable[[Sequence[Record]], Sequence[Record]], code: str
) -> None:
    d = Dealings(offer_changes={"sequence": 2})
    d.deal(Status.COMPLETED, output=300)
    d.deal(Status.COMPLETED, output=300)
    lost = [d.channel]
    whole, empty = (d.provider_has, lost) if victim is Role.CLIENT else (lost, d.client_has)
    r = await resuming(d, whole, empty)
    if victim is Role.CLIENT:
        r.to_client = lie
    else:
        r.to_provider = lie
    ledger = r.client if victim is Role.CLIENT else r.provider
    with pytest.raises(P2pgridError) as error:
        await r.run()
    assert isinstance(error.value, ProtocolViolation if code == "protocol" else InvalidRecord), error.value
    if isinstance(error.value, InvalidRecord):
        assert error.value.code == code
    assert ledger.head(d.channel.message.channel) == ChannelHead(0, 0, d.channel.id, 0, 0)
    assert list(ledger.records()) == [d.channel.record]


def cheaper_orders(records: Sequence[Record]) -> Sequence[Record]:
    """Another order of the same number, which caps what was metered."""
    return [
        resigned(parse(one), key("client"), CLIENT, max_output_tokens=1).record if one.payload_type == ORDER else one
        for one in records
    ]


def parse(record: Record) -> Signed[Any]:
    return Signed(parse_message(record, MESSAGE_TYPES[record.payload_type]), record, record.id, {})


async def test_an_order_of_other_terms_does_not_take_the_place_of_one_that_was_lost() -> None:
    """What the provider metered would look like more than was ordered, and be its own fault."""
    d = Dealings()
    order = d.order()
    d.voucher(d.meter(order, Usage(prompt_tokens=40, output_tokens=100)))
    r = await resuming(d, [d.channel], d.client_has)
    r.to_provider = cheaper_orders
    with pytest.raises(InvalidRecord) as error:
        await r.run()
    assert error.value.code == "over-caps"
    assert list(r.provider.records()) == [d.channel.record]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"by": Role.PROVIDER}, ProtocolViolation),
        ({"receipt_number": 7}, InvalidRecord),
        ({"channel": bytes(32)}, InvalidRecord),
        ({"owed_pico": 10**15}, InvalidRecord),
    ],
)
async def test_a_dispute_that_does_not_fit_its_receipt_is_not_restored(
    changes: dict[str, Any], expected: type[P2pgridError]
) -> None:
    """The provider's ledger has no place for it: a write would fail, and hold up every client."""
    d = Dealings()
    receipt = d.receipt(d.order(), Usage(prompt_tokens=40, output_tokens=9), countersign=False)
    fields: dict[str, Any] = {
        "channel": receipt.message.channel,
        "receipt_number": 1,
        "receipt": receipt.id,
        "by": Role.CLIENT,
        "reason": "wrong-count",
        "statement": "It is not so.",
        "owed_pico": 0,
        "disputed_ms": receipt.message.issued_ms,
    }
    dispute = sign_message(Dispute(**{**fields, **changes}), Role.CLIENT, d.client)
    kept = [one for one in d.client_has if one.id != d.channel.id]
    records = [one.record for one in (*kept, dispute)]
    provider = await ledger_of([d.channel])
    with pytest.raises(expected):
        check_restored(records, provider, d.channel, Role.PROVIDER)
    honest = sign_message(Dispute(**fields), Role.CLIENT, d.client)
    assert check_restored([*records[:-1], honest.record], provider, d.channel, Role.PROVIDER)[-1].id == honest.id


def billed_again(d: Dealings, order: Signed[Any], **changes: Any) -> Signed[Receipt]:
    return d.receipt(order, Usage(prompt_tokens=40, output_tokens=9), by="provider", countersign=False, **changes)


async def test_an_order_is_not_paid_under_a_second_number() -> None:
    d = Dealings()
    d.deal(Status.COMPLETED, output=9)
    client = await ledger_of(d.client_has)
    books = restore_books(client, d.channel, Role.CLIENT)
    (order,) = [one for one in d.client_has if one.record.payload_type == ORDER]
    with pytest.raises(InvalidRecord) as error:
        answer_proposal(
            billed_again(d, order).record, client, books, key=d.client, delivered={}, now_ms=d.now_ms + 1000
        )
    assert error.value.code == "order-billed-twice"


async def test_an_order_that_was_closed_without_a_receipt_is_billed_as_vouched_at_most() -> None:
    d = Dealings()
    order = d.order()
    client = await ledger_of(d.client_has)
    await client.note_outcome(order, "never-arrived")
    books = restore_books(client, d.channel, Role.CLIENT)
    answered = answer_proposal(
        billed_again(d, order).record, client, books, key=d.client, delivered={}, now_ms=d.now_ms + 1000
    )
    assert answered.dispute is not None
    assert (answered.dispute.message.reason, answered.dispute.message.owed_pico) == ("wrong-count", 0)


async def test_what_is_proposed_unsigned_is_no_evidence() -> None:
    d = Dealings()
    order = d.order()
    client = await ledger_of(d.client_has)
    books = restore_books(client, d.channel, Role.CLIENT)
    proposal = billed_again(d, order).record
    for bad in (unsigned_by(PROVIDER, RECEIPT)([proposal])[0], resigned_by("client", PROVIDER, RECEIPT)([proposal])[0]):
        with pytest.raises(ProtocolViolation):
            answer_proposal(bad, client, books, key=d.client, delivered={}, now_ms=d.now_ms + 1000)
