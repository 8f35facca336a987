"""Draws a run of scripts/bench/dht: `python plot.py RESULTS.json STEM` writes STEM.svg and STEM.png."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours; marker and line tell them apart in grey as well.
WARM: Final[dict[str, Any]] = {"color": "#009E73", "marker": "o", "label": "warm"}
COLD: Final[dict[str, Any]] = {"color": "#0072B2", "marker": "^", "label": "cold client, with its join"}
TABLE: Final[dict[str, Any]] = {"color": "#D55E00", "marker": "s", "label": "nodes in a table"}


def draw(found: dict[str, Any]) -> Any:
    """Messages, hops and state over the size of the network, each with a line that grows with log n."""
    sizes = found["growth"]
    n = [one["peers"] for one in sizes]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    for look, kind in ((WARM, "warm"), (COLD, "cold")):
        _line(axes[0], n, [one[kind]["messages_mean"] for one in sizes], look)
        _line(axes[1], n, [one[kind]["hops_mean"] for one in sizes], look)
    _line(axes[2], n, [one["table_nodes"] for one in sizes], TABLE)
    for panel, title, unit in zip(
        axes,
        ("Messages a look-up", "Hops to the closest server", "What a peer keeps"),
        ("messages", "hops", "nodes"),
        strict=True,
    ):
        panel.set(title=title, xlabel="peers, log scale", ylabel=unit, xscale="log", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    return figure


def _line(panel: Any, n: list[int], values: list[float], look: dict[str, Any]) -> None:
    panel.plot(n, values, linestyle="none", **look)
    slope, base = _fit([math.log2(one) for one in n], values)
    fitted = [base + slope * math.log2(one) for one in n]
    panel.plot(n, fitted, color=look["color"], linewidth=1, linestyle="--", label=f"{base:.1f} + {slope:.2f} log2 n")


def _fit(x: list[float], y: list[float]) -> tuple[float, float]:
    """Least squares: slope and intercept."""
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - middle_x) ** 2 for one in x) or 1.0
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    return slope, middle_y - slope * middle_x


def main() -> None:
    """Draw."""
    found = json.loads(Path(sys.argv[1]).read_text())
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "svg.hashsalt": "p2pgrid", "svg.fonttype": "path"})
    figure = draw(found)
    stem = Path(sys.argv[2])
    stem = stem.with_suffix("") if stem.suffix in (".png", ".svg") else stem
    for kind in (".svg", ".png"):
        metadata = {"Date": None} if kind == ".svg" else None
        figure.savefig(stem.with_suffix(kind), dpi=140, metadata=metadata)


if __name__ == "__main__":
    main()
