"""A verdict for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pgrid.proto.codes import CODES, Weight
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.verdict import ChannelSummary, Verdict
from p2pgrid.units import format_amount_eur


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain values, with its sums and a title for every finding: what `audit --json` prints."""
    shown: dict[str, Any] = msgspec.to_builtins(verdict)
    for finding in (*shown["findings"], *shown["notes"]):
        finding["title"] = CODES[finding["code"]].title
    for channel in shown["channels"]:
        channel["amount"] = format_amount_eur(channel["amount_pico"])
        channel["countersigned_amount"] = format_amount_eur(channel["countersigned_pico"])
    shown["totals"] = _totals(verdict.channels)
    return shown


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict, the channels, and what was found: each finding's code, party, record and sentence.

    Names and sentences may quote what peers wrote: nothing in them is taken for markup or a control character.
    """
    found, totals = len(verdict.findings), _totals(verdict.channels)
    headline = ("Clean.", "bold green") if verdict.clean else (f"{found} finding{'s' * (found > 1)}.", "bold red")
    lines = sum(bundle.lines for bundle in verdict.bundles)
    counts = (
        f" {lines} records in {len(verdict.bundles)} bundle(s): {totals['channels']} channel(s), "
        f"{totals['receipts']} receipts, {totals['countersigned']} of them countersigned."
    )
    console.print(Text.assemble(headline, counts), soft_wrap=True)
    if verdict.channels:
        console.print(_channel_table(verdict.channels))
    for party, peer_id, name in sorted(
        {("provider", c.provider, c.operator) for c in verdict.channels}
        | {("client", c.client, "") for c in verdict.channels},
        reverse=True,
    ):
        console.print(_plain(f"{party} {peer_id} {name}"), style="dim", soft_wrap=True)
    _print_findings("Findings", verdict.findings, console)
    _print_findings("Notes (no fault)", verdict.notes, console)


def _channel_table(channels: Iterable[ChannelSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("channel", no_wrap=True)
    table.add_column("operator", no_wrap=True, overflow="ellipsis")
    for name in ("receipts", "tokens in", "cached", "out", "amount"):
        table.add_column(name, justify="right", no_wrap=True)
    for channel in channels:
        row = (
            channel.channel[:8],
            channel.operator or "?",
            f"{channel.countersigned} of {channel.receipts} final",
            str(channel.prompt_tokens),
            str(channel.cached_tokens),
            str(channel.output_tokens),
            f"{format_amount_eur(channel.amount_pico)} {channel.currency}",
        )
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _print_findings(title: str, findings: Iterable[Finding], console: Console) -> None:
    for number, finding in enumerate(findings):
        if number == 0:
            console.print(Text(f"\n{title}", style="bold"))
        is_fault = CODES[finding.code].weight is Weight.FAULT
        party = " ".join((finding.party.value, *finding.peer_ids))
        role = "at fault" if is_fault else "about"
        console.print(_plain(f"{finding.code}  {role}: {party}"), style="bold", soft_wrap=True)
        record = f"record {finding.record_id[:16]}" if finding.record_id else "no readable record"
        proof = "; proves itself to anybody" if finding.convinces else ""
        console.print(_plain(f"  {record} at {finding.where}{proof}"), style="dim", soft_wrap=True)
        console.print(_plain(f"  {finding.sentence}"), soft_wrap=True)


def _totals(channels: Iterable[ChannelSummary]) -> dict[str, Any]:
    channels = tuple(channels)
    by_currency = {c.currency: 0 for c in channels}
    for channel in channels:
        by_currency[channel.currency] += channel.amount_pico
    return {
        "channels": len(channels),
        "receipts": sum(c.receipts for c in channels),
        "countersigned": sum(c.countersigned for c in channels),
        "prompt_tokens": sum(c.prompt_tokens for c in channels),
        "cached_tokens": sum(c.cached_tokens for c in channels),
        "output_tokens": sum(c.output_tokens for c in channels),
        "amounts": {currency: format_amount_eur(amount) for currency, amount in by_currency.items()},
    }


def _plain(text: str) -> Text:
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
