"""Admission of keys, signatures, peer ids."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import SecretKey, parse_peer_id, parse_public_key

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    t = _D * a[0] * b[0] * a[1] * b[1] % _P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, _P - 2, _P) % _P
    return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, _P - 2, _P) % _P


def times(k: int, a: Point) -> Point:
    out: Point = (0, 1)
    while k:
        if k & 1:
            out = add(out, a)
        a, k = add(a, a), k >> 1
    return out


def encode(a: Point) -> bytes:
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


_BASE: Point = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)
_HALF: Point = (0, _P - 1)
"""The point of order 2."""

# The eight points of small order and their other encodings (ed25519-speccheck; Chalkias, Garillot, Nikolaenko, 2020).
_ORDER_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
_ORDER_8_TOO = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
SMALL_ORDER = {
    "identity": "01" + "00" * 31,
    "identity, sign bit": "01" + "00" * 30 + "80",
    "order 2": "ec" + "ff" * 30 + "7f",
    "order 2, sign bit": "ec" + "ff" * 31,
    "order 4": "00" * 32,
    "order 4, negative": "00" * 31 + "80",
    "order 8, a": _ORDER_8,
    "order 8, -a": _ORDER_8[:-2] + "85",
    "order 8, b": _ORDER_8_TOO,
    "order 8, -b": _ORDER_8_TOO[:-2] + "fa",
    "order 4, y = p": "ed" + "ff" * 30 + "7f",
    "order 4, y = p, sign bit": "ed" + "ff" * 31,
    "identity, y = p + 1": "ee" + "ff" * 30 + "7f",
    "identity, y = p + 1, sign bit": "ee" + "ff" * 31,
}


@pytest.mark.parametrize("point", SMALL_ORDER.values(), ids=SMALL_ORDER.keys())
def test_small_order_points_are_no_keys(point: str) -> None:
    with pytest.raises(InvalidRecord) as invalid:
        parse_public_key(b"\x01" + bytes.fromhex(point))
    assert invalid.value.code == "key-not-admissible"


_S = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"
_M = "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43"
_MM = "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d"
_G = "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623"
_N = "ec" + "ff" * 31
_OUT_OF_RANGE = "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40"
# The keys of ed25519-speccheck's cases, and what other libraries make of their signatures.
SPECCHECK_KEYS = {
    "0 and 1, small order": (_S, False),
    "2, 8 and 9, mixed order": (_M, False),
    "3 to 5, mixed order": (_MM, False),
    "6 and 7, good": (_G, True),
    "10 and 11, not canonical": (_N, False),
}


@pytest.mark.parametrize(("key", "admitted"), SPECCHECK_KEYS.values(), ids=SPECCHECK_KEYS.keys())
def test_speccheck_keys(key: str, admitted: bool) -> None:
    if admitted:
        assert parse_public_key(b"\x01" + bytes.fromhex(key))
        return
    with pytest.raises(InvalidRecord):
        parse_public_key(b"\x01" + bytes.fromhex(key))


@pytest.mark.parametrize(
    "signature",
    [
        "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e"
        "547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
        "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa1942"
        "7e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
    ],
    ids=["6", "7"],
)
def test_speccheck_signatures_with_s_out_of_range(signature: str) -> None:
    key = parse_public_key(b"\x01" + bytes.fromhex(_G))
    assert not key.verify(bytes.fromhex(_OUT_OF_RANGE), bytes.fromhex(signature))


def test_a_signature_with_the_identity_for_r_is_refused() -> None:
    """OpenSSL takes it; the signer gives its secret key away with it (S = k * secret)."""
    secret = 987654321
    point = times(secret, _BASE)
    assert not parse_public_key(b"\x01" + encode(point)).verify(b"m", sign_with((0, 1), secret, point, b"m", 0))


def test_mixed_order_keys_are_refused() -> None:
    good = times(12345, _BASE)
    assert parse_public_key(b"\x01" + encode(good))
    for k in range(1, 8):
        torsion = times(k, times(_L, _order_8_point()))
        with pytest.raises(InvalidRecord):
            parse_public_key(b"\x01" + encode(add(good, torsion)))


def _order_8_point() -> Point:
    y = int.from_bytes(bytes.fromhex(_ORDER_8), "little") & (2**255 - 1)
    x2 = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(x2, (_P + 3) // 8, _P)
    if (x * x - x2) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    assert (x * x - x2) % _P == 0
    return x, y


@pytest.mark.parametrize(
    "raw",
    [b"", bytes(32), bytes(33), b"\x02" + bytes(32), bytes(34), b"\x01" + b"\x02" + bytes(31), b"\x01" + b"\xff" * 32],
)
def test_other_bytes_are_no_keys(raw: bytes) -> None:
    with pytest.raises(InvalidRecord) as invalid:
        parse_public_key(raw)
    assert invalid.value.code == "key-not-admissible"


@given(st.binary(min_size=0, max_size=80))
def test_any_bytes_are_a_key_or_an_invalid_record(raw: bytes) -> None:
    try:
        key = parse_public_key(raw)
    except InvalidRecord as invalid:
        assert invalid.code == "key-not-admissible"
    else:
        assert key.raw == raw


def sign_with(r: Point, secret: int, key: Point, message: bytes, nonce: int) -> bytes:
    h = hashlib.sha512(encode(r) + encode(key) + message).digest()
    s = (nonce + int.from_bytes(h, "little") * secret) % _L
    return encode(r) + s.to_bytes(32, "little")


def test_a_signature_whose_r_has_a_small_order_part_is_refused_by_both_libraries() -> None:
    """Cofactored verification would accept it: see keys.py."""
    secret, nonce = 987654321, 1234567
    point = times(secret, _BASE)
    key = parse_public_key(b"\x01" + encode(point))
    honest = sign_with(times(nonce, _BASE), secret, point, b"m", nonce)
    assert key.verify(b"m", honest)
    twisted = sign_with(add(times(nonce, _BASE), _HALF), secret, point, b"m", nonce)
    assert not key.verify(b"m", twisted)
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(encode(point)).verify(twisted, b"m")


def test_a_signature_with_s_out_of_range_is_refused() -> None:
    key = SecretKey(bytes(32))
    signature = key.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + _L
    assert key.public_key.verify(b"m", signature)
    assert not key.public_key.verify(b"m", signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_has_64_bytes(size: int) -> None:
    assert not SecretKey(bytes(32)).public_key.verify(b"m", bytes(size))


def test_rfc_8032_vector() -> None:
    """RFC 8032, section 7.1, TEST 2."""
    key = SecretKey(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public_key.raw.hex() == "01" + "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_are_those_of_libp2p(seed: bytes) -> None:
    ours = SecretKey(seed).public_key
    theirs = ID.from_pubkey(create_new_key_pair(seed).public_key)
    assert ours.peer_id == theirs.to_base58() == str(ours)
    assert parse_peer_id(ours.peer_id) == ours


GOOD_PEER_ID = SecretKey(bytes(range(32))).public_key.peer_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD_PEER_ID + " ",
        GOOD_PEER_ID + "\n",
        " " + GOOD_PEER_ID,
        "1" + GOOD_PEER_ID,
        GOOD_PEER_ID[:-1],
        GOOD_PEER_ID[:-1] + "0",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "ł" * 52,
        "1" * 1000,
    ],
)
def test_other_texts_are_no_peer_ids(text: str) -> None:
    with pytest.raises(InvalidRecord) as invalid:
        parse_peer_id(text)
    assert invalid.value.code == "key-not-admissible"


def test_a_secret_key_hides() -> None:
    key = SecretKey(bytes(range(32)))
    assert key.expose_seed().hex() not in repr(key)
    assert key.public_key.peer_id in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(ValueError, match="32 bytes"):
        SecretKey(b"short")
