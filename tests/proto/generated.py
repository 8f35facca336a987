"""Writes afresh what the code makes: tests/vectors/*.json, the tables and the diagrams of docs/spec.

`scripts/make_vectors` runs it. Tests hold every file against the code.
"""

from __future__ import annotations

from tests.proto import session_diagrams, spec_tables
from tests.proto.vectors import FOLDER, all_vectors, to_text


def write_all() -> None:
    """Write every file."""
    for name, content in all_vectors().items():
        (FOLDER / name).write_text(to_text(content))
    session_diagrams.SPEC.write_text(session_diagrams.with_diagrams(session_diagrams.SPEC.read_text()))
    for page, text in spec_tables.pages().items():
        page.write_text(text)


if __name__ == "__main__":
    write_all()
