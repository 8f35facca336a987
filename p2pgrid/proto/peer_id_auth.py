"""HTTP Peer ID Authentication, both sides (https://github.com/libp2p/specs/blob/master/http/peer-id-auth.md).

Each side signs a challenge of the other's, together with the host's name and the other's key, so that neither can pass
a signature on. Between the two requests of a handshake the server keeps no state: it hands the client a sealed text
(`opaque`) and gets it back. A challenge is good for a minute, and once; the `bearer` token that ends a handshake, for
an hour, at the host for which it was given. Time and randomness are arguments.

    Authorization: libp2p-PeerID challenge-server="...", public-key="..."
    WWW-Authenticate: libp2p-PeerID challenge-client="...", opaque="...", public-key="...", sig="..."
    Authorization: libp2p-PeerID opaque="...", sig="..."
    Authentication-Info: libp2p-PeerID bearer="..."

Where the specification's text and its example of a server-initiated handshake differ (what the client signs), the text
holds: without the server's key in it, a signature could be passed on to another server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.keys import ALGORITHM_ED25519, PublicKey, SecretKey, parse_public_key

SCHEME: Final = "libp2p-PeerID"
MAX_HEADER_CHARS: Final = 2048
CHALLENGE_MS: Final = 60_000
BEARER_MS: Final = 3_600_000
MAX_USED: Final = 4096
"""Challenges of the last minute that were met, and are not taken again."""
_LIBP2P_KEY_PREFIX: Final = b"\x08\x01\x12\x20"
_FIELD: Final = re.compile(r'[ ,]*([a-z-]{1,32})="([\x21\x23-\x5b\x5d-\x7e]{0,1500})"')
_CHALLENGE_CHARS: Final = range(1, 257)


class _Sealed(msgspec.Struct, array_like=True, frozen=True):
    """What the server hands out and gets back."""

    is_bearer: bool
    hostname: str
    challenge: str
    """Of the server's to the client; a bearer's own number."""
    client: bytes
    """The client's key, 33 bytes; empty where it is not known yet."""
    made_ms: int


@dataclass(frozen=True, slots=True)
class Challenge:
    """The request is not authenticated: 401, with this `WWW-Authenticate`."""

    header: str


@dataclass(frozen=True, slots=True)
class Named:
    """The request is `key`'s. Its answer carries this `Authentication-Info`; none where the header is empty."""

    key: PublicKey
    header: str


class PeerIdAuthServer:
    """The server's side, for all hosts' names it has."""

    def __init__(self, secret_key: SecretKey, box_key: bytes) -> None:
        """`box_key`: 32 fresh random bytes. With others, tokens that were handed out are worth nothing."""
        self._key = secret_key
        self._box_key = box_key
        self._used: OrderedDict[str, int] = OrderedDict()

    def judge(self, authorization: str | None, hostname: str, now_ms: int, nonce: bytes) -> Named | Challenge:
        """Who asks, by the request's `Authorization`. `nonce`: 32 fresh random bytes.

        `hostname` is what the server is called by in this request, as the client gave it. The caller sees to it that it
        is one of the server's own: for a stranger's name no signature may be given.
        """
        fields = _parse_or_none(authorization)
        if fields is None:
            return self._challenge(hostname, now_ms, nonce)
        if "bearer" in fields:
            return self._by_bearer(fields, hostname, now_ms) or self._challenge(hostname, now_ms, nonce)
        if "sig" in fields:
            return self._by_signature(fields, hostname, now_ms, nonce) or self._challenge(hostname, now_ms, nonce)
        return self._challenge(hostname, now_ms, nonce, fields)

    def _challenge(self, hostname: str, now_ms: int, nonce: bytes, fields: dict[str, str] | None = None) -> Challenge:
        """Ask who it is; and prove who we are, where the client has asked that first."""
        client = _key_or_none(fields.get("public-key")) if fields else None
        asked = fields.get("challenge-server", "") if fields and client is not None else ""
        challenge = _b64(nonce)
        sealed = _Sealed(False, hostname, challenge, client.raw if client is not None else b"", now_ms)
        said = {
            "challenge-client": challenge,
            "opaque": self._seal(sealed),
            "public-key": _b64(_pb(self._key.public_key)),
        }
        if client is not None and len(asked) in _CHALLENGE_CHARS:
            said["sig"] = _b64(self._key.sign(_signed_by_server(asked, client, hostname)))
        return Challenge(_format(said))

    def _by_bearer(self, fields: dict[str, str], hostname: str, now_ms: int) -> Named | None:
        token = self._open(fields["bearer"], is_bearer=True, hostname=hostname, now_ms=now_ms)
        return Named(parse_public_key(token.client), "") if token is not None else None

    def _by_signature(self, fields: dict[str, str], hostname: str, now_ms: int, nonce: bytes) -> Named | None:
        asked = self._open(fields.get("opaque", ""), is_bearer=False, hostname=hostname, now_ms=now_ms)
        signature = _unb64_or_none(fields["sig"])
        if asked is None or signature is None:
            return None
        client = parse_public_key(asked.client) if asked.client else _key_or_none(fields.get("public-key"))
        own = self._key.public_key
        if client is None or not client.verify(_signed_by_client(asked.challenge, own, hostname), signature):
            return None
        if not self._use(asked.challenge, now_ms):
            return None
        said = {"bearer": self._seal(_Sealed(True, hostname, _b64(nonce), client.raw, now_ms))}
        theirs = fields.get("challenge-server", "")
        if len(theirs) in _CHALLENGE_CHARS:
            said["sig"] = _b64(self._key.sign(_signed_by_server(theirs, client, hostname)))
            said["public-key"] = _b64(_pb(own))
        return Named(client, _format(said))

    def _use(self, challenge: str, now_ms: int) -> bool:
        """False if the challenge was met before, or too many were of late."""
        while self._used and next(iter(self._used.values())) < now_ms - CHALLENGE_MS:
            self._used.popitem(last=False)
        if challenge in self._used or len(self._used) >= MAX_USED:
            return False
        self._used[challenge] = now_ms
        return True

    def _seal(self, sealed: _Sealed) -> str:
        data = msgspec.msgpack.encode(sealed)
        return _b64(hmac.digest(self._box_key, data, hashlib.sha256) + data)

    def _open(self, text: str, *, is_bearer: bool, hostname: str, now_ms: int) -> _Sealed | None:
        box = _unb64_or_none(text) or b""
        if not hmac.compare_digest(box[:32], hmac.digest(self._box_key, box[32:], hashlib.sha256)):
            return None
        sealed = msgspec.msgpack.decode(box[32:], type=_Sealed)  # our own bytes
        age_ms = now_ms - sealed.made_ms
        lasts_ms = BEARER_MS if is_bearer else CHALLENGE_MS
        good = sealed.is_bearer is is_bearer and sealed.hostname == hostname and 0 <= age_ms <= lasts_ms
        return sealed if good else None


class PeerIdAuthClient:
    """The client's side of one handshake with a host."""

    def __init__(self, secret_key: SecretKey, hostname: str, challenge: bytes) -> None:
        """`challenge`: 32 fresh random bytes."""
        self._key = secret_key
        self._hostname = hostname
        self._challenge = _b64(challenge)
        self.server: PublicKey | None = None
        """Whom the host has proven to be."""

    def opening(self) -> str:
        """The first request's `Authorization`."""
        return _format({"challenge-server": self._challenge, "public-key": _b64(_pb(self._key.public_key))})

    def reply(self, www_authenticate: str) -> str:
        """The second request's `Authorization`, from the answer to the first. Raises ProtocolViolation.

        `server` is then set, unless the server would be asked first: then `finish` sets it.
        """
        fields = _parse_or_none(www_authenticate)
        if fields is None or "challenge-client" not in fields or "opaque" not in fields:
            raise ProtocolViolation(
                "the host asks for another authentication than libp2p-PeerID, or for none that is whole."
            )
        server = _key_or_none(fields.get("public-key"))
        if server is None:
            raise ProtocolViolation("the host does not say by which Ed25519 key it is known.")
        said = {"opaque": fields["opaque"]}
        if "sig" in fields:
            self._verify(server, fields["sig"])
        else:
            said["challenge-server"] = self._challenge
            said["public-key"] = _b64(_pb(self._key.public_key))
        signed = _signed_by_client(fields["challenge-client"], server, self._hostname)
        return _format({**said, "sig": _b64(self._key.sign(signed))})

    def finish(self, authentication_info: str | None) -> str:
        """The `Authorization` of further requests, from the second answer; empty if there is to be none.

        Raises ProtocolViolation where the host has proven nothing.
        """
        fields = _parse_or_none(authentication_info) or {}
        if self.server is None:
            server = _key_or_none(fields.get("public-key"))
            if server is None:
                raise ProtocolViolation("the host does not prove by which key it is known.")
            self._verify(server, fields.get("sig", ""))
        return _format({"bearer": fields["bearer"]}) if "bearer" in fields else ""

    def _verify(self, server: PublicKey, signature: str) -> None:
        signed = _signed_by_server(self._challenge, self._key.public_key, self._hostname)
        if not server.verify(signed, _unb64_or_none(signature) or b""):
            raise ProtocolViolation(f"the host says that it is {server}, and does not prove it.")
        self.server = server


def signing_input(**parameters: str | bytes) -> bytes:
    """What a signature is over: the scheme, and `name=value` of each parameter behind its length, in order of names."""
    parts = [SCHEME.encode()]
    for name, value in sorted((key.replace("_", "-"), value) for key, value in parameters.items()):
        part = name.encode() + b"=" + (value.encode() if isinstance(value, str) else value)
        parts += (_varint(len(part)), part)
    return b"".join(parts)


def _signed_by_client(challenge: str, server: PublicKey, hostname: str) -> bytes:
    return signing_input(challenge_client=challenge, server_public_key=_pb(server), hostname=hostname)


def _signed_by_server(challenge: str, client: PublicKey, hostname: str) -> bytes:
    return signing_input(challenge_server=challenge, client_public_key=_pb(client), hostname=hostname)


def _parse_or_none(header: str | None) -> dict[str, str] | None:
    """The fields of a header of this scheme; None for what is none, or too long, or names a field twice."""
    scheme, _, rest = (header or "").partition(" ")
    if scheme.lower() != SCHEME.lower() or len(rest) > MAX_HEADER_CHARS:
        return None
    fields: dict[str, str] = {}
    at = 0
    while match := _FIELD.match(rest, at):
        if match[1] in fields:
            return None
        fields[match[1]] = match[2]
        at = match.end()
    return fields if fields and not rest[at:].strip() else None


def _format(fields: dict[str, str]) -> str:
    return f"{SCHEME} " + ", ".join(f'{name}="{value}"' for name, value in fields.items())


def _pb(key: PublicKey) -> bytes:
    """A key as libp2p writes it (peer-ids.md): a protobuf of its kind and bytes."""
    return _LIBP2P_KEY_PREFIX + key.raw[1:]


def _key_or_none(text: str | None) -> PublicKey | None:
    raw = _unb64_or_none(text or "") or b""
    if not raw.startswith(_LIBP2P_KEY_PREFIX):
        return None
    try:
        return parse_public_key(bytes([ALGORITHM_ED25519]) + raw[len(_LIBP2P_KEY_PREFIX) :])
    except InvalidRecord:
        return None


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _unb64_or_none(text: str) -> bytes | None:
    """Padding may be left out."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)
