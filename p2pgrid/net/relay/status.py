"""The answers of a relay, and why it refuses (libp2p specs, relay/circuit-v2.md)."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """As they stand on the wire."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class RelayRefusal(Exception):
    """A relay says no. Its peer is told the status, and nothing else."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


def status_name(number: int) -> str:
    """The status in words, also one that is not known here."""
    try:
        return Status(number).name.lower().replace("_", " ")
    except ValueError:
        return f"status {number}"
