"""An archive of who buys from one that it sells to, and sets off."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pgrid.cli.books_archive import audit_bundles
from p2pgrid.cli.main import cli
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.proto.set_off import Claim, SetOff, SetOffSide
from p2pgrid.settlement.books.archive import write_sums
from p2pgrid.settlement.books.archive_check import check_archive
from tests.factories import CLIENT, PROVIDER, digest, make_channel, make_invoice, make_statement
from tests.settlement.books.folder import make_folder, store
from tests.settlement.books.makers import HOUR_MS, NO_RECEIPTS

NOW_MS = 1_790_000_000_000


def sale(seller: SecretKey, buyer: SecretKey, name: str, net_cents: int) -> tuple[SetOffSide, list[Any]]:
    """Records of a channel with one invoice; 11.90 EUR of it are to be set off."""
    channel = make_channel(seller, buyer, name=name, opened_ms=NOW_MS)
    at_ms = NOW_MS + HOUR_MS
    fields = {"channel": channel.message.channel, "from_ms": NOW_MS, "until_ms": at_ms, "stated_ms": at_ms}
    message = make_statement([], NO_RECEIPTS, rate_bp=1900, net_cents=net_cents, **fields).message
    stated = sign_message(message, Role.PROVIDER, seller).countersigned(Role.CLIENT, buyer)
    asked = make_invoice(stated, invoice_number=name, issued_ms=at_ms + HOUR_MS).message
    side = SetOffSide(
        channel=channel.message.channel,
        creditor=seller.public_key.raw,
        debtor=buyer.public_key.raw,
        card=b"",
        claims=(Claim(statement=stated.id, invoice_number=name, cents=1190),),
    )
    return side, [channel, stated, sign_message(asked, Role.PROVIDER, seller)]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The archive of PROVIDER, which sells for 23.80 and buys for 11.90."""
    sold, bought = sale(PROVIDER, CLIENT, "SOLD", 2000), sale(CLIENT, PROVIDER, "BOUGHT", 1000)
    first, second = sorted((sold[0], bought[0]), key=lambda side: side.channel)
    message = SetOff(
        first=first,
        second=second,
        currency="EUR",
        amount_cents=1190,
        agreed_ms=NOW_MS + 3 * HOUR_MS,
        until_ms=NOW_MS + 9 * HOUR_MS,
        nonce=digest("nonce"),
    )
    keys = {key.public_key.raw: key for key in (PROVIDER, CLIENT)}
    signed = sign_message(message, Role.PROVIDER, keys[first.creditor])
    data = make_folder(tmp_path / "data")
    store(data, *sold[1], *bought[1], signed.countersigned(Role.CLIENT, keys[second.creditor]))
    words = ["--data", str(data.path), "books", "archive", "2026", "-o", str(tmp_path / "made")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1 and "has no file" in result.output, result.output
    return tmp_path / "made"


def test_both_halves_are_booked_and_verified(made: Path) -> None:
    assert check_archive(made, audit_bundles).faults == ()
    index = json.loads((made / "index.json").read_text())
    assert len(index["set_offs"]) == 2 and len({one["id"] for one in index["set_offs"]}) == 1
    with (made / "exports" / "bookings.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter=";") if row["kind"] == "set-off"]
    assert Counter((row["account"], row["debit"], row["credit"]) for row in rows) == {
        ("10000", "", "11.90"): 1,
        ("1900", "11.90", ""): 1,
        ("70000", "11.90", ""): 1,
        ("1900", "", "11.90"): 1,
    }


@pytest.mark.parametrize("index_too", [False, True])
def test_a_set_off_booked_with_more_is_found(made: Path, index_too: bool) -> None:
    """Index, bookings and trial balance forged together: what both signed is another amount."""
    for name in ("index.json", "exports/bookings.csv", "exports/trial-balance.csv"):
        text = (made / name).read_text()
        if name == "index.json":
            index = json.loads(text)
            for one in index["set_offs"]:
                one["amount_cents"] += 100 if index_too else 0
            index["totals"]["EUR"] = {side: cents + 200 for side, cents in index["totals"]["EUR"].items()}
            text = json.dumps(index)
        else:
            lines = text.splitlines(keepends=True)
            text = "".join(line.replace("11.90", "12.90") if ";set-off;" in line else line for line in lines)
            if "trial" in name:
                lines = [line.replace("11.90;23.80;0.00", "12.90;23.80;1.00") for line in lines]
                text = "".join(lines)
        (made / name).write_text(text, newline="")
    (made / "SHA256SUMS").unlink()
    write_sums(made)
    found = [one.what for one in check_archive(made, audit_bundles).faults]
    expected = "takes off 1290 cents, by its record 1190" if index_too else "is not booked with 1190 cents"
    assert any("et-off" in one and expected in one for one in found), found
