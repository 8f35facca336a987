"""Options that commands of `p2pgrid books` share, and how they print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def mapping_options(command: F) -> F:
    """--chart and --mapping."""
    for option in (
        click.option(
            "--mapping",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A TOML file with account numbers. [default: [billing.accounts] in config.toml]",
        ),
        click.option(
            "--chart",
            type=click.Choice(["plain", "skr03", "skr04"]),
            help="Chart of accounts. [default: that of config.toml, else plain]",
        ),
    ):
        command = option(command)
    return command


def country_option(command: F) -> F:
    """--country."""
    return click.option(
        "--country",
        metavar="CODE",
        default="",
        callback=_country,
        help="Where you are established, like LT: for VAT that you owe, and terms of law. [default: config.toml's]",
    )(command)


def _country(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    if text and not (len(text) == 2 and text.isascii() and text.isalpha()):
        raise click.BadParameter(f"{text!r} is no code of a country. Write it like LT.")
    return text.upper()
