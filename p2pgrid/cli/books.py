"""`p2pgrid books`: bookings for accountants, the yearly archive, what may be destroyed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2pgrid.cli import books_archive, books_retention
from p2pgrid.cli.books_options import country_option, mapping_options
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.printable import printable
from p2pgrid.units import format_cents

if TYPE_CHECKING:
    from p2pgrid.proto.record import Role
    from p2pgrid.settlement.books.accounts import AccountRole
    from p2pgrid.settlement.books.book_set import BookSet
    from p2pgrid.settlement.books.days import Span
    from p2pgrid.settlement.books.trial_balance import ChannelBalance

F = TypeVar("F", bound=Callable[..., Any])
_FIRST_YEAR, _LAST_YEAR = 2000, 2999


@click.group()
def books() -> None:
    """Book what was sold and bought: exports, a yearly archive, retention.

    For accountants: docs/settlement/books.md says what is booked where. All of it works beside a running node.
    """


def period_options(command: F) -> F:
    """--year, or --from and --to; --side."""
    for option in (
        click.option(
            "--side",
            type=click.Choice(["provider", "client"]),
            help="Sales (provider) or purchases (client) alone. [default: both]",
        ),
        click.option("--to", "last", metavar="DATE", callback=_day, help="Last day, like 2026-12-31."),
        click.option("--from", "first", metavar="DATE", callback=_day, help="First day, like 2026-01-01."),
        click.option(
            "--year", type=click.IntRange(_FIRST_YEAR, _LAST_YEAR), help="A calendar year, in place of --from and --to."
        ),
    ):
        command = option(command)
    return command


def _day(_ctx: click.Context, _param: click.Parameter, text: str | None) -> date | None:
    if text is None:
        return None
    from p2pgrid.settlement.payments.days import day_of

    try:
        day = day_of(text)
        if not _FIRST_YEAR <= day.year <= _LAST_YEAR:
            raise ValueError
        return day
    except ValueError:
        raise click.BadParameter(f"{text!r} is no day. Write it like 2026-12-31.") from None


@books.command()
@click.option(
    "--format", "form", type=click.Choice(["csv", "datev"]), required=True, help="CSV, or a DATEV Buchungsstapel."
)
@period_options
@mapping_options
@country_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write. DATEV wants a name like EXTF_Buchungsstapel.csv.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def export(
    context: CliContext,
    form: str,
    year: int | None,
    first: date | None,
    last: date | None,
    side: str | None,
    chart: str | None,
    mapping: Path | None,
    country: str,
    output: Path,
    as_json: bool,
) -> None:
    """Write bookings for an accountant's program.

    Every signed invoice, payment and set-off of the period is booked once, debit and credit the same to the cent; else
    nothing is written. The same records give the same file; an older file of that name is replaced.

    Example: p2pgrid books export --format datev --year 2026 --chart skr04 -o EXTF_2026.csv
    """
    from p2pgrid.settlement.books.accounts import AccountRole
    from p2pgrid.settlement.books.csv_export import csv_of
    from p2pgrid.settlement.books.datev import datev_of
    from p2pgrid.settlement.books.days import span_of
    from p2pgrid.settlement.books.journal import totals_of
    from p2pgrid.settlement.books.office import open_office
    from p2pgrid.settlement.books.writing import replace_file

    span = span_of(year, first, last)
    with open_office(context.data, chart=chart, mapping=mapping, country=country) as office:
        made = office.books(span, _role(side))
        content = datev_of(made) if form == "datev" else csv_of(made)
    replace_file(output, content)
    totals = totals_of(made.bookings)
    unclear, foreign = _with_line(made, AccountRole.UNCLEAR), _with_line(made, AccountRole.EXPENSE_FOREIGN_VAT)
    nameless = _without_vat_id(made)
    ahead = _paid_ahead(made)
    if as_json:
        echo_json(
            {
                "file": str(output),
                "format": form,
                "chart": made.chart.name,
                **_span_json(span, side),
                "bookings": len(made.bookings),
                "lines": sum(len(one.lines) for one in made.bookings),
                "totals": _totals_json(totals),
                "unclear": unclear,
                "foreign_vat": foreign,
                "without_vat_id": nameless,
                "paid_ahead": ahead,
            }
        )
        return
    click.echo(f"{len(made.bookings)} bookings of {span.first} to {span.last} written to {output}.")
    for currency, (debit, credit) in totals.items():
        click.echo(f"Debit {format_cents(debit)} {currency}, credit {format_cents(credit)} {currency}.")
    if ahead:
        click.echo(
            f"{ahead} payment(s) came for no invoice: no VAT is booked on them, which your law may ask for on receipt."
        )
    for number in nameless:
        click.echo(
            f"Invoice {printable(number)}: the client's VAT id is not known; the recapitulative statement needs it."
        )
    for number in foreign:
        click.echo(
            f"Invoice {printable(number)}: its VAT is another country's, no input VAT here; it is part of the expense. "
            "Did the provider have your VAT id? Some of it may be asked back there (Directive 2008/9/EC)."
        )
    for number in unclear:
        click.echo(
            f"Invoice {printable(number)}: nobody can say its case of VAT; "
            f"it is on the account {_unclear_account(made)}."
        )


@books.command()
@period_options
@mapping_options
@country_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def balance(
    context: CliContext,
    year: int | None,
    first: date | None,
    last: date | None,
    side: str | None,
    chart: str | None,
    mapping: Path | None,
    country: str,
    as_json: bool,
) -> None:
    """Show the trial balance, and each channel's balance beside its statements'.

    Example: p2pgrid books balance --year 2026

    Exit codes: 0; 1 if the records of a channel contradict one another.
    """
    from p2pgrid.settlement.books.days import span_of
    from p2pgrid.settlement.books.journal import totals_of
    from p2pgrid.settlement.books.office import open_office
    from p2pgrid.settlement.books.trial_balance import channel_balances, trial_balance

    span = span_of(year, first, last)
    with open_office(context.data, chart=chart, mapping=mapping, country=country) as office:
        made, before = office.books(span, _role(side)), office.before(span, _role(side))
        chosen = [one for one in office.channels if side is None or one.side.value == side]
        channels = channel_balances(chosen, [*before, *made.bookings], span.last)
    rows = trial_balance(made, before)
    totals = totals_of(made.bookings)
    if as_json:
        echo_json(
            {
                "chart": made.chart.name,
                **_span_json(span, side),
                "accounts": [
                    {
                        "account": row.number,
                        "name": row.name,
                        "currency": row.currency,
                        "opening_cents": row.opening_cents,
                        "debit_cents": row.debit_cents,
                        "credit_cents": row.credit_cents,
                        "closing_cents": row.closing_cents,
                    }
                    for row in rows
                ],
                "totals": _totals_json(totals),
                "channels": [_channel_json(one, made) for one in channels],
            }
        )
    else:
        _print_balance(rows, channels, made)
    if any(one.difference_cents for one in channels):
        click.get_current_context().exit(1)


@books.command()
@click.option("--give", metavar="PEER=NUMBER", help="Give a peer the number that it has at your accountant's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def accounts(context: CliContext, give: str | None, as_json: bool) -> None:
    """List the accounts of clients and providers, or give one.

    A client has a number from 10000 to 69999, a provider one from 70000 to 99999 (with more digits where
    `account-length` is more), given once and never changed. Who has none gets the next one with the first export.

    Example: p2pgrid books accounts --give 12D3KooW...=10042
    """
    from contextlib import closing

    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.errors import UsageError
    from p2pgrid.proto.record import Role
    from p2pgrid.settlement.books.personal import RANGES, PersonalAccounts, personal_number
    from p2pgrid.settlement.books.settings import chart_from
    from p2pgrid.settlement.database import FILE_NAME, open_database

    if not context.data.path.is_dir():
        raise UsageError(f"there is no data folder {context.data.path}.", hint="Name it with --data.")
    length = chart_from(context.data.load_config().billing.accounts).account_length
    with closing(open_database(context.data.path / FILE_NAME)) as database:
        found = PersonalAccounts(database)
        if give is not None:
            peer, _, number = give.partition("=")
            if not number.isascii() or not number.isdigit() or len(number) > 9:
                raise UsageError(f"{give!r} is no PEER=NUMBER.", hint="Write 12D3KooW...=10042.")
            side = Role.CLIENT if int(number) >= RANGES[Role.CLIENT][0] * 10 ** (length - 4) else Role.PROVIDER
            found.give(side, parse_peer(peer), int(number), account_length=length)
        known = {one: personal_number(number, length) for one, number in found.known().items()}
        known = dict(sorted(known.items(), key=lambda one: (one[0][0].value != "provider", int(one[1]))))
    if as_json:
        rows = [{"side": side.value, "peer": peer, "account": int(account)} for (side, peer), account in known.items()]
        echo_json({"accounts": rows})
        return
    if not known:
        click.echo("No account was given yet.")
    for (side, peer), account in known.items():
        click.echo(f"{account}  {'client  ' if side is Role.PROVIDER else 'provider'}  {peer}")


for command in (books_archive.archive, books_archive.verify, books_retention.retention):
    books.add_command(command)


def _role(side: str | None) -> Role | None:
    from p2pgrid.proto.record import Role

    return Role(side) if side is not None else None


def _span_json(span: Span, side: str | None) -> dict[str, Any]:
    return {"first_day": span.first.isoformat(), "last_day": span.last.isoformat(), "side": side or "both"}


def _totals_json(totals: dict[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {currency: {"debit_cents": debit, "credit_cents": credit} for currency, (debit, credit) in totals.items()}


def _with_line(made: BookSet, role: AccountRole) -> list[str]:
    """The numbers of documents with something on that account."""
    return [booking.document_number for booking in made.bookings if any(one.role is role for one in booking.lines)]


def _without_vat_id(made: BookSet) -> list[str]:
    """Sales under reverse charge to who has told no VAT id."""
    from p2pgrid.settlement.books.accounts import AccountRole

    return [
        b.document_number
        for b in made.bookings
        if any(one.role is AccountRole.REVENUE_AE for one in b.lines) and not made.vat_ids.get((b.side, b.counterparty))
    ]


def _paid_ahead(made: BookSet) -> int:
    """How many sales were paid ahead."""
    from p2pgrid.proto.record import Role
    from p2pgrid.settlement.books.journal import BookingKind

    return sum(one.kind is BookingKind.PREPAYMENT and one.side is Role.PROVIDER for one in made.bookings)


def _unclear_account(made: BookSet) -> str:
    from p2pgrid.settlement.books.accounts import AccountRole

    return made.chart.number(AccountRole.UNCLEAR)


def _channel_json(one: ChannelBalance, made: BookSet) -> dict[str, Any]:
    from p2pgrid.settlement.books.personal import peer_id

    return {
        "channel": one.channel.hex(),
        "side": one.side.value,
        "counterparty": peer_id(one.counterparty),
        "name": made.names.get((one.side, one.counterparty), ""),
        "currency": one.currency,
        "books_cents": one.books_cents,
        "statements": one.statements,
        "closing_cents": one.closing_cents,
        "not_invoiced_cents": one.not_invoiced_cents,
        "payments_not_stated_cents": one.payments_not_stated_cents,
        "set_off_not_stated_cents": one.set_off_not_stated_cents,
        "carried_cents": one.carried_cents,
        "difference_cents": one.difference_cents,
    }


def _print_balance(rows: list[Any], channels: list[ChannelBalance], made: BookSet) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from p2pgrid.settlement.books.personal import peer_id

    console = Console()
    if not rows:
        click.echo(f"Nothing was booked from {made.span.first} to {made.span.last}.")
    else:
        table = Table(title=f"{made.span.first} to {made.span.last}, chart {made.chart.name}")
        for name in ("account", "name", "currency"):
            table.add_column(name)
        for name in ("opening", "debit", "credit", "closing"):
            table.add_column(name, justify="right")
        for row in rows:
            amounts = (row.opening_cents, row.debit_cents, row.credit_cents, row.closing_cents)
            table.add_row(row.number, escape(printable(row.name)), row.currency, *map(format_cents, amounts))
        console.print(table)
    for one in channels:
        name = made.names.get((one.side, one.counterparty)) or peer_id(one.counterparty)
        click.echo(
            f"channel {one.channel.hex()[:8]} ({one.side.value}), {printable(name)}: {format_cents(one.books_cents)} "
            f"{one.currency} by the books, {format_cents(one.closing_cents)} by {one.statements} statement(s)."
        )
        for cents, what in (
            (one.not_invoiced_cents, "stated and not invoiced"),
            (one.payments_not_stated_cents, "paid and in no statement yet"),
            (one.set_off_not_stated_cents, "set off and in no statement yet"),
            (one.carried_cents, "carried over from a channel before"),
            (one.difference_cents, "DIFFERENCE that the records do not explain: run `p2pgrid audit` on an export"),
        ):
            if cents:
                click.echo(f"  {format_cents(cents)} {one.currency} {what}")
