"""HTTP Peer ID Auth: the specification's own figures, handshakes both ways, and what is refused."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.peer_id_auth import (
    BEARER_MS,
    CHALLENGE_MS,
    MAX_USED,
    Challenge,
    Named,
    PeerIdAuthClient,
    PeerIdAuthServer,
    signing_input,
)

# https://github.com/libp2p/specs/blob/master/http/peer-id-auth.md, "Signing Example" and the handshakes.
SERVER, CLIENT, OTHER = SecretKey(b"\1" * 32), SecretKey(b"\2" * 32), SecretKey(b"\3" * 32)
HOST = "example.com"
CHALLENGE_CLIENT = b"\x11" * 32
CHALLENGE_SERVER = "MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMz"
SERVER_KEY = "CAESIIqI4910CfGV_VLbLTy6XXLKZwm_HZQSG_N0iAG0D29c"
CLIENT_KEY = "CAESIIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU"
SERVER_SIG = "HQ7BJRaSpRhNCORNiALNJENdwXUyq0eM2cxNoxe-XnQw6oEAMaeYnjMYaHHjgq0XNxZmy4W2ngKUcI1CgprLCQ=="
CLIENT_SIG = "OrwJPO4buHKJdKXP2av8PFwv3XF_-m5MqndskeVV5UzufYzBCTm7RBaFnBS1sEhuQHZSZPh9RJgN5NmLzrUrBQ=="


def server() -> PeerIdAuthServer:
    return PeerIdAuthServer(SERVER, bytes(32))


def fields(header: str) -> dict[str, str]:
    assert header.startswith("libp2p-PeerID ")
    return dict(re.findall(r'([a-z-]+)="([^"]*)"', header))


def test_the_signing_example_of_the_specification() -> None:
    signed = signing_input(
        hostname=HOST,
        challenge_server="ERERERERERERERERERERERERERERERERERERERERERE=",
        client_public_key=base64.urlsafe_b64decode(CLIENT_KEY),
    )
    assert signed == bytes.fromhex(
        "6c69627032702d5065657249443d6368616c6c656e67652d7365727665723d455245524552455245524552455245524552455245524552"
        "455245524552455245524552455245524552453d36636c69656e742d7075626c69632d6b65793d080112208139770ea87d175f56a35466"
        "c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b39414686f73746e616d653d6578616d706c652e636f6d"
    )
    assert base64.urlsafe_b64encode(SERVER.sign(signed)).decode() == (
        "UA88qZbLUzmAxrD9KECbDCgSKAUBAvBHrOCF2X0uPLR1uUCF7qGfLPc7dw3Olo-LaFCDpk5sXN7TkLWPVvuXAA=="
    )


def test_the_specifications_handshake_that_the_client_begins() -> None:
    ours = server()
    opening = f'libp2p-PeerID challenge-server="{CHALLENGE_SERVER}", public-key="{CLIENT_KEY}"'
    asked = ours.judge(opening, HOST, 0, CHALLENGE_CLIENT)
    assert isinstance(asked, Challenge)
    said = fields(asked.header)
    assert said["challenge-client"] == "ERERERERERERERERERERERERERERERERERERERERERE="
    assert (said["public-key"], said["sig"]) == (SERVER_KEY, SERVER_SIG)
    answered = ours.judge(f'libp2p-PeerID opaque="{said["opaque"]}", sig="{CLIENT_SIG}"', HOST, 1, bytes(32))
    assert isinstance(answered, Named)
    assert answered.key.peer_id == "12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"
    again = ours.judge(answered.header, HOST, BEARER_MS, bytes(32))
    assert again == Named(CLIENT.public_key, "")


def shake_hands(
    ours: PeerIdAuthServer,
    *,
    client_begins: bool = True,
    client_host: str = HOST,
    server_host: str = HOST,
    later_ms: int = 0,
    key: SecretKey = CLIENT,
) -> tuple[Named | Challenge, PeerIdAuthClient, str]:
    client = PeerIdAuthClient(key, client_host, b"c" * 32)
    asked = ours.judge(client.opening() if client_begins else None, server_host, 1000, b"n" * 32)
    assert isinstance(asked, Challenge)
    reply = client.reply(asked.header)
    return ours.judge(reply, server_host, 1000 + later_ms, b"t" * 32), client, reply


@pytest.mark.parametrize("client_begins", [True, False])
def test_each_side_proves_itself_to_the_other(client_begins: bool) -> None:
    ours = server()
    answered, client, _ = shake_hands(ours, client_begins=client_begins)
    assert isinstance(answered, Named)
    assert answered.key == CLIENT.public_key
    assert (client.server == SERVER.public_key) is client_begins
    token = client.finish(answered.header)
    assert client.server == SERVER.public_key
    assert ours.judge(token, HOST, 2000, bytes(32)) == Named(CLIENT.public_key, "")


@pytest.mark.parametrize("client_begins", [True, False])
def test_a_challenge_is_met_once_and_in_time(client_begins: bool) -> None:
    ours = server()
    late, *_ = shake_hands(ours, client_begins=client_begins, later_ms=CHALLENGE_MS + 1)
    assert isinstance(late, Challenge)
    early, *_ = shake_hands(ours, client_begins=client_begins, later_ms=-1)
    assert isinstance(early, Challenge)
    answered, _, reply = shake_hands(ours, client_begins=client_begins, later_ms=CHALLENGE_MS)
    assert isinstance(answered, Named)
    assert isinstance(ours.judge(reply, HOST, 1001, bytes(32)), Challenge), "the reply was overheard"


def test_what_is_remembered_of_challenges_is_bounded() -> None:
    ours = server()
    for n in range(MAX_USED + 5):
        client = PeerIdAuthClient(CLIENT, HOST, b"c" * 32)
        asked = ours.judge(client.opening(), HOST, 0, n.to_bytes(32))
        assert isinstance(asked, Challenge)
        answered = ours.judge(client.reply(asked.header), HOST, 0, bytes(32))
        assert isinstance(answered, Named) == (n < MAX_USED)
    assert isinstance(shake_hands(ours, later_ms=CHALLENGE_MS)[0], Named), "a minute later there is room"
    assert len(ours._used) == 1


def test_a_signature_for_another_host_name_is_worth_nothing() -> None:
    answered, *_ = shake_hands(server(), client_begins=False, client_host="evil.example", server_host=HOST)
    assert isinstance(answered, Challenge)
    ours = server()
    answered, client, _ = shake_hands(ours)
    assert isinstance(answered, Named)
    token = client.finish(answered.header)
    assert isinstance(ours.judge(token, "evil.example", 2000, bytes(32)), Challenge)


def test_a_signature_for_another_server_is_worth_nothing() -> None:
    """Mallory shows a client SERVER's challenge as its own, and passes the answer on."""
    ours = server()
    asked = ours.judge(None, HOST, 0, b"n" * 32)
    assert isinstance(asked, Challenge)
    client = PeerIdAuthClient(CLIENT, HOST, b"c" * 32)
    mallory_key = base64.urlsafe_b64encode(b"\x08\x01\x12\x20" + OTHER.public_key.raw[1:]).decode()
    reply = client.reply(asked.header.replace(SERVER_KEY, mallory_key))
    assert isinstance(ours.judge(reply, HOST, 1, bytes(32)), Challenge)


def test_nobody_else_can_use_a_challenge_that_a_client_began() -> None:
    ours = server()
    client = PeerIdAuthClient(CLIENT, HOST, b"c" * 32)
    asked = ours.judge(client.opening(), HOST, 0, b"n" * 32)
    assert isinstance(asked, Challenge)
    thief = PeerIdAuthClient(OTHER, HOST, b"c" * 32)
    with pytest.raises(ProtocolViolation, match="does not prove it"):
        thief.reply(asked.header)
    without_sig = re.sub(r', sig="[^"]*"', "", asked.header)
    assert isinstance(ours.judge(thief.reply(without_sig), HOST, 0, bytes(32)), Challenge)


@pytest.mark.parametrize("token_ms", [-1, BEARER_MS + 1])
def test_a_token_has_its_time(token_ms: int) -> None:
    ours = server()
    answered, client, _ = shake_hands(ours)
    assert isinstance(answered, Named)
    assert isinstance(ours.judge(client.finish(answered.header), HOST, 1000 + token_ms, bytes(32)), Challenge)


def test_tokens_and_challenges_are_no_use_as_one_another_or_to_another_server() -> None:
    ours = server()
    answered, client, reply = shake_hands(ours)
    assert isinstance(answered, Named)
    opaque, bearer = fields(reply)["opaque"], fields(answered.header)["bearer"]
    assert isinstance(ours.judge(f'libp2p-PeerID bearer="{opaque}"', HOST, 1000, bytes(32)), Challenge)
    swapped = f'libp2p-PeerID opaque="{bearer}", sig="{fields(reply)["sig"]}"'
    assert isinstance(ours.judge(swapped, HOST, 1000, bytes(32)), Challenge)
    elsewhere = PeerIdAuthServer(SERVER, b"x" * 32)
    assert isinstance(elsewhere.judge(client.finish(answered.header), HOST, 1000, bytes(32)), Challenge)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer abc",
        "libp2p-PeerID",
        "libp2p-PeerID ",
        "libp2p-PeerID nonsense",
        'libp2p-PeerID sig="x" rubbish',
        'libp2p-PeerID sig="!!", opaque="??"',
        'libp2p-PeerID bearer=""',
        'libp2p-PeerID bearer="AAAA", bearer="AAAA"',
        f'libp2p-PeerID bearer="{"A" * 1400}", opaque="{"A" * 1400}"',
        'libp2p-PeerID challenge-server="x", public-key="CAESIA=="',
        f'libp2p-PeerID challenge-server="{"x" * 257}", public-key="{CLIENT_KEY}"',
        'libp2p-PeerID challenge-server="x", public-key="'
        + "CAESIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        + '"',
        'libp2p-PeerID public-key="Ü"',
    ],
)
def test_what_is_no_authorization_is_asked_anew(header: str | None) -> None:
    asked = server().judge(header, HOST, 0, bytes(32))
    assert isinstance(asked, Challenge)
    assert "sig" not in fields(asked.header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic realm=x",
        'libp2p-PeerID challenge-client="x"',
        'libp2p-PeerID challenge-client="x", opaque="y"',
        'libp2p-PeerID challenge-client="x", opaque="y", public-key="AAAA"',
        f'libp2p-PeerID challenge-client="x", opaque="y", public-key="{SERVER_KEY}", sig="AAAA"',
        f'libp2p-PeerID challenge-client="x", opaque="y", public-key="{SERVER_KEY}", sig="{SERVER_SIG}"',
    ],
)
def test_a_host_that_proves_nothing_is_left(header: str) -> None:
    client = PeerIdAuthClient(CLIENT, HOST, b"another challenge than that of the vectors"[:32])
    with pytest.raises(ProtocolViolation):
        client.reply(header)
    assert client.server is None


def test_a_host_that_is_asked_later_must_prove_itself_too() -> None:
    answered, client, _ = shake_hands(server(), client_begins=False)
    assert isinstance(answered, Named)
    for said in (None, "", 'libp2p-PeerID bearer="x"', re.sub(r'sig="[^"]*"', f'sig="{SERVER_SIG}"', answered.header)):
        with pytest.raises(ProtocolViolation):
            client.finish(said)
        assert client.server is None


@given(st.text(max_size=300), st.binary(max_size=200))
def test_no_header_breaks_either_side(text: str, data: bytes) -> None:
    encoded = base64.urlsafe_b64encode(data).decode()
    for header in (
        text,
        f"libp2p-PeerID {text}",
        f'libp2p-PeerID bearer="{encoded}"',
        f'libp2p-PeerID opaque="{encoded}", sig="{encoded}"',
    ):
        assert isinstance(server().judge(header, HOST, 0, bytes(32)), Challenge)
        client = PeerIdAuthClient(CLIENT, HOST, b"c" * 32)
        with pytest.raises(ProtocolViolation):
            client.reply(header)
