"""A verdict as one HTML page that needs nothing else: no network, no script, no font.

The page is built as a tree and written by the standard library, so that every text in it is escaped: names and
sentences may quote what hostile peers wrote. Its content security policy lets nothing in but its own style sheet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from p2pgrid.audit import charts
from p2pgrid.audit.advice import ADVICE
from p2pgrid.audit.page_parts import add, add_table, link
from p2pgrid.audit.report import count_of, counts_of, date_time, grouped, headline, summary_lines, totals_of
from p2pgrid.audit.settlement_page import add_settlement, settled_until
from p2pgrid.ledger.bundle import write_lines
from p2pgrid.printable import printable
from p2pgrid.proto.channel_summary import Activity, ChannelSummary
from p2pgrid.proto.codes import CODES, Weight
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.verdict import Verdict
from p2pgrid.units import format_amount_eur

MOST_ROWS: Final = 2000
"""Channels, and findings of one kind, that the page shows."""
_OPEN_ROWS: Final = 5


def write_page(path: Path, verdict: Verdict) -> None:
    """Write the page to a file, whole or not at all. Raises UsageError for a folder that does not exist, LocalError if
    the disk is full or refuses."""
    write_lines(path, [page_of(verdict).encode()])


def page_of(verdict: Verdict) -> str:
    """The page."""
    style = files("p2pgrid.audit").joinpath("page.css").read_text("utf-8")
    assert "<" not in style, "a style sheet is written as it is"
    html = Element("html", {"lang": "en"})
    head = SubElement(html, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy_of(style)})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "meta", {"name": "referrer", "content": "no-referrer"})
    add(head, "title", f"p2pgrid audit: {headline(verdict)}")
    SubElement(head, "style").text = style
    main = SubElement(SubElement(html, "body"), "main")
    add(main, "h1", headline(verdict), "good" if verdict.clean else "bad")
    add(main, "p", counts_of(verdict).strip())
    for line in summary_lines(verdict):
        add(main, "p", line, "dim")
    _add_tiles(main, verdict)
    _add_findings(main, "Findings", verdict.findings)
    _add_charts(main, verdict)
    _add_findings(main, "Notes (no fault)", verdict.notes)
    _add_channels(main, verdict)
    add_settlement(main, verdict)
    _add_bundles(main, verdict)
    return "<!DOCTYPE html>\n" + tostring(html, encoding="unicode", method="html")


def policy_of(style: str) -> str:
    """Nothing may be loaded or run, nothing sent; of styles only this one."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _add_tiles(main: Element, verdict: Verdict) -> None:
    totals, tiles = totals_of(verdict.channels), SubElement(main, "div", {"class": "tiles"})
    shown = [(f"{count_of(verdict.findings):,}", "findings"), (f"{totals['receipts']:,}", "receipts")]
    shown.append((f"{totals['prompt_tokens']:,} / {totals['output_tokens']:,}", "tokens in / out"))
    for currency, sums in totals["sums"].items():
        for name in ("owed", "credited", "disputed"):
            shown.append((f"{sums[name]} {currency}", name))
    for value, name in shown[:30]:
        tile = SubElement(tiles, "div", {"class": "card"})
        add(tile, "b", value)
        add(tile, "span", name, "dim")


def _add_charts(main: Element, verdict: Verdict) -> None:
    activity = verdict.activity
    # Times that no calendar shows are gathered at hour 0, and would stretch the axis over all the years since.
    times = [row.hour_ms for row in activity if row.hour_ms] or [row.hour_ms for row in activity]
    axis = charts.axis_of(times)
    if axis is None:
        return
    add(main, "h2", f"Receipts by {axis.unit}, and findings")
    card = SubElement(main, "div", {"class": "card chart"})
    card.append(charts.timeline(activity, verdict.findings, axis))
    untimed = count_of(finding for finding in verdict.findings if not finding.time_ms)
    if verdict.findings:
        more = f" {untimed} more are about something that shows no time." if untimed else ""
        add(card, "p", f"Diamonds are findings.{more}", "dim")
    names = charts.series_names(activity)
    for currency in sorted({row.currency for row in activity})[:4]:
        rows = [row for row in activity if row.currency == currency]
        title = f"Amounts by {axis.unit} and model, {currency}"
        _add_chart(main, charts.stacked_bars(rows, axis, names, _amount_of, _short_amount, title), title, names)
    for title, value_of in (("Tokens in", _prompt_of), ("Tokens out", _output_of)):
        title = f"{title} by {axis.unit} and model"
        _add_chart(main, charts.stacked_bars(activity, axis, names, value_of, _short, title), title, names)


def _add_chart(main: Element, chart: Element, title: str, names: Sequence[str]) -> None:
    add(main, "h2", title)
    card = SubElement(main, "div", {"class": "card chart"})
    card.append(chart)
    card.append(charts.legend(names))


def _add_findings(main: Element, title: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    add(main, "h2", f"{title}: {count_of(findings):,}")
    for group in grouped(findings):
        first, code = group[0], CODES[group[0].code]
        card = SubElement(main, "section", {"class": f"card {'fault' if code.weight is Weight.FAULT else 'note'}"})
        heading = add(card, "h3", f"{first.code} ")
        add(heading, "span", f"{count_of(group):,}", "tag dim")
        if any(finding.convinces for finding in group):
            add(heading, "span", "proves itself to anybody", "tag dim")
        party = add(card, "p", f"{'At fault' if code.weight is Weight.FAULT else 'About'}: {first.party} ")
        for peer_id in first.peer_ids:
            add(party, "code", peer_id + " ")
        add(card, "p", f"{code.title} {ADVICE[first.code].means}")
        _add_with_code(card, f"What to do: {ADVICE[first.code].do}")
        _add_rows(card, group[:_OPEN_ROWS])
        if len(group) > _OPEN_ROWS:
            details = SubElement(card, "details")
            add(details, "summary", f"{count_of(group[_OPEN_ROWS:]):,} more")
            _add_rows(details, group[_OPEN_ROWS:MOST_ROWS])
            if len(group) > MOST_ROWS:
                add(details, "p", f"and {count_of(group[MOST_ROWS:]):,} that --json lists", "dim")


def _add_rows(parent: Element, findings: Iterable[Finding]) -> None:
    table = add_table(SubElement(parent, "div", {"class": "findings"}), ("what", "where", "record", "channel", "time"))
    for finding in findings:
        row = SubElement(table, "tr")
        add(row, "td", finding.sentence)
        where = SubElement(row, "td")
        for place in finding.where.split(", "):
            add(SubElement(where, "div"), "code", place)
        for cell in (finding.record_id[:16], finding.channel[:8]):
            add(SubElement(row, "td", {"class": "id"}), "code", cell)
        add(row, "td", date_time(finding.time_ms) if finding.time_ms else "", "time dim")


def _add_channels(main: Element, verdict: Verdict) -> None:
    channels: Sequence[ChannelSummary] = verdict.channels
    if not channels:
        return
    settled = settled_until(verdict.settlement)
    add(main, "h2", f"Channels: {len(channels)}")
    card = SubElement(main, "div", {"class": "card"})
    numbers = ("receipts", "final", "tokens in", "cached", "out", "billed", "credited", "disputed", "owed")
    table = add_table(card, ("channel", "operator", "provider", "client", "in statements"), numbers)
    for c in sorted(channels, key=lambda c: -c.amount_pico)[:MOST_ROWS]:
        row = SubElement(table, "tr")
        add(SubElement(row, "td"), "code", c.channel[:8])
        add(row, "td", c.operator or "?")
        for peer_id in (c.provider, c.client):
            add(SubElement(row, "td", {"title": peer_id}), "code", f"…{peer_id[-8:]}")
        cell = SubElement(row, "td")
        if c.channel in settled:
            until, mark = settled[c.channel]
            link(cell, mark, f"1 to {until:,}")
        counts = c.receipts, c.countersigned, c.prompt_tokens, c.cached_tokens, c.output_tokens
        for count in counts:
            add(row, "td", f"{count:,}", "number")
        for amount in (c.amount_pico, c.credited_pico, c.disputed_pico):
            add(row, "td", format_amount_eur(amount), "number")
        add(row, "td", f"{format_amount_eur(c.owed_pico)} {c.currency}", "number")
    if len(channels) > MOST_ROWS:
        add(card, "p", f"and {len(channels) - MOST_ROWS:,} that --json lists", "dim")


def _add_bundles(main: Element, verdict: Verdict) -> None:
    add(main, "h2", "Files")
    table = add_table(SubElement(main, "div", {"class": "card"}), ("file", "side"), ("lines", "records"))
    for bundle in verdict.bundles:
        row = SubElement(table, "tr")
        add(SubElement(row, "td"), "code", bundle.source)
        add(row, "td", str(bundle.side or "not known"))
        add(row, "td", f"{bundle.lines:,}", "number")
        add(row, "td", f"{bundle.records:,}", "number")


def _add_with_code(parent: Element, text: str) -> None:
    """A paragraph in which what stands between backticks is code."""
    paragraph = SubElement(parent, "p")
    for index, piece in enumerate(text.split("`")):
        if index % 2:
            add(paragraph, "code", piece).tail = ""
        elif len(paragraph):
            paragraph[-1].tail = printable(piece)
        else:
            paragraph.text = printable(piece)


def _amount_of(row: Activity) -> int:
    return row.amount_pico


def _prompt_of(row: Activity) -> int:
    return row.prompt_tokens


def _output_of(row: Activity) -> int:
    return row.output_tokens


def _short_amount(pico: float) -> str:
    amount = pico / 10**12
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.6f}".rstrip("0").rstrip(".") or "0"


def _short(value: float, *, units: Sequence[tuple[float, str]] = ((1e9, " G"), (1e6, " M"), (1e3, " k"))) -> str:
    for size, unit in units:
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.0f}"
