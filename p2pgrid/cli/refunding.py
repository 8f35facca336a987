"""What `p2pgrid bank refund` does."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pgrid.cli.pay_text import payment_json
from p2pgrid.cli.settling import workbench
from p2pgrid.clock import unix_ms
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.proto.keys import parse_peer_id
from p2pgrid.proto.record import Role
from p2pgrid.settlement.bank.refunds import refundable, refundable_ahead
from p2pgrid.settlement.paying.deliver import order_batch
from p2pgrid.settlement.paying.make_orders import account_of, batch_of, refund_order
from p2pgrid.settlement.payments.accounts import checked_iban
from p2pgrid.settlement.payments.orders import Account
from p2pgrid.settlement.payments.rails import find_rail

if TYPE_CHECKING:
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.settlement.bank.view import Side


def order_refund(
    data: DataFolder,
    who: str,
    cents: int,
    *,
    iban: str | None,
    rail_name: str,
    instant: bool,
    day: date,
    confirmed: str | None,
    out: Path,
) -> dict[str, Any]:
    """Order that so many cents go back; what was ordered, for JSON. Raises P2pgridError."""
    rail = find_rail(rail_name)
    with workbench(data) as bench:
        # A refund that the bank has carried out is on its way no more, and may not be in the ledger yet.
        asyncio.run(bench.runs.finish())
        books = bench.runs.books()
        peer = _peer_id(who)
        if peer:
            sides = [side for side in books.sides if side.peer_id == peer and not side.is_purchase]
            if not sides:
                raise UsageError(f"there is no channel with {peer} in which this node sells.")
            side, target = refundable_ahead(books, sides, cents)
        else:
            side, target = refundable(books, who, cents)
        payee = _payee(side, iban)
        bench.check_account(side, payee, checked_iban(confirmed) if confirmed else (payee.iban if iban else None))
        before = bench.orders.orders()
        payer = bench.own_account(Role.PROVIDER)
        order, row = refund_order(side, payee, target, cents, before)
        batch, rows = batch_of(
            payer, [(order, row)], before,
            execution_date=day, instant=instant, is_sepa=rail.name != "manual", now_ms=unix_ms(),
        )  # fmt: skip
        paths = order_batch(bench.orders, rail, batch, rows, out, unix_ms())
    return {
        "payments": [payment_json(order, row)],
        "files": [str(path) for path in paths],
        "message_id": batch.message_id,
        "payer_iban": payer.iban,
        "total_cents": batch.total_cents,
        "rail": rail.name,
        "execution_date": day.isoformat(),
        "instant": instant,
        "dry_run": False,
        "not_ordered": [],
        "not_payable": [],
        "taken_back": [],
        "unwritten": [],
        "waiting_cents": 0,
    }


def _peer_id(text: str) -> str:
    """Empty if it is none, and so an invoice's number."""
    try:
        return parse_peer_id(text).peer_id
    except InvalidRecord:
        return ""


def _payee(side: Side, iban: str | None) -> Account:
    if iban is not None:
        return Account(name=side.other_name or side.peer_id, iban=iban)
    if side.details is None or not side.details.iban:
        raise UsageError(
            f"the account of {side.peer_id} is not known.", hint="Name it with --iban, once you have asked the client."
        )
    return account_of(side.details)
