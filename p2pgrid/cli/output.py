"""How commands print JSON."""

from __future__ import annotations

import json
from typing import Any

import click


def echo_json(value: Any) -> None:
    """One JSON value, in ASCII: a terminal takes nothing in it for more, and any name can be printed."""
    click.echo(json.dumps(value, indent=2))
