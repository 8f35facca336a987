"""The codes' one table: held together with the specification and with what the parsers raise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import p2pgrid.proto
from p2pgrid.proto.codes import CODES, Weight

ROOT = Path(p2pgrid.proto.__file__).parent
SPEC = Path(__file__).parents[2] / "docs" / "spec" / "audit.md"


def codes_raised_in(module: str) -> set[str]:
    tree = ast.parse((ROOT / module).read_text())
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("InvalidRecord", "Fault")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


LIVE_ONLY = {
    "bad-tile",  # of the log's transport: a tile is asked for again elsewhere
    "clock-skew",  # nothing is signed then
    "withdrawn",  # an offer that its provider has withdrawn since: nothing is bought by it
    "not-a-fork",  # what was to be a fork proof is none
    "wrong-channel",  # an answer about another channel than the one asked about
    "wrong-count",  # an answer to a reconciliation
    "wrong-network",  # a membership of another network: no bundle holds one
}
"""Codes of `InvalidRecord` for answers that no bundle ever holds."""


def test_what_a_peer_refuses_live_has_the_name_that_an_audit_gives_it() -> None:
    for path in sorted(ROOT.parent.rglob("*.py")):
        assert codes_raised_in(f"../{path.relative_to(ROOT.parent)}") <= set(CODES) | LIVE_ONLY, path


OF_THE_ANSWER = {"wrong-count", "wrong-status"}
"""What only the side that got the answer can know: reasons for its dispute, and no finding."""


def test_what_the_client_disputes_has_the_name_that_an_audit_gives_it() -> None:
    modules = ("buyer", "batch_buyer", "asked_request", "countersigning", "receipt_check")
    for module in (*modules, "disputing", "reconcile", "restore"):
        tree = ast.parse((ROOT / f"{module}.py").read_text())
        firsts = [node.elts[0] for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
        said = {each.value for each in firsts if isinstance(each, ast.Constant) and isinstance(each.value, str)}
        codes = {text for text in said if re.fullmatch(r"[a-z]+(-[a-z]+)+", text)}
        assert codes <= set(CODES) | LIVE_ONLY | OF_THE_ANSWER, module


def test_parsers_and_rules_raise_codes_of_the_table_alone() -> None:
    for module in ("keys.py", "record.py", "messages.py", "pricing.py", "rules.py", "chain.py", "judgement.py"):
        raised = codes_raised_in(module)
        assert raised <= set(CODES), module
        assert raised, module


def test_the_specification_has_the_same_table() -> None:
    row = re.compile(r"^\| `([a-z-]+)` \| (\w+) \| (yes|no) \| ([^|]+) \| [^|]+ \| [^|]+ \|$")
    written = [match.groups() for line in SPEC.read_text().splitlines() if (match := row.match(line))]
    table = sorted(CODES.values(), key=lambda code: code.weight is Weight.NOTE)
    assert written == [(c.code, c.party.value, "yes" if c.convinces else "no", c.title) for c in table]
