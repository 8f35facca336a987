"""Statements and differences in words, for `p2pgrid settle`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from p2pgrid.printable import printable
from p2pgrid.units import format_amount_eur, format_cents

if TYPE_CHECKING:
    from p2pgrid.desk.statement_list import ListedStatement
    from p2pgrid.desk.statements import DifferenceView, Settled, SettledChannelView, StatementView

_MEANINGS = {
    "root": "not of the same receipts",
    "receipt": "receipt",
    "line": "tokens and amounts of a model",
    "last_receipt": "the last receipt",
    "first_receipt": "the first receipt",
    "total_pico": "the receipts' total",
    "credits_pico": "credits of accepted disputes",
    "held_pico": "held back for open disputes",
    "net_cents": "net",
    "gross_cents": "gross",
    "vat": "VAT",
    "payment": "a payment that counts here",
    "payments_cents": "payments",
    "set_off_cents": "set off",
    "opening_cents": "balance before",
    "closing_cents": "balance after",
    "due_ms": "to be paid by",
    "stated_ms": "when it is stated",
    "until_ms": "end of the period",
    "from_ms": "beginning of the period",
    "statement_number": "the statement's number",
    "previous": "the statement before",
}


def print_settled(done: Settled) -> None:
    """What came of settling with one peer."""
    who = "client" if done.role == "provider" else "provider"
    for note in done.notes:
        click.echo(note)
    if done.waits_for_client and not done.notes:
        where = "is connected, and is told to come" if done.is_connected else "is not connected: it finds it when it is"
        click.echo(f"The client {done.peer} {where}. This is what you will state:")
    elif not done.channels:
        click.echo(f"There is no channel with the {who} {done.peer} to settle.")
    for channel in done.channels:
        _print_channel(channel, done)


def _print_channel(channel: SettledChannelView, done: Settled) -> None:
    for statement in channel.statements:
        print_statement(statement)
    if channel.differences:
        is_signed = channel.drafted is not None and channel.drafted.state == "signed by provider"
        click.echo(f"channel {channel.channel[:16]}: the two sides state different sums, and nothing was signed.")
        if channel.drafted is not None:
            verb = "has signed" if is_signed else "would state"
            click.echo(f"  the provider {verb} {_cents(channel.drafted.gross_cents)} with VAT")
        for one in channel.differences:
            _print_difference(one)
        _print_advice(channel.differences, done, is_signed=is_signed)
    elif not channel.statements and channel.nothing:
        click.echo(f"channel {channel.channel[:16]}: {printable(channel.nothing)}")
    for sentence in channel.waiting:
        click.echo(f"  not kept: {printable(sentence)}")
    for number in channel.invoices:
        click.echo(f"  the file of invoice {printable(number)} came")


def print_statement(view: StatementView) -> None:
    """One statement, as an accountant reads it."""
    click.echo(_title(view))
    receipts = view.last_receipt - view.first_receipt + 1
    ranged = f"{receipts} receipt(s), {view.first_receipt} to {view.last_receipt}" if receipts else "no receipts"
    rows = [("period", _period(view)), ("receipts", ranged)]
    for line in view.lines:
        counts = f"{line.prompt_tokens} in ({line.cached_tokens} cached), {line.output_tokens} out"
        rows.append((printable(line.model), f"{counts}: {format_amount_eur(line.amount_pico)} EUR"))
    if view.credits_pico:
        rows.append(("credits", f"-{format_amount_eur(view.credits_pico)} EUR for accepted disputes"))
    if view.held_pico:
        rows.append(("held back", f"{format_amount_eur(view.held_pico)} EUR of open disputes, in all"))
    rows.append(("net", _cents(view.net_cents)))
    rows += [(f"VAT {_rate(one.rate_bp)} {one.category}", _cents(one.vat_cents)) for one in view.vat]
    rows.append(("gross", _cents(view.gross_cents)))
    if view.opening_cents:
        rows.append(("balance before", _cents(view.opening_cents)))
    if view.payments_cents:
        rows.append(("payments", _cents(-view.payments_cents)))
    if view.set_off_cents:
        rows.append(("set off", _cents(-view.set_off_cents)))
    rows += [("balance", _cents(view.closing_cents)), ("due", view.due_day)]
    for name, value in rows:
        click.echo(f"  {name:<16} {value}")
    if view.note:
        click.echo(f"  note: {printable(view.note)}")


def print_listed(listed: Sequence[ListedStatement]) -> None:
    """A line for each statement."""
    if not listed:
        click.echo("No statement yet.")
        return
    for one in listed:
        view = one.statement
        invoices = ", ".join(printable(number) for number in one.invoices) or "no invoice"
        open_text = f"{_cents(one.open_cents)} open, due {view.due_day}" if one.open_cents else "nothing open"
        if view.gross_cents and not one.invoices:
            invoices, open_text = "no invoice yet", f"due {view.due_day}"
        other = "client" if view.role == "provider" else "provider"
        click.echo(
            f"{view.channel[:16]}  {view.statement_number:>3}  {_period(view):<24}  {_cents(view.gross_cents):>14}  "
            f"{view.state}; {invoices}; {open_text}; {other} {view.peer}"
        )


def _print_difference(one: DifferenceView) -> None:
    what = _MEANINGS.get(one.field, one.field)
    number = f" {one.receipt_number}" if one.receipt_number else ""
    about = f" ({printable(one.about)})" if one.about else ""
    client, provider = printable(one.client) or "-", printable(one.provider) or "-"
    click.echo(f"  {what}{number}{about}: client {client}, provider {provider}")


def _print_advice(differences: Sequence[DifferenceView], done: Settled, *, is_signed: bool) -> None:
    receipts = [one for one in differences if one.receipt_number and one.receipt]
    if any(one.field == "receipt" for one in differences):
        click.echo(f"  What to do: p2pgrid receipts reconcile {done.peer}")
    for one in receipts[:4]:
        click.echo(f"  to dispute it: p2pgrid receipts dispute {one.receipt[:16]} --reason CODE")
    if any(one.field == "vat" for one in differences):
        click.echo("  What to do: p2pgrid billing show, on both sides: VAT follows from countries and VAT ids.")
    if is_signed and any(one.field == "due_ms" for one in differences):
        click.echo(f"  What to do, if the sums are right: p2pgrid settle --accept-due {done.peer}")
    if any(one.field == "stated_ms" for one in differences):
        click.echo("  What to do: set the clocks (NTP): this machine's, and the other side's.")


def _cents(cents: int) -> str:
    return f"{format_cents(cents)} EUR"


def _rate(rate_bp: int) -> str:
    return f"{rate_bp // 100}{f'.{rate_bp % 100:02}'.rstrip('0') if rate_bp % 100 else ''} %"


def _title(view: StatementView) -> str:
    named = f"statement {view.statement_number} of channel {view.channel[:16]} with {view.peer}"
    return f"preview of {named}" if view.state == "preview" else f"{named}, {view.state}"


def _period(view: StatementView) -> str:
    """Days of the provider's calendar."""
    return view.first_day if view.first_day == view.last_day else f"{view.first_day} to {view.last_day}"
