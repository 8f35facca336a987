"""The exchanges about the log: a resource of it, a checkpoint to witness, a client's cosignature (docs/spec/log.md, 5).

Each is one message and one answer. They are worked on beside the loop, a few at a time, and hold up no sale.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.log.service import MAX_PATH_CHARS, LogService
from p2pgrid.net.stream import Stream
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.log import LogReply
from p2pgrid.provider.exchange import Exchange, Shop

log = logging.getLogger(__name__)


class AskedOnce(Exchange):
    """One message, one answer that takes a while."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def answer(self, service: LogService, payload: bytes) -> tuple[Kind, bytes]:
        """Kind and payload of the answer. Raises as `take` may."""

    @property
    def may_end(self) -> bool:
        return self._task is not None

    def take(self, kind: int, payload: bytes) -> None:
        if self._task is not None:
            raise ProtocolViolation("a second message came where one was expected.")
        service = self.shop.log
        if service is None:
            raise Refused("no-log", "this provider keeps no log.")
        self.shop.links.check_log_question(self.stream.connection)
        self._task = asyncio.create_task(self._answer(service, payload), name="log exchange")
        self._task.add_done_callback(self._ended_badly)
        self.expect_next()

    def lost(self, reason: str) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _answer(self, service: LogService, payload: bytes) -> None:
        try:
            kind, reply = await self.answer(service, payload)
        except Refused as refusal:
            if not self.is_over:
                self.refuse(refusal)
        except (ProtocolViolation, InvalidRecord) as fault:
            if not self.is_over:
                self.fault(fault)
        except LedgerError as error:
            log.error("the log failed: %s", error)
            self.cut("ledger-unavailable: the provider's log cannot be read or written now")
        else:
            if not self.is_over:
                self.stream.send(kind, reply)
                self.finish()

    def _ended_badly(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an exchange about the log failed", exc_info=error)
            self.cut("the provider failed")


class LogExchange(AskedOnce):
    """LOG_REQUEST -> LOG_RESPONSE."""

    async def answer(self, service: LogService, payload: bytes) -> tuple[Kind, bytes]:
        path = payload.decode("ascii", "replace")
        if len(path) > MAX_PATH_CHARS:
            raise ProtocolViolation(f"a path of a log has at most {MAX_PATH_CHARS} characters.")
        resource = await service.get(path, self.stream.peer)
        return Kind.LOG_RESPONSE, resource.body


class WitnessExchange(AskedOnce):
    """WITNESS_REQUEST -> WITNESS_RESPONSE."""

    async def answer(self, service: LogService, payload: bytes) -> tuple[Kind, bytes]:
        answer = await service.add_checkpoint(payload)
        return Kind.WITNESS_RESPONSE, LogReply(status=answer.status, body=answer.body).to_bytes()


class CosignatureExchange(AskedOnce):
    """COSIGNATURE -> COSIGNATURE_TAKEN."""

    async def answer(self, service: LogService, payload: bytes) -> tuple[Kind, bytes]:
        await service.take_cosignature(payload, self.stream.peer)
        return Kind.COSIGNATURE_TAKEN, b""
