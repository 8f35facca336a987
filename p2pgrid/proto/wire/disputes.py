"""Disputes and answers, compared between two sides (docs/spec/disputes.md, section 3)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2pgrid.proto.fields import Id
from p2pgrid.proto.wire.base import MAX_COMPARED, MAX_NUMBER, Frame


class HeldDispute(Frame, frozen=True, kw_only=True):
    """A dispute or an answer on record."""

    receipt_number: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    """Of the receipt that it is about."""
    id: Id


class DisputesHeld(Frame, frozen=True, kw_only=True):
    """All disputes and answers that the client holds about the receipts of a range."""

    channel: Id
    after: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    until: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    """The range: receipts above `after`, up to and with `until`."""
    held: Annotated[tuple[HeldDispute, ...], Meta(max_length=MAX_COMPARED)]
    """In the order of the receipts' numbers; a dispute before its answer."""


class DisputesCompared(Frame, frozen=True, kw_only=True):
    """What each side lacks of the other's."""

    until: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    """How far it was compared: below the client's `until` where the provider holds more than goes into one exchange."""
    lacks: Annotated[tuple[Id, ...], Meta(max_length=MAX_COMPARED)]
    """Ids of the client's that the provider lacks, in the client's order."""
    records: Annotated[int, Meta(ge=0, le=MAX_COMPARED)]
    """How many records follow that the client lacks."""


class DisputesNews(Frame, frozen=True, kw_only=True):
    """The provider has disputes or answers in this channel that the client may lack."""

    channel: Id
