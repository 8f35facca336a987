"""The 12 edge cases of `ed25519-speccheck` (Chalkias, Garillot, Nikolaenko: Taming the many EdDSAs, 2020)."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import nacl.bindings

_SMALL: Final = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"
_MIXED: Final = "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43"
_MIXED_TOO: Final = "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d"
_GOOD: Final = "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623"
_NOT_CANONICAL: Final = "ec" + "ff" * 31
_SHORT_S: Final = "a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04"
_ONE: Final = "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79"
_TWO: Final = "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c"
_THREE: Final = "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40"
_FOUR: Final = "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41"
_A: Final = "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dc"

# What it is; message; key; R; S.
_CASES: Final = (
    (
        "S = 0, small key, small R",
        "8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
        _SMALL,
        _SMALL[:-2] + "7a",
        "00" * 32,
    ),
    ("small key, mixed R", _ONE, _SMALL, _MIXED, _SHORT_S),
    (
        "mixed key, small R",
        "aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
        _MIXED,
        _SMALL,
        "8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
    ),
    (
        "mixed key, mixed R; fits with and without the cofactor",
        _ONE,
        _MIXED_TOO,
        "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f",
        "87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
    ),
    (
        "mixed key, mixed R; fits with the cofactor alone",
        _TWO,
        _MIXED_TOO,
        "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed512",
        "5ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
    ),
    (
        "mixed key; fits with the cofactor where 8h is not reduced first",
        _TWO,
        _MIXED_TOO,
        "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7",
        "e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
    ),
    (
        "S > L",
        _THREE,
        _GOOD,
        "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e",
        "547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
    ),
    (
        "S much larger than L",
        _THREE,
        _GOOD,
        "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa1942",
        "7e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
    ),
    (
        "mixed key, small R that is not canonical; reduced before it is hashed",
        _FOUR,
        _MIXED,
        _NOT_CANONICAL,
        "03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f",
    ),
    (
        "mixed key, small R that is not canonical; hashed as it is",
        _FOUR,
        _MIXED,
        _NOT_CANONICAL,
        "ca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908",
    ),
    (
        "small key that is not canonical; reduced before it is hashed",
        "e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b",
        _NOT_CANONICAL,
        _A,
        _SHORT_S,
    ),
    (
        "small key that is not canonical; hashed as it is",
        "39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f",
        _NOT_CANONICAL,
        _A,
        _SHORT_S,
    ),
)


def speccheck_vectors() -> list[dict[str, Any]]:
    """Each case with what docs/spec/record.md, section 2, makes of it.

    The fault is `key-not-admissible` where the key is refused, and `bad-signature` where the key is good.
    """
    return [
        {
            "number": number,
            "case": name,
            "message": message,
            "public_key": key,
            "signature": r + s,
            "key_admitted": key == _GOOD,
            "signature_fits": False,
            "fault": "bad-signature" if key == _GOOD else "key-not-admissible",
        }
        for number, (name, message, key, r, s) in enumerate(_CASES)
    ]


_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_MESSAGE: Final = b"p2pgrid"


def signature_vectors() -> list[dict[str, Any]]:
    """What a signer who breaks the rules can make with a key that is admitted, beside what an honest one makes.

    `ed25519-speccheck` has hardly a case under a key of prime order, and these are what is left to differ about.
    """
    seed = bytes(range(32))
    key, expanded = nacl.bindings.crypto_sign_seed_keypair(seed)
    digest = hashlib.sha512(seed).digest()
    secret = (int.from_bytes(digest[:32], "little") & (2**254 - 8)) | 2**254
    nonce = int.from_bytes(hashlib.sha512(digest[32:] + _MESSAGE).digest(), "little") % _ORDER
    point = nacl.bindings.crypto_scalarmult_ed25519_base_noclamp(_scalar(nonce))
    mixed = nacl.bindings.crypto_core_ed25519_add(point, bytes.fromhex(_SMALL[:-2] + "7a"))
    identity = (1).to_bytes(32, "little")

    def signed(r: bytes, of: int, more: int = 0) -> bytes:
        hashed = int.from_bytes(hashlib.sha512(r + key + _MESSAGE).digest(), "little")
        return r + _scalar((of + hashed * secret) % _ORDER + more)

    assert signed(point, nonce) == nacl.bindings.crypto_sign(_MESSAGE, expanded)[:64]
    cases = (
        ("as RFC 8032 has it", signed(point, nonce), True),
        ("S + L in place of S", signed(point, nonce, _ORDER), False),
        ("mixed R; fits with the cofactor alone", signed(mixed, nonce), False),
        ("R = identity; fits, and shows the key", signed(identity, 0), False),
        ("R = identity, not canonical", signed(bytes.fromhex("01" + "00" * 30 + "80"), 0), False),
    )
    return [
        {
            "case": name,
            "message": _MESSAGE.hex(),
            "public_key": "01" + key.hex(),
            "signature": signature.hex(),
            "signature_fits": fits,
        }
        for name, signature, fits in cases
    ]


def _scalar(value: int) -> bytes:
    return value.to_bytes(32, "little")
