"""What stands in tests/vectors/audit.json: for each code of the audit the bundles that give it, and the verdict."""

from __future__ import annotations

from typing import Any

from p2pgrid.proto.codes import CODES
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.log_case import LogDemands
from p2pgrid.proto.verdict import ChannelSummary, audit_records
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.chains import LinesBundle

_AMOUNTS = ("amount_pico", "countersigned_pico", "credited_pico", "disputed_pico", "owed_pico")
_COUNTS = ("orders", "receipts", "countersigned", "prompt_tokens", "cached_tokens", "output_tokens")


def audit_vectors() -> list[dict[str, Any]]:
    """One vector for each code, in the order of docs/spec/audit.md: its smallest case."""
    smallest: dict[str, tuple[int, AuditCase]] = {}
    for case in CASES:
        size = sum(len(line) for bundle in case.build() for line in bundle.lines)
        if case.code not in smallest or size < smallest[case.code][0]:
            smallest[case.code] = size, case
    return [_vector(smallest[code][1]) for code in CODES if code in smallest]


def _vector(case: AuditCase) -> dict[str, Any]:
    bundles = case.build()
    lines = list(dict.fromkeys(line for bundle in bundles for line in bundle.lines))
    verdict = audit_records(case.build(), **case.options)
    demands: LogDemands = case.options.get("log_demands", LogDemands())
    return {
        "code": case.code,
        "case": case.name,
        "weight": CODES[case.code].weight,
        "asked": {
            "at_ms": case.options.get("now_ms"),
            "log_proofs": demands.proofs,
            "log_witnesses": demands.witnesses,
        },
        "lines": [line.decode() for line in lines],
        "bundles": [_bundle(bundle, lines) for bundle in bundles],
        "verdict": {
            "clean": verdict.clean,
            "at_ms": verdict.at_ms,
            "findings": [_finding(finding) for finding in verdict.findings],
            "notes": [_finding(note) for note in verdict.notes],
            "channels": [_channel(channel) for channel in verdict.channels],
        },
    }


def _bundle(bundle: LinesBundle, lines: list[bytes]) -> dict[str, Any]:
    return {
        "source": bundle.source,
        "side": bundle.side,
        "lines": " ".join(str(lines.index(line)) for line in bundle.lines),
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
