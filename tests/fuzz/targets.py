"""Every parser that takes a peer's bytes, by name: what it is fed with, and what it may raise.

One registry for the Hypothesis tests here and for the atheris harness (`scripts/fuzz`). A target runs its parser on
arbitrary bytes, and whatever the parser hands out is used as its caller uses it. Only the errors it lists may escape.
"""

from __future__ import annotations

import datetime
import io
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.audit import audit_files
from p2pgrid.audit.report import verdict_as_json
from p2pgrid.client.answer import _parse_error
from p2pgrid.client.offer_cache import read_cache
from p2pgrid.client.offer_query import parse_query
from p2pgrid.client.offer_store import verify_offer
from p2pgrid.client.openai_api import StreamEditor, without_token_ids
from p2pgrid.client.purchase import purchase_of
from p2pgrid.client.road_memory import read_roads
from p2pgrid.client.wishes import COUNTRY_HEADER, MAX_COST_HEADER, parse_wishes
from p2pgrid.config import parse_config
from p2pgrid.engine.http import parse_health, parse_models
from p2pgrid.errors import (
    EngineError,
    InvalidRecord,
    P2pgridError,
    ProtocolViolation,
    Refused,
    RemoteError,
    UsageError,
)
from p2pgrid.http.message import Request
from p2pgrid.http.reader import ReaderLimits, RequestReader
from p2pgrid.http.response_reader import ResponseReader
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.net import reach_wire, tls
from p2pgrid.net.addresses import (
    parse_announce_address,
    parse_listen_address,
    parse_peer_multiaddr,
    usable_addresses,
)
from p2pgrid.net.bootstrap_peers import parse_bootstrap_peers
from p2pgrid.net.kad_query import Contact, parse_answer
from p2pgrid.net.member_books import parse_member_list
from p2pgrid.net.offer_exchange import OFFER, _read
from p2pgrid.networks.invitation import read_invitation
from p2pgrid.proto import frame
from p2pgrid.proto.acceptance import parse_batch, parse_order, verify_arrived
from p2pgrid.proto.answer import AnswerAssembler
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.card_chain import pack_cards, unpack_cards
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.checkpoint import parse_checkpoint, verify_checkpoint
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.credentials import Credentials, Side, parse_credentials
from p2pgrid.proto.fork import verify_fork
from p2pgrid.proto.frame import encode_frame
from p2pgrid.proto.inclusion import parse_inclusion_proof, parse_log_proof
from p2pgrid.proto.keys import parse_peer_id, parse_public_key
from p2pgrid.proto.link import Link, Phase
from p2pgrid.proto.link_events import Ended, LinkLimits, Message, Opened, Proved, Writable
from p2pgrid.proto.membership import verify_membership
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import ENDPOINTS, Status
from p2pgrid.proto.note import parse_note, parse_note_key, parse_signature_lines
from p2pgrid.proto.peer_id_auth import Challenge, PeerIdAuthClient, PeerIdAuthServer
from p2pgrid.proto.record import (
    MAX_RECORD_BYTES,
    Record,
    Role,
    parse_json_line,
    parse_message,
    parse_record,
    verify_self_signed,
)
from p2pgrid.proto.request import metered_body, parse_request, require_metered
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.tiles import parse_bundle, parse_tile_path
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.well_known import parse_well_known, well_known_of
from p2pgrid.proto.wire.base import Frame, Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest, Channels, Held, OpenTick, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews, HeldDispute
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.log import LogCall, LogReply
from p2pgrid.proto.wire.offers import Capacity, Cards, ModelCapacity
from p2pgrid.proto.wire.orders import (
    BatchOpening,
    Head,
    OrderOpening,
    RequestCancel,
    RequestEnded,
    RequestHead,
    RequestRefused,
)
from p2pgrid.proto.wire.settlement import (
    DocumentPiece,
    DocumentRequest,
    HeldSettled,
    NothingToState,
    SettledPlace,
    SettlementCompared,
    SettlementHeld,
    SettlementNews,
    StatedReceipts,
    StatedReceiptsRequest,
    StatementDifference,
    StatementDiffers,
    StatementDraft,
    StatementRequest,
)
from p2pgrid.proto.withdrawal import verify_withdrawal
from p2pgrid.proto.witness import parse_add_checkpoint
from p2pgrid.settlement.document_facts import MAX_BYTES, DocumentRefused, parse_hostile
from p2pgrid.settlement.issue_book import parse_number
from p2pgrid.settlement.payments.accounts import checked_bic, checked_iban
from p2pgrid.settlement.payments.camt053 import read_camt
from p2pgrid.settlement.payments.manual_rail import ManualRail
from p2pgrid.settlement.payments.matching import match
from p2pgrid.settlement.payments.reference import find_references, parse_reference
from tests import factories
from tests.proto import network_vectors, simulation, vectors
from tests.proto.batch_rig import BatchRig
from tests.proto.simulation import CLIENT, PROVIDER, Grid, answer, make_books
from tests.settlement.payments import makers
from tests.settlement.payments.bank import SHAPES, Bank, Movement

NOW: Final = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
NOW_MS: Final = simulation.NOW_MS
MB: Final = 1_000_000
PEER_ID: Final = PROVIDER.public_key.peer_id


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    run: Callable[[bytes], object]
    allowed: tuple[type[P2pgridError], ...]
    samples: Callable[[], tuple[bytes, ...]]
    """What an honest peer sends."""
    form: str
    """`msgpack`, `json`, `sse`, `frames`, `messages`, `lines`, `toml`, `text` or `raw`: which heavy inputs fit."""
    max_bytes: int = MB
    """The most that the parser looks at; of more it says so at once."""
    is_machine: bool = False
    """True for what is fed message by message: its cost is judged by whether it grows with the bytes alone."""
    is_peers: bool = True
    """False for what the node's owner writes, or its own programs and engine: no limit but that of errors."""

    def accepts(self, data: bytes) -> bool:
        """Run the parser; True if it took the bytes. What is not in `allowed` passes through."""
        try:
            self.run(data)
        except self.allowed:
            return False
        return True


# -- records ----------------------------------------------------------------------------------------------------------


@cache
def _vector_records() -> tuple[Record, ...]:
    return tuple(parse_record(bytes.fromhex(one["wire"])) for one in vectors._records())


def _wire_records() -> tuple[bytes, ...]:
    return tuple(record.to_bytes() for record in _vector_records())


def _json_lines() -> tuple[bytes, ...]:
    return tuple(record.to_json_line() for record in _vector_records())


def _payloads(payload_type: str) -> tuple[bytes, ...]:
    return tuple(record.payload for record in _vector_records() if record.payload_type == payload_type)


def _verify(data: bytes) -> None:
    """As whoever takes a record by its type and signer."""
    record = parse_record(data)
    message_type = MESSAGE_TYPES.get(record.payload_type)
    for signature in record.signatures:
        if message_type is not None:
            verify_self_signed(record, message_type, signature.role)


def _message(payload_type: str, data: bytes) -> None:
    parse_message(Record(payload_type, data, ()), MESSAGE_TYPES[payload_type])


def _order(data: bytes) -> None:
    # What `verify_order` does, in the provider's two steps.
    verify_arrived(parse_order(data), make_books(_grid().channel))


def _channel(data: bytes) -> None:
    verify_channel(parse_record(data), provider=PROVIDER.public_key, client=CLIENT.public_key)


def _offer(data: bytes) -> None:
    verify_offer(data, factories.PROVIDER.public_key.peer_id, factories.NOW_MS)


def _withdrawal(data: bytes) -> None:
    verify_withdrawal(data, factories.PROVIDER.public_key.peer_id, factories.NOW_MS)


# -- frames -----------------------------------------------------------------------------------------------------------


_HELD: Final = Held(
    last_order_number=3,
    last_receipt_number=2,
    last_receipt=bytes(32),
    open_orders=(OpenTick(order_number=3, tick=2),),
)


_HELD_DISPUTE: Final = HeldDispute(receipt_number=3, id=bytes(32))


_PLACE: Final = SettledPlace(rank=3, place=7, id=bytes(32))
_DIFFERENCE: Final = StatementDifference(
    field="payments_cents", about="", receipt_number=0, client="700", provider="500"
)


def _frame_samples(frame_type: type[Frame]) -> tuple[bytes, ...]:
    samples: dict[type[Frame], Frame] = {
        ChannelRequest: ChannelRequest(client_nonce=bytes(32), offer=bytes(32), now_ms=NOW_MS),
        OpenTick: OpenTick(order_number=3, tick=2),
        Held: _HELD,
        Resume: Resume(channel=_wire_records()[1], held=_HELD),
        Resumed: Resumed(held=_HELD, records=1),
        HeldDispute: _HELD_DISPUTE,
        DisputesHeld: DisputesHeld(channel=bytes(32), after=0, until=7, held=(_HELD_DISPUTE,)),
        DisputesCompared: DisputesCompared(until=7, lacks=(bytes(32),), records=1),
        DisputesNews: DisputesNews(channel=bytes(32)),
        SettledPlace: _PLACE,
        HeldSettled: HeldSettled(at=_PLACE, signers=3),
        SettlementHeld: SettlementHeld(
            channel=bytes(32),
            after=SettledPlace(rank=0, place=0, id=b""),
            until=_PLACE,
            held=(HeldSettled(at=_PLACE, signers=1),),
        ),
        SettlementCompared: SettlementCompared(until=_PLACE, lacks=(bytes(32),), records=1),
        SettlementNews: SettlementNews(channel=bytes(32)),
        StatementRequest: StatementRequest(channel=bytes(32), is_wanted=True, until_ms=1, until_day=739_000),
        NothingToState: NothingToState(code="not-due", message="Rytoj."),
        StatementDraft: StatementDraft(statement=_wire_records()[1], first_day=739_000, last_day=739_030),
        StatedReceiptsRequest: StatedReceiptsRequest(first=3),
        StatedReceipts: StatedReceipts(ids=(bytes(32),)),
        StatementDifference: _DIFFERENCE,
        StatementDiffers: StatementDiffers(differences=(_DIFFERENCE,), is_all=True),
        DocumentRequest: DocumentRequest(channel=bytes(32), document_sha256=bytes(32), offset=32_768),
        DocumentPiece: DocumentPiece(name="2027-0001.pdf", size=3, content=b"%PD"),
        Records: Records(records=3, is_all=True),
        Proposals: Proposals(proposals=2, is_all=False),
        Channels: Channels(channels=(_wire_records()[1],)),
        OrderOpening: OrderOpening(order=_wire_records()[2], commitment_key=bytes(32), body_bytes=200),
        Refusal: Refusal(code="busy", message="Labas, pasauli", retry_after_ms=1000),
        BatchOpening: BatchOpening(order=_wire_records()[2], commitment_key=bytes(32)),
        RequestHead: RequestHead(index=15, status=200, content_type="text/event-stream"),
        RequestRefused: RequestRefused(index=0, code="busy", message="Labas", retry_after_ms=1000),
        RequestEnded: RequestEnded(index=3, status=Status.FAILED),
        RequestCancel: RequestCancel(index=3),
        Head: Head(status=200, content_type="text/event-stream"),
        Cards: Cards(cards=(_wire_records()[0], _wire_records()[1])),
        Capacity: Capacity(sequence=7, models=(ModelCapacity(model="m", free=3),)),
        ModelCapacity: ModelCapacity(model="m", free=3),
        LogCall: LogCall(path="checkpoint", body=b"old 0"),
        LogReply: LogReply(status=200, body=b"no such log"),
        reach_wire.ReachRequest: reach_wire.ReachRequest(addresses=("/ip4/0.0.0.0/tcp/4801/tls",)),
        reach_wire.ReachAnswer: reach_wire.ReachAnswer(
            seen="/ip4/192.0.2.7/tcp/4001", now_ms=1, outcomes=(reach_wire.Outcome.REFUSED,)
        ),
        Credentials: Credentials(nonce=bytes(32), credentials=()),
    }
    return (samples[frame_type].to_bytes(),) if frame_type in samples else ()


_LINK_LIMITS: Final = LinkLimits(max_streams=64, max_queued_bytes=MB)
_NONCE: Final = bytes(range(32))


def _listener() -> Link:
    link = Link.listener(PROVIDER.public_key, _NONCE, limits=_LINK_LIMITS, now_ms=0)
    link.data_to_send()
    return link


def _dialler() -> Link:
    return Link.dialler(CLIENT, PROVIDER.public_key, limits=_LINK_LIMITS, now_ms=0)


def _open_pair() -> tuple[Link, Link]:
    dialler = _dialler()
    listener = Link.listener(PROVIDER.public_key, _NONCE, limits=_LINK_LIMITS, now_ms=0)
    list(dialler.receive(listener.data_to_send(), 0))
    list(listener.receive(dialler.data_to_send(), 0))
    listener.accept()
    list(dialler.receive(listener.data_to_send(), 0))
    for _ in range(3):
        dialler.open_stream()
    list(listener.receive(dialler.data_to_send(), 0))
    return dialler, listener


def _drive(link: Link, data: bytes, piece_bytes: int = 4096) -> None:
    """Feed a link in pieces, and do with it what its owners do."""
    for start in range(0, len(data), piece_bytes):
        now_ms = start // 100
        for event in link.receive(data[start : start + piece_bytes], now_ms):
            match event:
                case Message(stream, kind, payload):
                    if kind >= frame.FIRST_CREDITED_KIND:
                        link.consume(stream, len(payload))
                    else:
                        link.send(stream, 16, payload[:100])
                case Opened(stream) if stream % 3 == 0:
                    link.reset(stream, frame.ResetCode.REFUSED, "not now")
                case Ended(stream):
                    link.end(stream)
                case Writable(stream):
                    link.send(stream, 200, bytes(min(link.credit(stream), 10) or 0) or b"x")
                case Proved(_):
                    link.accept()
        if link.phase is Phase.CLOSED:
            return
        link.data_to_send()
        link.tick(now_ms)


def _open_listener(data: bytes) -> None:
    _drive(_open_pair()[1], data)


def _open_dialler(data: bytes) -> None:
    _drive(_open_pair()[0], data)


def _dribbled(data: bytes) -> None:
    _drive(_open_pair()[1], data[:20_000], 1)


def _client_bytes() -> tuple[bytes, ...]:
    """PROOF of a dialler, and CLAIM of one that wants the road for a link that there is."""
    claimant = Link.claimant(CLIENT, PROVIDER.public_key, bytes(32), limits=_LINK_LIMITS, now_ms=0)
    callers = (_dialler(), claimant)
    for caller in callers:
        hello = Link.listener(PROVIDER.public_key, _NONCE, limits=_LINK_LIMITS, now_ms=0).data_to_send()
        list(caller.receive(hello, 0))
    return tuple(caller.data_to_send() for caller in callers)


def _server_bytes() -> tuple[bytes, ...]:
    listener = Link.listener(PROVIDER.public_key, _NONCE, limits=_LINK_LIMITS, now_ms=0)
    hello = listener.data_to_send()
    return (hello, hello + encode_frame(0, frame.Kind.READY))


def _link_frames(first: int) -> tuple[bytes, ...]:
    """What comes on an open link; the sender's streams begin at `first`."""
    kind = frame.Kind
    conversation = [
        encode_frame(first, kind.OPEN),
        encode_frame(first, 32, _wire_records()[2]),
        encode_frame(first, 128, b"x" * 500),
        encode_frame(first, kind.CREDIT, frame.encode_credit(1)),
        encode_frame(first, kind.END),
        encode_frame(0, kind.PING, frame.encode_ping(7)),
        encode_frame(first, kind.RESET, frame.encode_reason(0, "no more")),
        encode_frame(0, kind.MOVE, bytes(32)),
        encode_frame(0, kind.GOAWAY, frame.encode_reason(0, "bye")),
    ]
    opens = b"".join(encode_frame(first + 2 * i, kind.OPEN) for i in range(20))
    return (b"".join(conversation), opens, opens + b"".join(conversation[1:]))


# -- answers ----------------------------------------------------------------------------------------------------------


def _streams() -> tuple[bytes, ...]:
    tool_call = simulation.sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "choices": [
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]},
                    "logprobs": {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]},
                    "token_ids": [5],
                    "finish_reason": None,
                }
            ],
        }
    )
    completion = simulation.sse({"id": "c", "choices": [{"index": 0, "text": "a", "prompt_token_ids": [1, 2]}]})
    whole = b"".join(answer(10, [1, 2, 3], cached=4))
    return (
        whole,
        whole.replace(b"\n\n", b"\r\n\r\n"),
        whole[: len(whole) // 2] + tool_call * 2,
        completion + simulation.sse({"error": {"message": "no", "code": 400}}),
        b": ping\n\ndata: x\ndata: y\n\n",
    )


def _count(data: bytes) -> None:
    splitter, counter = EventSplitter(), TokenCounter()
    for start in range(0, len(data), 32_768):
        for event in splitter.feed(data[start : start + 32_768]):
            counter.feed(event)
            _ = (counter.prompt_tokens, counter.cached_tokens, counter.finish_reason)
    _ = (counter.is_whole, counter.finish_reasons)


def _count_event(data: bytes) -> None:
    TokenCounter(2).feed(data)


def _assemble(data: bytes) -> None:
    splitter, assembler = EventSplitter(), AnswerAssembler()
    for event in splitter.feed(data):
        assembler.feed(event)
    msgspec.json.encode(without_token_ids(assembler.answer()))
    assembler.to_json()


def _edit(data: bytes) -> None:
    for wants_usage in (True, False):
        editor = StreamEditor(wants_usage=wants_usage)
        for start in range(0, len(data), 32_768):
            editor.feed(data[start : start + 32_768])
        editor.finish({"cost_pico": 1})


# -- the session's machines -------------------------------------------------------------------------------------------


@cache
def _grid() -> Grid:
    return Grid(window=16)


def _messages_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A kind (1 byte), a length (3 bytes) and a payload, again and again."""
    at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 4])
        yield data[at], data[at + 4 : at + 4 + length]
        at += 4 + length


def _as_messages(messages: list[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([kind]) + len(payload).to_bytes(3) + payload for kind, payload in messages)


def _buyer(data: bytes) -> None:
    """An order that waits, and what a provider sends it. Nothing may be raised."""
    grid = Grid(window=16)
    lane = grid.ordered(simulation.script([]))
    for kind, payload in _messages_of(data):
        lane.buyer.message(kind, payload, NOW_MS)
        if not lane.buyer.is_open:
            return


def _seller(data: bytes) -> None:
    """An order whose window is full, and what a client sends it."""
    grid = Grid(window=16)
    lane = grid.ordered(simulation.script([]))
    assert lane.seller is not None
    lane.seller.engine_head(200, "text/event-stream")
    lane.seller.engine_bytes(b"".join(answer(10, [1] * 40)), NOW_MS)
    for kind, payload in _messages_of(data):
        lane.seller.message(kind, payload, NOW_MS)


def _engine(data: bytes) -> None:
    """An order, and what an engine answers to it. Nothing may be raised."""
    grid = Grid(window=16)
    lane = grid.ordered(simulation.script([]))
    assert lane.seller is not None
    lane.seller.engine_head(200, "text/event-stream")
    for start in range(0, len(data), 65_536):
        lane.seller.engine_bytes(data[start : start + 65_536], NOW_MS)
    lane.seller.engine_end(NOW_MS)


@cache
def _exchanged() -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """All that one sale sends to the client, and to the provider."""
    to_client: list[tuple[int, bytes]] = []
    to_provider: list[tuple[int, bytes]] = []
    grid = Grid(window=16)

    def tap(into: list[tuple[int, bytes]], kind: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        into.append((int(kind), payload))
        yield kind, payload

    grid.tamper_provider, grid.tamper_client = partial(tap, to_client), partial(tap, to_provider)
    grid.ordered(simulation.script(answer(10, [1] * 40)))
    grid.settle()
    return to_client, to_provider


def _to_client() -> tuple[bytes, ...]:
    messages = _exchanged()[0]
    refusal = Refusal(code="busy", message="no").to_bytes()
    return (_as_messages(messages), _as_messages(messages[:3]), _as_messages([(Kind.REFUSAL, refusal)]))


def _to_provider() -> tuple[bytes, ...]:
    messages = [one for one in _exchanged()[1] if one[0] != Kind.ORDER]
    return (
        _as_messages(messages),
        _as_messages([(Kind.CANCEL, b"")]),
        _as_messages([*messages[:2], (Kind.DISPUTE, _wire_records()[2])]),
    )


def _order_openings() -> tuple[bytes, ...]:
    return tuple(payload for kind, payload in _exchanged()[1] if kind == Kind.ORDER)


# -- batch orders -----------------------------------------------------------------------------------------------------


def _batch_rig(*, asked: int) -> BatchRig:
    """A batch order that the provider has taken, with requests that wait for their answers."""
    rig = BatchRig()
    for _ in range(asked):
        rig.ask()
    while rig.to_provider:
        rig.tell_provider(*rig.to_provider.popleft())
    return rig


@cache
def _exchanged_batch() -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """All that a batch order of three requests, one of which fails, sends to the client, and to the provider."""
    rig = BatchRig()
    to_client: list[tuple[int, bytes]] = []
    to_provider: list[tuple[int, bytes]] = []

    def settle() -> None:
        while rig.to_client or rig.to_provider:
            to_provider.extend(rig.to_provider)
            while rig.to_provider:
                rig.tell_provider(*rig.to_provider.popleft())
            to_client.extend(rig.to_client)
            while rig.to_client:
                rig.tell_client(*rig.to_client.popleft())

    for _ in range(3):
        rig.ask()
    settle()
    for index in range(3):
        rig.head(index)
        rig.engine(index, *answer(10, [1] * 8))
        settle()
        (rig.fails if index == 1 else rig.ends)(index)
    rig.close()
    settle()
    assert rig.receipt.requests
    return to_client, to_provider


def _batch(data: bytes) -> None:
    rig = BatchRig()
    verify_arrived(parse_batch(data), rig.sold)


def _batch_buyer(data: bytes) -> None:
    """Three requests that wait, and what a provider sends to them. Nothing may be raised."""
    rig = _batch_rig(asked=3)
    for kind, payload in _messages_of(data):
        rig.tell_client(kind, payload)
        if not rig.buyer.is_open:
            return


def _batch_seller(data: bytes) -> None:
    """A batch order with an answer under way, and what a client sends to it."""
    rig = _batch_rig(asked=1)
    rig.head(0)
    rig.engine(0, *answer(10, [1] * 8))
    for kind, payload in _messages_of(data):
        rig.tell_provider(kind, payload)


def _batch_to_client() -> tuple[bytes, ...]:
    messages = _exchanged_batch()[0]
    refused = RequestRefused(index=0, code="busy", message="no").to_bytes()
    return (_as_messages(messages), _as_messages(messages[:4]), _as_messages([(Kind.REQUEST_REFUSED, refused)]))


def _batch_to_provider() -> tuple[bytes, ...]:
    later = [one for one in _exchanged_batch()[1] if one[0] != Kind.BATCH][1:]
    cancel = RequestCancel(index=0).to_bytes()
    return (_as_messages(later), _as_messages([(Kind.REQUEST_CANCEL, cancel), (Kind.BATCH_CLOSE, b"")]))


def _batch_openings() -> tuple[bytes, ...]:
    return tuple(payload for kind, payload in _exchanged_batch()[1] if kind == Kind.BATCH)


# -- requests ---------------------------------------------------------------------------------------------------------


def _bodies() -> tuple[bytes, ...]:
    return (
        metered_body({"model": "m", "messages": [{"role": "user", "content": "Labas"}], "max_tokens": 7}),
        b'{"model":"m","prompt":["a","b",[1,2]],"n":2,"best_of":3,"stream_options":null}',
        b'{"model":"m","chat_template":"{{x}}","max_completion_tokens":1000000}',
    )


def _request(data: bytes) -> None:
    for endpoint in (*ENDPOINTS, "/v1/embeddings"):
        try:
            fields = parse_request(endpoint, data)
        except Refused:
            continue
        require_metered(fields)


def _gateway(data: bytes) -> None:
    """As the gateway does with a program's body."""
    purchase_of(ENDPOINTS[0], data)


def _http(data: bytes) -> None:
    """As a connection does with what a program sends; every request is looked at as the gateway does."""
    reader = RequestReader(ReaderLimits(), lambda request: None)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        for request in reader.feed(piece):
            if isinstance(request, Request):
                parse_wishes(request.headers)


def _http_answer(data: bytes) -> None:
    """As a client does with what a provider's pages send."""
    reader = ResponseReader(MB)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        reader.feed(piece)
    reader.end()


def _http_answers() -> tuple[bytes, ...]:
    return (
        b"HTTP/1.1 200 OK\r\nServer: p2pgrid\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nto the end",
    )


def _peer_id_auth(text: str) -> None:
    """As either side does with the other's header."""
    auth = PeerIdAuthServer(PROVIDER, bytes(32))
    auth.judge(text, "example.com", 1, bytes(32))
    client = PeerIdAuthClient(CLIENT, "example.com", bytes(32))
    auth.judge(client.reply(text), "example.com", 1, bytes(32))


def _auth_headers() -> tuple[bytes, ...]:
    auth, client = PeerIdAuthServer(PROVIDER, bytes(32)), PeerIdAuthClient(CLIENT, "example.com", bytes(32))
    asked = auth.judge(client.opening(), "example.com", 1, bytes(32))
    reply = client.reply(asked.header) if isinstance(asked, Challenge) else ""
    named = auth.judge(reply, "example.com", 1, bytes(32))
    return tuple(header.encode() for header in (client.opening(), asked.header, reply, named.header))


def _http_requests() -> tuple[bytes, ...]:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8480\r\nContent-Type: application/json\r\n"
    body = _bodies()[0]
    return (
        b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body),
        b"%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body),
        head + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://localhost/v1/models?a=%20 HTTP/1.0\r\nConnection: keep-alive\r\nExpect: x\r\n\r\n",
    )


def _wishes(data: bytes) -> None:
    country, _, budget = _text(data).partition("\n")
    parse_wishes({COUNTRY_HEADER: country, MAX_COST_HEADER: budget})


# -- the network ------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _from_text(parse: Callable[[str], object], data: bytes) -> None:
    parse(_text(data))


def _usable(data: bytes) -> None:
    usable_addresses([data, *data.split(b"\n")], PEER_ID)
    usable_addresses(_text(data).split("\n"), PEER_ID)


def _addresses() -> tuple[bytes, ...]:
    return (
        b"/ip4/192.0.2.7/tcp/4001",
        b"/ip6/2001:db8::1/tcp/4001",
        b"/dns4/compute.example/tcp/4001",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER_ID}".encode(),
    )


def _binary_addresses() -> tuple[bytes, ...]:
    return tuple(Multiaddr(address.decode()).to_bytes() for address in _addresses())


@cache
def _certificates() -> tuple[bytes, ...]:
    return (tls.make_certificate(PROVIDER, NOW)[0].public_bytes(Encoding.DER),)


_SERVER: Final = Contact(ID.from_base58(PEER_ID), ())
_KAD: Final = KadMessage.MessageType.GET_PROVIDERS


def _kad_answers() -> tuple[bytes, ...]:
    message = KadMessage()
    message.type = _KAD
    for peers in (message.closerPeers, message.providerPeers):
        peer = peers.add()
        peer.id = ID.from_base58(CLIENT.public_key.peer_id).to_bytes()
        peer.addrs.extend(_binary_addresses())
    return (message.SerializeToString(),)


class _Pieces:
    """A libp2p stream that hands out bytes, never blocks, and ends, on a connection that goes on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.muxed_conn = SimpleNamespace(event_shutting_down=trio.Event())

    async def read(self, size: int) -> bytes:
        if not self._data:
            raise StreamEOF("the end")
        piece, self._data = self._data[: min(size, 1000)], self._data[min(size, 1000) :]
        return piece


def _finished(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


def _fetched_offer(data: bytes) -> None:
    _offer(_finished(_read(_Pieces(data), OFFER, PEER_ID)))


def _sent_offers() -> tuple[bytes, ...]:
    offer = factories.make_offer().record.to_bytes()
    return (len(offer).to_bytes(4) + offer, bytes(4))


def _bootstrap(data: bytes) -> None:
    for peer in parse_bootstrap_peers(data, "peers.toml", "main"):
        parse_peer_multiaddr(peer)


def _bootstrap_lists() -> tuple[bytes, ...]:
    return (f'# ours\n[networks.main]\npeers = ["/ip4/192.0.2.7/tcp/4001/p2p/{PEER_ID}"]\n[networks.b]\n'.encode(),)


# -- files ------------------------------------------------------------------------------------------------------------


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="p2pgrid-fuzz-"))


def _as_file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


def _bundle_lines(data: bytes) -> None:
    for _ in read_bundle(_as_file("lines.jsonl", data)):
        pass


def _audited(data: bytes) -> None:
    verdict = audit_files([_as_file("provider.jsonl", data)])
    msgspec.json.encode(verdict_as_json(verdict))


def _audited_records(data: bytes) -> None:
    """Without a file: whatever lines there are."""
    entries: list[tuple[int, Record | InvalidRecord]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            entries.append((number, parse_json_line(line)))
        except InvalidRecord as error:
            entries.append((number, error))
    audit_records([Bundle("a", entries, Role.PROVIDER), Bundle("b", entries[::2], None)])


@cache
def _bundles() -> tuple[bytes, ...]:
    session = vectors._session()
    return tuple("\n".join(session[side]).encode() + b"\n" for side in ("provider", "client"))


def _cache_file(data: bytes) -> None:
    read_cache(_as_file("offers.json", data))


def _caches() -> tuple[bytes, ...]:
    return (b'{"version":1,"offers":[{"peer_id":"12D3KooW","addresses":["/ip4/1.2.3.4/tcp/1"],"record":"AAAA"}]}',)


def _roads_file(data: bytes) -> None:
    read_roads(_as_file("roads.json", data))


def _roads() -> tuple[bytes, ...]:
    return (b'{"version":1,"roads":[{"peer_id":"12D3KooW","road":"libp2p","worked_ms":1780000000000}]}',)


def _config(data: bytes) -> None:
    parse_config(data[:10_000].decode("utf-8", "replace"), "config.toml")


# -- bank files -------------------------------------------------------------------------------------------------------


_INVOICE: Final = makers.invoice("LT-2026-000001", 1_240, debtor_ibans=(makers.ALICE,))


def _camt(data: bytes) -> None:
    """As a bank's file is imported: what was read is matched."""
    match(read_camt(io.BytesIO(data), "file").entries, [_INVOICE])


def _camt_files() -> tuple[bytes, ...]:
    movements = [
        Movement(cents=1_240, end_to_end_id=_INVOICE.reference, text="LT-2026-000001"),
        Movement(cents=-1_240, end_to_end_id=_INVOICE.reference, is_reversal=True, reason="AC04"),
        Movement(cents=5, structured="RF18539007547034", status="PDNG"),
    ]
    return tuple(Bank(shape=shape).write(movements) for shape in SHAPES)


def _manual(data: bytes) -> None:
    match(ManualRail().read(io.BytesIO(data), "file").entries, [_INVOICE])


def _manual_lists() -> tuple[bytes, ...]:
    head = "date;amount;currency;account;name;iban;reference;text"
    line = f"2026-11-02;12.40;EUR;{makers.OURS};Alice;{makers.ALICE};{_INVOICE.reference};Invoice 1"
    return (f"{head}\n{line}\n".encode(), f'{head};bank_reference\n{line};"B;1"\n'.encode())


def _mangled_reference(text: str) -> None:
    find_references(text)
    parse_reference(text)


def _account(text: str) -> None:
    for checked in (checked_iban, checked_bic):
        try:
            checked(text)
            return
        except UsageError as error:
            refused = error
    raise refused


def _invoice_documents() -> tuple[bytes, ...]:
    ubl = "urn:oasis:names:specification:ubl:schema:xsd:Invoice-2"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Invoice xmlns="{ubl}"><ID>LT-2026-000001</ID></Invoice>'.encode(),
    )


def _bank_targets() -> Iterator[Target]:
    """What banks and payers write, brought by the node's owner."""
    usage: tuple[type[P2pgridError], ...] = (UsageError,)
    references = lambda: (_INVOICE.reference.encode(), b"EREF+" + _INVOICE.reference.lower().encode())  # noqa: E731
    yield Target("camt", _camt, usage, _camt_files, "text", is_peers=False)
    yield Target("manual-entries", _manual, usage, _manual_lists, "text", is_peers=False)
    yield Target(
        "payment-reference", partial(_from_text, _mangled_reference), usage, references, "text", is_peers=False
    )
    accounts = lambda: (makers.ALICE.encode(), b"COBADEFFXXX")  # noqa: E731
    yield Target("bank-account", partial(_from_text, _account), usage, accounts, "text", is_peers=False)
    numbers = lambda: (b"LT-2026-000001",)  # noqa: E731
    yield Target("invoice-number", partial(_from_text, parse_number), usage, numbers, "text", is_peers=False)
    yield Target("invoice-document", parse_hostile, (DocumentRefused,), _invoice_documents, "text", MAX_BYTES)


# -- the registry -----------------------------------------------------------------------------------------------------


@cache
def _log_vectors() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((vectors.FOLDER / "log.json").read_bytes())
    return found


def _log_samples(*names: str) -> tuple[bytes, ...]:
    return tuple(str(_log_vectors()[name]).encode() for name in names)


def _signature_lines() -> tuple[bytes, ...]:
    return tuple(note.split(b"\n\n", 1)[1] for note in _log_samples("checkpoint_of_11", "cosigned_checkpoint"))


def _note_text(data: bytes) -> None:
    parse_checkpoint(_text(data))


def _log_targets() -> Iterator[Target]:
    """What a log, a witness and a domain send."""
    refused: tuple[type[P2pgridError], ...] = (InvalidRecord, ProtocolViolation)
    notes = partial(_log_samples, "checkpoint_of_6", "checkpoint_of_11", "cosigned_checkpoint")
    texts = lambda: tuple(note.split(b"\n\n", 1)[0] + b"\n" for note in notes())  # noqa: E731
    yield Target("note", parse_note, refused, notes, "text")
    yield Target("note-signatures", partial(_from_text, parse_signature_lines), refused, _signature_lines, "text")
    yield Target("note-key", partial(_from_text, parse_note_key), refused, partial(_log_samples, "vkey"), "text")
    yield Target("checkpoint-text", _note_text, refused, texts, "text")
    yield Target("checkpoint", verify_checkpoint, refused, notes, "text")
    yield Target("log-proof", parse_log_proof, refused, partial(_log_samples, "tlog_proof"), "text")
    yield Target(
        "inclusion-proof",
        parse_inclusion_proof,
        refused,
        lambda: (bytes.fromhex(_log_vectors()["inclusion_proof"]),),
        "msgpack",
    )
    yield Target("add-checkpoint", parse_add_checkpoint, refused, partial(_log_samples, "add_checkpoint"), "text")
    yield Target("fork-proof", verify_fork, refused, partial(_log_samples, "fork_proof", "fork_in_one_size"), "json")
    paths = lambda: tuple(path.encode() for path in _log_vectors()["tile_paths"])  # noqa: E731
    yield Target("tile-path", partial(_from_text, parse_tile_path), refused, paths, "text")
    yield Target(
        "entry-bundle", parse_bundle, refused, lambda: (b"\x00\x20" + bytes(32) + b"\x00\x20" + bytes(32),), "raw"
    )
    cards = lambda: (pack_cards((factories.make_card(),)),)  # noqa: E731
    yield Target("cards", unpack_cards, refused, cards, "msgpack")
    card = factories.make_card()
    well_known = lambda: (msgspec.json.encode(well_known_of((card,), NOW_MS)),)  # noqa: E731
    yield Target("well-known", parse_well_known, refused, well_known, "json")


def _network_targets() -> Iterator[Target]:
    """What peers say of their membership in closed networks, and the files of their owners."""
    lab, member = network_vectors.group(), network_vectors.CALLER.public_key
    credentials = lambda: (network_vectors.caller_credentials(), network_vectors.caller_credentials(16))  # noqa: E731
    wires = network_vectors.membership_wires().values()
    memberships = lambda: tuple(one for one in wires if len(one) <= 512)  # noqa: E731
    yield Target(
        "member-credentials",
        lambda data: parse_credentials(data, Side.CALLER),
        (ProtocolViolation,),
        credentials,
        "msgpack",
        16_384,
    )
    yield Target(
        "membership",
        lambda data: verify_membership(data, lab, member, network_vectors.NOW_MS),
        (InvalidRecord,),
        memberships,
        "msgpack",
        512,
    )
    yield Target(
        "invitation",
        lambda data: read_invitation(data[:10_000], "file"),
        (UsageError,),
        network_vectors.invitations,
        "toml",
        is_peers=False,
    )
    yield Target(
        "member-list",
        lambda data: parse_member_list(data.decode("utf-8", "replace"), "file"),
        (UsageError,),
        lambda: (b"# ours\n" + PEER_ID.encode() + b"\n",),
        "text",
        is_peers=False,
    )


def _targets() -> Iterator[Target]:
    record, violation = (InvalidRecord,), (ProtocolViolation,)
    yield Target("record", parse_record, record, _wire_records, "msgpack", MAX_RECORD_BYTES)
    yield Target("record-verified", _verify, record, _wire_records, "msgpack", MAX_RECORD_BYTES)
    yield Target("json-line", parse_json_line, record, _json_lines, "json", 2 * MAX_RECORD_BYTES)
    for payload_type, message_type in MESSAGE_TYPES.items():
        name = f"message-{message_type.__name__.lower()}"
        samples, size = partial(_payloads, payload_type), message_type.max_payload_bytes
        yield Target(name, partial(_message, payload_type), record, samples, "msgpack", size)
    for frame_type in Frame.__subclasses__():
        parse = partial(parse_frame, frame_type=frame_type)
        samples = partial(_frame_samples, frame_type)
        yield Target(
            f"frame-{frame_type.__name__.lower()}", parse, violation, samples, "msgpack", frame.MAX_PAYLOAD_BYTES
        )
    order = (InvalidRecord, ProtocolViolation, Refused)
    yield from _network_targets()
    yield from _bank_targets()
    yield from _log_targets()
    yield Target("order", _order, order, _order_openings, "msgpack", frame.MAX_PAYLOAD_BYTES)
    yield Target("batch", _batch, order, _batch_openings, "msgpack", frame.MAX_PAYLOAD_BYTES)
    yield Target("batch-buyer", _batch_buyer, (), _batch_to_client, "messages", is_machine=True)
    yield Target("batch-seller", _batch_seller, order, _batch_to_provider, "messages", is_machine=True)
    yield Target("channel", _channel, record, _wire_records, "msgpack", frame.MAX_PAYLOAD_BYTES)
    yield Target("offer", _offer, record, lambda: (factories.make_offer().record.to_bytes(),), "msgpack")
    withdrawals = lambda: (factories.make_withdrawal().record.to_bytes(),)  # noqa: E731
    yield Target("withdrawal", _withdrawal, record, withdrawals, "msgpack")
    queries = lambda: (b"/v1/models?country=LT&max_price_output=0.5&min_context=4096&free=1&sort=free",)  # noqa: E731
    yield Target("models-query", partial(_from_text, parse_query), (Refused,), queries, "text")
    remote = (RemoteError,)
    yield Target("link-listener", lambda d: _drive(_listener(), d), remote, _client_bytes, "frames", is_machine=True)
    yield Target("link-dialler", lambda d: _drive(_dialler(), d), remote, _server_bytes, "frames", is_machine=True)
    yield Target("link-from-client", _open_listener, remote, partial(_link_frames, 7), "frames", is_machine=True)
    yield Target("link-from-provider", _open_dialler, remote, partial(_link_frames, 2), "frames", is_machine=True)
    yield Target("link-dribbled", _dribbled, remote, partial(_link_frames, 7), "frames", 20_000, is_machine=True)
    yield Target("answer-counted", _count, violation, _streams, "sse")
    yield Target("answer-event", _count_event, violation, lambda: tuple(answer(10, [1, 2])), "sse")
    yield Target("answer-merged", _assemble, violation, _streams, "sse")
    yield Target("answer-edited", _edit, violation, _streams, "sse")
    yield Target(
        "engine-error", _parse_error, (), lambda: (b'{"error":{"message":"no","code":400}}',), "json", 64 * 1024
    )
    yield Target("buyer", _buyer, (), _to_client, "messages", is_machine=True)
    yield Target("seller", _seller, (InvalidRecord, ProtocolViolation), _to_provider, "messages", is_machine=True)
    yield Target("engine", _engine, (), _streams, "sse", is_machine=True)
    yield Target("request", _request, (Refused,), _bodies, "json")
    yield Target("gateway-body", _gateway, (Refused,), _bodies, "json", is_peers=False)
    yield Target("http-requests", _http, (Refused,), _http_requests, "raw", is_peers=False)
    yield Target("http-answer", _http_answer, (ProtocolViolation,), _http_answers, "raw")
    yield Target("peer-id-auth", partial(_from_text, _peer_id_auth), (ProtocolViolation,), _auth_headers, "text")
    yield Target("gateway-wishes", _wishes, (Refused,), lambda: (b"LT,DE\n0.05",), "text", is_peers=False)
    yield Target("public-key", parse_public_key, record, lambda: (PROVIDER.public_key.raw,), "raw")
    yield Target("peer-id", partial(_from_text, parse_peer_id), record, lambda: (PEER_ID.encode(),), "text")
    yield Target("certificate", lambda d: tls.verify_certificate(d, NOW), violation, _certificates, "raw")
    for name, parse in (
        ("listen-address", parse_listen_address),
        ("announce-address", parse_announce_address),
        ("peer-address", parse_peer_multiaddr),
    ):
        yield Target(name, partial(_from_text, parse), (UsageError,), _addresses, "text")
    yield Target("addresses-of-peer", _usable, (), lambda: _addresses() + _binary_addresses(), "text")
    for name, parse in (("reach-address", reach_wire.parse_target), ("reach-seen", reach_wire.parse_seen)):
        yield Target(name, partial(_from_text, parse), (), _addresses, "text")
    yield Target("offer-exchange", _fetched_offer, (InvalidRecord, ProtocolViolation, Refused), _sent_offers, "raw")
    kad = partial(parse_answer, kind=_KAD, server=_SERVER)
    yield Target("kad-answer", kad, violation, _kad_answers, "raw", 256 * 1024)
    yield Target("bootstrap-list", _bootstrap, (UsageError,), _bootstrap_lists, "toml")
    yield Target(
        "config",
        _config,
        (UsageError,),
        lambda: (b'[client]\nlisten = "127.0.0.1:1"\n',),
        "toml",
        10_000,
        is_peers=False,
    )
    yield Target("bundle", _bundle_lines, (UsageError,), _bundles, "lines", is_machine=True)
    yield Target("audit-files", _audited, (UsageError,), _bundles, "lines")
    yield Target("audit-records", _audited_records, (), _bundles, "lines")
    yield Target("offer-cache", _cache_file, (), _caches, "json", is_peers=False)
    yield Target("remembered-roads", _roads_file, (), _roads, "json", is_peers=False)
    yield Target(
        "engine-models", partial(parse_models, url="u"), (EngineError,), lambda: (b'{"data":[{"id":"m"}]}',), "json"
    )
    metrics = b'vllm:num_requests_running{model="m"} 1.0\nvllm:kv_cache_usage_perc{a="b"} 0.5\n'
    yield Target("engine-metrics", parse_health, (), lambda: (metrics,), "text", is_peers=False)


TARGETS: Final[dict[str, Target]] = {target.name: target for target in _targets()}
"""Every target by its name."""
