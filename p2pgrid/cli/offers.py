"""`p2pgrid offers`: what is on sale."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import bootstrap_of, names_of, network_options, own_for_once, resolve_networks
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.client.operator import Operator
    from p2pgrid.net.own_networks import OwnNetworks
    from p2pgrid.proto.keys import SecretKey
    from p2pgrid.proto.messages import Offer
    from p2pgrid.proto.record import Signed

CARD_TIMEOUT_S = 10.0
"""How long operators and their domains may take to answer."""


@click.group(invoke_without_command=True)
@click.option("--model", metavar="NAME", help="Only this model.")
@click.option("--country", metavar="CC", help="Only where inference runs in this country, like LT.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Seconds.")
@click.option("--own", is_flag=True, help="What this node has signed, from its ledger, and when each offer was shown.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def offers(
    ctx: click.Context,
    model: str | None,
    country: str | None,
    timeout_s: float,
    own: bool,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Show what is on sale.

    Providers are found over the network, each is asked for its own offer, and every signature is checked. Nothing is
    bought, and no key or ledger is made. A provider that broke the rules is marked, and the gateway buys nothing there.
    """
    import logging

    if ctx.invoked_subcommand is not None:
        return
    context: CliContext = ctx.obj

    if own:
        signed = _own_offers(context, model)
        if as_json:
            click.echo(json.dumps(signed, indent=2))
        else:
            _print_own(signed)
        return
    logging.basicConfig(level=logging.CRITICAL)
    networks = resolve_networks(context.data, context.data.load_config(), network, bootstrap, bootstrap_peers)
    rows, fault = asyncio.run(_find(_search_key(model, country), own_for_once(context.data, networks), timeout_s))
    _mark_quarantined(rows, context)
    shown = [
        row
        for row in rows
        if (model is None or row["model"] == model) and (country is None or row["country"] == country.upper())
    ]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    elif shown:
        _print_table(shown)
    else:
        wanted = " in ".join(filter(None, [model or "anything", country and country.upper()]))
        through = ", ".join(bootstrap_of(networks)) or "no bootstrap peer: give one with --bootstrap"
        where = f"the network{'s' if len(networks) > 1 else ''} {names_of(networks)}"
        click.echo(f"Nobody was found who sells {wanted} on {where}. Searched through: {through}.")
        if fault:
            click.echo(f"Last fault: {fault}")


@offers.command()
@click.argument("peer", metavar="PEER")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def allow(context: CliContext, peer: str, as_json: bool) -> None:
    """Lift the quarantine of provider PEER: buy from it again.

    A provider is put under quarantine when it breaks the rules; the evidence stays in the ledger. A gateway that runs
    is told.
    """
    from p2pgrid.cli.asking import ask_or_do, parse_peer
    from p2pgrid.client.quarantine import Quarantine
    from p2pgrid.desk.asks import Allowed, AllowPeer

    peer_id = parse_peer(peer)

    async def here() -> Allowed:
        held = Quarantine(context.data.quarantine_file).lift(peer_id)
        return Allowed(peer=peer_id, was_held=held is not None, **(msgspec.structs.asdict(held) if held else {}))

    done = asyncio.run(ask_or_do(context.data, AllowPeer(peer=peer_id), Allowed, here, roles=("client",)))
    if as_json:
        click.echo(msgspec.json.encode(done))
    elif done.was_held:
        since = datetime.fromtimestamp(done.since_ms / 1000, UTC)
        click.echo(f"{peer_id} is bought from again. It was held since {since:%Y-%m-%d %H:%M} UTC: {done.reason}")
    else:
        click.echo(f"{peer_id} was under no quarantine; nothing changed.")


def _mark_quarantined(rows: list[dict[str, Any]], context: CliContext) -> None:
    from p2pgrid.client.quarantine import Quarantine

    quarantine = Quarantine(context.data.quarantine_file)
    for row in rows:
        row["quarantine"] = quarantine.reason(row["provider"])


def _search_key(model: str | None, country: str | None) -> str:
    """The narrowest look-up key. Raises UsageError for what is no country."""
    from p2pgrid.net.lookup_keys import PROVIDER, country_key, model_key

    if country is not None and (len(country) != 2 or not country.isascii() or not country.isalpha()):
        raise UsageError(f"{country!r} is no country code.", hint="Use two letters of ISO 3166-1, like DE or FR.")
    code = country.upper() if country else None
    if model is not None:
        return model_key(model, code)
    return country_key(code) if code else PROVIDER


async def _find(
    wanted: str, choosing: Awaitable[tuple[SecretKey, OwnNetworks]], timeout_s: float
) -> tuple[list[dict[str, Any]], str]:
    """Rows for people and programs, and what last went wrong."""
    from functools import partial

    from p2pgrid.client.cards import CardBook
    from p2pgrid.client.clock import unix_ms
    from p2pgrid.client.domains import DomainChecker
    from p2pgrid.client.offers import OfferBook
    from p2pgrid.errors import RemoteError
    from p2pgrid.net.network import Network

    key, networks = await choosing
    async with Network(key, networks) as finder:
        book = OfferBook(finder, now_ms=unix_ms, keys=[wanted])
        cards = CardBook(finder, now_ms=unix_ms, domains=DomainChecker(unix_ms))
        book.on_offers = partial(cards.refresh, timeout_s=CARD_TIMEOUT_S)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not book.offers() and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                await book.search(timeout_s=left_s)
            except RemoteError:
                break
            if not book.offers():
                await asyncio.sleep(min(0.5, left_s))
        rows = [
            row | {"networks": list(book.address_of(row["provider"]).networks)}
            for offer in book.offers()
            for row in _rows(offer, unix_ms(), cards.operator_of(offer))
        ]
        await cards.aclose()
        return rows, book.last_fault


def _rows(offer: Signed[Offer], now_ms: int, operator: Operator | None = None) -> list[dict[str, Any]]:
    from p2pgrid.client.choice import candidate_of
    from p2pgrid.client.openai_api import offer_object

    return [offer_object(candidate_of(offer, entry, now_ms, operator), now_ms) for entry in offer.message.models]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from p2pgrid.client.text import printable

    table = Table(title="On sale now, EUR per million tokens")
    for name in ("model", "operator", "country", "parent", "domain"):
        table.add_column(name, overflow="fold")
    for name in ("input", "cached", "output", "context", "at once", "window"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("price changes (UTC)")
    table.add_column("valid until (UTC)")
    table.add_column("peer", no_wrap=True)
    is_marked = any(row["quarantine"] for row in rows)
    if is_marked:
        table.add_column("quarantine", overflow="fold")
    is_mixed = len({tuple(row["networks"]) for row in rows}) > 1 or any(len(row["networks"]) > 1 for row in rows)
    if is_mixed:
        table.add_column("networks", overflow="fold")
    for row in sorted(rows, key=lambda one: (one["model"], float(one["prices"]["output_eur"]), one["provider"])):
        prices = row["prices"]
        table.add_row(
            escape(printable(row["model"])),
            escape(printable(_operator_text(row))),
            row["country"],
            (row["card"] or {}).get("parent_country") or "",
            escape(printable(_domain_text(row))),
            prices["input_eur"],
            prices["cached_input_eur"],
            prices["output_eur"],
            str(row["context_tokens"]),
            str(row["concurrency"]),
            str(row["window_tokens"]),
            _change_text(row),
            _time_text(row["valid_until_ms"]),
            row["provider"],
            *([escape(row["quarantine"])] if is_marked else []),
            *([", ".join(row["networks"])] if is_mixed else []),
        )
    Console(width=None if Console().is_terminal else 200).print(table)
    if is_marked:
        click.echo("Nothing is bought from a provider under quarantine; `p2pgrid offers allow PEER` lifts it.")


def _operator_text(row: dict[str, Any]) -> str:
    """The legal name on the card; where there is none, the name that the offer gives."""
    card = row["card"]
    if card is None:
        return f"{row['operator']} (no card)"
    if card["legal_name"] is None or (card["domain_checked"] is None and card["fault"]):
        return f"{row['operator']} (card does not hold: {card['fault']})"
    return f"{card['legal_name']}, {card['country']}"


def _domain_text(row: dict[str, Any]) -> str:
    card = row["card"] or {}
    if not card.get("domain"):
        return ""
    return f"{card['domain']} ({'checked' if card['domain_checked'] else 'NOT proven'})"


def _time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _change_text(row: dict[str, Any]) -> str:
    """When the price changes, and to what: `Mon 22:00 to 0.05/0.20`."""
    if row["price_changes_ms"] is None:
        return "no" if row["schedule"] is None else "never"
    at = datetime.fromtimestamp(row["price_changes_ms"] / 1000, UTC)
    following = row["next_prices"]
    return f"{at:%a %H:%M} to {following['input_eur']}/{following['output_eur']}"


# -- one's own ---------------------------------------------------------------------------------------------------------


def _own_offers(context: CliContext, model: str | None) -> list[dict[str, Any]]:
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


def _print_own(rows: list[dict[str, Any]]) -> None:
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
                _time_text(row["shown_from_ms"]),
                _time_text(row["shown_until_ms"]),
                _time_text(row["valid_until_ms"]),
                escape(model["model"]),
                prices["input_eur"],
                prices["cached_input_eur"],
                prices["output_eur"],
                _change_text(model),
            )
    Console(width=None if Console().is_terminal else 200).print(table)
