"""What each client is lent (docs/settlement/credit.md): a limit that grows as it pays, and nothing while it is behind.

What the channels' books need of settlement they get here, in the process that writes the ledger: payments free credit
as soon as they are on record, whoever recorded them, and an invoice that is overdue stops the client's credit in all of
its channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, Protocol

from p2pgrid.config import TermsConfig
from p2pgrid.errors import LedgerError, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.books import Arrears
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.invoice_sums import PICO_PER_CENT
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, Message, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import channels_named
from p2pgrid.proto.settled import PayingHistory, history_of
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.provider.channels import Channels
from p2pgrid.settlement.open_items import open_items
from p2pgrid.settlement.set_offs import set_off_cents, set_off_shares
from p2pgrid.units import MICRO_PER_EUR, PICO_PER_EUR, format_cents, parse_price_eur

log = logging.getLogger(__name__)

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class CreditPolicy:
    """What the operator lends, by its configuration."""

    base_pico: int
    """To whoever has paid nothing yet."""
    most_pico: int
    growth_percent: int
    """Of what a client has paid in time, so much is added to its limit."""
    grace_ms: int
    """How long after its day an invoice is not overdue yet."""
    lends_when_overdue: bool = False

    def limit_pico(self, history: PayingHistory) -> int:
        """The limit of a client's next channel."""
        if history.overdue_cents > 0:
            return self.base_pico
        grown = self.base_pico + history.on_time_cents * PICO_PER_CENT * self.growth_percent // 100
        return max(min(grown, self.most_pico), self.base_pico)


def policy_of(config: TermsConfig) -> CreditPolicy:
    """The policy of the configuration. Raises UsageError."""
    base, most = (
        parse_price_eur(text) * (PICO_PER_EUR // MICRO_PER_EUR)
        for text in (config.credit_limit_eur, config.max_credit_limit_eur)
    )
    return CreditPolicy(
        base, most, config.credit_growth_percent, config.overdue_grace_days * _DAY_MS, config.lend_when_overdue
    )


class Standing(Protocol):
    """What others say of clients: `p2pgrid.settlement.credit.CreditBook`. Both raise LedgerError."""

    def check(self, client: bytes, now_ms: int) -> None:
        """Raises Refused (`client-in-default`)."""

    def shown_history(self, client: bytes, now_ms: int) -> PayingHistory:
        """What a client has paid to providers that the operator believes."""


class ClientCredit:
    """The clients of one provider's node."""

    def __init__(
        self,
        ledger: Ledger,
        channels: Channels,
        policy: CreditPolicy,
        now_ms: Callable[[], int],
        standing: Standing | None = None,
        zone: tzinfo = UTC,
    ) -> None:
        """`zone`: whose days stand in what clients are told."""
        self._zone: Final = zone
        self._cycles: Final[dict[bytes, Sequence[bytes]]] = {}
        """The channels of each cycle on record: what its timekeeper says names the cycle alone."""
        self._ledger: Final = ledger
        self._channels: Final = channels
        self._policy: Final = policy
        self._now_ms: Final = now_ms
        self._standing: Final = standing

    def start(self) -> None:
        """Look at every client, and from then on at whatever is settled. Raises LedgerError."""
        for channel in self._channels:
            for cycle in self._ledger.settlement(Cycle, channel.books.id):
                self._cycles[cycle.id] = channels_named(cycle.message)
        for client in {channel.books.client for channel in self._channels}:
            self.review(client)
        self._ledger.watch(self._note_durable)

    def limit_pico(self, client: PublicKey) -> int:
        """What the client's next channel may owe. Raises LedgerError."""
        return self._policy.limit_pico(self.history(client))

    def history(self, client: PublicKey) -> PayingHistory:
        """How the client has paid here, and what it has shown of others. Raises LedgerError."""
        now_ms = self._now_ms()
        found = PayingHistory()
        for channel in self._channels.channels_of(client):
            found = found.plus(own_history(self._ledger, channel, now_ms, self._policy.grace_ms))
        if self._standing is not None:
            found = found.plus(self._standing.shown_history(client.raw, now_ms))
        return found

    def check_opening(self, client: PublicKey) -> None:
        """Raises Refused (`client-in-default`) for a client that others have found not to pay, and LedgerError."""
        if self._standing is not None:
            self._standing.check(client.raw, self._now_ms())

    def opened(self, client: PublicKey) -> None:
        """A channel was opened: what the client owes on others holds for it. A ledger that fails is logged."""
        try:
            self.review(client)
        except LedgerError as error:
            log.error("the client's invoices could not be looked at: %s", error)

    def review(self, client: PublicKey) -> None:
        """See what the client owes, and tell its channels. Raises LedgerError."""
        mine = self._channels.of_client(client)
        arrears = None if self._policy.lends_when_overdue else self._arrears([one.books.id for one in mine])
        for channel in mine:
            if channel.books.arrears != arrears:
                self._channels.note_arrears(channel, arrears)

    def _arrears(self, channels: Sequence[bytes]) -> Arrears | None:
        """The invoice of these channels that is to be paid first, overdue or not yet."""
        items = open_items(self._ledger, channels, set_off=set_off_shares(self._ledger, channels))
        owed = [one for one in items if one.left_cents > 0]
        if not owed:
            return None
        first = min(owed, key=lambda one: (one.due_ms, one.number))
        due = datetime.fromtimestamp(first.due_ms / 1000, self._zone).date()
        amount = f"{format_cents(first.left_cents)} {first.currency}"
        sentence = f"Of invoice {first.number} {amount} are open, and were due on {due}."
        return Arrears(first.due_ms + self._policy.grace_ms, sentence)

    def _channels_settled(self, signed: Signed[Message]) -> Sequence[bytes]:
        """The channels in which a record settles something. What a cycle's timekeeper says names the cycle alone."""
        message = signed.message
        if isinstance(message, Statement | Invoice | Payment):
            return (message.channel,)
        if isinstance(message, Cycle):
            self._cycles[signed.id] = channels_named(message)
        if isinstance(message, Leg | CycleVerdict):
            return self._cycles.get(message.cycle, ())
        return channels_named(message) if isinstance(message, SetOff) else ()

    def _note_durable(self, signed: Sequence[Signed[Message]]) -> None:
        for channel_id in {channel for one in signed for channel in self._channels_settled(one)}:
            channel = self._channels.get(channel_id)
            if channel is None:
                continue
            try:
                self._channels.note_settled(channel)
                self.review(channel.books.client)
            except LedgerError as error:
                log.error("what was settled on channel %s could not be counted: %s", channel_id.hex()[:16], error)


def own_history(ledger: Ledger, channel: Signed[Channel], now_ms: int, grace_ms: int) -> PayingHistory:
    """How the client of a channel has paid, by this ledger. Raises LedgerError."""
    channel_id = channel.message.channel
    statements = [one for one in ledger.settlement(Statement, channel_id) if set(PARTIES) <= set(one.signers)]
    payments = ledger.settlement(Payment, channel_id)
    return history_of(
        (one.message for one in statements),
        (one.message for one in payments),
        now_ms=now_ms,
        grace_ms=grace_ms,
        set_off_cents=set_off_cents(ledger, channel_id),
    )


def check_standing(credit: ClientCredit | None, client: PublicKey) -> int | None:
    """The limit of the client's next channel, None for the offer's.

    Raises Refused (`client-in-default`; `ledger-unavailable` where nothing can be looked up).
    """
    if credit is None:
        return None
    try:
        credit.check_opening(client)
        return credit.limit_pico(client)
    except LedgerError as error:
        log.error("the client's history could not be looked at: %s", error)
        raise Refused("ledger-unavailable", "the provider's ledger cannot be read now.") from error
