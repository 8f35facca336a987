"""The results as text: tables for a terminal and for docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from .cells import FULL, SATURATED, Cell
from .figures import Results
from .process import BenchError
from .targets import Target, targets

BEGIN: Final = "<!-- path: written by scripts/bench/path --docs -->"
END: Final = "<!-- /path -->"

_UNSTREAMED: Final = (
    ("requests/s", "requests_per_s", "{:,.0f}"),
    ("p50 ms", "latency_p50_ms", "{:.2f}"),
    ("p99 ms", "latency_p99_ms", "{:.2f}"),
    ("CPU us/request", "cpu_per_request_us", "{:,.0f}"),
)
_STREAMED: Final = (
    ("first token p50 ms", "first_p50_ms", "{:.2f}"),
    ("chunk delay p50 ms", "delay_p50_ms", "{:.2f}"),
    ("p99 ms", "delay_p99_ms", "{:.2f}"),
    ("chunks/s", "chunks_per_s", "{:,.0f}"),
    ("CPU us/chunk", "cpu_per_chunk_us", "{:.1f}"),
    ("bytes/chunk", "bytes_per_chunk", "{:.0f}"),
)


def render(results: Results) -> str:
    """Everything, as Markdown that reads well in a terminal too."""
    parts = [_head(results), "### Targets", _targets(targets(results)), "### Unstreamed", _cells(results, stream=False)]
    parts += ["### Streams", _cells(results, stream=True), "### Memory", _memory(results), "### Noise", _noise(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_docs(page: Path, results: Results) -> None:
    """Put the tables between the page's two markers. Raises BenchError where they are not there."""
    put_between(page, BEGIN, END, render(results))


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two markers of a page. Raises BenchError where they are not there."""
    before, found_begin, rest = page.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise BenchError(f"{page} has no place for the tables: {begin} and {end}.")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def _head(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    rounds = max((len(v) for systems in results.visits.values() for v in systems.values()), default=0)
    lines = [
        f"{about.get('when', '')}, commit {about.get('commit', '')}: {about.get('cpu', '')}, "
        f"{about.get('cores', '')} cores; {about.get('pinning', '')}; {versions}; "
        f"ledgers on {about.get('disk', '')}. Medians of {rounds} round(s); ± is the rounds' median distance from it.",
        *(f"Without {name}: {why.splitlines()[0]}" for name, why in about.get("missing", {}).items()),
    ]
    failed = {name: count for name, count in results.errors().items() if count}
    lines.append(f"Failed requests: {failed}" if failed else "No request failed.")
    for system, receipts in results.receipts().items():
        lines.append(
            f"{system} gave {receipts['answers']:,} whole answers in this run; {receipts['gateway']:,} stand on "
            f"receipts signed by both in the gateway's ledger, {receipts['provider']:,} in the provider's."
        )
    return "\n\n".join(lines)


def _targets(rows: Sequence[Target]) -> str:
    table = [["target", "wanted", "measured", ""]]
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        wanted = f"{'>=' if row.at_least else '<='} {_number(row.limit)}{unit}"
        if row.found is None:
            table.append([row.text, wanted, "-", "not measured"])
            continue
        spread = f" ±{row.found.spread:.0%}" if row.found.rounds > 1 else ""
        table.append([row.text, wanted, f"{_number(row.found.value)}{unit}{spread}", "met" if row.is_met else "MISSED"])
    return markdown_table(table)


def _cells(results: Results, *, stream: bool) -> str:
    columns = _STREAMED if stream else _UNSTREAMED
    table = [["", "system", *(title for title, _, _ in columns)]]
    for cell in _known(results, stream=stream):
        for place, system in enumerate(sorted(results.visits[cell.name], key=_place(results))):
            row = [_shown(results, cell, system, metric, form) for _, metric, form in columns]
            table.append([cell.title if place == 0 else "", _label(results, system), *row])
    return markdown_table(table) if len(table) > 1 else ""


def _known(results: Results, *, stream: bool) -> list[Cell]:
    """The cells that were measured, in the table's order. Short runs measure some of the same."""
    return [cell for cell in FULL if cell.stream == stream and cell.name in results.visits]


def _shown(results: Results, cell: Cell, system: str, metric: str, form: str) -> str:
    if metric == "first_p50_ms" and cell.name.startswith("step"):
        return "-"  # it waits for the next step, and says nothing of the path
    found = results.of(cell.name, system, metric)
    if found is None:
        return "-"
    text = form.format(found.value)
    if found.rounds > 1:
        text += f" ±{found.spread:.0%}"
    delivered = results.of(cell.name, system, "delivered")
    if metric == "chunks_per_s" and delivered is not None and delivered.value < SATURATED:
        text += " (saturated)"
    return text


def _place(results: Results) -> Callable[[str], int]:
    """The order in which systems are shown: that in which they were started."""
    started = list(results.about.get("systems", {}))
    return lambda system: started.index(system) if system in started else len(started)


def _label(results: Results, system: str) -> str:
    label: str = results.about.get("systems", {}).get(system, {}).get("label", system)
    return label


def _memory(results: Results) -> str:
    table = [["system", "at rest, MB", "after the run, MB", "kB per open stream", "held open, failed"]]
    for system, found in results.memory.items():
        by_node = [
            " + ".join(f"{size / 1e6:.0f}" for size in found.get(when, {}).values()) or "-"
            for when in ("at_rest", "after_load")
        ]
        per_stream = f"{found['per_stream'] / 1000:.1f}" if "per_stream" in found else "-"
        held = f"{found['held']}, {found['held_errors']}" if "held" in found else "-"
        table.append([_label(results, system), *by_node, per_stream, held])
    return markdown_table(table) if len(table) > 1 else ""


def _noise(results: Results) -> str:
    noise = results.noise()
    lines = []
    for core, what in (("path", "the systems' core"), ("load", "the load's core")):
        if f"calibration_spread_{core}" in noise:
            lines.append(
                f"- A fixed piece of work on {what}: ±{noise[f'calibration_spread_{core}']:.1%} of CPU time, the "
                f"slowest {noise[f'calibration_slowest_{core}']:.2f} times the median; others took "
                f"{noise[f'taken_by_others_{core}']:.0%} of the time."
            )
    names = {
        "cpu_per_chunk_us": "CPU per chunk",
        "cpu_per_request_us": "CPU per request",
        "first_p50_ms": "first token",
        "latency_p50_ms": "latency",
    }
    spreads = [f"{text} ±{noise[f'spread_{name}']:.0%}" for name, text in names.items() if f"spread_{name}" in noise]
    if spreads:
        lines.append("- Rounds of one cell differ by (median of cells): " + ", ".join(spreads) + ".")
    busy = _busiest(results)
    if busy is not None:
        lines.append(f"- Engine and load were busy for at most {busy:.0%} of a core while a system was measured.")
    return "\n".join(lines)


def _busiest(results: Results) -> float | None:
    """The largest share of a core that engine and load took while something other than they was measured."""
    shares = [
        results.of(cell, system, "bench_busy")
        for cell, systems in results.visits.items()
        for system in systems
        if system != "direct"
    ]
    return max((share.value for share in shares if share is not None), default=None)


def _number(value: float) -> str:
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
