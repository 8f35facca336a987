"""Which networks a command joins, and what closes each of them (docs/spec/network.md, section 5)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.config import DEFAULT_NETWORK, Config, NetworkEntry
from p2pgrid.data_folder import DataFolder, read_secret_file
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.net.addresses import parse_peer_multiaddr
from p2pgrid.net.bootstrap_peers import load_bootstrap_peers
from p2pgrid.net.lookup_keys import check_network_name
from p2pgrid.net.member_books import GroupBook, ListBook, MemberBook, SecretBook
from p2pgrid.net.own_networks import OwnNetwork, OwnNetworks
from p2pgrid.proto.closed_network import Kind, group_network, listed_network, secret_network
from p2pgrid.proto.keys import PublicKey, parse_peer_id

_FEWEST_VALUES: Final = 12
"""Of 32 random bytes: with fewer different values among them, they are not random (a chance of 1 in 10^18)."""


def known_entries(data: DataFolder, config: Config) -> dict[str, NetworkEntry]:
    """All networks that are configured, by name, with files by their full paths. Raises UsageError."""
    found: dict[str, NetworkEntry] = {}
    for entry in config.networks:
        _add(found, _with_full_paths(entry, data.path), str(data.config_file))
    for path in sorted(data.networks_folder.glob("*.toml")):
        _add(found, read_entry(path), str(path))
    return found


def read_entry(path: Path) -> NetworkEntry:
    """What `p2pgrid network` wrote. Raises UsageError."""
    try:
        entry = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), NetworkEntry, strict=True)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}.", hint="`p2pgrid network leave` and `join` write it anew.") from None
    if entry.name != path.stem:
        raise UsageError(f"{path} is of the network {entry.name!r}.", hint=f"Call it {entry.name}.toml.")
    return _with_full_paths(entry, path.parent)


def choose_networks(
    data: DataFolder,
    config: Config,
    *,
    network: str | None = None,
    bootstrap: Sequence[str] | None = None,
    bootstrap_peers: Path | None = None,
) -> tuple[NetworkEntry, ...]:
    """The networks to join, each with its bootstrap peers: the one that is named, or all that are configured.

    `bootstrap` replaces what is configured. Raises UsageError for a list of bootstrap peers that cannot be read, or
    that does not name an open network.
    """
    known = known_entries(data, config)
    if network is not None:
        names = [check_network_name(network)]
    else:
        names = list(dict.fromkeys([*([config.network] if config.network else []), *known])) or [DEFAULT_NETWORK]
    listed = bootstrap_peers or (Path(config.bootstrap_peers).expanduser() if config.bootstrap_peers else None)
    return tuple(_introduced(known.get(name) or NetworkEntry(name=name), bootstrap, listed) for name in names)


def own_networks(entries: Sequence[NetworkEntry], own: PublicKey, sell_in: Sequence[str] = ()) -> OwnNetworks:
    """The networks, with what closes them read from their files.

    `own`: this node's key. `sell_in`: where it sells; in all where nothing is said. Raises UsageError.
    """
    names = {entry.name for entry in entries}
    if sell_in and not names & set(sell_in):
        raise UsageError(
            f"nothing would be sold: sell-in is {', '.join(sell_in)}, and this node joins {', '.join(sorted(names))}.",
            hint="Name one of these in sell-in, or leave it out.",
        )
    for entry in entries:
        for address in entry.bootstrap:
            parse_peer_multiaddr(address)
    return OwnNetworks(
        [
            OwnNetwork(entry.name, entry.bootstrap, book_of(entry, own), sells=not sell_in or entry.name in sell_in)
            for entry in entries
        ]
    )


def kind_of(entry: NetworkEntry) -> Kind | None:
    """What closes the network; None for an open one. Raises UsageError where several things do."""
    said = {
        Kind.SECRET: entry.secret_file is not None,
        Kind.MEMBERS: entry.members is not None,
        Kind.GROUP_KEY: entry.group_key is not None,
    }
    kinds = [kind for kind, is_said in said.items() if is_said]
    if len(kinds) > 1:
        raise UsageError(
            f"the network {entry.name!r} has {' and '.join(kinds)}: one thing closes a network.", hint="Leave one."
        )
    if entry.membership_file is not None and kinds != [Kind.GROUP_KEY]:
        raise UsageError(f"the network {entry.name!r} has a membership-file without a group-key.", hint="Leave it out.")
    return kinds[0] if kinds else None


def knows_keys(entry: NetworkEntry) -> bool:
    """True for a network that knows its members by their keys. Raises UsageError as `kind_of`."""
    return kind_of(entry) in (Kind.MEMBERS, Kind.GROUP_KEY)


def book_of(entry: NetworkEntry, own: PublicKey) -> MemberBook | None:
    """Who is in the network; None for an open one. Raises UsageError: missing, open to others, no secret, no key."""
    match kind_of(entry):
        case Kind.SECRET:
            assert entry.secret_file is not None
            return SecretBook(secret_network(entry.name, load_secret(Path(entry.secret_file))))
        case Kind.MEMBERS:
            members = entry.members
            assert members is not None
            return ListBook(listed_network(entry.name), Path(members) if isinstance(members, str) else members)
        case Kind.GROUP_KEY:
            assert entry.group_key is not None
            group = parse_group_key(entry.group_key)
            if entry.membership_file is None:
                raise UsageError(
                    f"the network {entry.name!r} has a group-key and no membership-file.",
                    hint="Say in which file this node's membership is, or will be.",
                )
            return GroupBook(group_network(entry.name, group), own, Path(entry.membership_file))
        case None:
            return None


def load_secret(path: Path) -> bytes:
    """A network's secret. Raises UsageError: missing, open to others, too short, or not random."""
    secret = read_secret_file(path, "secret of a network", another="make another network, and invite its members anew")
    if len(set(secret)) < _FEWEST_VALUES:
        raise UsageError(
            f"the secret in {path} is not random, so others could guess it.", hint="`p2pgrid network create` makes one."
        )
    return secret


def parse_group_key(text: str) -> PublicKey:
    """A group's public key, written like a peer id. Raises UsageError."""
    try:
        return parse_peer_id(text)
    except InvalidRecord:
        raise UsageError(
            f"{text[:80]!r} is no group's key.", hint="It is written like a peer id: 12D3KooW..."
        ) from None


def _introduced(entry: NetworkEntry, bootstrap: Sequence[str] | None, listed: Path | None) -> NetworkEntry:
    """The entry with its bootstrap peers. Those of a closed network are in no public list."""
    if bootstrap is not None:
        peers = tuple(bootstrap)
    elif entry.bootstrap or kind_of(entry) is not None:
        peers = entry.bootstrap
    else:
        peers = load_bootstrap_peers(entry.name, listed)
    return msgspec.structs.replace(entry, bootstrap=peers)


def _add(found: dict[str, NetworkEntry], entry: NetworkEntry, source: str) -> None:
    kind_of(entry)
    if entry.name in found:
        raise UsageError(
            f"{source}: the network {entry.name!r} is configured twice.", hint="Leave one: `p2pgrid network list`."
        )
    found[entry.name] = entry


def _with_full_paths(entry: NetworkEntry, folder: Path) -> NetworkEntry:
    def full(path: str | None) -> str | None:
        return None if path is None else str(folder / Path(path).expanduser())

    return msgspec.structs.replace(
        entry,
        secret_file=full(entry.secret_file),
        members=full(entry.members) if isinstance(entry.members, str) else entry.members,
        membership_file=full(entry.membership_file),
    )
