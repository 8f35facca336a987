"""Counting tokens in an answer's stream, the same way on both sides (docs/spec/session.md, counting).

Provider and client run one counter over the same bytes, so an honest pair agrees by construction. Billed output is
the number of token ids delivered: `choices[].token_ids` of vLLM's chunks, asked for with `return_token_ids`. Text is
never counted: re-tokenised text disagrees with the ids in a third of all answers.

Where vLLM puts things (0.32):

- chat: the prompt's ids stand at the top of the first chunk of every choice, the same list each time;
- completions: they stand in the choice itself, in its first chunk; choice `i` belongs to prompt `i // n`;
- `usage` on a chunk with a choice counts that choice alone; the last chunk has no choices and counts everything;
- only the last one tells `cached_tokens`.

Whatever `usage` claims is held against the ids; a difference is a `contradiction`, and the caller refuses to sign.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.sse import DONE, event_data
from p2pgrid.units import MAX_TOKENS

MAX_CHOICES: Final = 1024
"""Most choices in one answer (prompts x n)."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_CHOICES)]
_ShortText = Annotated[str, msgspec.Meta(max_length=64)]
_Ids = list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The engine's own claim. `prompt_tokens_details` needs `--enable-prompt-tokens-details`."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count | None = 0
    prompt_tokens_details: _PromptDetails | None = None


class StreamError(msgspec.Struct, frozen=True, gc=False):
    """An error inside the stream, under HTTP 200: how vLLM refuses or fails a request whose head it has sent."""

    message: str = ""
    type: str | None = None
    code: int | str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: _Index = 0
    token_ids: _Ids | None = None
    prompt_token_ids: _Ids | None = None
    finish_reason: _ShortText | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    choices: Annotated[list[_Choice], msgspec.Meta(max_length=MAX_CHOICES)] = []
    prompt_token_ids: _Ids | None = None
    usage: Usage | None = None
    error: StreamError | None = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode


class TokenCounter:
    """Counts one answer, event by event.

    `choices_per_prompt` is the request's `n`; it matters only to a completion of several prompts, to count each
    prompt once. After a contradiction it goes on counting: what was delivered, was delivered.
    """

    __slots__ = (
        "_finish_reasons",
        "_first_finished",
        "_n",
        "_output_by_choice",
        "_prompt_tokens",
        "_prompts",
        "contradiction",
        "done",
        "error",
        "output_tokens",
        "response_id",
        "usage",
    )

    def __init__(self, choices_per_prompt: int = 1) -> None:
        self._n = max(1, choices_per_prompt)
        self._output_by_choice: dict[int, int] = {}
        self._prompts: dict[int, int] = {}
        self._prompt_tokens = 0  # the sum, kept: both sides ask for it at every event
        self._finish_reasons: dict[int, str] = {}
        self._first_finished = MAX_CHOICES
        self.output_tokens = 0
        """Ids delivered, over all choices."""
        self.contradiction = ""
        """In one sentence, the first claim of the stream that its own ids disprove; empty while there is none."""
        self.error: StreamError | None = None
        """The error that came inside the stream, if one came."""
        self.done = False
        """True once `[DONE]` has come."""
        self.usage: Usage | None = None
        """The final usage, over all choices; None until it has come."""
        self.response_id = ""
        """The answer's id, as its first chunk gives it."""

    @property
    def prompt_tokens(self) -> int:
        """The prompt's ids, each prompt once; where the stream gave no ids, what the final usage says."""
        if self._prompts:
            return self._prompt_tokens
        return self.usage.prompt_tokens if self.usage else 0

    @property
    def prompt_ids_seen(self) -> bool:
        """True if the stream carried the prompt's ids, so that `prompt_tokens` is counted and not believed."""
        return bool(self._prompts)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine says came from its cache; 0 until the final usage tells."""
        details = self.usage.prompt_tokens_details if self.usage else None
        return (details.cached_tokens or 0) if details else 0

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: the reason of the first choice that has one; None while all run."""
        return self._finish_reasons[self._first_finished] if self._finish_reasons else None

    @property
    def finish_reasons(self) -> dict[int, str]:
        """The reason of each choice that has ended."""
        return dict(self._finish_reasons)

    @property
    def has_failed(self) -> bool:
        """True if the engine failed inside the stream: it sent an error, or ended a choice in `abort`.

        A stopping vLLM ends so, under HTTP 200, what it admits too late.
        """
        return self.error is not None or "abort" in self._finish_reasons.values()

    @property
    def is_whole(self) -> bool:
        """True for an answer that came to its end, told its usage, and neither failed nor contradicted itself."""
        return self.done and self.usage is not None and not self.has_failed and not self.contradiction

    def feed(self, event: bytes) -> None:
        """Count one event, as `EventSplitter.feed` returns it.

        Raises ProtocolViolation for data that is no chunk, comes after the end, or passes every bound on tokens.
        """
        data = event_data(event)
        if data:
            self.feed_data(data)

    def feed_data(self, data: bytes) -> bool:
        """As `feed`, with an event's `data`. True if the event added ids of one choice, and told nothing else."""
        if self.done:
            raise ProtocolViolation("the answer's stream goes on after its end ([DONE]).")
        if data == DONE:
            self.done = True
            return False
        try:
            chunk = _decode_chunk(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolViolation(
                f"a chunk of {len(data)} bytes in the answer's stream is no chunk of a completion: {error}.",
                hint="The engine behind it is not vLLM's OpenAI server, or the stream was altered.",
            ) from None
        if self._count_plain(chunk):
            return True
        self._count(chunk)
        return False

    def _count_plain(self, chunk: _Chunk) -> bool:
        """Count what nearly every chunk is, if this is one: more ids of a choice that runs, and claims that hold."""
        choices, usage = chunk.choices, chunk.usage
        if len(choices) != 1 or chunk.id != self.response_id or self._finish_reasons:
            return False
        choice = choices[0]
        if (
            choice.finish_reason is not None
            or choice.prompt_token_ids is not None
            or chunk.prompt_token_ids is not None
            or chunk.error is not None
        ):
            return False
        index, ids = choice.index, choice.token_ids
        added = len(ids) if ids else 0
        output = self._output_by_choice.get(index, 0) + added
        if usage is not None and (
            (usage.completion_tokens or 0) != output or usage.prompt_tokens != self._prompts.get(index // self._n)
        ):
            return False
        output_tokens = self.output_tokens + added
        if output_tokens > MAX_TOKENS:
            return False
        self._output_by_choice[index] = output
        self.output_tokens = output_tokens
        return True

    def _count(self, chunk: _Chunk) -> None:
        if chunk.error is not None and self.error is None:
            self.error = chunk.error
        if not self.response_id:
            self.response_id = chunk.id
        elif chunk.id and chunk.id != self.response_id:
            self._contradict(f"the answer's id changed from {self.response_id!r} to {chunk.id!r}")
        if chunk.prompt_token_ids is not None:
            self._see_prompt(0, len(chunk.prompt_token_ids))
        for choice in chunk.choices:
            self._count_choice(choice)
        if chunk.usage is not None:
            self._hold_against(chunk.usage, chunk.choices)

    def _count_choice(self, choice: _Choice) -> None:
        if choice.prompt_token_ids is not None:
            self._see_prompt(choice.index // self._n, len(choice.prompt_token_ids))
        delivered = len(choice.token_ids) if choice.token_ids else 0
        if delivered and choice.index in self._finish_reasons:
            self._contradict(f"choice {choice.index} goes on after it finished")
        self._output_by_choice[choice.index] = self._output_by_choice.get(choice.index, 0) + delivered
        self.output_tokens += delivered
        if self.output_tokens > MAX_TOKENS:
            raise ProtocolViolation(f"an answer of over {MAX_TOKENS} tokens, the most that any order may have.")
        if choice.finish_reason is not None:
            self._finish_reasons.setdefault(choice.index, choice.finish_reason)
            self._first_finished = min(self._first_finished, choice.index)

    def _see_prompt(self, prompt: int, count: int) -> None:
        known = self._prompts.get(prompt)
        if known is None:
            self._prompts[prompt] = count
            self._prompt_tokens += count
        elif known != count:
            self._contradict(f"prompt {prompt} had {known} ids, and now has {count}")

    def _hold_against(self, usage: Usage, choices: list[_Choice]) -> None:
        completion = usage.completion_tokens or 0
        if len(choices) > 1:
            return  # vLLM writes one choice a chunk; the final usage settles what others write
        prompts = self._prompts
        if choices:
            index = choices[0].index
            if completion != self._output_by_choice[index]:
                self._contradict_claim("output", completion, self._output_by_choice[index], f"choice {index}")
            counted = prompts.get(index // self._n)
            if counted is not None and usage.prompt_tokens != counted:
                self._contradict_claim("prompt", usage.prompt_tokens, counted, f"choice {index}")
            return
        self.usage = usage
        if completion != self.output_tokens:
            self._contradict_claim("output", completion, self.output_tokens, "the whole answer")
        if prompts and usage.prompt_tokens != self._prompt_tokens:
            self._contradict_claim("prompt", usage.prompt_tokens, self._prompt_tokens, "the whole answer")
        if self.cached_tokens > usage.prompt_tokens:
            self._contradict(f"{self.cached_tokens} cached tokens in a prompt of {usage.prompt_tokens}")

    def _contradict_claim(self, kind: str, claimed: int, counted: int, scope: str) -> None:
        self._contradict(f"usage claims {claimed} {kind} tokens for {scope}, its ids are {counted}")

    def _contradict(self, sentence: str) -> None:
        if not self.contradiction:
            self.contradiction = sentence
