"""Ledgers, channels and offers as a long life leaves them: real records with real signatures, made quickly.

What nodes have begun is continued: from a sale on record the next thousands are made as its two sides would have made
and written them, through the ledger's own writer. Nothing in it is random, so each side fills its own ledger alone,
and both come to the same head.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from p2pgrid.client.offer_cache import write_cache
from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.log import TransparencyLog
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.commitment import request_commitment
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel, ModelOffer, Offer, Order, Receipt, Status, Tariff, channel_id
from p2pgrid.proto.record import Role, Signed, sign_message

BODY: Final = b'{"model":"bench","messages":[{"role":"user","content":"Hello!"}],"max_tokens":16}'
SALES_PER_MS: Final = 20
"""Of the clock in the records: all must be bought while the offer holds."""
_AT_ONCE: Final = 512
_DEAD: Final = "/ip4/127.0.0.1/tcp/9/tls"
"""Nobody listens on the discard port."""


@dataclass(frozen=True, slots=True)
class Sale:
    """What one order leaves on record on both sides."""

    order: Signed[Order]
    commitment_key: bytes
    receipt: Signed[Receipt]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sale that took place, in the likeness of which others are made."""

    channel: Signed[Channel]
    order: Order
    receipt: Receipt

    @classmethod
    def of(cls, ledger: SqliteReader) -> Sample:
        """The last completed sale that needed no voucher. Raises LookupError where there is none."""
        [channel] = ledger.channels()
        for row in ledger.receipts(channel=channel.message.channel):
            number = row.receipt.order_number
            records = ledger.order_records(channel.message.channel, number)
            if row.countersigned and row.receipt.status is Status.COMPLETED and len(records) == 2:
                placed = ledger.order(channel.message.channel, number)
                assert placed is not None
                return cls(channel, placed.order.message, row.receipt)
        raise LookupError("the ledger holds no completed sale of a single step")


def sales(
    sample: Sample, channel: Signed[Channel], head: ChannelHead, count: int, *, provider: SecretKey, client: SecretKey
) -> Iterator[Sale]:
    """The next sales of a channel, each link of the chain signed by both."""
    number, previous, total = head.last_receipt_number, head.last_receipt_id, head.total_pico
    order_number = head.last_order_number
    from_ms = max(sample.receipt.issued_ms, channel.message.opened_ms)
    patience_ms = sample.order.first_token_deadline_ms - sample.order.ordered_ms
    took_ms = sample.receipt.total_ms
    for n in range(1, count + 1):
        order_number, number, total = order_number + 1, number + 1, total + sample.receipt.amount_pico
        key = hashlib.sha256(b"commitment" + channel.message.channel + order_number.to_bytes(8)).digest()
        ordered_ms = from_ms + n // SALES_PER_MS
        order = sign_message(
            replace(
                sample.order,
                channel=channel.message.channel,
                order_number=order_number,
                request_commitment=request_commitment(key, BODY),
                ordered_ms=ordered_ms,
                first_token_deadline_ms=ordered_ms + patience_ms,
            ),
            Role.CLIENT,
            client,
        )
        receipt = sign_message(
            replace(
                sample.receipt,
                channel=channel.message.channel,
                receipt_number=number,
                previous=previous,
                order_number=order_number,
                order=order.id,
                channel_total_pico=total,
                request_commitment=order.message.request_commitment,
                response_commitment=hashlib.sha256(key).digest(),
                issued_ms=ordered_ms + took_ms,
            ),
            Role.PROVIDER,
            provider,
        ).countersigned(Role.CLIENT, client)
        previous = receipt.id
        yield Sale(order, key, receipt)


async def continue_channel(path: Path, count: int, *, provider: SecretKey, client: SecretKey) -> ChannelHead:
    """`count` more sales in the ledger's one channel; where it stands then. Raises LedgerError."""
    ledger = SqliteLedger.open(path)
    try:
        sample = Sample.of(ledger)
        own = sample.channel.message.channel
        made = sales(sample, sample.channel, ledger.head(own), count, provider=provider, client=client)
        await _store(ledger, made)
        return ledger.head(own)
    finally:
        await ledger.aclose()


async def add_channels(path: Path, count: int, *, provider: SecretKey) -> None:
    """`count` channels of as many other clients, with a sale each, in a provider's ledger. Raises LedgerError."""
    ledger = SqliteLedger.open(path)
    try:
        sample = Sample.of(ledger)
        for first in range(0, count, _AT_ONCE):
            opened, made = [], list[Sale]()
            for n in range(first, min(first + _AT_ONCE, count)):
                client = SecretKey(hashlib.sha256(f"client {n}".encode()).digest())
                channel = _channel_of(sample.channel.message, provider, client)
                opened.append(channel)
                made += sales(sample, channel, _fresh(channel), 1, provider=provider, client=client)
            await ledger.append(*opened)
            await _store(ledger, made)
    finally:
        await ledger.aclose()


async def enter_log(provider: DataFolder) -> int:
    """Enter what the provider's ledger holds into its log, as the node does when it starts; the log's size then.

    Raises LedgerError.
    """
    key = provider.load_key()
    paths = provider.log_file(key.public_key.peer_id), provider.log_checkpoint_file(key.public_key.peer_id)
    ledger = SqliteLedger.open(provider.ledger_file)
    try:
        async with TransparencyLog(*paths, key, ledger, now_ms=unix_ms) as log:
            return log.checkpoint.size if log.checkpoint is not None else 0
    finally:
        await ledger.aclose()


def offers_like(offer: Offer, count: int, *, now_ms: int) -> list[tuple[PeerAddress, Signed[Offer]]]:
    """Offers of the same models by `count` other providers, all dearer, none of whom can be reached."""
    made = []
    for n in range(count):
        key = SecretKey(hashlib.sha256(f"provider {n}".encode()).digest())
        message = replace(
            offer,
            provider=key.public_key.raw,
            operator=f"Seller {n}",
            addresses=(_DEAD,),
            valid_from_ms=now_ms - 60_000,
            valid_until_ms=now_ms + 7 * 86_400_000,
            models=tuple(_dearer(entry, 2 + n % 50) for entry in offer.models),
        )
        peer = PeerAddress(key.public_key.peer_id, (_DEAD,))
        made.append((peer, sign_message(message, Role.PROVIDER, key)))
    return made


def write_offers(path: Path, offers: Sequence[tuple[PeerAddress, Signed[Offer]]]) -> None:
    """The file that a gateway remembers offers in. Raises OSError."""
    if not write_cache(path, [(peer, offer.record.to_bytes()) for peer, offer in offers]):
        raise OSError(f"{path} could not be written")


def fill_both(gateway: Path, provider: Path, count: int) -> ChannelHead:
    """`count` more sales in the ledgers of both data folders, in two processes. Raises ValueError if heads differ."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        heads = list(pool.map(_fill_one, (gateway, provider), (gateway,) * 2, (provider,) * 2, (count,) * 2))
    if heads[0] != heads[1]:
        raise ValueError(f"the two sides came to different heads: {heads}")
    return heads[0]


def _fill_one(own: Path, gateway: Path, provider: Path, count: int) -> ChannelHead:
    """One side's part, in its process."""
    seller, buyer = DataFolder(provider).load_key(), DataFolder(gateway).load_key()
    return asyncio.run(continue_channel(DataFolder(own).ledger_file, count, provider=seller, client=buyer))


async def _store(ledger: SqliteLedger, made: Iterable[Sale]) -> None:
    """As the node stores them: an order with its key, then the receipt."""
    waiting: list[asyncio.Future[None]] = []
    for sale in made:
        ledger.keep_request_key(sale.order, sale.commitment_key)
        waiting += [ledger.append(sale.order), ledger.append(sale.receipt)]
        if len(waiting) >= _AT_ONCE:
            # The next ones are made while these are written.
            await asyncio.gather(*waiting[: _AT_ONCE // 2])
            del waiting[: _AT_ONCE // 2]
    await asyncio.gather(*waiting)


def _fresh(channel: Signed[Channel]) -> ChannelHead:
    """Where a channel stands in which nothing was bought."""
    return ChannelHead(
        last_order_number=0,
        last_receipt_number=0,
        last_receipt_id=channel.id,
        total_pico=0,
        countersigned=0,
        countersigned_pico=0,
    )


def _channel_of(sample: Channel, provider: SecretKey, client: SecretKey) -> Signed[Channel]:
    nonce = hashlib.sha256(b"nonce" + client.public_key.raw).digest()
    keys = sample.provider, client.public_key.raw
    message = replace(
        sample, client=keys[1], client_nonce=nonce, channel=channel_id(*keys, sample.provider_nonce, nonce)
    )
    return sign_message(message, Role.PROVIDER, provider).countersigned(Role.CLIENT, client)


def _dearer(entry: ModelOffer, factor: int) -> ModelOffer:
    tariff = entry.tariff
    prices = (tariff.input_upm, tariff.cached_input_upm, tariff.output_upm)
    dearer = dict(zip(Tariff.__struct_fields__, (price * factor for price in prices), strict=True))
    return replace(entry, tariff=Tariff(**dearer))
