"""A streamed answer, merged into the one object that an unstreamed request gets.

On the grid every answer travels as a stream, because a stream can be counted as it comes. A program that asked for
no stream gets its chunks put together here: texts are joined, token ids and log-probabilities appended, tool calls
merged by their index, and everything told more than once (usage, reasons) keeps its last value. Fields nobody has
heard of follow the same rules by their type. Shapes: OpenAI's chat.completion and text_completion, as vLLM fills them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.counting import MAX_CHOICES
from p2pgrid.proto.sse import DONE, event_data

MAX_ANSWER_BYTES: Final = 256 * 2**20
"""Most bytes of stream in one merged answer."""
_MAX_DEPTH: Final = 8
"""Levels below a choice that are merged; a tool call's arguments are at the third."""
_MAX_NESTING: Final = 64
"""Levels of one chunk in all: whoever writes JSON again must not run out of stack."""

_MAX_BRACKETS: Final = 20_000
"""Lists and objects of one chunk in all, counted before it is read: each costs fifty times its bytes. The likeliest
tokens of a prompt of a thousand are a thousand objects."""
_MAX_KEYS: Final = 256
"""Of one object that is merged, a chunk itself included. A chunk and a choice have ten."""

_REPLACED: Final = frozenset({"role", "id", "type"})
"""Texts that name something and may be repeated, where others are pieces of a longer one."""
_NULLS: Final = ("logprobs", "finish_reason", "stop_reason")
_PER_CHUNK: Final = frozenset({"choices", "object", "error"})

_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


class _PlainDelta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: str


class _PlainChoice(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    index: int
    delta: _PlainDelta | UnsetType = UNSET
    text: str | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    logprobs: UnsetType | None = UNSET
    finish_reason: UnsetType | None = UNSET
    stop_reason: UnsetType | None = UNSET


class _PlainChunk(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What nearly every chunk is: a piece of text and its ids, and no word that was not in the chunk before it."""

    choices: Annotated[list[_PlainChoice], msgspec.Meta(min_length=1, max_length=1)]
    id: str | UnsetType = UNSET
    object: str | UnsetType = UNSET
    created: int | UnsetType = UNSET
    model: str | UnsetType = UNSET


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class _Pieces(list[str]):
    """A text under way; joined once, at the end, so that a long answer costs no more than its length."""


class _Items(list[Any]):
    """A list under way. What has an `index` in the stream is merged with what else has it, and found by it."""

    def __init__(self) -> None:
        super().__init__()
        self.by_index: dict[int, dict[str, Any]] = {}


class AnswerAssembler:
    """Merges the events of one stream. Errors inside the stream are the counter's business: look there first."""

    def __init__(self, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._left = max_bytes
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._is_chat = False
        self._object: Any = UNSET
        self._form: tuple[Any, ...] = ()
        """Of the last plain chunk: all in it but text and ids. What they are added to follows."""
        self._texts, self._ids = _Pieces(), None

    def feed(self, event: bytes) -> None:
        """Merge one event, as `EventSplitter.feed` returns it.

        Raises ProtocolViolation for data that is no chunk, and for an answer past `max_bytes`.
        """
        self._left -= len(event)
        if self._left < 0:
            raise ProtocolViolation("the answer is larger than any that is put together here.")
        data = event_data(event)
        if not data or data == DONE or self._merge_plain(data):
            return
        self._form = ()
        brackets = data.count(b"[") + data.count(b"{")
        if brackets > _MAX_BRACKETS:
            raise ProtocolViolation(f"a chunk in the answer's stream has over {_MAX_BRACKETS} lists and objects.")
        try:
            chunk = _decode_object(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolViolation(f"a chunk in the answer's stream cannot be merged: {error}.") from None
        if brackets > _MAX_NESTING:
            _check_nesting(chunk)
        _check_keys(chunk)
        choices = chunk.get("choices") or ()
        indices = _indices_of(choices)
        if "error" in chunk:
            return
        self._object = chunk.get("object", UNSET)
        self._is_chat = self._is_chat or self._object == "chat.completion.chunk"
        for name, value in chunk.items():
            if name not in _PER_CHUNK and (value is not None or name not in self._head):
                self._head[name] = value
        for index, choice in zip(indices, choices, strict=True):
            self._merge_choice(self._choices.setdefault(index, {"index": index}), choice)

    def answer(self) -> dict[str, Any]:
        """The merged object, as far as the stream came. Raises ProtocolViolation if not one chunk came."""
        if not self._head:
            raise ProtocolViolation("the answer's stream ended before its first chunk.")
        head = dict(self._head)
        usage = head.pop("usage", None)
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = [_joined(self._choices[index]) for index in sorted(self._choices)]
        for choice in choices:
            self._complete(choice)
        return {"id": head.pop("id", ""), "object": kind, **head, "choices": choices, "usage": usage}

    def to_json(self) -> bytes:
        """`answer` as JSON, on one line."""
        return msgspec.json.encode(self.answer())

    def _merge_plain(self, data: bytes) -> bool:
        """Merge a chunk that adds to texts and lists which are there already, and changes nothing else. False for any
        other, of which nothing is then merged."""
        try:
            chunk = _decode_plain(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        choice = chunk.choices[0]
        delta, ids = choice.delta, choice.token_ids
        text: Any = choice.text if delta is UNSET else delta.content
        has_ids = ids is not UNSET
        form = (
            *(chunk.id, chunk.object, chunk.created, chunk.model),
            *(choice.index, choice.logprobs, choice.finish_reason, choice.stop_reason),
            *(delta is UNSET, choice.text is UNSET, has_ids),
        )
        if form != self._form:
            # As the chunk before it has made of them, so that only what differs from it costs a look.
            texts = self._texts_of(chunk, choice)
            if texts is None:
                return False
            self._form, self._texts, self._ids = form, texts, self._choices[choice.index].get("token_ids")
        if has_ids:
            if not isinstance(self._ids, _Items):
                return False
            self._ids.extend(ids)
        self._texts.append(text)
        return True

    def _texts_of(self, chunk: _PlainChunk, choice: _PlainChoice) -> _Pieces | None:
        """The text that a plain chunk adds to; None where it does more than that."""
        into, head = self._choices.get(choice.index), self._head
        if into is None or chunk.object != self._object or (choice.delta is UNSET) == (choice.text is UNSET):
            return None
        if any(head.get(name, UNSET) != getattr(chunk, name) for name in ("id", "created", "model")):
            return None
        if any(getattr(choice, name) is None and name not in into for name in _NULLS):
            return None
        if choice.delta is not UNSET:
            into = into.get("message")
        texts = into.get("text" if choice.delta is UNSET else "content") if isinstance(into, dict) else None
        return texts if isinstance(texts, _Pieces) else None

    def _merge_choice(self, into: dict[str, Any], choice: dict[str, Any]) -> None:
        _check_keys(choice)
        for name, value in choice.items():
            if name == "index":
                continue
            if name in ("finish_reason", "stop_reason", "prompt_token_ids"):
                if value is not None or name not in into:
                    into[name] = value
            else:
                _merge(into, "message" if name == "delta" else name, value, 0)

    def _complete(self, choice: dict[str, Any]) -> None:
        """Add what an unstreamed answer always has."""
        choice.setdefault("finish_reason", None)
        choice.setdefault("logprobs", None)
        if not self._is_chat:
            choice.setdefault("text", "")
            return
        message = choice.setdefault("message", {})
        if not isinstance(message, dict):
            raise ProtocolViolation("the answer's stream has a delta that is no object.")
        message.setdefault("role", "assistant")
        calls = message.get("tool_calls")
        message["content"] = message.get("content") or (None if calls else "")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                call.pop("index", None)  # belongs to the stream alone


def _merge(into: dict[str, Any], name: str, value: Any, depth: int) -> None:
    """Put `value` on top of what `into[name]` holds, by its type."""
    if depth > _MAX_DEPTH:
        raise ProtocolViolation("a chunk in the answer's stream is nested too deep.")
    known = into.get(name)
    if value is None:
        into.setdefault(name, None)
    elif isinstance(value, str) and name not in _REPLACED:
        if isinstance(known, _Pieces):
            known.append(value)
        else:
            into[name] = _Pieces([value])
    elif isinstance(value, dict):
        if not isinstance(known, dict):
            known = into[name] = {}
        _check_keys(value)
        for key, inner in value.items():
            _merge(known, key, inner, depth + 1)
    elif isinstance(value, list):
        if not isinstance(known, _Items):
            known = into[name] = _Items()
        _merge_list(known, value, depth + 1)
    else:
        into[name] = value


def _merge_list(known: _Items, items: list[Any], depth: int) -> None:
    """Append `items`, except that one with an `index` goes into the one that has the same."""
    if dict not in set(map(type, items)):
        known.extend(items)
        return
    for item in items:
        index = item.get("index") if type(item) is dict else None
        if type(index) is not int:
            known.append(item)
            continue
        same = known.by_index.get(index)
        if same is None:
            if len(known.by_index) >= MAX_CHOICES:
                raise ProtocolViolation(f"the answer's stream has over {MAX_CHOICES} tool calls.")
            same = known.by_index[index] = {}
            known.append(same)
        _check_keys(item)
        for key, inner in item.items():
            _merge(same, key, inner, depth + 1)


def _indices_of(choices: Any) -> list[int]:
    """The index of each choice in a chunk, 0 where it has none. Raises ProtocolViolation for what are no choices."""
    if not isinstance(choices, list | tuple) or len(choices) > MAX_CHOICES:
        raise ProtocolViolation(f"a chunk in the answer's stream has no list of at most {MAX_CHOICES} choices.")
    indices: list[Any] = [choice.get("index", 0) if isinstance(choice, dict) else None for choice in choices]
    if not all(type(index) is int and 0 <= index < MAX_CHOICES for index in indices):
        raise ProtocolViolation(f"a choice in the answer's stream has no index below {MAX_CHOICES}.")
    return indices


def _check_nesting(chunk: dict[str, Any]) -> None:
    """Raises ProtocolViolation for more levels than `_MAX_NESTING`. Level by level: it must not itself recurse."""
    level: list[Any] = [chunk]
    for _ in range(_MAX_NESTING):
        level = [
            inner
            for value in level
            for inner in (value.values() if type(value) is dict else value)
            if inner and (type(inner) is list or type(inner) is dict)
        ]
        if not level:
            return
    raise ProtocolViolation(f"a chunk in the answer's stream is nested deeper than {_MAX_NESTING} levels.")


def _check_keys(value: dict[str, Any]) -> None:
    if len(value) > _MAX_KEYS:
        raise ProtocolViolation(
            f"an object in the answer's stream has {len(value)} keys; at most {_MAX_KEYS} are merged."
        )


def _joined(value: Any) -> Any:
    """A copy of a merged tree with its texts joined. What was appended as it came is not copied."""
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(inner) for name, inner in value.items()}
    if isinstance(value, _Items):
        merged = {id(item) for item in value.by_index.values()}
        return [_joined(item) if id(item) in merged else item for item in value] if merged else list(value)
    return value
