"""What one message may say, given those before it: the rules that a live peer and an auditor share.

Each function takes plain messages, already checked for form and signatures, and returns the rules they break: an
empty list is good. One cause gives one fault: a rule that follows from a broken one is not reported as well.
A live peer refuses to sign or to go on when the list is not empty; the audit makes findings of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.batch import fault_of_lines
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.codes import Party
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel, Meter, ModelOffer, Offer, Order, Receipt, Status, Tariff, Usage, Voucher
from p2pgrid.proto.pricing import amount_owed, owes_nothing, price_of
from p2pgrid.proto.request import MAX_CHOICES

_BY_VOUCHER: Final = frozenset({Status.INTERRUPTED, Status.UNACKNOWLEDGED})
_NOTHING: Final = Usage()
_BURST_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule."""

    code: str
    """A key of `codes.CODES`."""
    sentence: str
    party: Party | None = None
    """Who is at fault, where it is not the code's usual party."""
    proven: bool = True
    """False where a record that nobody shows could explain it: then it convinces nobody, whatever its code."""
    cents: int | None = None
    """By how much the record says more than it should, in cents; None where that is no sum of money."""
    others: tuple[bytes, ...] = ()
    """The ids of the records that it is held against, as far as the rule knows them."""


def bills_by_voucher(status: Status) -> bool:
    """True for the endings that owe exactly what the last voucher acknowledged."""
    return status in _BY_VOUCHER


def is_late(order: Order, first_token_ms: int) -> bool:
    """True if an answer whose first token left `first_token_ms` after the order's arrival missed the deadline for sure.

    The provider goes by its own clock while it serves, and the records do not tell how far that is from the client's:
    only what is late beyond the tolerance is late beyond dispute. 0 means that there was no token.
    """
    latest_ms = order.first_token_deadline_ms + CLOCK_TOLERANCE_MS
    return first_token_ms > 0 and order.ordered_ms + first_token_ms > latest_ms


def faults_of_channel(channel: Channel) -> list[Fault]:
    """Rules of the channel by itself: `same-party`, `key-not-admissible`."""
    if channel.provider == channel.client:
        return [Fault("same-party", "The channel's provider and client are one key.")]
    for party, key in ((Party.PROVIDER, channel.provider), (Party.CLIENT, channel.client)):
        try:
            parse_public_key(key)
        except InvalidRecord as error:
            return [Fault(error.code, f"The channel's {party} key is not admissible: {error.message}", Party.BOTH)]
    return []


def faults_of_order(order: Order, *, channel: Channel, offer: Offer) -> list[Fault]:
    """May the provider serve this order? `outside-channel-term`, `not-in-force`, `not-on-offer`."""
    what, when, slack = f"order {order.order_number}", order.ordered_ms, CLOCK_TOLERANCE_MS
    if offer.provider != channel.provider:
        return [Fault("not-on-offer", f"The offer that {what} names is another provider's.")]
    if offer.currency != channel.currency:
        return [Fault("not-on-offer", f"The offer's currency is {offer.currency}, the channel's {channel.currency}.")]
    entry = offer.model_offer(order.model)
    if entry is None:
        return [Fault("not-on-offer", f"The model of {what}, {order.model!r}, is not in offer {offer.sequence}.")]
    faults = []
    if order.endpoint not in entry.endpoints:
        faults.append(Fault("not-on-offer", f"The offer has no {order.endpoint!r} for {order.model!r} ({what})."))
    if order.max_requests > offer.batch.batch_requests:
        asked, most = order.max_requests, offer.batch.batch_requests
        faults.append(Fault("not-on-offer", f"The {what} is for {asked} requests; the offer has at most {most}."))
    if not offer.valid_from_ms - slack <= when <= offer.valid_until_ms + slack:
        side = "before" if when < offer.valid_from_ms else "after"
        faults.append(Fault("not-in-force", f"Of {what} the time is {side} the term of offer {offer.sequence}."))
    if not channel.opened_ms - slack <= when <= channel.expires_ms + slack:
        side = "before the channel was opened" if when < channel.opened_ms else "after the channel expired"
        faults.append(Fault("outside-channel-term", f"Of {what} the time is {side}."))
    return faults


def faults_of_meter(meter: Meter, *, order: Order, tariff: Tariff, previous: Meter | None) -> list[Fault]:
    """May the client accept this tick? `previous` is the tick before it, None for the first.

    `meter-gap`, then at most one about counts (`usage-falls`, `over-caps`, `prompt-count`), one about
    money (`wrong-amount`, `over-caps`, `out-of-range`) and one about time (`time-backwards`).
    """
    faults = []
    expected_tick = previous.tick + 1 if previous else 1
    if meter.tick != expected_tick:
        faults.append(Fault("meter-gap", f"The tick {expected_tick} was due, and {_what(meter)} came."))
    # Of several requests one may fail after it was metered, and then is in the counts no more.
    if previous is not None and not order.is_batch and not meter.usage.covers(previous.usage):
        counts = Fault("usage-falls", f"The counts of {_what(meter)} are below those of tick {previous.tick}.")
        faults.append(counts)
    else:
        faults += _counts_against_order(meter, order)
    if not faults or faults[-1].code == "meter-gap":
        faults += _priced(meter, tariff) or _amount_cap(meter, order)
    since_ms = max(order.ordered_ms, previous.metered_ms if previous else 0)
    if meter.metered_ms < since_ms - CLOCK_TOLERANCE_MS:
        faults.append(
            Fault("time-backwards", f"By its time {_what(meter)} comes before what it follows.", Party.PROVIDER)
        )
    return faults


def faults_of_voucher(
    voucher: Voucher, *, tariff: Tariff, meter: Meter | None, meter_id: bytes, previous: Voucher | None
) -> list[Fault]:
    """Is this the consent it claims to be? `meter` is what it accepts, with its id; None where it is not at hand.
    `previous` is None also where the counts may fall: in a batch order.

    With the meter: `wrong-voucher`. Without: `usage-falls` against the voucher before it, `wrong-amount`.
    """
    if meter is None:
        if previous is not None and not voucher.usage.covers(previous.usage):
            sentence = f"The counts of {_what(voucher)} are below those of voucher {previous.tick}."
            return [Fault("usage-falls", sentence, Party.CLIENT)]
        return _priced(voucher, tariff)
    if voucher.meter != meter_id:
        # Somebody signed two stories about one tick, and the meter that would tell who is not here.
        return [Fault("wrong-voucher", f"The {_what(voucher)} names another meter than that tick's.", Party.UNCLEAR)]
    if not (
        voucher.usage == meter.usage
        and voucher.amount_pico == meter.amount_pico
        and voucher.tick == meter.tick
        and voucher.order_number == meter.order_number
        and voucher.channel == meter.channel
    ):
        return [Fault("wrong-voucher", f"The {_what(voucher)} differs from the meter that it names.")]
    return []


def faults_of_receipt(
    receipt: Receipt,
    *,
    channel: Channel,
    order: Order,
    order_id: bytes,
    tariff: Tariff,
    meter: Meter | None,
    voucher: Voucher | None,
    countersigned: bool,
) -> list[Fault]:
    """May this receipt stand? Its place in the chain is `chain.faults_of_link`'s matter.

    `meter` and `voucher` are the order's last ones, None if there are none. `countersigned`: the client has signed
    it already; its consent then replaces a voucher for the last window. A client that is about to sign and knows what
    was delivered to it may say True; False holds a provider to voucher + W.
    Gives `wrong-order` alone, or at most one about counts (`over-caps`, `prompt-count`,
    what `batch.fault_of_lines` gives, `below-meter`, `beyond-window`), one about money (`refund-rule`, `wrong-amount`,
    `over-caps`) and one about time (`time-backwards`).
    """
    field = _receipt_against_order(receipt, order, order_id)
    if field:
        sentence = f"The {field} of {_what(receipt)} is not that of order {order.order_number}."
        # Where it names another record, the client can have made this one afterwards.
        return [Fault("wrong-order", sentence, proven=receipt.order == order_id)]
    faults: list[Fault] = []
    if not owes_nothing(receipt.status):
        faults += (
            _counts_against_order(receipt, order)
            or _lines_against_order(receipt, order)
            or _counts_against_meter(receipt, meter, voucher)
            or _counts_against_voucher(receipt, channel.window_tokens, voucher, countersigned=countersigned)
        )
    money = _money_of_receipt(receipt, order, tariff)
    faults += money if money or faults else _amount_cap(receipt, order)
    if receipt.issued_ms < order.ordered_ms - CLOCK_TOLERANCE_MS:
        sentence = f"By its time {_what(receipt)} comes before the order that it bills."
        faults.append(Fault("time-backwards", sentence, Party.PROVIDER))
    return faults


def faults_of_commitment(receipt: Receipt, meters: Iterable[Meter]) -> list[Fault]:
    """Does the receipt commit to the answer that was metered? `meters` are the order's. Gives `wrong-commitment`.

    A receipt that goes by a voucher states the commitment of the meter with its counts; other endings deliver bytes
    after the last token, and commit to more than any meter. All zero says that a crash lost it.
    """
    if not bills_by_voucher(receipt.status) or not any(receipt.response_commitment):
        return []
    metered = {meter.response_commitment for meter in meters if meter.usage == receipt.usage}
    if not metered or receipt.response_commitment in metered:
        return []
    sentence = f"Receipt {receipt.receipt_number} commits to other bytes than the meter with the same counts does."
    return [Fault("wrong-commitment", sentence)]


def faults_of_speed(receipt: Receipt, entry: ModelOffer, choices: int = MAX_CHOICES) -> list[Fault]:
    """Could the hardware offered give the answer in that time? `too-fast`.

    `choices`: how many answers the request asked for, where it is known. Choices come side by side, and the longest
    has at least the mean of their tokens. What waited for the first token's departure may follow at once: a second is
    granted for it, and a tenth on the rate.
    """
    if receipt.status is not Status.COMPLETED or not entry.most_tokens_per_s or not receipt.first_token_ms:
        return []
    if receipt.requests:
        return _speed_of_lines(receipt, entry, choices)
    took_ms = max(receipt.total_ms - receipt.first_token_ms, 0) + _BURST_MS
    if not _is_too_fast(receipt.usage.output_tokens, choices, took_ms, entry):
        return []
    sentence = (
        f"Receipt {receipt.receipt_number} counts {receipt.usage.output_tokens} tokens in {took_ms - _BURST_MS} ms "
        f"after the first; the offer says that an answer comes at {entry.most_tokens_per_s} tokens/s at most."
    )
    return [Fault("too-fast", sentence)]


def _speed_of_lines(receipt: Receipt, entry: ModelOffer, choices: int) -> list[Fault]:
    """Events may have been gathered before they left: the time since the request's arrival counts."""
    for number, line in enumerate(receipt.requests, 1):
        took_ms, output = line.total_ms + _BURST_MS, line.usage.output_tokens
        if line.status is Status.COMPLETED and _is_too_fast(output, choices, took_ms, entry):
            sentence = (
                f"Receipt {receipt.receipt_number} counts {output} tokens for request {number}, {line.total_ms} ms "
                f"after it came; the offer says that an answer comes at {entry.most_tokens_per_s} tokens/s at most."
            )
            return [Fault("too-fast", sentence)]
    return []


def _is_too_fast(output_tokens: int, choices: int, took_ms: int, entry: ModelOffer) -> bool:
    each = -(-output_tokens // max(choices, 1)) - 1
    return each * 10_000 > 11 * entry.most_tokens_per_s * took_ms


def _receipt_against_order(receipt: Receipt, order: Order, order_id: bytes) -> str:
    if (  # said twice because it is asked of every receipt, and almost always so
        receipt.order == order_id
        and receipt.order_number == order.order_number
        and receipt.offer == order.offer
        and receipt.model == order.model
        and receipt.request_commitment == order.request_commitment
    ):
        return ""
    pairs = (
        ("order", receipt.order, order_id),
        ("order number", receipt.order_number, order.order_number),
        ("offer", receipt.offer, order.offer),
        ("model", receipt.model, order.model),
        ("request commitment", receipt.request_commitment, order.request_commitment),
    )
    return next((name for name, said, ordered in pairs if said != ordered), "")


def _what(message: Meter | Voucher | Receipt) -> str:
    """The message for people. It is made only for a fault: of a million messages that are in order nobody reads it."""
    if isinstance(message, Receipt):
        return f"receipt {message.receipt_number}"
    return f"{'tick' if isinstance(message, Meter) else 'voucher'} {message.tick} of order {message.order_number}"


def _counts_against_order(message: Meter | Receipt, order: Order) -> list[Fault]:
    usage = message.usage
    if usage.output_tokens > order.max_output_tokens:
        answer, most = usage.output_tokens, order.max_output_tokens
        sentence = f"In {_what(message)} the answer has {answer} tokens; the order allows {most}."
        return [Fault("over-caps", sentence)]
    # 0 is "not counted yet", and bills nothing.
    if order.prompt_tokens and usage.prompt_tokens and usage.prompt_tokens != order.prompt_tokens:
        prompt, counted = usage.prompt_tokens, order.prompt_tokens
        sentence = f"In {_what(message)} the prompt has {prompt} tokens; the client counted {counted}."
        return [Fault("prompt-count", sentence)]
    if usage.prompt_tokens > order.max_prompt_tokens:
        prompt, most = usage.prompt_tokens, order.max_prompt_tokens
        sentence = f"In {_what(message)} the prompt has {prompt} tokens; the order allows {most}."
        return [Fault("over-caps", sentence)]
    return []


def _lines_against_order(receipt: Receipt, order: Order) -> list[Fault]:
    if not order.is_batch and not receipt.requests:
        return []
    fault = fault_of_lines(receipt, order, late_after_ms=order.first_token_timeout_ms + CLOCK_TOLERANCE_MS)
    return [] if fault is None else [Fault(*fault)]


def _counts_against_meter(receipt: Receipt, meter: Meter | None, voucher: Voucher | None) -> list[Fault]:
    usage = receipt.usage
    if any(owes_nothing(line.status) for line in receipt.requests):
        return []  # what was metered of it is not billed
    if meter is not None and not usage.covers(meter.usage) and not bills_by_voucher(receipt.status):
        name = "meter"  # those by voucher do not bill what was metered and not acknowledged
    elif voucher is not None and not usage.covers(voucher.usage):
        name = "voucher"
    else:
        return []
    sentence = f"The counts of receipt {receipt.receipt_number} are below those of its order's last {name}."
    # A voucher is the client's word: by itself it binds no provider.
    return [Fault("below-meter", sentence, proven=name == "meter")]


def _counts_against_voucher(
    receipt: Receipt, window_tokens: int, voucher: Voucher | None, *, countersigned: bool
) -> list[Fault]:
    floor = voucher.usage if voucher else _NOTHING
    if bills_by_voucher(receipt.status):
        if receipt.usage == floor:
            return []
        what = f"Receipt {receipt.receipt_number}"
        sentence = f"{what} ({receipt.status}) bills {_counts(receipt.usage)}; vouchers cover {_counts(floor)}."
        return [Fault("beyond-window", sentence)]
    # Only output is held to the window: a prompt counts as its choices start, several prompts one after another, and
    # what it may come to at most stands in the order.
    ahead = receipt.usage.output_tokens - floor.output_tokens
    if countersigned or ahead <= window_tokens:
        return []
    sentence = (
        f"Receipt {receipt.receipt_number}, not countersigned, claims {ahead} tokens beyond the last voucher; the "
        f"window is {window_tokens}."
    )
    return [Fault("beyond-window", sentence)]


def _money_of_receipt(receipt: Receipt, order: Order, tariff: Tariff) -> list[Fault]:
    amount = receipt.amount_pico
    if amount and owes_nothing(receipt.status):
        why = f"With status {receipt.status} nothing is owed"
    elif amount and receipt.status is Status.COMPLETED and not receipt.usage.output_tokens and not receipt.requests:
        why = "An answer without a token owes nothing"
    elif amount and is_late(order, receipt.first_token_ms):
        why = "The first token came after the deadline"
    elif amount == 0 and (is_late(order, receipt.first_token_ms) or receipt.usage.output_tokens == 0):
        return []  # waiving what the refund rule would waive under its proper status harms nobody
    else:
        return _priced(receipt, tariff, receipt.status)
    return [Fault("refund-rule", f"{why}, and {_what(receipt)} claims {amount} pico.")]


def _priced(message: Meter | Voucher | Receipt, tariff: Tariff, status: Status | None = None) -> list[Fault]:
    amount, usage = message.amount_pico, message.usage
    party = Party.CLIENT if isinstance(message, Voucher) else Party.PROVIDER
    try:
        owed = price_of(tariff, usage) if status is None else amount_owed(tariff, usage, status)
    except InvalidRecord as error:
        return [Fault(error.code, f"In {_what(message)} {error.message}", party)]
    if amount != owed:
        sentence = f"The amount of {_what(message)} is {amount} pico; counts and tariff make {owed}."
        return [Fault("wrong-amount", sentence, party)]
    return []


def _amount_cap(message: Meter | Receipt, order: Order) -> list[Fault]:
    if message.amount_pico > order.max_amount_pico:
        sentence = (
            f"The amount of {_what(message)} is {message.amount_pico} pico; the order allows {order.max_amount_pico}."
        )
        return [Fault("over-caps", sentence)]
    return []


def _counts(usage: Usage) -> str:
    return f"{usage.prompt_tokens} tokens in ({usage.cached_tokens} cached) and {usage.output_tokens} out"
