"""Readers that are wrong on purpose: do the vectors notice each of them?

    python -m tests.spec.mutants

runs the tests of test_independent.py with each. `scripts/mutate_vectors` does that.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

READER: Final = (Path(__file__).parent / "reader.py").read_text()
LINK: Final = (Path(__file__).parent / "link_reader.py").read_text()
NETWORK: Final = (Path(__file__).parent / "network_reader.py").read_text()

MUTANTS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "the id without the payload's length",
        'for part in (b"p2pgrid", payload_type.encode(), payload))',
        'for part in (b"p2pgrid", payload_type.encode())) + payload',
    ),
    (
        "the key's first byte is not looked at",
        "key[0] != 1 or ",
        "",
    ),
    (
        "peer ids are not written again",
        " or peer_id(key) != text",
        "",
    ),
    (
        "the key within a peer id is not admitted",
        '        raise Refused("key-not-admissible")\n    admit_key(key)\n    return key',
        '        raise Refused("key-not-admissible")\n    return key',
    ),
    (
        "bytes after the end",
        '    if rest:\n        raise Refused("malformed")\n    return value',
        "    return value",
    ),
    (
        "text that is no UTF-8",
        "return raw.decode()\n    except",
        "return raw.decode(errors='replace')\n    except",
    ),
    (
        "cut off",
        '    if len(rest) < size:\n        raise Refused("malformed")\n',
        "",
    ),
    (
        "long encodings of records",
        "    check_canonical(value, data)\n    return _record",
        "    return _record",
    ),
    (
        "long encodings of payloads",
        "    check_canonical(value, payload)\n",
        "",
    ),
    (
        "the size of records",
        "    if len(data) > 131072:",
        "    if len(data) >= 131072:",
    ),
    (
        "the size of lines",
        "len(raw) > 262144",
        "len(raw) > 262145",
    ),
    (
        "the size of a line's payload",
        '    if len(payload) > 131072:\n        raise Refused("oversize")\n',
        "",
    ),
    (
        "the size of payloads",
        "len(payload) > sizes[name]",
        "len(payload) >= sizes[name]",
    ),
    (
        "types of any length",
        "len(kind) > 64 or ",
        "",
    ),
    (
        "two signatures in one role",
        '    if len(by_role) != len(signatures):\n        raise Refused("malformed")\n',
        "",
    ),
    (
        "other roles",
        'role not in ("provider", "client", "operator") or ',
        "",
    ),
    (
        "fields in a line that are not known",
        "assert set(shown) == {",
        "assert set(shown) >= {",
    ),
    (
        "base64 as it comes",
        '    if base64.b64encode(raw).decode() != text:\n        raise Refused("malformed")\n',
        "",
    ),
    (
        "another key's signature",
        '            if self.signatures[role][0] != key:\n                raise Refused("wrong-key")\n',
        "",
    ),
    (
        "the least value of integers",
        "_number(numbers[1]) <= value <=",
        "value <=",
    ),
    (
        "the greatest value of integers",
        "<= value <= _number(numbers[2])",
        "<= value",
    ),
    (
        "true is 1",
        "type(value) is int and",
        "isinstance(value, int) and",
    ),
    (
        "characters are bytes",
        "int(sizes[1]) <= len(value) <= int(sizes[2])",
        "int(sizes[1]) <= len(value.encode()) <= int(sizes[2])",
    ),
    (
        "patterns end before a line feed",
        "re.fullmatch(pattern[1], value)",
        "re.match(pattern[1] + '$', value)",
    ),
    (
        "words are any text",
        "        _within(value in words)",
        "        _within(isinstance(value, str))",
    ),
    (
        "the number of items",
        "_within(isinstance(value, list) and int(array[1]) <= len(value) <= int(array[2]))",
        "_within(isinstance(value, list))",
    ),
    (
        "rules between fields",
        "    if not holds:",
        "    if False:",
    ),
    (
        "the channel's id",
        'if name == "Channel" and channel_id',
        'if name == "" and channel_id',
    ),
    (
        "digests of any length",
        "len(digest) in (0, 32)",
        "len(digest) <= 32",
    ),
    (
        "one model twice",
        '            yield len({entry["model"] for entry in m["models"]}) == len(m["models"])\n',
        "",
    ),
    (
        "periods that end as they begin",
        'period["until_minute"] > period["from_minute"]',
        'period["until_minute"] >= period["from_minute"]',
    ),
    (
        "tariffs of periods",
        '(entry["tariff"], *(period["tariff"] for period in entry["schedule"]))',
        '(entry["tariff"],)',
    ),
    (
        "labels of domains",
        "{0,61}",
        "*",
    ),
    (
        "one key twice is looked at last",
        '        keys = [message["provider"], message["client"]]\n',
        "        keys = []\n",
    ),
    (
        "successors are not admitted",
        'keys += [message["successor"]] if message["successor"] else []',
        "pass",
    ),
    (
        "cached at the full price",
        'usage["cached_tokens"] * tariff["cached_input_upm"]',
        'usage["cached_tokens"] * tariff["input_upm"]',
    ),
    (
        "amounts without end",
        '    if amount >= 2**63:\n        raise Refused("out-of-range")\n',
        "",
    ),
    (
        "half a cent is none",
        "(abs(amount) + unit // 2) // unit",
        "(abs(amount) + unit // 2 - 1) // unit",
    ),
    (
        "half a cent below zero is none",
        "whole if amount >= 0 else -whole",
        "whole if amount >= 0 else (amount + unit // 2) // unit",
    ),
    (
        "what was held before does not come back",
        "return lines - off + rounded(held_before_pico, 10**10)",
        "return lines - off",
    ),
    (
        "credits and what is held are rounded together",
        'rounded(statement["credits_pico"], 10**10) + rounded(statement["held_pico"], 10**10)',
        'rounded(statement["credits_pico"] + statement["held_pico"], 10**10)',
    ),
    (
        "what is paid ahead is taken as net",
        "-balance * 10**14 // (10_000 + rate)",
        "-balance * 10**10",
    ),
    (
        "the first statement's rate counts",
        'statements[-1]["rate_bp"]',
        'statements[0]["rate_bp"]',
    ),
    (
        "what is held back is paid",
        'sum(one["total_pico"] for one in statements) - held[-1]',
        'sum(one["total_pico"] for one in statements)',
    ),
    (
        "the newest statement is paid first",
        "for at in reversed(range(len(statements))):",
        "for at in range(len(statements)):",
    ),
    (
        "a part of a statement is rounded for the client",
        '-(-billed * open_cents // one["gross_cents"])',
        'billed * open_cents // one["gross_cents"]',
    ),
    (
        "a balance from before is forgiven",
        "freed - balance * 10**10",
        "freed",
    ),
    (
        "who is overdue may use its credit",
        "and unpaid > 0:",
        'and unpaid > channel["credit_limit_pico"]:',
    ),
    (
        "a claim may leave out what came in its last day but one",
        'until_ms = said["as_of_ms"] - 86_400_000',
        'until_ms = said["as_of_ms"] - 86_400_001',
    ),
    (
        "a claim may be made the day that it is due",
        'said["as_of_ms"] <= due["due_ms"] + 120_000',
        'said["as_of_ms"] <= due["due_ms"]',
    ),
    (
        "a payment that the statement counts counts again",
        'one.message["booked_ms"] > due["stated_ms"] + 120_000)',
        'one.message["booked_ms"] > due["stated_ms"])',
    ),
    (
        "what is booked for another invoice was overlooked",
        'any(one["kind"] == "received" and',
        'any(one["amount_cents"] > 0 and',
    ),
    (
        "of two statements that follow the one that owes more counts",
        "best = min(following, key=",
        "best = max(following, key=",
    ),
    (
        "a claim needs no invoice",
        '(due["gross_cents"] > 0 and sum(bills) != due["gross_cents"])',
        "False",
    ),
    (
        "a card alone ties a key to a client",
        'if {client, offer["provider"]} <= named:',
        "if named:",
    ),
    (
        "lines are rounded as a whole",
        'sum(rounded(part, 10**10) for line in statement["lines"] for part in components(line))',
        'sum(rounded(line["amount_pico"], 10**10) for line in statement["lines"])',
    ),
    (
        "tokens that are waived count",
        'if is_owing and (receipt["amount_pico"] or not any(costs)) else',
        "if is_owing else",
    ),
    (
        "two disputes of a receipt are both held",
        "max(contested.get(number, 0), amount)",
        "contested.get(number, 0) + amount",
    ),
    (
        "what is rejected is held",
        "        if not is_answered:",
        '        if not is_answered or not one["is_accepted"]:',
    ),
    (
        "statements that are due before they are stated",
        '<= m["stated_ms"] <= m["due_ms"]',
        '<= m["stated_ms"]',
    ),
    (
        "a rate in any category",
        'or one["category"] in ("L", "M")',
        "or True",
    ),
    (
        "payments of nothing",
        '            yield m["amount_cents"] != 0\n',
        "",
    ),
    (
        "minutes cut off toward zero",
        "minute = ordered_ms // 60_000 + utc_offset_minutes\n",
        "minute = abs(ordered_ms // 60_000 + utc_offset_minutes)\n",
    ),
    (
        "periods with their end",
        "<= minute % 1440 <",
        "<= minute % 1440 <=",
    ),
    (
        "all white space after the colon",
        '.removeprefix(" ") for line',
        ".strip() for line",
    ),
    (
        "events of any size",
        "len(event.encode()) > 2**23 or ",
        "",
    ),
    (
        "lines of data without number",
        "len(shown) > 1024 or ",
        "",
    ),
    (
        "small events without number",
        " or spent > 65536",
        "",
    ),
    (
        "choices as prompts",
        "counts.see_prompt(index // counts.n, choice",
        "counts.see_prompt(index, choice",
    ),
    (
        "usage beside two choices",
        "    elif len(choices) == 1:",
        "    elif choices:",
    ),
    (
        "the first reason that came",
        "self.finished[min(self.finished)][:32]",
        "next(iter(self.finished.values()))[:32]",
    ),
    (
        "reasons in full",
        "[min(self.finished)][:32]",
        "[min(self.finished)]",
    ),
    (
        "abort is an end",
        'counts.failed = counts.failed or counts.finished[index] == "abort"',
        "pass",
    ),
    (
        "ids of any size",
        "_is_number(one, 2**31 - 1) for one",
        "True for one",
    ),
    (
        "n for best_of",
        "prompts * max(n, best_of)",
        "prompts * n",
    ),
    (
        "flags of any type",
        "assert flag is None or isinstance(flag, bool)",
        "pass",
    ),
    (
        "129 answers",
        "1 <= choices <= 128",
        "1 <= choices <= 129",
    ),
    (
        "the dearest order counts",
        "sum(risks) - max(risks)",
        "sum(risks)",
    ),
    (
        "the channel ends a moment later",
        'now_ms >= channel["expires_ms"]',
        'now_ms > channel["expires_ms"]',
    ),
    (
        "clocks",
        "> 120_000:",
        "> 121_000:",
    ),
    (
        "a revocation a moment late",
        "min(revoked) <= at_ms",
        "min(revoked) < at_ms",
    ),
    (
        "the key's own term alone",
        'min(named[-1]["valid_until_ms"], chain[-1]["valid_until_ms"])',
        'named[-1]["valid_until_ms"]',
    ),
    (
        "the first card that names a key",
        'named[-1]["valid_from_ms"]',
        'named[0]["valid_until_ms"]',
    ),
)
"""What is wrong, the words of reader.py, and others in their place."""

LINK_MUTANTS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "frames of any length",
        "length > 65536",
        "length > 65537",
    ),
    (
        "kinds that are reserved",
        "CREDIT <= kind <= RESET or kind >= 16",
        "CREDIT <= kind",
    ),
    (
        "a move to a road that nobody claimed",
        "len(payload) == 32 and payload == self.claimed",
        "len(payload) == 32",
    ),
    (
        "bytes behind MOVE",
        "if kind == MOVE and self.buffer:",
        "if False:",
    ),
    (
        "streams out of turn",
        "payload or stream != self.peer_next",
        "payload",
    ),
    (
        "streams without number",
        "if sum(one % 2 == stream % 2 for one in self.streams) >= self.streams_allowed:",
        "if False:",
    ),
    (
        "frames after END",
        "stream.peer_ended and kind not in (CREDIT, RESET)",
        "False",
    ),
    (
        "credit that was not taken",
        "stream.sendable > self.peer_credit",
        "False",
    ),
    (
        "empty bulk",
        "0 < len(payload) <= stream.receivable",
        "len(payload) <= stream.receivable",
    ),
    (
        "bulk over the credit",
        "<= stream.receivable",
        "<= 2**31",
    ),
    (
        "no credit",
        "0 < credit < 2**31",
        "0 <= credit < 2**31",
    ),
    (
        "streams that were never opened",
        "                raise violation()\n            return\n",
        "                return\n            return\n",
    ),
    (
        "PONG unasked",
        "not self.ponged < number <= self.pings",
        "False",
    ),
    (
        "every PING has its PONG",
        "                pong = payload\n",
        "                self._put(0, PONG, payload)\n",
    ),
    (
        "any nonce",
        "self._proof_input(self.nonce, key), signature",
        "self._proof_input(bytes(32), key), signature",
    ),
    (
        "MEMBER as often as it likes",
        "            self.may_hear_member = False\n",
        "",
    ),
    (
        "MEMBER unasked",
        "            if not self.may_hear_member:\n                raise violation()\n",
        "",
    ),
    (
        "terms below the least",
        "not 131072 <= self.peer_credit",
        "not 0 <= self.peer_credit",
    ),
    (
        "version by length first",
        '        if payload[:2] != b"\\0\\1":\n            raise Closed("version", 1)\n',
        "",
    ),
    (
        "texts of any length",
        "not 2 <= len(payload) <= 258",
        "len(payload) < 2",
    ),
    (
        "silence a moment early",
        "self.heard_ms + 15_000",
        "self.heard_ms + 14_000",
    ),
)


NETWORK_MUTANTS: Final[tuple[tuple[str, str, str], ...]] = (
    ("a kind's number is left out", "bytes([NUMBERS[self.kind]]) + ", ""),
    ("the name is left out", "bytes([NUMBERS[self.kind]]) + self.name.encode()", "bytes([NUMBERS[self.kind]])"),
    ("a scope of 32 bytes", "[:20]", ""),
    ("one key for scope and credentials", 'mac(self.root, b"credential")', 'mac(self.root, b"scope")'),
    ("either side's credential", '["caller", "called"].index(side)', "0"),
    ("a link's credential on a connection", '"/p2pgrid/link-member-proof/1"', '"/p2pgrid/member-proof/1"'),
    ("nonces in the other order", 'b"".join(nonces)', 'b"".join(nonces[::-1])'),
    ("keys are not bound", ' + b"".join(keys)', ""),
    ("any nonce", 'len(nonce) != (32 if side == "caller" else 0)', "len(nonce) > 32"),
    ("any number of credentials", " or len(credentials) > 16", ""),
    ("memberships of any size", " or len(one[1]) > 512", ""),
    ("long encodings of credentials", "    check_canonical(value, data)\n", ""),
    ("anybody's signature", '    if key != group:\n        raise Refused("wrong-key")\n', ""),
    (
        "signatures are not looked at",
        "    verify(group, signature_input(record.type, record.payload), signature)\n",
        "",
    ),
    ("any group is named", '    if by != group:\n        raise Refused("wrong-key")\n', ""),
    ("any network", '    if name != network:\n        raise Refused("wrong-network")\n', ""),
    ("any member", '    if whose != member:\n        raise Refused("wrong-key")\n', ""),
    ("for ever", "now_ms > until_ms or ", ""),
    ("up to its end", "now_ms > until_ms", "now_ms >= until_ms"),
    ("from any time on", " or now_ms < from_ms - 120_000", ""),
    ("clocks do not differ", " - 120_000", ""),
    ("backwards", '    if until_ms <= from_ms:\n        raise Refused("out-of-range")\n', ""),
    ("another role", '"operator" not in record.signatures', "False"),
)

_NAMES: Final = ("reader", "network_reader", "link_reader", "test_independent")
_MODULES: Final = tuple(f"tests.spec.{name}" for name in _NAMES)


def is_noticed(name: str, old: str, new: str, source: str, module_name: str) -> bool:
    """True if some test of test_independent.py fails with this change."""
    assert source.count(old) >= 1, f"{name}: the words are not there any more"
    kept = {one: sys.modules.pop(one, None) for one in _MODULES}
    try:
        for below in _NAMES[: _NAMES.index(module_name)]:
            importlib.import_module(f"tests.spec.{below}")
        changed = types.ModuleType(f"tests.spec.{module_name}")
        changed.__file__ = str(Path(__file__).with_name(f"{module_name}.py"))
        sys.modules[changed.__name__] = changed
        exec(compile(source.replace(old, new, 1), changed.__file__, "exec"), changed.__dict__)
        setattr(sys.modules["tests.spec"], module_name, changed)
        tests = importlib.import_module("tests.spec.test_independent")
        return any(_fails(run) for run in _runs(tests))
    finally:
        for one, module in kept.items():
            if module is not None:
                sys.modules[one] = module
                setattr(sys.modules["tests.spec"], one.rpartition(".")[2], module)


def _runs(module: types.ModuleType) -> Iterator[Callable[[], object]]:
    for name, test in list(vars(module).items()):  # a warning that is given meanwhile adds a name
        if not name.startswith("test_") or name == "test_nothing_of_ours_is_imported":
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        for values in marks[0].args[1] if marks else [()]:
            given: Any = {marks[0].args[0]: values} if marks else {}
            yield lambda t=test, g=given: t(**g)


def _fails(run: Callable[[], object]) -> bool:
    try:
        run()
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever a wrong reader does is a failure
        return True
    return False


def survivors() -> list[str]:
    """Those that nothing notices."""
    told = [(*mutant, READER, "reader") for mutant in MUTANTS] + [(*m, LINK, "link_reader") for m in LINK_MUTANTS]
    told += [(*mutant, NETWORK, "network_reader") for mutant in NETWORK_MUTANTS]
    return [mutant[0] for mutant in told if not is_noticed(*mutant)]


if __name__ == "__main__":
    alive = survivors()
    count = len(MUTANTS) + len(LINK_MUTANTS) + len(NETWORK_MUTANTS)
    print(f"{count - len(alive)} of {count} wrong readers are noticed.", *alive, sep="\n  not: ")
    sys.exit(bool(alive))
