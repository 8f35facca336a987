"""What the growth benchmark makes: ledgers that an audit finds clean, offers that a client takes, honest verdicts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from growth_parts.__main__ import chosen
from growth_parts.__main__ import parse as parse_growth
from growth_parts.fill import SALES_PER_MS, Sample, add_channels, continue_channel, enter_log, offers_like, write_offers
from growth_parts.report import BEGIN as GROWTH_BEGIN
from growth_parts.report import rows_of
from growth_parts.soak import memory_of, window
from growth_parts.soak import parse as parse_soak
from growth_parts.soak_report import BEGIN as SOAK_BEGIN
from growth_parts.soak_report import judge
from path_parts.toolbox import ROOT

from p2pgrid.audit.check import audit_files
from p2pgrid.client.offer_cache import read_cache
from p2pgrid.client.offers import OfferBook
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.ledger.bundle import write_bundle
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.peer_address import OnFound, PeerAddress
from tests.factories import CLIENT, NOW_MS, PROVIDER, Dealings

PAGE = (ROOT / "docs" / "performance.md").read_text()


async def begun(folder: Path) -> tuple[DataFolder, DataFolder]:
    """A gateway's and a provider's data folders after three sales: one of ten thousand tokens, two of a single step."""
    gateway, provider = DataFolder(folder / "gateway"), DataFolder(folder / "provider")
    for one, key in ((gateway, CLIENT), (provider, PROVIDER)):
        one.make()
        create_key(one.key_file)
        one.key_file.write_text(key.expose_seed().hex() + "\n")
    dealings = Dealings()
    records = [dealings.offer, dealings.channel, *dealings.completed(ticks=0), *dealings.completed(ticks=0)]
    records += dealings.completed(ticks=2)
    for one in (gateway, provider):
        ledger = SqliteLedger.open(one.ledger_file)
        await ledger.append(*records)
        await ledger.aclose()
    return gateway, provider


async def test_a_filled_ledger_is_what_two_honest_nodes_would_have_written(tmp_path: Path) -> None:
    gateway, provider = await begun(tmp_path)
    assert (gateway.load_key().public_key, provider.load_key().public_key) == (CLIENT.public_key, PROVIDER.public_key)
    heads, bundles = [], []
    for one in (gateway, provider):
        heads.append(await continue_channel(one.ledger_file, 700, provider=PROVIDER, client=CLIENT))
        bundles.append(tmp_path / f"{one.path.name}.jsonl")
        with SqliteLedger.open_readonly(one.ledger_file) as ledger:
            write_bundle(bundles[-1], ledger.records())
            [channel] = ledger.channels()
            assert ledger.request_key(channel.message.channel, 500) is not None
            assert not ledger.open_orders(channel.message.channel)
    assert heads[0] == heads[1]
    assert heads[0].countersigned == heads[0].last_receipt_number == 703
    verdict = audit_files(bundles, now_ms=NOW_MS + 86_400_000)
    assert verdict.clean
    assert verdict.channels[0].receipts == 703
    assert await enter_log(provider) == 704, "703 receipts and an offer"
    assert await enter_log(provider) == 704


async def test_a_likeness_is_taken_of_a_completed_sale_of_one_step(tmp_path: Path) -> None:
    gateway, _ = await begun(tmp_path)
    with SqliteLedger.open_readonly(gateway.ledger_file) as ledger:
        assert Sample.of(ledger).receipt.receipt_number == 2
        channel = ledger.channels()[0].message
    assert (channel.expires_ms - channel.opened_ms) / 10 > 1_000_000 / SALES_PER_MS


async def test_other_clients_channels_are_sound(tmp_path: Path) -> None:
    _, provider = await begun(tmp_path)
    await add_channels(provider.ledger_file, 5, provider=PROVIDER)
    with SqliteLedger.open_readonly(provider.ledger_file) as ledger:
        channels = ledger.channels()
        assert len({one.message.client for one in channels}) == len({one.message.channel for one in channels}) == 6
        assert [ledger.head(one.message.channel).countersigned for one in channels] == [3, 1, 1, 1, 1, 1]
        bundle = tmp_path / "provider.jsonl"
        write_bundle(bundle, ledger.records())
    assert audit_files([bundle], now_ms=NOW_MS + 86_400_000).clean


async def test_made_offers_are_taken_in_by_a_client(tmp_path: Path) -> None:
    like = Dealings().offer.message
    made = offers_like(like, 20, now_ms=NOW_MS)
    write_offers(tmp_path / "offers.json", made)
    book = OfferBook(_Nowhere(), now_ms=lambda: NOW_MS)
    for peer, raw in read_cache(tmp_path / "offers.json"):
        book.add(raw, peer)
    known = book.offers()
    assert len(known) == 20
    assert all(offer.message.models[0].tariff.output_upm > like.models[0].tariff.output_upm for offer in known)


class _Nowhere:
    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        return []

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        raise AssertionError


def dimension(*, large_us: float, is_whole: bool = True) -> dict[str, Any]:
    """A run of two sizes, the smaller at 100 us a request."""
    visits = {
        "unstreamed-16": {
            "ledger-0": [{"cpu_per_request_us": 100.0, "errors": 0}, {"cpu_per_request_us": 300.0, "errors": 0}],
            "ledger-9": [{"cpu_per_request_us": large_us}, {"cpu_per_request_us": 3 * large_us}],
        }
    }
    nodes = {"ledger-0": {"is_whole": True}, "ledger-9": {"is_whole": is_whole}}
    results = {"visits": visits, "memory": {}, "calibration": {}, "about": {}}
    return {"ledger": {"sizes": [0, 9], "title": "receipts", "nodes": nodes, "results": results}}


@pytest.mark.parametrize(
    ("large_us", "is_whole", "is_met"), [(114, True, True), (116, True, False), (90, False, False)]
)
def test_a_size_that_costs_more_has_grown(large_us: float, *, is_whole: bool, is_met: bool) -> None:
    rows = rows_of(dimension(large_us=large_us, is_whole=is_whole))
    assert all(row.is_met is not False for row in rows) is is_met
    [ratio] = [row.found for row in rows if row.text.startswith("CPU us/request")]
    assert ratio is not None
    assert ratio.value == pytest.approx(large_us / 100), "round by round: a slow round slows both"


def soaked(**changes: Any) -> dict[str, Any]:
    """A run in which nothing grew, but for the changes."""
    times = [10.0 * n for n in range(100)]
    found: dict[str, Any] = {
        "memory": [{"at_s": at_s, "gateway": {"rss": 80e6}, "provider": {"rss": 90e6}} for at_s in times],
        "windows": [{"at_s": at_s, "delay_p50_ms": 1.0, "whole_p50_ms": 4.0} for at_s in times],
        "slow": [],
        "errors": [],
        "receipts": {"answers": 10, "gateway": 10, "provider": 10},
    }
    return {**found, **changes}


def missed(found: dict[str, Any]) -> list[str]:
    return [row.text for row in judge(found) if not row.is_met]


def test_a_soak_that_stays_as_it_began_is_flat() -> None:
    assert missed(soaked()) == []
    warming = soaked()
    for one in warming["memory"][:15]:
        one["gateway"]["rss"] = 50e6
    assert missed(warming) == [], "the beginning is left out"


def test_what_grows_or_fails_in_a_soak_is_said() -> None:
    leaking = soaked()
    for one in leaking["memory"]:
        one["provider"]["rss"] += one["at_s"] * 10_000
    assert missed(leaking) == ["provider: MB resident"]
    slower = soaked()
    for one in slower["windows"]:
        one["whole_p50_ms"] += one["at_s"] / 500
    assert missed(slower) == ["unstreamed p50, ms"]
    assert missed(soaked(errors=["x"], slow=[{"at_s": 1, "what": "a chunk", "took_s": 29.0}])) == [
        "errors",
        "answers that took longer than 1 s",
    ]
    assert missed(soaked(receipts={"answers": 10, "gateway": 10, "provider": 9})) == [
        "answers without a receipt on both sides"
    ]


def test_memory_is_read_of_a_living_process() -> None:
    found = memory_of([int(Path("/proc/self").readlink().name)])
    assert found["rss"] >= found["anonymous"] > 1_000_000
    assert found["rss"] >= found["pss"] > 1_000_000


def test_a_window_is_a_minute_at_most_and_a_tenth_of_a_short_run() -> None:
    assert window(8, 30.0).window_s == 50.0
    assert window(8, 1.0).window_s == 5.0
    assert 5.0 < window(8, 6.0).window_s < 50.0


def test_the_commands_on_the_page_are_commands() -> None:
    for name, parse in (("growth", parse_growth), ("soak", parse_soak)):
        commands = re.findall(rf"^scripts/bench/{name}\b(.*?)(?: #.*)?$", PAGE, re.MULTILINE)
        assert commands
        for command in commands:
            options = parse(shlex.split(command))
            assert chosen(getattr(options, "only", None))
    assert PAGE.count(GROWTH_BEGIN) == PAGE.count(SOAK_BEGIN) == 1
