"""What a provider has on record: its ledger, and what is kept up from it while the node runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import tzinfo

from p2pgrid.config import ProviderConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.keys import SecretKey
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.client_credit import ClientCredit, policy_of
from p2pgrid.provider.dispute_book import DisputeBook
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.shared_channels import SharedChannels
from p2pgrid.provider.statement_book import StatementBook
from p2pgrid.settlement.credit.book import CreditBook
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.statements.days import LocalDays
from p2pgrid.settlement.statements.drafting import Terms
from p2pgrid.settlement.wiring import Selling, selling

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """Each reads the ledger, and hears from it what becomes durable."""

    ledger: SqliteLedger
    issuer: Issuer
    channels: Channels
    disputes: DisputeBook
    statements: StatementBook
    credit: ClientCredit


async def open_bookkeeping(
    stack: AsyncExitStack,
    data: DataFolder,
    config: ProviderConfig,
    keys: Sequence[SecretKey],
    *,
    limits: ProviderLimits,
    zone: tzinfo,
    now_ms: Callable[[], int],
    settles_with: Selling | None = None,
) -> Bookkeeping:
    """Open the ledger and restore what a crash had left open; closed with `stack`. Raises P2pgridError.

    `keys`: the node's, then those it had before. `settles_with`: left out, what the data folder has.
    """
    started = time.monotonic()
    data.make()
    ledger = SqliteLedger.open(data.ledger_file)
    stack.push_async_callback(ledger.aclose)
    issuer = Issuer(data, ledger, keys, now_ms=now_ms)
    stack.push_async_callback(issuer.aclose)
    kind = Channels if config.processes == 1 else SharedChannels
    channels = kind(ledger, keys[0], limits, now_ms, keys[1:])
    stack.push_async_callback(channels.aclose)
    suspended = await channels.restore()
    disputes = DisputeBook(ledger, channels, now_ms)
    waiting = disputes.review()
    if waiting:
        log.warning("%d disputes of clients wait for your answer: p2pgrid receipts disputes", waiting)
    settles_with = settles_with or selling(data, keys, issuer, now_ms)
    terms = Terms(days=LocalDays(zone), payment_days=settles_with.payment_days)
    statements = StatementBook(ledger, channels, now_ms, selling=settles_with, terms=terms)
    issuer.on_issued = statements.news
    stack.push_async_callback(statements.aclose)
    log.info(
        "ledger: %s, %d channels, %d orders that a crash had left open (%.1f s)",
        data.ledger_file,
        len(channels),
        suspended,
        time.monotonic() - started,
    )
    policy = policy_of(config.terms)
    book = await _open_credit_book(stack, data, config.terms.believe, keys, policy.grace_ms)
    credit = ClientCredit(ledger, channels, policy, now_ms, book, zone)
    credit.start()
    return Bookkeeping(ledger, issuer, channels, disputes, statements, credit)


async def _open_credit_book(
    stack: AsyncExitStack, data: DataFolder, believed: Sequence[str], keys: Sequence[SecretKey], grace_ms: int
) -> CreditBook:
    connection = await asyncio.to_thread(open_database, data.path / FILE_NAME)
    stack.callback(connection.close)
    return CreditBook(connection, believed=believed, own_keys=[key.public_key.raw for key in keys], grace_ms=grace_ms)
