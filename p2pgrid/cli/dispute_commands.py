"""`p2pgrid receipts`: show one, dispute it, answer a dispute, open a commitment, erase."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import UsageError
from p2pgrid.printable import printable
from p2pgrid.units import format_amount_eur, parse_amount_eur

if TYPE_CHECKING:
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.desk.asks import DeskAsk
    from p2pgrid.desk.disputes import DisputeView, Recorded
    from p2pgrid.ledger.reader import SqliteReader
    from p2pgrid.proto.messages import Channel, Receipt, RequestLine
    from p2pgrid.proto.record import Signed

_REASONS = "not-delivered, quality, duplicate, not-countersigned, other, or a code of the audit such as wrong-amount"


@click.command()
@click.argument("receipt", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(context: CliContext, receipt: str, as_json: bool) -> None:
    """Show one receipt, and what is disputed about it.

    ID is the receipt's id, its first hex digits (at least four), or CHANNEL:NUMBER.
    """
    from p2pgrid.desk.disputes import view_of
    from p2pgrid.desk.find import find_receipt

    with _reader(context.data) as ledger:
        found, channel = find_receipt(ledger, receipt)
        message, terms = found.message, channel.message
        ours = context.data.own_public_keys()
        disputes = [
            view_of(row, terms, message, ours, unix_ms())
            for row in ledger.disputes(channel=message.channel)
            if row.dispute.message.receipt == found.id
        ]
        has_key = ledger.request_key(message.channel, message.order_number) is not None
    shown = _receipt_json(found, terms) | {
        "request_key": has_key,
        "disputes": [msgspec.to_builtins(one) for one in disputes],
    }
    if as_json:
        echo_json(shown)
        return
    for name, value in _receipt_lines(shown):
        click.echo(f"{name:<12}{value}")
    if not disputes:
        click.echo(f"Not disputed. To dispute it: p2pgrid receipts dispute {found.id.hex()[:16]} --reason CODE")
    for one in disputes:
        _print_dispute(one)


@click.command()
@click.argument("receipt", metavar="ID")
@click.option("--reason", required=True, metavar="CODE", help=f"{_REASONS[0].upper()}{_REASONS[1:]}.")
@click.option("--statement", default="", help="What is wrong, in a sentence. No prompt, answer or personal data.")
@click.option("--owed", metavar="EUR", help="What is owed for the order in your view.  [default: 0; the provider: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def dispute(context: CliContext, receipt: str, reason: str, statement: str, owed: str | None, as_json: bool) -> None:
    """Sign that you do not accept a receipt.

    ID as for `show`. It goes to the other side, which has as many days to answer as the channel says, and into the
    chain: the next receipts name it. Each side disputes a receipt once at most. A node that runs sends it now; else it
    is sent when the node next has a link.
    """
    from p2pgrid.desk.asks import MakeDispute

    owed_pico = parse_amount_eur(owed) if owed is not None else None
    done = _recorded(context, MakeDispute(receipt=receipt, reason=reason, statement=statement, owed_pico=owed_pico))
    if as_json:
        click.echo(msgspec.json.encode(done))
        return
    click.echo(f"Receipt {done.dispute.receipt_number} is disputed ({done.dispute.id[:16]}).")
    _print_sent(done)
    click.echo(f"The other side has until {_utc(done.dispute.due_ms)} to answer.")


@click.command()
@click.argument("name", metavar="ID")
@click.option("--accept", is_flag=True, help="Agree: owed is what the dispute says.")
@click.option("--reject", is_flag=True, help="Stand by the receipt, or by --owed.")
@click.option("--statement", default="", help="Why, in a sentence. No prompt, answer or personal data.")
@click.option("--owed", metavar="EUR", help="With --reject: what is owed in your view.  [default: what was billed]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def answer(
    context: CliContext, name: str, accept: bool, reject: bool, statement: str, owed: str | None, as_json: bool
) -> None:
    """Answer the other side's dispute: accept or reject.

    ID is the dispute's id as `p2pgrid receipts disputes` shows it, or that of the receipt. An answer is final. A
    dispute that is not answered in time is a fault of yours in every audit.
    """
    from p2pgrid.desk.asks import GiveAnswer

    if accept is reject:
        given_of = "both --accept and --reject were" if accept else "neither --accept nor --reject was"
        raise UsageError(f"{given_of} given.", hint="Give one: an answer cannot be taken back.")
    owed_pico = parse_amount_eur(owed) if owed is not None else None
    ask = GiveAnswer(dispute=name, accept=accept, statement=statement, owed_pico=owed_pico)
    done = _recorded(context, ask)
    if as_json:
        click.echo(msgspec.json.encode(done))
        return
    given = done.dispute.answer
    assert given is not None
    owed_eur = format_amount_eur(given.owed_pico)
    click.echo(f"The dispute of receipt {done.dispute.receipt_number} is {given.decision}: {owed_eur} EUR are owed.")
    _print_sent(done)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def disputes(context: CliContext, as_json: bool) -> None:
    """List disputes with their answers, those that wait for one first, and until when."""
    from p2pgrid.desk.disputes import disputes_of

    with _reader(context.data) as ledger:
        found = disputes_of(ledger, context.data.own_public_keys(), unix_ms())
    if as_json:
        echo_json([msgspec.to_builtins(one) for one in found])
        return
    if not found:
        click.echo("Nothing is disputed.")
    for one in found:
        _print_dispute(one)


@click.command("open")
@click.argument("receipt", metavar="ID")
@click.option("--request", type=click.Path(path_type=Path, dir_okay=False), help="File with the request's body.")
@click.option("--response", type=click.Path(path_type=Path, dir_okay=False), help="File with the answer's bytes.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it.  [default: opening.jsonl]"
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def open_commitment(
    context: CliContext, receipt: str, request: Path | None, response: Path | None, out: Path | None, as_json: bool
) -> None:
    """Show an auditor what was asked or answered: write the signed opening of a commitment.

    ID as for `show`. The ledger holds no prompt and no answer, only the key that proves them: give the bytes that were
    sent. It is checked that they are what was committed to; of a receipt for several requests it is found which one
    they are of. The file shows a prompt or an answer: hand it to nobody
    but the auditor, who reads it with `p2pgrid audit`.
    """
    from p2pgrid.desk.opening import make_opening
    from p2pgrid.ledger.bundle import write_bundle
    from p2pgrid.proto.dispute import Subject

    given = [(subject, path) for subject, path in ((Subject.REQUEST, request), (Subject.RESPONSE, response)) if path]
    if len(given) != 1:
        raise UsageError("one of --request and --response was expected.", hint="Give the file with the bytes.")
    ((subject, path),) = given
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Check its name.") from None
    keys = [context.data.load_key(), *context.data.load_retired_keys()]
    with _reader(context.data) as ledger:
        opening = make_opening(ledger, keys, receipt, subject, content)
    target = out or Path("opening.jsonl")
    write_bundle(target, [opening.record])
    if as_json:
        click.echo(json.dumps({"file": str(target), "id": opening.id.hex(), "subject": subject.value}))
    else:
        click.echo(f"The {subject.value} of order {opening.message.order_number} is opened in {target}.")


@click.command()
@click.argument("receipt", metavar="[ID]", required=False)
@click.option("--before", metavar="DATE", help="Of all orders placed before that day (UTC), like 2027-01-31.")
@click.option("--json", "as_json", is_flag=True, help="Print what was destroyed as a JSON object.")
@click.pass_obj
def erase(context: CliContext, receipt: str | None, before: str | None, as_json: bool) -> None:
    """Destroy the keys that could ever show a request and its answer.

    ID as for `show`, or --before. Gone are the commitment keys in the ledger and the salts of the receipts in this
    node's logs: receipts, amounts and every proof of the log stay valid, and nobody can tell any more what was asked,
    nor which receipt a leaf of the log stands for. It cannot be undone, and reaches no backup and no other node.
    """
    from p2pgrid.desk.asks import Erase, Erased

    if (receipt is None) is (before is None):
        raise UsageError("either ID or --before was expected.", hint="Try: p2pgrid receipts erase --help")
    ask = Erase(receipt=receipt or "", before_ms=_day_ms(before) if before is not None else 0)
    done = asyncio.run(perform(context.data, ask, Erased))
    if as_json:
        click.echo(msgspec.json.encode(done))
    else:
        click.echo(f"Destroyed: {done.request_keys} request key(s), {done.log_salts} salt(s) of the log.")


COMMANDS = (show, dispute, answer, disputes, open_commitment, erase)


async def perform(data: DataFolder, ask: DeskAsk, result_type: type[Any]) -> Any:
    """By the node that runs, or here on the ledger alone."""
    from p2pgrid.cli.asking import ask_or_do
    from p2pgrid.desk.records_desk import RecordsDesk
    from p2pgrid.ledger.schema import missing_ledger
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.log.erasing import LogFiles, check_all_known, erase_salts

    async def erase_here(record_ids: Any) -> int:
        logs = [LogFiles(*one) for one in data.logs_of_own_keys()]
        check_all_known(logs, data.log_files)
        return erase_salts(logs, record_ids)

    async def here() -> Any:
        if not data.ledger_file.exists():
            raise missing_ledger(data.ledger_file)
        keys = [data.load_key(), *data.load_retired_keys()]
        ledger = SqliteLedger.open(data.ledger_file)
        try:
            return await RecordsDesk(ledger, keys, unix_ms, erase_salts=erase_here).perform(ask)
        finally:
            await ledger.aclose()

    return await ask_or_do(data, ask, result_type, here)


def _recorded(context: CliContext, ask: DeskAsk) -> Recorded:
    from p2pgrid.desk.disputes import Recorded

    done: Recorded = asyncio.run(perform(context.data, ask, Recorded))
    return done


def _reader(data: DataFolder) -> SqliteReader:
    from p2pgrid.ledger.sqlite import SqliteLedger

    return SqliteLedger.open_readonly(data.ledger_file)


def _receipt_json(receipt: Signed[Receipt], channel: Channel) -> dict[str, Any]:
    from p2pgrid.proto.keys import parse_public_key

    message = receipt.message
    return {
        "id": receipt.id.hex(),
        "channel": message.channel.hex(),
        "receipt_number": message.receipt_number,
        "order_number": message.order_number,
        "provider": parse_public_key(channel.provider).peer_id,
        "client": parse_public_key(channel.client).peer_id,
        "model": message.model,
        "status": message.status.value,
        "prompt_tokens": message.usage.prompt_tokens,
        "cached_tokens": message.usage.cached_tokens,
        "output_tokens": message.usage.output_tokens,
        "amount_pico": message.amount_pico,
        "amount_eur": format_amount_eur(message.amount_pico),
        "channel_total_eur": format_amount_eur(message.channel_total_pico),
        "signed_by": sorted(role.value for role in receipt.signers),
        "issued_ms": message.issued_ms,
        "previous": message.previous.hex(),
        "mentions": [one.hex() for one in message.mentions],
        "requests": [_line_json(line) for line in message.requests],
        "dispute_days": channel.dispute_days,
    }


def _line_json(line: RequestLine) -> dict[str, Any]:
    return {
        "status": line.status.value,
        "finish_reason": line.finish_reason,
        "prompt_tokens": line.usage.prompt_tokens,
        "cached_tokens": line.usage.cached_tokens,
        "output_tokens": line.usage.output_tokens,
        "request_commitment": line.request_commitment.hex(),
        "response_commitment": line.response_commitment.hex(),
        "first_token_ms": line.first_token_ms,
        "total_ms": line.total_ms,
    }


def _receipt_lines(shown: dict[str, Any]) -> list[tuple[str, str]]:
    counts = f"{shown['prompt_tokens']} in ({shown['cached_tokens']} cached), {shown['output_tokens']} out"
    key = "kept: `receipts open` can show what was asked" if shown["request_key"] else "not here: erased, or never kept"
    return [
        ("receipt", f"{shown['receipt_number']} of channel {shown['channel']}"),
        ("id", shown["id"]),
        ("issued", _utc(shown["issued_ms"])),
        ("provider", shown["provider"]),
        ("client", shown["client"]),
        ("order", f"{shown['order_number']}, {shown['model']}, {shown['status']}"),
        ("tokens", counts),
        ("amount", f"{shown['amount_eur']} EUR; the channel's total is {shown['channel_total_eur']} EUR"),
        ("signed by", " and ".join(shown["signed_by"])),
        ("request key", key),
        *[("mentions", one) for one in shown["mentions"]],
        *[
            (
                f"request {n}",
                f"{one['status']}, {one['prompt_tokens']} in ({one['cached_tokens']} cached), "
                f"{one['output_tokens']} out, {one['total_ms']} ms",
            )
            for n, one in enumerate(shown["requests"], 1)
        ],
    ]


def _print_dispute(one: DisputeView) -> None:
    who = "you" if one.is_ours else f"the {one.by}"
    owed, billed = format_amount_eur(one.owed_pico), format_amount_eur(one.billed_pico)
    click.echo(f"{one.id[:16]}  receipt {one.receipt_number} of channel {one.channel[:16]}, disputed by {who}")
    what = f": {printable(one.statement)}" if one.statement else ""
    click.echo(f"  {one.reason}{what} ({owed} EUR owed, {billed} billed), {_utc(one.disputed_ms)}")
    if one.answer is not None:
        why = f": {printable(one.answer.statement)}" if one.answer.statement else ""
        click.echo(f"  {one.answer.decision}{why} ({format_amount_eur(one.answer.owed_pico)} EUR owed)")
    elif one.is_overdue:
        click.echo(f"  not answered, and overdue since {_utc(one.due_ms)}")
    elif one.is_ours:
        click.echo(f"  the other side has until {_utc(one.due_ms)} to answer")
    else:
        click.echo(
            f"  waits for you until {_utc(one.due_ms)}: p2pgrid receipts answer {one.id[:16]} --accept | --reject"
        )


def _print_sent(done: Recorded) -> None:
    if done.is_sent:
        click.echo(f"{done.dispute.peer} has it on record.")
    else:
        click.echo(f"{done.dispute.peer} gets it with the next exchange on a link.")


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _day_ms(text: str) -> int:
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no day.", hint="Write it like 2027-01-31; UTC is meant.") from None
    time_ms = int(day.timestamp() * 1000)
    if time_ms <= 0:
        raise UsageError(f"{text} is before every order.", hint="Name a later day.")
    return time_ms
