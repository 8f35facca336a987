from __future__ import annotations

from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pgrid.net.provider_store import (
    MAX_KEYS_PER_PROVIDER,
    MAX_PROVIDERS_PER_ANSWER,
    MAX_PROVIDERS_PER_KEY,
    RECORD_TTL_S,
    BoundedProviderStore,
)


class _Host:
    def get_id(self) -> ID:
        return ID(b"own")


def provider(n: int, *addresses: str) -> PeerInfo:
    found = addresses or ("/ip4/192.0.2.1/tcp/4001",)
    return PeerInfo(ID(bytes.fromhex("002408011220") + n.to_bytes(32)), [Multiaddr(a) for a in found])


def test_records_end_within_the_hour_unless_renewed() -> None:
    now = 1_000_000.0
    store = BoundedProviderStore(_Host(), lambda: now)
    store.add_provider(b"k", provider(1))
    store.add_provider(b"k", provider(2))
    now += RECORD_TTL_S - 1
    store.add_provider(b"k", provider(2))
    now += 2
    assert [p.peer_id for p in store.get_providers(b"k")] == [provider(2).peer_id]
    store.cleanup_expired()
    assert store.size() == 1
    now += RECORD_TTL_S
    store.cleanup_expired()
    assert store.providers == {}


def test_a_key_has_a_bounded_number_of_providers_and_renewals_go_through() -> None:
    store = BoundedProviderStore(_Host())
    for n in range(MAX_PROVIDERS_PER_KEY + 10):
        store.add_provider(b"k", provider(n))
    assert store.size() == MAX_PROVIDERS_PER_KEY
    store.add_provider(b"k", provider(0, "/ip4/192.0.2.2/tcp/1"))
    assert str(store.providers[b"k"][str(provider(0).peer_id)].addresses[0]) == "/ip4/192.0.2.2/tcp/1"
    assert len(store.get_providers(b"k")) == MAX_PROVIDERS_PER_ANSWER


def test_a_provider_has_a_bounded_number_of_keys() -> None:
    store = BoundedProviderStore(_Host())
    for n in range(MAX_KEYS_PER_PROVIDER + 10):
        store.add_provider(n.to_bytes(4), provider(1))
    assert store.size() == MAX_KEYS_PER_PROVIDER
    store.withdraw(str(provider(1).peer_id))
    assert store.providers == {}
    store.add_provider(b"k", provider(1))
    assert store.size() == 1


def test_the_number_of_keys_is_bounded() -> None:
    store = BoundedProviderStore(_Host())
    store.max_keys = 3
    for n in range(10):
        store.add_provider(n.to_bytes(4), provider(n))
    assert len(store.providers) == 3


def test_the_number_of_records_is_bounded_whoever_makes_them() -> None:
    now = 1_000_000.0
    store = BoundedProviderStore(_Host(), lambda: now)
    store.max_records = 100
    for n in range(300):
        store.add_provider(n.to_bytes(2), provider(n))
    assert store.size() == 100
    store.withdraw(str(provider(5).peer_id))
    store.add_provider(b"a place is free", provider(301))
    store.add_provider(b"and now none is", provider(302))
    assert store.get_providers(b"a place is free")
    assert not store.get_providers(b"and now none is")
    now += RECORD_TTL_S + 1
    store.cleanup_expired()
    store.add_provider(b"and now none is", provider(302))
    assert store.get_providers(b"and now none is")


def test_what_cannot_be_dialled_is_not_kept() -> None:
    store = BoundedProviderStore(_Host())
    store.add_provider(b"k", PeerInfo(provider(1).peer_id, []))
    store.add_provider(b"k", provider(1, "/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.1/udp/1/quic-v1"))
    assert store.providers == {}
