"""What must be true of two honest sides when a history has come to its end."""

from __future__ import annotations

from collections import Counter
from typing import Final

from p2pgrid.proto.messages import Receipt, Status
from p2pgrid.proto.pricing import owes_nothing, usage_of
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.verdict import Bundle, Verdict, audit_records
from tests.simulation.observer import Broken, Sale
from tests.simulation.world import SIDES, World

HARMLESS_NOTES: Final = frozenset({"voucher-not-counted", "not-received"})
"""Notes that an audit may make of two honest ledgers: vouchers and meters are lost on their way."""


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
    sent, got, billed = usage_of(sale.sent), usage_of(sale.got), receipt.usage
    # What a cancelled order bills, or a free one states, may have waited for the disk when the link was lost; all else
    # has left before.
    unsent = window if receipt.status is Status.CANCELLED or owes_nothing(receipt.status) else 0
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


def bundle(world: World, side: Role, *, evidence: bool = False) -> Bundle:
    """A side's export."""
    ledger = world.ledger(side).real
    records = list(ledger.records())
    if evidence:
        records += [record for record, _ in ledger.evidence()]
    return Bundle(f"{side}.jsonl", list(enumerate(records, start=1)), side)


def audit(world: World, *sides: Role) -> Verdict:
    """What an auditor says of the sides' exports."""
    return audit_records(bundle(world, side) for side in sides)


def check_audit(world: World, *sides: Role) -> None:
    """The auditor finds nothing."""
    verdict = audit(world, *sides)
    names = " and ".join(sides)
    require(verdict.clean, f"the audit of {names} finds {[(f.code, f.party, f.sentence) for f in verdict.findings]}.")
    notes = [n for n in verdict.notes if n.code not in HARMLESS_NOTES]
    require(not notes, f"the audit of {names} notes {[(n.code, n.sentence) for n in notes]}.")
