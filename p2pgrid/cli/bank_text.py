"""What `p2pgrid bank` prints for people."""

from __future__ import annotations

from typing import Any, Final

import click

from p2pgrid.printable import printable
from p2pgrid.units import format_cents

_KEY_CHARS: Final = 10


def print_report(shown: dict[str, Any]) -> None:
    """What a run decided and booked."""
    if shown["redone"]:
        click.echo(f"Of an earlier run that did not end, {_counted(shown['redone'], 'payment')} booked now.")
    unrelated = 0
    for one in shown["decided"]:
        if one["kind"] == "unrelated":
            unrelated += 1
            continue
        _print_entry(one)
    for why in shown["refused"]:
        click.echo(f"Not booked: {why}")
    parts = [f"{_counted(shown['payments_booked'], 'payment')} booked"]
    if shown["allocated"]:
        parts.append(f"{_counted(shown['allocated'], 'booking')} of money ahead and credit notes")
    if unrelated:
        parts.append(f"{unrelated} {'entry is' if unrelated == 1 else 'entries are'} none of ours")
    if shown["known"]:
        parts.append(f"{shown['known']} {'was' if shown['known'] == 1 else 'were'} known")
    click.echo("; ".join(parts) + ".")
    if shown["waiting"]:
        waits = "waits" if shown["waiting"] == 1 else "wait"
        click.echo(f"{shown['waiting']} {waits} for you: p2pgrid bank assign ENTRY INVOICE | --ahead PEER | --not-ours")


def print_entries(entries: list[dict[str, Any]], *, only_waiting: bool) -> None:
    """Entries with what they were taken for."""
    if not entries:
        click.echo("Nothing waits for you." if only_waiting else "No entry of the bank's is booked.")
    for one in entries:
        _print_entry(one)


def print_open(shown: dict[str, Any]) -> None:
    """Open invoices, and money ahead."""
    if shown["open"]:
        click.echo(f"{'INVOICE':<24}{'DUE':<12}{'GROSS':>12}{'PAID':>12}{'OPEN':>12}  STATE")
    else:
        click.echo("No invoice is open.")
    for one in shown["open"]:
        click.echo(
            f"{printable(one['invoice']):<23} {one['due']:<12}{format_cents(one['gross_cents']):>12}"
            f"{format_cents(one['paid_cents']):>12}{format_cents(one['open_cents']):>12}  {one['state']}"
        )
        click.echo(f"  {printable(one['debtor']) or one['peer']}")
    for one in shown["ahead"]:
        click.echo(f"Paid ahead by {printable(one['debtor']) or one['peer']}: {format_cents(one['cents'])} EUR.")


def _print_entry(one: dict[str, Any]) -> None:
    who = printable(one["name"]) or one["iban"] or "somebody"
    way = "from" if one["amount_cents"] > 0 else "to"
    amount = f"{format_cents(abs(one['amount_cents']))} {printable(one['currency'])}"
    click.echo(f"{one['entry'][:_KEY_CHARS]}  {one['booking_date']}  {amount} {way} {who}: {one['kind']}")
    click.echo(f"  {printable(one['reason'])}")
    if one["text"] and one["kind"] == "ambiguous":
        click.echo(f"  text: {printable(one['text'])[:140]}")
    if one["findings"]:
        click.echo(f"  note: {', '.join(one['findings'])}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
