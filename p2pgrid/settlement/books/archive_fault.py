"""What is wrong with an archive, and how its smaller files are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pgrid.errors import UsageError

MAX_SMALL_BYTES: Final = 512 * 1024 * 1024
SHOWN: Final = 100
"""Characters of a value that a sentence quotes."""


@dataclass(frozen=True, slots=True)
class ArchiveFault:
    """Something that is wrong with an archive."""

    file: str
    what: str
    """One sentence."""


def content_of(path: Path) -> bytes:
    """A file other than a bundle. Raises OSError, UsageError for one that is too large."""
    if path.stat().st_size > MAX_SMALL_BYTES:
        raise UsageError(f"{path.name} is larger than {MAX_SMALL_BYTES} bytes.", hint="This is no archive of ours.")
    return path.read_bytes()
