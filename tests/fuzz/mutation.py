"""What a hostile sender does to a sound message: flips, splices, cuts, lies about lengths, nests, repeats.

Pure functions of bytes and small integers, so that Hypothesis can shrink what it finds and atheris can use them too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

Mutation = Callable[[bytes, int, int, bytes], bytes]
"""(data, two integers, another sample) -> data."""

LIMITS: Final = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1)

TOKENS: Final = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"\r",
    b"data: ",
    b"[DONE]",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"-0",
    b"NaN",
    b"9" * 400,
    b"0." + b"1" * 400,
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\u0000"',
    b'"' + b"A" * 700 + b'"',
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\x80",
    b"[]",
    b"{}",
    b"[" * 300,
    b'{"a":' * 300,
    b"\x91" * 300,
    b"\x81\xa1a" * 300,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\xff",
    b"\xd6\xff\0\0\0\0",
    b"\xca\x7f\xc0\0\0",
    b"\xcb\x7f\xf0\0\0\0\0\0\0",
    b"\xcc\x01",
    b"\xcf" + b"\xff" * 8,
    b"\xd3" + b"\x80" + b"\0" * 7,
    b"\xc0",
    b"\xc3",
    b"=" * 4,
    b"AAAA" * 200,
    b"\x1f\x8b\x08\0\0\0\0\0",
    b"/tcp/0",
    b"/p2p/",
    b"[a]\n",
    b"a.b=1\n",
)


def _flip(data: bytes, a: int, b: int, _: bytes) -> bytes:
    if not data:
        return data
    at = a % len(data)
    return data[:at] + bytes([data[at] ^ (1 << b % 8)]) + data[at + 1 :]


def _set(data: bytes, a: int, b: int, _: bytes) -> bytes:
    at = a % (len(data) + 1)
    return data[:at] + bytes([b % 256]) + data[at + 1 :]


def _cut_end(data: bytes, a: int, _b: int, _: bytes) -> bytes:
    return data[: a % (len(data) + 1)]


def _cut_start(data: bytes, a: int, _b: int, _: bytes) -> bytes:
    return data[a % (len(data) + 1) :]


def _drop(data: bytes, a: int, b: int, _: bytes) -> bytes:
    at = a % (len(data) + 1)
    return data[:at] + data[at + b % 64 :]


def _insert(data: bytes, a: int, b: int, _: bytes) -> bytes:
    at = a % (len(data) + 1)
    return data[:at] + TOKENS[b % len(TOKENS)] + data[at:]


def _overwrite(data: bytes, a: int, b: int, _: bytes) -> bytes:
    at, token = a % (len(data) + 1), TOKENS[b % len(TOKENS)]
    return data[:at] + token + data[at + len(token) :]


def _splice(data: bytes, a: int, b: int, other: bytes) -> bytes:
    return data[: a % (len(data) + 1)] + other[b % (len(other) + 1) :]


def _join(data: bytes, _a: int, _b: int, other: bytes) -> bytes:
    return data + other


def _repeat_part(data: bytes, a: int, b: int, _: bytes) -> bytes:
    at = a % (len(data) + 1)
    part = data[at : at + 1 + b % 97]
    return data[:at] + part * (2 + b % 200) + data[at:]


def _swap_halves(data: bytes, a: int, _b: int, _: bytes) -> bytes:
    at = a % (len(data) + 1)
    return data[at:] + data[:at]


def _number(data: bytes, a: int, b: int, _: bytes) -> bytes:
    """An integer at a limit, in one of the widths that formats use."""
    at, value = a % (len(data) + 1), LIMITS[b % len(LIMITS)]
    width = (1, 2, 4, 8)[b // len(LIMITS) % 4]
    raw = (value % 2 ** (8 * width)).to_bytes(width)
    return data[:at] + raw + data[at + width :]


def _digits(data: bytes, a: int, b: int, _: bytes) -> bytes:
    """The number written at or after a place, at a limit."""
    at = next((i for i in range(a % (len(data) + 1), len(data)) if data[i : i + 1].isdigit()), len(data))
    end = at
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    return data[:at] + str(LIMITS[b % len(LIMITS)] - b % 2).encode() + data[end:]


def _wrap(data: bytes, a: int, b: int, _: bytes) -> bytes:
    """Nest the whole in what it may be part of."""
    depth = 1 + a % 200
    pairs = ((b"[", b"]"), (b'{"choices":[', b"]}"), (b"\x91", b""), (b"\x81\xa1a", b""), (b"data: ", b"\n\n"))
    before, after = pairs[b % len(pairs)]
    return before * depth + data + after * depth


def _reframe(data: bytes, a: int, b: int, _: bytes) -> bytes:
    """A length that is not true, big-endian, as frames and prefixes carry it."""
    return struct.pack(">I", LIMITS[a % len(LIMITS)] % 2**32) + data[b % 5 :]


MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip,
    _set,
    _cut_end,
    _cut_start,
    _drop,
    _insert,
    _overwrite,
    _splice,
    _join,
    _repeat_part,
    _swap_halves,
    _number,
    _digits,
    _wrap,
    _reframe,
)


def mutate(data: bytes, steps: Sequence[tuple[int, int, int]], others: Sequence[bytes]) -> bytes:
    """Apply each step (which mutation, two integers) in turn."""
    for which, a, b in steps:
        other = others[a % len(others)] if others else b""
        data = MUTATIONS[which % len(MUTATIONS)](data, a, b, other)
    return data
