"""The provider's offers: signed, durable, shown, renewed, honoured (docs/spec/offer.md).

An offer that was ever shown binds until it expires, whatever the operator changes meanwhile: `find` has it. Its
sequence number grows for ever, over restarts, and even over a lost ledger, as long as the clock goes forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final, Protocol

from p2pgrid.config import ModelConfig, TermsConfig
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import BatchTerms, DataTerms, ModelOffer, Offer, Tariff, Terms
from p2pgrid.proto.record import Role, Signed, sign_message, verify_record
from p2pgrid.proto.withdrawal import Withdrawal
from p2pgrid.provider.schedule import offset_change_ms, parse_tariff, utc_offset_minutes
from p2pgrid.units import MICRO_PER_EUR, PICO_PER_EUR, parse_price_eur

CURRENCY: Final = "EUR"
MAX_ADDRESSES: Final = 16
"""What an offer holds."""
ONE_BY_ONE: Final = BatchTerms()
"""Every request has an order and a receipt of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferTerms:
    """What every offer of a node says alike."""

    operator: str
    data_terms: DataTerms
    terms: Terms
    gpus: tuple[str, ...]
    validity_ms: int
    zone: tzinfo = UTC
    """The clock of the price schedules."""
    card_id: Callable[[], bytes] = bytes
    """The id of the operator's card as it is now; empty if it has none that names this node."""
    batch: BatchTerms = ONE_BY_ONE


class Offers(Protocol):
    """What exchanges with clients need of the offers."""

    @property
    def current(self) -> Signed[Offer] | None:
        """What is shown to whoever asks; None while nothing is offered."""

    @property
    def withdrawal(self) -> Signed[Withdrawal] | None:
        """What is shown in its place; None where no offer was shown before."""

    def find(self, offer_id: bytes) -> Signed[Offer] | None:
        """The offer of that id, if it is ours, whether or not it is in force."""


class OfferBook:
    """Every offer of ours that is in force."""

    def __init__(self, ledger: Ledger, key: SecretKey, terms: OfferTerms, now_ms: Callable[[], int]) -> None:
        self._ledger = ledger
        self._key = key
        self._terms = terms
        self._now_ms = now_ms
        self._current: Signed[Offer] | None = None
        self._ours: dict[bytes, Signed[Offer]] = {}
        self._last_sequence = 0
        self._withdrawn = True
        self._withdrawal: Signed[Withdrawal] | None = None
        self._renewal_ms = 0
        self._recall()

    @property
    def current(self) -> Signed[Offer] | None:
        """What is shown to whoever asks; None while nothing is offered."""
        offer = self._current
        if self._withdrawn or offer is None or offer.message.valid_until_ms < self._now_ms():
            return None
        return offer

    @property
    def withdrawal(self) -> Signed[Withdrawal] | None:
        """What is shown while nothing is offered; None where no offer was shown before."""
        return self._withdrawal if self._withdrawn else None

    def find(self, offer_id: bytes) -> Signed[Offer] | None:
        """The offer of that id, if it is ours; withdrawn and replaced ones too, since they were shown.

        Whether it is in force is for the caller to check: expired ones are forgotten only with the next `publish`.
        """
        return self._ours.get(offer_id)

    async def publish(self, models: Sequence[ModelOffer], addresses: Sequence[str]) -> Signed[Offer]:
        """Sign the next offer, make it durable, then show it. Raises LedgerError, UsageError; the last one then stays.

        It is dated back by the clock difference that clients are allowed, so that none of them finds it in the future.
        It ends early where the time zone's offset changes, and begins no earlier than at such a change.
        """
        now_ms = self._now_ms()
        terms = self._terms
        sequence = max(self._last_sequence + 1, now_ms // 1000)
        from_ms, until_ms = self._term(now_ms)
        message = Offer(
            provider=self._key.public_key.raw,
            sequence=sequence,
            valid_from_ms=from_ms,
            valid_until_ms=until_ms,
            operator=terms.operator,
            currency=CURRENCY,
            addresses=tuple(addresses)[:MAX_ADDRESSES],
            data_terms=terms.data_terms,
            models=tuple(models),
            gpus=terms.gpus,
            terms=terms.terms,
            utc_offset_minutes=utc_offset_minutes(terms.zone, now_ms),
            card=terms.card_id(),
            batch=terms.batch,
        )
        try:
            offer = sign_message(message, Role.PROVIDER, self._key)
        except InvalidRecord as error:
            raise UsageError(
                f"the offer cannot be signed: {error.message}", hint="Mend [provider] in config.toml."
            ) from None
        self._last_sequence = sequence
        await self._ledger.append(offer)
        self._ours = {i: o for i, o in self._ours.items() if o.message.valid_until_ms >= now_ms}
        self._ours[offer.id] = offer
        self._current = offer
        self._withdrawn = False
        return offer

    def withdraw(self) -> None:
        """Show the last offer no more, until the next `publish`, but a withdrawal. What was shown is still honoured.

        Its number is the one after the last offer's, so that the next offer, whose number is that or a higher one even
        where the clock went back meanwhile, is not withdrawn by it.
        """
        if not self._withdrawn and self._current is not None:
            message = Withdrawal(
                provider=self._key.public_key.raw,
                sequence=self._current.message.sequence + 1,
                withdrawn_ms=self._now_ms(),
            )
            self._withdrawal = sign_message(message, Role.PROVIDER, self._key)
        self._withdrawn = True

    @property
    def renewal_ms(self) -> int:
        """When the current offer should be renewed: at half time, or at its end where the clock's offset changes."""
        return self._now_ms() if self._current is None else self._renewal_ms

    def _term(self, now_ms: int) -> tuple[int, int]:
        """From when to when an offer signed now holds."""
        zone, from_ms, until_ms = self._terms.zone, now_ms - CLOCK_TOLERANCE_MS, now_ms + self._terms.validity_ms
        changed_ms = offset_change_ms(zone, from_ms, now_ms)
        changes_ms = offset_change_ms(zone, now_ms, until_ms)
        self._renewal_ms = until_ms - self._terms.validity_ms // 2
        if changes_ms is not None:
            until_ms = changes_ms - 1  # the end is included
            self._renewal_ms = min(self._renewal_ms, changes_ms)
        return max(from_ms, changed_ms or from_ms), until_ms

    def _recall(self) -> None:
        """Learn from the ledger which number was last, and which offers still bind."""
        own, now_ms = self._key.public_key, self._now_ms()
        for record in self._ledger.records():
            if record.payload_type != Offer.payload_type:
                if record.payload_type in _BEHIND_THE_OFFERS:
                    break
                continue
            signature = record.signature_of(Role.PROVIDER)
            if signature is None or signature.key != own.raw:
                continue
            offer = verify_record(record, Offer, {Role.PROVIDER: own})
            self._last_sequence = max(self._last_sequence, offer.message.sequence)
            if offer.message.valid_until_ms >= now_ms:
                self._ours[offer.id] = offer


_BEHIND_THE_OFFERS: Final = frozenset(f"/p2pgrid/{name}/1" for name in ("order", "meter", "voucher", "receipt"))
"""`Ledger.records` gives offers and channels first."""


def tariff_of(model: ModelConfig) -> Tariff:
    """The prices of a model at all hours that no schedule names. Raises UsageError that names the model."""
    try:
        return parse_tariff(model.price_input_eur, model.price_cached_input_eur, model.price_output_eur)
    except UsageError as error:
        raise UsageError(f"the model {model.name!r}: {error.message}", hint=error.hint) from None


def terms_of(config: TermsConfig) -> Terms:
    """The terms of the configuration. Raises UsageError."""
    return Terms(
        window_tokens=config.window_tokens,
        credit_limit_pico=parse_price_eur(config.credit_limit_eur) * (PICO_PER_EUR // MICRO_PER_EUR),
        max_open_orders=config.max_open_orders,
        channel_days=config.channel_days,
        dispute_days=config.dispute_days,
        settlement_days=config.settlement_days,
    )


def batch_terms_of(config: TermsConfig) -> BatchTerms:
    """How many requests may share an order, by the configuration."""
    if config.batch_requests == 1:
        return BatchTerms()
    return BatchTerms(batch_requests=config.batch_requests, batch_ms=config.batch_ms)
