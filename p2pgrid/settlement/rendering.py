"""A document drawn, written and validated: in this process, or in one of its own.

Drawing a page is 0.15 s of work that holds Python's lock: beside a node's loop, in a thread, answers would stutter. So
a node has `RenderProcess` do it (`render_process`), which has the checking process as its child.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from p2pgrid.errors import LocalError
from p2pgrid.proto.record import Role, Signed, parse_record, verify_self_signed
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.invoices.issue import formats_of, rendered
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.validate import Validator
from p2pgrid.settlement.making import Inputs, decode_inputs, document_of, main_format

TIMEOUT_S: Final = 180.0
"""For one document; checking alone may take 120 s."""
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
_HEAD_BYTES: Final = 8


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """A document's files, all valid, and what it comes to."""

    number: str
    type_code: int
    currency: str
    signed_cents: tuple[int, int, int]
    """Net, VAT, gross; of a credit note below zero."""
    files: tuple[tuple[str, bytes], ...]
    """The end of the name, and the content."""
    main: str
    """Which of them the Invoice record is about."""


class RenderAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What `RenderProcess` asks of its process."""

    inputs: bytes
    statement: bytes
    """In wire form, with the provider's signature."""


class RenderAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What comes back: the document, or why there is none."""

    rendered: Rendered | None = None
    code: str = ""
    """Of InvoiceRefused; empty for a LocalError."""
    message: str = ""
    hint: str = ""


class Renderer(Protocol):
    """Makes files of a document's inputs."""

    def render(self, inputs: Inputs, statement: Signed[Statement]) -> Rendered:
        """Blocking. The same inputs give the same bytes. Raises InvoiceRefused, LocalError."""

    def close(self) -> None:
        """End what runs for it."""


class RenderHere:
    """In this process, where nothing else waits."""

    def __init__(self, validator: Validator | None = None) -> None:
        self._validator: Final = validator or Validator()

    def render(self, inputs: Inputs, statement: Signed[Statement]) -> Rendered:
        """See `Renderer`."""
        document = document_of(inputs, statement)
        profile = Profile(document.profile)
        made = rendered(document, formats_of(profile), self._validator)
        return Rendered(
            number=document.number,
            type_code=document.type.value,
            currency=document.currency,
            signed_cents=document.signed_cents,
            files=tuple((form.value, content) for form, content in made.items()),
            main=main_format(profile).value,
        )

    def close(self) -> None:
        """End the checking process."""
        self._validator.__exit__(None, None, None)


class RenderProcess:
    """In a process that is started when it is first needed. One that crashed or hung is ended; the next ask starts
    another."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S, python: str = sys.executable) -> None:
        self._timeout_s: Final = timeout_s
        self._python: Final = python
        self._process: Any = None
        self._said: Any = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else int(self._process.pid)

    def render(self, inputs: Inputs, statement: Signed[Statement]) -> Rendered:
        """See `Renderer`."""
        ask = RenderAsk(inputs=inputs.encoded(), statement=statement.record.to_bytes())
        try:
            answer = self._answer(msgspec.msgpack.encode(ask))
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            said = self._last_words()
            self.close()
            raise LocalError(
                f"the process that draws invoices failed: {error}. {said}".rstrip(), hint="It is tried again."
            ) from None
        if answer.rendered is not None:
            return answer.rendered
        if answer.code:
            raise InvoiceRefused(answer.code, answer.message, hint=answer.hint)
        raise LocalError(answer.message, hint=answer.hint)

    def close(self) -> None:
        """End it, and what it runs."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):  # what it has not read goes nowhere
                process.stdin.close()  # it ends by itself then, its child first
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
            self._said.close()

    def _answer(self, ask: bytes) -> RenderAnswer:
        deadline = time.monotonic() + self._timeout_s
        process = self._process or self._start()
        process.stdin.write(len(ask).to_bytes(_HEAD_BYTES) + ask)
        process.stdin.flush()
        n_bytes = int.from_bytes(self._read(process, _HEAD_BYTES, deadline))
        if n_bytes > MAX_ANSWER_BYTES:
            raise OSError(f"an answer of {n_bytes} bytes")
        return msgspec.msgpack.decode(self._read(process, n_bytes, deadline), type=RenderAnswer)

    def _read(self, process: Any, n_bytes: int, deadline: float) -> bytes:
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(data) < n_bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no answer in {self._timeout_s:g} s")
                piece = os.read(process.stdout.fileno(), min(n_bytes - len(data), 1 << 20))
                if not piece:
                    raise OSError("it ended")
                data += piece
        return bytes(data)

    def _start(self) -> Any:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            [self._python, "-m", "p2pgrid.settlement.render_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=tempfile.gettempdir(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        )
        return self._process

    def _last_words(self) -> str:
        if self._process is None:
            return ""
        self._said.seek(0)
        return bytes(self._said.read()[-300:]).decode(errors="replace").strip()


def serve(read: Callable[[int], bytes], write: Callable[[bytes], None]) -> None:
    """The process's side: answers asks until there are no more."""
    renderer = RenderHere()
    try:
        while head := read(_HEAD_BYTES):
            ask = msgspec.msgpack.decode(read(int.from_bytes(head)), type=RenderAsk)
            answer = msgspec.msgpack.encode(_answered(renderer, ask))
            write(len(answer).to_bytes(_HEAD_BYTES) + answer)
    finally:
        renderer.close()


def _answered(renderer: RenderHere, ask: RenderAsk) -> RenderAnswer:
    try:
        statement = verify_self_signed(parse_record(ask.statement), Statement, Role.PROVIDER)
        return RenderAnswer(rendered=renderer.render(decode_inputs(ask.inputs), statement))
    except InvoiceRefused as refused:
        return RenderAnswer(code=refused.code, message=refused.message, hint=refused.hint)
    except LocalError as error:
        return RenderAnswer(message=error.message, hint=error.hint)
