"""The provider's statements: which are due, what they say, who is told (docs/spec/settlement.md).

Only a client can open a link, so what the provider has to say waits until the client comes; those that watch are told
at once. A number that was signed once is never drafted otherwise: what is on record with the provider's signature alone
goes out again as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import date
from typing import Any, Final

from p2pgrid.errors import LedgerError, P2pgridError, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.wire.settlement import StatementDiffers, StatementRequest
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.watchers import Watcher, Watchers
from p2pgrid.settlement.hooks import Details, SellerHooks
from p2pgrid.settlement.statements.days import LocalDays, period_days
from p2pgrid.settlement.statements.drafting import NOTHING_HAPPENED, Draft, Terms, draft, is_due
from p2pgrid.settlement.statements.keeping import details_of
from p2pgrid.settlement.statements.position import read_books
from p2pgrid.settlement.statements.refused import NotStated
from p2pgrid.settlement.wiring import Selling

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 3600.0
MOST_ASKED_FOR: Final = 4
"""Statements of a channel that a client may ask for in a day, beside those that are due: each costs an invoice."""
MOST_DIFFERING: Final = 1000
"""Channels whose differences are remembered: the last ones."""
_DAY_MS: Final = 86_400_000


class StatementBook:
    """One for a node."""

    def __init__(
        self,
        ledger: Ledger,
        channels: Channels,
        now_ms: Callable[[], int],
        *,
        selling: Selling | None = None,
        terms: Terms | None = None,
    ) -> None:
        selling = selling or Selling()
        self.ledger: Final = ledger
        self._channels: Final = channels
        self._now_ms: Final = now_ms
        self.details: Final[Details] = selling.details
        self.hooks: Final[SellerHooks] = selling.hooks
        self.terms: Final = terms or Terms()
        self._watchers: Final = Watchers[Watcher]()
        self._wanted: dict[bytes, int] = {}
        """Channels that the operator wants a statement of, and its last day (0: up to now)."""
        self.differences: dict[bytes, StatementDiffers] = {}
        """What a client last had against a draft, by channel, until one is signed."""
        self._signing: set[bytes] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._issuing: set[bytes] = set()
        self._restored: dict[bytes, dict[bytes, Signed[Statement]]] = {}
        """Statements that clients brought back, by channel, whose invoices may be on a later page."""

    # -- who is told ------------------------------------------------------------------------------------------------

    def watch(self, watcher: Watcher) -> None:
        """Tell it of news from now on. A link has one watcher."""
        self._watchers.watch(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Its stream is gone."""
        self._watchers.unwatch(watcher)

    def news(self, channel_id: bytes) -> None:
        """There is something that the channel's client has not: a statement that is due, an invoice, a payment."""
        channel = self._channels.get(channel_id)
        if channel is None:
            return
        for watcher in self._watchers.of(channel.books.client):
            watcher.tell(channel_id)

    def want(self, channel_id: bytes, until_day: int) -> None:
        """The operator wants a statement: the client is told to come, and gets its draft whether it is due or not."""
        self._wanted[channel_id] = until_day
        self.news(channel_id)

    async def run(self) -> None:
        """Tell clients that are there when a statement is due, now and every hour, until cancelled."""
        while True:
            try:
                for channel in self._channels_of_watchers():
                    if await self._is_due(channel):
                        self.news(channel.message.channel)
            except LedgerError as error:
                log.error("which statements are due cannot be read: %s", error)
            await asyncio.sleep(CHECK_INTERVAL_S)

    def _channels_of_watchers(self) -> list[Signed[Channel]]:
        clients = self._watchers.clients()
        return [one.books.signed for one in self._channels if one.books.client.raw in clients]

    async def _is_due(self, channel: Signed[Channel]) -> bool:
        return await is_due(self.ledger, channel, now_ms=self._now_ms(), terms=self.terms)

    # -- what is stated ---------------------------------------------------------------------------------------------

    def held(self, channel: OpenChannel) -> Listing:
        """All records of settlement of the channel. Raises LedgerError."""
        details = details_of(self.details, channel.books.terms)
        return Listing(self.ledger, channel.books.id, details, now_ms=self._now_ms())

    def pending(self, channel: OpenChannel) -> Signed[Statement] | None:
        """The statement that this side alone has signed. Raises LedgerError."""
        return read_books(self.ledger, channel.books.signed).pending

    async def draft(self, channel: OpenChannel, request: StatementRequest) -> Draft:
        """What is stated next. Raises NotStated (`asked-too-often` among others), LedgerError."""
        channel_id = channel.books.id
        is_own_wish = channel_id in self._wanted
        if is_own_wish:
            day = self._wanted[channel_id]
            request = StatementRequest(channel=channel_id, is_wanted=True, until_ms=0, until_day=day)
        elif request.is_wanted:
            self._check_rate(channel)
        try:
            return await self._draft(channel.books.signed, request, is_wanted=request.is_wanted)
        except NotStated as error:
            if error.code in ("stated-already", NOTHING_HAPPENED):
                self._wanted.pop(channel_id, None)
            raise

    async def look_ahead(self, channel: Signed[Channel], until_day: int) -> Draft:
        """The next statement as this side has it, without VAT where that is not known.

        `until_day`: the last of its period, as `date.toordinal` has it; 0: up to now. Raises NotStated, LedgerError.
        """
        request = StatementRequest(channel=channel.message.channel, is_wanted=True, until_ms=0, until_day=until_day)
        return await self._draft(channel, request, is_wanted=True, looks_ahead=True)

    def sells_in(self, channel: Signed[Channel]) -> bool:
        """True if the channel is one of this node's, under any of its keys."""
        return self._channels.get(channel.message.channel) is not None

    async def _draft(
        self, channel: Signed[Channel], request: StatementRequest, *, is_wanted: bool, looks_ahead: bool = False
    ) -> Draft:
        return await draft(
            self.ledger,
            channel,
            self.details,
            now_ms=self._now_ms(),
            is_wanted=is_wanted,
            until_ms=request.until_ms,
            until_day=date.fromordinal(request.until_day) if request.until_day else None,
            terms=self.terms,
            looks_ahead=looks_ahead,
        )

    def days_of(self, statement: Statement) -> tuple[date, date]:
        """The first and the last day of a period, by this provider's clock."""
        return period_days(statement.from_ms, statement.until_ms, self.terms.days or LocalDays.at_offset(0))

    def sign(self, channel: OpenChannel, draft: Draft) -> Signed[Statement]:
        """Sign what the client has agreed to. It is in nobody's ledger yet: `signed` is called once it is.

        Raises Refused (`busy`) where the number was signed meanwhile, or where this side would state another sum by
        now: money was booked, or a set-off signed, while the client looked at the draft. LedgerError.
        """
        channel_id, number = channel.books.id, draft.statement.statement_number
        taken = {one.message.statement_number for one in self.ledger.settlement(Statement, channel_id)}
        if channel_id in self._signing or number in taken:
            raise Refused("busy", f"statement {number} was signed in another exchange.", hint="Settle again.")
        books, stated = read_books(self.ledger, channel.books.signed), draft.statement
        sums = books.payments_cents(stated.stated_ms), books.set_off_cents(stated.stated_ms)
        if sums != (stated.payments_cents, stated.set_off_cents):
            raise Refused("busy", "money was booked or set off since it was drafted.", hint="Settle again.")
        self._signing.add(channel_id)
        return sign_message(draft.statement, Role.PROVIDER, self._channels.key_of(channel))

    def signed(self, channel: OpenChannel) -> None:
        """The write of what was signed is over, well or not."""
        self._signing.discard(channel.books.id)

    def stated(self, channel: OpenChannel, statement: Signed[Statement]) -> None:
        """Both have signed, and it is durable."""
        channel_id = channel.books.id
        self.differences.pop(channel_id, None)
        day = self._wanted.get(channel_id)
        if day is not None and self.days_of(statement.message)[1].toordinal() >= day:
            del self._wanted[channel_id]
        name = f"statement {statement.message.statement_number} of channel {channel_id.hex()[:16]}"
        log.info("%s is signed by both: %d cents with VAT", name, statement.message.gross_cents)
        if statement.id not in self._issuing:
            self._issuing.add(statement.id)
            self._spawn(self._issue(statement, channel.books.terms, name))

    def restored(self, channel: OpenChannel, kept: Sequence[Signed[Any]], *, is_last: bool) -> None:
        """The client brought records that this side lacked; `is_last`: there are no more. LedgerError.

        A statement has its invoice issued only when it is sure that none comes back.
        """
        waiting = self._restored.setdefault(channel.books.id, {})
        for one in kept:
            if isinstance(one.message, Statement) and Role.CLIENT in one.signers:
                waiting[one.id] = one
        if not is_last:
            return
        del self._restored[channel.books.id]
        billed = {one.message.statement for one in self.ledger.settlement(Invoice, channel.books.id)} if waiting else ()
        for statement in waiting.values():
            if statement.id not in billed:
                self.stated(channel, statement)

    def differs(self, channel: OpenChannel, differences: StatementDiffers) -> None:
        """The client does not agree to a draft."""
        self.differences.pop(channel.books.id, None)
        self.differences[channel.books.id] = differences
        if len(self.differences) > MOST_DIFFERING:
            del self.differences[next(iter(self.differences))]
        fields = ", ".join(dict.fromkeys(one.field for one in differences.differences))
        name = channel.books.id.hex()[:16]
        log.warning("a client states another sum for channel %s (%s): p2pgrid settle PEER shows it", name, fields)

    def review(self) -> None:
        """At the start: what both had signed when an earlier run ended, and no invoice was issued of. LedgerError."""
        for channel in self._channels:
            billed = {one.message.statement for one in self.ledger.settlement(Invoice, channel.books.id)}
            for statement in read_books(self.ledger, channel.books.signed).statements:
                if statement.id not in billed:
                    self.stated(channel, statement)

    async def aclose(self) -> None:
        """Let what is being issued come to its end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _issue(self, statement: Signed[Statement], terms: Channel, name: str) -> None:
        try:
            await self.hooks.on_stated(statement, terms)
        except P2pgridError as error:
            log.error("no invoice could be issued for %s: %s", name, error)
            return
        finally:
            self._issuing.discard(statement.id)
        self.news(terms.channel)

    def _check_rate(self, channel: OpenChannel) -> None:
        since_ms = self._now_ms() - _DAY_MS
        made = [one for one in self.ledger.settlement(Statement, channel.books.id) if one.message.stated_ms > since_ms]
        if len(made) >= MOST_ASKED_FOR:
            raise NotStated("asked-too-often", f"{len(made)} statements were made in a day.", hint="Ask tomorrow.")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="issue an invoice")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an invoice could not be issued", exc_info=error)
