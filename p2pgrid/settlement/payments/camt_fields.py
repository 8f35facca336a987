"""Single fields of camt.053 and camt.054, each read strictly and refused with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.settlement.payments.accounts import NotAnAccount, checked_iban
from p2pgrid.settlement.payments.cents import NotAnAmount, cents_of
from p2pgrid.settlement.payments.days import day_of
from p2pgrid.settlement.payments.entries import is_given
from p2pgrid.settlement.payments.refusals import BankFileError
from p2pgrid.settlement.payments.xml_stream import Node

_COUNT: Final = re.compile(r"[0-9]{1,15}")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class Fields:
    """An element, and the name of the file it stands in."""

    name: str
    node: Node

    def refused(self, message: str, node: Node | None = None) -> BankFileError:
        return BankFileError(self.name, (node or self.node).line, message)

    def all(self, *path: str) -> list[Fields]:
        """Every element at the end of the path."""
        nodes = [self.node]
        for tag in path:
            nodes = [child for node in nodes for child in node.children if child.tag == tag]
        return [Fields(self.name, node) for node in nodes]

    def one(self, *path: str) -> Fields | None:
        """The element at the end of the path, or None. Two of them are refused: which would be meant?"""
        found = self.all(*path)
        if len(found) > 1:
            raise found[1].refused(f"<{path[-1]}> stands here a second time in one <{self.node.tag}>")
        return found[0] if found else None

    def text(self, *path: str) -> str:
        """The text there, or empty."""
        found = self.one(*path)
        return found.node.text if found else ""

    def first_text(self, *paths: tuple[str, ...]) -> str:
        """The first text that is not empty."""
        return next(filter(None, (self.text(*path) for path in paths)), "")

    def needed(self, *path: str) -> Fields:
        found = self.one(*path)
        if found is None:
            raise self.refused(f"this <{self.node.tag}> has no <{'/'.join(path)}>, which tells {_MEANING[path[-1]]}")
        return found

    def reference(self, *path: str) -> str:
        """A reference, or empty where the bank says that there is none."""
        text = self.text(*path)
        return text if is_given(text) else ""


_MEANING: Final = {
    "Acct": "whose statement it is",
    "Amt": "how much was moved",
    "CdtDbtInd": "whether money came in or went out",
    "Id": "which account or statement it is",
    "Sts": "whether the entry is booked",
    "MsgId": "which message it is",
}


def amount_of(fields: Fields) -> tuple[int, str]:
    """Cents and currency of an <Amt>."""
    try:
        cents = cents_of(fields.node.text)
    except NotAnAmount as error:
        raise fields.refused(str(error)) from None
    currency = fields.node.attributes.get("Ccy", "")
    if not _CURRENCY.fullmatch(currency):
        raise fields.refused(f"the currency {currency[:_SHOWN]!r} is no ISO 4217 code; expected one like EUR")
    return cents, currency


def sign_of(fields: Fields) -> int:
    """1 for what came in, -1 for what went out, from its <CdtDbtInd>."""
    indicator = fields.needed("CdtDbtInd")
    match indicator.node.text:
        case "CRDT":
            return 1
        case "DBIT":
            return -1
        case other:
            raise indicator.refused(f"<CdtDbtInd> is {other[:_SHOWN]!r}; expected CRDT or DBIT")


def flag_of(fields: Fields, tag: str) -> bool:
    """An xs:boolean that may be missing, which means false."""
    found = fields.one(tag)
    if found is None:
        return False
    if found.node.text not in ("true", "false", "1", "0"):
        raise found.refused(f"<{tag}> is {found.node.text[:_SHOWN]!r}; expected true or false")
    return found.node.text in ("true", "1")


def count_of(fields: Fields) -> int:
    """The number that stands in an element."""
    text = fields.node.text
    if not _COUNT.fullmatch(text):
        raise fields.refused(f"<{fields.node.tag}> is {text[:_SHOWN]!r}; expected a number")
    return int(text)


def status_of(entry: Fields) -> str:
    """BOOK, PDNG, INFO or FUTR. Version 8 has the code one element deeper than version 2."""
    status = entry.needed("Sts")
    text = status.text("Cd") or status.node.text
    if text not in ("BOOK", "PDNG", "INFO", "FUTR"):
        raise status.refused(f"the entry's status is {text[:_SHOWN]!r}; expected BOOK, PDNG, INFO or FUTR")
    return text


def date_of(fields: Fields, tag: str) -> date | None:
    """The day of <Dt> or <DtTm>, as the bank's local calendar has it."""
    found = fields.one(tag)
    if found is None:
        return None
    text = found.first_text(("Dt",), ("DtTm",))
    try:
        return day_of(text[:10])  # what follows is a time, or the zone that XML allows a date
    except ValueError:
        raise found.refused(f"<{tag}> is {text[:_SHOWN]!r}; expected a date like 2026-11-27") from None


def iban_of(fields: Fields, tag: str) -> str:
    """The IBAN of an account that may be missing or have no IBAN; a wrong one is refused."""
    found = fields.one(tag, "Id", "IBAN")
    if found is None:
        return ""
    try:
        return checked_iban(found.node.text)
    except NotAnAccount as error:
        raise found.refused(error.message.rstrip(".")) from None


def texts_of(fields: Fields, *path: str) -> Iterator[str]:
    """Every text at the path that is not empty."""
    yield from filter(None, (one.node.text for one in fields.all(*path)))
