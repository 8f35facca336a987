"""Text in the character set that every SEPA bank must take (EPC217-08, "SEPA requirements for an extended
character set"): Latin letters, digits, space and `/-?:().,'+`.

Marks are dropped (Müller becomes Muller, Žalgiris Zalgiris), as EPC217-08 converts them; other alphabets are
romanised. A transfer never fails for a name's letters.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from p2pgrid.settlement.payments.refusals import MissingLibrary

_INSTEAD: Final = str.maketrans(
    {
        "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
        "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ł": "l", "Ł": "L", "ħ": "h", "Ħ": "H", "ı": "i", "€": "EUR",  # noqa: RUF001
        "&": "+", "@": "(at)", "_": "-", ";": ",", "!": ".", "*": ".", "\\": "/", "|": "/", "#": ".", "%": ".",
        '"': "'", "`": "'", "´": "'", "’": "'", "‘": "'", "“": "'", "”": "'", "„": "'", "«": "'", "»": "'",  # noqa: RUF001
        "–": "-", "—": "-", "[": "(", "]": ")", "{": "(", "}": ")", "<": "(", ">": ")", "=": "-", "~": "-", "^": "-",  # noqa: RUF001
        "$": "USD",
    }
)  # fmt: skip
_OTHER: Final = re.compile(r"[^A-Za-z0-9/\-?:().,'+ ]")
_SPACES: Final = re.compile(r"\s+")


def to_sepa_latin(text: str) -> str:
    """The text in SEPA's Latin character set, spaces and line breaks made one space each, none at its ends.

    Empty if nothing of it can be written so.
    """
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text)).translate(_INSTEAD)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if not plain.isascii():
        plain = _romanised(plain)
    return _SPACES.sub(" ", _OTHER.sub(" ", plain)).strip()


def is_sepa_identifier(text: str) -> bool:
    """True for what may stand in a reference or identification: in the character set, 1 to 35 characters, no slash
    at either end and no two in a row (EPC's clarification on slashes)."""
    return (
        0 < len(text) <= 35
        and not _OTHER.search(text)
        and not text.startswith(("/", " "))
        and not text.endswith(("/", " "))
        and "//" not in text
    )


def _romanised(text: str) -> str:
    try:
        from text_unidecode import unidecode
    except ImportError:
        raise MissingLibrary("text-unidecode") from None
    return str(unidecode(text))
