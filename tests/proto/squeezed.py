"""Bytes as the vectors write them: hex, in which `ab*300` between spaces is the bytes `ab` three hundred times."""

from __future__ import annotations

import re
from typing import Final

_LEAST: Final = 16
"""Fewer repeats stand as they are."""
_RUN: Final = re.compile(rb"(.{1,8}?)\1{%d,}" % (_LEAST - 1), re.DOTALL)


def squeezed(data: bytes) -> str:
    """As hex, long runs counted."""
    parts, at = [], 0
    for run in _RUN.finditer(data):
        unit = run[1]
        parts += [data[at : run.start()].hex(), f"{unit.hex()}*{len(run[0]) // len(unit)}"]
        at = run.end()
    return " ".join(part for part in (*parts, data[at:].hex()) if part)


def unsqueezed(text: str) -> bytes:
    """The bytes again."""
    parts = (part.partition("*") for part in text.split(" "))
    return b"".join(bytes.fromhex(unit) * int(times or 1) for unit, _, times in parts)


def squeezed_text(text: str) -> str | list[list[str | int]]:
    """A text as it is; a long one with long runs as pairs of a piece and how often it stands."""
    if len(text) < 4000:
        return text
    parts: list[list[str | int]] = []
    at = 0
    for run in re.finditer(r"(.{1,70}?)\1{63,}", text, re.DOTALL):
        parts += [[text[at : run.start()], 1]] if run.start() > at else []
        parts.append([run[1], len(run[0]) // len(run[1])])
        at = run.end()
    return [*parts, [text[at:], 1]]
