"""Bundles audited and followed, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from p2pgrid.audit.trace_book import TraceBook
from p2pgrid.audit.trace_names import find
from p2pgrid.audit.trace_parts import StatementTrace, Trace, TransferTrace, WholeTrace
from p2pgrid.audit.trace_whole import trace_whole
from p2pgrid.cli.trace import references_of
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.verdict import Judged, audit_records


def judged(bundles: Iterable[Bundle], **options: Any) -> TraceBook:
    """What an audit of the bundles has judged."""
    seen: list[Judged] = []
    audit_records(bundles, observe=seen.append, **options)
    return TraceBook(seen[0], references_of)


def followed(book: TraceBook, name: str, **options: Any) -> Trace:
    """What a name leads to."""
    return find(book, name).make(**options)


def transfer(book: TraceBook, name: str) -> TransferTrace:
    """The transfer of that name."""
    traced = followed(book, name).transfer
    assert traced is not None
    return traced


def statement(book: TraceBook, name: str) -> StatementTrace:
    """The statement of that name."""
    traced = followed(book, name).statement
    assert traced is not None
    return traced


def whole(book: TraceBook) -> WholeTrace:
    """The table of all."""
    return trace_whole(book)
