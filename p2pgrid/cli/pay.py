"""`p2pgrid pay`: write the bank's file for all invoices that are due."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.cli.pay_choice import Chosen
    from p2pgrid.cli.settling import Workbench
    from p2pgrid.settlement.bank.view import Side
    from p2pgrid.settlement.paying.carried_out import CarriedOut
    from p2pgrid.settlement.paying.orders_book import Ordered
    from p2pgrid.settlement.paying.plan import Plan

_SLOW_MS: Final = 5 * 86_400_000
"""After so long an order that nobody confirms is pointed out."""


@click.command()
@click.option("--until", metavar="DATE", help="Pay what is due up to that day.  [default: the execution date]")
@click.option("--peer", "peers", metavar="PEER", multiple=True, help="Pay this provider alone. May be given again.")
@click.option(
    "--invoice", "numbers", metavar="NUMBER", multiple=True, help="Pay this invoice, due or not; and no other."
)
@click.option("--prepay", metavar="PEER EUR", nargs=2, help="Pay so much ahead to this provider, and no invoice.")
@click.option(
    "--again", "again", metavar="KEY", multiple=True, help="A bank refused this payment: order it anew, and no other."
)
@click.option("--rail", "rail_name", default="sepa", show_default=True, help="sepa: a pain.001 file; manual: a list.")
@click.option("--instant", is_flag=True, help="Ask for SEPA Instant.")
@click.option("--execution-date", metavar="DATE", help="The day on which the bank is to pay.  [default: today]")
@click.option("--confirm-account", "confirmed", metavar="IBAN", help="A payee's new account, once you have asked it.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=".", help="Folder.  [default: this one]"
)
@click.option("--list", "as_list", is_flag=True, help="Show what is open and what was ordered; write nothing.")
@click.option("--file", "file_id", metavar="ID", help="Write the file of an earlier run again, byte for byte.")
@click.option("--dry-run", is_flag=True, help="Show what would be ordered; write and remember nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def pay(
    context: CliContext,
    until: str | None,
    peers: tuple[str, ...],
    numbers: tuple[str, ...],
    prepay: tuple[str, str] | None,
    again: tuple[str, ...],
    rail_name: str,
    instant: bool,
    execution_date: str | None,
    confirmed: str | None,
    out: Path,
    as_list: bool,
    file_id: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the bank's file that pays all invoices which are due.

    The file (pain.001 of ISO 20022) is for your bank: upload it there, and sign it there. Each payment is remembered
    before the file is written, and is never ordered again, unless it came back or you say --again. What your credit
    notes and prepayments cover is not paid. Your account is the one under [billing] in config.toml.

    \b
    Example:
      p2pgrid pay --list
      p2pgrid pay --until 2027-01-31 --out ~/bank
      p2pgrid pay --prepay 12D3KooW... 100.00
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.cli.pay_choice import How, Wanted, choose, prepayment, take_back
    from p2pgrid.cli.pay_text import print_list, print_orders
    from p2pgrid.cli.settling import parse_day, today, workbench
    from p2pgrid.settlement.paying.deliver import order_batch, unwritten, write_again
    from p2pgrid.settlement.payments.accounts import checked_iban
    from p2pgrid.settlement.payments.rails import find_rail

    day = parse_day(execution_date) if execution_date is not None else today()
    if day < today():
        raise UsageError(f"the execution date {day} is over.", hint="Give today or a later day.")
    last_day = parse_day(until) if until is not None else day
    if prepay is not None and (numbers or peers or until or again):
        raise UsageError("--prepay pays no invoices.", hint="Leave out --invoice, --peer, --until and --again.")
    rail = find_rail(rail_name)
    how = How(
        execution_date=day,
        instant=instant,
        is_sepa=rail.name != "manual",
        confirmed=checked_iban(confirmed) if confirmed is not None else None,
    )
    with workbench(context.data) as bench:
        if file_id is not None:
            _show_files(write_again(bench.orders, file_id, out, unix_ms()), as_json=as_json)
            return
        books = bench.runs.books()
        sides, carried = books.sides, books.carried
        if as_list:
            shown = listing(bench, sides, carried, unix_ms())
            echo_json(shown) if as_json else print_list(shown)
            return
        before = bench.orders.orders()
        taken_back = take_back(bench, again, sides, carried)
        if prepay is not None:
            chosen = prepayment(bench, sides, carried, before, *prepay, how)
        else:
            wanted = Wanted(
                peers=frozenset(map(parse_peer, peers)),
                numbers=frozenset(numbers),
                last_day=last_day,
                taken_back=taken_back,
                is_that_all=bool(again) and not (numbers or peers or until),
            )
            chosen = choose(bench, sides, carried, before, wanted, how)
        missing = [batch.message_id for batch in unwritten(bench.orders)]
        shown = _orders_json(chosen, taken_back, last_day) | {
            "unwritten": missing,
            "rail": rail.name, "execution_date": day.isoformat(), "instant": instant, "dry_run": dry_run,
        }  # fmt: skip
        keys = [one.key for one in taken_back]
        if chosen.made:
            batch, rows = how.batch(bench, chosen.made, before)
            shown |= {
                "message_id": batch.message_id, "payer_iban": batch.payer.iban, "total_cents": batch.total_cents,
            }  # fmt: skip
            if not dry_run:
                paths = order_batch(bench.orders, rail, batch, rows, out, unix_ms(), taken_back=keys)
                shown["files"] = [str(path) for path in paths]
        elif keys and not dry_run:
            bench.orders.withdraw(keys, unix_ms())
    echo_json(shown) if as_json else print_orders(shown)


def listing(bench: Workbench, sides: tuple[Side, ...], carried: CarriedOut, at_ms: int) -> dict[str, Any]:
    """What `--list` shows."""
    from p2pgrid.settlement.paying.deliver import unwritten
    from p2pgrid.settlement.paying.plan import plan

    found = plan(sides, carried, bench.refused)
    unfit = {(one.side.id, one.item.place): one.why for one in found.unfit}
    to_pay = {(one.side.id, item.place): cents for one in found.due for item, cents in one.items}
    items = [
        {
            "invoice": item.number,
            "peer": side.peer_id,
            "payee": side.other_name,
            "channel": side.id.hex(),
            "issued_ms": item.invoice.issued_ms,
            "due": side.day_of(item.due_ms).isoformat(),
            "gross_cents": item.gross_cents,
            "paid_cents": item.paid_cents,
            "set_off_cents": item.set_off_cents,
            "open_cents": item.open_cents,
            "to_pay_cents": to_pay.get((side.id, item.place), 0),
            "state": item.state(at_ms).value,
            "not_payable": unfit.get((side.id, item.place), ""),
        }
        for side in sides
        if side.is_purchase
        for item in side.found.items
        if item.open_cents or item.left_cents
    ]
    ahead = [
        {"peer": side.peer_id, "payee": side.other_name, "channel": side.id.hex(), "cents": side.found.prepaid_cents}
        for side in sides
        if side.is_purchase and side.found.prepaid_cents
    ]
    orders = [_order_json(order, carried, found, at_ms) for order in bench.orders.orders()]
    missing = [batch.message_id for batch in unwritten(bench.orders)]
    return {"open": items, "prepaid": ahead, "orders": orders, "unwritten": missing}


def _order_json(order: Ordered, carried: CarriedOut, found: Plan, at_ms: int) -> dict[str, Any]:
    fate = carried.fates[order.key]
    statement = order.shares[0].target.place[0]
    is_waiting = fate.active_cents > 0 and found.waiting.get((order.channel, statement), 0) > 0
    if fate.returned_cents:
        state = "returned"
    elif order.withdrawn_ms is not None and fate.entry is None:
        state = "withdrawn"
    elif order.purpose.value == "refund":
        state = "executed" if fate.entry is not None else "ordered"
    elif not is_waiting:
        state = "confirmed"
    else:
        state = "executed" if fate.entry is not None else "ordered"
    return {
        "key": order.key,
        "message_id": order.message_id,
        "purpose": order.purpose.value,
        "peer": order.peer,
        "payee": order.payee,
        "iban": order.iban,
        "amount_cents": order.amount_cents,
        "returned_cents": fate.returned_cents,
        "return_reason": fate.return_reason,
        "invoices": [share.number for share in order.shares if share.number],
        "ordered_ms": order.ordered_ms,
        "state": state,
        "is_slow": state in ("ordered", "executed") and at_ms - order.ordered_ms > _SLOW_MS,
    }


def _orders_json(chosen: Chosen, taken_back: list[Ordered], last_day: date) -> dict[str, Any]:
    from p2pgrid.cli.pay_text import payment_json

    found = chosen.plan
    done = {(row.channel, share.number) for _, row in chosen.made for share in row.shares}
    done |= {(one.side.id, number) for one, _ in chosen.refused for number in one.numbers}
    credited = {(one.side.id, number): one.credited_cents for one in found.due for number in one.numbers}
    not_payable = [(one.item.number, one.side.peer_id, one.why) for one in found.unfit]
    not_payable += [
        (number, one.side.peer_id, str(error).rstrip(".")) for one, error in chosen.refused for number in one.numbers
    ]
    return {
        "payments": [
            payment_json(order, row, credited.get((row.channel, row.shares[0].number), 0)) for order, row in chosen.made
        ],
        "not_ordered": [
            {
                "invoices": list(one.numbers),
                "peer": one.side.peer_id,
                "amount_cents": one.amount_cents,
                "due": one.side.day_of(one.due_ms).isoformat(),
            }
            for one in found.due
            if not any((one.side.id, number) in done for number in one.numbers)
        ],
        "not_payable": [{"invoice": number, "peer": peer, "why": why} for number, peer, why in not_payable],
        "taken_back": [
            {"key": one.key, "message_id": one.message_id, "purpose": one.purpose.value, "cents": one.amount_cents}
            for one in taken_back
        ],
        "waiting_cents": sum(found.waiting.values()),
        "until": last_day.isoformat(),
        "message_id": "",
        "payer_iban": "",
        "total_cents": 0,
        "files": [],
    }


def _show_files(paths: list[Path], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in paths]}))
        return
    for path in paths:
        click.echo(f"Written again: {path}")
    click.echo("It is the same file under the same message id: a bank that has had it refuses it.")
