"""Bundles made to cost their reader much: what is alike is counted, and the verdict is what it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pgrid.audit.engine import Sizes
from p2pgrid.audit.report import at_fault
from p2pgrid.cli.audit import audit
from p2pgrid.proto import evidence
from p2pgrid.proto.codes import Party
from p2pgrid.proto.findings import MOST_ALIKE
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE
from p2pgrid.proto.messages import Offer, Usage
from p2pgrid.proto.record import Record, Role
from p2pgrid.proto.verdict import Verdict
from tests.audit.test_engine import SMALL, both_verdicts, three_channels
from tests.pace import slowness
from tests.proto.chains import Dealings, bundle_of, everyday_dealings

MB = 1_000_000
GARBAGE = {
    "short lines": b"a",
    "no JSON": b"{" + b"x" * 60,
    "cut off": everyday_dealings().bundles()[0][4][:-20],
    "unknown types": Record("x", b"", ()).to_json_line(),
    "empty offers": Record(Offer.payload_type, b"", ()).to_json_line(),
    "empty proofs": Record(INCLUSION_PROOF_TYPE, b"", ()).to_json_line(),
}


def count(verdict: Verdict) -> int:
    return sum(finding.count for finding in verdict.findings)


@pytest.mark.parametrize("kind", GARBAGE)
def test_lines_alike_beyond_the_first_are_one_finding(kind: str) -> None:
    lines = [*everyday_dealings().bundles()[0], *[GARBAGE[kind]] * (MOST_ALIKE + 7)]
    whole, cut = both_verdicts([bundle_of(lines, Role.PROVIDER, "provider.jsonl")])
    assert cut == whole
    assert count(whole) == MOST_ALIKE + 7
    assert len(whole.findings) == MOST_ALIKE + 1
    many = next(finding for finding in whole.findings if finding.count > 1)
    first = len(lines) - 6
    assert (many.count, many.where) == (7, f"provider.jsonl:{first}-{len(lines)}")
    assert set(at_fault(whole.findings).values()) == {MOST_ALIKE + 7}
    assert next(iter(at_fault(whole.findings)))[0] is Party.PROVIDER


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
@example(785_944)
def test_counted_or_told_one_by_one_the_verdict_is_the_same(seed: int) -> None:
    """Merged from the third on, and never merged: as many findings of each code against each party."""
    random = Random(seed)
    lines = [list(each) for each in three_channels()[:2]]
    for _ in range(random.randrange(40)):
        of = random.choice(lines)
        at = random.randrange(len(of))
        of[at : at + random.randrange(2)] = [random.choice(list(GARBAGE.values()))] * random.choice([1, 1, 5])
    bundles = [bundle_of(each, side) for each, side in zip(lines, (Role.PROVIDER, Role.CLIENT), strict=True)]
    told = []
    for most in (2, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evidence, "MOST_ALIKE", most)
            patch.setattr("p2pgrid.audit.index.MOST_ALIKE", most)
            whole, cut = both_verdicts(bundles)
        assert cut == whole
        told.append(whole)
    merged, single = told
    assert merged.clean == single.clean
    assert count(merged) == count(single) == len(single.findings)
    assert at_fault(merged.findings) == at_fault(single.findings)
    assert merged.bundles == single.bundles
    assert merged.channels == single.channels


def test_the_count_is_in_every_report(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    path.write_bytes(b"\n".join([*everyday_dealings().bundles()[1], *[b"a"] * 1234]) + b"\n")
    text = CliRunner().invoke(audit, [str(path)]).stdout
    assert text.startswith("1234 findings.")
    assert "(1234 times)" in text
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(audit, ["--json", "--html", str(page), "--proofs", str(tmp_path / "p"), str(path)])
    counts = [finding["count"] for finding in json.loads(shown.stdout)["findings"]]
    assert sorted(counts) == [*[1] * MOST_ALIKE, 1234 - MOST_ALIKE]
    assert json.loads(shown.stdout)["at_fault"][0]["findings"] == 1234
    assert "1,234" in page.read_text("utf-8")
    assert not list((tmp_path / "p").iterdir()), "an unreadable line proves nothing"


def run_on_a_megabyte(path: Path) -> tuple[float, float, str]:
    """CPU seconds, of the machine that limits are for, and MB of a process that audits the file, and what it says.

    Not `ru_maxrss`: a process that was made by a large one begins with the large one's.
    """
    code = (
        "import resource, sys; from pathlib import Path; from p2pgrid.audit import audit_files\n"
        "verdict = audit_files([Path(sys.argv[1])])\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "peak_kb = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')).split()[1]\n"
        "count = sum(finding.count for finding in verdict.findings)\n"
        "print(usage.ru_utime + usage.ru_stime, int(peak_kb) / 1000, count)"
    )
    before = slowness()
    shown = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    cpu_s, peak_mb, said = shown.stdout.split()
    return float(cpu_s) / max(before, slowness()), float(peak_mb), said


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_megabyte_of_garbage_costs_little(tmp_path: Path, kind: str) -> None:
    lines, unit = everyday_dealings().bundles()[0], GARBAGE[kind] + b"\n"
    path = tmp_path / "provider.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" + unit * (MB // len(unit)))
    cpu_s, peak_mb, said = run_on_a_megabyte(path)
    assert said == f"{MB // len(unit)}"
    assert peak_mb < 120, f"{peak_mb:.0f} MB"
    assert cpu_s < 6, f"{cpu_s:.1f} s"


def test_copies_of_one_line_cost_their_bytes(tmp_path: Path) -> None:
    """What an earlier line says already is a note with a number, and takes no time that grows with its square."""
    lines = everyday_dealings().bundles()[0]
    path = tmp_path / "provider.jsonl"
    path.write_bytes(b"\n".join([*lines, *[lines[5]] * 15_000]) + b"\n")
    assert path.stat().st_size > 4 * 1024 * 1024, "large enough for the engine"
    cpu_s, _, said = run_on_a_megabyte(path)
    assert said == "0"
    assert cpu_s < 10


def test_more_orders_than_are_judged_are_counted() -> None:
    grid = Dealings()
    for _ in range(8):
        grid.receipt(grid.order(), Usage(prompt_tokens=10, output_tokens=10), amount_pico=7)
    bundles = [bundle_of(grid.bundles()[0], Role.PROVIDER)]
    for sizes in (
        Sizes(SMALL.chunk_bytes, SMALL.part_bytes, 2, 3, most_judged_orders=5),
        Sizes(SMALL.chunk_bytes, SMALL.part_bytes, 2, 3, most_judged_lines=10),
    ):
        whole, cut = both_verdicts(bundles, sizes)
        assert len(whole.findings) == 8
        assert (len(cut.findings), cut.unjudged, cut.clean) == (5, 3, False)


def test_more_records_about_no_order_than_are_looked_at_are_counted() -> None:
    grids = [Dealings(nonce=f"{number}") for number in range(6)]
    lines = [*grids[0].bundles()[0], *(line for grid in grids[1:] for line in grid.bundles()[0][1:])]
    _, cut = both_verdicts([bundle_of(lines, Role.PROVIDER)], Sizes(most_loose_lines=4))
    assert (len(cut.channels), cut.unjudged_records, cut.clean) == (3, 3, False)
