"""What one provider did wrong: kept as evidence where it signed it, and the end of the dealings with it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from p2pgrid.client.exchanges import DisputedRecord
from p2pgrid.client.link_life import LinkLife
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.proto.actions import Breach
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import Record, Signed

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOCK_HINT: Final = "Set the clocks (NTP): this machine's, and the provider's."


class FaultGuard:
    """Sees to what goes wrong in the dealings with one provider."""

    def __init__(
        self,
        provider: PublicKey,
        life: LinkLife,
        evidence: EvidenceKeeper,
        *,
        most_disputed: int,
        on_quarantine: Callable[[str], None] | None,
        on_ledger_failed: Callable[[LedgerError], None],
    ) -> None:
        """`most_disputed`: receipts in dispute before the provider is dealt with no more.

        `on_quarantine` is called with the reason when the provider broke a rule on a link that it proved its own,
        `on_ledger_failed` when our own ledger did not take what an exchange or an order brought.
        """
        self._provider = provider
        self._life = life
        self._evidence = evidence
        self._most_disputed = most_disputed
        self._on_quarantine = on_quarantine
        self.ledger_failed: Final = on_ledger_failed

    async def watch(self, exchange: Awaitable[T]) -> T:
        """Await an exchange. What the provider signed wrongly is kept as evidence, and ends the dealings with it.

        Raises what the exchange does, but for an InvalidRecord: that comes as ProtocolViolation, or as Refused
        (`clock-skew`) where the clocks alone differ.
        """
        try:
            return await exchange
        except InvalidRecord as fault:
            if fault.code == "clock-skew":
                raise Refused(fault.code, fault.message, hint=_CLOCK_HINT) from fault
            if isinstance(fault, DisputedRecord):
                self.keep_evidence(fault.record, f"{fault.code}: {fault.message}")
            self.bar(f"{fault.code}: {fault.message}")
            raise ProtocolViolation(f"{self._provider} broke the rules: {fault.message}") from fault
        except ProtocolViolation as violation:
            self.bar(violation.message)
            raise
        except LedgerError as error:
            self.ledger_failed(error)
            raise

    def keep_evidence(self, record: Record, reason: str) -> None:
        """The provider signed what is not acceptable."""
        self._evidence.keep(self._provider, record, reason)

    def bar(self, reason: str) -> None:
        """Deal with the provider no more: it is proven to have broken a rule."""
        if self._life.bar(reason) and self._on_quarantine is not None:
            self._on_quarantine(reason)

    def breached(self, breach: Breach) -> None:
        """It broke a rule on an order."""
        if breach.code == "clock-skew":
            self._life.close(breach.message, Refused("clock-skew", breach.message, hint=_CLOCK_HINT))
        else:
            self.bar(f"{breach.code}: {breach.message}")

    def disputed(self, dispute: Signed[Dispute], books: ChannelBooks) -> None:
        """We have signed that we dispute one of its receipts; `books` are its channel's."""
        message = dispute.message
        log.warning("receipt %d of %s is disputed: %s", message.receipt_number, self._provider, message.statement)
        if books.disputed >= self._most_disputed:
            self.bar(
                f"{message.reason}: {books.disputed} of its receipts are disputed, the last because {message.statement}"
            )
