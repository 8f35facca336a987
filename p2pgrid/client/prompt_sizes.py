"""How many tokens a chat template adds to a prompt, learned from what was paid for (docs/spec/session.md, rule 3.4).

A whole prompt of one message has at least the tokens that the template adds to one message. So its count bounds what
the template adds to any other prompt of that shape; the text itself has no more tokens than bytes. What is learned
holds for one offer and for the plainest of chats alone, and is forgotten when an answer comes to nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from p2pgrid.proto.messages import ENDPOINTS, Receipt, Status
from p2pgrid.proto.request import PROMPT_OVERHEAD_TOKENS

Shape = tuple[str, ...]
"""The model, and the role of each message."""

MOST_MESSAGES: Final = 64
_MOST_KEPT: Final = 1024
_PLAIN: Final = frozenset(
    (
        *("model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "return_token_ids"),
        *("n", "seed", "stop", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
        *("repetition_penalty", "logit_bias", "logprobs", "top_logprobs", "user"),
    )
)
"""Fields that no chat template reads."""


def shape_of(endpoint: str, body: Mapping[str, Any]) -> Shape | None:
    """The shape of a chat whose messages are plain texts; None for anything else: tools, images, other fields."""
    messages = body.get("messages")
    if endpoint != ENDPOINTS[0] or not body.keys() <= _PLAIN or not isinstance(messages, list):
        return None
    if not 1 <= len(messages) <= MOST_MESSAGES:
        return None
    roles = [
        one["role"]
        for one in messages
        if isinstance(one, dict)
        and one.keys() == {"role", "content"}
        and isinstance(one["role"], str)
        and isinstance(one["content"], str)
    ]
    return (str(body.get("model")), *roles) if len(roles) == len(messages) else None


class PromptSizes:
    """What the prompts of one provider's offers came to."""

    def __init__(self) -> None:
        self._least: OrderedDict[tuple[bytes, Shape], int] = OrderedDict()

    def most(self, offer: bytes, shape: Shape | None, body_bytes: int) -> int | None:
        """Most tokens that the prompt of a body has, under an offer (its record id); None where nothing is known."""
        learned = self._least.get((offer, shape)) if shape is not None else None
        return None if learned is None else body_bytes + learned

    def learn(self, offer: bytes, shape: Shape | None, receipt: Receipt | None) -> None:
        """An order is over: its receipt, if it has one that both signed."""
        if shape is None:
            return
        key = offer, shape
        before = self._least.pop(key, PROMPT_OVERHEAD_TOKENS)
        if receipt is None or receipt.status not in (Status.COMPLETED, Status.CANCELLED):
            return  # its template may have grown: begin again with the most
        prompt_tokens = receipt.usage.prompt_tokens or PROMPT_OVERHEAD_TOKENS
        self._least[key] = min(before, prompt_tokens)
        if len(self._least) > _MOST_KEPT:
            self._least.popitem(last=False)
