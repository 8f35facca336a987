"""Which networks a node is in: config.toml, what `p2pgrid network` keeps, invitations."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.config import Config, NetworkEntry, parse_config
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError
from p2pgrid.net.member_books import GroupBook, ListBook, SecretBook
from p2pgrid.networks.entries import choose_networks, known_entries, own_networks
from p2pgrid.networks.invitation import Invitation, read_invitation, write_invitation
from p2pgrid.networks.store import NetworkStore
from p2pgrid.proto.closed_network import Kind, secret_network
from p2pgrid.proto.keys import SecretKey

DOOR = "/ip4/127.0.0.1/tcp/4803/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
KEY = SecretKey(b"k" * 32)
PEER = KEY.public_key.peer_id
NOW_MS = 1_800_000_000_000
SECRET = bytes(range(32))


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    data = DataFolder(tmp_path / "node")
    data.load_or_create_key()
    return data


def store(data: DataFolder, config: Config | None = None) -> NetworkStore:
    return NetworkStore(data, config or Config())


def secret_file(data: DataFolder, text: str = SECRET.hex(), mode: int = 0o600) -> Path:
    path = data.path / "lab.secret"
    path.write_text(text)
    path.chmod(mode)
    return path


def modes(data: DataFolder) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.networks_folder.iterdir()}


# -- what is joined -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "network", "names"),
    [
        ("", None, ["main"]),
        ('network = "demo"', None, ["demo"]),
        ('[[networks]]\nname = "lab"', None, ["lab"]),
        ('network = "demo"\n[[networks]]\nname = "lab"', None, ["demo", "lab"]),
        ('network = "lab"\n[[networks]]\nname = "lab"', None, ["lab"]),
        ('[[networks]]\nname = "lab"\n[[networks]]\nname = "club"', "club", ["club"]),
        ('[[networks]]\nname = "lab"', "demo", ["demo"]),
    ],
)
def test_which_networks_are_joined(data: DataFolder, text: str, network: str | None, names: list[str]) -> None:
    chosen = choose_networks(data, parse_config(text, "test"), network=network, bootstrap=[DOOR])
    assert [entry.name for entry in chosen] == names
    assert all(entry.bootstrap == (DOOR,) for entry in chosen)


def test_where_bootstrap_peers_come_from(data: DataFolder, tmp_path: Path) -> None:
    listed = tmp_path / "peers.toml"
    listed.write_text(f'[networks.main]\npeers = ["{DOOR}"]\n')
    secret_file(data)
    config = parse_config('network = "main"\n[[networks]]\nname = "lab"\nsecret-file = "lab.secret"', "test")
    main, lab = choose_networks(data, config, bootstrap_peers=listed)
    assert (main.bootstrap, lab.bootstrap) == ((DOOR,), ())
    config = parse_config(f'[[networks]]\nname = "open"\nbootstrap = ["{DOOR}"]', "test")
    assert choose_networks(data, config)[0].bootstrap == (DOOR,)
    with pytest.raises(UsageError, match="does not name the network 'open'"):
        choose_networks(data, parse_config('network = "open"', "test"), bootstrap_peers=listed)


def test_the_books_of_a_configuration(data: DataFolder) -> None:
    secret_file(data)
    (data.path / "club.members").write_text(f"{PEER}\n")
    config = parse_config(
        f"""
        network = "demo"
        [[networks]]
        name = "lab"
        secret-file = "lab.secret"
        [[networks]]
        name = "club"
        members = "club.members"
        [[networks]]
        name = "crew"
        members = ["{PEER}"]
        [[networks]]
        name = "guild"
        group-key = "{PEER}"
        membership-file = "guild.membership"
        """,
        "test",
    )
    own = own_networks(choose_networks(data, config, bootstrap=()), KEY.public_key, ["lab", "demo", "elsewhere"])
    kinds = {network.name: type(network.book) for network in own.all}
    assert kinds == {"demo": type(None), "lab": SecretBook, "club": ListBook, "crew": ListBook, "guild": GroupBook}
    assert (own.open, own.selling) == ({"demo"}, {"lab", "demo"})
    assert own["lab"].closed == secret_network("lab", SECRET)
    with pytest.raises(UsageError, match="nothing would be sold"):
        own_networks(choose_networks(data, config, network="lab"), KEY.public_key, ["demo"])


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"secret_file": "lab.secret", "members": ()}, "secret and members: one thing closes a network"),
        ({"membership_file": "x"}, "without a group-key"),
        ({"group_key": PEER}, "no membership-file"),
        ({"group_key": "me", "membership_file": "x"}, "is no group's key"),
        ({"secret_file": "none"}, "there is no secret of a network"),
        ({"members": "none"}, "cannot be read"),
        ({"bootstrap": ("/ip4/127.0.0.1",)}, "does not say both"),
    ],
)
def test_what_cannot_be_joined_says_why(data: DataFolder, entry: dict[str, Any], why: str) -> None:
    config = Config(networks=(NetworkEntry(name="lab", **entry),))
    with pytest.raises(UsageError, match=why):
        own_networks(choose_networks(data, config), KEY.public_key)


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        (SECRET.hex(), 0o644, r"can be read by others \(mode 0644"),
        (SECRET.hex(), 0o640, "can be read by others"),
        (SECRET.hex()[:-2], 0o600, "64 hex digits were expected"),
        ("swordfish", 0o600, "64 hex digits were expected"),
        ("aa" * 32, 0o600, "is not random"),
        ("0123456789abcdef" * 4, 0o600, "is not random"),
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_shown(data: DataFolder, text: str, mode: int, why: str) -> None:
    secret_file(data, text, mode)
    config = Config(networks=(NetworkEntry(name="lab", secret_file="lab.secret"),))
    with pytest.raises(UsageError, match=why) as caught:
        own_networks(choose_networks(data, config), KEY.public_key)
    assert text not in str(caught.value)


# -- what `p2pgrid network` keeps ----------------------------------------------------------------------------------


def test_a_secret_goes_round_by_invitation(data: DataFolder, tmp_path: Path) -> None:
    store(data).create("lab", Kind.SECRET, [DOOR], NOW_MS, 1)
    assert modes(data) == {"lab.toml": 0o600, "lab.secret": 0o600}
    invitation = store(data).invitation(store(data).entry("lab"), ())
    assert invitation.is_secret and invitation.bootstrap == (DOOR,)
    text = write_invitation(invitation)
    assert "keep a key" in text and read_invitation(text.encode(), "file") == invitation

    friend = DataFolder(tmp_path / "friend")
    store(friend).join(invitation)
    own = [own_networks(choose_networks(one, Config()), KEY.public_key) for one in (data, friend)]
    assert own[0]["lab"].closed == own[1]["lab"].closed and own[1]["lab"].bootstrap == (DOOR,)
    assert stat.S_IMODE(friend.networks_folder.stat().st_mode) == 0o700
    store(friend).join(invitation)

    store(friend).leave("lab", even_the_group_key=False)
    assert modes(friend) == {} and known_entries(friend, Config()) == {}
    assert [entry.name for entry in choose_networks(friend, Config(), bootstrap=())] == ["main"]


def test_two_networks_made_alike_are_two(data: DataFolder, tmp_path: Path) -> None:
    other = DataFolder(tmp_path / "other")
    for one in (data, other):
        store(one).create("lab", Kind.SECRET, (), NOW_MS, 1)
    own = [own_networks(choose_networks(one, Config()), KEY.public_key)["lab"] for one in (data, other)]
    assert own[0].scope != own[1].scope
    with pytest.raises(UsageError, match="another network 'lab' already"):
        store(other).join(store(data).invitation(store(data).entry("lab"), ()))


def test_a_name_is_used_once(data: DataFolder) -> None:
    store(data).create("lab", Kind.SECRET, (), NOW_MS, 1)
    for again in (Kind.SECRET, Kind.MEMBERS):
        with pytest.raises(UsageError, match="is in a network 'lab' already"):
            store(data).create("lab", again, (), NOW_MS, 1)
    with pytest.raises(UsageError, match="'demo' already"):
        store(data, Config(network="demo")).create("demo", Kind.SECRET, (), NOW_MS, 1)
    config = Config(networks=(NetworkEntry(name="lab"),))
    with pytest.raises(UsageError, match="configured twice"):
        known_entries(data, config)
    for bad in ("Lab", "../lab", "lab/x", ""):
        with pytest.raises(UsageError):
            store(data).create(bad, Kind.SECRET, (), NOW_MS, 1)


def test_a_list_is_changed_here_alone(data: DataFolder) -> None:
    own = data.load_key().public_key.peer_id
    entry = store(data).create("lab", Kind.MEMBERS, (), NOW_MS, 1)
    assert store(data).members(entry) == [own]
    assert store(data).admit_to_list(entry, KEY.public_key)
    assert not store(data).admit_to_list(entry, KEY.public_key)
    assert store(data).invitation(entry, ()).members == tuple(sorted((own, PEER)))
    assert store(data).expel(entry, KEY.public_key)
    assert not store(data).expel(entry, KEY.public_key)
    config = Config(networks=(NetworkEntry(name="crew", members=(own,)),))
    crew = store(data, config).entry("crew")
    with pytest.raises(UsageError, match=r"stand in .*config\.toml"):
        store(data, config).expel(crew, KEY.public_key)
    with pytest.raises(UsageError, match=r"stands in .*config\.toml"):
        store(data, config).leave("crew", even_the_group_key=False)


def test_a_newer_invitation_to_a_list_adds_and_takes_nobody_off(data: DataFolder, tmp_path: Path) -> None:
    entry = store(data).create("lab", Kind.MEMBERS, (), NOW_MS, 1)
    friend = DataFolder(tmp_path / "friend")
    key = friend.load_or_create_key().public_key
    store(data).admit_to_list(entry, key)
    joined = store(friend).join(store(data).invitation(entry, ()))
    store(friend).admit_to_list(joined, KEY.public_key)
    again = store(friend).join(store(data).invitation(entry, [DOOR]))
    assert again.bootstrap == (DOOR,)
    assert set(store(friend).members(again)) == {data.load_key().public_key.peer_id, key.peer_id, PEER}


def test_a_group_admits_and_renews(data: DataFolder, tmp_path: Path) -> None:
    entry = store(data).create("lab", Kind.GROUP_KEY, (), NOW_MS, 100)
    assert set(modes(data)) == {"lab.toml", "lab.group-key", "lab.membership"} and modes(data)["lab.group-key"] == 0o600
    friend = DataFolder(tmp_path / "friend")
    key = friend.load_or_create_key().public_key
    bare = store(data).invitation(entry, ())
    assert not bare.is_secret
    joined = store(friend).join(bare)
    assert store(friend).member_until_ms(joined) == 0
    with pytest.raises(UsageError, match="is not here"):
        store(friend).sign(joined, KEY.public_key, NOW_MS, 1)
    for days in (1, 30):
        invitation = store(data).invitation(entry, (), store(data).sign(entry, key, NOW_MS, days))
        again = read_invitation(write_invitation(invitation).encode(), "file")
        assert again == invitation
        joined = store(friend).join(again)
        assert store(friend).member_until_ms(joined) == NOW_MS + days * 86_400_000
    others = store(data).invitation(entry, (), store(data).sign(entry, KEY.public_key, NOW_MS, 1))
    with pytest.raises(UsageError, match="the invitation is for another peer"):
        store(friend).join(others)
    with pytest.raises(UsageError, match="is the key that admits members"):
        store(data).leave("lab", even_the_group_key=False)
    store(data).leave("lab", even_the_group_key=True)
    assert modes(data) == {}


GOOD = {"p2pgrid_invitation": 1, "network": "lab", "kind": "secret", "secret": SECRET.hex()}
BAD: dict[str, dict[str, Any]] = {
    "no secret": {"secret": None},
    "two things": {"members": (PEER,)},
    "another kind": {"kind": "members"},
    "a short secret": {"secret": "aa" * 31},
    "no hex": {"secret": "x" * 64},
    "a bad name": {"network": "Lab"},
    "a later version": {"p2pgrid_invitation": 2},
    "no multiaddr": {"bootstrap": ("here",)},
    "no group key": {"kind": "group-key", "secret": None, "group_key": "me"},
    "no membership": {"kind": "group-key", "secret": None, "group_key": PEER, "membership": "!!"},
    "no members": {"kind": "members", "secret": None, "members": ("me",)},
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_no_invitation_is_refused(how: str) -> None:
    text = write_invitation(Invitation(**(GOOD | BAD[how])))  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        read_invitation(text.encode(), "file")
    assert SECRET.hex() not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"x = [" * 2000, b"p2pgrid-invitation = 1", b"#" * (8 * 1024 * 1024 + 1)]
)
def test_what_is_no_toml_is_no_invitation(raw: bytes) -> None:
    with pytest.raises(UsageError):
        read_invitation(raw, "file")
