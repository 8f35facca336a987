"""Files that a rail wrote, and how they come to disk: whole, and never over another."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from p2pgrid.errors import LocalError, UsageError


@dataclass(frozen=True)
class RailFile:
    """A file to be written."""

    name: str
    """A plain file name, which says what it is."""
    data: bytes


def write_new(folder: Path, file: RailFile) -> Path:
    """Write a file that appears whole or not at all (mode 0600); its path.

    A file of that name with the same content is left as it is. Raises UsageError if the folder is missing, the name is
    no plain name, or another content stands there already; LocalError if the disk refuses.
    """
    path = folder / file.name
    if path.name != file.name or file.name.startswith("."):
        raise UsageError(f"{file.name!r} is no plain file name.")
    part: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{file.name[:64]}.", suffix=".part")
        part = Path(name)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(file.data)
            opened.flush()
            os.fsync(opened.fileno())
        try:
            path.hardlink_to(part)
        except FileExistsError:
            if path.read_bytes() != file.data:
                raise UsageError(
                    f"{path} is there already, with other content.",
                    hint="Move it away; payments are never overwritten.",
                ) from None
        _sync(folder)
    except FileNotFoundError:
        raise UsageError(f"the folder {folder} does not exist.", hint="Create it, or name another.") from None
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return path


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
