"""An exchange written down step by step: it takes messages one by one, and waits for the disk in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Final

from p2pgrid.errors import P2pgridError, ProtocolViolation
from p2pgrid.proto.wire.kinds import Kind

Received = tuple[int, bytes]
Steps = Generator[str, Received, None]
MESSAGE: Final = "message"
"""Yield this for the next message."""
DURABLE: Final = "durable"
"""Yield this to go on once all that was written is durable."""
NOTHING: Final[Received] = (0, b"")


class Script:
    """Runs the steps of one exchange. `wait` calls what it is given once the outbox is empty; `fault` gets what is raised."""  # noqa: E501

    def __init__(
        self, steps: Steps, wait: Callable[[Callable[[], None]], None], fault: Callable[[P2pgridError], None]
    ) -> None:
        self.is_over = False
        self._steps = steps
        self._wait = wait
        self._fault = fault
        self._inbox: deque[Received] = deque()
        self._is_receiving = False

    def begin(self) -> None:
        self._advance(NOTHING, is_first=True)

    def feed(self, kind: int, payload: bytes) -> None:
        self._inbox.append((kind, payload))
        self._receive()

    def stop(self) -> None:
        """Nobody is there any more."""
        self.is_over = True

    def _receive(self) -> None:
        if self._is_receiving and self._inbox and not self.is_over:
            self._is_receiving = False
            self._advance(self._inbox.popleft())

    def _advance(self, value: Received, *, is_first: bool = False) -> None:
        if self.is_over:
            return
        try:
            want = next(self._steps) if is_first else self._steps.send(value)
        except StopIteration:
            self.is_over = True
        except P2pgridError as fault:
            self.is_over = True
            self._fault(fault)
        else:
            if want is DURABLE:
                self._wait(lambda: self._advance(NOTHING))
            else:
                self._is_receiving = True
                self._receive()


def expect(*kinds: Kind) -> Generator[str, Received, Received]:
    """The next message, which must be of one of the kinds."""
    kind, payload = yield MESSAGE
    if kind not in kinds:
        raise ProtocolViolation(f"message kind {kind} came; {' or '.join(k.name for k in kinds)} was expected.")
    return kind, payload
