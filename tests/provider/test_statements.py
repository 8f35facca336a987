"""Clients that do not keep to the exchanges about settlement: refused or cut, and nothing is signed."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Role, Signed, parse_message, parse_record, sign_message
from p2pgrid.proto.settle_exchange import BEGIN, END
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.statement_difference import difference, differs
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.settlement import (
    DocumentRequest,
    HeldSettled,
    SettledPlace,
    SettlementCompared,
    SettlementHeld,
    StatedReceipts,
    StatedReceiptsRequest,
    StatementDraft,
    StatementRequest,
)
from p2pgrid.settlement.wiring import Selling
from tests.factories import CLIENT, PROVIDER, digest, make_invoice, make_prepayment
from tests.provider.rig import QUICK, Buyer, Rig, provider, receive, until
from tests.settlement.statements.parts import Issuer, both_details


async def with_receipts(rig: Rig, n: int = 2) -> Buyer:
    buyer = await Buyer.connect(rig)
    for _ in range(n):
        await buyer.order().send().to_end()
    await until(lambda: rig.shop.ledger.head(buyer.books.id).countersigned == n)
    return buyer


def selling(ledger: MemoryLedger) -> Selling:
    return Selling(details=both_details(), hooks=Issuer(ledger))


def request(buyer: Buyer, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"channel": buyer.books.id, "is_wanted": True, "until_ms": 0, **changes}
    return StatementRequest(**fields).to_bytes()


async def drafted(buyer: Buyer) -> tuple[Any, Any, StatementDraft]:
    stream, reader = buyer.stream()
    stream.send(Kind.STATEMENT_REQUEST, request(buyer))
    kind, payload = await receive(reader)
    assert kind == Kind.STATEMENT_DRAFT
    return stream, reader, parse_frame(payload, StatementDraft)


async def is_cut(reader: Any) -> bool:
    try:
        return await receive(reader) is None
    except TimeoutError:
        return False
    except P2pgridError:
        return True


NOTHING = SettledPlace(rank=3, place=1, id=bytes(32))
OUT_OF_TURN: dict[str, list[tuple[Kind, bytes]]] = {
    "agreed without a draft": [(Kind.STATEMENT_AGREED, b"")],
    "a statement without a draft": [(Kind.STATEMENT, b"")],
    "a request that is none": [(Kind.STATEMENT_REQUEST, b"\x90")],
    "a list that is none": [(Kind.SETTLE, b"\x90")],
    "a document that is none": [(Kind.DOCUMENT_REQUEST, b"\x90")],
    "a watch with bytes": [(Kind.SETTLE_WATCH, b"x")],
    "taken without a list": [(Kind.SETTLE_TAKEN, b"")],
}


@pytest.mark.parametrize("name", OUT_OF_TURN)
async def test_out_of_turn(name: str) -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await Buyer.connect(rig)
        stream, reader = buyer.stream()
        for kind, payload in OUT_OF_TURN[name]:
            stream.send(kind, payload)
        assert await is_cut(reader)
        assert rig.tally.faults == 1


AFTER_A_DRAFT: dict[str, tuple[Kind, bytes]] = {
    "a second request": (Kind.STATEMENT_REQUEST, b""),
    "a statement that nobody signed": (Kind.STATEMENT, b""),
    "agreed with bytes": (Kind.STATEMENT_AGREED, b"x"),
    "differences that are none": (Kind.STATEMENT_DIFFERS, b"\x92\x90\xc3"),
    "receipts from before": (Kind.STATED_RECEIPTS_REQUEST, b"\x91\x00"),
}


@pytest.mark.parametrize("name", AFTER_A_DRAFT)
async def test_out_of_turn_after_a_draft(name: str) -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        stream, reader, _ = await drafted(buyer)
        stream.send(*AFTER_A_DRAFT[name])
        assert await is_cut(reader)
        assert not ledger.settlement(Statement, buyer.books.id)


async def test_receipts_of_a_draft_are_told_piece_by_piece() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        stream, reader, draft = await drafted(buyer)
        statement = msgspec.msgpack.decode(parse_record(draft.statement).payload, type=Statement)
        assert (statement.first_receipt, statement.last_receipt) == (1, 2)
        for first, count in ((1, 2), (2, 1), (3, 0), (10**9, 0)):
            stream.send(Kind.STATED_RECEIPTS_REQUEST, StatedReceiptsRequest(first=first).to_bytes())
            told = parse_frame((await receive(reader))[1], StatedReceipts)
            assert len(told.ids) == count
        stream.send(Kind.STATEMENT_DIFFERS, differs([difference("root")]).to_bytes())
        await until(lambda: rig.shop.statements.differences)
        assert not ledger.settlement(Statement, buyer.books.id)


async def signed_by_provider(buyer: Buyer) -> tuple[Any, Any, Signed[Statement]]:
    stream, reader, _ = await drafted(buyer)
    stream.send(Kind.STATEMENT_AGREED, b"")
    kind, payload = await receive(reader)
    assert kind == Kind.STATEMENT
    record = parse_record(payload)
    message = msgspec.msgpack.decode(record.payload, type=Statement)
    return stream, reader, Signed(message, record, record.id, {Role.PROVIDER: PROVIDER.public_key})


@pytest.mark.parametrize(
    "fault", ["another", "without the client", "by another key", "without the provider", "garbage"]
)
async def test_a_countersignature_that_is_none(fault: str) -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        stream, reader, signed = await signed_by_provider(buyer)
        both = signed.countersigned(Role.CLIENT, CLIENT)
        match fault:
            case "another":
                other = msgspec.structs.replace(signed.message, due_ms=signed.message.due_ms + 1)
                wrong = sign_message(other, Role.PROVIDER, PROVIDER).countersigned(Role.CLIENT, CLIENT).record
            case "without the client":
                wrong = signed.record
            case "by another key":
                wrong = signed.countersigned(Role.CLIENT, PROVIDER).record
            case _:
                wrong = sign_message(signed.message, Role.CLIENT, CLIENT).record
        stream.send(Kind.STATEMENT, b"\x00" if fault == "garbage" else wrong.to_bytes())
        assert await is_cut(reader)
        (kept,) = ledger.settlement(Statement, buyer.books.id)
        assert kept.id == signed.id and set(kept.signers) == {Role.PROVIDER}
        # It is taken up where it stood: the same record, and no other draft.
        stream, reader, again = await drafted(buyer)
        assert parse_record(again.statement).id == signed.id
        stream.send(Kind.STATEMENT_AGREED, b"")  # there is nothing to agree to any more
        assert await is_cut(reader)
        stream, reader, again = await drafted(buyer)
        stream.send(Kind.STATEMENT, both.record.to_bytes())
        assert await receive(reader) == (Kind.STATEMENT_TAKEN, b"")
        (kept,) = ledger.settlement(Statement, buyer.books.id)
        assert set(kept.signers) == {Role.PROVIDER, Role.CLIENT}


async def test_two_drafts_at_once_are_signed_once() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        first, second = await drafted(buyer), await drafted(buyer)
        for stream, _, _ in (first, second):
            stream.send(Kind.STATEMENT_AGREED, b"")
        kinds = sorted([(await receive(reader))[0] for _, reader, _ in (first, second)])
        assert kinds == [Kind.REFUSAL, Kind.STATEMENT]
        assert len(ledger.settlement(Statement, buyer.books.id)) == 1


async def test_a_ledger_that_fails_sends_no_signature() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        stream, reader, _ = await drafted(buyer)
        ledger.fail_append()
        stream.send(Kind.STATEMENT_AGREED, b"")
        assert await is_cut(reader)
        assert not ledger.settlement(Statement, buyer.books.id)
        # The next one is signed.
        await signed_by_provider(buyer)


@pytest.mark.parametrize("fault", ["not asked for", "not signed", "oversize", "ahead"])
async def test_records_that_do_not_come_as_they_were_listed(fault: str) -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await Buyer.connect(rig)
        payment = make_prepayment(buyer.books.id, booked_ms=buyer.now_ms())
        place = SettledPlace(rank=5, place=payment.message.booked_ms, id=payment.id)
        stream, reader = buyer.stream()
        held = (HeldSettled(at=place, signers=1),)
        stream.send(Kind.SETTLE, SettlementHeld(channel=buyer.books.id, after=BEGIN, until=END, held=held).to_bytes())
        compared = parse_frame((await receive(reader))[1], SettlementCompared)
        assert compared.lacks == (payment.id,)
        for _ in range(compared.records):
            assert (await receive(reader))[0] == Kind.RECORD
        if fault != "ahead":
            stream.send(Kind.SETTLE_TAKEN, b"")
        match fault:
            case "not signed":
                forged = sign_message(payment.message, Role.PROVIDER, CLIENT)
                stream.send(Kind.RECORD, forged.record.to_bytes())
            case "not asked for":
                stream.send(Kind.RECORD, make_prepayment(buyer.books.id, reference="X").record.to_bytes())
            case "oversize":
                stream.send(Kind.RECORD, bytes(40_000))
            case _:
                stream.send(Kind.RECORD, payment.record.to_bytes())
        assert await is_cut(reader)
        assert rig.tally.faults == 1 and not list(ledger.records(channel=buyer.books.id))[2:]


async def test_a_statement_that_came_back_is_invoiced_only_if_its_invoice_does_not() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        book = rig.shop.statements
        assert book is not None
        issuer = book.hooks
        assert isinstance(issuer, Issuer)
        buyer = await with_receipts(rig)
        _, _, signed = await signed_by_provider(buyer)
        both = signed.countersigned(Role.CLIENT, CLIENT)
        channel = rig.shop.channels.find(buyer.books.id, CLIENT.public_key)
        await ledger.append(both)
        book.restored(channel, [both], is_last=False)
        assert not issuer.stated
        invoice = make_invoice(both, invoice_number="A", document_sha256=digest("a"))
        await ledger.append(invoice)
        book.restored(channel, [invoice], is_last=True)
        book.restored(channel, [], is_last=True)
        await book.aclose()
        assert not issuer.stated and len(ledger.settlement(Invoice, buyer.books.id)) == 1


async def test_who_settles_without_end_is_refused() -> None:
    ledger = MemoryLedger()
    limits = dataclasses.replace(QUICK, settlement_burst=7)
    async with provider(ledger, selling=selling(ledger), limits=limits) as rig:
        buyer = await with_receipts(rig)
        held = SettlementHeld(channel=buyer.books.id, after=BEGIN, until=END, held=()).to_bytes()
        assert (await buyer.ask(Kind.SETTLE, held))[0] == Kind.SETTLE_COMPARED
        assert (await buyer.ask(Kind.STATEMENT_REQUEST, request(buyer)))[0] == Kind.STATEMENT_DRAFT
        kind, payload = await buyer.ask(Kind.STATEMENT_REQUEST, request(buyer))
        assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "busy")


async def test_who_asks_for_documents_without_end_is_refused() -> None:
    ledger = MemoryLedger()
    limits = dataclasses.replace(QUICK, settlement_burst=2, settlement_per_s=0.001)
    async with provider(ledger, selling=selling(ledger), limits=limits) as rig:
        buyer = await Buyer.connect(rig)
        asked = DocumentRequest(channel=buyer.books.id, document_sha256=digest("none"), offset=0).to_bytes()
        codes = []
        for _ in range(9):
            kind, payload = await buyer.ask(Kind.DOCUMENT_REQUEST, asked)
            assert kind == Kind.REFUSAL
            codes.append(parse_frame(payload, Refusal).code)
        assert codes == ["unknown-document"] * 8 + ["busy"]


async def test_who_asks_for_the_receipts_of_a_draft_without_end_is_cut() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        stream, reader, _ = await drafted(buyer)
        told = 0
        for _ in range(64):
            stream.send(Kind.STATED_RECEIPTS_REQUEST, StatedReceiptsRequest(first=1).to_bytes())
            try:
                told += (await receive(reader)) is not None
            except Refused:
                break
        assert 4 <= told < 16
        assert rig.tally.faults == 1


async def test_a_fault_of_our_own_does_not_leave_the_client_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await Buyer.connect(rig)
        monkeypatch.setattr(rig.shop.statements, "draft", broken)
        stream, reader = buyer.stream()
        stream.send(Kind.STATEMENT_REQUEST, request(buyer))
        assert await is_cut(reader)
        assert rig.tally.faults == 0
        assert "ZeroDivisionError" in caplog.text


async def test_what_was_booked_since_the_draft_is_not_left_out_by_a_late_word() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, selling=selling(ledger)) as rig:
        buyer = await with_receipts(rig)
        stream, reader, draft = await drafted(buyer)
        statement = parse_message(parse_record(draft.statement), Statement)
        await ledger.append(make_prepayment(buyer.books.id, booked_ms=statement.stated_ms - 1))
        stream.send(Kind.STATEMENT_AGREED, b"")
        kind, payload = await receive(reader)
        assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "busy")
        assert not ledger.settlement(Statement, buyer.books.id)
        # The number is free: the next draft counts it, and is signed.
        _, _, signed = await signed_by_provider(buyer)
        assert signed.message.payments_cents > 0
