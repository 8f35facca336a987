"""The edge cases of Ed25519 on which libraries differ: admission of keys makes the verdict one."""

from __future__ import annotations

import json
from typing import Any

import nacl.bindings
import nacl.exceptions
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto import keys
from p2pgrid.proto.codes import CODES
from p2pgrid.proto.keys import parse_public_key
from tests.proto.vectors import FOLDER

CASES = json.loads((FOLDER / "speccheck.json").read_text())


def parts_of(case: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    return bytes.fromhex(case["public_key"]), bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["number"]))
def test_each_case_has_the_verdict_of_the_specification(case: dict[str, Any]) -> None:
    raw, message, signature = parts_of(case)
    try:
        key = parse_public_key(b"\x01" + raw)
    except InvalidRecord as refused:
        assert (refused.code, case["key_admitted"]) == (case["fault"], False)
        return
    assert case["key_admitted"]
    assert key.verify(message, signature) is case["signature_fits"]
    assert case["fault"] == "bad-signature"


@pytest.mark.parametrize("case", json.loads((FOLDER / "signatures.json").read_text()), ids=lambda case: case["case"])
def test_under_a_good_key_one_signature_fits(case: dict[str, Any]) -> None:
    key = parse_public_key(bytes.fromhex(case["public_key"]))
    assert key.verify(bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])) is case["signature_fits"]


def test_the_library_called_as_it_is_and_through_its_binding_is_one_verdict() -> None:
    assert keys.is_signed is keys.is_signed_by_library, "this PyNaCl hides its library: audits are slower"
    signatures = json.loads((FOLDER / "signatures.json").read_text())
    for case in [*CASES, *signatures]:
        raw, message, signature = parts_of(case)
        raw = raw[-32:]  # those of signatures.json have the algorithm before them
        signed = signature + message
        assert keys.is_signed_by_library(signed, raw) is keys.is_signed_by_binding(signed, raw), case
        for cut in (signed[:63], signed[:64], signed[:-1], b""):
            assert keys.is_signed_by_library(cut, raw) is keys.is_signed_by_binding(cut, raw), case


def test_there_are_twelve_and_their_faults_are_codes() -> None:
    assert [case["number"] for case in CASES] == list(range(12))
    assert {case["fault"] for case in CASES} <= set(CODES)


def test_without_admission_two_libraries_would_differ() -> None:
    """Why keys are admitted by one rule (docs/spec/record.md): bare verification depends on the library."""

    def libsodium(raw: bytes, message: bytes, signature: bytes) -> bool:
        try:
            nacl.bindings.crypto_sign_open(signature + message, raw)
        except nacl.exceptions.BadSignatureError:
            return False
        return True

    def openssl(raw: bytes, message: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    taken = {f: [c["number"] for c in CASES if f(*parts_of(c))] for f in (libsodium, openssl)}
    assert taken[libsodium] == [3]
    assert taken[openssl] != taken[libsodium]
    assert 0 in taken[openssl]
