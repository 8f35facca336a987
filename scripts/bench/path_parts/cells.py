"""What is measured: the cells of the table, each a load of one shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

PERIOD_MS: Final = 20
"""Between two tokens of a paced stream."""
REQUEST_TOKENS: Final = 16
"""Output of an unstreamed request."""
STREAM_TOKENS: Final = 100
RECEIPT_TOKENS: Final = 60
"""The shortest streams on which receipts have to be cheap."""
BATCH_MOST_S: Final = 60.0
SATURATED: Final = 0.9
"""A system that delivers less than this share of what a paced engine makes is saturated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One load: `connections` in a closed loop, measured for `window_s` once all of them are at work."""

    name: str
    title: str
    connections: int
    stream: bool = True
    tokens: int = STREAM_TOKENS
    pace: str = "none"
    spread_s: float = 0.0
    """Over which the connections begin: the length of a stream, so that beginnings and ends are spread as well."""
    warm_s: float = 0.5
    window_s: float = 2.5
    drain_s: float = 6.0
    requests: int = 0
    """How many in all; 0: as many as the window takes."""
    unsafe_too: bool = False
    """Measured for p2pgrid without receipts as well."""
    only: tuple[str, ...] = ()
    """The systems that it is measured for; empty: all."""

    @property
    def is_paced(self) -> bool:
        return self.pace != "none"

    @property
    def expected_s(self) -> float:
        """About how long a visit takes."""
        stream_s = self.tokens * PERIOD_MS / 1000 if self.is_paced else 0.2
        return self.warm_s + self.window_s + stream_s + 0.2

    @property
    def is_saturable(self) -> bool:
        """True where a system that keeps up delivers all that the engine makes, but for the time between streams."""
        return self.is_paced and self.tokens > 50

    def as_batch(self) -> Cell:
        """The same load for a system that cannot keep up: one stream (or three answers) a connection, first to last.

        In a window such a system is at work on a part of what a stream costs. Over whole streams each has its share.
        """
        if self.connections == 1:
            return self
        count = self.connections * (1 if self.stream else 3)
        return replace(self, warm_s=0.0, window_s=BATCH_MOST_S, drain_s=0.0, requests=count)

    def arguments(self) -> list[str]:
        """For load.c."""
        numbers = {"connections": self.connections, "tokens": self.tokens, "pace": self.pace}
        times = {"spread-s": self.spread_s, "warm-s": self.warm_s, "window-s": self.window_s, "drain-s": self.drain_s}
        if self.requests:
            numbers["requests"] = self.requests
        words = [word for name, value in {**numbers, **times}.items() for word in (f"--{name}", str(value))]
        return [*words, *(["--stream"] if self.stream else [])]

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        """The figures of one visit, of what load.c printed. Times in ms, CPU in us."""
        window_s, cpu_us = result["window_s"], {n: ns / 1000 for n, ns in result["node_cpu_ns"].items()}
        total_us = sum(cpu_us.values())
        bench_s = (result["engine_cpu_ns"] + result["own_cpu_ns"]) / 1e9
        figures = {"errors": result["errors"], "cut": result["cut"], "bench_busy": bench_s / window_s}
        if not self.stream:
            count = result["requests"]
            figures |= {"requests": count, "requests_per_s": count / window_s}
            figures |= _times("latency", result["latency"])
            if count and total_us:
                figures |= {"cpu_per_request_us": total_us / count, "requests_per_cpu_s": count / total_us * 1e6}
            return figures
        count = result["chunks"]
        figures |= {"chunks": count, "chunks_per_s": count / window_s}
        figures |= _times("first", result["first_token"]) | _times("delay", result["delay"])
        if self.is_saturable:
            stream_s = self.tokens * PERIOD_MS / 1000
            made_in_s = self.spread_s + stream_s if self.requests else stream_s
            figures["delivered"] = count / window_s / (self.connections * self.tokens / made_in_s)
        if count:
            figures["bytes_per_chunk"] = result["bytes"] / count
        if count and total_us:
            figures["cpu_per_chunk_us"] = total_us / count
            figures |= {f"cpu_per_chunk_us.{node}": us / count for node, us in cpu_us.items()}
        return figures


def _times(name: str, measured: dict[str, float]) -> dict[str, float]:
    return {f"{name}_p{p}_ms": measured[f"p{p}_us"] / 1000 for p in (50, 99) if f"p{p}_us" in measured}


def unstreamed(connections: int, window_s: float = 2.5, *, unsafe_too: bool = False) -> Cell:
    """Whole answers, as fast as they come."""
    return Cell(
        name=f"unstreamed-{connections}",
        title=f"unstreamed, {connections} at once",
        connections=connections,
        stream=False,
        tokens=REQUEST_TOKENS,
        window_s=window_s,
        unsafe_too=unsafe_too,
    )


def first_token(window_s: float = 3.0) -> Cell:
    """Short paced streams one after the other: the first token's time on a path with nothing else on it."""
    return Cell(
        name="first-1", title="first token, 1 stream", connections=1, tokens=5, pace=_staggered(), window_s=window_s
    )


def paced(shape: str, connections: int, tokens: int = STREAM_TOKENS, window_s: float = 2.5, **more: Any) -> Cell:
    """Streams with a token every 20 ms: "staggered", each from its own beginning, or "step", all at once."""
    length_s = tokens * PERIOD_MS / 1000
    is_step = shape == "step"
    return Cell(
        name=more.pop("name", f"{shape}-{connections}"),
        title=more.pop("title", f"{'in step' if is_step else 'staggered'}, {_streams(connections)}"),
        connections=connections,
        tokens=tokens,
        pace=f"step:{PERIOD_MS * 1000}" if is_step else _staggered(),
        spread_s=length_s,
        warm_s=length_s + 0.1,
        window_s=window_s,
        drain_s=length_s + 4,
        **more,
    )


def unpaced(connections: int) -> Cell:
    """Streams as fast as the path takes them."""
    return Cell(name=f"unpaced-{connections}", title=f"unpaced, {_streams(connections)}", connections=connections)


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def _staggered() -> str:
    return f"staggered:{PERIOD_MS * 1000}"


FULL: Final = (
    *(unstreamed(n) for n in (1, 16, 64)),
    first_token(),
    *(paced("staggered", n) for n in (1, 16, 64, 256)),
    *(paced("step", n) for n in (64, 256)),
    *(unpaced(n) for n in (1, 16, 64, 256)),
    paced(
        "staggered",
        64,
        RECEIPT_TOKENS,
        name="receipts",
        title=f"64 streams of {RECEIPT_TOKENS} chunks, with and without receipts",
        unsafe_too=True,
        only=("p2pgrid",),
    ),
)
_COMPARED: Final = ("nginx", "relay", "p2pgrid")
SHORT: Final = (
    unstreamed(1, 1.2),
    unstreamed(16, 1.2),
    first_token(1.2),
    paced("staggered", 64, tokens=50, window_s=1.2, only=_COMPARED),
    paced("step", 64, tokens=50, window_s=1.2, only=_COMPARED),
)
HELD_STREAMS: Final = 1000
HELD_PERIOD_MS: Final = 1000


def held(connections: int = HELD_STREAMS) -> Cell:
    """Slow streams that stay open together."""
    return Cell(
        name="held",
        title=f"{connections} streams held open",
        connections=connections,
        tokens=12,
        pace=f"staggered:{HELD_PERIOD_MS * 1000}",
        spread_s=4.0,
        warm_s=5.0,
        window_s=4.0,
        drain_s=40.0,
    )
