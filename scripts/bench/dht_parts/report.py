"""The results of `scripts/bench/dht` as text, and what they say of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from path_parts.report import markdown_table, put_between

BEGIN: Final = "<!-- dht: written by scripts/bench/dht --docs -->"
END: Final = "<!-- /dht -->"
LEAST_FOUND: Final = 0.99
"""Of look-ups, where a fifth of the network lies."""


def render(found: Mapping[str, Any]) -> str:
    """Everything, as Markdown."""
    about = found.get("about", {})
    parts = [f"{about['when']}, commit {about['commit']}, seed {about['seed']}: {about['cpu']}." if about else ""]
    if found.get("real"):
        parts += ["### Real hosts", _real(found["real"])]
    if found.get("growth"):
        parts += ["### Growth", _growth(found["growth"])]
    if found.get("attack"):
        parts += ["### Attacks", _attacks(found["attack"])]
    faults = missed(found)
    parts += ["### Verdicts", "\n".join(f"- MISSED: {fault}" for fault in faults) or "- Nothing was missed."]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_docs(page: Path, found: Mapping[str, Any]) -> None:
    """Put the tables between the page's two markers. Raises BenchError where they are not there."""
    put_between(page, BEGIN, END, render(found))


def missed(found: Mapping[str, Any]) -> list[str]:
    """What was found less often than it should be."""
    faults = []
    real = found.get("real") or {}
    for when in ("calm", "killed"):
        if real and real[when]["found"] < 1:
            faults.append(f"real hosts, {when}: {_share(real[when]['found'])} of the look-ups found all providers")
    for one in found.get("growth") or ():
        for kind in ("warm", "cold"):
            if one[kind]["found"] < LEAST_FOUND:
                faults.append(f"{one['peers']:,} peers, {kind}: {_share(one[kind]['found'])} found all providers")
    for one in found.get("attack") or ():
        scenario = one["scenario"]
        is_held_to = scenario["share"] <= 0.2 and not scenario["sybils"] and scenario["rules"] == "all"
        if is_held_to and one["found"] < LEAST_FOUND:
            faults.append(f"{_who(scenario)}: {_share(one['found'])} found all providers")
    return faults


def _real(real: Mapping[str, Any]) -> str:
    rows = [["", "all up", "a fourth killed"]]
    for title, name, form in (
        ("look-ups that found all providers", "found", "share"),
        ("warm look-up, p50 / p95 ms", "warm", "times"),
        ("requests", "warm_requests", "number"),
        ("CPU ms, all sides together", "warm_cpu_ms", "number"),
        ("cold client: join and look up, p50 / p95 ms", "cold", "times"),
        ("requests", "cold_requests", "number"),
        ("CPU ms, all sides together", "cold_cpu_ms", "number"),
    ):
        row = [title]
        for when in ("calm", "killed"):
            one = real[when]
            if form == "times":
                row.append(f"{one[f'{name}_p50_s'] * 1000:.0f} / {one[f'{name}_p95_s'] * 1000:.0f}")
            else:
                row.append(_share(one[name]) if form == "share" else f"{one[name]:.0f}")
        rows.append(row)
    return "\n\n".join(
        [
            f"{real['hosts']} hosts in four processes on loopback, clients in a fifth. A host knows "
            f"{real['table']:.0f} others, takes {real['memory_mb']:.1f} MB with its connections, and while nobody asks "
            f"{real['idle_cpu_share']:.2%} of a core. Joining, four at a time: "
            f"p50 {real['join_p50_s'] * 1000:.0f} ms and {real['join_cpu_ms']:.0f} ms of CPU on all sides. "
            f"Announcing a key: p50 {real['announce_p50_s'] * 1000:.0f} ms, to {real['announce_held']:.0f} servers.",
            markdown_table(rows),
        ]
    )


def _growth(sizes: Sequence[Mapping[str, Any]]) -> str:
    look_ups = [
        [
            "peers",
            "found",
            "hops mean / most",
            "messages mean / p99",
            "last provider named, p50 / p95 s",
            "over, p50 / p95 s",
        ]
    ]
    for kind in ("warm", "cold"):
        for one in sizes:
            these = one[kind]
            look_ups.append(
                [
                    f"{one['peers']:,}, {kind}",
                    _share(these["found"]),
                    f"{these['hops_mean']:.2f} / {these['hops_max']}",
                    f"{these['messages_mean']:.0f} / {these['messages_p99']:.0f}",
                    f"{these['named_p50_s']:.1f} / {these['named_p95_s']:.1f}",
                    f"{these['took_p50_s']:.1f} / {these['took_p95_s']:.1f}",
                ]
            )
    costs = [["peers", "nodes in a table", "kB of state", "messages/s kept up", "to join", "to announce a key"]]
    costs += [
        [
            f"{one['peers']:,}",
            f"{one['table_nodes']:.0f}",
            f"{one['state_bytes'] / 1000:.0f}",
            f"{one['maintenance_messages_per_s']:.1f}",
            f"{one['join']['messages_mean']:.0f} messages",
            f"{one['announce_messages']:.0f} messages, to {one['announce_kept']:.0f} servers",
        ]
        for one in sizes
    ]
    ran = ", ".join(f"{one['cpu_s'] / 60:.0f} min and {one['peak_mb']:,.0f} MB" for one in sizes)
    return f"{markdown_table(look_ups)}\n\n{markdown_table(costs)}\n\nThe simulations took {ran}."


def _attacks(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            "who lies",
            "found in 8 s",
            "providers found",
            "found in 60 s",
            "first offer, p50 / p95 s",
            "all offers, p50 / p95 s",
            "requests p50 / most",
            "last provider named, p50 / p99 s",
        ]
    ]
    rows += [
        [
            _who(one["scenario"]),
            _share(one["found"]),
            _share(one["part"]),
            _share(one["patient"]),
            f"{one['first_p50_s']:.1f} / {one['first_p95_s']:.1f}",
            f"{one['all_p50_s']:.1f} / {one['all_p95_s']:.1f}",
            f"{one['asks_p50']:.0f} / {one['asks_max']:.0f}",
            f"{one['named_p50_s']:.1f} / {one['named_p99_s']:.1f}",
        ]
        for one in results
    ]
    return markdown_table(rows)


def _who(scenario: Mapping[str, Any]) -> str:
    text = f"{scenario['share']:.0%} of {scenario['peers']:,}".replace("%", " %")
    if scenario["lie"] != "alike":
        text += f", naming {scenario['lie']}"
    if scenario["sybils"]:
        where = "closest" if scenario["reach"] <= 1 else "around"
        prefixes = f" in {scenario['prefixes']} prefixes" if scenario["prefixes"] else ""
        replicas = f"{scenario['replicas']} replica{'s' if scenario['replicas'] > 1 else ''}"
        text += f", {scenario['sybils']:,} sybils{prefixes} {where} to {replicas}".replace("around to", "around")
        text += "" if scenario["is_late"] else ", there from the first"
    return text if scenario["rules"] == "all" else f"{text}; {scenario['rules']}"


def _share(value: float) -> str:
    return f"{value * 100:.0f} %" if value in (0, 1) else f"{value * 100:.1f} %"
