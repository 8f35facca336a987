"""What stands in tests/vectors/merkle.json and log.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from p2pgrid.proto.checkpoint import cosign
from p2pgrid.proto.fork import prove_fork_by_tree
from p2pgrid.proto.inclusion import InclusionProof, LogProof, log_entry
from p2pgrid.proto.merkle import consistency_proof, inclusion_proof, leaf_hash, prefix_proof
from p2pgrid.proto.note import NoteKey
from p2pgrid.proto.tiles import ENTRIES, Tile, encode_bundle, root_of_hashes
from p2pgrid.proto.witness import AddCheckpoint, cosigned_answer
from tests.factories import CLIENT, PROVIDER, digest
from tests.proto.log_refusals import refused_forks, refused_inclusion, refused_notes, refused_paths
from tests.proto.trees import LEAF_INPUTS, checkpoint_of, hash_at_of_entries, tree_hash

COSIGNED_S = 1_800_000_000


def merkle_vectors() -> dict[str, Any]:
    """The reference tree of Certificate Transparency with every proof in it."""
    hash_at = hash_at_of_entries(LEAF_INPUTS)
    sizes = range(len(LEAF_INPUTS) + 1)
    return {
        "entries": [one.hex() for one in LEAF_INPUTS],
        "leaf_hashes": [leaf_hash(one).hex() for one in LEAF_INPUTS],
        "roots": [tree_hash(LEAF_INPUTS[:size]).hex() for size in sizes],
        "inclusion": [
            {"index": index, "size": size, "proof": _hex(inclusion_proof(hash_at, index, size))}
            for size in sizes
            for index in range(size)
        ],
        "consistency": [
            {"old": old, "new": new, "proof": _hex(consistency_proof(hash_at, old, new))}
            for new in sizes
            for old in range(new + 1)
        ],
        "refused_inclusion": refused_inclusion(),
        "prefix": [
            {"old": old, "new": new, "proof": _hex(prefix_proof(hash_at, old, new))}
            for new in sizes
            for old in range(1, new)
        ],
    }


def log_vectors() -> dict[str, Any]:
    """A log of eleven records: entries, checkpoints, proofs in every form, a witness's dialogue, a fork."""
    salts, ids = ([digest(f"{name} {number}") for number in range(11)] for name in ("salt", "record"))
    entries = [log_entry(salt, record) for salt, record in zip(salts, ids, strict=True)]
    forked = [*entries[:6], *(digest(f"forked {number}") for number in range(7))]
    hash_at, whole, old = hash_at_of_entries(entries), checkpoint_of(entries), checkpoint_of(entries[:6])
    inclusion = InclusionProof(
        record_id=ids[3], salt=salts[3], leaf_index=3, tree_size=11, hashes=inclusion_proof(hash_at, 3, 11)
    )
    cosigned = whole.cosigned(cosign(whole, CLIENT, COSIGNED_S))
    proof = LogProof(inclusion, cosigned.note)
    request = AddCheckpoint(6, consistency_proof(hash_at, 6, 11), whole.note.to_bytes())
    fork = prove_fork_by_tree(whole, checkpoint_of(forked), hash_at_of_entries(forked))
    assert fork is not None
    return {
        "log_seed": PROVIDER.expose_seed().hex(),
        "witness_seed": CLIENT.expose_seed().hex(),
        "vkey": str(NoteKey(whole.origin, PROVIDER.public_key)),
        "records": [
            {"record_id": r.hex(), "salt": s.hex(), "entry": e.hex(), "leaf_hash": leaf_hash(e).hex()}
            for r, s, e in zip(ids, salts, entries, strict=True)
        ],
        "checkpoint_of_6": old.note.to_bytes().decode(),
        "checkpoint_of_11": whole.note.to_bytes().decode(),
        "cosigned_at": COSIGNED_S,
        "cosigned_checkpoint": cosigned.note.to_bytes().decode(),
        "inclusion_proof": inclusion.to_bytes().hex(),
        "tlog_proof": proof.to_text(),
        "attachments": [record.to_json_line().decode() for record in proof.attachments()],
        "add_checkpoint": request.to_bytes().decode(),
        "add_checkpoint_answer": cosigned_answer(whole, CLIENT, COSIGNED_S).body.decode(),
        "fork_proof": fork.to_json().decode(),
        "fork_in_one_size": replace(fork, larger=checkpoint_of(forked[:11]), hashes=()).to_json().decode(),
        "refused": {
            "notes": refused_notes(whole),
            "forks": refused_forks(whole, fork),
            "tile_paths": refused_paths(),
        },
        "full_tile": _full_tile(),
        "tile_paths": {
            one.path: [one.level, one.index, one.width]
            for one in (Tile(0, 0), Tile(0, 1234067), Tile(1, 17, 3), Tile(ENTRIES, 999, 255), Tile(ENTRIES, 1000))
        },
    }


def _full_tile() -> dict[str, str]:
    """The first tile of a log of 256 entries, its bundle of entries, and the root over both."""
    entries = [digest(f"entry {number}") for number in range(256)]
    tile = b"".join(leaf_hash(entry) for entry in entries)
    return {
        "tile/0/000": tile.hex(),
        "tile/entries/000": encode_bundle(entries).hex(),
        "root": root_of_hashes(tile).hex(),
    }


def _hex(proof: tuple[bytes, ...]) -> list[str]:
    return [one.hex() for one in proof]
