"""The file that remembers offers between runs. Nothing in it is believed: every record is verified again when read.

JSON: `{"version": 1, "offers": [{"peer_id": ..., "addresses": [...], "record": base64 of the wire form}]}`.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.net.peer_address import PeerAddress

log = logging.getLogger(__name__)

MAX_CACHE_BYTES: Final = 256 * 1024 * 1024
MAX_CACHED: Final = 2_000


class _Cached(msgspec.Struct, frozen=True):
    peer_id: str
    addresses: tuple[str, ...]
    record: str


class _Cache(msgspec.Struct, frozen=True):
    version: int = 1
    offers: tuple[_Cached, ...] = ()


def read_cache(path: Path) -> list[tuple[PeerAddress, bytes]]:
    """Peers and raw offers, at most 2,000. A file that is missing, damaged or too large holds none; that is logged."""
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            log.warning("%s is too large to be the cache of offers; it is not read", path)
            return []
        cache = msgspec.json.decode(path.read_bytes(), type=_Cache)
        return [
            (PeerAddress(one.peer_id, one.addresses), base64.b64decode(one.record, validate=True))
            for one in cache.offers[:MAX_CACHED]
        ]
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, binascii.Error) as error:
        log.warning("the cache of offers %s is not read: %s", path, error)
        return []


def write_cache(path: Path, offers: Sequence[tuple[PeerAddress, bytes]]) -> bool:
    """Replace the file as a whole, mode 0600. False where that failed, which is logged: the cache is only a cache."""
    cached = tuple(_Cached(peer.peer_id, peer.addresses, base64.b64encode(raw).decode()) for peer, raw in offers)
    partial = path.with_suffix(".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_Cache(offers=cached)))
        partial.replace(path)
    except OSError as error:
        log.warning("the cache of offers cannot be written: %s", error)
        return False
    return True
