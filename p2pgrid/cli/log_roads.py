"""From what a person writes for a peer to that peer's log: a peer id, a multiaddr, or the URL of its pages."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from p2pgrid.config import DataFolder
from p2pgrid.errors import InvalidRecord, LocalError, Unreachable, UsageError
from p2pgrid.log.forks import keep_fork
from p2pgrid.log.remote import CHECKPOINT_PATH, RemoteLog
from p2pgrid.log.witness import Witness, WitnessStore
from p2pgrid.net import direct
from p2pgrid.net.log_roads import Get, over_http, over_libp2p, over_link
from p2pgrid.net.lookup_keys import PROVIDER
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.checkpoint import verify_checkpoint
from p2pgrid.proto.fork import ForkProof
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id


class Roads:
    """Reaches logs. The network is joined only when a peer has to be found, or dialled over libp2p."""

    def __init__(self, network: str, bootstrap: Sequence[str], timeout_s: float) -> None:
        self._network_name = network
        self._bootstrap = tuple(bootstrap)
        self._timeout_s = timeout_s
        self._key = SecretKey(secrets.token_bytes(32))
        self._network: Network | None = None
        self._found: dict[str, PeerAddress] = {}

    async def __aenter__(self) -> Roads:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._network is not None:
            await self._network.__aexit__(None, None, None)

    @asynccontextmanager
    async def log_of(self, text: str) -> AsyncIterator[tuple[RemoteLog, Get]]:
        """The log of a peer, and how its node is asked. Raises UsageError, RemoteError."""
        if text.startswith(("http://", "https://")):
            get = over_http(_log_prefix(text), self._timeout_s)
            yield RemoteLog(await _whose(get), get), get
        elif text.startswith("/"):
            peer_id = text.rpartition("/p2p/")[2]
            key = _parse_key(peer_id)
            parts = text.split("/")
            if len(parts) == 8 and parts[3] == "tcp" and parts[5] == "tls" and parts[4].isdecimal():
                link = await direct.dial(parts[2], int(parts[4]), key, self._key, timeout_s=self._timeout_s)
                try:
                    yield RemoteLog(key, over_link(link)), over_link(link)
                finally:
                    await link.aclose("asked")
            else:
                get = over_libp2p(await self._joined(), PeerAddress(peer_id, (text,)), self._timeout_s)
                yield RemoteLog(key, get), get
        else:
            key = _parse_key(text)
            get = over_libp2p(await self._joined(), await self._find(text), self._timeout_s)
            yield RemoteLog(key, get), get

    async def providers(self) -> list[str]:
        """The peer ids of the providers that are found. Raises RemoteError."""
        network = await self._joined()
        found = await network.find_providers(PROVIDER, timeout_s=self._timeout_s)
        self._found.update((peer.peer_id, peer) for peer in found)
        return [peer.peer_id for peer in found]

    async def _joined(self) -> Network:
        if self._network is None:
            network = Network(self._key, self._network_name, bootstrap=self._bootstrap)
            self._network = await network.__aenter__()
        return self._network

    async def _find(self, peer_id: str) -> PeerAddress:
        if peer_id not in self._found:
            await self.providers()
        if peer_id not in self._found:
            raise Unreachable(
                f"{peer_id} was not found among the providers of the network {self._network_name!r}.",
                hint="Give its multiaddr, or the URL of its pages.",
            )
        return self._found[peer_id]


def open_witness(data: DataFolder, now_ms: int, found: list[tuple[ForkProof, Path | None]]) -> Witness:
    """What this data folder remembers of logs; proofs of forks go into its folder and into `found`."""
    data.make()

    def on_fork(proof: ForkProof) -> None:
        try:
            found.append((proof, keep_fork(data.forks, proof)))
        except LocalError:
            found.append((proof, None))

    store = WitnessStore(data.witness_file)
    # Nothing is cosigned from the command line: the key is for this once.
    return Witness(store, SecretKey(secrets.token_bytes(32)), now_ms=lambda: now_ms, on_fork=on_fork)


def _log_prefix(url: str) -> str:
    bare = url.rstrip("/").removesuffix("/checkpoint")
    return bare if bare.endswith("/log") else f"{bare}/log"


async def _whose(get: Get) -> PublicKey:
    try:
        return verify_checkpoint(await get(CHECKPOINT_PATH)).log_key
    except InvalidRecord as error:
        raise UsageError(f"there is no log of this protocol: {error.message}", hint="Give the pages' URL.") from None


def _parse_key(peer_id: str) -> PublicKey:
    try:
        return parse_peer_id(peer_id)
    except InvalidRecord:
        raise UsageError(
            f"{peer_id[:80]!r} names no peer.",
            hint="Give a peer id (12D3KooW...), a multiaddr that ends in /p2p/12D3KooW..., or the URL of its pages.",
        ) from None
