"""Pieces of the audit's page. Every text is escaped, and stripped of what turns text around or controls terminals."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement

from p2pgrid.printable import printable


def add(parent: Element, tag: str, text: str, name: str = "") -> Element:
    """An element with text; `name` is its class."""
    element = SubElement(parent, tag, {"class": name} if name else {})
    element.text = printable(text)
    return element


def add_table(parent: Element, names: Iterable[str], numbers: Iterable[str] = ()) -> Element:
    """A table with a heading; `numbers` are columns that stand on the right."""
    table = SubElement(SubElement(parent, "div", {"class": "scroll"}), "table")
    row = SubElement(table, "tr")
    for name in names:
        add(row, "th", name)
    for name in numbers:
        add(row, "th", name, "number")
    return table


def link(parent: Element, mark: str, text: str) -> Element:
    """A link to another row of the same page; `mark` is made of hex digits, never of a peer's words."""
    assert mark.isalnum()
    element = SubElement(parent, "a", {"href": f"#{mark}"})
    element.text = printable(text)
    return element
