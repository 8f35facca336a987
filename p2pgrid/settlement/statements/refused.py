"""The error of this room: there is no statement to be made now."""

from __future__ import annotations

from p2pgrid.errors import UsageError


class NotStated(UsageError):
    """Why there is no statement. `code` is one of docs/spec/settlement.md, section 4."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
