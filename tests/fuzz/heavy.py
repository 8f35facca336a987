"""Inputs made to cost their reader much: deep, many, long, repeated, larger inside than outside. By form and size."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from typing import Final

from p2pgrid.proto.frame import Kind, encode_credit, encode_frame, encode_ping, encode_reason
from tests.fuzz.targets import TARGETS, Target

Heavy = Iterator[tuple[str, bytes]]


def filled(size: int, unit: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """As many units as fit."""
    return before + unit * max(0, (size - len(before) - len(after)) // len(unit)) + after


def counted(
    size: int, make: Callable[[int], bytes], before: bytes = b"", after: bytes = b"", join: bytes = b""
) -> bytes:
    """Different units, as many as fit."""
    units, left, number = [], size - len(before) - len(after), 0
    while left > 0:
        units.append(make(number))
        left -= len(units[-1]) + len(join)
        number += 1
    return before + join.join(units[:-1]) + after


def _raw(size: int) -> Heavy:
    yield "zeros", bytes(size)
    yield "ones", b"\xff" * size
    yield "letters", b"a" * size
    yield "line feeds", b"\n" * size
    yield "DER nests", filled(size, b"\x30\x80")
    yield "DER long", b"\x30\x83" + size.to_bytes(3) + bytes(size - 5)
    yield "protobuf empties", filled(size, b"\x42\x00", b"\x08\x03")
    yield "protobuf nests", filled(size, b"\x42\x7f")
    yield "protobuf groups", filled(size, b"\x0b")
    yield "protobuf long varint", b"\x08" + b"\x80" * (size - 1)


def _text(size: int) -> Heavy:
    yield from _raw(size)
    for unit in (
        b"/ip4/1.2.3.4",
        b"/tcp/1",
        b"/p2p/1",
        b"/",
        b"/dns/a",
        b"/unix/a",
        b"1",
        b"z",
        b".",
        b",",
        b"LT,",
        b"9",
    ):
        yield f"{unit.decode()} again and again", filled(size, unit)
    yield "two wishes", filled(size, b"LT,", after=b"\n" + b"9" * (size // 2))
    yield "one wish", b"\n" + b"9" * (size - 1)
    yield "addresses", counted(size, lambda i: b"/ip4/1.2.3.4/tcp/%d" % (i % 65536), join=b"\n")
    yield "long names", filled(size, b"/dns4/" + b"\xc3\xa4" * 60 + b"/tcp/1\n")
    yield "a long multiaddr", filled(size, b"/tcp/1", b"/ip4/1.2.3.4")
    yield "binary addresses", counted(size, lambda i: b"\x04\x01\x02\x03\x04\x06" + (i % 65536).to_bytes(2), join=b"\n")
    yield "gauges", filled(size, b"vllm:num_requests_running{} 1\n")
    yield "open gauges", filled(size, b"vllm:num_requests_running{")
    yield "a gauge without an end", filled(size, b"} ", b"vllm:num_requests_running{")
    yield "a long gauge", b"vllm:num_requests_running " + b"1" * (size - 30) + b"\n"


def _msgpack(size: int) -> Heavy:
    yield from _raw(size)
    yield "nested arrays", b"\x91" * size
    yield "nested maps", filled(size, b"\x81\xa0")
    for name, unit in (
        ("nils", b"\xc0"),
        ("arrays", b"\x90"),
        ("maps", b"\x80"),
        ("texts", b"\xa0"),
        ("bytes", b"\xc4\0"),
    ):
        n = (size - 5) // len(unit)
        yield f"an array of {name}", b"\xdd" + n.to_bytes(4) + unit * n
        yield f"a record with {name}", b"\x93\xa1a\xc4\0\xdd" + (n - 5).to_bytes(4) + unit * (n - 5)
        yield f"a long array that ends early, {name}", b"\xdd\xff\xff\xff\xff" + unit * n
    yield "a map of few keys", b"\xdf" + ((size - 5) // 2).to_bytes(4) + filled(size - 5, b"\x01\x01")
    yield "long bytes", b"\xc6" + (size - 5).to_bytes(4) + bytes(size - 5)
    yield "bytes that are not there", b"\xc6\xff\xff\xff\xff" + bytes(size - 5)
    yield "a long text", b"\xdb" + (size - 5).to_bytes(4) + b"a" * (size - 5)
    yield "a text that is none", b"\xdb" + (size - 5).to_bytes(4) + b"\xff" * (size - 5)
    key, signature = b"\xc4\x21" + bytes(33), b"\xc4\x40" + bytes(64)
    one = b"\x93\xa8provider" + key + signature
    n = max(1, (size - 20) // len(one))
    yield "many signatures", b"\x93\xa1a\xc4\0\xdd" + n.to_bytes(4) + one * n


def _json_values(size: int) -> Heavy:
    """One JSON text each, on one line."""
    yield "open brackets", b"[" * size
    yield "open objects", filled(size, b'{"a":')
    half = size // 2
    yield "nested arrays", b'{"a":' + b"[" * (half - 4) + b"]" * (half - 4) + b"}"
    for key in (b"choices", b"x", b"data", b"signatures", b"prompt"):
        for name, unit in (("ones", b"1,"), ("objects", b"{},"), ("arrays", b"[],"), ("texts", b'"",')):
            yield (
                f"{key.decode()}: many {name}",
                filled(size, unit, b'{"model":"m","' + key + b'":[', unit[:-1] + b"]}"),
            )
    inner = b'{"id":"a","choices":[{"index":0,'
    for key in (b"token_ids", b"x"):
        for name, unit in (("ones", b"1,"), ("objects", b"{},"), ("arrays", b"[],"), ("small objects", b'{"":0},')):
            yield f"a choice's {key.decode()}: {name}", filled(size, unit, inner + b'"%b":[' % key, unit[:-1] + b"]}]}")
    calls = inner + b'"delta":{"tool_calls":['
    yield "tool calls", counted(size, lambda i: b'{"index":%d}' % (i % 1023), calls, b"]}}]}", b",")
    yield "tool calls that grow", filled(size, b'{"index":0,"a":"b"},', calls, b"{}]}}]}")
    yield "small choices", counted(size, lambda i: b'{"index":%d}' % (i % 1024), b'{"choices":[', b"]}", b",")
    yield "many keys", counted(size, lambda i: b'"k%d":1' % i, b"{", b"}", b",")
    yield "many keys in a choice", counted(size, lambda i: b'"k%d":""' % i, inner, b"}]}", b",")
    yield "one key again and again", filled(size, b'"choices":[],', b'{"type":"a",', b'"model":"m"}')
    yield "a long integer", b'{"model":"m","n":' + b"9" * (size - 20) + b"}"
    yield "a long fraction", b'{"model":"m","x":0.' + b"3" * (size - 21) + b"}"
    yield "a long exponent", b'{"model":"m","x":1e' + b"9" * (size - 21) + b"}"
    yield "many floats", filled(size, b"1.5e3,", b'{"model":"m","x":[', b"1]}")
    yield "many long integers", filled(size, b"9" * 300 + b",", b'{"model":"m","x":[', b"1]}")
    yield "escapes", filled(size, b"\\u0041", b'{"model":"', b'"}')
    yield "half surrogates", filled(size, b"\\ud800", b'{"model":"', b'"}')
    yield "a long text", filled(size, b"a", b'{"id":"', b'"}')
    yield "a wide text", filled(size, b"a", b'{"choices":[{"index":0,"text":"', b'\xf0\x9f\x98\x80"}]}')
    yield "spaces", filled(size, b" ", b'{"choices":', b"[]}")
    yield "base64", filled(size, b"AAAA", b'{"type":"a","payload":"', b'","signatures":[]}')
    yield "base64 that is none", filled(size, b"A===", b'{"type":"a","payload":"', b'","signatures":[]}')
    signature = b'{"role":"provider","key":"%b","signature":"%b"},' % (
        base64.b64encode(bytes(33)),
        base64.b64encode(bytes(64)),
    )
    yield "signatures", filled(size, signature, b'{"type":"a","payload":"","signatures":[', signature[:-1] + b"]}")


def _json(size: int) -> Heavy:
    yield from _raw(size)
    yield from _json_values(size)


def _sse(size: int) -> Heavy:
    yield from _raw(size)
    for unit in (b"\n\n", b"\r\n", b"\n\r", b"\r\n\r\n", b":\n\n", b"a\n", b"data:\n", b"data\n", b"data: {}\n\n"):
        yield f"{unit!r} again and again", filled(size, unit)
        yield f"{unit!r} again and again, then an end", filled(size, unit, after=b"\n\n")
    for name, value in _json_values(size - 10):
        yield name, b"data: " + value + b"\n\n"
    yield from _events(size)
    yield "usage that is searched for", filled(size, b'data: "choices": ' + b" " * 50 + b"\n\n")
    yield "data of many lines", filled(size, b"data: 1,\n", b"data: [\n", b"data: 1]\n\n")
    yield "one line of data among many", filled(size, b"a\n", b"data: {}\n", b"\n")


def _events(size: int) -> Heavy:
    """Many small events."""
    chunks = {
        "tokens": b'{"choices":[{"index":0,"token_ids":[1]}]}',
        "tokens with usage": b'{"choices":[{"index":0,"token_ids":[1]}],"usage":{"completion_tokens":1}}',
        "texts": b'{"id":"a","choices":[{"index":0,"text":"a","token_ids":[1]}]}',
        "choices that end": b'{"choices":[{"index":0,"finish_reason":"stop"}]}',
        "usage": b'{"choices":[],"usage":{"prompt_tokens":0}}',
        "errors": b'{"error":{"message":"a"}}',
    }
    for name, chunk in chunks.items():
        yield f"many events: {name}", filled(size, b"data: " + chunk + b"\n\n")
        yield f"many long events: {name}", filled(size, b"data: " + chunk + b" " * 80 + b"\n\n")
    spread = counted(
        size,
        lambda i: b'data: {"choices":[{"index":%d,"finish_reason":"stop","prompt_token_ids":[1]}]}\n\n' % (i % 1024),
    )
    yield "events of many choices", spread


def _frames(size: int) -> Heavy:
    yield from _raw(size)
    frames = {
        "pings": encode_frame(0, Kind.PING, encode_ping(1)),
        "empty messages": encode_frame(1, 16),
        "late frames": encode_frame(3, 200),
        "one byte of bulk": encode_frame(1, 200, b"x"),
        "full messages": encode_frame(1, 16, bytes(65_536)),
        "full bulk": encode_frame(1, 200, bytes(65_536)),
        "credit": encode_frame(1, Kind.CREDIT, encode_credit(1)),
        "long headers": struct.pack(">IIB", 65_536, 1, 16),
        "frames for what is closed": encode_frame(5, Kind.RESET, encode_reason(0, "x")) + encode_frame(5, 16),
        "words": encode_frame(0, Kind.GOAWAY, encode_reason(0, "\n" * 256)),
    }
    for name, one in frames.items():
        yield name, filled(size, one)
    for first in (2, 7):
        yield f"streams opened from {first}", counted(size, lambda i, f=first: encode_frame(f + 2 * i, Kind.OPEN))  # type: ignore[misc]
        yield (
            f"streams opened and cut from {first}",
            counted(
                size,
                lambda i, f=first: (  # type: ignore[misc]
                    encode_frame(f + 2 * i, Kind.OPEN) + encode_frame(f + 2 * i, Kind.RESET, encode_reason(0, ""))
                ),
            ),
        )
        yield (
            f"streams opened and ended from {first}",
            counted(
                size,
                lambda i, f=first: encode_frame(f + 2 * i, Kind.OPEN) + encode_frame(f + 2 * i, Kind.END),  # type: ignore[misc]
            ),
        )
    hello = TARGETS["link-dialler"].samples()[-1]
    yield "pings after a handshake", filled(size, frames["pings"], hello)


def _messages(size: int) -> Heavy:
    yield from _raw(size)
    for kind in (34, 35, 36, 37, 38, 39, 40, 129):
        yield f"empty messages {kind}", filled(size, bytes([kind, 0, 0, 0]))
        yield f"messages {kind} of one byte", filled(size, bytes([kind, 0, 0, 1, 0x91]))
        payload = b"\xdd" + (50_000).to_bytes(4) + b"\x90" * 50_000
        yield f"messages {kind} of arrays", filled(size, bytes([kind]) + len(payload).to_bytes(3) + payload)
    for name, stream in _events(size - 1000):
        cut = [stream[i : i + 32_768] for i in range(0, len(stream), 32_768)]
        yield f"chunks: {name}", b"".join(bytes([129]) + len(c).to_bytes(3) + c for c in cut)
        yield f"chunks of one byte: {name}", b"".join(b"\x81\0\0\1" + stream[i : i + 1] for i in range(size // 5))
    for target in ("buyer", "seller"):
        for index, sample in enumerate(TARGETS[target].samples()):
            yield f"{target}'s sample {index} again and again", filled(size, sample)


def _lines(size: int) -> Heavy:
    yield from _raw(size)
    for name, value in _json_values(200_000):
        yield f"lines: {name}", filled(size, value + b"\n")
    yield "short lines", filled(size, b"{}\n")
    yield "blank lines", filled(size, b" \r\n")
    good = TARGETS["audit-files"].samples()[0]
    yield "a bundle again and again", filled(size, good)
    yield "one record again and again", filled(size, good.splitlines(keepends=True)[3])
    yield "a record, then short lines", filled(size, b"x\n", good.splitlines(keepends=True)[0])
    unsigned = b'{"type":"/p2pgrid/meter/1","payload":"%b","signatures":[]}\n'
    yield "unsigned records", counted(size, lambda i: unsigned % base64.b64encode(b"%020d" % i), good)


def _toml(size: int) -> Heavy:
    yield from _raw(size)
    yield "tables", counted(size, lambda i: b"[a%d]\n" % i)
    yield "a dotted table", filled(size, b"a.", b"[networks.", b"b]")
    yield "a dotted key", filled(size, b"a.", b"", b"b=1")
    yield "dotted keys", filled(size, b"a." * 100 + b"b=1\n")
    yield "open arrays", filled(size, b"[", b"x=")
    yield "open tables", filled(size, b"{a=", b"x=")
    yield "arrays of tables", filled(size, b"[[a]]\n")
    yield "peers", filled(size, b'"",', b"[networks.main]\npeers=[", b"]")
    yield "dates", filled(size, b"1979-05-27,", b"x=[", b"]")
    yield "a long integer", filled(size, b"1", b"x=")
    yield "quotes", filled(size, b"''", b"x='''")
    yield "escapes", filled(size, b"\\u0041", b'x="', b'"')


_FORMS: Final[dict[str, Callable[[int], Heavy]]] = {
    "raw": _raw,
    "text": _text,
    "msgpack": _msgpack,
    "json": _json,
    "sse": _sse,
    "frames": _frames,
    "messages": _messages,
    "lines": _lines,
    "toml": _toml,
}


def heavy_inputs(form: str, size: int) -> Heavy:
    """The inputs of a form, about `size` bytes each."""
    yield from _FORMS[form](size)


def own_inputs(target: Target, size: int) -> Heavy:
    """The target's samples filled up to that size."""
    for index, sample in enumerate(target.samples()):
        yield f"sample {index} again and again", filled(size, sample)
        yield f"sample {index} and zeros", sample + bytes(max(0, size - len(sample)))
