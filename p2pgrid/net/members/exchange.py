"""`/p2pgrid/member/1`: two peers on one connection prove to one another of which closed networks they are members.

docs/spec/network.md, section 3. The peer that is called writes a nonce. The caller writes its credentials, for all
closed networks that it is in; the other answers with its own, for those in which it takes the caller for a member. Each
message after the nonce has its length before it (4 bytes, big endian).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.host import close_stream, negotiate_on, reset_stream
from p2pgrid.net.member_books import NOT_A_MEMBER
from p2pgrid.net.offer_exchange import read_exactly
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.proto.credentials import (
    MAX_CREDENTIALS_BYTES,
    NONCE_BYTES,
    Credentials,
    Meeting,
    Side,
    Where,
    parse_credentials,
)
from p2pgrid.proto.keys import PublicKey, parse_peer_id

PROTOCOL: Final = "/p2pgrid/member/1"
EXCHANGE_TIMEOUT_S: Final = 5.0
_NOT_SUPPORTED: Final = "not supported"
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)


async def show_membership(
    host: BasicHost, connection: Any, own: OwnNetworks, own_key: PublicKey
) -> tuple[frozenset[str] | None, Refused | None]:
    """On a connection that may be anybody's: the networks in which peer and node have shown themselves to one another.

    None where the exchange came to no end. Where there is no network, also why, in words for whoever runs this node.
    Raises nothing for what the peer does.
    """
    peer_id = str(connection.muxed_conn.peer_id)
    try:
        with trio.fail_after(EXCHANGE_TIMEOUT_S):
            return await _call(host, connection, own, own_key, peer_id)
    except StreamFailure as error:
        if isinstance(error.__cause__, MultiselectClientError) and _NOT_SUPPORTED in str(error.__cause__):
            return _no(f"{peer_id} is in no closed network: it does not speak {PROTOCOL}.")
        return _no(f"{peer_id} did not take up {PROTOCOL}.")
    except trio.TooSlowError:
        return None, _no(f"{peer_id} did not answer on {PROTOCOL} in {EXCHANGE_TIMEOUT_S:g} s.")[1]
    except (Unreachable, *_BROKEN):
        return None, _no(f"the connection to {peer_id} ended while memberships were shown.")[1]
    except (ProtocolViolation, InvalidRecord) as error:
        return _no(f"{peer_id} shows no membership: {error.message}")


async def _call(
    host: BasicHost, connection: Any, own: OwnNetworks, own_key: PublicKey, peer_id: str
) -> tuple[frozenset[str], Refused | None]:
    stream = await negotiate_on(host, connection, PROTOCOL)
    try:
        nonce = await read_exactly(stream, NONCE_BYTES, peer_id)
        meeting = Meeting(
            Where.CONNECTION, nonce, secrets.token_bytes(NONCE_BYTES), called=parse_peer_id(peer_id), caller=own_key
        )
        ours = own.credentials(meeting, Side.CALLER, own.closed)
        await _write(stream, Credentials(nonce=meeting.caller_nonce, credentials=ours))
        theirs = parse_credentials(await _read(stream, peer_id), Side.CALLED)
    except BaseException:
        await reset_stream(stream)
        raise
    await close_stream(stream)
    proven, faults = own.judge(meeting, Side.CALLED, theirs.credentials, own.closed)
    if proven:
        return proven, None
    if faults:
        return proven, faults[0]
    return _no(f"{peer_id} does not take this node for a member of {_names(own.closed)}.", own.why_not_us(own.closed))


async def take_membership(
    stream: Any, own: OwnNetworks, own_key: PublicKey, note: Callable[[frozenset[str], Refused | None], None]
) -> None:
    """The other side. `note` is told in which networks the caller is a member, and where in none, why; then the caller
    hears that this node is in them too.

    Raises what a broken stream raises, trio.TooSlowError, ProtocolViolation, InvalidRecord, Unreachable.
    """
    peer_id = str(stream.muxed_conn.peer_id)
    with trio.fail_after(EXCHANGE_TIMEOUT_S):
        caller, nonce = parse_peer_id(peer_id), secrets.token_bytes(NONCE_BYTES)
        await stream.write(nonce)
        theirs = parse_credentials(await _read(stream, peer_id), Side.CALLER)
        meeting = Meeting(Where.CONNECTION, nonce, theirs.nonce, called=own_key, caller=caller)
        proven, faults = own.judge(meeting, Side.CALLER, theirs.credentials, own.closed)
        note(proven, faults[0] if faults else None)
        await _write(stream, Credentials(nonce=b"", credentials=own.credentials(meeting, Side.CALLED, proven)))
        await close_stream(stream)


async def _write(stream: Any, shown: Credentials) -> None:
    payload = shown.to_bytes()
    await stream.write(len(payload).to_bytes(4) + payload)


async def _read(stream: Any, peer_id: str) -> bytes:
    length = int.from_bytes(await read_exactly(stream, 4, peer_id))
    if length > MAX_CREDENTIALS_BYTES:
        raise ProtocolViolation(
            f"{peer_id} announces {length} bytes of credentials; at most {MAX_CREDENTIALS_BYTES} may come."
        )
    return await read_exactly(stream, length, peer_id)


def _no(message: str, hint: str = "") -> tuple[frozenset[str], Refused]:
    return frozenset(), Refused(NOT_A_MEMBER, message, hint=hint)


def _names(names: frozenset[str]) -> str:
    return " or ".join(repr(name) for name in sorted(names))
