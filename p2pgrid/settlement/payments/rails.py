"""Rails: the ways that money takes, behind one small interface.

A rail is a class with a `name`, and two functions: orders to files, and a file to booked entries. It moves no money, is
asked for no password, and does no I/O: the caller writes the files, and a person takes them to the bank. `sepa` and
`manual` come along; others are found by the entry point group `p2pgrid.rails`:

    [project.entry-points."p2pgrid.rails"]
    wire = "my_package.wire:WireRail"

What a plug-in does wrong is reported under its name, and costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points
from typing import BinaryIO, Final, Protocol, runtime_checkable

from p2pgrid.errors import LocalError, P2pgridError, UsageError
from p2pgrid.settlement.payments.manual_rail import ManualRail
from p2pgrid.settlement.payments.orders import PaymentBatch
from p2pgrid.settlement.payments.rail_files import RailFile
from p2pgrid.settlement.payments.sepa_rail import SepaRail
from p2pgrid.settlement.payments.statements import BankFile

GROUP: Final = "p2pgrid.rails"


@runtime_checkable
class Rail(Protocol):
    """What a plug-in is."""

    name: str
    """Lower case, as people type it after `--rail`."""

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        """The files that ask for these payments. The same batch gives files that the bank knows as the same."""

    def read(self, file: BinaryIO, name: str) -> BankFile:
        """What a bank's file says was booked: all of it, or BankFileError."""


class RailError(LocalError):
    """A plug-in is broken: it cannot be loaded, is no rail, or fails in a way of its own."""


BUILT_IN: Final[dict[str, type[Rail]]] = {"sepa": SepaRail, "manual": ManualRail}


@dataclass(frozen=True)
class NamedRail:
    """A rail, with what it raises under its name. This is what callers use."""

    rail: Rail
    origin: str
    """Where it comes from, for errors: the package and its version."""

    @property
    def name(self) -> str:
        return self.rail.name

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        """Raises RailError for whatever the plug-in raises that is no error of ours, and for files that are none."""
        try:
            files = tuple(self.rail.write(batch, created=created))
        except P2pgridError:
            raise
        except Exception as error:
            raise self._broken("writing", error) from error
        if not files or not all(isinstance(file, RailFile) for file in files):
            raise RailError(f"the rail {self.name!r} ({self.origin}) wrote no files.")
        return files

    def read(self, file: BinaryIO, name: str) -> BankFile:
        """Raises RailError for whatever the plug-in raises that is no error of ours, and for what is no BankFile."""
        try:
            found = self.rail.read(file, name)
        except P2pgridError:
            raise
        except Exception as error:
            raise self._broken(f"reading {name}", error) from error
        if not isinstance(found, BankFile):
            raise RailError(f"the rail {self.name!r} ({self.origin}) read {type(found).__name__}, not a BankFile.")
        return found

    def _broken(self, doing: str, error: Exception) -> RailError:
        return RailError(
            f"the rail {self.name!r} ({self.origin}) failed in {doing}: {type(error).__name__}: {error}.",
            hint="Nothing was written or booked. Tell whoever keeps that package.",
        )


def rail_names(points: Iterable[EntryPoint] | None = None) -> list[str]:
    """The names of all rails, whether or not they can be loaded."""
    return sorted({*BUILT_IN, *(point.name for point in _points(points))})


def find_rail(name: str, points: Iterable[EntryPoint] | None = None) -> NamedRail:
    """The rail of that name. A plug-in cannot take the name of one that comes along.

    Raises UsageError if there is none, RailError if two packages bring one of that name or it cannot be loaded.
    """
    if name in BUILT_IN:
        return NamedRail(BUILT_IN[name](), "p2pgrid")
    found = [point for point in _points(points) if point.name == name]
    if not found:
        raise UsageError(f"there is no rail {name!r}.", hint=f"There are: {', '.join(rail_names(points))}.")
    if len(found) > 1:
        raise RailError(
            f"the rail {name!r} is brought by {' and by '.join(_origin(point) for point in found)}.",
            hint="Uninstall all but one.",
        )
    return NamedRail(_loaded(found[0]), _origin(found[0]))


def _loaded(point: EntryPoint) -> Rail:
    try:
        rail = point.load()()
    except Exception as error:
        raise RailError(
            f"the rail {point.name!r} ({_origin(point)}) cannot be loaded: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(rail, Rail) or rail.name != point.name:
        raise RailError(f"what {point.value} is ({_origin(point)}) is no rail named {point.name!r}.")
    return rail


def _points(points: Iterable[EntryPoint] | None) -> list[EntryPoint]:
    chosen = entry_points(group=GROUP) if points is None else points
    return [point for point in chosen if point.name not in BUILT_IN]


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
