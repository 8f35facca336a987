"""camt.053 (statement) and camt.054 (notification), versions 2 and 8: a bank's file, read whole or not at all.

The file is streamed and hardened (xml_stream.py); every refusal names the line, what stands there, and what was
expected; and nothing is handed out until all of it was read and added up.

**What the balances decide.** A statement gives its opening and closing balance. If the booked entries between them do
not come to the difference, an entry is missing, doubled or misread, and the file is refused. They also settle what
banks disagree in: ISO 20022 has CdtDbtInd tell an entry's own direction, reversal or not, while some German banks tell
that of the entry that is undone. Whichever reading adds up is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from p2pgrid.settlement.payments.accounts import NotAnAccount, checked_iban
from p2pgrid.settlement.payments.camt_entries import (
    Entry,
    Transaction,
    booked_entries,
    pending_entry,
    read_entry,
    read_transaction,
)
from p2pgrid.settlement.payments.camt_fields import Fields, amount_of, flag_of, sign_of
from p2pgrid.settlement.payments.entries import BookedEntry, with_keys
from p2pgrid.settlement.payments.refusals import BankFileError
from p2pgrid.settlement.payments.statements import BankFile, BankStatement, PendingEntry
from p2pgrid.settlement.payments.xml_stream import Node, read_subtrees
from p2pgrid.units import format_cents

MAX_ENTRIES: Final = 200_000
KINDS: Final = ("camt.053.001.02", "camt.053.001.08", "camt.054.001.02", "camt.054.001.08")

_NAMESPACE: Final = re.compile(r"urn:iso:std:iso:20022:tech:xsd:(camt\.05[34]\.001\.0[28])")
_KEPT: Final = ("GrpHdr", "Stmt", "Ntfctn", "Ntry", "TxDtls")
_SHOWN: Final = 80


def read_camt(file: BinaryIO, name: str) -> BankFile:
    """Read a bank's file. `name` is how errors call it.

    Raises BankFileError for whatever it cannot be sure of; then nothing was read.
    """
    kind = ""
    body = _Body(name)
    for node in read_subtrees(file, name, _KEPT):
        if not kind:
            kind = _kind_of(node, name)
            body.kind = kind
        else:
            body.take(node)
    if not body.statements:
        raise BankFileError(name, 0, f"this {kind} has no statement")
    return BankFile(name=name, kind=kind, message_id=body.message_id, statements=tuple(body.statements))


@dataclass
class _Body:
    """What was read so far."""

    name: str
    kind: str = ""
    message_id: str = ""
    is_single_page: bool = True
    statements: list[BankStatement] = field(default_factory=list)
    _details: list[Transaction] = field(default_factory=list)
    _entries: list[Entry] = field(default_factory=list)
    _count: int = 0

    def take(self, node: Node) -> None:
        fields = Fields(self.name, node)
        match node.tag:
            case "TxDtls":
                self._details.append(read_transaction(fields))
                self._counted(fields)
            case "Ntry":
                self._entries.append(read_entry(fields, self._details))
                self._details = []
                self._counted(fields)
            case "GrpHdr":
                self.message_id = fields.needed("MsgId").node.text
                self.is_single_page = _is_single_page(fields, "MsgPgntn")
            case _:
                self.statements.append(self._statement(fields))
                self._entries = []

    def _counted(self, fields: Fields) -> None:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise fields.refused(f"the file has more than {MAX_ENTRIES} entries and transactions; ask for fewer days")

    def _statement(self, fields: Fields) -> BankStatement:
        iban = _own_iban(fields)
        statement_id = fields.needed("Id").node.text
        same = [one for one in self.statements if (one.account_iban, one.statement_id) == (iban, statement_id)]
        currency = fields.text("Acct", "Ccy")
        if any(one.currency == currency or not (one.currency and currency) for one in same):
            raise fields.refused(f"the statement {statement_id[:_SHOWN]!r} of {iban} stands in this file twice")
        for entry in self._entries:
            if currency and entry.currency != currency:
                raise BankFileError(
                    self.name, entry.line, f"the entry is in {entry.currency}, and its account in {currency}"
                )
        booked = [entry for entry in self._entries if entry.status == "BOOK"]
        balances = _balances(fields) if self.is_single_page and _is_single_page(fields, "StmtPgntn") else None
        is_flipped = _reads_reversals_the_other_way(fields, booked, balances)
        if balances is None:
            _refuse_doubles(self.name, booked)
        entries: list[BookedEntry] = []
        for entry in booked:
            entries += booked_entries(
                entry,
                account_iban=iban,
                source_kind=self.kind[:8],
                statement_id=statement_id,
                is_flipped=is_flipped,
            )
        return BankStatement(
            account_iban=iban,
            statement_id=statement_id,
            sequence_number=fields.first_text(("ElctrncSeqNb",), ("LglSeqNb",)),
            line=fields.node.line,
            currency=currency or (balances.currency if balances else ""),
            opening_cents=balances.opening_cents if balances else None,
            closing_cents=balances.closing_cents if balances else None,
            is_balanced=balances is not None,
            entries=with_keys(entries),
            pending=tuple(self._pending()),
        )

    def _pending(self) -> list[PendingEntry]:
        return [pending_entry(entry) for entry in self._entries if entry.status in ("PDNG", "FUTR")]


@dataclass(frozen=True, slots=True)
class _Balances:
    opening_cents: int
    closing_cents: int
    currency: str


def _kind_of(root: Node, name: str) -> str:
    match = _NAMESPACE.fullmatch(root.namespace)
    if root.tag != "Document" or not match:
        found = f"<{root.tag[:_SHOWN]}> of {root.namespace[:_SHOWN]!r}" if root.namespace else f"<{root.tag[:_SHOWN]}>"
        raise BankFileError(name, root.line, f"the file is {found}; expected a Document of {', '.join(KINDS)}")
    return match[1]


def _own_iban(fields: Fields) -> str:
    found = fields.needed("Acct").one("Id", "IBAN")
    if found is None:
        raise fields.refused("the statement's account has no IBAN; SEPA accounts have one")
    try:
        return checked_iban(found.node.text)
    except NotAnAccount as error:
        raise found.refused(error.message.rstrip(".")) from None


def _is_single_page(fields: Fields, tag: str) -> bool:
    pages = fields.one(tag)
    return pages is None or (pages.text("PgNb").lstrip("0") in ("", "1") and flag_of(pages, "LastPgInd"))


def _balances(fields: Fields) -> _Balances | None:
    """Opening and closing booked balance; None where there are not both, or several of one kind."""
    found: dict[str, list[tuple[int, str]]] = {}
    for balance in fields.all("Bal"):
        code = balance.text("Tp", "CdOrPrtry", "Cd")
        if code in ("OPBD", "PRCD", "CLBD"):
            cents, currency = amount_of(balance.needed("Amt"))
            found.setdefault(code, []).append((sign_of(balance) * cents, currency))
    opening, closing = found.get("OPBD") or found.get("PRCD") or [], found.get("CLBD") or []
    if len(opening) != 1 or len(closing) != 1:
        return None
    if opening[0][1] != closing[0][1]:
        raise fields.refused(f"the opening balance is in {opening[0][1]} and the closing one in {closing[0][1]}")
    return _Balances(opening[0][0], closing[0][0], opening[0][1])


def _reads_reversals_the_other_way(fields: Fields, booked: list[Entry], balances: _Balances | None) -> bool:
    """Whether this bank's CdtDbtInd of a reversal is that of the entry undone. Refuses what adds up neither way."""
    if balances is None:
        return False
    for entry in booked:
        if entry.currency != balances.currency:
            raise BankFileError(
                fields.name, entry.line, f"the entry is in {entry.currency}, and the balances in {balances.currency}"
            )
    moved = balances.closing_cents - balances.opening_cents
    told = sum(entry.amount_cents for entry in booked)
    if told == moved:
        return False
    reversed_cents = sum(entry.amount_cents for entry in booked if entry.is_reversal)
    if reversed_cents and told - 2 * reversed_cents == moved:
        return True
    raise fields.refused(
        f"the balance goes from {format_cents(balances.opening_cents)} to {format_cents(balances.closing_cents)}, by "
        f"{format_cents(moved)} {balances.currency}, and the {len(booked)} booked entries come to "
        f"{format_cents(told)}; an entry is missing or stands twice"
    )


def _refuse_doubles(name: str, booked: list[Entry]) -> None:
    """Where no balances tell, an entry that stands twice under one reference of the bank's is one too many."""
    seen: Counter[tuple[object, ...]] = Counter()
    for entry in booked:
        if not entry.bank_reference:
            continue
        details = tuple((one.bank_reference, one.end_to_end_id, one.other_id) for one in entry.transactions)
        same = (entry.bank_reference, entry.amount_cents, entry.booking_date, entry.is_reversal, details)
        seen[same] += 1
        if seen[same] > 1:
            raise BankFileError(
                name,
                entry.line,
                f"the entry {entry.bank_reference[:_SHOWN]!r} of {format_cents(entry.amount_cents)} stands here twice",
            )
