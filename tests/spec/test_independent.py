"""Who follows docs/spec and has none of our code finds in tests/vectors what we find."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nacl.bindings
import pytest

from tests.spec import reader
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
    for module in ("reader.py", "test_independent.py"):
        tree = ast.parse(Path(__file__).with_name(module).read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not [name for name in names if name.startswith("p2pgrid")]


@pytest.mark.parametrize("vector", vectors("records"), ids=lambda v: v["message"])
def test_records(vector: dict[str, Any]) -> None:
    record = from_wire(bytes.fromhex(vector["wire"]))
    assert record == from_line(vector["text"])
    assert reader.signature_input(record.type, record.payload).hex() == vector["signature_input"]
    assert (record.id.hex(), record.payload.hex()) == (vector["id"], vector["payload"])
    record.check_signatures()
    assert reader.message_types()[record.type][0] == vector["message"]
    assert shown(record.message) == vector["fields"]


def test_every_message_of_the_page_is_among_the_records() -> None:
    assert {name for name, _ in reader.message_types().values()} == {v["message"] for v in vectors("records")}


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
