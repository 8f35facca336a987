"""`p2pgrid bank`: read what the bank says, decide what it left open, pay back."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.settlement.bank.books import Books
    from p2pgrid.settlement.bank.runs import Decided, Report
    from p2pgrid.settlement.bank.stored import StoredDecision, Target
    from p2pgrid.settlement.payments.statements import BankFile


@click.group()
def bank() -> None:
    """Book what the bank's files say: payments, returns, refunds.

    \b
    Example:
      p2pgrid bank import statement.xml
      p2pgrid bank list --ambiguous
      p2pgrid bank assign NY2AXHH7 LT-2026-000001
    """


@bank.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--rail", "rail_name", default="sepa", show_default=True, help="sepa: camt.053 and .054; manual: a CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def import_files(context: CliContext, files: tuple[Path, ...], rail_name: str, as_json: bool) -> None:
    """Read the bank's files, find which invoice each sum is for, and book it.

    Every booking is a Payment that this node signs into its ledger, once, however often a file is read. A file that is
    not as it should be is refused with the line, and then nothing is booked of any. What is not clear is left to you.
    Of what this node buys, its own bank's file confirms what was ordered.

    \b
    Example:
      p2pgrid bank import ~/bank/2026-11-*.xml
    """
    from p2pgrid.cli.bank_text import print_report
    from p2pgrid.cli.settling import workbench

    read = [_read(path, rail_name) for path in files]
    with workbench(context.data) as bench:
        report = asyncio.run(bench.runs.take(read))
    shown = _report_json(report) | {"files": [file.name for file, _ in read]}
    echo_json(shown) if as_json else print_report(shown)


@bank.command("list")
@click.option("--open", "only_open", is_flag=True, help="Show invoices that are open, and what is paid ahead.")
@click.option("--ambiguous", "only_waiting", is_flag=True, help="Show what waits for you to decide.")
@click.option("--all", "all_entries", is_flag=True, help="Show entries that are none of ours, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def list_entries(context: CliContext, only_open: bool, only_waiting: bool, all_entries: bool, as_json: bool) -> None:
    """Show what the bank said, and what is open.

    \b
    Example:
      p2pgrid bank list --open
    """
    from p2pgrid.cli.bank_text import print_entries, print_open
    from p2pgrid.cli.settling import workbench
    from p2pgrid.settlement.bank.stored import NOT_OURS

    with workbench(context.data) as bench:
        books = bench.runs.books()
    shown: dict[str, Any] = {}
    if only_open or not only_waiting:
        shown |= _open_json(books, unix_ms())
    if only_waiting or not only_open:
        quiet = () if all_entries else ("unrelated", NOT_OURS)
        entries = [
            _entry_json(known[0].entry, known[0].file, known[0].decision)
            for known in books.known.values()
            if (known[0].decision.waits if only_waiting else known[0].decision.kind not in quiet)
        ]
        shown["entries"] = sorted(entries, key=lambda one: (one["booking_date"], one["entry"]))
    if as_json:
        echo_json(shown)
        return
    if "open" in shown:
        print_open(shown)
    if "entries" in shown:
        print_entries(shown["entries"], only_waiting=only_waiting)


@bank.command()
@click.argument("entry")
@click.argument("invoices", metavar="[INVOICE]...", nargs=-1)
@click.option("--ahead", metavar="PEER", help="It is paid ahead by this client.")
@click.option("--not-ours", is_flag=True, help="It is none of ours, or was booked from another file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def assign(
    context: CliContext, entry: str, invoices: tuple[str, ...], ahead: str | None, not_ours: bool, as_json: bool
) -> None:
    """Say what an entry is for.

    ENTRY is its key as `bank list` shows it, or the first characters (at least four). Several invoices are paid in the
    order named; what is over is booked as paid ahead. Money that left and is assigned to an invoice undoes a payment of
    it. An entry that is booked already is moved; the records of both bookings stay.

    \b
    Example:
      p2pgrid bank assign NY2AXHH7 LT-2026-000001
      p2pgrid bank assign NY2AXHH7 --ahead 12D3KooW...
    """
    from p2pgrid.cli.bank_text import print_report
    from p2pgrid.cli.settling import workbench
    from p2pgrid.settlement.bank.by_person import assign as by_person
    from p2pgrid.settlement.bank.by_person import find_entry, put_aside

    if bool(invoices) + (ahead is not None) + not_ours != 1:
        raise UsageError("one of INVOICE, --ahead and --not-ours was expected.", hint="Try: p2pgrid bank assign --help")
    with workbench(context.data) as bench:
        asyncio.run(bench.runs.finish())
        books = bench.runs.books()
        known = find_entry(books, entry)
        if not_ours:
            decided = put_aside(known, unix_ms())
        else:
            targets = [_ahead_of(books, ahead)] if ahead is not None else [_invoice(books, one) for one in invoices]
            decided = by_person(books, known, targets, unix_ms())
        report = asyncio.run(bench.runs.decide(decided.entry, decided.decision, decided.moved))
    shown = _report_json(report)
    echo_json(shown) if as_json else print_report(shown)
    if report.refused:
        raise UsageError(f"it was not booked: {report.refused[0]}")


@bank.command()
@click.argument("who", metavar="PEER|INVOICE")
@click.argument("euros", metavar="EUR")
@click.option("--iban", help="Pay to this account.  [default: that of the client's billing details]")
@click.option("--rail", "rail_name", default="sepa", show_default=True, help="sepa: a pain.001 file; manual: a list.")
@click.option("--instant", is_flag=True, help="Ask for SEPA Instant.")
@click.option("--execution-date", metavar="DATE", help="The day on which the bank is to pay.  [default: today]")
@click.option("--confirm-account", "confirmed", metavar="IBAN", help="The client's new account, once you have asked.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=".", help="Folder of the file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def refund(
    context: CliContext,
    who: str,
    euros: str,
    iban: str | None,
    rail_name: str,
    instant: bool,
    execution_date: str | None,
    confirmed: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Write the bank's file that pays money back.

    INVOICE is the number of a credit note; with PEER, what that client has paid ahead goes back. It is booked when the
    bank's file shows it (`p2pgrid bank import`). An invoice is paid back only by a credit note.

    \b
    Example:
      p2pgrid bank refund LT-2026-000007 12.40
      p2pgrid bank refund 12D3KooW... 100.00
    """
    from p2pgrid.cli.pay_text import print_orders
    from p2pgrid.cli.refunding import order_refund
    from p2pgrid.cli.settling import parse_day, parse_euros, today

    day = parse_day(execution_date) if execution_date is not None else today()
    if day < today():
        raise UsageError(f"the execution date {day} is over.", hint="Give today or a later day.")
    shown = order_refund(
        context.data,
        who,
        parse_euros(euros),
        iban=iban,
        rail_name=rail_name,
        instant=instant,
        day=day,
        confirmed=confirmed,
        out=out,
    )
    echo_json(shown) if as_json else print_orders(shown)


@bank.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def allocate(context: CliContext, as_json: bool) -> None:
    """Book money ahead and credit notes on the oldest open invoices.

    `bank import` does so, too. No money moves, and invoices keep their amounts.

    \b
    Example:
      p2pgrid bank allocate
    """
    from p2pgrid.cli.settling import workbench

    with workbench(context.data) as bench:
        report = asyncio.run(bench.runs.finish())
        made = asyncio.run(bench.runs.allocate())
    if as_json:
        click.echo(json.dumps({"allocated": made, "redone": report.redone}))
    else:
        click.echo(f"{made} bookings were made." if made else "There is nothing to book.")


def _read(path: Path, rail_name: str) -> tuple[BankFile, str]:
    from p2pgrid.settlement.bank.runs import file_digest
    from p2pgrid.settlement.payments.rails import find_rail
    from p2pgrid.settlement.payments.xml_stream import MAX_FILE_BYTES

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Check its name.") from None
    return find_rail(rail_name).read(BytesIO(data), path.name), file_digest(data)


def _invoice(books: Books, number: str) -> Target:
    found = books.names.find(number)
    if len(found) == 1:
        return found[0]
    ours = [target for target in found if not target.is_purchase]
    if len(ours) == 1:
        return ours[0]
    what = "more than one invoice has the number" if found else "there is no invoice"
    raise UsageError(f"{what} {number!r}.", hint="`p2pgrid bank list --open` shows what is open.")


def _ahead_of(books: Books, peer: str) -> Target:
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.settlement.bank.stored import Target
    from p2pgrid.settlement.open_items import AHEAD

    wanted = parse_peer(peer)
    found = [side for side in books.sides if side.peer_id == wanted]
    if not found:
        raise UsageError(
            f"there is no channel with {wanted}.", hint="`p2pgrid receipts list --json` shows who is known."
        )
    chosen = ([side for side in found if not side.is_purchase] or found)[-1]
    return Target(chosen.id, AHEAD, chosen.is_purchase)


def _report_json(report: Report) -> dict[str, Any]:
    return {
        "decided": [_decided_json(one) for one in report.decided if one.is_new],
        "known": report.known,
        "payments_booked": report.booked,
        "redone": report.redone,
        "allocated": report.allocated,
        "refused": list(report.refused),
        "waiting": sum(one.decision.waits for one in report.decided),
    }


def _decided_json(one: Decided) -> dict[str, Any]:
    return _entry_json(one.entry, one.file, one.decision)


def _entry_json(entry: Any, file: str, decision: StoredDecision) -> dict[str, Any]:
    return {
        "entry": entry.key,
        "file": file,
        "line": entry.line,
        "booking_date": entry.booking_date.isoformat(),
        "amount_cents": entry.amount_cents,
        "currency": entry.currency,
        "name": entry.counterparty_name,
        "iban": entry.counterparty_iban,
        "text": entry.remittance_text,
        "kind": decision.kind,
        "evidence": decision.evidence,
        "reason": decision.reason,
        "findings": list(decision.findings),
        "candidates": list(decision.candidates),
        "bookings": [
            {"channel": one.channel, "invoice": one.number, "is_purchase": one.is_purchase, "cents": one.cents}
            for one in decision.bookings
        ],
    }


def _open_json(books: Books, at_ms: int) -> dict[str, Any]:
    sold = [side for side in books.sides if not side.is_purchase]
    return {
        "open": [
            {
                "invoice": item.number,
                "peer": side.peer_id,
                "debtor": side.other_name,
                "channel": side.id.hex(),
                "due": side.day_of(item.due_ms).isoformat(),
                "gross_cents": item.gross_cents,
                "paid_cents": item.paid_cents,
                "returned_cents": item.returned_cents,
                "set_off_cents": item.set_off_cents,
                "open_cents": item.open_cents,
                "left_cents": item.left_cents,
                "state": item.state(at_ms).value,
            }
            for side in sold
            for item in side.found.items
            if item.open_cents
        ],
        "ahead": [
            {
                "peer": side.peer_id,
                "debtor": side.other_name,
                "channel": side.id.hex(),
                "cents": side.found.ahead_cents,
            }
            for side in sold
            if side.found.ahead_cents
        ],
    }
