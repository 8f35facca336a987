"""A command that writes: done by the node that runs on the data folder, or here where none does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from p2pgrid.data_folder import DataFolder

T = TypeVar("T")

ASK_TIMEOUT_S = 120.0


def parse_peer(text: str) -> str:
    """A peer id, checked. Raises UsageError."""
    from p2pgrid.errors import InvalidRecord, UsageError
    from p2pgrid.proto.keys import parse_peer_id

    try:
        return parse_peer_id(text).peer_id
    except InvalidRecord:
        raise UsageError(
            f"{text!r} is no peer id.", hint="It looks like 12D3KooW...; `p2pgrid receipts list --json` shows yours."
        ) from None


async def ask_or_do(
    data: DataFolder,
    ask: msgspec.Struct,
    result_type: type[T],
    here: Callable[[], Awaitable[T]],
    *,
    roles: tuple[str, ...] = ("client", "provider"),
    timeout_s: float = ASK_TIMEOUT_S,
) -> T:
    """What comes of `ask`, whoever does it. `here` does it in this process, which may then open the ledger.

    A node in none of `roles` has no part in it, and is passed over. Raises P2pgridError.
    """
    from p2pgrid.commands.client import find_node

    node = await find_node(data.path)
    if node is not None and node.about.role in roles:
        return await node.ask(ask, result_type, timeout_s=timeout_s)
    return await here()
