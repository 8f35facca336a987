"""`p2pgrid receipts evidence`: what peers signed and this node could not accept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json

if TYPE_CHECKING:
    from p2pgrid.desk.proofs_of_fault import Kept
    from p2pgrid.ledger.reader import SqliteReader
    from p2pgrid.proto.record import Record


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a bundle for an auditor.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def evidence(context: CliContext, out: Path | None, as_json: bool) -> None:
    """Show what peers signed and this node could not accept.

    That is why a provider is bought from no more, or a client sold to no more. It stands in no export, since what it
    builds on may be nowhere. With --out a bundle is written for `p2pgrid audit`: the channels concerned, and the
    records that were not accepted, as far as a signature under them fits.
    """
    from p2pgrid.desk.proofs_of_fault import kept_evidence
    from p2pgrid.ledger.bundle import write_bundle
    from p2pgrid.ledger.sqlite import SqliteLedger

    ledger = SqliteLedger.open_readonly(context.data.ledger_file)
    kept = list(kept_evidence(ledger))
    count = write_bundle(out, _bundle(ledger, kept)) if out is not None else 0
    if as_json:
        echo_json([_as_json(one) for one in kept])
    elif not kept:
        click.echo("Nothing that a peer signed was unacceptable.")
    else:
        for one in kept:
            by = ", ".join(one.signers) or "nobody whose signature fits"
            click.echo(f"{one.record.payload_type}  {one.record.id.hex()[:16]}  signed by {by}\n  {one.reason}")
    if out is not None and not as_json:
        click.echo(f"{count} records written to {out}. Audit them with: p2pgrid audit {out}")


def _bundle(ledger: SqliteReader, kept: list[Kept]) -> Iterator[Record]:
    from p2pgrid.desk.proofs_of_fault import shown_records

    known = {one.message.channel for one in ledger.channels()}
    seen = set[bytes]()
    for channel in dict.fromkeys(one.channel for one in kept if one.signers and one.channel in known):
        for record in ledger.records(channel=channel):
            if record.id not in seen:
                seen.add(record.id)
                yield record
    yield from (record for record in shown_records(kept) if record.id not in seen)


def _as_json(one: Kept) -> dict[str, Any]:
    return {
        "id": one.record.id.hex(),
        "type": one.record.payload_type,
        "channel": one.channel.hex(),
        "signers": list(one.signers),
        "reason": one.reason,
    }
