"""Buying an answer: choose a provider, order, and turn to the next while nothing was handed to the program yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from p2pgrid.client.answer import Answer, is_failure_of
from p2pgrid.client.background import log_end
from p2pgrid.client.batch import SharedRequest
from p2pgrid.client.cards import CardBook
from p2pgrid.client.choice import Candidate, Choice
from p2pgrid.client.housekeeping import Housekeeper
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.market import Market
from p2pgrid.client.no_choice import refusal_of
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.order import AnswerLost, OrderStream
from p2pgrid.client.purchase import Purchase, purchase_of
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.roads import Dialler, ProviderRoads
from p2pgrid.client.sessions import Sessions
from p2pgrid.client.wishes import Wishes
from p2pgrid.clock import unix_ms
from p2pgrid.errors import Refused, RemoteError, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.keys import SecretKey
from p2pgrid.settlement.wiring import Buying

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 4
"""Providers that one request may be ordered from, one after the other."""
_FINAL_CODES: Final = frozenset({"bad-request", "unsupported", "not-metered", "commitment", "engine-refused"})
"""What every provider would answer alike."""
_STALE_CODES: Final = frozenset({"unknown-offer", "offer-expired", "unknown-model", "unknown-endpoint", "withdrawn"})


class Purchaser:
    """Buys answers from whoever is in the book of offers. Use it with `async with`."""

    def __init__(
        self,
        key: SecretKey,
        ledger: Ledger,
        book: OfferBook,
        *,
        wishes: Wishes | None = None,
        limits: SessionLimits | None = None,
        dial: Dialler | None = None,
        now_ms: Callable[[], int] | None = None,
        cards: CardBook | None = None,
        rng: random.Random | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        quarantine: Quarantine | None = None,
        keeps_links: bool = True,
        has_channel: Callable[[bytes], bool] | None = None,
        buying: Buying | None = None,
    ) -> None:
        """`wishes` are the owner's: a request can narrow them and never widen them.

        `quarantine` is what earlier runs remember; left out, it is forgotten with this one. Without `keeps_links`
        nobody is dialled before it is asked for. `has_channel`: which of the channels on record are this process's,
        where others buy too; left out, all are. `buying` is what statements are settled with; left out, none are.
        """
        self.book: Final = book
        self.ledger: Final = ledger
        self.quarantine: Final = Quarantine() if quarantine is None else quarantine
        self._wishes = wishes or Wishes()
        self._limits = limits or SessionLimits()
        now_ms = now_ms or unix_ms
        self.sessions: Final = Sessions(
            key,
            ledger,
            book,
            limits=self._limits,
            dial=dial or ProviderRoads().dial,
            now_ms=now_ms,
            rng=rng or random.Random(),  # noqa: S311 - spreads dials; nothing secret comes of it
            random_bytes=random_bytes,
            quarantine=self.quarantine,
            cards=cards,
            has_channel=has_channel,
            buying=buying,
        )
        """The dealings with each provider, by peer id."""
        self._standings = self.sessions.standings
        self.market: Final = Market(
            book, cards, self._standings, wishes=self._wishes, road_to=self.sessions.road_to, now_ms=now_ms
        )
        """What is on sale."""
        self._housekeeper = Housekeeper(
            self.sessions,
            book,
            ledger,
            key.public_key,
            self.quarantine,
            is_wanted=self.market.is_wanted,
            now_ms=now_ms,
        )
        self._keeps_links = keeps_links
        self._task: asyncio.Task[None] | None = None
        if cards is not None:
            cards.on_change = book.tell
            book.on_offers = cards.refresh

    async def __aenter__(self) -> Self:
        if not self._keeps_links:
            return self
        self._task = asyncio.create_task(self._housekeeper.run(), name="purchaser")
        self._task.add_done_callback(log_end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.sessions.aclose()

    # -- buying --------------------------------------------------------------------------------------------------

    async def buy(
        self, endpoint: str, body: Mapping[str, Any], wishes: Wishes | None = None, *, whole: bool = False
    ) -> Answer:
        """An answer that has begun; with `whole`, one that is complete and only has to be read.

        Raises Refused (no provider, over budget, the request's own faults), another RemoteError where all providers
        failed, and LedgerError where nothing can be recorded: then nothing was ordered.
        """
        return await self.buy_prepared(purchase_of(endpoint, body), wishes, whole=whole)

    async def buy_prepared(self, purchase: Purchase, wishes: Wishes | None = None, *, whole: bool = False) -> Answer:
        """The same, for what `purchase_of` made of a program's request."""
        allowed = (wishes or Wishes()).within(self._wishes)
        if allowed.max_cost_pico is not None:
            purchase = replace(purchase, max_amount_pico=allowed.max_cost_pico)
        if whole:
            purchase = replace(purchase, whole=True)
        failures: list[RemoteError] = []
        tried: list[bytes] = []
        while len(tried) < MAX_ATTEMPTS:
            following = await self._next(purchase, allowed, tried, failures)
            if following is None:
                break
            candidate, is_last = following
            tried.append(candidate.offer.id)
            try:
                return await self._attempt(candidate, purchase, whole=whole, is_last=is_last)
            except RemoteError as error:
                if isinstance(error, Refused) and error.code in _FINAL_CODES:
                    raise
                why = error.code if isinstance(error, Refused) else error.message
                log.info("%s did not serve: %s", candidate.peer_id, why)
                failures.append(error)
                await self._learn(candidate.peer_id, error)
        raise _most_telling(failures)

    # -- one request ---------------------------------------------------------------------------------------------

    async def _next(
        self, purchase: Purchase, wishes: Wishes, tried: Sequence[bytes], failures: Sequence[RemoteError]
    ) -> tuple[Candidate, bool] | None:
        """The best candidate whose offer was not tried yet, and whether it is the last one.

        Where nobody is left who may answer, sellers are looked for: somebody may be new, or have moved. Then one whose
        link was lost is asked once more: it may be there again in an instant. So is one whose order took no more
        requests.
        Raises Refused where there is no candidate from the start.
        """
        model = purchase.fields.model

        def choose() -> tuple[Choice, list[Candidate]]:
            choice = self.market.choose(purchase, wishes)
            return choice, [one for one in choice.candidates if one.offer.id not in tried]

        def is_enough() -> bool:
            return any(not one.presence.failures for one in choose()[1])

        choice, left = choose()
        if all(one.presence.failures for one in left) and await self.market.search_model(
            model, is_enough, provider=wishes.provider
        ):
            choice, left = choose()
        if not choice.candidates and not tried:
            raise refusal_of(replace(choice, models=self.book.models()), model, purchase.endpoint, wishes)
        if not left and _is_passing(failures[-1]) and tried.count(tried[-1]) == 1:
            left = [one for one in choice.candidates if one.offer.id == tried[-1]]
        return (left[0], len(left) == 1) if left else None

    async def _attempt(self, candidate: Candidate, purchase: Purchase, *, whole: bool, is_last: bool) -> Answer:
        session = self.sessions.with_provider(candidate.peer_id)
        order = await session.order(candidate.offer, purchase, self._limits.link_timeout_s, patient=is_last)
        order.ended_future.add_done_callback(lambda _: self._order_ended(candidate.peer_id, order))
        timeout_s = self._limits.first_token_timeout_s
        answer = Answer(order, candidate, stall_timeout_s=timeout_s)
        try:
            # The provider gives up at the deadline, and says so; a little later this side does.
            await answer.begin(timeout_s + 5.0, whole=whole)
        except BaseException:
            answer.cancel()
            raise
        return answer

    async def _learn(self, peer_id: str, error: RemoteError) -> None:
        """Remember a failure; renew an offer that the provider says is not the one in force."""
        if isinstance(error, Refused) and error.code in _STALE_CODES:
            with contextlib.suppress(RemoteError):
                await self.book.renew(peer_id)
        if is_failure_of(error):
            is_away = isinstance(error, Unreachable)
            self._standings.failed(peer_id, is_away=is_away)
            if is_away:
                self.book.note_dead(peer_id)

    def _order_ended(self, peer_id: str, order: OrderStream | SharedRequest) -> None:
        if order.first_token_s is not None and order.is_whole:
            self._standings.answered(peer_id, order.first_token_s * 1000)


def _is_passing(failure: RemoteError) -> bool:
    """True for what the next attempt with the same provider need not meet."""
    return isinstance(failure, AnswerLost) or (isinstance(failure, Refused) and failure.code == "batch-closed")


def _most_telling(failures: list[RemoteError]) -> RemoteError:
    """Of several failures the one to show: a refusal says more than an absence, and the last more than the first."""
    refusals = [failure for failure in failures if isinstance(failure, Refused)]
    return (refusals or failures)[-1]
