"""Where an archive lies: a folder, or a zip that is unpacked with care."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from p2pgrid.errors import LocalError, UsageError

MAX_FILES: Final = 1_000_000
MAX_UNPACKED_BYTES: Final = 1 << 40
MAX_RATIO: Final = 200
"""How much larger than the zip its contents may be: text packs to a tenth, a bomb to a thousandth."""
_SHOWN: Final = 100


def is_plain(name: str) -> bool:
    """A name within the folder, and nothing clever."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and str(path) == name
        and "\0" not in name
    )


@contextmanager
def unpacked(place: Path) -> Iterator[Path]:
    """The folder itself, or the zip's contents in a folder that is gone afterwards; where all of them are below one
    folder, that. Raises UsageError for what is no zip of ours, LocalError if the disk fails."""
    if place.is_dir():
        yield place
        return
    if not place.is_file():
        raise UsageError(f"{place} is not there.", hint="Name an archive's folder, or its zip.")
    with tempfile.TemporaryDirectory(prefix="p2pgrid-archive-") as name:
        try:
            with zipfile.ZipFile(place) as packed:
                _unpack(packed, place, Path(name))
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"{place} is no zip that can be read: {error}.", hint="Fetch it again.") from None
        except OSError as error:
            raise LocalError(f"{place} cannot be unpacked: {error}.", hint="Set TMPDIR to a larger disk.") from error
        yield _root(Path(name))


def _root(folder: Path) -> Path:
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _unpack(packed: zipfile.ZipFile, place: Path, folder: Path) -> None:
    """Plain files alone, each once, and not more than a zip of that size holds."""
    members = packed.infolist()
    most = min(MAX_UNPACKED_BYTES, max(place.stat().st_size, 1024) * MAX_RATIO)
    if len(members) > MAX_FILES or sum(one.file_size for one in members) > most:
        raise UsageError(f"{place} unpacks to more than an archive of its size holds.", hint="Do not trust its sender.")
    left = most
    for member in members:
        target = folder / member.filename
        if not is_plain(member.filename.removesuffix("/")) or (target.exists() and not member.is_dir()):
            raise UsageError(f"{place} holds a file with the name {member.filename[:_SHOWN]!r}.")
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{place} is packed in a way that no archive is.", hint="Unpack it, and name the folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed.open(member) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1024 * 1024)
        left -= target.stat().st_size
        if left < 0:
            raise UsageError(f"{place} unpacks to more than it says.", hint="Do not trust its sender.")
