"""A stream on which a client waits for news of its channels until it ends it: of disputes, of settlement."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.exchange import Exchange
from p2pgrid.provider.watchers import Watcher


class NewsBook(Protocol):
    """Who has the news."""

    def watch(self, watcher: Watcher) -> None:
        """Tell it of news from now on."""

    def unwatch(self, watcher: Watcher) -> None:
        """Its stream is gone."""


class NewsWatch(Exchange):
    """A message without bytes -> news whenever there is some, until the client ends the stream."""

    first: ClassVar[Kind]
    """The client's one message."""
    news: ClassVar[Kind]
    _is_watching = False

    @property
    @abstractmethod
    def news_book(self) -> NewsBook:
        """Raises Refused where there is none."""

    @abstractmethod
    def frame(self, channel: bytes) -> bytes:
        """What is said of a channel."""

    @property
    def connection(self) -> LinkConnection:
        return self.stream.connection

    def take(self, kind: int, payload: bytes) -> None:
        if self._is_watching or payload:
            raise ProtocolViolation(f"a {self.first.name} carries no bytes, and nothing follows it.")
        book = self.news_book
        self._is_watching = True
        book.watch(self)

    def tell(self, channel: bytes) -> None:
        """There is news of the client's channel."""
        if not self.is_over:
            self.stream.send(self.news, self.frame(channel))

    def replaced(self) -> None:
        """The client has opened another on this link."""
        self.finish()

    @property
    def may_end(self) -> bool:
        return self._is_watching

    def ended(self, stream: Stream) -> None:
        self._unwatch()
        if self.is_over:
            super().ended(stream)
        else:
            self.finish()

    def lost(self, reason: str) -> None:
        self._unwatch()

    def _unwatch(self) -> None:
        if self._is_watching:
            self.news_book.unwatch(self)
