"""What the other side sent, kept: records in the ledger, billing details in their book, contradictions as evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from p2pgrid.errors import InvalidRecord, LedgerError, LocalError
from p2pgrid.ledger.base import Ledger, SlotTaken
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Role, Signed
from p2pgrid.proto.settle_check import CONFLICT, Taken
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.settlement.hooks import Details

_AT_ONCE: Final = 32
"""Records whose signatures are checked in one turn of the loop."""
KeepEvidence = Callable[[Record, str], object]


def details_of(details: Details, channel: Channel) -> list[Signed[BillingDetails] | None]:
    """Those of both parties of a channel, as far as they are known. Raises LedgerError."""
    return [details.of(channel.provider, Role.PROVIDER), details.of(channel.client, Role.CLIENT)]


async def read_listed(listing: Listing) -> list[Signed[Any]]:
    """All records of a listing, by place, their signatures checked; the loop has its turns. Raises LedgerError."""
    held = []
    for n, one in enumerate(listing.read(listing.places), 1):
        held.append(one)
        if not n % _AT_ONCE:
            await asyncio.sleep(0)
    return held


async def keep_taken(ledger: Ledger, taken: Taken, details: Details, keep_evidence: KeepEvidence) -> None:
    """All of it durable when this returns. Raises LedgerError."""
    for one in list(taken.details):
        try:
            details.keep(one)
        except LedgerError:
            raise
        except (InvalidRecord, LocalError) as fault:  # LocalError: the library that checks them is missing here
            taken.details.remove(one)
            why = f"{fault.message} {fault.hint}".rstrip()
            taken.waiting.append((one, f"the {one.message.by}'s billing details are not kept: {why}"))
    for record, reason in taken.conflicting:
        keep_evidence(record, reason)
    if not taken.keep:
        return
    try:
        await ledger.append(*taken.keep)
        return
    except SlotTaken:
        pass  # the ledger knows more slots than the exchange compares
    kept = []
    for one in taken.keep:
        try:
            await ledger.append(one)
        except SlotTaken:
            keep_evidence(one.record, CONFLICT)
        else:
            kept.append(one)
    taken.keep[:] = kept
