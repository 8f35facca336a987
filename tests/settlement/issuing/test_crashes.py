"""Numbers without gaps, none twice, the same bytes again: whatever step a process dies at."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.statement import Invoice
from p2pgrid.settlement import issued_files
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.invoices.validate import Validator, Verdict, Written
from p2pgrid.settlement.issue_book import IssueBook
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.rendering import RenderHere
from tests.factories import PROVIDER
from tests.settlement.issuing.scene import SELLER, Scene, config_text

STEPS = ("check", "allot", "allotted", "append", "appended", "publish", "file", "files", "published")
"""Where a process may die: as a step begins, or after it (the word in the past)."""


class Killed(BaseException):
    """The process is gone."""


class Unchecked(Validator):
    """Says that all is valid. What it would say is tested elsewhere; here it would take most of the time."""

    def check(self, written: Written) -> Verdict:
        return Verdict(findings=(), is_valid=True)


def unchecked() -> RenderHere:
    """Draws in this process, and checks nothing."""
    return RenderHere(Unchecked())


class Fate:
    """Dies at the n-th time that a step is come to."""

    def __init__(self, step: str, times: int) -> None:
        self.step, self.left = step, times

    def at(self, step: str) -> None:
        if step == self.step:
            self.left -= 1
            if not self.left:
                raise Killed


class DyingValidator(Unchecked):
    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self._fate = fate

    def check(self, written: Written) -> Verdict:
        self._fate.at("check")
        return super().check(written)


class DyingLedger:
    """A ledger that is durable, beside a process that is not."""

    def __init__(self, inner: MemoryLedger, fate: Fate) -> None:
        self._inner, self._fate = inner, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        self._fate.at("append")
        future = self._inner.append(*signed)
        self._fate.at("appended")
        return future


def dying(monkeypatch: pytest.MonkeyPatch, fate: Fate) -> None:
    """Make what lies between issuer and disk die by this fate."""
    allot, published, write = IssueBook.allot, IssueBook.published, issued_files.write_new

    def dying_allot(self: IssueBook, drafts: Any) -> None:
        fate.at("allot")
        allot(self, drafts)
        fate.at("allotted")

    def dying_published(self: IssueBook, number: str, now_ms: int) -> None:
        fate.at("files")
        published(self, number, now_ms)
        fate.at("published")

    def dying_write(path: Path, content: bytes) -> None:
        fate.at("publish")
        write(path, content)
        fate.at("file")

    monkeypatch.setattr(IssueBook, "allot", dying_allot)
    monkeypatch.setattr(IssueBook, "published", dying_published)
    monkeypatch.setattr(issued_files, "write_new", dying_write)


def check_all(
    folder: Path, invoices: list[Signed[Invoice]], statements: list[Any], taken: dict[str, dict[str, str]]
) -> None:
    """Every statement has one invoice, numbers run from 1, and every file is what its number was allotted with."""
    assert Counter(i.message.statement for i in invoices) == Counter(s.id for s in statements)
    numbers = sorted(i.message.invoice_number for i in invoices)
    assert numbers == [f"INV-2027-{n:06}" for n in range(1, len(statements) + 1)]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "invoices").rglob("*.*")}
    assert set(files) == {f"{n}{suffix}" for n in numbers for suffix in issued_files.SUFFIXES}
    for allotted in taken.values():
        for name, digest in allotted.items():
            assert files[name] == digest
    for invoice in invoices:
        assert files[f"{invoice.message.invoice_number}.pdf"] == invoice.message.document_sha256.hex()


def allotted_files(folder: Path) -> dict[str, dict[str, str]]:
    """Of what has its number and is not published: the files' hashes."""
    book = IssueBook(open_database(folder / FILE_NAME))
    return {
        str(row.number): {name: hashlib.sha256(data).hexdigest() for name, data in book.files(str(row.number))}
        for row in book.unpublished()
    }


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fates=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 5)), min_size=1, max_size=4))
def test_a_process_may_die_at_any_step(fates: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_die_and_go_on(Path(name), fates))


@pytest.mark.parametrize("step", STEPS)
def test_it_is_made_up_for_at_the_next_start(step: str, tmp_path: Path) -> None:
    asyncio.run(_die_and_go_on(tmp_path, [(step, 1)], must_die=True))


async def _die_and_go_on(folder: Path, fates: list[tuple[str, int]], *, must_die: bool = False) -> None:
    ledger = MemoryLedger()
    scene = await Scene(folder, ledger).opened()
    for output in (1_000_000, 2_000_000, 3_000_000):
        await scene.stated(output)
    now_ms = scene.statements[-1].message.stated_ms + 5000
    taken: dict[str, dict[str, str]] = {}
    deaths = 0
    for step, times in [*fates, ("never", 1)]:
        fate = Fate(step, times)
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, fate)
            issuer = Issuer(
                scene.data,
                DyingLedger(ledger, fate),
                [PROVIDER],
                now_ms=lambda now_ms=now_ms: now_ms,
                renderer=lambda fate=fate: RenderHere(DyingValidator(fate)),
            )
            try:
                await issuer.issue_pending()
            except Killed:
                deaths += 1
        now_ms += 3_600_000
        for number, files in allotted_files(folder).items():
            assert taken.setdefault(number, files) == files
        issuer._connection.close()
        issuer._thread.shutdown()
    assert deaths or not must_die
    check_all(folder, ledger.settlement(Invoice, scene.deal.id), scene.statements, taken)


@pytest.mark.process
def test_killed_again_and_again(tmp_path: Path) -> None:
    """A process is killed with SIGKILL at random times; each takes up where the last was."""

    async def prepare() -> Scene:
        ledger = SqliteLedger.open(tmp_path / "ledger.sqlite")
        scene = await Scene(tmp_path, ledger).opened()
        for n in range(8):
            await scene.stated(1_000_000 + n)
        await ledger.aclose()
        return scene

    scene = asyncio.run(prepare())
    now_ms = scene.statements[-1].message.stated_ms + 5000
    rng, taken, kills = random.Random(5), {}, 0
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.settlement.issuing.issue_here", str(tmp_path), str(now_ms)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        for number, files in allotted_files(tmp_path).items():
            assert taken.setdefault(number, files) == files
        if process.returncode == 0:
            break
    assert subprocess.run(
        [sys.executable, "-m", "tests.settlement.issuing.issue_here", str(tmp_path), str(now_ms)], check=True
    )
    assert kills
    with SqliteLedger.open_readonly(tmp_path / "ledger.sqlite") as ledger:
        check_all(tmp_path, ledger.settlement(Invoice, scene.deal.id), scene.statements, taken)


@pytest.mark.process
def test_two_processes_share_the_numbers(tmp_path: Path) -> None:
    """Each with a ledger of its own and one settlement.db: numbers are 1 to n, none twice."""
    folders = [tmp_path / "one", tmp_path / "two"]

    async def prepare(folder: Path, name: str) -> Scene:
        ledger = SqliteLedger.open(folder / "ledger.sqlite")
        scene = await Scene(folder, ledger, name=name).opened()
        for n in range(6):
            await scene.stated(1_000_000 + n)
        await ledger.aclose()
        return scene

    open_database(tmp_path / FILE_NAME)
    for folder in folders:
        folder.mkdir()
        (folder / FILE_NAME).symlink_to(tmp_path / FILE_NAME)
    scenes = [asyncio.run(prepare(folder, folder.name)) for folder in folders]
    now_ms = max(scene.statements[-1].message.stated_ms for scene in scenes) + 5000
    running = [
        subprocess.Popen([sys.executable, "-m", "tests.settlement.issuing.issue_here", str(f), str(now_ms)])
        for f in folders
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    numbers = []
    for folder, scene in zip(folders, scenes, strict=True):
        with SqliteLedger.open_readonly(folder / "ledger.sqlite") as ledger:
            numbers += [i.message.invoice_number for i in ledger.settlement(Invoice, scene.deal.id)]
    assert sorted(numbers) == [f"INV-2027-{n:06}" for n in range(1, 13)]


def test_a_ledger_that_lost_its_invoices_gets_them_again_and_a_lost_file_takes_no_number_twice(tmp_path: Path) -> None:
    async def run() -> None:
        ledger = MemoryLedger()
        scene = await Scene(tmp_path, ledger).opened()
        await scene.stated(1_000_000)
        await scene.stated(2_000_000)
        now_ms = scene.statements[-1].message.stated_ms + 5000
        await _issue(scene, ledger, now_ms)
        before = {i.id for i in ledger.settlement(Invoice, scene.deal.id)}
        older = MemoryLedger()  # of a backup from before the invoices
        await older.append(scene.deal.offer)
        await older.append(scene.deal.channel)
        for statement in scene.statements:
            await older.append(statement)
        await _issue(scene, older, now_ms)
        assert {i.id for i in older.settlement(Invoice, scene.deal.id)} == before
        forget_all(tmp_path)
        again = Scene(tmp_path, older)
        again.deal, again.statements = scene.deal, scene.statements
        third = await again.stated(3_000_000)
        await _issue(again, older, third.message.stated_ms + 5000)
        numbers = [i.message.invoice_number for i in older.settlement(Invoice, scene.deal.id)]
        assert sorted(numbers) == [f"INV-2027-{n:06}" for n in (1, 2, 3)]

    asyncio.run(run())


def forget_all(folder: Path) -> None:
    for path in folder.glob(f"{FILE_NAME}*"):
        path.unlink()


async def _issue(scene: Scene, ledger: MemoryLedger, now_ms: int) -> None:
    issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: now_ms, renderer=unchecked)
    await issuer.issue_pending()
    await issuer.aclose()


def test_config_is_read_anew(tmp_path: Path) -> None:
    """What is refused for want of a setting is issued once the setting is there, and takes the number that is next."""

    async def run() -> None:
        ledger = MemoryLedger()
        scene = await Scene(tmp_path, ledger, seller={"iban": ""}).opened()
        statement = await scene.stated(1_000_000)
        issuer = Issuer(
            scene.data, ledger, [PROVIDER], now_ms=lambda: statement.message.stated_ms + 5000, renderer=unchecked
        )
        report = await issuer.issue_pending()
        assert (report.issued, [one.code for one in report.refused]) == ((), ["billing"])
        assert "missing: iban" in report.refused[0].message
        scene.data.config_file.write_text(config_text(SELLER))
        assert (await issuer.issue_pending()).issued == ("INV-2027-000001",)
        assert (await issuer.issue_pending()) == type(report)(issued=(), refused=())
        await issuer.aclose()

    asyncio.run(run())
