"""`p2pgrid set-off`: set off what two operators owe one another, and cycles of three and more."""

from __future__ import annotations

import asyncio
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.cli.set_off_books import (
    MIN_PREFIX_CHARS,
    euros_in_cents,
    keep,
    own_books,
    read_lines,
    refusals,
    refused_because,
    with_folders,
    write_out,
)
from p2pgrid.cli.set_off_cycles import cycles
from p2pgrid.clock import unix_ms
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.printable import printable
from p2pgrid.units import format_cents

if TYPE_CHECKING:
    from p2pgrid.desk.set_offs import SetOffSideView, SetOffView
    from p2pgrid.proto.record import Signed
    from p2pgrid.proto.set_off import SetOff

DAY_MS = 86_400_000
DEFAULT_DAYS = 7


@click.group("set-off")
def set_off() -> None:
    """Set off what you and another operator owe one another.

    Invoices stay as they are, with their VAT; what is smaller is the payment. Who owes more pays the rest.

    Example: `p2pgrid set-off propose 12D3KooW... --with ~/gateway`, and the other side:
    `p2pgrid set-off accept 3f0a41c2`.
    """


@set_off.command()
@click.argument("peer")
@with_folders
@click.option("--most", metavar="EUR", help="Set off no more than this.  [default: all that both owe]")
@click.option("--due-only", is_flag=True, help="Leave out invoices that are not due yet.")
@click.option(
    "--days", type=click.IntRange(1, 60), default=DEFAULT_DAYS, show_default=True, help="How long it may be signed."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write it to a file, to hand over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def propose(
    context: CliContext,
    peer: str,
    with_folders: tuple[Path, ...],
    most: str | None,
    due_only: bool,
    days: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Propose to set off the most that you and PEER's operator owe one another.

    It is signed by you, and binds you up to its last day; it is in force once the other side signs it too. Nodes that
    run bring it there at once; the file of --out needs none.

    Example: p2pgrid set-off propose 12D3KooWQm... --with ~/gateway
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.proto.keys import parse_peer_id
    from p2pgrid.settlement.set_off.propose import propose as make

    their_key = parse_peer_id(parse_peer(peer)).raw
    most_cents = euros_in_cents(most) if most is not None else None
    at_ms = unix_ms()
    with own_books(context, with_folders) as own:
        them = own.them(their_key)
        proposed = make(
            own.books.claims_between(own.us.keys, them.keys, at_ms=at_ms, ours=own.us.keys),
            own.books.claims_between(them.keys, own.us.keys, at_ms=at_ms, ours=own.us.keys),
            us=own.us,
            them=them,
            now_ms=at_ms,
            until_ms=at_ms + days * DAY_MS,
            make_nonce=lambda: secrets.token_bytes(32),
            due_by_ms=at_ms if due_only else None,
            most_cents=most_cents,
        )
        signed = [own.signed(one) for one in proposed]
        asyncio.run(keep(own, signed))
        write_out(out, [one.record.to_json_line() for one in signed])
        _show(own, signed, as_json=as_json, verb="Proposed")


@set_off.command("list")
@with_folders
@click.option("--all", "show_all", is_flag=True, help="Also those that lapsed or were refused.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_all(context: CliContext, with_folders: tuple[Path, ...], show_all: bool, as_json: bool) -> None:
    """List set-offs, those that wait for you first.

    Example: p2pgrid set-off list --json
    """
    from p2pgrid.desk.set_offs import set_off_views

    with own_books(context, with_folders) as own, refusals(context.data) as refused:
        views = set_off_views(own.books, own.us, refused=refused.ids(), now_ms=unix_ms())
    shown = [view for view in views if show_all or view.state not in ("lapsed", "refused")]
    if as_json:
        echo_json([msgspec.to_builtins(view) for view in shown])
        return
    if not shown:
        click.echo("Nothing is set off or proposed.")
    for view in shown:
        _print(view)


@set_off.command()
@click.argument("name", metavar="ID", required=False)
@click.option("--from", "source", type=click.Path(path_type=Path, dir_okay=False), help="A file that was handed over.")
@with_folders
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write it to a file, to hand back.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def accept(
    context: CliContext,
    name: str | None,
    source: Path | None,
    with_folders: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Sign a set-off that the other side proposed: then it is in force.

    ID is its id or the beginning of it, as `set-off list` shows it. It is held against your own ledgers first: no more
    may be taken off an invoice than is open, on either side.

    Example: p2pgrid set-off accept 3f0a41c2 --with ~/gateway
    """
    from p2pgrid.settlement.set_off.agree import why_not_sign

    with own_books(context, with_folders) as own:
        found = _named(own, name, source)
        signed: list[Signed[SetOff]] = []
        try:
            for one in found:
                reasons = why_not_sign(one, own.books, own.us, now_ms=unix_ms(), agreed=own.agreed_drafts())
                if reasons:
                    raise refused_because(reasons, f"the set-off {one.id.hex()[:16]}")
                both = own.signed(one)
                asyncio.run(keep(own, [both]))
                signed.append(both)
        finally:
            # What was signed before another one was refused is in force, and goes back.
            if signed:
                write_out(out, [one.record.to_json_line() for one in signed])
        with refusals(context.data) as refused:
            for one in signed:
                refused.forget(one.id)
        _show(own, signed, as_json=as_json, verb="Agreed")


@set_off.command()
@click.argument("name", metavar="ID")
@with_folders
@click.option("--reason", default="", help="For yourself: nobody is told.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def refuse(context: CliContext, name: str, with_folders: tuple[Path, ...], reason: str, as_json: bool) -> None:
    """Do not sign a proposal, and list it no more. It lapses on its day.

    Example: p2pgrid set-off refuse 3f0a41c2
    """
    with own_books(context, with_folders) as own, refusals(context.data) as refused:
        (one,) = _named(own, name, None)
        if len(one.signers) > 1:
            raise UsageError("both sides have signed: it is in force.", hint="Agree on a payment the other way.")
        refused.refuse(one.id, at_ms=unix_ms(), reason=reason)
    if as_json:
        click.echo(json.dumps({"id": one.id.hex(), "state": "refused"}))
    else:
        click.echo(f"{one.id.hex()[:16]} is not signed, and lapses on {_day(one.message.until_ms)}.")


@set_off.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@with_folders
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def import_file(context: CliContext, source: Path, with_folders: tuple[Path, ...], as_json: bool) -> None:
    """Keep set-offs that were handed over as a file, signed by one side or by both.

    Example: p2pgrid set-off import set-off.jsonl
    """
    with own_books(context, with_folders) as own:
        found = _named(own, None, source)
        asyncio.run(keep(own, found))
        _show(own, found, as_json=as_json, verb="On record")


set_off.add_command(cycles)


def _named(own: Any, name: str | None, source: Path | None) -> list[Signed[SetOff]]:
    """The set-offs of a file, or the one of that id."""
    from p2pgrid.desk.set_offs import all_set_offs
    from p2pgrid.proto.record import parse_json_line
    from p2pgrid.proto.set_off import SetOff
    from p2pgrid.proto.set_off_rules import verify_named

    if (name is None) is (source is None):
        raise UsageError("either ID or --from FILE was expected.", hint="`p2pgrid set-off list` shows ids.")
    if source is not None:
        found = []
        for number, line in enumerate(read_lines(source), start=1):
            if line.strip():
                try:
                    found.append(verify_named(parse_json_line(line), SetOff))
                except InvalidRecord as error:
                    what = f"line {number} of {source} is no set-off ({error.code}): {error.message}"
                    raise UsageError(what, hint="Ask for the file again.") from None
        if not found:
            raise UsageError(f"{source} holds no set-off.", hint="`p2pgrid set-off propose --out FILE` writes one.")
        return found
    assert name is not None
    if len(name) < MIN_PREFIX_CHARS:
        raise UsageError(f"{name!r} is too short.", hint=f"Give at least {MIN_PREFIX_CHARS} digits of the id.")
    known = all_set_offs(own.books)
    found = [one for record_id, one in sorted(known.items()) if record_id.hex().startswith(name.lower())]
    if len(found) != 1:
        what = "more than one set-off's" if found else "no set-off's"
        raise UsageError(f"{what} id begins with {name}.", hint="`p2pgrid set-off list --all` shows them.")
    return found


def _show(own: Any, signed: list[Signed[SetOff]], *, as_json: bool, verb: str) -> None:
    from p2pgrid.desk.set_offs import set_off_view

    views = [view for one in signed if (view := set_off_view(one, own.us, (), unix_ms())) is not None]
    total = sum(view.amount_cents for view in views)
    if as_json:
        shown = {"amount_cents": total, "set_offs": [msgspec.to_builtins(view) for view in views]}
        echo_json(shown)
        return
    currency = views[0].currency if views else "EUR"
    click.echo(f"{verb}: {format_cents(total)} {currency}.")
    for view in views:
        _print(view)


def _print(view: SetOffView) -> None:
    state = view.state.replace("-", " ")
    until = f" until {_day(view.until_ms)}" if view.state.startswith("waits") else ""
    amount = f"{format_cents(view.amount_cents)} {view.currency}"
    click.echo(f"{view.id[:16]}  {amount}  {state}{until}, proposed {_day(view.agreed_ms)}")
    click.echo(f"  you take off   {_invoices(view.ours)} of {view.ours.debtor}")
    click.echo(f"  they take off  {_invoices(view.theirs)} of {view.theirs.debtor}")
    if view.state == "waits-for-us":
        click.echo(f"  p2pgrid set-off accept {view.id[:16]}, or refuse")


def _invoices(side: SetOffSideView) -> str:
    return ", ".join(
        f"{printable(str(one['invoice_number']))} {format_cents(int(one['cents']))}" for one in side.invoices
    )


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
