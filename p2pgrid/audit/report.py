"""A verdict for people and for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pgrid.audit.advice import ADVICE
from p2pgrid.printable import printable
from p2pgrid.proto.channel_summary import ChannelSummary
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.proof import REFUTABLE, Claim
from p2pgrid.proto.settlement_summary import ChannelSettlement
from p2pgrid.proto.verdict import Verdict
from p2pgrid.units import format_amount_eur, format_cents

MOST_CHANNELS: Final = 30
"""Rows that the text shows."""
MOST_OF_A_KIND: Final = 5
"""Findings of one code and party that the text shows."""


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain values, with its sums and a title for every finding: what `audit --json` prints.

    docs/audit.md describes it.
    """
    shown: dict[str, Any] = msgspec.to_builtins(verdict)
    for finding in (*shown["findings"], *shown["notes"]):
        finding["title"] = CODES[finding["code"]].title
        finding["means"], finding["do"] = ADVICE[finding["code"]]
    for channel in shown["channels"]:
        channel["amount"] = format_amount_eur(channel["amount_pico"])
        for name in ("countersigned", "credited", "disputed", "owed"):
            channel[f"{name}_amount"] = format_amount_eur(channel[f"{name}_pico"])
    shown["totals"] = totals_of(verdict.channels)
    shown["at_fault"] = [
        {"party": party.value, "peer_id": peer_id, "findings": count}
        for (party, peer_id), count in at_fault(verdict.findings).items()
    ]
    return shown


def proof_as_json(claim: Claim, finding: Finding | None, records: int) -> dict[str, Any]:
    """What `audit --proof --json` prints."""
    code = CODES.get(claim.code)
    return {
        "proves": finding is not None,
        "code": claim.code,
        "title": code.title if code is not None else "",
        "party": claim.party.value,
        "peer_ids": list(claim.peer_ids),
        "record_id": claim.record_id,
        "sentence": finding.sentence if finding is not None else "",
        "refutable": REFUTABLE.get(claim.code, ""),
        "records": records,
    }


def sentence_of_proof(claim: Claim, finding: Finding | None) -> str:
    """What a proof file proves, or that it does not. The claim's own words are quoted, and nothing else of it."""
    party = " ".join((claim.party.value, *(printable(peer_id)[:80] for peer_id in claim.peer_ids)))
    if finding is None:
        accused = f"that {party} is guilty of {printable(claim.code)[:40]!r}"
        return f"Proves nothing: {accused} does not follow from the records."
    code = CODES[finding.code]
    said = f"Proves that {party} is at fault: {code.code}. {code.title} {finding.sentence}"
    return f"{said} {REFUTABLE[code.code]}" if code.code in REFUTABLE else said


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict: the summary first, then the channels, then what was found, like with like.

    Names and sentences may quote what peers wrote: nothing in them is taken for markup or a control character.
    """
    style = "bold green" if verdict.clean else "bold red"
    console.print(Text.assemble((headline(verdict), style), counts_of(verdict)), soft_wrap=True)
    for line in summary_lines(verdict):
        console.print(_plain(line), soft_wrap=True)
    if verdict.channels:
        console.print()
        console.print(_channel_table(verdict.channels))
        if len(verdict.channels) > MOST_CHANNELS:
            console.print(f"and {len(verdict.channels) - MOST_CHANNELS} more; --json and --html list them all")
    for party, peer_id, name in _parties(verdict)[: 2 * MOST_CHANNELS]:
        console.print(_plain(f"{party} {peer_id} {name}".rstrip()), style="dim", soft_wrap=True)
    if verdict.settlement:
        console.print()
        console.print(_settlement_table(verdict.settlement))
        if len(verdict.settlement) > MOST_CHANNELS:
            console.print(f"and {len(verdict.settlement) - MOST_CHANNELS} more; --json and --html list them all")
    several = len(verdict.channels) > 1
    print_findings("Findings", verdict.findings, console, several=several)
    print_findings("Notes (no fault)", verdict.notes, console, several=several)


def headline(verdict: Verdict) -> str:
    """Clean, or how many findings."""
    if verdict.clean:
        return "Clean."
    found = count_of(verdict.findings)
    return f"{found} finding{'s' * (found != 1)}."


def count_of(findings: Iterable[Finding]) -> int:
    """How many findings there are, those that stand for many counted as what they stand for."""
    return sum(finding.count for finding in findings)


def counts_of(verdict: Verdict) -> str:
    """How much was audited."""
    totals, records = totals_of(verdict.channels), sum(bundle.records for bundle in verdict.bundles)
    others = sum(bundle.lines for bundle in verdict.bundles) - records
    more = f" and {others} lines that are none" if others else ""
    return (
        f" {records} records{more} in {len(verdict.bundles)} bundle(s): {totals['channels']} channel(s), "
        f"{totals['receipts']} receipts, {totals['countersigned']} of them countersigned."
    )


def summary_lines(verdict: Verdict) -> list[str]:
    """Who is at fault, and the amounts of each currency."""
    faults = at_fault(verdict.findings)
    named = [f"{party} {peer_id}".strip() + f" ({count})" for (party, peer_id), count in faults.items()]
    lines = [f"At fault: {', '.join(named)}."] if named else []
    if verdict.unjudged:
        lines.append(
            f"{verdict.unjudged} more orders are not in order; there are too many to judge each, or to count in."
        )
    if verdict.unjudged_records:
        lines.append(f"{verdict.unjudged_records} more records about no order were not looked at; there are too many.")
    for currency, sums in totals_of(verdict.channels)["sums"].items():
        lines.append(
            f"{currency}: {sums['owed']} owed ({sums['amount']} billed, {sums['credited']} credited), "
            f"{sums['disputed']} disputed, {sums['countersigned']} countersigned."
        )
    lines += balance_lines(verdict.settlement)
    if verdict.at_ms:
        lines.append(f"Terms held against {date_time(verdict.at_ms)}.")
    return lines


def balance_lines(settlement: Iterable[ChannelSettlement]) -> list[str]:
    """What was stated, paid and is open, a line for each currency."""
    by_currency: dict[str, list[ChannelSettlement]] = defaultdict(list)
    for one in settlement:
        by_currency[one.currency].append(one)
    lines = []
    for currency, of in sorted(by_currency.items()):
        stated, paid = sum(one.gross_cents for one in of), sum(one.payments_cents for one in of)
        open_cents, overdue = sum(one.open_cents for one in of), sum(one.overdue_cents for one in of)
        line = (
            f"Settled in {currency}: {format_cents(stated)} in {sum(len(one.statements) for one in of)} statement(s), "
        )
        line += f"{format_cents(paid)} paid, {format_cents(open_cents)} open"
        lines.append(f"{line}, {format_cents(overdue)} of it overdue." if overdue else f"{line}.")
    return lines


def at_fault(findings: Iterable[Finding]) -> dict[tuple[Party, str], int]:
    """How many findings there are against each party and peer; the peer's id is empty where it is not known."""
    counts: dict[tuple[Party, str], int] = defaultdict(int)
    for finding in findings:
        for peer_id in finding.peer_ids or ("",):
            counts[finding.party, peer_id] += finding.count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of one code against one party together, the largest group of provable ones first."""
    groups: dict[tuple[str, Party, tuple[str, ...]], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.code, finding.party, finding.peer_ids].append(finding)
    order = list(CODES)
    return sorted(groups.values(), key=lambda g: (not g[0].convinces, -count_of(g), order.index(g[0].code)))


def totals_of(channels: Iterable[ChannelSummary]) -> dict[str, Any]:
    """Sums over all channels; amounts by currency."""
    channels = tuple(channels)
    by_currency: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    for c in channels:
        amounts = c.amount_pico, c.countersigned_pico, c.credited_pico, c.disputed_pico, c.owed_pico
        by_currency[c.currency] = [a + b for a, b in zip(by_currency[c.currency], amounts, strict=True)]
    names = ("amount", "countersigned", "credited", "disputed", "owed")
    return {
        "channels": len(channels),
        "receipts": sum(c.receipts for c in channels),
        "countersigned": sum(c.countersigned for c in channels),
        "prompt_tokens": sum(c.prompt_tokens for c in channels),
        "cached_tokens": sum(c.cached_tokens for c in channels),
        "output_tokens": sum(c.output_tokens for c in channels),
        "amounts": {currency: format_amount_eur(amounts[0]) for currency, amounts in by_currency.items()},
        "sums": {
            currency: dict(zip(names, map(format_amount_eur, amounts), strict=True))
            for currency, amounts in by_currency.items()
        },
    }


def date_time(time_ms: int) -> str:
    """`2026-06-30 12:00 UTC`. What no calendar shows comes back as the number."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def date_of(time_ms: int) -> str:
    """`2026-06-30`, in UTC. What no calendar shows comes back as the number."""
    return date_time(time_ms)[:10] if date_time(time_ms).endswith("UTC") else f"{time_ms} ms"


def _parties(verdict: Verdict) -> list[tuple[str, str, str]]:
    providers = {("provider", c.provider, c.operator) for c in verdict.channels}
    return sorted(providers | {("client", c.client, "") for c in verdict.channels}, reverse=True)


def _channel_table(channels: Sequence[ChannelSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("channel", no_wrap=True, min_width=8)
    table.add_column("operator", no_wrap=True, overflow="ellipsis", max_width=22)
    for name in ("final", "tokens", "owed", "credited", "disputed"):
        table.add_column(name, justify="right", no_wrap=True)
    for channel in sorted(channels, key=lambda c: -c.amount_pico)[:MOST_CHANNELS]:
        row = (
            channel.channel[:8],
            channel.operator or "?",
            f"{channel.countersigned} of {channel.receipts}",
            f"{channel.prompt_tokens + channel.output_tokens}",
            f"{_rounded(channel.owed_pico)} {channel.currency}",
            _rounded(channel.credited_pico),
            _rounded(channel.disputed_pico),
        )
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _settlement_table(settlement: Sequence[ChannelSettlement]) -> Table:
    """Those with something overdue first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("settled", no_wrap=True, min_width=8)
    for name in ("statements", "gross", "paid", "set off", "open", "overdue", "ahead"):
        table.add_column(name, justify="right", no_wrap=True)
    order = sorted(settlement, key=lambda s: (-s.overdue_cents, -s.open_cents, s.channel))
    for one in order[:MOST_CHANNELS]:
        amounts = one.gross_cents, one.payments_cents, one.set_off_cents, one.open_cents, one.overdue_cents
        cells = [one.channel[:8], str(len(one.statements)), *map(format_cents, amounts)]
        table.add_row(*map(_plain, [*cells, f"{format_cents(one.paid_ahead_cents)} {one.currency}"]))
    return table


def print_findings(title: str, findings: Sequence[Finding], console: Console, *, several: bool) -> None:
    """Print findings, like with like. `several`: there are several channels, and it is said of which one each is."""
    if findings:
        console.print(Text(f"\n{title}", style="bold"))
    for group in grouped(findings):
        first, code = group[0], CODES[group[0].code]
        party = " ".join((first.party.value, *first.peer_ids))
        role = "at fault" if code.weight is Weight.FAULT else "about"
        count = count_of(group)
        many = f" ({count} times)" if count > 1 else ""
        console.print(_plain(f"{first.code}  {role}: {party}{many}"), style="bold", soft_wrap=True)
        console.print(_plain(f"  {code.title} {ADVICE[first.code].means}"), soft_wrap=True)
        for finding in group[:MOST_OF_A_KIND]:
            record = f"record {finding.record_id[:16]} " if finding.record_id else ""
            channel = f"of channel {finding.channel[:8]} " if finding.channel and several else ""
            proof = "; proves itself to anybody" if finding.convinces else ""
            console.print(_plain(f"  - {finding.sentence}"), soft_wrap=True)
            console.print(_plain(f"    {record}{channel}at {finding.where}{proof}"), style="dim", soft_wrap=True)
        if len(group) > MOST_OF_A_KIND:
            left = count_of(group[MOST_OF_A_KIND:])
            console.print(f"  - and {left} more, which --json and --html tell of")
        console.print(_plain(f"  What to do: {ADVICE[first.code].do}"), soft_wrap=True)


def _rounded(pico: int) -> str:
    """To a millionth, for a table; sums and --json are exact."""
    return format_amount_eur((pico + 500_000) // 1_000_000 * 1_000_000)


def _plain(text: str) -> Text:
    return Text(printable(text))
