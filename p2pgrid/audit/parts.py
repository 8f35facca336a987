"""The pieces of an audit that worker processes do, each with a part of the orders or of a chain.

A worker reads what all pieces share (`Catalog`) once, from a file, and gives back little: memory grows neither here nor
where the pieces are put together (`engine`).
"""

from __future__ import annotations

import gc
import pickle
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from p2pgrid.audit.index import Index, lines_of
from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.chain import ChainHead, extend, faults_of_link
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.comparison import Rank, absences_of
from p2pgrid.proto.elided import Activity, ElidedOrphans, Sums
from p2pgrid.proto.evidence import Copy, Held
from p2pgrid.proto.findings import Absence, Docket, Place
from p2pgrid.proto.judgement import MOST_LABELS, Case
from p2pgrid.proto.key_rules import KeyTerm
from p2pgrid.proto.log_case import ShownLogs, is_logged, is_plainly_logged
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.plain import ChannelPart, Link, PlainBlock, PlainChannel
from p2pgrid.proto.plain_lines import PlainLines, bundles_of_mask, roles_of_mask
from p2pgrid.proto.record import Role, parse_json_line
from p2pgrid.proto.route import OrderKey, route_of

P = ParamSpec("P")
R = TypeVar("R")

FIRST_ABSENCES: Final = 1000
"""So many absences of a kind are kept one by one, for the lines that may explain them; of the rest only the number."""

OpenLinks = list[tuple[int, int, int]]
"""The order of the receipt before (0 if there is none), the receipt's own order, and the receipt's number."""
GroupKey = tuple[bytes, int]
"""A channel's id, and which group of neighbouring receipts."""


@dataclass(slots=True)
class Catalog:
    """What every piece of the work has to know."""

    index: Index
    sources: tuple[str, ...]
    sides: tuple[Role | None, ...]
    channels: dict[bytes, tuple[bytes, PlainChannel]]
    """By channel id: the channel's record id, and the channel."""
    offers: dict[bytes, Offer]
    key_terms: dict[bytes, KeyTerm]
    """By offer."""
    whole: frozenset[bytes]
    links_a_group: int
    logs: dict[bytes, ShownLogs]
    """By record, the logs that proofs show it in."""
    demands_proofs: bool

    @property
    def messages(self) -> dict[bytes, Channel]:
        """The channels alone."""
        return {key: channel.message for key, (_, channel) in self.channels.items()}


@lru_cache(maxsize=1)
def read_catalog(path: Path) -> Catalog:
    """The catalog that the audit's own process wrote. It is in a folder that nobody else can write to."""
    catalog: Catalog = pickle.loads(path.read_bytes())  # noqa: S301
    return catalog


# -- orders -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ChannelSummary:
    """What a part's check says of one channel: `plain.ChannelPart` without what grows with the orders."""

    sums: Sums
    bundles: set[int]
    offers: set[bytes]
    served: bool
    odd: array[int]
    odd_lines: array[int]
    late: set[int]
    partial: array[int]
    open_orders: int
    first_open: list[int]
    without_offer: dict[bytes, int]
    times: dict[int, tuple[int, int, int]]
    """For each block of orders with neighbouring numbers: the earliest time, the latest, and the order that has it."""
    orphans: ElidedOrphans
    repeats: dict[int, tuple[int, Place]]


@dataclass(slots=True)
class CheckedPart:
    """What the check of a partition found."""

    partition: int
    channels: dict[bytes, ChannelSummary]
    links: dict[GroupKey, bytes]
    activity: Activity
    strays: set[OrderKey]
    wanted_orders: set[OrderKey]
    wanted_signatures: set[bytes]
    wanted_meters: set[bytes]


def _without_gc(work: Callable[P, R]) -> Callable[P, R]:
    """Leave the cycle collector off while a part is checked: it would look at many objects again and again, and they
    make no cycles."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return work(*args, **kwargs)
        finally:
            if was_on:
                gc.enable()

    return run


@_without_gc
def check_part(catalog_path: Path, partition: int, odd: Collection[OrderKey]) -> CheckedPart:
    """Check the orders of a partition: which are plain, and what they come to."""
    catalog = read_catalog(catalog_path)
    channels = {key: channel for key, (_, channel) in catalog.channels.items()}
    several = len(catalog.sources) > 1
    lines = PlainLines(catalog.messages, catalog.whole, several=several)
    lines.take(lines_of(catalog.index, partition))
    parts = PlainBlock(lines, channels, catalog.offers, odd, key_terms=catalog.key_terms).judge()
    orders, signatures, meters = lines.wanted()
    lines.forget()
    activity: Activity = {}
    links: dict[GroupKey, list[Link]] = defaultdict(list)
    for channel_id, part in parts.items():
        for key, row in part.activity.items():
            kept = activity.setdefault(key, [0, 0, 0, 0])
            kept[:] = [a + b for a, b in zip(kept, row, strict=True)]
        if channel_id in catalog.channels:
            for link in part.links:
                links[channel_id, link.receipt_number // catalog.links_a_group].append(link)
    summaries = {channel_id: _summary(part, catalog.index.orders_a_block) for channel_id, part in parts.items()}
    encoded = {key: msgspec.msgpack.encode(group) for key, group in links.items()}
    return CheckedPart(partition, summaries, encoded, activity, set(lines.strays), orders, signatures, meters)


def _summary(part: ChannelPart, orders_a_block: int) -> ChannelSummary:
    times: dict[int, tuple[int, int, int]] = {}
    for number, ordered_ms in part.times:
        block = number // orders_a_block
        earliest, latest, holder = times.get(block, (ordered_ms, ordered_ms, number))
        if ordered_ms > latest:
            latest, holder = ordered_ms, number
        times[block] = min(earliest, ordered_ms), latest, holder
    return ChannelSummary(
        part.sums,
        bundles_of_mask(part.bundles),
        part.offers,
        part.served,
        array("Q", part.odd),
        array("Q", part.odd_lines),
        part.late,
        array("Q", part.partial),
        len(part.open),
        part.open[:MOST_LABELS],
        part.without_offer,
        times,
        part.orphans,
        part.repeats,
    )


# -- chains -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LinkedGroup:
    """What the links of some neighbouring receipts come to."""

    key: GroupKey
    first: Link
    last: Link
    open_links: OpenLinks
    """Links that are to be judged in full."""
    highest_final: int
    waiting: int
    """Plain proposals above `highest_final`."""
    first_waiting: list[int]
    """Orders of the first of them."""
    overtaken: int
    first_overtaken: list[int]
    named: list[int]
    """Orders of the receipts that were asked for."""
    proven: list[int] = field(default_factory=list)
    """Orders of the receipts with proofs that are to be judged in full."""
    highest_total_pico: int = 0
    """What its receipts say at most that the channel comes to."""
    unlogged: int = 0
    """Plain receipts that no proof shows in the provider's log, where proofs are demanded."""
    first_unlogged: list[int] = field(default_factory=list)


def link_group(
    catalog_path: Path,
    links_path: Path,
    key: GroupKey,
    spans: Sequence[tuple[int, int]],
    asked: Collection[int],
    asked_ids: Collection[bytes],
) -> LinkedGroup:
    """Link neighbouring receipts, whose links stand in the file at `spans` (offset, bytes).

    `asked`: the numbers of receipts whose orders are wanted; `asked_ids`: the same by id.
    """
    catalog = read_catalog(catalog_path)
    channel, logs = catalog.channels[key[0]][1].message, catalog.logs
    links: list[Link] = []
    with links_path.open("rb") as file:
        for offset, count in spans:
            file.seek(offset)
            links += _link_decoder.decode(file.read(count))
    links.sort(key=lambda link: (link.receipt_number, link.record_id))
    group = LinkedGroup(key, links[0], links[-1], [], 0, 0, [], 0, [], [])
    before = links[0]
    for link in links[1:]:
        if not is_proven_link(extend(before, before.record_id), before, link, channel):
            group.open_links.append((before.order_number, link.order_number, link.receipt_number))
        before = link
    group.named = [link.order_number for link in links if link.receipt_number in asked or link.record_id in asked_ids]
    for link in links if logs else ():
        if not is_plainly_logged(logs.get(link.record_id, ()), channel, link.issued_ms):
            group.proven.append(link.order_number)
    if catalog.demands_proofs:
        final = [link for link in links if link.plain and link.claims_client]
        unlogged = [
            link.order_number for link in final if not is_logged(logs.get(link.record_id, ()), channel.provider)
        ]
        group.unlogged, group.first_unlogged = len(unlogged), unlogged[:FIRST_ABSENCES]
    group.highest_total_pico = max(link.channel_total_pico for link in links)
    group.highest_final = max((link.receipt_number for link in links if link.claims_client), default=0)
    proposals = [link for link in links if link.plain and not link.claims_client]
    overtaken = [link.order_number for link in proposals if link.receipt_number < group.highest_final]
    waiting = [link.order_number for link in proposals if link.receipt_number > group.highest_final]
    group.overtaken, group.first_overtaken = len(overtaken), overtaken[:MOST_LABELS]
    group.waiting, group.first_waiting = len(waiting), waiting[:MOST_LABELS]
    return group


def is_proven_link(head: ChainHead, before: Link | None, link: Link, channel: Channel) -> bool:
    """True if the receipt follows the one before it, both are plain, and no other fills its slot."""
    return (
        link.plain
        and (before is None or (before.plain and before.receipt_number != link.receipt_number))
        and not faults_of_link(head, link)
        and not head.total_pico <= channel.credit_limit_pico < link.channel_total_pico
    )


# -- comparing ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ComparedPart:
    """What one side's bundles lack of the plain orders of a part."""

    first: list[tuple[bytes, Rank, Absence]] = field(default_factory=list)
    more: dict[bytes, Counter[Hashable]] = field(default_factory=lambda: defaultdict(Counter))


@_without_gc
def compare_part(
    catalog_path: Path,
    partition: int,
    partial: Mapping[bytes, Collection[int]],
    bundles: Mapping[bytes, tuple[int, ...]],
) -> ComparedPart:
    """Compare the sides over the orders in `partial`, by channel; all were found plain. `bundles`: `Book.bundles`."""
    catalog = read_catalog(catalog_path)
    channels = {key: channel for key, (_, channel) in catalog.channels.items() if key in partial}
    lines = PlainLines({key: channel.message for key, channel in channels.items()}, verify=False)
    lines.take(lines_of(catalog.index, partition))
    found = ComparedPart()
    for channel_id, numbers in partial.items():
        record_id, channel = catalog.channels[channel_id]
        book = Book(Held(record_id, channel.message), bundles=bundles[channel_id])
        for number in numbers:
            _put_in_book(book, lines, channel, number)
        case = Case(Docket(), {}, catalog.sides)
        found.first += [(channel_id, rank, absence) for rank, absence in absences_of(case, book, catalog.sources)]
    return first_absences([found])


def first_absences(parts: Iterable[ComparedPart]) -> ComparedPart:
    """Keep the first `FIRST_ABSENCES` of each kind, and count the rest."""
    kinds: dict[tuple[Hashable, str], list[tuple[bytes, Rank, Absence]]] = defaultdict(list)
    kept = ComparedPart()
    for part in parts:
        for entry in part.first:
            kinds[entry[2].merge, entry[2].payload_type].append(entry)
        for channel_id, more in part.more.items():
            kept.more[channel_id].update(more)
    for entries in kinds.values():
        entries.sort(key=lambda entry: entry[1])
        kept.first += entries[:FIRST_ABSENCES]
        for channel_id, _, absence in entries[FIRST_ABSENCES:]:
            kept.more[channel_id][absence.merge] += 1
    return kept


def _put_in_book(book: Book, lines: PlainLines, channel: PlainChannel, number: int) -> None:
    keys = {Role.PROVIDER: channel.message.provider, Role.CLIENT: channel.message.client}
    for record in lines.orders[channel.message.channel][number].records:
        message = record.message
        signers = {role: keys[role] for role in roles_of_mask(record.claimed)}
        held: Held[Any] = Held(record.record_id, message, signers=signers)
        for place, roles in sorted(
            (place, roles_of_mask(line.claimed)) for line in record.lines for place in line.places
        ):
            held.copies.append(Copy(Place(*place), {role: keys[role] for role in roles}, frozenset(roles), None))
        if isinstance(message, Receipt):
            book.receipts[message.receipt_number] = held
        elif isinstance(message, Order):
            book.orders[number][record.record_id] = held
        elif isinstance(message, Meter):
            book.meters[number][message.tick] = held
        elif isinstance(message, Voucher):
            book.vouchers[number][message.tick] = held


# -- finding and loading ------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _sought(path: Path) -> tuple[set[bytes], set[bytes]]:
    found: tuple[set[bytes], set[bytes]] = pickle.loads(path.read_bytes())  # noqa: S301
    return found


def find_in_part(catalog_path: Path, sought_path: Path, partition: int) -> set[OrderKey]:
    """The orders of lines that show one of the signatures, or are one of the records, that are sought."""
    signatures, record_ids = _sought(sought_path)
    found = set()
    for _, _, line in lines_of(read_catalog(catalog_path).index, partition):
        try:
            record = parse_json_line(line)
        except InvalidRecord:
            continue
        if any(s.signature in signatures for s in record.signatures) or (record_ids and record.id in record_ids):
            key = route_of(line)
            if key is not None:
                found.add(key)
    return found


def load_part(
    catalog_path: Path, partition: int, orders: Collection[OrderKey], whole: Collection[bytes]
) -> list[tuple[Place, bytes]]:
    """The lines about `orders`, and all that are about the channels in `whole`."""
    loaded = []
    for bundle, number, line in lines_of(read_catalog(catalog_path).index, partition, ends=True):
        key = route_of(line[:-1] if line.endswith(b"\n") else line)
        if key in orders or (key is not None and key[0] in whole):
            loaded.append((Place(bundle, number), line))
    return loaded


_link_decoder: Final = msgspec.msgpack.Decoder(list[Link])
