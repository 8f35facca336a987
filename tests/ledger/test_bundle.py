"""Bundles: written whole or not at all, read whatever they hold."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, LocalError, UsageError
from p2pgrid.ledger.bundle import MAX_LINE_BYTES, MAX_LINES_BEFORE_FIRST_RECORD, read_bundle, write_bundle
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Record
from tests.factories import Dealings

RECORDS = [signed.record for signed in Dealings().chain(3)]
LINES = [record.to_json_line() + b"\n" for record in RECORDS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bundle.jsonl"


async def test_a_ledger_comes_back_from_its_bundle(path: Path, tmp_path: Path) -> None:
    ledger = SqliteLedger.open(tmp_path / "ledger.sqlite")
    await ledger.append(*Dealings().chain(3))
    assert write_bundle(path, ledger.records()) == len(RECORDS)
    await ledger.aclose()
    assert list(read_bundle(path)) == list(enumerate(RECORDS, start=1))


def test_it_is_a_record_a_line_for_its_owner_alone(path: Path) -> None:
    write_bundle(path, RECORDS)
    assert path.read_bytes() == b"".join(LINES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_export_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    path.write_bytes(b"old\n")

    def failing() -> Iterator[Record]:
        yield RECORDS[0]
        raise RuntimeError("the reader of the ledger failed")

    with pytest.raises(RuntimeError):
        write_bundle(path, failing())
    assert path.read_bytes() == b"old\n"
    assert list(path.parent.iterdir()) == [path]


LIMITED = """
import resource, sys
from pathlib import Path
from p2pgrid.errors import LocalError
from p2pgrid.ledger.bundle import write_bundle
from tests.factories import Dealings
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write_bundle(Path(sys.argv[1]), (s.record for s in Dealings().chain(20)))
except LocalError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_takes_no_more(path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert list(path.parent.iterdir()) == []


def test_where_a_bundle_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist.*Create it"):
        write_bundle(tmp_path / "nowhere" / "bundle.jsonl", RECORDS)
    with pytest.raises(UsageError, match="is a folder"):
        write_bundle(tmp_path, RECORDS)
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "bundle.jsonl", RECORDS)


def test_a_bad_line_is_named_and_the_rest_is_read(path: Path) -> None:
    path.write_bytes(LINES[0] + b"rubbish\n" + LINES[1] + b"\n" + b'{"type": 1}\n' + LINES[2])
    lines = list(read_bundle(path))
    assert [number for number, _ in lines] == [1, 2, 3, 5, 6]
    assert [type(item) for _, item in lines] == [Record, InvalidRecord, Record, InvalidRecord, Record]
    bad = lines[1][1]
    assert isinstance(bad, InvalidRecord) and bad.code == "malformed"


def test_bad_lines_before_the_first_record_are_named_too(path: Path) -> None:
    path.write_bytes(b"rubbish\n" * 3 + LINES[0])
    assert [type(item) for _, item in read_bundle(path)] == [InvalidRecord] * 3 + [Record]


def test_a_last_line_cut_off(path: Path) -> None:
    path.write_bytes(LINES[0] + LINES[1][:-20])
    (_, whole), (number, cut) = read_bundle(path)
    assert whole == RECORDS[0]
    assert isinstance(cut, InvalidRecord)
    assert (number, cut.code) == (2, "malformed")
    assert "cut off" in str(cut)


def test_a_last_line_without_its_line_feed_is_whole(path: Path) -> None:
    path.write_bytes(LINES[0] + LINES[1].rstrip(b"\n"))
    assert [item for _, item in read_bundle(path)] == RECORDS[:2]


def test_line_ends_of_another_system(path: Path) -> None:
    path.write_bytes(b"".join(line.replace(b"\n", b"\r\n") for line in LINES))
    assert [item for _, item in read_bundle(path)] == RECORDS


@pytest.mark.parametrize("length", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 5 * MAX_LINE_BYTES])
def test_a_line_that_is_too_long_is_passed_over(path: Path, length: int) -> None:
    path.write_bytes(LINES[0] + b"x" * (length - 1) + b"\n" + LINES[1])
    first, (number, bad), third = read_bundle(path)
    assert (first, third) == ((1, RECORDS[0]), (3, RECORDS[1]))
    assert isinstance(bad, InvalidRecord)
    assert (number, bad.code) == (2, "malformed" if length == MAX_LINE_BYTES else "oversize")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n\n  \n", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10, "no line of it is a record"),
        (b"{}\n", "no line of it is a record"),
        (b"[" * 100_000, "no line of it is a record"),
        (b"line\n" * 1000, f"none of its first {MAX_LINES_BEFORE_FIRST_RECORD} lines is a record"),
        (b"\0" * (3 * MAX_LINE_BYTES), "no line of it is a record"),
    ],
)
def test_what_is_no_bundle(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_bundle(path)
    assert f"is no bundle: {why}" in str(caught.value)
    assert "One JSON object a line was expected" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for unreadable in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_bundle(unreadable)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_file_without_an_end() -> None:
    with pytest.raises(UsageError, match="no line of it is a record"):
        read_bundle(Path("/dev/zero"))


def test_memory_stays_flat_while_reading(path: Path) -> None:
    path.write_bytes(b"".join(LINES) * 200)
    tracemalloc.start()
    count = sum(1 for _ in read_bundle(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200 * len(LINES)
    assert peak < path.stat().st_size / 2


@given(content=st.binary(max_size=2000), at=st.integers(0, len(LINES)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_input_breaks_the_reader(path: Path, content: bytes, at: int) -> None:
    path.write_bytes(b"".join(LINES[:at]) + content + b"\n" + b"".join(LINES[at:]))
    items = [item for _, item in read_bundle(path)]
    assert [item for item in items if isinstance(item, Record)][:at] == RECORDS[:at]
    assert items[len(items) - (len(RECORDS) - at) :] == RECORDS[at:]


@given(position=st.integers(0, len(LINES[2]) - 1), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_one_flipped_bit_harms_one_line(path: Path, position: int, bit: int) -> None:
    line = bytearray(LINES[2])
    line[position] ^= 1 << bit
    path.write_bytes(b"".join([*LINES[:2], bytes(line), *LINES[3:]]))
    items = [item for _, item in read_bundle(path)]
    assert items[:2] == RECORDS[:2]
    assert items[-len(RECORDS[4:]) :] == RECORDS[4:]
    assert RECORDS[2] not in items or bytes(line) == LINES[2]
