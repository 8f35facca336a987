"""The audit of files, from names to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import Bundle, Verdict, audit_records

_SIDE_WORDS: Final = {
    "provider": Role.PROVIDER,
    "operator": Role.PROVIDER,
    "client": Role.CLIENT,
    "gateway": Role.CLIENT,
}


def audit_files(paths: Sequence[Path]) -> Verdict:
    """Audit exported bundles, each by itself and one against the other. No network, no secret key.

    A file whose name says `provider` or `operator`, `client` or `gateway` (`provider.jsonl`, `operator-lt.jsonl`) is
    taken for that side's export, which answers for what is wrong with the file. Raises UsageError for a file that is no
    bundle.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("a file is named twice.", hint="Name each bundle once.")
    names = _short_names(paths)
    return audit_records(
        Bundle(name, read_bundle(path), side_of(path)) for name, path in zip(names, paths, strict=True)
    )


def side_of(path: Path) -> Role | None:
    """The side that the file's name says it comes from, None if it says neither or both."""
    said = {role for word, role in _SIDE_WORDS.items() if word in path.name.lower()}
    return said.pop() if len(said) == 1 else None


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names without folders where they differ."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
