"""What the commands of `p2pgrid set-off` share: the ledgers of one operator, its keys, and the keeping of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from p2pgrid.cli.asking import ask_or_do
from p2pgrid.cli.context import CliContext
from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import KeepSetOffs, KeptSetOffs
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.proto.invoice_sums import PICO_PER_CENT
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Signed, sign_message
from p2pgrid.proto.set_off_rules import channels_named, signer_keys
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.units import parse_amount_eur

MIN_PREFIX_CHARS = 4


def with_folders(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--with`."""
    return click.option(
        "--with",
        "with_folders",
        multiple=True,
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        help="Data folder of another node of yours: the gateway's, where this one sells. May be given again.",
    )(command)


@dataclass(frozen=True, slots=True)
class OwnBooks:
    """All that an operator has on this machine."""

    folders: tuple[DataFolder, ...]
    """That of --data first."""
    books: AllBooks
    us: Operator
    keys: tuple[SecretKey, ...]

    def them(self, peer: bytes) -> Operator:
        """Whoever a key belongs to, by the cards that were shown to these nodes."""
        from p2pgrid.ledger.card_file import read_all_cards

        files = [file for folder in self.folders for file in sorted(folder.cards_folder.glob("*.jsonl"))]
        return Operator.of([peer], read_all_cards(files, [peer]))

    def agreed_drafts(self) -> list[Any]:
        """Statements to which these nodes have agreed as clients, signed since or not. Raises LedgerError."""
        from p2pgrid.proto.record import parse_message
        from p2pgrid.proto.statement import Statement
        from p2pgrid.settlement.database import FILE_NAME, open_database
        from p2pgrid.settlement.statements.agreed import AgreedDrafts

        found: list[Any] = []
        for file in (folder.path / FILE_NAME for folder in self.folders):
            if file.exists():
                with closing(open_database(file)) as connection:
                    found += [parse_message(one, Statement) for one in AgreedDrafts(connection).drafts()]
        return found

    def signed(self, signed_or_message: Any) -> Signed[Any]:
        """With the signature of each of our keys that the record names. Raises UsageError if none of them is here."""
        is_signed = isinstance(signed_or_message, Signed)
        message = signed_or_message.message if is_signed else signed_or_message
        found: Signed[Any] | None = signed_or_message if is_signed else None
        by_raw = {key.public_key.raw: key for key in self.keys}
        made = False
        for role, raw in signer_keys(message).items():
            key = by_raw.get(raw)
            if key is None or (found is not None and role in found.signers):
                continue
            found = found.countersigned(role, key) if found is not None else sign_message(message, role, key)
            made = True
        if found is None or not made:
            raise UsageError(
                "the key that signs this is in none of these data folders, or has signed already.",
                hint="Name the node that sells with --data or --with.",
            )
        return found


@contextmanager
def own_books(context: CliContext, others: Sequence[Path] = ()) -> Iterator[OwnBooks]:
    """The ledgers of --data and --with, opened for reading. Raises UsageError, LedgerError."""
    from p2pgrid.ledger.card_file import read_all_cards
    from p2pgrid.ledger.sqlite import SqliteLedger

    paths = dict.fromkeys([context.data.path, *(path.absolute() for path in others)])
    folders = tuple(DataFolder(path) for path in paths)
    with ExitStack() as stack:
        readers = [stack.enter_context(SqliteLedger.open_readonly(folder.ledger_file)) for folder in folders]
        keys = tuple(key for folder in folders for key in (folder.load_key(), *folder.load_retired_keys()))
        raw = [key.public_key.raw for key in keys]
        us = Operator.of(raw, read_all_cards([folder.card_file for folder in folders], raw))
        yield OwnBooks(folders, AllBooks(readers), us, keys)


async def keep(own: OwnBooks, records: Sequence[Signed[Any]]) -> list[str]:
    """Keep records in each folder whose ledger has one of their channels; the folders. Raises P2pgridError.

    By the node that runs there, or here where none does.
    """
    done = []
    lines = tuple(one.record.to_json_line().decode() for one in records)
    named = {channel for one in records for channel in channels_named(one.message)}
    for folder in own.folders:
        if named & _channels_of(folder):
            await keep_in(folder, lines)
            done.append(str(folder.path))
    if not done:
        raise UsageError(
            "none of the channels that it names is in a ledger here.", hint="Name the other node's folder with --with."
        )
    return done


async def keep_in(folder: DataFolder, lines: Iterable[str]) -> KeptSetOffs:
    """Have a data folder's ledger keep records, by the node that runs on it or by ourselves. Raises P2pgridError."""
    from p2pgrid.desk.set_offs import keep_set_offs
    from p2pgrid.ledger.sqlite import SqliteLedger

    ask = KeepSetOffs(lines=tuple(lines))

    async def here() -> KeptSetOffs:
        ledger = SqliteLedger.open(folder.ledger_file)
        try:
            return await keep_set_offs(ledger, [folder.load_key(), *folder.load_retired_keys()], ask, unix_ms())
        finally:
            await ledger.aclose()

    return await ask_or_do(folder, ask, KeptSetOffs, here)


def read_lines(path: Path) -> list[bytes]:
    """A file's lines, at most a megabyte. Raises UsageError."""
    try:
        if path.stat().st_size > 1024 * 1024:
            raise UsageError(f"{path} is larger than any such file.", hint="Name the file that went round.")
        return path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Check its name.") from None


def write_out(path: Path | None, lines: Sequence[bytes]) -> None:
    """Write a file whole; an older one of that name is replaced. Raises UsageError, LocalError."""
    from p2pgrid.ledger.bundle import write_lines

    if path is not None:
        write_lines(path, lines)


@contextmanager
def refusals(data: DataFolder) -> Iterator[Any]:
    """`RefusedSetOffs` of a data folder."""
    from p2pgrid.settlement.database import FILE_NAME, open_database
    from p2pgrid.settlement.set_off.refusals import RefusedSetOffs

    with closing(open_database(data.path / FILE_NAME)) as connection:
        yield RefusedSetOffs(connection)


def euros_in_cents(text: str) -> int:
    """ "12.40" as 1240. Raises UsageError for what is finer than a cent, or not above zero."""
    pico = parse_amount_eur(text)
    if pico <= 0 or pico % PICO_PER_CENT:
        raise UsageError(f"{text!r} is no amount above zero in euros and cents.", hint="Write it like 12.40.")
    return pico // PICO_PER_CENT


def refused_because(reasons: Sequence[str], what: str) -> P2pgridError:
    """The error for what we should not sign."""
    return UsageError(f"{what} was not signed: {' '.join(reasons)}", hint="Nothing was changed.")


def _channels_of(folder: DataFolder) -> set[bytes]:
    from p2pgrid.ledger.sqlite import SqliteLedger

    with SqliteLedger.open_readonly(folder.ledger_file) as reader:
        return {one.message.channel for one in reader.channels()}
