"""Proof files: written for what convinces, verified alone, and worth nothing once anything in them is changed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner

from p2pgrid.audit.check import audit_files
from p2pgrid.audit.engine import Sizes, Source, run_engine
from p2pgrid.audit.proof_file import PROOF_TYPE, verify_proof, write_proofs
from p2pgrid.cli.audit import audit
from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Record
from p2pgrid.proto.verdict import audit_records
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.audit_cases import overcharged
from tests.proto.chains import Dealings, LinesBundle, key

CLAIM = b'{"type":"/p2pgrid/proof/1","code":"x","party":"both","peer_ids":[],"record_id":"z"}'
SMALL = Sizes(chunk_bytes=3000, part_bytes=8000, orders_a_block=2, links_a_group=3)


@cache
def convincing_cases() -> tuple[AuditCase, ...]:
    return tuple(
        case for case in CASES if any(f.convinces for f in audit_records(case.build(), **case.options).findings)
    )


def written(bundles: list[LinesBundle], folder: Path) -> list[Path]:
    paths = [folder / bundle.source for bundle in bundles]
    for path, bundle in zip(paths, bundles, strict=True):
        path.write_bytes(b"\n".join(bundle.lines) + b"\n")
    return paths


_lines: dict[str, tuple[bytes, ...]] = {}


def proof_lines(case: AuditCase) -> tuple[bytes, ...]:
    """The one proof file that the engine's findings of a case give."""
    if case.name not in _lines:
        _lines[case.name] = _proof_lines(case)
    return _lines[case.name]


def _proof_lines(case: AuditCase) -> tuple[bytes, ...]:
    with TemporaryDirectory() as name:
        folder, bundles, kept = Path(name), case.build(), list[Record]()
        sources = [Source(p, b.source, b.side) for p, b in zip(written(bundles, folder), bundles, strict=True)]
        verdict = run_engine(sources, 1, lambda *_: None, SMALL, now_ms=case.options.get("now_ms"), keep=kept.append)
        files, without = write_proofs(folder / "proofs", verdict.findings, kept, lambda *_: None)
        assert not without
        (file,) = files
        assert file.name.startswith(f"{case.code}-{case.party}-")
        return tuple(file.read_bytes().splitlines())


def proves(lines: list[bytes], folder: Path) -> bool:
    path = folder / "proof.jsonl"
    path.write_bytes(b"\n".join(lines))
    return verify_proof(path)[1] is not None


def params(case: AuditCase) -> str:
    return f"{case.code}-{case.name}"


@pytest.mark.parametrize("case", convincing_cases(), ids=params)
def test_each_t_finding_is_proven_by_its_file_alone(case: AuditCase, tmp_path: Path) -> None:
    path = tmp_path / "proof.jsonl"
    path.write_bytes(b"\n".join(proof_lines(case)))
    result = CliRunner().invoke(audit, ["--proof", str(path)])
    assert result.exit_code == 0
    (finding,) = audit_records(case.build(), **case.options).findings
    said = f"Proves that {' '.join((case.party.value, *finding.peer_ids))} is at fault: {case.code}. "
    assert result.stdout.startswith(said)


@pytest.mark.parametrize("case", convincing_cases(), ids=params)
def test_no_record_can_be_taken_away(case: AuditCase, tmp_path: Path) -> None:
    first, *records = proof_lines(case)
    for index in range(len(records)):
        assert not proves([first, *records[:index], *records[index + 1 :]], tmp_path)


@pytest.mark.parametrize("case", convincing_cases(), ids=params)
def test_the_claim_cannot_name_anybody_else(case: AuditCase, tmp_path: Path) -> None:
    first, *records = proof_lines(case)
    claim = json.loads(first)
    for name in ("provider", "client", "operator", "nobody"):
        peer_id = key(name).public_key.peer_id
        if peer_id in claim["peer_ids"]:
            continue
        for party in (claim["party"], "provider", "client", "both", "operator", "unclear"):
            other = {**claim, "party": party, "peer_ids": [peer_id]}
            assert not proves([json.dumps(other).encode(), *records], tmp_path)


def test_every_code_that_convinces_has_a_proof() -> None:
    from p2pgrid.proto.codes import CODES

    assert {code for code, each in CODES.items() if each.convinces} <= {case.code for case in convincing_cases()}


def test_surplus_and_repeated_records_change_nothing(tmp_path: Path) -> None:
    grid, other = overcharged(), Dealings(client=key("other"), nonce="x")
    other.deal()
    paths = written(grid, tmp_path)
    kept: list[Record] = []
    verdict = audit_files(paths, keep=kept.append)
    (file,), _ = write_proofs(tmp_path / "proofs", verdict.findings, kept, lambda *_: None)
    lines = file.read_bytes().splitlines()
    everything = [
        line for bundle in (*grid, LinesBundle("", [], None, tuple(other.bundles()[0]))) for line in bundle.lines
    ]
    assert proves([*lines, *lines[1:], b"", *everything], tmp_path)


def test_a_proof_that_does_not_prove_is_exit_code_1(tmp_path: Path) -> None:
    case = next(case for case in convincing_cases() if case.code == "wrong-amount")
    first, *records = proof_lines(case)
    path = tmp_path / "proof.jsonl"
    path.write_bytes(b"\n".join([first, *records[1:]]))
    result = CliRunner().invoke(audit, ["--proof", str(path), "--json"])
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert (shown["proves"], shown["code"], shown["sentence"]) == (False, "wrong-amount", "")
    claim = {**json.loads(first), "code": "\x1b[2Jguilty", "peer_ids": ["\x1b[31m" + "x" * 200]}
    path.write_bytes(b"\n".join([json.dumps(claim).encode(), *records]))
    result = CliRunner().invoke(audit, ["--proof", str(path)])
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith("Proves nothing: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CLAIM + b"\n" + b"[" * 10**6, "line 2"),
        (CLAIM + b"\nhi\n", "is no record"),
        (None, "No such file"),
        (b"", "is no proof file"),
        (b"\x00\xff" * 9000, "is no proof file"),
        (b'{"type":"/p2pgrid/receipt/1","payload":"","signatures":[]}\n', "is no proof file"),
        (b'{"type":"/p2pgrid/proof/2","code":"x","party":"both","peer_ids":[],"record_id":""}\n', "is no proof file"),
        (b'{"type":"/p2pgrid/proof/1","code":"x","party":"me","peer_ids":[],"record_id":""}\n', "is no proof file"),
        (
            b'{"type":"/p2pgrid/proof/1","code":"x","party":"both","peer_ids":[],"record_id":""}\n' + b"[" * 10**6,
            "line 2",
        ),
    ],
)
def test_what_is_no_proof_file(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "proof.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as raised:
        verify_proof(path)
    assert raised.value.exit_code == 2


def test_a_proof_is_not_audited_as_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "provider.jsonl"
    path.write_bytes(b"\n".join(proof_lines(convincing_cases()[0])))
    with pytest.raises(UsageError, match="is a proof file"):
        audit_files([path])


def test_the_command_writes_proofs(tmp_path: Path) -> None:
    paths = written(overcharged(), tmp_path)
    result = CliRunner().invoke(audit, [*map(str, paths), "--proofs", str(tmp_path / "proofs")])
    assert result.exit_code == 1
    (file,) = (tmp_path / "proofs").iterdir()
    assert f"Wrote {file}" in result.stdout
    claim, *records = map(json.loads, file.read_bytes().splitlines())
    assert claim["type"] == PROOF_TYPE
    assert [record["type"].split("/")[2] for record in records] == ["offer", "channel", "order", "receipt"]
    with pytest.raises(UsageError, match="cannot be made"):
        CliRunner().invoke(audit, [*map(str, paths), "--proofs", str(tmp_path / "a" / "b")], catch_exceptions=False)
