"""Disputes and their answers: who may say what when, and what is then owed (docs/spec/session.md, section 10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_records import DisputeRow
from p2pgrid.proto.dispute import REASONS, Answer, Decision, Dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel, Meter, Order, Receipt, Tariff, Usage, Voucher
from p2pgrid.proto.pricing import amount_owed
from p2pgrid.proto.record import Record, Role, Signed, sign_message, verify_record
from p2pgrid.proto.rules import Fault, faults_of_receipt
from p2pgrid.units import AmountPico

STATEMENT_CHARS: Final = 256
_DAY_MS: Final = 86_400_000
_OTHER: Final = {Role.PROVIDER: Role.CLIENT, Role.CLIENT: Role.PROVIDER}


@dataclass(frozen=True, slots=True)
class Owed:
    """What a channel's receipts come to."""

    owed_pico: AmountPico
    """The channel's total less the credits: what is to be paid if every open dispute is lost."""
    credits_pico: AmountPico
    """What accepted disputes took off."""
    disputed_pico: AmountPico
    """Of what is owed, contested: by disputes that are not accepted."""


def owed(total_pico: int, disputed: Iterable[tuple[Receipt, DisputeRow]]) -> Owed:
    """What is owed on a channel whose last receipt says `total_pico`, with every receipt that is in dispute.

    A receipt that both sides dispute counts once: by what was accepted, else by the lower claim.
    """
    accepted: dict[int, int] = {}
    contested: dict[int, int] = {}
    for receipt, row in disputed:
        is_accepted = row.answer is not None and row.answer.message.decision is Decision.ACCEPTED
        less = max(receipt.amount_pico - row.dispute.message.owed_pico, 0)
        found = accepted if is_accepted else contested
        found[receipt.receipt_number] = max(found.get(receipt.receipt_number, 0), less)
    credits = sum(accepted.values())
    open_pico = sum(max(less - accepted.get(number, 0), 0) for number, less in contested.items())
    return Owed(AmountPico(total_pico - credits), AmountPico(credits), AmountPico(open_pico))


def may_dispute(receipt: Signed[Receipt], channel: Channel, by: Role, standing: Sequence[DisputeRow], now_ms: int) -> None:
    """Raises Refused: `wrong-channel`, `already-disputed` (one dispute for each receipt and side), `dispute-window`."""
    message = receipt.message
    if message.channel != channel.channel:
        raise Refused("wrong-channel", "the receipt is another channel's.")
    if any(row.dispute.message.by is by and row.dispute.message.receipt_number == message.receipt_number for row in standing):
        raise Refused("already-disputed", f"the {by} has disputed receipt {message.receipt_number} already.")
    if now_ms > message.issued_ms + channel.dispute_days * _DAY_MS:
        raise Refused(
            "dispute-window", f"receipt {message.receipt_number} could be disputed for {channel.dispute_days} days."
        )


def dispute_receipt(
    receipt: Signed[Receipt],
    channel: Channel,
    *,
    by: Role,
    reason: str,
    statement: str,
    owed_pico: int,
    standing: Sequence[DisputeRow],
    key: SecretKey,
    now_ms: int,
) -> Signed[Dispute]:
    """Sign a dispute of a receipt or proposal: what `by` says is owed for it, and why. The caller persists it.

    `reason` is a finding's code or one of `REASONS`; `not-countersigned` is the provider's. `standing` are the channel's
    disputes on record. Raises Refused as `may_dispute` does, and `dispute-amount` (more than the receipt claims),
    `dispute-reason`.
    """
    may_dispute(receipt, channel, by, standing, now_ms)
    if owed_pico > receipt.message.amount_pico:
        raise Refused("dispute-amount", f"the receipt claims {receipt.message.amount_pico} pico-EUR; a dispute lowers it.")
    if reason == "not-countersigned" and (by is Role.CLIENT or Role.CLIENT in receipt.signers):
        raise Refused("dispute-reason", "only the provider can say so, of a receipt that the client has not signed.")
    return _sign_dispute(receipt, by, reason, statement, owed_pico, key, now_ms)


def refuse_receipt(
    receipt: Signed[Receipt], fault: Fault, *, owed_pico: int, key: SecretKey, now_ms: int
) -> Signed[Dispute]:
    """The client's dispute of a proposal that it cannot sign. `owed_pico` is what it would have signed."""
    owed_pico = min(owed_pico, receipt.message.amount_pico)
    return _sign_dispute(receipt, Role.CLIENT, fault.code, fault.sentence, owed_pico, key, now_ms)


def answer_dispute(
    dispute: Signed[Dispute], *, decision: Decision, statement: str, owed_pico: int, key: SecretKey, now_ms: int
) -> Signed[Answer]:
    """Sign the other party's answer. An accepted dispute's amount is the dispute's, whatever `owed_pico` says."""
    message = dispute.message
    by = _OTHER[message.by]
    return sign_message(
        Answer(
            channel=message.channel,
            receipt_number=message.receipt_number,
            dispute=dispute.id,
            by=by,
            decision=decision,
            statement=statement[:STATEMENT_CHARS],
            owed_pico=message.owed_pico if decision is Decision.ACCEPTED else owed_pico,
            answered_ms=now_ms,
        ),
        by,
        key,
    )


def decide_dispute(
    dispute: Signed[Dispute],
    receipt: Receipt,
    *,
    channel: Channel,
    order: Signed[Order],
    tariff: Tariff,
    meter: Meter | None,
    voucher: Voucher | None,
    key: SecretKey,
    now_ms: int,
) -> Signed[Answer] | None:
    """The provider's answer to a client's dispute where its own ledger decides; None where a person must.

    The receipt is held against the rules once more, and to one window beyond the last voucher. If it breaks one, the
    dispute is accepted unless it claims that less is owed than is; if not, the receipt stands.
    """
    message = dispute.message
    if message.by is not Role.CLIENT or message.reason in REASONS:
        return None
    faults = faults_of_receipt(
        receipt,
        channel=channel,
        order=order.message,
        order_id=order.id,
        tariff=tariff,
        meter=meter,
        voucher=voucher,
        countersigned=False,
    )
    if not faults:
        statement = "The receipt was checked against order, tariff, meters and vouchers again: it stands."
        return answer_dispute(
            dispute, decision=Decision.REJECTED, statement=statement, owed_pico=receipt.amount_pico, key=key, now_ms=now_ms
        )
    right_pico = min(_right_amount(receipt, faults, tariff, voucher), receipt.amount_pico)
    decision = Decision.ACCEPTED if right_pico <= message.owed_pico else Decision.REJECTED
    return answer_dispute(
        dispute, decision=decision, statement=faults[0].sentence, owed_pico=right_pico, key=key, now_ms=now_ms
    )


def verify_dispute(record: Record, channel: Channel, keys: dict[Role, object]) -> Signed[Dispute]:  # pragma: no cover
    """Placeholder for the signature; see `adoption`."""
    raise NotImplementedError
