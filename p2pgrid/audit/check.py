"""The audit of files, from names to a verdict."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from p2pgrid.audit.engine import Keep, Report, Source, keeping, run_engine
from p2pgrid.audit.proof_file import is_proof_file
from p2pgrid.audit.workers import usable_cores
from p2pgrid.errors import LocalError, UsageError
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import Observe, Verdict, audit_records

SMALL_BYTES: Final = 4 * 1024 * 1024
"""Bundles of less, all together, are audited at once and in this process."""
STANDARD_INPUT: Final = Path("-")

_SIDE_WORDS: Final = {
    "provider": Role.PROVIDER,
    "operator": Role.PROVIDER,
    "client": Role.CLIENT,
    "gateway": Role.CLIENT,
}


def audit_files(
    paths: Sequence[Path],
    *,
    processes: int | None = None,
    report: Report | None = None,
    now_ms: int | None = None,
    keep: Keep | None = None,
    log_demands: LogDemands = NO_DEMANDS,
    observe: Observe | None = None,
) -> Verdict:
    """Audit exported bundles, each by itself and one against the other. No network, no secret key.

    A file whose name says `provider` or `operator`, `client` or `gateway` (`provider.jsonl`, `operator-lt.jsonl`) is
    taken for that side's export, which answers for what is wrong with the file; `-` is standard input. Large files are
    read by `processes` worker processes (as many as there are cores if None), in memory that does not grow with them;
    `report` is told how far they are. `now_ms` and `log_demands`: as for `audit_records`. `keep` is given every record
    that a finding can be about, for proofs; `observe` what was judged in full: of a channel that has been settled, all.
    Raises UsageError for a file that is no bundle, LocalError if a disk or a
    worker fails.
    """
    with TemporaryDirectory(prefix="p2pgrid-input-") as folder:
        sources = [_spooled(source, Path(folder)) for source in sources_of(paths)]
        for source in sources:
            if is_proof_file(source.path):
                raise UsageError(f"{source.name} is a proof file.", hint="Verify it with `p2pgrid audit --proof FILE`.")
            read_bundle(source.path).close()  # it is a bundle, or this says why not
        if sum(source.path.stat().st_size for source in sources) >= SMALL_BYTES:
            cores = processes or usable_cores()
            report = report or _tell_nobody
            return run_engine(
                sources, cores, report, now_ms=now_ms, keep=keep, log_demands=log_demands, observe=observe
            )
        bundles: Iterable[Bundle] = (Bundle(source.name, read_bundle(source.path), source.side) for source in sources)
        return audit_records(
            bundles if keep is None else keeping(bundles, keep),
            now_ms=now_ms,
            log_demands=log_demands,
            observe=observe,
        )


def sources_of(paths: Sequence[Path]) -> list[Source]:
    """The files with their names and sides. Raises UsageError for a file named twice."""
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("a file is named twice.", hint="Name each bundle once.")
    names = _short_names(paths)
    return [Source(path, name, side_of(path)) for name, path in zip(names, paths, strict=True)]


def _spooled(source: Source, folder: Path) -> Source:
    """Standard input as a file, for it is read more than once; any other as it is."""
    if source.path != STANDARD_INPUT:
        return source
    path = folder / "input.jsonl"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1024 * 1024)
    except OSError as error:
        raise LocalError(
            f"standard input cannot be kept in {folder}: {error.strerror}.", hint="Set TMPDIR to a larger disk."
        ) from None
    return Source(path, "standard input", None)


def side_of(path: Path) -> Role | None:
    """The side that the file's name says it comes from, None if it says neither or both."""
    said = {role for word, role in _SIDE_WORDS.items() if word in path.name.lower()}
    return said.pop() if len(said) == 1 else None


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names without folders where they differ."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _tell_nobody(step: str, done: int, total: int) -> None:
    """Nobody wants to know how far the audit is."""
