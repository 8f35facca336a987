"""What an entry's texts name."""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.settlement.payments.decisions import Evidence


@dataclass(frozen=True)
class Named:
    """Invoice numbers, those that are open in the entry's direction first, and prepaid accounts."""

    by_reference: tuple[str, ...]
    settled: tuple[str, ...]
    """By reference too, with nothing open in this direction."""
    by_number: tuple[str, ...]
    settled_by_number: tuple[str, ...]
    """With nothing open in this direction; only numbers that stand alone."""
    prepaid: tuple[str, ...]
    evidence: Evidence
    """How the reference was found."""

    @property
    def everything(self) -> tuple[str, ...]:
        return self.by_reference + self.settled + self.by_number + self.settled_by_number + self.prepaid
