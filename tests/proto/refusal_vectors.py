"""What stands in tests/vectors/refused.json: every limit of docs/spec/record.md and messages.md, and one beyond it.

The limits are those of the types in the code, walked field by field; what the code makes of each case is its `code`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, get_args, get_type_hints

import msgspec
import msgspec.inspect as inspect

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.card import Card
from p2pgrid.proto.cycle import Cycle
from p2pgrid.proto.inclusion import parse_inclusion_proof
from p2pgrid.proto.key_rules import faults_of_card_keys
from p2pgrid.proto.messages import BatchTerms, Channel, RequestLine, Status, TariffPeriod, Usage, channel_id
from p2pgrid.proto.record import Message, Record, Role, encode_payload, parse_message
from p2pgrid.proto.rules import faults_of_channel
from p2pgrid.proto.set_off import SetOff, SetOffSide
from p2pgrid.proto.statement import InvoiceType, PaymentKind, Statement
from p2pgrid.proto.wire.base import Frame, parse_frame
from tests import factories
from tests.proto.generated_bases import one_of_each_frame, one_of_each_message
from tests.proto.record_refusals import key_cases, line_cases, peer_id_cases, signed_cases, wire_cases
from tests.proto.squeezed import squeezed

SMALL_ORDER: Final = b"\x01\x01" + bytes(31)
"""The identity, as a key."""
_WIDE: Final = "\N{MUSICAL SYMBOL G CLEF}"
"""One character, four bytes in UTF-8 and two units in UTF-16."""
_LINE: Final = RequestLine(
    status=Status.COMPLETED,
    finish_reason="stop",
    usage=Usage(prompt_tokens=10, cached_tokens=4, output_tokens=20),
    request_commitment=factories.digest("request"),
    response_commitment=factories.digest("response"),
    first_token_ms=50,
    total_ms=400,
)


def refusal_vectors() -> dict[str, Any]:
    """All cases. `code` is empty where the thing is accepted."""
    return {
        "keys": key_cases(),
        "peer_ids": peer_id_cases(),
        "wire": wire_cases(),
        "lines": line_cases(),
        "signed": signed_cases(),
        "payloads": [_payload_case(*case) for case in _payloads()],
        "payload_keys": [_payload_case(*case, checks_keys=True) for case in _key_payloads()],
        "frames": [_frame_case(*case) for case in _frames()],
    }


# -- payloads -----------------------------------------------------------------------------------------------------


def code_of_payload(message_type: type[Message], payload: bytes, *, checks_keys: bool = False) -> str:
    """What a reader says of a payload of that type; empty if it takes it."""
    try:
        message = parse_message(Record(message_type.payload_type, payload, ()), message_type)
    except InvalidRecord as invalid:
        return invalid.code
    if not checks_keys:
        return ""
    faults = faults_of_channel(message) if isinstance(message, Channel) else []
    faults += faults_of_card_keys(message) if isinstance(message, Card) else []
    return faults[0].code if faults else ""


def _payload_case(
    name: str, message_type: type[Message], payload: bytes, *, checks_keys: bool = False
) -> dict[str, str]:
    code = code_of_payload(message_type, payload, checks_keys=checks_keys)
    return {"case": name, "message": message_type.__name__, "payload": squeezed(payload), "code": code}


Case = tuple[str, type[Any], bytes]


def _payloads() -> Iterator[Case]:
    for single in one_of_each_message():
        message = with_last_field(single)
        yield from _forms_of(message)
        if message is not single:
            kind, values = type(single), to_values(single)
            yield "its last field left out", kind, packed(values[:-1])
            yield "its last field written as if left out", kind, packed(values)
        yield from ((name, type(message), payload) for name, payload in _field_cases(message))
    yield from _encodings()
    yield from _rules_between_fields()


def _forms_of(message: Message) -> Iterator[Case]:
    kind, values = type(message), to_values(message)
    most = kind.max_payload_bytes
    yield "as it should be", kind, packed(values)
    yield "a field too few", kind, packed(values[: -2 if kind.optional_field else -1])
    yield "a field too many", kind, packed([*values, 0])
    yield f"{most} bytes of nothing: not too many", kind, bytes(most)
    yield f"{most + 1} bytes", kind, bytes(most + 1)
    yield "a byte after the end", kind, packed(values) + b"\0"
    yield "cut off", kind, packed(values)[:-1]


def with_last_field(message: Message) -> Message:
    """The message, its last field not at the value at which it is left out."""
    last: dict[str, Any] = {
        "batch": BatchTerms(batch_requests=16, batch_ms=100),
        "max_requests": 16,
        "requests": (_LINE,),
    }
    name = message.optional_field
    return msgspec.structs.replace(message, **{name: last[name]}) if name else message


def _field_cases(struct: Any) -> Iterator[tuple[str, bytes]]:
    """Every field at the ends of its range and beyond, the others as they should be."""
    for name, values in _variants_of_struct(type(struct), to_values(struct)):
        yield name, packed(values)


def _variants_of_struct(kind: Any, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    hints = get_type_hints(kind, include_extras=True)
    for index, name in enumerate(kind.__struct_fields__):
        for label, value in _variants(hints[name], values[index], name):
            yield f"{name} {label}", [*values[:index], value, *values[index + 1 :]]


def _variants(hint: Any, value: Any, name: str) -> Iterator[tuple[str, Any]]:
    info: Any = inspect.type_info(hint)
    info = info.type if isinstance(info, inspect.Metadata) else info
    match info:
        case inspect.StructType():
            yield from _variants_of_struct(info.cls, value)
        case inspect.VarTupleType():
            least, most = info.min_length or 0, info.max_length
            for count in sorted({least, most, max(least - 1, 0), most + 1}):
                yield f"with {count} items", [item_of(name, value, number) for number in range(count)]
            first, *rest = value or [item_of(name, value, 0)]
            for label, each in _variants(get_args(get_args(hint)[0])[0], first, "item"):
                yield f"0 {label}", [each, *rest]
        case _:
            yield from _variants_of_value(info, value)


def _variants_of_value(info: Any, value: Any) -> Iterator[tuple[str, Any]]:
    match info:
        case inspect.IntType():
            most = 2**64 - 1 if info.le is None and info.lt is None else info.le if info.lt is None else info.lt - 1
            yield from ((f"= {each}", each) for each in (info.ge, most))
            yield from ((f"= {each}", each) for each in (info.ge - 1, most + 1) if -(2**63) <= each < 2**64)
            yield "as text", str(value)
        case inspect.BytesType():
            least, most = info.min_length or 0, info.max_length
            sizes = {least, most, least - 1, most + 1, *((1, 31, 32) if most in (32, 33) else ())}
            yield from ((f"of {size} bytes", _filled(value, size)) for size in sorted(sizes) if size >= 0)
            yield "as text", "00"
        case inspect.StrType(pattern=str()):
            texts = ("EUR", "eur", "EU", "EURO", "EUR\n", "a", "a" * 63, "a" * 64, "a-1", "1a", "-a", "A", "a_", "")
            yield from ((f"= {text[:8]!r}, {len(text)} characters", text) for text in texts)
        case inspect.StrType():
            least, most = info.min_length or 0, info.max_length
            sizes = {least, most, least - 1, most + 1}
            yield from ((f"of {size} characters", _WIDE * size) for size in sorted(sizes) if size >= 0)
            yield "as bytes", b"x"
        case inspect.EnumType() if issubclass(info.cls, int):
            yield from ((f"= {each.value}", each.value) for each in info.cls)
            yield from (("= 1", 1), ("as text", str(value)))
        case inspect.EnumType():
            yield from ((f"= {each.value}", each.value) for each in info.cls)
            yield "= somebody", "somebody"
        case inspect.BoolType():
            yield from (("= true", True), ("= false", False), ("= 1", 1))
        case _:
            raise TypeError(info)


def item_of(name: str, known: Sequence[Any], number: int) -> Any:
    """One of many items of an array, each another where two may not be the same."""
    term = [factories.NOW_MS, factories.NOW_MS + 1]
    made: dict[str, Any] = {
        "addresses": "/dns/a/tcp/1/tls",
        "endpoints": "/v1/completions",
        "gpus": "A",
        "mentions": factories.digest(f"mention {number}"),
        "payments": number.to_bytes(32),
        "lacks": factories.digest("lack"),
        "hashes": bytes(32),
        "channels": b"",
        "cards": b"",
        "schedule": [127, 0, 1, [1, 1, 1]],
        "vat": ["S", number + 1, "", 0, 0],
        "peers": [factories.secret_key(f"peer {number}").public_key.raw, *term],
        "revoked": [factories.secret_key(f"peer {number}").public_key.raw, 1, ""],
        "models": [f"m{number}", [1, 1, 1], 1, 1, ["/"], "", "", b"", b"", b"", [], 0],
    }
    return made[name] if name in made else known[0]


def _filled(value: bytes, size: int) -> bytes:
    return (value + bytes(max(size - len(value), 0)))[:size]


def _encodings() -> Iterator[Case]:
    """One message, written otherwise than in its shortest form."""
    meter = next(m for m in one_of_each_message() if type(m).__name__ == "Meter")
    kind, values = type(meter), to_values(meter)
    right = packed(values)
    head = right[:1]
    yield "array with a 16-bit length", kind, b"\xdc\x00" + bytes([head[0] & 15]) + right[1:]
    yield "array with a 32-bit length", kind, b"\xdd\x00\x00\x00" + bytes([head[0] & 15]) + right[1:]
    yield "bytes with a 16-bit length", kind, head + b"\xc5\x00\x20" + right[3:]
    yield "bytes with a 32-bit length", kind, head + b"\xc6\x00\x00\x00\x20" + right[3:]
    yield "1 in 8 bits", kind, right[:35] + b"\xcc\x01" + right[36:]
    yield "1 in 64 bits", kind, right[:35] + b"\xcf\x00\x00\x00\x00\x00\x00\x00\x01" + right[36:]
    yield "1 in 8 signed bits", kind, right[:35] + b"\xd0\x01" + right[36:]
    yield "1.0", kind, right[:35] + b"\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00" + right[36:]
    yield "nil", kind, right[:35] + b"\xc0" + right[36:]
    yield "true for 1", kind, right[:35] + b"\xc3" + right[36:]
    yield "0 in 8 bits: out of its limits before it is not canonical", kind, right[:35] + b"\xcc\x00" + right[36:]
    yield "a map", kind, msgspec.msgpack.encode(dict(enumerate(values)))
    yield "an extension", kind, b"\xd4\x01\x00"
    card = next(m for m in one_of_each_message() if type(m).__name__ == "Card")
    named = packed(to_values(card))
    at = named.index(b"Vilnius")
    yield "text that is no UTF-8", type(card), named.replace(b"Vilnius", b"Viln\xffus")
    yield "text with an unpaired surrogate", type(card), named.replace(b"Vilnius", b"Viln\xed\xa0\x80")
    size = named[at - 1] & 31
    yield "text with an 8-bit length", type(card), named[: at - 1] + b"\xd9" + bytes([size]) + named[at:]
    dispute = next(m for m in one_of_each_message() if type(m).__name__ == "Dispute")
    wrong = packed(to_values(msgspec.structs.replace(dispute, by=Role.OPERATOR)))
    yield "by the operator, and not canonical: that is said first", type(dispute), b"\xdc\x00\x08" + wrong[1:]


def _rules_between_fields() -> Iterator[Case]:
    """Each rule of docs/spec/messages.md that one record breaks by itself: just kept, and just broken."""
    for name, message, changes in _between():
        yield name, type(message), encode_payload(msgspec.structs.replace(message, **changes))


def _between() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    of = {type(message).__name__: message for message in one_of_each_message()}
    replace = msgspec.structs.replace
    offer, channel, receipt, card = of["Offer"], of["Channel"], of["Receipt"], of["Card"]
    entry, now = offer.models[0], factories.NOW_MS
    for name, message, first, last in (
        ("an offer", offer, "valid_from_ms", "valid_until_ms"),
        ("a channel", channel, "opened_ms", "expires_ms"),
        ("a card", card, "valid_from_ms", "valid_until_ms"),
    ):
        yield f"{name} that ends a millisecond after its beginning", message, {first: now, last: now + 1}
        yield f"{name} that ends at its beginning", message, {first: now, last: now}

    def priced(cached: int) -> Any:
        return replace(entry.tariff, input_upm=7, cached_input_upm=cached)

    def period(from_minute: int, until_minute: int, cached: int = 7) -> Any:
        return TariffPeriod(weekdays=1, from_minute=from_minute, until_minute=until_minute, tariff=priced(cached))

    for cached in (7, 8):
        yield f"cached input at {cached}, input at 7", offer, {"models": (replace(entry, tariff=priced(cached)),)}
        timed = replace(entry, schedule=(period(0, 1, cached),))
        yield f"cached input at {cached}, input at 7, in a period", offer, {"models": (timed,)}
    for until in (61, 60):
        yield f"a period from minute 60 to {until}", offer, {"models": (replace(entry, schedule=(period(60, until),)),)}
    yield "two models", offer, {"models": (entry, replace(entry, model="another"))}
    yield "one model twice", offer, {"models": (entry, entry)}
    yield "another channel id", channel, {"channel": bytes(32)}
    yield (
        "another channel id, and an end before the beginning: that is said first",
        channel,
        {
            "channel": bytes(32),
            "expires_ms": 1,
        },
    )
    for usage in (replace(receipt.usage, cached_tokens=10), replace(receipt.usage, cached_tokens=11)):
        yield f"{usage.cached_tokens} of 10 cached", receipt, {"usage": usage}
    for kind in ("Meter", "Voucher"):
        usage = replace(of[kind].usage, cached_tokens=of[kind].usage.prompt_tokens + 1)
        yield (
            f"a {kind.lower()} with more cached than the prompt has: it has no price, its form is right",
            of[kind],
            {"usage": usage},
        )
    one, two = factories.digest("one"), factories.digest("two")
    yield "two mentions", receipt, {"mentions": (one, two)}
    yield "one mention twice", receipt, {"mentions": (one, one)}
    for cached in (10, 11):
        wide = replace(_LINE, usage=replace(_LINE.usage, cached_tokens=cached))
        yield f"{cached} of 10 cached, of a request", receipt, {"requests": (_LINE, wide)}
    for status in Status:
        yield f"a request that is {status}", receipt, {"requests": (replace(_LINE, status=status),)}
        yield f"requests in a receipt that is {status}", receipt, {"requests": (_LINE,), "status": status}
    peer, other = card.peers[0], factories.secret_key("other").public_key.raw
    yield (
        "a peer whose term ends at its beginning",
        card,
        {"peers": (replace(peer, valid_until_ms=peer.valid_from_ms),)},
    )
    yield "one peer twice", card, {"peers": (peer, replace(peer, valid_from_ms=1))}
    gone = msgspec.convert([other, 1, ""], type=get_args(get_type_hints(Card)["revoked"])[0])
    yield "one key revoked", card, {"revoked": (gone,)}
    yield "one key revoked twice", card, {"revoked": (gone, gone)}
    long = ".".join(["a" * 63] * 3 + ["b" * 61])
    for domain in (
        *("", "a.b", "xn--nxasmq6b.example", "a-b.example", long, "a.b" * 85, "example", "Example.com", "example.com."),
        *(
            "-a.example",
            "a-.example",
            "a..example",
            "192.0.2.7",
            "a.example1",
            "a.1example",
            "a_b.example",
            "a" * 64 + ".b",
        ),
        *("é.example", "a.example\n", "a." + "b" * 63, "a." + "b" * 64),
    ):
        yield f"the domain {domain[:24]!r}, {len(domain)} characters", card, {"domain": domain}
    yield from ((name, of["Statement"], changes) for name, changes in _of_statements(of["Statement"]))
    yield from ((name, of["Invoice"], changes) for name, changes in _of_invoices())
    yield from ((name, of["Payment"], changes) for name, changes in _of_payments())
    yield from ((name, of["SetOff"], changes) for name, changes in _of_set_offs(of["SetOff"]))
    yield from ((name, of["Cycle"], changes) for name, changes in _of_cycles(of["Cycle"]))
    yield "a leg of one party", of["Leg"], {"creditor": of["Leg"].debtor}
    yield from ((name, of["Default"], changes) for name, changes in _of_claims())
    yield "a reason that no page names", of["Dispute"], {"reason": "no-such-code"}


def _of_statements(statement: Statement) -> Iterator[tuple[str, dict[str, Any]]]:
    replace = msgspec.structs.replace
    yield "a statement of one receipt", {"first_receipt": 5, "last_receipt": 5}
    yield "a statement of no receipts", {"first_receipt": 5, "last_receipt": 4, "lines": ()}
    yield "a statement that ends before it begins", {"first_receipt": 5, "last_receipt": 3}
    for at, name in enumerate(("from_ms", "until_ms", "stated_ms", "due_ms")):
        times = [1000, 2000, 3000, 4000]
        for off_ms in (0, 1):
            times[at] = times[at - 1] + off_ms if at else times[1] - off_ms
            fields = dict(zip(("from_ms", "until_ms", "stated_ms", "due_ms"), times, strict=True))
            yield f"{name} {off_ms} ms from the next", fields
        if at:
            times[at] = times[at - 1] - 1
            yield f"{name} too early", dict(zip(("from_ms", "until_ms", "stated_ms", "due_ms"), times, strict=True))
    for cached in (10, 11):
        line = replace(statement.lines[0], prompt_tokens=10, cached_tokens=cached)
        yield f"a line with {cached} of 10 cached", {"lines": (statement.lines[0], line)}
    (vat,) = statement.vat
    for category, rate_bp in (
        *(("S", 0), ("S", 1), ("L", 0), ("L", 700), ("M", 400), ("AE", 0), ("AE", 1), ("E", 0), ("E", 1900)),
        *(("O", 0), ("O", 1), ("Z", 0), ("Z", 1), ("G", 1), ("K", 1)),
    ):
        yield f"VAT {category} of {rate_bp} points", {"vat": (replace(vat, category=category, rate_bp=rate_bp),)}
    yield "two rates of one category", {"vat": (vat, replace(vat, rate_bp=700))}
    yield "one rate of two categories", {"vat": (vat, replace(vat, category="L"))}
    yield "one rate of one category twice", {"vat": (vat, replace(vat, net_cents=1))}


def _of_invoices() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "gross is net and VAT", {"net_cents": 100, "vat_cents": 19, "gross_cents": 119}
    yield "gross is not net and VAT", {"net_cents": 100, "vat_cents": 19, "gross_cents": 118}
    for type_code in InvoiceType:
        for net_cents in (-1, 0, 1):
            amounts = {"net_cents": net_cents, "vat_cents": 0, "gross_cents": net_cents}
            yield f"{int(type_code)} with a net of {net_cents}", {"type_code": type_code, **amounts}


def _of_payments() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "an invoice of no statement", {"statement": b""}
    yield "a statement without its invoice", {"invoice_number": ""}
    yield "paid ahead", {"statement": b"", "invoice_number": ""}
    yield "typed in by hand", {"entry": b""}
    for kind in PaymentKind:
        for cents in (-1, 0, 1):
            yield f"{cents} cents {kind}", {"kind": kind, "amount_cents": cents}


def _of_set_offs(set_off: SetOff) -> Iterator[tuple[str, dict[str, Any]]]:
    replace = msgspec.structs.replace
    first, second, other = set_off.first, set_off.second, factories.digest("other")
    (claim,) = first.claims
    stranger = factories.secret_key("stranger").public_key.raw
    yield "the higher channel first", {"first": second, "second": first}
    yield "one channel twice", {"second": replace(second, channel=first.channel)}
    yield "one creditor twice", {"second": replace(second, creditor=first.creditor, card=other)}
    yield "a creditor that owes itself", {"second": replace(second, debtor=second.creditor), **_carded(first, other)}
    yield "a debtor of another key, and its card", {"second": replace(second, debtor=stranger), **_carded(first, other)}
    yield "a debtor of another key, without a card", {"second": replace(second, debtor=stranger)}
    yield "a card where the two are one key", _carded(first, other)
    yield "a card of 31 bytes", {"second": replace(second, debtor=stranger), **_carded(first, other[1:])}
    for cents in (claim.cents - 1, claim.cents + 1):
        yield (
            f"claims of {cents} cents, and {set_off.amount_cents} set off",
            {"first": replace(first, claims=(replace(claim, cents=cents),))},
        )
    parts = replace(claim, cents=3), replace(claim, cents=claim.cents - 3)
    yield "one invoice twice", {"first": replace(first, claims=parts)}
    yield (
        "two invoices of a statement",
        {"first": replace(first, claims=(parts[0], replace(parts[1], invoice_number="2")))},
    )
    yield (
        "one number of two statements",
        {"first": replace(first, claims=(parts[0], replace(parts[1], statement=other)))},
    )
    yield "to be signed within a millisecond", {"until_ms": set_off.agreed_ms + 1}
    yield "to be signed by the time of its proposal", {"until_ms": set_off.agreed_ms}


def _carded(side: SetOffSide, card: bytes) -> dict[str, Any]:
    return {"first": msgspec.structs.replace(side, card=card)}


def _of_cycles(cycle: Cycle) -> Iterator[tuple[str, dict[str, Any]]]:
    replace = msgspec.structs.replace
    debts, other = cycle.debts, factories.digest("other")
    stranger = factories.secret_key("stranger").public_key.raw
    yield "another debt first", {"debts": (*debts[1:], debts[0])}
    yield "one channel twice", {"debts": (*debts[:-1], replace(debts[-1], channel=debts[0].channel))}
    longer = replace(debts[-1], channel=b"\xff" * 32, creditor=stranger, debtor=debts[-1].creditor)
    debt = replace(longer, creditor=debts[0].debtor)
    yield "one creditor twice", {"debts": (*debts, debt)}
    yield "one debtor twice", {"debts": (*debts, replace(longer, debtor=debts[0].debtor, card=other))}
    yield "four debts", {"debts": (*debts[:-1], replace(debts[-1], creditor=stranger), replace(debt, debtor=stranger))}
    yield "a party that owes itself", {"debts": (*debts[:-1], replace(debts[-1], debtor=debts[-1].creditor))}
    owing = (replace(debts[0], card=other), replace(debts[1], debtor=stranger), *debts[2:])
    yield "a party that owes with another key, and its card", {"debts": owing}
    yield "a party that owes with another key, without a card", {"debts": (replace(owing[0], card=b""), *owing[1:])}
    yield "a card where the two are one key", {"debts": (owing[0], *debts[1:])}
    yield "a card of 31 bytes", {"debts": (replace(owing[0], card=other[1:]), *owing[1:])}
    for name in ("creditor", "debtor"):
        yield f"a timekeeper that is a {name}", {"timekeeper": getattr(debts[1], name)}
        yield f"proposed by a {name}", {"proposer": getattr(debts[1], name)}
    yield "proposed by a stranger", {"proposer": stranger}
    yield "a millisecond to sign in", {"deadline_ms": cycle.proposed_ms + 1}
    yield "no time to sign in", {"deadline_ms": cycle.proposed_ms}


def _of_claims() -> Iterator[tuple[str, dict[str, Any]]]:
    low, high = bytes(32), bytes([1]) * 32
    for claimed_ms in (999, 1000, 1001):
        yield f"claimed at {claimed_ms} ms, as of 1000", {"as_of_ms": 1000, "claimed_ms": claimed_ms}
    yield "two payments by id", {"payments": (low, high)}
    yield "two payments in another order", {"payments": (high, low)}
    yield "one payment listed twice", {"payments": (low, low)}


def _key_payloads() -> Iterator[Case]:
    """Keys within payloads, which a reader admits once the form is right."""
    of: dict[str, Any] = {type(message).__name__: message for message in one_of_each_message()}
    channel, card = of["Channel"], of["Card"]

    def keyed(**keys: bytes) -> Message:
        changed = msgspec.structs.replace(channel, **keys)
        named = (changed.provider, changed.client, changed.provider_nonce, changed.client_nonce)
        made: Message = msgspec.structs.replace(changed, channel=channel_id(*named))
        return made

    yield "as it should be", Channel, packed(to_values(channel))
    yield "one key twice", Channel, packed(to_values(keyed(client=channel.provider)))
    for role in ("provider", "client"):
        yield f"the {role}'s key of small order", Channel, packed(to_values(keyed(**{role: SMALL_ORDER})))
        yield (
            f"the {role}'s key of another algorithm",
            Channel,
            packed(to_values(keyed(**{role: b"\x02" + getattr(channel, role)[1:]}))),
        )
    yield (
        "one key twice, of small order: that it is one is said first",
        Channel,
        packed(to_values(keyed(provider=SMALL_ORDER, client=SMALL_ORDER))),
    )
    good, term = factories.secret_key("other").public_key.raw, [1, 2]
    values = to_values(card)
    for name, at, value in (
        ("a successor", 12, good),
        ("a successor of small order", 12, SMALL_ORDER),
        ("a successor of another algorithm", 12, b"\x02" + good[1:]),
        ("a peer of small order", 9, [[SMALL_ORDER, *term]]),
        ("a revoked key of small order", 10, [[SMALL_ORDER, 1, ""]]),
    ):
        yield name, Card, packed([*values[:at], value, *values[at + 1 :]])


# -- unsigned payloads --------------------------------------------------------------------------------------------


def code_of_frame(frame_type: type[Frame], data: bytes) -> str:
    """`violation`, or empty."""
    try:
        parse_frame(data, frame_type)
    except ProtocolViolation:
        return "violation"
    return ""


def _frames() -> Iterator[Case]:
    for frame in one_of_each_frame():
        kind, values = type(frame), to_values(frame)
        yield "as it should be", kind, packed(values)
        yield "a field too few", kind, packed(values[:-1])
        yield "a field too many", kind, packed([*values, 0])
        yield "a byte after the end", kind, packed(values) + b"\0"
        yield "array with a 16-bit length", kind, b"\xdc\x00" + bytes([len(values)]) + packed(values)[1:]
        yield from ((name, kind, payload) for name, payload in _field_cases(frame))


def _frame_case(name: str, frame_type: type[Any], payload: bytes) -> dict[str, str]:
    if issubclass(frame_type, Frame):
        code = code_of_frame(frame_type, payload)
    else:
        try:
            parse_inclusion_proof(payload)
            code = ""
        except InvalidRecord as invalid:
            code = invalid.code
    return {"case": name, "frame": frame_type.__name__, "payload": squeezed(payload), "code": code}


# -- inside -------------------------------------------------------------------------------------------------------


def to_values(struct: Any) -> list[Any]:
    """A message as the array that it is."""
    values: list[Any] = msgspec.to_builtins(struct, builtin_types=(bytes,))
    return values


def packed(values: Any) -> bytes:
    """MessagePack in its shortest form."""
    return msgspec.msgpack.encode(values)
