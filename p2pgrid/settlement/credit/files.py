"""The files that operators and clients hand on: a claim of default with its proof, and a settled history.

Both are bundles: one record a line. They have nothing of what was asked or answered, and no billing details; they do
show amounts, model names and how much was bought, to whoever is given the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.credit import balances_of
from p2pgrid.proto.default import Default, make_default
from p2pgrid.proto.default_rules import DefaultState, verify_default
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, M, Record, Role, Signed, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.settlement.credit.book import MAX_RECORDS
from p2pgrid.settlement.set_offs import set_off_cents

BANK_DAYS_MS: Final = 3 * 86_400_000
"""How far back a claim looks, unless it is told otherwise: what came since may not have been imported yet."""


class SettledLedger(Protocol):
    """What of a ledger is read here."""

    def channels(self) -> list[Signed[Channel]]: ...

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...


def claims_against(
    ledger: SettledLedger, keys: Sequence[SecretKey], client: PublicKey, *, as_of_ms: int, grace_ms: int, now_ms: int
) -> list[tuple[Signed[Default], list[Record]]]:
    """For each channel in which the client is overdue by that time a signed claim, and the records that prove it.

    The claim is over the last statement that was due by then. Raises UsageError where nothing is.
    """
    found = []
    by_key = {key.public_key.raw: key for key in keys}
    for channel in ledger.channels():
        key = by_key.get(channel.message.provider)
        if key is None or channel.message.client != client.raw:
            continue
        channel_id = channel.message.channel
        statements = {one.message.statement_number: one for one in _countersigned(ledger, channel_id)}
        payments = ledger.settlement(Payment, channel_id)
        due = [n for n, one in statements.items() if one.message.due_ms + grace_ms + CLOCK_TOLERANCE_MS < as_of_ms]
        if not due or balances_of(one.message for one in statements.values()) is None:
            continue
        statement = statements[max(due)]
        set_offs = ledger.settlement(SetOff, channel_id)
        message = make_default(
            statement,
            payments,
            set_offs,
            statements=statements.values(),
            set_off_cents=set_off_cents(ledger, channel_id),
            as_of_ms=as_of_ms,
            now_ms=now_ms,
        )
        if message is None:
            continue
        claim = sign_message(message, Role.PROVIDER, key)
        invoices = [one for one in ledger.settlement(Invoice, channel_id) if one.message.statement == statement.id]
        proof: Iterable[Signed[Channel] | Signed[Statement] | Signed[Invoice] | Signed[Payment] | Signed[SetOff]] = (
            channel,
            *statements.values(),
            *invoices,
            *payments,
            *set_offs,
        )
        records = [one.record for one in proof]
        verdict = verify_default(claim.record, records, now_ms)
        if verdict.state is DefaultState.CLEARED:
            continue  # paid after that day
        if verdict.state is not DefaultState.STANDS:
            raise UsageError(f"the claim would not stand: {verdict.sentence}", hint="See `p2pgrid credit show PEER`.")
        found.append((claim, records))
    if not found:
        raise UsageError(
            f"no statement of {client.peer_id} is overdue.",
            hint="`p2pgrid credit show PEER` tells what is open, and when it is due.",
        )
    return found


def history_records(
    ledger: SettledLedger, ours: Iterable[PublicKey], provider: PublicKey | None = None
) -> list[Record]:
    """What we have bought and paid, with a provider or with all: channels, statements, invoices and payments.

    Raises UsageError where nothing was settled.
    """
    own = {key.raw for key in ours}
    records: list[Record] = []
    for channel in ledger.channels():
        message = channel.message
        if message.client not in own or (provider is not None and message.provider != provider.raw):
            continue
        statements = _countersigned(ledger, message.channel)
        if not statements and not ledger.settlement(Payment, message.channel):
            continue
        records.append(channel.record)
        records += [one.record for one in statements]
        records += [one.record for one in ledger.settlement(Invoice, message.channel)]
        records += [one.record for one in ledger.settlement(Payment, message.channel)]
        records += [one.record for one in ledger.settlement(SetOff, message.channel)]
    if not records:
        raise UsageError("nothing was settled yet.", hint="`p2pgrid settle PEER` makes the statement of a period.")
    return records


def read_records(path: Path) -> list[Record]:
    """The records of a file. Raises UsageError for one that cannot be read, or has lines that are none."""
    found: list[Record] = []
    for number, entry in read_bundle(path):
        if isinstance(entry, InvalidRecord):
            raise UsageError(
                f"line {number} of {path} is no record: {entry.message}", hint="Ask for the file once more."
            )
        found.append(entry)
        if len(found) > MAX_RECORDS:
            raise UsageError(f"{path} has more than {MAX_RECORDS} records.", hint="Ask for a file of one client.")
    return found


def _countersigned(ledger: SettledLedger, channel: bytes) -> list[Signed[Statement]]:
    return [one for one in ledger.settlement(Statement, channel) if set(PARTIES) <= set(one.signers)]
