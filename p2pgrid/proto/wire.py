"""What travels on a link between a client and a provider (docs/spec/session.md, section 2).

Every exchange has a stream of its own, which the client opens. Numbers below 128 are control messages; from 128 on
they carry bulk bytes and count against the stream's credit. Payloads are signed records in wire form, or one of the
unsigned MessagePack arrays below; both are refused unless they are canonical.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.fields import Digest, Id, ModelName
from p2pgrid.proto.messages import MAX_BATCH_REQUESTS, Status

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Largest request body."""
MAX_ENGINE_ERROR_BYTES: Final = 64 * 1024
"""Most of an engine's error body (HTTP status other than 200) that is passed on."""
MAX_CARD_BYTES: Final = 20 * 1024
"""Of a Card's record in wire form."""
MAX_CARDS_BYTES: Final = 60 * 1024
"""Of a Cards message."""
MAX_BATCH_RECORDS: Final = 1024
"""Records that one side sends in one exchange when a channel is resumed."""
MAX_OPEN_TICKS: Final = 1024
MAX_CHANNELS: Final = 15
"""Of one pair, in a Channels message: the last ones."""
MAX_NUMBER: Final = 2**53
MAX_COMPARED: Final = 256
"""Disputes and answers, together, that are compared in one exchange."""
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
CHUNK_BYTES: Final = 32 * 1024
"""Bulk bytes are cut to frames of at most this size."""
MAX_FREE: Final = 100_000
"""Slots: the most that an offer may state."""


MAX_REQUEST_BYTES: Final = 16 * 1024
"""Largest body of a request that shares its order with others: it goes in one message."""
RequestIndex = Annotated[int, Meta(ge=0, lt=MAX_BATCH_REQUESTS)]


class Kind(IntEnum):
    """Message kinds of the session."""

    OFFER_REQUEST = 16
    """client -> provider, empty: which offer is in force?"""
    OFFER = 17
    """provider -> client: a signed Offer."""
    CHANNEL_REQUEST = 18
    """client -> provider: ChannelRequest."""
    CHANNEL = 19
    """A Channel: signed by the provider on its way out, by both on its way back."""
    CHANNEL_OPENED = 20
    """provider -> client, empty: the channel is in the provider's ledger."""
    RESUME = 21
    """client -> provider: Resume."""
    RESUMED = 22
    """provider -> client: Resumed, followed by RECORD as often as it says."""
    RECORD = 23
    """Either way: a signed record that the other side lacks."""
    CARD_REQUEST = 24
    """client -> provider, empty: who stands behind this key?"""
    CARDS = 25
    """provider -> client: Cards."""
    RECORDS = 26
    """client -> provider: Records, followed by RECORD as often as it says."""
    PROPOSALS = 27
    """provider -> client: Proposals, followed by RECEIPT as often as it says."""
    CHANNELS_REQUEST = 28
    """client -> provider, empty: which channels have we?"""
    CHANNELS = 29
    """provider -> client: Channels."""
    OFFER_WATCH = 30
    """client -> provider, empty: say here what is on sale, for as long as the stream is open."""
    WITHDRAWAL = 31
    """provider -> client: a signed Withdrawal, in place of OFFER."""
    ORDER = 32
    """client -> provider: OrderOpening; the body follows as BODY, then the client's end of the stream's bulk."""
    REFUSAL = 33
    """provider -> client: Refusal. Nothing else follows."""
    HEAD = 34
    """provider -> client: Head. The answer follows as CHUNK."""
    METER = 35
    """provider -> client: a signed Meter, about all bytes of the answer before it in the stream."""
    VOUCHER = 36
    """client -> provider: a signed Voucher."""
    RECEIPT = 37
    """provider -> client: a Receipt that the provider signed."""
    COUNTERSIGNATURE = 38
    """client -> provider: the same Receipt with both signatures."""
    DISPUTE = 39
    """client -> provider: a signed Dispute of the proposed receipt, in place of its countersignature."""
    CANCEL = 40
    """client -> provider, empty: stop the answer."""
    BATCH = 41
    """client -> provider: BatchOpening. REQUEST follows, as often as the order allows."""
    REQUEST_HEAD = 42
    """provider -> client: RequestHead. The request's answer follows as PART."""
    REQUEST_REFUSED = 43
    """provider -> client: RequestRefused. The order goes on without it."""
    REQUEST_ENDED = 44
    """provider -> client: RequestEnded, where the request's status is another than `completed`."""
    REQUEST_CANCEL = 45
    """client -> provider: RequestCancel: stop one answer."""
    BATCH_CLOSE = 46
    """client -> provider, empty: no more requests come."""
    LOG_REQUEST = 48
    """client -> provider: a path of the provider's log, UTF-8 (docs/spec/log.md, section 5)."""
    LOG_RESPONSE = 49
    """provider -> client: what stands there."""
    WITNESS_REQUEST = 50
    """client -> provider: an add-checkpoint request about any log."""
    WITNESS_RESPONSE = 51
    """provider -> client: LogReply."""
    COSIGNATURE = 52
    """client -> provider: a checkpoint of the provider's log with the client's cosignature."""
    COSIGNATURE_TAKEN = 53
    """provider -> client, empty: it is on record."""
    DISPUTES = 60
    """client -> provider: DisputesHeld."""
    DISPUTES_COMPARED = 61
    """provider -> client: DisputesCompared, followed by RECORD as often as it says."""
    DISPUTES_TAKEN = 62
    """Either way, empty: what came is on record. From the client, RECORD follows for each id of `lacks`."""
    DISPUTES_WATCH = 63
    """client -> provider, empty: say here when there is news, for as long as the stream is open."""
    DISPUTES_NEWS = 64
    """provider -> client: DisputesNews."""
    CAPACITY = 65
    """provider -> client: Capacity."""
    SETTLE = 70
    """client -> provider: SettlementHeld (docs/spec/settlement.md)."""
    SETTLE_COMPARED = 71
    """provider -> client: SettlementCompared, followed by RECORD as often as it says."""
    SETTLE_TAKEN = 72
    """client -> provider, empty: what came was read; RECORD follows for each id of `lacks`. provider -> client, empty:
    that is on record."""
    STATEMENT_REQUEST = 73
    """client -> provider: StatementRequest."""
    STATEMENT_DRAFT = 74
    """provider -> client: StatementDraft."""
    NOTHING_TO_STATE = 75
    """provider -> client: NothingToState, in place of a draft."""
    STATED_RECEIPTS_REQUEST = 76
    """client -> provider: StatedReceiptsRequest. Which receipts are in the draft?"""
    STATED_RECEIPTS = 77
    """provider -> client: StatedReceipts."""
    STATEMENT_DIFFERS = 78
    """client -> provider: StatementDiffers. Nothing else follows."""
    STATEMENT_AGREED = 79
    """client -> provider, empty: the draft is what the client states."""
    STATEMENT = 80
    """A Statement: signed by the provider on its way out, by both on its way back."""
    STATEMENT_TAKEN = 81
    """provider -> client, empty: it is on record with both signatures."""
    DOCUMENT_REQUEST = 82
    """client -> provider: DocumentRequest. Repeated for each piece."""
    DOCUMENT = 83
    """provider -> client: DocumentPiece."""
    SETTLE_WATCH = 84
    """client -> provider, empty: say here when there is news, for as long as the stream is open."""
    SETTLE_NEWS = 85
    """provider -> client: SettlementNews."""
    BODY = 128
    """client -> provider: a piece of the request's body."""
    CHUNK = 129
    """provider -> client: a piece of the answer's bytes, as the engine made them."""
    REQUEST = 130
    """client -> provider: a request's body, whole. The first has the index 0, the next 1, and so on."""
    PART = 131
    """provider -> client: a request's index in one byte, then a piece of its answer's bytes."""


class Frame(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the unsigned payloads."""

    def to_bytes(self) -> bytes:
        """The wire form."""
        return msgspec.msgpack.encode(self)


class ChannelRequest(Frame, frozen=True, kw_only=True):
    """The client asks for a channel under the provider's offer. Its key is known from the link."""

    client_nonce: Id
    offer: Id
    now_ms: Annotated[int, Meta(ge=0)]
    continues: Digest = b""
    """After a change of the provider's key: the head of the channel under its former key; see `Channel.continues`."""


class OpenTick(Frame, frozen=True, kw_only=True):
    """An order without a receipt, and how far it is vouched for."""

    order_number: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    tick: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Of the last voucher; 0 if there is none."""


class Held(Frame, frozen=True, kw_only=True):
    """What a side's ledger holds of a channel."""

    last_order_number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Highest order number that was used. Orders above the provider's never arrived, or are lost to it."""
    last_receipt_number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Of its chain: proposals count on the provider's side, on the client's those that it has signed or disputed."""
    last_receipt: Id
    """That receipt's id; the channel's record id if there is none."""
    open_orders: Annotated[tuple[OpenTick, ...], Meta(max_length=MAX_OPEN_TICKS)]
    """By number; the lowest ones where there are more."""


class Resume(Frame, frozen=True, kw_only=True):
    """The client wants to go on with a channel."""

    channel: Annotated[bytes, Meta(max_length=4096)]
    """The Channel record with both signatures, in wire form."""
    held: Held


class Resumed(Frame, frozen=True, kw_only=True):
    """What the provider holds, and how many records follow that the client lacks."""

    held: Held
    records: Annotated[int, Meta(ge=0, le=MAX_BATCH_RECORDS)]


class Records(Frame, frozen=True, kw_only=True):
    """How many records follow that the provider lacks."""

    records: Annotated[int, Meta(ge=0, le=MAX_BATCH_RECORDS)]
    is_all: bool
    """False if the client holds more: the exchange is then repeated, and no receipt is made before."""


class Proposals(Frame, frozen=True, kw_only=True):
    """How many receipts follow that the client has neither signed nor disputed, in order of their numbers."""

    proposals: Annotated[int, Meta(ge=0, le=MAX_BATCH_RECORDS)]
    is_all: bool
    """False if anything is left: records or proposals. The exchange is then repeated."""


class Channels(Frame, frozen=True, kw_only=True):
    """The channels of the two, oldest first, in wire form and with both signatures."""

    channels: Annotated[tuple[Annotated[bytes, Meta(max_length=4096)], ...], Meta(max_length=MAX_CHANNELS)]


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


class SettlementNews(Frame, frozen=True, kw_only=True):
    """The provider has records of settlement in this channel that the client may lack, or a statement is due."""

    channel: Id


class ModelCapacity(Frame, frozen=True, kw_only=True):
    """What is free of one model right now."""

    model: ModelName
    free: Annotated[int, Meta(ge=0, le=MAX_FREE)]
    """Orders that the provider would take now before it answers `busy`, as it says itself."""


class Capacity(Frame, frozen=True, kw_only=True):
    """The provider's live word beside its offer: unsigned, and true for a moment."""

    sequence: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Of the offer in force; 0 if nothing is on sale."""
    models: Annotated[tuple[ModelCapacity, ...], Meta(max_length=64)]
    """The offer's models, each once, in its order; none if nothing is on sale."""


class Cards(Frame, frozen=True, kw_only=True):
    """The last of an operator's cards, oldest first; none if it has no card."""

    cards: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_CARD_BYTES)], ...], Meta(max_length=64)]
    """Card records in wire form."""


class OrderOpening(Frame, frozen=True, kw_only=True):
    """A signed order, and what the provider needs to check the body that follows."""

    order: Annotated[bytes, Meta(max_length=4096)]
    """The Order record in wire form."""
    commitment_key: Id
    body_bytes: Annotated[int, Meta(ge=2, le=MAX_BODY_BYTES)]


class BatchOpening(Frame, frozen=True, kw_only=True):
    """A signed order of several requests."""

    order: Annotated[bytes, Meta(max_length=4096)]
    """The Order record in wire form."""
    commitment_key: Id
    """What the key of each request is made from."""


class RequestHead(Frame, frozen=True, kw_only=True):
    """The engine's HTTP status and content type for one request of an order."""

    index: RequestIndex
    status: Annotated[int, Meta(ge=100, le=599)]
    content_type: Annotated[str, Meta(max_length=128)]


class RequestRefused(Frame, frozen=True, kw_only=True):
    """No to one request of an order, and why."""

    index: RequestIndex
    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]
    retry_after_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0


class RequestEnded(Frame, frozen=True, kw_only=True):
    """One request of an order is over, and how its line in the receipt will say so."""

    index: RequestIndex
    status: Status


class RequestCancel(Frame, frozen=True, kw_only=True):
    """The client wants no more of one answer."""

    index: RequestIndex


class Refusal(Frame, frozen=True, kw_only=True):
    """No, and why."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]
    retry_after_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0


class Head(Frame, frozen=True, kw_only=True):
    """The engine's HTTP status and content type."""

    status: Annotated[int, Meta(ge=100, le=599)]
    content_type: Annotated[str, Meta(max_length=128)]


class LogCall(Frame, frozen=True, kw_only=True):
    """A request about a log on the libp2p road: a path, or `add-checkpoint` with its body."""

    path: Annotated[str, Meta(max_length=128)]
    body: Annotated[bytes, Meta(max_length=56 * 1024)] = b""


class LogReply(Frame, frozen=True, kw_only=True):
    """An HTTP status and a body: the resource, a witness's answer, or a word on what is wrong."""

    status: Annotated[int, Meta(ge=100, le=599)]
    body: Annotated[bytes, Meta(max_length=56 * 1024)]


F = TypeVar("F", bound=Frame)


def parse_frame(data: bytes, frame_type: type[F]) -> F:
    """Turn a peer's bytes into a frame. Raises ProtocolViolation unless they are its canonical encoding."""
    try:
        frame = msgspec.msgpack.decode(data, type=frame_type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolViolation(f"the peer sent no {frame_type.__name__}: {error}.") from None
    if frame.to_bytes() != data:
        raise ProtocolViolation(f"the peer sent a {frame_type.__name__} that is not canonical.")
    return frame
