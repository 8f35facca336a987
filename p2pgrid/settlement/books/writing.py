"""An export's file, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from p2pgrid.errors import LocalError, UsageError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file (mode 0600) over an older one of that name. Raises UsageError for a folder that is not there,
    LocalError if the disk refuses."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist.", hint="Create it, or name another.")
    part: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".part")
        part = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}.", hint="Name another file or disk.") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
