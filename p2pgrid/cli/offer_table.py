"""Offers as a table for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import click


def print_table(rows: list[dict[str, Any]]) -> None:
    """Offers as `/v1/models` has them, in their order."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from p2pgrid.printable import printable

    table = Table(title="On sale now, EUR per million tokens")
    for name in ("model", "operator", "country", "parent", "domain"):
        table.add_column(name, overflow="fold")
    for name in ("input", "cached", "output", "context", "free", "window"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("price changes (UTC)")
    table.add_column("valid until (UTC)")
    table.add_column("seen", no_wrap=True)
    table.add_column("peer", no_wrap=True)
    is_marked = any(row["quarantine"] for row in rows)
    if is_marked:
        table.add_column("quarantine", overflow="fold")
    is_mixed = len({tuple(row["networks"]) for row in rows}) > 1 or any(len(row["networks"]) > 1 for row in rows)
    if is_mixed:
        table.add_column("networks", overflow="fold")
    for row in rows:
        prices = row["prices"]
        table.add_row(
            escape(printable(row["model"])),
            escape(printable(operator_text(row))),
            row["country"],
            (row["card"] or {}).get("parent_country") or "",
            escape(printable(domain_text(row))),
            prices["input_eur"],
            prices["cached_input_eur"],
            prices["output_eur"],
            str(row["context_tokens"]),
            free_text(row),
            str(row["window_tokens"]),
            change_text(row),
            time_text(row["valid_until_ms"]),
            seen_text(row["confirmed_ms"]),
            row["provider"],
            *([escape(row["quarantine"])] if is_marked else []),
            *([", ".join(row["networks"])] if is_mixed else []),
        )
    Console(width=None if Console().is_terminal else 200).print(table)
    if is_marked:
        click.echo("Nothing is bought from a provider under quarantine; `p2pgrid offers allow PEER` lifts it.")


def operator_text(row: dict[str, Any]) -> str:
    """The legal name on the card; where there is none, the name that the offer gives."""
    card = row["card"]
    if card is None:
        return f"{row['operator']} (no card)"
    if card["legal_name"] is None or (card["domain_checked"] is None and card["fault"]):
        return f"{row['operator']} (card does not hold: {card['fault']})"
    return f"{card['legal_name']}, {card['country']}"


def domain_text(row: dict[str, Any]) -> str:
    """The domain on the card, and whether it was proven."""
    card = row["card"] or {}
    if not card.get("domain"):
        return ""
    return f"{card['domain']} ({'checked' if card['domain_checked'] else 'NOT proven'})"


def free_text(row: dict[str, Any]) -> str:
    """`3 of 8`: what the provider says it would take now, of what it serves at once."""
    free = "?" if row["free"] is None else row["free"]
    return f"{free} of {row['concurrency']}"


def seen_text(confirmed_ms: int) -> str:
    """How long ago the provider itself said that the offer stands."""
    seconds = max(0, round(time.time() - confirmed_ms / 1000))
    return f"{seconds} s ago" if seconds < 120 else f"{seconds // 60} min ago"


def time_text(time_ms: int) -> str:
    """`2027-01-16 22:00`."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def change_text(row: dict[str, Any]) -> str:
    """When the price changes, and to what: `Mon 22:00 to 0.05/0.20`."""
    if row["price_changes_ms"] is None:
        return "no" if row["schedule"] is None else "never"
    at = datetime.fromtimestamp(row["price_changes_ms"] / 1000, UTC)
    following = row["next_prices"]
    return f"{at:%a %H:%M} to {following['input_eur']}/{following['output_eur']}"
