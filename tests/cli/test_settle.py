"""`p2pgrid settle`: what is refused before anybody is asked, and what a list says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from p2pgrid.cli import settle_command
from p2pgrid.cli.account_changes import changes_json, print_changes, unconfirmed
from p2pgrid.cli.main import cli
from p2pgrid.cli.settle_text import print_listed
from p2pgrid.desk.statement_list import list_statements
from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from tests.factories import CLIENT, NOW_MS
from tests.settlement.statements.parts import details_of
from tests.settlement.statements.two_sides import Sides

PEER = CLIENT.public_key.peer_id


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("2030-02-30", "'2030-02-30' is no day"),
        ("yesterday", "is no day"),
        ("2027-02-02", "is not there yet"),
        ("2027-02-01", "there is no key"),  # the day is one, somewhere
    ],
)
def test_a_day_that_cannot_be_the_last_of_a_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str, words: str
) -> None:
    at_ms = int(datetime(2027, 1, 31, 23, 59, tzinfo=UTC).timestamp() * 1000)
    monkeypatch.setattr(settle_command, "unix_ms", lambda: at_ms)
    with pytest.raises(UsageError, match=words):
        CliRunner().invoke(
            cli,
            ["--data", str(tmp_path), "settle", PEER, "--until", until],
            standalone_mode=False,
            catch_exceptions=False,
        )


async def test_a_statement_whose_invoice_is_not_there_is_not_called_paid(capsys: pytest.CaptureFixture[str]) -> None:
    sides = Sides()
    await sides.begin()
    await sides.buy(tokens=200_000)
    assert await sides.settle() == []
    print_listed(list_statements(sides.client, [CLIENT.public_key]))
    (line,) = capsys.readouterr().out.splitlines()
    assert "signed by both; no invoice yet; due " in line
    assert "nothing open" not in line


def test_an_account_that_changed_is_shown_until_a_person_confirms_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = DetailsBook(open_database(tmp_path / FILE_NAME), lambda: NOW_MS)
    key, iban, other = CLIENT, "DE89370400440532013000", "LT121000011101001000"
    for sequence, account in ((1, iban), (2, other)):
        told = details_of(Role.CLIENT, key).message
        told = msgspec.structs.replace(told, sequence=sequence, iban=account)
        book.keep(sign_message(told, Role.CLIENT, key))
    print_changes(unconfirmed(book))
    out = capsys.readouterr().out
    assert "ACCOUNT CHANGED" in out and f"p2pgrid billing confirm {PEER} {other}" in out
    assert [one["iban_now"] for one in changes_json(unconfirmed(book))] == [other]
    assert book.confirm_account(key.public_key.raw, Role.CLIENT, other)
    print_changes(unconfirmed(book))
    assert not capsys.readouterr().out
