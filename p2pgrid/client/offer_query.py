"""What to list of the offers, and in what order: by model, country, price, context, room. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl

from p2pgrid.client.choice import Candidate, is_too_dear, unwanted_operator
from p2pgrid.client.wishes import Wishes, parse_countries, parse_flag, parse_price, parse_tokens
from p2pgrid.errors import Refused

_MAX_QUERY_CHARS: Final = 4096
_MAX_FIELDS: Final = 64


class Sort(StrEnum):
    """By what offers are listed."""

    OUTPUT = "output"
    """The cheapest output first, then the cheapest input."""
    INPUT = "input"
    CONTEXT = "context"
    """The largest first."""
    FREE = "free"
    """The most free slots first; who does not say, last."""
    SEEN = "seen"
    """Who was heard of last comes first."""
    COUNTRY = "country"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferQuery:
    """Which offers of a model, or of all."""

    model: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    sort: Sort = Sort.OUTPUT

    def select(self, candidates: Iterable[Candidate], now_ms: int) -> list[Candidate]:
        """Those that the query is about, in its order."""
        order = _ORDERS[self.sort]
        kept = [one for one in candidates if self.admits(one, now_ms)]
        kept.sort(key=lambda one: (order(one, now_ms), one.tariff.output_upm, one.tariff.input_upm, one.peer_id))
        return kept

    def admits(self, candidate: Candidate, now_ms: int) -> bool:
        """True if the query is about this one."""
        wishes, entry = self.wishes, candidate.entry
        return (
            self.model in (None, entry.model)
            and wishes.provider in ("", candidate.peer_id)
            and entry.context_tokens >= wishes.min_context_tokens
            and not is_too_dear(candidate.tariff, wishes)
            and unwanted_operator(candidate.offer, candidate.operator, wishes) is None
            and not (wishes.only_free and not candidate.presence.free(entry.model, now_ms))
        )


def parse_query(target: str) -> OfferQuery:
    """The query of a request's target, `/v1/models?country=LT&max_price_output=0.5&free=1`; fields that mean nothing
    here are passed over. Raises Refused (`bad-request`)."""
    text = target.partition("?")[2]
    if len(text) > _MAX_QUERY_CHARS:
        raise Refused("bad-request", f"the query has {len(text)} characters; at most {_MAX_QUERY_CHARS} were expected.")
    try:
        fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise Refused("bad-request", f"the query cannot be read: {error}.") from None
    return query_of(fields)


def query_of(fields: Mapping[str, str]) -> OfferQuery:
    """The query that these texts ask. Raises Refused (`bad-request`)."""
    return OfferQuery(
        model=fields.get("model") or None,
        wishes=Wishes(
            countries=parse_countries(fields.get("country"), "country"),
            parent_countries=parse_countries(fields.get("parent_country"), "parent_country"),
            provider=fields.get("provider", ""),
            max_input_upm=parse_price(fields.get("max_price_input"), "max_price_input"),
            max_output_upm=parse_price(fields.get("max_price_output"), "max_price_output"),
            min_context_tokens=parse_tokens(fields.get("min_context"), "min_context"),
            only_free=parse_flag(fields.get("free"), "free"),
        ),
        sort=_sort(fields.get("sort")),
    )


def _sort(text: str | None) -> Sort:
    try:
        return Sort(text or Sort.OUTPUT)
    except ValueError:
        words = ", ".join(Sort)
        raise Refused("bad-request", f"sort is {(text or '')[:32]!r}; one of {words} was expected.") from None


def _free(candidate: Candidate, now_ms: int) -> int:
    free = candidate.presence.free(candidate.entry.model, now_ms)
    return 1 if free is None else -free


_ORDERS: Final[dict[Sort, Callable[[Candidate, int], Any]]] = {
    Sort.OUTPUT: lambda one, _: (one.tariff.output_upm, one.tariff.input_upm),
    Sort.INPUT: lambda one, _: (one.tariff.input_upm, one.tariff.output_upm),
    Sort.CONTEXT: lambda one, _: -one.entry.context_tokens,
    Sort.FREE: _free,
    Sort.SEEN: lambda one, _: -one.presence.confirmed_ms,
    Sort.COUNTRY: lambda one, _: one.offer.message.data_terms.country,
}
