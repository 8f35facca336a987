"""`p2pgrid books retention`: what may go, what has to stay, and until when."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.books_options import country_option
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms

if TYPE_CHECKING:
    from p2pgrid.desk.asks import Erased
    from p2pgrid.settlement.books.retention import KeyPlan
    from p2pgrid.settlement.books.years import RecordsOfYear

_WHY = {
    "disputable": "the receipt can be disputed, or a dispute answered",
    "disputed": "a dispute has no answer",
    "answered-lately": "a dispute was answered lately",
    "not-countersigned": "the client has not signed the receipt",
    "open": "the order has no receipt",
}


@click.command()
@click.option("--apply", "is_applied", is_flag=True, help="Destroy the keys that may go. It cannot be undone.")
@click.option(
    "--salts", is_flag=True, help="Also the salts of the log: without them nobody can prove that a receipt is in it."
)
@click.option("--documents", is_flag=True, help="With --apply: also invoices' files whose legal years are over.")
@country_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def retention(context: CliContext, is_applied: bool, salts: bool, documents: bool, country: str, as_json: bool) -> None:
    """Report what may be destroyed, and what has to stay until when.

    Keys that could show what was asked and answered may go once nobody can dispute the receipt any more (twice the
    channel's dispute-days), unless a dispute of it is open. A node destroys them by itself every day, unless
    config.toml says `[retention] erase-keys-after-disputes = false`. Accounting records stay for the years of the law,
    whatever is asked for.

    Receipts, statements, invoices and payments stay in the ledger, also after that: the chain of later ones rests on
    them. They hold amounts, times, models and keys of peers, no name and no content.

    Example: p2pgrid books retention --apply
    """
    from p2pgrid.errors import UsageError
    from p2pgrid.settlement.books.documents import DocumentFiles
    from p2pgrid.settlement.books.legal_years import TERMS
    from p2pgrid.settlement.books.office import open_office
    from p2pgrid.settlement.books.retention import plan_keys, plan_salts
    from p2pgrid.settlement.books.years import delete, expired_documents, records_by_year

    if documents and not is_applied:
        raise UsageError("--documents goes with --apply.", hint="Without it, all is reported and stays.")
    now_ms = unix_ms()
    with open_office(context.data, country=country) as office:
        plan = plan_keys(office.ledger, now_ms)
        salts_due = len(plan_salts(office.ledger, now_ms)) if salts else None
        known = office.country if office.country in TERMS else ""
        if documents and not known:
            raise UsageError(
                f"which documents may go is not known for {office.country or 'a country that is not named'}.",
                hint=f"Give --country with one of {', '.join(sorted(TERMS))}.",
            )
        if documents and office.stated_country not in ("", office.country):
            raise UsageError(
                f"--country says {office.country}, and config.toml says {office.stated_country}: nothing was deleted.",
                hint="Documents go by the law of the country where you are established: leave --country out.",
            )
        years = records_by_year(
            office.channels,
            DocumentFiles([context.data.path / "invoices"]),
            country=known,
            fiscal_year_begins=office.chart.fiscal_year_begins,
        )
        zone_day = office.days(now_ms)
    expired = expired_documents(years, zone_day)
    done: Erased | None = None
    deleted = 0
    if is_applied:
        done = asyncio.run(_erase(context, salts=salts))
        deleted = delete(expired) if documents else 0
    if as_json:
        echo_json(_as_json(plan, salts_due, years, expired, zone_day, office.country, done, deleted))
        return
    _print(plan, salts_due, years, zone_day, office.country)
    if expired and not documents:
        click.echo(f"{len(expired)} file(s) of invoices need not be kept any more: --apply --documents deletes them.")
    if done is not None:
        click.echo(f"Destroyed: {done.request_keys} key(s), {done.log_salts} salt(s), {deleted} file(s) of invoices.")


async def _erase(context: CliContext, *, salts: bool) -> Erased:
    from p2pgrid.cli.dispute_commands import perform
    from p2pgrid.desk.asks import Erased, EraseExpired

    done: Erased = await perform(context.data, EraseExpired(salts=salts), Erased)
    return done


def _as_json(
    plan: KeyPlan,
    salts_due: int | None,
    years: list[RecordsOfYear],
    expired: list[Any],
    today: date,
    country: str,
    done: Erased | None,
    deleted: int,
) -> dict[str, Any]:
    return {
        "today": today.isoformat(),
        "country": country,
        "keys": {
            "may_go": len(plan.orders),
            "staying": {why.value: count for why, count in plan.staying.items()},
            "next_ms": plan.next_ms,
        },
        "salts_may_go": salts_due,
        "years": [
            {
                "year": one.year,
                "statements": one.statements,
                "invoices": one.invoices,
                "payments": one.payments,
                "documents": len(one.documents),
                "keep_until": {kept.value: day.isoformat() for kept, day in one.keep_until.items()},
                "may_go": [kept.value for kept in one.keep_until if one.may_go(kept, today)],
            }
            for one in years
        ],
        "documents_may_go": [str(path) for path in expired],
        "applied": None
        if done is None
        else {"request_keys": done.request_keys, "log_salts": done.log_salts, "documents": deleted},
    }


def _print(plan: KeyPlan, salts_due: int | None, years: list[RecordsOfYear], today: date, country: str) -> None:
    from p2pgrid.audit.report import date_time
    from p2pgrid.settlement.books.legal_years import TERMS, Kept

    click.echo(f"Keys to requests: {len(plan.orders)} may go, {sum(plan.staying.values())} stay.")
    for why, count in plan.staying.items():
        click.echo(f"  {count}: {_WHY[why.value]}")
    if plan.next_ms:
        click.echo(f"  The next may go from {date_time(plan.next_ms)} on.")
    if salts_due is not None:
        click.echo(f"Salts of the log: {salts_due} may go.")
    if not years:
        click.echo("No accounting record yet.")
    elif country not in TERMS:
        click.echo("How long accounting records have to stay is not known: give --country.")
    for one in years:
        what = f"{one.statements} statement(s), {one.invoices} invoice(s), {one.payments} payment(s)"
        click.echo(f"{one.year}: {what}, {len(one.documents)} file(s)")
        for kept, laws in TERMS.get(country, {}).items():
            word = "might go since" if one.may_go(kept, today) else "until"
            click.echo(f"  {kept.value} {word} {one.keep_until[kept]} ({laws.years} years: {laws.law})")
        if one.may_go(Kept.BOOKS, today):
            click.echo(f"  The archive of {one.year} may be deleted where you keep it.")
