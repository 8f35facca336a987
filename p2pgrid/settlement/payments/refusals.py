"""What a file from outside is refused with: always the line, what came, and what was expected."""

from __future__ import annotations

from p2pgrid.errors import LocalError, UsageError

NOTHING_TAKEN = "Nothing was taken from this file."


class BankFileError(UsageError):
    """A bank's or a person's file is not what it should be. Nothing of it was taken.

    `line` counts from 1, as editors do; 0 where the fault is in no line.
    """

    def __init__(self, name: str, line: int, message: str, *, hint: str = NOTHING_TAKEN) -> None:
        where = f"{name}, line {line}" if line else name
        super().__init__(f"{where}: {message}.", hint=hint)
        self.line = line


class PaymentOrderError(UsageError):
    """A payment cannot be ordered as it stands: an IBAN, an address, an amount or a text must be mended first."""


class MissingLibrary(LocalError):
    """A library of the `settle` extra is not installed."""

    def __init__(self, library: str) -> None:
        super().__init__(
            f"settlement needs the library {library}, which is not installed.",
            hint="Run: pip install 'p2pgrid[settle]'",
        )
