"""A reader of records written from docs/spec alone: nothing of p2pgrid is imported here.

Ed25519 is PyNaCl's; the rest is the standard library. What a message's fields are, it takes from the tables of
messages.md, and what they may be, too: so a table that says too little fails.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nacl.bindings
import nacl.exceptions

ROOT = Path(__file__).parents[2]
SPEC, VECTORS = ROOT / "docs/spec", ROOT / "tests/vectors"


class Refused(Exception):
    """What the specification has a reader refuse; the code first."""


# -- record.md, section 1 and 2 -----------------------------------------------------------------------------------


def uvarint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value % 0x80 + 0x80])
        value //= 0x80
    return out + bytes([value])


def unsqueezed(text: str) -> bytes:
    """Hex in which `ab*300` between spaces is the bytes `ab` so often (tests/vectors/README.md)."""
    parts = (part.partition("*") for part in text.split(" "))
    return b"".join(bytes.fromhex(unit) * int(times or 1) for unit, _, times in parts)


def signature_input(payload_type: str, payload: bytes) -> bytes:
    return b"".join(uvarint(len(part)) + part for part in (b"p2pgrid", payload_type.encode(), payload))


def record_id(payload_type: str, payload: bytes) -> bytes:
    return hashlib.sha256(signature_input(payload_type, payload)).digest()


def admit_key(key: bytes) -> None:
    if len(key) != 33 or key[0] != 1 or not nacl.bindings.crypto_core_ed25519_is_valid_point(key[1:]):
        raise Refused("key-not-admissible")


def verify(key: bytes, message: bytes, signature: bytes) -> None:
    admit_key(key)
    try:
        nacl.bindings.crypto_sign_open(signature + message, key[1:])
    except nacl.exceptions.BadSignatureError:
        raise Refused("bad-signature") from None


def peer_id(key: bytes) -> str:
    digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    raw = bytes.fromhex("002408011220") + key[1:]
    number, text = int.from_bytes(raw), ""
    while number:
        number, digit = divmod(number, 58)
        text = digits[digit] + text
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


# -- MessagePack, the shortest form -------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, bytes):
        return _head(len(value), ((0xFF, b"\xc4", "B"), (0xFFFF, b"\xc5", ">H"), (2**32, b"\xc6", ">I"))) + value
    if isinstance(value, str):
        raw = value.encode()
        if len(raw) < 32:
            return bytes([0xA0 + len(raw)]) + raw
        return _head(len(raw), ((0xFF, b"\xd9", "B"), (0xFFFF, b"\xda", ">H"), (2**32, b"\xdb", ">I"))) + raw
    items = b"".join(map(pack, value))
    if len(value) < 16:
        return bytes([0x90 + len(value)]) + items
    return _head(len(value), ((0xFFFF, b"\xdc", ">H"), (2**32, b"\xdd", ">I"))) + items


def _head(length: int, forms: Sequence[tuple[int, bytes, str]]) -> bytes:
    _, mark, form = next(each for each in forms if length <= each[0])
    return mark + struct.pack(form, length)


def _pack_int(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack("b", value)
    unsigned = ((8, 0xCC, "B"), (16, 0xCD, ">H"), (32, 0xCE, ">I"), (64, 0xCF, ">Q"))
    signed = ((8, 0xD0, "b"), (16, 0xD1, ">h"), (32, 0xD2, ">i"), (64, 0xD3, ">q"))
    for bits, mark, form in unsigned if value >= 0 else signed:
        if -(2 ** (bits - 1)) <= value < (2**bits if value >= 0 else 0):
            return bytes([mark]) + struct.pack(form, value)
    raise Refused("malformed")


def unpack(data: bytes) -> Any:
    """In any encoding: whether it is the shortest is asked once the fields are known to be right."""
    value, rest = _unpack(data)
    if rest:
        raise Refused("malformed")
    return value


def check_canonical(value: Any, data: bytes) -> None:
    if pack(value) != data:
        raise Refused("not-canonical")


def _take(rest: bytes, size: int) -> tuple[bytes, bytes]:
    if len(rest) < size:
        raise Refused("malformed")
    return rest[:size], rest[size:]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused("malformed") from None


def _unpack(data: bytes) -> tuple[Any, bytes]:
    head, rest = _take(data, 1)
    mark = head[0]
    if mark < 0x80:
        return mark, rest
    if mark >= 0xE0:
        return mark - 256, rest
    if 0xA0 <= mark < 0xC0:
        raw, rest = _take(rest, mark - 0xA0)
        return _text(raw), rest
    if 0x90 <= mark < 0xA0:
        return _unpack_items(mark - 0x90, rest)
    if mark in (0xC2, 0xC3):
        return mark == 0xC3, rest
    numbers = {0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: "b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if mark in numbers:
        raw, rest = _take(rest, struct.calcsize(numbers[mark]))
        return struct.unpack(numbers[mark], raw)[0], rest
    lengths = {0xC4: "B", 0xC5: ">H", 0xC6: ">I", 0xD9: "B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}
    if mark not in lengths:
        raise Refused("malformed")
    raw, rest = _take(rest, struct.calcsize(lengths[mark]))
    (length,) = struct.unpack(lengths[mark], raw)
    if mark in (0xDC, 0xDD):
        return _unpack_items(length, rest)
    raw, rest = _take(rest, length)
    return (raw if mark <= 0xC6 else _text(raw)), rest


def _unpack_items(count: int, rest: bytes) -> tuple[list[Any], bytes]:
    items = []
    for _ in range(count):
        item, rest = _unpack(rest)
        items.append(item)
    return items, rest


# -- record.md, sections 3 to 5 -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    type: str
    payload: bytes
    signatures: dict[str, tuple[bytes, bytes]]
    """Key and signature by role."""

    @property
    def id(self) -> bytes:
        return record_id(self.type, self.payload)

    def check_signatures(self) -> None:
        for key, signature in self.signatures.values():
            verify(key, signature_input(self.type, self.payload), signature)

    @property
    def message(self) -> dict[str, Any]:
        """The payload by field names, its form checked."""
        if self.type not in message_types():
            raise Refused("wrong-type")
        return read_payload(message_types()[self.type][0], self.payload)

    def check_signed_by(self, keys: dict[str, bytes]) -> None:
        """Rule 14, then the payload."""
        for role, key in keys.items():
            if role not in self.signatures:
                raise Refused("signature-missing")
            if self.signatures[role][0] != key:
                raise Refused("wrong-key")
            verify(key, signature_input(self.type, self.payload), self.signatures[role][1])
        assert self.message


def from_wire(data: bytes) -> Record:
    if len(data) > 131072:
        raise Refused("oversize")
    value = unpack(data)
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], list):
        raise Refused("malformed")
    kind, payload, signatures = value
    for one in signatures:
        if not isinstance(one, list) or len(one) != 3:
            raise Refused("malformed")
        _check_signature(*one)
    _check_record(kind, payload, signatures)
    check_canonical(value, data)
    return _record(kind, payload, signatures)


def from_line(line: str | bytes) -> Record:
    raw = line.encode() if isinstance(line, str) else line
    if len(raw) > 262144:
        raise Refused("oversize")
    try:
        shown = json.loads(_text(raw))
        assert set(shown) == {"type", "payload", "signatures"}
        assert all(set(s) == {"role", "key", "signature"} for s in shown["signatures"])
        shown["type"].encode()
        payload = _base64(shown["payload"])
        signatures = [[s["role"], _base64(s["key"]), _base64(s["signature"])] for s in shown["signatures"]]
    except (ValueError, AssertionError, TypeError, AttributeError):
        raise Refused("malformed") from None
    for one in signatures:
        _check_signature(*one)
    _check_record(shown["type"], payload, signatures)
    if len(payload) > 131072:
        raise Refused("oversize")
    return _record(shown["type"], payload, signatures)


def _check_record(kind: Any, payload: Any, signatures: list[Any]) -> None:
    if not isinstance(kind, str) or len(kind) > 64 or not isinstance(payload, bytes) or len(signatures) > 8:
        raise Refused("malformed")


def _check_signature(role: Any, key: Any, signature: Any) -> None:
    is_sized = all(isinstance(b, bytes) and len(b) == n for b, n in ((key, 33), (signature, 64)))
    if role not in ("provider", "client", "operator") or not is_sized:
        raise Refused("malformed")


def _record(kind: str, payload: bytes, signatures: list[Any]) -> Record:
    by_role = {role: (key, signature) for role, key, signature in signatures}
    if len(by_role) != len(signatures):
        raise Refused("malformed")
    return Record(kind, payload, by_role)


def _base64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise Refused("malformed")
    return raw


# -- messages.md --------------------------------------------------------------------------------------------------


@cache
def message_types() -> dict[str, tuple[str, int]]:
    """Name and size by payload type, as the page has them."""
    text = (SPEC / "messages.md").read_text()
    found = re.findall(r"<!-- fields (\w+) -->\n`(\S+)`, at most (\d+) bytes of payload\.", text)
    return {kind: (name, int(most)) for name, kind, most in found}


@cache
def tables() -> dict[str, list[tuple[str, str]]]:
    """For each message or part: its fields with their types."""
    text = (SPEC / "messages.md").read_text()
    found = {}
    for name, block in re.findall(r"<!-- fields (\w+) -->\n(.*?)<!-- /fields", text, flags=re.DOTALL):
        rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+?) \| (.+) \|$", block, flags=re.MULTILINE)
        assert [int(row[0]) for row in rows] == list(range(len(rows))), name
        found[name] = [(field, kind) for _, field, kind, _ in rows]
    return found


@cache
def named_types() -> dict[str, str]:
    text = (SPEC / "messages.md").read_text().partition("<!-- types -->")[2].partition("<!-- /types -->")[0]
    return dict(re.findall(r"^\| \*\*(\w+)\*\* \| (.+?) \|", text, flags=re.MULTILINE))


LEFT_OUT: dict[str, Any] = {"Offer": [1, 0], "Order": 1, "Receipt": []}
"""messages.md, rule 1: with which value the last field is left out."""


def named(name: str, values: list[Any]) -> dict[str, Any]:
    fields = tables()[name]
    if name in LEFT_OUT and isinstance(values, list) and len(values) == len(fields) - 1:
        values = [*values, LEFT_OUT[name]]
    elif name in LEFT_OUT and isinstance(values, list) and len(values) == len(fields) and values[-1] == LEFT_OUT[name]:
        raise Refused("malformed")
    if not isinstance(values, list) or len(values) != len(fields):
        raise Refused("malformed")
    return {field: typed(kind, value) for (field, kind), value in zip(fields, values, strict=True)}


def typed(kind: str, value: Any) -> Any:
    """A value, held against its type as the table words it."""
    if array := re.fullmatch(r"array of (\d+) to (\d+): (.+)", kind):
        _within(isinstance(value, list) and int(array[1]) <= len(value) <= int(array[2]))
        return [typed(array[3], each) for each in value]
    if alias := re.fullmatch(r"\*\*(\w+)\*\*", kind):
        return typed(named_types()[alias[1]], value)
    if kind in tables():
        return named(kind, value)
    if numbers := re.fullmatch(r"integer, (\S+) to (\S+)", kind):
        _within(type(value) is int and _number(numbers[1]) <= value <= _number(numbers[2]))
    elif sizes := re.fullmatch(r"(?:(\d+) to )?(\d+) bytes", kind):
        _within(isinstance(value, bytes) and int(sizes[1] or sizes[2]) <= len(value) <= int(sizes[2]))
    elif sizes := re.fullmatch(r"text, (\d+) to (\d+) characters", kind):
        _within(isinstance(value, str) and int(sizes[1]) <= len(value) <= int(sizes[2]))
    elif pattern := re.fullmatch(r"text `(.+)`", kind):
        _within(isinstance(value, str) and re.fullmatch(pattern[1], value) is not None)
    elif re.fullmatch(r"\d+( or \d+)+", kind):
        _within(type(value) is int and str(value) in kind.split(" or "))
    elif kind == "true or false":
        _within(isinstance(value, bool))
    else:
        words = re.findall(r"`(\w+)`", kind)
        assert words, f"the page has a type that a reader cannot know: {kind}"
        _within(value in words)
    return value


def _within(is_right: bool) -> None:
    if not is_right:
        raise Refused("malformed")


def _number(text: str) -> int:
    if text.startswith("-(") or (text.startswith("-") and "^" in text):
        return -_number(text[1:].strip("()"))
    if power := re.fullmatch(r"(\d+)\^(\d+)(-1)?", text):
        return int(power[1]) ** int(power[2]) - bool(power[3])
    return int(text)


def read_payload(name: str, payload: bytes) -> dict[str, Any]:
    """record.md, rule 13: a message's payload by field names."""
    sizes = dict(message_types().values())
    if name in sizes and len(payload) > sizes[name]:
        raise Refused("oversize")
    value = unpack(payload)
    message = named(name, value)
    check_canonical(value, payload)
    if name in sizes:
        check_between(name, message)
    return message


def check_between(name: str, message: dict[str, Any]) -> None:
    """The rules between fields of one message, in the order of messages.md."""
    holds = all(_rules_of(name, message)) and all(len(digest) in (0, 32) for digest in _digests_of(name, message))
    if not holds:
        raise Refused("out-of-range")
    if name == "Channel" and channel_id(message) != message["channel"]:
        raise Refused("channel-id")


def _rules_of(name: str, m: dict[str, Any]) -> Iterator[bool]:
    match name:
        case "Offer":
            yield m["valid_until_ms"] > m["valid_from_ms"]
            yield len({entry["model"] for entry in m["models"]}) == len(m["models"])
            for entry in m["models"]:
                for tariff in (entry["tariff"], *(period["tariff"] for period in entry["schedule"])):
                    yield tariff["cached_input_upm"] <= tariff["input_upm"]
                yield from (period["until_minute"] > period["from_minute"] for period in entry["schedule"])
        case "Channel":
            yield m["expires_ms"] > m["opened_ms"]
        case "Receipt":
            yield len(set(m["mentions"])) == len(m["mentions"])
            for one in (m, *m["requests"]):
                yield one["usage"]["cached_tokens"] <= one["usage"]["prompt_tokens"]
            yield not m["requests"] or m["status"] == "completed"
            yield all(one["status"] not in ("interrupted", "unacknowledged") for one in m["requests"])
        case "Dispute" | "Answer" | "Opening":
            yield m["by"] != "operator"
        case "Card":
            yield m["valid_until_ms"] > m["valid_from_ms"]
            for names in ("peers", "revoked"):
                yield len({one["key"] for one in m[names]}) == len(m[names])
            yield from (peer["valid_until_ms"] > peer["valid_from_ms"] for peer in m["peers"])
            yield len(m["successor"]) in (0, 33)
            yield m["domain"] == "" or is_domain(m["domain"])
        case "Statement":
            yield m["last_receipt"] >= m["first_receipt"] - 1
            yield m["from_ms"] < m["until_ms"] <= m["stated_ms"] <= m["due_ms"]
            yield from (line["cached_tokens"] <= line["prompt_tokens"] for line in m["lines"])
            yield len({(one["category"], one["rate_bp"]) for one in m["vat"]}) == len(m["vat"])
            for one in m["vat"]:
                yield (
                    one["rate_bp"] > 0
                    if one["category"] == "S"
                    else not one["rate_bp"] or one["category"] in ("L", "M")
                )
        case "Invoice":
            yield m["gross_cents"] == m["net_cents"] + m["vat_cents"]
            yield m["net_cents"] <= 0 if m["type_code"] in (381, 261) else m["net_cents"] >= 0
        case "Payment":
            yield bool(m["statement"]) == bool(m["invoice_number"])
            yield m["amount_cents"] != 0
            yield m["kind"] != "received" or m["amount_cents"] > 0
            yield m["kind"] not in ("returned", "refunded") or m["amount_cents"] < 0
        case "SetOff":
            sides = [m["first"], m["second"]]
            yield sides[0]["channel"] < sides[1]["channel"]
            yield sides[0]["creditor"] != sides[1]["creditor"]
            yield m["agreed_ms"] < m["until_ms"]
            for side, other in (sides, sides[::-1]):
                yield side["creditor"] != side["debtor"]
                yield (side["card"] == b"") == (side["creditor"] == other["debtor"])
                yield sum(claim["cents"] for claim in side["claims"]) == m["amount_cents"]
                named = [(claim["statement"], claim["invoice_number"]) for claim in side["claims"]]
                yield len(set(named)) == len(named)
        case "Cycle":
            debts = m["debts"]
            parties = {debt[name] for debt in debts for name in ("creditor", "debtor")}
            yield debts[0]["channel"] == min(debt["channel"] for debt in debts)
            for name in ("channel", "creditor", "debtor"):
                yield len({debt[name] for debt in debts}) == len(debts)
            for at, debt in enumerate(debts):
                yield debt["creditor"] != debt["debtor"]
                yield (debt["card"] == b"") == (debt["creditor"] == debts[(at + 1) % len(debts)]["debtor"])
            yield m["timekeeper"] not in parties and m["proposer"] in parties
            yield m["proposed_ms"] < m["deadline_ms"]
        case "Leg":
            yield m["creditor"] != m["debtor"]
        case "Default":
            yield m["claimed_ms"] >= m["as_of_ms"]
            yield all(before < after for before, after in itertools.pairwise(m["payments"]))


def _digests_of(name: str, message: dict[str, Any]) -> Iterator[bytes]:
    for field, kind in tables()[name]:
        if kind == "**digest**":
            yield message[field]
        part = kind.rpartition(": ")[2]
        if part in tables():
            inner = message[field] if kind != part else [message[field]]
            for each in inner:
                yield from _digests_of(part, each)


# -- messages.md, section 7 ---------------------------------------------------------------------------------------


def rounded(amount: int, unit: int) -> int:
    """Half up by magnitude."""
    whole = (abs(amount) + unit // 2) // unit
    return whole if amount >= 0 else -whole


def vat_cents(net_cents: int, rate_bp: int) -> int:
    return rounded(net_cents * rate_bp, 10_000)


def components(line: dict[str, Any]) -> list[int]:
    """Rule 22a, in pico: those that the tariff makes, and the difference if there is one."""
    uncached = line["prompt_tokens"] - line["cached_tokens"]
    parts = [
        uncached * line["input_upm"],
        line["cached_tokens"] * line["cached_input_upm"],
        line["output_tokens"] * line["output_upm"],
    ]
    difference = line["amount_pico"] - sum(parts)
    return [*parts, difference] if difference else parts


def taken(disputes: Sequence[dict[str, Any]], last_receipt: int, at_ms: int) -> tuple[int, int]:
    """Rule 22b: all credit, and all that is held."""
    credit: dict[int, int] = {}
    contested: dict[int, int] = {}
    for one in disputes:
        number, amount = one["receipt_number"], one["contested_pico"]
        is_answered = one["answered_ms"] is not None and one["answered_ms"] <= at_ms
        if number > last_receipt or one["disputed_ms"] > at_ms:
            continue
        if not is_answered:
            contested[number] = max(contested.get(number, 0), amount)
        elif one["is_accepted"]:
            credit[number] = max(credit.get(number, 0), amount)
    held = sum(max(amount - credit.get(number, 0), 0) for number, amount in contested.items())
    return sum(credit.values()), held


def billed(receipt: dict[str, Any]) -> list[int]:
    """Rule 22a: prompt, cached and output tokens that a line counts."""
    prompt, cached, output = receipt["usage"]
    costs = ((prompt - cached) * receipt["tariff"][0], cached * receipt["tariff"][1], output * receipt["tariff"][2])
    is_owing = receipt["status"] in ("completed", "cancelled", "interrupted", "unacknowledged")
    return [prompt, cached, output] if is_owing and (receipt["amount_pico"] or not any(costs)) else [0, 0, 0]


def net_cents(statement: dict[str, Any], held_before_pico: int) -> int:
    """Rule 23."""
    lines = sum(rounded(part, 10**10) for line in statement["lines"] for part in components(line))
    off = rounded(statement["credits_pico"], 10**10) + rounded(statement["held_pico"], 10**10)
    return lines - off + rounded(held_before_pico, 10**10)


def freed_pico(statements: Sequence[dict[str, Any]], paid_cents: int, credited_pico: int) -> int:
    """session.md, section 8a."""
    balance = sum(one["gross_cents"] for one in statements) - paid_cents
    balance += statements[0]["opening_cents"] if statements else 0
    held = [0, *(one["held_pico"] for one in statements)]
    freed = sum(one["total_pico"] for one in statements) - held[-1]
    freed += max(credited_pico - sum(one["credits_pico"] for one in statements), 0)
    if balance <= 0:
        rate = statements[-1]["rate_bp"] if statements else 2700
        return int(freed + -balance * 10**14 // (10_000 + rate))
    for at in reversed(range(len(statements))):
        one = statements[at]
        if one["gross_cents"] <= 0:
            continue
        billed = max(one["total_pico"] - one["credits_pico"] - (held[at + 1] - held[at]), 0)
        open_cents = min(balance, one["gross_cents"])
        freed -= -(-billed * open_cents // one["gross_cents"])
        balance -= open_cents
    return int(freed - balance * 10**10)


def judge_default(claim: Record, records: Sequence[Record], at_ms: int) -> tuple[str, int]:
    """messages.md, rule 24g."""
    said = claim.message
    found = [one for one in records if one.type == "/p2pgrid/channel/1" and one.message["channel"] == said["channel"]]
    keys = {role: found[0].message[role] for role in ("provider", "client")} if found else {}
    if not found or not all(_is_signed(one, keys) for one in found):
        return "unproven", 0
    own = {"provider": keys["provider"]}
    here = [one for one in records if one.message.get("channel") == said["channel"] and _is_signed(one, own)]
    stated = next((one for one in here if one.id == said["statement"] and _is_signed(one, keys)), None)
    if stated is None or not _is_signed(claim, own):
        return "unproven", 0
    due = stated.message
    since = [
        one
        for one in here
        if one.type == "/p2pgrid/payment/1"
        and (one.message["statement"] == stated.id or one.message["booked_ms"] > due["stated_ms"] + 120_000)
    ]
    bills = [
        one.message["gross_cents"]
        for one in here
        if one.type == "/p2pgrid/invoice/1" and one.message["statement"] == stated.id
    ]
    if (
        due["closing_cents"] != due["opening_cents"] + due["gross_cents"] - due["payments_cents"] - due["set_off_cents"]
        or said["currency"] != due["currency"]
        or said["as_of_ms"] <= due["due_ms"] + 120_000
        or said["claimed_ms"] > at_ms + 120_000
        or not set(said["payments"]) <= {one.id for one in since}
        or (due["gross_cents"] > 0 and sum(bills) != due["gross_cents"])
    ):
        return "unproven", 0
    listed = sum(one.message["amount_cents"] for one in since if one.id in said["payments"])
    unlisted = [one.message for one in since if one.id not in said["payments"]]
    later = []
    at = stated.id
    statements = [one for one in here if one.type == "/p2pgrid/statement/1"]
    while following := [one for one in statements if one.message["previous"] == at]:
        best = min(following, key=lambda one: (one.message["closing_cents"], one.id))
        later.append(best.message)
        at = best.id
    until_ms = said["as_of_ms"] - 86_400_000
    if (
        said["unpaid_cents"] > due["closing_cents"] - listed
        or any(one["kind"] == "received" and one["booked_ms"] <= until_ms for one in unlisted)
        or (later and later[-1]["closing_cents"] <= 0 and later[-1]["stated_ms"] <= until_ms)
    ):
        return "false", 0
    set_off, all_set_off = 0, 0
    for one in records:
        if one.type != "/p2pgrid/set-off/1":
            continue
        message = one.message
        creditors = {"provider": message["first"]["creditor"], "client": message["second"]["creditor"]}
        for side in (message["first"], message["second"]):
            if (side["channel"], side["creditor"], side["debtor"]) != (said["channel"], *keys.values()):
                continue
            is_named = any(each["statement"] == stated.id for each in side["claims"])
            all_set_off += message["amount_cents"] if _is_signed(one, creditors) else 0
            if _is_signed(one, creditors) and (is_named or message["agreed_ms"] > due["stated_ms"] + 120_000):
                set_off += message["amount_cents"]
    paid = listed + sum(one["amount_cents"] for one in unlisted) + set_off
    left = [said["unpaid_cents"], due["closing_cents"] - paid]
    counted = due["closing_cents"]
    for one in later:
        counted -= one["payments_cents"] + one["set_off_cents"]
        left += [counted, *([0] if one["closing_cents"] <= 0 else [])]
    up_to, by_id = [due], {one.id: one.message for one in statements}
    while up_to[0]["previous"] in by_id:
        up_to.insert(0, by_id[up_to[0]["previous"]])
    if up_to[0]["statement_number"] == 1:
        paid = sum(one.message["amount_cents"] for one in here if one.type == "/p2pgrid/payment/1")
        set_off = max(all_set_off, sum(one["set_off_cents"] for one in up_to))
        left.append(up_to[0]["opening_cents"] + sum(one["gross_cents"] for one in up_to) - paid - set_off)
    return ("stands", min(left)) if min(left) > 0 else ("cleared", 0)


def _is_signed(record: Record, keys: dict[str, bytes]) -> bool:
    try:
        record.check_signed_by(keys)
    except Refused:
        return False
    return True


def keys_of_default(client: bytes, records: Sequence[Record]) -> list[bytes]:
    """messages.md, rule 24h."""
    cards = {one.id: one.message for one in records if one.type == "/p2pgrid/card/1"}
    tied = set()
    for offer in (one.message for one in records if one.type == "/p2pgrid/offer/1"):
        named = {peer["key"] for peer in cards.get(offer["card"], {"peers": []})["peers"]}
        if {client, offer["provider"]} <= named:
            tied.add(offer["provider"])
    return sorted(tied - {client})


def is_domain(text: str) -> bool:
    """card.md, rule 3."""
    labels = text.split(".")
    fits = all(re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", label) for label in labels)
    return fits and len(labels) > 1 and len(text) <= 253 and labels[-1][0].isalpha()


def check_keys(name: str, message: dict[str, Any]) -> None:
    """record.md, rule 13: keys within a payload."""
    if name == "Channel":
        if message["provider"] == message["client"]:
            raise Refused("same-party")
        keys = [message["provider"], message["client"]]
    else:
        keys = [one["key"] for one in (*message["peers"], *message["revoked"])]
        keys += [message["successor"]] if message["successor"] else []
    for key in keys:
        admit_key(key)


def parse_peer_id(text: str) -> bytes:
    """record.md, rule 11: the key of 33 bytes."""
    digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number = 0
    for letter in text:
        if letter not in digits:
            raise Refused("key-not-admissible")
        number = number * 58 + digits.index(letter)
    raw = number.to_bytes((number.bit_length() + 7) // 8)
    key = b"\x01" + raw[5:]
    if raw[:5] != bytes.fromhex("2408011220") or peer_id(key) != text:
        raise Refused("key-not-admissible")
    admit_key(key)
    return key


def price(tariff: dict[str, int], usage: dict[str, int]) -> int:
    """Rule 12."""
    if usage["cached_tokens"] > usage["prompt_tokens"]:
        raise Refused("out-of-range")
    amount = (usage["prompt_tokens"] - usage["cached_tokens"]) * tariff["input_upm"]
    amount += usage["cached_tokens"] * tariff["cached_input_upm"] + usage["output_tokens"] * tariff["output_upm"]
    if amount >= 2**63:
        raise Refused("out-of-range")
    return amount


def tariff_at(entry: dict[str, Any], utc_offset_minutes: int, ordered_ms: int) -> dict[str, int]:
    """Rule 8."""
    minute = ordered_ms // 60_000 + utc_offset_minutes
    weekday = 2 ** ((minute // 1440 + 3) % 7)
    for period in entry["schedule"]:
        if period["weekdays"] & weekday and period["from_minute"] <= minute % 1440 < period["until_minute"]:
            return dict(period["tariff"])
    return dict(entry["tariff"])


def channel_id(channel: dict[str, bytes]) -> bytes:
    """Rule 10."""
    parts = (channel[name] for name in ("provider", "client", "provider_nonce", "client_nonce"))
    return hashlib.sha256(b"p2pgrid/channel/1" + b"".join(parts)).digest()


def commitment(word: str, key: bytes, content: bytes) -> bytes:
    """session.md, section 3."""
    return hmac.digest(key, word.encode() + b"\0" + content, "sha256")


FORBIDDEN = {
    "kv_transfer_params",
    "vllm_xargs",
    "priority",
    "request_id",
    "use_beam_search",
    "prompt_embeds",
    "chat_template",
    "mm_processor_kwargs",
    "media_io_kwargs",
}


def read_request(endpoint: str, body: str, context_tokens: int) -> dict[str, Any] | str:
    """session.md, rules 3.2 to 3.4: what a body asks for, or why it is refused."""
    if endpoint not in ("/v1/chat/completions", "/v1/completions"):
        return "unknown-endpoint"
    try:
        asked = json.loads(body)
        options = asked.get("stream_options") or {}
        assert isinstance(asked["model"], str) and isinstance(options, dict)
        for flag in (*map(asked.get, ("stream", "return_token_ids", "echo", "include_reasoning")), *options.values()):
            assert flag is None or isinstance(flag, bool)
        numbers = [asked.get(name) for name in ("max_tokens", "max_completion_tokens", "n", "best_of")]
        assert all(number is None or type(number) is int for number in numbers)
    except (ValueError, AssertionError, AttributeError, KeyError):
        return "bad-request"
    if FORBIDDEN & set(asked) or asked.get("echo") or asked.get("include_reasoning") is False:
        return "unsupported"
    if not all(number is None or 1 <= number <= 1_000_000 for number in numbers):
        return "bad-request"
    prompts = _prompts(asked.get("prompt"))
    n, best_of = asked.get("n") or 1, asked.get("best_of") or 1
    choices = prompts * max(n, best_of)
    if not 1 <= choices <= 128:
        return "bad-request"
    if not (asked.get("stream") and asked.get("return_token_ids") and options.get("include_usage")):
        return "not-metered"
    each = max(asked.get("max_tokens") or 0, asked.get("max_completion_tokens") or 0) or context_tokens
    return {
        "code": "",
        "n": n,
        "prompts": prompts,
        "choices": choices,
        "max_output_tokens": min(each, context_tokens) * choices,
        "max_prompt_tokens": min(len(body.encode()) + 1024 * prompts, context_tokens * prompts),
    }


def _prompts(prompt: Any) -> int:
    """A text, a list of texts, the ids of one prompt, or a list of such lists; 0 for what is none of these."""
    if prompt is None or isinstance(prompt, str) or prompt == []:
        return 1
    if not isinstance(prompt, list):
        return 0
    if all(isinstance(one, str) for one in prompt) or all(_is_plain_ids(one) for one in prompt):
        return len(prompt)
    return int(_is_plain_ids(prompt))


def _is_plain_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


def risk(order: dict[str, Any], tariff: dict[str, int], window_tokens: int) -> int:
    """session.md, section 8."""
    output = min(window_tokens, order["max_output_tokens"])
    used = {"prompt_tokens": order["max_prompt_tokens"], "cached_tokens": 0, "output_tokens": output}
    try:
        return min(price(tariff, used), int(order["max_amount_pico"]))
    except Refused:
        return int(order["max_amount_pico"])


def refusal_of(
    case: dict[str, Any], record: Record, opening: dict[str, Any], channel: dict[str, Any], offer: Record | None
) -> str:
    """session.md, rule 4.1: the first that fits."""
    order, now_ms, body = record.message, case["now_ms"], case["body"].encode()
    if order["channel"] != channel["channel"]:
        return "wrong-channel"
    if order["order_number"] <= case["last_order_number"]:
        return "order-number"
    if abs(order["ordered_ms"] - now_ms) > 120_000:
        return "clock-skew"
    if now_ms >= channel["expires_ms"]:
        return "channel-expired"
    if offer is None or offer.id != order["offer"]:
        return "unknown-offer"
    terms = offer.message
    if not terms["valid_from_ms"] <= now_ms <= terms["valid_until_ms"]:
        return "offer-expired"
    if terms["currency"] != channel["currency"]:
        return "wrong-currency"
    entry = next((one for one in terms["models"] if one["model"] == order["model"]), None)
    if entry is None:
        return "unknown-model"
    if order["endpoint"] not in entry["endpoints"]:
        return "unknown-endpoint"
    if commitment("request", opening["commitment_key"], body) != order["request_commitment"]:
        return "commitment"
    asked = read_request(order["endpoint"], case["body"], entry["context_tokens"])
    if isinstance(asked, str):
        return asked
    tariff = tariff_at(entry, terms["utc_offset_minutes"], order["ordered_ms"])
    most = {
        "prompt_tokens": order["max_prompt_tokens"],
        "cached_tokens": 0,
        "output_tokens": order["max_output_tokens"],
    }
    is_covered = order["max_output_tokens"] >= asked["max_output_tokens"] and order["max_amount_pico"] >= price(
        tariff, most
    )
    if order["first_token_deadline_ms"] <= order["ordered_ms"] or not is_covered:
        return "order-caps"
    risks = [*case["open_risks_pico"], risk(order, tariff, channel["window_tokens"])]
    if len(risks) > channel["max_open_orders"] or sum(risks) - max(risks) > case["countersigned_pico"]:
        return "too-many-open-orders"
    unpaid = case["total_pico"] - case["freed_pico"] + case["reserved_pico"] + order["max_amount_pico"]
    if case["overdue_from_ms"] and now_ms >= case["overdue_from_ms"] and unpaid > 0:
        return "payment-overdue"
    return "credit-exhausted" if unpaid > channel["credit_limit_pico"] else ""


# -- card.md ------------------------------------------------------------------------------------------------------


def check_chain(cards: Sequence[Record]) -> None:
    """Section 2: each card follows the one before."""
    for before, card in zip((None, *cards), cards, strict=False):
        card.check_signed_by({"operator": card.message["operator"]})
        check_keys("Card", card.message)
        if before is None:
            continue
        old, new = before.message, card.message
        if new["sequence"] == old["sequence"]:
            raise Refused("two-records-one-slot")
        follows = new["previous"] == before.id and new["operator"] in (old["operator"], old["successor"])
        if new["sequence"] < old["sequence"] or not follows:
            raise Refused("broken-card-chain")


def state_of_key(chain: Sequence[dict[str, Any]], key: bytes, at_ms: int) -> str:
    """Rule 7."""
    revoked = [one["since_ms"] for card in chain for one in card["revoked"] if one["key"] == key]
    named = [one for card in chain for one in card["peers"] if one["key"] == key]
    if revoked and min(revoked) <= at_ms:
        return "revoked"
    if not named or at_ms < named[-1]["valid_from_ms"]:
        return "unknown"
    until_ms = min(named[-1]["valid_until_ms"], chain[-1]["valid_until_ms"])
    return "expired" if at_ms > until_ms else "bound"


# -- discovery.md -------------------------------------------------------------------------------------------------


def what_becomes_of(offer: dict[str, Any], shown: Record, key: bytes, now_ms: int) -> str:
    """Section 5: `withdrawn` or `stands`, once the peer with that key has shown a withdrawal."""
    if shown.type != "/p2pgrid/withdrawal/1":
        raise Refused("wrong-type")
    shown.check_signed_by({"provider": key})
    said = shown.message
    if said["provider"] != key:
        raise Refused("wrong-key")
    if said["withdrawn_ms"] > now_ms + 120_000:
        raise Refused("not-in-force")
    return "withdrawn" if offer["sequence"] < said["sequence"] else "stands"


# -- log.md -------------------------------------------------------------------------------------------------------


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return node_hash(tree_hash(leaves[:split]), tree_hash(leaves[split:]))


def root_of(leaf: bytes, index: int, size: int, hashes: Sequence[bytes]) -> bytes:
    """Where an inclusion proof leads (RFC 9162, section 2.1.3.2)."""
    node, last, found = index, size - 1, leaf
    for each in hashes:
        if last == 0:
            raise Refused("bad-proof")
        if node % 2 or node == last:
            found = node_hash(each, found)
            while node % 2 == 0 and node:
                node, last = node // 2, last // 2
        else:
            found = node_hash(found, each)
        node, last = node // 2, last // 2
    if last:
        raise Refused("bad-proof")
    return found


def check_note(note: str, origin: str, key: bytes) -> tuple[int, bytes]:
    """Size and root of a checkpoint that the log's own key signed."""
    text, _, tail = note.rpartition("\n\n")
    text += "\n"
    key_id = hashlib.sha256(f"{origin}\n".encode() + b"\x01" + key[1:]).digest()[:4]
    lines = [base64.b64decode(line.split(" ")[2]) for line in tail.splitlines() if line.split(" ")[1] == origin]
    own = [raw for raw in lines if raw[:4] == key_id]
    if not own:
        raise Refused("signature-missing")
    for raw in own:
        verify(key, text.encode(), raw[4:])
    named_origin, size, root = text.splitlines()[:3]
    if named_origin != origin or origin != f"p2pgrid/{peer_id(key)}":
        raise Refused("wrong-origin")
    return int(size), base64.b64decode(root)


def check_cosignature(note: str, witness: bytes) -> int:
    """When the witness saw it, in seconds."""
    text, _, tail = note.rpartition("\n\n")
    text += "\n"
    name = f"p2pgrid/{peer_id(witness)}"
    key_id = hashlib.sha256(f"{name}\n".encode() + b"\x04" + witness[1:]).digest()[:4]
    raw = next(base64.b64decode(line.split(" ")[2]) for line in tail.splitlines() if line.split(" ")[1] == name)
    time_s = int.from_bytes(raw[4:12])
    if raw[:4] != key_id:
        raise Refused("signature-missing")
    verify(witness, f"cosignature/v1\ntime {time_s}\n{text}".encode(), raw[12:])
    return time_s


# -- session.md, section 5 ----------------------------------------------------------------------------------------


@dataclass
class Counts:
    n: int
    by_choice: dict[int, int]
    prompts: dict[int, int]
    usage: dict[str, Any] | None = None
    response_id: str = ""
    finished: dict[int, str] | None = None
    contradicts_itself: bool = False
    done: bool = False
    failed: bool = False

    @property
    def output_tokens(self) -> int:
        return sum(self.by_choice.values())

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompts.values()) if self.prompts else int((self.usage or {}).get("prompt_tokens", 0))

    @property
    def cached_tokens(self) -> int:
        details = (self.usage or {}).get("prompt_tokens_details") or {}
        return min(int(details.get("cached_tokens") or 0), self.prompt_tokens)

    @property
    def finish_reason(self) -> str | None:
        return self.finished[min(self.finished)][:32] if self.finished else None

    def contradict(self, is_one: bool) -> None:
        self.contradicts_itself = self.contradicts_itself or is_one

    def see_prompt(self, number: int, ids: list[int] | None) -> None:
        if ids is not None:
            self.contradict(self.prompts.setdefault(number, len(ids)) != len(ids))


def count_answer(stream: str, n: int) -> tuple[Counts, bool]:
    """Rules 5.1 to 5.5; False if it is no stream."""
    counts = Counts(n, {}, {}, finished={})
    spent = 0
    for event in re.findall(r".*?\n\r?\n", stream, flags=re.DOTALL):  # up to a line's end and a blank line
        spent += 64 - len(event.encode())
        lines = event.replace("\r\n", "\n").split("\n")
        shown = [line[5:].removeprefix(" ") for line in lines if line == "data" or line.startswith("data:")]
        if len(event.encode()) > 2**23 or len(shown) > 1024 or spent > 65536:
            return counts, False
        data = "\n".join(shown)
        if not data:
            continue
        if counts.done:
            return counts, False
        if data == "[DONE]":
            counts.done = True
            continue
        try:
            chunk = json.loads(data)
            data.encode().decode()
            json.dumps(chunk, ensure_ascii=False).encode()
            _check_chunk(chunk)
        except (ValueError, AssertionError, AttributeError, TypeError):
            return counts, False
        _count_chunk(counts, chunk)
    return counts, True


def _check_chunk(chunk: dict[str, Any]) -> None:
    """Rule 5.5: what is known has its type."""
    assert isinstance(chunk, dict) and _is_text(chunk.get("id", ""), 256)
    assert isinstance(chunk.get("choices", []), list) and len(chunk.get("choices", [])) <= 1024
    assert _is_ids(chunk.get("prompt_token_ids"))
    for choice in chunk.get("choices", []):
        assert _is_number(choice.get("index", 0), 1023)
        assert _is_ids(choice.get("token_ids")) and _is_ids(choice.get("prompt_token_ids"))
        assert choice.get("finish_reason") is None or _is_text(choice["finish_reason"], 64)
    usage = chunk.get("usage") or {}
    assert isinstance(usage, dict) and (usage or chunk.get("usage") in (None, {}))
    assert _is_number(usage.get("prompt_tokens", 0), 8_000_000)
    details = usage.get("prompt_tokens_details") or {}
    for count in (usage.get("completion_tokens"), details.get("cached_tokens")):
        assert count is None or _is_number(count, 8_000_000)
    error = chunk.get("error") or {}
    assert isinstance(error, dict) and _is_text(error.get("message", ""), 2**23)
    assert error.get("type") is None or _is_text(error["type"], 2**23)


def _is_number(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most


def _is_ids(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(_is_number(one, 2**31 - 1) for one in value))


def _count_chunk(counts: Counts, chunk: dict[str, Any]) -> None:
    assert counts.finished is not None
    counts.failed = counts.failed or chunk.get("error") is not None
    said = chunk.get("id", "")
    counts.contradict(bool(counts.response_id and said and said != counts.response_id))
    counts.response_id = counts.response_id or said
    counts.see_prompt(0, chunk.get("prompt_token_ids"))
    choices = chunk.get("choices", [])
    for choice in choices:
        index = choice.get("index", 0)
        counts.see_prompt(index // counts.n, choice.get("prompt_token_ids"))
        ids = choice.get("token_ids") or []
        counts.contradict(bool(ids) and index in counts.finished)
        counts.by_choice[index] = counts.by_choice.get(index, 0) + len(ids)
        if choice.get("finish_reason") is not None:
            counts.finished.setdefault(index, choice["finish_reason"])
            counts.failed = counts.failed or counts.finished[index] == "abort"
    usage = chunk.get("usage")
    if usage is None:
        return
    if not choices:
        counts.usage = usage
        counts.contradict((usage.get("completion_tokens") or 0) != counts.output_tokens)
        prompt = usage.get("prompt_tokens", 0)
        counts.contradict(bool(counts.prompts) and prompt != counts.prompt_tokens)
        details = usage.get("prompt_tokens_details") or {}
        counts.contradict((details.get("cached_tokens") or 0) > prompt)
    elif len(choices) == 1:
        index = choices[0].get("index", 0)
        counts.contradict((usage.get("completion_tokens") or 0) != counts.by_choice[index])
        prompt = usage.get("prompt_tokens", 0)
        counts.contradict(counts.prompts.get(index // counts.n, prompt) != prompt)
