"""`p2pgrid demo`: a whole grid on this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.demo.grid import Grid
    from p2pgrid.demo.run import DemoReport


@click.command()
@click.option("--keep", is_flag=True, help="Leave the grid up at the end, and say what to try. Ctrl-C stops it.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Where it keeps its data.")
@click.option("--model", default="smollm2-135m-instruct", show_default=True, help="The model's name on the grid.")
@click.option(
    "--model-path",
    default="smollm2",
    show_default=True,
    help="What the operators' vLLM loads: smollm2, tiny, or a folder with a model.",
)
@click.option("--engine-url", help="An engine that runs already, for both operators, instead of starting vLLM twice.")
@click.option("--gateway-listen", default="127.0.0.1:0", show_default=True, help="host:port of the client's gateway.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_obj
def demo(
    context: CliContext,
    keep: bool,
    folder: Path | None,
    model: str,
    model_path: str,
    engine_url: str | None,
    gateway_listen: str,
    as_json: bool,
) -> None:
    """Run a whole grid on this machine, and audit it.

    A bootstrap peer, two operators in two countries with an engine each, and a client's gateway, in separate processes
    with separate data folders. Chats go through the official openai package, to the cheaper operator first and to the
    other when that one is stopped; both sides' receipts are exported and audited; then one byte of a copy is flipped,
    and the audit must catch it.
    """
    try:
        from p2pgrid.demo.run import DemoOptions, Steps, run_demo
    except ImportError as error:
        raise UsageError(
            f"the demo needs the package {error.name!r}.", hint="Install it: pip install 'p2pgrid[demo]'"
        ) from None

    options = DemoOptions(
        folder=(folder or context.data.path / "demo").absolute(),
        model=model,
        model_path=model_path,
        engine_url=engine_url,
        gateway_listen=gateway_listen,
    )
    steps = Steps(
        announce=lambda name: click.echo(f"  .. {name}", err=True),
        done=lambda name, seconds: click.echo(f"  ok {name} ({seconds:.1f} s)", err=True),
    )

    async def stay(report: DemoReport, grid: Grid) -> None:
        _print(report, as_json)
        _print_what_to_try(report, grid)
        await asyncio.Event().wait()

    async def supervised() -> DemoReport:
        # SIGTERM cleans up as Ctrl-C does: children never outlive the demo.
        import signal

        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await run_demo(options, steps, keep=stay if keep else None)

    try:
        report = asyncio.run(supervised())
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not keep:
            raise click.Abort from None
        click.echo("The grid is stopped.", err=True)
        return
    _print(report, as_json)


def _print(report: DemoReport, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report))
        return
    _print_chats(report)
    _print_audits(report)


def _print_chats(report: DemoReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What was bought")
    for name in ("request", "operator", "country"):
        table.add_column(name, overflow="fold")
    for name in ("in", "cached", "out", "EUR/M in/out", "cost EUR", "first token"):
        table.add_column(name, justify="right", no_wrap=True)
    for chat in report.chats:
        table.add_row(
            f"{'stream' if chat.streamed else 'whole '} {chat.request[:30]}",
            chat.operator,
            chat.country,
            str(chat.prompt_tokens),
            str(chat.cached_tokens),
            str(chat.output_tokens),
            chat.price_eur,
            chat.cost_eur,
            f"{chat.first_token_ms} ms" if chat.first_token_ms is not None else "-",
        )
    Console(width=None if Console().is_terminal else 132).print(table)


def _print_audits(report: DemoReport) -> None:
    channels = report.audit["channels"]
    receipts = sum(channel["receipts"] for channel in channels)
    click.echo(f"Audit of {len(report.exports)} exports: clean. {len(channels)} channels, {receipts} receipts.")
    click.echo(f"Audit with one byte flipped in {Path(report.tampered_file).name}: caught.")
    for finding in report.tampered_audit["findings"]:
        click.echo(f"  {finding['code']}: at fault: {finding['party']}. {finding['sentence']}")
    click.echo(f"Everything is in {report.folder}. Done in {report.total_s:.0f} s.")


def _print_what_to_try(report: DemoReport, grid: Grid) -> None:
    body: dict[str, Any] = {"model": grid.model, "messages": [{"role": "user", "content": "Hello!"}]}
    ledgers = "\n".join(f"  {node.data / 'ledger.sqlite'}" for node in grid.nodes if node is not grid.bootstrap)
    click.echo(
        f"\nThe grid stays up. Try:\n"
        f"  OPENAI_BASE_URL={report.base_url}  (any key)\n"
        f"  curl {report.base_url}/chat/completions -H 'content-type: application/json' -d '{json.dumps(body)}'\n"
        f"  p2pgrid --data {grid.folder / 'client'} receipts list\n"
        f"  p2pgrid audit {' '.join(report.exports)}\n"
        f"Ledgers, readable with sqlite-utils or datasette:\n{ledgers}\n"
        f"Press Ctrl-C to stop it."
    )
