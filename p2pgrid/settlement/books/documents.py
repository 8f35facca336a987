"""Files of invoices on disk, found by the hash that the signed Invoice record has of one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FORMATS: Final = (".cii.xml", ".ubl.xml", ".xml", ".pdf", ".txt", ".json")
"""Ends of the names of one document's files; what stands before is the same in all."""


class DocumentFiles:
    """Every document below some folders."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Folders that are not there hold nothing. Links are not followed."""
        self._by_hash: Final[dict[bytes, Path]] = {}
        for folder in folders:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                    self._by_hash.setdefault(sha256_of(path), path)

    def of(self, document_sha256: bytes) -> list[Path]:
        """All files of the document of which one has this hash: that one first; none if it is not there."""
        found = self._by_hash.get(document_sha256)
        if found is None:
            return []
        stem = stem_of(found.name)
        others = [
            path
            for path in sorted(found.parent.iterdir())
            if path != found and path.is_file() and not path.is_symlink() and stem_of(path.name) == stem
        ]
        return [found, *others]


def stem_of(name: str) -> str:
    """A file's name without what says its format."""
    return next((name.removesuffix(end) for end in FORMATS if name.lower().endswith(end)), name)


def sha256_of(path: Path) -> bytes:
    """A file's hash. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
