"""tests/vectors is what this code makes, and reads back as what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.record import parse_json_line, parse_message, parse_record
from tests.proto.vectors import FOLDER, all_vectors, to_text

VECTORS = all_vectors()


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_the_file_is_current(name: str) -> None:
    assert (FOLDER / name).read_text() == to_text(VECTORS[name]), "run scripts/make_vectors, and say why it changed"


def test_no_file_is_left_over() -> None:
    assert {p.name for p in FOLDER.glob("*.json")} >= set(VECTORS)


@pytest.mark.parametrize("vector", json.loads((FOLDER / "records.json").read_text()), ids=lambda v: v["message"])
def test_records_read_back(vector: dict[str, Any]) -> None:
    record = parse_record(bytes.fromhex(vector["wire"]))
    assert record == parse_json_line(vector["text"].encode())
    assert (record.id.hex(), record.payload.hex()) == (vector["id"], vector["payload"])
    message = parse_message(record, MESSAGE_TYPES[record.payload_type])
    assert type(message).__name__ == vector["message"]


def test_one_of_each_message() -> None:
    assert sorted(v["message"] for v in VECTORS["records.json"]) == sorted(t.__name__ for t in MESSAGE_TYPES.values())
