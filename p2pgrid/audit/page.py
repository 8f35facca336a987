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
from p2pgrid.audit.report import count_of, counts_of, date_time, grouped, headline, printable, summary_lines, totals_of
from p2pgrid.ledger.bundle import write_lines
from p2pgrid.proto.codes import CODES, Weight
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.verdict import Activity, ChannelSummary, Verdict
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
    _add(head, "title", f"p2pgrid audit: {headline(verdict)}")
    SubElement(head, "style").text = style
    main = SubElement(SubElement(html, "body"), "main")
    _add(main, "h1", headline(verdict), "good" if verdict.clean else "bad")
    _add(main, "p", counts_of(verdict).strip())
    for line in summary_lines(verdict):
        _add(main, "p", line, "dim")
    _add_tiles(main, verdict)
    _add_findings(main, "Findings", verdict.findings)
    _add_charts(main, verdict)
    _add_findings(main, "Notes (no fault)", verdict.notes)
    _add_channels(main, verdict.channels)
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
        _add(tile, "b", value)
        _add(tile, "span", name, "dim")


def _add_charts(main: Element, verdict: Verdict) -> None:
    activity = verdict.activity
    # Times that no calendar shows are gathered at hour 0, and would stretch the axis over all the years since.
    times = [row.hour_ms for row in activity if row.hour_ms] or [row.hour_ms for row in activity]
    axis = charts.axis_of(times)
    if axis is None:
        return
    _add(main, "h2", f"Receipts by {axis.unit}, and findings")
    card = SubElement(main, "div", {"class": "card chart"})
    card.append(charts.timeline(activity, verdict.findings, axis))
    untimed = count_of(finding for finding in verdict.findings if not finding.time_ms)
    if verdict.findings:
        more = f" {untimed} more are about something that shows no time." if untimed else ""
        _add(card, "p", f"Diamonds are findings.{more}", "dim")
    names = charts.series_names(activity)
    for currency in sorted({row.currency for row in activity})[:4]:
        rows = [row for row in activity if row.currency == currency]
        title = f"Amounts by {axis.unit} and model, {currency}"
        _add_chart(main, charts.stacked_bars(rows, axis, names, _amount_of, _short_amount, title), title, names)
    for title, value_of in (("Tokens in", _prompt_of), ("Tokens out", _output_of)):
        title = f"{title} by {axis.unit} and model"
        _add_chart(main, charts.stacked_bars(activity, axis, names, value_of, _short, title), title, names)


def _add_chart(main: Element, chart: Element, title: str, names: Sequence[str]) -> None:
    _add(main, "h2", title)
    card = SubElement(main, "div", {"class": "card chart"})
    card.append(chart)
    card.append(charts.legend(names))


def _add_findings(main: Element, title: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    _add(main, "h2", f"{title}: {count_of(findings):,}")
    for group in grouped(findings):
        first, code = group[0], CODES[group[0].code]
        card = SubElement(main, "section", {"class": f"card {'fault' if code.weight is Weight.FAULT else 'note'}"})
        heading = _add(card, "h3", f"{first.code} ")
        _add(heading, "span", f"{count_of(group):,}", "tag dim")
        if any(finding.convinces for finding in group):
            _add(heading, "span", "proves itself to anybody", "tag dim")
        party = _add(card, "p", f"{'At fault' if code.weight is Weight.FAULT else 'About'}: {first.party} ")
        for peer_id in first.peer_ids:
            _add(party, "code", peer_id + " ")
        _add(card, "p", f"{code.title} {ADVICE[first.code].means}")
        _add_with_code(card, f"What to do: {ADVICE[first.code].do}")
        _add_rows(card, group[:_OPEN_ROWS])
        if len(group) > _OPEN_ROWS:
            details = SubElement(card, "details")
            _add(details, "summary", f"{count_of(group[_OPEN_ROWS:]):,} more")
            _add_rows(details, group[_OPEN_ROWS:MOST_ROWS])
            if len(group) > MOST_ROWS:
                _add(details, "p", f"and {count_of(group[MOST_ROWS:]):,} that --json lists", "dim")


def _add_rows(parent: Element, findings: Iterable[Finding]) -> None:
    table = _table(SubElement(parent, "div", {"class": "findings"}), ("what", "where", "record", "channel", "time"))
    for finding in findings:
        row = SubElement(table, "tr")
        _add(row, "td", finding.sentence)
        where = SubElement(row, "td")
        for place in finding.where.split(", "):
            _add(SubElement(where, "div"), "code", place)
        for cell in (finding.record_id[:16], finding.channel[:8]):
            _add(SubElement(row, "td", {"class": "id"}), "code", cell)
        _add(row, "td", date_time(finding.time_ms) if finding.time_ms else "", "time dim")


def _add_channels(main: Element, channels: Sequence[ChannelSummary]) -> None:
    if not channels:
        return
    _add(main, "h2", f"Channels: {len(channels)}")
    card = SubElement(main, "div", {"class": "card"})
    numbers = ("receipts", "final", "tokens in", "cached", "out", "billed", "credited", "disputed", "owed")
    table = _table(card, ("channel", "operator", "provider", "client"), numbers)
    for c in sorted(channels, key=lambda c: -c.amount_pico)[:MOST_ROWS]:
        row = SubElement(table, "tr")
        _add(SubElement(row, "td"), "code", c.channel[:8])
        _add(row, "td", c.operator or "?")
        for peer_id in (c.provider, c.client):
            _add(SubElement(row, "td", {"title": peer_id}), "code", f"…{peer_id[-8:]}")
        counts = c.receipts, c.countersigned, c.prompt_tokens, c.cached_tokens, c.output_tokens
        for count in counts:
            _add(row, "td", f"{count:,}", "number")
        for amount in (c.amount_pico, c.credited_pico, c.disputed_pico):
            _add(row, "td", format_amount_eur(amount), "number")
        _add(row, "td", f"{format_amount_eur(c.owed_pico)} {c.currency}", "number")
    if len(channels) > MOST_ROWS:
        _add(card, "p", f"and {len(channels) - MOST_ROWS:,} that --json lists", "dim")


def _add_bundles(main: Element, verdict: Verdict) -> None:
    _add(main, "h2", "Files")
    table = _table(SubElement(main, "div", {"class": "card"}), ("file", "side"), ("lines", "records"))
    for bundle in verdict.bundles:
        row = SubElement(table, "tr")
        _add(SubElement(row, "td"), "code", bundle.source)
        _add(row, "td", str(bundle.side or "not known"))
        _add(row, "td", f"{bundle.lines:,}", "number")
        _add(row, "td", f"{bundle.records:,}", "number")


def _table(parent: Element, names: Iterable[str], numbers: Iterable[str] = ()) -> Element:
    table = SubElement(SubElement(parent, "div", {"class": "scroll"}), "table")
    row = SubElement(table, "tr")
    for name in names:
        _add(row, "th", name)
    for name in numbers:
        _add(row, "th", name, "number")
    return table


def _add(parent: Element, tag: str, text: str, name: str = "") -> Element:
    element = SubElement(parent, tag, {"class": name} if name else {})
    element.text = printable(text)
    return element


def _add_with_code(parent: Element, text: str) -> None:
    """A paragraph in which what stands between backticks is code."""
    paragraph = SubElement(parent, "p")
    for index, piece in enumerate(text.split("`")):
        if index % 2:
            _add(paragraph, "code", piece).tail = ""
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
