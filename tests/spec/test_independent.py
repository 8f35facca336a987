"""Who follows docs/spec and has none of our code finds in tests/vectors what we find."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nacl.bindings
import pytest

from tests.spec import reader
from tests.spec.link_reader import Closed, LinkSide
from tests.spec.network_reader import Named, credential, read_credentials, read_membership
from tests.spec.reader import Record, Refused, from_line, from_wire


def vectors(name: str) -> Any:
    return json.loads((reader.VECTORS / f"{name}.json").read_text())


def shown(value: Any) -> Any:
    """Bytes as the vectors write them."""
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shown(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def test_nothing_of_ours_is_imported() -> None:
    for module in ("reader.py", "link_reader.py", "network_reader.py", "test_independent.py"):
        tree = ast.parse(Path(__file__).with_name(module).read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not [name for name in names if name.startswith("p2pgrid")]


@pytest.mark.parametrize(
    "vector", [*vectors("records"), *vectors("billing-details")["records"]], ids=lambda v: v["message"]
)
def test_records(vector: dict[str, Any]) -> None:
    record = from_wire(bytes.fromhex(vector["wire"]))
    assert record == from_line(vector["text"])
    assert reader.signature_input(record.type, record.payload).hex() == vector["signature_input"]
    assert (record.id.hex(), record.payload.hex()) == (vector["id"], vector["payload"])
    record.check_signatures()
    assert reader.message_types()[record.type][0] == vector["message"]
    assert shown(record.message) == vector["fields"]


def test_every_message_of_the_page_is_among_the_records() -> None:
    apart = vectors("billing-details")["records"]  # no evidence: no bundle has it
    known = {v["message"] for v in (*vectors("records"), *apart)}
    assert {name for name, _ in reader.message_types().values()} == known


def test_keys() -> None:
    for vector in vectors("keys"):
        public, _ = nacl.bindings.crypto_sign_seed_keypair(bytes.fromhex(vector["seed"]))
        assert (b"\x01" + public).hex() == vector["public_key"]
        assert reader.peer_id(b"\x01" + public) == vector["peer_id"]


def code_of(read: Callable[[], object]) -> str:
    """What a reader refuses it with; empty if it takes it."""
    try:
        read()
    except Refused as refused:
        return str(refused)
    return ""


REFUSED = vectors("refused")


def found_in(cases: list[dict[str, Any]], read: Callable[[dict[str, Any]], object]) -> list[tuple[str, str]]:
    """Each case with what `read` refuses it with."""
    return [(told(case), code_of(lambda c=case: read(c))) for case in cases]


def said_of(cases: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(told(case), case["code"]) for case in cases]


def told(case: dict[str, Any]) -> str:
    return f"{case.get('message', case.get('frame', ''))} {case['case']}"


def test_refused_payloads() -> None:
    cases = REFUSED["payloads"]
    assert found_in(cases, lambda c: reader.read_payload(c["message"], reader.unsqueezed(c["payload"]))) == said_of(
        cases
    )


def test_refused_keys() -> None:
    cases = REFUSED["keys"]
    assert found_in(cases, lambda c: reader.admit_key(bytes.fromhex(c["key"]))) == said_of(cases)
    cases = REFUSED["peer_ids"]
    assert found_in(cases, lambda c: reader.parse_peer_id(c["peer_id"])) == said_of(cases)
    cases = REFUSED["payload_keys"]
    messages = {told(c): reader.read_payload(c["message"], reader.unsqueezed(c["payload"])) for c in cases}
    assert found_in(cases, lambda c: reader.check_keys(c["message"], messages[told(c)])) == said_of(cases)


def test_refused_records() -> None:
    cases = REFUSED["wire"]
    assert found_in(cases, lambda c: from_wire(reader.unsqueezed(c["wire"]))) == said_of(cases)
    cases = REFUSED["lines"]
    assert found_in(cases, lambda c: from_line(reader.unsqueezed(c["line"]))) == said_of(cases)
    cases = REFUSED["signed"]
    assert found_in(cases, lambda c: signed_as_wanted(c)) == said_of(cases)


def signed_as_wanted(case: dict[str, Any]) -> None:
    keys = {role: bytes.fromhex(key) for role, key in case["keys"].items()}
    from_wire(reader.unsqueezed(case["wire"])).check_signed_by(keys)


def test_refused_frames() -> None:
    cases = REFUSED["frames"]
    found = found_in(cases, lambda c: reader.read_payload(c["frame"], reader.unsqueezed(c["payload"])))
    links = [name if name.startswith("InclusionProof") else "" for name, _ in found]
    assert [(n, c if link else c and "violation") for (n, c), link in zip(found, links, strict=True)] == said_of(cases)


def test_speccheck() -> None:
    for vector in vectors("speccheck"):
        key, message, signature = (bytes.fromhex(vector[n]) for n in ("public_key", "message", "signature"))
        with pytest.raises(Refused, match=vector["fault"]):
            reader.verify(b"\x01" + key, message, signature)


def test_signatures() -> None:
    for vector in vectors("signatures"):
        key, message, signature = (bytes.fromhex(vector[n]) for n in ("public_key", "message", "signature"))
        if vector["signature_fits"]:
            reader.verify(key, message, signature)
            continue
        with pytest.raises(Refused, match="bad-signature"):
            reader.verify(key, message, signature)


def test_commitments() -> None:
    delivered = b""
    for vector in vectors("commitments"):
        key = bytes.fromhex(vector["key"])
        if vector["of"] == "response":
            delivered += bytes.fromhex(vector["piece"])
        content = delivered if vector["of"] == "response" else bytes.fromhex(vector["body"])
        assert reader.commitment(vector["of"], key, content).hex() == vector["commitment"]


def test_prices() -> None:
    nothing = {"failed", "refused", "empty", "late"}
    for vector in vectors("pricing")["amounts"]:
        tariff, usage = reader.named("Tariff", vector["tariff"]), reader.named("Usage", vector["usage"])
        if "code" in vector:
            assert code_of(lambda t=tariff, u=usage: reader.price(t, u)) == vector["code"]
            continue
        price = reader.price(tariff, usage)
        assert price == vector["price_pico"]
        assert {s: 0 if s in nothing else price for s in vector["owed_pico"]} == vector["owed_pico"]
    for vector in vectors("pricing")["schedules"]:
        periods = [{**each, "tariff": reader.named("Tariff", each["tariff"])} for each in vector["schedule"]]
        entry = {"tariff": reader.named("Tariff", vector["tariff"]), "schedule": periods}
        for case in vector["prices"]:
            found = reader.tariff_at(entry, vector["utc_offset_minutes"], case["ordered_ms"])
            assert found == reader.named("Tariff", case["tariff"])


def test_cents() -> None:
    for vector in vectors("statements")["cents"]:
        assert reader.rounded(vector["pico"], 10**10) == vector["cents"], vector
    for vector in vectors("statements")["vat"]:
        assert reader.vat_cents(vector["net_cents"], vector["rate_bp"]) == vector["vat_cents"], vector


@pytest.mark.parametrize("vector", vectors("credit"), ids=lambda v: v["case"])
def test_credit(vector: dict[str, Any]) -> None:
    for step in vector["freed"]:
        first = vector["statements"][: step["statements"]]
        assert reader.freed_pico(first, step["paid_cents"], step["credited_pico"]) == step["freed_pico"], step


@pytest.mark.parametrize("vector", vectors("defaults"), ids=lambda v: v["case"])
def test_claims_of_default(vector: dict[str, Any]) -> None:
    claim = from_wire(bytes.fromhex(vector["claim"]))
    records = [from_wire(bytes.fromhex(one)) for one in vector["records"]]
    assert reader.judge_default(claim, records, vector["at_ms"]) == (vector["verdict"], vector["unpaid_cents"])
    channels = [one.message for one in records if one.type == "/p2pgrid/channel/1"]
    if channels:
        assert [one.hex() for one in reader.keys_of_default(channels[0]["client"], records)] == vector["other_keys"]


@pytest.mark.parametrize("vector", vectors("statements")["channels"], ids=lambda v: v["case"])
def test_statements(vector: dict[str, Any]) -> None:
    before = {"last_receipt": 0, "until_ms": vector["opened_ms"], "held_pico": 0, "closing_cents": 0}
    credited = 0
    for number, each in enumerate(vector["statements"], start=1):
        made = reader.read_payload("Statement", bytes.fromhex(each["payload"]))
        assert (made["statement_number"], made["from_ms"]) == (number, before["until_ms"])
        assert made["first_receipt"] == before["last_receipt"] + 1
        receipts = vector["receipts"][made["first_receipt"] - 1 : made["last_receipt"]]
        later = vector["receipts"][made["last_receipt"] :]
        assert all(receipt["issued_ms"] <= made["until_ms"] for receipt in receipts)
        assert not later or later[0]["issued_ms"] > made["until_ms"]
        assert (
            reader.tree_hash([reader.leaf_hash(bytes.fromhex(receipt["id"])) for receipt in receipts]) == made["root"]
        )
        lines: dict[tuple[Any, ...], list[int]] = {}
        for receipt in receipts:
            line = lines.setdefault((receipt["model"], *receipt["tariff"]), [0] * 5)
            for at, value in enumerate((1, *reader.billed(receipt), receipt["amount_pico"])):
                line[at] += value
        assert [list(line.values()) for line in made["lines"]] == [[*key, *line] for key, line in sorted(lines.items())]
        parts = [reader.components(line) for line in made["lines"]]
        assert [[c["amount_pico"] for c in shown_parts] for shown_parts in each["components"]] == parts
        assert [[c["net_cents"] for c in shown_parts] for shown_parts in each["components"]] == [
            [reader.rounded(part, 10**10) for part in line] for line in parts
        ]
        credit, held = reader.taken(vector["disputes"], made["last_receipt"], made["stated_ms"])
        assert (made["credits_pico"], made["held_pico"]) == (credit - credited, held)
        assert made["total_pico"] == sum(receipt["amount_pico"] for receipt in receipts)
        assert made["net_cents"] == reader.net_cents(made, before["held_pico"])
        (vat,) = made["vat"]
        assert {name: vat[name] for name in vector["vat"]} == vector["vat"]
        assert vat["net_cents"] == made["net_cents"]
        assert vat["vat_cents"] == reader.vat_cents(vat["net_cents"], vat["rate_bp"])
        assert made["gross_cents"] == made["net_cents"] + vat["vat_cents"]
        assert made["opening_cents"] == before["closing_cents"]
        paid = made["payments_cents"] + made["set_off_cents"]
        assert made["closing_cents"] == made["opening_cents"] + made["gross_cents"] - paid
        before, credited = made, credited + made["credits_pico"]


@pytest.mark.parametrize("vector", vectors("counting"), ids=lambda v: v["case"])
def test_counting(vector: dict[str, Any]) -> None:
    told = vector["stream"]
    stream = told if isinstance(told, str) else "".join(piece * times for piece, times in told)
    counts, is_stream = reader.count_answer(stream, vector["n"])
    assert is_stream is vector["is_stream"]
    names = ("prompt_tokens", "cached_tokens", "output_tokens", "finish_reason", "contradicts_itself", "failed", "done")
    for name in names:
        assert getattr(counts, name) == vector[name], name


def by_type(records: list[Record], name: str) -> list[Record]:
    return [record for record in records if record.type == f"/p2pgrid/{name}/1"]


@pytest.mark.parametrize("side", ["provider", "client"])
def test_a_session_s_chain(side: str) -> None:
    session = vectors("session")
    records = [from_line(line) for line in session[side]]
    for record in records:
        record.check_signatures()
    known = {record.id: record for record in records}  # of two copies the later, which has both signatures
    records = list(known.values())
    (channel,) = by_type(records, "channel")
    assert reader.channel_id(channel.message) == channel.message["channel"]
    previous, total, told = channel.id, 0, []
    for number, receipt in enumerate(by_type(records, "receipt"), start=1):
        said = receipt.message
        order, offer = known[said["order"]].message, known[said["offer"]].message
        entry = next(each for each in offer["models"] if each["model"] == said["model"])
        tariff = reader.tariff_at(entry, offer["utc_offset_minutes"], order["ordered_ms"])
        total += reader.price(tariff, said["usage"])
        assert (said["receipt_number"], said["previous"]) == (number, previous)
        assert (said["amount_pico"], said["channel_total_pico"]) == (reader.price(tariff, said["usage"]), total)
        assert set(receipt.signatures) == {"provider", "client"}
        previous = receipt.id
        told.append({"id": previous.hex(), "status": said["status"], "amount_pico": said["amount_pico"]})
    assert (told, total) == (session["receipts"], session["channel_total_pico"])
    for voucher in by_type(records, "voucher"):
        meter = known[voucher.message["meter"]].message
        assert {k: v for k, v in voucher.message.items() if k != "meter"}.items() <= meter.items()


def test_a_session_s_commitments_and_counts() -> None:
    session = vectors("session")
    records = {record.id: record for record in map(from_line, session["client"])}.values()
    for told in session["orders"]:
        key, number = bytes.fromhex(told["commitment_key"]), told["order_number"]
        (order,) = (r.message for r in by_type(list(records), "order") if r.message["order_number"] == number)
        (receipt,) = (r.message for r in by_type(list(records), "receipt") if r.message["order_number"] == number)
        assert reader.commitment("request", key, told["body"].encode()) == order["request_commitment"]
        pieces = [piece + "\n\n" for piece in told["answer"].split("\n\n")]
        running = {}
        for count in range(len(pieces) + 1):
            text = "".join(pieces[:count])
            counts, is_stream = reader.count_answer(text, 1)
            assert is_stream
            running[reader.commitment("response", key, text.encode())] = counts
        for meter in (r.message for r in by_type(list(records), "meter") if r.message["order_number"] == number):
            counts = running[meter["response_commitment"]]
            assert (counts.prompt_tokens, counts.output_tokens) == (
                meter["usage"]["prompt_tokens"],
                meter["usage"]["output_tokens"],
            )
        counts = running[receipt["response_commitment"]]
        assert counts.output_tokens == receipt["usage"]["output_tokens"]
        assert receipt["finish_reason"] == (counts.finish_reason or "")


@pytest.mark.parametrize("vector", vectors("requests")["cases"], ids=lambda v: v["body"][:60])
def test_requests(vector: dict[str, Any]) -> None:
    context = vectors("requests")["context_tokens"]
    found = reader.read_request(vector["endpoint"], vector["body"], context)
    expected = {name: value for name, value in vector.items() if name not in ("endpoint", "body")}
    assert (found if isinstance(found, dict) else {"code": found}) == expected


LINK = vectors("link")


@pytest.mark.parametrize("case", LINK["cases"], ids=lambda c: c["case"])
def test_links(case: dict[str, Any]) -> None:
    play_link(case, b"")


def play_link(case: dict[str, Any], credentials: bytes) -> None:
    keys = {name: bytes.fromhex(LINK[f"{name}_seed"]) for name in ("listener", "dialler")}
    listener = b"\x01" + nacl.bindings.crypto_sign_seed_keypair(keys["listener"])[0]
    seed = keys["listener" if case["side"] == "L" else "dialler"]
    terms = LINK["terms"]["streams"], LINK["terms"]["credit"]
    link = LinkSide(case["side"], seed, listener, bytes.fromhex(LINK["nonce"]), *terms, credentials)
    assert link.take_out() == reader.unsqueezed(case["start"])
    for step in case["steps"]:
        (what, *given), events = step["do"], list[Any]()
        fault, goaway = "", None
        try:
            if what == "in":
                link.receive(reader.unsqueezed(given[0]), events)
            else:
                link.do(what, *given)
        except Closed as closed:
            fault, goaway = closed.fault, closed.goaway
        told = [
            [reader.unsqueezed(e[3]) if e[0] == "message" and n == 3 else v for n, v in enumerate(e)]
            for e in step["events"]
        ]
        out = link.take_out()
        if what == "goaway":
            assert out[:8] == bytes([0, 0, 0, 2 + len(given[1]), 0, 0, 0, 0]) and out[8] == 3
            out, goaway = b"", int.from_bytes(out[9:11])
        assert (events, fault, goaway) == (told, step["fault"], step["goaway"]), step
        assert out == reader.unsqueezed(step["out"]), step


NETWORK = vectors("network")


@pytest.mark.parametrize("vector", NETWORK["networks"], ids=lambda v: f"{v['kind']} {v['scope'][:8]}")
def test_names_of_closed_networks(vector: dict[str, Any]) -> None:
    closed_by = bytes.fromhex(vector["secret"] or vector["group_key"] or "")
    named = Named(vector["name"], vector["kind"], closed_by)
    assert (named.scope, named.credential_key.hex()) == (vector["scope"], vector["credential_key"])
    assert named.dht_key("provider").hex() == vector["provider_key"]


def test_credentials_of_membership() -> None:
    claim_keys = {one["scope"]: bytes.fromhex(one["credential_key"]) for one in NETWORK["networks"]}
    nonces = bytes.fromhex(NETWORK["called_nonce"]), bytes.fromhex(NETWORK["caller_nonce"])
    called, caller = (public_of(NETWORK[f"{side}_seed"]) for side in ("called", "caller"))
    for one in NETWORK["credentials"]:
        shown = credential(claim_keys[one["scope"]], one["on"], one["side"], nonces, (called, caller))
        assert shown.hex() == one["mac"], one
    cases = NETWORK["frames"]
    taken = [
        (
            told(case),
            not code_of(lambda c=case: read_credentials(bytes.fromhex(c["credentials"]), c["side"])),
        )
        for case in cases
    ]
    assert taken == [(told(case), case["is_taken"]) for case in cases]


def test_memberships() -> None:
    shown = NETWORK["memberships"]
    group, member = public_of(NETWORK["group_seed"]), reader.parse_peer_id(shown["member"])

    def read(case: dict[str, Any]) -> None:
        wire = bytes.fromhex(case["wire"])
        read_membership(wire, group, shown["network"], member, shown["now_ms"])

    assert found_in(shown["cases"], read) == said_of(shown["cases"])


@pytest.mark.parametrize("case", NETWORK["links"], ids=lambda c: c["case"])
def test_links_of_members(case: dict[str, Any]) -> None:
    play_link(case, bytes.fromhex(case["credentials"]))


def public_of(seed: str) -> bytes:
    return b"\x01" + bytes(nacl.bindings.crypto_sign_seed_keypair(bytes.fromhex(seed))[0])


def test_machines() -> None:
    machines = vectors("machines")
    for case in machines["orders"]:
        channel = from_wire(bytes.fromhex(machines["channels"][str(case["window_tokens"])]["channel"]))
        offer = from_wire(bytes.fromhex(machines["channels"][str(case["window_tokens"])]["offer"]))
        check_order(case, offer.message["models"][0]["tariff"], channel)


def check_order(case: dict[str, Any], tariff: dict[str, int], channel: Record) -> None:
    """What the provider sends is what docs/spec/session.md makes of the bytes it let go."""
    stream, vouched, key = b"", {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0}, b""
    meters: dict[bytes, dict[str, Any]] = {}
    for step in case["steps"]:
        if step["event"] == "PLACE":
            key = bytes.fromhex(step["data"]["commitment_key"])
        if step["side"] == "provider" and step["event"] == "VOUCHER" and "records" in step:
            voucher = from_wire(reader.unsqueezed(step["data"])).message
            meter = meters[voucher["meter"]]
            assert {name: meter.get(name, voucher["meter"]) for name in voucher} == voucher
            vouched = voucher["usage"]
        for kind, payload in step.get("out", []):
            data = reader.unsqueezed(payload)
            if kind == "CHUNK":
                stream += data
            if kind == "METER":
                record = from_wire(data)
                meters[record.id] = record.message
                counts, _ = reader.count_answer(stream.decode(), 1)
                assert record.message["usage"] == usage_of(counts), case["case"]
                assert record.message["amount_pico"] == reader.price(tariff, usage_of(counts))
                assert record.message["response_commitment"] == reader.commitment("response", key, stream)
            if kind == "RECEIPT":
                check_receipt(case["case"], from_wire(data).message, stream, vouched, tariff, channel)


def test_batches() -> None:
    batches = vectors("batches")
    proven = [check_batch(case) for case in batches["orders"]]
    assert sum(proven) > 10, "most of them come to a receipt"


def check_batch(case: dict[str, Any]) -> bool:
    """What the provider of a batch order sends is what session.md, section 11, makes of what it let go."""
    offer, channel = (from_wire(bytes.fromhex(case[name])) for name in ("offer", "channel"))
    tariff, tag = offer.message["models"][0]["tariff"], b"p2pgrid/batch/1"
    none = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0}
    batch_key, vouched, is_done = bytes.fromhex(case["steps"][0]["data"]), none, False
    bodies: list[bytes] = []
    answers: dict[int, bytes] = {}
    statuses: dict[int, str] = {}
    refused: set[int] = set()

    def key(index: int) -> bytes:
        return hmac.digest(batch_key, tag + bytes([index]), "sha256")

    def counts(index: int) -> dict[str, int]:
        text = answers.get(index, b"").decode()
        return usage_of(reader.count_answer(text, 1)[0]) if text.startswith("data:") else none

    def answer(index: int) -> bytes:
        data = answers.get(index, b"")
        return reader.commitment("response", key(index), data if data.startswith(b"data:") else b"")

    def whole() -> tuple[dict[str, int], bytes]:
        """Counts and commitment of all that count, by rules 11.5 and 11.8."""
        owing = ("completed", "cancelled")
        counted = [i for i in range(len(bodies)) if statuses.get(i, "completed") in owing and counts(i) != none]
        usage = {name: sum(counts(i)[name] for i in counted) for name in none}
        return usage, hashlib.sha256(tag + b"".join(answer(i) for i in counted)).digest()

    for step in case["steps"]:
        if step["side"] == "provider" and step["event"] == "REQUEST" and "fault" not in step:
            bodies.append(reader.unsqueezed(step["data"]))
        if step["side"] == "provider" and step["event"] == "VOUCHER" and "records" in step:
            vouched = from_wire(reader.unsqueezed(step["data"])).message["usage"]
        for kind, payload in step.get("out", []) if step["side"] == "provider" else []:
            data = reader.unsqueezed(payload)
            if kind == "PART":
                answers[data[0]] = answers.get(data[0], b"") + data[1:]
            elif kind == "REQUEST_ENDED":
                ended = reader.read_payload("RequestEnded", data)
                statuses[ended["index"]] = ended["status"]
            elif kind == "REQUEST_REFUSED":
                refused.add(reader.read_payload("RequestRefused", data)["index"])
            elif kind == "METER":
                said = from_wire(data).message
                assert (said["usage"], said["response_commitment"]) == whole(), case["case"]
                assert said["amount_pico"] == reader.price(tariff, said["usage"])
            elif kind == "RECEIPT":
                said, is_done = from_wire(data).message, True
                assert (said["receipt_number"], said["previous"]) == (1, channel.id)
                assert said["amount_pico"] == reader.price(tariff, said["usage"]), case["case"]
                if said["status"] != "completed":
                    assert (said["usage"], said["requests"]) == (vouched, []), case["case"]
                    continue
                assert (said["usage"], said["response_commitment"]) == whole(), case["case"]
                taken = [i for i in range(len(bodies)) if i not in refused]
                for index, line in zip(taken, said["requests"], strict=True):
                    assert line["status"] == statuses.get(index, "completed")
                    assert (line["usage"], line["response_commitment"]) == (counts(index), answer(index))
                    assert line["request_commitment"] == reader.commitment("request", key(index), bodies[index])
    return is_done


def usage_of(counts: reader.Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("prompt_tokens", "cached_tokens", "output_tokens")}


def check_receipt(
    name: str, said: dict[str, Any], stream: bytes, vouched: dict[str, int], tariff: dict[str, int], channel: Record
) -> None:
    is_answer = stream.startswith(b"data:")
    counts = usage_of(reader.count_answer(stream.decode(), 1)[0]) if is_answer else dict.fromkeys(vouched, 0)
    by_voucher = said["status"] in ("interrupted", "unacknowledged")
    assert said["usage"] == (vouched if by_voucher else counts), name
    owes = by_voucher or said["status"] in ("completed", "cancelled")
    assert said["amount_pico"] == (reader.price(tariff, said["usage"]) if owes else 0), name
    assert (said["receipt_number"], said["previous"]) == (1, channel.id)


def test_orders_that_are_refused() -> None:
    machines = vectors("machines")
    for case in machines["refused"]:
        offer = machines["channels"]["16"]["offer"] if case["offer"] == "16" else case["offer"]
        opening = reader.read_payload("OrderOpening", bytes.fromhex(case["order"]))
        order = from_wire(opening["order"])
        channel = from_wire(bytes.fromhex(machines["channels"][case["channel"]]["channel"])).message
        found = reader.refusal_of(case, order, opening, channel, from_wire(bytes.fromhex(offer)) if offer else None)
        assert found == case["code"], case["case"]
    for case in machines["risks"]:
        assert reader.risk(case, reader.named("Tariff", case["tariff"]), case["window_tokens"]) == case["risk_pico"]


def test_exchanges() -> None:
    exchanges = vectors("exchanges")
    for case in (*exchanges["resumes"], *exchanges["disputes"]):
        held = {side: {from_line(line).id for line in case[side]} for side in ("provider", "client")}
        due, lacks = 0, list[bytes]()
        for who, kind, payload in case["messages"]:
            data = bytes.fromhex(payload)
            if kind in ("RECORD", "RECEIPT", "COUNTERSIGNATURE", "DISPUTE"):
                record = from_wire(data)
                record.check_signatures()
                assert record.message
                assert kind != "RECORD" or record.id in held[who]
                due -= kind in ("RECORD", "RECEIPT")
            elif kind == "DISPUTES_TAKEN":
                assert due == 0, case["case"]
                due, lacks = (len(lacks), []) if who == "client" else (0, [])
            else:
                assert due == 0, case["case"]
                names = {"DISPUTES": "DisputesHeld", "DISPUTES_COMPARED": "DisputesCompared"}
                said = reader.read_payload(names.get(kind, kind.title()), data)
                due, lacks = said.get("records", said.get("proposals", 0)), said.get("lacks", [])
        assert due == 0 or case["fault"]


def test_withdrawals() -> None:
    for case in vectors("withdrawals"):
        offer, said = (from_wire(bytes.fromhex(case[name])) for name in ("offer", "shown"))
        key = reader.parse_peer_id(case["peer_id"])
        try:
            outcome = reader.what_becomes_of(offer.message, said, key, case["now_ms"])
        except Refused as refused:
            outcome = str(refused)
        assert outcome == case["outcome"], case["case"]


def test_cards_and_discovery() -> None:
    for case in vectors("discovery"):
        digest = hashlib.sha256(f"{case['network']}\0{case['key']}".encode()).hexdigest()
        assert "1220" + digest == case["dht_key"]
    cards = vectors("cards")
    key = bytes.fromhex(cards["key"])
    for case in cards["chains"]:
        chain = [from_wire(bytes.fromhex(card)) for card in case["cards"]]
        assert code_of(lambda c=chain: reader.check_chain(c)) == case["code"], case["case"]
        for at_ms, state in case["states"].items():
            assert reader.state_of_key([card.message for card in chain], key, int(at_ms)) == state, case["case"]


def test_refused_logs() -> None:
    for case in vectors("merkle")["refused_inclusion"]:
        leaf, proof = bytes.fromhex(case["leaf_hash"]), [bytes.fromhex(one) for one in case["proof"]]
        if case["code"]:
            continue
        assert reader.root_of(leaf, case["index"], case["size"], proof).hex() == case["root"]
    for path, code in vectors("log")["refused"]["tile_paths"].items():
        match = re.fullmatch(
            r"tile/(entries|[0-6])/((?:x\d{3}/)*)(\d{3})(\.p/([1-9]\d?|1\d\d|2[0-4]\d|25[0-5]))?", path
        )
        assert bool(match and not match[2].startswith("x000")) == (not code), path
    tile = vectors("log")["full_tile"]
    hashes = bytes.fromhex(tile["tile/0/000"])
    entries = bytes.fromhex(tile["tile/entries/000"])
    leaves = [reader.leaf_hash(entries[at + 2 : at + 34]) for at in range(0, len(entries), 34)]
    assert b"".join(leaves) == hashes and reader.tree_hash(leaves).hex() == tile["root"]


def test_trees() -> None:
    tree = vectors("merkle")
    leaves = [reader.leaf_hash(bytes.fromhex(entry)) for entry in tree["entries"]]
    assert [leaf.hex() for leaf in leaves] == tree["leaf_hashes"]
    assert [reader.tree_hash(leaves[:n]).hex() for n in range(len(leaves) + 1)] == tree["roots"]
    for proof in tree["inclusion"]:
        hashes = [bytes.fromhex(each) for each in proof["proof"]]
        found = reader.root_of(leaves[proof["index"]], proof["index"], proof["size"], hashes)
        assert found.hex() == tree["roots"][proof["size"]]


def test_a_log() -> None:
    log = vectors("log")
    public, witness = (
        b"\x01" + nacl.bindings.crypto_sign_seed_keypair(bytes.fromhex(log[name]))[0]
        for name in ("log_seed", "witness_seed")
    )
    leaves = []
    for record in log["records"]:
        entry = hashlib.sha256(bytes.fromhex(record["salt"]) + bytes.fromhex(record["record_id"])).digest()
        leaves.append(reader.leaf_hash(entry))
        assert (entry.hex(), leaves[-1].hex()) == (record["entry"], record["leaf_hash"])
    note = log["cosigned_checkpoint"]
    assert reader.check_note(note, f"p2pgrid/{reader.peer_id(public)}", public) == (11, reader.tree_hash(leaves))
    assert reader.check_cosignature(note, witness) == log["cosigned_at"]
    checkpoint, proof = (from_line(line) for line in log["attachments"])
    assert (checkpoint.payload.decode(), checkpoint.signatures, proof.signatures) == (note, {}, {})
    said = reader.read_payload("InclusionProof", proof.payload)
    leaf = reader.leaf_hash(hashlib.sha256(said["salt"] + said["record_id"]).digest())
    assert reader.root_of(leaf, said["leaf_index"], said["tree_size"], said["hashes"]) == reader.tree_hash(leaves)


AUDIT = vectors("audit")
ATTACHMENTS = {"/p2pgrid/checkpoint/1", "/p2pgrid/inclusion-proof/1"}
FORM = {
    "malformed",
    "oversize",
    "not-canonical",
    "out-of-range",
    "wrong-type",
    "wrong-key",
    "signature-missing",
    "bad-signature",
    "key-not-admissible",
    "two-records-one-slot",
    "record-missing",
    "channel-id",
}


@pytest.mark.parametrize("vector", AUDIT["cases"], ids=lambda v: v["case"])
def test_audited_bundles(vector: dict[str, Any]) -> None:
    """Of what an audit is given: form and signatures of each line, and the sums over the receipts."""
    receipts: dict[bytes, Record] = {}
    faults = set()
    said = {one["code"] for one in vector["verdict"]["findings"]}
    notes = {one["code"] for one in vector["verdict"]["notes"]}
    for index in sorted({int(index) for bundle in vector["bundles"] for index in bundle["lines"].split()}):
        line = AUDIT["lines"][index]
        letter, _, count = line.partition("*")
        try:
            record = from_line(letter * int(count) if count.isdecimal() else line)
            if not record.signatures:
                continue  # an attachment, or the fault in question
            assert record.type not in ATTACHMENTS or "malformed" in said
            if record.type in ATTACHMENTS:
                continue
            record.check_signatures()
            if record.message and record.type == "/p2pgrid/receipt/1":
                receipts[record.id] = record
        except Refused as fault:
            faults.add(str(fault))
    assert faults <= said | {"malformed", "out-of-range"}
    if said & FORM or len(vector["verdict"]["channels"]) != 1:
        return
    (channel,) = vector["verdict"]["channels"]
    signed = [record for record in receipts.values() if "client" in record.signatures]
    assert channel["receipts"] == len(receipts)
    assert channel["amount_pico"] == sum(record.message["amount_pico"] for record in receipts.values())
    if not (said | notes) & {"left-out", "not-received"}:  # there two copies differ in their signatures
        assert channel["countersigned_pico"] == sum(record.message["amount_pico"] for record in signed)
