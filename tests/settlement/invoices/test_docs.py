"""The page for accountants says what the code does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from p2pgrid.settlement.invoices import rules
from p2pgrid.settlement.invoices.texts import percent
from p2pgrid.settlement.invoices.vat_rates import LOOKED_AT, STANDARD_RATES

ROOT = Path(__file__).parents[3]
ROOM = ROOT / "p2pgrid" / "settlement" / "invoices"
PAGE = (ROOT / "docs" / "settlement" / "invoices.md").read_text()


def test_the_table_of_rates_is_the_codes() -> None:
    stated = re.findall(r"^\| ([A-Z]{2}) \| (\d{4}-\d\d-\d\d) \| ([0-9.]+) % \| (.+) \|$", PAGE, re.M)
    assert stated == [
        (country, str(row.valid_from), percent(row.rate_bp), row.source)
        for country, rows in STANDARD_RATES.items()
        for row in rows
    ]
    assert f"Looked at on {LOOKED_AT}" in PAGE


def test_the_code_that_holds_each_assumption_is_there() -> None:
    for module, name in re.findall(r"`(vat|vat_rates|make|document)\.(\w+)`", PAGE):
        assert name == "py" or re.search(rf"\b{name}\b", (ROOM / f"{module}.py").read_text()), f"{module}.{name}"


def test_every_reason_is_listed() -> None:
    """The first argument of each InvoiceRefused."""
    codes = set()
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InvoiceRefused" and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    codes.add(first.value)
    assert len(codes) > 20
    assert {code for code in codes if not code.startswith("BR-") and f"`{code}`" not in PAGE} == set()


def test_the_packages_named_are_those_pinned() -> None:
    assert f"pip install --no-deps {rules.XRECHNUNG_PACKAGE}" in PAGE
    assert rules.XRECHNUNG_PACKAGE in (ROOT / "scripts" / "rules.txt").read_text()
    pinned = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    assert {"factur-x==7.8", "saxonche==13.1.1", "drafthorse==2025.2.0", "fpdf2==2.8.9"} <= set(pinned)


def test_libraries_are_loaded_when_they_are_needed() -> None:
    heavy = ["lxml", "drafthorse", "facturx", "fpdf", "pikepdf", "saxonche", "stdnum", "fontTools", "requests"]
    code = f"import sys, p2pgrid.settlement.invoices.issue; print([one for one in {heavy} if one in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
