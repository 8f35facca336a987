"""Clients that wait for news on a stream of theirs: one for each link."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.keys import PublicKey


class Watched(Protocol):
    """A stream on which a client waits."""

    @property
    def connection(self) -> LinkConnection: ...

    def replaced(self) -> None:
        """The client has opened another on this link."""


class Watcher(Watched, Protocol):
    """A stream on which a client waits for news of its channels."""

    def tell(self, channel: bytes) -> None:
        """There is news of the client's channel."""


W = TypeVar("W", bound=Watched)


class Watchers(Generic[W]):
    """Those that are there."""

    def __init__(self) -> None:
        self._by_link: dict[LinkConnection, W] = {}

    def __len__(self) -> int:
        return len(self._by_link)

    def watch(self, watcher: W) -> None:
        """Tell it of news from now on. A link has one watcher."""
        before = self._by_link.get(watcher.connection)
        self._by_link[watcher.connection] = watcher
        if before is not None:
            before.replaced()

    def unwatch(self, watcher: W) -> None:
        """Its stream is gone."""
        if self._by_link.get(watcher.connection) is watcher:
            del self._by_link[watcher.connection]

    def all(self) -> list[W]:
        """In no order; they may come and go while one goes through the list."""
        return list(self._by_link.values())

    def of(self, client: PublicKey) -> list[W]:
        """A client's."""
        return [watcher for connection, watcher in list(self._by_link.items()) if connection.peer == client]

    def clients(self) -> set[bytes]:
        """The keys of those whose streams they are."""
        return {connection.peer.raw for connection in self._by_link}
