"""The state machines of docs/spec/session.md, as mermaid, from the tables in the code."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from p2pgrid.proto.buyer import BUYER_TRANSITIONS, BuyerState
from p2pgrid.proto.seller import SELLER_TRANSITIONS, SellerState

SPEC = Path(__file__).parent.parent.parent / "docs/spec/session.md"


def with_diagrams(text: str) -> str:
    """The page with both diagrams made afresh, between their markers."""
    text = _replace(text, "seller", _mermaid(SELLER_TRANSITIONS, SellerState.ASKED))
    return _replace(text, "buyer", _mermaid(BUYER_TRANSITIONS, BuyerState.ORDERED))


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
