"""kill -9 at the worst moments, for real; and a node that runs and signs for the command."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pgrid.commands.address import socket_path
from p2pgrid.commands.server import serve_commands
from p2pgrid.commands.wire import About
from p2pgrid.desk.asks import BookPayments, PaymentsBooked
from p2pgrid.desk.bookings import book_payments
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.statement import Payment, PaymentKind
from p2pgrid.provider.desk import PROVIDER_ASKS, ProviderDesk
from tests.factories import NOW_MS, digest
from tests.settlement.paying.scene import Scene, carried_out
from tests.settlement.records import Billed

LATER = ("--until", "2028-01-01")
KILLED = """
import os, signal, sys
from p2pgrid.cli import settling
from p2pgrid.cli.main import cli
{patch}
cli.main(sys.argv[1:], standalone_mode=False)
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
BEFORE_THE_LEDGER = f"""
async def book(*_):
    {DIE}
settling._book = book
"""
AFTER_THE_LEDGER = f"""
whole = settling._book
async def book(*arguments):
    await whole(*arguments)
    {DIE}
settling._book = book
"""
BEFORE_THE_FILE = f"""
from p2pgrid.settlement.paying import deliver
def write_new(*_):
    {DIE}
deliver.write_new = write_new
"""
AFTER_THE_FILE = f"""
from p2pgrid.settlement.paying.orders_book import OrdersBook
def written(*_):
    {DIE}
OrdersBook.written = written
"""


def killed(scene: Scene, patch: str, *arguments: str | Path) -> None:
    """Run a command in a process of its own, which is killed."""
    details = (
        "from pathlib import Path\nfrom tests.settlement.paying.scene import Scene, FixedDetails\n"
        "from p2pgrid.proto.record import Role\nfrom tests.factories import CLIENT, PROVIDER\n"
        "known = FixedDetails()\nknown.say(PROVIDER, Role.PROVIDER)\n"
        "known.say(CLIENT, Role.CLIENT, legal_name='Alice GmbH', city='Berlin', country='DE', "
        "iban='DE89370400440532013000')\nsettling.open_details = lambda _: known\n"
    )
    script = KILLED.format(patch=details + patch)
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.process
@pytest.mark.parametrize("patch", [BEFORE_THE_LEDGER, AFTER_THE_LEDGER], ids=["before the ledger", "after the ledger"])
def test_a_booking_that_was_killed_is_made_once_by_the_next_run(scene: Scene, patch: str) -> None:
    scene.billed.bill(1_240)
    scene.billed.bill(5_000)
    scene.meet()
    file = scene.camt(scene.pay(*LATER))
    killed(scene, patch, "--data", scene.provider.path, "bank", "import", file)
    assert len(scene.provider.payments(scene.billed.id)) == (2 if patch is AFTER_THE_LEDGER else 0)
    done = scene.provider.json("bank", "import", file)
    assert (done["redone"], done["decided"], done["known"]) == (2, [], 2)
    assert [one.message.amount_cents for one in scene.provider.payments(scene.billed.id)] == [1_240, 5_000]
    assert scene.provider.json("bank", "import", file)["redone"] == 0
    assert scene.open_cents() == 0


@pytest.mark.process
@pytest.mark.parametrize("patch", [BEFORE_THE_FILE, AFTER_THE_FILE], ids=["before the file", "after the file"])
def test_an_order_that_was_killed_is_known_and_its_file_can_be_had_again(scene: Scene, patch: str) -> None:
    scene.billed.bill(1_240)
    scene.meet()
    killed(scene, patch, "--data", scene.client.path, "pay", "--out", scene.out, *LATER)
    there = list(scene.out.glob("*.xml"))
    assert len(there) == (1 if patch is AFTER_THE_FILE else 0)
    assert scene.pay(*LATER) == [], "it is not ordered again"
    (message_id,) = scene.client.json("pay", "--list")["unwritten"]
    assert message_id in scene.client("pay", "--list")
    before = [path.read_bytes() for path in there]
    (path,) = scene.client.json("pay", "--file", message_id, "--out", scene.out)["files"]
    assert [Path(path).read_bytes()] == before or not before
    assert [one.cents for one in carried_out(Path(path))] == [1_240]
    assert scene.client.json("pay", "--list")["unwritten"] == []


async def test_a_node_that_runs_signs_what_the_command_found(scene: Scene) -> None:
    def prepare() -> Path:
        scene.billed.bill(1_240)
        scene.meet()
        return scene.camt(scene.pay(*LATER))

    file = await asyncio.to_thread(prepare)
    data = scene.provider.data
    ledger = SqliteLedger.open(data.ledger_file)

    async def erase(_: object) -> int:
        return 0

    records = RecordsDesk(ledger, [scene.provider.key], lambda: NOW_MS, erase_salts=erase)
    desk = ProviderDesk(ledger, scene.provider.key.public_key, lambda _: False, records)
    about = About(version="test", peer_id=scene.provider.key.public_key.peer_id, role="provider", pid=1)
    async with serve_commands(socket_path(data.path), about, PROVIDER_ASKS, desk.perform) as served:
        assert served
        done = await asyncio.to_thread(scene.provider.json, "bank", "import", file)
        assert done["payments_booked"] == 1
        assert len(ledger.settlement(Payment, scene.billed.id)) == 1
    await ledger.aclose()


@pytest.fixture
async def ledger(tmp_path: Path) -> SqliteLedger:
    return SqliteLedger.open(tmp_path / "ledger.sqlite")


def payment(billed: Billed, **changes: object) -> Payment:
    invoice = billed.invoices[0].message
    fields: dict[str, object] = {
        "channel": billed.id,
        "statement": invoice.statement,
        "invoice_number": invoice.invoice_number,
        "reference": "",
        "currency": "EUR",
        "amount_cents": 60,
        "kind": PaymentKind.RECEIVED,
        "entry": digest("entry"),
        "booked_ms": NOW_MS,
    }
    return Payment(**{**fields, **changes})  # type: ignore[arg-type]


AHEAD = {"statement": b"", "invoice_number": ""}
MOVED = {"kind": PaymentKind.REALLOCATED, "entry": b""}
WRONG: dict[str, tuple[list[dict[str, object]], str]] = {
    "more than is open": ([{"amount_cents": 101}], "would be booked in all"),
    "more than is open, in two": ([{}, {"entry": digest("other")}], "would be booked in all"),
    "less than nothing": ([{"amount_cents": -11, "kind": PaymentKind.RETURNED}], "would be booked in all"),
    "no invoice": ([{"invoice_number": "X-1"}], "no invoice"),
    "no channel": ([{"channel": digest("nobody")}], "none in which this node sells"),
    "dollars": ([{"currency": "USD"}], "is in USD"),
    "twice at once": ([{}, {}], "stands there twice"),
    "a move from nowhere": ([{**MOVED, "amount_cents": 5}], "does not come to nothing"),
    "a move of what is not there": ([{**MOVED, "amount_cents": 5}, {**MOVED, **AHEAD, "amount_cents": -5}], "ahead"),
    "a refund of what is not there": (
        [{**AHEAD, "amount_cents": -5, "kind": PaymentKind.REFUNDED}],
        "less than is to be taken",
    ),
    "what no payment says": ([{"amount_cents": 0}], "cannot have been"),
    "the same entry again, elsewhere": ([{**AHEAD, "entry": digest("known")}], "booked before"),
    "the same entry again, for more": ([{"amount_cents": 1, "entry": digest("known")}], "booked before"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_the_desk_signs_nothing_that_the_ledger_has_no_room_for(ledger: SqliteLedger, name: str) -> None:
    billed = Billed()
    billed.bill(100)
    known = billed.pay(billed.invoices[0], 10, entry=digest("known"))
    await ledger.append(*billed.records)
    changes, why = WRONG[name]
    ask = BookPayments(groups=(tuple(payment(billed, **one) for one in changes), (payment(billed, amount_cents=7),)))
    done: PaymentsBooked = await book_payments(ledger, [billed.provider], ask, now_ms=NOW_MS)
    assert why in done.refused[0] and done.refused[1] == "", "and the next group is none the worse"
    booked = [one.message.amount_cents for one in ledger.settlement(Payment, billed.id)]
    assert booked == [known.message.amount_cents, 7]
    assert (await book_payments(ledger, [billed.provider], ask, now_ms=NOW_MS)).refused[1] == "", (
        "it is on record, once"
    )
    assert len(ledger.settlement(Payment, billed.id)) == 2
    await ledger.aclose()
