"""Codes for what a live peer knows and no auditor can see in the records; `codes.CODES` has all others.

A live peer gives these when it ends an exchange, and as the reason of a Dispute (docs/spec/session.md, section 7).
"""

from __future__ import annotations

from enum import StrEnum


class LiveCode(StrEnum):
    """Why a message cannot be accepted here and now."""

    WRONG_CHANNEL = "wrong-channel"
    """It is about another channel than the exchange, or a channel on other terms than were agreed."""
    WRONG_SLOT = "wrong-slot"
    """It is about another order than the stream's."""
    WRONG_COUNT = "wrong-count"
    """The counts are not those of the bytes that came."""
    WRONG_COMMITMENT = "wrong-commitment"
    """It commits to other bytes than came."""
    WRONG_STATUS = "wrong-status"
    """The order did not end so."""
    WRONG_MENTION = "wrong-mention"
    """The receipt mentions a record that this side does not hold, or that was mentioned before."""
    CLOCK_SKEW = "clock-skew"
    """The clocks are more than 120 s apart."""
    PROTOCOL_VIOLATION = "protocol-violation"
    """The message is none that may come now."""
