"""The client's half of the exchanges beside orders: an offer asked for, a channel opened.

Each has a stream of its own (docs/spec/session.md, sections 1, 2 and 5). All raise RemoteError where the provider
refuses, is away or breaks the rules, InvalidRecord for what it signed wrongly, and LedgerError where nothing can be
recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream
from p2pgrid.net.stream_reader import Received, StreamReader
from p2pgrid.printable import printable
from p2pgrid.proto.channel import accept_channel
from p2pgrid.proto.frame import ResetCode
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import MAX_RECORD_BYTES, Record, Signed, parse_record
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest
from p2pgrid.proto.wire.kinds import Kind

EXCHANGE_TIMEOUT_S: Final = 15.0
"""How long a provider may be silent within an exchange."""


class Exchange:
    """One stream on which messages are awaited one by one."""

    def __init__(self, link: LinkConnection, max_messages: int, max_bytes: int) -> None:
        self._reader = StreamReader(max_messages=max_messages, max_bytes=max_bytes)
        self._name = link.name
        self.stream: Final[Stream] = link.open_stream(self._reader)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one message."""
        self.stream.send(kind, payload)

    async def expect(self, *kinds: Kind, timeout_s: float | None = EXCHANGE_TIMEOUT_S) -> bytes:
        """The payload of the next message, which must be of such a kind. A REFUSAL is raised as Refused."""
        return (await self.receive(*kinds, timeout_s=timeout_s)).payload

    async def receive(self, *kinds: Kind, timeout_s: float | None = EXCHANGE_TIMEOUT_S) -> Received:
        """The same, with its kind."""
        names = " or ".join(kind.name for kind in kinds)
        try:
            async with asyncio.timeout(timeout_s):
                received = await self._reader.receive()
        except TimeoutError:
            raise Unreachable(f"{self._name} sent no {names} within {timeout_s:g} s.") from None
        if received is None:
            raise Unreachable(f"{self._name} ended the exchange; {names} was expected.")
        if received.kind == Kind.REFUSAL:
            refusal = parse_frame(received.payload, Refusal)
            raise Refused(refusal.code, f"the provider refused: {printable(refusal.message)}")
        if received.kind not in kinds:
            raise ProtocolViolation(f"{self._name} sent message kind {received.kind}; {names} was expected.")
        return received


@asynccontextmanager
async def exchange(
    link: LinkConnection, *, max_messages: int = 16, max_bytes: int = 4 * MAX_RECORD_BYTES
) -> AsyncIterator[Exchange]:
    """An exchange that is ended when all went well, and cut when not. At most so much waits to be read."""
    one = Exchange(link, max_messages, max_bytes)
    try:
        yield one
    except BaseException:
        one.stream.reset(ResetCode.CANCELLED)
        raise
    one.stream.end()


class DisputedRecord(InvalidRecord):
    """A record that the provider signed and that cannot be signed here. `record` is the evidence."""

    def __init__(self, fault: InvalidRecord, record: Record) -> None:
        super().__init__(fault.code, fault.message, hint=fault.hint)
        self.record = record


async def request_offer(link: LinkConnection) -> bytes:
    """The raw record of the provider's offer, or that it has withdrawn it; not verified."""
    async with exchange(link) as talk:
        talk.send(Kind.OFFER_REQUEST)
        return await talk.expect(Kind.OFFER, Kind.WITHDRAWAL)


async def request_cards(link: LinkConnection) -> bytes:
    """The provider's raw cards, as it shows them now."""
    async with exchange(link) as talk:
        talk.send(Kind.CARD_REQUEST)
        return await talk.expect(Kind.CARDS)


async def open_channel(
    link: LinkConnection,
    offer: Signed[Offer],
    ledger: Ledger,
    *,
    key: SecretKey,
    client_nonce: bytes,
    now_ms: Callable[[], int],
    continues: bytes = b"",
) -> Signed[Channel]:
    """A new channel under the offer, in both ledgers. The nonce is 32 fresh random bytes."""
    async with exchange(link) as talk:
        request = ChannelRequest(client_nonce=client_nonce, offer=offer.id, now_ms=now_ms(), continues=continues)
        talk.send(Kind.CHANNEL_REQUEST, request.to_bytes())
        record = parse_record(await talk.expect(Kind.CHANNEL))
        try:
            channel = accept_channel(
                record, offer, key=key, client_nonce=client_nonce, now_ms=now_ms(), continues=continues
            )
        except InvalidRecord as fault:
            raise DisputedRecord(fault, record) from fault
        await ledger.append(offer, channel)
        talk.send(Kind.CHANNEL, channel.record.to_bytes())
        await talk.expect(Kind.CHANNEL_OPENED)
    return channel
