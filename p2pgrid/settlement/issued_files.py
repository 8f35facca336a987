"""The folder of issued documents: `<data>/invoices/issued/2027/INV-2027-000001.pdf`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2pgrid.errors import LocalError
from p2pgrid.settlement.invoices.issue import Format, write_new

SUFFIXES: Final = tuple(form.value for form in Format)


def publish(folder: Path, files: Sequence[tuple[str, bytes]], main: str) -> list[Path]:
    """Put a document's files (name and bytes) there, each whole, once; synced when this returns.

    The one named `main`, which the Invoice record is about, comes last: where it is, all are. A file that is there with
    the same bytes is left alone. Raises LocalError where it has others, or the disk does not take it.
    """
    make_folder(folder)
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)  # of a process that was killed: nobody else writes here
    paths = []
    for name, content in sorted(files, key=lambda file: file[0] == main):
        path = folder / name
        if not _is_there(path, content):
            write_new(path, content)
        paths.append(path)
    return paths


def make_folder(folder: Path) -> None:
    """For its owner alone. Raises LocalError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LocalError(f"{folder} cannot be made: {error.strerror}.", hint="Check the data folder.") from None


def read_file(path: Path) -> bytes | None:
    """Its bytes; None if it is not there. Raises LocalError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}.", hint="Check the data folder.") from None


def _is_there(path: Path, content: bytes) -> bool:
    there = read_file(path)
    if there is not None and there != content:
        raise LocalError(
            f"{path} is there, and is not the document that was issued under this number.",
            hint="Move that file away; the document is written again at the next start.",
        )
    return there is not None
