"""`p2pgrid audit`: verify exported receipts offline."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2pgrid.cli.output import echo_json
from p2pgrid.cli.progress import progress

if TYPE_CHECKING:
    from p2pgrid.audit.documents import DocumentCheck
    from p2pgrid.proto.findings import Finding
    from p2pgrid.proto.record import Record
    from p2pgrid.proto.verdict import Verdict


def moment(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """A date or a time of ISO 8601, as Unix milliseconds. A date alone means its end; without an offset it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if len(text) <= len("2026-06-30"):
            moment += timedelta(days=1, milliseconds=-1)
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no date. Write 2026-06-30, or 2026-06-30T12:00+02:00.") from None


MOST_CHECKS: Final = 20
"""Invoice files with something wrong that the text shows."""


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--html", "page", metavar="OUT", type=click.Path(path_type=Path), help="Write a page with charts.")
@click.option(
    "--proofs", metavar="DIR", type=click.Path(path_type=Path), help="Write a proof file for each [T] finding."
)
@click.option(
    "--proof", metavar="FILE", type=click.Path(path_type=Path), help="Verify one proof file, and nothing else."
)
@click.option(
    "--at",
    "at_ms",
    metavar="DATE",
    callback=moment,
    help="Judge terms as of then. [default: the latest record]",
)
@click.option("--logged", is_flag=True, help="Demand a proof of inclusion in the provider's log for every receipt.")
@click.option(
    "--witnesses",
    type=click.IntRange(0, 64),
    default=0,
    help="Demand that so many peers have cosigned the provider's latest checkpoint, lately. [default: 0]",
)
@click.option(
    "--documents",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Hold each invoice against its file in DIR: SHA-256, number, sums, statement.",
)
@click.option("--processes", type=click.IntRange(1, 256), help="Workers for large files. [default: one a core]")
def audit(
    files: tuple[Path, ...],
    as_json: bool,
    page: Path | None,
    proofs: Path | None,
    proof: Path | None,
    at_ms: int | None,
    logged: bool,
    witnesses: int,
    documents: Path | None,
    processes: int | None,
) -> None:
    """Verify exported receipts, and say who is at fault.

    FILEs are written by `p2pgrid receipts export`; `-` is standard input. Give one side's, or both sides' to hold them
    against each other, of one channel or of hundreds; a name with `provider` or `operator`, `client` or `gateway` in it
    says whose export it is. Works offline, with nothing but the files. `p2pgrid trace` follows the money in them.

    A [T] finding convinces a third party: its proof file holds the few records it takes, and `--proof` verifies it with
    nothing else at hand.

    Exit codes: 0 clean, or the proof proves; 1 findings, an invoice whose file is not what its record says, or a proof
    that does not prove; 2 a file that is missing or no bundle; 3 this machine (disk, memory).
    """
    from p2pgrid.errors import UsageError

    if proof is not None:
        if files or page or proofs or documents or at_ms is not None or logged or witnesses:
            raise UsageError("--proof verifies one file alone.", hint="Run `p2pgrid audit --proof FILE`.")
        _verify_proof(proof, as_json)
        return
    if not files:
        raise UsageError("no bundle is named.", hint="`p2pgrid audit FILE...`; `p2pgrid receipts export` writes one.")
    from p2pgrid.audit.check import audit_files
    from p2pgrid.proto.log_case import LogDemands

    demands = LogDemands(proofs=logged, witnesses=witnesses)
    records: list[Record] = []
    with progress() as report:
        keep = records.append if proofs is not None else None
        verdict = audit_files(files, processes=processes, report=report, now_ms=at_ms, keep=keep, log_demands=demands)
        written, without = _write_proofs(proofs, verdict, records, report) if proofs is not None else ([], [])
        checks = _check_documents(documents, verdict, report) if documents is not None else None
    if page is not None:
        from p2pgrid.audit.page import write_page

        write_page(page, verdict)
    _print_verdict(verdict, as_json, checks)
    if not as_json:
        for path in [*written[:10], *([page] if page else [])]:
            click.echo(f"Wrote {path}")
        if len(written) > 10:
            click.echo(f"and {len(written) - 10} more proof files.")
        if without:
            click.echo(f"{len(without)} [T] findings have no proof file: too many, or resting on the accuser's word.")
    if not verdict.clean or any(check.state != "ok" for check in checks or ()):
        sys.exit(1)


def _check_documents(
    folder: Path, verdict: Verdict, report: Callable[[str, int, int], None]
) -> tuple[DocumentCheck, ...]:
    from p2pgrid.audit.documents import check_documents
    from p2pgrid.settlement.invoices.totals import read_totals

    return check_documents(verdict.settlement, folder, read_totals, report)


def _print_verdict(verdict: Verdict, as_json: bool, checks: tuple[DocumentCheck, ...] | None) -> None:
    if as_json:
        import msgspec

        from p2pgrid.audit.report import verdict_as_json

        shown = verdict_as_json(verdict)
        if checks is not None:
            shown["documents"] = msgspec.to_builtins(checks)
        echo_json(shown)
    else:
        from rich.console import Console

        from p2pgrid.audit.report import print_verdict

        print_verdict(verdict, Console(highlight=False))
        if checks is not None:
            _print_checks(checks)


def _print_checks(checks: tuple[DocumentCheck, ...]) -> None:
    from p2pgrid.printable import printable

    wrong = [check for check in checks if check.state != "ok"]
    click.echo(f"\nInvoice files: {len(checks) - len(wrong)} of {len(checks)} are what their records say.")
    for check in wrong[:MOST_CHECKS]:
        click.echo(f"  {check.state}: {printable(check.sentence)}")
    if len(wrong) > MOST_CHECKS:
        click.echo(f"  and {len(wrong) - MOST_CHECKS} more, which --json lists")


def _write_proofs(
    folder: Path, verdict: Verdict, records: list[Record], report: Callable[[str, int, int], None]
) -> tuple[list[Path], list[Finding]]:
    from p2pgrid.audit.proof_file import write_proofs

    return write_proofs(folder, verdict.findings, records, report)


def _verify_proof(path: Path, as_json: bool) -> None:
    from p2pgrid.audit.proof_file import verify_proof
    from p2pgrid.audit.report import proof_as_json, sentence_of_proof

    claim, finding, records = verify_proof(path)
    if as_json:
        echo_json(proof_as_json(claim, finding, records))
    else:
        click.echo(sentence_of_proof(claim, finding))
    if finding is None:
        sys.exit(1)
