"""What a soak run shows: memory and latency at its beginning and its end, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from path_parts.report import markdown_table, put_between

BEGIN: Final = "<!-- soak: written by scripts/bench/soak --docs -->"
END: Final = "<!-- /soak -->"
WARM_SHARE: Final = 0.2
"""Of the run, before what is compared begins: heaps and caches fill."""
MOST_MEMORY: Final = 1.05
MOST_LATENCY: Final = 1.25
"""Latencies of one window and the next differ by a tenth on a quiet machine."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that has to stay as it is."""

    text: str
    first: float
    last: float
    limit: float
    """Of last / first; with `first` 0, of last itself."""

    @property
    def value(self) -> float:
        """What is held against the limit."""
        return self.last / self.first if self.first else self.last

    @property
    def is_met(self) -> bool:
        return self.value <= self.limit


def judge(found: Mapping[str, Any]) -> list[Row]:
    """Every verdict: the last quarter of the run, without its beginning, beside the first."""
    rows = []
    for node in ("gateway", "provider"):
        first, last = _quarters(found["memory"], lambda one, node=node: one[node]["rss"] / 1e6)  # type: ignore[misc]
        rows.append(Row(f"{node}: MB resident", first, last, MOST_MEMORY))
    for metric, text in (
        ("delay_p50_ms", "chunk delay p50, ms"),
        ("delay_p99_ms", "chunk delay p99, ms"),
        ("whole_p50_ms", "unstreamed p50, ms"),
        ("cpu_per_chunk_us", "CPU us a chunk, with the unstreamed requests'"),
    ):
        windows = [one for one in found["windows"] if metric in one]
        if windows:
            first, last = _quarters(windows, lambda one, metric=metric: one[metric])  # type: ignore[misc]
            rows.append(Row(text, first, last, MOST_LATENCY))
    receipts = found["receipts"]
    missing = abs(receipts["gateway"] - receipts["provider"]) + max(0, receipts["answers"] - receipts["gateway"])
    rows += [
        Row("errors", 0.0, float(len(found["errors"])), 0.0),
        Row("answers that took longer than 1 s", 0.0, float(len(found["slow"])), 0.0),
        Row("answers without a receipt on both sides", 0.0, float(missing), 0.0),
    ]
    return rows


def render(found: Mapping[str, Any]) -> str:
    """Markdown."""
    about, receipts = found["about"], found["receipts"]
    rows = [["", "first quarter", "last quarter", "ratio", "wanted", ""]]
    for row in judge(found):
        first = f"{row.first:.2f}" if row.first else "-"
        ratio = f"{row.value:.3f}" if row.first else "-"
        rows.append([row.text, first, f"{row.last:.2f}", ratio, f"<= {row.limit:g}", "met" if row.is_met else "MISSED"])
    parts = [
        f"{about['when']}, commit {about['commit']}: {about['minutes']:g} minutes of {about['streams']} streams (50 "
        f"tokens/s each) and {about['requests_per_s']:.0f} unstreamed requests a second; {about['pinning']}. "
        f"{receipts['answers']:,} answers. The first {WARM_SHARE:.0%} of the run is left out.".replace("%", " %"),
        markdown_table(rows),
        "\n".join(
            f"- {node} was asked for a page {int(count):,} times; the slowest took {slowest_s * 1e3:.0f} ms."
            for node, (count, slowest_s) in found["probes"].items()
        ),
    ]
    if found["slow"]:
        shown = [f"- at {one['at_s']:.0f} s: {one['what']} took {one['took_s']:.2f} s" for one in found["slow"][:20]]
        parts.append("\n".join(shown))
    if found["errors"]:
        parts.append("\n".join(f"- {error}" for error in found["errors"][:20]))
    return "\n\n".join(parts) + "\n"


def write_docs(page: Path, found: Mapping[str, Any]) -> None:
    """Put the table between the page's two markers. Raises BenchError where they are not there."""
    put_between(page, BEGIN, END, render(found))


def _quarters(series: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float]) -> tuple[float, float]:
    """The medians of the first and the last quarter, once it is warm."""
    until_s = series[-1]["at_s"]
    kept = [one for one in series if one["at_s"] >= WARM_SHARE * until_s]
    size = max(1, len(kept) // 4)
    return median(map(of, kept[:size])), median(map(of, kept[-size:]))
