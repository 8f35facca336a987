"""The bank between them: it reads pain.001 as any bank does, and writes what it booked. No code of ours is in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from tests.settlement.payments.bank import Bank, Movement


@dataclass(frozen=True)
class Transfer:
    """One credit transfer of a pain.001."""

    cents: int
    payer: str
    payer_iban: str
    payee_iban: str
    end_to_end_id: str
    text: str


def transfers_of(file: Path) -> list[Transfer]:
    """What a pain.001.001.09 orders."""
    root = ElementTree.parse(file).getroot()
    ns = {"p": root.tag[1:].split("}")[0]}

    def text(node: ElementTree.Element, path: str) -> str:
        found = node.find(path, ns)
        return "" if found is None or found.text is None else found.text

    made = []
    for batch in root.iterfind(".//p:PmtInf", ns):
        for one in batch.iterfind("p:CdtTrfTxInf", ns):
            whole, _, part = text(one, "p:Amt/p:InstdAmt").partition(".")
            made.append(
                Transfer(
                    cents=int(whole) * 100 + int(part.ljust(2, "0")),
                    payer=text(batch, "p:Dbtr/p:Nm"),
                    payer_iban=text(batch, "p:DbtrAcct/p:Id/p:IBAN"),
                    payee_iban=text(one, "p:CdtrAcct/p:Id/p:IBAN"),
                    end_to_end_id=text(one, "p:PmtId/p:EndToEndId"),
                    text=text(one, "p:RmtInf/p:Ustrd"),
                )
            )
    return made


def booked(transfers: Iterable[Transfer], iban: str, day: date, shape: str = "batch") -> bytes:
    """A camt.053 of one account, with everything that went in and out."""
    movements = [
        Movement(
            cents=one.cents if one.payee_iban == iban else -one.cents,
            day=day.isoformat(),
            end_to_end_id=one.end_to_end_id,
            text=one.text,
            name=one.payer if one.payee_iban == iban else "",
            iban=one.payer_iban if one.payee_iban == iban else one.payee_iban,
            reference=f"REF{number:08d}",
        )
        for number, one in enumerate(transfers)
        if iban in (one.payee_iban, one.payer_iban)
    ]
    return Bank(shape=shape, iban=iban).write(movements)
