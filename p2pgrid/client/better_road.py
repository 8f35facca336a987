"""Brings a link that runs on a slow road to a faster one, and lets it go on there: orders that run notice nothing.

A link through a relay gets a hole punched at once; and every road that is faster than the one a link is on is tried
now and again, the fastest first, for as long as the link lives.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from p2pgrid.errors import LocalError, RemoteError, Unreachable
from p2pgrid.net import direct
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.punching import Hole
from p2pgrid.net.road import Road
from p2pgrid.proto.keys import PublicKey, SecretKey

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 300.0
DIAL_TIMEOUT_S: Final = 5.0

Way = Callable[[LinkConnection | None], Awaitable[LinkConnection]]
"""How one road is dialled: for a new link, or for one that goes on over it. Raises RemoteError."""
Ways = Callable[[], Mapping[Road, Way]]
"""The roads that could be taken now, each with how, the fastest first."""


async def improve(link: LinkConnection, ways: Ways, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
    """Try faster roads until the link is on the fastest one that is known, or over. Raises nothing.

    The link was just dialled, and so were the roads that are dialled: at first a hole alone is tried.
    """
    pause_s = first_pause_s
    await _try_once(link, {road: way for road, way in ways().items() if road is Road.PUNCHED})
    while any(map(link_is_slower_than(link), ways())) and not link.retired.done():
        await asyncio.wait({link.retired}, timeout=pause_s * random.uniform(0.8, 1.2))  # noqa: S311 (no secret)
        await _try_once(link, ways())
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _try_once(link: LinkConnection, ways: Mapping[Road, Way]) -> None:
    """Every road that is faster than the one the link is on, until one leads there."""
    for road, way in ways.items():
        was = link.road
        if link.retired.done() or not link_is_slower_than(link)(road):
            return
        try:
            await way(link)
        except (RemoteError, LocalError) as error:
            log.debug("%s stays on the %s road: %s", link.name, was, error.message)
        else:
            log.info("%s has moved from the %s to the %s road", link.name, was, link.road)


def link_is_slower_than(link: LinkConnection) -> Callable[[Road], bool]:
    """Whether the road that the link is on is slower than another."""
    ranks = {road: rank for rank, road in enumerate(Road)}
    return lambda road: ranks[link.road] > ranks[road]


AgreeOnHole = Callable[[PublicKey], Awaitable[PunchPlan]]
"""`Network.agree_on_hole`."""


async def punch(agree: AgreeOnHole, provider: PublicKey, key: SecretKey, link: LinkConnection) -> LinkConnection:
    """Punch a hole to the provider, and have the link go on through it. Raises RemoteError."""
    plan = await agree(provider)
    log.debug("punching a hole to %s: %s", provider, plan)
    error: RemoteError = Unreachable(f"no hole to {provider} came about: tried {_places(plan)} from {plan.local[1]}.")
    async with Hole(plan) as hole:
        while (tcp := await hole.next()) is not None:
            try:
                return await direct.dial_over(
                    tcp, provider, key, road=Road.PUNCHED, timeout_s=DIAL_TIMEOUT_S, continues=link
                )
            except RemoteError as failure:
                error = failure
                if link.retired.done():
                    break
    raise error


def _places(plan: PunchPlan) -> Sequence[str]:
    return [f"{ip}:{port}" for ip, port in plan.remote]
