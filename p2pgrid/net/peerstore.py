"""libp2p 0.8.1's peerstore, kept from forgetting who we are.

When it knows more than 1,000 peers it evicts those without an address first, and its own host's entry, which holds
the private key, has none: strangers could fill it until the host can no longer sign.
"""

from __future__ import annotations

from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore


class OwnKeyPeerStore(PeerStore):  # type: ignore[misc]
    """A peerstore that never evicts the entry of `own`."""

    def __init__(self, own: ID) -> None:
        super().__init__()
        self._own = own

    def _enforce_peer_limit(self) -> None:
        kept = self.peer_data_map.pop(self._own, None)
        super()._enforce_peer_limit()
        if kept is not None:
            self.peer_data_map[self._own] = kept
