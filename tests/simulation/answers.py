"""What engines answer in a history: anything that an engine might, and some things that none should."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.proto.simulation import Engine, answer, final_events, first_event, script, sse, token_event


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine for one order, and what the request must say for it."""

    engine: Engine
    n: int
    max_tokens: int
    largest_event: int
    """Most tokens in one event: more than a window may be unacknowledged where one event is larger than it."""
    kind: str


def plain_answer(prompt: int, counts: list[int], max_tokens: int = 4000) -> Answer:
    """An answer that goes as it should."""
    return Answer(script(answer(prompt, counts)), 1, max_tokens, max(counts, default=0), "plain")


def random_answer(random: Random, *, window: int, short: bool) -> Answer:
    """Any answer, cut into pieces of any size."""
    prompt = random.randint(1, 60)
    sizes = random.choice(((1,), (1, 1, 2, 3), (1, 1, 1, 5, window), (1, 2, window + 1, 3 * window)))
    counts = [random.choice(sizes) for _ in range(random.randint(0, 5 if short else 3 * window))]
    most = max(counts, default=0)
    cached = random.choice((0, 0, prompt // 2, prompt))
    events = answer(prompt, counts, cached=cached, finish=random.choice(("stop", "length")))
    max_tokens = random.choice((4000, 4000, 4000, max(1, sum(counts) // 2)))
    match random.randint(0, 11):
        case 0:  # breaks off without a word
            whole = script(events[: random.randint(0, len(events))], random)
            return Answer(whole, 1, max_tokens, most, "broken off")
        case 1:
            failing = script(events[: random.randint(0, len(events))], random, fails=True)
            return Answer(failing, 1, max_tokens, most, "failing")
        case 2:
            status = random.choice((307, 400, 404, 429, 500, 503))
            return Answer(script([b'{"error": {}}'] * 3, random, status=status), 1, max_tokens, 0, f"HTTP {status}")
        case 3:
            at = random.randint(0, len(events) - 1)
            odd = random.choice((b"data: nonsense\n\n", sse({"error": {"message": "x"}}), sse("[DONE]")))
            return Answer(script([*events[:at], odd, *events[at:]], random), 1, max_tokens, most, "odd")
        case 4:
            return Answer(script(answer(prompt, []), random), 1, max_tokens, 0, "empty")
        case 5 | 6:
            n = random.randint(2, 3)
            return Answer(script(choices(prompt, counts, n), random), n, 4000, most, f"{n} choices")
        case 7:  # all at once: the window holds it back
            return Answer(script([b"".join(events)]), 1, max_tokens, most, "at once")
    return Answer(script(events, random), 1, max_tokens, most, "plain")


def choices(prompt: int, counts: list[int], n: int) -> list[bytes]:
    """An answer of `n` choices, token by token in turn."""
    events = [first_event(prompt, index=i) for i in range(n)]
    so_far = 0
    for count in counts:
        events += [token_event(prompt, so_far, count, index=i) for i in range(n)]
        so_far += count
    return [*events, *final_events(prompt, n * so_far)]
