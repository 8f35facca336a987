"""What an operator was given about clients: claims of default with their answers, and settled histories.

It stands in `settlement.db`. Records are kept as they came, and judged when they are asked for: one record more can
clear a claim, or prove it false. Several processes may have the book open at once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from p2pgrid.errors import InvalidRecord, LedgerError, Refused, UsageError
from p2pgrid.ledger.signatures import checked_record
from p2pgrid.proto.card import Card
from p2pgrid.proto.default import Default
from p2pgrid.proto.default_rules import DefaultState, DefaultVerdict, shown_of, verify_default
from p2pgrid.proto.keys import parse_peer_id, parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Message, Record, Signed, parse_json_line, parse_message
from p2pgrid.proto.settled import PayingHistory, history_of
from p2pgrid.settlement.database import prepare, transaction

ROOM: Final = "credit"
MAX_RECORDS: Final = 20_000
"""That one file may bring."""
MAX_CLAIMS: Final = 64
"""That one file may bring: each is judged by all its records."""
MAX_OF_CHANNEL: Final = 40_000
"""That are kept of one channel."""
_MOST_REMEMBERED: Final = 10_000
_REMEMBERED_MS: Final = 3_600_000
T = TypeVar("T")
_BESIDE: Final = frozenset({Card.payload_type, Offer.payload_type})
_STEPS: Final = (
    """CREATE TABLE credit_records (
        channel TEXT NOT NULL, record_id TEXT NOT NULL, signatures INTEGER NOT NULL, line TEXT NOT NULL,
        PRIMARY KEY (channel, record_id, signatures)) STRICT""",
    """CREATE TABLE credit_channels (
        channel TEXT PRIMARY KEY, provider TEXT NOT NULL, client TEXT NOT NULL, since_ms INTEGER NOT NULL) STRICT""",
    "CREATE INDEX credit_channels_by_client ON credit_channels (client)",
    """CREATE TABLE credit_claims (
        claim TEXT NOT NULL, key TEXT NOT NULL, channel TEXT NOT NULL, PRIMARY KEY (key, claim)) STRICT""",
    "CREATE TABLE credit_allowed (client TEXT PRIMARY KEY, since_ms INTEGER NOT NULL) STRICT",
)


class ClaimTaken(msgspec.Struct, frozen=True, kw_only=True):
    """One claim of default as it stands by all records at hand."""

    claim: str
    state: str
    """`stands`, `cleared`, `false` or `unproven`."""
    sentence: str
    at_fault: str
    """`client`, `provider`, or empty."""
    client: str = ""
    provider: str = ""
    currency: str = ""
    claimed_cents: int = 0
    unpaid_cents: int = 0
    as_of_ms: int = 0
    other_keys: tuple[str, ...] = ()
    """Further keys of the client's operator, which it holds for as well."""
    allowed: bool = False
    """The operator deals with the client all the same."""


class HistoryTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What one channel shows of how its client has paid."""

    channel: str
    provider: str
    client: str
    statements: int
    stated_cents: int
    on_time_cents: int
    late_cents: int
    unpaid_cents: int
    overdue_cents: int
    believed: bool
    """The provider is one whose word counts here."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What a file brought."""

    records: int
    """New ones."""
    claims: tuple[ClaimTaken, ...]
    histories: tuple[HistoryTaken, ...]
    refused: tuple[str, ...] = ()
    """Claims that prove nothing, and why: they are not kept."""


class CreditBook:
    """Claims and histories. What it raises beside: LedgerError where the file cannot be used."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        believed: Sequence[str] = (),
        own_keys: Iterable[bytes] = (),
        grace_ms: int = 0,
    ) -> None:
        """`believed`: peer ids of providers whose histories count. `own_keys`: ours, whose ledger says it itself.

        `grace_ms`: how long after its day a payment is still in time. Raises UsageError for what is no peer id.
        """
        self._connection: Final = connection
        self._own: Final = frozenset(own_keys)
        self._grace_ms: Final = grace_ms
        self._believed: Final = frozenset(map(_key_of, believed))
        prepare(connection, ROOM, _STEPS)
        self._seen: tuple[int, int, int] | None = None
        self._known: dict[tuple[str, bytes], Refused | PayingHistory | None] = {}

    # -- for a node that lends ------------------------------------------------------------------------------------

    def check(self, client: bytes, now_ms: int) -> None:
        """Raises Refused (`client-in-default`) for a client against whom a claim stands."""
        refusal = self._remembered("check", client, now_ms, lambda: self._refusal(client, now_ms))
        if refusal is not None:
            raise Refused(refusal.code, refusal.message, hint=refusal.hint)

    def shown_history(self, client: bytes, now_ms: int) -> PayingHistory:
        """What a client has paid to providers that are believed here."""
        return self._remembered("history", client, now_ms, lambda: self._shown_history(client, now_ms))

    def _remembered(self, what: str, client: bytes, now_ms: int, ask: Callable[[], T]) -> T:
        """Until anything changes in the file, an hour at most, for invoices fall due: whoever asks again and again
        makes no work of it."""
        ((version,),) = self._select("PRAGMA data_version")
        seen = int(version), self._connection.total_changes, now_ms // _REMEMBERED_MS
        if seen != self._seen or len(self._known) >= _MOST_REMEMBERED:
            self._seen, self._known = seen, {}
        if (what, client) not in self._known:
            self._known[what, client] = ask()  # type: ignore[assignment]
        return self._known[what, client]  # type: ignore[return-value]

    def _refusal(self, client: bytes, now_ms: int) -> Refused | None:
        if self._is_allowed(client):
            return None
        for verdict in self._verdicts(client, now_ms):
            if verdict.state is DefaultState.STANDS and verdict.provider is not None:
                return Refused(
                    "client-in-default",
                    f"{verdict.provider.peer_id} has shown that you owe it {verdict.unpaid_cents} cents: "
                    f"{verdict.sentence}",
                    hint="Pay them. Then give this provider's operator the payment record, in the file that "
                    "`p2pgrid credit history -o FILE` writes.",
                )
        return None

    def _shown_history(self, client: bytes, now_ms: int) -> PayingHistory:
        found = PayingHistory()
        for channel, provider in self._channels_of(client):
            if provider in self._believed - self._own:
                found = found.plus(self._history(channel, now_ms))
        return found

    # -- for the operator -----------------------------------------------------------------------------------------

    def take(self, records: Sequence[Record], now_ms: int) -> Imported:
        """Keep what a file brings: claims with what proves them, statements, invoices and payments.

        Raises UsageError for a file that is too large, or has nothing of that.
        """
        claims = [one for one in records if one.payload_type == Default.payload_type]
        if len(records) > MAX_RECORDS or len(claims) > MAX_CLAIMS:
            raise UsageError(
                f"the file has {len(records)} records, {len(claims)} of them claims; at once {MAX_RECORDS} are taken, "
                f"and {MAX_CLAIMS} claims.",
                hint="Ask for a file of one client.",
            )
        shown = {one.channel.message.channel: one for one in shown_of(records)}
        refused, kept_claims = [], []
        for claim in claims:
            verdict = self._judge(claim, records, now_ms)
            if verdict.state is DefaultState.UNPROVEN or verdict.claim is None:
                refused.append(f"{claim.id.hex()[:16]}: {verdict.sentence}")
            else:
                kept_claims.append(verdict)
        new = 0
        with transaction(self._connection):
            for channel_id, one in shown.items():
                channel = one.channel.message
                row = channel_id.hex(), channel.provider.hex(), channel.client.hex(), now_ms
                self._connection.execute("INSERT OR IGNORE INTO credit_channels VALUES (?, ?, ?, ?)", row)
                sound: list[Signed[Message]] = [one.channel, *one.statements.values(), *one.invoices]
                sound += [*one.payments.values(), *one.set_offs.values()]
                # Without signatures that nobody checked: a bad one must not stand where the good one belongs.
                new += self._keep(channel_id, map(checked_record, sound))
            for verdict in kept_claims:
                assert verdict.claim is not None and verdict.client is not None
                channel_id = verdict.claim.message.channel
                beside = [one for one in records if one.payload_type in _BESIDE]
                new += self._keep(channel_id, [checked_record(verdict.claim), *beside])
                for key in {verdict.client.raw, *verdict.other_keys}:
                    row_of_key = verdict.claim.id.hex(), key.hex(), channel_id.hex()
                    self._connection.execute("INSERT OR IGNORE INTO credit_claims VALUES (?, ?, ?)", row_of_key)
        if not (shown or refused):
            raise UsageError(
                "the file has no channel that two have signed, and no claim of default.",
                hint="It is written by `p2pgrid credit default` or `p2pgrid credit history`.",
            )
        return Imported(
            records=new,
            claims=tuple(self._view(verdict) for verdict in kept_claims),
            histories=tuple(self._history_view(channel, now_ms) for channel in shown),
            refused=tuple(refused),
        )

    def allow(self, client: bytes, now_ms: int, *, allowed: bool = True) -> bool:
        """Deal with a client whatever others claim, or no more. True if that changes anything."""
        before = self._is_allowed(client)
        with transaction(self._connection):
            if allowed:
                row = client.hex(), now_ms
                self._connection.execute("INSERT OR IGNORE INTO credit_allowed VALUES (?, ?)", row)
            else:
                self._connection.execute("DELETE FROM credit_allowed WHERE client = ?", (client.hex(),))
        return before is not allowed

    def claims(self, now_ms: int, client: bytes | None = None) -> list[ClaimTaken]:
        """All claims, or those against a client."""
        keys = [client] if client is not None else self._keys_with_claims()
        seen: dict[str, ClaimTaken] = {}
        for key in keys:
            for verdict in self._verdicts(key, now_ms):
                view = self._view(verdict)
                seen[view.claim] = view
        return list(seen.values())

    def histories(self, now_ms: int, client: bytes | None = None) -> list[HistoryTaken]:
        """Every channel that was shown, or those of a client."""
        sql = "SELECT channel FROM credit_channels WHERE client = ? OR ? = '' ORDER BY since_ms, channel"
        key = client.hex() if client is not None else ""
        rows = self._select(sql, key, key)
        return [self._history_view(bytes.fromhex(channel), now_ms) for (channel,) in rows]

    # -- inside ---------------------------------------------------------------------------------------------------

    def _judge(self, claim: Record, more: Sequence[Record], now_ms: int) -> DefaultVerdict:
        try:
            known = self._records(parse_message(claim, Default).channel)
        except InvalidRecord:
            known = []
        return verify_default(claim, [*known, *more], now_ms)

    def _verdicts(self, client: bytes, now_ms: int) -> list[DefaultVerdict]:
        rows = self._select("SELECT claim, channel FROM credit_claims WHERE key = ? ORDER BY claim", client.hex())
        found = []
        for claim_id, channel in rows:
            records = self._records(bytes.fromhex(channel))
            claim = next((one for one in records if one.id.hex() == claim_id), None)
            if claim is not None:
                found.append(verify_default(claim, records, now_ms))
        return found

    def _history(self, channel: bytes, now_ms: int) -> PayingHistory:
        shown = next(iter(shown_of(self._records(channel), channel)), None)
        if shown is None:
            return PayingHistory()
        statements = (one.message for one in shown.countersigned)
        payments = (one.message for one in shown.payments.values())
        set_off_cents = sum(one.message.amount_cents for one in shown.set_offs.values())
        return history_of(statements, payments, now_ms=now_ms, grace_ms=self._grace_ms, set_off_cents=set_off_cents)

    def _history_view(self, channel: bytes, now_ms: int) -> HistoryTaken:
        ((provider, client),) = self._select(
            "SELECT provider, client FROM credit_channels WHERE channel = ?", channel.hex()
        )
        history = self._history(channel, now_ms)
        return HistoryTaken(
            channel=channel.hex(),
            provider=_peer_id(bytes.fromhex(provider)),
            client=_peer_id(bytes.fromhex(client)),
            believed=bytes.fromhex(provider) in self._believed,
            **history._asdict(),
        )

    def _view(self, verdict: DefaultVerdict) -> ClaimTaken:
        assert verdict.claim is not None and verdict.client is not None and verdict.provider is not None
        message = verdict.claim.message
        return ClaimTaken(
            claim=verdict.claim.id.hex(),
            state=verdict.state.value,
            sentence=verdict.sentence,
            at_fault=verdict.at_fault.value if verdict.at_fault is not None else "",
            client=verdict.client.peer_id,
            provider=verdict.provider.peer_id,
            currency=message.currency,
            claimed_cents=message.unpaid_cents,
            unpaid_cents=verdict.unpaid_cents,
            as_of_ms=message.as_of_ms,
            other_keys=tuple(sorted(map(_peer_id, verdict.other_keys))),
            allowed=self._is_allowed(verdict.client.raw),
        )

    def _keep(self, channel: bytes, records: Iterable[Record]) -> int:
        ((count,),) = self._select("SELECT count(*) FROM credit_records WHERE channel = ?", channel.hex())
        new = 0
        for record in records:
            if int(count) + new >= MAX_OF_CHANNEL:
                break
            row = channel.hex(), record.id.hex(), len(record.signatures), record.to_json_line().decode()
            cursor = self._connection.execute("INSERT OR IGNORE INTO credit_records VALUES (?, ?, ?, ?)", row)
            new += cursor.rowcount
        return new

    def _records(self, channel: bytes) -> list[Record]:
        rows = self._select("SELECT line FROM credit_records WHERE channel = ? ORDER BY rowid", channel.hex())
        found = []
        for (line,) in rows:
            try:
                found.append(parse_json_line(line.encode()))
            except InvalidRecord as error:
                raise LedgerError(f"settlement.db holds a record that is none: {error.message}") from error
        return found

    def _channels_of(self, client: bytes) -> list[tuple[bytes, bytes]]:
        rows = self._select("SELECT channel, provider FROM credit_channels WHERE client = ?", client.hex())
        return [(bytes.fromhex(channel), bytes.fromhex(provider)) for channel, provider in rows]

    def _keys_with_claims(self) -> list[bytes]:
        return [bytes.fromhex(key) for (key,) in self._select("SELECT DISTINCT key FROM credit_claims ORDER BY key")]

    def _is_allowed(self, client: bytes) -> bool:
        return bool(self._select("SELECT 1 FROM credit_allowed WHERE client = ?", client.hex()))

    def _select(self, sql: str, *values: str) -> list[tuple[str, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"settlement.db cannot be read: {error}.") from error


def _key_of(peer_id: str) -> bytes:
    try:
        return parse_peer_id(peer_id).raw
    except InvalidRecord:
        raise UsageError(
            f"{peer_id!r} is no peer id.", hint="Mend `believe` in [provider.terms] of config.toml."
        ) from None


def _peer_id(raw: bytes) -> str:
    return parse_public_key(raw).peer_id
