"""An answer under way, as the program that asked sees it: its bytes, who serves it, and what it costs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from p2pgrid.client.background import is_done_within
from p2pgrid.client.batch import SharedRequest
from p2pgrid.client.choice import Candidate
from p2pgrid.client.order import OrderStream
from p2pgrid.client.pour import Flow, Pour
from p2pgrid.errors import Refused, RemoteError, Unreachable
from p2pgrid.proto.answer import AnswerAssembler
from p2pgrid.proto.counting import StreamError
from p2pgrid.proto.messages import ModelOffer, Offer, Receipt, Tariff, Usage
from p2pgrid.proto.record import Signed
from p2pgrid.proto.sse import EventSplitter

_PASSED_ON_STATUS: Final = (400, 413, 422)
"""What says that the request itself is at fault. Any other speaks of the provider's engine."""
_FAILURE_CODES: Final = frozenset(
    {"engine-failed", "engine-unavailable", "ledger-unavailable", "clock-skew", "withdrawn", "timeout"}
)


class EngineRefused(Refused):
    """The engine behind the provider refused the request itself. Nothing is owed.

    `code` is `engine-refused` where every provider would say the same (the request is at fault), `engine-failed` where
    another may do better. `status` is the engine's HTTP status, `error` its error object as far as it gave one.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        # The engine's own words may repeat the prompt: they go to the program, and into no log.
        code = "engine-refused" if status in _PASSED_ON_STATUS else "engine-failed"
        super().__init__(code, f"the provider's engine answered with status {status}.")
        self.status = status
        self.error = error


class Answer:
    """One answer. Iterate over its bytes (Server-Sent Events as the engine wrote them); leave it with `async with`.

    Iterating raises RemoteError where the answer breaks off. Leaving early cancels: what was delivered is paid.
    """

    def __init__(self, order: OrderStream | SharedRequest, candidate: Candidate, *, stall_timeout_s: float) -> None:
        self.offer: Final[Signed[Offer]] = candidate.offer
        self.entry: Final[ModelOffer] = candidate.entry
        self.provider: Final = candidate.peer_id
        self._order = order
        self._stall_timeout_s = stall_timeout_s
        self._collected: deque[bytes] | None = None

    # -- who -----------------------------------------------------------------------------------------------------

    @property
    def operator(self) -> str:
        """The operator's name, as the provider states it."""
        return self.offer.message.operator

    @property
    def country(self) -> str:
        """Where inference runs, as the provider states it (ISO 3166-1 alpha-2)."""
        return self.offer.message.data_terms.country

    @property
    def channel(self) -> bytes:
        """The channel's id, 32 bytes."""
        return self._order.buyer.books.id

    @property
    def order_number(self) -> int:
        """The order's number within the channel."""
        return self._order.buyer.order.message.order_number

    @property
    def request_index(self) -> int | None:
        """Which of the order's requests it answers, from 0; None where the order is for this one alone."""
        return self._order.buyer.index if isinstance(self._order, SharedRequest) else None

    @property
    def tariff(self) -> Tariff:
        """What the answer costs: the price at the time that stands in the order."""
        return self.offer.message.tariff_at(self.entry, self._order.buyer.order.message.ordered_ms)

    # -- how much ------------------------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """Tokens: as the receipt states them, or our own count while there is none."""
        receipt = self.receipt
        return receipt.message.usage if receipt is not None else self._order.buyer.usage

    @property
    def cost_pico(self) -> int:
        """Pico-EUR: as the receipt states them, or by our own count while there is none."""
        receipt = self.receipt
        return receipt.message.amount_pico if receipt is not None else self._order.buyer.cost_pico()

    @property
    def receipt(self) -> Signed[Receipt] | None:
        """The receipt with both signatures, once it is in the ledger. None for a request that shares its order."""
        return self._order.receipt

    async def settled(self, timeout_s: float) -> Signed[Receipt] | None:
        """Wait for the receipt. None if it did not come in time, or the order ended without one."""
        return self.receipt if await is_done_within(self._order.ended_future, timeout_s) else None

    # -- the bytes -----------------------------------------------------------------------------------------------

    async def begin(self, timeout_s: float, *, whole: bool = False) -> None:
        """Wait until it is sure that there is an answer; with `whole`, until it is complete.

        Raises RemoteError, EngineRefused among them: nothing was handed over, and another provider may be asked.
        """
        collected: deque[bytes] = deque()
        if whole:
            await self.pour(collected.append, first_timeout_s=timeout_s)
            self._collected = collected
        else:
            await self._wait_for_first(timeout_s)
        head, counter = self._order.buyer.head, self._order.buyer.counter
        if head is not None and head.status != 200:
            if not whole:
                await self.pour(collected.append)
            raise EngineRefused(head.status, _parse_error(b"".join(collected)))
        if counter.error is not None and (whole or not counter.output_tokens):
            raise EngineRefused(*_stream_error(counter.error))

    async def _wait_for_first(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._order.wait()
        except TimeoutError:
            raise self._stalled(timeout_s) from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._collected is not None:
            if self._collected:
                return self._collected.popleft()
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._order.wait()
        except TimeoutError:
            raise self._stalled(self._stall_timeout_s) from None
        data = self._order.take()
        if data is None:
            raise StopAsyncIteration
        return data

    async def pour(
        self, write: Callable[[bytes], None], flow: Flow | None = None, *, first_timeout_s: float | None = None
    ) -> None:
        """Hand all bytes to `write` as they come, and no faster than `flow` allows. Returns at the answer's end.

        It does what iterating does, without waking a task for each piece, and raises the same. The first bytes may
        take `first_timeout_s`, if that is given.
        """
        if self._collected is not None:
            write(b"".join(self._collected))
            self._collected.clear()
        elif not await Pour(self._order, write, flow).run(self._stall_timeout_s, first_timeout_s):
            raise self._stalled(self._stall_timeout_s)

    def _stalled(self, timeout_s: float) -> Unreachable:
        self.cancel()
        return Unreachable(f"{self.provider} sent nothing for {timeout_s:g} s.")

    async def assemble(self) -> dict[str, Any]:
        """Read to the end and merge into the object that an unstreamed request gets.

        Raises RemoteError: where the answer breaks off or holds an error, and ProtocolViolation for what is no answer.
        """
        assembler, splitter = AnswerAssembler(), EventSplitter()

        def merge(data: bytes) -> None:
            for event in splitter.feed(data):
                assembler.feed(event)

        await self.pour(merge)
        error = self._order.buyer.counter.error
        if error is not None:
            raise EngineRefused(*_stream_error(error))
        return assembler.answer()

    def cancel(self) -> None:
        """Stop the answer. Harmless at its end, and twice."""
        self._order.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _parse_error(body: bytes) -> dict[str, Any]:
    """The `error` object of an engine's answer. What is none becomes a message without details."""
    try:
        error = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return {"message": "the provider's engine refused the request and gave no reason."}
    return {name: error.get(name) for name in ("message", "type", "param", "code")}


def _stream_error(error: StreamError) -> tuple[int, dict[str, Any]]:
    status = error.code if isinstance(error.code, int) and 400 <= error.code <= 599 else 502
    return status, {"message": error.message, "type": error.type, "param": None, "code": error.code}


def is_failure_of(error: RemoteError) -> bool:
    """True if the error speaks against the provider, and not only against the request or the moment."""
    return not isinstance(error, Refused) or error.code in _FAILURE_CODES
