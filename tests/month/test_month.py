"""A month between two operators and three clients in three countries, from receipts to euros in the bank.

Real nodes, commands as people give them, and a bank that knows nothing of any of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from lxml import etree

from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.pricing import owes_nothing
from p2pgrid.settlement.invoices.profiles import Profile, Syntax
from p2pgrid.settlement.invoices.validate import Validator, Written
from tests.grid.conftest import FakeEngine
from tests.month.bank import Transfer, booked, transfers_of
from tests.month.past import UTC_OFFSET_MINUTES
from tests.month.scene import ALICE, CLIENTS, OPERATORS, TARTU, TIME_ZONE, VILNIUS, Channel, Scene, command
from tests.proto.chains import DAY_MS

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

RATES_BP = {("LT", "LT"): 2100}
"""VAT by the seller's and the buyer's country; across a border it is the buyer's to declare."""
PERIOD_DAYS = 30


def last_midnight_ms(now_ms: int) -> int:
    """When the day began in Vilnius and Tartu."""
    offset_ms = UTC_OFFSET_MINUTES * 60_000
    return (now_ms + offset_ms) // DAY_MS * DAY_MS - offset_ms


@pytest.fixture
async def scene(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path, fake_engine.url)
    for company in (*OPERATORS, *CLIENTS):
        scene.make_folder(company)
    for company in OPERATORS:
        scene.make_folder(company, buying=True)
        data, buys = scene.data(company), scene.peer_id(company, buying=True)
        vat = ("--legal-name", company.name, "--country", company.country, "--vat-id", company.vat_id)
        await command(data, "card", "init", *vat)
        await command(data, "card", "sign", "--peer", buys)
    until_ms = last_midnight_ms(time.time_ns() // 1_000_000)
    await scene.make_past(from_ms=until_ms - PERIOD_DAYS * DAY_MS, until_ms=until_ms - 3_600_000)
    try:
        await scene.start()
        yield scene
    finally:
        await scene.stop()


async def test_from_receipts_to_euros_in_the_bank(scene: Scene) -> None:
    today = datetime.now(ZoneInfo(TIME_ZONE)).date()  # as the invoices have it
    expected = {channel_id(one): bill(one) for one in scene.channels}
    assert sum(one.receipts for one in expected.values()) == 10_000

    # 1. The period is over: both sides state it, and the invoice comes.
    await asyncio.gather(*map(settle, scene.buyers))
    for channel in scene.channels:
        listed, *_ = await statements(channel)
        statement, bills = listed["statement"], expected[channel_id(channel)]
        stated = (statement["last_receipt"], statement["net_cents"], statement["gross_cents"])
        assert stated == (bills.receipts, bills.net_cents, bills.gross_cents), channel
        assert listed["open_cents"] == bills.gross_cents, await statements(channel)

    # 2. The invoices: numbers without gaps, on both sides, the same files.
    for company in OPERATORS:
        issued = (await command(scene.data(company), "invoices", "list", "--issued"))["invoices"]
        sold = [one for one in scene.channels if one.seller is company]
        numbers = [f"{company.prefix}-{today.year}-{n:06}" for n in range(1, len(sold) + 1)]
        assert sorted(one["number"] for one in issued) == numbers
        assert {one["channel"]: one["gross_cents"] for one in issued} == {
            channel_id(one): expected[channel_id(one)].gross_cents for one in sold
        }
    with Validator() as validator:
        for syntax, file in issued_files(scene):
            written = Written(xml=file.read_bytes(), profile=Profile.EN16931, syntax=syntax, is_credit_note=False)
            checked = validator.check(written)
            assert checked.is_valid, (file, checked.findings)
    for channel in scene.channels:
        received = list(channel.buyer_folder.rglob("invoices/received/**/*.pdf"))
        assert len(received) == len([one for one in scene.channels if one.buyer_folder == channel.buyer_folder])

    # 3. The two operators set off what they owe each other; the larger debt is paid in part.
    owed = {one.seller: expected[channel_id(one)].gross_cents for one in scene.channels if one.buyer in OPERATORS}
    set_off_cents = min(owed.values())
    mine, theirs = (("--with", str(scene.data(one, buying=True))) for one in OPERATORS)
    made = await command(scene.data(VILNIUS), "set-off", "propose", scene.peer_id(TARTU), *mine)
    assert made["amount_cents"] == set_off_cents
    between = [scene.data(one, buying=True) for one in OPERATORS]
    await asyncio.gather(*map(settle, between))
    (waiting,) = await command(scene.data(TARTU), "set-off", "list", *theirs)
    assert waiting["state"] == "waits-for-us"
    await command(scene.data(TARTU), "set-off", "accept", waiting["id"], *theirs)
    await asyncio.gather(*map(settle, between))
    (agreed,) = await command(scene.data(VILNIUS), "set-off", "list", *mine)
    assert (agreed["state"], agreed["amount_cents"]) == ("in-force", set_off_cents)

    # 4. Everybody pays.
    transfers: list[Transfer] = []
    for folder in scene.buyers:
        out = folder / "bank"
        out.mkdir()
        due = (today + timedelta(days=60)).isoformat()
        paid = await command(folder, "pay", "--until", due, "--out", str(out))
        for file in map(Path, paid["files"]):
            assert_fits_schema(file)
            transfers += transfers_of(file)
        assert not (await command(folder, "pay", "--until", due, "--out", str(out)))["payments"]
    whole = sum(one.gross_cents for one in expected.values())
    assert sum(one.cents for one in transfers) == whole - 2 * set_off_cents

    # 5. The bank books it, and each operator reads the bank's file, twice.
    for company, shape in zip(OPERATORS, ("batch", "plain"), strict=True):
        file = scene.root / f"{company.folder}.xml"
        file.write_bytes(booked(transfers, company.iban, today, shape))
        first = await command(scene.data(company), "bank", "import", str(file))
        again = await command(scene.data(company), "bank", "import", str(file))
        coming = [one for one in transfers if one.payee_iban == company.iban]
        assert (first["payments_booked"], again["payments_booked"]) == (len(coming), 0)

    # 6. The next statements show it, and every balance is zero.
    await asyncio.gather(*map(settle, scene.buyers))
    for channel in scene.channels:
        listed = await statements(channel)
        assert [one["open_cents"] for one in listed] == [0] * len(listed), channel
        assert listed[-1]["statement"]["closing_cents"] == 0, channel

    # 7. The audit is clean, and follows every cent.
    verdict = await audit(scene)
    assert verdict["clean"], verdict["findings"]
    assert sum(one["countersigned"] for one in verdict["channels"]) == 10_000
    for company in OPERATORS:
        traced = await command(scene.data(company), "trace")
        assert traced["audit"]["clean"]
        assert all(one["open_cents"] == one["left_over_cents"] == 0 for one in traced["all"]["statements"])
    # "This transfer of 5.88 EUR is these 1,250 receipts", and back.
    alice = next(one for one in scene.channels if (one.seller, one.buyer) == (VILNIUS, ALICE))
    paying = next(one for one in transfers if (one.payer, one.payee_iban) == (ALICE.name, VILNIUS.iban))
    down = (await command(scene.data(VILNIUS), "trace", paying.end_to_end_id))["transfer"]
    (share,) = down["shares"]
    assert (down["amount_cents"], share["cents"]) == (paying.cents, expected[channel_id(alice)].gross_cents)
    assert share["statement"]["receipts_at_hand"] == expected[channel_id(alice)].receipts
    up = (await command(alice.buyer_folder, "trace", f"receipt:{alice.past.receipts[0].id.hex()[:16]}"))["receipt"]
    assert (up["state"], up["in_statements"]) == ("paid", [1])

    # 8. The accountant's books balance, and say the same; the year is an archive that stands by itself.
    for company in OPERATORS:
        data, year = scene.data(company), str(today.year)
        balance = await command(data, "books", "balance", "--year", year)
        totals = balance["totals"]["EUR"]
        assert totals["debit_cents"] == totals["credit_cents"] > 0
        assert all(one["books_cents"] == one["difference_cents"] == 0 for one in balance["channels"])
    archive = scene.root / "archive"
    await command(scene.data(VILNIUS), "books", "archive", year, "-o", str(archive))
    verified = await command(scene.root, "books", "verify", str(archive))
    assert verified["clean"], verified


# -- what it should come to, computed by other means -----------------------------------------------------------------


class Bill:
    """A channel's month, in fractions of a cent until a line is a line."""

    def __init__(self, channel: Channel) -> None:
        tokens: dict[tuple[str, str], int] = defaultdict(int)
        self.receipts = len(channel.past.receipts)
        for signed in channel.past.receipts:
            receipt: Receipt = signed.message
            if owes_nothing(receipt.status):
                continue
            usage = receipt.usage
            tokens[receipt.model, "input"] += usage.prompt_tokens - usage.cached_tokens
            tokens[receipt.model, "cached"] += usage.cached_tokens
            tokens[receipt.model, "output"] += usage.output_tokens
        net = 0
        for (model, kind), count in tokens.items():
            tariff = channel.past.tariffs[model]
            price_upm = {"input": tariff.input_upm, "cached": tariff.cached_input_upm, "output": tariff.output_upm}[
                kind
            ]
            net += half_up(Fraction(count * price_upm, 10**12) * 100)
        accepted, _, waiting = channel.past.disputed
        net -= half_up(Fraction(accepted.message.amount_pico, 10**12) * 100)
        net -= half_up(Fraction(waiting.message.amount_pico, 10**12) * 100)
        self.net_cents = net
        rate_bp = RATES_BP.get((channel.seller.country, channel.buyer.country), 0)
        self.gross_cents = net + half_up(Fraction(net * rate_bp, 10_000))


def half_up(amount: Fraction) -> int:
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


def bill(channel: Channel) -> Bill:
    return Bill(channel)


# -- commands ---------------------------------------------------------------------------------------------------------


def channel_id(channel: Channel) -> str:
    return channel.past.channel.message.channel.hex()


async def settle(folder: Path) -> None:
    """With everybody of whom this folder's owner buys."""
    done = await command(folder, "settle")
    assert not done["errors"]
    for peer in done["settled"]:
        for about in peer["channels"]:
            assert not about["differences"] and not about["waiting"], about


async def statements(channel: Channel) -> list[dict[str, Any]]:
    listed = (await command(channel.buyer_folder, "settle", "--list"))["statements"]
    return [one for one in listed if one["statement"]["channel"] == channel_id(channel)]


def issued_files(scene: Scene) -> Iterator[tuple[Syntax, Path]]:
    """All XML that the operators have issued."""
    for company in OPERATORS:
        for syntax, ending in ((Syntax.CII, ".cii.xml"), (Syntax.UBL, ".ubl.xml")):
            found = sorted((scene.data(company) / "invoices" / "issued").rglob(f"*{ending}"))
            assert len(found) == len([one for one in scene.channels if one.seller is company])
            yield from ((syntax, file) for file in found)


def assert_fits_schema(file: Path) -> None:
    """ISO's own schema of pain.001.001.09."""
    schema = etree.XMLSchema(etree.fromstring((files("sepaxml") / "schemas" / "pain.001.001.09.xsd").read_bytes()))
    assert schema.validate(etree.parse(file)), schema.error_log


async def audit(scene: Scene) -> dict[str, Any]:
    """Of everything that anybody has."""
    exports = []
    for folder in [scene.data(one) for one in OPERATORS] + scene.buyers:
        file = scene.root / f"{folder.name}.jsonl"
        await command(folder, "receipts", "export", str(file))
        exports.append(str(file))
    verdict: dict[str, Any] = await command(scene.root, "audit", *exports)
    return verdict
