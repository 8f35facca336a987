"""What a program, or the gateway's owner, allows; and how a program writes it: in headers, in a query, in EUR."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import Refused, UsageError
from p2pgrid.units import MAX_TOKENS, PICO_PER_EUR, parse_price_eur

COUNTRY_HEADER: Final = "X-P2pgrid-Country"
MAX_COST_HEADER: Final = "X-P2pgrid-Max-Cost-EUR"
PARENT_COUNTRY_HEADER: Final = "X-P2pgrid-Parent-Country"
PROVIDER_HEADER: Final = "X-P2pgrid-Provider"
MAX_PRICE_INPUT_HEADER: Final = "X-P2pgrid-Max-Price-Input-EUR"
MAX_PRICE_OUTPUT_HEADER: Final = "X-P2pgrid-Max-Price-Output-EUR"
MIN_CONTEXT_HEADER: Final = "X-P2pgrid-Min-Context"
FREE_HEADER: Final = "X-P2pgrid-Free"

_BUDGET: Final = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,12}))?")
_MAX_WISH_CHARS: Final = 4096
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
_YES: Final = frozenset({"1", "true", "yes"})
_NO: Final = frozenset({"", "0", "false", "no"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is allowed. The default allows everything."""

    countries: frozenset[str] = frozenset()
    """Empty: anywhere."""
    parent_countries: frozenset[str] = frozenset()
    """Where the operator's ultimate parent has its seat, by its card. Empty: anywhere, and no card is asked for."""
    verify_domains: bool = False
    """Only operators that have shown that they control the domain on their card."""
    max_cost_pico: int | None = None
    provider: str = ""
    """A peer id: that provider and no other."""
    max_input_upm: int | None = None
    """The most that a million prompt tokens may cost now, in micro-EUR; likewise below."""
    max_output_upm: int | None = None
    min_context_tokens: int = 0
    """The smallest context of a model that will do."""
    only_free: bool = False
    """Only providers that say that they would take an order for the model right now."""

    def within(self, owner: Wishes) -> Wishes:
        """These wishes, as far as the owner's allow. Raises Refused where nothing is left of the countries."""
        return Wishes(
            countries=_common(self.countries, owner.countries),
            parent_countries=_common(self.parent_countries, owner.parent_countries),
            verify_domains=self.verify_domains or owner.verify_domains,
            max_cost_pico=_lower(self.max_cost_pico, owner.max_cost_pico),
            provider=self.provider or owner.provider,
            max_input_upm=_lower(self.max_input_upm, owner.max_input_upm),
            max_output_upm=_lower(self.max_output_upm, owner.max_output_upm),
            min_context_tokens=max(self.min_context_tokens, owner.min_context_tokens),
            only_free=self.only_free or owner.only_free,
        )


# -- as programs write them --------------------------------------------------------------------------------------------


def parse_wishes(headers: Mapping[str, str]) -> Wishes:
    """The wishes in a request's headers. Raises Refused (`bad-request`)."""
    budget = headers.get(MAX_COST_HEADER)
    return Wishes(
        countries=parse_countries(headers.get(COUNTRY_HEADER), COUNTRY_HEADER),
        parent_countries=parse_countries(headers.get(PARENT_COUNTRY_HEADER), PARENT_COUNTRY_HEADER),
        max_cost_pico=None if budget is None else parse_budget(budget),
        provider=headers.get(PROVIDER_HEADER, "").strip(),
        max_input_upm=parse_price(headers.get(MAX_PRICE_INPUT_HEADER), MAX_PRICE_INPUT_HEADER),
        max_output_upm=parse_price(headers.get(MAX_PRICE_OUTPUT_HEADER), MAX_PRICE_OUTPUT_HEADER),
        min_context_tokens=parse_tokens(headers.get(MIN_CONTEXT_HEADER), MIN_CONTEXT_HEADER),
        only_free=parse_flag(headers.get(FREE_HEADER), FREE_HEADER),
    )


def parse_countries(text: str | None, name: str) -> frozenset[str]:
    """`lt, IT` as codes; None is none. Raises Refused (`bad-request`), naming `name`, as all below do."""
    if text is None:
        return frozenset()
    if len(text) > _MAX_WISH_CHARS:
        raise Refused("bad-request", f"{name} has {len(text)} characters; at most {_MAX_WISH_CHARS} were expected.")
    countries = [word.strip() for word in text.upper().split(",") if word.strip()]
    for country in countries:
        if _COUNTRY.fullmatch(country) is None:
            raise Refused(
                "bad-request",
                f"{name} names {country!r}; codes like LT or IT were expected.",
                hint="They are those of ISO 3166-1 alpha-2.",
            )
    return frozenset(countries)


def parse_budget(text: str) -> int:
    """EUR as people write it ("0.05"), in pico-EUR."""
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise Refused("bad-request", f"the budget {text[:32]!r} is no amount.", hint='Write EUR, like "0.05".')
    return int(found[1]) * PICO_PER_EUR + int((found[2] or "").ljust(12, "0"))


def parse_price(text: str | None, name: str) -> int | None:
    """EUR per million tokens, in micro-EUR; None for none."""
    if text is None:
        return None
    try:
        return parse_price_eur(text.strip())
    except UsageError as error:
        raise Refused("bad-request", f"{name}: {error.message}", hint=error.hint) from None


def parse_tokens(text: str | None, name: str) -> int:
    """A number of tokens; 0 for none."""
    if text is None:
        return 0
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 12 or int(digits) > MAX_TOKENS:
        raise Refused("bad-request", f"{name} is {text[:32]!r}; a number of tokens up to {MAX_TOKENS} was expected.")
    return int(digits)


def parse_flag(text: str | None, name: str) -> bool:
    """`1`, `true` or `yes`; `0`, `false`, `no` or nothing."""
    word = (text or "").strip().lower()
    if word not in _YES | _NO:
        raise Refused("bad-request", f"{name} is {word[:32]!r}; true or false was expected.")
    return word in _YES


def _common(own: frozenset[str], owners: frozenset[str]) -> frozenset[str]:
    """What both allow; empty allows all. Raises Refused where nothing is left."""
    if own and owners and not own & owners:
        raise Refused(
            "no-provider",
            f"{', '.join(sorted(own))} was asked for; this gateway buys only in {', '.join(sorted(owners))}.",
            hint="Ask for one of these countries.",
        )
    return own & owners if own and owners else own or owners


def _lower(own: int | None, owners: int | None) -> int | None:
    """The lower of two bounds, either of which may be missing."""
    return min((one for one in (own, owners) if one is not None), default=None)
