"""Whether written invoices are valid: the schema, then the rules, in a process of their own. Fails closed.

A missing library, a rule file that is missing or another than the one tested, a process that crashes or hangs, an
empty report, an answer about another file: each makes the document invalid, and says so. One process checks many
documents; it compiles each rule set once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from p2pgrid.settlement.invoices import rules_process
from p2pgrid.settlement.invoices.profiles import Profile, Syntax
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.rules import (
    XRECHNUNG_HINT,
    located,
    peppol_rules,
    required_rules,
    required_schema,
)

TIMEOUT_S: Final = 120.0
"""For one document, the compiling of its rules in it: a second or two on an idle machine."""
_END_S: Final = 5.0
"""For a process that takes or says nothing more, to end."""
MAX_XML_BYTES: Final = 32 * 1024 * 1024
NOT_CHECKED: Final = "not-checked"
"""The rule's id where the check itself failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A document as it was written, to be checked."""

    xml: bytes
    profile: Profile
    syntax: Syntax
    is_credit_note: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a rule has against a document."""

    rule: str
    """Its id, like BR-CO-15; "XSD" for the schema; `NOT_CHECKED` where no check took place."""
    text: str
    where: str = ""
    is_warning: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of checking a document."""

    findings: tuple[Finding, ...]
    is_valid: bool
    """True only if schema and rules were run over this very file, and found nothing that forbids it."""

    def refuse(self, what: str) -> None:
        """Raises InvoiceRefused, its `code` the first broken rule, unless the document is valid."""
        if self.is_valid:
            return
        broken = [finding for finding in self.findings if not finding.is_warning]
        first = broken[0] if broken else Finding(rule=NOT_CHECKED, text="nothing was checked.")
        more = f" ({len(broken) - 1} more)" if len(broken) > 1 else ""
        raise InvoiceRefused(first.rule, f"{what} is not valid: {first.rule}: {first.text}{more}", hint=first.where)


class Validator:
    """Checks documents in one process, which it starts when it is first needed.

    Use it as a context manager. `peppol_xslt` is OpenPeppol's rule set, if the operator has it. A process that crashed
    or hung is ended; the next document gets a new one.
    """

    def __init__(
        self, *, timeout_s: float = TIMEOUT_S, peppol_xslt: Path | None = None, python: str = sys.executable
    ) -> None:
        self._timeout_s = timeout_s
        self._peppol_xslt = peppol_xslt
        self._python = python
        self._process: Any = None
        self._said: Any = None
        self._asked = 0

    def __enter__(self) -> Validator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int | None:
        """Of the checking process, while there is one."""
        return None if self._process is None else int(self._process.pid)

    def check(self, written: Written) -> Verdict:
        """The verdict about a document. Raises nothing for what is wrong with it or with the check."""
        try:
            question = self._question(written)
        except FileNotFoundError as error:
            return _not_checked(f"{error} {XRECHNUNG_HINT if 'mcp' in str(error) else ''}".strip())
        except (KeyError, ValueError) as error:
            return _not_checked(str(error))
        try:
            answer = self._answer(question)
        except (OSError, ValueError, TimeoutError) as error:
            self._stop()
            return _not_checked(f"the checking process failed: {error}")
        return _verdict(answer, question, written)

    def check_all(self, documents: Iterable[Written]) -> list[Verdict]:
        """The verdicts about many documents, in their order."""
        return [self.check(written) for written in documents]

    def _question(self, written: Written) -> dict[str, Any]:
        if not 0 < len(written.xml) <= MAX_XML_BYTES:
            raise ValueError(f"a document of {len(written.xml)} bytes is not looked at.")
        if written.syntax not in written.profile.syntaxes:
            raise ValueError(f"the profile {written.profile.value!r} is not written as {written.syntax.value}.")
        rules = required_rules(written.profile, written.syntax)
        if written.profile is Profile.PEPPOL and self._peppol_xslt is not None:
            rules = (*rules, peppol_rules(self._peppol_xslt))
        self._asked += 1
        return {
            "id": self._asked,
            "xml": base64.b64encode(written.xml).decode("ascii"),
            "schema": located(required_schema(written.syntax, is_credit_note=written.is_credit_note)),
            "rules": [located(rule_set) for rule_set in rules],
        }

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        process = self._process or self._start()
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended(process) from error
        line = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no answer in {self._timeout_s:g} s.")
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._ended(process)
                line += chunk
        answer = json.loads(line)
        if not isinstance(answer, dict) or answer.get("id") != question["id"]:
            raise ValueError("it answered another question.")
        return answer

    def _start(self) -> Any:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # -P: its folder is not put before the standard library, some of whose names our modules share.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own file
            [self._python, "-P", rules_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=tempfile.gettempdir(),
        )
        return self._process

    def _ended(self, process: Any) -> OSError:
        """What became of a process that takes or says nothing more."""
        try:
            how = f"ended with {process.wait(_END_S)}"
        except subprocess.TimeoutExpired:
            how = "closed its pipes"
        self._said.seek(0)
        last_words = bytes(self._said.read()[-300:]).decode(errors="replace").strip()
        return OSError(f"it {how}: {last_words or 'it said nothing.'}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, self._said):
            with contextlib.suppress(OSError):  # what was not written goes nowhere
                pipe.close()


def check_written(written: Written) -> Verdict:
    """The verdict about one document, by a process of its own: about two seconds. For many, use a Validator."""
    with Validator() as validator:
        return validator.check(written)


def _not_checked(why: str) -> Verdict:
    return Verdict(findings=(Finding(rule=NOT_CHECKED, text=why),), is_valid=False)


def _verdict(answer: dict[str, Any], question: dict[str, Any], written: Written) -> Verdict:
    if "error" in answer:
        return _not_checked(str(answer["error"]))
    try:
        findings = tuple(
            Finding(
                rule=str(found["rule"]),
                text=str(found["text"]),
                where=str(found["where"]),
                is_warning=found["is_warning"] is True,
            )
            for found in answer["findings"]
        )
        is_about_it = answer["sha256"] == hashlib.sha256(written.xml).hexdigest()
        ran = answer["ran"] == [told["name"] for told in question["rules"]]
    except (KeyError, TypeError) as error:
        return _not_checked(f"the checking process gave no whole answer: {error!r}")
    if not is_about_it or not ran or not question["rules"]:
        return _not_checked("the checking process answered about another file, or did not run every rule set.")
    return Verdict(findings=findings, is_valid=all(finding.is_warning for finding in findings))
