"""What `p2pgrid network` keeps in the data folder: a file for each network, and what closes it beside it.

| file in `networks/` | |
|---|---|
| `lab.toml` | as a block `[[networks]]` of config.toml |
| `lab.secret` | the secret, mode 0600 |
| `lab.members` | the list of members, a peer id a line |
| `lab.membership` | this node's own membership, a record in text form |
| `lab.group-key` | the group's secret key, mode 0600, where the group admits its members |
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from p2pgrid.config import Config, NetworkEntry
from p2pgrid.data_folder import DataFolder, create_key, load_key
from p2pgrid.errors import InvalidRecord, LocalError, UsageError
from p2pgrid.net.addresses import parse_peer_multiaddr
from p2pgrid.net.lookup_keys import check_network_name
from p2pgrid.net.member_books import GroupBook, parse_member_list, read_text
from p2pgrid.networks.entries import book_of, kind_of, known_entries, load_secret, parse_group_key, read_entry
from p2pgrid.networks.invitation import Invitation
from p2pgrid.proto.closed_network import SECRET_BYTES, Kind, group_network
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.membership import Membership, sign_membership, verify_any_membership
from p2pgrid.proto.record import Record, Signed

_SUFFIXES: Final = ("secret", "members", "membership", "group-key", "toml")
"""Of a network's files; the one that makes it a network goes last."""
_DAY_MS: Final = 24 * 3600 * 1000


class NetworkStore:
    """The networks of one data folder."""

    def __init__(self, data: DataFolder, config: Config) -> None:
        self._data = data
        self._config = config
        self.folder: Final = data.networks_folder

    def entries(self) -> dict[str, NetworkEntry]:
        """All that are configured, wherever. Raises UsageError."""
        return known_entries(self._data, self._config)

    def entry(self, name: str) -> NetworkEntry:
        """One that is closed. Raises UsageError."""
        found = self.entries().get(check_network_name(name))
        if found is None or kind_of(found) is None:
            raise UsageError(
                f"this data folder is in no closed network {name!r}.", hint="`p2pgrid network list` shows all."
            )
        return found

    # -- making, joining, leaving -----------------------------------------------------------------------------------

    def create(self, name: str, kind: Kind, bootstrap: Sequence[str], now_ms: int, days: int) -> NetworkEntry:
        """A new closed network with this node in it. Raises UsageError: the name is taken."""
        self._check_free(name)
        for address in bootstrap:
            parse_peer_multiaddr(address)
        key = self._data.load_or_create_key()
        self._make_folder()
        entry = NetworkEntry(name=name, bootstrap=tuple(bootstrap))
        if kind is Kind.SECRET:
            self._write(f"{name}.secret", secrets.token_bytes(SECRET_BYTES).hex() + "\n")
        elif kind is Kind.MEMBERS:
            self._write(f"{name}.members", member_list([key.public_key.peer_id], name))
        else:
            create_key(self.folder / f"{name}.group-key")
            group = load_key(self.folder / f"{name}.group-key")
            own = sign_membership(
                group, name, key.public_key, valid_from_ms=now_ms, valid_until_ms=now_ms + days * _DAY_MS
            )
            self._write(f"{name}.membership", own.record.to_json_line().decode() + "\n")
            entry = NetworkEntry(name=name, bootstrap=tuple(bootstrap), group_key=group.public_key.peer_id)
        return self._write_entry(entry, kind)

    def join(self, invitation: Invitation) -> NetworkEntry:
        """Be in the network that this is an invitation to. One that is known already is brought up to date.

        Raises UsageError: another network of that name is known, or the membership is not this node's.
        """
        name, kind = invitation.network, Kind(invitation.kind)
        known = self.entries().get(name)
        if known is not None:
            self._check_same(known, invitation)
        key = self._data.load_or_create_key().public_key
        self._make_folder()
        bootstrap = invitation.bootstrap or (known.bootstrap if known is not None else ())
        entry = NetworkEntry(name=name, bootstrap=bootstrap, group_key=invitation.group_key)
        if kind is Kind.SECRET:
            self._write(f"{name}.secret", invitation.secret_bytes.hex() + "\n")
        elif kind is Kind.MEMBERS:
            before = self.members(known) if known is not None else []
            self._write(f"{name}.members", member_list([*before, *(invitation.members or ())], name))
        elif (record := invitation.membership_record) is not None:
            self._check_own(record, invitation, key)
            self._write(f"{name}.membership", record.to_json_line().decode() + "\n")
        return self._write_entry(entry, kind)

    def leave(self, name: str, *, even_the_group_key: bool) -> None:
        """Delete all that is kept of a network. Raises UsageError: it is not known, or is config.toml's."""
        self.entry(name)
        if not (self.folder / f"{name}.toml").exists():
            raise UsageError(
                f"the network {name!r} stands in {self._data.config_file}.",
                hint="Take its block [[networks]] out there.",
            )
        group_key = self.folder / f"{name}.group-key"
        if group_key.exists() and not even_the_group_key:
            raise UsageError(
                f"{group_key} is the key that admits members: without it nobody is admitted any more.",
                hint="Move it away and leave again, or say --delete-group-key.",
            )
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / f"{name}.{suffix}").unlink()

    # -- members ----------------------------------------------------------------------------------------------------

    def invitation(
        self, entry: NetworkEntry, bootstrap: Sequence[str], membership: Signed[Membership] | None = None
    ) -> Invitation:
        """To be given to whoever is to join. Raises UsageError."""
        kind = kind_of(entry)
        assert kind is not None
        for address in bootstrap:
            parse_peer_multiaddr(address)
        return Invitation(
            p2pgrid_invitation=1,
            network=entry.name,
            kind=kind.value,
            bootstrap=tuple(dict.fromkeys((*entry.bootstrap, *bootstrap))),
            secret=load_secret(Path(entry.secret_file)).hex() if entry.secret_file is not None else None,
            members=tuple(self.members(entry)) if kind is Kind.MEMBERS else None,
            group_key=entry.group_key,
            membership=_base64(membership.record) if membership is not None else None,
        )

    def members(self, entry: NetworkEntry) -> list[str]:
        """The list of a network that is closed by one, sorted. Raises UsageError."""
        if isinstance(entry.members, str):
            return sorted(parse_member_list(read_text(Path(entry.members)), entry.members))
        return sorted(entry.members or ())

    def admit_to_list(self, entry: NetworkEntry, peer: PublicKey) -> bool:
        """Put a peer on this node's list; False if it was there. Raises UsageError."""
        return self._change_list(entry, lambda members: members | {peer.peer_id})

    def expel(self, entry: NetworkEntry, peer: PublicKey) -> bool:
        """Take a peer off this node's list; False if it was not there. Raises UsageError."""
        return self._change_list(entry, lambda members: members - {peer.peer_id})

    def sign(self, entry: NetworkEntry, peer: PublicKey, now_ms: int, days: int) -> Signed[Membership]:
        """Admit a peer with the group's key. Raises UsageError: it is not here, or is another's."""
        path = self.folder / f"{entry.name}.group-key"
        if not path.exists():
            raise UsageError(
                f"the key that admits members of {entry.name!r} is not here ({path}).",
                hint="Admit where the network was created.",
            )
        group = load_key(path)
        assert entry.group_key is not None
        if group.public_key != parse_group_key(entry.group_key):
            raise UsageError(f"{path} is not the key of {entry.name!r}: that is {entry.group_key}.")
        return sign_membership(group, entry.name, peer, valid_from_ms=now_ms, valid_until_ms=now_ms + days * _DAY_MS)

    def member_until_ms(self, entry: NetworkEntry) -> int:
        """Until when this node is a member, under a group's key; 0 if it has no membership. Raises UsageError."""
        if not self._data.key_file.exists():
            return 0
        book = book_of(entry, self._data.load_key().public_key)
        assert isinstance(book, GroupBook)
        return book.own_until_ms

    # -- inside -----------------------------------------------------------------------------------------------------

    def _change_list(self, entry: NetworkEntry, change: Callable[[set[str]], set[str]]) -> bool:
        if not isinstance(entry.members, str):
            raise UsageError(
                f"the members of {entry.name!r} stand in {self._data.config_file}.", hint="Change the list there."
            )
        before = set(self.members(entry))
        after = change(before)
        if after == before:
            return False
        write_file(Path(entry.members), member_list(sorted(after), entry.name))
        return True

    def _check_free(self, name: str) -> None:
        if check_network_name(name) in self.entries() or name == self._config.network:
            raise UsageError(
                f"this data folder is in a network {name!r} already.", hint="Choose another name, or leave that one."
            )

    def _check_same(self, known: NetworkEntry, invitation: Invitation) -> None:
        kind = kind_of(known)
        is_same = kind == invitation.kind and (self.folder / f"{known.name}.toml").exists()
        if is_same and kind is Kind.SECRET:
            is_same = load_secret(Path(known.secret_file or "")) == invitation.secret_bytes
        if is_same and kind is Kind.GROUP_KEY:
            is_same = known.group_key == invitation.group_key
        if not is_same:
            raise UsageError(
                f"this data folder is in another network {known.name!r} already.",
                hint=f"`p2pgrid network leave {known.name}`, or use another data folder.",
            )

    def _check_own(self, record: Record, invitation: Invitation, own: PublicKey) -> None:
        network = group_network(invitation.network, parse_group_key(invitation.group_key or ""))
        try:
            membership = verify_any_membership(record.to_bytes(), network)
        except InvalidRecord as error:
            raise UsageError(f"the invitation's membership does not hold: {error.message}") from None
        if membership.member != own.raw:
            raise UsageError(
                f"the invitation is for another peer; this node is {own}.",
                hint=f"Have it made for this one: p2pgrid network admit {invitation.network} {own}",
            )

    def _make_folder(self) -> None:
        self._data.make()
        try:
            self.folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise LocalError(
                f"{self.folder} cannot be made: {error.strerror}.", hint="Check the data folder."
            ) from None

    def _write_entry(self, entry: NetworkEntry, kind: Kind) -> NetworkEntry:
        name = entry.name
        lines = [
            f"# `p2pgrid network leave {name}` deletes this network from here.",
            f"name = {json.dumps(name)}",
            f"bootstrap = {json.dumps(list(entry.bootstrap))}",
            {
                Kind.SECRET: f'secret-file = "{name}.secret"',
                Kind.MEMBERS: f'members = "{name}.members"',
                Kind.GROUP_KEY: f'group-key = "{entry.group_key}"\nmembership-file = "{name}.membership"',
            }[kind],
        ]
        path = self.folder / f"{name}.toml"
        write_file(path, "\n".join(lines) + "\n")
        return read_entry(path)

    def _write(self, name: str, text: str) -> None:
        write_file(self.folder / name, text)


def member_list(members: Sequence[str], network: str) -> str:
    """The text of a list of members."""
    head = (
        f"# Members of the network {network}, as this node has it: a peer id a line. A change counts within seconds.\n"
    )
    return head + "".join(f"{peer_id}\n" for peer_id in dict.fromkeys(members))


def write_file(path: Path, text: str) -> None:
    """Write a file whole, or not at all, for its owner alone. Raises LocalError."""
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise LocalError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the disk, and its owner."
        ) from None


def _base64(record: Record) -> str:
    return base64.b64encode(record.to_bytes()).decode()


def is_group_key_here(store: NetworkStore, entry: NetworkEntry) -> bool:
    """True where members of the network can be admitted."""
    return (store.folder / f"{entry.name}.group-key").exists()
