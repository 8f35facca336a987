"""What stands in tests/vectors/exchanges.json: channels that are resumed, and disputes that are compared.

What each side holds, and every message of the exchange in its order (docs/spec/session.md, section 10; disputes.md, 3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.dispute_exchange import check_sent, compare, page_of, record_of
from p2pgrid.proto.messages import Channel, Receipt, Status, Usage
from p2pgrid.proto.proposal import accept_countersignature, accept_dispute
from p2pgrid.proto.reconcile import (
    answer_proposal,
    check_restored,
    check_same_chain,
    held_of,
    interrupt_open_orders,
    lacking,
    open_proposals,
)
from p2pgrid.proto.record import Record, Role, Signed, sign_message
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.wire.channels import Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind
from tests.factories import make_answer, make_dispute, resigned
from tests.proto.chains import DAY_MS, WINDOW, Dealings, key

PROVIDER, CLIENT = "provider", "client"
Message = tuple[str, Kind, bytes]


def exchange_vectors() -> dict[str, Any]:
    """Both kinds."""
    return {
        "provider_seed": key("provider").expose_seed().hex(),
        "client_seed": key("client").expose_seed().hex(),
        "resumes": [asyncio.run(_resumed(name, make())) for name, make in RESUMES.items()],
        "disputes": [asyncio.run(_compared(name, make())) for name, make in DISPUTES.items()],
    }


async def _ledger(records: Sequence[Signed[Any]]) -> MemoryLedger:
    ledger = MemoryLedger()
    for one in records:
        await ledger.append(one)
    return ledger


def _told(name: str, grid: Dealings, messages: list[Message], fault: str, now_ms: int) -> dict[str, Any]:
    return {
        "case": name,
        "now_ms": now_ms,
        "provider": [one.record.to_json_line().decode() for one in grid.provider_has],
        "client": [one.record.to_json_line().decode() for one in grid.client_has],
        "messages": [[who, kind.name, payload.hex()] for who, kind, payload in messages],
        "fault": fault,
    }


async def _resumed(name: str, grid: Dealings) -> dict[str, Any]:
    now_ms = grid.now_ms + 1000
    sold, bought = await _ledger(grid.provider_has), await _ledger(grid.client_has)
    messages: list[Message] = []
    fault = ""
    try:
        while not await _round(grid, sold, bought, messages, now_ms):
            pass
    except Refused as refused:
        fault = refused.code
    except InvalidRecord as invalid:
        fault = invalid.code
    except ProtocolViolation:
        fault = "violation"
    return _told(name, grid, messages, fault, now_ms)


async def _round(
    grid: Dealings, sold: MemoryLedger, bought: MemoryLedger, messages: list[Message], now_ms: int
) -> bool:
    channel: Signed[Channel] = grid.channel
    channel_id = channel.message.channel
    held = held_of(bought, channel_id)
    messages.append((CLIENT, Kind.RESUME, Resume(channel=channel.record.to_bytes(), held=held).to_bytes()))
    check_same_chain(sold, channel, held)
    theirs = held_of(sold, channel_id)
    to_client = lacking(sold, channel_id, held, Role.PROVIDER)
    messages.append((PROVIDER, Kind.RESUMED, Resumed(held=theirs, records=len(to_client.records)).to_bytes()))
    messages += _records(PROVIDER, to_client.records)
    check_same_chain(bought, channel, theirs)
    await bought.append(*check_restored(to_client.records, bought, channel, Role.CLIENT))
    to_provider = lacking(bought, channel_id, theirs, Role.CLIENT)
    count = Records(records=len(to_provider.records), is_all=to_provider.is_all)
    messages.append((CLIENT, Kind.RECORDS, count.to_bytes()))
    messages += _records(CLIENT, to_provider.records)
    await sold.append(*check_restored(to_provider.records, sold, channel, Role.PROVIDER))
    if not (to_client.is_all and to_provider.is_all):
        messages.append((PROVIDER, Kind.PROPOSALS, Proposals(proposals=0, is_all=False).to_bytes()))
        return False
    check_same_chain(sold, channel, held, is_caught_up=True)
    await _settle(grid, sold, bought, messages, now_ms)
    return True


async def _settle(
    grid: Dealings, sold: MemoryLedger, bought: MemoryLedger, messages: list[Message], now_ms: int
) -> None:
    channel: Signed[Channel] = grid.channel
    books, own = restore_books(sold, channel, Role.PROVIDER), restore_books(bought, channel, Role.CLIENT)
    waiting = open_proposals(sold, books.id)
    made = interrupt_open_orders(sold, books, key=grid.provider, now_ms=now_ms)
    await sold.append(*made)
    proposals = [*waiting, *made]
    messages.append((PROVIDER, Kind.PROPOSALS, Proposals(proposals=len(proposals), is_all=True).to_bytes()))
    messages += [(PROVIDER, Kind.RECEIPT, one.record.to_bytes()) for one in proposals]
    for proposal in proposals:
        answer = answer_proposal(proposal.record, bought, own, key=grid.client, delivered={}, now_ms=now_ms)
        messages.append((CLIENT, answer.kind, answer.payload))
        await bought.append(*answer.persist)
        if answer.kind == Kind.COUNTERSIGNATURE:
            await sold.append(accept_countersignature(proposal, answer.payload, books))
        else:
            await sold.append(accept_dispute(proposal, answer.payload, books, now_ms))


def _records(who: str, records: Sequence[Record]) -> list[Message]:
    return [(who, Kind.RECORD, one.to_bytes()) for one in records]


def _under_way(ticks: int, arrived: int, *, heard: bool = True) -> Dealings:
    """A settled order, and one with so many ticks of which so many vouchers arrived."""
    grid = Dealings()
    grid.deal(output=100)
    order = grid.order(by="both" if heard else CLIENT)
    for tick in range(1, ticks + 1):
        meter = grid.meter(order, Usage(prompt_tokens=40, output_tokens=tick * WINDOW // 2))
        grid.voucher(meter, by="both" if tick <= arrived else CLIENT)
    return grid


def _proposed(*, signed: bool, output: int = 140, **changes: Any) -> Dealings:
    """An order whose receipt was on its way, or whose countersignature was."""
    grid = _under_way(1, 1)
    order = next(one for one in grid.client_has if getattr(one.message, "order_number", 0) == 2)
    usage = Usage(prompt_tokens=40, output_tokens=output)
    receipt = grid.receipt(order, usage, by=PROVIDER, countersign=False, **changes)
    if signed:
        grid.keep(receipt.countersigned(Role.CLIENT, grid.client), by=CLIENT)
    return grid


def _lost_end(side: str) -> Dealings:
    """One side's ledger lost its last order."""
    grid = Dealings()
    grid.deal(output=100)
    grid.deal(Status.CANCELLED, output=200)
    book = grid.provider_has if side == PROVIDER else grid.client_has
    book[:] = [one for one in book if getattr(one.message, "order_number", 0) != 2]
    return grid


def _disputed_lost() -> Dealings:
    """The client disputed a receipt; its dispute never arrived."""
    grid = _proposed(signed=False)
    receipt: Signed[Receipt] = grid.receipts[-1]
    grid.keep(receipt, by=CLIENT)
    grid.keep(resigned(make_dispute(receipt), grid.client, Role.CLIENT, reason="wrong-count"), by=CLIENT)
    return grid


def _forked() -> Dealings:
    grid = Dealings()
    receipt = grid.deal(output=100)
    other = msgspec.structs.replace(receipt.message, total_ms=1)
    signed = sign_message(other, Role.PROVIDER, grid.provider).countersigned(Role.CLIENT, grid.client)
    grid.client_has[:] = [signed if one.id == receipt.id else one for one in grid.client_has]
    return grid


RESUMES: dict[str, Callable[[], Dealings]] = {
    "nothing is left": lambda: _under_way(0, 0, heard=False),
    "the last voucher never arrived": lambda: _under_way(3, 2),
    "no voucher at all": lambda: _under_way(0, 0),
    "the receipt never arrived": lambda: _proposed(signed=False),
    "the receipt never arrived, and bills a window beyond the voucher": lambda: _proposed(signed=False, output=384),
    "the receipt never arrived, and bills a token more": lambda: _proposed(signed=False, output=385),
    "the countersignature never arrived": lambda: _proposed(signed=True),
    "the dispute never arrived": _disputed_lost,
    "the provider lost the end of its ledger": lambda: _lost_end(PROVIDER),
    "the client lost the end of its ledger": lambda: _lost_end(CLIENT),
    "two receipts of one number": _forked,
}


# -- disputes -----------------------------------------------------------------------------------------------------


async def _compared(name: str, grid: Dealings) -> dict[str, Any]:
    now_ms = grid.now_ms + DAY_MS
    sold, bought = await _ledger(grid.provider_has), await _ledger(grid.client_has)
    channel: Signed[Channel] = grid.channel
    messages: list[Message] = []
    fault = ""
    try:
        held = page_of(bought, channel.message.channel, 0)
        messages.append((CLIENT, Kind.DISPUTES, held.to_bytes()))
        compared, sent = compare(sold, held)
        messages.append((PROVIDER, Kind.DISPUTES_COMPARED, compared.to_bytes()))
        messages += _records(PROVIDER, sent)
        await bought.append(*check_sent(sent, bought, channel, now_ms=now_ms).keep)
        messages.append((CLIENT, Kind.DISPUTES_TAKEN, b""))
        wanted = [record_of(bought, one) for one in compared.lacks]
        messages += _records(CLIENT, wanted)
        await sold.append(*check_sent(wanted, sold, channel, now_ms=now_ms).keep)
        messages.append((PROVIDER, Kind.DISPUTES_TAKEN, b""))
    except Refused as refused:
        fault = refused.code
    except InvalidRecord as invalid:
        fault = invalid.code
    return _told(name, grid, messages, fault, now_ms)


def _with_disputes(*by_client: str, answer: str = "", **changes: Any) -> Dealings:
    """Two receipts, the second disputed by the client; who holds the dispute, and who its answer."""
    grid = Dealings()
    grid.deal(output=100)
    dispute = resigned(make_dispute(grid.deal(output=100)), grid.client, Role.CLIENT, **changes)
    for side in by_client:
        grid.keep(dispute, by=side)
    if answer:
        grid.keep(resigned(make_answer(dispute), grid.provider, Role.PROVIDER), by=answer)
    return grid


DISPUTES: dict[str, Callable[[], Dealings]] = {
    "nothing on either side": lambda: _with_disputes(),
    "a dispute that the provider lacks": lambda: _with_disputes(CLIENT),
    "an answer that the client lacks": lambda: _with_disputes(CLIENT, PROVIDER, answer=PROVIDER),
    "both that the client lacks": lambda: _with_disputes(PROVIDER, answer=PROVIDER),
    "both that both have": lambda: _with_disputes(CLIENT, PROVIDER, answer="both"),
    "a dispute for more than was billed": lambda: _with_disputes(CLIENT, owed_pico=10**12),
    "a dispute of tomorrow and two minutes": lambda: _with_disputes(CLIENT, disputed_ms=10**13),
}
