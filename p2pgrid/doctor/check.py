"""One thing that was looked at, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from p2pgrid.errors import P2pgridError


class State(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and somebody should look at it."""
    FAULT = "fault"
    """The node does not do its work like this."""
    SKIPPED = "skipped"
    """It could not be looked at, or does not concern this node."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was found."""

    name: str
    state: State
    text: str
    """One sentence."""
    fix: str = ""
    """For a warning or a fault: the command to run, or the setting to change."""

    def __post_init__(self) -> None:
        if bool(self.fix) is not (self.state in (State.WARNING, State.FAULT)):
            raise ValueError(f"a check has a fix exactly if something is wrong: {self.name}, {self.state}")


def ok(name: str, text: str) -> Check:
    """All is well."""
    return Check(name, State.OK, text)


def warning(name: str, text: str, fix: str) -> Check:
    """It works, and somebody should look at it."""
    return Check(name, State.WARNING, text, fix)


def fault(name: str, text: str, fix: str) -> Check:
    """It does not work."""
    return Check(name, State.FAULT, text, fix)


def skipped(name: str, text: str) -> Check:
    """It was not looked at, and why."""
    return Check(name, State.SKIPPED, text)


def of_error(name: str, error: P2pgridError, fix: str) -> Check:
    """A fault that the node itself would stop at. `fix` where the error has no hint of its own."""
    return fault(name, error.message, error.hint or fix)


def has_faults(checks: list[Check]) -> bool:
    """True if the node does not do its work."""
    return any(check.state is State.FAULT for check in checks)
