"""Asking real hosts about their log: honest ones, and ones that break the rules."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from p2pgrid.errors import LocalError, P2pgridError, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.log_exchange import MAX_MESSAGE_BYTES, PROTOCOL, ask_log, serve_log
from tests.net.trio_hosts import contact, dialling_host, listening_host, run_trio, until


@pytest.mark.parametrize("request_bytes", [b"", b"x", bytes(MAX_MESSAGE_BYTES)])
def test_questions_and_answers(request_bytes: bytes) -> None:
    async def main() -> None:
        async def answer(request: bytes, asker: str) -> bytes:
            askers.append(asker)
            return request[::-1]

        askers: list[str] = []
        async with listening_host() as provider, dialling_host() as client:
            serve_log(provider, answer)
            assert await ask_log(client, contact(provider), request_bytes, 5) == request_bytes[::-1]
            assert askers == [str(client.get_id())]
            await until(lambda: not client.get_network().get_connections(), "the connection is not kept")

    run_trio(main)


def test_a_peer_without_a_log_or_with_one_that_fails() -> None:
    async def main() -> None:
        async def failing(request: bytes, asker: str) -> bytes:
            raise LocalError("closed")

        async with listening_host() as provider, dialling_host() as client:
            with pytest.raises(Refused) as caught:
                await ask_log(client, contact(provider), b"x", 5)
            assert caught.value.code == "no-log"
            serve_log(provider, failing)
            with pytest.raises(Unreachable):
                await ask_log(client, contact(provider), b"x", 5)

    run_trio(main)


@pytest.mark.parametrize("sent", [b"\xff\xff\xff\xff" + bytes(100), (MAX_MESSAGE_BYTES + 1).to_bytes(4), b"\x00\x00"])
def test_an_asker_that_breaks_the_rules(sent: bytes) -> None:
    async def main() -> None:
        asked: list[bytes] = []

        async def answer(request: bytes, asker: str) -> bytes:
            asked.append(request)
            return b""

        async with listening_host() as provider, dialling_host() as client:
            serve_log(provider, answer)
            await client.connect(contact_info(provider))
            stream = await client.new_stream(provider.get_id(), [PROTOCOL])
            await stream.write(sent)
            await stream.close_write() if hasattr(stream, "close_write") else await stream.close()
            # The next one is answered: nothing hangs.
            assert await ask_log(client, contact(provider), b"x", 5) == b""
            assert asked == [b"x"]

    run_trio(main)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"\xff\xff\xff\xff" + bytes(1000), ProtocolViolation),
        ((MAX_MESSAGE_BYTES + 1).to_bytes(4), ProtocolViolation),
        (b"\x00\x00\x00\x09half", ProtocolViolation),
        (b"", ProtocolViolation),
    ],
)
def test_a_peer_that_breaks_the_rules(reply: bytes, expected: type[P2pgridError]) -> None:
    async def main() -> None:
        async def misbehave(stream: Any) -> None:
            await stream.write(reply) if reply else None
            await stream.close()

        async with listening_host() as provider, dialling_host() as client:
            provider.set_stream_handler(PROTOCOL, misbehave)
            with trio.fail_after(10), pytest.raises(expected):
                await ask_log(client, contact(provider), b"x", 5)

    run_trio(main)


def test_a_peer_that_says_nothing() -> None:
    async def main() -> None:
        async def silent(stream: Any) -> None:
            await trio.sleep(5)

        async with listening_host() as provider, dialling_host() as client:
            provider.set_stream_handler(PROTOCOL, silent)
            with pytest.raises(Unreachable, match="did not answer about its log"):
                await ask_log(client, contact(provider), b"x", 0.3)

    run_trio(main)


def contact_info(host: Any) -> Any:
    from libp2p.peer.peerinfo import PeerInfo

    return PeerInfo(host.get_id(), host.get_addrs())
