"""What `p2pgrid pay` and `p2pgrid bank refund` show of payments."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from p2pgrid.printable import printable
from p2pgrid.settlement.paying.orders_book import Ordered
from p2pgrid.settlement.payments.orders import PaymentOrder
from p2pgrid.units import format_cents


def print_list(shown: dict[str, Any]) -> None:
    """`p2pgrid pay --list`."""
    if not shown["open"]:
        click.echo("Nothing is open.")
    else:
        click.echo(f"{'INVOICE':<24}{'DUE':<12}{'GROSS':>12}{'OPEN':>12}{'TO PAY':>12}  STATE")
    for one in shown["open"]:
        click.echo(
            f"{printable(one['invoice']):<23} {one['due']:<12}{format_cents(one['gross_cents']):>12}"
            f"{format_cents(one['open_cents']):>12}{format_cents(one['to_pay_cents']):>12}  {one['state']}"
        )
        click.echo(f"  {printable(one['payee']) or one['peer']}")
        if one["not_payable"]:
            click.echo(f"  not paid: {printable(one['not_payable'])}.")
    for one in shown["prepaid"]:
        click.echo(f"Paid ahead to {printable(one['payee']) or one['peer']}: {format_cents(one['cents'])} EUR.")
    if shown["orders"]:
        click.echo("\nOrdered:")
    for one in shown["orders"]:
        what = ", ".join(printable(number) for number in one["invoices"]) or {"ahead": "ahead"}.get(
            one["purpose"], "refund"
        )
        click.echo(
            f"  {one['key']}  {format_cents(one['amount_cents'])} EUR "
            f"to {printable(one['payee'])}, {one['iban']}: {what}"
        )
        click.echo(f"    {_state(one)}")
    _print_unwritten(shown["unwritten"])


def payment_json(order: PaymentOrder, row: Ordered, credited_cents: int = 0) -> dict[str, Any]:
    """One payment that is ordered."""
    return {
        "key": row.key,
        "purpose": row.purpose.value,
        "peer": row.peer,
        "payee": row.payee,
        "iban": row.iban,
        "amount_cents": row.amount_cents,
        "credited_cents": credited_cents,
        "reference": row.end_to_end_id,
        "text": order.remittance_text,
        "invoices": [{"number": share.number, "cents": share.cents} for share in row.shares if share.number],
    }


def print_orders(shown: dict[str, Any]) -> None:
    """What was ordered, or would be."""
    for one in shown["taken_back"]:
        click.echo(
            f"Taken back: {one['key']}, {format_cents(one['cents'])} EUR. Never upload the file of {one['message_id']}."
        )
        if one["purpose"] == "refund":
            click.echo("It was a refund: p2pgrid bank refund orders it anew.")
    for one in shown["payments"]:
        what = ", ".join(printable(part["number"]) for part in one["invoices"]) or "ahead"
        click.echo(f"{format_cents(one['amount_cents']):>12} EUR  {printable(one['payee'])}, {one['iban']}: {what}")
        if one["credited_cents"]:
            click.echo(f"{'':>18}{format_cents(one['credited_cents'])} EUR of credit notes and money ahead taken off")
    if shown["payments"]:
        how = "would be ordered" if shown["dry_run"] else "ordered"
        instant = ", instant" if shown["instant"] else ""
        click.echo(
            f"{format_cents(shown['total_cents']):>12} EUR {how} from {shown['payer_iban']} for "
            f"{shown['execution_date']}{instant}."
        )
    elif not shown["taken_back"]:
        click.echo(f"Nothing is to be paid by {shown['until']}.")
    for path in shown["files"]:
        click.echo(f"Written: {path}")
    if shown["files"] and shown["rail"] == "sepa":
        click.echo("Upload it at your bank and sign it there. It will not be ordered again.")
    later = shown["not_ordered"]
    if later:
        total = sum(one["amount_cents"] for one in later)
        last = max(one["due"] for one in later)
        click.echo(
            f"Not ordered: {format_cents(total)} EUR of {len(later)} more, the first due on "
            f"{min(one['due'] for one in later)} (--until {last} pays them)."
        )
    for one in shown["not_payable"]:
        click.echo(f"Not paid: {printable(one['invoice'])}: {printable(one['why'])}.")
    if shown["waiting_cents"]:
        click.echo(
            f"{format_cents(shown['waiting_cents'])} EUR were ordered before and are not confirmed yet "
            "(p2pgrid pay --list)."
        )
    _print_unwritten(shown["unwritten"])


def _print_unwritten(message_ids: Iterable[str]) -> None:
    for message_id in message_ids:
        click.echo(
            f"\nThe file of {message_id} may not have come to disk. If you do not have it:\n"
            f"  p2pgrid pay --file {message_id}"
        )


def _state(one: dict[str, Any]) -> str:
    on = datetime.fromtimestamp(one["ordered_ms"] / 1000, UTC).strftime("%Y-%m-%d")
    match one["state"]:
        case "returned":
            why = f" ({printable(one['return_reason'])})" if one["return_reason"] else ""
            return f"ordered on {on}, {format_cents(one['returned_cents'])} EUR came back{why}: it is to be paid again"
        case "withdrawn":
            return f"ordered on {on}, withdrawn"
        case "confirmed":
            return f"ordered on {on}, confirmed by the payee"
        case "executed":
            said = "paid by your bank"
        case _:
            said = "not confirmed"
    if one["purpose"] == "refund":
        return f"ordered on {on}, {said}"
    late = f"; did the bank refuse it? Then: p2pgrid pay --again {one['key'][:8]}" if one["is_slow"] else ""
    tail = ", not confirmed by the payee" if one["state"] == "executed" else ""
    return f"ordered on {on}, {said}{tail}{late}"
