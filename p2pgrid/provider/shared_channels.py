"""The channels of a provider with several processes, in the main one: what a worker holds is told to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.processes.bus import Bus
from p2pgrid.proto.books import Arrears
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Signed
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.passed_streams import RemoteLink


class Holders(Protocol):
    """Who holds what: `p2pgrid.provider.workers.ProviderWorkers`."""

    def holder_of(self, channel: OpenChannel) -> Bus | None:
        """The bus of the worker that holds the channel; None where this process does."""

    def give(self, channel: OpenChannel, link: RemoteLink) -> None:
        """A channel was opened on a worker's link."""


class SharedChannels(Channels):
    """All channels of a provider with several processes. Those that a worker holds are not `is_held` here."""

    def __init__(
        self,
        ledger: SqliteLedger,
        key: SecretKey,
        limits: ProviderLimits,
        now_ms: Callable[[], int],
        former_keys: Sequence[SecretKey] = (),
    ) -> None:
        super().__init__(ledger, key, limits, now_ms, former_keys)
        self._workers: Holders | None = None

    def share(self, workers: Holders) -> None:
        """From now on workers may hold channels."""
        self._workers = workers

    def open(self, signed: Signed[Channel], link: LinkConnection | None = None) -> OpenChannel:
        """As the base's; a channel that was opened on a worker's link is the worker's at once."""
        if not isinstance(link, RemoteLink) or self._workers is None or self.get(signed.message.channel) is not None:
            return super().open(signed, link)
        channel = super().open(signed)
        self._workers.give(channel, link)
        return channel

    def note_held(self, channel: OpenChannel, ids: Sequence[bytes]) -> None:
        holder = self._holder_of(channel)
        if holder is None:
            super().note_held(channel, ids)
        else:
            holder.send(m.HeldByBoth(channel.books.id, tuple(ids)))

    def note_answer(self, channel: OpenChannel, dispute: Dispute, answer: Answer) -> None:
        holder = self._holder_of(channel)
        if holder is None:
            super().note_answer(channel, dispute, answer)
        else:
            holder.send(m.AnswerSaid(channel.books.id, answer.dispute))

    def note_settled(self, channel: OpenChannel) -> None:
        super().note_settled(channel)
        self._tell_credit(channel)

    def note_arrears(self, channel: OpenChannel, arrears: Arrears | None) -> None:
        super().note_arrears(channel, arrears)
        self._tell_credit(channel)

    def _tell_credit(self, channel: OpenChannel) -> None:
        if (holder := self._holder_of(channel)) is not None:
            holder.send(m.credit_news(channel.books))

    def check_head(self, head: bytes, client: PublicKey) -> None:
        for channel in self:
            if channel.books.client == client and channel.books.provider != self.own_key(b""):
                self.refresh(channel)  # a worker may have settled it since
        super().check_head(head, client)

    def _holder_of(self, channel: OpenChannel) -> Bus | None:
        return self._workers.holder_of(channel) if self._workers is not None else None
