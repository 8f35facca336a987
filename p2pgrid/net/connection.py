"""A live link on asyncio.

The shell holds no rules: `p2pgrid.proto.link` does. It moves bytes between a Link and a road, and events to the streams
(`link_streams.py`). A road is whatever can be an `asyncio.Transport`: the direct road is one by nature, the libp2p road
is made one (`stream_road.py`); `link_writer.py` writes on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from p2pgrid.errors import P2pgridError, Refused, RemoteError, Unreachable
from p2pgrid.net.link_membership import CalledMembership, CallerMembership
from p2pgrid.net.link_streams import LinkStreams
from p2pgrid.net.link_writer import WRITE_STALL_S, LinkWriter
from p2pgrid.net.member_books import NOT_A_MEMBER
from p2pgrid.net.rest import Rest, Spend
from p2pgrid.net.road import Road
from p2pgrid.net.road_move import LinksByName, RoadMove, answer_claim
from p2pgrid.net.silence import notice_silence
from p2pgrid.net.stream import OnStream, Stream, StreamHandler
from p2pgrid.proto.frame import GoawayCode, goaway_name
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.link import Link, Phase
from p2pgrid.proto.link_events import Claimed, Event, GoingAway, Moved, Proved, Ready

Admit = Callable[[PublicKey], None]
"""Called on a listener's side with a dialler's proven key; raise Refused to turn it away."""
VerifyRoad = Callable[[asyncio.Transport], None]
"""Called with a road before anything is sent or read; raise RemoteError to leave it."""


class LinkConnection(asyncio.Protocol):
    """A link that lives on a road. `p2pgrid.net.direct` makes them.

    `retired` is done when no new stream can be opened any more (either side said GOAWAY, or the link is lost): the
    time to dial anew. `closed` is done when the road is gone; its result is the reason, None if this side closed it.
    """

    def __init__(
        self,
        link: Link,
        *,
        name: str,
        on_stream: OnStream | None = None,
        admit: Admit | None = None,
        verify_road: VerifyRoad | None = None,
        write_stall_s: float = WRITE_STALL_S,
        road: Road = Road.DIRECT,
        movable: LinksByName | None = None,
        membership: CallerMembership | CalledMembership | None = None,
        spend: Spend | None = None,
        caller: str = "",
    ) -> None:
        """`movable`: on a listener's side, the links that a dialler may claim a road for; this one becomes one.

        `membership`: for a node that is in closed networks; a dialler's is the one that its link was made with.
        """
        self.road = road
        self.member_of: frozenset[str] = frozenset()
        """The closed networks in which the peer has shown itself a member, on this link."""
        self.name = name
        """For logs and messages: who and where."""
        self.caller = caller
        """What a dialler is counted by (`listening.caller_of`)."""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.retired: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[P2pgridError | None] = self._loop.create_future()
        self._link = link
        self._admit = admit
        self._verify_road = verify_road
        self._membership = membership
        self._write_stall_s = write_stall_s
        self._streams = LinkStreams(self, on_stream)
        self._writer = LinkWriter(link, stall_s=write_stall_s, on_room=self._has_room, on_stall=self._stalled)
        self._movable = movable
        self._move: RoadMove | None = None
        """Under way."""
        self._carrier: LinkConnection | None = None
        """Whose road this link is on, if it has moved."""
        self._heir: LinkConnection | None = None
        """The link that has this one's road now."""
        self._rest = Rest(spend) if spend is not None else None
        self._reason: P2pgridError | None = None
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    # -- for the owner -----------------------------------------------------------------------------------------

    @property
    def peer(self) -> PublicKey:
        """The other side's proven key. Unreachable before the handshake is over."""
        if self._link.peer is None:
            raise Unreachable("the peer has not yet proven who it is.")
        return self._link.peer

    @property
    def reason(self) -> P2pgridError | None:
        """Why the link is over; None while it is not, or if this side closed it."""
        return self._reason

    @property
    def transport(self) -> asyncio.Transport | None:
        """The road that it runs on; None before and after."""
        return self._writer.transport

    @property
    def n_streams(self) -> int:
        return len(self._streams.by_id)

    @property
    def link_name(self) -> bytes:
        """What both sides call this link: 32 bytes, once the listener's HELLO is there."""
        return self._link.name

    @property
    def round_trip_ms(self) -> int | None:
        """Of the last heartbeat, if there was one."""
        return self._link.round_trip_ms

    def open_stream(self, handler: StreamHandler) -> Stream:
        """A new stream. Raises Refused (`busy`, `going-away`) or Unreachable where the link takes none."""
        if self._closing:
            raise self._reason or Unreachable(f"the link to {self.name} is closed.")
        try:
            stream_id = self._link.open_stream()
        except Unreachable as error:
            if self._link.phase is Phase.CLOSED:
                self._loop.call_soon(self._shut, error, True)
            raise
        self._writer.schedule()
        return self._streams.add(stream_id, handler)

    async def move_to(self, carrier: LinkConnection) -> None:
        """Go on over the road of `carrier`, which was dialled for this link, and is ready (`direct.dial` does it all).

        Streams and what they carry notice nothing. Raises Unreachable where the link is lost over it, or takes no road
        now: the carrier is closed then.
        """
        if self._closing or self._move is not None or carrier.transport is None:
            carrier.abort()
            raise Unreachable(f"the link to {self.name} cannot move now.")
        self._move = move = RoadMove(self, carrier)
        move.begin()
        await asyncio.shield(move.done)

    def retire(self, message: str = "") -> None:
        """Take no new streams, and tell the peer so; open ones go on."""
        if self._heir is not None:
            self._heir.retire(message)
            return
        self._do(self._link.goaway, GoawayCode.SHUTDOWN, message)
        self._set_retired()

    async def wait_idle(self) -> None:
        """Return when no stream is open."""
        await (self._heir or self)._streams.wait_idle()

    async def aclose(self, message: str = "") -> None:
        """Close the link now: say GOAWAY, give up the open streams, and return when the road is gone."""
        if self._heir is not None:
            await self._heir.aclose(message)
            return
        if not self._closing:
            self.retire(message)
            self._shut(None)
        await asyncio.shield(self.closed)

    def abort(self) -> None:
        """Drop the link at once, without a word. Does nothing to one that is gone, or whose road another link has."""
        if self._heir is not None:
            return
        self._shut(None, abort=True)
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        road = cast(asyncio.Transport, transport)
        self._writer.begin(road)
        notice_silence(transport.get_extra_info("socket"))
        try:
            if self._verify_road is not None:
                self._verify_road(road)
        except RemoteError as error:
            self._link.close()
            self._link.data_to_send()
            self._shut(error, abort=True)
        else:
            self._tick()
            self._writer.schedule()

    def data_received(self, data: bytes) -> None:
        if self._rest is None:
            self._deal_with(data)
            return
        began_s = time.perf_counter()
        self._deal_with(data)
        self._rest.took(time.perf_counter() - began_s, self.transport)

    def _deal_with(self, data: bytes) -> None:
        try:
            self._streams.tell(self._link.receive(data, self._now_ms()), self._happened)
        except RemoteError as fault:
            self._shut(fault)
        if self._link.queued_bytes:
            self._writer.schedule()

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if not self._closing:
            why = f": {exc}" if exc else ", the other side closed it."
            self._shut(Unreachable(f"the link to {self.name} was lost{why}"), abort=True)
        self._cancel_timer()
        self._writer.gone()
        self._road_is_gone()
        if self._carrier is not None:
            self._carrier._road_is_gone()

    # -- events ------------------------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        match event:
            case GoingAway(code, text):
                self._set_retired()
                if code != GoawayCode.SHUTDOWN:
                    self._shut(Refused(goaway_name(code), f"{self.name} closed the link: {text or goaway_name(code)}."))
            case Proved(peer):
                self._proved(peer)
            case Claimed(peer, link_name):
                answer_claim(self, self._movable, peer, link_name)
            case Moved():
                if self._move is not None:
                    self._move.peer_moved()
            case Ready():
                self._check_listener()

    def _proved(self, peer: PublicKey) -> None:
        shown = b""
        try:
            if self._admit is not None:
                self._admit(peer)
            if isinstance(self._membership, CalledMembership):
                shown, self.member_of = self._membership.admit(peer, self._link.name, self._link.shown)
        except Refused as refusal:
            self._refuse(refusal)
        else:
            self.name = f"{peer} at {self.name}"
            self._link.accept(shown)
            if self._movable is not None:
                self._movable.add(self)
            self._opened_for_use()

    def _check_listener(self) -> None:
        """Nothing was sent to it yet: it may have to be a member of a closed network."""
        try:
            if isinstance(self._membership, CallerMembership):
                self.member_of = self._membership.check(self._link.shown)
        except Refused as refusal:
            self._refuse(refusal)
        else:
            self._opened_for_use()

    def _refuse(self, refusal: Refused) -> None:
        code = GoawayCode.NOT_A_MEMBER if refusal.code == NOT_A_MEMBER else GoawayCode.REFUSED
        self._link.goaway(code, refusal.message)
        self._shut(refusal)

    def _opened_for_use(self) -> None:
        self._tick()
        if not self.ready.done():
            self.ready.set_result(None)

    # -- writing -----------------------------------------------------------------------------------------------

    def _do(self, action: Callable[..., None], *args: Any) -> None:
        """Let the link do something that queues frames. If it gives up over it, tell the handlers, but not from
        within the call of one of them."""
        try:
            action(*args)
        except Unreachable as error:
            self._loop.call_soon(self._shut, error, True)
        if self._link.queued_bytes:
            self._writer.schedule()

    def _has_room(self) -> None:
        """Bulk may be said again."""
        self._streams.wake_writers(lambda: self._writer.is_full)

    # -- roads -------------------------------------------------------------------------------------------------

    def _hand_over(self, heir: LinkConnection) -> asyncio.Transport:
        """Give up the road, which belongs to `heir` from now on."""
        transport = self._writer.hand_over()
        transport.pause_reading()
        self._heir, self._closing = heir, True
        self._link.close()
        self._cancel_timer()
        self._set_retired()
        return transport

    def _take(self, transport: asyncio.Transport) -> None:
        """Write there from now on. It is read once the peer writes there too."""
        transport.set_protocol(self)
        self._writer.take(transport)

    def _road_is_gone(self) -> None:
        if not self.closed.done():
            self.closed.set_result(self._reason)

    # -- time and the end --------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def _tick(self) -> None:
        if self._closing:
            return
        self._cancel_timer()
        now_ms = self._now_ms()
        try:
            due_ms = self._link.tick(now_ms)
        except Unreachable as error:
            self._shut(error)
            return
        # A millisecond more, so that the timer does not fire a rounding too early.
        self._timer = self._loop.call_later((due_ms - now_ms + 1) / 1000, self._tick)
        if self._link.queued_bytes:
            self._writer.schedule()

    def _stalled(self) -> None:
        self._shut(
            Unreachable(f"{self.name} read too little for {self._write_stall_s:g} s while bytes waited for it."), True
        )

    def _shut(self, reason: P2pgridError | None, abort: bool = False) -> None:
        """Tell everybody, once, that the link is over, and let go of the road."""
        if self._closing:
            return
        self._closing = True
        self._reason = reason
        self._link.close()
        self._cancel_timer()
        error = reason or Unreachable(f"this side closed the link to {self.name}.")
        if self._move is not None:
            self._move.give_up(error)
            self._move = None
        self._writer.close(abort=abort)
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # dial() reports it; a listener's log has it already
        self._set_retired()
        self._streams.lose_all(error)

    def _set_retired(self) -> None:
        if not self.retired.done():
            self.retired.set_result(None)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
