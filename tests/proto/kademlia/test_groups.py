"""IP prefixes by which peers are counted."""

from __future__ import annotations

import pytest

from p2pgrid.proto.kademlia.groups import MAX_GROUPS, group_of, groups_of, is_public


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("8.8.4.4", "8.8.4.0/24"),
        ("8.8.4.255", "8.8.4.0/24"),
        ("8.8.5.4", "8.8.5.0/24"),
        ("2a00:1450:4001:800::1", "2a00:1450:4001::/48"),
        ("2a00:1450:4001:fff::2", "2a00:1450:4001::/48"),
        ("::ffff:8.8.4.4", "8.8.4.0/24"),
        ("127.0.0.1", ""),
        ("10.1.2.3", ""),
        ("192.168.1.1", ""),
        ("100.64.0.1", ""),
        ("169.254.1.1", ""),
        ("::1", ""),
        ("fe80::1", ""),
        ("a.b.example.org", "example.org"),
        ("EXAMPLE.org.", "example.org"),
        ("localnode", "localnode"),
        ("", ""),
    ],
)
def test_the_prefix_of_a_host(host: str, group: str) -> None:
    assert group_of(host) == group
    assert is_public(host) == (group != "")


def test_only_the_first_few_count_and_each_once() -> None:
    hosts = ["10.0.0.1", "8.8.4.1", "8.8.4.2", "9.9.9.9", "1.1.1.1", "7.7.7.7"]
    assert groups_of(hosts) == ("8.8.4.0/24", "9.9.9.0/24", "1.1.1.0/24")
    assert len(groups_of(hosts)) == MAX_GROUPS
