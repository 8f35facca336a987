"""A web server with a certificate of a CA of its own, for what operators put under /.well-known."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pgrid.proto.well_known import PATH

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Everywhere(AbstractResolver):
    """Finds every name on this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=2, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@dataclass
class Web:
    """A running server. `page` answers for every path that is asked for; `asked` holds them."""

    port: int
    trusted: ssl.SSLContext
    page: Page
    asked: list[str] = field(default_factory=list)


async def nothing(_: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound


def file(text: str) -> Page:
    async def page(request: web.Request) -> web.StreamResponse:
        if request.path != PATH:
            raise web.HTTPNotFound
        return web.Response(text=text, content_type="application/json")

    return page


@contextlib.asynccontextmanager
async def serving(*names: str, page: Page = nothing) -> AsyncIterator[Web]:
    """A server that is `names` to whoever trusts its CA."""
    server, trusted = contexts(names)
    found = Web(0, trusted, page)

    async def handle(request: web.Request) -> web.StreamResponse:
        found.asked.append(f"{request.host.partition(':')[0]}{request.path}")
        return await found.page(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
        found.port = runner.addresses[0][1]
        yield found
    finally:
        await runner.cleanup()


def contexts(names: tuple[str, ...]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's side, and that of somebody who trusts its CA and no other."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def builder(name: x509.Name, of: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(of.public_key()), critical=False)
        )

    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    ca = (
        builder(ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    alternatives = [x509.DNSName(name) for name in names]
    certificate = (
        builder(subject, key)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    trusted = ssl.create_default_context(cadata=ca.public_bytes(serialization.Encoding.PEM).decode())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "server.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        server.load_cert_chain(pem)
    return server, trusted
