"""Pages for one peer alone: its own channels here, and their records. Whoever asks has to prove who it is.

Over libp2p Noise has proven it. On a port it is HTTP Peer ID Auth (`proto/peer_id_auth.py`), by which the node proves
its own key too. What others have with this node, or that they have anything, nobody learns.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from p2pgrid.errors import InvalidRecord, LedgerError
from p2pgrid.http.message import Request, Response
from p2pgrid.http.reply import Reply
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.peer_id_auth import SCHEME, Challenge, PeerIdAuthServer
from p2pgrid.proto.record import Record, Signed
from p2pgrid.provider.page_answers import answer_json, failure

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider

AUTH_PROTOCOL: Final = "/http-peer-id-auth/1.0.0"
RECEIPTS: Final = "/receipts"
MAX_LISTED: Final = 256
"""Channels, the newest."""
AT_ONCE: Final = 4
"""Channels whose records are being sent, one for each peer."""
_PIECE_RECORDS: Final = 64
_MAX_HOST_CHARS: Final = 253
_PRIVATE: Final = {"Cache-Control": "no-store", "Vary": "Authorization"}


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and what the answer must carry to prove who answers."""

    key: PublicKey
    headers: dict[str, str] = field(default_factory=dict)


class NamedPages:
    """`/receipts` and `/receipts/<channel>`."""

    def __init__(self, node: Provider, is_own_host: Callable[[str, Request], bool]) -> None:
        self._node = node
        self._is_own_host = is_own_host
        self._auth = PeerIdAuthServer(node.key, secrets.token_bytes(32))
        self._sending: set[bytes] = set()
        """Whose records are being sent."""

    def has(self, path: str) -> bool:
        """True for a path that is answered here."""
        return path == RECEIPTS or path.startswith(f"{RECEIPTS}/")

    def answer(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response | None]:
        """Answer a request for such a path."""
        asker = self.name(request, must=True)
        if isinstance(asker, Response):
            return asker
        assert asker is not None
        if request.path == RECEIPTS:
            return self._list(asker)
        return self._records(request, reply, asker)

    def name(self, request: Request, *, must: bool = False) -> Asker | Response | None:
        """Who asks; None for somebody who does not say, unless it `must`; or the answer that asks for it."""
        authorization = request.headers.get("Authorization")
        if authorization is None and request.source.peer_id:
            try:
                return Asker(parse_peer_id(request.source.peer_id))
            except InvalidRecord as error:
                return failure(403, error.message) if must else None
        if not must and not (authorization or "").startswith(SCHEME):
            return None
        host = _name_of(request.host)
        if len(host) > _MAX_HOST_CHARS or not self._is_own_host(host, request):
            # A signature for a name that is not ours could be used by whoever has that name.
            return failure(421, "this node does not go by that host name, so nobody can say who they are under it")
        judged = self._auth.judge(authorization, host, int(time.monotonic() * 1000), secrets.token_bytes(32))
        if isinstance(judged, Challenge):
            text = "say who you are: https://github.com/libp2p/specs/blob/master/http/peer-id-auth.md"
            return failure(401, text, {"WWW-Authenticate": judged.header, **_PRIVATE})
        return Asker(judged.key, {"Authentication-Info": judged.header} if judged.header else {})

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _list(self, asker: Asker) -> Response:
        headers = {**_PRIVATE, **asker.headers}
        channels = self._node.channels.channels_of(asker.key)[-MAX_LISTED:]
        try:
            listed = await asyncio.to_thread(lambda: [self._row(channel) for channel in channels])
        except LedgerError:
            return failure(503, "the ledger cannot be read now", headers)
        content = {"provider": self._node.peer_id, "client": asker.key.peer_id, "channels": listed}
        return answer_json(content, headers=headers)

    def _row(self, channel: Signed[Channel]) -> dict[str, Any]:
        message = channel.message
        head = self._node.ledger.head(message.channel)
        return {
            "channel": message.channel.hex(),
            "opened_ms": message.opened_ms,
            "receipts": head.last_receipt_number,
            "countersigned": head.countersigned,
            "total_pico_eur": head.total_pico,
            "records": f"{RECEIPTS}/{message.channel.hex()}",
        }

    async def _records(self, request: Request, reply: Reply, asker: Asker) -> Response | None:
        """The channel's records, a line each, as `p2pgrid receipts export` writes them."""
        headers = {**_PRIVATE, **asker.headers}
        wanted = request.path.removeprefix(f"{RECEIPTS}/")
        channels = {one.message.channel.hex(): one for one in self._node.channels.channels_of(asker.key)}
        channel = channels.get(wanted)
        if channel is None:
            return failure(404, "you have no such channel here", headers)
        if request.method == "HEAD":
            return Response(content_type="application/jsonl", headers=headers)
        if len(self._sending) >= AT_ONCE or asker.key.raw in self._sending:
            return failure(503, "too many records are being sent just now", {"Retry-After": "5", **headers})
        self._sending.add(asker.key.raw)
        records = _Lines(self._node.ledger.records(channel=channel.message.channel))
        try:
            piece = await asyncio.to_thread(records.some)
            reply.begin(200, {"Content-Type": "application/jsonl", **headers})
            while piece and not reply.is_ended:
                reply.write(piece)
                await _taken(reply)
                piece = await asyncio.to_thread(records.some)
            reply.end()
        except LedgerError:
            return failure(
                503, "the ledger cannot be read now", headers
            )  # unseen, where the answer has begun: it is cut
        finally:
            self._sending.discard(asker.key.raw)
            asyncio.get_running_loop().run_in_executor(None, records.close)
        return None


class _Lines:
    """Records as lines, read in threads: where the reading is cancelled, a thread may still be at it."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self._turn = threading.Lock()

    def some(self) -> bytes:
        """The next ones; empty after the last. Raises LedgerError."""
        with self._turn:
            some = itertools.islice(self._records, _PIECE_RECORDS)
            return b"".join(record.to_json_line() + b"\n" for record in some)

    def close(self) -> None:
        """Let go of the ledger."""
        with self._turn:
            if isinstance(self._records, Generator):
                self._records.close()


async def _taken(reply: Reply) -> None:
    """Return when the program keeps up. One that takes nothing is cut off by the server, which cancels this."""
    await asyncio.sleep(0)  # what was written leaves at the end of this turn
    if not reply.is_writable:
        writable = asyncio.Event()
        reply.on_writable = writable.set
        await writable.wait()


def _name_of(host: str) -> str:
    """The host's name without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
