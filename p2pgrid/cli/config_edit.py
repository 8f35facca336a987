"""Settings written into a config.toml that a person may have edited: line by line, comments kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from p2pgrid.config import parse_config
from p2pgrid.errors import LocalError, UsageError

_TABLE = re.compile(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}\s*(#.*)?")


def with_settings(text: str, table: str, settings: Mapping[str, str | int | bool]) -> str:
    """The file's text with these settings (keys as in the file) in the table, which is added where it is missing.

    A setting that stands there, or stands there as a comment, is replaced; others, and all comments, stay. Raises
    UsageError if what comes of it is no configuration.
    """
    lines = text.splitlines()
    begin = next((n for n, line in enumerate(lines) if _name_of(line) == table), None)
    if begin is None:
        if lines and lines[-1].strip():
            lines.append("")
        lines.append(f"[{table}]")
        begin = len(lines) - 1
    for key, value in settings.items():
        end = next((n for n in range(begin + 1, len(lines)) if _name_of(lines[n])), len(lines))
        written = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        is_set = re.compile(rf"\s*{re.escape(key)}\s*=")
        is_comment = re.compile(rf"#{re.escape(key)}\s*=")
        inside = range(begin + 1, end)
        at = next((n for n in inside if is_set.match(lines[n])), None)
        if at is None:
            at = next((n for n in inside if is_comment.match(lines[n])), None)
        if at is None:
            last = max((n for n in inside if lines[n].strip()), default=begin)
            lines.insert(last + 1, written)
        else:
            lines[at] = written
    changed = "\n".join(lines) + "\n"
    parse_config(changed, "config.toml as it would be")
    return changed


def set_in_file(path: Path, table: str, settings: Mapping[str, str | int | bool]) -> None:
    """`with_settings` on a file, which is replaced whole or not at all. Raises UsageError, LocalError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", hint="Mend or remove it.") from None
    changed = with_settings(text, table, settings)
    new = path.with_name(f"{path.name}.new")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
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
