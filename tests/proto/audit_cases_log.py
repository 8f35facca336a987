"""Cases of logs, their proofs and their witnesses; see `audit_cases`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pgrid.proto.checkpoint import (
    CHECKPOINT_TYPE,
    Checkpoint,
    SignedCheckpoint,
    cosign,
    origin_of,
    sign_checkpoint,
)
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE, InclusionProof, LogProof, log_entry
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.log_case import LogDemands
from p2pgrid.proto.merkle import inclusion_proof
from p2pgrid.proto.note import Note, sign_text
from p2pgrid.proto.record import Record, Role, Signature, Signed
from tests.proto.audit_cases import C, P, both, two_receipts, vector, with_line
from tests.proto.chains import DAY_MS, Dealings, LinesBundle, bundle_of, digest, key, lines_of
from tests.proto.trees import hash_at_of_entries, tree_hash

WITNESSES = (key("witness 1"), key("witness 2"))


@dataclass
class Log:
    """One provider's log, in which anything can be entered."""

    secret: SecretKey = field(default_factory=lambda: key("provider"))
    records: list[bytes] = field(default_factory=list)
    name: str = ""

    def salt(self, index: int) -> bytes:
        return digest("salt", self.name, index)

    @property
    def entries(self) -> list[bytes]:
        return [log_entry(self.salt(i), record) for i, record in enumerate(self.records)]

    def checkpoint(self, size: int = 0, witnesses: Sequence[SecretKey] = (), seen_ms: int = 0) -> SignedCheckpoint:
        entries = self.entries[: size or None]
        bare = sign_checkpoint(len(entries), tree_hash(entries), self.secret)
        return bare.cosigned(*(cosign(bare, witness, seen_ms // 1000) for witness in witnesses))

    def proof(self, index: int, checkpoint: SignedCheckpoint, **changes: Any) -> LogProof:
        fields: dict[str, Any] = {
            "record_id": self.records[index],
            "salt": self.salt(index),
            "leaf_index": index,
            "tree_size": checkpoint.size,
            "hashes": inclusion_proof(hash_at_of_entries(self.entries[: checkpoint.size]), index, checkpoint.size),
        }
        return LogProof(InclusionProof(**{**fields, **changes}), checkpoint.note)


def log_of(grid: Dealings, name: str = "", secret: SecretKey | None = None) -> Log:
    """The log of the dealings' provider with the offer and the receipts in it."""
    ids = [grid.offer.id, *(signed.id for signed in grid.receipts)]
    return Log(secret or grid.provider, ids, name)


def attached(grid: Dealings, *attachments: Record) -> list[LinesBundle]:
    """Both bundles, with attachments in the client's."""
    return with_line(grid, lambda lines: [*lines, *(one.to_json_line() for one in attachments)])


def note_of(checkpoint: SignedCheckpoint) -> Record:
    return Record(CHECKPOINT_TYPE, checkpoint.note.to_bytes(), ())


def proved(grid: Dealings, log: Log, checkpoint: SignedCheckpoint, *indices: int) -> list[Record]:
    """The checkpoint with proofs of these leaves; of all receipts if none is named."""
    wanted = indices or range(1, len(log.records))
    return [note_of(checkpoint), *(log.proof(i, checkpoint).attachments()[1] for i in wanted)]


# -- what does not hold by itself ---------------------------------------------------------------------------------


@vector("wrong-origin", C)
def checkpoint_of_no_log_of_ours() -> list[LinesBundle]:
    grid = two_receipts()
    text = Checkpoint("example.com/log", 3, digest("root")).text()
    note = Note(text, (sign_text(text, "example.com/log", grid.provider),))
    return attached(grid, Record(CHECKPOINT_TYPE, note.to_bytes(), ()))


@vector("wrong-origin", C)
def proof_in_a_stranger_s_log() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid, secret=key("stranger"))
    return attached(grid, *proved(grid, log, log.checkpoint(), 2))


@vector("bad-signature", C)
def checkpoint_altered() -> list[LinesBundle]:
    grid = two_receipts()
    note = log_of(grid).checkpoint().note
    return attached(grid, Record(CHECKPOINT_TYPE, note.to_bytes().replace(b"\n3\n", b"\n4\n"), ()))


@vector("signature-missing", C)
def checkpoint_signed_by_another() -> list[LinesBundle]:
    grid = two_receipts()
    text = Checkpoint(origin_of(grid.provider.public_key), 3, digest("root")).text()
    note = Note(text, (sign_text(text, origin_of(key("stranger").public_key), key("stranger")),))
    return attached(grid, Record(CHECKPOINT_TYPE, note.to_bytes(), ()))


@vector("malformed", C)
def attachment_with_a_signature() -> list[LinesBundle]:
    grid = two_receipts()
    bare = note_of(log_of(grid).checkpoint())
    return attached(grid, bare.with_signature(Signature(Role.PROVIDER, grid.provider.public_key.raw, bytes(64))))


@vector("malformed", C)
def proof_that_is_none() -> list[LinesBundle]:
    return attached(two_receipts(), Record(INCLUSION_PROOF_TYPE, b"\x93\x01\x02\x03", ()))


@vector("not-canonical", C)
def proof_in_another_encoding() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    payload = log.proof(1, log.checkpoint()).inclusion.to_bytes()
    longer = b"\xdc\x00" + bytes([payload[0] & 0x0F]) + payload[1:]
    return attached(grid, note_of(log.checkpoint()), Record(INCLUSION_PROOF_TYPE, longer, ()))


@vector("bad-proof", C)
def proof_of_another_leaf() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    checkpoint = log.checkpoint()
    wrong = log.proof(1, checkpoint, record_id=grid.receipts[1].id)
    return attached(grid, *wrong.attachments())


@vector("record-missing", C)
def proof_without_its_checkpoint() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    return attached(grid, log.proof(1, log.checkpoint()).attachments()[1])


# -- forks --------------------------------------------------------------------------------------------------------


@vector("log-forked", P)
def two_roots_of_one_size() -> list[LinesBundle]:
    grid = two_receipts()
    return attached(grid, *(note_of(log_of(grid, name).checkpoint()) for name in ("shown", "hidden")))


@vector("log-forked", P)
def two_entries_in_one_place() -> list[LinesBundle]:
    grid = two_receipts()
    shown, hidden = log_of(grid, "shown"), log_of(grid, "hidden")
    of_two, of_three = hidden.checkpoint(2), shown.checkpoint()
    return attached(grid, *proved(grid, hidden, of_two, 1), *proved(grid, shown, of_three, 1))


@vector("log-forked", C)
def client_s_log_forked() -> list[LinesBundle]:
    grid = two_receipts()
    logs = [log_of(grid, name, grid.client) for name in ("shown", "hidden")]
    return attached(grid, *(note_of(log.checkpoint()) for log in logs))


# -- time ---------------------------------------------------------------------------------------------------------


@vector("after-checkpoint", P)
def receipt_of_tomorrow() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    return attached(grid, *proved(grid, log, log.checkpoint(0, WITNESSES, grid.now_ms - DAY_MS), 2))


# -- what is demanded ---------------------------------------------------------------------------------------------

ALL_PROOFS = LogDemands(proofs=True)
TWO_WITNESSES = LogDemands(witnesses=2)


@vector("not-logged", P, log_demands=ALL_PROOFS)
def receipt_without_a_proof() -> list[LinesBundle]:
    grid = Dealings()
    for _ in range(4):
        grid.deal(output=10)
    log = log_of(grid)
    return attached(grid, *proved(grid, log, log.checkpoint(), 1, 3))


@vector("not-logged", P, log_demands=ALL_PROOFS)
def no_proof_at_all() -> list[LinesBundle]:
    return both(two_receipts())


@vector("bad-proof", C, log_demands=ALL_PROOFS)
def spoilt_proof_explains_the_missing_one() -> list[LinesBundle]:
    grid = two_receipts()
    log = log_of(grid)
    first, second = (log.proof(i, log.checkpoint()) for i in (1, 2))
    spoilt = msgspec.structs.replace(second.inclusion, salt=digest("another"))
    return attached(grid, *first.attachments(), Record(INCLUSION_PROOF_TYPE, spoilt.to_bytes(), ()))


@vector("too-few-witnesses", P, log_demands=TWO_WITNESSES)
def one_witness_where_two_are_wanted() -> list[LinesBundle]:
    grid = two_receipts()
    cosigners = (WITNESSES[0], WITNESSES[0], grid.provider)  # its own word counts for nothing
    return attached(grid, note_of(log_of(grid).checkpoint(0, cosigners, grid.now_ms)))


@vector("too-few-witnesses", P, log_demands=TWO_WITNESSES)
def no_checkpoint_to_witness() -> list[LinesBundle]:
    return both(two_receipts())


@vector("checkpoint-stale", P, log_demands=TWO_WITNESSES)
def witnessed_long_ago() -> list[LinesBundle]:
    grid = two_receipts()
    return attached(grid, note_of(log_of(grid).checkpoint(0, WITNESSES, grid.now_ms - 2 * DAY_MS)))


def logged_dealings() -> tuple[Dealings, list[Record]]:
    """Honest dealings, a proof for each receipt and the offer, two witnesses."""
    grid = two_receipts()
    log = log_of(grid)
    early, late = log.checkpoint(2, WITNESSES[:1], grid.now_ms), log.checkpoint(0, WITNESSES, grid.now_ms)
    return grid, [*proved(grid, log, early, 0, 1), *proved(grid, log, late, 0, 1, 2)]


def one_side(grid: Dealings, attachments: Sequence[Record]) -> list[LinesBundle]:
    """The client's bundle alone, with attachments."""
    signed: list[Signed[Any]] = grid.client_has
    return [bundle_of([*lines_of(signed), *(one.to_json_line() for one in attachments)], Role.CLIENT)]
