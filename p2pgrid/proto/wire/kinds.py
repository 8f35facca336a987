"""The kinds of the session's messages (docs/spec/session.md, section 2).

Numbers below 128 are control messages; from 128 on they carry bulk bytes and count against the stream's credit.
"""

from __future__ import annotations

from enum import IntEnum


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
