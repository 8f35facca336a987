"""`p2pgrid trace`: follow money from a transfer to its receipts, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.audit import moment
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.cli.progress import progress

if TYPE_CHECKING:
    from p2pgrid.audit.trace_parts import Trace
    from p2pgrid.proto.verdict import Verdict


@click.command()
@click.argument("what", metavar="[BUNDLE...] [WHAT]", nargs=-1)
@click.option("--receipts", "with_receipts", is_flag=True, help="List every receipt, not only ranges of numbers.")
@click.option("--csv", "table", metavar="FILE", type=click.Path(path_type=Path), help="Write every receipt to FILE.")
@click.option(
    "--at", "at_ms", metavar="DATE", callback=moment, help="Judge what is due as of then. [default: the latest record]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--processes", type=click.IntRange(1, 256), help="Workers for large files. [default: one a core]")
@click.pass_obj
def trace(
    context: CliContext,
    what: tuple[str, ...],
    with_receipts: bool,
    table: Path | None,
    at_ms: int | None,
    as_json: bool,
    processes: int | None,
) -> None:
    """Follow money from a transfer to its receipts, and back.

    BUNDLEs are files that `p2pgrid receipts export` has written; without one, this node's own ledger is read. They are
    audited first. WHAT names one thing; without it, every cent of every statement and transfer is accounted for:

    \b
      a transfer   its end-to-end reference, `12.40`, `12.40 2026-11-02`, a payment's id
      an invoice   its number or id
      a statement  CHANNEL:sNUMBER or its id
      a receipt    CHANNEL:NUMBER or its id

    Ids may be cut short. A name that fits several things lists them. `payment:`, `invoice:`, `statement:` or `receipt:`
    before a name says which it is.

    \b
      p2pgrid trace provider.jsonl client.jsonl 12.40 2026-11-02
      p2pgrid trace LT-2026-000001 --csv receipts.csv

    Exit codes: 0 followed, and the audit is clean; 1 the audit has findings (those that touch the trace are shown);
    2 no such name, or one that fits several; 3 this machine.
    """
    from p2pgrid.audit.check import audit_files
    from p2pgrid.audit.trace_book import TraceBook
    from p2pgrid.audit.trace_csv import write_csv
    from p2pgrid.proto.verdict import Judged

    bundles, name = split(what)
    judged: list[Judged] = []
    with progress() as report, _files(context, bundles) as files:
        verdict = audit_files(files, processes=processes, report=report, now_ms=at_ms, observe=judged.append)
        report("following", 0, 1)
        book = TraceBook(judged[0], references_of)
        traced = _traced(book, files, name, with_receipts=with_receipts, as_json=as_json)
        written = write_csv(table, book, traced) if table is not None else 0
        report("following", 1, 1)
    _print(traced, verdict, name, table, written, as_json=as_json)
    if not verdict.clean:
        sys.exit(1)


def split(arguments: Iterable[str]) -> tuple[list[Path], str]:
    """The files at the beginning, and the words behind them. Raises UsageError for a file behind a word."""
    from p2pgrid.errors import UsageError

    files: list[Path] = []
    words: list[str] = []
    for argument in arguments:
        is_file = argument == "-" or _is_file(argument)
        if is_file and not words:
            files.append(Path(argument))
        elif words and argument.endswith(".jsonl"):
            missing = next((word for word in words if word.endswith(".jsonl")), argument)
            raise UsageError(
                f"{missing} is no file, or stands behind what is to be followed.",
                hint="Name the bundles first, then one thing: p2pgrid trace BUNDLE... WHAT",
            )
        else:
            words.append(argument)
    return files, " ".join(words)


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except OSError:  # too long for a file's name
        return False


@contextmanager
def _files(context: CliContext, bundles: list[Path]) -> Iterator[list[Path]]:
    """The bundles, standard input kept in a file; or the node's own ledger as one."""
    import shutil
    from tempfile import TemporaryDirectory

    from p2pgrid.errors import LocalError

    with TemporaryDirectory(prefix="p2pgrid-trace-") as folder:
        if not bundles:
            yield [_own_ledger(context, Path(folder))]
            return
        files = list(bundles)
        if Path("-") in files:
            kept = Path(folder) / "standard-input.jsonl"
            try:
                with kept.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file, 1024 * 1024)
            except OSError as error:
                raise LocalError(
                    f"standard input cannot be kept in {folder}: {error.strerror}.", hint="Set TMPDIR to a larger disk."
                ) from None
            files = [kept if path == Path("-") else path for path in files]
        yield files


def _own_ledger(context: CliContext, folder: Path) -> Path:
    """The ledger's records, as a bundle that nobody else can read and that goes with the folder."""
    from itertools import chain

    from p2pgrid.cli.receipts import own_cards
    from p2pgrid.errors import UsageError
    from p2pgrid.ledger.bundle import write_bundle
    from p2pgrid.ledger.sqlite import SqliteLedger

    path = folder / "ledger"
    with SqliteLedger.open_readonly(context.data.ledger_file) as ledger:
        count = write_bundle(path, chain(own_cards(context, ledger, None), ledger.records()))
    if not count:
        raise UsageError(
            f"the ledger {context.data.ledger_file} has no record yet.",
            hint="Name a bundle: p2pgrid trace BUNDLE... WHAT",
        )
    return path


def _traced(book: Any, files: list[Path], name: str, *, with_receipts: bool, as_json: bool) -> Trace:
    from p2pgrid.audit.trace import whole_trace
    from p2pgrid.audit.trace_names import MOST_CANDIDATES, Ambiguous, NotNamed, find
    from p2pgrid.audit.trace_scan import add_receipts
    from p2pgrid.audit.trace_text import candidate_lines
    from p2pgrid.errors import UsageError

    if not name:
        return whole_trace(book)
    try:
        try:
            found = find(book, name)
        except NotNamed:
            add_receipts(book, files, name)
            found = find(book, name)
    except Ambiguous as error:
        if as_json:
            import msgspec

            echo_json({"candidates": msgspec.to_builtins(error.candidates)})
            sys.exit(UsageError.exit_code)
        lines = "\n".join(candidate_lines(error.candidates, MOST_CANDIDATES))
        raise UsageError(f"{error.message}\n{lines}", hint=error.hint) from None
    except NotNamed as error:
        if name.endswith(".jsonl") or "/" in name:
            raise UsageError(f"{name} is no file, and no record is named so.", hint=error.hint) from None
        raise
    return found.make(with_receipts=with_receipts)


def references_of(statement_id: bytes) -> tuple[str, ...]:
    """Both references by which the money for a statement is found."""
    from p2pgrid.settlement.payments.reference import make_creditor_reference, make_reference

    return make_reference(statement_id), make_creditor_reference(statement_id)


def _print(traced: Trace, verdict: Verdict, name: str, table: Path | None, written: int, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        shown = {
            "asked": name,
            "audit": {
                "clean": verdict.clean,
                "findings": sum(finding.count for finding in verdict.findings),
                "notes": len(verdict.notes),
                "records": sum(bundle.records for bundle in verdict.bundles),
                "at_ms": verdict.at_ms,
            },
            **msgspec.to_builtins(traced),
        }
        echo_json(shown)
        return
    from rich.console import Console

    from p2pgrid.audit.trace_text import print_trace

    print_trace(traced, verdict, Console(highlight=False))
    if table is not None:
        click.echo(f"\nWrote {written} receipts to {table}")
