"""From what a person writes for a peer, or what a ledger says of a provider, to that peer's log."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from p2pgrid.cli.network import NetworkChoice
from p2pgrid.client.offer_store import verify_offer
from p2pgrid.client.pages import Libp2pPages
from p2pgrid.client.roads import dial_direct, direct_addresses
from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.standing import Books, last_offer
from p2pgrid.errors import InvalidRecord, LocalError, RemoteError, Unreachable, UsageError
from p2pgrid.log.forks import keep_fork
from p2pgrid.log.remote import CHECKPOINT_PATH, RemoteLog
from p2pgrid.log.witness import Witness, WitnessStore
from p2pgrid.net import direct
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.log_roads import Get, over_http, over_libp2p, over_link
from p2pgrid.net.lookup_keys import PROVIDER
from p2pgrid.net.network import Network
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.checkpoint import verify_checkpoint
from p2pgrid.proto.fork import ForkProof
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id

MOST_FOUND: Final = 1000


class Roads:
    """Reaches logs. The network is joined only when a peer has to be found, or dialled over libp2p."""

    def __init__(self, network: NetworkChoice, timeout_s: float, key: SecretKey | None = None) -> None:
        """`network` is asked which networks to join when one is needed. `key`: who asks; left out, nobody."""
        self._choose_networks = network
        self._timeout_s = timeout_s
        self._given_key = key
        self._chosen: tuple[SecretKey, OwnNetworks] | None = None
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
                own_key, networks = await self._caller()
                link = await direct.dial(
                    parts[2], int(parts[4]), key, own_key, timeout_s=self._timeout_s, networks=networks
                )
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

    @asynccontextmanager
    async def provider_log(self, provider: PublicKey, addresses: Sequence[tuple[str, int]]) -> AsyncIterator[Get]:
        """How a provider is asked about its log by one of its clients, whose key is proven on either road.

        By the addresses at hand; where it is not there, by those of the offer that it has now; and over libp2p.
        Raises Unreachable, or another RemoteError.
        """
        key, networks = await self._caller()
        try:
            road: LinkConnection | Get = await dial_direct(addresses, provider, key, networks=networks)
        except RemoteError as away:
            road = await self._look_up(provider, away)
        if not isinstance(road, LinkConnection):
            yield road
            return
        try:
            yield over_link(road)
        finally:
            await road.aclose("asked")

    async def pages_of(self, text: str) -> Libp2pPages:
        """A provider's pages over libp2p, by its multiaddr or peer id. Raises UsageError, RemoteError."""
        peer_id = parse_peer_text(text).peer_id
        is_address = text.startswith("/") and "/tls/" not in text
        peer = PeerAddress(peer_id, (text,)) if is_address else await self._find(peer_id)
        return Libp2pPages(await self._joined(), _parse_key(peer_id), peer.addresses, self._timeout_s)

    async def _look_up(self, provider: PublicKey, away: RemoteError) -> LinkConnection | Get:
        """The road to a provider that is not where it was. `away` says how it was missed."""
        try:
            network, peer = await self._joined(), await self._find(provider.peer_id)
            raw = await network.fetch_offer(peer, timeout_s=self._timeout_s)
            offer = verify_offer(raw, provider.peer_id, unix_ms())
        except (RemoteError, InvalidRecord, UsageError) as error:
            raise Unreachable(f"{away.message} Nor was it found anew: {error.message}", hint=error.hint) from error
        key, networks = await self._caller()
        try:
            return await dial_direct(direct_addresses(offer.message.addresses), provider, key, networks=networks)
        except RemoteError:
            return over_libp2p(network, peer, self._timeout_s)

    async def providers(self) -> list[str]:
        """The peer ids of the providers that are found. Raises RemoteError."""
        network = await self._joined()
        found = await network.find_providers(PROVIDER, limit=MOST_FOUND, timeout_s=self._timeout_s)
        self._found.update((peer.peer_id, peer) for peer in found)
        return [peer.peer_id for peer in found]

    async def _joined(self) -> Network:
        if self._network is None:
            key, networks = self._chosen = self._chosen or await self._choose_networks(self._given_key)
            self._network = await Network(key, networks).__aenter__()
        return self._network

    async def _caller(self) -> tuple[SecretKey, OwnNetworks | None]:
        """Who dials, and in which networks it is: none where they cannot be known, which is no fault before one is
        to be joined."""
        try:
            self._chosen = self._chosen or await self._choose_networks(self._given_key)
        except UsageError:
            return self._given_key or SecretKey(secrets.token_bytes(32)), None
        return self._chosen

    async def _find(self, peer_id: str) -> PeerAddress:
        if peer_id not in self._found:
            await self.providers()
        if peer_id not in self._found:
            assert self._network is not None
            raise Unreachable(
                f"{peer_id} was not found among the providers of {', '.join(self._network.networks.names)}.",
                hint="Give its multiaddr, or the URL of its pages.",
            )
        return self._found[peer_id]


def addresses_of(ledger: Books, ours: Sequence[PublicKey], provider: PublicKey) -> list[tuple[str, int]]:
    """Where a provider's direct road was when something was last bought of it."""
    offers = [offer for key in ours if (offer := last_offer(ledger, key, provider)) is not None]
    return [address for offer in offers for address in direct_addresses(offer.message.addresses)]


def check_named(text: str) -> None:
    """Raises UsageError for what cannot name a peer, in whatever state the network is."""
    if not text.startswith(("http://", "https://")):
        parse_peer_text(text)


def parse_peer_text(text: str) -> PublicKey:
    """The key in a peer id, or in a multiaddr that ends in one. Raises UsageError."""
    return _parse_key(text.rpartition("/p2p/")[2] if text.startswith("/") else text)


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
