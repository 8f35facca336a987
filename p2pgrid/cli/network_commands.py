"""`p2pgrid network`: closed networks, made, joined and left (docs/spec/network.md, section 5)."""

from __future__ import annotations

import json
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import LocalError, UsageError

if TYPE_CHECKING:
    from p2pgrid.config import NetworkEntry
    from p2pgrid.networks.invitation import Invitation
    from p2pgrid.networks.store import NetworkStore
    from p2pgrid.proto.closed_network import Kind

DEFAULT_DAYS = 30
OWN_DAYS = 3650
"""Of the membership of the node that creates a network."""


@click.group()
def network() -> None:
    """Make, join and leave closed networks.

    A closed network is one of your own: outsiders neither find it nor get an answer in it. It is closed by a secret
    that all members hold, by a list of members that each of them keeps, or by a key that signs memberships. A node can
    be in several networks; each command joins all of them, or the one that --network names.
    """


@network.command()
@click.argument("name", metavar="NAME")
@click.option("--secret", "kind", flag_value="secret", default=True, help="Closed by a secret. This is the default.")
@click.option("--members", "kind", flag_value="members", help="Closed by a list of members' peer ids.")
@click.option("--group-key", "kind", flag_value="group-key", help="Closed by a key that admits members for a time.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Through whom others join; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def create(context: CliContext, name: str, kind: str, bootstrap: tuple[str, ...], as_json: bool) -> None:
    """Make a closed network with this node in it.

    What closes it is made here and kept in the data folder, in networks/. Then: run a peer that others join through
    (`p2pgrid bootstrap --network NAME`), and invite them.
    """
    from p2pgrid.proto.closed_network import Kind

    store = _store(context)
    entry = store.create(name, Kind(kind), bootstrap, now_ms=unix_ms(), days=OWN_DAYS)
    if as_json:
        click.echo(json.dumps(_shown(store, entry)))
        return
    click.echo(f"The network {name!r} is made, closed by {_closed_by(Kind(kind))}; this node is in it.")
    invites = {
        "secret": (f"p2pgrid network invite {name} > invitation", "for whoever is to join; it holds the secret"),
        "members": (f"p2pgrid network admit {name} PEER > invitation", "puts PEER on this node's list"),
        "group-key": (f"p2pgrid network admit {name} PEER > invitation", f"PEER is a member for {DEFAULT_DAYS} days"),
    }
    steps = [(f"p2pgrid bootstrap --network {name}", "a peer that others join through"), invites[kind]]
    width = max(len(command) for command, _ in steps)
    for command, what in steps:
        click.echo(f"  {command:<{width}}  # {what}")
    _say_restart()


@network.command()
@click.argument("name", metavar="NAME")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Through whom to join, beside those known here.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file, mode 0600.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about it; needs --out.")
@click.pass_obj
def invite(context: CliContext, name: str, bootstrap: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Write an invitation to a closed network, for `p2pgrid network join`.

    Where a secret closes the network the invitation holds it: whoever reads the file can join. A file that standard
    output goes to is given mode 0600. Where a list or a key closes it, `p2pgrid network admit` invites one peer.
    """
    store = _store(context)
    entry = store.entry(name)
    _give(store.invitation(entry, bootstrap), out, as_json=as_json)


@network.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def join(context: CliContext, file: Path, as_json: bool) -> None:
    """Join the closed network that FILE is an invitation to.

    FILE may be - for standard input. A file that holds a secret must be readable by you alone. A newer invitation to a
    network that this node is in brings what is kept of it up to date: its bootstrap peers, list, or membership.
    """
    from p2pgrid.networks.entries import kind_of

    store = _store(context)
    invitation = _read_invitation(file)
    entry = store.join(invitation)
    if as_json:
        click.echo(json.dumps(_shown(store, entry)))
        return
    kind = kind_of(entry)
    assert kind is not None
    click.echo(f"This node is in the network {entry.name!r} now, which is closed by {_closed_by(kind)}.")
    if kind == "group-key" and not Path(entry.membership_file or "").exists():
        peer_id = context.data.load_key().public_key.peer_id
        click.echo("It is no member yet. Where the group's key is, have it admitted, and join by what that prints:")
        click.echo(f"  p2pgrid network admit {entry.name} {peer_id}")
    if not entry.bootstrap:
        click.echo("The invitation names nobody to join through: give one with --bootstrap.", err=True)
    _say_restart()


@network.command()
@click.argument("name", metavar="NAME")
@click.argument("peer", metavar="PEER")
@click.option(
    "--days", type=click.IntRange(1, 3650), help=f"For how long, under a group's key. [default: {DEFAULT_DAYS}]"
)
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Through whom to join, beside those known here.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the invitation to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about it; needs --out.")
@click.pass_obj
def admit(
    context: CliContext,
    name: str,
    peer: str,
    days: int | None,
    bootstrap: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Make PEER a member of a closed network, and write its invitation.

    Under a group's key the membership is signed, for some days: admit again before they are over. On a list PEER is put
    down here: every other member keeps a list of its own. A running node sees the change within seconds.
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.networks.entries import kind_of
    from p2pgrid.proto.keys import parse_peer_id

    store = _store(context)
    entry, member = store.entry(name), parse_peer_id(parse_peer(peer))
    kind, membership = kind_of(entry), None
    if kind == "secret":
        raise UsageError(f"who holds the secret of {name!r} is a member.", hint=f"p2pgrid network invite {name}")
    if kind == "members" and days is not None:
        raise UsageError("a list names members until they are taken off it.", hint="Leave --days out.")
    if kind == "members":
        store.admit_to_list(entry, member)
    else:
        membership = store.sign(entry, member, unix_ms(), DEFAULT_DAYS if days is None else days)
    _give(store.invitation(entry, bootstrap, membership), out, as_json=as_json)
    if membership is not None and not as_json:
        until = datetime.fromtimestamp(membership.message.valid_until_ms / 1000, UTC)
        click.echo(f"{peer} is a member until {until:%Y-%m-%d %H:%M} UTC.", err=True)


@network.command()
@click.argument("name", metavar="NAME")
@click.argument("peer", metavar="PEER")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def expel(context: CliContext, name: str, peer: str, as_json: bool) -> None:
    """Take PEER off this node's list of members.

    A running node parts from it within seconds: no new order, and what runs is billed as far as it was acknowledged.
    Every other member keeps a list of its own.
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.networks.entries import kind_of
    from p2pgrid.proto.keys import parse_peer_id

    store = _store(context)
    entry = store.entry(name)
    if (kind := kind_of(entry)) != "members":
        hints = {
            "secret": "Make a new network, and invite all others to it.",
            "group-key": "Its membership ends by itself; do not admit it again.",
        }
        raise UsageError(f"no list closes the network {name!r}.", hint=hints[str(kind)])
    was_there = store.expel(entry, parse_peer_id(parse_peer(peer)))
    if as_json:
        click.echo(json.dumps({"network": name, "peer": peer, "was_member": was_there}))
    else:
        click.echo(f"{peer} is {'off the list' if was_there else 'not on the list; nothing changed'}.")


@network.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_(context: CliContext, as_json: bool) -> None:
    """Show the networks that this data folder is in.

    No secret is shown.
    """
    from p2pgrid.networks.entries import choose_networks

    config = context.data.load_config()
    store = _store(context)
    rows = [_shown(store, entry) for entry in choose_networks(context.data, config, bootstrap=())]
    for row, entry in zip(rows, (store.entries().get(row["network"]) for row in rows), strict=True):
        row["bootstrap"] = list(entry.bootstrap) if entry is not None else []
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        click.echo(f"{row['network']:<20} {row['kind']:<10} {_row_text(row)}")


@network.command()
@click.argument("name", metavar="NAME")
@click.option("--delete-group-key", is_flag=True, help="Delete the key that admits members, too: it has no copy.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def leave(context: CliContext, name: str, delete_group_key: bool, as_json: bool) -> None:
    """Leave a closed network: delete what is kept of it here.

    Channels and receipts with its members stay in the ledger. A running node is in it until it is restarted.
    """
    store = _store(context)
    store.leave(name, even_the_group_key=delete_group_key)
    if as_json:
        click.echo(json.dumps({"network": name, "left": True}))
    else:
        click.echo(f"This data folder is in the network {name!r} no more.")
        _say_restart()


def _store(context: CliContext) -> NetworkStore:
    from p2pgrid.networks.store import NetworkStore

    return NetworkStore(context.data, context.data.load_config())


def _give(invitation: Invitation, out: Path | None, *, as_json: bool) -> None:
    """To a file, or to standard output, which is made private if it is a file."""
    from p2pgrid.networks.invitation import write_invitation
    from p2pgrid.networks.store import write_file

    if as_json and out is None:
        raise UsageError("--json needs --out.", hint="The invitation itself is no JSON.")
    if not invitation.bootstrap:
        click.echo("It names nobody to join through: give one with --bootstrap.", err=True)
    text = write_invitation(invitation)
    if out is not None:
        write_file(out, text)
        shown = {"network": invitation.network, "kind": invitation.kind, "file": str(out)}
        click.echo(json.dumps(shown) if as_json else f"The invitation is in {out}.")
        return
    if invitation.is_secret:
        _make_private(sys.stdout.fileno())
    click.echo(text, nl=False)


def _make_private(descriptor: int) -> None:
    """Give a file that is written to mode 0600; what is no file is left alone. Raises LocalError."""
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise LocalError(
            f"the file cannot be made private: {error.strerror}.", hint="Write it with --out, on another disk."
        ) from None


def _read_invitation(file: Path) -> Invitation:
    from p2pgrid.networks.invitation import MAX_INVITATION_BYTES, read_invitation

    try:
        if str(file) == "-":
            return read_invitation(sys.stdin.buffer.read(MAX_INVITATION_BYTES + 1), "standard input")
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            invitation = read_invitation(opened.read(MAX_INVITATION_BYTES + 1), str(file))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.", hint="Check its name and owner.") from None
    if invitation.is_secret and mode & 0o077:
        raise UsageError(
            f"{file} holds a network's secret and can be read by others (mode {mode:04o}; 0600 was expected).",
            hint=f"If nobody else had access: chmod 600 {file}. Otherwise have the network made anew.",
        )
    return invitation


def _shown(store: NetworkStore, entry: NetworkEntry) -> dict[str, Any]:
    """A network, for programs: nothing secret."""
    from p2pgrid.networks.entries import kind_of, parse_group_key
    from p2pgrid.networks.store import is_group_key_here

    kind = kind_of(entry)
    row: dict[str, Any] = {
        "network": entry.name,
        "kind": kind.value if kind is not None else "open",
        "bootstrap": list(entry.bootstrap),
    }
    if kind == "members":
        row["members"] = store.members(entry)
    if kind == "group-key":
        assert entry.group_key is not None
        row["group_key"] = parse_group_key(entry.group_key).peer_id
        row["admits_here"] = is_group_key_here(store, entry)
        row["member_until_ms"] = store.member_until_ms(entry)
    return row


def _row_text(row: dict[str, Any]) -> str:
    words = [f"{len(row['bootstrap'])} bootstrap peers"] if row["kind"] != "open" or row["bootstrap"] else []
    if "members" in row:
        words.append(f"{len(row['members'])} members")
    if "member_until_ms" in row:
        until_ms = row["member_until_ms"]
        until = datetime.fromtimestamp(until_ms / 1000, UTC) if until_ms else None
        words.append(f"a member until {until:%Y-%m-%d %H:%M} UTC" if until else "no membership yet")
        words += ["admits members"] if row["admits_here"] else []
    return ", ".join(words)


def _closed_by(kind: Kind) -> str:
    return {"secret": "a secret", "members": "a list of members", "group-key": "a group's key"}[kind.value]


def _say_restart() -> None:
    click.echo("A node that runs on this data folder has to be restarted.")
