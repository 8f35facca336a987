"""The state machines of docs/spec/session.md, as mermaid, from the tables in the code."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from p2pgrid.proto.order_states import (
    BUYER_TRANSITIONS,
    SELLER_TRANSITIONS,
    BuyerEvent,
    BuyerState,
    SellerEvent,
    SellerState,
)

SPEC = Path(__file__).parent.parent.parent / "docs/spec/session.md"


def with_diagrams(text: str) -> str:
    """The page with both diagrams made afresh, between their markers."""
    text = _replace(text, "seller", _mermaid(SELLER_TRANSITIONS, SellerState.ASKED))
    text = _replace(text, "buyer", _mermaid(BUYER_TRANSITIONS, BuyerState.ORDERED))
    text = _replace(text, "seller events", _events(text, "seller events", SellerEvent))
    return _replace(text, "buyer events", _events(text, "buyer events", BuyerEvent))


def meanings_of_events(text: str, name: str) -> dict[str, list[str]]:
    """What the page says of each event."""
    block = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if "|" in line]
    return {row[0].strip("`"): row[1:] for row in rows if len(row) > 2}


def _events(text: str, name: str, events: type[Enum]) -> str:
    """A row for each event of the code; what it is and what follows is written by hand."""
    known = meanings_of_events(text, name)
    rows = [f"| `{event.name}` | {' | '.join(known.get(event.name, ['', '']))} |" for event in events]
    return "\n".join(["| event | what it is | what follows |", "|---|---|---|", *rows]) + "\n"


def _replace(text: str, name: str, diagram: str) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}{diagram}{end}{after}"


def _mermaid(table: dict[Any, Any], first: Enum) -> str:
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), following in table.items():
        arrows.setdefault((state.name, following.name), []).append(event.name)
    lines = [f"    [*] --> {first.name}"]
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
    leaving = {state for state, _ in table}
    lines += [f"    {s.name} --> [*]" for s in type(first) if s not in leaving]
    return "```mermaid\nstateDiagram-v2\n" + "\n".join(lines) + "\n```\n"
