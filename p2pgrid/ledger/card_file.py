"""An operator's chain of cards as a file: one record a line, oldest first (docs/spec/card.md).

It holds no secret and is trusted with nothing: every card is verified when it is read. A bundle with cards in it, for
an auditor, has the same lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.ledger.bundle import write_bundle
from p2pgrid.proto.card import Card
from p2pgrid.proto.card_chain import CardChain, named_keys, verify_chain
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.record import parse_json_line

MAX_FILE_BYTES: Final = 8 * 1024 * 1024


def read_cards(path: Path) -> CardChain:
    """The chain in a file; empty if there is no file. Raises UsageError for one that is damaged or no chain."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than any chain of cards.", hint="Restore it from a backup.")
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UsageError(f"the cards in {path} cannot be read: {error.strerror}.", hint="Check its owner.") from None
    try:
        return verify_chain(parse_json_line(line) for line in lines if line.strip())
    except InvalidRecord as error:
        raise UsageError(f"{path} holds no chain of cards: {error.message}", hint="Restore it from a backup.") from None


def write_cards(path: Path, cards: CardChain) -> None:
    """Replace the file, whole or not at all. Raises UsageError, LocalError."""
    write_bundle(path, (card.record for card in cards))


def read_all_cards(files: Iterable[Path], keys: Iterable[bytes] | None = None) -> list[CardChain]:
    """The chains in several files, those that cannot be read left out; with `keys`, those that name one of them."""
    wanted = frozenset(keys) if keys is not None else None
    chains = []
    for path in files:
        try:
            chain = read_cards(path)
        except UsageError:
            continue  # of another operator's cards there is only a copy: it is had again from the peer
        if chain and (wanted is None or named_keys(chain) & wanted):
            chains.append(chain)
    return chains


def operator_of(chain: CardChain) -> str:
    """Who the chain is of: the peer id of the key that may sign its next card."""
    last: Card = chain[-1].message
    return parse_public_key(last.operator).peer_id


class CardFile:
    """A chain in a file that another program may replace while we run: `p2pgrid card` does."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._chain: CardChain = ()
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> CardChain:
        """The chain as the file has it now; it is read again only where the file is another. Raises UsageError."""
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        if seen != self._seen or seen is None:
            self._chain = read_cards(self.path)
            self._seen = seen
        return self._chain
