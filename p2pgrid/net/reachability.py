"""Whether strangers can reach this node: one verdict out of what several peers say. No I/O, and no libp2p, here.

A peer that lies must not decide alone, so nothing counts as reached unless more than half of those that could try say
so (docs/spec/reachability.md, section 4).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from p2pgrid.net.reach_rules import is_local
from p2pgrid.net.reach_wire import Ip, Outcome, RoadName, Target, parse_target


class Reach(StrEnum):
    """How far away a node, a road or an address can be reached from."""

    OUTSIDE = "outside"
    """By strangers, from anywhere."""
    LOCAL = "local"
    """From this local network. Nobody outside of it was asked, or nobody there got through."""
    NOT = "unreachable"
    """Peers tried, and did not get through."""
    UNKNOWN = "unknown"
    """Nobody could be asked."""


_ORDER = (Reach.UNKNOWN, Reach.NOT, Reach.LOCAL, Reach.OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressReach:
    """The verdict on one address."""

    address: str
    """A multiaddr, with /tls for the direct road."""
    road: RoadName
    reach: Reach
    is_announced: bool
    """False for one that others are not told: this node's port at the IP address where peers see it."""
    outcomes: dict[str, int]
    """How many peers said what: `reached`, `refused`, `timed out`, `wrong peer`, `not tried`."""
    is_disputed: bool
    """True where peers that could try do not agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """What several peers say of how this node can be reached, and of its clock."""

    reach: Reach
    """The farthest of all announced addresses."""
    addresses: tuple[AddressReach, ...] = ()
    seen: tuple[str, ...] = ()
    """The IP addresses at which peers see this node, those that most agree on first; peers outside count first."""
    asked: int = 0
    answered: int = 0
    answered_outside: int = 0
    """Of those that answered: how many are not on this local network."""
    silent: int = 0
    """Peers of the network that do not know the protocol."""
    clock_ms: int | None = None
    """How far the clocks of those that answered are ahead of ours, in the middle; None if nobody answered."""
    newer: tuple[str, ...] = ()
    """Protocols that peers speak in a version which this node does not know."""
    checked_ms: int = 0
    """When, by our clock."""

    def of_road(self, road: RoadName) -> Reach | None:
        """The verdict on one road; None if no address of it is announced."""
        found = [one.reach for one in self.addresses if one.road is road and one.is_announced]
        return max(found, key=_ORDER.index) if found else None

    def roads(self) -> dict[str, str]:
        """The verdict on every road that is announced."""
        return {road.value: reach.value for road in RoadName if (reach := self.of_road(road)) is not None}

    @property
    def needs_no_relay(self) -> bool | None:
        """Whether strangers reach the libp2p port, over which a node is found and asked; None where nobody knows."""
        return {Reach.OUTSIDE: True, Reach.NOT: False}.get(self.of_road(RoadName.LIBP2P) or Reach.UNKNOWN)

    @property
    def is_disputed(self) -> bool:
        """True where peers do not agree about an announced address."""
        return any(one.is_disputed for one in self.addresses if one.is_announced)

    def unannounced(self, road: RoadName) -> str | None:
        """An address at which strangers reach this node, and which it does not tell others."""
        return next(
            (a.address for a in self.addresses if a.road is road and not a.is_announced and a.reach is Reach.OUTSIDE),
            None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """One peer's answer."""

    ip: Ip | None
    """Where the peer is; None if that is not known."""
    seen: Ip | None
    """Where it sees us."""
    outcomes: tuple[Outcome, ...]
    """One for each address that was asked about."""
    clock_ms: int = 0
    newer: tuple[str, ...] = ()

    @property
    def is_outside(self) -> bool:
        """True if it stands for strangers: its own address and ours, as it sees it, are not local, nor one and the
        same (behind one translation)."""
        return not (
            self.ip is None or self.seen is None or is_local(self.ip) or is_local(self.seen) or self.ip == self.seen
        )


def addresses_to_ask(announced: Iterable[str]) -> list[str]:
    """What to ask peers about: the announced addresses but those of loopback, and their ports at wherever a peer sees
    us; eight at most.

    Without the latter, a node behind a translation that forwards its port would not learn that it does.
    """
    targets = list(dict.fromkeys(t for text in announced if (t := parse_target(text)) is not None))
    wildcards = dict.fromkeys(w for t in targets if (w := _wildcard(t)) is not None)
    own = [t for t in targets if t.ip is None or not t.ip.is_loopback]
    return [t.address for t in [*list(wildcards)[:4], *own]][:8]


def judge(
    asked: Sequence[str],
    announced: Iterable[str],
    views: Sequence[PeerView],
    *,
    n_asked: int,
    silent: int = 0,
    now_ms: int = 0,
) -> Reachability:
    """The verdict. `asked` as `addresses_to_ask` made it, and each view's outcomes in its order."""
    told = {t for text in announced if (t := parse_target(text)) is not None}
    seen = _seen(views)
    votes = {text: _Votes.of(text, asked, views) for text in asked}
    rows = []
    for text, vote in votes.items():
        target = parse_target(text)
        assert target is not None
        if target.is_wildcard:
            at = next((ip for ip in seen if target.ip is not None and ip.version == target.ip.version), None)
            if at is None or (target.at(at) in told and target.at(at).address in votes):
                continue  # nobody sees us there; or it stands in a line of its own
            target = target.at(at)
        rows.append(
            AddressReach(
                address=target.address,
                road=target.road,
                reach=vote.reach,
                is_announced=target in told,
                outcomes=vote.outcomes,
                is_disputed=vote.is_disputed,
            )
        )
    announced_reach = [row.reach for row in rows if row.is_announced]
    return Reachability(
        reach=max(announced_reach, key=_ORDER.index, default=Reach.UNKNOWN),
        addresses=tuple(rows),
        seen=tuple(map(str, seen)),
        asked=n_asked,
        answered=len(views),
        answered_outside=sum(view.is_outside for view in views),
        silent=silent,
        clock_ms=round(statistics.median(view.clock_ms for view in views)) if views else None,
        newer=tuple(sorted({one for view in views for one in view.newer})),
        checked_ms=now_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Votes:
    """What was said about one address."""

    reach: Reach
    outcomes: dict[str, int]
    is_disputed: bool

    @classmethod
    def of(cls, text: str, asked: Sequence[str], views: Sequence[PeerView]) -> _Votes:
        target, index = parse_target(text), asked.index(text)
        assert target is not None
        wildcard = _wildcard(target)
        port = asked.index(wildcard.address) if wildcard is not None and wildcard.address in asked else index
        outside: list[Outcome] = []
        local: list[Outcome] = []
        for view in views:
            if view.seen is None or (target.ip is not None and view.seen.version != target.ip.version):
                continue  # it could not try: it sees us through a relay, or by the other version of IP
            outcome = view.outcomes[index]
            if view.is_outside:
                outside.append(outcome)
            else:
                # On the local network a port that is open is open at all of this machine's addresses.
                local.append(view.outcomes[port] if outcome is Outcome.NOT_TRIED else outcome)
        if _has_majority(outside):
            reach = Reach.OUTSIDE
        elif _has_majority(local):
            reach = Reach.LOCAL
        else:
            reach = Reach.NOT if outside or local else Reach.UNKNOWN
        said = Counter(outcome.words for outcome in [*outside, *local])
        return cls(reach=reach, outcomes=dict(said), is_disputed=_is_disputed(outside) or _is_disputed(local))


def _has_majority(outcomes: Sequence[Outcome]) -> bool:
    """Who did not try, because it sees us elsewhere, counts against: else a lie about where it sees us would decide."""
    return outcomes.count(Outcome.REACHED) * 2 > len(outcomes)


def _is_disputed(outcomes: Sequence[Outcome]) -> bool:
    tried = [one for one in outcomes if one is not Outcome.NOT_TRIED]
    return len({one is Outcome.REACHED for one in tried}) > 1


def _wildcard(target: Target) -> Target | None:
    """The same port at wherever a peer sees us; None for a name."""
    ip = target.ip
    if ip is None:
        return None
    kind, host = ("ip4", "0.0.0.0") if ip.version == 4 else ("ip6", "::")  # noqa: S104 (asked for, not listened on)
    return Target(kind, host, target.port, target.road)  # type: ignore[arg-type]


def _seen(views: Sequence[PeerView]) -> list[Ip]:
    count = Counter(view.seen for view in views if view.seen is not None)
    outside = Counter(view.seen for view in views if view.seen is not None and view.is_outside)
    return sorted(count, key=lambda ip: (-outside[ip], -count[ip], str(ip)))
