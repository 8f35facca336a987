"""`p2pgrid set-off cycles`: debts that go round, set off by each two who owe, all or none. By files that go round."""

from __future__ import annotations

import asyncio
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
    keep_in,
    own_books,
    read_lines,
    refused_because,
    with_folders,
    write_out,
)
from p2pgrid.clock import unix_ms
from p2pgrid.errors import UsageError
from p2pgrid.units import format_cents

if TYPE_CHECKING:
    from p2pgrid.settlement.set_off.cycle_file import CycleFile
    from p2pgrid.settlement.set_off.debt_offers import DebtOffer

DAY_MS = 86_400_000


@click.group()
def cycles() -> None:
    """Debts that go round: A owes B, B owes C, C owes A. What all owe is taken off every debt, or off none.

    No money moves, and nobody holds any. A file goes round by hand: first with debts (`offer`), then with a proposal
    (`propose`), to which each party adds its signatures (`accept`), and a timekeeper its word (`judge`).
    """


@cycles.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_folders
@click.option("--exact", is_flag=True, help="Tell cents, not whole euros rounded down.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def offer(context: CliContext, file: Path, with_folders: tuple[Path, ...], exact: bool, as_json: bool) -> None:
    """Add your own debts and claims to FILE, which goes round so that somebody finds a cycle.

    It tells whom you owe and who owes you, by their keys, and rounded sums. Nothing of it is signed.

    Example: p2pgrid set-off cycles offer debts.jsonl --with ~/gateway
    """
    from p2pgrid.settlement.set_off.debt_offers import DEFAULT_ROUND_CENTS, read_offers, to_line

    with own_books(context, with_folders) as own:
        known = read_offers(read_lines(file)) if file.exists() else []
        told = _own_offers(own, 1 if exact else DEFAULT_ROUND_CENTS)
    channels = {one.channel for one in told}
    lines = [to_line(one) for one in (*(one for one in known if one.channel not in channels), *told)]
    write_out(file, lines)
    if as_json:
        echo_json({"file": str(file), "told": [msgspec.to_builtins(one) for one in told]})
    else:
        click.echo(f"{file} tells of {len(told)} debts of yours, and of {len(lines) - len(told)} others.")


@cycles.command()
@click.option("--from", "source", required=True, type=click.Path(path_type=Path, dir_okay=False), help="What was told.")
@click.option(
    "--timekeeper", required=True, metavar="PEER", help="Who says whether all signed in time; no party of it."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file that goes round.")
@with_folders
@click.option("--most", metavar="EUR", help="No more than this: what is at risk if the timekeeper lies.")
@click.option(
    "--days", type=click.IntRange(1, 60), default=5, show_default=True, help="Until when all must have signed."
)
@click.option("--currency", default="EUR", show_default=True, help="Of the debts.")
@click.option("--exact", is_flag=True, help="Propose cents, not whole euros rounded down.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def propose(
    context: CliContext,
    source: Path,
    timekeeper: str,
    out: Path,
    with_folders: tuple[Path, ...],
    most: str | None,
    days: int,
    currency: str,
    exact: bool,
    as_json: bool,
) -> None:
    """Propose the largest cycle through you that is among the debts told in a file, and sign your two legs.

    Example: p2pgrid set-off cycles propose --from debts.jsonl --timekeeper 12D3KooW... --out cycle.jsonl
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.proto.keys import parse_peer_id
    from p2pgrid.settlement.set_off.cycle_file import make_file
    from p2pgrid.settlement.set_off.debt_offers import DEFAULT_ROUND_CENTS, find_cycles, make_cycle, read_offers

    keeper = parse_peer_id(parse_peer(timekeeper)).raw
    at_ms = unix_ms()
    with own_books(context, with_folders) as own:
        ours = _own_offers(own, 1 if exact else DEFAULT_ROUND_CENTS)
        channels = {one.channel for one in ours}
        offers = [*(one for one in read_offers(read_lines(source)) if one.channel not in channels), *ours]
        key = own.keys[0].public_key
        found = find_cycles(offers, through=key.peer_id, currency=currency)
        if not found:
            raise UsageError(
                f"no cycle goes through you among the {len(offers)} debts that were told.",
                hint="Hand the file on: each party adds its own with `set-off cycles offer`.",
            )
        message = make_cycle(
            found[0],
            offers,
            proposer=_proposer(found[0].debts, own),
            timekeeper=keeper,
            cents=euros_in_cents(most) if most is not None else None,
            now_ms=at_ms,
            deadline_ms=at_ms + days * DAY_MS,
            nonce=secrets.token_bytes(32),
        )
        file = _joined(own, make_file(own.signed(message)))
        write_out(out, file.lines())
        _show(file, as_json=as_json)


@cycles.command()
@click.argument("source", metavar="ID|FILE", type=click.Path(path_type=Path, dir_okay=False))
@with_folders
@click.option("--most", metavar="EUR", help="Do not sign a larger one.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it.  [default: FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def accept(
    context: CliContext,
    source: Path,
    with_folders: tuple[Path, ...],
    most: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Sign your two legs of a cycle, if your own ledgers bear them out, and hand the file on.

    A cycle that a neighbour's node has brought is named by its id, or the beginning of it (`cycles list`).

    Example: p2pgrid set-off cycles accept cycle.jsonl --with ~/gateway
    """
    from p2pgrid.settlement.set_off.cycle_file import read_cycle_file

    is_file = source.exists()
    with own_books(context, with_folders) as own:
        file = read_cycle_file(read_lines(source)) if is_file else _on_record(own, str(source))
        file = _joined(own, file, euros_in_cents(most) if most is not None else None)
        write_out(out or (source if is_file else None), file.lines())
        _show(file, as_json=as_json)


@cycles.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it.  [default: FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def judge(context: CliContext, source: Path, out: Path | None, as_json: bool) -> None:
    """As the timekeeper: say whether all signatures were there in time, once and for all.

    What is said is on record before it is said, and said again whenever it is asked for.

    Example: p2pgrid set-off cycles judge cycle.jsonl
    """
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.proto.cycle import CycleVerdict
    from p2pgrid.settlement.set_off.cycle_file import read_cycle_file

    data = context.data
    file = read_cycle_file(read_lines(source))
    key = data.load_key()
    said = None
    if data.ledger_file.exists():
        with SqliteLedger.open_readonly(data.ledger_file) as ledger:
            known = ledger.settlement(CycleVerdict, file.cycle.message.debts[0].channel)
            said = next((one for one in known if one.message.cycle == file.cycle.id), None)
    judged = file.judged(key, said, now_ms=unix_ms())
    if judged is not None:
        asyncio.run(keep_in(data, (line.decode() for line in judged.lines())))
        write_out(out or source, judged.lines())
    _show(judged or file, as_json=as_json)


@cycles.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@with_folders
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def import_file(context: CliContext, source: Path, with_folders: tuple[Path, ...], as_json: bool) -> None:
    """Keep what a file holds of a cycle: all legs, and the timekeeper's word. Nothing is signed.

    Example: p2pgrid set-off cycles import cycle.jsonl
    """
    from p2pgrid.settlement.set_off.cycle_file import read_cycle_file

    file = read_cycle_file(read_lines(source))
    with own_books(context, with_folders) as own:
        asyncio.run(keep(own, file.records))
    _show(file, as_json=as_json)


@cycles.command("list")
@with_folders
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_all(context: CliContext, with_folders: tuple[Path, ...], as_json: bool) -> None:
    """List the cycles that you are in, and what became of them.

    Example: p2pgrid set-off cycles list --json
    """
    from p2pgrid.desk.set_offs import cycle_files, cycle_view

    with own_books(context, with_folders) as own:
        views = [cycle_view(file) for file in cycle_files(own.books).values()]
    if as_json:
        echo_json([msgspec.to_builtins(view) for view in views])
        return
    if not views:
        click.echo("You are in no cycle.")
    for view in views:
        _print(view)


def _on_record(own: Any, name: str) -> CycleFile:
    """The cycle of that id. Raises UsageError."""
    from p2pgrid.desk.set_offs import cycle_files

    known = cycle_files(own.books).items() if len(name) >= MIN_PREFIX_CHARS else ()
    found = [file for cycle_id, file in known if cycle_id.hex().startswith(name.lower())]
    if len(found) != 1:
        raise UsageError(
            f"{name} is no file, and no one cycle's id begins so.", hint="`p2pgrid set-off cycles list` shows ids."
        )
    return found[0]


def _joined(own: Any, file: CycleFile, most_cents: int | None = None) -> CycleFile:
    """With our signatures, on record before anybody sees them. Raises UsageError where we should not sign."""
    from p2pgrid.settlement.set_off.cycle_file import why_not_join

    reasons = why_not_join(file.cycle, own.books, own.us, now_ms=unix_ms(), most_cents=most_cents)
    if reasons:
        raise refused_because(reasons, f"the cycle {file.cycle.id.hex()[:16]}")
    signed = file.signed(own.keys)
    asyncio.run(keep(own, signed.records))
    return signed


def _own_offers(own: Any, round_to: int) -> list[DebtOffer]:
    """What is open in our own channels, either way."""
    from p2pgrid.proto.keys import parse_public_key
    from p2pgrid.settlement.set_off.claims import open_claims
    from p2pgrid.settlement.set_off.debt_offers import offer_of

    found = []
    operator = tuple(sorted(parse_public_key(raw).peer_id for raw in own.us.keys))
    card = own.us.chains[0][-1].id.hex() if own.us.chains else ""
    for channel, ledger in own.books.channels.values():
        cents = sum(claim.open_cents for claim in open_claims(ledger, channel, at_ms=unix_ms(), ours=own.us.keys))
        told = offer_of(channel, cents, round_to=round_to)
        if told is not None:
            several = {"operator": operator, "card": card} if len(operator) > 1 else {}
            found.append(msgspec.structs.replace(told, **several))
    return found


def _proposer(debts: tuple[DebtOffer, ...], own: Any) -> bytes:
    """Which of our keys is a party of the cycle, and here to sign."""
    from p2pgrid.proto.keys import parse_peer_id

    here = {key.public_key.raw for key in own.keys}
    named = [parse_peer_id(peer).raw for debt in debts for peer in (debt.creditor, debt.debtor)]
    found: bytes = next(raw for raw in named if raw in here)
    return found


def _show(file: CycleFile, *, as_json: bool) -> None:
    from p2pgrid.desk.set_offs import cycle_view

    view = cycle_view(file)
    if as_json:
        echo_json(msgspec.to_builtins(view))
    else:
        _print(view)


def _print(view: Any) -> None:
    amount = f"{format_cents(view.amount_cents)} {view.currency}"
    until = datetime.fromtimestamp(view.deadline_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    click.echo(f"{view.id[:16]}  {amount} off each of {view.parties} debts: {view.state}; to be signed by {until}")
    for one in view.missing if view.state == "open" else ():
        click.echo(f"  {one['signer']} has not signed the leg of channel {one['channel'][:16]}")
    if view.state == "open" and not view.missing:
        click.echo(f"  all have signed: {view.timekeeper} says whether it was in time (`set-off cycles judge`)")
