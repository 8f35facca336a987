"""Draws a run of scripts/bench/growth or soak: `python plot.py RESULTS.json STEM` writes STEM.svg and STEM.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours; marker and line tell them apart in grey as well.
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "ledger": {"color": "#009E73", "marker": "o", "label": "receipts on record"},
    "channels": {"color": "#0072B2", "marker": "^", "label": "channels at the provider"},
    "offers": {"color": "#D55E00", "marker": "s", "label": "offers at the client"},
}
CELLS: Final = (
    ("unstreamed-16", "cpu_per_request_us", "CPU per request, 16 at once"),
    ("staggered-16", "cpu_per_chunk_us", "CPU per chunk, 16 streams"),
    ("unstreamed-1", "latency_p50_ms", "Latency p50, 1 at once"),
)


def ratios(dimension: dict[str, Any], name: str, cell: str, metric: str) -> tuple[list[float], list[float]]:
    """Sizes and medians of the rounds' ratios to the smallest."""
    visits = dimension["results"]["visits"].get(cell, {})
    base = visits.get(f"{name}-{dimension['sizes'][0]}", [])
    x, y = [], []
    for size in dimension["sizes"]:
        own = visits.get(f"{name}-{size}", [])
        pairs = [(a[metric], b[metric]) for a, b in zip(own, base, strict=False) if metric in a and b.get(metric)]
        if pairs:
            x.append(max(size, 1))
            y.append(median(a / b for a, b in pairs))
    return x, y


def draw_growth(found: dict[str, Any]) -> Any:
    """A panel for each cost: every dimension as multiples of its smallest size."""
    figure, axes = plt.subplots(1, len(CELLS), figsize=(13, 4.2), sharey=True)
    for panel, (cell, metric, title) in zip(axes, CELLS, strict=True):
        for name, look in LOOKS.items():
            if found.get(name):
                panel.plot(*ratios(found[name], name, cell, metric), **look)
        panel.axhline(1.0, color="#666666", linewidth=0.8)
        panel.set(title=title, xlabel="size, log scale (0 is drawn at 1)", xscale="log", ylim=(0, 2))
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("multiple of the smallest size")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def draw_soak(found: dict[str, Any]) -> Any:
    """Memory of each node and latencies, over the time of the run."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.5), sharex=True)
    for node, look in (("gateway", LOOKS["ledger"]), ("provider", LOOKS["channels"])):
        x = [one["at_s"] / 60 for one in found["memory"]]
        above.plot(
            x, [one[node]["rss"] / 1e6 for one in found["memory"]], color=look["color"], label=f"{node}, resident"
        )
    above.set(title="Memory", ylabel="MB", ylim=(0, None))
    for metric, colour, label in (
        ("whole_p50_ms", "#009E73", "unstreamed, p50"),
        ("delay_p50_ms", "#0072B2", "chunk delay, p50"),
        ("delay_p99_ms", "#D55E00", "chunk delay, p99"),
    ):
        known = [one for one in found["windows"] if metric in one]
        below.plot([one["at_s"] / 60 for one in known], [one[metric] for one in known], color=colour, label=label)
    below.set(title="Latency", xlabel="minutes", ylabel="ms, log scale", yscale="log")
    for panel in (above, below):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.tight_layout()
    return figure


def main() -> None:
    """Draw."""
    found = json.loads(Path(sys.argv[1]).read_text())
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "svg.hashsalt": "p2pgrid", "svg.fonttype": "path"})
    figure = draw_soak(found) if "windows" in found else draw_growth(found)
    stem = Path(sys.argv[2])
    stem = stem.with_suffix("") if stem.suffix in (".png", ".svg") else stem
    for kind in (".svg", ".png"):
        metadata = {"Date": None} if kind == ".svg" else None
        figure.savefig(stem.with_suffix(kind), dpi=140, metadata=metadata)


if __name__ == "__main__":
    main()
