"""What a person may ask of a node, and what comes of it. Over the command socket these travel as JSON."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from p2pgrid.config import NetworkEntry
from p2pgrid.proto.statement import Payment


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is asked."""


class AllowPeer(Ask, frozen=True, kw_only=True, tag="allow-peer"):
    """Lift a provider's quarantine (client)."""

    peer: str


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """What `AllowPeer` changed."""

    peer: str
    was_held: bool
    reason: str = ""
    since_ms: int = 0


class Reprice(Ask, frozen=True, kw_only=True, tag="reprice"):
    """Offer at the prices that config.toml has now (provider)."""


class Repriced(msgspec.Struct, frozen=True, kw_only=True):
    """What `Reprice` changed."""

    models: tuple[str, ...]
    """Whose prices, or schedules of prices, are others than before."""
    sequence: int
    """Of the offer in force; 0 where nothing is on sale."""


class Reconcile(Ask, frozen=True, kw_only=True, tag="reconcile"):
    """Bring both ledgers of the channels with a peer together."""

    peer: str


class MakeDispute(Ask, frozen=True, kw_only=True, tag="dispute"):
    """Sign that a receipt is not accepted."""

    receipt: str
    """As a person names it: see `p2pgrid.desk.find`."""
    reason: str
    statement: str = ""
    owed_pico: int | None = None
    """What is owed for the order, by this side; left out, nothing."""


class GiveAnswer(Ask, frozen=True, kw_only=True, tag="answer"):
    """Answer the other side's dispute."""

    dispute: str
    """Its id or the beginning of it, or its receipt as a person names it."""
    accept: bool
    statement: str = ""
    owed_pico: int | None = None
    """Where it is rejected: what is owed, by this side; left out, what the receipt says."""


class Erase(Ask, frozen=True, kw_only=True, tag="erase"):
    """Destroy what could ever show a request and its answer: commitment keys, and the salts of their receipts' leaves.

    Of one receipt, or of all orders of before a time.
    """

    receipt: str = ""
    before_ms: int = 0


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What `Erase` destroyed."""

    request_keys: int
    log_salts: int


class BookPayments(Ask, frozen=True, kw_only=True, tag="book-payments"):
    """Sign Payments that came of a bank's file, and put them into the ledger: each group all or none."""

    groups: Annotated[tuple[tuple[Payment, ...], ...], msgspec.Meta(max_length=1000)]


class PaymentsBooked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each group of `BookPayments`."""

    refused: tuple[str, ...]
    """Why not, in a sentence; empty for one that is in the ledger now, or was."""


class EraseExpired(Ask, frozen=True, kw_only=True, tag="erase-expired"):
    """Destroy the commitment keys of orders whose receipts nobody can dispute any more."""

    salts: bool = False
    """And the salts of these receipts' leaves in the log: then no inclusion of theirs can be proven any more."""


class Examine(Ask, frozen=True, kw_only=True, tag="examine"):
    """How is the node? For `p2pgrid doctor`."""

    ask_peers: bool = True
    """Have other peers of the network dial the node back first, which takes some seconds."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How the node is."""

    health: dict[str, Any]
    """What its page /health shows."""
    addresses: tuple[str, ...]
    """Where its offer says that clients reach it."""
    listening: tuple[str, ...]
    """The ports that it has open, as multiaddrs; /tls behind those of the direct road."""
    networks: tuple[NetworkEntry, ...]
    """Those that it is in, with the peers that introduce it there."""


class KeepSetOffs(Ask, frozen=True, kw_only=True, tag="keep-set-offs"):
    """Keep set-offs, or a cycle of debts with its legs and its timekeeper's word."""

    lines: Annotated[tuple[Annotated[str, Meta(max_length=262_144)], ...], Meta(max_length=64)]
    """Records in text form."""


class KeptSetOffs(msgspec.Struct, frozen=True, kw_only=True):
    """What `KeepSetOffs` has on record now."""

    ids: tuple[str, ...]


DeskAsk = MakeDispute | GiveAnswer | Erase | EraseExpired | BookPayments | KeepSetOffs
"""What a node's owner says about receipts, payments and debts, on either side."""
