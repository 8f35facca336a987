"""Matching: which invoice each booked entry is for (docs/settlement/payments.md, "How money finds its invoice").

A pure function of entries, invoices and what was booked before. What the payer says comes first (a debtor may choose
which debt it pays: BGB 366(1), Lithuanian Civil Code 6.55): the reference, then the invoice's number, and only then
what amount and payer suggest. What is not clear is booked to nobody, with the candidates named.

Hand in again, with every run, the entries that earlier runs left ambiguous: what they wait for (the payment that a
return undoes, the invoice that was late) may be there by now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Final

from p2pgrid.settlement.payments.books import Books
from p2pgrid.settlement.payments.decisions import (
    Booking,
    Decision,
    Evidence,
    Finding,
    Kind,
    OpenInvoice,
    PrepaidAccount,
)
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.invoice_index import InvoiceIndex, stands_alone
from p2pgrid.settlement.payments.named import Named
from p2pgrid.settlement.payments.reasons import listed, money, why_booked, why_unclear
from p2pgrid.settlement.payments.reference import find_references, normalised
from p2pgrid.settlement.payments.reference_index import MAX_TEXT_CHARS, Form, ReferenceIndex
from p2pgrid.settlement.payments.returns import find_return
from p2pgrid.settlement.payments.tellings import told_by
from p2pgrid.units import format_cents

MAX_SUMMED: Final = 12
"""A debtor with more open invoices than that is not searched for a sum that fits."""
_SHORTEST_NUMBER: Final = 5
"""A shorter number counts only where amount or payer agree."""

_EVIDENCE: Final = {
    Form.WHOLE: Evidence.REFERENCE,
    Form.CUT: Evidence.CUT_REFERENCE,
    Form.MISTYPED: Evidence.MISTYPED_REFERENCE,
}


def match(
    entries: Iterable[BookedEntry],
    invoices: Iterable[OpenInvoice],
    *,
    prepaid: Iterable[PrepaidAccount] = (),
    earlier: Iterable[Decision] = (),
    currency: str = "EUR",
) -> tuple[Decision, ...]:
    """Decide for each entry what it is, in the order of booking dates (and of keys within a day).

    `earlier` are all decisions ever booked, which the invoices' `paid_cents` have in already. The outcome does not
    depend on the order in which anything is given. Raises ValueError if two invoices have one number.
    """
    by_number = sorted(invoices, key=lambda invoice: invoice.number)
    chosen = sorted(entries, key=_order)
    matcher = _Matcher(by_number, sorted(prepaid, key=lambda account: account.name), earlier, currency, chosen)
    return tuple(matcher.decide(entry) for entry in chosen)


def _order(entry: BookedEntry) -> tuple[object, ...]:
    """By day; within one, what came in before what went out, and what undoes after what is undone."""
    return (
        entry.booking_date, entry.is_return, entry.amount_cents < 0, entry.key, entry.source_kind, entry.statement_id,
        entry.line,
    )  # fmt: skip


class _Matcher:
    def __init__(
        self,
        invoices: Sequence[OpenInvoice],
        prepaid: Sequence[PrepaidAccount],
        earlier: Iterable[Decision],
        currency: str,
        entries: Iterable[BookedEntry],
    ) -> None:
        self._currency = currency
        self._books = Books((one for one in invoices if one.currency == currency), earlier)
        own = self._books.invoices.values()
        self._index = InvoiceIndex(own, prepaid)
        self._by_reference: dict[str, list[str]] = {}
        for invoice in own:
            self._by_reference.setdefault(invoice.reference, []).append(invoice.number)
        self._prepaid = {account.reference: account for account in prepaid}
        self._references = ReferenceIndex([*self._by_reference, *self._prepaid])
        self._seen: set[str] = set()
        self._told: dict[tuple[str, ...], set[str]] = {}
        for entry in entries:
            self._told.setdefault(told_by(entry), set()).add(entry.key)

    def decide(self, entry: BookedEntry) -> Decision:
        if before := self._books.booked(entry.key):
            return _unbooked(
                entry, Kind.DUPLICATE, f"It was booked on {before.entry.booking_date} as {before.kind.value}."
            )
        decision = self._first_decided(entry)
        if entry.key in self._seen and not decision.is_booked:
            return _unbooked(entry, Kind.DUPLICATE, "It stands in these files more than once.")
        self._seen.add(entry.key)
        return decision

    def _first_decided(self, entry: BookedEntry) -> Decision:
        """Of several tellings of one entry the first may say too little to be booked; then the next one counts."""
        if entry.currency != self._currency:
            return _unbooked(
                entry,
                Kind.FOREIGN_CURRENCY,
                f"It is in {entry.currency}; invoices are in {self._currency}, and no rate was agreed.",
            )
        decision = self._decided(entry)
        if not (decision.is_booked or decision.kind is Kind.AMBIGUOUS):
            return decision
        names = _union(decision.names, self._named(entry).everything if entry.is_collective else ())
        if twin := self._books.lookalike(entry, names, self._told.get(told_by(entry), ())):
            return _unbooked(
                entry,
                Kind.AMBIGUOUS,
                f"It may be the entry of {format_cents(twin.amount_cents)} that was booked from {twin.source_kind} "
                f"{twin.statement_id} on {twin.booking_date}, or a part of the other; if there were two, book this "
                "one by hand.",
                candidates=names,
                findings=(Finding.LOOKS_BOOKED,),
            )
        if not decision.is_booked:
            return decision
        if entry.is_collective and not self._settles_whole(decision, names):
            return _unbooked(
                entry,
                Kind.AMBIGUOUS,
                f"It is a batch whose parts the bank does not tell, and not what is open of {listed(names)}.",
                candidates=names,
            )
        self._books.apply(decision)
        return decision

    def _settles_whole(self, decision: Decision, names: Sequence[str]) -> bool:
        """True if nothing is left, of the entry or of all that it names: then a batch has but one reading."""
        if decision.on_account_cents or decision.kind is Kind.RETURNED:
            return False
        paid = {one.invoice_number: abs(one.amount_cents) for one in decision.bookings}
        references = {self._books.invoices[number].reference for number in paid}
        return all(
            paid[name] == self._due([name]) if name in paid else self._is_beside(name, decision.entry, references)
            for name in names
        )

    def _is_beside(self, name: str, entry: BookedEntry, references: Collection[str]) -> bool:
        """True if an unpaid document is named only because it shares one of these references, and is settled."""
        document = self._books.invoices.get(name)
        return document is not None and document.reference in references and not self._is_open(name, entry)

    def _decided(self, entry: BookedEntry) -> Decision:
        if entry.amount_cents == 0:
            return _unbooked(entry, Kind.UNRELATED, "It moves no money.")
        named = self._named(entry)
        is_ours = bool(named.everything) or self._index.is_known(entry.counterparty_iban)
        if not entry.is_return and not named.by_reference and (refund := self._refund_of_account(entry, named)):
            return refund
        if entry.is_return or named.settled:
            of = named.settled + named.by_reference + named.settled_by_number + named.by_number
            undone = find_return(entry, self._books, of)
            if undone:
                return undone
            if entry.is_return:
                if not is_ours:
                    return _unbooked(entry, Kind.UNRELATED, "It undoes an entry that is none of ours.")
                return _unbooked(
                    entry,
                    Kind.AMBIGUOUS,
                    "It undoes an earlier entry, which was not booked or not for this amount.",
                    candidates=of,
                )
        return self._by_payers_word(entry, named) or self._by_amount(entry, named, is_ours=is_ours)

    # -- what the payer says ------------------------------------------------------------------------------------------

    def _named(self, entry: BookedEntry) -> Named:
        found = self._references.find(entry.all_text)
        all_in_text = self._index.by_number(entry.all_text)

        def last_meant(number: str) -> tuple[bool, bool]:
            """Of the documents of one reference: those in the text first, then those of the amount."""
            return number not in all_in_text, self._due([number]) != abs(entry.amount_cents)

        documents = (sorted(self._by_reference.get(reference, ()), key=last_meant) for reference in found)
        numbers = [number for of_one in documents for number in of_one]
        is_open = {number: self._is_open(number, entry) for number in numbers}
        in_text = [number for number in all_in_text if number not in is_open]
        by_number = [number for number in in_text if self._is_open(number, entry)]
        return Named(
            tuple(number for number in numbers if is_open[number]),
            tuple(number for number in numbers if not is_open[number]),
            tuple(number for number in by_number if self._counts(number, by_number, entry)),
            tuple(number for number in in_text if number not in by_number and stands_alone(number)),
            tuple(self._prepaid[reference].name for reference in found if reference in self._prepaid),
            _EVIDENCE[next(iter(found.values()))] if found else Evidence.NONE,
        )

    def _is_open(self, number: str, entry: BookedEntry) -> bool:
        return self._books.open_of(number) * entry.amount_cents > 0

    def _due(self, numbers: Iterable[str]) -> int:
        return sum(abs(self._books.open_of(number)) for number in numbers)

    def _counts(self, number: str, all_named: Sequence[str], entry: BookedEntry) -> bool:
        """A very short number is chance, unless something else agrees."""
        return len(normalised(number)) >= _SHORTEST_NUMBER or self._agrees(number, all_named, entry)

    def _agrees(self, number: str, all_named: Sequence[str], entry: BookedEntry) -> bool:
        amount = abs(entry.amount_cents)
        return amount in (self._due([number]), self._due(all_named)) or self._is_from(number, entry)

    def _is_from(self, number: str, entry: BookedEntry) -> bool:
        return number in self._index.by_iban(entry.counterparty_iban) or (
            not self._books.invoices[number].debtor_ibans and number in self._index.by_name(entry.counterparty_name)
        )

    def _by_payers_word(self, entry: BookedEntry, named: Named) -> Decision | None:
        amount = abs(entry.amount_cents)
        if named.by_reference:
            if not named.by_number:
                return self._spread(entry, named.by_reference, named.evidence)
            if amount == self._due(named.by_number) != self._due(named.by_reference):
                return _unbooked(
                    entry,
                    Kind.AMBIGUOUS,
                    f"Its reference names {listed(named.by_reference)}, its text {listed(named.by_number)}, whose "
                    "amount it has.",
                    candidates=named.by_reference + named.by_number,
                    findings=(Finding.NAMES_MORE,),
                )
            numbers = named.by_reference
            if amount > self._due(numbers):
                numbers += named.by_number
            return self._spread(entry, numbers, named.evidence, Finding.NAMES_MORE)
        if named.prepaid and entry.amount_cents > 0:
            return Decision(
                entry=entry,
                kind=Kind.PREPAYMENT,
                evidence=named.evidence,
                on_account_cents=entry.amount_cents,
                on_account_of=named.prepaid[0],
                reason=f"{money(entry)} are paid ahead on {named.prepaid[0]}, whose reference is in the transfer.",
            )
        if named.by_number:
            return self._by_number(entry, named)
        return None

    def _by_number(self, entry: BookedEntry, named: Named) -> Decision:
        findings = (Finding.REUSED_REFERENCE,) if named.settled else ()
        others = [n for n in self._index.by_iban(entry.counterparty_iban) if self._is_open(n, entry)]
        is_anothers = bool(others) and not any(self._is_from(number, entry) for number in named.by_number)
        is_enough = all(
            stands_alone(number) or self._agrees(number, named.by_number, entry) for number in named.by_number
        )
        if not is_enough or is_anothers:
            why = "the payer owes others" if is_anothers else "neither amount nor payer agree"
            return _unbooked(
                entry,
                Kind.AMBIGUOUS,
                f"Its text may name {listed(named.by_number)}, but {why}.",
                candidates=_union(named.by_number, others),
                findings=findings,
            )
        return self._spread(entry, named.by_number, Evidence.INVOICE_NUMBER, *findings)

    # -- what amount and payer suggest --------------------------------------------------------------------------------

    def _by_amount(self, entry: BookedEntry, named: Named, *, is_ours: bool) -> Decision:
        amount = abs(entry.amount_cents)
        known = [n for n in self._index.by_iban(entry.counterparty_iban) if self._is_open(n, entry)]
        theirs = known or [n for n in self._index.by_name(entry.counterparty_name) if self._is_open(n, entry)]
        fitting: list[tuple[str, ...]] = [(number,) for number in theirs if self._due([number]) == amount]
        if not fitting and known:
            fitting = self._sums(known, amount)
        findings = (Finding.REUSED_REFERENCE,) if named.settled else self._unknown_reference(entry, named)
        if len(fitting) == 1:
            return self._spread(entry, fitting[0], Evidence.AMOUNT_AND_DEBTOR, *findings)
        ours = [number for number in named.settled if not self._books.invoices[number].is_purchase]
        if ours and entry.amount_cents > 0 and not fitting:
            number = ours[0]
            return Decision(
                entry=entry,
                kind=Kind.OVER,
                evidence=named.evidence,
                on_account_cents=entry.amount_cents,
                on_account_of=number,
                findings=(Finding.REUSED_REFERENCE, *self._other_payer(named.settled, entry)),
                reason=f"{money(entry)} have the reference of {number}, which is paid already; they stand on account.",
            )
        settled = named.settled + named.settled_by_number
        candidates = _union(*fitting, settled) if fitting else _union(theirs if known else (), settled)
        if not (is_ours or fitting or findings):
            return _unbooked(entry, Kind.UNRELATED, "Nothing in it names an invoice or a debtor of ours.")
        return _unbooked(
            entry,
            Kind.AMBIGUOUS,
            why_unclear(candidates, findings, is_fitting=bool(fitting)),
            candidates=candidates,
            findings=findings,
        )

    def _sums(self, numbers: Sequence[str], amount: int) -> list[tuple[str, ...]]:
        """The sets of two and more of these invoices that come to the amount; two at most are looked for."""
        found: list[tuple[str, ...]] = []
        if len(numbers) > MAX_SUMMED:
            return [tuple(sorted(numbers))] if self._due(numbers) == amount else []
        for size in range(2, len(numbers) + 1):
            for chosen in combinations(sorted(numbers), size):
                if self._due(chosen) == amount:
                    found.append(chosen)
                    if len(found) == 2:
                        return found
        return found

    def _unknown_reference(self, entry: BookedEntry, named: Named) -> tuple[Finding, ...]:
        is_known = named.by_reference or named.settled or named.prepaid
        has_one = any(len(found) > 25 for found in find_references(entry.all_text[:MAX_TEXT_CHARS]))
        return (Finding.UNKNOWN_REFERENCE,) if has_one and not is_known else ()

    def _other_payer(self, numbers: Sequence[str], entry: BookedEntry) -> tuple[Finding, ...]:
        ibans = {iban for number in numbers for iban in self._books.invoices[number].debtor_ibans}
        is_other = bool(ibans) and bool(entry.counterparty_iban) and entry.counterparty_iban not in ibans
        return (Finding.OTHER_PAYER,) if is_other else ()

    # -- bookings -----------------------------------------------------------------------------------------------------

    def _spread(self, entry: BookedEntry, numbers: Sequence[str], evidence: Evidence, *findings: Finding) -> Decision:
        """Book an entry on these invoices in order, and what is over on the first one's account."""
        sign, left = (1 if entry.amount_cents > 0 else -1), abs(entry.amount_cents)
        bookings = []
        for number in numbers:
            part = min(left, self._due([number]))
            if part:
                bookings.append(Booking(number, sign * part))
            left -= part
        is_whole = all(abs(b.amount_cents) == self._due([b.invoice_number]) for b in bookings)
        kind = Kind.COMBINED if len(bookings) > 1 else Kind.OVER if left else Kind.EXACT if is_whole else Kind.PART
        if sign < 0 and not any(self._books.invoices[number].is_purchase for number in numbers):
            kind = Kind.REFUND
        return Decision(
            entry=entry,
            kind=kind,
            evidence=evidence,
            bookings=tuple(bookings),
            on_account_cents=sign * left,
            on_account_of=numbers[0] if left else "",
            findings=(*findings, *self._other_payer(numbers, entry)),
            reason=why_booked(entry, bookings, left, evidence, is_whole=is_whole),
        )

    def _refund_of_account(self, entry: BookedEntry, named: Named) -> Decision | None:
        """Money that went out and stood on a debtor's account before."""
        for name in (*named.settled, *named.prepaid):
            if 0 < -entry.amount_cents <= self._books.on_account_of(name):
                return Decision(
                    entry=entry,
                    kind=Kind.REFUND,
                    evidence=named.evidence,
                    on_account_cents=entry.amount_cents,
                    on_account_of=name,
                    findings=self._other_payer(named.settled, entry),
                    reason=f"{money(entry)} that stood on account of {name} were paid back.",
                )
        return None


def _unbooked(
    entry: BookedEntry,
    kind: Kind,
    reason: str,
    *,
    candidates: tuple[str, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Decision:
    return Decision(entry=entry, kind=kind, reason=reason, candidates=candidates, findings=findings)


def _union(*groups: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
