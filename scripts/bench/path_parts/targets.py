"""What the path has to reach, as ratios to its peers in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from .cells import HELD_STREAMS
from .figures import Figure, Results, figure

OURS = "p2pgrid"
OVER_LIBP2P = "p2pgrid-libp2p"
SHARING = "batched"


@dataclass(frozen=True, slots=True)
class Target:
    """One target, and what came of it."""

    text: str
    limit: float
    found: Figure | None
    """None where it could not be measured in this run."""
    at_least: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        """None where it was not measured."""
        if self.found is None:
            return None
        return self.found.value >= self.limit if self.at_least else self.found.value <= self.limit


def targets(results: Results) -> list[Target]:
    """All of them, in the order of the table."""
    ratio = results.ratio
    rows = [
        Target(
            "added first token, 1 stream, of LiteLLM's",
            0.05,
            ratio("first-1", "first_p50_ms", OURS, "litellm", added=True),
        ),
        Target(
            "added first token, 1 stream, of nginx's two hops",
            3.0,
            ratio("first-1", "first_p50_ms", OURS, "nginx", added=True),
        ),
        Target(
            "added first token, 64 paced streams, of nginx's",
            1.0,
            ratio("staggered-64", "first_p50_ms", OURS, "nginx", added=True),
        ),
    ]
    limits = {"staggered": (1 / 12, 1.2), "step": (1 / 25, 0.7)}
    for shape, (of_litellm, of_nginx) in limits.items():
        for streams in (64, 256):
            for peer, limit in (("litellm", of_litellm), ("nginx", of_nginx)):
                what = f"CPU per chunk, {streams} streams {'in step' if shape == 'step' else shape}, of "
                what += "LiteLLM's one hop" if peer == "litellm" else "nginx's two hops"
                rows.append(Target(what, limit, ratio(f"{shape}-{streams}", "cpu_per_chunk_us", OURS, peer)))
    rows += [
        Target(
            f"unstreamed requests per CPU-second, {n} at once, {how}, of {whose}",
            limit,
            ratio(f"unstreamed-{n}", "requests_per_cpu_s", system, peer),
            at_least=True,
        )
        for n in (16, 64)
        for system, how, peer, whose, limit in (
            (OURS, "a receipt each", "litellm", "LiteLLM's", 40.0),
            (SHARING, "receipts shared", "litellm", "LiteLLM's", 100.0),
            (SHARING, "receipts shared", "nginx", "nginx's", 0.5),
        )
    ]
    rows.append(
        Target(
            "chunk delay p50 over libp2p, 64 streams staggered",
            20.0,
            results.of("staggered-64", OVER_LIBP2P, "delay_p50_ms"),
            unit="ms",
        )
    )
    return [*rows, *_costs(results), *_memory(results)]


def receipts_share(results: Results) -> Figure | None:
    """The share of the path's CPU that receipts take on streams of 60 chunks: 1 - without / with."""
    pairs = zip(
        results.rounds("receipts", "no-receipts", "cpu_per_chunk_us"),
        results.rounds("receipts", OURS, "cpu_per_chunk_us"),
        strict=False,
    )
    return figure(1 - without / with_ for without, with_ in pairs if without is not None and with_)


def _costs(results: Results) -> list[Target]:
    return [Target("receipts' share of the path's CPU, streams of 60 chunks", 0.20, receipts_share(results))]


def _memory(results: Results) -> list[Target]:
    own, peer = results.memory.get(OURS, {}), results.memory.get("litellm", {})
    share = None
    if own.get("after_load") and peer.get("after_load"):
        share = Figure(max(own["after_load"].values()) / max(peer["after_load"].values()), 0.0, 1)
    per_stream = Figure(own["per_stream"] / 1000, 0.0, 1) if "per_stream" in own else None
    errors = Figure(float(own["held_errors"]), 0.0, 1) if "held_errors" in own else None
    return [
        Target("memory of the larger node, of LiteLLM's", 0.15, share),
        Target("memory per open stream, both hops together", 60.0, per_stream, unit="kB"),
        Target(f"errors with {HELD_STREAMS:,} streams held open", 0.0, errors),
    ]
