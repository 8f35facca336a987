"""Shapes of the OpenAI API: tables, and the stream however it is cut."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.client.openai_api import StreamEditor, error_body, status_of
from p2pgrid.client.roads import direct_addresses
from p2pgrid.client.wishes import parse_budget, parse_wishes
from p2pgrid.errors import LedgerError, LocalError, P2pgridError, ProtocolViolation, Refused, RemoteError, Unreachable
from tests.client.seller import chat_events, sse

COST = {"cost_pico": 7}


@pytest.mark.parametrize(
    ("text", "pico"), [("0", 0), ("1", 10**12), ("0.05", 5 * 10**10), ("0.000000000001", 1), (" 2.5 ", 25 * 10**11)]
)
def test_budgets(text: str, pico: int) -> None:
    assert parse_budget(text) == pico


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0,5", "NaN", "0.0000000000001", "9999999", "\u0661"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(Refused):
        parse_budget(text)


def test_wishes() -> None:
    wishes = parse_wishes({"X-P2pgrid-Country": " lt,IT ,", "X-P2pgrid-Max-Cost-EUR": "1"})
    assert wishes.countries == {"LT", "IT"} and wishes.max_cost_pico == 10**12


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("unknown-model", "x"), 404),
        (Refused("something-new", "x"), 502),
        (LedgerError("x"), 503),
        (LocalError("x"), 500),
        (Unreachable("x"), 503),
        (ProtocolViolation("x"), 502),
        (RemoteError("x"), 502),
    ],
)
def test_every_error_has_a_status(error: P2pgridError, status: int) -> None:
    assert status_of(error) == status
    assert set(error_body(error)["error"]) == {"message", "type", "param", "code"}


@given(st.lists(st.integers(1, 400), max_size=30), st.booleans())
def test_however_the_stream_is_cut(cuts: list[int], wants_usage: bool) -> None:
    events = chat_events(4)
    data, editor, out, at = b"".join(events), StreamEditor(wants_usage=wants_usage), b"", 0
    for size in [*cuts, len(data)]:
        out += editor.feed(data[at : at + size]) if at < len(data) else b""
        at += size
    out += editor.finish(COST)
    kept, usage, done = b"".join(events[:-2]), events[-2], events[-1]
    if not wants_usage:
        assert out == kept + done
        return
    assert out.startswith(kept) and out.endswith(done)
    told = msgspec.json.decode(out[len(kept) + 6 : -len(done)])
    assert told["usage"].pop("p2pgrid") == COST
    assert sse(told) == usage


def test_text_that_looks_like_a_last_chunk_passes() -> None:
    event = sse({"choices": [{"index": 0, "delta": {"content": '"choices":[]'}}], "usage": {"total_tokens": 1}})
    assert StreamEditor(wants_usage=False).feed(event) == event


def test_only_the_last_usage_is_told_the_cost() -> None:
    editor = StreamEditor(wants_usage=True)
    usage = sse({"choices": [], "usage": {"total_tokens": 1}})
    assert editor.feed(usage * 2 + b"data: [DONE]\n\n") == b""
    assert editor.finish(COST).count(b"p2pgrid") == 1


@pytest.mark.parametrize(
    ("multiaddr", "found"),
    [
        ("/ip4/192.0.2.1/tcp/4801/tls", [("192.0.2.1", 4801)]),
        ("/ip6/2001:db8::1/tcp/1/tls", [("2001:db8::1", 1)]),
        ("/dns/example.org/tcp/443/tls", [("example.org", 443)]),
        ("/dns4/example.org/tcp/443/tls/p2p/12D3KooWx", [("example.org", 443)]),
        ("/ip4/192.0.2.1/tcp/4801", []),
        ("/ip4/192.0.2.1/udp/4801/quic-v1", []),
        ("/ip4/192.0.2.1/tcp/0/tls", []),
        ("/ip4/192.0.2.1/tcp/99999/tls", []),
        ("/ip4/192.0.2.1/tcp/²/tls", []),
        ("/ip4//tcp/1/tls", []),
        ("nonsense", []),
    ],
)
def test_addresses_of_the_direct_road(multiaddr: str, found: list[tuple[str, int]]) -> None:
    assert direct_addresses([multiaddr, multiaddr]) == found
