"""Membership (docs/spec/network.md, section 4): a group's key says that a peer is in its network, for a time."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.closed_network import ClosedNetwork
from p2pgrid.proto.fields import Key, TimeMs
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.record import Message, Role, Signed, parse_record, sign_message, verify_record

CLOCK_TOLERANCE_MS: Final = 120_000
"""A membership may begin so much later by our clock, for clocks differ."""
MAX_MEMBERSHIP_BYTES: Final = 512
"""Of the record in wire form."""
NetworkName = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")]


class Membership(Message, frozen=True, kw_only=True):
    """A peer is a member of a closed network from `valid_from_ms` up to and with `valid_until_ms`."""

    payload_type: ClassVar[str] = "/p2pgrid/membership/1"
    max_payload_bytes: ClassVar[int] = 256

    group: Key
    """The signer: the key that closes the network. It is no node's."""
    network: NetworkName
    member: Key
    valid_from_ms: TimeMs
    valid_until_ms: TimeMs

    def check(self) -> None:
        if self.valid_until_ms <= self.valid_from_ms:
            raise InvalidRecord("out-of-range", "the membership ends before it begins.")


def sign_membership(
    group: SecretKey, network: str, member: PublicKey, *, valid_from_ms: int, valid_until_ms: int
) -> Signed[Membership]:
    """Admit a peer. Raises InvalidRecord for what no membership may say."""
    message = Membership(
        group=group.public_key.raw,
        network=network,
        member=member.raw,
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
    )
    return sign_message(message, Role.OPERATOR, group)


def verify_membership(raw: bytes, network: ClosedNetwork, member: PublicKey, now_ms: int) -> Membership:
    """What a peer showed of its membership, if it is one of this network, its own, and in force.

    Raises InvalidRecord: `oversize`, `wrong-network`, `wrong-key` (another's, or by another key), `not-in-force`, and
    what `verify_record` raises.
    """
    message = verify_any_membership(raw, network)
    if message.member != member.raw:
        raise InvalidRecord("wrong-key", f"it is the membership of another peer than {member}.")
    if now_ms > message.valid_until_ms:
        raise InvalidRecord("not-in-force", f"it ended {(now_ms - message.valid_until_ms) // 1000} s ago.")
    if now_ms < message.valid_from_ms - CLOCK_TOLERANCE_MS:
        raise InvalidRecord(
            "not-in-force",
            f"it begins in {(message.valid_from_ms - now_ms) // 1000} s by this clock.",
            hint="Check this machine's clock (NTP).",
        )
    return message


def verify_any_membership(raw: bytes, network: ClosedNetwork) -> Membership:
    """As `verify_membership`, of whichever peer and time."""
    assert network.group is not None, "memberships close networks of the kind GROUP_KEY"
    if len(raw) > MAX_MEMBERSHIP_BYTES:
        raise InvalidRecord("oversize", f"a membership has at most {MAX_MEMBERSHIP_BYTES} bytes, this has {len(raw)}.")
    message = verify_record(parse_record(raw), Membership, {Role.OPERATOR: network.group}).message
    if message.group != network.group.raw:
        raise InvalidRecord("wrong-key", f"it names another key than {network.group}, which signed it.")
    if message.network != network.name:
        raise InvalidRecord("wrong-network", f"it is for the network {message.network!r}, not for {network.name!r}.")
    return message
