"""What bundles carry beside signed records: checkpoints of logs and proofs of inclusion (docs/spec/log.md, section 4).

An attachment is a line without signatures. A checkpoint says itself who signed it; a proof says nothing until a
checkpoint bears it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.findings import Blemish, Docket, Draft, Place
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE, InclusionProof, parse_inclusion_proof
from p2pgrid.proto.merkle import leaf_hash, root_from_inclusion
from p2pgrid.proto.record import Record

ATTACHMENT_TYPES: Final = frozenset({CHECKPOINT_TYPE, INCLUSION_PROOF_TYPE})


@dataclass(slots=True)
class HeldCheckpoint:
    """A checkpoint that the log named in it signed, and where it stands."""

    record_id: bytes
    checkpoint: SignedCheckpoint
    places: list[Place] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ProofFact:
    """What a proof of inclusion in its one form says, without its hashes; borne out by nothing yet."""

    record_id: bytes
    """Of the record that it is for."""
    entry: bytes
    leaf_index: int
    tree_size: int
    root: bytes
    """That it leads to; empty if to none."""
    why: str
    """Why it leads to none."""


@dataclass(slots=True)
class HeldProof:
    """A proof, and where it stands."""

    record_id: bytes
    """Of the attachment; what it proves is in `proof`."""
    proof: ProofFact
    places: list[Place] = field(default_factory=list)


class Attachments:
    """Every attachment that is sound by itself; what is not is put on the docket."""

    def __init__(
        self,
        docket: Docket,
        is_one_of_many: Callable[[Place, str, str], bool],
        known: Mapping[bytes, ProofFact] | None = None,
    ) -> None:
        """`known`: proofs that were read before, by the attachment's id.

        `is_one_of_many` is told of each line that does not hold; True if it is only counted."""
        self._docket: Final = docket
        self._is_one_of_many: Final = is_one_of_many
        self._known: Final = known or {}
        self.checkpoints: Final[dict[bytes, HeldCheckpoint]] = {}
        """By the attachment's id."""
        self.proofs: Final[dict[bytes, HeldProof]] = {}

    def take(self, place: Place, record: Record) -> None:
        """One line. `malformed`, `oversize`, `not-canonical`; of checkpoints what `verify_checkpoint` raises too."""
        record_id = record.id
        known = self.checkpoints.get(record_id) or self.proofs.get(record_id)
        try:
            if record.signatures:
                raise InvalidRecord("malformed", "an attachment has no signatures of its own.")
            if known is None:
                known = self._read(record_id, record)
        except InvalidRecord as error:
            if self._is_one_of_many(place, error.code, record.payload_type):
                return
            sentence = f"This {'proof' if record.payload_type == INCLUSION_PROOF_TYPE else 'checkpoint'} does not hold:"
            draft = Draft(error.code, f"{sentence} {error.message}", (place,), record_id=record_id)
            self._docket.add(draft)
            self._docket.add_blemish(Blemish(draft, record.payload_type))
            return
        known.places.append(place)

    def _read(self, record_id: bytes, record: Record) -> HeldCheckpoint | HeldProof:
        if record.payload_type == CHECKPOINT_TYPE:
            checkpoint = HeldCheckpoint(record_id, verify_checkpoint(record.payload))
            return self.checkpoints.setdefault(record_id, checkpoint)
        fact = self._known.get(record_id) or _fact_of(parse_inclusion_proof(record.payload))
        return self.proofs.setdefault(record_id, HeldProof(record_id, fact))


def _fact_of(proof: InclusionProof) -> ProofFact:
    entry, root, why = proof.entry, b"", ""
    try:
        root = root_from_inclusion(leaf_hash(entry), proof.leaf_index, proof.tree_size, proof.hashes)
    except InvalidRecord as error:
        why = error.message
    return ProofFact(proof.record_id, entry, proof.leaf_index, proof.tree_size, root, why)
