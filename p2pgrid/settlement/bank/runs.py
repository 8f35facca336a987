"""One run of the bank's side: what was begun is ended, files are decided on, and what follows is booked.

1. *Redo*: Payments that an earlier run intended and did not see booked are asked for again.
2. *Decide*: new entries, and those that wait, are matched; entries, decisions and intended Payments are durable
   together.
3. *Book*: the node that signs puts them into the ledger, or refuses one; a refusal takes the decision back.
4. *Allocate*: what channels owe their clients is booked on what is open (`p2pgrid.settlement.allocation`).

A crash between any two of these loses nothing and books nothing twice: 1 finds what 2 wrote, and the ledger takes the
same Payment once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.proto.statement import Payment, PaymentKind
from p2pgrid.settlement.allocation import allocate
from p2pgrid.settlement.bank.booking import entry_digest, payments_of
from p2pgrid.settlement.bank.books import Books, matched
from p2pgrid.settlement.bank.names import Dealing, names_of
from p2pgrid.settlement.bank.store import BankStore, FileRead, Intent, Known
from p2pgrid.settlement.bank.stored import NOT_OURS, StoredBooking, StoredDecision, Target, to_store
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.open_items import Place
from p2pgrid.settlement.paying.carried_out import carried_out
from p2pgrid.settlement.paying.orders_book import OrdersBook
from p2pgrid.settlement.paying.plan import ahead_ordered, reserved
from p2pgrid.settlement.payments.decisions import Decision, Evidence, Kind
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.statements import BankFile

Book = Callable[[Sequence[tuple[Payment, ...]]], Awaitable[Sequence[str]]]
"""Have Payments signed and put into the ledger, each group all or none: why a group was refused, or nothing if it is on
record now. Raises P2pgridError where nobody knows."""
Look = Callable[[], Sequence[Side]]
"""Every channel of ours, as the ledger has it now."""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One entry, and what it was taken for in this run."""

    entry: BookedEntry
    file: str
    decision: StoredDecision
    is_new: bool
    """False for one that was decided so before."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did."""

    decided: tuple[Decided, ...] = ()
    known: int = 0
    """Entries that were read before and are as they were."""
    booked: int = 0
    """Payments that are in the ledger now and were not when the run began."""
    redone: int = 0
    """Of these, those that an earlier run had begun."""
    refused: tuple[str, ...] = ()
    """What the ledger did not take, in sentences."""
    allocated: int = 0
    """Payments that book money from one place to another."""


class Runs:
    """Runs on one data folder. The caller holds the lock: one at a time."""

    def __init__(self, store: BankStore, orders: OrdersBook, look: Look, book: Book, now_ms: Callable[[], int]) -> None:
        """Nothing is read or done before it is called for."""
        self._store: Final = store
        self._orders: Final = orders
        self._look: Final = look
        self._book: Final = book
        self._now_ms: Final = now_ms

    def books(self) -> Books:
        """What is known now. Raises LedgerError."""
        sides = tuple(self._look())
        known = self._store.known()
        decided = [(one[0].entry, one[0].decision) for one in known.values()]
        carried = carried_out(self._orders.orders(), decided)
        booked: Counter[Target] = Counter()
        ibans: dict[bytes, dict[str, None]] = {}
        by_channel = {side.id: side.other for side in sides}
        for entry, decision in decided:
            for one in decision.bookings if decision.is_booked else ():
                if one.is_purchase:
                    booked[one.target] += one.cents
                if one.target.channel in by_channel and entry.counterparty_iban:
                    ibans.setdefault(by_channel[one.target.channel], {})[entry.counterparty_iban] = None
        dealings = [_dealing(side, ibans.get(side.other, {})) for side in sides]
        return Books(sides, known, carried, names_of(dealings, booked, ahead_ordered(carried)))

    async def take(self, files: Iterable[tuple[BankFile, str]]) -> Report:
        """Read files (each with its SHA-256), decide, book, allocate. Raises P2pgridError; what was begun then is ended
        by the next run."""
        redone, refused = await self._settle()
        given = list(files)
        self._recover(given)
        books = self.books()
        now_ms = self._now_ms()
        tellings = self._store.tellings()
        new: dict[tuple[str, str, str, str], tuple[BookedEntry, str]] = {}
        count, told = 0, set[str]()
        for file, _ in given:
            for entry in file.entries:
                count += 1
                told.add(entry.key)
                telling = (entry.key, entry.source_kind, entry.statement_id, entry.telling)
                if telling not in tellings:
                    new.setdefault(telling, (entry, file.name))
        to_match = [
            entry for entry, _ in new.values() if not _is_settled(books.known.get(entry.key), is_told_anew=True)
        ]
        to_match += [one.entry for tellings in books.known.values() for one in tellings if not _is_settled(tellings)]
        made = matched(books, to_match)
        decided = self._to_decide(books, made, {key: name for (key, *_), (_, name) in new.items()}, now_ms)
        self._write(books, decided, files=given, entries=list(new.values()), now_ms=now_ms)
        booked, refused_now = await self._settle()
        allocated = await self.allocate()
        return Report(
            decided=tuple(decided),
            known=count - len(told & {one.entry.key for one in decided if one.is_new}),
            booked=redone + booked,
            redone=redone,
            refused=(*refused, *refused_now),
            allocated=allocated,
        )

    def _recover(self, files: Iterable[tuple[BankFile, str]]) -> None:
        """Learn again what the ledger has of these entries, where settlement.db was lost or set back."""
        known, sides, now_ms = self._store.known(), self._look(), self._now_ms()
        found = {
            entry.key: (entry, file.name, decision)
            for file, _ in files
            for entry in file.entries
            if entry.key not in known and (decision := _recovered(entry, sides, now_ms)) is not None
        }
        if found:
            self._store.write(
                entries=[(entry, name) for entry, name, _ in found.values()],
                decisions=[(entry, decision) for entry, _, decision in found.values()],
                now_ms=now_ms,
            )

    async def decide(self, entry: BookedEntry, decision: StoredDecision, more: Sequence[Payment] = ()) -> Report:
        """Book one entry as a person says; `more` are Payments that take an earlier booking of it back."""
        books = self.books()
        one = Decided(entry=entry, file="", decision=decision, is_new=True)
        self._write(books, [one], moved=more, now_ms=self._now_ms())
        booked, refused = await self._settle()
        return Report(decided=(one,), booked=booked, refused=tuple(refused), allocated=await self.allocate())

    async def finish(self) -> Report:
        """End what an earlier run began. Raises P2pgridError."""
        redone, refused = await self._settle()
        return Report(booked=redone, redone=redone, refused=tuple(refused))

    async def allocate(self) -> int:
        """Book what covers open items on these, in every channel in which we sell; how many Payments that took."""
        held = reserved(self.books().carried)
        now_ms = self._now_ms()
        groups = []
        for side in self._look():
            if not side.is_purchase:
                places: Mapping[Place, int] = held.get(side.id, {})
                made = allocate(side.found, reserved=places, at_ms=now_ms, currency=side.channel.currency)
                groups += [("", made)] if made else []
        if not groups:
            return 0
        self._store.write(payments=groups, now_ms=now_ms)
        booked, _ = await self._settle()
        return booked

    async def _settle(self) -> tuple[int, list[str]]:
        """Ask for every intended Payment; how many are in the ledger since, and what it refused."""
        intents = self._store.intents()
        if not intents:
            return 0, []
        answers = await self._book([one.payments for one in intents])
        booked: list[Intent] = []
        refused: list[tuple[int, str, StoredDecision | None]] = []
        now_ms = self._now_ms()
        for intent, why in zip(intents, answers, strict=True):
            if why:
                refused.append((intent.number, why, self._instead(intent, why, now_ms)))
            else:
                booked.append(intent)
        self._store.settle([one.number for one in booked], refused, now_ms=now_ms)
        return sum(len(one.payments) for one in booked), [why for _, why, _ in refused]

    def _instead(self, intent: Intent, why: str, now_ms: int) -> StoredDecision | None:
        """The decision that counts after a refusal. What was booked before and was only to be moved, stays there."""
        if not intent.key:
            return None
        if all(one.kind is PaymentKind.REALLOCATED for one in intent.payments):
            return self._store.before(intent.key)
        return StoredDecision(
            kind=Kind.AMBIGUOUS.value, reason=f"The ledger refused the booking: {why}", decided_ms=now_ms
        )

    def _to_decide(
        self, books: Books, made: Sequence[Decision], names: Mapping[str, str], now_ms: int
    ) -> list[Decided]:
        """Of each entry the decision that counts: what books it, else the first; none where it is as it was."""
        chosen: dict[str, Decision] = {}
        for one in made:
            key = one.entry.key
            if one.kind is not Kind.DUPLICATE and (key not in chosen or one.is_booked):
                chosen[key] = one
        decided = []
        for key, one in chosen.items():
            stored = to_store(one, books.names.target_of, now_ms)
            before = books.known.get(key)
            is_new = before is None or _said(before[0].decision) != _said(stored)
            file = names.get(key) or (before[0].file if before else "")
            decided.append(Decided(entry=one.entry, file=file, decision=stored, is_new=is_new))
        return decided

    def _write(
        self,
        books: Books,
        decided: Sequence[Decided],
        *,
        files: Sequence[tuple[BankFile, str]] = (),
        entries: Sequence[tuple[BookedEntry, str]] = (),
        moved: Sequence[Payment] = (),
        now_ms: int,
    ) -> None:
        news = [one for one in decided if one.is_new]
        statements = {side.id: side.statements for side in books.sides}
        payments: list[tuple[str, Sequence[Payment]]] = []
        for one in news:
            if moved or not one.decision.is_booked:
                made = tuple(moved)
            else:
                made = payments_of(one.entry, one.decision, statements, now_ms=now_ms)
            payments += [(one.entry.key, made)] if made else []
        self._store.write(
            files=[FileRead(sha256, file.name, file.kind, len(file.entries)) for file, sha256 in files],
            entries=entries,
            decisions=[(one.entry, one.decision) for one in news],
            payments=payments,
            now_ms=now_ms,
        )


def file_digest(data: bytes) -> str:
    """What a file is known by."""
    return hashlib.sha256(data).hexdigest()


def _dealing(side: Side, ibans: Iterable[str]) -> Dealing:
    told = (side.details.iban,) if side.details is not None and side.details.iban else ()
    return Dealing(
        found=side.found,
        is_purchase=side.is_purchase,
        currency=side.channel.currency,
        other_name=side.other_name,
        other_ibans=tuple(dict.fromkeys((*told, *ibans))),
    )


def _is_settled(known: Sequence[Known] | None, *, is_told_anew: bool = False) -> bool:
    """True for an entry that is not to be matched. What is nobody's business is looked at again where a file tells more
    of it; what a person put aside is not; what is booked is, to be called a duplicate."""
    if not known:
        return not is_told_anew
    decision = known[0].decision
    if decision.kind == NOT_OURS:
        return True
    return not (decision.waits or is_told_anew)


def _said(decision: StoredDecision) -> tuple[object, ...]:
    return decision.kind, decision.reason, decision.bookings, decision.candidates, decision.findings


def _recovered(entry: BookedEntry, sides: Iterable[Side], now_ms: int) -> StoredDecision | None:
    """What the ledger has of an entry of which settlement.db knows nothing: that file may have been lost."""
    digest = entry_digest(entry.key)
    booked = [
        one
        for side in sides
        if not side.is_purchase
        for one in side.payments
        if one.entry == digest and one.kind is not PaymentKind.REALLOCATED
    ]
    if not booked or sum(one.amount_cents for one in booked) != entry.amount_cents:
        return None
    back = {PaymentKind.RETURNED: Kind.RETURNED, PaymentKind.REFUNDED: Kind.REFUND}
    return StoredDecision(
        kind=back.get(booked[0].kind, Kind.COMBINED).value,
        reason="It is in the ledger, and was not known here.",
        decided_ms=now_ms,
        evidence=Evidence.EARLIER_ENTRY.value,
        bookings=tuple(
            StoredBooking.of(Target(one.channel, (one.statement, one.invoice_number)), one.amount_cents)
            for one in sorted(booked, key=lambda one: (not one.statement, one.invoice_number))
        ),
    )
