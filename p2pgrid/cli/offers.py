"""`p2pgrid offers`: what is on sale."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import bootstrap_of, names_of, network_options, own_for_once, resolve_networks
from p2pgrid.cli.offer_table import print_table
from p2pgrid.cli.output import echo_json
from p2pgrid.cli.own_offers import own_offers, print_own
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.client.offer_query import OfferQuery
    from p2pgrid.net.own_networks import OwnNetworks
    from p2pgrid.proto.keys import SecretKey

LOOK_UP_SHARE = 0.8
"""Of the time that there is; in the rest those are asked that were found."""
CARD_TIMEOUT_S = 10.0
"""How long operators and their domains may take to answer."""


@click.group(invoke_without_command=True)
@click.option("--model", metavar="NAME", help="Only this model.")
@click.option("--country", metavar="CC", help="Only where inference runs in this country, like LT; or LT,IT.")
@click.option("--max-price-output", metavar="EUR", help="Only where a million output tokens cost at most so much now.")
@click.option("--max-price-input", metavar="EUR", help="The same for prompt tokens.")
@click.option("--min-context", metavar="N", help="Only models with a context of at least N tokens.")
@click.option("--free", is_flag=True, help="Only providers that say that they would take an order right now.")
@click.option(
    "--sort",
    type=click.Choice(["output", "input", "context", "free", "seen", "country"]),
    default="output",
    show_default=True,
    help="By price, context, free slots, who answered last, or country.",
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Seconds.")
@click.option("--own", is_flag=True, help="What this node has signed, from its ledger, and when each offer was shown.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def offers(
    ctx: click.Context,
    model: str | None,
    country: str | None,
    max_price_output: str | None,
    max_price_input: str | None,
    min_context: str | None,
    free: bool,
    sort: str,
    timeout_s: float,
    own: bool,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Show what is on sale.

    Providers are found over the network, each is asked for its own offer and what it has free, and every signature is
    checked: who does not answer is not shown. Nothing is bought, and no key or ledger is made. A provider that broke
    the rules is marked, and the gateway buys nothing there.
    """
    import logging

    if ctx.invoked_subcommand is not None:
        return
    context: CliContext = ctx.obj

    if own:
        signed = own_offers(context, model)
        if as_json:
            echo_json(signed)
        else:
            print_own(signed)
        return
    logging.basicConfig(level=logging.CRITICAL)
    given = {
        "model": model,
        "country": country,
        "max_price_output": max_price_output,
        "max_price_input": max_price_input,
        "min_context": min_context,
        "free": "1" if free else None,
        "sort": sort,
    }
    query = _query({name: text for name, text in given.items() if text is not None})
    networks = resolve_networks(context.data, context.data.load_config(), network, bootstrap, bootstrap_peers)
    found = asyncio.run(_find(query, own_for_once(context.data, networks), timeout_s))
    _mark_quarantined(found.rows, context)
    if as_json:
        echo_json(found.rows)
    elif found.rows:
        print_table(found.rows)
        _print_rest(found)
    else:
        wanted = " in ".join(filter(None, [model or "anything", country and country.upper()]))
        through = ", ".join(bootstrap_of(networks)) or "no bootstrap peer: give one with --bootstrap"
        narrower = " that fits" if found.answered else ""
        where = f"the network{'s' if len(networks) > 1 else ''} {names_of(networks)}"
        click.echo(f"Nobody was found who sells {wanted}{narrower} on {where}. Searched through: {through}.")
        _print_rest(found)
        if found.fault:
            click.echo(f"Last fault: {found.fault}")


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


@offers.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def reprice(context: CliContext, as_json: bool) -> None:
    """Have the node that runs here sell at the prices of config.toml.

    It signs a new offer at once, and clients that have a link with it hear of it. Offers that it has shown before are
    honoured until they end. Everything else in config.toml is read when the node starts.
    """
    from p2pgrid.cli.asking import ask_or_do
    from p2pgrid.desk.asks import Reprice, Repriced

    async def nowhere() -> Repriced:
        raise UsageError("no node runs on this data folder.", hint="`p2pgrid serve` reads the prices when it starts.")

    done = asyncio.run(ask_or_do(context.data, Reprice(), Repriced, nowhere, roles=("provider",)))
    if as_json:
        click.echo(msgspec.json.encode(done))
    elif done.models:
        click.echo(f"Offer {done.sequence} has new prices for {', '.join(done.models)}.")
    else:
        click.echo("The prices are those that are offered; nothing changed.")


def _mark_quarantined(rows: list[dict[str, Any]], context: CliContext) -> None:
    from p2pgrid.client.quarantine import Quarantine

    quarantine = Quarantine(context.data.quarantine_file)
    for row in rows:
        row["quarantine"] = quarantine.reason(row["provider"])


def _query(given: dict[str, str]) -> OfferQuery:
    """What is asked for. Raises UsageError for what is no country, price or number."""
    from p2pgrid.client.offer_query import query_of
    from p2pgrid.errors import Refused

    try:
        return query_of(given)
    except Refused as refusal:
        raise UsageError(refusal.message, hint=refusal.hint or "See `p2pgrid offers --help`.") from None


def _search_keys(query: OfferQuery) -> list[str]:
    """The narrowest look-up keys."""
    from p2pgrid.net.lookup_keys import PROVIDER, country_key, model_key

    model, countries = query.model, sorted(query.wishes.countries)
    if model is not None:
        return [model_key(model, country) for country in countries] or [model_key(model)]
    return [country_key(country) for country in countries] or [PROVIDER]


@dataclass(slots=True)
class _Found:
    """What came of a search."""

    rows: list[dict[str, Any]]
    answered: int
    """Providers that showed a good offer, whether or not it is among the rows."""
    unanswered: int
    refused: dict[str, int]
    """What providers sent that was not taken, by the reason's code."""
    fault: str
    """What last went wrong."""


async def _find(query: OfferQuery, choosing: Awaitable[tuple[SecretKey, OwnNetworks]], timeout_s: float) -> _Found:
    from functools import partial

    from p2pgrid.client.cards import CardBook
    from p2pgrid.client.choice import candidate_of
    from p2pgrid.client.domains import DomainChecker
    from p2pgrid.client.offers import OfferBook
    from p2pgrid.client.openai_api import offer_object
    from p2pgrid.clock import unix_ms
    from p2pgrid.errors import RemoteError
    from p2pgrid.net.network import Network
    from p2pgrid.proto.keys import parse_public_key

    key, networks = await choosing
    async with Network(key, networks) as finder:
        book = OfferBook(finder, now_ms=unix_ms, keys=_search_keys(query))
        cards = CardBook(finder, now_ms=unix_ms, domains=DomainChecker(unix_ms))
        book.on_offers = partial(cards.refresh, timeout_s=CARD_TIMEOUT_S)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not book.offers() and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await book.search(timeout_s=LOOK_UP_SHARE * left_s)
            except TimeoutError:
                break  # some have not answered: the others are shown
            except RemoteError:
                break
            if not book.offers():
                await asyncio.sleep(min(0.5, left_s))
        now_ms, offers = unix_ms(), book.offers()
        candidates = [
            candidate_of(
                offer,
                entry,
                now_ms,
                cards.operator_of(offer),
                presence=book.presence_of(parse_public_key(offer.message.provider).peer_id),
            )
            for offer in offers
            for entry in offer.message.models
        ]
        await cards.aclose()
        return _Found(
            rows=[
                row | {"networks": list(book.address_of(row["provider"]).networks)}
                for row in (offer_object(candidate, now_ms) for candidate in query.select(candidates, now_ms))
            ],
            answered=len(offers),
            unanswered=book.n_silent,
            refused=dict(sorted(book.refused.items())),
            fault=book.last_fault,
        )


def _print_rest(found: _Found) -> None:
    """Whom nothing is shown of, and why."""
    words = [f"{count} refused: {code}" for code, count in found.refused.items()]
    words += [f"{found.unanswered} did not answer with an offer"] if found.unanswered else []
    if words:
        click.echo(f"Found in the network and not shown: {'; '.join(words)}.")
