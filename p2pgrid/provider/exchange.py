"""One stream that a client opened: what all exchanges have in common, and the first message that tells them apart."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from p2pgrid.errors import InvalidRecord, LedgerError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.log.service import LogService
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.card_chain import CardChain
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.frame import FIRST_CREDITED_KIND, ResetCode
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.admission import RETRY_AFTER_MS, Admission
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.client_credit import ClientCredit
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.links import ClientLinks
from p2pgrid.provider.offer_news import OfferNews
from p2pgrid.provider.offers import Offers
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.statement_book import StatementBook
from p2pgrid.provider.tally import Tally
from p2pgrid.provider.watchers import Watcher

log = logging.getLogger(__name__)


class Evidence(Protocol):
    """Who keeps what peers signed and broke a rule with: `p2pgrid.desk.evidence.EvidenceKeeper`."""

    def keep(self, peer: PublicKey, record: Record, reason: str) -> bool:
        """Keep a record that `peer` signed, unless too many came from it of late. True if it was taken."""


class Disputes(Protocol):
    """Who deals with disputes: `p2pgrid.provider.dispute_book.DisputeBook`."""

    def taken(self, dispute: Signed[Dispute]) -> None:
        """A client's dispute is on record."""

    def watch(self, watcher: Watcher) -> None:
        """Tell it of news from now on."""

    def unwatch(self, watcher: Watcher) -> None:
        """Its stream is gone."""


class Claims(Protocol):
    """Where a node has several processes: which of them holds a channel (`p2pgrid.provider.claims`)."""

    def claim(self, record: Record, named: Channel, link: LinkConnection) -> asyncio.Future[OpenChannel]:
        """The channel that the client on `link` resumes, held by this process; whoever held it has given it up.

        `named` is what the record says, not verified. The future raises Refused, InvalidRecord, LedgerError.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """What the exchanges with clients share."""

    key: SecretKey
    ledger: Ledger
    offers: Offers
    channels: Channels
    admission: Admission
    links: ClientLinks
    tally: Tally
    evidence: Evidence
    disputes: Disputes
    limits: ProviderLimits
    now_ms: Callable[[], int]
    log: LogService | None = None
    """The node's log; None for a node without one."""
    cards: Callable[[], CardChain] = tuple
    """The operator's cards as they are now; none if it has no card."""
    news: OfferNews = field(default_factory=OfferNews)
    """Clients that watch the offer."""
    statements: StatementBook | None = None
    """None for a process that does not settle."""
    credit: ClientCredit | None = None
    """What clients are lent; None for a shop that goes by the offer, and by each channel alone."""
    claims: Claims | None = None
    """None for a node of one process, which holds every channel."""


class Exchange(StreamHandler):
    """A stream's handler with one timer. Subclasses say what a message means (`take`).

    What `take` raises decides how the exchange ends: Refused is said to the client; what no honest client sends
    (ProtocolViolation, InvalidRecord) resets the stream and counts against the link.
    """

    def __init__(self, shop: Shop, stream: Stream) -> None:
        self.shop = shop
        self.stream = stream
        self.is_over = False
        """True once nothing more is taken from the client, or nobody is there."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # -- for subclasses ---------------------------------------------------------------------------------------------

    @abstractmethod
    def take(self, kind: int, payload: bytes) -> None:
        """The client sent a message."""

    def lost(self, reason: str) -> None:
        """The stream is gone. Called once, and only if `finish` was not."""

    @property
    def is_taken(self) -> bool:
        """True once something may be on record, so that the client must not take a reset for a refusal."""
        return False

    def ledger_failed(self, error: LedgerError) -> None:
        """A record put into `outbox` could not be made durable. The stream is cut next."""

    @property
    def may_end(self) -> bool:
        """True if the client has said all that is expected of it."""
        return False

    def finish(self) -> None:
        """All is said: end the stream, and cut it if the client does not end it too."""
        if self.is_over:
            return
        self.is_over = True
        self.stream.end()
        self.cancel_timer()
        if self.stream.is_open:
            self.call_after(self.shop.limits.linger_s, self._linger_over)

    def refuse(self, refusal: Refused) -> None:
        """Say no, and why."""
        self.shop.tally.refusals[refusal.code] += 1
        log.info("%s was refused (%s): %s", self.stream.connection.name, refusal.code, refusal.message)
        retry_after_ms = RETRY_AFTER_MS.get(refusal.code, 0)
        frame = Refusal(code=refusal.code[:64], message=str(refusal)[:512], retry_after_ms=retry_after_ms)
        self.stream.send(Kind.REFUSAL, frame.to_bytes())
        self.finish()

    def cut(self, reason: str, code: ResetCode = ResetCode.INTERNAL) -> None:
        """Reset the stream."""
        if not self.is_over:
            self.stream.reset(code, reason)
            self._lose(reason)

    def outbox(self) -> Outbox:
        """A queue of effects behind durable writes; if one fails, the stream is reset."""
        return Outbox(self.shop.ledger, self._ledger_failed)

    def call_after(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Set the exchange's timer, in place of the one before."""
        self.cancel_timer()
        self._timer = self._loop.call_later(delay_s, callback)

    def cancel_timer(self) -> None:
        """Stop the exchange's timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def expect_next(self) -> None:
        """Give the client a while for its next message."""
        self.call_after(self.shop.limits.control_timeout_s, self._silent)

    # -- StreamHandler ----------------------------------------------------------------------------------------------

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if self.is_over:
            if kind >= FIRST_CREDITED_KIND:
                stream.consume(len(payload))
            return
        try:
            self.take(kind, payload)
        except Refused as refusal:
            self.refuse(refusal)
        except (ProtocolViolation, InvalidRecord) as fault:
            self.fault(fault)

    def fault(self, fault: P2pgridError) -> None:
        """The client did what no honest client does."""
        self.cut(fault.message, ResetCode.INTERNAL if self.is_taken else ResetCode.REFUSED)
        self.shop.links.fault(self.stream.connection, fault)

    def writable(self, stream: Stream) -> None:
        pass

    def ended(self, stream: Stream) -> None:
        if self.is_over:
            self.cancel_timer()
        elif not self.may_end:
            self.cut("the client ended the stream too early")

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self._lose(f"the client reset the stream ({message or code})")

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self._lose(error.message)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        self.cancel_timer()
        if not self.is_over:
            self.is_over = True
            self.lost(reason)

    def _ledger_failed(self, error: LedgerError) -> None:
        self.shop.tally.ledger_failures += 1
        log.error("the ledger failed: %s", error)
        self.ledger_failed(error)
        self.cut("ledger-unavailable: the provider could not make a record durable")

    def _silent(self) -> None:
        self._timer = None
        self.cut("no message came in time", ResetCode.CANCELLED)

    def _linger_over(self) -> None:
        self._timer = None
        self.stream.reset(ResetCode.CANCELLED, "the exchange is over")
