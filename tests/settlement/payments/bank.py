"""A bank that writes camt files, by string templates alone: nothing here is the project's own code.

It writes in the shapes that real banks do. `Bank.shape` is one of

- `plain`: version 2; a reference of the bank's for each entry, one transaction in each, text as it was sent;
- `batch`: version 8; incoming transfers of a day booked as one sum with the transactions beneath, each with amount;
- `wrapped`: version 8; German tags before the end-to-end id and the text, which is broken every 27 characters;
- `sparse`: version 2; no reference of the bank's, end-to-end id NOTPROVIDED, lower-case text;
- `notice`: camt.054 version 8, no balances;
- `old-notice`: camt.054 version 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from xml.sax.saxutils import escape

SHAPES = ("plain", "batch", "wrapped", "sparse", "notice", "old-notice")


@dataclass(frozen=True, kw_only=True)
class Movement:
    cents: int
    """Above zero, in."""
    day: str = "2026-11-02"
    end_to_end_id: str = ""
    text: str = ""
    structured: str = ""
    name: str = "Kunde AG"
    iban: str = "DE89370400440532013000"
    reference: str = ""
    """The bank's."""
    reason: str = ""
    is_reversal: bool = False
    status: str = "BOOK"
    currency: str = "EUR"


@dataclass(kw_only=True)
class Bank:
    shape: str = "plain"
    iban: str = "LT121000011101001000"
    statement_id: str = "STMT-2026-306"
    opening_cents: int = 100_000
    currency: str = "EUR"
    reversals_the_other_way: bool = False
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return "02" if self.shape in ("plain", "sparse", "old-notice") else "08"

    @property
    def is_notice(self) -> bool:
        return "notice" in self.shape

    def write(self, movements: Sequence[Movement]) -> bytes:
        return self.document([self.statement(movements)])

    def document(self, statements: Sequence[str]) -> bytes:
        kind = "054" if self.is_notice else "053"
        body = "BkToCstmrDbtCdtNtfctn" if self.is_notice else "BkToCstmrStmt"
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.{kind}.001.{self.version}">\n<{body}>\n'
            "<GrpHdr>\n<MsgId>MSG-1</MsgId>\n<CreDtTm>2026-11-03T06:00:00+02:00</CreDtTm>\n</GrpHdr>\n"
            + "".join(statements)
            + f"</{body}>\n</Document>\n"
        ).encode()

    def statement(self, movements: Sequence[Movement]) -> str:
        tag = "Ntfctn" if self.is_notice else "Stmt"
        closing = self.opening_cents + sum(one.cents for one in movements if one.status == "BOOK")
        balances = "" if self.is_notice else self.balance("OPBD", self.opening_cents) + self.balance("CLBD", closing)
        return (
            f"<{tag}>\n<Id>{self.statement_id}</Id>\n<ElctrncSeqNb>306</ElctrncSeqNb>\n"
            "<CreDtTm>2026-11-03T06:00:00+02:00</CreDtTm>\n"
            f"<Acct>\n<Id><IBAN>{self.iban}</IBAN></Id>\n<Ccy>{self.currency}</Ccy>\n</Acct>\n"
            + balances
            + "".join(self.entries(movements))
            + f"</{tag}>\n"
        )

    def balance(self, code: str, cents: int) -> str:
        return (
            f"<Bal>\n<Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>\n{self.amount(abs(cents), self.currency)}"
            f"<CdtDbtInd>{'DBIT' if cents < 0 else 'CRDT'}</CdtDbtInd>\n<Dt><Dt>2026-11-02</Dt></Dt>\n</Bal>\n"
        )

    def entries(self, movements: Sequence[Movement]) -> list[str]:
        if self.shape != "batch":
            return [self.entry([one], one.reference or f"B{n:06d}") for n, one in enumerate(movements, start=1)]
        parts = sorted(movements, key=lambda m: (m.day, m.status, m.currency, m.cents > 0, m.is_reversal, m.reason))
        groups = groupby(parts, key=lambda m: (m.day, m.status, m.currency, m.cents > 0, m.is_reversal, m.reason))
        return [self.entry(list(group), f"BATCH{n:04d}") for n, (_, group) in enumerate(groups, start=1)]

    def entry(self, parts: Sequence[Movement], reference: str) -> str:
        first, total = parts[0], sum(one.cents for one in parts)
        is_in = total > 0
        if self.reversals_the_other_way and first.is_reversal:
            is_in = not is_in
        status = first.status if self.version == "02" else f"<Cd>{first.status}</Cd>"
        details = "".join(self.details(one, n, is_batch=self.shape == "batch") for n, one in enumerate(parts))
        batch = f"<Btch><NbOfTxs>{len(parts)}</NbOfTxs></Btch>" if self.shape == "batch" else ""
        return (
            f"<Ntry>\n{self.amount(abs(total), first.currency)}<CdtDbtInd>{'CRDT' if is_in else 'DBIT'}</CdtDbtInd>\n"
            + ("<RvslInd>true</RvslInd>\n" if first.is_reversal else "")
            + f"<Sts>{status}</Sts>\n<BookgDt><Dt>{first.day}</Dt></BookgDt>\n<ValDt><Dt>{first.day}</Dt></ValDt>\n"
            + ("" if self.shape == "sparse" else f"<AcctSvcrRef>{reference}</AcctSvcrRef>\n")
            + "<BkTxCd><Domn><Cd>PMNT</Cd><Fmly><Cd>RCDT</Cd><SubFmlyCd>ESCT</SubFmlyCd></Fmly></Domn></BkTxCd>\n"
            + f"<NtryDtls>{batch}\n{details}</NtryDtls>\n</Ntry>\n"
        )

    def details(self, one: Movement, number: int, *, is_batch: bool) -> str:
        is_in = (one.cents > 0) is not (self.reversals_the_other_way and one.is_reversal)
        shown = "NOTPROVIDED" if self.shape == "sparse" or not one.end_to_end_id else one.end_to_end_id
        refs = f"<EndToEndId>{escape(shown)}</EndToEndId>"
        if is_batch and one.reference:
            refs = f"<AcctSvcrRef>{one.reference}</AcctSvcrRef>{refs}"
        amount = ""
        if is_batch:
            amount = self.amount(abs(one.cents), one.currency) + f"<CdtDbtInd>{'CRDT' if is_in else 'DBIT'}</CdtDbtInd>"
        party = f"<Nm>{escape(one.name)}</Nm>"
        if self.version == "08":
            party = f"<Pty>{party}</Pty>"
        role = "Dbtr" if is_in else "Cdtr"
        account = f"<{role}Acct><Id><IBAN>{one.iban}</IBAN></Id></{role}Acct>" if one.iban else ""
        reason = f"<RtrInf><Rsn><Cd>{one.reason}</Cd></Rsn></RtrInf>" if one.reason else ""
        return (
            f"<TxDtls>\n<Refs>{refs}</Refs>\n{amount}<RltdPties><{role}>{party}</{role}>{account}</RltdPties>\n"
            f"{self.remittance(one)}{reason}</TxDtls>\n"
        )

    def remittance(self, one: Movement) -> str:
        if one.structured:
            kind = "<Tp><CdOrPrtry><Cd>SCOR</Cd></CdOrPrtry></Tp>"
            return f"<RmtInf><Strd><CdtrRefInf>{kind}<Ref>{one.structured}</Ref></CdtrRefInf></Strd></RmtInf>\n"
        text = one.text
        if self.shape == "sparse":
            text = f"{text} {one.end_to_end_id}".strip().lower()
        if self.shape == "wrapped":
            long = f"EREF+{one.end_to_end_id} SVWZ+{text}"
            pieces = [long[at : at + 27] for at in range(0, len(long), 27)]
            return "<RmtInf>" + "".join(f"<Ustrd>{escape(piece)}</Ustrd>" for piece in pieces) + "</RmtInf>\n"
        return f"<RmtInf><Ustrd>{escape(text)}</Ustrd></RmtInf>\n" if text else ""

    @staticmethod
    def amount(cents: int, currency: str) -> str:
        return f'<Amt Ccy="{currency}">{cents // 100}.{cents % 100:02d}</Amt>\n'


def with_references(movements: Sequence[Movement]) -> list[Movement]:
    """Each with a reference of its bank's, as `plain` banks give them."""
    return [replace(one, reference=f"T{n:06d}") for n, one in enumerate(movements, start=1)]
