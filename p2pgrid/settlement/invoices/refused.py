"""The error of this room: what was asked for makes no lawful or no valid invoice."""

from __future__ import annotations

from p2pgrid.errors import UsageError


class InvoiceRefused(UsageError):
    """No invoice can be made of this: a party's data, the dates or the numbers do not allow it.

    `code` is a short name of the reason (docs/settlement/invoices.md lists them), or the id of the rule of EN 16931,
    XRechnung or Peppol that would be broken.
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
