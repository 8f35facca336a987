"""One of each message and of each unsigned payload, small and right: what the vectors of refusals are made from."""

from __future__ import annotations

import hashlib
from typing import Any

from p2pgrid.proto.inclusion import InclusionProof
from p2pgrid.proto.messages import Status, Usage
from p2pgrid.proto.record import Message, Role
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.channels import ChannelRequest, Channels, Held, OpenTick, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews, HeldDispute
from p2pgrid.proto.wire.log import LogCall, LogReply
from p2pgrid.proto.wire.offers import Capacity, Cards, ModelCapacity
from p2pgrid.proto.wire.orders import (
    BatchOpening,
    Head,
    OrderOpening,
    RequestCancel,
    RequestEnded,
    RequestHead,
    RequestRefused,
)
from tests import factories
from tests.factories import digest


def one_of_each_message() -> list[Message]:
    """In the order of docs/spec/messages.md."""
    dealings = factories.Dealings()
    order = dealings.order()
    meter = dealings.meter(order, output_tokens=8)
    usage = Usage(prompt_tokens=10, cached_tokens=4, output_tokens=20)
    receipt = dealings.proposal(order, usage=usage)
    dispute = factories.make_dispute(receipt)
    statement = factories.make_statement([receipt], hashlib.sha256(b"\0" + receipt.id).digest(), rate_bp=2100)
    invoice = factories.make_invoice(statement)
    signed = (
        factories.make_offer(),
        dealings.channel,
        order,
        meter,
        dealings.voucher(meter),
        receipt,
        dispute,
        factories.make_answer(dispute),
        factories.make_opening(order, b'{"model":"m"}', bytes(range(32)), by=Role.CLIENT),
        factories.make_card(),
        statement,
        invoice,
        factories.make_payment(invoice, dealings.id, amount_cents=121),
        *factories.set_off_records(invoice, dealings),
        factories.make_claim(statement, unpaid_cents=121),
        factories.make_withdrawal(),
    )
    return [one.message for one in signed]


def one_of_each_frame() -> list[Any]:
    """In the order of docs/spec/messages.md, sections 8 and 9."""
    tick = OpenTick(order_number=7, tick=2)
    held = Held(last_order_number=7, last_receipt_number=6, last_receipt=digest("receipt"), open_orders=(tick,))
    dispute = HeldDispute(receipt_number=2, id=digest("dispute"))
    capacity = ModelCapacity(model="m", free=3)
    return [
        InclusionProof(record_id=digest("r"), salt=digest("s"), leaf_index=0, tree_size=2, hashes=(digest("h"),)),
        ChannelRequest(client_nonce=digest("nonce"), offer=digest("offer"), now_ms=factories.NOW_MS),
        held,
        tick,
        Resume(channel=b"record", held=held),
        Resumed(held=held, records=0),
        Records(records=0, is_all=True),
        Proposals(proposals=1, is_all=True),
        Channels(channels=(b"record",)),
        DisputesHeld(channel=digest("channel"), after=0, until=9, held=(dispute,)),
        dispute,
        DisputesCompared(until=9, lacks=(digest("dispute"),), records=0),
        DisputesNews(channel=digest("channel")),
        Cards(cards=(b"record",)),
        Capacity(sequence=7, models=(capacity,)),
        capacity,
        OrderOpening(order=b"record", commitment_key=digest("key"), body_bytes=100),
        BatchOpening(order=b"record", commitment_key=digest("key")),
        RequestHead(index=1, status=200, content_type="text/event-stream"),
        RequestRefused(index=1, code="busy", message="Later.", retry_after_ms=1000),
        RequestEnded(index=1, status=Status.FAILED),
        RequestCancel(index=1),
        Refusal(code="busy", message="Later.", retry_after_ms=1000),
        Head(status=200, content_type="text/event-stream"),
        LogCall(path="checkpoint"),
        LogReply(status=200, body=b"size"),
    ]
