"""The certificates: ours against ours, ours against py-libp2p's, and everything that must be refused."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net import tls
from p2pgrid.proto.keys import SecretKey

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
KEY = SecretKey(b"k" * 32)
OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")


def make_der(key: SecretKey = KEY) -> bytes:
    return tls.make_certificate(key, NOW)[0].public_bytes(Encoding.DER)


def test_a_certificate_proves_the_identity_it_was_made_for() -> None:
    assert tls.verify_certificate(make_der(), NOW) == KEY.public_key


def test_py_libp2p_reads_our_certificate() -> None:
    from libp2p.peer.id import ID
    from libp2p.security.tls.certificate import verify_certificate_chain

    certificate, _ = tls.make_certificate(KEY, datetime.datetime.now(datetime.UTC))
    found = verify_certificate_chain([certificate])
    assert ID.from_pubkey(found).to_string() == KEY.public_key.peer_id


def test_we_read_py_libp2ps_certificate() -> None:
    from libp2p.crypto.ed25519 import Ed25519PrivateKey
    from libp2p.security.tls.certificate import create_cert_template, generate_certificate

    secret = Ed25519PrivateKey.from_bytes(KEY.expose_seed())
    pem, _ = generate_certificate(secret, create_cert_template())
    der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
    assert tls.verify_certificate(der, datetime.datetime.now(datetime.UTC)) == KEY.public_key


def test_the_extension_is_the_only_one() -> None:
    """js-libp2p reads none but the first."""
    certificate, _ = tls.make_certificate(KEY, NOW)
    assert [extension.oid for extension in certificate.extensions] == [OID]


def signed_key(key: SecretKey, spki: bytes) -> bytes:
    signature = key.sign(b"libp2p-tls-handshake:" + spki)
    return bytes.fromhex("306804240801 1220".replace(" ", "")) + key.public_key.raw[1:] + b"\x04\x40" + signature


def forge(
    *,
    value: bytes | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    tls_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    extra_critical: bool = False,
    without: bool = False,
    alternative_name: bytes | None = None,
) -> bytes:
    own = tls_key or ec.generate_private_key(ec.SECP256R1())
    spki = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .subject_name(name)
        .issuer_name(name)
        .public_key(own.public_key())
    )
    if not without:
        extension = x509.UnrecognizedExtension(OID, signed_key(KEY, spki) if value is None else value)
        builder = builder.add_extension(extension, critical=True)
    if alternative_name is not None:
        oid = x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, alternative_name), False)
    if extra_critical:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), True)
    return builder.sign(signer or own, hashes.SHA256()).public_bytes(Encoding.DER)


def test_the_forge_makes_an_acceptable_one_first() -> None:
    assert tls.verify_certificate(forge(), NOW) == KEY.public_key
    assert tls.verify_certificate(forge(tls_key=ec.generate_private_key(ec.SECP384R1())), NOW) == KEY.public_key


GOOD = signed_key(KEY, b"another certificate's key")


@pytest.mark.parametrize(
    ("der", "says"),
    [
        (None, "missing"),
        (b"", "missing"),
        (b"\x30" * 9000, "over the cap"),
        (b"no certificate", "not valid"),
        (make_der()[:-1], "not valid"),
        (make_der().replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103")), "InvalidVersion"),
        (forge(alternative_name=bytes.fromhex("3002a300")), "UnsupportedGeneralNameType"),
        (forge(without=True), "no libp2p extension"),
        (forge(extra_critical=True), "critical extension 1.2.3.4"),
        (forge(signer=ec.generate_private_key(ec.SECP256R1())), "not valid"),
        (forge(tls_key=ec.generate_private_key(ec.SECP521R1())), "not accepted"),
        (forge(tls_key=rsa.generate_private_key(65537, 2048)), "not accepted"),
        (forge(value=GOOD), "is not signed by the 12D3"),
        (forge(value=GOOD[:-1]), "no Ed25519 key and signature"),
        (forge(value=GOOD + b"\0"), "no Ed25519 key and signature"),
        (forge(value=b""), "no Ed25519 key and signature"),
        (forge(value=GOOD.replace(b"\x08\x01\x12\x20", b"\x08\x02\x12\x20")), "no Ed25519 key and signature"),
        (forge(value=GOOD[:8] + b"\x01" + bytes(31) + GOOD[40:]), "not acceptable"),
    ],
)
def test_what_proves_nothing_is_refused(der: bytes | None, says: str) -> None:
    with pytest.raises(ProtocolViolation, match=says):
        tls.verify_certificate(der, NOW)


@pytest.mark.parametrize("days", [-2, 40_000])
def test_a_certificate_out_of_its_time_is_refused_with_advice(days: int) -> None:
    with pytest.raises(ProtocolViolation, match="valid from") as refused:
        tls.verify_certificate(make_der(), NOW + datetime.timedelta(days=days))
    assert "clock" in refused.value.hint


@given(st.binary(max_size=600))
def test_no_bytes_raise_anything_else(der: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        tls.verify_certificate(der, NOW)


MADE = make_der()


@given(at=st.integers(0, len(MADE) - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_flipped(at: int, bit: int) -> None:
    flipped = bytearray(MADE)
    flipped[at] ^= 1 << bit
    with pytest.raises(ProtocolViolation):
        tls.verify_certificate(bytes(flipped), NOW)


def test_contexts_speak_tls_1_3_alone() -> None:
    for context in (tls.listener_context(KEY), tls.dialler_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_no_key_is_left_on_the_disk(tmp_path: Path) -> None:
    code = (
        "from p2pgrid.net import tls; from p2pgrid.proto.keys import SecretKey;"
        "tls.listener_context(SecretKey(bytes(32)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_tls_does_not_wait_for_libp2p_to_be_imported() -> None:
    code = "import sys, p2pgrid.net.direct; sys.exit('libp2p' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
