"""Why a request finds no provider, in words that help."""

from __future__ import annotations

from typing import Final

from p2pgrid.client.choice import CURRENCY, Choice
from p2pgrid.client.wishes import Wishes
from p2pgrid.errors import Refused
from p2pgrid.units import format_amount_eur

TESTS: Final = (
    "model",
    "currency",
    "endpoint",
    "provider",
    "country",
    "card",
    "parent-country",
    "domain",
    "min-context",
    "context",
    "price",
    "budget",
    "full",
    "quarantine",
)
"""The tests that an offer has to pass, in their order. One that falls at a later test was nearer."""


def refusal_of(choice: Choice, model: str, endpoint: str, wishes: Wishes) -> Refused:
    """Why there is no candidate: the test that the best offers fell at."""
    if not choice.models:
        return Refused("no-provider", "no provider is known yet.", hint="The search goes on: try again shortly.")
    furthest = next((test for test in reversed(TESTS) if choice.rejected.get(test)), "model")
    words = ", ".join(sorted(set(choice.rejected.get(furthest, ()))))
    wanted = ", ".join(sorted(wishes.countries))
    match furthest:
        case "model":
            return Refused(
                "unknown-model", f"the model {model!r} is not on sale.", hint=f"On sale: {', '.join(choice.models)}."
            )
        case "currency":
            return Refused("no-provider", f"{model!r} is sold for {words} alone; this client pays in {CURRENCY}.")
        case "endpoint":
            return Refused("unknown-endpoint", f"{endpoint} is not sold for {model!r}.", hint=f"Sold: {words}.")
        case "provider":
            return Refused(
                "no-provider", f"{wishes.provider} does not sell {model!r} now.", hint="Ask without naming one."
            )
        case "country":
            return Refused("no-provider", f"nobody sells {model!r} in {wanted} now.", hint=f"It is sold in: {words}.")
        case "card" | "domain":
            return Refused("no-provider", f"no provider of {model!r} has shown who it is: {words}.")
        case "parent-country":
            wanted = ", ".join(sorted(wishes.parent_countries))
            return Refused(
                "no-provider",
                f"no operator with its ultimate parent in {wanted} sells {model!r} now.",
                hint=f"By their cards: {words}.",
            )
        case "min-context":
            wanted = f"a context of {wishes.min_context_tokens} tokens"
            return Refused("no-provider", f"nobody sells {model!r} with {wanted} now.", hint=f"There is: {words}.")
        case "price":
            return Refused(
                "no-provider",
                f"nobody sells {model!r} at such prices now.",
                hint=f"EUR per million tokens, in/out: {words}.",
            )
        case "full":
            return Refused("busy", f"no provider of {model!r} says that it has a free slot: {words}.")
        case "context":
            return Refused("context", f"the request does not fit the context of {model!r}: {words}.")
        case "budget":
            allowed = format_amount_eur(wishes.max_cost_pico or 0)
            return Refused(
                "over-budget",
                f"the answer may cost {words} EUR; {allowed} EUR are allowed.",
                hint="Lower max_tokens, or raise the budget.",
            )
    return Refused("no-provider", f"no provider of {model!r} can be dealt with: {words}.")
