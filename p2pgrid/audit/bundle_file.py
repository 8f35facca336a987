"""Bundles as files: one record a line (docs/spec/record.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.proto.record import MAX_RECORD_BYTES, Record, parse_json_line

MAX_LINE_BYTES: Final = 2 * MAX_RECORD_BYTES
MAX_BAD_LINES: Final = 100
"""A file that begins with so many lines that are no records is no bundle: nobody wants a finding for each."""


def read_bundle(path: Path) -> Iterator[tuple[int, Record | InvalidRecord]]:
    """Each line's number, from 1, with the record it holds or why it holds none. Blank lines are passed over.

    Raises UsageError for a file that cannot be read, is empty, or holds no record at all.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}.",
            hint="Give files written by `p2pgrid receipts export FILE`.",
        ) from None
    with file:
        yield from _entries(path, file)


def _entries(path: Path, file: BinaryIO) -> Iterator[tuple[int, Record | InvalidRecord]]:
    records = bad = 0
    try:
        for number, line in _lines(file):
            entry = _entry(line)
            records += isinstance(entry, Record)
            bad += isinstance(entry, InvalidRecord)
            if records == 0 and bad == MAX_BAD_LINES:
                break
            yield number, entry
    except OSError as error:
        raise UsageError(f"{path} cannot be read to its end: {error.strerror or error}.") from None
    if records == 0:
        what = f"none of its first {bad} lines is a record" if bad else "it is empty"
        raise UsageError(f"{path} is no bundle: {what}.", hint="Write one with `p2pgrid receipts export FILE`.")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends; of one that is too long, only enough to see that it is."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
            pass
        line = line.removesuffix(b"\n")
        if line.strip():
            yield number, line


def _entry(line: bytes) -> Record | InvalidRecord:
    try:
        return parse_json_line(line)
    except InvalidRecord as invalid:
        return invalid
