"""Settlement: records compared, statements agreed on, invoices' files fetched (docs/spec/settlement.md)."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from p2pgrid.proto.fields import Digest, Id
from p2pgrid.proto.wire.base import CHUNK_BYTES, MAX_COMPARED, MAX_NUMBER, Frame

MAX_SETTLED: Final = 64
"""Records of settlement that one side sends in one exchange."""
MAX_STATEMENT_BYTES: Final = 36 * 1024
"""Of a Statement's record in wire form."""
MAX_STATED_IDS: Final = 1024
MAX_DIFFERENCES: Final = 64
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
"""Of an invoice's file."""
MAX_DAY: Final = 3_652_059
"""31 December 9999."""


class SettledPlace(Frame, frozen=True, kw_only=True, order=True):
    """Where a record of settlement stands among those of its channel: by kind, then by what orders the kind, then by
    its id."""

    rank: Annotated[int, Meta(ge=0, le=255)]
    place: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    id: Digest


class HeldSettled(Frame, frozen=True, kw_only=True):
    """A record of settlement that the client holds."""

    at: SettledPlace
    signers: Annotated[int, Meta(ge=1, le=3)]
    """Whose signatures it has: 1 the provider's, 2 the client's, 3 both."""


class SettlementHeld(Frame, frozen=True, kw_only=True):
    """All records of settlement that the client holds in a range of places."""

    channel: Id
    after: SettledPlace
    until: SettledPlace
    """The range: places above `after`, up to and with `until`."""
    held: Annotated[tuple[HeldSettled, ...], Meta(max_length=MAX_COMPARED)]
    """By place."""


class SettlementCompared(Frame, frozen=True, kw_only=True):
    """What each side lacks of the other's."""

    until: SettledPlace
    """How far it was compared."""
    lacks: Annotated[tuple[Id, ...], Meta(max_length=MAX_SETTLED)]
    """Ids of the client's that the provider lacks, or lacks a signature of, in the client's order."""
    records: Annotated[int, Meta(ge=0, le=MAX_SETTLED)]
    """How many records follow that the client lacks, or lacks a signature of."""


class SettlementNews(Frame, frozen=True, kw_only=True):
    """The provider has records of settlement in this channel that the client may lack, or a statement is due."""

    channel: Id


class StatementRequest(Frame, frozen=True, kw_only=True):
    """Is there a statement to be signed?"""

    channel: Id
    is_wanted: bool
    """True if a person asks for one, due or not."""
    until_ms: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Where it is wanted: what the period should end at at the latest; 0: when the provider answers."""
    until_day: Annotated[int, Meta(ge=0, le=MAX_DAY)] = 0
    """Where it is wanted: the period's last day, by the provider's calendar; 0: any."""


class StatementDraft(Frame, frozen=True, kw_only=True):
    """What the provider states."""

    statement: Annotated[bytes, Meta(max_length=MAX_STATEMENT_BYTES)]
    """A Statement's record in wire form: without a signature, or with the provider's where an exchange before this one
    was cut off after it had signed."""
    first_day: Annotated[int, Meta(ge=1, le=MAX_DAY)]
    last_day: Annotated[int, Meta(ge=1, le=MAX_DAY)]
    """The provider's local dates of the period's first and last millisecond, as days since 31 December of the year 0 of
    the proleptic Gregorian calendar (1 January 1 is 1)."""


class NothingToState(Frame, frozen=True, kw_only=True):
    """Why there is no statement now."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]


class StatedReceiptsRequest(Frame, frozen=True, kw_only=True):
    """The receipts of the draft from a number on."""

    first: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]


class StatedReceipts(Frame, frozen=True, kw_only=True):
    """Their ids, by number without gaps; none after the last."""

    ids: Annotated[tuple[Id, ...], Meta(max_length=MAX_STATED_IDS)]


class StatementDifference(Frame, frozen=True, kw_only=True):
    """One thing that the two sides state differently."""

    field: Annotated[str, Meta(pattern=r"\A[a-z_]{1,32}\Z")]
    """Of the Statement; or `receipt`, `line`, `payment`, `set_off`."""
    about: Annotated[str, Meta(max_length=160)]
    """Which, or why."""
    receipt_number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Where it is about a receipt; else 0."""
    client: Annotated[str, Meta(max_length=160)]
    provider: Annotated[str, Meta(max_length=160)]


class StatementDiffers(Frame, frozen=True, kw_only=True):
    """Why the client does not agree to a draft."""

    differences: Annotated[tuple[StatementDifference, ...], Meta(min_length=1, max_length=MAX_DIFFERENCES)]
    is_all: bool
    """False if there are more."""


class DocumentRequest(Frame, frozen=True, kw_only=True):
    """A piece of an invoice's file."""

    channel: Id
    document_sha256: Id
    """As an Invoice of the channel has it."""
    offset: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]


class DocumentPiece(Frame, frozen=True, kw_only=True):
    """Bytes of the file, from the offset that was asked for."""

    name: Annotated[str, Meta(max_length=128)]
    size: Annotated[int, Meta(ge=1, le=MAX_DOCUMENT_BYTES)]
    """Of the whole file."""
    content: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]
