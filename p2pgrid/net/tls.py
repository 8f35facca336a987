"""TLS 1.3 that proves a libp2p identity (the libp2p specs' tls/tls.md), for the direct road.

A fresh P-256 key signs a certificate whose one extension holds the peer's public key and its signature over the
certificate's key. Written with `cryptography` itself: importing libp2p's own module takes more than a second,
which every command line would pay. The tests hold the two against each other, both ways.

Only Ed25519 identities are admitted, and for them the extension's DER has one form of fixed length, so it is
compared, not parsed.
"""

from __future__ import annotations

import datetime
import secrets
import ssl
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.keys import ALGORITHM_ED25519, PublicKey, SecretKey, parse_public_key

ALPN: Final = "p2pgrid/1"
MAX_CERTIFICATE_BYTES: Final = 8_192

_EXTENSION_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_SIGNED_PREFIX: Final = b"libp2p-tls-handshake:"
# SEQUENCE of OCTET STRING (libp2p PublicKey, Ed25519, 36 bytes) and OCTET STRING (signature, 64 bytes).
_BEFORE_KEY: Final = bytes.fromhex("3068 0424 08011220")
_BEFORE_SIGNATURE: Final = bytes.fromhex("0440")
_EXTENSION_BYTES: Final = len(_BEFORE_KEY) + 32 + len(_BEFORE_SIGNATURE) + 64
_UNREADABLE: Final = (
    ValueError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates that it cannot read: found by flipping every bit of one."""
_LIFETIME: Final = datetime.timedelta(days=36_500)
_BACKDATED: Final = datetime.timedelta(days=1)


def listener_context(secret_key: SecretKey) -> ssl.SSLContext:
    """For the side that is dialled: it shows a certificate of `secret_key`'s identity and asks for none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    # A resumed session shows no certificate, so it would prove no peer.
    context.num_tickets = 0
    certificate, tls_key = make_certificate(secret_key, datetime.datetime.now(datetime.UTC))
    # OpenSSL reads from a file alone. The key in it is this process's own, lives as long as the context, and is
    # encrypted under a password that only this function knows.
    password = secrets.token_hex(32).encode()
    pem = certificate.public_bytes(Encoding.PEM) + tls_key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)
    )
    with tempfile.TemporaryDirectory(prefix="p2pgrid-") as folder:
        path = Path(folder, "tls.pem")
        path.touch(mode=0o600)
        path.write_bytes(pem)
        context.load_cert_chain(path, password=password)
    return context


def dialler_context() -> ssl.SSLContext:
    """For the side that dials. It accepts every certificate: call `verify_certificate` before you send anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def make_certificate(
    secret_key: SecretKey, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed certificate of `secret_key`'s identity and the fresh TLS key in it."""
    tls_key = ec.generate_private_key(ec.SECP256R1())
    spki = tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = secret_key.sign(_SIGNED_PREFIX + spki)
    extension = _BEFORE_KEY + secret_key.public_key.raw[1:] + _BEFORE_SIGNATURE + signature
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "libp2p")])
    certificate = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _LIFETIME)
        .subject_name(name)
        .issuer_name(name)
        .public_key(tls_key.public_key())
        # The only extension: js-libp2p reads none but the first.
        .add_extension(x509.UnrecognizedExtension(_EXTENSION_OID, extension), critical=False)
        .sign(tls_key, hashes.SHA256())
    )
    return certificate, tls_key


def verify_certificate(der: bytes | None, now: datetime.datetime) -> PublicKey:
    """The identity that a peer's certificate proves, once TLS has proven that the peer holds the certificate's key.

    Raises ProtocolViolation for anything but a valid, self-signed libp2p certificate of an admissible Ed25519 key.
    """
    if not der or len(der) > MAX_CERTIFICATE_BYTES:
        raise ProtocolViolation(f"the peer's certificate has {len(der or b'')} bytes: missing, or over the cap.")
    try:
        certificate = x509.load_der_x509_certificate(der)
        value = _identity_extension(certificate)
        tls_key = certificate.public_key()
        _verify_self_signed(certificate, tls_key)
        spki = tls_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        # Whole octets at the very end: a count of unused bits would let one certificate have many forms.
        is_whole = der.endswith(b"\0" + certificate.signature)
    except _UNREADABLE as error:
        raise ProtocolViolation(f"the peer's certificate is not valid: {error!r}") from error
    if not is_whole:
        raise ProtocolViolation("the peer's certificate is not valid: its signature is not in whole octets.")
    if not before <= now <= after:
        raise ProtocolViolation(
            f"the peer's certificate is valid from {before:%Y-%m-%d %H:%M} to {after:%Y-%m-%d %H:%M} UTC, "
            f"and it is {now:%Y-%m-%d %H:%M}.",
            hint="Check this machine's clock.",
        )
    return _verify_identity(value, spki)


def _identity_extension(certificate: x509.Certificate) -> bytes:
    found: bytes | None = None
    for extension in certificate.extensions:
        if extension.oid == _EXTENSION_OID and isinstance(extension.value, x509.UnrecognizedExtension):
            found = extension.value.value
        elif extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
            raise ValueError(f"critical extension {extension.oid.dotted_string} is unknown")
    if found is None:
        raise ValueError("it has no libp2p extension")
    return found


def _verify_self_signed(certificate: x509.Certificate, tls_key: object) -> None:
    """Only the key types that the libp2p implementations make: ECDSA on P-256 or P-384, and Ed25519."""
    body, signature = certificate.tbs_certificate_bytes, certificate.signature
    digest = certificate.signature_hash_algorithm
    if isinstance(tls_key, ed25519.Ed25519PublicKey):
        tls_key.verify(signature, body)
    elif (
        isinstance(tls_key, ec.EllipticCurvePublicKey)
        and isinstance(tls_key.curve, (ec.SECP256R1, ec.SECP384R1))
        and isinstance(digest, (hashes.SHA256, hashes.SHA384, hashes.SHA512))
    ):
        tls_key.verify(signature, body, ec.ECDSA(digest))
    else:
        raise ValueError(f"its key or signature algorithm is not accepted ({type(tls_key).__name__})")


def _verify_identity(value: bytes, spki: bytes) -> PublicKey:
    at_key, at_signature = len(_BEFORE_KEY), len(_BEFORE_KEY) + 32 + len(_BEFORE_SIGNATURE)
    if (
        len(value) != _EXTENSION_BYTES
        or not value.startswith(_BEFORE_KEY)
        or value[at_key + 32 : at_signature] != _BEFORE_SIGNATURE
    ):
        raise ProtocolViolation("the certificate's libp2p extension holds no Ed25519 key and signature.")
    try:
        key = parse_public_key(bytes([ALGORITHM_ED25519]) + value[at_key : at_key + 32])
    except InvalidRecord as error:
        raise ProtocolViolation(f"the certificate's key is not acceptable: {error.message}") from error
    if not key.verify(_SIGNED_PREFIX + spki, value[at_signature:]):
        raise ProtocolViolation(f"the certificate is not signed by the {key} that it names.")
    return key
