"""Settings written into a config.toml that a person may have edited: line by line, comments kept."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from p2pgrid.config import parse_config
from p2pgrid.errors import LocalError, UsageError

_TABLE = re.compile(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}\s*(#.*)?")
_VALUE = r"""\s*=\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'#\[{]*?)(\s*#.*|\s*)"""
"""A value on one line, and what follows it."""


def with_settings(text: str, table: str, settings: Mapping[str, str | int | bool]) -> str:
    """The file's text with these settings (keys as in the file) in the table, which is added where it is missing.

    A setting that stands there, or stands there as a comment, is replaced; others, all comments and line ends stay.
    Raises UsageError if what comes of it is no configuration, or the file is written in a way that is not changed here.
    """
    line_end = "\r\n" if "\r\n" in text else "\n"
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    begin = next((n for n, line in enumerate(lines) if _name_of(line) == table), None)
    if begin is None:
        if lines and lines[-1].strip():
            lines.append("")
        lines.append(f"[{table}]")
        begin = len(lines) - 1
    for key, value in settings.items():
        end = next((n for n in range(begin + 1, len(lines)) if _name_of(lines[n])), len(lines))
        written = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        is_set, is_comment = (re.compile(rf"{start}{re.escape(key)}{_VALUE}") for start in (r"\s*", "#"))
        inside = range(begin + 1, end)
        there = next(((n, found) for n in inside if (found := is_set.fullmatch(lines[n]))), None)
        at = next((n for n in inside if is_comment.fullmatch(lines[n])), None)
        if there is not None:
            lines[there[0]] = written + there[1][1]
        elif at is None:
            lines.insert(max((n for n in inside if lines[n].strip()), default=begin) + 1, written)
        elif "#" in lines[at][1:]:
            lines.insert(at + 1, written)  # a person wrote there more than the template did
        else:
            lines[at] = written
    changed = line_end.join(lines) + line_end
    _check(text, changed, table, settings)
    return changed


def _check(text: str, changed: str, table: str, settings: Mapping[str, str | int | bool]) -> None:
    """Only what was to be changed is. Lines are looked at here; a text over several of them may look like settings."""
    try:
        wanted = tomllib.loads(text)
        wanted[table] = {**wanted.get(table, {}), **settings}
        is_right = tomllib.loads(changed) == wanted
    except (tomllib.TOMLDecodeError, TypeError, ValueError):
        is_right = False
    if not is_right:
        named = ", ".join(settings)
        raise UsageError(
            f"{named} cannot be set under [{table}]: config.toml is broken, or has a setting there over several lines.",
            hint="Write it there by hand.",
        )
    parse_config(changed, "config.toml as it would be")


def read_text(path: Path) -> str:
    """The file's text, line ends as they are; none of a file that is not there. Raises UsageError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", hint="Mend or remove it.") from None


def set_in_file(path: Path, table: str, settings: Mapping[str, str | int | bool]) -> None:
    """`with_settings` on a file, which is replaced whole or not at all. Raises UsageError, LocalError."""
    path = path.resolve()  # a link stays one
    changed = with_settings(read_text(path), table, settings)
    new = path.with_name(f"{path.name}.new")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(changed)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}.", hint="Check the disk, its owner.") from None


def _name_of(line: str) -> str:
    """The table that a line begins; empty if it begins none."""
    found = _TABLE.fullmatch(line)
    return found[1] if found is not None else ""
