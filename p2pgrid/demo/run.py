"""The demo from beginning to end: a grid, chats, one operator stopped, chains exported and audited, a byte flipped."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pgrid.demo.grid import CHEAPER, DEARER, MODEL, Grid, Operator, prepare_folder
from p2pgrid.demo.story import CONCURRENT_CHATS, FIRST_CHATS, LAST_CHATS, ChatResult, Program
from p2pgrid.errors import LocalError, P2pgridError

_AUDIT_TIMEOUT_S: Final = 120.0
_SETTLE_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line decides."""

    folder: Path
    model: str = MODEL
    model_path: str = "smollm2"
    engine_url: str | None = None
    gateway_listen: str = "127.0.0.1:0"


class DemoReport(msgspec.Struct, kw_only=True):
    """What the demo found; `--json` prints it."""

    folder: str
    base_url: str
    chats: list[ChatResult]
    exports: list[str]
    audit: dict[str, Any]
    """`p2pgrid audit --json` of all exports."""
    tampered_file: str
    tampered_audit: dict[str, Any]
    """The same after one byte of a copy was flipped."""
    steps: dict[str, float]
    """Seconds by step."""
    total_s: float


class Steps:
    """Names each step as it begins, times it, and names it again in an error."""

    def __init__(self, announce: Callable[[str], None], done: Callable[[str, float], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._announce = announce
        self._done = done

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """One step of the demo."""
        self._announce(name)
        began = time.monotonic()
        try:
            yield
        except P2pgridError as error:
            error.message = f"{name}: {error.message}"
            raise
        self.seconds[name] = round(time.monotonic() - began, 2)
        self._done(name, self.seconds[name])


async def run_demo(
    options: DemoOptions, steps: Steps, *, keep: Callable[[DemoReport, Grid], Any] | None = None
) -> DemoReport:
    """Run it all; nothing is left running afterwards. `keep` is awaited before the grid is stopped.

    Raises P2pgridError naming the step that failed and where its log is.
    """
    began = time.monotonic()
    prepare_folder(options.folder)
    grid = Grid(options.folder, model=options.model, model_path=options.model_path, engine_url=options.engine_url)
    try:
        report = await _play(grid, options, steps)
        report.total_s = round(time.monotonic() - began, 1)
        if keep is not None:
            await keep(report, grid)
    finally:
        await asyncio.shield(grid.stop())
    return report


async def _play(grid: Grid, options: DemoOptions, steps: Steps) -> DemoReport:
    async with steps.step("Start a bootstrap peer"):
        await grid.start_bootstrap()
    async with steps.step("Start two operators, each with its own engine"):
        await asyncio.gather(grid.start_operator(CHEAPER), grid.start_operator(DEARER))
    async with steps.step("Start a client's gateway"):
        base_url = await grid.start_gateway(options.gateway_listen)
    program = Program(base_url, options.model)
    try:
        chats = await _chat(grid, program, steps)
    finally:
        await program.aclose()
    async with steps.step("Export both sides' receipt chains"):
        exports = await _export(grid)
    async with steps.step("Audit them"):
        audit = await _audit(exports, expected_exit=0)
    async with steps.step("Flip one byte in a copy, and audit that"):
        tampered = _flip_one_byte(exports[0])
        tampered_audit = await _audit([tampered, *exports[1:]], expected_exit=1)
    return DemoReport(
        folder=str(grid.folder),
        base_url=base_url,
        chats=chats,
        exports=[str(path) for path in exports],
        audit=audit,
        tampered_file=str(tampered),
        tampered_audit=tampered_audit,
        steps=steps.seconds,
        total_s=0,
    )


async def _chat(grid: Grid, program: Program, steps: Steps) -> list[ChatResult]:
    async with steps.step("Find the offers"):
        await program.wait_for_offers(2, timeout_s=60)
    chats: list[ChatResult] = []
    async with steps.step("Chat, streamed and not"):
        for chat in FIRST_CHATS:
            chats.append(await program.ask(chat))
    async with steps.step("Chat three times at once"):
        chats += await program.ask_together(CONCURRENT_CHATS)
    _expect_operator(chats, CHEAPER)
    async with steps.step(f"Stop {CHEAPER.name}, and chat on"):
        await _receipts_settled(grid, CHEAPER, len(chats))
        await grid.operators[CHEAPER].stop()
        later = [await program.ask(chat) for chat in LAST_CHATS]
        _expect_operator(later, DEARER)
        await _receipts_settled(grid, DEARER, len(later))
    return chats + later


def _expect_operator(chats: list[ChatResult], operator: Operator) -> None:
    for chat in chats:
        if chat.operator != operator.name:
            raise LocalError(f"{chat.request!r} was served by {chat.operator}; {operator.name} was expected.")


async def _receipts_settled(grid: Grid, operator: Operator, chats: int) -> None:
    """Wait until so many chats stand on receipts of an operator that carry both signatures in its own ledger.

    The receipt of chats that share an order comes a moment after the last answer.
    """
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    node = grid.operators[operator]
    while True:
        rows = json.loads(await _p2pgrid(node.data, "receipts", "list", "--json"))
        if sum(max(row["requests"], 1) for row in rows if row["countersigned"]) >= chats:
            return
        if time.monotonic() > deadline:
            raise node.failure("has chats without a receipt that the client countersigned")
        await asyncio.sleep(0.2)


async def _export(grid: Grid) -> list[Path]:
    assert grid.gateway is not None
    exports = []
    for node in (grid.gateway, *grid.operators.values()):
        path = grid.folder / f"{node.data.name}.jsonl"
        await _p2pgrid(node.data, "receipts", "export", str(path))
        exports.append(path)
    return exports


async def _audit(files: list[Path], *, expected_exit: int) -> dict[str, Any]:
    output = await _p2pgrid(
        files[0].parent, "audit", "--json", *(str(file) for file in files), expected_exit=expected_exit
    )
    verdict: dict[str, Any] = json.loads(output)
    return verdict


def _flip_one_byte(path: Path) -> Path:
    """A copy of a bundle with one bit of one byte changed: inside the payload of its last receipt."""
    lines = path.read_bytes().splitlines(keepends=True)
    index = max(i for i, line in enumerate(lines) if b'"/p2pgrid/receipt/1"' in line)
    line = bytearray(lines[index])
    # The middle of the base64 text of the payload: another base64 digit, so another payload byte, and still JSON.
    start = line.index(b'"payload":"') + len(b'"payload":"')
    middle = start + (line.index(b'"', start) - start) // 2
    line[middle] = ord("A") if line[middle] != ord("A") else ord("B")
    lines[index] = bytes(line)
    copy = path.with_name(f"{path.stem}-tampered.jsonl")
    copy.write_bytes(b"".join(lines))
    return copy


async def _p2pgrid(data: Path, *arguments: str, expected_exit: int = 0) -> bytes:
    """Run a short command in a process of its own; its standard output. Raises LocalError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "p2pgrid",
        "--data",
        str(data),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_AUDIT_TIMEOUT_S):
            output, errors = await process.communicate()
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
    if process.returncode != expected_exit:
        raise LocalError(
            f"`p2pgrid {' '.join(arguments)}` ended with exit code {process.returncode}; {expected_exit} was expected.",
            hint=errors.decode(errors="replace").strip() or output.decode(errors="replace").strip(),
        )
    return output
