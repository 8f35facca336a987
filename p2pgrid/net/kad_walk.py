"""Carries out a look-up over libp2p: asks whom `proto/kademlia` names, in parallel, and keeps the time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.replicas import Request, Search

OVERDUE_S: Final = 1.0
"""A request that takes longer does not keep others from being made."""
LINGER_S: Final = 1.0
"""How long overdue requests are waited for when there is nothing else to do."""
MAX_UNDER_WAY: Final = 48

Ask = Callable[[Request], Awaitable[tuple[Node, tuple[Node, ...]] | None]]
"""Answers with the node, as it is to be dialled from now on, and those it named; None where there was no answer."""


@dataclass(slots=True)
class _UnderWay:
    request: Request
    overdue_at_s: float
    is_overdue: bool = False


class Walk:
    """One search on its way."""

    def __init__(self, search: Search, ask: Ask) -> None:
        self.silent: list[Node] = []
        """Who did not answer."""
        self._search = search
        self._ask = ask
        self._under_way: list[_UnderWay] = []
        self._heard = trio.Event()

    async def run(self) -> None:
        """Returns when the search is over. It may be cancelled at any time: what was found by then stays found."""
        give_up_at_s: float | None = None
        async with trio.open_nursery() as nursery:
            while True:
                self._note_overdue()
                while len(self._under_way) < MAX_UNDER_WAY and (request := self._search.next()) is not None:
                    one = _UnderWay(request, trio.current_time() + OVERDUE_S)
                    self._under_way.append(one)
                    nursery.start_soon(self._one, one)
                if not self._under_way:
                    return
                if self._search.waiting:
                    give_up_at_s = None
                else:
                    give_up_at_s = give_up_at_s or trio.current_time() + LINGER_S
                    if trio.current_time() >= give_up_at_s:
                        nursery.cancel_scope.cancel()
                        return
                due = [one.overdue_at_s for one in self._under_way if not one.is_overdue]
                if give_up_at_s is not None:
                    due.append(give_up_at_s)
                with trio.move_on_at(min(due, default=float("inf"))):
                    await self._heard.wait()
                self._heard = trio.Event()

    async def _one(self, one: _UnderWay) -> None:
        lookup, _, node = one.request
        answer = await self._ask(one.request)
        self._under_way.remove(one)
        if answer is None:
            self.silent.append(node)
            lookup.failed(node)
        else:
            lookup.answered(*answer)
        self._heard.set()

    def _note_overdue(self) -> None:
        for one in self._under_way:
            if not one.is_overdue and one.overdue_at_s <= trio.current_time():
                one.is_overdue = True
                one.request.lookup.overdue(one.request.node)
