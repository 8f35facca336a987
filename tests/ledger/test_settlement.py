"""Statements, invoices and payments in every ledger."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.journal import journal_paths
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Message, Role, Signed, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.settle_exchange import KINDS
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement
from p2pgrid.proto.statement_rules import statement_root
from tests.factories import (
    CLIENT,
    PROVIDER,
    Dealings,
    digest,
    make_channel,
    make_cycle,
    make_invoice,
    make_legs,
    make_payment,
    make_set_off,
    make_statement,
    make_verdict,
    secret_key,
    set_off_records,
    set_off_side,
    signed_by_names,
)
from tests.ledger.test_ledger import AnyLedger, ledger, store

__all__ = ["ledger"]


def stated(d: Dealings, count: int = 2) -> tuple[list[Signed], Signed[Statement]]:
    """A channel of some receipts, and both sides' statement over them."""
    chain = d.chain(count)
    return chain, make_statement(d.receipts, statement_root(one.id for one in d.receipts))


def ids(ledger: AnyLedger, message_type: type[Message], d: Dealings) -> list[bytes]:
    return [one.id for one in ledger.settlement(message_type, d.id)]


def ids_of(*signed: Signed) -> list[bytes]:
    return [one.id for one in signed]


async def test_what_was_settled_is_there_in_order_and_exported(ledger: AnyLedger) -> None:
    d = Dealings()
    chain, statement = stated(d)
    invoice = make_invoice(statement)
    payment = make_payment(invoice, d.id, amount_cents=7)
    await store(ledger, *chain, statement, invoice, payment)
    assert ids(ledger, Statement, d) == ids_of(statement)
    assert ids(ledger, Invoice, d) == ids_of(invoice)
    assert ids(ledger, Payment, d) == ids_of(payment)
    assert list(ledger.records(channel=d.id))[-3:] == [statement.record, invoice.record, payment.record]
    assert ledger.settlement(Statement, bytes(32)) == []
    for kind, signed in ((Statement, statement), (Invoice, invoice), (Payment, payment)):
        (mark,) = ledger.settlement_marks(kind, d.id)
        assert (mark.id, mark.signers) == (signed.id, frozenset(signed.signers))
        assert mark.place == KINDS[kind.payload_type].place(signed.message)
        wanted = [digest("another"), signed.id]
        assert ids_of(*ledger.settlement_records(kind, d.id, wanted)) == [signed.id]
        assert not ledger.settlement_marks(kind, bytes(32))
        assert not list(ledger.settlement_records(kind, bytes(32), wanted))


async def test_the_second_signature_joins_the_first(ledger: AnyLedger) -> None:
    d = Dealings()
    chain, statement = stated(d)
    await store(ledger, *chain, sign_message(statement.message, Role.PROVIDER, PROVIDER))
    assert ledger.settlement(Statement, d.id)[0].signers.keys() == {Role.PROVIDER}
    assert [mark.signers for mark in ledger.settlement_marks(Statement, d.id)] == [{Role.PROVIDER}]
    await ledger.append(statement)
    assert [mark.signers for mark in ledger.settlement_marks(Statement, d.id)] == [{Role.PROVIDER, Role.CLIENT}]
    assert [one.signers.keys() for one in ledger.settlement(Statement, d.id)] == [{Role.PROVIDER, Role.CLIENT}]


async def test_a_number_of_a_statement_or_an_invoice_is_taken_once(ledger: AnyLedger) -> None:
    d = Dealings()
    chain, statement = stated(d)
    invoice = make_invoice(statement)
    await store(ledger, *chain, statement, invoice)
    with pytest.raises(SlotTaken):
        await ledger.append(make_statement(d.receipts, digest("another root")))
    with pytest.raises(SlotTaken):
        await ledger.append(make_invoice(statement, document_sha256=digest("another document")))
    assert ids(ledger, Statement, d) == ids_of(statement) and ids(ledger, Invoice, d) == ids_of(invoice)


@pytest.mark.parametrize("entry", [digest("entry"), b""], ids=["of a bank's file", "typed in"])
async def test_one_movement_of_money_is_booked_once_for_an_invoice(ledger: AnyLedger, entry: bytes) -> None:
    d = Dealings()
    chain, statement = stated(d)
    invoice = make_invoice(statement)
    payment = make_payment(invoice, d.id, entry=entry, amount_cents=7)
    rest = make_payment(invoice, d.id, entry=entry, statement=b"", invoice_number="", amount_cents=5)
    back = {"kind": PaymentKind.RETURNED, "amount_cents": -5}
    returned = make_payment(invoice, d.id, entry=digest("another") if entry else b"", **back)
    await store(ledger, *chain, statement, invoice, payment, rest, returned)
    again = {"reference": "P2PGRID-again"} if entry else {"currency": "CHF"}
    with pytest.raises(SlotTaken):
        await ledger.append(make_payment(invoice, d.id, entry=entry, amount_cents=7, **again))
    if entry:
        with pytest.raises(SlotTaken):
            await ledger.append(make_payment(invoice, d.id, entry=entry, **back))
    assert ids(ledger, Payment, d) == ids_of(payment, rest, returned)


@pytest.mark.parametrize("entry", [digest("entry"), b""], ids=["of a bank's file", "typed in"])
async def test_what_was_reallocated_can_be_reallocated_again(ledger: AnyLedger, entry: bytes) -> None:
    """From ahead to an invoice, and back, and there again."""
    d = Dealings()
    chain, statement = stated(d)
    invoice = make_invoice(statement, invoice_number="none")
    ahead = {"statement": b"", "invoice_number": ""}
    moved = [make_payment(invoice, d.id, entry=entry, amount_cents=7, **ahead)]
    for days, cents in enumerate((7, -7, 7)):
        changes = {"entry": entry, "kind": PaymentKind.REALLOCATED, "booked_ms": invoice.message.issued_ms + days}
        moved.append(make_payment(invoice, d.id, amount_cents=-cents, **changes, **ahead))
        moved.append(make_payment(invoice, d.id, amount_cents=cents, **changes))
    await store(ledger, *chain, statement, invoice, *moved)
    assert ids(ledger, Payment, d) == ids_of(*moved)
    with pytest.raises(SlotTaken):
        await ledger.append(make_payment(invoice, d.id, amount_cents=7, currency="CHF", **changes))


async def test_an_invoice_is_told_from_none_by_whatever_number(ledger: AnyLedger) -> None:
    d = Dealings()
    chain, statement = stated(d)
    entry = {"entry": digest("entry"), "amount_cents": 5}
    some = []
    for number in ("none", "ahead", "''", "for ''", "\"'", "0 for 'x'"):
        some.append(make_payment(make_invoice(statement, invoice_number=number), d.id, **entry))
    some.append(make_payment(make_invoice(statement), d.id, statement=b"", invoice_number="", **entry))
    await store(ledger, *chain, statement, *some)
    assert ids(ledger, Payment, d) == ids_of(*some)


def back(name: str = "back") -> Signed[Any]:
    """A channel in which the client sells to the provider."""
    return make_channel(CLIENT, PROVIDER, name=name)


def set_off_with(d: Dealings, keys: list[SecretKey], **changes: Any) -> Signed[SetOff]:
    """Of the channel and the one back."""
    invoice = make_invoice(stated(Dealings())[1])
    return make_set_off(set_off_side(d.channel, (invoice, 7)), set_off_side(back(), (invoice, 7)), keys, **changes)


def in_a_cycle(d: Dealings) -> Signed[Cycle]:
    third = secret_key("third")
    others = make_channel(third, PROVIDER, name="second"), make_channel(CLIENT, third, name="third")
    return make_cycle([d.channel, *others], PROVIDER)


async def test_a_set_off_is_of_both_its_channels(ledger: AnyLedger) -> None:
    d = Dealings()
    one = set_off_with(d, [PROVIDER, CLIENT])
    await store(ledger, d.offer, d.channel, back(), one)
    for channel in (d.id, back().message.channel):
        assert [s.id for s in ledger.settlement(SetOff, channel)] == [one.id]
        assert one.record in list(ledger.records(channel=channel))
    assert ledger.settlement(SetOff, bytes(32)) == []
    assert list(ledger.records()).count(one.record) == 1


async def test_a_set_off_needs_one_of_its_channels_alone(ledger: AnyLedger) -> None:
    """Who buys with another node has the other channel in that one's ledger."""
    d = Dealings()
    one = set_off_with(d, [PROVIDER, CLIENT])
    await store(ledger, d.offer, d.channel, one)
    assert ids(ledger, SetOff, d) == ids_of(one)


@pytest.mark.parametrize("first", [PROVIDER, CLIENT], ids=["provider", "client"])
async def test_whoever_proposes_a_set_off_the_other_joins(ledger: AnyLedger, first: SecretKey) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel, set_off_with(d, [first]))
    assert [len(one.signers) for one in ledger.settlement(SetOff, d.id)] == [1]
    await ledger.append(set_off_with(d, [PROVIDER, CLIENT]))
    assert [set(one.signers) for one in ledger.settlement(SetOff, d.id)] == [{Role.PROVIDER, Role.CLIENT}]


async def test_a_nonce_of_two_channels_is_taken_once(ledger: AnyLedger) -> None:
    d = Dealings()
    one = set_off_with(d, [PROVIDER])
    await store(ledger, d.offer, d.channel, one)
    with pytest.raises(SlotTaken):
        await ledger.append(set_off_with(d, [PROVIDER], until_ms=one.message.until_ms + 1))
    other = set_off_with(d, [PROVIDER], nonce=digest("another"))
    await ledger.append(other)
    assert ids(ledger, SetOff, d) == ids_of(one, other)


async def test_of_a_cycle_all_legs_are_kept_and_exported(ledger: AnyLedger) -> None:
    d = Dealings()
    cycle = in_a_cycle(d)
    legs = make_legs(cycle, [PROVIDER, CLIENT, secret_key("third")])
    verdict = make_verdict(cycle)
    await store(ledger, d.offer, d.channel, cycle, *legs, verdict)
    assert ids(ledger, Cycle, d) == ids_of(cycle) and ids(ledger, CycleVerdict, d) == ids_of(verdict)
    assert ids(ledger, Leg, d) == ids_of(*legs) and len(legs) == 3
    assert list(ledger.records(channel=d.id))[-5:] == [one.record for one in (cycle, *legs, verdict)]
    assert list(ledger.records())[-5:] == [one.record for one in (cycle, *legs, verdict)]
    assert ledger.settlement(Leg, bytes(32)) == ledger.settlement(CycleVerdict, bytes(32)) == []
    # Of a channel that is not on record, what a party holds of the cycle is found all the same.
    assert len(ledger.settlement(Leg, cycle.message.debts[1].channel)) == 3


async def test_slots_of_cycles(ledger: AnyLedger) -> None:
    """A timekeeper says a thing once, a leg has one form, a proposer uses a nonce once."""
    d = Dealings()
    cycle = in_a_cycle(d)
    leg = make_legs(cycle, [PROVIDER])[0]
    verdict = make_verdict(cycle)
    await store(ledger, d.offer, d.channel, cycle, leg, verdict)
    for taken in (
        make_verdict(cycle, judged_ms=verdict.message.judged_ms + 1),
        signed_by_names(msgspec.structs.replace(leg.message, amount_cents=1), [PROVIDER]),
        signed_by_names(msgspec.structs.replace(cycle.message, amount_cents=1), [PROVIDER]),
    ):
        with pytest.raises(SlotTaken):
            await ledger.append(taken)


async def test_what_names_its_signers_is_checked_again_when_it_is_read(tmp_path: Path) -> None:
    d, path = Dealings(), tmp_path / "ledger.sqlite"
    ledger = SqliteLedger.open(path)
    await ledger.append(d.offer, d.channel, set_off_with(d, [PROVIDER, CLIENT]))
    await ledger.aclose()
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        (payload,) = conn.execute("SELECT payload FROM set_offs").fetchone()
        conn.execute("UPDATE set_offs SET payload = ?", (payload[:-1] + bytes([payload[-1] ^ 1]),))
    with SqliteLedger.open_readonly(path) as reader, pytest.raises(LedgerError, match="damaged"):
        reader.settlement(SetOff, d.id)


async def older_ledger(path: Path, version: int, records: list[Signed]) -> None:
    """A ledger as an older schema left it."""
    ledger = SqliteLedger.open(path)
    await ledger.append(*records)
    await ledger.aclose()
    newer = ["legs", "verdicts", "cycles", "set_offs"]
    newer += ["statements", "invoices", "payments"] if version < 4 else []
    newer += ["journal"] if version < 3 else []
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for name in newer:
            conn.execute(f"DROP TABLE {name}")
        conn.execute(f"PRAGMA user_version={version}")
    if version < 3:
        for journal in journal_paths(path):
            journal.unlink(missing_ok=True)


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_an_older_ledger_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    d, path = Dealings(), tmp_path / "ledger.sqlite"
    chain, statement = stated(d)
    await older_ledger(path, version, chain)
    again = SqliteLedger.open(path)
    set_off, *cycle = set_off_records(make_invoice(statement), d)
    await again.append(statement, set_off, *cycle)
    assert ids(again, Statement, d) == ids_of(statement) and len(again.receipts()) == len(d.receipts)
    assert ids(again, SetOff, d) == ids_of(set_off) and ids(again, CycleVerdict, d) == ids_of(cycle[-1])
    await again.aclose()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM journal").fetchone() == (1,), "its journal is still its own"


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_a_migration_that_is_cut_short_leaves_an_older_ledger_as_it_was(tmp_path: Path, version: int) -> None:
    d, path = Dealings(), tmp_path / "ledger.sqlite"
    await older_ledger(path, version, stated(d)[0])
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE set_offs (in_the_way)")
        before = list(conn.iterdump())
    with pytest.raises(LedgerError):
        SqliteLedger.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert list(conn.iterdump()) == before
        assert conn.execute("PRAGMA user_version").fetchone() == (version,)
        conn.execute("DROP TABLE set_offs")
    SqliteLedger.open(path).close()
