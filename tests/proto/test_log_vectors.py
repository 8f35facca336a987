"""tests/vectors/log.json reads back, and every proof in it holds."""

from __future__ import annotations

import json

from p2pgrid.proto.checkpoint import cosignatures_of, verify_checkpoint
from p2pgrid.proto.fork import verify_fork
from p2pgrid.proto.inclusion import parse_inclusion_proof, parse_log_proof
from p2pgrid.proto.note import parse_note_key
from p2pgrid.proto.record import parse_json_line
from p2pgrid.proto.tiles import parse_tile_path
from p2pgrid.proto.witness import AddCheckpoint, judge, open_request
from tests.factories import CLIENT, PROVIDER
from tests.proto.vectors import FOLDER

SPEC = (FOLDER.parent.parent / "docs/spec/log.md").read_text()
VECTORS = json.loads((FOLDER / "log.json").read_text())


def test_checkpoints_and_proofs() -> None:
    whole = verify_checkpoint(VECTORS["cosigned_checkpoint"].encode(), PROVIDER.public_key)
    assert [(one.witness, one.time_s) for one in cosignatures_of(whole)] == [
        (CLIENT.public_key, VECTORS["cosigned_at"])
    ]
    proof = parse_log_proof(VECTORS["tlog_proof"].encode())
    assert proof.verify() == whole
    assert proof.inclusion == parse_inclusion_proof(bytes.fromhex(VECTORS["inclusion_proof"]))
    assert [parse_json_line(line.encode()) for line in VECTORS["attachments"]] == list(proof.attachments())
    assert parse_note_key(VECTORS["vkey"]).key == PROVIDER.public_key


def test_the_specifications_example_is_this_one() -> None:
    assert VECTORS["cosigned_checkpoint"] in SPEC
    assert VECTORS["tlog_proof"].split("\n\n")[0] in SPEC


def test_the_witness() -> None:
    opened = open_request(VECTORS["add_checkpoint"].encode())
    assert isinstance(opened, tuple)
    request, checkpoint = opened
    assert isinstance(request, AddCheckpoint)
    last = verify_checkpoint(VECTORS["checkpoint_of_6"].encode())
    assert judge(request, checkpoint, last).advance == checkpoint
    assert VECTORS["add_checkpoint_answer"] in VECTORS["cosigned_checkpoint"]


def test_the_forks() -> None:
    for name in ("fork_proof", "fork_in_one_size"):
        assert verify_fork(VECTORS[name].encode()).origin == f"p2pgrid/{PROVIDER.public_key.peer_id}"


def test_the_paths() -> None:
    for path, (level, index, width) in VECTORS["tile_paths"].items():
        tile = parse_tile_path(path)
        assert (tile.level, tile.index, tile.width) == (level, index, width)
