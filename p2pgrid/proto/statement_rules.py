"""What a statement may say (docs/spec/audit.md, section 8).

Pure, over messages whose form and signatures were checked: whoever is to sign a statement refuses one with a fault, an
auditor reports it. Amounts are integers: pico up to a line's amount, cents from its components on (`invoice_sums`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.codes import Party
from p2pgrid.proto.contested import TakenBounds
from p2pgrid.proto.invoice_sums import Component, cents_of, line_components, net_of, vat_of
from p2pgrid.proto.merkle import CompactRange, leaf_hash
from p2pgrid.proto.messages import Channel, Receipt, Tariff, Usage
from p2pgrid.proto.pricing import owes_nothing
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.statement import Statement, StatementLine
from p2pgrid.units import format_amount_eur, format_cents

_NO_TOKENS: Final = Usage()


def statement_root(receipt_ids: Iterable[bytes]) -> bytes:
    """RFC 6962 Merkle tree hash over the receipts' ids, in the order of their numbers."""
    tree = CompactRange()
    for receipt_id in receipt_ids:
        tree.append(leaf_hash(receipt_id))
    return tree.root


def billed_tokens(receipt: Receipt, tariff: Tariff) -> Usage:
    """The tokens of a receipt that its statement's line counts: none where nothing is billed for them.

    Nothing is where its status owes nothing, and where the provider waives what it could bill: an amount of 0 though
    some of the tokens have a price.
    """
    usage = receipt.usage
    costs = (
        (usage.prompt_tokens - usage.cached_tokens) * tariff.input_upm,
        usage.cached_tokens * tariff.cached_input_upm,
        usage.output_tokens * tariff.output_upm,
    )
    is_waived = not receipt.amount_pico and any(costs)
    return _NO_TOKENS if is_waived or owes_nothing(receipt.status) else usage


def statement_lines(receipts: Iterable[tuple[Receipt, Tariff]]) -> tuple[StatementLine, ...]:
    """What receipts come to, by model and tariff, in that order.

    A line counts every receipt, and the tokens of those that bill them: so its components (`components_of`) come to
    its amount exactly where every receipt's amount is right.
    """
    sums: dict[tuple[str, int, int, int], list[int]] = {}
    for receipt, tariff in receipts:
        key = receipt.model, tariff.input_upm, tariff.cached_input_upm, tariff.output_upm
        row = sums.setdefault(key, [0, 0, 0, 0, 0])
        billed = billed_tokens(receipt, tariff)
        row[0] += 1
        row[1] += billed.prompt_tokens
        row[2] += billed.cached_tokens
        row[3] += billed.output_tokens
        row[4] += receipt.amount_pico
    return tuple(
        StatementLine(
            model=model,
            input_upm=input_upm,
            cached_input_upm=cached_input_upm,
            output_upm=output_upm,
            receipts=row[0],
            prompt_tokens=row[1],
            cached_tokens=row[2],
            output_tokens=row[3],
            amount_pico=row[4],
        )
        for (model, input_upm, cached_input_upm, output_upm), row in sorted(sums.items())
    )


def components_of(line: StatementLine) -> tuple[Component, ...]:
    """The lines of an invoice that a statement's line comes to: `invoice_sums.line_components`."""
    return line_components(
        prompt_tokens=line.prompt_tokens,
        cached_tokens=line.cached_tokens,
        output_tokens=line.output_tokens,
        input_upm=line.input_upm,
        cached_input_upm=line.cached_input_upm,
        output_upm=line.output_upm,
        amount_pico=line.amount_pico,
    )


def statement_net(lines: Iterable[StatementLine], *, credits_pico: int, held_pico: int, held_before_pico: int) -> int:
    """The net of a statement with these lines, in cents: `invoice_sums.net_of`."""
    return net_of(
        (component for line in lines for component in components_of(line)),
        credits_pico=credits_pico,
        held_pico=held_pico,
        held_before_pico=held_before_pico,
    )


def faults_of_sums(statement: Statement, *, channel: Channel) -> list[Fault]:
    """Does a statement add up by itself? One `statement-mismatch` at most, or `statement-omits-receipt`."""
    what = f"statement {statement.statement_number}"
    counted = sum(line.receipts for line in statement.lines)
    ranged = statement.last_receipt - statement.first_receipt + 1
    if counted < ranged:
        sentence = f"S{what[1:]} is of {ranged} receipts, {statement.first_receipt} to {statement.last_receipt}, and "
        return [Fault("statement-omits-receipt", f"{sentence}counts {counted} of them.")]
    if counted > ranged:
        return [_mismatch(f"S{what[1:]} counts {counted} receipts, and its range has {ranged}.")]
    if statement.currency != channel.currency:
        return [_mismatch(f"S{what[1:]} is in {statement.currency}, the channel in {channel.currency}.")]
    if statement.set_off_cents < 0:
        amount = euros(statement.set_off_cents, statement.currency)
        sentence = f"S{what[1:]} sets off {amount}: nothing that is set off comes back."
        return [_mismatch(sentence, statement.set_off_cents)]
    for line in statement.vat:
        expected = vat_of(line.net_cents, line.rate_bp)
        if line.vat_cents != expected:
            rate = f"{line.rate_bp // 100}.{line.rate_bp % 100:02} % ({line.category})"
            stated, net_of_rate = euros(line.vat_cents, statement.currency), format_cents(line.net_cents)
            sentence = f"The VAT of {what} at {rate} is {stated}; {net_of_rate} make {format_cents(expected)}."
            return [_mismatch(sentence, line.vat_cents - expected)]
    net, vat = sum(line.net_cents for line in statement.vat), sum(line.vat_cents for line in statement.vat)
    closing = statement.opening_cents + statement.gross_cents - statement.payments_cents - statement.set_off_cents
    total_pico = sum(line.amount_pico for line in statement.lines)
    if statement.total_pico != total_pico:
        return [_mismatch_pico("total", statement, statement.total_pico, "its lines make", total_pico)]
    for name, cents, made, of in (
        ("net", statement.net_cents, net, "its categories of VAT make"),
        ("gross", statement.gross_cents, statement.net_cents + vat, "its net and VAT make"),
        ("closing balance", statement.closing_cents, closing, "what it states makes"),
    ):
        if cents != made:
            sentence = f"The {name} of {what} is {euros(cents, statement.currency)}; {of} {format_cents(made)}."
            return [_mismatch(sentence, cents - made)]
    return []


def fault_of_overlap(statement: Statement, *, stated_until: int) -> Fault | None:
    """Does it begin with a receipt that a statement before holds? `stated_until`: the highest of theirs."""
    if statement.first_receipt > min(stated_until, statement.last_receipt):
        return None
    what = f"Statement {statement.statement_number}"
    sentence = f"{what} begins with receipt {statement.first_receipt}; those before it go to {stated_until}."
    return Fault("receipt-in-two-statements", sentence)


def faults_of_succession(
    statement: Statement, *, channel: Channel, before: Statement | None, before_id: bytes, stated_until: int = 0
) -> list[Fault]:
    """Does it follow the statement before, None for the first?

    `stated_until`: the highest receipt that any statement before holds, where that is not the last of the one before.
    At most one of `receipt-in-two-statements`, `statement-omits-receipt` and `statement-mismatch` (it does not name
    the one before, begins at another time, or its net is not that of its lines with what was held back before); and
    `wrong-opening-balance`.
    """
    what = f"Statement {statement.statement_number}"
    last, closing = (before.last_receipt, before.closing_cents) if before else (0, 0)
    from_ms = before.until_ms if before else channel.opened_ms
    net = statement_net(
        statement.lines,
        credits_pico=statement.credits_pico,
        held_pico=statement.held_pico,
        held_before_pico=before.held_pico if before else 0,
    )
    faults = []
    overlap = fault_of_overlap(statement, stated_until=max(last, stated_until))
    if overlap is not None:
        faults.append(overlap)
    elif statement.first_receipt > last + 1:
        sentence = f"{what} begins with receipt {statement.first_receipt}; receipt {last + 1} is in none before it."
        faults.append(Fault("statement-omits-receipt", sentence, others=(before_id,)))
    elif statement.first_receipt <= last:
        faults.append(_mismatch(f"{what} is of no receipts, and stands within those of the one before it."))
    elif statement.previous != before_id:
        faults.append(_mismatch(f"{what} does not name the statement before it."))
    elif statement.from_ms != from_ms:
        begins = "the one before it ends" if before else "the channel was opened"
        faults.append(_mismatch(f"The period of s{what[1:]} does not begin when {begins}."))
    elif statement.net_cents != net:
        stated = euros(statement.net_cents, statement.currency)
        sentence = f"The net of s{what[1:]} is {stated}; lines, credits and what is held make {format_cents(net)}."
        faults.append(_mismatch(sentence, statement.net_cents - net))
    if statement.opening_cents != closing:
        before_it = f"statement {before.statement_number} closes with" if before else "the balance before it is"
        opens = euros(statement.opening_cents, statement.currency)
        sentence = f"{what} opens with {opens}; {before_it} {format_cents(closing)}."
        more = statement.opening_cents - closing
        faults.append(Fault("wrong-opening-balance", sentence, cents=more, others=(before_id,)))
    if before is not None and statement.stated_ms < before.stated_ms - CLOCK_TOLERANCE_MS:
        sentence = f"By its time s{what[1:]} comes before the one before it."
        faults.append(Fault("time-backwards", sentence, Party.PROVIDER))
    return faults


def faults_of_contents(
    statement: Statement,
    *,
    receipts: Sequence[tuple[bytes, Receipt]],
    tariffs: Sequence[Tariff] | None,
    taken: TakenBounds | None,
    credited_before_pico: int = 0,
) -> list[Fault]:
    """Is it what its receipts come to? One `statement-mismatch` at most.

    `receipts`: all of its range with their ids, by number. `tariffs`: of each, None if one is not known. `taken`: what
    disputes about receipts up to its last come to at its time, None if that is not known; `credited_before_pico`: the
    credits of the statements before.
    """
    what = f"statement {statement.statement_number}"
    if statement_root(record_id for record_id, _ in receipts) != statement.root:
        return [_mismatch(f"The root of {what} is not that of its receipts.")]
    total = sum(receipt.amount_pico for _, receipt in receipts)
    if total != statement.total_pico:
        return [_mismatch_pico("total", statement, statement.total_pico, "its receipts make", total)]
    if tariffs is not None:
        expected = statement_lines((r, t) for (_, r), t in zip(receipts, tariffs, strict=True))
        if sorted(expected, key=_line_key) != sorted(statement.lines, key=_line_key):
            made, stated = (
                sum(component.net_cents for line in lines for component in components_of(line))
                for lines in (expected, statement.lines)
            )
            sentence = f"The lines of {what} are not its receipts by model and tariff: they come to "
            sentence += f"{euros(stated, statement.currency)}, the receipts to {format_cents(made)}."
            return [_mismatch(sentence, stated - made)]
    late = next((pair for pair in receipts if pair[1].issued_ms > statement.until_ms + CLOCK_TOLERANCE_MS), None)
    if late is not None:
        sentence = f"The period of {what} was over when receipt {late[1].receipt_number} was made, over "
        sentence += f"{format_amount_eur(late[1].amount_pico)} {statement.currency}."
        return [_mismatch(sentence, cents_of(late[1].amount_pico), (late[0],))]
    return _faults_of_taken(statement, taken, credited_before_pico) if taken is not None else []


def _faults_of_taken(statement: Statement, taken: TakenBounds, before_pico: int) -> list[Fault]:
    least, most = (max(bound.credits_pico - before_pico, 0) for bound in (taken.least, taken.most))
    if not least <= statement.credits_pico <= most:
        # Of too much credit, and of what the client accepted, a record that nobody shows could tell another story.
        proven = statement.credits_pico < taken.proven_credits_pico - before_pico
        made = least if statement.credits_pico < least else most
        fault = _mismatch_pico("credit", statement, statement.credits_pico, "accepted disputes make", made)
        return [replace(fault, proven=proven)]
    if not taken.least.held_pico <= statement.held_pico <= taken.most.held_pico:
        made = taken.least.held_pico if statement.held_pico < taken.least.held_pico else taken.most.held_pico
        fault = _mismatch_pico("part held back", statement, statement.held_pico, "open disputes contest", made)
        return [replace(fault, proven=False)]
    return []


def _line_key(line: StatementLine) -> tuple[str | int, ...]:
    return tuple(getattr(line, name) for name in line.__struct_fields__)


def euros(cents: int, currency: str) -> str:
    """`12.40 EUR`."""
    return f"{format_cents(cents)} {currency}"


def _mismatch(sentence: str, cents: int | None = None, others: tuple[bytes, ...] = ()) -> Fault:
    return Fault("statement-mismatch", sentence, cents=cents, others=others)


def _mismatch_pico(name: str, statement: Statement, stated: int, of: str, made: int) -> Fault:
    sentence = f"The {name} of statement {statement.statement_number} is {format_amount_eur(stated)} "
    sentence += f"{statement.currency}; {of} {format_amount_eur(made)}."
    return _mismatch(sentence, cents_of(stated) - cents_of(made))
