"""A node that is killed while it sells and logs: no checkpoint that it showed is contradicted, no record lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.checkpoint import SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.merkle import verify_consistency
from tests.factories import PROVIDER
from tests.log.rig import open_store, running_log

pytestmark = pytest.mark.process
ROUNDS = 6


def killed_after(folder: Path, number: int, pause_s: float) -> list[SignedCheckpoint]:
    """What a node has shown before SIGKILL met it: that comes so long after its third checkpoint, or later."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.log.growing_node", str(folder), str(number)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"ready\n"
        # What it began with may be the first; the second has grown, however slow the machine is.
        lines = [process.stdout.readline().rstrip() for _ in range(2)]
        time.sleep(pause_s)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().split(b"\n")[:-1]
    return [verify_checkpoint(bytes.fromhex(line.decode()), PROVIDER.public_key) for line in lines]


async def test_it_never_forks_and_forgets_nothing(tmp_path: Path) -> None:
    rng, shown = random.Random(5), list[SignedCheckpoint]()
    for number in range(ROUNDS):
        shown += killed_after(tmp_path, number, rng.uniform(0.05, 0.5))
        with closing(open_store(tmp_path)) as store:
            assert store.size >= max(one.size for one in shown)
            for one in shown:
                assert store.root(one.size) == one.root
    assert len({one.size for one in shown}) > ROUNDS
    ledger = SqliteLedger.open(tmp_path / "ledger.sqlite")
    async with running_log(tmp_path, ledger) as log:
        last = log.checkpoint
        assert last is not None
        for one in random.Random(6).sample(shown, min(len(shown), 20)):
            proof = log.reader.consistency(one.size, last.size)
            verify_consistency(one.size, last.size, proof, one.root, last.root)
        expected = [one.record_id for one in ledger.loggable(PROVIDER.public_key.peer_id)]
        assert len(expected) == last.size == len(set(expected))
        assert not log.reader.missing(expected[-500:])
    await ledger.aclose()
