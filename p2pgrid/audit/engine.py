"""An audit of bundles of any size, in several processes and in memory that does not grow with them.

1. *Scan*: where each line stands, and what order it is about (`index`). Lines about no order (offers, channels, what
   cannot be read) are kept.
2. *Check*: for each part of the orders, which are plain (`parts.check_part`, `proto.plain`), and what those come to.
3. *Link*: the receipts of each channel, by their numbers.
4. *Compare*: what one side's bundles lack of the other's plain orders.
5. *Judge*: `proto.verdict` over what is left: orders that are not plain, their neighbours in the chain, and whatever
   else a finding may name. `proto.elided` speaks for the rest.

The verdict is that of `proto.verdict.audit_records` over all lines: a test compares them.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import merge
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from p2pgrid.audit.checked import Checked, add_part
from p2pgrid.audit.index import Index, IndexedChunk, LooseLines, ScannedChunk, plan_chunks, read_loose, scan_chunk
from p2pgrid.audit.parts import (
    FIRST_ABSENCES,
    Catalog,
    LinkedGroup,
    OpenLinks,
    check_part,
    compare_part,
    find_in_part,
    first_absences,
    is_proven_link,
    link_group,
    load_part,
)
from p2pgrid.audit.workers import Workers
from p2pgrid.errors import InvalidRecord
from p2pgrid.ledger.bundle import parse_line
from p2pgrid.proto.audit_frame import Frame, frame_of
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.chain import chain_start, extend
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.comparison import groups_of
from p2pgrid.proto.judgement import MOST_LABELS
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands
from p2pgrid.proto.plain import PlainChannel
from p2pgrid.proto.plain_lines import MOST_LINES_AN_ORDER
from p2pgrid.proto.record import Record, Role
from p2pgrid.proto.route import ORDERS_A_BLOCK, OrderKey, partition_of
from p2pgrid.proto.verdict import Observe, Verdict, audit_records

_MOST_PARTS: Final = 4096

R = TypeVar("R")
Report = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is."""
Keep = Callable[[Record], None]
"""Called with each record that findings can be about."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How the work is cut up. The verdict is the same for all, the last apart."""

    chunk_bytes: int = 4 * 1024 * 1024
    """Bundles are read in pieces of about this size."""
    part_bytes: int = 4 * 1024 * 1024
    """Orders are checked in parts with about so many bytes of lines."""
    orders_a_block: int = ORDERS_A_BLOCK
    """Orders with neighbouring numbers that are in one part."""
    links_a_group: int = 4096
    """Receipts with neighbouring numbers that are linked together."""
    most_judged_orders: int = 20_000
    """Orders that are not plain beyond so many are counted, and not judged one by one."""
    most_judged_lines: int = 100_000
    """The same for lines about such orders."""
    most_loose_lines: int = 50_000
    """Records about no order (disputes, offers) of one bundle that are looked at; others are counted."""


@dataclass(frozen=True, slots=True)
class Source:
    """A bundle's file."""

    path: Path
    name: str
    """As findings show it."""
    side: Role | None


@dataclass(slots=True)
class _Scan:
    """What the first reading found."""

    index: Index
    shown: list[int]
    """For each bundle: lines that are not blank."""
    loose: list[LooseLines]
    """For each bundle: lines about no order."""
    channels: dict[bytes, set[int]] = field(default_factory=lambda: defaultdict(set))
    """In which bundles lines about orders name a channel."""


class Engine:
    """One audit."""

    def __init__(
        self,
        sources: Sequence[Source],
        workers: Workers,
        folder: Path,
        report: Report,
        sizes: Sizes,
        now_ms: int | None = None,
        keep: Keep | None = None,
        log_demands: LogDemands = NO_DEMANDS,
        observe: Observe | None = None,
    ) -> None:
        self._sources: Final = sources
        self._workers: Final = workers
        self._report: Final = report
        self._sizes: Final = sizes
        self._now_ms: Final = now_ms
        self._log_demands: Final = log_demands
        self._keep: Final = keep
        self._observe: Final = observe
        self._index_path: Final = folder / "index"
        self._links_path: Final = folder / "links"
        self._catalog_path = folder / "catalog"
        self._sought_path: Final = folder / "sought"

    def verdict(self) -> Verdict:
        """Read, check, judge. Raises LocalError if a file cannot be read on, or a worker dies."""
        scan = self._scan()
        frame = frame_of(self._bundles(scan, {}))
        catalog, checked, open_links = self._check_and_link(scan, frame)
        over = {channel for channel in frame.credited if _is_over_limit(catalog, checked, channel)}
        if over:
            # Where the credit limit is passed it is a matter of all receipts when, once more than that was credited.
            frame = replace(frame, whole=frame.whole | over)
            self._catalog_path = self._catalog_path.with_name("second catalog")  # workers remember the first
            catalog, checked, open_links = self._check_and_link(scan, frame)
        self._find(catalog, checked, frame)
        loaded = self._choose(catalog, checked, open_links)
        self._compare(catalog, checked, frame, loaded)
        lines = self._load(catalog, loaded)
        checked.elided.channels = dict(checked.channels)
        checked.elided.proofs = frame.proofs
        checked.elided.unjudged_records = sum(loose.left_out for loose in scan.loose)
        checked.elided.sizes = [(count, count) for count in scan.shown]
        self._report("judging", 0, 1)
        bundles = self._bundles(scan, lines, checked.elided.sizes)
        if self._keep is not None:
            bundles = keeping(bundles, self._keep)
        verdict = audit_records(
            bundles, checked.elided, now_ms=self._now_ms, log_demands=self._log_demands, observe=self._observe
        )
        self._report("judging", 1, 1)
        return verdict

    def _check_and_link(self, scan: _Scan, frame: Frame) -> tuple[Catalog, Checked, dict[bytes, OpenLinks]]:
        catalog = self._catalog(scan, frame)
        checked = self._check(catalog, frozenset(frame.wanted_orders))
        if checked.strays:
            # Lines made to look as if they were about other orders than they are: once more, now that it is known.
            checked = self._check(catalog, frozenset(frame.wanted_orders | checked.strays))
        return catalog, checked, self._link(catalog, checked, frame)

    # -- scan ---------------------------------------------------------------------------------------------------------

    def _scan(self) -> _Scan:
        chunks = [
            chunk
            for bundle, source in enumerate(self._sources)
            for chunk in plan_chunks(bundle, source.path, self._sizes.chunk_bytes)
        ]
        size = sum(chunk.end - chunk.start for chunk in chunks)
        partitions = max(1, min(_MOST_PARTS, size // self._sizes.part_bytes + 1))
        done: list[tuple[int, ScannedChunk]] = []
        block, most = self._sizes.orders_a_block, self._sizes.most_loose_lines
        jobs = (partial(scan_chunk, chunk, partitions, block, most) for chunk in chunks)
        with self._index_path.open("wb") as file:
            for scanned in self._steps("reading", jobs, len(chunks)):
                done.append((file.tell(), scanned))
                file.write(scanned.entries)
                scanned.entries = b""
        done.sort(key=lambda pair: (pair[1].chunk.bundle, pair[1].chunk.start))
        scan = _Scan(
            Index(self._index_path, partitions, block),
            [0] * len(self._sources),
            [LooseLines(most) for _ in self._sources],
        )
        before, gave_up = [0] * len(self._sources), set()
        for position, scanned in done:
            bundle = scanned.chunk.bundle
            if bundle in gave_up:
                continue
            path, first = scanned.chunk.path, before[bundle] + 1
            scan.index.chunks.append(IndexedChunk(bundle, path, position, scanned.starts, first))
            scan.shown[bundle] += scanned.shown
            scan.loose[bundle].add_all(scanned, before[bundle])
            for channel in scanned.channels:
                scan.channels[channel].add(bundle)
            before[bundle] += scanned.lines
            gave_up |= {bundle} if scanned.gave_up else set()
        return scan

    def _bundles(
        self, scan: _Scan, lines: dict[int, list[tuple[int, bytes]]], sizes: list[tuple[int, int]] | None = None
    ) -> Iterator[Bundle]:
        """The lines about no order, with those in `lines`; `sizes` is told how many are no records."""
        for bundle, source in enumerate(self._sources):
            more = scan.loose[bundle].alike
            yield Bundle(source.name, self._entries(scan, bundle, lines.get(bundle, []), sizes), source.side, more=more)

    def _entries(
        self, scan: _Scan, bundle: int, lines: list[tuple[int, bytes]], sizes: list[tuple[int, int]] | None
    ) -> Iterator[tuple[int, Record | InvalidRecord]]:
        path = self._sources[bundle].path
        loose = read_loose(path, scan.loose[bundle].places)
        loaded = ((number, parse_line(line)) for number, line in sorted(lines))
        unreadable = sum(alike.count for alike in scan.loose[bundle].alike.values())
        for number, entry in merge(loose, loaded, key=lambda pair: pair[0]):
            unreadable += isinstance(entry, InvalidRecord)
            yield number, entry
        if sizes is not None:
            sizes[bundle] = scan.shown[bundle], scan.shown[bundle] - unreadable

    # -- check --------------------------------------------------------------------------------------------------------

    def _catalog(self, scan: _Scan, frame: Frame) -> Catalog:
        channels = {}
        for channel_id, held in frame.channels.items():
            bundles = sorted(scan.channels.get(channel_id, set()) | {place.bundle for place in held.places})
            groups = tuple(sum(1 << b for b in members) for _, members in groups_of(bundles, frame.sides))
            channels[channel_id] = held.record_id, PlainChannel(held.message, groups)
        offers = {offer_id: held.message for offer_id, held in frame.offers.items()}
        names = tuple(source.name for source in self._sources)
        terms, group = frame.key_terms, self._sizes.links_a_group
        demands = self._log_demands.proofs
        catalog = Catalog(
            scan.index, names, frame.sides, channels, offers, terms, frame.whole, group, frame.logs, demands
        )
        self._catalog_path.write_bytes(pickle.dumps(catalog))
        return catalog

    def _check(self, catalog: Catalog, odd: frozenset[OrderKey]) -> Checked:
        checked = Checked()
        count = catalog.index.partitions
        odd_of: dict[int, set[OrderKey]] = defaultdict(set)
        for key in odd:
            odd_of[partition_of(key, count, catalog.index.orders_a_block)].add(key)
        jobs = (partial(check_part, self._catalog_path, partition, odd_of[partition]) for partition in range(count))
        with self._links_path.open("wb") as file:
            for part in self._steps("checking", jobs, count):
                for key, encoded in part.links.items():
                    checked.groups[key].append((file.tell(), len(encoded)))
                    file.write(encoded)
                add_part(checked, part, catalog)
        return checked

    # -- link ---------------------------------------------------------------------------------------------------------

    def _link(self, catalog: Catalog, checked: Checked, frame: Frame) -> dict[bytes, OpenLinks]:
        """For each channel the receipts whose link to the one before is to be judged, with that one."""
        asked: dict[bytes, set[int]] = defaultdict(set)
        for channel_id, number in frame.wanted_receipts:
            asked[channel_id].add(number)
        jobs = (
            partial(
                link_group,
                self._catalog_path,
                self._links_path,
                key,
                spans,
                asked.get(key[0], set()),
                frame.wanted_ids,
            )
            for key, spans in checked.groups.items()
        )
        groups: dict[bytes, list[LinkedGroup]] = defaultdict(list)
        for group in self._steps("linking", jobs, len(checked.groups)):
            groups[group.key[0]].append(group)
        if frame.has_continuations:  # what goes on from a channel is held against its last receipt
            for channel_id, of_channel in groups.items():
                checked.wanted[channel_id].add(max(of_channel, key=lambda group: group.key[1]).last.order_number)
        return {channel_id: _link_groups(catalog, checked, channel_id, groups[channel_id]) for channel_id in groups}

    # -- what the judgement needs -------------------------------------------------------------------------------------

    def _find(self, catalog: Catalog, checked: Checked, frame: Frame) -> None:
        """Look everywhere for what altered lines are copies of, and for meters that vouchers of other orders name."""
        signatures = checked.signatures.union(*frame.suspects)
        if not signatures and not checked.meters:
            return
        count = catalog.index.partitions
        self._sought_path.write_bytes(pickle.dumps((signatures, checked.meters)))
        jobs = (partial(find_in_part, self._catalog_path, self._sought_path, partition) for partition in range(count))
        for found in self._steps("searching", jobs, count):
            for channel_id, number in found:
                checked.wanted[channel_id].add(number)

    def _choose(self, catalog: Catalog, checked: Checked, open_links: dict[bytes, OpenLinks]) -> dict[bytes, set[int]]:
        """The orders that are judged in full, by channel; `checked.channels` is told."""
        for (channel_id, _), number in checked.without_offer.items():
            checked.wanted[channel_id].add(number)
        for channel_id, numbers in checked.first_open.items():
            checked.wanted[channel_id].update(sorted(numbers)[:MOST_LABELS])
        for channel_id, times in checked.times.items():
            checked.late[channel_id] |= _out_of_time(times, self._sizes.orders_a_block)
        loaded: dict[bytes, set[int]] = {}
        budget = Budget(self._sizes.most_judged_orders, self._sizes.most_judged_lines)
        for channel_id in sorted({*checked.odd, *checked.late, *checked.wanted, *open_links, *checked.channels}):
            odd, wanted = checked.odd[channel_id], checked.wanted[channel_id]
            in_turn = [*sorted(odd.keys() & wanted), *sorted(odd.keys() - wanted)]
            judged = {number for number in in_turn if budget.is_enough_for(odd[number])}
            chosen = judged | (wanted - odd.keys())
            chosen |= {n for n in sorted(checked.late[channel_id] - odd.keys() - chosen) if budget.is_enough_for(0)}
            links = set()
            for before, number, receipt in open_links.get(channel_id, ()):
                orders = {number, before} - {0}
                # Nothing is said of a link to an order that is not judged.
                if not (orders & odd.keys()) - judged and (orders <= chosen or budget.is_enough_for(0)):
                    chosen |= orders
                    links.add(receipt)
            loaded[channel_id] = chosen
            if channel_id in catalog.channels and channel_id not in catalog.whole:
                elided = checked.channels[channel_id]
                elided.open_links, elided.counted = links, chosen - odd.keys()
        checked.elided.unjudged += budget.refused
        return loaded

    def _compare(self, catalog: Catalog, checked: Checked, frame: Frame, loaded: dict[bytes, set[int]]) -> None:
        bundles: dict[bytes, tuple[int, ...]] = {}
        for channel_id, elided in checked.channels.items():
            held = frame.channels.get(channel_id)
            of_channel = {place.bundle for place in held.places} if held is not None else set()
            bundles[channel_id] = tuple(sorted(elided.bundles | of_channel))
        jobs = []
        for partition, by_channel in checked.partial.items():
            left = {
                channel_id: [n for n in numbers if n not in loaded.get(channel_id, ())]
                for channel_id, numbers in by_channel.items()
                if len(groups_of(bundles[channel_id], frame.sides)) > 1
            }
            if any(left.values()):
                jobs.append(partial(compare_part, self._catalog_path, partition, left, bundles))
        found = first_absences([])
        for part in self._steps("comparing", jobs, len(jobs)):
            found = first_absences([found, part])
        for channel_id, rank, absence in found.first:
            checked.channels[channel_id].absences.append((rank, absence))
        for channel_id, more in found.more.items():
            checked.channels[channel_id].more_absences.update(more)

    def _load(self, catalog: Catalog, loaded: dict[bytes, set[int]]) -> dict[int, list[tuple[int, bytes]]]:
        """The lines about these orders, by bundle."""
        count = catalog.index.partitions
        by_partition: dict[int, set[OrderKey]] = defaultdict(set)
        for channel_id, numbers in loaded.items():
            for number in numbers:
                by_partition[partition_of((channel_id, number), count, catalog.index.orders_a_block)].add(
                    (channel_id, number)
                )
        if catalog.whole:
            by_partition.update({p: by_partition[p] for p in range(count)})
        jobs = (
            partial(load_part, self._catalog_path, partition, orders, catalog.whole)
            for partition, orders in by_partition.items()
        )
        lines: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for part in self._steps("fetching", jobs, len(by_partition)):
            for place, line in part:
                lines[place.bundle].append((place.line, line))
        return lines

    def _steps(self, step: str, jobs: Iterable[Callable[[], R]], count: int) -> Iterator[R]:
        self._report(step, 0, count)
        for done, result in enumerate(self._workers.run(jobs), start=1):
            yield result
            self._report(step, done, count)


def run_engine(
    sources: Sequence[Source],
    processes: int,
    report: Report,
    sizes: Sizes | None = None,
    *,
    now_ms: int | None = None,
    keep: Keep | None = None,
    log_demands: LogDemands = NO_DEMANDS,
    observe: Observe | None = None,
) -> Verdict:
    """Audit bundles of any size. Raises LocalError if a file cannot be read on, or a worker dies.

    `now_ms`, `log_demands` and `observe`: as for `audit_records`. `keep` is given every record that is judged in full.
    """
    with Workers(processes) as workers, TemporaryDirectory(prefix="p2pgrid-audit-") as folder:
        engine = Engine(sources, workers, Path(folder), report, sizes or Sizes(), now_ms, keep, log_demands, observe)
        return engine.verdict()


def keeping(bundles: Iterable[Bundle], keep: Keep) -> Iterator[Bundle]:
    """The bundles, with `keep` given every record as it is read."""

    def kept(entries: Iterable[tuple[int, Record | InvalidRecord]]) -> Iterator[tuple[int, Record | InvalidRecord]]:
        for number, entry in entries:
            if isinstance(entry, Record):
                keep(entry)
            yield number, entry

    for bundle in bundles:
        yield Bundle(bundle.source, kept(bundle.entries), bundle.side, more=bundle.more)


def _link_groups(catalog: Catalog, checked: Checked, channel_id: bytes, groups: list[LinkedGroup]) -> OpenLinks:
    record_id, plain = catalog.channels[channel_id]
    elided = checked.channels[channel_id]
    groups.sort(key=lambda group: group.key[1])
    open_links: OpenLinks = []
    head, before = chain_start(plain.message, record_id), None
    for group in groups:
        if not is_proven_link(head, before, group.first, plain.message):
            first = group.first
            open_links.append((0 if before is None else before.order_number, first.order_number, first.receipt_number))
        open_links += group.open_links
        before = group.last
        head = extend(before, before.record_id)
        checked.wanted[channel_id].update(group.named)
        checked.late[channel_id].update(group.proven)
    elided.highest_final = max(group.highest_final for group in groups)
    checked.highest_total_pico[channel_id] = max(group.highest_total_pico for group in groups)
    first_waiting: list[int] = []
    first_overtaken: list[int] = []
    first_unlogged: list[int] = []
    for group in groups:
        elided.unlogged += group.unlogged
        first_unlogged += group.first_unlogged
        elided.overtaken += group.overtaken
        first_overtaken += group.first_overtaken
        if group.first.receipt_number < elided.highest_final and group.highest_final < elided.highest_final:
            elided.overtaken += group.waiting
            first_overtaken += group.first_waiting
        else:
            elided.waiting += group.waiting
            first_waiting += group.first_waiting
    checked.wanted[channel_id].update(first_waiting[:MOST_LABELS], first_overtaken[:MOST_LABELS])
    checked.wanted[channel_id].update(first_unlogged[:FIRST_ABSENCES])
    return open_links


def _is_over_limit(catalog: Catalog, checked: Checked, channel_id: bytes) -> bool:
    highest = checked.highest_total_pico.get(channel_id, 0)
    return highest > 0 and highest > catalog.channels[channel_id][1].message.credit_limit_pico


class Budget:
    """How much is judged in full."""

    def __init__(self, orders: int, lines: int) -> None:
        self._orders, self._lines = orders, lines
        self.refused = 0

    def is_enough_for(self, lines: int) -> bool:
        """Take an order with so many lines out of it if that is left."""
        if not self._orders or lines > min(self._lines, MOST_LINES_AN_ORDER):
            self.refused += 1
            return False
        self._orders -= 1
        self._lines -= lines
        return True


def _out_of_time(times: dict[int, tuple[int, int, int]], orders_a_block: int) -> set[int]:
    """Orders that may come before one with a lower number, and that one."""
    latest_ms = holder = 0
    orders: set[int] = set()
    for block in sorted(times):
        earliest, latest, of = times[block]
        if earliest < latest_ms - CLOCK_TOLERANCE_MS:
            orders |= {holder, *range(block * orders_a_block, (block + 1) * orders_a_block)}
        if latest > latest_ms:
            latest_ms, holder = latest, of
    return orders
