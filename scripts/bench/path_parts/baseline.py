"""The short form: a few ratios to a yardstick in the same run, held against those stored in the repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .figures import Figure, Results
from .targets import OURS

STORED: Final = Path(__file__).resolve().parents[1] / "path_baseline.json"
MOST_LOSS: Final = 2.0
"""A ratio that is worse than the stored one by more than this factor is lost."""

MOST_TAKEN: Final = 0.15
"""Share of the systems' core that others may have taken for times to be judged."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A cost of ours as a multiple of the yardstick's: less is better."""

    name: str
    cell: str
    metric: str
    added: bool = False
    is_time: bool = False
    """By the clock, and so worth nothing on a busy machine; CPU time is hardly disturbed."""

    def of(self, results: Results, yardstick: str) -> Figure | None:
        """The ratio in this run."""
        return results.ratio(self.cell, self.metric, OURS, yardstick, added=self.added)


RATIOS: Final = (
    Ratio("CPU per request, 16 at once", "unstreamed-16", "cpu_per_request_us"),
    Ratio("CPU per chunk, 64 streams staggered", "staggered-64", "cpu_per_chunk_us"),
    Ratio("CPU per chunk, 64 streams in step", "step-64", "cpu_per_chunk_us"),
    Ratio("latency p50, 1 at once", "unstreamed-1", "latency_p50_ms", is_time=True),
    Ratio("added first token, 1 stream", "first-1", "first_p50_ms", added=True, is_time=True),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ratio of this run beside the stored one."""

    ratio: Ratio
    found: Figure | None
    stored: float | None
    is_judged: bool = True
    """False for times on a machine that others used as well."""

    @property
    def is_lost(self) -> bool:
        """True for one that got worse by more than MOST_LOSS, or could not be measured though it was before."""
        if self.stored is None or not self.is_judged:
            return False
        return self.found is None or self.found.value > self.stored * MOST_LOSS


def compare(results: Results, yardstick: str, stored: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    """Every ratio of the short form."""
    known = stored.get(yardstick, {})
    is_quiet = results.noise().get("taken_by_others_path", 0.0) <= MOST_TAKEN
    return [
        Verdict(ratio, ratio.of(results, yardstick), known.get(ratio.name), is_quiet or not ratio.is_time)
        for ratio in RATIOS
    ]


def load_stored(path: Path = STORED) -> dict[str, dict[str, float]]:
    """The stored ratios, by yardstick; none if there is no file."""
    if not path.exists():
        return {}
    stored: dict[str, dict[str, float]] = json.loads(path.read_text())["ratios"]
    return stored


def store(results: Results, yardsticks: list[str], path: Path = STORED) -> None:
    """Write the ratios of this run, keeping those to yardsticks that it did not have.

    Times of a busy machine are not stored: everything would pass beside them.
    """
    ratios = load_stored(path)
    for yardstick in yardsticks:
        ratios[yardstick] = {
            verdict.ratio.name: round(verdict.found.value, 3)
            for verdict in compare(results, yardstick, ratios)
            if verdict.found is not None and verdict.is_judged
        }
    about = {key: results.about.get(key) for key in ("when", "commit", "cpu", "versions")}
    path.write_text(json.dumps({"about": about, "ratios": ratios}, indent=2) + "\n")


def render_verdicts(verdicts: list[Verdict], yardstick: str) -> str:
    """For people."""
    lines = [f"p2pgrid as a multiple of {yardstick} in the same run; lost: over {MOST_LOSS:g} times what is stored"]
    for verdict in verdicts:
        found = "not measured" if verdict.found is None else f"{verdict.found.value:8.2f} ±{verdict.found.spread:.0%}"
        stored = "nothing stored" if verdict.stored is None else f"stored {verdict.stored:.2f}"
        remark = "   LOST" if verdict.is_lost else "" if verdict.is_judged else "   (not judged: the machine is busy)"
        lines.append(f"  {verdict.ratio.name:40} {found:>16}   {stored}{remark}")
    return "\n".join(lines)
