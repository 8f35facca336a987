"""Bundles: a ledger's records as a file for an auditor, one record a line (docs/spec/record.md, section 5).

There is no header, so bundles can be joined with `cat`, searched with `grep`, and read with `jq`. Reading trusts
nothing: a line that is no record comes back as the error, and the next line is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final

from p2pgrid.errors import InvalidRecord, LocalError, UsageError
from p2pgrid.proto.record import MAX_RECORD_BYTES, SHORTEST_LINE_BYTES, TOO_SHORT, Record, parse_json_line

MAX_LINE_BYTES: Final = 2 * MAX_RECORD_BYTES
MAX_SKIPPED_BYTES: Final = 64 * 1024 * 1024
"""How far the reader looks for the end of a line that is too long."""
MAX_LINES_BEFORE_FIRST_RECORD: Final = 64
"""A file whose first so many lines hold no record is no bundle."""

Line = tuple[int, Record | InvalidRecord]
"""The line's number, from 1, and what stands there."""


def write_bundle(path: Path, records: Iterable[Record]) -> int:
    """Write records to a file (mode 0600) that appears whole or not at all; the number of records.

    An older file of that name is replaced at the end. Memory does not grow with the number of records. Raises
    UsageError if the folder does not exist or the path is a folder, LocalError if the disk is full or refuses.
    """
    return write_lines(path, (record.to_json_line() for record in records))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines, given without their ends, as `write_bundle` does."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", hint="Name the file that the bundle is to be written to.")
    # Named before it is made: whenever Ctrl-C comes, what was made is removed.
    part = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.part")
    written = 0
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for line in lines:
                file.write(line + b"\n")
                written += 1
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except FileNotFoundError:
        raise UsageError(f"the folder {path.parent} does not exist.", hint="Create it, or name another.") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it is in its place, or was never made
            part.unlink()
    _sync_folder(path.parent)
    return written


def read_bundle(path: Path) -> Generator[Line]:
    """Every line of a bundle: its number, and the unchecked record or the InvalidRecord that says what is wrong.

    Blank lines are passed over. Raises UsageError at once if the file is missing, unreadable, empty, or has no record
    in its first lines; LocalError while reading if the disk fails. Memory does not grow with the file.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"the bundle {path} cannot be read: {error.strerror}.", hint="Check its name.") from None
    try:
        lines = _parsed(path, file)
        first: list[Line] = []
        for line in lines:
            first.append(line)
            if isinstance(line[1], Record):
                return _rest(file, first, lines)
            if len(first) == MAX_LINES_BEFORE_FIRST_RECORD:
                break
    except BaseException:
        file.close()
        raise
    file.close()
    raise _no_bundle(path, first)


def _rest(file: BinaryIO, first: list[Line], lines: Iterator[Line]) -> Generator[Line]:
    with file:
        yield from chain(first, lines)


def _parsed(path: Path, file: BinaryIO) -> Iterator[Line]:
    number = 0
    try:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                ended = line.endswith(b"\n") or _skip_line(file)
                yield number, too_long(is_read_on=ended)
                if not ended:
                    return
            elif not line.isspace():
                yield number, parse_line(line)
    except OSError as error:
        raise LocalError(f"the bundle {path} cannot be read on: {error.strerror}.", hint="Check its disk.") from None


def parse_line(line: bytes) -> Record | InvalidRecord:
    """What a line, with its line feed, holds. The last of a file that is cut off has none."""
    if len(line) < SHORTEST_LINE_BYTES and line.endswith(b"\n"):
        return TOO_SHORT
    try:
        return parse_json_line(line)
    except InvalidRecord as error:
        if line.endswith(b"\n"):
            return error
        return InvalidRecord(error.code, f"{error.message} The file's last line is cut off.", hint="Fetch it again.")


def too_long(*, is_read_on: bool) -> InvalidRecord:
    """What there is to say of a line of more than `MAX_LINE_BYTES`."""
    rest = "" if is_read_on else " The rest of the file was not read."
    return InvalidRecord("oversize", f"a line has at most {MAX_LINE_BYTES} bytes.{rest}")


def _skip_line(file: BinaryIO) -> bool:
    """Read to the end of the line or of the file; False if that is too far."""
    skipped = 0
    while skipped < MAX_SKIPPED_BYTES:
        part = file.readline(MAX_LINE_BYTES)
        if not part or part.endswith(b"\n"):
            return True
        skipped += len(part)
    return False


def _no_bundle(path: Path, lines: list[Line]) -> UsageError:
    if not lines:
        what = "it is empty"
    elif len(lines) == MAX_LINES_BEFORE_FIRST_RECORD:
        what = f"none of its first {len(lines)} lines is a record"
    else:
        what = "no line of it is a record"
    return UsageError(
        f"{path} is no bundle: {what}. One JSON object a line was expected, with type, payload and signatures.",
        hint="`p2pgrid receipts export FILE` writes one.",
    )


def _unwritable(path: Path, error: OSError) -> LocalError:
    hint = "Free some space, or name a file on another disk." if error.errno == errno.ENOSPC else "Name another file."
    return LocalError(f"the bundle {path} cannot be written: {error.strerror}.", hint=hint)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        # A folder that may be written and not listed: the file is there, and its own bytes are synced.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
