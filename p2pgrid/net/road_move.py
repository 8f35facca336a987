"""A link that goes on over another road: what runs on it notices nothing (docs/spec/link.md, section 8).

The dialler has dialled a second road and claimed it for the link. Each side then says MOVE as its last frame on the
old road and goes on on the new one; who has heard the other's MOVE reads there too. Bytes on the new road that come
ahead of it wait in its socket.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from p2pgrid.errors import Refused, Unreachable
from p2pgrid.proto.frame import GoawayCode
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits

if TYPE_CHECKING:
    from p2pgrid.net.connection import LinkConnection
    from p2pgrid.net.link_membership import CallerMembership

MOVE_S: Final = 10.0
"""How long the peer may take to say MOVE."""
OLD_ROAD_S: Final = 5.0
"""How long an old road may take to close."""


class LinksByName:
    """The links of a node that a dialler may claim another road for. Every listener of the node knows them."""

    def __init__(self) -> None:
        self._links: dict[bytes, LinkConnection] = {}

    def add(self, link: LinkConnection) -> None:
        """A listener has accepted the dialler."""
        self._links[link.link_name] = link
        link.closed.add_done_callback(lambda _: self._links.pop(link.link_name, None))

    def find(self, peer: PublicKey, name: bytes) -> LinkConnection | None:
        """The link of that name with that peer."""
        link = self._links.get(name)
        return link if link is not None and link.peer == peer else None


class RoadMove:
    """One move of one link. The connection makes it, tells it what happens, and forgets it."""

    def __init__(self, link: LinkConnection, carrier: LinkConnection) -> None:
        """`carrier` holds the new road: it was dialled or accepted for nothing else, and its handshake is done."""
        self.carrier = carrier
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the link has moved; fails where it was lost over it, or stays where it is."""
        self.done.add_done_callback(_look)
        self._link = link
        self._old: asyncio.Transport | None = None
        """The old road, once nothing more is written to it."""
        self._timer = asyncio.get_running_loop().call_later(MOVE_S, self._too_late)
        carrier.closed.add_done_callback(self._carrier_lost)

    @property
    def has_begun(self) -> bool:
        """True once this side has said MOVE: there is no way back."""
        return self._old is not None

    def begin(self) -> None:
        """The dialler's side: say MOVE, and write on the new road from now on."""
        self._link._link.expect_move(self.carrier.link_name)
        self._leave()

    def peer_moved(self) -> None:
        """The peer's MOVE came."""
        link = self._link
        if self._old is None:
            if self.carrier.transport is None:
                link._shut(Unreachable(f"the road that the link to {link.name} moved to was lost."), abort=True)
                return
            self._leave()
        old = cast(asyncio.Transport, self._old)
        self._timer.cancel()
        old.set_protocol(_LeftRoad(link._carrier))
        old.close()
        asyncio.get_running_loop().call_later(OLD_ROAD_S, old.abort)
        link._carrier = self.carrier
        link.road, link.name = self.carrier.road, self.carrier.name
        link._move = None
        cast(asyncio.Transport, link.transport).resume_reading()
        if not self.done.done():
            self.done.set_result(None)

    def give_up(self, error: Exception) -> None:
        """The link is over, or stays where it is: let go of the road that it is not on."""
        self._timer.cancel()
        if self._old is not None:
            self._old.abort()
        else:
            self.carrier.abort()
        if not self.done.done():
            self.done.set_exception(error)

    def fail(self, error: Unreachable) -> None:
        """It came to nothing: the link is lost where it has said MOVE, else it stays on its road."""
        link = self._link
        if link._move is not self:
            return
        if self.has_begun:
            link._shut(error, abort=True)
        else:
            link._move = None
            link._link.expect_move(None)
            self.give_up(error)

    def _leave(self) -> None:
        """MOVE is the last that the old road carries from here."""
        link = self._link
        self._old, new = cast(asyncio.Transport, link.transport), self.carrier._hand_over(link)
        link._link.move(self.carrier.link_name)
        self._old.write(link._link.data_to_send())
        self._old.set_protocol(_OldRoad(link, self))
        link._take(new)

    def _carrier_lost(self, _: object) -> None:
        if not self.has_begun:
            self.fail(Unreachable(f"the other road of {self._link.name} was lost."))

    def _too_late(self) -> None:
        self.fail(Unreachable(f"{self._link.name} did not move to another road in {MOVE_S:g} s."))


def answer_claim(carrier: LinkConnection, known: LinksByName | None, peer: PublicKey, name: bytes) -> None:
    """On a listener's side: whoever dialled `carrier` wants its road for the link of that name. Give it, or refuse."""
    link = known.find(peer, name) if known is not None else None
    if link is not None and link._move is not None and not link._move.has_begun:
        link._move.fail(Unreachable("the dialler has claimed another road since."))
    if link is None or link._move is not None or link.retired.done():
        carrier._link.goaway(GoawayCode.REFUSED, "no such link can move now")
        carrier._shut(Refused("refused", f"{peer} claims a road for a link that cannot move."))
        return
    carrier.name = f"{peer} at {carrier.name}"
    carrier._cancel_timer()
    cast(asyncio.Transport, carrier.transport).pause_reading()
    carrier._link.accept()
    carrier._writer.flush()
    link._link.expect_move(carrier.link_name)
    link._move = RoadMove(link, carrier)


class _OldRoad(asyncio.Protocol):
    """What the peer still sends on the road that this side has left."""

    def __init__(self, link: LinkConnection, move: RoadMove) -> None:
        self._link = link
        self._move = move

    def data_received(self, data: bytes) -> None:
        self._link.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        why = Unreachable(f"the link to {self._link.name} was lost while it moved to another road.")
        self._move.fail(why)


class _LeftRoad(asyncio.Protocol):
    """A road that both sides have left."""

    def __init__(self, carrier: LinkConnection | None) -> None:
        self._carrier = carrier

    def connection_lost(self, exc: Exception | None) -> None:
        if self._carrier is not None:
            self._carrier._road_is_gone()


def _look(done: asyncio.Future[None]) -> None:
    """Nobody need wait for it."""
    if not done.cancelled():
        done.exception()


def new_dialler(
    secret_key: SecretKey,
    provider: PublicKey,
    continues: LinkConnection | None = None,
    limits: LinkLimits | None = None,
    membership: CallerMembership | None = None,
) -> Link:
    """The link of who dials a road: a new one, or the claimant that gets the road for one that there is."""
    own, now_ms = limits or LinkLimits(), int(asyncio.get_running_loop().time() * 1000)
    if continues is None:
        show = membership.show if membership is not None else None
        return Link.dialler(secret_key, provider, limits=own, now_ms=now_ms, show=show)
    return Link.claimant(secret_key, provider, continues.link_name, limits=own, now_ms=now_ms)
