"""The OpenAI API's shapes: errors, the list of models, headers, and the edits to a stream. No I/O."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

import msgspec

from p2pgrid.client.answer import Answer, EngineRefused
from p2pgrid.client.choice import Candidate
from p2pgrid.client.operator import operator_object
from p2pgrid.client.roads import roads_of
from p2pgrid.errors import LedgerError, LocalError, P2pgridError, ProtocolViolation, Refused, Unreachable
from p2pgrid.proto.messages import ModelOffer, Offer, Tariff
from p2pgrid.proto.schedule import next_price_change
from p2pgrid.proto.sse import DONE, EventSplitter, event_data
from p2pgrid.units import format_amount_eur, format_price_eur

_STATUS_BY_CODE: Final[dict[str, int]] = {
    "bad-request": 400,
    "unsupported": 400,
    "not-metered": 400,
    "context": 400,
    "unauthorized": 401,
    "over-budget": 402,
    "credit-exhausted": 402,
    "payment-overdue": 402,
    "client-in-default": 402,
    "forbidden": 403,
    "unknown-model": 404,
    "unknown-endpoint": 404,
    "oversize": 413,
    "busy": 429,
    "too-many-open-orders": 429,
    "no-provider": 503,
    "clock-skew": 503,
    "ledger-unavailable": 503,
    "going-away": 503,
    "withdrawn": 503,
    "engine-unavailable": 503,
    "timeout": 503,
}
_OPENAI_CODES: Final = {"unknown-model": "model_not_found", "context": "context_length_exceeded"}
"""Codes that programs know by OpenAI's own word."""
_USAGE_ONLY: Final = re.compile(rb'"choices":\s*\[\s*\]')
"""In the event that ends an answer. Inside a JSON text the quotes would be escaped."""
_CHOICES: Final = b'"choices"'
_TELLS_CHOICES: Final = b'"choices":[{'
"""Where this is, and `_CHOICES` once, `_USAGE_ONLY` is not: found much sooner."""
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


# -- errors ------------------------------------------------------------------------------------------------------------


def status_of(error: P2pgridError) -> int:
    """The HTTP status for an error."""
    match error:
        case EngineRefused(code="engine-refused", status=status):
            return status
        case EngineRefused(status=status):
            return 503 if status in (429, 503) else 502
        case Refused(code=code):
            return _STATUS_BY_CODE.get(code, 502)
        case LedgerError() | Unreachable():
            return 503
        case LocalError():
            return 500
    return 502


def error_body(error: P2pgridError) -> dict[str, Any]:
    """The error as OpenAI shows errors: `{"error": {"message", "type", "param", "code"}}`."""
    status = status_of(error)
    if isinstance(error, EngineRefused):
        own = error.error
        return _error(str(own.get("message", "")), status, own.get("param"), own.get("code"))
    return _error(str(error), status, "model" if _code(error) == "model_not_found" else None, _code(error))


def http_error_body(status: int, message: str) -> dict[str, Any]:
    """An error that comes of HTTP itself."""
    return _error(message, status, None, None)


def error_event(error: P2pgridError) -> bytes:
    """The event that ends a stream which broke off. OpenAI's own packages raise on it.

    No `[DONE]` follows: to a program that overlooks the error, that would make half an answer a whole one.
    """
    return _event(error_body(error))


def _error(message: str, status: int, param: Any, code: Any) -> dict[str, Any]:
    kinds = {401: "authentication_error", 402: "insufficient_quota", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _code(error: P2pgridError) -> str:
    match error:
        case Refused(code=code):
            return _OPENAI_CODES.get(code, code)
        case LedgerError():
            return "ledger-unavailable"
        case Unreachable():
            return "unreachable"
        case ProtocolViolation():
            return "provider-broke-rules"
    return "provider-failed"


# -- what an answer cost -----------------------------------------------------------------------------------------------


def answer_headers(answer: Answer) -> dict[str, str]:
    """Who serves the answer, under which order."""
    tariff = answer.tariff
    return {
        "X-P2pgrid-Provider": answer.provider,
        "X-P2pgrid-Operator": _header_text(answer.operator),
        "X-P2pgrid-Country": answer.country,
        "X-P2pgrid-Offer": answer.offer.id.hex(),
        "X-P2pgrid-Order": order_name(answer),
        "X-P2pgrid-Price-EUR": f"{format_price_eur(tariff.input_upm)}/{format_price_eur(tariff.output_upm)}",
    }


def order_name(answer: Answer) -> str:
    """The order that the answer is under, and which of its requests it answers where it has several."""
    index = "" if answer.request_index is None else f"/{answer.request_index}"
    return f"{answer.channel.hex()}:{answer.order_number}{index}"


def cost_headers(answer: Answer) -> dict[str, str]:
    """What a complete answer cost."""
    usage, receipt = answer.usage, answer.receipt
    return {
        "X-P2pgrid-Cost-EUR": format_amount_eur(answer.cost_pico),
        "X-P2pgrid-Cost-Pico": str(answer.cost_pico),
        "X-P2pgrid-Prompt-Tokens": str(usage.prompt_tokens),
        "X-P2pgrid-Cached-Tokens": str(usage.cached_tokens),
        "X-P2pgrid-Output-Tokens": str(usage.output_tokens),
        **({"X-P2pgrid-Receipt": receipt.id.hex()} if receipt is not None else {}),
    }


def cost_object(answer: Answer) -> dict[str, Any]:
    """`usage.p2pgrid`: the same, inside the answer."""
    receipt = answer.receipt
    return {
        "cost_eur": format_amount_eur(answer.cost_pico),
        "cost_pico": answer.cost_pico,
        "provider": answer.provider,
        "operator": answer.operator,
        "country": answer.country,
        "channel": answer.channel.hex(),
        "order_number": answer.order_number,
        "receipt_id": receipt.id.hex() if receipt is not None else None,
        "tariff": _tariff(answer.tariff),
    }


def model_list(candidates: Iterable[Candidate], now_ms: int) -> list[dict[str, Any]]:
    """`data` of `/v1/models`: every model on sale, with its offers as they are ordered."""
    by_model: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_model.setdefault(candidate.entry.model, []).append(candidate)
    models = []
    for name, sellers in sorted(by_model.items()):
        models.append(
            {
                "id": name,
                "object": "model",
                "created": min(one.offer.message.valid_from_ms for one in sellers) // 1000,
                "owned_by": sellers[0].offer.message.operator or sellers[0].peer_id,
                "max_model_len": max(one.entry.context_tokens for one in sellers),
                "p2pgrid": {"offers": [offer_object(one, now_ms) for one in sellers]},
            }
        )
    return models


def offer_object(candidate: Candidate, now_ms: int) -> dict[str, Any]:
    """One model in one offer, for programs: what it costs now, when that changes, and whether its provider is there."""
    message, entry = candidate.offer.message, candidate.entry
    change = next_price_change(message, entry, now_ms)
    return {
        "model": entry.model,
        "provider": candidate.peer_id,
        "operator": message.operator,
        "country": message.data_terms.country,
        "card": operator_object(candidate.operator) if candidate.operator else None,
        "prompt_retention_days": message.data_terms.prompt_retention_days,
        "currency": message.currency,
        "prices": _tariff(candidate.tariff),
        "price_changes_ms": change.at_ms if change else None,
        "next_prices": _tariff(change.tariff) if change else None,
        "schedule": schedule_object(message, entry) if entry.schedule else None,
        "context_tokens": entry.context_tokens,
        "concurrency": entry.concurrency,
        "free": candidate.presence.free(entry.model, now_ms),
        "confirmed_ms": candidate.presence.confirmed_ms or None,
        "live": candidate.presence.is_live(now_ms),
        "quantization": entry.quantization,
        "engine": entry.engine,
        "endpoints": list(entry.endpoints),
        "window_tokens": message.terms.window_tokens,
        "valid_until_ms": message.valid_until_ms,
        "roads": roads_of(message.addresses, candidate.peer_id),
        "link": candidate.road,
        "offer": candidate.offer.id.hex(),
    }


def schedule_object(offer: Offer, entry: ModelOffer) -> dict[str, Any]:
    """All prices of a model that change with the hour. Minutes count from midnight; the first period that holds
    counts, and `other_hours` where none does."""
    return {
        "utc_offset_minutes": offer.utc_offset_minutes,
        "periods": [
            {
                "days": [day for bit, day in enumerate(_DAYS) if period.weekdays >> bit & 1],
                "from": clock_text(period.from_minute),
                "until": clock_text(period.until_minute),
                "prices": _tariff(period.tariff),
            }
            for period in entry.schedule
        ],
        "other_hours": _tariff(entry.tariff),
    }


def clock_text(minute: int) -> str:
    """Minutes since midnight as people write them: 1320 is 22:00."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _tariff(tariff: Tariff) -> dict[str, str]:
    """EUR per million tokens, as exact decimals."""
    return {
        "input_eur": format_price_eur(tariff.input_upm),
        "cached_input_eur": format_price_eur(tariff.cached_input_upm),
        "output_eur": format_price_eur(tariff.output_upm),
    }


@functools.lru_cache(maxsize=1024)
def _header_text(text: str) -> str:
    """A stranger's text as a header's value: printable ASCII stays, all else is percent-encoded UTF-8."""
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").strip()


def without_token_ids(merged: dict[str, Any]) -> dict[str, Any]:
    """An unstreamed answer for a program that did not ask for token ids: the grid needed them, to count."""
    for part in (merged, *merged.get("choices", ())):
        part.pop("prompt_token_ids", None)
        part.pop("token_ids", None)
    return merged


# -- the stream --------------------------------------------------------------------------------------------------------


class StreamEditor:
    """Passes a stream on untouched but for the event that tells the usage of the whole answer.

    A program that did not ask for that event does not get it. For one that did, it is held back with what follows
    until `finish` adds what the answer cost.
    """

    def __init__(self, *, wants_usage: bool) -> None:
        self._wants_usage = wants_usage
        self._splitter = EventSplitter()
        self._held: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """The part of `data` that may go on now."""
        passed = []
        if (
            not self._held
            and not self._splitter.pending_bytes
            and data.endswith(b"\n\n")
            and ((_TELLS_CHOICES in data and data.count(_CHOICES) == 1) or not _USAGE_ONLY.search(data))
        ):
            return data  # whole events and no usage among them: what nearly all data is
        for event in self._splitter.feed(data):
            is_usage = _USAGE_ONLY.search(event) is not None and _parsed_usage(event) is not None
            if is_usage and not self._wants_usage:
                continue
            if is_usage or self._held:
                self._held.append(event)
            else:
                passed.append(event)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def finish(self, cost: dict[str, Any]) -> bytes:
        """What was held back, with `cost` in the last usage as `p2pgrid`."""
        last = max((i for i, event in enumerate(self._held) if event_data(event) != DONE), default=-1)
        for index, event in enumerate(self._held):
            chunk = _parsed_usage(event) if index == last else None
            if chunk is not None:
                chunk["usage"]["p2pgrid"] = cost
                self._held[index] = _event(chunk)
        return b"".join(self._held)


def _parsed_usage(event: bytes) -> dict[str, Any] | None:
    """The chunk, if it has no choices and a usage."""
    try:
        chunk = msgspec.json.decode(event_data(event), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return chunk if chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict) else None


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
