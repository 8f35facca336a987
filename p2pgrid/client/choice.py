"""Which providers to ask, and in what order: pure, so that the same state gives the same answer.

First what rules a provider out: the model, the endpoint, the program's wishes, the offer's time, a quarantine. Then the
order: those that failed of late go last, before them those that have not confirmed their offer since this program
started, or did not answer; among the rest the cheapest expected cost comes first, then those that do not say that they
are full, then the quickest measured first token, then the peer id.

What a provider says it has free can be a lie, so it decides only between equals. Whoever says that it is full loses by
it; whoever claims room that it has not is no better placed than one that says nothing, and pays with a `busy`.

It is done in two steps. `preselect` makes the tests that do not hang on the single request, so that what it finds can
be kept for a moment (`shortlist.py`); `rank` does the rest, for each request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.client.operator import Operator
from p2pgrid.client.presence import UNSEEN, Presence
from p2pgrid.client.wishes import Wishes
from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import ModelOffer, Offer, Tariff, Usage
from p2pgrid.proto.pricing import price_of
from p2pgrid.proto.record import Signed
from p2pgrid.proto.request import RequestFields
from p2pgrid.units import MAX_AMOUNT_PICO, MAX_TOKENS, format_amount_eur, format_price_eur

CURRENCY: Final = "EUR"
"""Budgets are in it, and prices are compared in it."""
BYTES_PER_TOKEN: Final = 4
"""Of a request's body, as a rule of thumb. Prices are compared by it; nothing is billed by it."""
MOST_BYTES_PER_TOKEN: Final = 32
"""A body larger than this times the context cannot fit, whatever its language."""
EXPECTED_OUTPUT_TOKENS: Final = 512
"""Per choice, where the program sets no limit."""
FIRST_BACKOFF_MS: Final = 1_000
LONGEST_BACKOFF_MS: Final = 300_000
_LATENCY_WEIGHT: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is remembered of one provider. Immutable: each event makes the next one."""

    first_token_ms: float | None = None
    """Running average; None before the first answer."""
    failures: int = 0
    """In a row."""
    failed_ms: int = 0
    quarantine: str = ""

    def answered(self, first_token_ms: float) -> Standing:
        """It answered, with the first token after this time."""
        known = self.first_token_ms
        mean = first_token_ms if known is None else known + _LATENCY_WEIGHT * (first_token_ms - known)
        return Standing(first_token_ms=mean, quarantine=self.quarantine)

    def failed(self, now_ms: int) -> Standing:
        """It failed an order, or was away."""
        return Standing(
            first_token_ms=self.first_token_ms,
            failures=self.failures + 1,
            failed_ms=now_ms,
            quarantine=self.quarantine,
        )

    def quarantined(self, reason: str) -> Standing:
        """It broke the rules."""
        return Standing(first_token_ms=self.first_token_ms, quarantine=reason)

    def retry_ms(self) -> int:
        """When it is no longer put last: 1 s after the first failure, doubling up to 5 minutes."""
        if not self.failures:
            return 0
        return self.failed_ms + min(FIRST_BACKOFF_MS << min(self.failures - 1, 20), LONGEST_BACKOFF_MS)


UNKNOWN: Final = Standing()
"""The standing of one that nothing is remembered of."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may serve the request."""

    peer_id: str
    offer: Signed[Offer]
    entry: ModelOffer
    tariff: Tariff
    """What it costs now."""
    expected_pico: int
    is_backing_off: bool
    operator: Operator | None = None
    """Who stands behind it, as far as its card is known."""
    road: str | None = None
    """What the link to it runs on; None without one."""
    presence: Presence = UNSEEN
    """Whether it is there, and what it has free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The candidates, best first, and how many offers fell at which test."""

    candidates: tuple[Candidate, ...]
    models: tuple[str, ...]
    """Every model on sale, sorted."""
    rejected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By test, in the order of `no_choice.TESTS`: a word on each offer."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One model in one provider's offer, which passed the tests of `preselect`."""

    peer_id: str
    offer: Signed[Offer]
    entry: ModelOffer
    operator: Operator | None

    def tariff_at(self, now_ms: int) -> Tariff:
        """What it costs at that time."""
        return self.offer.message.tariff_at(self.entry, now_ms) if self.entry.schedule else self.entry.tariff


@dataclass(frozen=True, slots=True)
class Preselection:
    """The sellers of a model that one who wishes so may buy from, and why the others are none."""

    listings: tuple[Listing, ...]
    rejected: Mapping[str, tuple[str, ...]]
    """As in `Choice`."""


def preselect(
    offers: Iterable[tuple[str, Signed[Offer]]],
    *,
    model: str,
    endpoint: str,
    wishes: Wishes,
    operator_of: Callable[[str, Signed[Offer]], Operator | None],
) -> Preselection:
    """Sort out who sells the model at all to one who wishes so. `offers` are in force, each with its peer's id."""
    listings: list[Listing] = []
    rejected: dict[str, list[str]] = {}
    for peer_id, offer in offers:
        entry = offer.message.model_offer(model)
        operator = operator_of(peer_id, offer) if entry is not None else None
        failed = _first_failed_test(offer, entry, peer_id, model, endpoint, wishes, operator)
        if failed is not None:
            rejected.setdefault(failed[0], []).append(failed[1])
        elif entry is not None:
            listings.append(Listing(peer_id, offer, entry, operator))
    return Preselection(tuple(listings), {test: tuple(words) for test, words in rejected.items()})


def rank(
    preselection: Preselection,
    *,
    fields: RequestFields,
    body_bytes: int,
    wishes: Wishes,
    standing_of: Callable[[str], Standing],
    now_ms: int,
    models: tuple[str, ...] = (),
    presence_of: Callable[[str], Presence] = lambda _: UNSEEN,
) -> Choice:
    """Order the providers for one request. What ends in `_of` takes a peer id; `models` are all that are on sale."""
    rejected: dict[str, list[str]] = {test: list(words) for test, words in preselection.rejected.items()}
    ranked: list[tuple[tuple[bool, int, bool, int, bool, float, str], Candidate]] = []
    asked = fields.max_completion_tokens or fields.max_tokens or 1
    most_context_bytes = MOST_BYTES_PER_TOKEN * fields.prompts
    has_price = wishes.max_input_upm is not None or wishes.max_output_upm is not None
    for one in preselection.listings:
        peer_id, entry, standing = one.peer_id, one.entry, standing_of(one.peer_id)
        tariff = one.tariff_at(now_ms)
        if asked > entry.context_tokens or body_bytes > most_context_bytes * entry.context_tokens:
            rejected.setdefault("context", []).append(f"{entry.context_tokens} tokens")
            continue
        if has_price and is_too_dear(tariff, wishes):
            prices = f"{format_price_eur(tariff.input_upm)}/{format_price_eur(tariff.output_upm)}"
            rejected.setdefault("price", []).append(prices)
            continue
        if wishes.max_cost_pico is not None:
            most = _most_pico(entry, tariff, fields, body_bytes)
            if most > wishes.max_cost_pico:
                rejected.setdefault("budget", []).append(format_amount_eur(most))
                continue
        presence = presence_of(peer_id)
        free = presence.free(entry.model, now_ms) if presence.capacity is not None else None
        if wishes.only_free and not free:
            rejected.setdefault("full", []).append("it is full" if free == 0 else "it does not say")
            continue
        if standing.quarantine:
            rejected.setdefault("quarantine", []).append(standing.quarantine)
            continue
        retry_ms = standing.retry_ms()
        backs_off = retry_ms > now_ms
        expected_pico = expected_cost_pico(entry, tariff, fields, body_bytes)
        candidate = Candidate(
            peer_id, one.offer, entry, tariff, expected_pico, backs_off, one.operator, presence=presence
        )
        order = (
            backs_off,
            retry_ms if backs_off else 0,
            not presence.is_here,
            expected_pico,
            free == 0,
            standing.first_token_ms or 0.0,
            peer_id,
        )
        ranked.append((order, candidate))
    ranked.sort(key=lambda one: one[0])
    return Choice(
        candidates=tuple(candidate for _, candidate in ranked),
        models=models,
        rejected={test: tuple(words) for test, words in rejected.items()},
    )


def choose(
    offers: Iterable[Signed[Offer]],
    *,
    fields: RequestFields,
    endpoint: str,
    body_bytes: int,
    wishes: Wishes,
    standings: Mapping[str, Standing],
    now_ms: int,
    operators: Mapping[str, Operator] | None = None,
    presences: Mapping[str, Presence] | None = None,
) -> Choice:
    """Both steps at once. `offers` are in force; `standings`, `operators` and `presences` go by peer id."""
    listed = [(parse_public_key(offer.message.provider).peer_id, offer) for offer in offers]
    known = operators or {}
    preselection = preselect(
        listed,
        model=fields.model,
        endpoint=endpoint,
        wishes=wishes,
        operator_of=lambda peer_id, _: known.get(peer_id),
    )
    return rank(
        preselection,
        fields=fields,
        body_bytes=body_bytes,
        wishes=wishes,
        standing_of=lambda peer_id: standings.get(peer_id, UNKNOWN),
        now_ms=now_ms,
        models=tuple(sorted({entry.model for _, offer in listed for entry in offer.message.models})),
        presence_of=lambda peer_id: (presences or {}).get(peer_id, UNSEEN),
    )


def candidate_of(
    offer: Signed[Offer],
    entry: ModelOffer,
    now_ms: int,
    operator: Operator | None = None,
    road: str | None = None,
    presence: Presence = UNSEEN,
) -> Candidate:
    """An offer's model as a candidate of no request."""
    peer_id = parse_public_key(offer.message.provider).peer_id
    return Candidate(peer_id, offer, entry, offer.message.tariff_at(entry, now_ms), 0, False, operator, road, presence)


def is_too_dear(tariff: Tariff, wishes: Wishes) -> bool:
    """True if a price is above what is allowed."""
    most_in, most_out = wishes.max_input_upm, wishes.max_output_upm
    return (most_in is not None and tariff.input_upm > most_in) or (
        most_out is not None and tariff.output_upm > most_out
    )


def expected_cost_pico(entry: ModelOffer, tariff: Tariff, fields: RequestFields, body_bytes: int) -> int:
    """What the request will probably cost: prices are compared by it."""
    each = fields.max_completion_tokens or fields.max_tokens or EXPECTED_OUTPUT_TOKENS
    usage = Usage(
        prompt_tokens=min(body_bytes // BYTES_PER_TOKEN + 1, entry.context_tokens) * fields.prompts,
        output_tokens=min(each, entry.context_tokens) * fields.choices,
    )
    return _price(tariff, usage)


def _price(tariff: Tariff, usage: Usage) -> int:
    """The price in pico-EUR; more than any amount where a stranger's prices make it so."""
    try:
        return price_of(tariff, usage)
    except InvalidRecord:
        return MAX_AMOUNT_PICO


def unwanted_operator(offer: Signed[Offer], operator: Operator | None, wishes: Wishes) -> tuple[str, str] | None:
    """The first test that the operator or its country fails, and a word on it; None if both are wanted."""
    country = offer.message.data_terms.country
    if wishes.countries and country not in wishes.countries:
        return "country", country
    if operator is not None and operator.is_disowned:
        return "card", operator.fault
    if wishes.parent_countries or wishes.verify_domains:
        if operator is None or operator.card is None or operator.fault:
            return "card", (operator.fault if operator else "") or "it has shown no card"
        card = operator.card
        if wishes.parent_countries and card.parent_country not in wishes.parent_countries:
            return "parent-country", card.parent_country
        if wishes.verify_domains and not operator.has_domain:
            check = operator.domain_check
            unasked = f"{card.domain} has not answered yet" if card.domain else "its card names no domain"
            return "domain", check.reason if check is not None else unasked
    return None


def _first_failed_test(
    offer: Signed[Offer],
    entry: ModelOffer | None,
    peer_id: str,
    model: str,
    endpoint: str,
    wishes: Wishes,
    operator: Operator | None,
) -> tuple[str, str] | None:
    """The first test that the offer fails, and a word on it; None if it passes all."""
    if entry is None:
        return "model", model
    if offer.message.currency != CURRENCY:
        return "currency", offer.message.currency
    if endpoint not in entry.endpoints:
        return "endpoint", ", ".join(entry.endpoints)
    if wishes.provider and wishes.provider != peer_id:
        return "provider", peer_id
    unwanted = unwanted_operator(offer, operator, wishes)
    if unwanted is None and entry.context_tokens < wishes.min_context_tokens:
        return "min-context", f"{entry.context_tokens} tokens"
    return unwanted


def _most_pico(entry: ModelOffer, tariff: Tariff, fields: RequestFields, body_bytes: int) -> int:
    """The most that the request can cost."""
    caps = Usage(
        prompt_tokens=min(fields.max_prompt_tokens(entry, body_bytes), MAX_TOKENS),
        output_tokens=min(fields.max_output_tokens(entry), MAX_TOKENS),
    )
    return _price(tariff, caps)
