"""A link between members of a closed network: what either side shows, and what it makes of the other's.

docs/spec/network.md, section 3. `net/connection.py` asks here; the link itself carries it and judges nothing.
"""

from __future__ import annotations

import secrets
from typing import Final

from p2pgrid.errors import Refused
from p2pgrid.net.member_books import NOT_A_MEMBER
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.proto.credentials import NONCE_BYTES, Credentials, Meeting, Side, Where
from p2pgrid.proto.keys import PublicKey, SecretKey

NOTHING: Final[frozenset[str]] = frozenset()


class CallerMembership:
    """The dialler's: for one link."""

    def __init__(self, own: OwnNetworks, own_key: PublicKey, provider: PublicKey) -> None:
        self._own = own
        self._own_key = own_key
        self._provider = provider
        found = own.found_in(provider.peer_id)
        self._shown_for = found & own.closed
        """A provider that was found in open networks alone is told of no other."""
        self._needs_proof = not found & own.open
        self._meeting: Meeting | None = None

    def show(self, nonce: bytes) -> bytes:
        """The payload of MEMBER for the listener's nonce; empty where nothing is shown."""
        if not self._shown_for:
            return b""
        meeting = Meeting(Where.LINK, nonce, secrets.token_bytes(NONCE_BYTES), self._provider, self._own_key)
        credentials = self._own.credentials(meeting, Side.CALLER, self._shown_for)
        if not credentials:
            return b""
        self._meeting = meeting
        return Credentials(nonce=meeting.caller_nonce, credentials=credentials).to_bytes()

    def check(self, answer: Credentials | None) -> frozenset[str]:
        """The networks in which the provider has shown itself a member, from what came before READY.

        Raises Refused (`not-a-member`) where it had to and did not.
        """
        proven, faults = NOTHING, list[Refused]()
        if self._meeting is not None and answer is not None:
            proven, faults = self._own.judge(self._meeting, Side.CALLED, answer.credentials, self._shown_for)
        if not proven and self._needs_proof:
            if faults:
                raise faults[0]
            raise Refused(
                NOT_A_MEMBER,
                f"{self._provider} does not show that it is in {_names(self._shown_for)}.",
                hint=self._own.why_not_us(self._shown_for),
            )
        return proven


class CalledMembership:
    """The listener's: for all its links."""

    def __init__(self, own: OwnNetworks, own_key: PublicKey) -> None:
        self._own = own
        self._own_key = own_key
        self._served = own.selling
        """The networks in which this node sells."""
        self._closed = self._served & own.closed
        self._is_open = bool(self._served & own.open)

    def admit(self, peer: PublicKey, nonce: bytes, shown: Credentials | None) -> tuple[bytes, frozenset[str]]:
        """What to answer to the proven dialler before READY, and the networks in which it is a member.

        Raises Refused (`not-a-member`) for one that is in none of those where this node sells.
        """
        proven, faults, answer = NOTHING, list[Refused](), b""
        if shown is not None:
            meeting = Meeting(Where.LINK, nonce, shown.nonce, self._own_key, peer)
            proven, faults = self._own.judge(meeting, Side.CALLER, shown.credentials, self._closed)
            if proven:
                ours = self._own.credentials(meeting, Side.CALLED, proven)
                answer = Credentials(nonce=b"", credentials=ours).to_bytes()
        if not proven and not self._is_open:
            raise (
                faults[0] if faults else Refused(NOT_A_MEMBER, "this node serves the members of closed networks alone.")
            )
        return answer, proven

    def still_admits(self, peer_id: str, proven: frozenset[str]) -> bool:
        """False once a dialler that was let in for these networks is in none of them any more."""
        return self._is_open or bool(self._own.still(proven, peer_id))


def calling(
    own: OwnNetworks | None, key: SecretKey, provider: PublicKey, continues: object | None = None
) -> CallerMembership | None:
    """For a link that is dialled; None for a node that is in no closed network, and for another road of a link on which
    both have shown themselves."""
    is_needed = own is not None and own.closed and continues is None
    return CallerMembership(own, key.public_key, provider) if own is not None and is_needed else None


def called(own: OwnNetworks | None, key: SecretKey) -> CalledMembership | None:
    """For links that are taken; None for a node that is in no closed network."""
    return CalledMembership(own, key.public_key) if own is not None and own.closed else None


def _names(names: frozenset[str]) -> str:
    return " or ".join(repr(name) for name in sorted(names))
