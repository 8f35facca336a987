"""`p2pgrid receipts`: list them; export them for an audit; agree on them with the other side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli import dispute_commands, evidence_command, fetching
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_options, resolve_networks
from p2pgrid.cli.output import echo_json
from p2pgrid.errors import UsageError
from p2pgrid.units import format_amount_eur

if TYPE_CHECKING:
    from p2pgrid.ledger.base import ReceiptRow
    from p2pgrid.ledger.reader import SqliteReader
    from p2pgrid.proto.record import Record


@click.group()
def receipts() -> None:
    """List, export and dispute receipts, and agree on them.

    Works beside a running node: what only reads opens the ledger for reading, and what writes asks the node.
    """


@receipts.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Newest first, so many.")
@click.option("--channel", metavar="HEX", help="Of one channel alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_receipts(context: CliContext, limit: int, channel: str | None, as_json: bool) -> None:
    """Show receipts, newest first."""
    ledger = _open(context)
    rows = ledger.receipts(channel=_channel_id(channel), limit=limit)
    if as_json:
        echo_json([_as_json(row) for row in rows])
        return
    if not rows:
        click.echo("No receipt yet.")
        return
    _print_table(rows)


@receipts.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--channel", metavar="HEX", help="One channel alone, with the offers it bought under.")
@click.option("--logged", is_flag=True, help="Add the proofs that `p2pgrid audit --logged` demands.")
@click.option(
    "--witnesses",
    type=click.IntRange(0, 16),
    default=0,
    help="With --logged: so many peers should have cosigned the log's checkpoint. [default: 0]",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=90.0,
    show_default=True,
    help="Seconds to wait for --witnesses: a gateway cosigns every minute.",
)
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def export(
    context: CliContext,
    file: Path,
    channel: str | None,
    logged: bool,
    witnesses: int,
    wait_s: float,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Write every signed record to FILE, one JSON object a line, for `p2pgrid audit`.

    The operators' cards go with them, as far as they are kept here. The file holds no prompt and no answer. It is
    written whole or not at all.

    With --logged, proofs of the transparency log follow: for each offer, receipt, dispute and answer that it is in its
    provider's log, all under one checkpoint of that log. An operator's come from its own log here, a client's from the
    providers. Who erases a record later cannot take back a proof that was handed out.

    Exit codes: 0 written; 1 written, and a proof or a witness that was asked for is lacking: which, is said.
    """
    from itertools import chain

    from p2pgrid.cli.network import network_choice
    from p2pgrid.ledger.bundle import write_bundle

    if witnesses and not logged:
        raise UsageError("--witnesses goes with --logged.", hint="Give both.")
    ledger, chosen = _open(context), _channel_id(channel)
    records = chain(own_cards(context, ledger, chosen), ledger.records(channel=chosen))
    if not logged:
        count = write_bundle(file, records)
        if as_json:
            click.echo(json.dumps({"file": str(file), "records": count}))
        else:
            click.echo(f"{count} records written to {file}. Audit them with: p2pgrid audit {file}")
        return
    from p2pgrid.cli.log_proofs import ProofSearch, export_logged

    choice = network_choice(context, network, bootstrap, bootstrap_peers)
    search = ProofSearch(data=context.data, ledger=ledger, network=choice, witnesses=witnesses, wait_s=wait_s)
    export_logged(search, file, records, as_json=as_json)


@receipts.command()
@click.argument("peer", metavar="PEER")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def reconcile(
    context: CliContext,
    peer: str,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Bring both sides' books together now, and show what changed.

    Each side sends what the other lacks; orders that were cut off become `interrupted` receipts by their last voucher,
    and every receipt is signed by both or disputed. A gateway that runs does it; without one this command dials PEER
    itself. A gateway does the same by itself on every new link: what the last 16 such exchanges since its start have
    changed is shown first, with the time. On a provider's side it shows what is open: it is the client who connects.
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.cli.reconciling import print_reconciled, reconcile_with
    from p2pgrid.cli.running import log_to_stderr

    log_to_stderr(verbose=verbose, quiet=not verbose)
    config = context.data.load_config()
    networks = resolve_networks(context.data, config, network, bootstrap, bootstrap_peers)
    done = asyncio.run(reconcile_with(context.data, parse_peer(peer), networks))
    if as_json:
        click.echo(msgspec.json.encode(done))
    else:
        print_reconciled(done)


for command in (*dispute_commands.COMMANDS, evidence_command.evidence, fetching.fetch):
    receipts.add_command(command)


def _open(context: CliContext) -> SqliteReader:
    from p2pgrid.ledger.sqlite import SqliteLedger

    return SqliteLedger.open_readonly(context.data.ledger_file)


def own_cards(context: CliContext, ledger: SqliteReader, channel: bytes | None) -> Iterator[Record]:
    """Our own cards, and those that providers have shown us; with a channel, those that name one of its keys. Each
    once."""
    from p2pgrid.ledger.card_file import read_all_cards

    parties = None
    if channel is not None:
        terms = [one.message for one in ledger.channels() if one.message.channel == channel]
        parties = [key for one in terms for key in (one.provider, one.client)]
    data, seen = context.data, set[bytes]()
    for cards in read_all_cards([data.card_file, *sorted(data.cards_folder.glob("*.jsonl"))], parties):
        for card in cards:
            if card.id not in seen:
                seen.add(card.id)
                yield card.record


def _channel_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise UsageError(f"{text!r} is no channel id.", hint="64 hex digits were expected; see `receipts list --json`.")
    return raw


def _as_json(row: ReceiptRow) -> dict[str, Any]:
    receipt, channel = row.receipt, row.channel
    return {
        "id": row.record_id.hex(),
        "channel": receipt.channel.hex(),
        "receipt_number": receipt.receipt_number,
        "order_number": receipt.order_number,
        "provider": _peer_id(channel.provider),
        "client": _peer_id(channel.client),
        "model": receipt.model,
        "status": receipt.status.value,
        "prompt_tokens": receipt.usage.prompt_tokens,
        "cached_tokens": receipt.usage.cached_tokens,
        "output_tokens": receipt.usage.output_tokens,
        "amount_pico": receipt.amount_pico,
        "amount_eur": format_amount_eur(receipt.amount_pico),
        "channel_total_eur": format_amount_eur(receipt.channel_total_pico),
        "countersigned": row.countersigned,
        "issued_ms": receipt.issued_ms,
        "first_token_ms": receipt.first_token_ms,
        "total_ms": receipt.total_ms,
        "requests": len(receipt.requests),
    }


def _peer_id(key: bytes) -> str:
    from p2pgrid.proto.keys import parse_public_key

    return parse_public_key(key).peer_id


def _print_table(rows: list[ReceiptRow]) -> None:
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name, justify in (
        ("issued (UTC)", "left"),
        ("channel", "left"),
        ("no.", "right"),
        ("model", "left"),
        ("status", "left"),
        ("requests", "right"),
        ("in", "right"),
        ("cached", "right"),
        ("out", "right"),
        ("EUR", "right"),
        ("signed by", "left"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for row in rows:
        receipt = row.receipt
        table.add_row(
            datetime.fromtimestamp(receipt.issued_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            receipt.channel.hex()[:8],
            str(receipt.receipt_number),
            receipt.model,
            receipt.status.value,
            str(len(receipt.requests) or ""),
            str(receipt.usage.prompt_tokens),
            str(receipt.usage.cached_tokens),
            str(receipt.usage.output_tokens),
            format_amount_eur(receipt.amount_pico),
            "both" if row.countersigned else "provider alone",
        )
    Console().print(table)
