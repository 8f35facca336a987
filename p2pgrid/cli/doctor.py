"""`p2pgrid doctor`: is all well with this node, and if not, what mends it?"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_options, resolve_networks
from p2pgrid.cli.output import echo_json
from p2pgrid.cli.progress import progress

if TYPE_CHECKING:
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.doctor.examination import Choice, Report

_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


@click.command()
@click.option(
    "--role",
    type=click.Choice(["provider", "client", "bootstrap"]),
    help="What this data folder is for. [default: what runs on it, or what lies in it]",
)
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(
    ctx: click.Context,
    role: str | None,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Look for faults in this node, and say what mends them.

    Ports, clock, engines, keys, config.toml, disk, ledger, the network, whether strangers can reach the node, versions:
    what concerns the data folder's role. Works beside a running node, and without one, when it listens at the node's
    ports for a moment so that others can dial them. Changes nothing on disk; takes about 15 s at most.

    Exit codes: 0 no faults, though there may be warnings; 1 faults.
    """
    logging.basicConfig(level=logging.CRITICAL)
    context: CliContext = ctx.obj
    from p2pgrid.doctor.check import has_faults
    from p2pgrid.doctor.examination import examine
    from p2pgrid.doctor.folder import Role

    with progress() as told:
        report = asyncio.run(
            examine(
                context.data,
                role=Role(role) if role else None,
                choice=_choice(context.data, network, bootstrap, bootstrap_peers),
                progress=told,
            )
        )
    if as_json:
        echo_json(_as_json(report, str(context.data.path)))
    else:
        _print(report, str(context.data.path))
    ctx.exit(int(has_faults(report.checks)))


def _choice(
    data: DataFolder, network: str | None, bootstrap: tuple[str, ...], bootstrap_peers: Path | None
) -> Choice | None:
    """What the flags say; None if they say nothing."""
    if not (network or bootstrap or bootstrap_peers):
        return None
    return lambda config: resolve_networks(data, config, network, bootstrap, bootstrap_peers)


def _as_json(report: Report, data: str) -> dict[str, Any]:
    from p2pgrid.doctor.check import has_faults

    return {
        "healthy": not has_faults(report.checks),
        "role": report.role.value,
        "data": data,
        "peer_id": report.peer_id,
        "running": report.running,
        "checks": [
            {"name": one.name, "state": one.state.value, "text": one.text, "fix": one.fix or None}
            for one in report.checks
        ],
    }


def _print(report: Report, data: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from p2pgrid.doctor.check import State

    table = Table(title=f"A {report.role.value} in {escape(data)}", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was found, and what mends it", overflow="fold")
    for one in report.checks:
        fix = f"\n[bold]fix:[/bold] {escape(one.fix)}" if one.fix else ""
        table.add_row(escape(one.name), f"[{_STYLES[one.state]}]{one.state.value}[/]", escape(one.text) + fix)
    Console(width=None if Console().is_terminal else 160).print(table)
    faults = sum(one.state is State.FAULT for one in report.checks)
    warnings = sum(one.state is State.WARNING for one in report.checks)
    if faults or warnings:
        click.echo(f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}.")
    else:
        click.echo("All is well.")


def _count(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"
