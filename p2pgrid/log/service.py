"""What a node shows of its log, and answers as a witness, over HTTP, the link and libp2p (docs/spec/log.md, 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.log.log import TransparencyLog, prove_entry
from p2pgrid.log.remote import CHECKPOINT_PATH, PROVE_PATH, WITNESS_PATH
from p2pgrid.log.witness import Witness
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.note import parse_note
from p2pgrid.proto.tiles import parse_tile_path, width_at
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.log import LogCall, LogReply
from p2pgrid.proto.witness import TEXT_TYPE, WitnessAnswer

ADD_CHECKPOINT_PATH: Final = "add-checkpoint"
MAX_PATH_CHARS: Final = 128
AT_ONCE: Final = 8
MAX_WAITING: Final = 256
BRIEFLY: Final = "public, max-age=2"
FOR_EVER: Final = "public, max-age=31536000, immutable"
NOT_KEPT: Final = "no-store"
_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Resource:
    """What a path stands for."""

    body: bytes
    content_type: str
    cache_control: str


class LogService:
    """A node's log and witness, for askers that nobody trusts. At most 8 requests are worked on at once, 256 wait."""

    def __init__(
        self,
        log: TransparencyLog,
        witness: Witness,
        *,
        is_party: Callable[[bytes, PublicKey], bool],
        deals_with: Callable[[PublicKey], bool],
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`is_party`: whether a channel (its id) is with that peer. `deals_with`: whether any channel is."""
        self.log: Final = log
        self.witness: Final = witness
        self._is_party = is_party
        self._deals_with = deals_with
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._max_waiting = max_waiting

    async def get(self, path: str, asker: PublicKey | None = None) -> Resource:
        """What stands at a path below the log's prefix. `asker` is the proven key of whoever asks, if it has one.

        Raises Refused: `unknown-path`, `not-there`, `not-logged`, `erased`, `not-yours`, `busy`; LedgerError.
        """
        async with _Turn(self):
            if path == CHECKPOINT_PATH:
                return self._checkpoint()
            if path.startswith("tile/"):
                return await self._tile(path)
            if path.startswith(WITNESS_PATH):
                return await self._witnessed(path.removeprefix(WITNESS_PATH))
            if path.startswith(PROVE_PATH):
                return await self._proof(path.removeprefix(PROVE_PATH), asker)
            raise Refused("unknown-path", f"a log has nothing at {path[:MAX_PATH_CHARS]!r}.")

    async def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        """Answer as a witness. Raises Refused (`busy`), LedgerError."""
        async with _Turn(self):
            return await self.witness.add_checkpoint(body)

    async def take_cosignature(self, note: bytes, witness: PublicKey) -> None:
        """Keep the cosignature that this witness, whose key is proven, has put under one of our checkpoints.

        Raises InvalidRecord, Refused (`not-a-party` for a stranger, and see `add_cosignature`), LedgerError.
        """
        async with _Turn(self):
            if not self._deals_with(witness):
                raise Refused("not-a-party", "cosignatures are kept of peers that have a channel here.")
            own = [one for one in parse_note(note).signatures if one.name.endswith(witness.peer_id)]
            if len(own) != 1:
                raise InvalidRecord("signature-missing", "one cosignature of the sender's was expected in the note.")
            await self.log.add_cosignature(note, own[0], witness)

    async def answer_call(self, data: bytes, asker: str) -> bytes:
        """Answer a LogCall over libp2p: the wire form of a LogReply. The handshake has proven the asker's peer id."""
        try:
            call = parse_frame(data, LogCall)
            if call.path == ADD_CHECKPOINT_PATH:
                answer = await self.add_checkpoint(call.body)
                return LogReply(status=answer.status, body=answer.body).to_bytes()
            if call.body:
                raise Refused("unknown-path", f"what is at {call.path!r} takes no body.")
            return LogReply(status=200, body=(await self.get(call.path, _key_of(asker))).body).to_bytes()
        except (Refused, ProtocolViolation) as error:
            status = status_of(error) if isinstance(error, Refused) else 400
            return LogReply(status=status, body=error.message.encode()[:1024]).to_bytes()
        except LedgerError:
            return LogReply(status=503, body=b"the log cannot be read now.").to_bytes()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> Resource:
        checkpoint = self.log.checkpoint
        if checkpoint is None:
            raise Refused("not-there", "nothing is in this log yet.")
        return Resource(checkpoint.note.to_bytes(), TEXT_TYPE, BRIEFLY)

    async def _tile(self, path: str) -> Resource:
        try:
            tile = parse_tile_path(path)
        except InvalidRecord as error:
            raise Refused("unknown-path", error.message) from None
        checkpoint = self.log.checkpoint
        there = width_at(tile.level, tile.index, checkpoint.size) if checkpoint is not None else 0
        if tile.width > there:
            raise Refused("not-there", f"the log does not reach {path}.")
        try:
            data = await asyncio.to_thread(self.log.reader.read, tile)
        except KeyError:
            raise Refused("not-there", f"the log does not reach {path}.") from None
        return Resource(data, _BINARY, FOR_EVER)

    async def _witnessed(self, peer_id: str) -> Resource:
        try:
            key = parse_peer_id(peer_id)
        except InvalidRecord as error:
            raise Refused("unknown-path", error.message) from None
        note = await self.witness.last_note(key)
        if note is None:
            raise Refused("not-there", f"this node has seen nothing of the log of {peer_id}.")
        return Resource(note, TEXT_TYPE, NOT_KEPT)

    async def _proof(self, record_hex: str, asker: PublicKey | None) -> Resource:
        try:
            record_id = bytes.fromhex(record_hex)
        except ValueError:
            record_id = b""
        if len(record_id) != 32 or record_id.hex() != record_hex:
            raise Refused("unknown-path", "a record id of 64 hex digits was expected.")
        entry = await self.log.find(record_id)
        if entry is not None and entry.channel and (asker is None or not self._is_party(entry.channel, asker)):
            # What is not theirs is not there: nobody learns which records exist.
            entry = None
        proof = await asyncio.to_thread(prove_entry, self.log.reader, entry, record_id)
        return Resource(proof.to_text().encode(), TEXT_TYPE, NOT_KEPT)


def _key_of(peer_id: str) -> PublicKey | None:
    """None for a key that this protocol does not know, such as RSA: it is no party to anything."""
    try:
        return parse_peer_id(peer_id)
    except InvalidRecord:
        return None


def status_of(refusal: Refused) -> int:
    """The HTTP status that says the same as a refusal of `LogService`."""
    return _STATUS_OF.get(refusal.code, 400)


_STATUS_OF: Final = {
    "unknown-path": 404,
    "not-there": 404,
    "not-logged": 404,
    "erased": 410,
    "not-a-party": 403,
    "busy": 503,
}


class _Turn:
    """A place among the requests that are worked on. Raises Refused (`busy`)."""

    def __init__(self, service: LogService) -> None:
        self._service = service

    async def __aenter__(self) -> None:
        service = self._service
        if service._waiting >= service._max_waiting:
            raise Refused("busy", "too many requests for the log wait here.")
        service._waiting += 1
        try:
            await service._slots.acquire()
        finally:
            service._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._service._slots.release()
