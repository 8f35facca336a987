"""A client under measurement, from the benchmark's side: one order a line, one answer a line."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from typing import Any, Final

from path_parts.process import BenchError, Process

_ANSWER_S: Final = 90.0


class Failed(BenchError):
    """What was ordered came to nothing. The client goes on."""


class Client:
    """`ours.py` or `js/client.mjs` in its process."""

    def __init__(self, system: str, process: Process, port: int, network: str, bootstrap: Sequence[str]) -> None:
        self.system: Final = system
        self.process: Final = process
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S)
        self._answers = self._socket.makefile("rb")
        self._send({"network": network, "bootstrap": list(bootstrap)})

    def order(self, what: str, **arguments: Any) -> dict[str, float]:
        """Have one thing measured. Raises Failed with what the client says, BenchError where it says nothing."""
        try:
            self._send({"do": what, **arguments})
            answer: dict[str, Any] = json.loads(self._answers.readline())
        except (OSError, ValueError):
            raise self.process.failure(f"gave no answer to {what}") from None
        if "error" in answer:
            raise Failed(f"{self.process.name}, {what}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let it end."""
        with contextlib.suppress(OSError):
            self._answers.close()
            self._socket.close()

    def _send(self, order: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(order).encode() + b"\n")
