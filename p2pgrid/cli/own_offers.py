"""`p2pgrid offers --own`: what this node has signed, and when each offer was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.offer_table import change_text, time_text

if TYPE_CHECKING:
    from p2pgrid.proto.messages import Offer
    from p2pgrid.proto.record import Signed

_ASKED: Final = ("confirmed_ms", "live", "free", "link")


def own_offers(context: CliContext, model: str | None) -> list[dict[str, Any]]:
    """Every offer that this node has signed, newest first: its prices, and for how long it was the one shown."""
    from itertools import takewhile, zip_longest

    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
    from p2pgrid.proto.messages import Channel, Offer
    from p2pgrid.proto.record import Role, verify_record

    keys = {key.raw: key for key in context.data.own_public_keys()}
    signed = []
    frame = (Offer.payload_type, Channel.payload_type)
    with SqliteLedger.open_readonly(context.data.ledger_file) as ledger:
        for record in takewhile(lambda one: one.payload_type in frame, ledger.records()):
            signature = record.signature_of(Role.PROVIDER) if record.payload_type == Offer.payload_type else None
            if signature is not None and signature.key in keys:
                signed.append(verify_record(record, Offer, {Role.PROVIDER: keys[signature.key]}))
    signed.sort(key=lambda offer: offer.message.sequence)
    rows: list[dict[str, Any]] = []
    for offer, following in zip_longest(signed, signed[1:]):
        message = offer.message
        # An offer is dated back by what clocks may differ.
        shown_ms = min(message.valid_from_ms + CLOCK_TOLERANCE_MS, message.valid_until_ms)
        replaced_ms = following.message.valid_from_ms + CLOCK_TOLERANCE_MS if following else message.valid_until_ms
        rows.append(
            {
                "sequence": message.sequence,
                "offer": offer.id.hex(),
                "shown_from_ms": shown_ms,
                "shown_until_ms": max(min(replaced_ms, message.valid_until_ms), shown_ms),
                "valid_from_ms": message.valid_from_ms,
                "valid_until_ms": message.valid_until_ms,
                "models": [row for row in _rows(offer, shown_ms) if model in (None, row["model"])],
            }
        )
    return rows[::-1]


def _rows(offer: Signed[Offer], now_ms: int) -> list[dict[str, Any]]:
    """Each model, without what would have to be asked of the node."""
    from p2pgrid.client.choice import candidate_of
    from p2pgrid.client.openai_api import offer_object

    rows = (offer_object(candidate_of(offer, entry, now_ms), now_ms) for entry in offer.message.models)
    return [{name: value for name, value in row.items() if name not in _ASKED} for row in rows]


def print_own(rows: list[dict[str, Any]]) -> None:
    """As a table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        Console().print("No offer was signed by this node.")
        return
    table = Table(title="Offers signed by this node (UTC), EUR per million tokens; each is honoured until it ends")
    for name in ("sequence", "shown from", "until", "honoured until", "model", "input", "cached", "output", "changes"):
        table.add_column(name, no_wrap=name != "model")
    for row in rows:
        for model in row["models"]:
            prices = model["prices"]
            table.add_row(
                str(row["sequence"]),
                time_text(row["shown_from_ms"]),
                time_text(row["shown_until_ms"]),
                time_text(row["valid_until_ms"]),
                escape(model["model"]),
                prices["input_eur"],
                prices["cached_input_eur"],
                prices["output_eur"],
                change_text(model),
            )
    Console(width=None if Console().is_terminal else 200).print(table)
