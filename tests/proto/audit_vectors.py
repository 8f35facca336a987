"""What stands in tests/vectors/audit.json: bundles, and the verdict of an audit of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from p2pgrid.proto.channel_summary import ChannelSummary
from p2pgrid.proto.codes import CODES
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands
from p2pgrid.proto.verdict import audit_records
from tests.proto.all_audit_cases import CASES
from tests.proto.audit_stories import STORIES
from tests.proto.chains import LinesBundle

MAX_LINE_BYTES: Final = 200_000
"""Longer lines are written as a letter and a count."""
_AMOUNTS = ("amount_pico", "countersigned_pico", "credited_pico", "disputed_pico", "owed_pico")
_COUNTS = ("orders", "receipts", "countersigned", "prompt_tokens", "cached_tokens", "output_tokens")


def audit_vectors() -> dict[str, Any]:
    """Every case of the audit, in the order of the codes of docs/spec/audit.md, then the stories."""
    cases = sorted(CASES, key=lambda case: list(CODES).index(case.code))
    told: list[tuple[str, Callable[[], list[LinesBundle]], dict[str, Any]]] = [
        *((f"{case.code}: {case.name.replace('-', ' ')}", case.build, case.options) for case in cases),
        *((story.name, story.build, story.options) for story in STORIES),
    ]
    built = [(name, build(), options) for name, build, options in told]
    lines = list(dict.fromkeys(line for _, bundles, _ in built for bundle in bundles for line in bundle.lines))
    places = {line: str(index) for index, line in enumerate(lines)}
    return {
        "lines": [line.decode() if len(line) < MAX_LINE_BYTES else _long(line) for line in lines],
        "cases": [_vector(name, bundles, options, places) for name, bundles, options in built],
    }


def _vector(name: str, bundles: list[LinesBundle], options: dict[str, Any], places: dict[bytes, str]) -> dict[str, Any]:
    demands: LogDemands = options.get("log_demands", NO_DEMANDS)
    verdict = audit_records(bundles, **options)
    return {
        "case": name,
        "asked": {
            "at_ms": options.get("now_ms"),
            "log_proofs": demands.proofs,
            "log_witnesses": demands.witnesses,
        },
        "bundles": [_bundle(bundle, places) for bundle in bundles],
        "verdict": {
            "clean": verdict.clean,
            "at_ms": verdict.at_ms,
            "findings": [_finding(finding) for finding in verdict.findings],
            "notes": [_finding(note) for note in verdict.notes],
            "channels": [_channel(channel) for channel in verdict.channels],
        },
    }


def _long(line: bytes) -> str:
    """A line of one letter, which is not written out."""
    assert line == line[:1] * len(line)
    return f"{line[:1].decode()}*{len(line)}"


def _bundle(bundle: LinesBundle, places: dict[bytes, str]) -> dict[str, Any]:
    return {
        "source": bundle.source,
        "side": bundle.side,
        "lines": " ".join(places[line] for line in bundle.lines),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "party": finding.party,
        "peer_ids": list(finding.peer_ids),
        "record_id": finding.record_id,
        "where": finding.where,
        "convinces": finding.convinces,
    }


def _channel(channel: ChannelSummary) -> dict[str, Any]:
    names = ("channel", "provider", "client", "currency", *_COUNTS, *_AMOUNTS)
    return {name: getattr(channel, name) for name in names}
