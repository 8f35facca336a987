"""Proof files: a claim in the first line, and below it a bundle of the records that it takes (docs/audit.md)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pgrid.errors import UsageError
from p2pgrid.ledger.bundle import MAX_LINE_BYTES, parse_line, write_lines
from p2pgrid.proto.codes import Party
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.proof import Claim, Exhibit, claim_of, exhibit_of, follows, smallest
from p2pgrid.proto.record import Record

PROOF_TYPE: Final = "/p2pgrid/proof/1"
MOST_PROOFS: Final = 1000
"""Files written for one audit."""
MAX_PROOF_BYTES: Final = 64 * 1024 * 1024
MAX_CLAIM_BYTES: Final = 4096

_ROUNDS: Final = 4


class ClaimLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of a proof file."""

    type: str
    code: str
    party: Party
    peer_ids: tuple[str, ...]
    record_id: str


class Exhibits:
    """What an audit saw, from which proofs are chosen."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._all: Final = [exhibit_of(record) for record in dict.fromkeys(records)]
        self._by_id: Final[dict[bytes, list[int]]] = defaultdict(list)
        self._by_slot: Final[dict[tuple[object, ...], list[int]]] = defaultdict(list)
        self._by_order: Final[dict[tuple[bytes, int], list[int]]] = defaultdict(list)
        self._naming: Final[dict[bytes, list[int]]] = defaultdict(list)
        self._channels: Final[dict[bytes, list[int]]] = defaultdict(list)
        self._of_channel: Final[dict[bytes, list[int]]] = defaultdict(list)
        for index, exhibit in enumerate(self._all):
            self._by_id[exhibit.record_id].append(index)
            self._by_slot[exhibit.slot].append(index)
            for name in exhibit.names:
                self._naming[name].append(index)
            if isinstance(exhibit.message, Channel):
                self._channels[exhibit.channel].append(index)
            self._of_channel[exhibit.channel].append(index)
            number = getattr(exhibit.message, "order_number", None)
            if number is not None:
                self._by_order[exhibit.channel, number].append(index)

    def proof_of(self, finding: Finding) -> list[Exhibit] | None:
        """The smallest proof of a finding that can be found; None if the records do not give one."""
        claim = claim_of(finding)
        chosen = set(self._by_id.get(bytes.fromhex(finding.record_id), ()))
        tried = 0
        for turn in range(_ROUNDS + 2):
            if turn < _ROUNDS:
                chosen |= self._around(chosen)
            elif turn == _ROUNDS:
                channels = {self._all[index].channel for index in chosen}
                chosen |= {index for channel in channels for index in self._of_channel[channel]}
            else:
                chosen = set(range(len(self._all)))
            if len(chosen) == tried:
                continue
            tried = len(chosen)
            proof = smallest(claim, [self._all[index] for index in sorted(chosen)])
            if proof is not None:
                return proof
        return None

    def _around(self, chosen: Iterable[int]) -> set[int]:
        found: set[int] = set()
        for index in chosen:
            exhibit = self._all[index]
            found.update(self._by_slot[exhibit.slot], self._channels.get(exhibit.channel, ()))
            found.update(self._naming.get(exhibit.record_id, ()))
            for name in exhibit.names:
                found.update(self._by_id.get(name, ()))
            number = getattr(exhibit.message, "order_number", None)
            if number is not None:
                found.update(self._by_order[exhibit.channel, number])
        return found


def write_proofs(
    folder: Path,
    findings: Sequence[Finding],
    records: Iterable[Record],
    report: Callable[[str, int, int], None],
) -> tuple[list[Path], list[Finding]]:
    """Write a proof file for each finding that convinces, `MOST_PROOFS` at most; the files, and what has none.

    A finding has none if it rests on what the accuser alone signed. Raises UsageError if the folder cannot be made,
    LocalError if the disk is full or refuses.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made: {error.strerror}.", hint="Name a folder in one that exists."
        ) from None
    convincing = [finding for finding in findings if finding.convinces]
    wanted = convincing[:MOST_PROOFS]
    exhibits = Exhibits(records if wanted else ())
    written: list[Path] = []
    without: list[Finding] = convincing[MOST_PROOFS:]
    names: Counter[str] = Counter()
    for done, finding in enumerate(wanted, start=1):
        proof = exhibits.proof_of(finding)
        if proof is None:
            without.append(finding)
        else:
            name = f"{finding.code}-{finding.party}-{finding.record_id[:16]}"
            names[name] += 1
            path = folder / f"{name}{f'-{names[name]}' if names[name] > 1 else ''}.jsonl"
            write_proof(path, claim_of(finding), proof)
            written.append(path)
        report("proving", done, len(wanted))
    return written, without


def write_proof(path: Path, claim: Claim, exhibits: Iterable[Exhibit]) -> None:
    """Write one proof file. Raises as `write_bundle` does."""
    fields: dict[str, Any] = {name: getattr(claim, name) for name in Claim.__struct_fields__}
    first = msgspec.json.encode(ClaimLine(type=PROOF_TYPE, **fields))
    write_lines(path, [first, *(exhibit.record.to_json_line() for exhibit in exhibits)])


def read_proof(path: Path) -> tuple[Claim, list[Exhibit]]:
    """The claim of a proof file and its records. Raises UsageError for what is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROOF_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the proof {path} cannot be read: {error.strerror}.", hint="Check its name.") from None
    if len(data) > MAX_PROOF_BYTES:
        raise UsageError(f"{path} is larger than a proof may be, {MAX_PROOF_BYTES >> 20} MiB.")
    first, _, rest = data.partition(b"\n")
    line = _claim_line(first)
    if line is None:
        raise UsageError(
            f"{path} is no proof file: its first line is no claim.",
            hint="`p2pgrid audit FILE... --proofs DIR` writes proof files; a bundle is audited without --proof.",
        )
    records: dict[Record, None] = {}
    for number, text in enumerate(rest.split(b"\n"), start=2):
        if not text or text.isspace():
            continue
        entry = parse_line(text + b"\n") if len(text) < MAX_LINE_BYTES else None
        if not isinstance(entry, Record):
            raise UsageError(f"line {number} of the proof {path} is no record.", hint="Ask for the file again.")
        records[entry] = None
    fields = {name: getattr(line, name) for name in Claim.__struct_fields__}
    return Claim(**fields), [exhibit_of(record) for record in records]


def verify_proof(path: Path) -> tuple[Claim, Finding | None, int]:
    """Read a proof file: its claim, the finding that it proves (None if the claim does not follow from the records),
    and how many records it has. Raises UsageError for a file that is none."""
    claim, exhibits = read_proof(path)
    return claim, follows(claim, exhibits), len(exhibits)


def is_proof_file(path: Path) -> bool:
    """True if the first line is a claim. False for what cannot be read."""
    try:
        with path.open("rb") as file:
            return _claim_line(file.readline(MAX_CLAIM_BYTES)) is not None
    except OSError:
        return False


def _claim_line(line: bytes) -> ClaimLine | None:
    if len(line) > MAX_CLAIM_BYTES:
        return None
    try:
        claim = msgspec.json.decode(line, type=ClaimLine)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return claim if claim.type == PROOF_TYPE else None
