"""What stands in tests/vectors/network.json: closed networks, members' credentials, memberships, links with MEMBER."""

from __future__ import annotations

import base64
from typing import Any

from p2pgrid.errors import InvalidRecord
from p2pgrid.net.lookup_keys import scoped_key
from p2pgrid.proto.closed_network import ClosedNetwork, group_network, listed_network, secret_network
from p2pgrid.proto.credentials import Credential, Credentials, Meeting, Side, Where
from p2pgrid.proto.frame import GoawayCode, Kind, encode_frame
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.membership import Membership, sign_membership, verify_membership
from p2pgrid.proto.record import Record, Role, Signature, encode_payload, sign_message, signature_input_of
from tests.proto import link_vectors as links

GROUP, OTHER_GROUP = SecretKey(b"g" * 32), SecretKey(b"h" * 32)
SECRET = b"s" * 32
CALLED, CALLER = links.LISTENER, links.DIALLER
CALLED_NONCE, CALLER_NONCE = links.NONCE, bytes(range(32, 64))
NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


def network_vectors() -> dict[str, Any]:
    """All of the file."""
    return {
        "group_seed": GROUP.expose_seed().hex(),
        "called_seed": CALLED.expose_seed().hex(),
        "caller_seed": CALLER.expose_seed().hex(),
        "called_nonce": CALLED_NONCE.hex(),
        "caller_nonce": CALLER_NONCE.hex(),
        "networks": [_network(one) for one in networks()],
        "credentials": [_credential(one, where, side) for one in networks() for where in Where for side in Side],
        "memberships": {
            "now_ms": NOW_MS,
            "network": "lab",
            "member": CALLER.public_key.peer_id,
            "cases": _memberships(),
        },
        "frames": _frames(),
        "links": [_link(*case) for case in _links()],
    }


def networks() -> list[ClosedNetwork]:
    return [
        secret_network("lab", SECRET),
        secret_network("lab2", SECRET),
        secret_network("lab", bytes(range(32))),
        listed_network("lab"),
        group_network("lab", GROUP.public_key),
        group_network("lab", OTHER_GROUP.public_key),
    ]


def _network(network: ClosedNetwork) -> dict[str, Any]:
    secrets = {one.scope: secret for one, secret in _secrets()}
    return {
        "name": network.name,
        "kind": network.kind.value,
        "secret": secrets[network.scope].hex() if network.scope in secrets else None,
        "group_key": network.group.raw.hex() if network.group is not None else None,
        "scope": network.scope,
        "credential_key": network.credential_key.hex(),
        "provider_key": scoped_key(network.scope, "provider").hex(),
    }


def _secrets() -> list[tuple[ClosedNetwork, bytes]]:
    return [
        (secret_network("lab", SECRET), SECRET),
        (secret_network("lab2", SECRET), SECRET),
        (secret_network("lab", bytes(range(32))), bytes(range(32))),
    ]


def meeting(where: Where) -> Meeting:
    return Meeting(where, CALLED_NONCE, CALLER_NONCE, CALLED.public_key, CALLER.public_key)


def _credential(network: ClosedNetwork, where: Where, side: Side) -> dict[str, Any]:
    return {
        "scope": network.scope,
        "on": "link" if where is Where.LINK else "connection",
        "side": side.name.lower(),
        "mac": meeting(where).mac(network, side).hex(),
    }


def group() -> ClosedNetwork:
    """The network that the memberships are of."""
    return group_network("lab", GROUP.public_key)


def _memberships() -> list[dict[str, Any]]:
    told = []
    for name, wire in membership_wires().items():
        code = ""
        try:
            verify_membership(wire, group(), CALLER.public_key, NOW_MS)
        except InvalidRecord as error:
            code = error.code
        told.append({"case": name, "wire": wire.hex(), "code": code})
    return told


def membership_wires() -> dict[str, bytes]:
    """Memberships by what is right or wrong with them."""

    def signed(group: SecretKey = GROUP, name: str = "lab", key: SecretKey = CALLER, **times: int) -> Record:
        span = {"valid_from_ms": NOW_MS - DAY_MS, "valid_until_ms": NOW_MS + DAY_MS} | times
        return sign_membership(group, name, key.public_key, **span).record

    def in_role(role: Role) -> Record:
        return sign_message(_message(), role, GROUP).record

    good = signed()
    altered = Record(good.payload_type, good.payload[:-1] + b"\x01", good.signatures)
    backwards = _message(valid_from_ms=NOW_MS, valid_until_ms=NOW_MS)
    unsigned_span = Record(Membership.payload_type, encode_payload(backwards), ())
    cases = {
        "in force": good,
        "in its last millisecond": signed(valid_until_ms=NOW_MS),
        "over by a millisecond": signed(valid_until_ms=NOW_MS - 1),
        "begins 120 s from now": signed(valid_from_ms=NOW_MS + 120_000),
        "begins 120.001 s from now": signed(valid_from_ms=NOW_MS + 120_001),
        "of another peer": signed(key=CALLED),
        "of another network": signed(name="lab2"),
        "by another group": signed(group=OTHER_GROUP),
        "by the member itself": signed(group=CALLER),
        "that names another group than its signer": sign_message(
            _message(group=OTHER_GROUP.public_key.raw), Role.OPERATOR, GROUP
        ).record,
        "signed in another role": in_role(Role.CLIENT),
        "altered": altered,
        "signed in other roles too": Record(
            good.payload_type, good.payload, (*good.signatures, *signed_as(Role.PROVIDER, Role.CLIENT, good))
        ),
        "without a signature": Record(good.payload_type, good.payload, ()),
        "that ends when it begins": unsigned_span.with_signature(_signature_over(unsigned_span)),
    }
    wires = {name: record.to_bytes() for name, record in cases.items()}
    wires |= {"of 513 bytes": good.to_bytes().ljust(513, b"\0"), "of 512 bytes": good.to_bytes().ljust(512, b"\0")}
    return wires


def signed_as(one: Role, other: Role, record: Record) -> tuple[Signature, Signature]:
    signature = _signature_over(record)
    return Signature(one, signature.key, signature.signature), Signature(other, signature.key, signature.signature)


def _message(**fields: Any) -> Membership:
    values: dict[str, Any] = {
        "group": GROUP.public_key.raw,
        "network": "lab",
        "member": CALLER.public_key.raw,
        "valid_from_ms": NOW_MS - DAY_MS,
        "valid_until_ms": NOW_MS + DAY_MS,
    }
    return Membership(**(values | fields))


def _signature_over(record: Record) -> Signature:
    return Signature(Role.OPERATOR, GROUP.public_key.raw, GROUP.sign(signature_input_of(record)))


def caller_credentials(n: int = 1, nonce: bytes = CALLER_NONCE, membership: bytes = b"") -> bytes:
    credential = Credential(mac=meeting(Where.LINK).mac(networks()[0], Side.CALLER), membership=membership)
    return Credentials(nonce=nonce, credentials=(credential,) * n).to_bytes()


def called_credentials(n: int = 1, nonce: bytes = b"") -> bytes:
    credential = Credential(mac=meeting(Where.LINK).mac(networks()[0], Side.CALLED))
    return Credentials(nonce=nonce, credentials=(credential,) * n).to_bytes()


def _frames() -> list[dict[str, Any]]:
    """Credentials by the side that they are read as: taken, or a violation."""
    long = bytes.fromhex("92") + b"\xc5\x00\x20" + CALLER_NONCE + caller_credentials()[35:]
    cases = [
        ("one credential", "caller", caller_credentials(), True),
        ("no credential", "caller", caller_credentials(0), True),
        ("16 credentials", "caller", caller_credentials(16), True),
        ("17 credentials", "caller", caller_credentials(17), False),
        ("a membership of 512 bytes", "caller", caller_credentials(membership=bytes(512)), True),
        ("a membership of 513 bytes", "caller", caller_credentials(membership=bytes(513)), False),
        ("a nonce of 31 bytes", "caller", caller_credentials(nonce=bytes(31)), False),
        ("no nonce of the caller's", "caller", caller_credentials(nonce=b""), False),
        ("the called's", "called", called_credentials(), True),
        ("the called's, none", "called", called_credentials(0), True),
        ("a nonce of the called's", "called", called_credentials(nonce=CALLER_NONCE), False),
        ("a byte too many", "caller", caller_credentials() + b"\0", False),
        ("a byte too few", "caller", caller_credentials()[:-1], False),
        ("not in its shortest form", "caller", long, False),
        ("nothing", "caller", b"", False),
    ]
    return [
        {"case": name, "side": side, "credentials": raw.hex(), "is_taken": taken} for name, side, raw, taken in cases
    ]


def invitations() -> tuple[bytes, ...]:
    """The text of one of each kind."""
    peer, key = CALLER.public_key.peer_id, GROUP.public_key.peer_id
    membership = base64.b64encode(membership_wires()["in force"]).decode()
    closed = (
        f'kind = "secret"\nsecret = "{SECRET.hex()}"',
        f'kind = "members"\nmembers = ["{peer}"]',
        f'kind = "group-key"\ngroup-key = "{key}"\nmembership = "{membership}"',
    )
    head = f'p2pgrid-invitation = 1\nnetwork = "lab"\nbootstrap = ["/ip4/127.0.0.1/tcp/1/p2p/{peer}"]\n'
    return tuple(f"{head}{one}\n".encode() for one in closed)


Step = links.Step


def _links() -> list[tuple[str, str, bytes, list[Step]]]:
    """Name, side, what the dialler credentials, steps as in link.json; `accept` may have credentials."""
    mine, theirs = caller_credentials(), called_credentials()
    member, answer = encode_frame(0, Kind.MEMBER, mine), encode_frame(0, Kind.MEMBER, theirs)
    refusal = ("goaway", GoawayCode.NOT_A_MEMBER.value, "no member")
    return [
        ("a listener and a member", "L", b"", [("in", member + links.PROOF), ("accept", theirs), ("open",)]),
        ("a listener that answers no credential", "L", b"", [("in", member + links.PROOF), ("accept",)]),
        ("a listener that refuses", "L", b"", [("in", member + links.PROOF), refusal]),
        ("a listener and MEMBER twice", "L", b"", [("in", member), ("in", member)]),
        ("a listener and MEMBER after PROOF", "L", b"", [("in", links.PROOF), ("in", member)]),
        ("a listener and MEMBER on stream 1", "L", b"", [("in", encode_frame(1, Kind.MEMBER, mine))]),
        ("a listener and the called's credentials", "L", b"", [("in", answer)]),
        ("a listener and credentials that are none", "L", b"", [("in", encode_frame(0, Kind.MEMBER, b"\x90"))]),
        ("a listener that is open, and MEMBER", "L", b"", [("in", links.PROOF), ("accept",), ("in", member)]),
        ("a dialler and a member", "D", mine, [("in", links.HELLO), ("in", answer + links.READY), ("open",)]),
        ("a dialler that gets no credential", "D", mine, [("in", links.HELLO), ("in", links.READY), refusal]),
        ("a dialler that is refused", "D", mine, [("in", links.HELLO), ("in", links.NO_MEMBER)]),
        ("a dialler and MEMBER twice", "D", mine, [("in", links.HELLO), ("in", answer), ("in", answer)]),
        ("a dialler and MEMBER before HELLO", "D", mine, [("in", answer)]),
        ("a dialler and MEMBER after READY", "D", mine, [("in", links.HELLO), ("in", links.READY), ("in", answer)]),
        ("a dialler and MEMBER unasked", "D", b"", [("in", links.HELLO), ("in", answer)]),
    ]


def _link(name: str, side: str, credentials: bytes, steps: list[Step]) -> dict[str, Any]:
    if side == "L":
        link = Link.listener(CALLED.public_key, CALLED_NONCE, limits=links.LIMITS, now_ms=0)
    else:
        link = Link.dialler(CALLER, CALLED.public_key, limits=links.LIMITS, now_ms=0, show=lambda _: credentials)
    start = link.data_to_send()
    return links.told_case(name, side, link, start, steps) | {"credentials": credentials.hex()}
