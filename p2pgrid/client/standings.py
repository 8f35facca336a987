"""How every provider stands: what is remembered of it, and what the session with it knows right now."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pgrid.client.choice import UNKNOWN, Standing
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.session import ProviderSession


class Standings:
    """By peer id, for as long as this process runs."""

    def __init__(
        self, sessions: Mapping[str, ProviderSession], quarantine: Quarantine, now_ms: Callable[[], int]
    ) -> None:
        self._sessions = sessions
        self._quarantine = quarantine
        self._now_ms = now_ms
        self._standings: dict[str, Standing] = {}
        self._away: set[str] = set()
        """Providers whose last failure was not to be there."""

    def of(self, peer_id: str) -> Standing:
        """How the provider stands now."""
        standing = known = self._standings.get(peer_id, UNKNOWN)
        session, held = self._sessions.get(peer_id), self._quarantine.peers.get(peer_id)
        if held is not None:
            standing = standing.quarantined(held.reason)
        if session is not None:
            life = session.life
            if life.quarantine:
                standing = standing.quarantined(life.quarantine)
            elif life.is_ready and peer_id in self._away:
                self._away.discard(peer_id)
                standing = Standing(first_token_ms=standing.first_token_ms)
            elif life.is_down and standing.retry_ms() <= (now_ms := self._now_ms()):
                self._away.add(peer_id)
                standing = standing.failed(now_ms)
        if standing is not known:
            self._standings[peer_id] = standing
        return standing

    def answered(self, peer_id: str, first_token_ms: float) -> None:
        """It answered in full; its first token took so long."""
        self._standings[peer_id] = self._standings.get(peer_id, UNKNOWN).answered(first_token_ms)

    def failed(self, peer_id: str, *, is_away: bool) -> None:
        """It failed a request. `is_away`: by not being there, which a link that is made undoes."""
        self._standings[peer_id] = self._standings.get(peer_id, UNKNOWN).failed(self._now_ms())
        if is_away:
            self._away.add(peer_id)

    def forget(self, peer_id: str) -> None:
        """It begins anew."""
        self._standings.pop(peer_id, None)
