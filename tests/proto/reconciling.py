"""Two ledgers and no link: a channel resumed by the functions that both shells call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel, Usage
from p2pgrid.proto.proposal import accept_countersignature, accept_dispute
from p2pgrid.proto.reconcile import (
    answer_proposal,
    check_restored,
    check_same_chain,
    held_of,
    interrupt_open_orders,
    lacking,
    open_proposals,
)
from p2pgrid.proto.record import Record, Role, Signed
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.wire.kinds import Kind

Tamper = Callable[[Sequence[Record]], Sequence[Record]]


@dataclass
class Resuming:
    """Both sides of one channel. `run` is what RESUME to END does, in as many rounds as it takes."""

    channel: Signed[Channel]
    provider: Ledger
    client: Ledger
    provider_key: SecretKey
    client_key: SecretKey
    now_ms: int
    delivered: Mapping[int, Usage] = field(default_factory=dict)
    to_client: Tamper = tuple
    to_provider: Tamper = tuple
    rounds: int = 0
    restored: dict[Role, int] = field(default_factory=lambda: {Role.PROVIDER: 0, Role.CLIENT: 0})

    @property
    def id(self) -> bytes:
        return self.channel.message.channel

    async def run(self) -> tuple[ChannelBooks, ChannelBooks]:
        """Until both sides have nothing left. The provider's books, the client's."""
        while True:
            self.rounds += 1
            done = await self._round()
            if done is not None:
                return done

    async def _round(self) -> tuple[ChannelBooks, ChannelBooks] | None:
        held = held_of(self.client, self.id)
        check_same_chain(self.provider, self.channel, held)
        theirs = held_of(self.provider, self.id)
        to_client = lacking(self.provider, self.id, held, Role.PROVIDER)
        check_same_chain(self.client, self.channel, theirs)
        await self._restore(self.client, self.to_client(to_client.records), Role.CLIENT)
        to_provider = lacking(self.client, self.id, theirs, Role.CLIENT)
        await self._restore(self.provider, self.to_provider(to_provider.records), Role.PROVIDER)
        if not (to_client.is_all and to_provider.is_all):
            return None
        check_same_chain(self.provider, self.channel, held, is_caught_up=True)
        sold = restore_books(self.provider, self.channel, Role.PROVIDER)
        bought = restore_books(self.client, self.channel, Role.CLIENT)
        bought.last_order_number = max(bought.last_order_number, theirs.last_order_number)
        proposals = open_proposals(self.provider, self.id)
        made = interrupt_open_orders(self.provider, sold, key=self.provider_key, now_ms=self.now_ms)
        await self.provider.append(*made)
        for proposal in (*proposals, *made):
            answered = answer_proposal(
                proposal.record, self.client, bought, key=self.client_key, delivered=self.delivered, now_ms=self.now_ms
            )
            await self.client.append(*answered.persist)
            if answered.kind == Kind.COUNTERSIGNATURE:
                await self.provider.append(accept_countersignature(proposal, answered.payload, sold))
            else:
                await self.provider.append(accept_dispute(proposal, answered.payload, sold, self.now_ms))
        for one in self.client.open_orders(self.id):
            await self.client.note_outcome(one.order, "never-arrived")
            bought.close_order(one.order.message.order_number)
        return sold, bought

    async def _restore(self, ledger: Ledger, sent: Sequence[Record], own: Role) -> None:
        restored = check_restored(sent, ledger, self.channel, own)
        self.restored[own] += len(restored)
        if restored:
            await ledger.append(*restored)
