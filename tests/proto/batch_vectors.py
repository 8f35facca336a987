"""What stands in tests/vectors/batches.json: batch orders step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.actions import AbortEngine, AbortEngineFor, Actions, AskEngineFor, Breach, EndStream, Persist, Send
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.messages import Receipt, Status
from p2pgrid.proto.metered_order import VOUCHER_TIMEOUT_MS
from p2pgrid.proto.record import Role, parse_message, parse_record, sign_message
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import RequestCancel, RequestEnded, RequestHead
from tests.proto.batch_rig import KEY, BatchRig, body_of
from tests.proto.machine_trace import chunk, last, prompt
from tests.proto.simulation import CLIENT, NOW_MS, PROVIDER
from tests.proto.squeezed import squeezed


class BatchTrace(BatchRig):
    """A batch order whose steps are written down."""

    def __init__(self, **rig: Any) -> None:
        self.steps: list[dict[str, Any]] = []
        self._told: dict[str, Any] = {"side": "client", "event": "PLACE", "data": KEY.hex()}
        super().__init__(**rig)

    def step(self, side: str, event: str, data: Any, act: Callable[[], None]) -> BatchTrace:
        """Do one thing, and write down what follows."""
        self._told = {"side": side, "at_ms": self.now_ms - NOW_MS, "event": event, "data": data}
        before = len(self.steps)
        try:
            act()
        except ProtocolViolation:
            self._write(fault="violation")
        except InvalidRecord as invalid:
            self._write(fault=invalid.code)
        if len(self.steps) == before:
            self._run_client(()) if side == "client" else self._run_provider(())
        return self

    def _run_client(self, actions: Actions) -> None:
        super()._run_client(actions)
        fault = next((one.code for one in actions if isinstance(one, Breach)), "")
        self._note(actions, self.buyer.state.name if hasattr(self, "buyer") else "ORDERED", fault)

    def _run_provider(self, actions: Actions) -> None:
        state = self.seller.state.name if self.seller is not None else ""
        engine = [["ask", one.index] for one in actions if isinstance(one, AskEngineFor)]
        engine += [["abort", one.index] for one in actions if isinstance(one, AbortEngineFor)]
        engine += [["abort"] for one in actions if isinstance(one, AbortEngine)]
        self._note(actions, state, "", engine)
        super()._run_provider(actions)

    def _note(self, actions: Actions, state: str, fault: str, engine: list[Any] | None = None) -> None:
        self._write(
            state=state,
            out=[[one.kind.name, squeezed(one.payload)] for one in actions if isinstance(one, Send)],
            records=[one.signed.record.id.hex() for one in actions if isinstance(one, Persist)],
            engine=engine or [],
            ends=any(isinstance(one, EndStream) for one in actions),
            fault=fault,
        )

    def _write(self, **said: Any) -> None:
        whole = {**self._told, **said}
        self.steps.append({name: value for name, value in whole.items() if value not in ("", None, False, [])})
        self._told = {"side": whole["side"], "event": "CONCLUDES"}

    # -- what is written down -----------------------------------------------------------------------------------------

    def asks(self, *texts: str, max_tokens: int = 8) -> BatchTrace:
        for text in texts:
            body = body_of(max_tokens, text).decode()
            self.step("client", "ASK", body, lambda t=text: self.asked.append(self.ask(max_tokens, t)))  # type: ignore[misc]
        return self

    @property
    def asked(self) -> list[AskedRequest | None]:
        return self.__dict__.setdefault("_asked", [])

    def pass_on(self) -> BatchTrace:
        """Messages pass until there are none."""
        while self.to_client or self.to_provider:
            while self.to_provider:
                self.takes(*self.to_provider.popleft())
            while self.to_client:
                self.hears(*self.to_client.popleft())
        return self

    def takes(self, kind: int, payload: bytes) -> BatchTrace:
        return self.step("provider", Kind(kind).name, squeezed(payload), lambda: self.tell_provider(kind, payload))

    def hears(self, kind: int, payload: bytes) -> BatchTrace:
        return self.step("client", Kind(kind).name, squeezed(payload), lambda: self.tell_client(kind, payload))

    def answers(self, index: int, *events: str, status: int = 200) -> BatchTrace:
        self.step("provider", "HEAD", [index, status], lambda: self.head(index, status))
        return self.more(index, *events)

    def more(self, index: int, *events: str) -> BatchTrace:
        for event in events:
            self.step("provider", "BYTES", [index, event], lambda e=event: self.engine(index, e.encode()))  # type: ignore[misc]
        return self

    def over(self, *indices: int, fails: bool = False) -> BatchTrace:
        name, act = ("BREAKS_OFF", self.fails) if fails else ("ENDS", self.ends)
        for index in indices:
            self.step("provider", name, index, lambda i=index: act(i))  # type: ignore[misc]
        return self

    def later(self, ms: int) -> BatchTrace:
        self.now_ms += ms
        return self.step("provider", "CLOCK", None, lambda: self.clock(0))

    def closes(self) -> BatchTrace:
        return self.step("client", "CLOSES", None, self.close)

    def cancels(self, index: int) -> BatchTrace:
        asked = self.asked[index]
        assert asked is not None
        return self.step("client", "CANCELS", index, lambda: self.cancel(asked))

    def loses(self) -> BatchTrace:
        def lost() -> None:
            self.lose_link()

        return self.step("provider", "LINK_LOST", None, lost)

    def with_receipt(self, change: Callable[[Receipt], dict[str, Any]]) -> BatchTrace:
        """The receipt reaches the client changed, and signed anew."""
        self.closes()
        while self.to_provider:
            self.takes(*self.to_provider.popleft())
        while self.to_client[0][0] != Kind.RECEIPT:
            self.hears(*self.to_client.popleft())
        said = parse_message(parse_record(self.to_client.popleft()[1]), Receipt)
        wrong = msgspec.structs.replace(said, **change(said))
        return self.hears(Kind.RECEIPT, sign_message(wrong, Role.PROVIDER, PROVIDER).record.to_bytes())


def under_way(*texts: str, **rig: Any) -> BatchTrace:
    return BatchTrace(**rig).asks(*(texts or ("Labas", "rytas"))).pass_on()


def two() -> BatchTrace:
    """Two whole answers."""
    trace = under_way().answers(0, prompt(10), chunk(1, 2, 3, finish="stop"), last(10, 3, 4)).over(0)
    return trace.answers(1, prompt(7), chunk(1, 2), chunk(3, 4, finish="stop"), last(7, 4)).over(1)


def metered() -> BatchTrace:
    """Eight tokens of request 1 are metered and vouched for."""
    return under_way().answers(1, prompt(9), chunk(*range(8))).answers(0, prompt(10)).later(100).pass_on()


def swapped(receipt: Receipt) -> dict[str, Any]:
    return {"requests": receipt.requests[::-1]}


BATCHES: dict[str, Callable[[], BatchTrace]] = {
    "two requests": lambda: two().pass_on().closes().pass_on(),
    "no request": lambda: BatchTrace().closes().pass_on(),
    "a request after the first has its answer": lambda: (
        under_way("Labas")
        .answers(0, prompt(10), chunk(1, finish="stop"), last(10, 1))
        .over(0)
        .pass_on()
        .asks("rytas")
        .pass_on()
        .answers(1, prompt(7), chunk(1, 2, finish="stop"), last(7, 2))
        .over(1)
        .closes()
        .pass_on()
    ),
    "the window counts both": lambda: (
        under_way()
        .answers(0, prompt(5), chunk(*range(8)))
        .answers(1, prompt(5), chunk(*range(8)), chunk(8))
        .more(0, chunk(*range(8), finish="stop"), last(5, 16))
        .over(0)
        .later(100)
        .pass_on()
        .more(1, chunk(9, finish="stop"), last(5, 10))
        .over(1)
        .closes()
        .pass_on()
    ),
    "gathered, and let go after 100 ms": lambda: (
        under_way(window=256)
        .answers(0, prompt(5), chunk(1))
        .later(99)
        .later(1)
        .pass_on()
        .over(0, fails=True)
        .over(1, fails=True)
        .closes()
        .pass_on()
    ),
    "one fails before anything of it left": lambda: (
        under_way()
        .over(1, fails=True)
        .answers(0, prompt(10), chunk(1, finish="stop"), last(10, 1))
        .over(0)
        .closes()
        .pass_on()
    ),
    "one fails after it was metered": lambda: (
        metered().over(1, fails=True).pass_on().more(0, chunk(1, finish="stop"), last(10, 1)).over(0).closes().pass_on()
    ),
    "one contradicts itself": lambda: (
        metered().more(1, last(9, 9)).more(0, chunk(1, finish="stop"), last(10, 1)).over(0).closes().pass_on()
    ),
    "the engine refuses one": lambda: (
        under_way()
        .answers(0, "no", status=400)
        .over(0)
        .answers(1, prompt(7), chunk(1, finish="stop"), last(7, 1))
        .over(1)
        .closes()
        .pass_on()
    ),
    "one is empty": lambda: (
        under_way()
        .answers(0, prompt(10), last(10, 0))
        .over(0)
        .answers(1, prompt(7), chunk(1, finish="stop"), last(7, 1))
        .over(1)
        .closes()
        .pass_on()
    ),
    "one is late": lambda: (
        under_way(timeout_ms=1000)
        .answers(0, prompt(10), chunk(1, finish="stop"), last(10, 1))
        .over(0)
        .later(1000)
        .closes()
        .pass_on()
    ),
    "one is cancelled": lambda: (
        metered().cancels(1).pass_on().more(0, chunk(1, finish="stop"), last(10, 1)).over(0).closes().pass_on()
    ),
    "one is refused": lambda: (
        under_way("Labas", output=16, requests=2)
        .takes(Kind.REQUEST, body_of(33))
        .answers(0, prompt(10), chunk(1, finish="stop"), last(10, 1))
        .over(0)
    ),
    "the provider closes it": lambda: (
        under_way("Labas")
        .answers(0, prompt(10), chunk(1, finish="stop"), last(10, 1))
        .over(0)
        .pass_on()
        .later(1100)
        .pass_on()
    ),
    "past its caps": lambda: (
        under_way(requests=2, output=8)
        .answers(0, prompt(5), chunk(*range(8)))
        .later(100)
        .pass_on()
        .answers(1, prompt(5), chunk(*range(9)))
        .pass_on()
    ),
    "no voucher for a full window": lambda: (
        metered().more(1, *[chunk(*range(8))] * 3).later(VOUCHER_TIMEOUT_MS).pass_on()
    ),
    "a link lost after a voucher": lambda: metered().more(1, chunk(1)).loses(),
    "a request after BATCH_CLOSE": lambda: (
        under_way("Labas").takes(Kind.BATCH_CLOSE, b"").takes(Kind.REQUEST, body_of())
    ),
    "one request too many": lambda: under_way(requests=2).takes(Kind.REQUEST, body_of()),
    "closed twice": lambda: under_way("Labas").takes(Kind.BATCH_CLOSE, b"").takes(Kind.BATCH_CLOSE, b""),
    "CANCEL": lambda: under_way("Labas").takes(Kind.CANCEL, b""),
    "a request cancelled that was never sent": lambda: under_way("Labas").takes(
        Kind.REQUEST_CANCEL, RequestCancel(index=1).to_bytes()
    ),
    "an answer before its head": lambda: under_way("Labas").hears(Kind.PART, b"\0data: 1\n\n"),
    "an answer to what was never asked": lambda: under_way("Labas").hears(Kind.PART, b"\1data: 1\n\n"),
    "two heads for one request": lambda: (
        under_way("Labas")
        .hears(Kind.REQUEST_HEAD, RequestHead(index=0, status=200, content_type="").to_bytes())
        .hears(Kind.REQUEST_HEAD, RequestHead(index=0, status=200, content_type="").to_bytes())
    ),
    "ended as completed": lambda: under_way("Labas").hears(
        Kind.REQUEST_ENDED, RequestEnded(index=0, status=Status.COMPLETED).to_bytes()
    ),
    "CHUNK": lambda: under_way("Labas").hears(Kind.CHUNK, b"data: 1\n\n"),
    "a receipt with the lines swapped": lambda: two().with_receipt(swapped),
    "a receipt without a line": lambda: two().with_receipt(lambda r: {"requests": r.requests[:1]}),
    "a receipt by voucher where none was given": lambda: two().with_receipt(
        lambda _: {"requests": (), "status": Status.INTERRUPTED, "finish_reason": ""}
    ),
}


def batch_vectors() -> dict[str, Any]:
    """Everything, with the keys that sign."""
    return {
        "provider_seed": PROVIDER.expose_seed().hex(),
        "client_seed": CLIENT.expose_seed().hex(),
        "orders": [_played(name, play()) for name, play in BATCHES.items()],
    }


def _played(name: str, trace: BatchTrace) -> dict[str, Any]:
    return {
        "case": name,
        "now_ms": NOW_MS,
        "offer": trace.offer.record.to_bytes().hex(),
        "channel": trace.channel.record.to_bytes().hex(),
        "steps": trace.steps,
    }
