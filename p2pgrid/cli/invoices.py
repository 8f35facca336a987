"""`p2pgrid invoices`: what was issued and received, what waits and why; issue, cancel, open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import LocalError, UsageError
from p2pgrid.printable import printable
from p2pgrid.units import format_cents

if TYPE_CHECKING:
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.desk.invoices import InvoiceAsk
    from p2pgrid.settlement.invoice_list import InvoiceList, InvoiceView

ISSUE_TIMEOUT_S = 900.0
"""A few hundred invoices at 0.2 s each, several times over."""


_of_peer = click.option("--peer", default="", metavar="PEER", help="Of this peer, where several have used the number.")


@click.group()
def invoices() -> None:
    """List, issue, cancel and read invoices.

    \b
    p2pgrid invoices list
    p2pgrid invoices open INV-2027-000001

    A running node issues invoices by itself: for every statement that both sides have signed.
    """


@invoices.command("list")
@click.option("--issued", "direction", flag_value="issued", help="Those that this node issued.")
@click.option("--received", "direction", flag_value="received", help="Those that it is to pay.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def list_invoices(context: CliContext, direction: str | None, as_json: bool) -> None:
    """Show invoices, and statements that still wait for one, with the reason.

    \b
    p2pgrid invoices list --received
    """
    with _list_of(context.data) as found:
        views = found.views(at_ms=unix_ms(), direction=direction)
    if as_json:
        echo_json({"invoices": [_as_json(view) for view in views]})
        return
    if not views:
        click.echo("No invoice yet, and no statement that waits for one.")
        return
    for view in views:
        _print_row(view)


@invoices.command()
@click.argument("number")
@_of_peer
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(context: CliContext, number: str, peer: str, as_json: bool) -> None:
    """Show one invoice: amounts, what is paid, its files.

    \b
    p2pgrid invoices show INV-2027-000001
    """
    with _list_of(context.data) as found:
        view = found.find(number, at_ms=unix_ms(), peer=peer)
    if as_json:
        echo_json(_as_json(view))
        return
    for name, value in _lines(view):
        click.echo(f"{name:<12}{value}")


@invoices.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def issue(click_context: click.Context, as_json: bool) -> None:
    """Issue the invoices of all statements that wait for one.

    \b
    p2pgrid invoices issue

    A node that runs does it; without one it is done here. What is refused keeps no number, stays pending, and is tried
    again. Exit code 1 if anything is left pending.
    """
    from p2pgrid.desk.invoices import InvoicesIssued, IssueInvoices

    done: InvoicesIssued = asyncio.run(_perform(click_context.obj.data, IssueInvoices(), InvoicesIssued))
    if as_json:
        echo_json(msgspec.to_builtins(done))
    else:
        for number in done.issued:
            click.echo(f"Issued {number}.")
        for one in done.pending:
            click.echo(f"Statement {one.statement[:16]} waits ({one.code}): {one.reason}")
            if one.hint:
                click.echo(f"  {one.hint}")
        if not done.issued and not done.pending:
            click.echo("No statement waits for an invoice.")
    click_context.exit(1 if done.pending else 0)


@invoices.command()
@click.argument("number")
@click.option("--reason", required=True, help="Why, in a few words; it stands on the credit note.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def cancel(context: CliContext, number: str, reason: str, as_json: bool) -> None:
    """Take an invoice back by a credit note, and write it anew by the billing details of today.

    \b
    p2pgrid invoices cancel INV-2027-000001 --reason "wrong address"

    For names, addresses, accounts and references. Amounts and VAT stay: both sides have signed them in the statement,
    and what was billed wrongly is credited in the next one (`p2pgrid receipts dispute`). Both documents are issued, or
    neither; a credit note is not taken back.
    """
    from p2pgrid.desk.invoices import CancelInvoice, InvoiceCancelled

    ask = CancelInvoice(number=number, reason=reason)
    done: InvoiceCancelled = asyncio.run(_perform(context.data, ask, InvoiceCancelled))
    if as_json:
        echo_json(msgspec.to_builtins(done))
    else:
        click.echo(f"{done.cancelled} is taken back by {done.credit_note}; {done.invoice} stands in its place.")


@invoices.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def accept(context: CliContext, file: Path, as_json: bool) -> None:
    """Accept an invoice that your client wrote in your name (self-billing), and sign its record.

    \b
    p2pgrid invoices accept SB-1F2E3D4C-2027-000001.pdf

    It has to say what the statement says that both of you signed, and name your account. Both have to have set
    self-billing under [billing].
    """
    from p2pgrid.desk.invoices import AcceptInvoice, InvoiceAccepted

    ask = AcceptInvoice(file=str(file.absolute()))
    done: InvoiceAccepted = asyncio.run(_perform(context.data, ask, InvoiceAccepted))
    if as_json:
        echo_json(msgspec.to_builtins(done))
    else:
        click.echo(f"Accepted {printable(done.number)}, {format_cents(done.gross_cents)} {done.currency}.")


@invoices.command("self-bill")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def self_bill_command(context: CliContext, as_json: bool) -> None:
    """Write, as client, the invoices of providers with whom you have agreed on self-billing.

    \b
    p2pgrid invoices self-bill

    The files are in invoices/self-billed of the data folder: hand them to the provider, which accepts them. Works
    beside a running gateway.
    """
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.settlement.self_billing import self_bill

    keys = [context.data.load_key(), *context.data.load_retired_keys()]
    with SqliteLedger.open_readonly(context.data.ledger_file) as ledger:
        numbers = self_bill(context.data, ledger, keys)
    folder = context.data.path / "invoices" / "self-billed"
    if as_json:
        echo_json({"written": numbers, "folder": str(folder)})
    elif numbers:
        click.echo(f"Written to {folder}: {', '.join(numbers)}. Hand each to its provider.")
    else:
        click.echo("No statement waits for an invoice of yours.")


@invoices.command("open")
@click.argument("number")
@_of_peer
@click.option("--print", "only_print", is_flag=True, help="Print the file's path, and open nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the paths as one JSON object, and open nothing.")
@click.pass_obj
def open_invoice(context: CliContext, number: str, peer: str, only_print: bool, as_json: bool) -> None:
    """Open an invoice's page in this machine's viewer.

    \b
    p2pgrid invoices open INV-2027-000001
    """
    with _list_of(context.data) as found:
        view = found.find(number, at_ms=unix_ms(), peer=peer)
    if not view.files:
        raise UsageError(
            f"the files of {number} are not here.",
            hint="It comes with the next exchange with the provider."
            if view.direction == "received"
            else f"They were in {context.data.path / 'invoices' / 'issued'}: restore them from a backup.",
        )
    if view.status == "refused" and not (only_print or as_json):
        raise UsageError(
            f"the document of {number} does not fit ({view.code}): {view.reason}",
            hint=f"Do not pay by it. It lies at {view.files[0]}.",
        )
    page = next((path for path in view.files if path.endswith(".pdf")), view.files[0])
    if as_json:
        echo_json({"number": number, "page": page, "files": list(view.files)})
    elif only_print:
        click.echo(page)
    elif click.launch(page) != 0:
        raise LocalError(f"no program opened {page}.", hint="Open it by hand.")


@contextmanager
def _list_of(data: DataFolder) -> Iterator[InvoiceList]:
    """All of a node, read beside it."""
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.settlement.database import FILE_NAME, open_database
    from p2pgrid.settlement.details import DetailsBook
    from p2pgrid.settlement.documents import Documents
    from p2pgrid.settlement.invoice_list import InvoiceList
    from p2pgrid.settlement.issue_book import IssueBook

    with (
        SqliteLedger.open_readonly(data.ledger_file) as ledger,
        closing(open_database(data.path / FILE_NAME)) as connection,
    ):
        documents = Documents(data.path, connection)
        yield InvoiceList(ledger, data.own_public_keys(), IssueBook(connection), documents, DetailsBook(connection))


async def _perform(data: DataFolder, ask: InvoiceAsk, result_type: type[Any]) -> Any:
    """By the node that runs, or here on the ledger alone."""
    from p2pgrid.cli.asking import ask_or_do
    from p2pgrid.desk.invoices import InvoiceDesk, InvoicesIssued, IssueInvoices
    from p2pgrid.ledger.schema import missing_ledger
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.settlement.issuing import Issuer

    async def here() -> Any:
        if not data.ledger_file.exists():
            raise missing_ledger(data.ledger_file)
        if isinstance(ask, IssueInvoices) and not _sells(data):
            return InvoicesIssued(issued=(), pending=())  # and no need to wait for a gateway that has the ledger
        ledger = SqliteLedger.open(data.ledger_file)
        try:
            issuer = Issuer(data, ledger, [data.load_key(), *data.load_retired_keys()])
            try:
                return await InvoiceDesk(issuer).perform(ask)
            finally:
                await issuer.aclose()
        finally:
            await ledger.aclose()

    return await ask_or_do(data, ask, result_type, here, roles=("provider",), timeout_s=ISSUE_TIMEOUT_S)


def _sells(data: DataFolder) -> bool:
    from p2pgrid.ledger.sqlite import SqliteLedger

    own = {key.raw for key in data.own_public_keys()}
    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        return any(one.message.provider in own for one in ledger.channels())


def _as_json(view: InvoiceView) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(view)
    return shown


def _print_row(view: InvoiceView) -> None:
    who = printable(view.peer_name) or view.peer
    number = printable(view.number) or f"(statement {view.statement_number})"
    amount = f"{format_cents(view.gross_cents)} {view.currency}"
    left = f", {format_cents(view.left_cents)} left" if 0 < view.left_cents < view.gross_cents else ""
    day = f"due {view.due_day}" if view.gross_cents > 0 else "credit"
    arrow = "to" if view.direction == "issued" else "from"
    click.echo(f"{number:<20} {view.status:<12} {amount:>16}{left}  {day}  {arrow} {who}")
    if view.reason:
        click.echo(f"{'':<21}{view.code}: {printable(view.reason)} {view.hint}".rstrip())


def _lines(view: InvoiceView) -> list[tuple[str, str]]:
    kinds = {380: "invoice", 381: "credit note", 389: "self-billed invoice", 261: "self-billed credit note"}
    lines = [
        ("number", f"{printable(view.number)} ({kinds.get(view.type_code, view.type_code)}, {view.direction})"),
        ("status", view.status),
        ("with", f"{printable(view.peer_name)} {view.peer}".strip()),
        ("statement", f"{view.statement_number} of channel {view.channel[:16]}, {view.statement}"),
        ("net", f"{format_cents(view.net_cents)} {view.currency}"),
        ("VAT", f"{format_cents(view.vat_cents)} {view.currency}"),
        ("total", f"{format_cents(view.gross_cents)} {view.currency}"),
        ("paid", f"{format_cents(view.paid_cents)} {view.currency}; {format_cents(view.left_cents)} left"),
        ("issued", view.issued_day),
        ("due", view.due_day),
    ]
    if view.cancels:
        lines.append(("takes back", printable(view.cancels)))
    if view.cancelled_by:
        lines.append(("taken back", f"by {printable(view.cancelled_by)}"))
    if view.reason:
        lines.append(("wrong", f"{view.code}: {printable(view.reason)}"))
    return [*lines, *(("file", path) for path in view.files)]
