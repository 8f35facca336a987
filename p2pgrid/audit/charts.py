"""Charts of a verdict as SVG, drawn without a script. Colours are classes: the page's style sheet gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from p2pgrid.printable import printable
from p2pgrid.proto.channel_summary import Activity
from p2pgrid.proto.findings import Finding

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
MOST_SERIES: Final = 6
"""Models with a colour of their own; what is beyond is shown together."""
MOST_BARS: Final = 90
MOST_MARKS: Final = 500

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 260, 76, 8, 10, 30
_MOST_COLUMN_WIDTH: Final = 56
_PLOT_WIDTH: Final = _WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT: Final = _HEIGHT - _TOP - _BOTTOM
_WIDTHS_MS: Final = (HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS, 90 * DAY_MS, 365 * DAY_MS)


@dataclass(frozen=True, slots=True)
class Axis:
    """Time cut into bars of one width."""

    start_ms: int
    bar_ms: int
    bars: int

    def bar_of(self, time_ms: int) -> int:
        """The bar of a time, the first or last for what is outside."""
        return max(0, min(self.bars - 1, (time_ms - self.start_ms) // self.bar_ms))

    def label(self, bar: int) -> str:
        """When the bar begins, UTC."""
        try:
            moment = datetime.fromtimestamp((self.start_ms + bar * self.bar_ms) / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            return "?"
        return moment.strftime("%d %b %H:%M" if self.bar_ms < DAY_MS else "%d %b %Y")

    @property
    def unit(self) -> str:
        """What a bar is, for a heading."""
        hours = self.bar_ms // HOUR_MS
        return {1: "hour", 24: "day", 168: "week"}.get(hours, f"{hours} hours" if hours < 24 else f"{hours // 24} days")


def axis_of(times_ms: Sequence[int]) -> Axis | None:
    """Bars of days for what spans more than three days, else of hours; wider ones if there were too many."""
    if not times_ms:
        return None
    first, last = min(times_ms), max(times_ms)
    narrowest = HOUR_MS if last - first <= 3 * DAY_MS else DAY_MS
    for bar_ms in _WIDTHS_MS:
        start_ms = first // bar_ms * bar_ms
        bars = (last - start_ms) // bar_ms + 1
        if bar_ms >= narrowest and bars <= MOST_BARS:
            return Axis(start_ms, bar_ms, bars)
    bar_ms = (last - first) // MOST_BARS + 1
    return Axis(first, bar_ms, (last - first) // bar_ms + 1)


def series_names(activity: Sequence[Activity]) -> list[str]:
    """The models that get a colour, the largest by tokens first; and `others` where there are more."""
    sums: dict[str, int] = defaultdict(int)
    for row in activity:
        sums[row.model] += row.prompt_tokens + row.output_tokens
    names = sorted(sums, key=lambda name: (-sums[name], name))
    return names if len(names) <= MOST_SERIES else [*names[: MOST_SERIES - 1], "others"]


def stacked_bars(
    activity: Sequence[Activity],
    axis: Axis,
    names: Sequence[str],
    value_of: Callable[[Activity], int],
    shown: Callable[[float], str],
    label: str,
) -> Element:
    """Values by time, one colour a model. `shown` writes a value."""
    bars: list[dict[str, int]] = [defaultdict(int) for _ in range(axis.bars)]
    for row in activity:
        bars[axis.bar_of(row.hour_ms)][row.model if row.model in names else "others"] += value_of(row)
    highest = max((sum(bar.values()) for bar in bars), default=0)
    svg, top = _frame(axis, highest, shown, label)
    step = _PLOT_WIDTH / axis.bars
    for index, bar in enumerate(bars):
        base = float(_TOP + _PLOT_HEIGHT)
        for colour, name in enumerate(names):
            value = bar.get(name, 0)
            height = value / top * _PLOT_HEIGHT
            if value <= 0:
                continue
            base -= height
            rect = _column(svg, _LEFT + (index + 0.5) * step, step, base, height, f"s{colour}")
            SubElement(rect, "title").text = f"{axis.label(index)}, {printable(name) or '?'}: {shown(value)}"
    return svg


def timeline(activity: Sequence[Activity], findings: Sequence[Finding], axis: Axis) -> Element:
    """Receipts by time as columns, and above them a mark for each finding whose time is known."""
    counts = [0] * axis.bars
    for row in activity:
        counts[axis.bar_of(row.hour_ms)] += row.receipts
    svg, top = _frame(axis, max(counts, default=0), lambda value: f"{value:,.0f}", f"Receipts by {axis.unit}")
    step = _PLOT_WIDTH / axis.bars
    for index, count in enumerate(counts):
        if count:
            height = count / top * _PLOT_HEIGHT
            base = _TOP + _PLOT_HEIGHT - height
            rect = _column(svg, _LEFT + (index + 0.5) * step, step, base, height, "receipts")
            SubElement(rect, "title").text = f"{axis.label(index)}: {count:,} receipts"
    stacked: dict[int, int] = defaultdict(int)
    for finding in [f for f in findings if f.time_ms][:MOST_MARKS]:
        bar = axis.bar_of(finding.time_ms)
        x, y = _LEFT + (bar + 0.5) * step, _TOP + 8 + 11 * min(stacked[bar], 18)
        stacked[bar] += 1
        mark = SubElement(svg, "path", {"d": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z", "class": "mark"})
        SubElement(mark, "title").text = printable(f"{finding.code} ({finding.party}): {finding.sentence}")
    return svg


def legend(names: Sequence[str]) -> Element:
    """The colours of `stacked_bars`."""
    box = Element("p", {"class": "legend"})
    for colour, name in enumerate(names):
        item = SubElement(box, "span")
        swatch = SubElement(item, "svg", {"width": "12", "height": "12", "aria-hidden": "true"})
        _rect(swatch, 0, 0, 12, 12, f"s{colour}")
        SubElement(item, "span").text = printable(name) or "?"
    return box


def _frame(axis: Axis, highest: int, shown: Callable[[float], str], label: str) -> tuple[Element, float]:
    """An empty chart with its axes, and the value at its top."""
    svg = Element("svg", {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": label})
    step = _nice_step(highest)
    lines = max(1, -(-highest // step)) if highest else 1
    top = float(step * lines)
    for line in range(int(lines) + 1):
        y = _TOP + _PLOT_HEIGHT * (1 - line / lines)
        ends = {"x1": str(_LEFT), "x2": str(_WIDTH - _RIGHT), "y1": f"{y:.1f}", "y2": f"{y:.1f}", "class": "grid"}
        SubElement(svg, "line", ends)
        _text(svg, _LEFT - 8, y + 4, shown(step * line), "end")
    every = -(-axis.bars // 8)
    for bar in range(0, axis.bars, every):
        x = _LEFT + (bar + 0.5) * _PLOT_WIDTH / axis.bars
        anchor = "end" if x > _WIDTH - 40 else "middle"
        _text(svg, x, _HEIGHT - 10, axis.label(bar), anchor)
    return svg, top


def _nice_step(highest: int) -> int:
    """1, 2 or 5 times a power of ten, three to five of which reach `highest`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if highest <= factor * power * 4:
                return factor * power
        power *= 10


def _column(parent: Element, middle: float, step: float, y: float, height: float, colour: str) -> Element:
    width = min(step * 0.8, _MOST_COLUMN_WIDTH)
    return _rect(parent, middle - width / 2, y, width, height, colour)


def _rect(parent: Element, x: float, y: float, width: float, height: float, colour: str) -> Element:
    size: Mapping[str, float] = {"x": x, "y": y, "width": width, "height": max(height, 1.0)}
    return SubElement(parent, "rect", {**{key: f"{value:.1f}" for key, value in size.items()}, "class": colour})


def _text(parent: Element, x: float, y: float, text: str, anchor: str) -> None:
    SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}).text = text
