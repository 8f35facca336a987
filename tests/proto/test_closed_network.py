"""Closed networks and credentials: what is derived, and that a credential holds only where it was made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.net.lookup_keys import check_network_name
from p2pgrid.proto.closed_network import ClosedNetwork, group_network, listed_network, secret_network
from p2pgrid.proto.credentials import Credential, Credentials, Meeting, Side, Where, parse_credentials
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.membership import Membership, sign_membership, verify_membership
from p2pgrid.proto.record import Record, parse_message
from tests.proto.network_vectors import CALLED, CALLER, GROUP, NOW_MS, SECRET, meeting, networks

OTHER = SecretKey(b"o" * 32)
LAB = secret_network("lab", SECRET)
NAMES = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")
DERIVED = st.one_of(
    st.builds(secret_network, NAMES, st.binary(min_size=32, max_size=32)),
    st.builds(listed_network, NAMES),
    st.builds(
        group_network, NAMES, st.builds(lambda seed: SecretKey(seed).public_key, st.binary(min_size=32, max_size=32))
    ),
)


@given(DERIVED, DERIVED)
def test_two_networks_share_nothing(one: ClosedNetwork, other: ClosedNetwork) -> None:
    if (one.name, one.kind, one.credential_key) == (other.name, other.kind, other.credential_key):
        assert one == other
    else:
        assert len({one.scope, other.scope}) == 2 and len({one.credential_key, other.credential_key}) == 2


@given(DERIVED)
def test_a_scope_is_no_open_networks_name_and_says_nothing(network: ClosedNetwork) -> None:
    assert len(network.scope) == 40 and network.name not in network.scope.split("-")
    with pytest.raises(Exception, match="no network name"):
        check_network_name(network.scope)
    assert network.credential_key.hex() not in repr(network)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_secret_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        secret_network("lab", bytes(size))


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("network", networks(), ids=lambda n: f"{n.kind}-{n.scope[:4]}")
def test_a_credential_is_recognised_by_members_alone(network: ClosedNetwork, side: Side, where: Where) -> None:
    here = meeting(where)
    credentials = here.issue([(network, b"shown")], side)
    assert here.recognise(credentials, networks(), side) == [(network, b"shown")]
    others = [one for one in networks() if one != network]
    assert here.recognise(credentials, others, side) == []


STOLEN = {
    "on another connection": lambda m: replace(m, called_nonce=bytes(32)),
    "with another nonce of the caller's": lambda m: replace(m, caller_nonce=bytes(32)),
    "by somebody else": lambda m: replace(m, caller=OTHER.public_key),
    "passed on to another": lambda m: replace(m, called=OTHER.public_key),
    "with the sides exchanged": lambda m: replace(m, called=m.caller, caller=m.called),
    "on a link": lambda m: replace(m, where=Where.LINK),
}


@pytest.mark.parametrize("how", STOLEN)
def test_a_stolen_credential_is_worth_nothing(how: str) -> None:
    credentials = meeting(Where.CONNECTION).issue([(LAB, b"")], Side.CALLER)
    assert STOLEN[how](meeting(Where.CONNECTION)).recognise(credentials, [LAB], Side.CALLER) == []


def test_a_credential_sent_back_is_worth_nothing() -> None:
    here = meeting(Where.CONNECTION)
    assert here.recognise(here.issue([(LAB, b"")], Side.CALLER), [LAB], Side.CALLED) == []


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=16))
def test_nobody_guesses_a_credential(macs: list[bytes]) -> None:
    credentials = tuple(Credential(mac=mac) for mac in macs)
    assert meeting(Where.LINK).recognise(credentials, networks(), Side.CALLER) == []


def test_several_networks_at_once_in_the_receivers_order() -> None:
    here = meeting(Where.LINK)
    one, two, three = LAB, listed_network("lab"), group_network("lab", GROUP.public_key)
    credentials = here.issue([(three, b"m"), (one, b"")], Side.CALLED)
    assert here.recognise(credentials, [one, two, three], Side.CALLED) == [(one, b""), (three, b"m")]


@given(st.binary(max_size=200), st.sampled_from(Side))
def test_credentials_of_strangers_are_read_or_refused(raw: bytes, side: Side) -> None:
    try:
        credentials = parse_credentials(raw, side)
    except ProtocolViolation:
        return
    assert credentials.to_bytes() == raw


@given(
    st.binary(min_size=32, max_size=32),
    st.lists(
        st.builds(Credential, mac=st.binary(min_size=32, max_size=32), membership=st.binary(max_size=512)), max_size=16
    ),
)
def test_credentials_read_back(nonce: bytes, credentials: list[Credential]) -> None:
    said = Credentials(nonce=nonce, credentials=tuple(credentials))
    assert parse_credentials(said.to_bytes(), Side.CALLER) == said
    with pytest.raises(ProtocolViolation):
        parse_credentials(said.to_bytes(), Side.CALLED)


@given(st.binary(max_size=600))
def test_memberships_of_strangers_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRecord):
        verify_membership(raw, group_network("lab", GROUP.public_key), CALLER.public_key, NOW_MS)


@given(st.integers(0, 2**40), st.integers(1, 2**40), st.integers(0, 2**41))
def test_a_membership_holds_in_its_time(begins_ms: int, lasts_ms: int, now_ms: int) -> None:
    network = group_network("lab", GROUP.public_key)
    signed = sign_membership(
        GROUP, "lab", CALLER.public_key, valid_from_ms=begins_ms, valid_until_ms=begins_ms + lasts_ms
    )
    is_in_force = begins_ms - 120_000 <= now_ms <= begins_ms + lasts_ms
    try:
        verify_membership(signed.record.to_bytes(), network, CALLER.public_key, now_ms)
    except InvalidRecord as error:
        assert error.code == "not-in-force" and not is_in_force
    else:
        assert is_in_force


@pytest.mark.parametrize("name", ["", "Lab", "lab\n", "-lab", "lab-", "a" * 33, "l\u00e4b"])
def test_a_membership_names_a_network(name: str) -> None:
    with pytest.raises(InvalidRecord):
        sign_membership(GROUP, name, CALLER.public_key, valid_from_ms=0, valid_until_ms=1)


def test_a_membership_is_no_message_of_a_ledger() -> None:
    signed = sign_membership(GROUP, "lab", CALLED.public_key, valid_from_ms=0, valid_until_ms=1)
    record = Record("/p2pgrid/card/1", signed.record.payload, signed.record.signatures)
    with pytest.raises(InvalidRecord):
        parse_message(record, Membership)


def test_a_meeting_with_oneself_is_told_from_one_with_another() -> None:
    """A peer that calls itself under both names cannot use what it hears there elsewhere."""
    own = Meeting(Where.CONNECTION, bytes(32), bytes(32), CALLER.public_key, CALLER.public_key)
    assert own.mac(LAB, Side.CALLER) != replace(own, called=CALLED.public_key).mac(LAB, Side.CALLER)
