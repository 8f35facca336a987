"""`/.well-known/p2pgrid.json`: the file by which a domain says which peers are its own (docs/spec/card.md, section 4).

    {"p2pgrid": 1, "operator": "12D3KooW...", "peers": ["12D3KooW..."], "cards": [{"type": ..., "payload": ...}]}

Whoever can put a file there controls the domain: that is all it proves, and that is what it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.card import Card
from p2pgrid.proto.card_chain import MAX_CARDS, CardChain, KeyState, key_state, verify_chain
from p2pgrid.proto.keys import parse_peer_id, parse_public_key
from p2pgrid.proto.record import Signed, parse_json_line

PATH: Final = "/.well-known/p2pgrid.json"
MAX_BYTES: Final = 256 * 1024

_PeerId = Annotated[str, Meta(max_length=64)]


class WellKnown(msgspec.Struct, frozen=True, kw_only=True):
    """The file. Fields that are not known are passed over: a domain may say more."""

    p2pgrid: Annotated[int, Meta(ge=1, le=1)]
    operator: _PeerId
    peers: Annotated[tuple[_PeerId, ...], Meta(max_length=64)]
    cards: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=MAX_CARDS)] = ()
    """The last of the operator's cards, in the text form of records."""


def well_known_of(cards: Sequence[Signed[Card]], now_ms: int) -> dict[str, Any]:
    """The file's content for an operator whose chain is `cards` (not empty): the peers bound now."""
    latest = cards[-1].message
    bound = [peer.key for peer in latest.peers if key_state(cards, peer.key, now_ms) is KeyState.BOUND]
    return {
        "p2pgrid": 1,
        "operator": parse_public_key(latest.operator).peer_id,
        "peers": [parse_public_key(key).peer_id for key in bound],
        "cards": [msgspec.json.decode(card.record.to_json_line()) for card in cards[-MAX_CARDS:]],
    }


def parse_well_known(data: bytes) -> tuple[WellKnown, CardChain]:
    """Read untrusted bytes: the file, and the chain in it, verified. Raises InvalidRecord."""
    if len(data) > MAX_BYTES:
        raise InvalidRecord("oversize", f"the file has {len(data)} bytes; at most {MAX_BYTES} were expected.")
    try:
        known = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord("malformed", f"this is no {PATH}: {error}.") from None
    for peer_id in (known.operator, *known.peers):
        parse_peer_id(peer_id)
    return known, verify_chain(parse_json_line(bytes(card)) for card in known.cards)


_decoder: Final = msgspec.json.Decoder(WellKnown)
