"""The results of `scripts/bench/growth` as text, and what they say of the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from path_parts.figures import Figure, Results
from path_parts.report import markdown_table, put_between

BEGIN: Final = "<!-- growth: written by scripts/bench/growth --docs -->"
END: Final = "<!-- /growth -->"
MOST_CPU: Final = 1.15
"""A size whose requests take more CPU than this share of the smallest's has grown: rounds differ by as much."""
MOST_TIME: Final = 1.25

_COLUMNS: Final = (
    ("unstreamed-16", "cpu_per_request_us", "CPU us/request, 16 at once", MOST_CPU),
    ("staggered-16", "cpu_per_chunk_us", "CPU us/chunk, 16 streams", MOST_CPU),
    ("unstreamed-1", "latency_p50_ms", "p50 ms, 1 at once", MOST_TIME),
)
_MARKET: Final = (
    ("add_us", "CPU us to take in one", MOST_TIME),
    ("choice_us", "CPU us a choice", MOST_TIME),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One size beside the smallest of its dimension."""

    text: str
    limit: float
    found: Figure | None

    @property
    def is_met(self) -> bool | None:
        """None where it was not measured."""
        return None if self.found is None else self.found.value <= self.limit

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.text}: not measured"
        spread = f" ±{self.found.spread:.0%}" if self.found.rounds > 1 else ""
        verdict = "met" if self.is_met else "MISSED"
        return f"{self.text}: {self.found.value:.2f}{spread} (<= {self.limit:g}: {verdict})"


def rows_of(found: Mapping[str, Any]) -> list[Row]:
    """Every ratio that has a target."""
    rows: list[Row] = []
    for name, dimension in _dimensions(found):
        results, (smallest, *larger) = Results.from_json(dimension["results"]), dimension["sizes"]
        for size in larger:
            for cell, metric, title, limit in _COLUMNS:
                text = f"{title}: {size:,} {dimension['title']}, of {smallest:,}"
                rows.append(Row(text, limit, results.ratio(cell, metric, f"{name}-{size}", f"{name}-{smallest}")))
        rows += [
            Row(f"answers without their receipt: {size:,} {dimension['title']}", 0.0, Figure(1.0, 0.0, 1))
            for size in dimension["sizes"]
            if not dimension["nodes"][f"{name}-{size}"]["is_whole"]
        ]
        failed = sum(results.errors().values())
        rows.append(Row(f"failed requests: {dimension['title']}", 0.0, Figure(float(failed), 0.0, 1)))
    market = found.get("market", {})
    for size in list(market)[1:]:
        base = next(iter(market))
        for key, title, limit in _MARKET:
            ratio = Figure(market[size][key] / market[base][key], 0.0, 1)
            rows.append(Row(f"{title}: {int(size):,} offers, of {int(base):,}", limit, ratio))
    return rows


def render(found: Mapping[str, Any]) -> str:
    """Everything, as Markdown."""
    parts = [_head(found)]
    for name, dimension in _dimensions(found):
        parts += [f"### {dimension['title'].capitalize()}", _dimension(name, dimension)]
    if "market" in found:
        parts += ["### The book of offers", _market(found["market"])]
    parts += ["### Verdicts", "\n".join(f"- {row}" for row in rows_of(found))]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_docs(page: Path, found: Mapping[str, Any]) -> None:
    """Put the tables between the page's two markers. Raises BenchError where they are not there."""
    put_between(page, BEGIN, END, render(found))


def _dimensions(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, one) for name, one in found.items() if name != "market" and one)


def _head(found: Mapping[str, Any]) -> str:
    for _, dimension in _dimensions(found):
        about = dimension["results"]["about"]
        taken = Results.from_json(dimension["results"]).noise().get("taken_by_others_path", 0.0)
        busy = (
            f" Others took {taken:.0%} of that core: of the times only the ratios of CPU count." if taken > 0.15 else ""
        )
        return (
            f"{about['when']}, commit {about['commit']}: {about['cpu']}, {about['cores']} cores; {about['pinning']}. "
            f"In brackets: of the smallest size, the median of the rounds' ratios.{busy}"
        ).replace("%", " %")
    return ""


def _dimension(name: str, dimension: Mapping[str, Any]) -> str:
    results, smallest = Results.from_json(dimension["results"]), dimension["sizes"][0]
    titles = [title for _, _, title, _ in _COLUMNS]
    rows = [[dimension["title"], *titles, "MB, gateway + provider", "CPU s to start, gateway + provider"]]
    for size in dimension["sizes"]:
        system, row = f"{name}-{size}", [f"{size:,}"]
        for cell, metric, _, _ in _COLUMNS:
            own = results.of(cell, system, metric)
            ratio = results.ratio(cell, metric, system, f"{name}-{smallest}")
            row.append("-" if own is None or ratio is None else f"{_number(own.value)} ({ratio.value:.2f})")
        node = dimension["nodes"][system]
        row.append(" + ".join(f"{node['memory'][one] / 1e6:.0f}" for one in ("gateway", "provider")))
        row.append(" + ".join(f"{node['started'][one]['cpu_s']:.1f}" for one in ("gateway", "provider")))
        rows.append(row)
    return markdown_table(rows)


def _market(market: Mapping[str, Mapping[str, float]]) -> str:
    rows = [["offers", "kept", *(title for _, title, _ in _MARKET), "CPU us, first choice", "kB an offer"]]
    for size, one in market.items():
        keys = ("add_us", "choice_us", "first_choice_us", "kb_per_offer")
        rows.append([f"{int(size):,}", f"{one['kept']:,.0f}", *(_number(one[key]) for key in keys)])
    return markdown_table(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
