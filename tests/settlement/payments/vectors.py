"""Test vectors for other implementations: payment references, and set-off.

`python -m tests.settlement.payments.vectors` writes them anew; the tests hold the files to the code.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any, Final

from p2pgrid.settlement.payments.reference import make_creditor_reference, make_reference
from p2pgrid.settlement.payments.setoff import Debt, set_off

FOLDER: Final = Path(__file__).parents[2] / "vectors"
REFERENCES: Final = FOLDER / "payment-references.json"
SETOFFS: Final = FOLDER / "set-off.json"


def references() -> dict[str, Any]:
    ids = [bytes(32), b"\xff" * 32, bytes(range(32)), *(hashlib.sha256(bytes([n])).digest() for n in range(5))]
    first = make_reference(ids[3])
    return {
        "valid": [
            {"id": one.hex(), "end_to_end": make_reference(one), "rf": make_creditor_reference(one)} for one in ids
        ],
        "read": [
            {"text": text, "end_to_end": first}
            for text in (
                first.lower(),
                " ".join(first[at : at + 4] for at in range(0, 35, 4)),
                f"{first[:27]}\n{first[27:]}",
                first.replace("O", "0").replace("I", "1").replace("B", "8"),
            )
        ],
        "refused": [first[:-1], f"{first}A", swapped(first), f"{first[:5]}{other(first[5])}{first[6:]}", ""],
    }


def swapped(reference: str) -> str:
    at = next(at for at in range(34) if reference[at] != reference[at + 1])
    return reference[:at] + reference[at + 1] + reference[at] + reference[at + 2 :]


def other(character: str) -> str:
    return "A" if character != "A" else "C"


def debt(number: str, debtor: str, creditor: str, cents: int, due: str) -> Debt:
    return Debt(number=number, debtor=debtor, creditor=creditor, open_cents=cents, due=date.fromisoformat(due))


CASES: Final = {
    "one owes more": [
        debt("A-1", "b", "a", 10_000, "2026-11-01"),
        debt("B-1", "a", "b", 3_000, "2026-11-05"),
        debt("B-2", "a", "b", 1_240, "2026-10-05"),
    ],
    "both owe the same": [debt("A-1", "b", "a", 700, "2026-11-01"), debt("B-1", "a", "b", 700, "2026-11-01")],
    "only one owes": [debt("A-1", "b", "a", 700, "2026-11-01")],
    "one day, so by number": [
        debt("A-2", "b", "a", 100, "2026-11-01"),
        debt("A-1", "b", "a", 100, "2026-11-01"),
        debt("B-1", "a", "b", 150, "2026-12-01"),
    ],
}


def setoffs() -> dict[str, Any]:
    return {
        "bilateral": [
            {
                "case": case,
                "debts": [
                    {
                        "number": one.number,
                        "debtor": one.debtor,
                        "creditor": one.creditor,
                        "open_cents": one.open_cents,
                        "due": one.due.isoformat(),
                    }
                    for one in debts
                ],
                "set_off": set_off(debts).to_dict(),
            }
            for case, debts in CASES.items()
        ],
    }


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    REFERENCES.write_text(as_text(references()))
    SETOFFS.write_text(as_text(setoffs()))
