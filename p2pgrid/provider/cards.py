"""The operator's cards, as the node serves them (docs/spec/card.md). Signing them is `p2pgrid card`'s business."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.ledger.card_file import CardFile
from p2pgrid.proto.card_chain import CardChain, KeyState, key_state
from p2pgrid.proto.keys import PublicKey

log = logging.getLogger(__name__)


class OwnCards:
    """The chain in the data folder, read again whenever the file is another."""

    def __init__(self, path: Path, key: PublicKey, now_ms: Callable[[], int]) -> None:
        """Raises UsageError for a file that holds no chain."""
        self._file = CardFile(path)
        self._key: Final = key
        self._now_ms = now_ms
        self._chain: CardChain = self._file.read()
        self._said = ""

    def chain(self) -> CardChain:
        """The chain as it is now. A file that was damaged while we run leaves the chain as it was; that is logged."""
        try:
            self._chain = self._file.read()
        except UsageError as error:
            self._say(error.message)
        return self._chain

    def offered_id(self) -> bytes:
        """The id of the last card, for an offer; empty unless it names this node's key, now."""
        chain = self.chain()
        if not chain:
            return b""
        state = key_state(chain, self._key.raw, self._now_ms())
        if state is not KeyState.BOUND:
            self._say(f"the operator's card does not name {self._key} ({state}): `p2pgrid card sign` adds it.")
            return b""
        self._said = ""
        return chain[-1].id

    def _say(self, fault: str) -> None:
        if fault != self._said:
            self._said = fault
            log.warning("%s", fault)
