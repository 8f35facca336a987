"""A month of dealings that is over: seeded, signed by both sides, in both ledgers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Receipt, Status, Tariff, Terms, Usage
from p2pgrid.proto.pricing import amount_owed, price_of
from p2pgrid.proto.record import Role, Signed, sign_message
from tests.proto.chains import BY_VOUCHER, DAY_MS, Dealings

CREDIT_PICO = 200 * 10**12
MODELS = ("small", "large")
UTC_OFFSET_MINUTES = 120
"""Vilnius and Tartu, in winter."""
_ORDERS_AT_ONCE = 200

STATUSES = (
    *[Status.COMPLETED] * 90,
    *[Status.CANCELLED] * 4,
    *[Status.INTERRUPTED] * 3,
    *[Status.FAILED] * 2,
    Status.EMPTY,
)
"""How orders end, in a hundred."""


def tariffs(operator: str) -> dict[str, Tariff]:
    """An operator's prices: micro-EUR for a million tokens."""
    dearer = len(operator) % 3
    return {
        "small": Tariff(input_upm=400_000 + dearer * 50_000, cached_input_upm=100_000, output_upm=1_800_000),
        "large": Tariff(input_upm=3_000_000, cached_input_upm=750_000, output_upm=9_000_000 + dearer * 333_333),
    }


class Past(Dealings):
    """One channel's month. Records are kept in the order in which they were made; nothing is looked up."""

    def __init__(
        self, operator: str, buyer: str, provider: SecretKey, client: SecretKey, *, from_ms: int, seed: int
    ) -> None:
        self._rng = random.Random(f"{operator} {buyer} {seed}")
        self.tariffs = tariffs(operator)
        self._unmentioned: list[bytes] = []
        self.disputed: list[Signed[Receipt]] = []
        """In the order of the disputes."""
        models = tuple(
            ModelOffer(model=model, tariff=tariff, context_tokens=16_384, concurrency=8, endpoints=ENDPOINTS)
            for model, tariff in self.tariffs.items()
        )
        super().__init__(
            provider=provider,
            client=client,
            nonce=f"{operator} {buyer} {seed}",
            now_ms=from_ms + 1000,
            offer_changes={
                "valid_from_ms": from_ms - DAY_MS,
                "valid_until_ms": from_ms + 60 * DAY_MS,
                "operator": operator,
                "utc_offset_minutes": UTC_OFFSET_MINUTES,
                "models": models,
                "terms": Terms(credit_limit_pico=CREDIT_PICO),
            },
            channel_changes={
                "opened_ms": from_ms,
                "expires_ms": from_ms + 90 * DAY_MS,
                "credit_limit_pico": CREDIT_PICO,
            },
        )

    def keep(self, signed: Signed[Any], *, by: str = "both") -> Signed[Any]:
        for side, book in (("provider", self.provider_has), ("client", self.client_has)):
            if by in (side, "both"):
                book.append(signed)
        return signed

    def one(self) -> Signed[Receipt]:
        """An order from beginning to end, by the rules."""
        rng = self._rng
        model = rng.choices(MODELS, (3, 1))[0]
        tariff = self.tariffs[model]
        status = rng.choice(STATUSES)
        prompt, output = rng.randint(20, 4_000), rng.randint(1, 1_200)
        if status in (Status.EMPTY, Status.FAILED):
            output = 0
        usage = Usage(prompt_tokens=prompt, cached_tokens=rng.choice((0, 0, prompt // 2)), output_tokens=output)
        most = Usage(prompt_tokens=prompt, output_tokens=2_000)
        order = self.order(
            model=model, max_prompt_tokens=prompt, max_output_tokens=2_000, max_amount_pico=price_of(tariff, most)
        )
        billed = self.serve(order, usage) if status in BY_VOUCHER else usage
        mentions, self._unmentioned = tuple(self._unmentioned), []
        return self.receipt(order, billed, status, amount_pico=amount_owed(tariff, billed, status), mentions=mentions)

    def meter(self, order: Signed[Any], usage: Usage, /, *, by: str = "both", **changes: Any) -> Signed[Any]:
        changes.setdefault("amount_pico", price_of(self.tariffs[order.message.model], usage))
        return super().meter(order, usage, by=by, **changes)

    def spend(self, receipts: int, *, until_ms: int) -> None:
        """So many orders, spread over the time that is left."""
        pause_ms = (until_ms - self.now_ms) // (receipts + 1)
        for _ in range(receipts):
            self.now_ms += max(pause_ms - 2_000, 0)
            self.one()

    def dispute(self, receipt: Signed[Receipt], *, accept: bool | None, owed_pico: int = 0) -> Signed[Dispute]:
        """The client disputes the last receipt; the provider accepts, rejects or, None, has not answered yet."""
        message = receipt.message
        self.disputed.append(receipt)
        dispute = Dispute(
            channel=message.channel,
            receipt_number=message.receipt_number,
            receipt=receipt.id,
            by=Role.CLIENT,
            reason="wrong-counts",
            owed_pico=owed_pico,
            disputed_ms=message.issued_ms + 1_000,
            statement="",
        )
        signed = self.keep(sign_message(dispute, Role.CLIENT, self.client))
        self._unmentioned.append(signed.id)
        if accept is not None:
            answer = self.keep(_answer(signed, self.provider, accept=accept, billed_pico=message.amount_pico))
            self._unmentioned.append(answer.id)
        return signed


def _answer(dispute: Signed[Dispute], provider: SecretKey, *, accept: bool, billed_pico: int) -> Signed[Answer]:
    message = dispute.message
    answer = Answer(
        channel=message.channel,
        receipt_number=message.receipt_number,
        dispute=dispute.id,
        by=Role.PROVIDER,
        decision=Decision.ACCEPTED if accept else Decision.REJECTED,
        statement="",
        owed_pico=message.owed_pico if accept else billed_pico,
        answered_ms=message.disputed_ms + 1_000,
    )
    return sign_message(answer, Role.PROVIDER, provider)


async def write(data: Path, books: Sequence[Sequence[Signed[Any]]]) -> None:
    """Channels' records into the ledger of a data folder that no node has open."""
    ledger = SqliteLedger.open(data)
    try:
        for book in books:
            for start in range(0, len(book), _ORDERS_AT_ONCE):
                await ledger.append(*book[start : start + _ORDERS_AT_ONCE])
    finally:
        await ledger.aclose()
