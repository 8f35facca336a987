"""The example of docs/spec/link.md is what two links say to one another."""

from __future__ import annotations

import re
from pathlib import Path

from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits, Message, Proved

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "link.md"
PROVIDER, CLIENT = SecretKey(b"p" * 32), SecretKey(b"c" * 32)


def example(who: str) -> list[bytes]:
    """The frames that one side sends, from the first fenced block: `L  NAME  hex hex`, continued on indented lines."""
    block = SPEC.read_text().split("```")[1]
    frames = re.split(r"\n(?=[LD]  )", block.strip())
    return [bytes.fromhex("".join(text.split()[2:])) for text in frames if text.startswith(f"{who}  ")]


def test_the_example_is_true() -> None:
    listener = Link.listener(PROVIDER.public_key, bytes(range(32)), limits=LinkLimits(), now_ms=0)
    dialler = Link.dialler(CLIENT, PROVIDER.public_key, limits=LinkLimits(), now_ms=0)
    hello, ready, bulk, end = example("L")
    proof, *order, last = example("D")

    assert listener.data_to_send() == hello
    assert list(dialler.receive(hello, 0)) == []
    assert dialler.data_to_send() == proof
    assert list(listener.receive(proof, 0)) == [Proved(CLIENT.public_key)]
    listener.accept()
    assert listener.data_to_send() == ready
    list(dialler.receive(ready, 0))
    stream = dialler.open_stream()
    dialler.send(stream, 16, b"order")
    assert dialler.data_to_send() == b"".join(order)
    assert list(listener.receive(b"".join(order), 0))[1] == Message(1, 16, b"order")
    listener.send(1, 128, b"data: {}\n\n")
    listener.end(1)
    assert listener.data_to_send() == bulk + end
    list(dialler.receive(bulk + end, 0))
    dialler.end(1)
    assert dialler.data_to_send() == last
