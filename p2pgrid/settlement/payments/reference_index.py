"""Which of the known references a text names: whole, cut, or mistyped."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from p2pgrid.settlement.payments.reference import (
    CREDITOR_REFERENCE_CHARS,
    REFERENCE_CHARS,
    as_body,
    creditor_reference_of,
    mended_rf,
    normalised,
)

SHORTEST_CUT: Final = 16
"""So many first characters (80 bits) still name one reference."""
MOST_WRONG: Final = 3
"""So many characters wrong, missing or added."""
MAX_TEXT_CHARS: Final = 20_000
"""More of a text than that is not looked at: bank texts have at most some hundred characters."""
MAX_COMPARED: Final = 200
"""So many places of one text are looked at for a mistyped reference: those that repeat a piece of one are no text."""

_BLOCK: Final = 8
_BLOCKS: Final = (0, 8, 16, 24)
"""Three wrong characters leave one of these four blocks whole."""


class Form(StrEnum):
    """How a reference was found."""

    WHOLE = "whole"
    CUT = "cut"
    MISTYPED = "mistyped"


class ReferenceIndex:
    """The end-to-end references of known invoices, to be found in what banks hand on."""

    def __init__(self, references: Iterable[str]) -> None:
        """Each is in its one form (`parse_reference`)."""
        self._blocks: dict[str, list[tuple[str, int]]] = {}
        self._rf: dict[str, str] = {}
        for reference in dict.fromkeys(references):
            self._rf[creditor_reference_of(reference)] = reference
            for offset in _BLOCKS:
                self._blocks.setdefault(reference[offset : offset + _BLOCK], []).append((reference, offset))

    def find(self, text: str) -> dict[str, Form]:
        """The references that the text names, in order of appearance.

        Where some are named whole, those alone count: what else looks like one is chance.
        """
        plain = normalised(text[:MAX_TEXT_CHARS])
        body = as_body(text[:MAX_TEXT_CHARS])
        found: dict[str, Form] = {}
        compared = 0
        for at in range(len(body) - _BLOCK + 1):
            for reference, offset in self._blocks.get(body[at : at + _BLOCK], ()):
                if found.get(reference) is not Form.WHOLE:
                    form = self._form(reference, plain, body, at - offset, compares=compared < MAX_COMPARED)
                    if form is None or form is Form.MISTYPED:
                        compared += 1
                    if form is not None and (form is Form.WHOLE or reference not in found):
                        found[reference] = form
        whole: dict[str, Form] = {reference: form for reference, form in found.items() if form is Form.WHOLE}
        return whole or found

    def _form(self, reference: str, plain: str, body: str, start: int, *, compares: bool) -> Form | None:
        if start >= 0 and body.startswith(reference, start):
            return Form.WHOLE
        if start >= 4 and plain.startswith("RF", start - 4):
            rf = mended_rf(plain[start - 4 : start - 4 + CREDITOR_REFERENCE_CHARS])
            if self._rf.get(rf) == reference:
                return Form.WHOLE
        if start >= 0 and body.startswith(reference[:SHORTEST_CUT], start):
            return Form.CUT
        if not compares:
            return None
        region = body[max(0, start - MOST_WRONG) : start + REFERENCE_CHARS + MOST_WRONG]
        return Form.MISTYPED if _distance_within(reference, region) <= MOST_WRONG else None


def _distance_within(needle: str, region: str) -> int:
    """The least number of characters to change, drop or add that turn some part of the region into the needle."""
    row = [0] * (len(region) + 1)
    for i, wanted in enumerate(needle, start=1):
        above, row = row, [i]
        for j, found in enumerate(region, start=1):
            row.append(min(above[j - 1] + (wanted != found), above[j] + 1, row[j - 1] + 1))
    return min(row)
