"""What the top-level command hands to every subcommand."""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.data_folder import DataFolder


@dataclass(frozen=True, slots=True)
class CliContext:
    """Found at `click.Context.obj`."""

    data: DataFolder
