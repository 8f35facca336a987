"""What must be true of two honest sides when a history has come to its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.codes import Party
from p2pgrid.proto.evidence import slot_of
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Channel, Receipt, Status
from p2pgrid.proto.pricing import owes_nothing, usage_of
from p2pgrid.proto.record import Record, Role, Signature, Signed, parse_message, signature_input_of
from p2pgrid.proto.restore import disputed_by_client, restore_books
from p2pgrid.proto.verdict import Verdict, audit_records
from tests.simulation.ledgers import RealLedger
from tests.simulation.observer import Broken, Sale
from tests.simulation.world import SIDES, World

HARMLESS_NOTES: Final = frozenset({"voucher-not-counted", "not-received"})
"""Notes that an audit may make of two honest ledgers: vouchers and meters are lost on their way."""


WANTING: Final = frozenset({"receipt-gap", "meter-gap", "record-missing"})
"""What is found of a file into which evidence was put: it holds what builds on records that nobody showed."""


def require(truth: bool, sentence: str) -> None:
    if not truth:
        raise Broken(sentence)


def check_agreement(world: World) -> None:
    """Both ledgers tell the same story, nothing is open, and what is billed is what went over the wire."""
    provider, client = (world.ledger(side).real for side in SIDES)
    channels = {c.message.channel for c in client.channels()}
    require(channels == {c.message.channel for c in provider.channels()}, "the two hold different channels.")
    for channel in sorted(channels):
        ours, theirs = client.head(channel), provider.head(channel)
        same = (
            (ours.last_receipt_number, ours.last_receipt_id, ours.total_pico, ours.countersigned)
            == (theirs.last_receipt_number, theirs.last_receipt_id, theirs.total_pico, theirs.countersigned)
        )  # fmt: skip
        require(same, f"the chains differ: the client has {ours}, the provider {theirs}.")
        require(theirs.countersigned == theirs.last_receipt_number, "a receipt lacks its countersignature.")
        for side, ledger in (("client", client), ("provider", provider)):
            still = [o.order.message.order_number for o in ledger.open_orders(channel)]
            require(not still, f"orders {still} are still open in the {side}'s ledger.")
            require(not ledger.proposals(channel), f"proposals wait in the {side}'s ledger.")
        receipts = [provider.receipt(channel, n) for n in range(1, theirs.last_receipt_number + 1)]
        check_receipts(world, [r for r in receipts if r is not None], theirs.total_pico)
    for books in (world.process(Role.CLIENT).books, *(c.books for c in world.process(Role.PROVIDER).channels.values())):
        if books is not None:
            require(books.open_orders == 0, f"{books.open_orders} orders are open in memory, none on disk.")
            require(books.reserved_pico == 0, "money is reserved for no order.")


def check_receipts(world: World, receipts: list[Signed[Receipt]], total_pico: int) -> None:
    """No order is billed twice, and none for what did not go over the wire."""
    orders = Counter(r.message.order_number for r in receipts)
    require(all(n == 1 for n in orders.values()), f"an order was billed twice: {orders.most_common(1)}.")
    require(sum(r.message.amount_pico for r in receipts) == total_pico, "the total is not the sum.")
    for receipt in receipts:
        sale = world.observer.sales.get(receipt.message.order)
        require(sale is not None, "a receipt is for an order that was never placed.")
        assert sale is not None
        check_sale(sale, receipt.message, world.observer.window)


def check_sale(sale: Sale, receipt: Receipt, window: int) -> None:
    """The bound, for one order between two honest sides."""
    name = f"order {receipt.order_number}, {receipt.status}"
    sale.receipt = receipt
    if sale.order.is_batch:
        check_batch(sale, receipt, window, name)
        return
    sent, got, billed = sale.sent, sale.got, receipt.usage
    # What a cancelled order bills, or a free one states, may have waited for the disk when the link was lost; all else
    # has left before.
    unsent = (
        max(window, sale.largest_event) if receipt.status is Status.CANCELLED or owes_nothing(receipt.status) else 0
    )
    require(billed.output_tokens <= sent.output_tokens + unsent, f"{name}: more is billed than was sent.")
    if sent.prompt_tokens:
        require(billed.prompt_tokens in (0, sent.prompt_tokens), f"{name}: another prompt is billed than was sent.")
    if owes_nothing(receipt.status):
        require(receipt.amount_pico == 0, f"{name}: something is owed.")
        return
    lost = sent.output_tokens - billed.output_tokens
    most = max(window, sale.largest_event)
    require(lost <= most, f"{name}: the provider lost {lost} tokens; W is {window}, an event {sale.largest_event}.")
    beyond = billed.output_tokens - got.output_tokens
    require(beyond <= window, f"{name}: the client is billed {beyond} tokens that never came; W is {window}.")
    if receipt.status is Status.COMPLETED and beyond == 0:
        require(billed.output_tokens == got.output_tokens, f"{name}: completed, and not all of it billed.")


def check_batch(sale: Sale, receipt: Receipt, window: int, name: str) -> None:
    """The bound, for one batch order between two honest sides; and each line says what left."""
    sent, got, billed = sale.sent, sale.got, receipt.usage
    require(billed.output_tokens <= sent.output_tokens, f"{name}: more is billed than was sent.")
    require(billed.prompt_tokens <= sent.prompt_tokens, f"{name}: longer prompts are billed than were read.")
    lost = sale.sent_for_pay.output_tokens - billed.output_tokens
    most = max(window, sale.largest_event)
    require(lost <= most, f"{name}: the provider lost {lost} tokens; W is {window}, an event {sale.largest_event}.")
    beyond = billed.output_tokens - got.output_tokens
    require(beyond <= window, f"{name}: the client is billed {beyond} tokens that never came; W is {window}.")
    if receipt.status is not Status.COMPLETED:
        require(not receipt.requests, f"{name}: it lists requests.")
        return
    require(billed == sale.sent_for_pay, f"{name}: {billed} is billed, and {sale.sent_for_pay} is owed.")
    taken = [one for one in sale.parts if one.is_taken]
    require(len(taken) == len(receipt.requests), f"{name}: {len(taken)} were taken, {len(receipt.requests)} listed.")
    for one, line in zip(taken, receipt.requests, strict=True):
        require(line.usage == usage_of(one.sent), f"{name}: a line says {line.usage}; {usage_of(one.sent)} was sent.")
        require(line.status is (one.ended or Status.COMPLETED), f"{name}: a line is {line.status}, it was {one.ended}.")


# -- one honest side, and one that lies ---------------------------------------------------------------------------


def check_honest(world: World, side: Role) -> None:
    """The honest side's ledger is sound, it lost no more than is published, and no audit blames it."""
    if not world.runs(side):
        world.start(side)
    ledger = world.ledger(side).real
    for channel in ledger.channels():
        check_chain(ledger, channel, side)
        books = restore_books(ledger, channel, side)
        require(books.total_pico >= books.countersigned_pico, "more is countersigned than was billed.")
        if side is Role.PROVIDER:
            world.observer.check_exposure(books.id, world.clock(side))
    liar = Role.CLIENT if side is Role.PROVIDER else Role.PROVIDER
    sides = (side,) if not world.runs(liar) else SIDES
    for evidence in (False, True):
        for of in {(side,), sides}:
            check_blame(world, audit(world, *of, evidence=evidence), side, liar, evidence=evidence)


def check_chain(ledger: RealLedger, channel: Signed[Channel], side: Role) -> None:
    """The receipts of a channel as one side keeps them: no gap, no order twice, each answered by whoever keeps it."""
    number, previous, total, orders = 0, channel.id, 0, set()
    disputed = disputed_by_client(ledger, channel.message.channel)
    for number in range(1, ledger.head(channel.message.channel).last_receipt_number + 1):
        receipt = ledger.receipt(channel.message.channel, number)
        require(receipt is not None, f"the {side}'s ledger lacks receipt {number}.")
        assert receipt is not None
        message, total = receipt.message, total + receipt.message.amount_pico
        require(message.previous == previous, f"the {side}'s receipt {number} does not name the one before it.")
        require(message.channel_total_pico == total, f"the {side}'s receipt {number} has a wrong total.")
        require(message.order_number not in orders, f"order {message.order_number} is billed twice.")
        orders.add(message.order_number)
        previous = receipt.id
        answered = Role.CLIENT in receipt.signers or number in disputed
        require(side is Role.PROVIDER or answered, f"the client keeps receipt {number} without an answer.")


def check_blame(world: World, verdict: Verdict, honest: Role, liar: Role, *, evidence: bool) -> None:
    """Nobody blames the honest side; what a file lacks that holds evidence too is no fault. What is proven is found."""
    ours = [f for f in verdict.findings if f.party in (Party(honest.value), Party.BOTH)]
    blamed = [f for f in ours if not evidence or f.code not in WANTING]
    require(not blamed, f"an audit blames the honest {honest}: {[(f.code, f.sentence) for f in blamed]}.")
    found = {f.code for f in verdict.findings if f.party is Party(liar.value)}
    world.found.update(found)
    if evidence:
        for code in proven_by(world, honest, liar):
            require(code in found, f"the {honest} holds proof of {code}, and the audit names nobody for it.")


def proven_by(world: World, honest: Role, liar: Role) -> set[str]:
    """What the records that the honest side keeps prove against the liar, by the plainest of rules."""
    ledger = world.ledger(honest).real
    slots: dict[tuple[Any, ...], set[bytes]] = defaultdict(set)
    channels = {one.message.channel for one in ledger.channels()}
    for record in (*ledger.records(), *(record for record, _ in ledger.evidence())):
        signature = record.signature_of(liar)
        if signature is None or not is_signed(record, signature):
            continue
        try:
            message = parse_message(record, MESSAGE_TYPES[record.payload_type])
        except InvalidRecord:
            continue
        if getattr(message, "channel", None) in channels:
            slots[type(message), *slot_of(message)].add(record.id)
    return {"two-records-one-slot"} if any(len(ids) > 1 for ids in slots.values()) else set()


def is_signed(record: Record, signature: Signature) -> bool:
    """True if the signature fits the record."""
    return parse_public_key(signature.key).verify(signature_input_of(record), signature.signature)


def bundle(world: World, side: Role, *, evidence: bool = False) -> Bundle:
    """A side's export."""
    ledger = world.ledger(side).real
    records = list(ledger.records())
    if evidence:
        records += [record for record, _ in ledger.evidence()]
    return Bundle(f"{side}.jsonl", list(enumerate(records, start=1)), side)


def audit(world: World, *sides: Role, evidence: bool = False) -> Verdict:
    """What an auditor says of the sides' exports."""
    return audit_records(bundle(world, side, evidence=evidence) for side in sides)


def check_audit(world: World, *sides: Role) -> None:
    """The auditor finds nothing."""
    verdict = audit(world, *sides)
    names = " and ".join(sides)
    require(verdict.clean, f"the audit of {names} finds {[(f.code, f.party, f.sentence) for f in verdict.findings]}.")
    notes = [n for n in verdict.notes if n.code not in HARMLESS_NOTES]
    require(not notes, f"the audit of {names} notes {[(n.code, n.sentence) for n in notes]}.")
