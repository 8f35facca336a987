"""What is on sale, as the owner's wishes allow: candidates for a request, and models to list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.client.cards import CardBook
from p2pgrid.client.choice import (
    CURRENCY,
    Candidate,
    Choice,
    Listing,
    Preselection,
    candidate_of,
    preselect,
    rank,
    unwanted_operator,
)
from p2pgrid.client.offer_query import OfferQuery
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.operator import Operator
from p2pgrid.client.purchase import Purchase
from p2pgrid.client.sessions import SEARCH_TIMEOUT_S
from p2pgrid.client.shortlist import Shortlists
from p2pgrid.client.standings import Standings
from p2pgrid.client.wishes import Wishes
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Signed

SEARCH_AGAIN_MS: Final = 5_000


class Market:
    """The offers in the book, seen with the cards behind them and with how their providers stand."""

    def __init__(
        self,
        book: OfferBook,
        cards: CardBook | None,
        standings: Standings,
        *,
        wishes: Wishes,
        road_to: Callable[[PublicKey], str | None],
        now_ms: Callable[[], int],
    ) -> None:
        """`wishes` are the owner's. `road_to`: the road of the link that is up to a provider, if there is one."""
        self._book = book
        self._cards = cards
        self._standings = standings
        self._wishes = wishes
        self._road_to = road_to
        self._now_ms = now_ms
        self._shortlists = Shortlists(
            self._preselect, lambda peer_id: book.presence_of(peer_id).is_here, on_listed=self._listed
        )
        self._searched: dict[str, int] = {}

    # -- for the owner -------------------------------------------------------------------------------------------

    def models(self, query: OfferQuery | None = None) -> list[Candidate]:
        """Every model of every offer that the owner's wishes allow and its provider has confirmed, as candidates of no
        request: those that the query is about, in its order. Without one nobody is asked any sooner for it."""
        now_ms = self._now_ms()
        found: list[Candidate] = []
        if query is not None:
            self._want(query.model, query.wishes, now_ms)
        for offer in self._book.offers():
            if offer.message.currency != CURRENCY or not self.is_wanted(offer):
                continue
            provider, operator = parse_public_key(offer.message.provider), self.operator_of(offer)
            road, presence = self._road_to(provider), self._book.presence_of(provider.peer_id)
            found += (
                candidate_of(offer, entry, now_ms, operator, road, presence)
                for entry in offer.message.models
                if query is None or query.model in (None, entry.model)
            )
        return found if query is None else query.select(found, now_ms)

    def operator_of(self, offer: Signed[Offer]) -> Operator | None:
        """Who stands behind an offer, by its card, as far as that is known."""
        return self._cards.operator_of(offer) if self._cards is not None else None

    def is_wanted(self, offer: Signed[Offer]) -> bool:
        """True where the owner would buy from whoever stands behind an offer."""
        return unwanted_operator(offer, self.operator_of(offer), self._wishes) is None

    # -- for a request -------------------------------------------------------------------------------------------

    def choose(self, purchase: Purchase, wishes: Wishes) -> Choice:
        """The candidates: of the shortlist, or of everybody where nobody on it will do."""
        model, now_ms = purchase.fields.model, self._now_ms()
        self._want(model, wishes, now_ms)
        short = self._shortlists.of(
            model,
            purchase.endpoint,
            wishes,
            version=self._book.version,
            now_ms=now_ms,
            standing_of=self._standings.of,
        )
        choice = self._rank(short, purchase, wishes, now_ms)
        if choice.candidates and not choice.candidates[0].is_backing_off and choice.candidates[0].presence.is_here:
            return choice
        return self._rank(self._preselect(model, purchase.endpoint, wishes), purchase, wishes, now_ms)

    async def search_model(self, model: str, is_enough: Callable[[], bool], *, provider: str = "") -> bool:
        """Look for a model that nobody who answers sells, until enough do; at most once in a while for each name.

        `provider`: the one that is wanted, if not any; others who sell it are no reason not to look for that one.
        Who comes later waits with the others for the rest of their time. False if nobody waited.
        """
        now_ms = self._now_ms()
        self._searched = {
            name: at
            for name, at in self._searched.items()
            if now_ms < at + SEARCH_AGAIN_MS or self._book.is_looking_for(name)
        }
        if self._is_sold(model, provider) or (model in self._searched and not self._book.is_looking_for(model)):
            return False
        left_s = SEARCH_TIMEOUT_S - (now_ms - self._searched.setdefault(model, now_ms)) / 1000
        if left_s <= 0:
            return False
        await self._book.search_model(model, is_enough, left_s)
        return True

    def _is_sold(self, model: str, provider: str) -> bool:
        return any(
            self._book.presence_of(peer_id).is_here
            for peer_id, _ in self._book.offers_of(model)
            if provider in ("", peer_id)
        )

    def _want(self, model: str | None, wishes: Wishes, now_ms: int) -> None:
        """Somebody asks or looks for it: who may sell it is asked first whether it is there."""
        if wishes.provider:
            self._book.wanted.prefer((wishes.provider,), now_ms)
        else:
            self._book.wanted.note(model, wishes.countries, now_ms)

    def _listed(self, listings: Sequence[Listing]) -> None:
        self._book.wanted.prefer((one.peer_id for one in listings), self._now_ms())

    def _rank(self, preselection: Preselection, purchase: Purchase, wishes: Wishes, now_ms: int) -> Choice:
        return rank(
            preselection,
            fields=purchase.fields,
            body_bytes=len(purchase.body),
            wishes=wishes,
            standing_of=self._standings.of,
            now_ms=now_ms,
            presence_of=self._book.presence_of,
        )

    def _preselect(self, model: str, endpoint: str, wishes: Wishes) -> Preselection:
        return preselect(
            self._book.offers_of(model),
            model=model,
            endpoint=endpoint,
            wishes=wishes,
            operator_of=lambda _, offer: self.operator_of(offer),
        )
