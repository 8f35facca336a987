"""The tables of docs/spec that come from the code: codes of the audit, fields of messages.

What a field means is written by hand, in its row's last column, and kept when the table is made afresh.
"""

from __future__ import annotations

import re
from enum import EnumMeta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec.inspect as inspect

from p2pgrid.proto import fields
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.card import PeerKey, Revocation
from p2pgrid.proto.codes import CODES, Weight
from p2pgrid.proto.cycle import CycleDebt
from p2pgrid.proto.inclusion import InclusionProof
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import BatchTerms, DataTerms, ModelOffer, RequestLine, Tariff, TariffPeriod, Terms, Usage
from p2pgrid.proto.record import Message
from p2pgrid.proto.set_off import Claim, SetOffSide
from p2pgrid.proto.statement import StatementLine, VatLine
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.channels import ChannelRequest, Channels, Held, OpenTick, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews, HeldDispute
from p2pgrid.proto.wire.log import LogCall, LogReply
from p2pgrid.proto.wire.offers import Capacity, Cards, ModelCapacity
from p2pgrid.proto.wire.orders import (
    BatchOpening,
    Head,
    OrderOpening,
    RequestCancel,
    RequestEnded,
    RequestHead,
    RequestRefused,
)
from p2pgrid.proto.wire.settlement import (
    DocumentPiece,
    DocumentRequest,
    HeldSettled,
    NothingToState,
    SettledPlace,
    SettlementCompared,
    SettlementHeld,
    SettlementNews,
    StatedReceipts,
    StatedReceiptsRequest,
    StatementDifference,
    StatementDiffers,
    StatementDraft,
    StatementRequest,
)

FOLDER = Path(__file__).parent.parent.parent / "docs/spec"

PARTS = (
    Usage,
    Tariff,
    TariffPeriod,
    ModelOffer,
    DataTerms,
    Terms,
    BatchTerms,
    RequestLine,
    PeerKey,
    Revocation,
    StatementLine,
    VatLine,
    SetOffSide,
    Claim,
    CycleDebt,
)
FRAMES = (
    ChannelRequest,
    Held,
    OpenTick,
    Resume,
    Resumed,
    Records,
    Proposals,
    Channels,
    DisputesHeld,
    HeldDispute,
    DisputesCompared,
    DisputesNews,
    SettledPlace,
    HeldSettled,
    SettlementHeld,
    SettlementCompared,
    SettlementNews,
    StatementRequest,
    NothingToState,
    StatementDraft,
    StatedReceiptsRequest,
    StatedReceipts,
    StatementDiffers,
    StatementDifference,
    DocumentRequest,
    DocumentPiece,
    Cards,
    Capacity,
    ModelCapacity,
    OrderOpening,
    BatchOpening,
    RequestHead,
    RequestRefused,
    RequestEnded,
    RequestCancel,
    Refusal,
    Head,
    LogCall,
    LogReply,
)
"""Unsigned payloads of the link."""
NAMED_TYPES: dict[str, Any] = {
    "key": fields.Key,
    "id": fields.Id,
    "digest": fields.Digest,
    "number": fields.Number,
    "tokens": fields.Tokens,
    "amount": fields.Amount,
    "price": fields.Price,
    "time": fields.TimeMs,
    "duration": fields.DurationMs,
    "text": fields.ShortText,
    "currency": fields.CurrencyCode,
    "country": fields.CountryCode,
}
"""Types that messages.md explains once."""


def pages() -> dict[Path, str]:
    """Every page with tables, as it should be."""
    audit, messages = FOLDER / "audit.md", FOLDER / "messages.md"
    return {audit: with_codes(audit.read_text()), messages: with_fields(messages.read_text())}


def with_codes(text: str) -> str:
    """The page with the tables of codes made afresh. The last two columns are written by hand."""
    for weight in Weight:
        name = f"codes {weight}"
        known = {row[0]: row[-2:] for row in _rows(_between(text, name)) if len(row) > 4}
        head = ["| code | party | convinces | what it says | record | once for each |", "|---|---|---|---|---|---|"]
        rows = [
            f"| `{c.code}` | {c.party} | {'yes' if c.convinces else 'no'} | {c.title} "
            f"| {' | '.join(known.get(f'`{c.code}`', ['', '']))} |"
            for c in CODES.values()
            if c.weight is weight
        ]
        text = _replaced(text, name, [*head, *rows])
    return text


def with_fields(text: str) -> str:
    """The page with the tables of types and fields made afresh, between their markers."""
    text = _replaced(text, "types", _types(text))
    for message in (*MESSAGE_TYPES.values(), BillingDetails, *PARTS, InclusionProof, *FRAMES):
        text = _replaced(text, f"fields {message.__name__}", _fields(message, text))
    return text


def _types(text: str) -> list[str]:
    known = _meanings(_between(text, "types"))
    rows = [
        f"| **{name}** | {_shape(_inspected(hint))} | {known.get(f'**{name}**', '')} |"
        for name, hint in NAMED_TYPES.items()
    ]
    return ["| type | form | meaning |", "|---|---|---|", *rows]


def _fields(message: Any, text: str) -> list[str]:
    known = _meanings(_between(text, f"fields {message.__name__}"))
    hints = get_type_hints(message, include_extras=True)
    head = []
    if isinstance(message, type) and issubclass(message, Message):
        head = [f"`{message.payload_type}`, at most {message.max_payload_bytes} bytes of payload.", ""]
    rows = [
        f"| {index} | {name} | {_type(hints[name])} | {known.get(name, '')} |"
        for index, name in enumerate(message.__struct_fields__)
    ]
    return [*head, "| | field | type | meaning |", "|---|---|---|---|", *rows]


def _rows(block: str) -> list[list[str]]:
    lines = (line.strip() for line in block.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _meanings(block: str) -> dict[str, str]:
    """The last column of a table, by the name in the row."""
    found = {}
    for cells in _rows(block):
        name = cells[1] if len(cells) > 1 and cells[0].isdecimal() else cells[0]
        if len(cells) > 2:
            found[name] = cells[-1]
    return found


def _type(hint: Any) -> str:
    named = next((name for name, known in NAMED_TYPES.items() if known == hint), None)
    return f"**{named}**" if named else _shape(_inspected(hint), hint)


def _inspected(hint: Any) -> Any:
    return inspect.type_info(hint)


def _shape(info: Any, hint: Any = None) -> str:
    """What a value looks like, with its limits."""
    if isinstance(info, inspect.Metadata):
        return _shape(info.type, hint)
    match info:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(le=None, lt=None):
            return f"integer, {_power(info.ge)} to 2^64-1"
        case inspect.IntType():
            return f"integer, {_power(info.ge)} to {_power(info.le if info.le is not None else info.lt - 1)}"
        case inspect.BytesType():
            return f"{_count(info.min_length, info.max_length)} bytes"
        case inspect.StrType(pattern=str()):
            return f"text `{info.pattern.removeprefix(chr(92) + 'A').removesuffix(chr(92) + 'Z')}`"
        case inspect.StrType():
            return f"text, {_count(info.min_length, info.max_length)} characters"
        case inspect.EnumType() if issubclass(info.cls, int):
            return " or ".join(str(each.value) for each in _enum(info.cls))
        case inspect.EnumType():
            return " or ".join(f"`{each.value}`" for each in _enum(info.cls))
        case inspect.StructType():
            return info.cls.__name__
        case inspect.VarTupleType():
            inner = get_args(get_args(hint)[0])[0]
            of = _type(inner)
            return f"array of {_count(info.min_length, info.max_length)}: {of}"
        case _:
            raise TypeError(info)


def _enum(kind: EnumMeta) -> list[Any]:
    return list(kind)


def _count(least: int | None, most: int | None) -> str:
    assert most is not None, "every length has a limit"
    return str(most) if least == most else f"{least or 0} to {most}"


def _power(number: int | None) -> str:
    assert number is not None, "every number has a limit"
    if abs(number) <= 10**6:
        return str(number)
    if number < 0:
        return f"-({_power(-number)})"
    for base in (10, 2):
        for exponent in range(6, 64):
            if number in (base**exponent, base**exponent - 1):
                return f"{base}^{exponent}" + ("" if number == base**exponent else "-1")
    return str(number)


def _between(text: str, name: str) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    assert text.count(start) == 1 and text.count(end) == 1, f"the page needs {start.strip()} once, and {end} after it"
    return text.partition(start)[2].partition(end)[0]


def _replaced(text: str, name: str, lines: list[str]) -> str:
    block = _between(text, name)
    start = f"<!-- {name} -->\n"
    return text.replace(start + block, start + "".join(f"{line}\n" for line in lines))


def has_gaps(text: str) -> list[str]:
    """Rows without a meaning."""
    return [line for line in text.splitlines() if re.fullmatch(r"\|.*\|\s*\|", line) and "---" not in line]
