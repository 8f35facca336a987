"""Draws a run of scripts/bench/path: `python plot.py RESULTS.json STEM` writes STEM.svg and STEM.png (matplotlib)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

STREAMS: Final = (1, 16, 64, 256)
REQUESTS: Final = (1, 16, 64)
# Okabe and Ito's colours, told apart by every eye; marker and line tell them apart in grey as well.
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "litellm": {"color": "#D55E00", "marker": "s"},
    "nginx": {"color": "#0072B2", "marker": "^"},
    "relay": {"color": "#CC79A7", "marker": "D"},
    "p2pgrid": {"color": "#009E73", "marker": "o", "linewidth": 2.4},
    "batched": {"color": "#E69F00", "marker": "P"},
    "p2pgrid-libp2p": {"color": "#56B4E9", "marker": "v"},
    "direct": {"color": "#666666", "marker": "x"},
}


class Run:
    """The medians of a run."""

    def __init__(self, read: dict[str, Any]) -> None:
        self._medians = read["medians"]
        self.about: dict[str, Any] = read["about"]
        self.systems: Final = [name for name in LOOKS if name in self.about["systems"]]

    def label(self, system: str) -> str:
        """Its name in the legend."""
        label: str = self.about["systems"][system]["label"]
        return label

    def median(self, cell: str, system: str, metric: str) -> tuple[float, float] | None:
        """Median and spread (a share of it), or None."""
        found = self._medians.get(cell, {}).get(system, {}).get(metric)
        return None if found is None else (found["median"], found["spread"])

    def line(
        self, cells: str, sizes: tuple[int, ...], system: str, metric: str
    ) -> tuple[list[int], list[float], list[float]]:
        """Sizes, medians and distances of a row of cells, as far as it was measured."""
        found = [(size, self.median(f"{cells}-{size}", system, metric)) for size in sizes]
        known = [(size, one) for size, one in found if one is not None and one[0] > 0]
        return [s for s, _ in known], [one[0] for _, one in known], [one[0] * one[1] for _, one in known]


def lines(
    axes: Axes, run: Run, cells: str, sizes: tuple[int, ...], metric: str, *, base: bool, style: str = "-"
) -> None:
    """One line for each system; `base`: the direct way too."""
    for system in run.systems:
        if system == "direct" and not base:
            continue
        x, y, away = run.line(cells, sizes, system, metric)
        if x:
            label = run.label(system) if style == "-" else None
            axes.errorbar(x, y, away, label=label, linestyle=style, capsize=3, markersize=6, **LOOKS[system])


def scales(axes: Axes, title: str, x: str, y: str, sizes: tuple[int, ...]) -> None:
    """Labelled logarithmic axes."""
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(alpha=0.3)


def first_tokens(axes: Axes, run: Run) -> None:
    """Bars: what each system adds to the direct way, until the first token."""
    cells = {"first-1": "1 stream", "staggered-64": "64 paced streams"}
    shown = [s for s in run.systems if s != "direct" and any(run.median(cell, s, "first_p50_ms") for cell in cells)]
    width = 0.8 / max(1, len(shown))
    for place, system in enumerate(shown):
        for at, cell in enumerate(cells):
            own, base = run.median(cell, system, "first_p50_ms"), run.median(cell, "direct", "first_p50_ms")
            if own is None or base is None or own[0] <= base[0]:
                continue
            bar = axes.bar(at + (place - (len(shown) - 1) / 2) * width, own[0] - base[0], width * 0.9,
                           color=LOOKS[system]["color"])  # fmt: skip
            axes.bar_label(bar, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2g}", fontsize=8)
    axes.set(title="Added first token (p50)", ylabel="ms, log scale", yscale="log")
    axes.set_xticks(range(len(cells)), list(cells.values()))
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", alpha=0.3)


def draw(run: Run) -> Any:
    """The whole figure."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 8.4))
    lines(grid[0][0], run, "staggered", STREAMS, "cpu_per_chunk_us", base=False)
    lines(grid[0][0], run, "step", STREAMS, "cpu_per_chunk_us", base=False, style=":")
    scales(grid[0][0], "CPU per chunk (solid: staggered, dotted: in step)", "streams, a chunk every 20 ms each",
           "us, all hops together, log scale", STREAMS)  # fmt: skip
    first_tokens(grid[0][1], run)
    lines(grid[1][0], run, "unstreamed", REQUESTS, "requests_per_cpu_s", base=False)
    scales(grid[1][0], "Unstreamed requests per CPU-second", "requests at once", "requests, log scale", REQUESTS)
    lines(grid[1][1], run, "staggered", STREAMS, "delay_p99_ms", base=True)
    scales(
        grid[1][1], "Chunk delay, p99, staggered streams", "streams, a chunk every 20 ms each", "ms, log scale", STREAMS
    )
    legend: dict[str, Any] = {}
    for axes in (grid[1][0], grid[1][1]):
        handles, labels = axes.get_legend_handles_labels()
        legend.update(zip(labels, handles, strict=True))
    figure.legend(list(legend.values()), list(legend), loc="lower center", ncols=3, frameon=False)
    about = run.about
    figure.suptitle(f"p2pgrid's data path beside its peers, {about['when']}, {about['cores']} cores", y=0.99)
    figure.tight_layout(rect=(0, 0.07, 1, 0.99))
    return figure


def main() -> None:
    """Draw."""
    run = Run(json.loads(Path(sys.argv[1]).read_text()))
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "svg.hashsalt": "p2pgrid", "svg.fonttype": "path"})
    figure = draw(run)
    stem = Path(sys.argv[2])
    stem = stem.with_suffix("") if stem.suffix in (".png", ".svg") else stem
    for kind in (".svg", ".png"):
        metadata = {"Date": None} if kind == ".svg" else None
        figure.savefig(stem.with_suffix(kind), dpi=140, metadata=metadata)


if __name__ == "__main__":
    main()
