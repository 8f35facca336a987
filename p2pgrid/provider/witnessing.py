"""The provider asks its witnesses to cosign each new checkpoint (docs/spec/log.md, section 7).

A witness that holds a larger checkpoint of ours than we do, with our own signature, proves that our log was set back:
then nothing more is signed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused, RemoteError, Unreachable, UsageError
from p2pgrid.log.log import TransparencyLog
from p2pgrid.log.remote import WITNESS_PATH
from p2pgrid.net import direct
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.log_roads import (
    LogNetwork,
    add_checkpoint_over_libp2p,
    add_checkpoint_over_link,
    over_libp2p,
    over_link,
)
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.checkpoint import SignedCheckpoint, verify_checkpoint, witness_key
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id
from p2pgrid.proto.note import parse_signature_lines
from p2pgrid.proto.witness import AddCheckpoint, WitnessAnswer

log = logging.getLogger(__name__)

ROUND_S: Final = 5.0
"""Least time between two rounds: checkpoints that come meanwhile are passed over for the last."""
RETRY_S: Final = 60.0
DIAL_TIMEOUT_S: Final = 10.0


class WitnessRoad(Protocol):
    """How one witness is asked."""

    @property
    def key(self) -> PublicKey:
        """Whose cosignatures it makes."""
        ...

    async def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        """Its answer. Raises RemoteError."""
        ...

    async def get(self, path: str) -> bytes:
        """A resource that it shows. Raises RemoteError."""
        ...


@dataclass(frozen=True, slots=True)
class DirectWitness:
    """A witness on the direct road; a link for each question."""

    key: PublicKey
    host: str
    port: int
    own_key: SecretKey
    networks: OwnNetworks | None = None

    async def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        link = await self._dial()
        try:
            return await add_checkpoint_over_link(link, body)
        finally:
            await link.aclose("asked")

    async def get(self, path: str) -> bytes:
        link = await self._dial()
        try:
            return await over_link(link)(path)
        finally:
            await link.aclose("asked")

    async def _dial(self) -> LinkConnection:
        return await direct.dial(
            self.host, self.port, self.key, self.own_key, timeout_s=DIAL_TIMEOUT_S, networks=self.networks
        )


@dataclass(frozen=True, slots=True)
class Libp2pWitness:
    """A witness that is reached over libp2p."""

    key: PublicKey
    address: str
    network: Callable[[], LogNetwork | None]

    async def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        return await add_checkpoint_over_libp2p(self._network(), self._peer(), body)

    async def get(self, path: str) -> bytes:
        return await over_libp2p(self._network(), self._peer())(path)

    def _network(self) -> LogNetwork:
        network = self.network()
        if network is None:
            raise Unreachable("this node has not joined a network, so a libp2p witness cannot be asked.")
        return network

    def _peer(self) -> PeerAddress:
        return PeerAddress(self.key.peer_id, (self.address,))


def parse_witness(
    text: str, own_key: SecretKey, network: Callable[[], LogNetwork | None], networks: OwnNetworks | None = None
) -> WitnessRoad:
    """`/ip4|ip6|dns/<host>/tcp/<port>[/tls]/p2p/<peer id>`: with `/tls` the direct road. Raises UsageError."""
    parts = text.split("/")
    try:
        if len(parts) in (7, 8) and parts[0] == "" and parts[3] == "tcp" and parts[-2] == "p2p":
            key, port = parse_peer_id(parts[-1]), int(parts[4])
            if len(parts) == 8 and parts[5] == "tls" and 0 < port < 65536:
                return DirectWitness(key, parts[2], port, own_key, networks)
            if len(parts) == 7 and 0 < port < 65536:
                return Libp2pWitness(key, text, network)
    except (ValueError, InvalidRecord):
        pass
    raise UsageError(
        f"{text!r} is no address of a witness.",
        hint="Write /ip4/192.0.2.7/tcp/4801/tls/p2p/12D3KooW... (direct road), or without /tls for libp2p.",
    )


class Witnessing:
    """Keeps the checkpoint cosigned. `run` is a task for the node's life."""

    def __init__(
        self,
        own: TransparencyLog,
        witnesses: Sequence[WitnessRoad],
        *,
        round_s: float = ROUND_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._log = own
        self._witnesses = tuple(witnesses)
        self._round_s = round_s
        self._retry_s = retry_s
        self._old_sizes: dict[bytes, int] = {}
        self.cosigned: dict[str, int] = {}
        """By the witness's peer id: the size it cosigned last."""

    async def run(self) -> None:
        """Ask for ever: after each new checkpoint, and again after a while where a witness did not answer."""
        while True:
            checkpoint = self._log.checkpoint
            if checkpoint is not None and not self._log.frozen:
                await asyncio.gather(*(self._ask(witness, checkpoint) for witness in self._witnesses))
            await asyncio.sleep(self._round_s)
            done = all(
                self._log.checkpoint is not None and self._old_sizes.get(one.key.raw) == self._log.checkpoint.size
                for one in self._witnesses
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(None if done else self._retry_s):
                    while self._log.checkpoint is checkpoint or self._is_same(checkpoint):
                        await self._log.wait_for_change()

    def _is_same(self, checkpoint: SignedCheckpoint | None) -> bool:
        now = self._log.checkpoint
        return now is not None and checkpoint is not None and now.size == checkpoint.size

    async def _ask(self, witness: WitnessRoad, checkpoint: SignedCheckpoint) -> None:
        if self._old_sizes.get(witness.key.raw) == checkpoint.size:
            return
        try:
            await self.ask(witness, checkpoint)
        except (RemoteError, InvalidRecord, LedgerError) as error:
            log.warning("the witness %s has not cosigned: %s", witness.key, error)

    async def ask(self, witness: WitnessRoad, checkpoint: SignedCheckpoint) -> None:
        """Have one witness cosign. Raises RemoteError, InvalidRecord, LedgerError."""
        old_size = self._old_sizes.get(witness.key.raw, 0)
        for _ in range(3):
            answer = await witness.add_checkpoint(await self._request(old_size, checkpoint))
            if answer.status == HTTPStatus.OK:
                await self._keep(witness, checkpoint, answer)
                self._old_sizes[witness.key.raw] = checkpoint.size
                self.cosigned[witness.key.peer_id] = checkpoint.size
                return
            if answer.status != HTTPStatus.CONFLICT:
                break
            old_size = answer.size
            if old_size >= checkpoint.size:
                await self._compare(witness, checkpoint)
                return
        text = "".join(c if c.isprintable() else "?" for c in answer.body[:200].decode(errors="replace").strip())
        raise Refused(f"http-{answer.status}", f"it answered {answer.status}: {text}")

    async def _request(self, old_size: int, checkpoint: SignedCheckpoint) -> bytes:
        proof = await asyncio.to_thread(self._log.reader.consistency, old_size, checkpoint.size)
        return AddCheckpoint(old_size, proof, checkpoint.bare().note.to_bytes()).to_bytes()

    async def _keep(self, witness: WitnessRoad, checkpoint: SignedCheckpoint, answer: WitnessAnswer) -> None:
        key = witness_key(witness.key)
        lines = parse_signature_lines(answer.body.decode(errors="replace"))
        own = [line for line in lines if line.name == key.name and line.key_id == key.id]
        if not own:
            raise ProtocolViolation(f"the witness {witness.key} answered without its cosignature.")
        await self._log.add_cosignature(checkpoint.note.to_bytes(), own[0], witness.key)

    async def _compare(self, witness: WitnessRoad, checkpoint: SignedCheckpoint) -> None:
        """It knows a tree as large or larger: one of ours if it shows our signature, and then this log lost entries."""
        note = await witness.get(f"{WITNESS_PATH}{self._log.key.peer_id}")
        theirs = verify_checkpoint(note, self._log.key)
        now = self._log.checkpoint
        if now is not None and theirs.size <= now.size:
            root = await asyncio.to_thread(self._log.reader.root, theirs.size)
            if root == theirs.root:
                self._old_sizes[witness.key.raw] = theirs.size
                return
        self._log.freeze(
            f"the witness {witness.key} holds a checkpoint of {theirs.size} entries that this node signed, and the log "
            f"of {now.size if now else 0} here does not go on from it: it was set back. Restore the newest backup."
        )
