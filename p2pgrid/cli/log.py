"""`p2pgrid log`: prove records, check and watch the logs of others, show one's own."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.log_text import (
    checked_json,
    checked_text,
    checkpoint_json,
    checkpoint_text,
    fork_json,
    fork_text,
    witnesses,
)
from p2pgrid.cli.network import network_choice, network_options
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import InvalidRecord, P2pgridError, Refused, RemoteError, UsageError

if TYPE_CHECKING:
    from p2pgrid.cli.log_roads import Roads
    from p2pgrid.cli.network import NetworkChoice
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.ledger.reader import SqliteReader
    from p2pgrid.log.remote import CheckedLog
    from p2pgrid.log.witness import Witness
    from p2pgrid.proto.fork import ForkProof
    from p2pgrid.proto.inclusion import LogProof
    from p2pgrid.proto.messages import Channel


@click.group()
def log() -> None:
    """Prove records in transparency logs, and check the logs of others.

    Works beside a running node: files are opened for reading, and what is seen of others' logs is shared with it.
    """


@log.command()
@click.argument("record", metavar="ID")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the proof to this file.")
@click.option("--bundle", is_flag=True, help="As two lines of a bundle for `p2pgrid audit`, not as text.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=15.0, show_default=True, help="Seconds.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with the proof in it.")
@click.pass_obj
def prove(
    context: CliContext,
    record: str,
    out: Path | None,
    bundle: bool,
    timeout_s: float,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Prove that a record is in a log.

    ID is a receipt's id, its first hex digits (at least four), or CHANNEL:NUMBER; an offer, dispute, answer or card by
    its id too, where this is its operator's data folder. A provider's own log is read here. For a receipt of a client
    the provider is asked, wherever it is now. The proof is verified before it is shown; anyone can verify it again with
    `p2pgrid log verify`.
    """
    choice = network_choice(context, network, bootstrap, bootstrap_peers)
    proof = _own_proof(context.data, record) or asyncio.run(_asked_proof(context.data, record, choice, timeout_s))
    checkpoint = proof.verify()
    lines = [f"{one.to_json_line().decode()}\n" for one in proof.attachments()]
    text = "".join(lines) if bundle else proof.to_text()
    if out is not None:
        _write(out, text)
    if as_json:
        shown = {
            "record": proof.inclusion.record_id.hex(),
            "index": proof.inclusion.leaf_index,
            **checkpoint_json(checkpoint),
            "file": str(out) if out else None,
            "proof": text,
        }
        echo_json(shown)
    elif out is not None:
        click.echo(f"Leaf {proof.inclusion.leaf_index} of {checkpoint.size} in {checkpoint.origin}; proof in {out}.")
    else:
        click.echo(text, nl=False)


@log.command()
@click.argument("peer", metavar="PEER")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=15.0, show_default=True, help="Seconds.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def check(
    context: CliContext,
    peer: str,
    timeout_s: float,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Check that a peer's log is what it was.

    PEER is a peer id, a multiaddr that ends in /p2p/12D3KooW..., or the URL of the operator's pages. Its checkpoint is
    fetched, and its tree held against what this data folder remembers of it.

    Exit codes: 0 it is what it was; 1 it forked, and a proof was written; 4 it does not answer, or shows no tree.
    """
    choice = network_choice(context, network, bootstrap, bootstrap_peers)
    from p2pgrid.cli.log_roads import Roads, open_witness

    found: list[tuple[ForkProof, Path | None]] = []
    witness = open_witness(context.data, unix_ms(), found)

    async def main() -> CheckedLog | None:
        async with Roads(choice, timeout_s) as roads, roads.log_of(peer) as (remote, _):
            with suppress(_forked()):
                return await remote.check(witness)
        return None

    checked = asyncio.run(main())
    witness.store.close()
    if checked is not None:
        click.echo(json.dumps(checked_json(checked), indent=2) if as_json else checked_text(checked))
        return
    for proof, path in found:
        click.echo(json.dumps(fork_json(proof, path), indent=2) if as_json else fork_text(proof, path))
    sys.exit(1)


@log.command()
@click.argument("peers", metavar="[PEER]...", nargs=-1)
@click.option("--interval", "interval_s", type=click.FloatRange(min=0.1), default=30.0, help="Seconds between checks.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=15.0, show_default=True, help="Seconds.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@click.pass_obj
def watch(
    context: CliContext,
    peers: tuple[str, ...],
    interval_s: float,
    timeout_s: float,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Keep checking logs, until Ctrl-C.

    PEER is as in `p2pgrid log check`; without one, every provider that is found. Each log is held against what is
    remembered, and against what the other peers were shown of it. A line is printed whenever something changes.

    Exit codes: 0 nothing was wrong; 1 a log forked, and a proof was written.
    """
    choice = network_choice(context, network, bootstrap, bootstrap_peers)
    from p2pgrid.cli.log_roads import Roads, check_named, open_witness
    from p2pgrid.cli.running import run

    for peer in peers:
        check_named(peer)
    found: list[tuple[ForkProof, Path | None]] = []
    witness = open_witness(context.data, unix_ms(), found)

    async def main(stop: asyncio.Event) -> None:
        said: dict[str, str] = {}
        async with Roads(choice, timeout_s) as roads:
            while not stop.is_set():
                for line, who, shown in await _round(roads, witness, peers, found):
                    if said.get(who) != line:
                        said[who] = line
                        click.echo(json.dumps(shown) if as_json else line)
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await stop.wait()

    run(main)
    witness.store.close()
    sys.exit(1 if found else 0)


@log.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def show(context: CliContext, as_json: bool) -> None:
    """Show this node's own log: its size, root, and who has cosigned it."""
    from p2pgrid.log.reader import LogReader

    reader = LogReader.open_readonly(context.data.log_file(context.data.load_key().public_key.peer_id))
    checkpoint, erased = reader.checkpoint(), reader.n_erased
    cosigned = reader.cosigned_checkpoint()
    reader.close()
    if checkpoint is None:
        click.echo(json.dumps({"size": 0}) if as_json else "The log is empty.")
        return
    if as_json:
        cosigned_size = cosigned.size if cosigned is not None else None
        shown = checkpoint_json(checkpoint) | {"erased": erased, "last_cosigned_size": cosigned_size}
        echo_json(shown)
        return
    click.echo(checkpoint_text(checkpoint))
    if cosigned is not None and cosigned.size != checkpoint.size:
        click.echo(f"  cosigned  up to entry {cosigned.size} by {len(cosigned.note.signatures) - 1} witness(es)")
    if erased:
        click.echo(f"  erased    {erased} salt(s): those entries can no more be shown to stand for anything")


_VERIFY_HINT = "`log prove --out`, `log check` and gateways write such files; bundles are for `p2pgrid audit`."


@log.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def verify(file: Path, as_json: bool) -> None:
    """Verify a proof offline: that a record is in a log, or that a log forked.

    FILE is written by `log prove`, `log check` or a gateway. Exit codes: 0 the proof holds; 1 it does not.
    """
    from p2pgrid.proto.fork import MAX_FORK_PROOF_BYTES, verify_fork
    from p2pgrid.proto.inclusion import parse_log_proof

    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FORK_PROOF_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.", hint="Check its name.") from None
    if data.lstrip()[:1] == b"{":
        if b'"p2pgrid/fork-proof/1"' not in data:
            raise InvalidRecord("malformed", f"{file} is no proof of a log.", hint=_VERIFY_HINT)
        fork = verify_fork(data)
        click.echo(json.dumps(fork_json(fork, None), indent=2) if as_json else f"The proof holds: {fork.describe()}")
        return
    proof = parse_log_proof(data)
    checkpoint = proof.verify()
    if as_json:
        shown = {"record": proof.inclusion.record_id.hex(), "index": proof.inclusion.leaf_index}
        echo_json(shown | checkpoint_json(checkpoint))
    else:
        click.echo(f"The proof holds: record {proof.inclusion.record_id.hex()} is leaf {proof.inclusion.leaf_index} of")
        click.echo(checkpoint_text(checkpoint))


# -- proofs ---------------------------------------------------------------------------------------------------------


def _own_proof(data: DataFolder, record: str) -> LogProof | None:
    """From this node's own log; None if it is not there. Raises UsageError, also where its salt was erased."""
    from p2pgrid.log.log import prove_entry
    from p2pgrid.log.reader import LogReader

    if ":" in record:
        from p2pgrid.ledger.sqlite import SqliteLedger

        with SqliteLedger.open_readonly(data.ledger_file) as ledger:
            record = _find_record(ledger, record)[0].hex()
    for path in data.log_files:
        reader = LogReader.open_readonly(path)
        try:
            entries = reader.find_prefix(record)
            if len(entries) > 1:
                raise UsageError(f"more than one record begins with {record!r}.", hint="Give more digits.")
            if entries:
                return prove_entry(reader, entries[0], entries[0].record_id)
        except Refused as refusal:
            raise UsageError(refusal.message, hint=refusal.hint) from None
        finally:
            reader.close()
    return None


async def _asked_proof(data: DataFolder, record: str, choice: NetworkChoice, timeout_s: float) -> LogProof:
    """From the provider of a record in this data folder's ledger, verified. Raises UsageError, RemoteError."""
    from p2pgrid.cli.log_roads import Roads, addresses_of
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.log.proofs import AskedLog
    from p2pgrid.proto.keys import parse_public_key

    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        record_id, channel = _find_record(ledger, record)
        provider = parse_public_key(channel.provider)
        addresses = addresses_of(ledger, data.own_public_keys(), provider)
    async with Roads(choice, timeout_s, data.load_key()) as roads, roads.provider_log(provider, addresses) as get:
        return await AskedLog(provider, get).proof(record_id)


def _find_record(ledger: SqliteReader, name: str) -> tuple[bytes, Channel]:
    """Id and channel of the dispute, the answer or the receipt of that name. Raises UsageError, also for a receipt that
    no log holds."""
    from p2pgrid.desk.find import MIN_PREFIX_CHARS, find_receipt
    from p2pgrid.proto.record import Role

    about = [one for row in ledger.disputes() for one in (row.dispute, row.answer) if one is not None]
    named = [one for one in about if len(name) >= MIN_PREFIX_CHARS and one.id.hex().startswith(name.lower())]
    if len(named) == 1:
        terms = {c.message.channel: c.message for c in ledger.channels()}
        return named[0].id, terms[named[0].message.channel]
    receipt, channel = find_receipt(ledger, name)
    if Role.CLIENT not in receipt.signers:
        number = receipt.message.receipt_number
        raise UsageError(
            f"the client has not signed receipt {number}: a log holds what both have signed.",
            hint="`p2pgrid receipts show` says what is disputed about it.",
        )
    return receipt.id, channel.message


# -- watching -------------------------------------------------------------------------------------------------------


async def _round(
    roads: Roads, witness: Witness, peers: tuple[str, ...], found: list[tuple[ForkProof, Path | None]]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Check each log once, and compare: a line, whom it is about, and the same for programs."""
    try:
        watched = list(peers) or await roads.providers()
    except RemoteError as error:
        return [(f"nobody could be looked for: {error.message}", "", {"error": error.message})]
    return [await _watch_one(roads, witness, peer, watched, found) for peer in watched]


async def _watch_one(
    roads: Roads, witness: Witness, peer: str, watched: list[str], found: list[tuple[ForkProof, Path | None]]
) -> tuple[str, str, dict[str, Any]]:
    n_found = len(found)
    try:
        async with roads.log_of(peer) as (remote, _):
            checked = await remote.check(witness)
            for other in watched:
                if other != peer:
                    with suppress(RemoteError, InvalidRecord):
                        await _compare(roads, witness, remote, other)
                    if len(found) > n_found:
                        break
    except _forked():
        pass
    except P2pgridError as error:
        return f"{peer}  {error.message}", peer, {"peer": peer, "error": error.message}
    if len(found) > n_found:
        proof, path = found[-1]
        return fork_text(proof, path), peer, fork_json(proof, path)
    checkpoint = checked.checkpoint
    line = (
        f"{checkpoint.log_key.peer_id}  {checked.growth.value:5}  {checkpoint.size} entries, root "
        f"{checkpoint.root.hex()[:16]}, {len(witnesses(checkpoint))} witness(es)"
    )
    return line, peer, checked_json(checked)


async def _compare(roads: Roads, witness: Witness, remote: Any, other: str) -> None:
    from p2pgrid.log.remote import WITNESS_PATH
    from p2pgrid.proto.checkpoint import verify_checkpoint

    async with roads.log_of(other) as (_, get):
        note = await get(f"{WITNESS_PATH}{remote.key.peer_id}")
    await remote.compare(witness, verify_checkpoint(note, remote.key))


# -- inside ----------------------------------------------------------------------------------------------------------


def _forked() -> type[Exception]:
    from p2pgrid.log.forks import LogForked

    return LogForked


def _write(path: Path, text: str) -> None:
    from p2pgrid.errors import LocalError

    try:
        path.write_text(text)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}.", hint="Name another file.") from None
