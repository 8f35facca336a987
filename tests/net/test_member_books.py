"""Who is a member, from files that change while a node runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from p2pgrid.errors import Refused, UsageError
from p2pgrid.net.member_books import GroupBook, ListBook, parse_member_list
from p2pgrid.net.own_networks import OwnNetwork, OwnNetworks
from p2pgrid.proto.closed_network import group_network, listed_network
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.membership import sign_membership

ONE, TWO, GROUP = SecretKey(b"1" * 32), SecretKey(b"2" * 32), SecretKey(b"g" * 32)
ONE_ID, TWO_ID = ONE.public_key.peer_id, TWO.public_key.peer_id
NOW_MS = 1_800_000_000_000


def write(path: Path, text: str) -> None:
    """As an editor does: a new file in the place of the old."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def membership(key: SecretKey, until_ms: int, group: SecretKey = GROUP) -> bytes:
    span = {"valid_from_ms": 0, "valid_until_ms": until_ms}
    return sign_membership(group, "lab", key.public_key, **span).record.to_bytes()


def line(key: SecretKey, until_ms: int, group: SecretKey = GROUP) -> str:
    span = {"valid_from_ms": 0, "valid_until_ms": until_ms}
    return sign_membership(group, "lab", key.public_key, **span).record.to_json_line().decode()


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", set()),
        (f"{ONE_ID}\n{TWO_ID}\n", {ONE_ID, TWO_ID}),
        (f"# ours\n\n  {ONE_ID}   # the one in the cellar\n{ONE_ID}", {ONE_ID}),
    ],
)
def test_a_list(text: str, members: set[str]) -> None:
    assert parse_member_list(text, "list") == members


@pytest.mark.parametrize("bad", ["12D3KooW", f"{ONE_ID} {TWO_ID}", f"{ONE_ID},", "/ip4/127.0.0.1", ONE_ID.lower()])
def test_what_is_no_list_is_refused_with_the_line(bad: str) -> None:
    with pytest.raises(UsageError, match=r"list: .* is no peer id") as caught:
        parse_member_list(f"{TWO_ID}\n{bad}\n", "list")
    assert "12D3KooW" in caught.value.hint


def test_a_list_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lab.members"
    write(path, f"{ONE_ID}\n")
    book = ListBook(listed_network("lab"), path)
    book.admit(ONE.public_key, b"", NOW_MS)
    with pytest.raises(Refused, match="not on the list of members of 'lab'") as caught:
        book.admit(TWO.public_key, b"", NOW_MS)
    assert caught.value.code == "not-a-member"

    write(path, f"{TWO_ID}\n")
    book.refresh(NOW_MS)
    book.admit(TWO.public_key, b"", NOW_MS)
    assert (book.holds(ONE_ID, NOW_MS), book.holds(TWO_ID, NOW_MS)) == (False, True)

    for damage in ("12D3KooWnobody\n", "\xff"):
        path.write_bytes(damage.encode("latin-1"))
        with caplog.at_level(logging.ERROR):
            book.refresh(NOW_MS)
        assert "stays in force" in caplog.text and book.holds(TWO_ID, NOW_MS)
    path.unlink()
    book.refresh(NOW_MS)
    assert book.holds(TWO_ID, NOW_MS)
    write(path, "")
    book.refresh(NOW_MS)
    assert not book.holds(TWO_ID, NOW_MS)


def test_a_list_in_the_configuration_stays_as_it_is() -> None:
    book = ListBook(listed_network("lab"), (ONE_ID,))
    book.refresh(NOW_MS)
    assert book.members == {ONE_ID}
    with pytest.raises(UsageError, match="is no peer id"):
        ListBook(listed_network("lab"), ("nobody",))


def test_a_list_that_is_not_there_or_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        ListBook(listed_network("lab"), tmp_path / "none")
    path = tmp_path / "long"
    path.write_bytes(b"#" * (8 * 1024 * 1024 + 1))
    with pytest.raises(UsageError, match="more than"):
        ListBook(listed_network("lab"), path)


def test_memberships_end_and_the_last_one_counts(tmp_path: Path) -> None:
    book = GroupBook(group_network("lab", GROUP.public_key), ONE.public_key, tmp_path / "none")
    assert book.own_membership is None and book.own_until_ms == 0
    assert "no membership yet" in book.why_not_us()
    assert not book.holds(TWO_ID, NOW_MS)
    book.admit(TWO.public_key, membership(TWO, NOW_MS + 100), NOW_MS)
    assert book.holds(TWO_ID, NOW_MS + 100) and not book.holds(TWO_ID, NOW_MS + 101)
    book.admit(TWO.public_key, membership(TWO, NOW_MS + 500), NOW_MS)
    book.admit(TWO.public_key, membership(TWO, NOW_MS + 200), NOW_MS)
    assert book.holds(TWO_ID, NOW_MS + 500) and not book.holds(TWO_ID, NOW_MS + 501)
    for shown, why in (
        (b"", "shows no membership"),
        (b"\x93", "does not hold"),
        (membership(TWO, NOW_MS - 1), "it ended"),
        (membership(ONE, NOW_MS + 1), "another peer"),
        (membership(TWO, NOW_MS + 1, TWO), "another key"),
    ):
        with pytest.raises(Refused, match=why) as caught:
            book.admit(TWO.public_key, shown, NOW_MS)
        assert caught.value.code == "not-a-member"


def test_ones_own_membership_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lab.membership"
    book = GroupBook(group_network("lab", GROUP.public_key), ONE.public_key, path)
    write(path, line(ONE, NOW_MS))
    book.refresh(NOW_MS)
    assert (book.own_membership, book.own_until_ms) == (membership(ONE, NOW_MS), NOW_MS)
    for wrong in (line(TWO, NOW_MS + 9), line(ONE, NOW_MS + 9, TWO), "{}", ""):
        write(path, wrong)
        with caplog.at_level(logging.ERROR):
            book.refresh(NOW_MS)
        assert "stays in use" in caplog.text and book.own_until_ms == NOW_MS
        with pytest.raises(UsageError, match="is no membership of this node in 'lab'"):
            GroupBook(group_network("lab", GROUP.public_key), ONE.public_key, path)
    write(path, line(ONE, NOW_MS + 10))
    book.refresh(NOW_MS)
    assert book.own_until_ms == NOW_MS + 10


def test_the_end_of_ones_own_membership_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lab.membership"
    write(path, line(ONE, NOW_MS))
    book = GroupBook(group_network("lab", GROUP.public_key), ONE.public_key, path)
    hour = 3_600_000
    said = []
    for left_h in (100, 71, 70, 23, 22, 0.5, 0.4, -1, -2):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            book.refresh(NOW_MS - int(left_h * hour))
            said.append(caplog.messages)
    assert [bool(one) for one in said] == [False, True, False, True, False, True, False, True, False]
    assert "ends in 71 h" in said[1][0] and "has ended" in said[7][0] and "admitted again" in said[7][0]
    write(path, line(ONE, NOW_MS + 200 * hour))
    book.refresh(NOW_MS)
    assert "ends" not in caplog.text


def test_no_secret_is_in_what_is_shown() -> None:
    from tests.net.members.rigs import SECRET, secret_book

    book = secret_book()
    network = OwnNetwork("lab", (), book)
    for shown in (repr(book.network), repr(network), str(network), book.why_not_us()):
        assert SECRET.hex() not in shown and repr(SECRET) not in shown
        assert book.network.credential_key.hex() not in shown and repr(book.network.credential_key) not in shown


def test_files_are_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now_s = tmp_path / "lab.members", 1000.0
    monkeypatch.setattr("p2pgrid.net.own_networks.time.monotonic", lambda: now_s)
    write(path, f"{ONE_ID}\n")
    own = OwnNetworks([OwnNetwork("lab", (), ListBook(listed_network("lab"), path))])
    own.refresh()
    write(path, f"{TWO_ID}\n")
    now_s += 0.9
    own.refresh()
    assert own.holds("lab", ONE_ID)
    now_s += 0.2
    own.refresh()
    assert not own.holds("lab", ONE_ID) and own.holds("lab", TWO_ID)
    assert own.still(["lab"], ONE_ID) == frozenset()


@pytest.mark.parametrize("names", [[], ["lab", "lab"], ["Lab"], [f"n{n}" for n in range(17)]])
def test_networks_that_cannot_be_joined(names: list[str]) -> None:
    books = [OwnNetwork(name, (), ListBook(listed_network(name), ())) for name in names]
    with pytest.raises(UsageError):
        OwnNetworks(books)
