"""Who is a member of a closed network, as this node knows it now: one kind of book for each kind of network.

A book answers from what it has in memory, from any thread. `refresh` looks whether its files have changed; one that
cannot be read, or that says what no such file may say, changes nothing: the last good state stays in force, and the
fault is logged.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Final

from p2pgrid.errors import InvalidRecord, Refused, UsageError
from p2pgrid.proto.closed_network import ClosedNetwork
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.membership import verify_any_membership, verify_membership
from p2pgrid.proto.record import parse_json_line

log = logging.getLogger(__name__)

NOT_A_MEMBER: Final = "not-a-member"
MAX_MEMBERS: Final = 100_000
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
_SOON_MS: Final = (3 * 86_400_000, 86_400_000, 3_600_000, 0)
"""How long before the end of its own membership a node says so."""
MAX_REMEMBERED: Final = 20_000
"""Peers whose memberships were seen."""


class MemberBook:
    """Who is in one closed network."""

    def __init__(self, network: ClosedNetwork) -> None:
        self.network: Final = network

    @property
    def own_membership(self) -> bytes | None:
        """What this node shows of its own membership beside its MAC; None where it lacks what it has to show."""
        return b""

    @abstractmethod
    def admit(self, peer: PublicKey, shown: bytes, now_ms: int) -> None:
        """The peer has the right MAC, and showed this beside it. Raises Refused (`not-a-member`) if it is no member."""

    @abstractmethod
    def holds(self, peer_id: str, now_ms: int) -> bool:
        """True while a peer that was admitted is a member."""

    def refresh(self, now_ms: int) -> None:
        """Look at the files again, and at the time."""

    def why_not_us(self) -> str:
        """What may be wrong where another member does not take us for one: a sentence."""
        return "The secrets, or the names, of the two differ: join with a new invitation."


class SecretBook(MemberBook):
    """Whoever has the right MAC holds the secret, and is a member for as long as it is the secret."""

    def admit(self, peer: PublicKey, shown: bytes, now_ms: int) -> None:
        pass

    def holds(self, peer_id: str, now_ms: int) -> bool:
        return True


class ListBook(MemberBook):
    """The peer ids on a list: those given, or those in a file, a line each; behind `#` is a comment."""

    def __init__(self, network: ClosedNetwork, members: Path | tuple[str, ...]) -> None:
        """Raises UsageError for a file that cannot be read, and for what is no peer id."""
        super().__init__(network)
        self._file = _Watched(members) if isinstance(members, Path) else None
        if isinstance(members, Path):
            self._members = parse_member_list(read_text(members), str(members))
        else:
            self._members = _checked(members, f"the members of {network.name}")

    @property
    def members(self) -> frozenset[str]:
        """The list as it is now."""
        return self._members

    def admit(self, peer: PublicKey, shown: bytes, now_ms: int) -> None:
        if peer.peer_id not in self._members:
            raise Refused(NOT_A_MEMBER, f"{peer} is not on the list of members of {self.network.name!r}.")

    def holds(self, peer_id: str, now_ms: int) -> bool:
        return peer_id in self._members

    def refresh(self, now_ms: int) -> None:
        if self._file is None or not self._file.has_changed():
            return
        try:
            members = parse_member_list(read_text(self._file.path), str(self._file.path))
        except UsageError as error:
            log.error("%s The list of before stays in force.", error.message)
            return
        came, went = members - self._members, self._members - members
        self._members = members
        log.info("members of %s: %d, %d came, %d went", self.network.name, len(members), len(came), len(went))

    def why_not_us(self) -> str:
        return "Its list of members lacks this node's peer id, or the names of the networks differ."


class GroupBook(MemberBook):
    """Who has shown a Membership by the group's key, and until when the last one is in force."""

    def __init__(self, network: ClosedNetwork, own: PublicKey, membership_file: Path) -> None:
        """`own`: this node's key. The file need not be there yet: without it this node is no member.

        Raises UsageError for a file that holds no membership of this node in this network.
        """
        super().__init__(network)
        self._own = own
        self._file = _Watched(membership_file)
        self._own_membership: bytes | None = None
        self._own_until_ms = 0
        self._said = 0
        """How far the end was announced."""
        self._until_ms: dict[str, int] = {}
        if membership_file.exists():
            self._load()

    @property
    def own_membership(self) -> bytes | None:
        return self._own_membership

    @property
    def own_until_ms(self) -> int:
        """Until when this node is a member; 0 if it has no membership."""
        return self._own_until_ms

    def admit(self, peer: PublicKey, shown: bytes, now_ms: int) -> None:
        if not shown:
            raise Refused(NOT_A_MEMBER, f"{peer} shows no membership of {self.network.name!r}.")
        try:
            membership = verify_membership(shown, self.network, peer, now_ms)
        except InvalidRecord as error:
            raise Refused(
                NOT_A_MEMBER, f"the membership of {peer} in {self.network.name!r} does not hold: {error.message}"
            ) from error
        until_ms = max(membership.valid_until_ms, self._until_ms.pop(peer.peer_id, 0))
        self._until_ms[peer.peer_id] = until_ms
        while len(self._until_ms) > MAX_REMEMBERED:
            del self._until_ms[next(iter(self._until_ms))]

    def holds(self, peer_id: str, now_ms: int) -> bool:
        return self._until_ms.get(peer_id, -1) >= now_ms

    def refresh(self, now_ms: int) -> None:
        if self._file.has_changed():
            try:
                self._load()
            except UsageError as error:
                log.error("%s The membership of before stays in use.", error.message)
            else:
                log.info("this node's membership of %s was read anew", self.network.name)
        left_ms = self._own_until_ms - now_ms
        stage = sum(left_ms < soon_ms for soon_ms in _SOON_MS) if self._own_until_ms else 0
        if stage > self._said:
            when = "has ended" if left_ms < 0 else f"ends in {left_ms // 3_600_000} h"
            log.warning("this node's membership of %s %s: have it admitted again", self.network.name, when)
        self._said = stage

    def why_not_us(self) -> str:
        if self._own_membership is None:
            return "This node has no membership yet: `p2pgrid network admit` makes one, where the group's key is."
        return "This node's membership has ended, or the group's key, or the name, is another."

    def _load(self) -> None:
        path = self._file.path
        try:
            raw = parse_json_line(read_text(path).strip().encode()).to_bytes()
            membership = verify_any_membership(raw, self.network)
            if membership.member != self._own.raw:
                raise InvalidRecord("wrong-key", f"it is that of another peer than {self._own}.")
        except InvalidRecord as error:
            raise UsageError(
                f"{path} is no membership of this node in {self.network.name!r}: {error.message}",
                hint="`p2pgrid network admit NAME PEER` makes one, where the group's key is.",
            ) from None
        self._own_membership, self._own_until_ms = raw, membership.valid_until_ms


class _Watched:
    """A file, and what it looked like when it was last found to have changed."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._seen = self._look()

    def has_changed(self) -> bool:
        """True once for each change. A file that is gone is no change: somebody is writing it anew, or has erred."""
        now = self._look()
        if now is None or now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def parse_member_list(text: str, source: str) -> frozenset[str]:
    """Peer ids, one a line. Raises UsageError that names the line."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return _checked([line for line in lines if line], source)


def read_text(path: Path) -> str:
    """The whole of a file that is not too large. Raises UsageError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UsageError(f"{path} has more than {MAX_FILE_BYTES} bytes.", hint="Keep one peer id a line.")
        return raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", hint="Check its name and owner.") from None


def _checked(peer_ids: list[str] | tuple[str, ...], source: str) -> frozenset[str]:
    if len(peer_ids) > MAX_MEMBERS:
        raise UsageError(f"{source}: {len(peer_ids)} members; at most {MAX_MEMBERS} are read.", hint="Use a group key.")
    for peer_id in peer_ids:
        try:
            parse_peer_id(peer_id)
        except InvalidRecord:
            raise UsageError(
                f"{source}: {peer_id[:80]!r} is no peer id.",
                hint="Write one a line, like 12D3KooW...; # begins a comment.",
            ) from None
    return frozenset(peer_ids)
