"""The page: well formed, whole in itself, and no peer can write markup into it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pgrid.audit import charts
from p2pgrid.audit.advice import ADVICE
from p2pgrid.audit.page import page_of
from p2pgrid.cli.audit import audit
from p2pgrid.proto.channel_summary import Activity
from p2pgrid.proto.codes import CODES
from p2pgrid.proto.messages import Usage
from p2pgrid.proto.verdict import Verdict, audit_records
from p2pgrid.units import format_cents
from tests.audit.months import make_month
from tests.proto.audit_cases import both
from tests.proto.chains import DAY_MS, START_MS, Dealings, bundle_of

VOID = {"meta", "br", "hr", "img", "link", "input", "base"}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "section", "div", "p", "b", "span", "h1", "h2", "h3"),
    *("code", "table", "tr", "th", "td", "details", "summary", "svg", "line", "text", "rect", "path"),
}
HOSTILE = "</td></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[2J\u202e"


class Page(HTMLParser):
    """Tags, attributes and text of a page that must be balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_verdict() -> Verdict:
    grid = Dealings(offer_changes={"operator": HOSTILE})
    for _ in range(3):
        order = grid.order(model=HOSTILE)
        grid.receipt(order, Usage(prompt_tokens=100, cached_tokens=30, output_tokens=200))
        grid.now_ms += DAY_MS
    provider, client = both(grid)
    return audit_records([bundle_of(provider.lines, provider.side, HOSTILE), client])


def test_a_page_of_hostile_names_is_text_and_nothing_else() -> None:
    html = page_of(hostile_verdict())
    page = Page(html)
    assert set(page.tags) <= TAGS
    assert "</td></style><script>alert(1)</script>" in page.text
    assert html.count("<style>") == html.count("</style>") == 1
    assert "\x1b" not in html
    assert "\u202e" not in html
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("style", "href", "src", "xlink:href")
        assert "javascript:" not in value


def test_the_policy_lets_nothing_in_but_the_style_sheet() -> None:
    html = page_of(hostile_verdict())
    (policy,) = (value for _, name, value in Page(html).attributes if name == "content" and "default-src" in value)
    (style,) = re.findall(r"<style>(.*)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert "script-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"https?://", html)


def test_the_page_shows_charts_and_every_finding() -> None:
    verdict = hostile_verdict()
    page = Page(page_of(verdict))
    assert page.tags.count("path") == len(verdict.findings) == 3  # a mark each
    for heading in (
        "Receipts by",
        "Amounts by",
        "Tokens in by",
        "Tokens out by",
        "Findings: 3",
        "Channels: 1",
        "Files",
    ):
        assert heading in page.text
    for finding in verdict.findings:
        assert finding.record_id[:16] in page.text


def settled_page() -> tuple[Verdict, Page]:
    """A month of every way to pay, its model and reference written by a hostile peer."""
    month = make_month(11, receipts=30, statements=4)
    month.pay(month.invoices[0], 1, reference="</td><img src=x>")
    verdict = audit_records(month.bundles())
    return verdict, Page(page_of(verdict))


def test_settlement_is_linked_from_receipts_to_statements_to_invoices_to_payments() -> None:
    verdict, page = settled_page()
    assert set(page.tags) <= TAGS | {"a"}
    (settled,) = verdict.settlement
    marks = [value for _, name, value in page.attributes if name == "id"]
    links = [value for _, name, value in page.attributes if name == "href"]
    assert (
        len(marks)
        == len(set(marks))
        == sum(len(each) for each in (settled.statements, settled.invoices, settled.payments))
    )
    for link in links:
        assert re.fullmatch(r"#r[0-9a-f]{32}", link), "a link leads to a row of the page, and nowhere else"
        assert link[1:] in marks
    for invoice in settled.invoices:
        assert links.count(f"#r{invoice.statement_id[:32]}") >= 1
        assert links.count(f"#r{invoice.invoice_id[:32]}") >= 1
    last = max(settled.statements, key=lambda one: one.last_receipt)
    assert f"#r{last.statement_id[:32]}" in links, "the channel's receipts lead to their statements"
    for words in (f"Statements: {len(settled.statements)}", f"1 to {last.last_receipt}", "</td><img src=x>"):
        assert words in page.text
    for payment in settled.payments:
        assert format_cents(payment.amount_cents) in page.text


def test_a_page_of_dealings_without_statements_has_no_settlement() -> None:
    assert "Settlement" not in Page(page_of(hostile_verdict())).text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    path, out = tmp_path / "provider.jsonl", tmp_path / "page.html"
    grid = Dealings()
    grid.deal()
    path.write_bytes(b"\n".join(grid.bundles()[0]))
    result = CliRunner().invoke(audit, [str(path), "--html", str(out)])
    assert result.exit_code == 0
    assert f"Wrote {out}" in result.stdout
    assert "Clean." in Page(out.read_text("utf-8")).text


def test_a_page_of_nothing_but_a_channel() -> None:
    assert "Clean." in Page(page_of(audit_records([bundle_of(Dealings().bundles()[0])]))).text


@pytest.mark.parametrize(
    ("times", "unit", "bars"),
    [
        ([START_MS], "hour", 1),
        ([START_MS, START_MS + 2 * DAY_MS], "hour", 49),
        ([START_MS, START_MS + 30 * DAY_MS], "day", 31),
        ([START_MS, START_MS + 400 * DAY_MS], "week", 58),
        ([0, 2**53], "", 0),
        ([0, 253_402_300_799_999], "", 0),
    ],
)
def test_there_are_never_too_many_bars(times: list[int], unit: str, bars: int) -> None:
    axis = charts.axis_of(times)
    assert axis is not None
    assert axis.bars <= charts.MOST_BARS
    if unit:
        assert axis.unit == unit
        assert abs(axis.bars - bars) <= 1
    for time_ms in times:
        assert 0 <= axis.bar_of(time_ms) < axis.bars
    assert [axis.label(bar) for bar in range(axis.bars)]


def test_many_models_share_the_last_colour() -> None:
    rows = [
        Activity(
            hour_ms=START_MS, currency="EUR", model=f"m{n}", receipts=1, prompt_tokens=n, output_tokens=0, amount_pico=n
        )
        for n in range(1, 10)
    ]
    names = charts.series_names(rows)
    assert names == ["m9", "m8", "m7", "m6", "m5", "others"]
    axis = charts.axis_of([START_MS])
    assert axis is not None
    svg = charts.stacked_bars(rows, axis, names, lambda row: row.amount_pico, str, "amounts")
    assert len(svg.findall("rect")) == 6


def test_there_is_advice_for_every_code() -> None:
    assert set(ADVICE) == set(CODES)
    for means, do in ADVICE.values():
        assert means.endswith(".")
        assert do.endswith(".")
