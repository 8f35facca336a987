"""An invitation: the file with which a network is joined. It holds all that closes the network, its secret too."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from p2pgrid.config import NetworkName, Section
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.net.addresses import parse_peer_multiaddr
from p2pgrid.net.member_books import MAX_MEMBERS
from p2pgrid.networks.entries import parse_group_key
from p2pgrid.proto.closed_network import SECRET_BYTES, Kind
from p2pgrid.proto.keys import parse_peer_id
from p2pgrid.proto.membership import MAX_MEMBERSHIP_BYTES
from p2pgrid.proto.record import Record, parse_record

MAX_INVITATION_BYTES: Final = 8 * 1024 * 1024
_HEAD: Final = "# An invitation to the network {name}: p2pgrid network join FILE\n"
_WARNING: Final = "# It holds the network's secret: whoever reads it can join. Keep it as you keep a key.\n"


class Invitation(Section, frozen=True, kw_only=True):
    """What stands in the file, which is TOML."""

    p2pgrid_invitation: Literal[1]
    """The version of the form."""
    network: NetworkName
    kind: Literal["secret", "members", "group-key"]
    bootstrap: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    secret: str | None = None
    """64 hex digits."""
    members: Annotated[tuple[str, ...], Meta(max_length=MAX_MEMBERS)] | None = None
    group_key: str | None = None
    membership: str | None = None
    """That of the peer who is invited, in wire form, base64."""

    @property
    def is_secret(self) -> bool:
        """True if whoever reads it can join."""
        return self.secret is not None

    @property
    def membership_record(self) -> Record | None:
        """The membership, not verified. Raises UsageError."""
        if self.membership is None:
            return None
        try:
            raw = base64.b64decode(self.membership.encode("ascii"), validate=True)
            if len(raw) > MAX_MEMBERSHIP_BYTES:
                raise InvalidRecord("oversize", f"it has {len(raw)} bytes.")
            return parse_record(raw)
        except (InvalidRecord, binascii.Error, UnicodeError):
            raise UsageError("the invitation's membership is damaged.", hint="Ask for the file again.") from None

    @property
    def secret_bytes(self) -> bytes:
        """The secret. Raises UsageError."""
        try:
            secret = bytes.fromhex(self.secret or "")
        except ValueError:
            secret = b""
        if len(secret) != SECRET_BYTES:
            raise UsageError("the invitation's secret is damaged.", hint="Ask for the file again.")
        return secret


def write_invitation(invitation: Invitation) -> str:
    """The text of the file."""
    lines = [_HEAD.format(name=invitation.network), _WARNING if invitation.is_secret else ""]
    fields: dict[str, Any] = msgspec.to_builtins(invitation)
    for key, value in fields.items():
        if value in (None, (), []):
            continue
        if isinstance(value, list | tuple):
            lines.append(f"{key} = [\n" + "".join(f"    {json.dumps(one)},\n" for one in value) + "]\n")
        else:
            lines.append(f"{key} = {json.dumps(value)}\n")
    return "".join(lines)


def read_invitation(text: bytes, source: str) -> Invitation:
    """An invitation from a file's bytes; `source` names it in messages. Raises UsageError."""
    if len(text) > MAX_INVITATION_BYTES:
        raise UsageError(f"{source} is too large to be an invitation: {len(text)} bytes.")
    try:
        invitation = msgspec.toml.decode(text, type=Invitation)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{source} is no invitation: {error}.", hint="`p2pgrid network invite NAME > FILE` makes one."
        ) from None
    _check(invitation, source)
    return invitation


def _check(invitation: Invitation, source: str) -> None:
    said = {
        Kind.SECRET: invitation.secret is not None,
        Kind.MEMBERS: invitation.members is not None,
        Kind.GROUP_KEY: invitation.group_key is not None,
    }
    if [kind for kind, is_said in said.items() if is_said] != [invitation.kind]:
        raise UsageError(f"{source} is no invitation: it does not hold what its kind, {invitation.kind}, asks for.")
    for address in invitation.bootstrap:
        parse_peer_multiaddr(address)
    if invitation.secret is not None:
        assert invitation.secret_bytes
    if invitation.group_key is not None:
        parse_group_key(invitation.group_key)
    for peer_id in invitation.members or ():
        try:
            parse_peer_id(peer_id)
        except InvalidRecord as error:
            raise UsageError(f"{source}: {error.message}") from None
    assert invitation.membership is None or invitation.membership_record is not None
