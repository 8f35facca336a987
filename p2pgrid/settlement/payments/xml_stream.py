"""XML from outside, read as a stream: no DTD, no entities, nothing fetched, and caps on all that grows.

expat (Python's own) rather than lxml: it stops at the first byte of a DOCTYPE in whatever encoding, counts lines
beyond 65535, and hands over elements one by one. Only the subtrees that the caller names are kept, each until it has
been handed out, so memory goes by the longest of them and not by the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final
from xml.parsers import expat

from p2pgrid.settlement.payments.refusals import BankFileError

MAX_FILE_BYTES: Final = 100 * 1024 * 1024
MAX_DEPTH: Final = 32
"""camt.053 goes 18 deep."""
MAX_TEXT_CHARS: Final = 10_000
"""In one element."""
MAX_ELEMENTS: Final = 5_000
"""In one subtree that is kept, those apart that were handed out before it."""
MAX_MARKUP_BYTES: Final = 64 * 1024
"""One tag or comment."""

_CHUNK_BYTES: Final = 64 * 1024
_SHOWN: Final = 60
_NO_XML: Final = {
    b"PK\x03\x04": "a ZIP archive; unpack it and give the files within",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"%PDF": "a PDF, which is for people; download the statement as camt.053",
    b":20:": "an MT940 statement; download it as camt.053",
    b"{1:": "a SWIFT message; download the statement as camt.053",
}


@dataclass(slots=True)
class Node:
    """One element."""

    tag: str
    """Its local name; empty if it is of another namespace than the document."""
    line: int
    namespace: str
    attributes: dict[str, str]
    children: list[Node] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    chars: int = 0
    elements: int = 0
    """Kept below it, itself not counted."""

    @property
    def text(self) -> str:
        """What stands in it, without what stands in its children, stripped at its ends."""
        return "".join(self.pieces).strip()


def read_subtrees(file: BinaryIO, name: str, kept: Collection[str]) -> Iterator[Node]:
    """The root element first, as it begins; then each element whose local name is in `kept`, when it ends.

    One within another is handed out first, and is not among the other's children. Raises BankFileError, with the
    line, for what is no well-formed XML, is cut off, declares a DTD, or is beyond a cap.
    """
    reader = _Reader(name, frozenset(kept))
    total = 0
    while chunk := file.read(_CHUNK_BYTES):
        if not total:
            _refuse_other_formats(chunk, name)
        total += len(chunk)
        if total > MAX_FILE_BYTES:
            raise BankFileError(name, 0, f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB")
        reader.feed(chunk, total)
        yield from reader.take()
    if not total:
        raise BankFileError(name, 0, "the file is empty; expected a bank statement in XML")
    reader.close()
    yield from reader.take()


class _Reader:
    def __init__(self, name: str, kept: frozenset[str]) -> None:
        self._name = name
        self._kept = kept
        self._open: list[Node] = []
        self._ready: list[Node] = []
        self._within = 0
        """Open elements that are kept."""
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.SkippedEntityHandler = self._entity
        self._parser.ExternalEntityRefHandler = self._external

    def feed(self, chunk: bytes, total: int) -> None:
        try:
            self._parser.Parse(chunk, False)
        except expat.ExpatError as error:
            raise self._malformed(error) from None
        except (ValueError, LookupError):  # of Python's codecs, for what the XML declaration names
            raise self._refused("the file declares an encoding that cannot be read; banks write UTF-8") from None
        # What expat has not reported yet is one piece of markup, which it would scan again with every chunk.
        if total - self._parser.CurrentByteIndex > MAX_MARKUP_BYTES + _CHUNK_BYTES:
            raise self._refused(f"a tag or comment is longer than {MAX_MARKUP_BYTES // 1024} KiB")

    def close(self) -> None:
        try:
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            line = int(error.lineno)
            if not self._open:
                raise BankFileError(self._name, line, "the file ends before any element; expected XML") from None
            inner = self._open[-1]
            raise BankFileError(
                self._name,
                line,
                f"the file is cut off: it ends within <{inner.tag}>, which begins at line {inner.line}",
                hint="Download it again. Nothing was taken from this one.",
            ) from None

    def take(self) -> list[Node]:
        ready, self._ready = self._ready, []
        return ready

    def _refused(self, message: str) -> BankFileError:
        return BankFileError(self._name, int(self._parser.CurrentLineNumber), message)

    def _malformed(self, error: expat.ExpatError) -> BankFileError:
        return BankFileError(self._name, int(error.lineno), f"this is no XML: {expat.ErrorString(error.code)}")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, tag = name.rpartition(" ")
        root = self._open[0] if self._open else None
        if root is not None and namespace != root.namespace:
            tag = ""
        node = Node(tag, int(self._parser.CurrentLineNumber), namespace, attributes)
        if len(self._open) >= MAX_DEPTH:
            raise self._refused(f"elements are nested more than {MAX_DEPTH} deep")
        if root is None:
            self._ready.append(node)
        self._open.append(node)
        self._within += tag in self._kept

    def _end(self, name: str) -> None:
        node = self._open.pop()
        if node.tag in self._kept:
            self._within -= 1
            self._ready.append(node)
        elif self._within and node.tag:
            parent = self._open[-1]
            parent.children.append(node)
            parent.elements += node.elements + 1
            if parent.elements > MAX_ELEMENTS:
                raise self._refused(f"<{parent.tag}> has more than {MAX_ELEMENTS} elements")

    def _characters(self, text: str) -> None:
        node = self._open[-1]
        node.chars += len(text)
        if node.chars > MAX_TEXT_CHARS:
            if not node.children and text.strip():
                raise self._refused(f"the text of <{node.tag}> is longer than {MAX_TEXT_CHARS} characters")
            return  # space between many elements
        node.pieces.append(text)

    def _doctype(self, name: str, *_: object) -> None:
        raise self._refused("the file declares a document type (DTD), which no bank statement does")

    def _entity(self, name: str, _: object) -> None:
        raise self._refused(f"the file uses the entity {name[:_SHOWN]!r}, which is not defined")

    def _external(self, *_: object) -> int:
        raise self._refused("the file refers to another file")


def _refuse_other_formats(chunk: bytes, name: str) -> None:
    for start, what in _NO_XML.items():
        if chunk.lstrip().startswith(start):
            raise BankFileError(name, 1, f"expected XML, and this is {what}")
