"""The seam between a provider and whatever makes its tokens.

A provider sees an `Engine` and nothing of what is behind it: vLLM as its own child (`process`), an engine
someone else runs (`http`), or a fake with faults on demand (`fake`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from p2pgrid.errors import EngineError, Refused

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
ENDPOINTS: Final = frozenset({CHAT_COMPLETIONS, COMPLETIONS})
"""What a peer may reach. vLLM serves much more without asking for a key: `/tokenize`, `/invocations`, `/metrics`."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """One model on offer: the name requests use, and its window in tokens (0: the engine does not say)."""

    name: str
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """How the engine is now. `detail` says in a sentence why it is not well; counts are -1 where it tells none."""

    is_healthy: bool
    detail: str = ""
    running: int = -1
    waiting: int = -1
    kv_cache_used: float = -1.0
    """Share of the KV cache in use, 0 to 1."""


@dataclass(slots=True, kw_only=True)
class AnswerMetrics:
    """What was seen of one answer so far, in seconds since the request left."""

    received_bytes: int = 0
    first_byte_s: float | None = None
    last_byte_s: float | None = None


class AnswerReader(Protocol):
    """Who hears an answer. All calls come from the loop, in this order, and must not block; none after `answer_failed`.

    A call that raises is logged, and ends the answer as failed.
    """

    def answer_began(self, status: int, content_type: str) -> None:
        """The head came. A streamed request that vLLM refuses late has 200 and an error inside the stream."""

    def answer_received(self, data: bytes) -> None:
        """Bytes of the body, exactly as they came; what came together, in one call."""

    def answer_ended(self) -> None:
        """The answer is whole."""

    def answer_failed(self, error: EngineError) -> None:
        """The engine could not be reached, broke off, fell silent or sent without end."""


class OpenAnswer(Protocol):
    """An answer that a reader hears."""

    @property
    def metrics(self) -> AnswerMetrics: ...

    def pause(self) -> None:
        """Take no more of it for now; its bytes wait at the engine's end. Harmless twice."""

    def resume(self) -> None:
        """Go on."""

    def abort(self) -> None:
        """Close the connection, upon which vLLM stops the work (0.1 s). The reader hears no more. Harmless twice."""


class EngineAnswer(Protocol):
    """One answer under way, for whoever reads it in a loop.

    Iterate it once, and read to the end or `abort`: leaving the loop early ends it too. Iteration yields the body's
    bytes exactly as they arrived, in pieces of any size, and raises EngineError when the engine breaks off, falls
    silent or sends without end.
    """

    @property
    def status(self) -> int:
        """The HTTP status. A streamed request that vLLM refuses late has 200 and an error inside the stream."""
        ...

    @property
    def content_type(self) -> str: ...

    @property
    def metrics(self) -> AnswerMetrics: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def abort(self) -> None:
        """Close the connection, upon which vLLM stops the work (0.1 s). Harmless at the end, and twice."""
        ...


class Engine(Protocol):
    """Something that answers OpenAI requests. All methods raise EngineError with advice when it cannot."""

    def models(self) -> tuple[EngineModel, ...]:
        """What it serves, as learnt by `ready`; empty before."""
        ...

    async def ready(self, timeout_s: float) -> None:
        """Return once it can answer, started and warmed up where that is this object's work."""
        ...

    def ask(self, endpoint: str, body: bytes, request_id: str, reader: AnswerReader) -> OpenAnswer:
        """POST `body` untouched; `reader` hears the answer, never before this has returned.

        `request_id` becomes the answer's id (`chatcmpl-` + id). Raises Refused for an endpoint that is not in
        `ENDPOINTS` or an id that is no id, before anything reaches the engine.
        """
        ...

    async def request(self, endpoint: str, body: bytes, request_id: str) -> EngineAnswer:
        """As `ask`, for whoever reads in a loop: returns once the answer's head is there."""
        ...

    async def health(self) -> EngineHealth:
        """How it is now. Never raises for an engine that is away: that is an answer too."""
        ...

    async def aclose(self) -> None:
        """Let go of it; a managed engine finishes what runs (bounded) and stops. Harmless twice."""
        ...


def check_request(endpoint: str, request_id: str) -> None:
    """Raise Refused unless `endpoint` is open to peers and `request_id` is safe as a header."""
    if endpoint not in ENDPOINTS:
        raise Refused(
            "unknown-endpoint",
            f"the endpoint {endpoint[:80]!r} is not served here.",
            hint=f"Use one of {', '.join(sorted(ENDPOINTS))}.",
        )
    if _REQUEST_ID.fullmatch(request_id) is None:
        raise Refused(
            "bad-request-id",
            f"the request id {request_id[:40]!r} is not 1 to 128 letters, digits, dots, dashes or underscores.",
            hint="Use the order's id in hex.",
        )
