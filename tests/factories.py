"""Signed records for tests: two parties, an offer, a channel, orders, meters, vouchers, receipts that fit together.

Everything is deterministic: keys derive from a seed, times from a fixed clock. `Dealings` keeps the books of one
channel, so that numbers, links, prices and totals are right unless a test says otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.card import Card, PeerKey
from p2pgrid.proto.cycle import Cycle, CycleDebt, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import legs_of
from p2pgrid.proto.default import Default
from p2pgrid.proto.dispute import Answer, Decision, Dispute, Opening, Subject
from p2pgrid.proto.invoice_sums import vat_of
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    ENDPOINTS,
    Channel,
    DataTerms,
    Meter,
    ModelOffer,
    Offer,
    Order,
    Receipt,
    Status,
    Tariff,
    Terms,
    Usage,
    Voucher,
    channel_id,
)
from p2pgrid.proto.pricing import amount_owed, owes_nothing, price_of
from p2pgrid.proto.record import M, Message, Role, Signed, sign_message
from p2pgrid.proto.set_off import Claim, SetOff, SetOffSide
from p2pgrid.proto.set_off_rules import signer_keys
from p2pgrid.proto.statement import (
    Invoice,
    InvoiceType,
    Payment,
    PaymentKind,
    Statement,
    StatementLine,
    VatLine,
)
from p2pgrid.proto.statement_rules import statement_net
from p2pgrid.proto.withdrawal import Withdrawal

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
MODEL = "tiny"
TARIFF = Tariff(input_upm=200_000, cached_input_upm=50_000, output_upm=800_000)


def secret_key(name: str) -> SecretKey:
    """A key that is the same in every run."""
    return SecretKey(hashlib.sha256(name.encode()).digest())


def digest(name: str) -> bytes:
    """32 bytes that stand for something named."""
    return hashlib.sha256(name.encode()).digest()


PROVIDER = secret_key("provider")
CLIENT = secret_key("client")


def make_offer(key: SecretKey = PROVIDER, **changes: Any) -> Signed[Offer]:
    """An offer of one model at `TARIFF`, in force at NOW_MS."""
    fields: dict[str, Any] = {
        "provider": key.public_key.raw,
        "sequence": 1,
        "valid_from_ms": NOW_MS - DAY_MS,
        "valid_until_ms": NOW_MS + 30 * DAY_MS,
        "operator": "Example GmbH",
        "currency": "EUR",
        "addresses": ("/ip4/127.0.0.1/tcp/4001/tls",),
        "data_terms": DataTerms(country="DE"),
        "models": (ModelOffer(model=MODEL, tariff=TARIFF, context_tokens=4096, concurrency=8, endpoints=ENDPOINTS),),
        "terms": Terms(credit_limit_pico=10**12),
    }
    return sign_message(Offer(**{**fields, **changes}), Role.PROVIDER, key)


def make_channel(
    provider: SecretKey = PROVIDER, client: SecretKey = CLIENT, *, name: str = "channel", **changes: Any
) -> Signed[Channel]:
    """A channel that both have signed. Another `name` makes another channel."""
    nonces = digest(f"{name}/provider"), digest(f"{name}/client")
    fields: dict[str, Any] = {
        "channel": channel_id(provider.public_key.raw, client.public_key.raw, *nonces),
        "provider": provider.public_key.raw,
        "client": client.public_key.raw,
        "provider_nonce": nonces[0],
        "client_nonce": nonces[1],
        "currency": "EUR",
        "credit_limit_pico": 10**12,
        "window_tokens": 256,
        "max_open_orders": 64,
        "opened_ms": NOW_MS,
        "expires_ms": NOW_MS + 90 * DAY_MS,
        "dispute_days": 14,
    }
    message = Channel(**{**fields, **changes})
    return sign_message(message, Role.PROVIDER, provider).countersigned(Role.CLIENT, client)


def resigned(signed: Signed[Any], key: SecretKey, role: Role, **changes: Any) -> Signed[Any]:
    """The same message with some fields changed, signed anew by `key` alone."""
    return sign_message(msgspec.structs.replace(signed.message, **changes), role, key)


@dataclass
class Dealings:
    """One channel's records, made in order; every maker takes field changes for the message it makes."""

    provider: SecretKey = PROVIDER
    client: SecretKey = CLIENT
    name: str = "channel"
    offer: Signed[Offer] = field(init=False)
    channel: Signed[Channel] = field(init=False)
    last_order_number: int = field(default=0, init=False)
    receipts: list[Signed[Receipt]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.offer = make_offer(self.provider)
        self.channel = make_channel(self.provider, self.client, name=self.name)

    @property
    def id(self) -> bytes:
        """The channel's id."""
        return self.channel.message.channel

    def order(self, **changes: Any) -> Signed[Order]:
        """The next order, signed by the client."""
        self.last_order_number += 1
        fields: dict[str, Any] = {
            "channel": self.id,
            "order_number": self.last_order_number,
            "offer": self.offer.id,
            "model": MODEL,
            "endpoint": ENDPOINTS[0],
            "request_commitment": digest(f"request {self.last_order_number}"),
            "max_prompt_tokens": 1000,
            "max_output_tokens": 1000,
            "max_amount_pico": 10**9,
            "ordered_ms": NOW_MS + self.last_order_number * 1000,
            "first_token_deadline_ms": NOW_MS + self.last_order_number * 1000 + 30_000,
        }
        return sign_message(Order(**{**fields, **changes}), Role.CLIENT, self.client)

    def meter(self, order: Signed[Order], tick: int = 1, *, output_tokens: int = 256, **changes: Any) -> Signed[Meter]:
        """A tick of the provider's for the order."""
        usage = Usage(prompt_tokens=10, output_tokens=output_tokens)
        fields: dict[str, Any] = {
            "channel": self.id,
            "order_number": order.message.order_number,
            "tick": tick,
            "usage": usage,
            "amount_pico": price_of(TARIFF, usage),
            "response_commitment": digest(f"response {order.message.order_number}/{tick}"),
            "metered_ms": order.message.ordered_ms + 100 * tick,
        }
        return sign_message(Meter(**{**fields, **changes}), Role.PROVIDER, self.provider)

    def voucher(self, meter: Signed[Meter], **changes: Any) -> Signed[Voucher]:
        """The client's consent to the tick."""
        fields: dict[str, Any] = {
            "channel": self.id,
            "order_number": meter.message.order_number,
            "tick": meter.message.tick,
            "meter": meter.id,
            "usage": meter.message.usage,
            "amount_pico": meter.message.amount_pico,
        }
        return sign_message(Voucher(**{**fields, **changes}), Role.CLIENT, self.client)

    def proposal(self, order: Signed[Order], *, usage: Usage | None = None, **changes: Any) -> Signed[Receipt]:
        """The channel's next receipt, for the order, signed by the provider. It joins the chain at once."""
        usage = usage or Usage(prompt_tokens=10, output_tokens=300)
        status = changes.get("status", Status.COMPLETED)
        amount = changes.get("amount_pico", amount_owed(TARIFF, usage, status))
        last = self.receipts[-1] if self.receipts else None
        fields: dict[str, Any] = {
            "channel": self.id,
            "receipt_number": last.message.receipt_number + 1 if last else 1,
            "previous": last.id if last else self.channel.id,
            "order_number": order.message.order_number,
            "order": order.id,
            "offer": order.message.offer,
            "model": order.message.model,
            "usage": usage,
            "amount_pico": amount,
            "channel_total_pico": (last.message.channel_total_pico if last else 0) + amount,
            "status": status,
            "finish_reason": "stop",
            "request_commitment": order.message.request_commitment,
            "response_commitment": digest(f"response {order.message.order_number}"),
            "first_token_ms": 50,
            "total_ms": 400,
            "issued_ms": order.message.ordered_ms + 400,
        }
        receipt = sign_message(Receipt(**{**fields, **changes}), Role.PROVIDER, self.provider)
        self.receipts.append(receipt)
        return receipt

    def countersign(self, proposal: Signed[Receipt]) -> Signed[Receipt]:
        """The client's signature beside the provider's."""
        receipt = proposal.countersigned(Role.CLIENT, self.client)
        self.receipts[self.receipts.index(proposal)] = receipt
        return receipt

    def completed(self, *, ticks: int = 1) -> list[Signed[Message]]:
        """The records of one more order from beginning to end, as they arise; the receipt has both signatures."""
        order = self.order()
        records: list[Signed[Message]] = [order]
        for tick in range(1, ticks + 1):
            meter = self.meter(order, tick, output_tokens=256 * tick)
            records += [meter, self.voucher(meter)]
        usage = Usage(prompt_tokens=10, output_tokens=256 * ticks + 44)
        return [*records, self.countersign(self.proposal(order, usage=usage))]

    def chain(self, receipts: int, *, ticks: int = 1) -> list[Signed[Message]]:
        """Offer, channel and `receipts` completed orders: a clean ledger, in order."""
        records: list[Signed[Message]] = [self.offer, self.channel]
        for _ in range(receipts):
            records += self.completed(ticks=ticks)
        return records


OPERATOR = secret_key("operator")


def make_dispute(receipt: Signed[Receipt], by: Role = Role.CLIENT, **changes: Any) -> Signed[Dispute]:
    """One side refuses a receipt, and says that nothing is owed."""
    fields: dict[str, Any] = {
        "channel": receipt.message.channel,
        "receipt_number": receipt.message.receipt_number,
        "receipt": receipt.id,
        "by": by,
        "reason": "not-delivered",
        "statement": "The answer never came.",
        "owed_pico": 0,
        "disputed_ms": receipt.message.issued_ms + 1000,
    }
    return sign_message(Dispute(**{**fields, **changes}), by, CLIENT if by is Role.CLIENT else PROVIDER)


def make_answer(dispute: Signed[Dispute], **changes: Any) -> Signed[Answer]:
    """The other side accepts a dispute."""
    by = Role.PROVIDER if dispute.message.by is Role.CLIENT else Role.CLIENT
    fields: dict[str, Any] = {
        "channel": dispute.message.channel,
        "receipt_number": dispute.message.receipt_number,
        "dispute": dispute.id,
        "by": by,
        "decision": Decision.ACCEPTED,
        "statement": "Agreed.",
        "owed_pico": dispute.message.owed_pico,
        "answered_ms": dispute.message.disputed_ms + 1000,
    }
    return sign_message(Answer(**{**fields, **changes}), by, CLIENT if by is Role.CLIENT else PROVIDER)


def make_card(key: SecretKey = OPERATOR, **changes: Any) -> Signed[Card]:
    """The card of an operator whose node has the key PROVIDER."""
    term = {"valid_from_ms": NOW_MS - DAY_MS, "valid_until_ms": NOW_MS + 365 * DAY_MS}
    fields: dict[str, Any] = {
        "operator": key.public_key.raw,
        "sequence": 1,
        **term,
        "legal_name": "Vilnius Compute UAB",
        "vat_id": "LT100001919017",
        "country": "LT",
        "parent_country": "LT",
        "domain": "compute.example",
        "peers": (PeerKey(key=PROVIDER.public_key.raw, **term),),
    }
    return sign_message(Card(**{**fields, **changes}), Role.OPERATOR, key)


def make_billing_details(by: Role = Role.PROVIDER, **changes: Any) -> Signed[BillingDetails]:
    """Who a party is on its invoices; each field is right unless a change says otherwise."""
    key = PROVIDER if by is Role.PROVIDER else CLIENT
    fields: dict[str, Any] = {
        "party": key.public_key.raw,
        "by": by,
        "sequence": 1,
        "stated_ms": NOW_MS,
        "legal_name": "Vilniaus skaičiavimai UAB",
        "street": "Gedimino pr. 1",
        "city": "Vilnius",
        "post_code": "01103",
        "country": "LT",
        "vat_id": "LT100001919017",
        "registration_number": "300123456",
        "iban": "LT121000011101001000",
    }
    return sign_message(BillingDetails(**{**fields, **changes}), by, key)


def make_withdrawal(key: SecretKey = PROVIDER, **changes: Any) -> Signed[Withdrawal]:
    """The provider leaves, after its first offer."""
    fields = {"provider": key.public_key.raw, "sequence": 2, "withdrawn_ms": NOW_MS}
    return sign_message(Withdrawal(**{**fields, **changes}), Role.PROVIDER, key)


def make_opening(order: Signed[Order], content: bytes, commitment_key: bytes, **changes: Any) -> Signed[Opening]:
    """The client shows what it asked."""
    fields: dict[str, Any] = {
        "channel": order.message.channel,
        "order_number": order.message.order_number,
        "by": Role.CLIENT,
        "subject": Subject.REQUEST,
        "commitment_key": commitment_key,
        "content": content,
    }
    opening = Opening(**{**fields, **changes})
    return sign_message(opening, opening.by, CLIENT if opening.by is Role.CLIENT else PROVIDER)


def make_statement(
    receipts: Sequence[Signed[Receipt]],
    root: bytes,
    *,
    before: Signed[Statement] | None = None,
    rate_bp: int = 0,
    tariff: Tariff = TARIFF,
    **changes: Any,
) -> Signed[Statement]:
    """Both sides' statement over receipts of one channel, all of one tariff; what follows from a change is changed too.

    With `rate_bp` there is VAT of the standard rate, without it reverse charge. Of no receipts it follows `before`.
    """
    last = before.message if before is not None else None
    fields: dict[str, Any] = {
        "channel": receipts[0].message.channel if receipts else last.channel if last else b"",
        "statement_number": last.statement_number + 1 if last else 1,
        "previous": before.id if before is not None else b"",
        "first_receipt": receipts[0].message.receipt_number if receipts else last.last_receipt + 1 if last else 1,
        "last_receipt": receipts[-1].message.receipt_number if receipts else last.last_receipt if last else 0,
        "root": root,
        "currency": "EUR",
        "lines": (line_of(receipts, tariff),) if receipts else (),
        "total_pico": sum(receipt.message.amount_pico for receipt in receipts),
        "credits_pico": 0,
        "held_pico": 0,
        "payments_cents": 0,
        "set_off_cents": 0,
        "opening_cents": last.closing_cents if last else 0,
        "from_ms": last.until_ms if last else NOW_MS,
        **changes,
    }
    from_ms = fields["from_ms"]
    fields.setdefault("until_ms", max(receipts[-1].message.issued_ms if receipts else 0, from_ms) + 1000)
    fields.setdefault("stated_ms", fields["until_ms"] + DAY_MS)
    fields.setdefault("due_ms", fields["stated_ms"] + 14 * DAY_MS)
    taken = {"credits_pico": fields["credits_pico"], "held_pico": fields["held_pico"]}
    held_before_pico = last.held_pico if last else 0
    fields.setdefault("net_cents", statement_net(fields["lines"], **taken, held_before_pico=held_before_pico))
    fields.setdefault("vat", (vat_line(fields["net_cents"], rate_bp),))
    fields.setdefault("gross_cents", fields["net_cents"] + sum(line.vat_cents for line in fields["vat"]))
    paid = fields["payments_cents"] + fields["set_off_cents"]
    fields.setdefault("closing_cents", fields["opening_cents"] + fields["gross_cents"] - paid)
    return sign_message(Statement(**fields), Role.PROVIDER, PROVIDER).countersigned(Role.CLIENT, CLIENT)


def line_of(receipts: Sequence[Signed[Receipt]], tariff: Tariff = TARIFF) -> StatementLine:
    """The one line of receipts of one model, all of one tariff."""
    billed = [receipt.message.usage for receipt in receipts if not owes_nothing(receipt.message.status)]
    return StatementLine(
        model=receipts[0].message.model,
        input_upm=tariff.input_upm,
        cached_input_upm=tariff.cached_input_upm,
        output_upm=tariff.output_upm,
        receipts=len(receipts),
        prompt_tokens=sum(usage.prompt_tokens for usage in billed),
        cached_tokens=sum(usage.cached_tokens for usage in billed),
        output_tokens=sum(usage.output_tokens for usage in billed),
        amount_pico=sum(receipt.message.amount_pico for receipt in receipts),
    )


def vat_line(net_cents: int, rate_bp: int = 0, **changes: Any) -> VatLine:
    """VAT of the standard rate, or reverse charge where there is no rate."""
    fields: dict[str, Any] = {
        "category": "S" if rate_bp else "AE",
        "rate_bp": rate_bp,
        "exemption": "" if rate_bp else "VATEX-EU-AE",
        "net_cents": net_cents,
        "vat_cents": vat_of(net_cents, rate_bp),
    }
    return VatLine(**{**fields, **changes})


def make_invoice(statement: Signed[Statement], **changes: Any) -> Signed[Invoice]:
    """The provider's invoice for a statement, a credit note where that is below zero."""
    message = statement.message
    fields: dict[str, Any] = {
        "channel": message.channel,
        "statement": statement.id,
        "invoice_number": f"2027-{message.statement_number:04}",
        "currency": "EUR",
        "net_cents": message.net_cents,
        "vat_cents": message.gross_cents - message.net_cents,
        "document_sha256": digest("invoice"),
        "issued_ms": message.stated_ms + 1000,
        **changes,
    }
    fields.setdefault("type_code", InvoiceType.CREDIT_NOTE if fields["net_cents"] < 0 else InvoiceType.INVOICE)
    fields.setdefault("gross_cents", fields["net_cents"] + fields["vat_cents"])
    return sign_message(Invoice(**fields), Role.PROVIDER, PROVIDER)


def make_payment(invoice: Signed[Invoice], channel: bytes, **changes: Any) -> Signed[Payment]:
    """The whole of an invoice of that channel, paid; of a credit note, refunded. Each reference is another entry."""
    cents = changes.get("amount_cents", invoice.message.gross_cents)
    fields: dict[str, Any] = {
        "channel": channel,
        "statement": invoice.message.statement,
        "invoice_number": invoice.message.invoice_number,
        "reference": "P2PGRID-1",
        "currency": "EUR",
        "amount_cents": cents,
        "kind": PaymentKind.RECEIVED if cents > 0 else PaymentKind.REFUNDED,
        "booked_ms": invoice.message.issued_ms + DAY_MS,
        **changes,
    }
    fields.setdefault("entry", digest(f"entry {fields['reference']} {fields['kind']} {fields['booked_ms']}"))
    return sign_message(Payment(**fields), Role.PROVIDER, PROVIDER)


def make_claim(statement: Signed[Statement], **changes: Any) -> Signed[Default]:
    """The provider's word that nothing of a statement is paid, a month after it was due."""
    message = statement.message
    fields: dict[str, Any] = {
        "channel": message.channel,
        "statement": statement.id,
        "currency": "EUR",
        "unpaid_cents": message.closing_cents,
        "payments": (),
        "as_of_ms": message.due_ms + 30 * DAY_MS,
        **changes,
    }
    fields.setdefault("claimed_ms", fields["as_of_ms"] + 1000)
    return sign_message(Default(**fields), Role.PROVIDER, PROVIDER)


def make_prepayment(channel: bytes, **changes: Any) -> Signed[Payment]:
    """Money that came for no invoice."""
    fields: dict[str, Any] = {
        "channel": channel,
        "statement": b"",
        "invoice_number": "",
        "reference": "AHEAD-1",
        "currency": "EUR",
        "amount_cents": 5,
        "kind": PaymentKind.RECEIVED,
        "entry": digest("entry ahead"),
        "booked_ms": NOW_MS + DAY_MS,
    }
    return sign_message(Payment(**{**fields, **changes}), Role.PROVIDER, PROVIDER)


def set_off_side(channel: Signed[Channel], *invoices: tuple[Signed[Invoice], int], card: bytes = b"") -> SetOffSide:
    """What a channel's provider gives up: cents of each invoice."""
    claims = (
        Claim(statement=invoice.message.statement, invoice_number=invoice.message.invoice_number, cents=cents)
        for invoice, cents in invoices
    )
    terms = channel.message
    return SetOffSide(
        channel=terms.channel, creditor=terms.provider, debtor=terms.client, card=card, claims=tuple(claims)
    )


def make_set_off(one: SetOffSide, two: SetOffSide, keys: Sequence[SecretKey], **changes: Any) -> Signed[SetOff]:
    """A set-off, signed by those creditors whose keys are among `keys`."""
    first, second = sorted((one, two), key=lambda side: side.channel)
    fields: dict[str, Any] = {
        "first": first,
        "second": second,
        "currency": "EUR",
        "amount_cents": sum(claim.cents for claim in first.claims),
        "agreed_ms": NOW_MS + 2 * DAY_MS,
        "nonce": digest("set-off"),
        **changes,
    }
    fields.setdefault("until_ms", fields["agreed_ms"] + 7 * DAY_MS)
    return signed_by_names(SetOff(**fields), keys)


def make_cycle(debts: Sequence[Signed[Channel]], proposer: SecretKey, **changes: Any) -> Signed[Cycle]:
    """A cycle over channels: the client of each is the provider of the one before it."""
    terms = [channel.message for channel in debts]
    at = min(range(len(terms)), key=lambda n: terms[n].channel)
    ordered = [*terms[at:], *terms[:at]]
    fields: dict[str, Any] = {
        "proposer": proposer.public_key.raw,
        "debts": tuple(
            CycleDebt(channel=one.channel, creditor=one.provider, debtor=one.client, card=b"") for one in ordered
        ),
        "currency": "EUR",
        "amount_cents": 500,
        "deadline_ms": NOW_MS + 5 * DAY_MS,
        "timekeeper": secret_key("timekeeper").public_key.raw,
        "proposed_ms": NOW_MS + 2 * DAY_MS,
        "nonce": digest("cycle"),
    }
    return signed_by_names(Cycle(**{**fields, **changes}), [proposer])


def make_legs(cycle: Signed[Cycle], keys: Sequence[SecretKey]) -> list[Signed[Leg]]:
    """The legs of a cycle that one of the keys is a party of, with the signatures of these keys."""
    named = {key.public_key.raw for key in keys}
    legs = (leg for leg in legs_of(cycle.message, cycle.id) if {leg.creditor, leg.debtor} & named)
    return [signed_by_names(leg, keys) for leg in legs]


def make_verdict(cycle: Signed[Cycle], key: SecretKey | None = None, **changes: Any) -> Signed[CycleVerdict]:
    """The timekeeper says that a cycle was complete."""
    key = key or secret_key("timekeeper")
    fields: dict[str, Any] = {
        "cycle": cycle.id,
        "timekeeper": key.public_key.raw,
        "is_complete": True,
        "judged_ms": cycle.message.proposed_ms + DAY_MS,
    }
    return sign_message(CycleVerdict(**{**fields, **changes}), Role.PROVIDER, key)


def set_off_records(invoice: Signed[Invoice], dealings: Dealings) -> list[Signed[Any]]:
    """A set-off of a channel against one the other way, a cycle of it with two more, its leg, and the verdict."""
    third = secret_key("third")
    back = make_channel(CLIENT, PROVIDER, name="back")
    owed = make_invoice(resigned(make_statement(dealings.receipts, digest("root")), CLIENT, Role.PROVIDER))
    sides = set_off_side(dealings.channel, (invoice, 7)), set_off_side(back, (owed, 7))
    others = make_channel(third, PROVIDER, name="second"), make_channel(CLIENT, third, name="third")
    cycle = make_cycle([dealings.channel, *others], PROVIDER)
    leg = next(leg for leg in make_legs(cycle, [PROVIDER, CLIENT]) if leg.message.channel == dealings.id)
    return [make_set_off(*sides, [PROVIDER, CLIENT]), cycle, leg, make_verdict(cycle)]


def signed_by_names(message: M, keys: Sequence[SecretKey]) -> Signed[M]:
    """A message that names its signers, signed by those whose keys are here, at least one."""
    by_raw = {key.public_key.raw: key for key in keys}
    signing = {role: by_raw[raw] for role, raw in signer_keys(message).items() if raw in by_raw}
    (role, key), *others = signing.items()
    signed = sign_message(message, role, key)
    for role, key in others:
        signed = signed.countersigned(role, key)
    return signed
