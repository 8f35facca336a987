"""The process that runs schemas and Schematron rules over invoices. Started by `validate`, by its path.

One JSON object a line in, one a line out. It imports nothing of p2pgrid, so that it starts fast and can crash alone:
Saxon's native code has been seen to take its process down. It answers `findings` only for what it has truly checked;
whatever else happens is an `error`, and the caller takes every error for "invalid".

To each rule set an invoice is shown that breaks it, made of the first one that it lets pass (`canary`): a rule set that
does not notice checks nothing, and every invoice is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_SVRL = "{http://purl.oclc.org/dsdl/svrl}"
MAX_DEPTH = 100


class CheckFailed(Exception):
    """The check could not be made; the text says why."""


class RuleSet:
    """One compiled Schematron rule set."""

    def __init__(self, saxon: Any, told: dict[str, Any]) -> None:
        self._saxon = saxon
        self.name = str(told["name"])
        self.path = str(told["path"])
        self._only = str(told["only"])
        self._is_strict = told["is_strict"] is True
        self._canary = told["canary"]
        self._is_proven = False
        check_digest([self.path], str(told["sha256"]))
        try:
            self._rules = saxon.new_xslt30_processor().compile_stylesheet(stylesheet_file=self.path)
        except Exception as error:
            raise CheckFailed(f"the rules {self.name} cannot be compiled: {error}") from error
        if self._rules is None:
            raise CheckFailed(f"the rules {self.name} cannot be compiled.")

    def findings(self, root: Any, etree: Any) -> list[dict[str, Any]]:
        """What the rules find in the invoice."""
        found = self._run(root, etree)
        is_refused = any(not finding["is_warning"] for finding in found)
        if not self._is_proven and not is_refused:
            self._prove(root, etree)
        return found

    def _prove(self, root: Any, etree: Any) -> None:
        """Break a copy of the invoice, which the rules let pass, in a way that they must notice."""
        broken = etree.fromstring(etree.tostring(root), hardened_parser(etree))
        places = broken.xpath(self._canary["xpath"])
        if not places:
            raise CheckFailed(f"the rules {self.name} could not be tried: the invoice lacks {self._canary['xpath']}.")
        for place in places:
            if self._canary["text"] is None:
                place.getparent().remove(place)
            else:
                place.text = self._canary["text"]
        if self._canary["rule"] not in {finding["rule"] for finding in self._run(broken, etree)}:
            raise CheckFailed(f"the rules {self.name} do not notice a broken invoice.")
        self._is_proven = True

    def _run(self, root: Any, etree: Any) -> list[dict[str, Any]]:
        try:
            node = self._saxon.parse_xml(xml_text=etree.tostring(root, encoding="unicode"))
            report = self._rules.transform_to_string(xdm_node=node)
        except Exception as error:
            raise CheckFailed(f"the rules {self.name} could not be run: {error}") from error
        if not report:
            raise CheckFailed(f"the rules {self.name} gave an empty report.")
        try:
            svrl = etree.fromstring(report.encode("utf-8"), hardened_parser(etree))
        except etree.XMLSyntaxError as error:
            raise CheckFailed(f"the rules {self.name} gave no report: {error}") from error
        if svrl.tag != _SVRL + "schematron-output" or svrl.find(_SVRL + "fired-rule") is None:
            raise CheckFailed(f"no rule of {self.name} was applied.")
        found = []
        for kind in ("failed-assert", "successful-report"):
            for failed in svrl.iter(_SVRL + kind):
                rule = failed.get("id") or "unnamed"
                flag = (failed.get("flag") or failed.get("role") or "fatal").lower()
                if rule.startswith(self._only):
                    text = " ".join("".join(failed.itertext()).split())
                    found.append(
                        {
                            "rule": rule,
                            "is_warning": not self._is_strict and flag in ("warning", "information", "info"),
                            "text": text[:500],
                            "where": (failed.get("location") or "")[-300:],
                        }
                    )
        return found


class Checker:
    """Keeps compiled schemas and rules."""

    def __init__(self) -> None:
        try:
            from lxml import etree
            from saxonche import PySaxonProcessor
        except ImportError as error:
            raise CheckFailed(f"a library is missing: {error}") from error
        self._etree: Any = etree
        self._saxon: Any = PySaxonProcessor(license=False)
        self._schemas: dict[str, Any] = {}
        self._rules: dict[str, RuleSet] = {}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The findings about one invoice."""
        xml = base64.b64decode(asked["xml"], validate=True)
        root = self._parsed(xml)
        findings = self._schema_findings(asked["schema"], root)
        if not findings:  # rules expect what the schema promises
            for told in asked["rules"]:
                rule_set = self._rules.get(told["name"])
                if rule_set is None:
                    rule_set = self._rules[told["name"]] = RuleSet(self._saxon, told)
                findings += rule_set.findings(root, self._etree)
        return {
            "findings": findings,
            "sha256": hashlib.sha256(xml).hexdigest(),
            "ran": [told["name"] for told in asked["rules"]],
        }

    def _parsed(self, xml: bytes) -> Any:
        try:
            root = self._etree.fromstring(xml, hardened_parser(self._etree))
        except (self._etree.XMLSyntaxError, ValueError) as error:
            raise CheckFailed(f"this is no XML: {error}") from error
        if root.getroottree().docinfo.doctype:
            raise CheckFailed("an invoice has no document type declaration.")
        return root

    def _schema_findings(self, told: dict[str, Any], root: Any) -> list[dict[str, Any]]:
        schema = self._schemas.get(told["path"])
        if schema is None:
            main = Path(told["path"])
            check_digest([str(main), *map(str, sorted(main.parent.glob(told["others"])))], told["sha256"])
            try:
                schema = self._etree.XMLSchema(file=str(main))
            except self._etree.LxmlError as error:
                raise CheckFailed(f"the schema {main.name} cannot be read: {error}") from error
            self._schemas[told["path"]] = schema
        if schema.validate(root):
            return []
        found = [
            {"rule": "XSD", "is_warning": False, "text": entry.message[:500], "where": f"line {entry.line}"}
            for entry in schema.error_log
        ]
        if not found:
            raise CheckFailed("the schema refused the invoice without a reason.")
        return found


def hardened_parser(etree: Any) -> Any:
    """A parser that resolves no entities, reads no DTD, asks no network."""
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )


def digest_of(paths: list[str]) -> str:
    """One SHA-256 over files, each with its name. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest() + Path(path).name.encode())
    return digest.hexdigest()


def check_digest(paths: list[str], expected: str) -> None:
    """Raises CheckFailed where the files are missing or are not those that were tested."""
    try:
        found = digest_of(paths)
    except OSError as error:
        raise CheckFailed(f"a rule file is missing: {error}") from error
    if expected and found != expected:
        raise CheckFailed(f"{Path(paths[0]).name} is not the file that was tested: its SHA-256 is {found}.")


def main() -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    checker: Checker | None = None
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            checker = checker or Checker()
            answer = checker.answer(asked)
        except CheckFailed as failed:
            answer = {"error": str(failed)}
        answers.write(json.dumps({"id": asked["id"], **answer}).encode() + b"\n")
    answers.close()


if __name__ == "__main__":
    main()
