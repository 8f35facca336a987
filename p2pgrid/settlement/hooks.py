"""What the exchange of statements (docs/spec/settlement.md) asks of whoever keeps billing details and issues invoices.

Protocols and plain values alone: provider and client are given what fits them (`p2pgrid.settlement.wiring`), tests give
what they like. All of it runs in the node's event loop: what takes longer than a few milliseconds belongs into a thread
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.wire.settlement import MAX_DOCUMENT_BYTES

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "BuyerHooks",
    "Details",
    "InvoiceFile",
    "NamedFile",
    "NoDetails",
    "NothingIssued",
    "SellerHooks",
]


class Details(Protocol):
    """Who is written on invoices: `p2pgrid.settlement.details.DetailsBook`. Raises LedgerError."""

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        """Of the key (33 bytes) as provider or client, ours or theirs: those with the highest sequence, or None.

        A node whose key was replaced has its own under each of its keys that is a party of a channel.
        """

    def keep(self, signed: Signed[BillingDetails]) -> object:
        """Those of the other side, signature checked; durable when this returns. A lower sequence than that of what is
        there is passed over. Raises InvalidRecord for what is not fit to be kept."""


class NamedFile(Protocol):
    """A document as it goes to the client: `InvoiceFile`, or what has the same."""

    @property
    def name(self) -> str: ...

    @property
    def content(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFile:
    """A document as it goes to the client."""

    name: str
    """Of the file, without folders: `2026-0001.pdf`. The client makes of it what it likes."""
    content: bytes
    """SHA-256 of it is the Invoice's `document_sha256`; at most `MAX_DOCUMENT_BYTES`."""


class SellerHooks(Protocol):
    """Who issues invoices, on the provider's side."""

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        """Both have signed, and it is durable here: issue the invoice.

        Called at least once for every statement of both signatures that has no Invoice on record, again at the next
        start where the node ended before; never twice at once. When it returns, the client is told to come, and gets
        what is new in the ledger. P2pgridError is logged; it is called again at the next start.
        """

    def document(self, invoice: Signed[Invoice]) -> NamedFile | None:
        """The file of that invoice, which is the client's who asks; None if it is not here. Raises P2pgridError."""


class BuyerHooks(Protocol):
    """Who takes invoices in, on the client's side."""

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        """Both have signed, and it is durable here. It may be called again for the same. P2pgridError is logged."""

    def lacks(self, invoices: Sequence[Signed[Invoice]]) -> Sequence[Signed[Invoice]]:
        """Of these, which are on record, those whose file is not here yet. Raises P2pgridError."""

    async def on_document(self, invoice: Signed[Invoice], channel: Channel, file: NamedFile) -> None:
        """The invoice's file: its SHA-256 is right, and nothing else was looked at. `file.name` is the provider's word:
        letters, digits and . _ - alone, at most 128, not beginning with a dot. P2pgridError is logged."""


class NothingIssued:
    """Hooks of a node that neither issues nor takes in. Statements are signed all the same."""

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        """See `SellerHooks`."""

    def document(self, invoice: Signed[Invoice]) -> NamedFile | None:
        """None is here."""
        return None

    def lacks(self, invoices: Sequence[Signed[Invoice]]) -> Sequence[Signed[Invoice]]:
        """None is wanted."""
        return ()

    async def on_document(self, invoice: Signed[Invoice], channel: Channel, file: NamedFile) -> None:
        """See `BuyerHooks`."""


class NoDetails:
    """Where nobody has set any: nothing can be stated."""

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        """None is known."""
        return None

    def keep(self, signed: Signed[BillingDetails]) -> None:
        """It is forgotten."""
