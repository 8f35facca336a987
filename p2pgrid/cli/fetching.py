"""`p2pgrid receipts fetch`: what a provider's books say of us, as a bundle."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_choice, network_options
from p2pgrid.errors import ProtocolViolation, Refused, UsageError
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.record import Record

if TYPE_CHECKING:
    from p2pgrid.cli.network import NetworkChoice
    from p2pgrid.client.pages import Pages

TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was written."""

    provider: PublicKey
    channels: int
    records: int


@click.command()
@click.argument("provider", metavar="PROVIDER")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--url", metavar="URL", help="Read the provider's pages there, and not over libp2p: https://host[:port].")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def fetch(
    context: CliContext,
    provider: str,
    file: Path,
    url: str | None,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Write to FILE what PROVIDER's books say of your channels with it, for `p2pgrid audit`.

    PROVIDER is its peer id, or a multiaddr of its libp2p host. It shows the records of your channels to nobody but you:
    your key is proven to it, and its to you. Audit the file beside your own export, and both sides' books are compared;
    if your ledger is lost, this is what there is. Channels under keys that you have changed since come too.

    The file is written whole or not at all. Exit codes: 0 written; 4 the provider cannot be reached, or shows nothing.
    """
    keys = [context.data.load_key(), *context.data.load_retired_keys()]
    choice = network_choice(context, network, bootstrap, bootstrap_peers)
    fetched = asyncio.run(_fetch(keys, provider, file, url, choice))
    if as_json:
        written = {"provider": fetched.provider.peer_id, "file": str(file)}
        click.echo(json.dumps({**written, "channels": fetched.channels, "records": fetched.records}))
        return
    click.echo(f"{fetched.records} records of {fetched.channels} channels with {fetched.provider} written to {file}.")
    click.echo(f"Hold them against yours: p2pgrid receipts export mine.jsonl && p2pgrid audit mine.jsonl {file}")


async def _fetch(keys: list[SecretKey], text: str, file: Path, url: str | None, choice: NetworkChoice) -> Fetched:
    from p2pgrid.cli.log_roads import parse_peer_text
    from p2pgrid.client.pages import RECEIPTS, list_channels
    from p2pgrid.ledger.bundle import write_bundle

    provider, n_channels = parse_peer_text(text), 0
    if not file.parent.is_dir():
        raise UsageError(f"the folder {file.parent} does not exist.", hint="Create it, or name another.")
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name[:64]}.", suffix=".part") as part:
        for key in keys:
            async with _pages(key, provider, text, url, choice) as pages:
                for channel in (await list_channels(pages)).channels:
                    n_channels += 1
                    async for piece in pages.get(f"{RECEIPTS}/{channel.channel}"):
                        await asyncio.to_thread(part.write, piece)
        if not n_channels:
            raise Refused("no-channel", f"{provider} has no channel with {keys[0].public_key}, by its books.")
        part.flush()
        n_records = await asyncio.to_thread(write_bundle, file, _records(Path(part.name), provider))
    return Fetched(provider, n_channels, n_records)


@asynccontextmanager
async def _pages(
    key: SecretKey, provider: PublicKey, text: str, url: str | None, choice: NetworkChoice
) -> AsyncIterator[Pages]:
    """The provider's pages, for who holds `key`."""
    from p2pgrid.client.pages import HttpPages

    if url is not None:
        async with HttpPages(url, provider, key, TIMEOUT_S) as on_port:
            yield on_port
        return
    from p2pgrid.cli.log_roads import Roads

    async with Roads(choice, TIMEOUT_S, key) as roads:
        yield await roads.pages_of(text)


def _records(part: Path, provider: PublicKey) -> Iterator[Record]:
    """What came, each record once: channels may have offers in common. Raises ProtocolViolation for what is none."""
    from p2pgrid.ledger.bundle import read_bundle

    seen = set[bytes]()
    for number, record in read_bundle(part):
        if not isinstance(record, Record):
            raise ProtocolViolation(f"what {provider} sent is no bundle: line {number}: {record.message}")
        if record.id not in seen:
            seen.add(record.id)
            yield record
