"""Medians, ratios and noise of what the rounds measured. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Visits = dict[str, dict[str, list[dict[str, float]]]]
"""Cell, system, round: the figures of a visit. Round n of each system lies beside round n of the others."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A median over rounds, and how far the rounds lie from it."""

    value: float
    spread: float
    """The median distance from the median, as a share of it."""
    rounds: int


def figure(values: Iterable[float]) -> Figure | None:
    """The figure of these rounds; None where there are none."""
    taken = list(values)
    if not taken:
        return None
    middle = median(taken)
    away = median(abs(value - middle) for value in taken)
    return Figure(middle, abs(away / middle) if middle else 0.0, len(taken))


@dataclass(slots=True)
class Results:
    """Everything that a run measured."""

    visits: Visits = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """System: bytes by node `at_rest` and `after_load`; where streams were held `per_stream`, `held`, `held_errors`."""
    calibration: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Core ("path", "load"): CPU and wall time of a fixed piece of work, before each cell."""
    about: dict[str, Any] = field(default_factory=dict)
    """When, on what, with which versions and which configuration; what was missing."""

    def add(self, cell: str, system: str, figures: dict[str, float]) -> None:
        """Take in one visit."""
        self.visits.setdefault(cell, {}).setdefault(system, []).append(figures)

    def rounds(self, cell: str, system: str, metric: str) -> list[float | None]:
        """One metric, round by round."""
        return [visit.get(metric) for visit in self.visits.get(cell, {}).get(system, [])]

    def of(self, cell: str, system: str, metric: str) -> Figure | None:
        """The median of a metric."""
        return figure(value for value in self.rounds(cell, system, metric) if value is not None)

    def added(self, cell: str, system: str, metric: str) -> list[float | None]:
        """What a system adds to the direct way, round by round."""
        pairs = zip(self.rounds(cell, system, metric), self.rounds(cell, "direct", metric), strict=False)
        return [None if own is None or base is None else own - base for own, base in pairs]

    def ratio(self, cell: str, metric: str, over: str, under: str, *, added: bool = False) -> Figure | None:
        """`over` as a multiple of `under`: the median of the rounds' ratios, which share each round's noise.

        With `added`, of what each adds to the direct way; rounds where `under` adds nothing tell nothing.
        """
        read = self.added if added else self.rounds
        pairs = zip(read(cell, over, metric), read(cell, under, metric), strict=False)
        return figure(a / b for a, b in pairs if a is not None and b is not None and b > 0)

    def receipts(self) -> dict[str, dict[str, int]]:
        """Answers and receipts by system; runs of before there were several named none."""
        found: dict[str, Any] = self.about.get("receipts") or {}
        return {"p2pgrid": found} if "answers" in found else found

    def errors(self) -> dict[str, int]:
        """Failed requests by system, over all cells."""
        failed: dict[str, int] = {}
        for systems in self.visits.values():
            for system, visits in systems.items():
                failed[system] = failed.get(system, 0) + int(sum(visit.get("errors", 0) for visit in visits))
        return failed

    @property
    def is_whole(self) -> bool:
        """True if no request failed, and every answer of p2pgrid's has its receipt in both ledgers.

        An answer that was cut may have one or not: it may have been cut before it was ordered.
        """
        if any(self.errors().values()):
            return False
        return all(
            found["gateway"] == found["provider"] and 0 <= found["gateway"] - found["answers"] <= found["cut"]
            for found in self.receipts().values()
        )

    def noise(self) -> dict[str, float]:
        """How quiet the machine was: the spread of a fixed piece of work, what others took, the cells' own spread."""
        found: dict[str, float] = {}
        for core, measured in self.calibration.items():
            cpu = figure(one["cpu_us"] for one in measured)
            if cpu is not None:
                found[f"calibration_spread_{core}"] = cpu.spread
                found[f"calibration_slowest_{core}"] = max(one["cpu_us"] for one in measured) / cpu.value
                found[f"taken_by_others_{core}"] = median(1 - one["cpu_us"] / one["wall_us"] for one in measured)
        for name in ("cpu_per_chunk_us", "cpu_per_request_us", "first_p50_ms", "latency_p50_ms"):
            spreads = [
                one.spread
                for cell, systems in self.visits.items()
                for system in systems
                if (one := self.of(cell, system, name)) is not None and one.rounds > 1
            ]
            if spreads:
                found[f"spread_{name}"] = median(spreads)
        return found

    def to_json(self) -> dict[str, Any]:
        """For a file, and `from_json`."""
        return {
            "about": self.about,
            "visits": self.visits,
            "memory": self.memory,
            "calibration": self.calibration,
            "medians": {
                cell: {system: self._medians(cell, system) for system in systems}
                for cell, systems in self.visits.items()
            },
            "noise": self.noise(),
        }

    @classmethod
    def from_json(cls, read: dict[str, Any]) -> Results:
        """What `to_json` wrote."""
        return cls(read["visits"], read["memory"], read["calibration"], read["about"])

    def _medians(self, cell: str, system: str) -> dict[str, dict[str, float]]:
        names: Sequence[str] = sorted({name for visit in self.visits[cell][system] for name in visit})
        found = {name: self.of(cell, system, name) for name in names}
        return {name: {"median": f.value, "spread": f.spread} for name, f in found.items() if f is not None}
