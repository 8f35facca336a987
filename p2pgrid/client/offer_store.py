"""What is on sale, as far as providers have said it themselves: each offer verified, the newest of each, none past its
time. No network here: `offers.py` asks, and what it hears is judged and kept here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from p2pgrid.client.presence import DEAD_AFTER_FAILURES, UNSEEN, Presence
from p2pgrid.errors import InvalidRecord
from p2pgrid.net.addresses import MAX_ADDRESSES_PER_PEER
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Record, Role, Signed, parse_record, verify_self_signed
from p2pgrid.proto.wire.offers import Capacity
from p2pgrid.proto.withdrawal import Withdrawal, verify_withdrawal, withdraws

log = logging.getLogger(__name__)

MAX_OFFERS: Final = 2_000
FORGET_DEAD_MS: Final = 60_000
_OWN_ADDRESSES: Final = 3
"""Of those that an offer names for libp2p: they are dialled besides what a look-up found."""

OnConflict = Callable[[str, Sequence[Record], str], None]
"""Called with a peer id, its two offers under one number, and a sentence: evidence against the provider."""


@dataclass(slots=True)
class Entry:
    """One provider."""

    peer: PeerAddress
    """Where it was last said to be."""
    offer: Signed[Offer] | None = None
    withdrawn_below: int = 0
    """It has withdrawn its offers below this number."""
    presence: Presence = UNSEEN


def verify_offer(raw: bytes, peer_id: str, now_ms: int) -> Signed[Offer]:
    """An offer that `peer_id` signed and that is in force, by this clock give or take 120 s at its beginning.

    Raises InvalidRecord: what `parse_record` and `verify_self_signed` raise, `wrong-key`, `not-in-force`.
    """
    offer = verify_self_signed(parse_record(raw), Offer, Role.PROVIDER)
    message = offer.message
    signer = offer.signers[Role.PROVIDER]
    if message.provider != signer.raw or signer.peer_id != peer_id:
        raise InvalidRecord("wrong-key", f"the offer is signed by {signer.peer_id}; {peer_id} was asked for its own.")
    if message.valid_until_ms <= now_ms:
        raise InvalidRecord(
            "not-in-force",
            f"the offer of {peer_id} ended {(now_ms - message.valid_until_ms) // 1000} s ago by this clock.",
            hint="Check this machine's clock (NTP) if all offers look so.",
        )
    if message.valid_from_ms > now_ms + CLOCK_TOLERANCE_MS:
        raise InvalidRecord(
            "not-in-force",
            f"the offer of {peer_id} begins in {(message.valid_from_ms - now_ms) // 1000} s by this clock.",
            hint="Check this machine's clock (NTP) if all offers look so.",
        )
    return offer


class OfferStore:
    """Offers and who made them, by peer id."""

    def __init__(self, now_ms: Callable[[], int], on_conflict: OnConflict | None = None) -> None:
        self.on_conflict = on_conflict
        self.on_back: Callable[[str], None] = lambda _: None
        """Called with the peer id of a provider that has a new offer, or answers again."""
        self.version = 0
        """Another number after every change."""
        self.refused: Counter[str] = Counter()
        """What peers sent that was not taken, by the reason's code: `wrong-key`, `bad-signature`, `older`..."""
        self._now_ms = now_ms
        self._entries: dict[str, Entry] = {}
        self._faulty: set[str] = set()
        """Those of the entries that have failed of late, or have no offer."""
        self._by_model: dict[str, dict[str, Signed[Offer]]] = {}
        self._barred: set[str] = set()
        self._changed = asyncio.Event()

    # -- reading -------------------------------------------------------------------------------------------------

    def offers(self) -> list[Signed[Offer]]:
        """What to show: every offer in force whose provider has confirmed it and answers, one of each provider."""
        return [offer for entry, offer in self._in_force() if entry.presence.is_here]

    def worth_dialling(self) -> list[Signed[Offer]]:
        """Every offer in force of a provider that did not fail of late, remembered ones too."""
        return [offer for entry, offer in self._in_force() if not entry.presence.failures]

    def offers_of(self, model: str) -> list[tuple[str, Signed[Offer]]]:
        """Every offer in force of a model, confirmed or not, with its provider's peer id.

        What else is on sale costs nothing here.
        """
        now_ms = self._now_ms()
        return [
            (peer_id, offer)
            for peer_id, offer in self._by_model.get(model, {}).items()
            if offer.message.valid_until_ms > now_ms and peer_id not in self._barred
        ]

    def models(self) -> tuple[str, ...]:
        """Every model in force, sorted."""
        return tuple(sorted(model for model in self._by_model if self.offers_of(model)))

    def offer_of(self, peer_id: str) -> Signed[Offer] | None:
        """The provider's offer in force, confirmed or not; or None."""
        entry = self._entries.get(peer_id)
        if entry is None or entry.offer is None or peer_id in self._barred:
            return None
        return entry.offer if entry.offer.message.valid_until_ms > self._now_ms() else None

    def addresses_of(self, provider: PublicKey) -> Sequence[str]:
        """Where the provider's offer in force says that it is."""
        offer = self.offer_of(provider.peer_id)
        return offer.message.addresses if offer is not None else ()

    def presence_of(self, peer_id: str) -> Presence:
        """What is known of whether the provider is there."""
        entry = self._entries.get(peer_id)
        return entry.presence if entry is not None else UNSEEN

    def address_of(self, peer_id: str) -> PeerAddress:
        """Where to dial the provider for its offer: what was said last first, then what its own offer says."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return PeerAddress(peer_id, ())
        known, end = entry.peer.addresses, f"/p2p/{peer_id}"
        own = [one for one in entry.offer.message.addresses if one.endswith(end)] if entry.offer is not None else []
        few = MAX_ADDRESSES_PER_PEER - min(len(own), _OWN_ADDRESSES)
        merged = dict.fromkeys([*known[:few], *own[:_OWN_ADDRESSES], *known[few:]])
        return PeerAddress(peer_id, tuple(merged)[:MAX_ADDRESSES_PER_PEER], entry.peer.networks)

    @property
    def n_silent(self) -> int:
        """Peers that were said to sell something and did not answer with an offer the last time they were asked."""
        return sum(entry.presence.failures > 0 for entry in self._entries.values())

    async def wait_for_change(self) -> None:
        """Return when an offer was added or dropped, or a provider is gone or back."""
        await self._changed.wait()

    def tell(self) -> None:
        """Something that whoever waits for a change may want to look at again."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    # -- what a provider says ------------------------------------------------------------------------------------

    def add(self, raw: bytes, peer: PeerAddress) -> Signed[Offer]:
        """The provider itself has given this offer: verify it, and take it in unless a newer one is known.

        The one now in the book is returned. Raises InvalidRecord; `two-offers-one-number` for a second offer under one
        number, upon which the provider is barred; `withdrawn` for one that it has withdrawn.
        """
        with self._counting():
            entry, offer, is_new = self._take(raw, peer)
        was_here = entry.presence.is_here
        entry.presence = entry.presence.confirmed(self._now_ms())
        self._faulty.discard(peer.peer_id)
        if not is_new and offer.record.to_bytes() != raw:
            self.refused["older"] += 1
        if is_new or not was_here:
            self.tell()
            self.on_back(peer.peer_id)
        return offer

    def remember(self, raw: bytes, peer: PeerAddress) -> None:
        """Take in what a file says that a provider had said: nothing of it is confirmed. Raises InvalidRecord."""
        self._take(raw, peer)
        self.tell()

    def withdraw(self, raw: bytes, peer: PeerAddress) -> None:
        """The provider itself has shown this withdrawal: drop the offer that it is about, if it is the one known.

        Raises InvalidRecord.
        """
        with self._counting():
            withdrawal = verify_withdrawal(raw, peer.peer_id, self._now_ms()).message
        entry = self._entries.get(peer.peer_id)
        if entry is None:
            return
        if entry.offer is not None and not withdraws(withdrawal, entry.offer.message):
            self.refused["older"] += 1
            return
        entry.withdrawn_below = max(entry.withdrawn_below, withdrawal.sequence)
        entry.presence = entry.presence.failed(self._now_ms())  # from now on it is asked ever less often
        self.drop_offer(peer.peer_id)

    def take(self, raw: bytes, peer: PeerAddress) -> None:
        """The provider itself has shown this: its offer, or that it has none. Raises InvalidRecord."""
        try:
            is_withdrawal = parse_record(raw).payload_type == Withdrawal.payload_type
        except InvalidRecord:
            is_withdrawal = False  # `add` says what is wrong with it
        if is_withdrawal:
            self.withdraw(raw, peer)
        else:
            self.add(raw, peer)

    def confirm(self, peer_id: str, capacity: Capacity) -> bool:
        """The provider itself has said what is free under which offer. True if that is the offer known here."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return False
        now_ms = self._now_ms()
        entry.presence = entry.presence.told(capacity, now_ms)
        offer = self.offer_of(peer_id)
        if offer is None or offer.message.sequence != capacity.sequence:
            return False
        was_here = entry.presence.is_here
        entry.presence = entry.presence.confirmed(now_ms)
        self._faulty.discard(peer_id)
        if not was_here:
            self.tell()
            self.on_back(peer_id)
        return True

    def drop_offer(self, peer_id: str) -> None:
        """The provider says that it sells nothing."""
        entry = self._entries.get(peer_id)
        if entry is not None and entry.offer is not None:
            self._put(peer_id, None)
            self.tell()

    # -- what else is heard --------------------------------------------------------------------------------------

    def found(self, peer: PeerAddress) -> bool:
        """A look-up says where a provider is. True if that is another place than it said before."""
        entry = self._entries.get(peer.peer_id)
        if entry is None or not peer.addresses or entry.peer.addresses == peer.addresses:
            return False
        is_moved = not set(peer.addresses) <= set(entry.peer.addresses)
        entry.peer = peer
        return is_moved

    def found_by_more(self, peer: PeerAddress) -> None:
        """At its end a look-up says which networks led to a provider. What it says of another place is left to the
        next one, which asks there (`found`)."""
        entry = self._entries.get(peer.peer_id)
        if entry is not None and entry.peer.addresses == peer.addresses:
            entry.peer = peer

    def note_dead(self, peer_id: str) -> None:
        """The provider did not answer. After three times in a row it is forgotten until it is found again."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return
        was_here = entry.presence.is_here
        entry.presence = entry.presence.failed(self._now_ms())
        self._faulty.add(peer_id)
        if entry.presence.failures >= DEAD_AFTER_FAILURES and entry.offer is not None:
            log.info("%s does not answer and is forgotten for now", peer_id)
            self._put(peer_id, None)
            was_here = True
        if was_here:
            self.tell()

    def forget(self, peer_id: str) -> None:
        """The provider sells nothing to us any more, until it is found again."""
        if peer_id in self._entries:
            self._forget(peer_id)
            self.tell()

    def unbar(self, peer_id: str) -> None:
        """Take offers of a provider again that signed two under one number. A person has decided so."""
        if peer_id in self._barred:
            self._barred.discard(peer_id)
            self._forget(peer_id)
            self.tell()

    def note_fault(self, peer: PeerAddress) -> None:
        """A peer that is new, or known, gave nothing good."""
        if peer.peer_id not in self._entries:
            self._make_room()
            self._entries[peer.peer_id] = Entry(peer)
        self.note_dead(peer.peer_id)

    def drop_expired(self) -> None:
        """Let go of those that are long dead and have no offer in force."""
        now_ms = self._now_ms()
        for peer_id, entry in list(self._entries.items()):
            presence = entry.presence
            ended = entry.offer is None or entry.offer.message.valid_until_ms <= now_ms
            if ended and presence.failures >= DEAD_AFTER_FAILURES and now_ms > presence.failed_ms + FORGET_DEAD_MS:
                self._forget(peer_id)

    # -- inside --------------------------------------------------------------------------------------------------

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count what is refused within."""
        try:
            yield
        except InvalidRecord as error:
            self.refused[error.code] += 1
            raise

    def _in_force(self) -> Iterator[tuple[Entry, Signed[Offer]]]:
        now_ms = self._now_ms()
        for peer_id, entry in self._entries.items():
            offer = entry.offer
            if offer is not None and offer.message.valid_until_ms > now_ms and peer_id not in self._barred:
                yield entry, offer

    def _take(self, raw: bytes, peer: PeerAddress) -> tuple[Entry, Signed[Offer], bool]:
        """The entry, the offer that counts, and whether it is new."""
        offer = verify_offer(raw, peer.peer_id, self._now_ms())
        if peer.peer_id in self._barred:
            raise InvalidRecord("two-offers-one-number", f"{peer.peer_id} has signed two offers under one number.")
        entry = self._entries.get(peer.peer_id)
        known = entry.offer if entry is not None else None
        sequence = offer.message.sequence
        if known is not None and known.message.sequence == sequence and known.id != offer.id:
            self._bar(peer.peer_id, known, offer)
        if entry is not None and sequence < entry.withdrawn_below:
            raise InvalidRecord("withdrawn", f"{peer.peer_id} shows offer {sequence}, which it has withdrawn.")
        if entry is None:
            self._make_room()
            entry = self._entries[peer.peer_id] = Entry(peer)
        if peer.addresses:
            entry.peer = peer
        if known is not None and known.message.sequence >= sequence:
            return entry, known, False
        self._put(peer.peer_id, offer)
        return entry, offer, True

    def _bar(self, peer_id: str, known: Signed[Offer], offer: Signed[Offer]) -> None:
        reason = f"two-offers: {peer_id} signed two offers under number {offer.message.sequence}."
        log.error("%s It is dealt with no more.", reason)
        self._barred.add(peer_id)
        self.tell()
        if self.on_conflict is not None:
            self.on_conflict(peer_id, (known.record, offer.record), reason)
        raise InvalidRecord(
            "two-offers-one-number", f"{peer_id} has signed two offers under number {offer.message.sequence}."
        )

    def _make_room(self) -> None:
        """Forget the peer that is most surely of no use, once there are too many: the oldest where all are well."""
        while len(self._entries) >= MAX_OFFERS:
            faulty = ((peer_id, self._entries[peer_id]) for peer_id in self._faulty)
            worst = min(faulty, key=lambda one: (one[1].offer is not None, -one[1].presence.failures), default=None)
            self._forget(worst[0] if worst is not None else next(iter(self._entries)))

    def _put(self, peer_id: str, offer: Signed[Offer] | None) -> None:
        """Change what the peer offers."""
        entry = self._entries[peer_id]
        if entry.offer is not None:
            for one in entry.offer.message.models:
                del self._by_model[one.model][peer_id]
                if not self._by_model[one.model]:
                    del self._by_model[one.model]
        if offer is not None:
            for one in offer.message.models:
                self._by_model.setdefault(one.model, {})[peer_id] = offer
        else:
            self._faulty.add(peer_id)
        entry.offer = offer
        self.version += 1

    def _forget(self, peer_id: str) -> None:
        if peer_id in self._entries:
            self._put(peer_id, None)
            del self._entries[peer_id]
            self._faulty.discard(peer_id)
