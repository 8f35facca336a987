"""The results of `scripts/bench/network` as text."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from path_parts.figures import Figure, Results
from path_parts.report import markdown_table, put_between

from .cells import ROWS

BEGIN: Final = "<!-- network: written by scripts/bench/network --docs -->"
END: Final = "<!-- /network -->"
_NAMES: Final = {"ours": "p2pgrid", "js": "js-libp2p"}


def render(results: Results) -> str:
    """Everything, as Markdown that reads well in a terminal too."""
    table = [["", "unit", "p2pgrid", "js-libp2p", "p2pgrid / js"]]
    for row in ROWS:
        ours, theirs = (results.of(row.cell, system, row.metric) for system in ("ours", "js"))
        if ours is None:
            continue
        ratio = results.ratio(row.cell, row.metric, "ours", "js")
        unit = f"{row.unit}, more is better" if row.more_is_better else row.unit
        table.append([row.title, unit, _shown(ours), _shown(theirs), _shown(ratio, digits=2)])
    return f"{_head(results)}\n\n{markdown_table(table)}\n"


def write_docs(page: Path, results: Results) -> None:
    """Put the table between the page's two markers. Raises BenchError where they are not there."""
    put_between(page, BEGIN, END, render(results))


def _head(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    sizes = about["sizes"]
    failed = {_NAMES[system]: count for system, count in results.errors().items() if count}
    said = f"Failed visits: {', '.join(f'{name} {n}' for name, n in failed.items())}." if failed else "Nothing failed."
    return (
        f"{about['when']}, commit {about['commit']}: {about['cpu']}, {about['cores']} cores; {about['pinning']}; "
        f"{versions}. {sizes['providers']} providers of the model looked up; medians of {about['rounds']} round(s), of "
        f"{sizes['trips']} round trips and {sizes['orders']} orders each, {sizes['mib']} MiB through a circuit. "
        "± is the rounds' median distance from the median. A ratio is the median of the rounds' ratios. "
        f"{said}"
    )


def _shown(figure: Figure | None, digits: int = 0) -> str:
    if figure is None:
        return "-"
    value = figure.value
    places = digits or (0 if value >= 100 else 1 if value >= 10 else 2)
    spread = f" ±{figure.spread:.0%}".replace("%", " %") if figure.rounds > 1 else ""
    return f"{value:,.{places}f}{spread}"
