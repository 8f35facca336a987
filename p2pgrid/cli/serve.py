"""`p2pgrid serve`: the provider's node."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_options, resolve_networks
from p2pgrid.config import Config, ModelConfig, NetworkEntry, ProviderConfig, parse_host_port
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError
from p2pgrid.proto.messages import ModelOffer, Offer
from p2pgrid.proto.schedule import next_price_change
from p2pgrid.units import format_price_eur

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider


@click.command()
@click.option("--model", metavar="NAME", help="Sell this model alone, as config.toml or the next flags say.")
@click.option("--model-path", metavar="PATH", help="What vLLM loads: a folder, or smollm2 or tiny once installed.")
@click.option("--engine-url", metavar="URL", help="An engine that runs already: http://host:port or unix:/path.")
@click.option("--price-input", metavar="EUR", help="EUR per million prompt tokens, like 0.20.")
@click.option("--price-cached-input", metavar="EUR", help="EUR per million cached prompt tokens.")
@click.option("--price-output", metavar="EUR", help="EUR per million output tokens.")
@click.option("--operator", metavar="NAME", help="Your legal name, as it stands in offers.")
@click.option("--country", metavar="CC", help="Where the GPUs stand. [default: LT]")
@click.option("--listen", metavar="HOST:PORT", help="The direct road. [default: 0.0.0.0:4801]")
@click.option("--no-direct", is_flag=True, help="Sell over libp2p alone: do not listen on the direct road.")
@click.option("--announce", multiple=True, metavar="HOST:PORT", help="Where others reach it, if elsewhere.")
@click.option("--libp2p-listen", multiple=True, metavar="MULTIADDR", help="[default: /ip4/0.0.0.0/tcp/4802]")
@click.option("--libp2p-announce", multiple=True, metavar="MULTIADDR", help="Where others reach it, if elsewhere.")
@click.option(
    "--relay-through",
    multiple=True,
    metavar="MULTIADDR",
    help="A relay through which others reach it, or auto, or never. [default: auto]",
)
@click.option(
    "--relay/--no-relay",
    default=None,
    help="Relay for peers that nobody can dial, within the limits of [relay]. [default: no-relay]",
)
@click.option("--no-punch", is_flag=True, help="Open no connections of their own with clients behind relays.")
@click.option("--processes", metavar="N", type=int, help="Processes that serve the direct road. [default: 1]")
@click.option("--pages", metavar="HOST:PORT", help="Serve /offer, /card, /health and /metrics there. [default: off]")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def serve(
    context: CliContext,
    model: str | None,
    model_path: str | None,
    engine_url: str | None,
    price_input: str | None,
    price_cached_input: str | None,
    price_output: str | None,
    operator: str | None,
    country: str | None,
    listen: str | None,
    no_direct: bool,
    announce: tuple[str, ...],
    libp2p_listen: tuple[str, ...],
    libp2p_announce: tuple[str, ...],
    relay_through: tuple[str, ...],
    relay: bool | None,
    no_punch: bool,
    processes: int | None,
    pages: str | None,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Sell: run the provider's node.

    It starts vLLM, or attaches to an engine that runs, signs an offer, and serves whoever orders. SIGINT or SIGTERM
    withdraws the offer and lets running orders finish; a second one stops at once.
    """
    from p2pgrid.cli.running import log_to_stderr, run

    log_to_stderr(verbose=verbose)
    config = context.data.load_config()
    networks = resolve_networks(context.data, config, network, bootstrap, bootstrap_peers)
    overrides = {
        "operator": operator,
        "country": country,
        "listen": listen,
        "announce": announce,
        "libp2p_listen": libp2p_listen,
        "libp2p_announce": libp2p_announce,
        "relay_through": relay_through,
        "relay": relay,
        "punch": False if no_punch else None,
        "processes": processes,
        "pages": pages,
    }
    model_overrides = {
        "model_path": model_path,
        "engine_url": engine_url,
        "price_input_eur": price_input,
        "price_cached_input_eur": price_cached_input,
        "price_output_eur": price_output,
    }
    config = with_flags(config, overrides, model, model_overrides, no_direct=no_direct)

    async def main(stop: asyncio.Event) -> None:
        await _serve(context.data, config, networks, stop, as_json)

    run(main)


def with_flags(
    config: Config,
    overrides: dict[str, Any],
    model: str | None,
    model_overrides: dict[str, str | None],
    *,
    no_direct: bool = False,
) -> Config:
    """The configuration with the flags that were given, checked like the file. Raises UsageError."""
    given = {key: value for key, value in overrides.items() if value or value == 0}
    if no_direct:
        if "listen" in given or "announce" in given:
            raise UsageError("--no-direct and an address of the direct road were given.", hint="Leave one of them out.")
        given |= {"listen": "", "announce": ()}
    provider = msgspec.structs.replace(config.provider, **given)
    model_given = {key: value for key, value in model_overrides.items() if value is not None}
    if model is not None or model_given:
        chosen = _chosen_model(provider.models, model, model_given)
        provider = msgspec.structs.replace(provider, models=(chosen,))
    try:
        checked = msgspec.convert(msgspec.to_builtins(provider), ProviderConfig, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"a flag is wrong: {error}.", hint="`p2pgrid serve --help` shows every flag.") from None
    return msgspec.structs.replace(config, provider=checked)


def _chosen_model(models: tuple[ModelConfig, ...], name: str | None, given: dict[str, str]) -> ModelConfig:
    if name is None and len(models) != 1:
        raise UsageError("it is not clear for which model the flags are.", hint="Name it with --model.")
    known = next((one for one in models if name in (None, one.name)), None)
    if known is not None:
        if "engine_url" in given:
            known = msgspec.structs.replace(known, model_path=None)
        if "model_path" in given:
            known = msgspec.structs.replace(known, engine_url=None)
        return msgspec.structs.replace(known, **given)
    for key, flag in (("price_input_eur", "--price-input"), ("price_output_eur", "--price-output")):
        if key not in given:
            raise UsageError(
                f"the model {name!r} is not in config.toml, and {flag} is missing.",
                hint="Give --price-input and --price-output, in EUR per million tokens.",
            )
    assert name is not None
    return ModelConfig(name=name, **given)  # type: ignore[arg-type]


async def _serve(
    data: DataFolder, config: Config, networks: tuple[NetworkEntry, ...], stop: asyncio.Event, as_json: bool
) -> None:
    from p2pgrid.engine.gpu import list_gpus
    from p2pgrid.provider.engine_plan import plan_engines
    from p2pgrid.provider.node import Provider

    node = Provider(
        data,
        config,
        make_engines=plan_engines,
        networks=networks,
        gpus=[gpu.name[:128] for gpu in list_gpus()][:64],
    )
    pages_at = parse_host_port(config.provider.pages) if config.provider.pages else None
    stopping = asyncio.ensure_future(stop.wait())
    # The pages go last: they show how the node drains.
    async with AsyncExitStack() as pages_stack, AsyncExitStack() as stack:
        # An engine takes minutes to start: whoever says stop meanwhile is heard.
        starting = asyncio.ensure_future(stack.enter_async_context(node))
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        await starting
        pages = await pages_stack.enter_async_context(_pages(node, *pages_at)) if pages_at else None
        ready = ready_of(node, data, pages)
        click.echo(json.dumps(ready) if as_json else _ready_text(ready))
        await stopping


def _pages(node: Provider, host: str, port: int) -> AbstractAsyncContextManager[str]:
    """Imported only where pages are wanted: they bring a web framework of 20 MB."""
    from p2pgrid.provider.pages import serve_pages

    return serve_pages(node, host, port)


def _model_of(offer: Offer, entry: ModelOffer, now_ms: int) -> dict[str, Any]:
    """A model on sale, at the tariff in force."""
    tariff, change = offer.tariff_at(entry, now_ms), next_price_change(offer, entry, now_ms)
    return {
        "model": entry.model,
        "price_input_eur": format_price_eur(tariff.input_upm),
        "price_cached_input_eur": format_price_eur(tariff.cached_input_upm),
        "price_output_eur": format_price_eur(tariff.output_upm),
        "price_changes_ms": change.at_ms if change else None,
        "next_price_input_eur": format_price_eur(change.tariff.input_upm) if change else None,
        "next_price_output_eur": format_price_eur(change.tariff.output_upm) if change else None,
        "context_tokens": entry.context_tokens,
        "concurrency": entry.concurrency,
        "endpoints": list(entry.endpoints),
    }


def ready_of(node: Provider, data: DataFolder, pages: str | None) -> dict[str, Any]:
    """What is said when the node is ready."""
    from p2pgrid.clock import unix_ms
    from p2pgrid.net.reach_watch import shown

    now_ms = unix_ms()
    offer = node.offer
    assert offer is not None, "a node is ready only once it offers something"
    message = offer.message
    return {
        "ready": True,
        "peer_id": node.peer_id,
        "network": node.networks.names[0],
        "networks": list(node.networks.names),
        "sells_in": sorted(node.networks.selling),
        "operator": message.operator,
        "country": message.data_terms.country,
        "addresses": list(node.addresses),
        "libp2p_addresses": list(node.libp2p_addresses),
        "models": [_model_of(message, entry, now_ms) for entry in message.models],
        "gpus": list(message.gpus),
        "ledger": str(data.ledger_file),
        "offer": {
            "id": offer.id.hex(),
            "sequence": message.sequence,
            "valid_until_ms": message.valid_until_ms,
        },
        "card": message.card.hex() or None,
        "workers": node.worker_pids,
        "pages": pages,
        "reachability": shown(node.reach),
    }


def _sells_only(ready: dict[str, Any]) -> str:
    sells_in = ready["sells_in"]
    return "" if len(sells_in) == len(ready["networks"]) else f" (sells in {', '.join(sells_in)})"


def _ready_text(ready: dict[str, Any]) -> str:
    until = datetime.fromtimestamp(ready["offer"]["valid_until_ms"] / 1000, UTC)
    lines = [
        "Ready: this node sells.",
        f"  peer id   {ready['peer_id']}",
        f"  network   {', '.join(ready['networks'])}" + _sells_only(ready),
        f"  operator  {ready['operator'] or '(no name in config.toml)'}, {ready['country']}",
        *(f"  direct    {address}" for address in ready["addresses"]),
        *(
            f"  {'relayed ' if '/p2p-circuit/' in address else 'libp2p  '}  {address}"
            for address in ready["libp2p_addresses"]
        ),
    ]
    for model in ready["models"]:
        lines.append(
            f"  model     {model['model']}: EUR per million tokens {model['price_input_eur']} in, "
            f"{model['price_cached_input_eur']} cached, {model['price_output_eur']} out; "
            f"context {model['context_tokens']}, {model['concurrency']} at once"
        )
        if model["price_changes_ms"] is not None:
            at = datetime.fromtimestamp(model["price_changes_ms"] / 1000, UTC)
            lines.append(
                f"            from {at:%a %H:%M} UTC on: {model['next_price_input_eur']} in, "
                f"{model['next_price_output_eur']} out"
            )
    lines += [
        f"  ledger    {ready['ledger']}",
        f"  offer     {ready['offer']['sequence']}, binding until {until:%Y-%m-%d %H:%M} UTC, renewed by itself",
    ]
    card = ready["card"][:16] if ready["card"] else "none that names this node: p2pgrid card init"
    lines.append(f"  card      {card}")
    if ready["pages"]:
        lines.append(f"  pages     {ready['pages']}/health")
    reachability = ready["reachability"]
    lines.append(f"  reach     {reachability['text'] if reachability else 'being asked of other peers; see the log'}")
    lines += [f"            {line}" for line in reachability["advice"]] if reachability else []
    return "\n".join(lines)
