"""Providers that broke the rules: they are not bought from until a person allows it, or both sides agree again.

The file is read by `p2pgrid offers` beside a running gateway. It holds names and reasons; the proof is in the ledger.

JSON: `{"version": 1, "peers": {"12D3KooW...": {"since_ms": ..., "reason": "..."}}}`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.errors import LocalError
from p2pgrid.printable import printable

log = logging.getLogger(__name__)

MAX_QUARANTINED: Final = 10_000
_MAX_REASON_CHARS: Final = 300


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Why a provider is under quarantine, and since when."""

    since_ms: int
    reason: str


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    peers: dict[str, Held] = {}


class Quarantine:
    """Providers under quarantine by peer id. Without a path it is forgotten with the process."""

    def __init__(self, path: Path | None = None) -> None:
        """Reads the file. Raises LocalError if it is there and cannot be read: no provider is let off by accident."""
        self._path: Final = path
        self._peers: dict[str, Held] = dict(_read(path)) if path is not None else {}

    def reason(self, peer_id: str) -> str:
        """Why the provider is under quarantine; empty if it is not."""
        held = self._peers.get(peer_id)
        return held.reason if held is not None else ""

    def __contains__(self, peer_id: str) -> bool:
        return peer_id in self._peers

    @property
    def peers(self) -> Mapping[str, Held]:
        """All of them."""
        return self._peers

    def add(self, peer_id: str, reason: str, now_ms: int) -> None:
        """Put a provider under quarantine. The first reason stays. A file that cannot be written is logged."""
        if peer_id in self._peers:
            return
        if len(self._peers) >= MAX_QUARANTINED:
            # Peer ids cost nothing: whoever makes thousands of them must not fill the disk.
            del self._peers[min(self._peers, key=lambda one: self._peers[one].since_ms)]
        self._peers[peer_id] = Held(since_ms=now_ms, reason=printable(reason)[:_MAX_REASON_CHARS])
        try:
            self._write()
        except LocalError as error:
            log.error("%s is forgotten when the gateway stops: %s", peer_id, error)

    def lift(self, peer_id: str) -> Held | None:
        """Deal with a provider again; what it was held for, or None. Raises LocalError if that cannot be written."""
        held = self._peers.pop(peer_id, None)
        if held is not None:
            try:
                self._write()
            except LocalError:
                self._peers[peer_id] = held
                raise
        return held

    def _write(self) -> None:
        if self._path is None:
            return
        partial = self._path.with_suffix(".partial")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(_File(peers=self._peers)), indent=2))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            raise LocalError(
                f"{self._path} cannot be written: {error.strerror or error}.", hint="Check its folder's owner and room."
            ) from None


def _read(path: Path) -> Mapping[str, Held]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).peers
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LocalError(
            f"the list of quarantined providers {path} cannot be read: {error}.",
            hint="Mend it; removing it lets all of them in again.",
        ) from None
