"""Paper: A4 sheets on which text is placed by the millimetre, with fpdf2."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Final

from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.refused import InvoiceRefused

WIDTH: Final = 210.0
HEIGHT: Final = 297.0
LEFT: Final = 20.0
RIGHT: Final = 190.0
TOP: Final = 18.0
BOTTOM: Final = 268.0
"""Below this only the foot stands."""
INK: Final = (28, 32, 40)
QUIET: Final = (98, 106, 120)
ACCENT: Final = (22, 84, 120)
LINE: Final = (205, 211, 220)
SHADE: Final = (243, 246, 249)
_FONTS: Final = Path(__file__).parent / "fonts"
_FAMILY: Final = "noto"
_POINT_MM: Final = 25.4 / 72


class Sheets:
    """A document's sheets, and how far down the present one is filled. All lengths are millimetres, sizes points."""

    def __init__(self, *, title: str, author: str, subject: str, on: date, foot: Callable[[Sheets], None]) -> None:
        fpdf = library("fpdf")
        self.pdf: Any = fpdf.FPDF(format="A4", unit="mm", enforce_compliance="PDF/A-3B")
        self.pdf.set_auto_page_break(False)
        self.pdf.set_creation_date(datetime.combine(on, time(), UTC))
        self.pdf.set_title(title)
        self.pdf.set_author(author)
        self.pdf.set_subject(subject)
        self.pdf.set_lang("en")
        self.pdf.add_font(_FAMILY, "", _FONTS / "NotoSans-Regular.ttf")
        self.pdf.add_font(_FAMILY, "B", _FONTS / "NotoSans-SemiBold.ttf")
        self._known = frozenset(self.pdf.fonts[_FAMILY].cmap)
        self._foot = foot
        self.y = TOP
        self.add()

    def add(self) -> None:
        """Begin another sheet, with its foot."""
        self.pdf.add_page()
        self._foot(self)
        self.y = TOP

    @property
    def count(self) -> int:
        return int(self.pdf.pages_count)

    def has_room(self, height: float) -> bool:
        return self.y + height <= BOTTOM

    def put(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9.0,
        is_bold: bool = False,
        color: tuple[int, int, int] = INK,
        to_right: bool = False,
    ) -> None:
        """One line of text, its top at y; it begins at x, or ends there."""
        self._choose(size, is_bold, text)
        self.pdf.set_text_color(*color)
        start = x - self.pdf.get_string_width(text) if to_right else x
        self.pdf.text(start, y + size * _POINT_MM * 0.95, text)

    def put_block(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        *,
        size: float = 9.0,
        is_bold: bool = False,
        color: tuple[int, int, int] = INK,
    ) -> float:
        """Text in as many lines as it takes; returns where the next block may begin."""
        for line in self.lines_of(text, width, size=size, is_bold=is_bold):
            self.put(x, y, line, size=size, is_bold=is_bold, color=color)
            y += leading(size)
        return y

    def lines_of(self, text: str, width: float, *, size: float = 9.0, is_bold: bool = False) -> list[str]:
        """The text broken to a width: at blanks, and inside words that are too long, after / - _ : if possible."""
        self._choose(size, is_bold, text)
        lines, line = [], ""
        for word in _breakable(text):
            if self._fits(line + word.rstrip(), width):
                line += word
                continue
            if line.strip():
                lines.append(line.rstrip())
            line = word
            while not self._fits(line.rstrip(), width):
                cut = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or self._fits(line[:n], width))
                lines.append(line[:cut])
                line = line[cut:]
        return [*lines, line.rstrip()] if line.strip() or not lines else lines

    def rule(self, y: float, *, x: float = LEFT, to: float = RIGHT, color: tuple[int, int, int] = LINE) -> None:
        """A thin line across."""
        self.pdf.set_draw_color(*color)
        self.pdf.set_line_width(0.2)
        self.pdf.line(x, y, to, y)

    def shade(self, x: float, y: float, width: float, height: float) -> None:
        """A tinted rectangle; text goes on top."""
        self.pdf.set_fill_color(*SHADE)
        self.pdf.rect(x, y, width, height, style="F")

    def _fits(self, text: str, width: float) -> bool:
        return float(self.pdf.get_string_width(text)) <= width

    def _choose(self, size: float, is_bold: bool, text: str) -> None:
        unknown = next((char for char in text if ord(char) not in self._known), None)
        if unknown is not None:
            raise InvoiceRefused(
                "glyph",
                f"the page's font has no sign for U+{ord(unknown):04X}, in {text[:60]!r}.",
                hint="Write the name in Latin, Greek or Cyrillic letters, or issue the invoice as XML alone.",
            )
        self.pdf.set_font(_FAMILY, "B" if is_bold else "", size)


def leading(size: float) -> float:
    """From one line of text to the next, in mm."""
    return size * _POINT_MM * 1.35


def _breakable(text: str) -> list[str]:
    """The text in pieces after which a line may end."""
    pieces, piece = [], ""
    for char in text:
        piece += char
        if char in " /-_:":
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces
