"""tests/vectors is what this code makes, and reads back as what it says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from p2pgrid.proto.codes import CODES
from p2pgrid.proto.log_case import LogDemands
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.record import Role, parse_json_line, parse_message, parse_record
from p2pgrid.proto.verdict import audit_records
from tests.proto.audit_stories import STORIES, Story
from tests.proto.chains import bundle_of
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


AUDIT = json.loads((FOLDER / "audit.json").read_text())


def test_there_is_a_verdict_for_every_code() -> None:
    verdicts = [case["verdict"] for case in AUDIT["cases"]]
    assert {one["code"] for verdict in verdicts for one in (*verdict["findings"], *verdict["notes"])} == set(CODES)
    assert sum(verdict["clean"] for verdict in verdicts) > len(STORIES) / 2


def line_of(text: str) -> bytes:
    """A line; `x*300000` is so many letters."""
    letter, _, count = text.partition("*")
    return letter.encode() * int(count) if count.isdecimal() else text.encode()


@pytest.mark.parametrize("vector", AUDIT["cases"], ids=lambda v: v["case"])
def test_the_verdict_follows_from_the_lines_alone(vector: dict[str, Any]) -> None:
    bundles = []
    for bundle in vector["bundles"]:
        lines = [line_of(AUDIT["lines"][int(index)]) for index in bundle["lines"].split()]
        bundles.append(bundle_of(lines, Role(bundle["side"]) if bundle["side"] else None, bundle["source"]))
    asked = vector["asked"]
    demands = LogDemands(proofs=asked["log_proofs"], witnesses=asked["log_witnesses"])
    verdict = audit_records(bundles, now_ms=asked["at_ms"], log_demands=demands)
    expected = vector["verdict"]
    assert (verdict.clean, verdict.at_ms) == (expected["clean"], expected["at_ms"])
    for kind in ("findings", "notes", "channels"):
        said = json.loads(msgspec.json.encode(getattr(verdict, kind)))
        assert [{k: one[k] for k in row} for one, row in zip(said, expected[kind], strict=True)] == expected[kind]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_story_has_its_codes_and_no_others(story: Story) -> None:
    verdict = audit_records(story.build(), **story.options)
    assert sorted(one.code for one in verdict.findings) == sorted(story.findings), verdict.findings
    assert sorted(one.code for one in verdict.notes) == sorted(story.notes), verdict.notes


def test_one_of_each_message() -> None:
    assert sorted(v["message"] for v in VECTORS["records.json"]) == sorted(t.__name__ for t in MESSAGE_TYPES.values())
