"""The payment reference: what a transfer carries so that its invoice is found again (docs/settlement/payments.md).

Two forms of one statement's id. The *end-to-end reference* (35 characters) travels in the field of that name, from
the payer's file to the payee's bank statement, and no person sees it. The *creditor reference* (ISO 11649, 25
characters, "RF...") is for people: banks check it as it is typed, and it fits beside the invoice's number.

    id   5f4dcc3b...                               (SHA-256, 32 bytes; the first 20 are used)
    e2e  L5G4YO2...                                32 characters of base32, and 3 of check
    rf   RF18L5G4YO2...                            2 check digits, and the first 21 of the same characters

The 35 characters, read as a number in base 32, leave 1 when divided by 32749 (the largest prime below 2^15), as an
IBAN leaves 1 modulo 97. So every wrong character and every swap of neighbours is noticed, and of all else, all but
one in 32749.
"""

from __future__ import annotations

import base64
from typing import Final

from p2pgrid.errors import UsageError

ID_BYTES: Final = 32
REFERENCE_CHARS: Final = 35
CREDITOR_REFERENCE_CHARS: Final = 25

_USED_BYTES: Final = 20
_BODY_CHARS: Final = 32
_CHECK_CHARS: Final = 3
_RF_BODY_CHARS: Final = 21
_PRIME: Final = 32749
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_VALUE: Final = {character: value for value, character in enumerate(_ALPHABET)}
_LOOKS_LIKE: Final = str.maketrans("018", "OIB")
_DIGIT_LIKE: Final = str.maketrans("OIB", "018")
_SHOWN: Final = 60


def make_reference(record_id: bytes) -> str:
    """The end-to-end reference of a statement (or of a channel, for payments ahead), from its record's id.

    Raises ValueError if the id has not 32 bytes.
    """
    body = _body(record_id)
    return body + _check_of(body)


def make_creditor_reference(record_id: bytes) -> str:
    """The same statement's RF reference (ISO 11649:2009), without the spaces that people group it with."""
    return _with_rf_check(_body(record_id)[:_RF_BODY_CHARS])


def creditor_reference_of(reference: str) -> str:
    """The RF reference that goes with an end-to-end reference."""
    return _with_rf_check(parse_reference(reference)[:_RF_BODY_CHARS])


def parse_reference(text: str) -> str:
    """An end-to-end reference as somebody wrote it, in its one form: upper case, nothing between.

    Spaces, hyphens, line breaks and lower case are taken, and 0, 1 and 8 are read as O, I and B, which they are
    mistaken for. Raises UsageError that says whether it is too short, too long, or mistyped.
    """
    compact = normalised(text[: 10 * REFERENCE_CHARS]).translate(_LOOKS_LIKE)
    shown = repr(text[:_SHOWN])
    if len(compact) != REFERENCE_CHARS:
        few = "few" if len(compact) < REFERENCE_CHARS else "many"
        raise UsageError(
            f"the reference {shown} has {len(compact)} characters, which is too {few}.",
            hint=f"A reference has {REFERENCE_CHARS} letters and digits.",
        )
    if not is_reference(compact):
        raise UsageError(
            f"the reference {shown} is mistyped: its last three characters do not go with the others.",
            hint="Copy it from the invoice again.",
        )
    return compact


def is_reference(text: str) -> bool:
    """True for an end-to-end reference in its one form whose check is right."""
    return (
        len(text) == REFERENCE_CHARS
        and all(character in _VALUE for character in text)
        and _check_of(text[:_BODY_CHARS]) == text[_BODY_CHARS:]
    )


def is_creditor_reference(text: str) -> bool:
    """True for any ISO 11649 reference, of ours or of somebody else, whose check digits are right."""
    return (
        5 <= len(text) <= CREDITOR_REFERENCE_CHARS
        and text[:2] == "RF"
        and _is_digits(text[2:4])
        and all(_is_digits(c) or "A" <= c <= "Z" for c in text[4:])
        and _mod97(text[4:] + text[:4]) == 1
    )


def find_references(text: str) -> tuple[str, ...]:
    """Every reference of ours in free text, in either form, each in its one form and once, in order of appearance.

    One begins where a word begins; within it, spaces and line breaks may stand anywhere. A reference that is cut
    or mistyped is not found here: only who knows the open invoices can tell (`reference_index`).
    """
    found: dict[str, None] = {}
    compact, starts = _compact_with_starts(text)
    for start in starts:
        window = compact[start : start + REFERENCE_CHARS].translate(_LOOKS_LIKE)
        if is_reference(window):
            found[window] = None
        if compact.startswith("RF", start):
            rf = mended_rf(compact[start : start + CREDITOR_REFERENCE_CHARS])
            if len(rf) == CREDITOR_REFERENCE_CHARS and is_creditor_reference(rf):
                found[rf] = None
    return tuple(found)


def normalised(text: str) -> str:
    """Letters and digits alone, in upper case."""
    return "".join(character for character in text.upper() if character.isascii() and character.isalnum())


def as_body(text: str) -> str:
    """`normalised`, with 0, 1 and 8 read as the letters that the references' alphabet has instead of them."""
    return normalised(text).translate(_LOOKS_LIKE)


def mended_rf(compact: str) -> str:
    """What begins with RF, with digits where its check digits stand and the alphabet's letters after them."""
    return "RF" + compact[2:4].translate(_DIGIT_LIKE) + compact[4:].translate(_LOOKS_LIKE)


def _body(record_id: bytes) -> str:
    if len(record_id) != ID_BYTES:
        raise ValueError(f"a record's id has {ID_BYTES} bytes, not {len(record_id)}")
    return base64.b32encode(record_id[:_USED_BYTES]).decode()


def _check_of(body: str) -> str:
    remainder = 0
    for character in body:
        remainder = (remainder * 32 + _VALUE[character]) % _PRIME
    check = (1 - remainder * 32**_CHECK_CHARS) % _PRIME
    return "".join(_ALPHABET[check >> shift & 31] for shift in (10, 5, 0))


def _with_rf_check(body: str) -> str:
    return f"RF{98 - _mod97(body + 'RF00'):02d}{body}"


def _mod97(text: str) -> int:
    """ISO/IEC 7064 MOD 97-10: letters are the numbers 10 to 35."""
    return int("".join(str(int(character, 36)) for character in text)) % 97


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _compact_with_starts(text: str) -> tuple[str, list[int]]:
    """The text `normalised`, and where in it a word of the text began."""
    characters: list[str] = []
    starts: list[int] = []
    within = False
    for character in text.upper():
        if character.isascii() and character.isalnum():
            if not within:
                starts.append(len(characters))
            characters.append(character)
        within = character.isascii() and character.isalnum()
    return "".join(characters), starts
