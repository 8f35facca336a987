"""Credentials: how two peers on one connection prove to one another that they are in the same closed network.

A credential is a MAC under what the network's members alone can derive, over both sides' nonces and proven keys
(docs/spec/network.md, section 3). So it holds for this connection and in this direction, and whoever is shown it can
show it to nobody else; who is not in the network cannot tell of which network it speaks. The caller shows its own
first: the peer that is called says nothing of itself before.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Final

from msgspec import Meta

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.closed_network import ClosedNetwork
from p2pgrid.proto.fields import Digest, Id, Nested
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.membership import MAX_MEMBERSHIP_BYTES
from p2pgrid.proto.record import signature_input
from p2pgrid.proto.wire.base import Frame, parse_frame

NONCE_BYTES: Final = 32
MAX_CREDENTIALS: Final = 16
"""Closed networks that one node is in, at most."""
MAX_CREDENTIALS_BYTES: Final = 16 * 1024


class Credential(Nested, frozen=True, kw_only=True):
    """That the sender is a member of some network, which is not named."""

    mac: Id
    membership: Annotated[bytes, Meta(max_length=MAX_MEMBERSHIP_BYTES)] = b""
    """The sender's Membership in wire form, where a group's key closes the network."""


class Credentials(Frame, frozen=True, kw_only=True):
    """What one side shows. The caller's has its nonce, the other's none."""

    nonce: Digest
    credentials: Annotated[tuple[Credential, ...], Meta(max_length=MAX_CREDENTIALS)]


class Where(StrEnum):
    """On what the two meet. What is shown on one is worth nothing on the other."""

    LINK = "/p2pgrid/link-member-proof/1"
    """The caller is the link's dialler, the called's nonce that of HELLO."""
    CONNECTION = "/p2pgrid/member-proof/1"
    """A libp2p connection; the caller is who opened the stream."""


class Side(IntEnum):
    """Whose credential it is."""

    CALLER = 0
    CALLED = 1


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two peers on one connection, which has proven their keys, or is about to."""

    where: Where
    called_nonce: bytes
    caller_nonce: bytes
    called: PublicKey
    caller: PublicKey

    def mac(self, network: ClosedNetwork, side: Side) -> bytes:
        """The MAC of a member of `network`."""
        said = bytes([side]) + self.called_nonce + self.caller_nonce + self.called.raw + self.caller.raw
        return hmac.digest(network.credential_key, signature_input(self.where, said), hashlib.sha256)

    def issue(self, networks: Iterable[tuple[ClosedNetwork, bytes]], side: Side) -> tuple[Credential, ...]:
        """A credential for each of the networks, with one's own Membership or nothing."""
        return tuple(Credential(mac=self.mac(network, side), membership=shown) for network, shown in networks)

    def recognise(
        self, credentials: Sequence[Credential], networks: Iterable[ClosedNetwork], side: Side
    ) -> list[tuple[ClosedNetwork, bytes]]:
        """Those of `networks` for which the other side has the right MAC, each with the Membership beside it.

        That is not verified, and under a list or a group's key the MAC proves no more than that the other knows of the
        network.
        """
        found = []
        for network in networks:
            mac = self.mac(network, side)
            shown = [one.membership for one in credentials if hmac.compare_digest(one.mac, mac)]
            if shown:
                found.append((network, shown[0]))
        return found


def parse_credentials(payload: bytes, side: Side) -> Credentials:
    """What the peer sent as those of `side`. Raises ProtocolViolation."""
    if len(payload) > MAX_CREDENTIALS_BYTES:
        raise ProtocolViolation(
            f"the peer sent {len(payload)} bytes of credentials; at most {MAX_CREDENTIALS_BYTES} may come."
        )
    parsed = parse_frame(payload, Credentials)
    wanted = NONCE_BYTES if side is Side.CALLER else 0
    if len(parsed.nonce) != wanted:
        raise ProtocolViolation(f"the credentials of the {side.name.lower()} have a nonce of {wanted} bytes.")
    return parsed
