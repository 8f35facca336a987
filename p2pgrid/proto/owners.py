"""Whose export each bundle is, and so whom a finding belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from p2pgrid.proto.channel_book import roles_of
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Draft, Finding
from p2pgrid.proto.keys import peer_id_or_hex
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, Role

MOST_PLACES: Final = 16
"""Lines that a finding names; of more it says how many."""


class Owners:
    """Whose export each bundle is, and so who answers for what is wrong with the file."""

    def __init__(self, sources: list[str], stated: list[Role | None], channels: dict[bytes, Held[Channel]]) -> None:
        self._sources = sources
        self._channels = channels
        held: list[list[Channel]] = [[] for _ in sources]
        for channel in channels.values():
            for bundle in sorted({place.bundle for place in channel.places}):
                held[bundle].append(channel.message)
        self.sides = [side or _common_side(held[i]) for i, side in enumerate(stated)]
        self._keys = [_only({roles_of(c)[side] for c in held[i]}) if side else b"" for i, side in enumerate(self.sides)]

    def finding(self, draft: Draft, times_ms: Mapping[bytes, int]) -> Finding:
        """The draft with its party resolved and named."""
        party, keys = self._blame(draft)
        is_absence = draft.code in ("left-out", "not-received")
        return Finding(
            code=draft.code,
            party=party,
            peer_ids=tuple(peer_id_or_hex(key) for key in keys if key),
            record_id=draft.record_id.hex(),
            where=self._where(draft),
            sentence=draft.sentence,
            convinces=draft.proves and CODES[draft.code].weight is Weight.FAULT,
            channel=draft.channel.hex(),
            time_ms=0 if is_absence else times_ms.get(draft.record_id, 0),
            count=draft.count,
            difference_cents=draft.cents,
            other_record_ids=tuple(other.hex() for other in draft.others if other),
        )

    def _where(self, draft: Draft) -> str:
        if draft.last_line:
            return f"{self._sources[draft.places[0].bundle]}:{draft.places[0].line}-{draft.last_line}"
        shown = ", ".join(f"{self._sources[p.bundle]}:{p.line}" for p in draft.places[:MOST_PLACES])
        more = len(draft.places) - MOST_PLACES
        return f"{shown} and {more} more" if more > 0 else shown

    def _blame(self, draft: Draft) -> tuple[Party, list[bytes]]:
        party = draft.blamed
        channel = self._channels.get(draft.channel)
        if party is Party.SIGNER:
            roles = sorted(draft.signers, reverse=True)
            party = Party.BOTH if len(roles) > 1 else Party(roles[0]) if roles else Party.UNCLEAR
            return party, [draft.signers[role] for role in roles]
        own_keys: dict[Role, bytes] = {}
        if party is Party.HOLDER:
            bundles = draft.holders or tuple(sorted({place.bundle for place in draft.places}))
            sides = {self.sides[bundle] for bundle in bundles}
            own_keys = {side: self._keys[b] for b in bundles if (side := self.sides[b]) is not None}
            side = next(iter(sides))
            party = Party.UNCLEAR if None in sides else Party.BOTH if len(sides) > 1 else Party(str(side))
        keys = roles_of(channel.message) if channel is not None else {**own_keys, **draft.signers}
        wanted = list(PARTIES) if party is Party.BOTH else [Role(party)] if party is not Party.UNCLEAR else []
        return party, [keys.get(role, b"") for role in wanted]


def _common_side(channels: list[Channel]) -> Role | None:
    """The side of the one key that all channels of a bundle share, if there are several and only one is."""
    sides = [role for role in PARTIES if len({roles_of(c)[role] for c in channels}) == 1]
    return sides[0] if len(channels) > 1 and len(sides) == 1 else None


def _only(keys: set[bytes]) -> bytes:
    return next(iter(keys)) if len(keys) == 1 else b""
