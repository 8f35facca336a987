"""The request's body: what the grid must know of it, and what it adds to it (docs/spec/session.md, section 3).

Every answer travels as a stream that carries the token ids: the client asks for that in the body it commits to, and
the provider refuses a body that does not, so that the engine is sent exactly the bytes that were committed to.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from p2pgrid.errors import Refused
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Order

PROMPT_OVERHEAD_TOKENS: Final = 1024
"""What a chat template may add to a prompt. No token is shorter than a byte, so a body bounds its prompt's tokens."""
MAX_CHOICES: Final = 128
"""Most answers that one request may ask for."""
_FORBIDDEN: Final = (
    "kv_transfer_params",
    "vllm_xargs",
    "priority",
    "request_id",
    "use_beam_search",
    "prompt_embeds",
    "chat_template",
    "mm_processor_kwargs",
    "media_io_kwargs",
)
"""Engine internals that no stranger may reach, and what cannot be streamed."""


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`, and vLLM's addition to it."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class RequestFields(msgspec.Struct):
    """The fields of a request that the grid reads. All others pass untouched."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    prompt: Raw | UnsetType = UNSET
    echo: bool | None = None
    include_reasoning: bool | None = None
    kv_transfer_params: Raw | UnsetType = UNSET
    vllm_xargs: Raw | UnsetType = UNSET
    priority: Raw | UnsetType = UNSET
    request_id: Raw | UnsetType = UNSET
    use_beam_search: Raw | UnsetType = UNSET
    prompt_embeds: Raw | UnsetType = UNSET
    chat_template: Raw | UnsetType = UNSET
    mm_processor_kwargs: Raw | UnsetType = UNSET
    media_io_kwargs: Raw | UnsetType = UNSET

    @property
    def prompts(self) -> int:
        """How many prompts the request holds. Raises Refused (`bad-request`) for what is no prompt."""
        return 1 if isinstance(self.prompt, UnsetType) else _count_prompts(bytes(self.prompt))

    @property
    def choices(self) -> int:
        """How many answers are generated."""
        return max(self.n or 1, self.best_of or 1, 1) * self.prompts

    def max_output_tokens(self, entry: ModelOffer) -> int:
        """Most output tokens, all choices together: as asked, or what the context allows."""
        # Which of the two counts depends on the endpoint; the larger one covers both readings.
        each = max(self.max_completion_tokens or 0, self.max_tokens or 0) or entry.context_tokens
        return min(each, entry.context_tokens) * self.choices

    def max_prompt_tokens(self, entry: ModelOffer, body_bytes: int) -> int:
        """Most prompt tokens that a body of this size can hold."""
        return min(body_bytes + PROMPT_OVERHEAD_TOKENS * self.prompts, entry.context_tokens * self.prompts)


_decoder: Final = msgspec.json.Decoder(RequestFields)
_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


def _count_prompts(prompt: bytes) -> int:
    """A text, a list of texts, the ids of one prompt, or a list of such lists.

    Ids hold no brackets: lists of them are counted before they are read, so that a body of nothing but brackets costs
    nothing.
    """
    inner = prompt.strip()[1:].lstrip()
    kind: Any = str
    if prompt.lstrip().startswith(b"["):
        kind = {b"[": list[list[int]], b'"': list[str], b"]": list[str]}.get(inner[:1], list[int])
    if kind == list[list[int]] and prompt.count(b"[") - 1 > MAX_CHOICES:
        raise Refused("bad-request", f"the request has over {MAX_CHOICES} prompts.")
    try:
        read = msgspec.json.decode(prompt, type=kind | None)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused("bad-request", f"the request's prompt is neither text nor token ids: {error}.") from None
    return len(read) if kind in (list[str], list[list[int]]) and read else 1


def parse_request(endpoint: str, body: bytes) -> RequestFields:
    """Read an untrusted body. Raises Refused (`unknown-endpoint`, `bad-request`, `unsupported`)."""
    if endpoint not in ENDPOINTS:
        raise Refused("unknown-endpoint", f"{endpoint!r} is not served; {' and '.join(ENDPOINTS)} are.")
    try:
        fields = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused("bad-request", f"the body is no request for {endpoint}: {error}.") from None
    for name in _FORBIDDEN:
        if getattr(fields, name) is not UNSET:
            raise Refused("unsupported", f"the field {name!r} is not served on the grid; leave it out.")
    if fields.echo:
        raise Refused("unsupported", "echo is not served on the grid: the prompt's ids would count as output.")
    if fields.include_reasoning is False:
        raise Refused("unsupported", "include_reasoning: false is not served on the grid: it hides ids from the count.")
    for name in ("max_tokens", "max_completion_tokens", "n", "best_of"):
        value = getattr(fields, name)
        if value is not None and not 1 <= value <= 1_000_000:
            raise Refused("bad-request", f"{name} is {value}; at least 1 was expected.")
    if fields.choices > MAX_CHOICES:
        raise Refused(
            "bad-request", f"{fields.choices} answers were asked for at once; at most {MAX_CHOICES} are served."
        )
    return fields


def decode_object(body: bytes) -> dict[str, Any]:
    """A program's body, with all its fields. Raises Refused (`bad-request`) for what is no JSON object."""
    try:
        return _decode_object(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused("bad-request", f"the body is no JSON object: {error}.") from None


def require_metered(fields: RequestFields) -> None:
    """Refuse (`not-metered`) a body whose answer could not be counted by both sides."""
    options = fields.stream_options
    if not (fields.stream and fields.return_token_ids and options and options.include_usage):
        raise Refused(
            "not-metered",
            "the body must ask for stream, return_token_ids and stream_options.include_usage, "
            "so that both sides can count.",
        )


def parse_ordered(order: Order, body: bytes) -> RequestFields:
    """What the body of a request under `order` asks for. Raises Refused as `parse_request`, and for another model."""
    fields = parse_request(order.endpoint, body)
    require_metered(fields)
    if fields.model != order.model:
        raise Refused("bad-request", f"the body asks for {fields.model!r}, the order for {order.model!r}.")
    return fields


def metered_body(body: dict[str, Any]) -> bytes:
    """The body as it is committed to and sent: the program's own, asked for as a counted stream.

    The ids and the last usage are all that counting needs. A usage in every chunk makes the stream half as long again,
    so it is asked for only where the program wants it. Raises Refused (`bad-request`) for what has no JSON encoding
    (half a surrogate pair, say).
    """
    own = body.get("stream_options")
    wants_all = body.get("stream") is True and isinstance(own, dict) and own.get("continuous_usage_stats") is True
    asked = {
        "stream": True,
        "stream_options": {"include_usage": True, **({"continuous_usage_stats": True} if wants_all else {})},
        "return_token_ids": True,
    }
    try:
        return msgspec.json.encode({**body, **asked})
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused("bad-request", f"the body cannot be written as JSON: {error}.") from None
