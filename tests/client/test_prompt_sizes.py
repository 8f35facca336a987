"""What a client learns of prompts: never less than a prompt can have, and forgotten where it may be wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.client.prompt_sizes import MOST_MESSAGES, PromptSizes, shape_of
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.errors import RemoteError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.messages import Receipt, Status, Usage
from p2pgrid.proto.request import PROMPT_OVERHEAD_TOKENS, metered_body
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.factories import Dealings, digest
from tests.provider.rig import provider

OFFER = digest("offer")


def receipt(prompt_tokens: int, status: Status = Status.COMPLETED) -> Receipt:
    dealings = Dealings()
    dealings.chain(1)
    usage = Usage(prompt_tokens=prompt_tokens, output_tokens=1)
    return msgspec.structs.replace(dealings.receipts[0].message, usage=usage, status=status)


def body_of(*messages: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": text} for role, text in messages]} | more


TEXTS = st.text(max_size=40)
SAID = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=4)


@given(
    said=st.lists(SAID, min_size=1, max_size=12),
    each=st.integers(0, 60),
    whole=st.integers(0, 200),
    shares=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_a_prompt_never_has_more_tokens_than_are_allowed_for(
    said: list[list[tuple[str, str]]], each: int, whole: int, shares: list[float]
) -> None:
    """A template that adds so much for each message and for the whole; a tokenizer that makes of a text anything up to
    its bytes."""
    sizes = PromptSizes()
    for messages, share in zip(said, shares, strict=False):
        body = body_of(*messages)
        shape, sent = shape_of(CHAT, body), metered_body(body)
        text_bytes = sum(len(text.encode()) for _, text in messages)
        tokens = whole + each * len(messages) + int(text_bytes * share)
        most = sizes.most(OFFER, shape, len(sent))
        assert most is None or tokens <= most <= len(sent) + PROMPT_OVERHEAD_TOKENS
        sizes.learn(OFFER, shape, receipt(tokens))


def test_only_the_plainest_chats_have_a_shape() -> None:
    plain = body_of(("user", "a"), temperature=0.5, max_tokens=3, n=2)
    assert shape_of(CHAT, plain) == ("m", "user")
    assert shape_of(CHAT, body_of(("system", ""), ("user", "b"))) == ("m", "system", "user")
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    for endpoint, body in (
        ("/v1/completions", plain),
        (CHAT, plain | {"tools": []}),
        (CHAT, plain | {"chat_template_kwargs": {"enable_thinking": True}}),
        (CHAT, plain | {"documents": []}),
        (CHAT, plain | {"messages": "text"}),
        (CHAT, plain | {"messages": []}),
        (CHAT, plain | {"messages": ["text"]}),
        (CHAT, plain | {"messages": [{"role": "user", "content": image}]}),
        (CHAT, plain | {"messages": [{"role": "user", "content": "a", "name": "b"}]}),
        (CHAT, plain | {"messages": [{"role": 1, "content": "a"}]}),
        (CHAT, plain | {"messages": [{"role": "user", "content": "a"}] * (MOST_MESSAGES + 1)}),
        (CHAT, {"model": "m"}),
    ):
        assert shape_of(endpoint, body) is None, body


@pytest.mark.parametrize(
    "ended", [None, *(receipt(5, status) for status in Status if status not in (Status.COMPLETED, Status.CANCELLED))]
)
def test_an_answer_that_comes_to_nothing_is_a_reason_to_forget(ended: Receipt | None) -> None:
    sizes, shape = PromptSizes(), ("m", "user")
    sizes.learn(OFFER, shape, receipt(30))
    sizes.learn(OFFER, shape, receipt(20))
    sizes.learn(OFFER, shape, receipt(40))
    assert sizes.most(OFFER, shape, 100) == 120
    assert sizes.most(digest("the next offer"), shape, 100) is None
    assert sizes.most(OFFER, ("m", "system", "user"), 100) is None
    sizes.learn(OFFER, shape, ended)
    assert sizes.most(OFFER, shape, 100) is None


def test_what_a_liar_claims_makes_nothing_worse_than_before() -> None:
    sizes, shape = PromptSizes(), ("m", "user")
    sizes.learn(OFFER, shape, receipt(10**6))
    assert sizes.most(OFFER, shape, 100) == 100 + PROMPT_OVERHEAD_TOKENS
    sizes.learn(OFFER, shape, receipt(0))
    assert sizes.most(OFFER, shape, 100) == 100 + PROMPT_OVERHEAD_TOKENS


def is_open(purchaser: Purchaser) -> bool:
    """True while an order is not over."""
    return any(session.n_orders for session in purchaser.sessions.values())


async def test_short_prompts_are_soon_let_in_together() -> None:
    async with provider() as rig, buying(rig) as (purchaser, bought):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(bought) and not is_open(purchaser))
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: len(signed_receipts(bought)) == 2)
        assert isinstance(bought, MemoryLedger)
        (channel,) = bought.channels()
        first, second = (bought.order(channel.message.channel, number) for number in (1, 2))
        assert first is not None and second is not None
        paid = signed_receipts(bought)[-1].usage.prompt_tokens
        size = len(metered_body(BODY))
        assert first.order.message.max_prompt_tokens == size + PROMPT_OVERHEAD_TOKENS
        assert second.order.message.max_prompt_tokens == size + paid
        # All are served, many at once.
        answers = await asyncio.gather(*(purchaser.buy(CHAT, BODY, whole=True) for _ in range(10)))
        assert len(answers) == 10


async def test_a_template_that_grew_costs_one_answer() -> None:
    """The engine's template changes under an offer: the order beyond its caps ends unpaid, the next one is served."""
    async with provider() as rig, buying(rig) as (purchaser, bought):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(bought) and not is_open(purchaser))
        session = next(iter(purchaser.sessions.values()))
        learned = session._orders.prompt_sizes._least
        (key,) = learned
        learned[key] = -len(metered_body(BODY)) + 1  # as if the template had been far smaller
        with pytest.raises(RemoteError, match="interrupted"):
            async with await purchaser.buy(CHAT, BODY, whole=True) as answer:
                await answer.assemble()
        await until(lambda: len(signed_receipts(bought)) == 2)
        assert (signed_receipts(bought)[0].status, signed_receipts(bought)[0].amount_pico) == (Status.INTERRUPTED, 0)
        async with await purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert (await answer.assemble())["usage"]["completion_tokens"]
