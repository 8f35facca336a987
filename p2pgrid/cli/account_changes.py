"""Peers whose bank account is another than it was, and that nobody has confirmed: shown wherever money is spoken of."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pgrid.data_folder import DataFolder
    from p2pgrid.settlement.details import AccountChange, DetailsBook

    Unconfirmed = tuple[AccountChange, bool]
    """A change, and whether its account is the one that the peer names today: that alone can be confirmed."""


def changes_of(data: DataFolder) -> list[Unconfirmed]:
    """Those of a node, oldest first; none where it has no settlement.db yet. Raises LedgerError."""
    from p2pgrid.settlement.database import FILE_NAME, open_database
    from p2pgrid.settlement.details import DetailsBook

    path = data.path / FILE_NAME
    if not path.exists():
        return []
    with closing(open_database(path)) as connection:
        return unconfirmed(DetailsBook(connection))


def unconfirmed(book: DetailsBook) -> list[Unconfirmed]:
    """Those of a book of details."""
    return [
        (change, bool(change.iban_now) and change == book.account_change(change.party, change.by))
        for change in book.account_changes()
        if not change.is_confirmed
    ]


def changes_json(changes: Sequence[Unconfirmed]) -> list[dict[str, Any]]:
    """As `--json` prints them."""
    from p2pgrid.proto.keys import parse_public_key

    return [
        {
            "peer": parse_public_key(one.party).peer_id,
            "role": one.by.value,
            "noticed_ms": one.noticed_ms,
            "iban_before": one.iban_before,
            "iban_now": one.iban_now,
        }
        for one, _ in changes
    ]


def print_changes(changes: Sequence[Unconfirmed]) -> None:
    """In red, and how each is confirmed."""
    from p2pgrid.proto.keys import parse_public_key

    for one, is_todays in changes:
        click.echo(click.style(str(one), fg="red", bold=True))
        if is_todays:
            click.echo(
                f"  If it is theirs: p2pgrid billing confirm {parse_public_key(one.party).peer_id} {one.iban_now}"
            )
