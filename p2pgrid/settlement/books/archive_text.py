"""What a stranger reads first in an archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def readme(index: Mapping[str, Any]) -> str:
    """README.md of an archive."""
    year, keep = index["year"], index["keep_until"]
    missing = index["missing"]
    kept = (
        f"By the law of {index['country']} it has to be kept until {keep['books']} (invoices {keep['invoices']}, "
        f"vouchers {keep['vouchers']})."
        if keep
        else "How long it has to be kept, its owner's accountant knows: the country was not named."
    )
    lines = [
        f"# Accounts of {year}: inference bought and sold over p2pgrid",
        "",
        "Everything here follows from records that both parties signed. No key is in it, and nothing of what was asked",
        "or answered; names, amounts and bank entries are for who may see them. " + kept,
        "",
        "## What is in it",
        "| file | what it is |",
        "|---|---|",
        "| `index.json` | every channel, statement, invoice and payment, with the files that belong to it |",
        "| `bundles/` | the signed records, one JSON object a line: a file for each channel, whole, also what lies "
        "before and after the year, for a chain with parts taken out proves nothing |",
        "| `statements/` | the statements of the year, readable |",
        "| `invoices/` | the invoices of the year as they were issued or received |",
        "| `exports/bookings.csv` | double entry, a row for every line of a booking |",
        "| `exports/trial-balance.csv` | every account: opening, debit, credit, closing |",
        "| `bank/` | what bank entries were taken for, if there were any |",
        "| `mapping.json` | account numbers, names of counterparties |",
        "| `SHA256SUMS` | the hash of every other file |",
        "",
        "## How to verify it, offline",
        "1. No file changed by accident: `sha256sum --check SHA256SUMS` in this folder (Mac: `shasum -a 256 -c`).",
        "2. The records: `p2pgrid audit bundles/*`. It checks every signature and every chain of receipts, that",
        "   statements are what their receipts come to, and that invoices and payments fit them. A finding names who",
        "   is at fault.",
        "3. All at once, and that files and records belong together: `p2pgrid books verify .`",
        "",
        "p2pgrid needs no network and no key for that. The other party of each channel has the same records: ask it",
        "for its own, and `p2pgrid audit` holds both against one another.",
        "",
        "## How to follow an amount",
        "A row of `exports/bookings.csv` names a record by its id (last column). `index.json` has the invoice or",
        "payment of that id, its statement, and the receipts (from number to number) that the statement counts. They",
        "are in the channel's bundle.",
        "",
    ]
    if missing:
        lines += ["## What is missing", *(f"- {one}" for one in missing), ""]
    return "\n".join(lines)
