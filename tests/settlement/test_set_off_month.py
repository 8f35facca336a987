"""A and B buy from one another: statements, invoices, a set-off that travels, statements again; every view of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from p2pgrid.cli.main import cli
from p2pgrid.desk.asks import KeepSetOffs
from p2pgrid.desk.set_offs import keep_set_offs, set_off_views
from p2pgrid.desk.statement_list import list_statements
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.verdict import audit_records
from p2pgrid.settlement.books.neighbours import set_offs_in
from p2pgrid.settlement.open_items import items_by_channel
from p2pgrid.settlement.set_off.agree import why_not_sign
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.settlement.set_off.propose import propose
from p2pgrid.settlement.set_offs import set_off_shares
from tests.factories import CLIENT, DAY_MS, PROVIDER, Dealings, digest, make_invoice, signed_by_names
from tests.settlement.set_off.rig import lines_of
from tests.settlement.statements.parts import DictDetails, details_of
from tests.settlement.statements.two_sides import Sides, later

Ledger = SqliteLedger | MemoryLedger


def sides_of(seller: SecretKey, buyer: SecretKey, sells: Ledger, buys: Ledger, name: str) -> Sides:
    details = (
        DictDetails(details_of(Role.CLIENT, buyer)),
        DictDetails(details_of(Role.PROVIDER, seller)),
    )
    return Sides(Dealings(seller, buyer, name), buys, sells, details)  # type: ignore[arg-type]


async def stated(sides: Sides) -> Signed[Any]:
    """The next statement, and its invoice on the provider's ledger."""
    assert await sides.settle() == []
    statement = sides.statements()[-1]
    message = statement.message
    if message.net_cents:
        number = f"{sides.dealings.name}-{message.statement_number}"
        made = make_invoice(statement, invoice_number=number, issued_ms=message.stated_ms).message
        await sides.provider.append(sign_message(made, Role.PROVIDER, sides.dealings.provider))
        await sides.bring_together()
    return statement


def left(ledger: Ledger, sides: Sides) -> list[int]:
    channel = sides.channel
    (found,) = items_by_channel(ledger, [channel], set_off=set_off_shares(ledger, [channel]))
    return [item.left_cents for item in found.items]


def bundles(tmp_path: Path, both: tuple[Sides, Sides]) -> list[str]:
    paths = []
    for sides in both:
        for side, ledger in ((Role.PROVIDER, sides.provider), (Role.CLIENT, sides.client)):
            path = tmp_path / f"{sides.dealings.name}-{side.value}.jsonl"
            path.write_bytes(b"".join(one.to_json_line() + b"\n" for one in ledger.records(channel=sides.channel)))
            paths.append(str(path))
    return paths


async def test_a_month_with_a_set_off(tmp_path: Path) -> None:
    a: Ledger = SqliteLedger.open(tmp_path / "a.db")
    b: Ledger = MemoryLedger()
    ours = sides_of(PROVIDER, CLIENT, a, b, "a-sells")
    theirs = sides_of(CLIENT, PROVIDER, b, a, "b-sells")
    both = ours, theirs
    for sides, answers in ((ours, 4), (theirs, 2)):
        await sides.begin()
        for _ in range(answers):
            await sides.buy(tokens=200_000)
        await stated(sides)
    owed, owing = (sides.statements()[0].message.gross_cents for sides in both)
    assert owed > owing > 30

    now_ms = max(sides.now_ms for sides in both) + 1000
    us, them = Operator.of([PROVIDER.public_key.raw]), Operator.of([CLIENT.public_key.raw])
    books = AllBooks([a])
    (made,) = propose(
        books.claims_between(us.keys, them.keys, at_ms=now_ms, ours=us.keys),
        books.claims_between(them.keys, us.keys, at_ms=now_ms, ours=us.keys),
        us=us,
        them=them,
        now_ms=now_ms,
        until_ms=now_ms + 7 * DAY_MS,
        make_nonce=lambda: digest("nonce"),
    )
    assert made.amount_cents == owing
    half = signed_by_names(made, [PROVIDER])
    await keep_set_offs(a, [PROVIDER], KeepSetOffs(lines=lines_of([half])), now_ms)
    for sides in both:
        sides.now_ms = now_ms + 1000

    # Either channel brings it over, and the other one is none the wiser for it.
    await theirs.bring_together()
    (view,) = set_off_views(AllBooks([b]), them, refused=(), now_ms=now_ms + 1000)
    assert (view.state, view.amount_cents) == ("waits-for-us", owing)
    await ours.bring_together()
    (waiting,) = b.settlement(SetOff, ours.channel)
    assert why_not_sign(waiting, AllBooks([b]), them, now_ms=now_ms + 1000) == []
    second = signed_by_names(made, [CLIENT])
    await keep_set_offs(b, [CLIENT], KeepSetOffs(lines=lines_of([second])), now_ms + 1000)
    await ours.bring_together()
    for ledger in (a, b):
        (view,) = set_off_views(AllBooks([ledger]), us, refused=(), now_ms=now_ms + 1000)
        assert view.state == "in-force"
        assert (left(ledger, ours), left(ledger, theirs)) == ([owed - owing], [0])
        listed = list_statements(ledger, [PROVIDER.public_key])
        assert sorted(one.open_cents for one in listed) == [0, owed - owing], "before any statement shows it"
        for sides in both:
            (leg,) = set_offs_in(ledger).legs(sides.channel)
            assert (leg.amount_cents, leg.record, leg.set_off_ms) == (owing, half.id, now_ms)

    for sides in both:
        later(sides, 1)
        await sides.buy(tokens=200_000)
        last = (await stated(sides)).message
        assert last.set_off_cents == owing
        assert last.closing_cents == sum(one.message.gross_cents for one in sides.statements()) - owing
        later(sides, 1)
        await sides.buy(tokens=200_000)
        assert (await stated(sides)).message.set_off_cents == 0, "counted once"
    files = bundles(tmp_path, both)
    verdict = audit_records(
        (
            Bundle(f"{sides.dealings.name} {side}", enumerate(ledger.records(channel=sides.channel), 1), side)
            for sides in both
            for side, ledger in ((Role.PROVIDER, sides.provider), (Role.CLIENT, sides.client))
        ),
        now_ms=max(sides.now_ms for sides in both),
    )
    assert verdict.clean, verdict.findings
    traced = CliRunner().invoke(cli, ["trace", *files, "a-sells-1", "--json"])
    assert traced.exit_code == 0, traced.output
    assert "set_off" in traced.output and half.id.hex() in traced.output
    assert json.loads(traced.output)
    await a.aclose()
