"""A provider's pages, as its client reads them: over libp2p, or over HTTPS with both sides' keys proven.

What comes is capped and timed out here, and believed by nobody before its signatures are verified.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Final, Protocol, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable, UsageError
from p2pgrid.http.response_reader import ResponseReader
from p2pgrid.printable import printable
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.peer_id_auth import PeerIdAuthClient

if TYPE_CHECKING:
    import aiohttp

    from p2pgrid.net.stream_road import StreamRoad

RECEIPTS: Final = "/receipts"
MAX_BYTES: Final = 4 * 1024**3
MAX_LIST_BYTES: Final = 1024 * 1024
STALL_S: Final = 30.0
"""How long the next bytes of an answer may take."""
_MAX_ERROR_BYTES: Final = 4096


class Pages(Protocol):
    """The pages of a provider whose key is proven."""

    def get(self, path: str, *, max_bytes: int = MAX_BYTES) -> AsyncIterator[bytes]:
        """The body at a path, in pieces. Raises Unreachable, Refused (`http-404`, ...) or ProtocolViolation."""
        ...


class ListedChannel(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `/receipts`. Fields that are not known are passed over."""

    channel: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    receipts: Annotated[int, Meta(ge=0)]


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What `/receipts` shows: the channels of who asks."""

    provider: Annotated[str, Meta(max_length=64)]
    client: Annotated[str, Meta(max_length=64)]
    channels: Annotated[tuple[ListedChannel, ...], Meta(max_length=1024)]


async def list_channels(pages: Pages) -> Listing:
    """The channels that the provider has with us, by its books. Raises as `Pages.get`."""
    body = b"".join([piece async for piece in pages.get(RECEIPTS, max_bytes=MAX_LIST_BYTES)])
    try:
        return msgspec.json.decode(body, type=Listing)
    except msgspec.DecodeError as error:
        raise ProtocolViolation(f"the provider's list of channels cannot be read: {error}.") from None


class DialsHttp(Protocol):
    """`p2pgrid.net.network.Network` is one."""

    async def dial_http(self, peer: PublicKey, addresses: Sequence[str], *, timeout_s: float = 10.0) -> StreamRoad:
        """A stream for one request. Raises Unreachable."""
        ...


class Libp2pPages:
    """Over libp2p, whose handshake proves both keys."""

    def __init__(self, network: DialsHttp, provider: PublicKey, addresses: Sequence[str], timeout_s: float) -> None:
        self._network = network
        self._provider = provider
        self._addresses = tuple(addresses)
        self._timeout_s = timeout_s

    async def get(self, path: str, *, max_bytes: int = MAX_BYTES) -> AsyncIterator[bytes]:
        """See `Pages`."""
        road = await self._network.dial_http(self._provider, self._addresses, timeout_s=self._timeout_s)
        reader = asyncio.StreamReader()
        road.start(asyncio.StreamReaderProtocol(reader))
        answer = ResponseReader(max_bytes)
        error = b""
        try:
            road.write(f"GET {path} HTTP/1.1\r\nHost: {self._provider.peer_id}\r\nConnection: close\r\n\r\n".encode())
            while not answer.is_complete:
                async with asyncio.timeout(STALL_S):
                    data = await reader.read(64 * 1024)
                if not data:
                    answer.end()
                piece = answer.feed(data) if data else b""
                if answer.status not in (0, 200):
                    error += piece[: _MAX_ERROR_BYTES - len(error)]
                elif piece:
                    yield piece
        except TimeoutError:
            raise Unreachable(f"{self._provider} sent nothing for {STALL_S:g} s.") from None
        except OSError as lost:
            raise Unreachable(f"the connection to {self._provider} was lost: {lost}.") from lost
        finally:
            road.abort()
        if answer.status != 200:
            raise _refused(path, answer.status, error)


class HttpPages:
    """On a port. Both sides prove their keys at the first request (HTTP Peer ID Auth). Use it with `async with`."""

    def __init__(self, url: str, provider: PublicKey, key: SecretKey, timeout_s: float) -> None:
        """Raises UsageError for a URL over which nobody should say who they are."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
            raise UsageError(
                f"{url} is not encrypted: whoever is on the path could read along, and ask in your name for an hour.",
                hint="Give an https:// URL, or the provider's peer id: over libp2p everything is encrypted.",
            )
        host = parts.hostname or ""
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._host = f"[{host}]" if ":" in host else host
        self._provider = provider
        self._key = key
        self._timeout_s = timeout_s
        self._token = ""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp  # not with the module: it brings 20 MB

        timeout = aiohttp.ClientTimeout(total=None, connect=self._timeout_s, sock_read=STALL_S)
        self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, *, max_bytes: int = MAX_BYTES) -> AsyncIterator[bytes]:
        """See `Pages`."""
        import aiohttp

        assert self._session is not None, "used outside of `async with`"
        try:
            handshake = None if self._token else await self._ask_who(path)
            said = self._token or handshake or ""
            client = self._client
            async with self._session.get(
                self._base + path, headers={"Authorization": said}, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise _refused(path, answer.status, await answer.content.read(_MAX_ERROR_BYTES))
                if handshake is not None:
                    self._token = client.finish(answer.headers.get("Authentication-Info"))
                    self._check(client)
                taken = 0
                async for piece in answer.content.iter_any():
                    taken += len(piece)
                    if taken > max_bytes:
                        raise ProtocolViolation(f"{self._base}{path} has over {max_bytes} bytes.")
                    yield piece
        except (aiohttp.ClientError, TimeoutError) as lost:
            raise Unreachable(f"{self._base}{path} cannot be read: {lost or 'it took too long'}.") from None

    async def _ask_who(self, path: str) -> str:
        """The first half of the handshake: the provider proves its key, and asks for ours."""
        assert self._session is not None
        self._client = client = PeerIdAuthClient(self._key, self._host, secrets.token_bytes(32))
        async with self._session.get(
            self._base + path, headers={"Authorization": client.opening()}, allow_redirects=False
        ) as asked:
            if asked.status != 401:
                raise _refused(path, asked.status, await asked.content.read(_MAX_ERROR_BYTES))
            reply = client.reply(asked.headers.get("WWW-Authenticate", ""))
        if client.server is not None:
            self._check(client)
        return reply

    _client: PeerIdAuthClient

    def _check(self, client: PeerIdAuthClient) -> None:
        if client.server != self._provider:
            raise ProtocolViolation(f"{self._base} belongs to {client.server}; {self._provider} was expected.")


def _refused(path: str, status: int, body: bytes) -> Refused:
    try:
        said = str(msgspec.json.decode(body, type=dict[str, str]).get("error", ""))
    except msgspec.DecodeError:
        said = ""
    return Refused(f"http-{status}", f"{path}: {printable(said[:300]) or 'the answer was'} ({status}).")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
