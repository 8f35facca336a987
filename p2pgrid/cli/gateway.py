"""`p2pgrid gateway`: the client's OpenAI endpoint."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import names_of, network_options, resolve_networks
from p2pgrid.config import ClientConfig, parse_host_port
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.client.client import Client
    from p2pgrid.client.workers import GatewayNode

MIN_API_KEY_CHARS = 16


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where programs reach it. [default: 127.0.0.1:8480]")
@click.option("--processes", metavar="N", type=int, help="Processes that serve programs, up to 4. [default: 1]")
@click.option("--country", "countries", multiple=True, metavar="CC", help="Buy only there; may be repeated.")
@click.option("--parent-country", "parent_countries", multiple=True, metavar="CC", help="Only operators held there.")
@click.option("--verify-domains", is_flag=True, help="Only operators that have proven their card's domain.")
@click.option("--receipt-each", is_flag=True, help="A receipt for every request; short ones share none.")
@click.option("--no-punch", is_flag=True, help="Stay behind the relay with a provider that only a relay leads to.")
@click.option("--max-cost-eur", metavar="EUR", help="Most that one request may cost.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key that programs must show; needed to listen on more than loopback.",
)
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def gateway(
    context: CliContext,
    listen: str | None,
    processes: int | None,
    countries: tuple[str, ...],
    parent_countries: tuple[str, ...],
    verify_domains: bool,
    receipt_each: bool,
    no_punch: bool,
    max_cost_eur: str | None,
    api_key_file: Path | None,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Buy: run the client's OpenAI endpoint.

    Programs talk to it as to OpenAI; it finds providers, orders from the cheapest that fits, checks what it is billed,
    and signs. The key, and so the identity that pays, is made in the data folder at the first start.
    """
    from p2pgrid.cli.running import log_to_stderr, run

    log_to_stderr(verbose=verbose)
    whole = context.data.load_config()
    networks = resolve_networks(context.data, whole, network, bootstrap, bootstrap_peers)
    config = with_flags(
        whole.client,
        listen,
        countries,
        max_cost_eur,
        api_key_file,
        parent_countries=parent_countries,
        verify_domains=verify_domains,
        receipt_each=receipt_each,
        processes=processes,
        no_punch=no_punch,
    )
    host, port = parse_host_port(config.listen)
    api_key = read_api_key(Path(config.api_key_file).expanduser()) if config.api_key_file else None

    async def main(stop: asyncio.Event) -> None:
        from p2pgrid.client.client import Client
        from p2pgrid.client.gateway import SHUTDOWN_S, Gateway, check_exposure, serve

        check_exposure(host, api_key)
        if config.processes > 1:
            from p2pgrid.client.workers import GatewayNode

            node = GatewayNode(context.data, networks=networks, config=config, api_key=api_key, host=host, port=port)
            async with node:
                at = node.addresses[0][1]
                _announce(node, host, at, as_json=as_json, has_key=api_key is not None, workers=node.worker_pids)
                await stop.wait()
            return
        async with Client(context.data, networks=networks, config=config, joins_late=True) as client:
            gateway = Gateway(
                client.purchaser,
                network=client.network_name,
                api_key=api_key,
                network_health=lambda: client.network_health,
            )
            server = await serve(gateway, host, port)
            try:
                _announce(client, host, server.addresses[0][1], as_json=as_json, has_key=api_key is not None)
                await stop.wait()
            finally:
                await server.aclose(SHUTDOWN_S)

    run(main)


def with_flags(
    config: ClientConfig,
    listen: str | None,
    countries: tuple[str, ...],
    max_cost_eur: str | None,
    api_key_file: Path | None,
    *,
    parent_countries: tuple[str, ...] = (),
    verify_domains: bool = False,
    receipt_each: bool = False,
    processes: int | None = None,
    no_punch: bool = False,
) -> ClientConfig:
    """The configuration with what the command line says. Raises UsageError."""
    given = {
        "listen": listen,
        "processes": processes,
        "countries": [country.upper() for country in countries] or None,
        "parent-countries": [country.upper() for country in parent_countries] or None,
        "verify-domains": verify_domains or None,
        "receipt-each": receipt_each or None,
        "punch": False if no_punch else None,
        "max-cost-eur": max_cost_eur,
        "api-key-file": str(api_key_file.absolute()) if api_key_file else None,
    }
    merged = msgspec.to_builtins(config) | {name: value for name, value in given.items() if value is not None}
    try:
        return msgspec.convert(merged, ClientConfig)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"the command line: {error}.", hint="Countries are codes like LT or IT; processes are 1 to 4."
        ) from None


def read_api_key(path: Path) -> str:
    """The API key in a file. Raises UsageError: missing, open to others, or too short to be one."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the API key {path} cannot be read: {error}.", hint=f"Make one: (umask 077; openssl rand -hex 24 > {path})"
        ) from None
    if mode & 0o077:
        raise UsageError(f"the API key {path} can be read by others (mode {mode:04o}).", hint=f"chmod 600 {path}")
    if len(key) < MIN_API_KEY_CHARS:
        raise UsageError(f"{path} holds no API key of at least {MIN_API_KEY_CHARS} characters.")
    return key


def _announce(
    client: Client | GatewayNode,
    host: str,
    port: int,
    *,
    as_json: bool,
    has_key: bool,
    workers: Sequence[int] = (),
) -> None:
    """Say that it is ready, and how to use it."""
    base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    if as_json:
        ready = {
            "ready": True,
            "base_url": base_url,
            "network": client.networks[0].name,
            "networks": [one.name for one in client.networks],
            "peer_id": client.peer_id,
            "data": str(client.data.path),
            "bootstrap": list(client.bootstrap),
            "workers": list(workers),
        }
        click.echo(json.dumps(ready))
        return
    authorization = " -H 'authorization: Bearer ...'" if has_key else ""
    body = json.dumps({"model": "MODEL", "messages": [{"role": "user", "content": "Hello!"}]})
    click.echo(
        f"The gateway is up, on the network {names_of(client.networks)}. Every answer is paid by {client.peer_id}.\n"
        f"  OPENAI_BASE_URL={base_url}\n"
        f"  what is on sale: curl {base_url}/models{authorization}\n"
        f"  curl {base_url}/chat/completions{authorization} -H 'content-type: application/json' -d '{body}'\n"
        "Ctrl-C stops it."
    )
    if not client.bootstrap:
        click.echo("No bootstrap peer is known, so nobody can be found: give one with --bootstrap.", err=True)
