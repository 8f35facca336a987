"""Buying an answer: choose a provider, order, and turn to the next while nothing was handed to the program yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from p2pgrid.client.answer import Answer, is_failure_of
from p2pgrid.client.background import log_end
from p2pgrid.client.batch import SharedRequest
from p2pgrid.client.cards import CardBook
from p2pgrid.client.choice import (
    CURRENCY,
    UNKNOWN,
    Candidate,
    Choice,
    Preselection,
    Standing,
    Wishes,
    candidate_of,
    preselect,
    rank,
    unwanted_operator,
)
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.operator import Operator
from p2pgrid.client.order import AnswerLost, OrderStream
from p2pgrid.client.prompt_sizes import shape_of
from p2pgrid.client.quarantine import Held, Quarantine
from p2pgrid.client.roads import Dialler, ProviderRoads
from p2pgrid.client.session import ProviderSession, Purchase, SessionLimits
from p2pgrid.client.settling import EarlierExchanges
from p2pgrid.client.shortlist import Shortlists
from p2pgrid.client.succession import Succession
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.desk.standing import last_offer
from p2pgrid.errors import LedgerError, Refused, RemoteError, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.dispute_exchange import Said
from p2pgrid.proto.dispute_rules import is_unanswered
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id, parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.reconcile import Reconciliation
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.request import decode_object, metered_body, parse_request
from p2pgrid.proto.wire import MAX_BODY_BYTES

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 4
"""Providers that one request may be ordered from, one after the other."""
WARM_LINKS: Final = 8
"""Links that are dialled before they are needed: a dial costs milliseconds that a first token should not wait for."""
SEARCH_TIMEOUT_S: Final = 4.0
SEARCH_AGAIN_MS: Final = 5_000
DELIVER_TIMEOUT_S: Final = 10.0
RECONCILE_TIMEOUT_S: Final = 60.0
_HOUSEKEEPING_S: Final = 30.0
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
    ) -> None:
        """`wishes` are the owner's: a request can narrow them and never widen them.

        `quarantine` is what earlier runs remember; left out, it is forgotten with this one. Without `keeps_links`
        nobody is dialled before it is asked for. `has_channel`: which of the channels on record are this process's,
        where others buy too; left out, all are.
        """
        self._has_channel = has_channel
        self._keeps_links = keeps_links
        self.book: Final = book
        self.ledger: Final = ledger
        self._key = key
        self._wishes = wishes or Wishes()
        self._limits = limits or SessionLimits()
        self._dial = dial or ProviderRoads().dial
        self._now_ms = now_ms or unix_ms
        self._rng = rng or random.Random()  # noqa: S311 - spreads dials; nothing secret comes of it
        self._random_bytes = random_bytes
        self.quarantine: Final = Quarantine() if quarantine is None else quarantine
        self._evidence = EvidenceKeeper(ledger, self._now_ms)
        self._sessions: dict[str, ProviderSession] = {}
        self._standings: dict[str, Standing] = {}
        self._shortlists = Shortlists(self._preselect)
        self._cards = cards
        self.earlier: Final = EarlierExchanges(self._now_ms)
        self._away: set[str] = set()
        """Providers whose last failure was not to be there."""
        self._searched: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        book.ask_over_link = self._offer_over_link
        book.on_conflict = self._two_offers
        if cards is not None:
            cards.ask_over_link = self._cards_over_link
            cards.on_change = book.tell
            book.on_offers = cards.refresh

    async def __aenter__(self) -> Self:
        if not self._keeps_links:
            return self
        self._task = asyncio.create_task(self._keep_house(), name="purchaser")
        self._task.add_done_callback(log_end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(session.aclose() for session in self._sessions.values()))

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

    def models(self) -> list[Candidate]:
        """Every model of every offer that the owner's wishes allow, as candidates of no request."""
        now_ms = self._now_ms()
        return [
            candidate_of(offer, entry, now_ms, self.operator_of(offer), self._road_to(offer))
            for offer in self.book.offers()
            if offer.message.currency == CURRENCY and self._is_wanted(offer)
            for entry in offer.message.models
        ]

    def operator_of(self, offer: Signed[Offer]) -> Operator | None:
        """Who stands behind an offer, by its card, as far as that is known."""
        return self._cards.operator_of(offer) if self._cards is not None else None

    def _road_to(self, offer: Signed[Offer]) -> str | None:
        """The road of the link that is up to the offer's provider; None without one."""
        session = self._sessions.get(parse_public_key(offer.message.provider).peer_id)
        return session.link.road if session is not None and session.link is not None else None

    def _is_wanted(self, offer: Signed[Offer]) -> bool:
        return unwanted_operator(offer, self.operator_of(offer), self._wishes) is None

    @property
    def sessions(self) -> Mapping[str, ProviderSession]:
        """The dealings with each provider, by peer id."""
        return self._sessions

    @property
    def n_ready(self) -> int:
        """Providers with a link that is ready for orders."""
        return sum(session.is_ready for session in self._sessions.values())

    async def allow(self, peer_id: str) -> Held | None:
        """Lift a provider's quarantine; what it was held for, or None if it was not. Raises LocalError."""
        held = self.quarantine.lift(peer_id)
        self.book.unbar(peer_id)
        self._standings.pop(peer_id, None)
        session = self._sessions.get(peer_id)
        if session is not None and session.quarantine:
            del self._sessions[peer_id]
            await session.aclose()
        return held

    async def reconcile(
        self, provider: PublicKey, timeout_s: float = RECONCILE_TIMEOUT_S
    ) -> tuple[list[Reconciliation], Held | None]:
        """Bring both sides' books together now: what changed, and what the provider was held for, if that is lifted.

        Raises RemoteError where the provider is away or does not agree, and LedgerError.
        """
        peer_id = provider.peer_id
        if not self._dial_addresses(provider):
            with contextlib.suppress(RemoteError, TimeoutError):
                async with asyncio.timeout(SEARCH_TIMEOUT_S):
                    await self.book.search()
        session = self._sessions.get(peer_id)
        was_known = session is not None
        if session is not None and (session.quarantine or session.is_down):
            # Dialled afresh: one that is down may wait for a while before it tries again.
            await self._sessions.pop(peer_id).aclose()
        try:
            changes = await self._session(peer_id).reconcile(timeout_s)
        finally:
            if not was_known and self._is_closed_after_use(peer_id):
                await self._sessions.pop(peer_id).aclose()
        return changes, await self.allow(peer_id)

    async def deliver_dispute(self, signed: Said) -> bool:
        """Exchange the disputes of a channel now, something of ours among them; False if the provider is not there.

        It then hears of it on the next link.
        """
        channel_id = signed.message.channel
        channel = next(c for c in self.ledger.channels() if c.message.channel == channel_id)
        holding = [one for one in self._sessions.values() if one.disputes.covers(channel_id)]
        try:
            session = holding[0] if holding else self._session(parse_public_key(channel.message.provider).peer_id)
            await session.disputes.exchange(await session.ready(DELIVER_TIMEOUT_S, patient=False), channel)
        except RemoteError as error:
            log.info("the dispute is not with the provider yet: %s", error.message)
            for one in holding:
                one.disputes.said(signed)
            return False
        return True

    def _is_closed_after_use(self, peer_id: str) -> bool:
        session = self._sessions.get(peer_id)
        return session is not None and not session.n_orders and self.book.offer_of(peer_id) is None

    # -- one request ---------------------------------------------------------------------------------------------

    def _choose(self, purchase: Purchase, wishes: Wishes) -> Choice:
        """The candidates: of the shortlist, or of everybody where nobody on it will do."""
        model, now_ms = purchase.fields.model, self._now_ms()
        short = self._shortlists.of(
            model,
            purchase.endpoint,
            wishes,
            version=self.book.version,
            now_ms=now_ms,
            standing_of=self._standing,
        )
        choice = self._rank(short, purchase, wishes, now_ms)
        if choice.candidates and not choice.candidates[0].is_backing_off:
            return choice
        return self._rank(self._preselect(model, purchase.endpoint, wishes), purchase, wishes, now_ms)

    def _rank(self, preselection: Preselection, purchase: Purchase, wishes: Wishes, now_ms: int) -> Choice:
        return rank(
            preselection,
            fields=purchase.fields,
            body_bytes=len(purchase.body),
            wishes=wishes,
            standing_of=self._standing,
            now_ms=now_ms,
        )

    def _preselect(self, model: str, endpoint: str, wishes: Wishes) -> Preselection:
        return preselect(
            self.book.offers_of(model),
            model=model,
            endpoint=endpoint,
            wishes=wishes,
            operator_of=lambda _, offer: self.operator_of(offer),
        )

    def _standing(self, peer_id: str) -> Standing:
        """What is remembered of a provider, and what its session knows right now."""
        standing = known = self._standings.get(peer_id, UNKNOWN)
        session, held = self._sessions.get(peer_id), self.quarantine.peers.get(peer_id)
        if held is not None:
            standing = standing.quarantined(held.reason)
        if session is not None:
            if session.quarantine:
                standing = standing.quarantined(session.quarantine)
            elif session.is_ready and peer_id in self._away:
                self._away.discard(peer_id)
                standing = Standing(first_token_ms=standing.first_token_ms)
            elif session.is_down and standing.retry_ms() <= (now_ms := self._now_ms()):
                self._away.add(peer_id)
                standing = standing.failed(now_ms)
        if standing is not known:
            self._standings[peer_id] = standing
        return standing

    async def _next(
        self, purchase: Purchase, wishes: Wishes, tried: Sequence[bytes], failures: Sequence[RemoteError]
    ) -> tuple[Candidate, bool] | None:
        """The best candidate whose offer was not tried yet, and whether it is the last one.

        Where nobody else is left, one whose link was lost is asked once more: it may be there again in an instant. So
        is one whose order took no more requests.
        Raises Refused where there is no candidate from the start.
        """
        choice = self._choose(purchase, wishes)
        if not choice.candidates and not tried:
            model = purchase.fields.model
            if await self._search_model(model):
                choice = self._choose(purchase, wishes)
            if not choice.candidates:
                raise replace(choice, models=self.book.models()).refusal(model, purchase.endpoint, wishes)
        left = [one for one in choice.candidates if one.offer.id not in tried]
        if not left and _is_passing(failures[-1]) and tried.count(tried[-1]) == 1:
            left = [one for one in choice.candidates if one.offer.id == tried[-1]]
        return (left[0], len(left) == 1) if left else None

    async def _attempt(self, candidate: Candidate, purchase: Purchase, *, whole: bool, is_last: bool) -> Answer:
        session = self._session(candidate.peer_id)
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
            standing = self._standings.get(peer_id, Standing())
            self._standings[peer_id] = standing.failed(self._now_ms())
            if isinstance(error, Unreachable):
                self._away.add(peer_id)
                self.book.note_dead(peer_id)

    def _order_ended(self, peer_id: str, order: OrderStream | SharedRequest) -> None:
        if order.first_token_s is not None and order.is_whole:
            standing = self._standings.get(peer_id, Standing())
            self._standings[peer_id] = standing.answered(order.first_token_s * 1000)

    async def _search_model(self, model: str) -> bool:
        """Look for a model that nobody in the book sells; at most once in a while for each name."""
        now_ms = self._now_ms()
        if self.book.offers_of(model) or now_ms < self._searched.get(model, 0) + SEARCH_AGAIN_MS:
            return False
        self._searched = {name: at for name, at in self._searched.items() if now_ms < at + SEARCH_AGAIN_MS}
        self._searched[model] = now_ms
        with contextlib.suppress(RemoteError, TimeoutError):
            async with asyncio.timeout(SEARCH_TIMEOUT_S):
                return await self.book.search_model(model) > 0
        return False

    # -- sessions ------------------------------------------------------------------------------------------------

    def _session(self, peer_id: str) -> ProviderSession:
        session = self._sessions.get(peer_id)
        if session is None:
            provider = parse_peer_id(peer_id)
            session = self._sessions[peer_id] = ProviderSession(
                provider,
                lambda: self._dial_provider(provider),
                self.ledger,
                key=self._key,
                now_ms=self._now_ms,
                random_bytes=self._random_bytes,
                rng=self._rng,
                limits=self._limits,
                succession=self._succession(provider),
                offer=lambda: self.book.offer_of(peer_id),
                evidence=self._evidence,
                has_channel=self._has_channel,
                on_settled=lambda changes: self.earlier.note(peer_id, changes),
                on_quarantine=lambda reason: self.quarantine.add(peer_id, reason, self._now_ms()),
            )
        return session

    def _succession(self, provider: PublicKey) -> Succession | None:
        return Succession(provider, self._key.public_key, self._cards, self.ledger) if self._cards else None

    async def _dial_provider(self, provider: PublicKey) -> LinkConnection:
        """Dial the addresses of the offer as it is now."""
        addresses = self._dial_addresses(provider)
        if not addresses:
            raise Unreachable(f"{provider} has no offer that says where to reach it.")
        return await self._dial(addresses, provider, self._key)

    def _dial_addresses(self, provider: PublicKey) -> Sequence[str]:
        """Where the provider's offer says that it is; where it was last bought from, if it offers nothing now."""
        offer = self.book.offer_of(provider.peer_id) or last_offer(self.ledger, self._key.public_key, provider)
        return offer.message.addresses if offer is not None else ()

    def _two_offers(self, peer_id: str, offers: Sequence[Record], reason: str) -> None:
        provider = parse_peer_id(peer_id)
        for record in offers:
            self._evidence.keep(provider, record, reason)
        self.quarantine.add(peer_id, reason, self._now_ms())

    def _offer_over_link(self, peer_id: str) -> Awaitable[bytes] | None:
        session = self._sessions.get(peer_id)
        return session.request_offer(self._limits.link_timeout_s) if session is not None and session.is_ready else None

    def _cards_over_link(self, peer_id: str) -> Awaitable[bytes] | None:
        session = self._sessions.get(peer_id)
        return session.request_cards(self._limits.link_timeout_s) if session is not None and session.is_ready else None

    async def _keep_house(self) -> None:
        """Dial before it is needed, settle what an earlier run left open, let go of providers that are gone."""
        while True:
            try:
                for peer_id in self._worth_a_link():
                    self._session(peer_id)
            except LedgerError as error:
                log.error("the ledger cannot be read: %s", error)
            gone = [
                peer_id
                for peer_id, session in self._sessions.items()
                if not session.n_orders and not session.quarantine and self.book.offer_of(peer_id) is None
            ]
            for peer_id in gone:
                await self._sessions.pop(peer_id).aclose()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOUSEKEEPING_S):
                    await self.book.wait_for_change()

    def _worth_a_link(self) -> list[str]:
        """Providers on sale with whom something is open, and the cheapest few."""
        on_sale = {parse_public_key(offer.message.provider).peer_id: offer for offer in self.book.offers()}
        unsettled = [
            parse_public_key(channel.message.provider).peer_id
            for channel in self.ledger.channels()
            if channel.message.client == self._key.public_key.raw and self.ledger.open_orders(channel.message.channel)
        ]
        now_ms = self._now_ms()
        unsettled += self._disputing(now_ms)
        cheapest = sorted(
            (min(offer.message.tariff_at(entry, now_ms).output_upm for entry in offer.message.models), peer_id)
            for peer_id, offer in on_sale.items()
            if self._is_wanted(offer)
        )
        wanted = [*unsettled, *(peer_id for _, peer_id in cheapest[:WARM_LINKS])]
        return [peer_id for peer_id in wanted if peer_id in on_sale and peer_id not in self.quarantine]

    def _disputing(self, now_ms: int) -> list[str]:
        """Providers with whom a dispute waits for an answer, theirs or ours."""
        terms = {c.message.channel: c.message for c in self.ledger.channels()}
        disputed = {
            row.dispute.message.channel
            for row in self.ledger.disputes(unanswered=True)
            if row.dispute.message.channel in terms
            and not is_unanswered(
                row.dispute.message, dispute_days=terms[row.dispute.message.channel].dispute_days, now_ms=now_ms
            )
        }
        ours = [terms[channel] for channel in disputed if terms[channel].client == self._key.public_key.raw]
        return sorted({parse_public_key(channel.provider).peer_id for channel in ours})


def purchase_of(endpoint: str, body: Mapping[str, Any] | bytes) -> Purchase:
    """What a program's request orders; `body` as it came, or read already.

    Raises Refused: `bad-request`, `unsupported`, `unknown-endpoint`, `oversize`.
    """
    program = decode_object(body) if isinstance(body, bytes) else dict(body)
    shape = shape_of(endpoint, program)
    metered = metered_body(program)
    fields = parse_request(endpoint, body if isinstance(body, bytes) else metered)
    if len(metered) > MAX_BODY_BYTES:
        raise Refused("oversize", f"the request has {len(metered)} bytes; at most {MAX_BODY_BYTES} are sent.")
    return Purchase(endpoint=endpoint, body=metered, fields=fields, shape=shape)


def unix_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def _is_passing(failure: RemoteError) -> bool:
    """True for what the next attempt with the same provider need not meet."""
    return isinstance(failure, AnswerLost) or (isinstance(failure, Refused) and failure.code == "batch-closed")


def _most_telling(failures: list[RemoteError]) -> RemoteError:
    """Of several failures the one to show: a refusal says more than an absence, and the last more than the first."""
    refusals = [failure for failure in failures if isinstance(failure, Refused)]
    return (refusals or failures)[-1]
