"""`p2pgrid audit`: verify exported receipts offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(files: tuple[Path, ...], as_json: bool) -> None:
    """Verify exported receipts, and say who is at fault.

    FILEs are written by `p2pgrid receipts export`. Give one side's, or both sides' to hold them against each other;
    a name with `provider` or `operator`, `client` or `gateway` in it says whose export it is. Works offline, with
    nothing but the files.

    Exit codes: 0 clean; 1 findings; 2 a file that is missing or no bundle.
    """
    from p2pgrid.audit.check import audit_files

    verdict = audit_files(files)
    if as_json:
        from p2pgrid.audit.report import verdict_as_json

        click.echo(json.dumps(verdict_as_json(verdict), indent=2))
    else:
        from rich.console import Console

        from p2pgrid.audit.report import print_verdict

        print_verdict(verdict, Console(highlight=False))
    if not verdict.clean:
        sys.exit(1)
