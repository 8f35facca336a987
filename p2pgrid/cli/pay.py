"""`p2pgrid pay`: write the bank's file for all invoices that are due."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.cli.settling import Workbench
    from p2pgrid.settlement.bank.books import Books
    from p2pgrid.settlement.bank.view import Side
    from p2pgrid.settlement.paying.carried_out import CarriedOut
    from p2pgrid.settlement.paying.orders_book import Ordered
    from p2pgrid.settlement.paying.plan import Due, Plan
    from p2pgrid.settlement.payments.orders import PaymentOrder

_SLOW_MS: Final = 5 * 86_400_000
"""After so long an order that nobody confirms is pointed out."""


@click.command()
@click.option("--until", metavar="DATE", help="Pay what is due up to that day.  [default: the execution date]")
@click.option("--peer", "peers", metavar="PEER", multiple=True, help="Pay this provider alone. May be given again.")
@click.option(
    "--invoice", "numbers", metavar="NUMBER", multiple=True, help="Pay this invoice, due or not; and no other."
)
@click.option("--prepay", metavar="PEER EUR", nargs=2, help="Pay so much ahead to this provider, and no invoice.")
@click.option("--again", "again", metavar="KEY", multiple=True, help="A bank refused this payment: order it anew.")
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
    from p2pgrid.cli.pay_text import print_list, print_orders
    from p2pgrid.cli.settling import now_ms, parse_day, today, workbench
    from p2pgrid.settlement.paying.deliver import order_batch, write_again
    from p2pgrid.settlement.paying.make_orders import batch_of
    from p2pgrid.settlement.payments.rails import find_rail

    day = parse_day(execution_date) if execution_date is not None else today()
    if day < today():
        raise UsageError(f"the execution date {day} is over.", hint="Give today or a later day.")
    last_day = parse_day(until) if until is not None else day
    if prepay is not None and (numbers or peers or until):
        raise UsageError("--prepay pays no invoices.", hint="Leave out --invoice, --peer and --until.")
    rail = find_rail(rail_name)
    with workbench(context.data) as bench:
        if file_id is not None:
            paths = write_again(bench.orders, file_id, out, now_ms())
            _show_files(paths, as_json=as_json)
            return
        books = bench.runs.books()
        if as_list:
            shown = listing(bench, books.sides, books.carried, now_ms())
            click.echo(json.dumps(shown, indent=2)) if as_json else print_list(shown)
            return
        if again:
            books = _withdraw(bench, again, books, is_kept=not dry_run)
        before = bench.orders.orders()
        found, made = _chosen(bench, books.sides, books.carried, prepay, peers, numbers, last_day, before, confirmed)
        shown = _orders_json(found, made, last_day) | {
            "rail": rail.name, "execution_date": day.isoformat(), "instant": instant, "dry_run": dry_run,
        }  # fmt: skip
        if made:
            payer = bench.own_account(_client())
            batch, rows = batch_of(payer, made, before, execution_date=day, instant=instant, now_ms=now_ms())
            shown |= {"message_id": batch.message_id, "payer_iban": payer.iban, "total_cents": batch.total_cents}
            if not dry_run:
                paths = order_batch(bench.orders, rail, batch, rows, out, now_ms())
                shown["files"] = [str(path) for path in paths]
    click.echo(json.dumps(shown, indent=2)) if as_json else print_orders(shown)


def listing(bench: Workbench, sides: tuple[Side, ...], carried: CarriedOut, at_ms: int) -> dict[str, Any]:
    """What `--list` shows."""
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
    unwritten = [batch.message_id for batch in bench.orders.batches() if batch.written_ms is None]
    return {"open": items, "prepaid": ahead, "orders": orders, "unwritten": unwritten}


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


def _client() -> Any:
    from p2pgrid.proto.record import Role

    return Role.CLIENT


def _withdraw(bench: Workbench, keys: tuple[str, ...], books: Books, *, is_kept: bool) -> Books:
    """Take orders back that no bank carried out."""
    from p2pgrid.cli.settling import now_ms

    chosen = {order.key: books.carried.fates[order.key] for key in keys for order in bench.orders.find(key)}
    for fate in chosen.values():
        if fate.entry is not None and not fate.returned_cents:
            raise UsageError(
                f"your bank's file shows that the payment {fate.order.key} was carried out on "
                f"{fate.entry.booking_date}.",
                hint="It is ordered again by itself once the bank's file shows that it came back.",
            )
    if is_kept:
        bench.orders.withdraw(list(chosen), now_ms())
        return bench.runs.books()
    for fate in chosen.values():
        fate.returned_cents = fate.order.amount_cents
    return books


def _chosen(
    bench: Workbench,
    sides: tuple[Side, ...],
    carried: CarriedOut,
    prepay: tuple[str, str] | None,
    peers: tuple[str, ...],
    numbers: tuple[str, ...],
    last_day: date,
    before: list[Ordered],
    confirmed: str | None,
) -> tuple[Plan, list[tuple[PaymentOrder, Ordered]]]:
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.cli.settling import now_ms, parse_euros
    from p2pgrid.settlement.paying.make_orders import ahead_order, invoice_order
    from p2pgrid.settlement.paying.plan import plan

    found = plan(sides, carried, bench.refused)
    if prepay is not None:
        side = channel_with(sides, parse_peer(prepay[0]), now_ms())
        cents = parse_euros(prepay[1])
        return found, [ahead_order(side, payee_of(bench, side, confirmed), cents, before)]
    wanted = {parse_peer(peer) for peer in peers}
    _check_numbers(found, sides, numbers)
    chosen = [
        one
        for one in found.due
        if (not wanted or one.side.peer_id in wanted)
        and (set(numbers) & set(one.numbers) if numbers else one.side.day_of(one.due_ms) <= last_day)
    ]
    return found, [invoice_order(one, payee_of(bench, one.side, confirmed), before) for one in chosen]


def _check_numbers(found: Plan, sides: tuple[Side, ...], numbers: tuple[str, ...]) -> None:
    payable = {number for one in found.due for number in one.numbers}
    for number in numbers:
        if number in payable:
            continue
        unfit = next((one for one in found.unfit if one.item.number == number), None)
        if unfit is not None:
            raise UsageError(f"the invoice {number} cannot be paid: {unfit.why}.")
        known = any(item.number == number for side in sides if side.is_purchase for item in side.found.items)
        what = "has nothing left to pay: it is paid, covered or ordered" if known else "is not one that was received"
        raise UsageError(f"the invoice {number!r} {what}.", hint="`p2pgrid pay --list` shows what is open.")


def channel_with(sides: tuple[Side, ...], peer: str, at_ms: int) -> Side:
    """The channel on which this provider is paid ahead: the last that is in force. Raises UsageError."""
    found = [side for side in sides if side.is_purchase and side.peer_id == peer]
    if not found:
        raise UsageError(
            f"there is no channel with {peer} in which this node buys.", hint="Buy there once, then prepay."
        )
    return ([side for side in found if side.channel.expires_ms > at_ms] or found)[-1]


def payee_of(bench: Workbench, side: Side, confirmed: str | None) -> Any:
    """The account of a channel's other side, if it is the one that was paid before. Raises UsageError."""
    from p2pgrid.settlement.paying.make_orders import account_of, account_that_changed
    from p2pgrid.settlement.payments.accounts import checked_iban

    if side.details is None:
        raise UsageError(
            f"the account of {side.peer_id} is not known: it has sent no billing details.",
            hint=f"`p2pgrid settle {side.peer_id}` fetches them; or pay others with --peer.",
        )
    payee = account_of(side.details)
    known = bench.orders.account_of(side.peer_id)
    account_that_changed(payee, known, checked_iban(confirmed) if confirmed else None, side.peer_id)
    return payee


def _orders_json(found: Plan, made: list[tuple[PaymentOrder, Ordered]], last_day: date) -> dict[str, Any]:
    ordered = {(row.channel, share.number) for _, row in made for share in row.shares}
    credited = {(one.side.id, number): one.credited_cents for one in found.due for number in one.numbers}

    def is_later(one: Due) -> bool:
        return not any((one.side.id, number) in ordered for number in one.numbers)

    return {
        "payments": [
            {
                "key": row.key,
                "purpose": row.purpose.value,
                "peer": row.peer,
                "payee": row.payee,
                "iban": row.iban,
                "amount_cents": row.amount_cents,
                "credited_cents": credited.get((row.channel, row.shares[0].number), 0),
                "reference": row.end_to_end_id,
                "text": order.remittance_text,
                "invoices": [{"number": share.number, "cents": share.cents} for share in row.shares if share.number],
            }
            for order, row in made
        ],
        "not_ordered": [
            {
                "invoices": list(one.numbers),
                "peer": one.side.peer_id,
                "amount_cents": one.amount_cents,
                "due": one.side.day_of(one.due_ms).isoformat(),
            }
            for one in found.due
            if is_later(one)
        ],
        "not_payable": [{"invoice": one.item.number, "peer": one.side.peer_id, "why": one.why} for one in found.unfit],
        "waiting_cents": sum(found.waiting.values()),
        "until": last_day.isoformat(),
        "files": [],
    }


def _show_files(paths: list[Path], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in paths]}))
        return
    for path in paths:
        click.echo(f"Written again: {path}")
    click.echo("It is the same file under the same message id: a bank that has had it refuses it.")
