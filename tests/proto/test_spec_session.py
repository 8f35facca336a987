"""docs/spec/session.md and messages.md say what the code does."""

from __future__ import annotations

import re

import pytest

from p2pgrid.proto.card import PeerKey, Revocation
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import ModelOffer, Status, TariffPeriod, Terms
from p2pgrid.proto.statement import StatementLine, VatLine
from p2pgrid.proto.wire.kinds import Kind
from tests.proto.session_diagrams import SPEC, meanings_of_events, with_diagrams

TEXT = SPEC.read_text()
MESSAGES = (SPEC.parent / "messages.md").read_text()


def test_the_diagrams_are_current() -> None:
    assert with_diagrams(TEXT) == TEXT, "run scripts/make_vectors"


@pytest.mark.parametrize("name", ["seller events", "buyer events"])
def test_every_event_is_explained(name: str) -> None:
    assert all(all(cells) for cells in meanings_of_events(TEXT, name).values())


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_named_with_its_number(kind: Kind) -> None:
    assert f"{kind.name} {kind.value}" in TEXT


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_row(status: Status) -> None:
    assert f"\n| `{status.value}` |" in TEXT


def test_every_refusal_code_has_a_row() -> None:
    proto = SPEC.parent.parent.parent / "p2pgrid/proto"
    modules = ("acceptance", "placement", "books", "channel", "request", "pricing")
    sources = "".join((proto / f"{m}.py").read_text() for m in modules)
    codes = set(re.findall(r'Refused\(\s*"([a-z-]+)"', sources))
    assert len(codes) > 10
    for code in codes:
        assert f"`{code}`" in TEXT.partition("## 4.")[2].partition("## 5.")[0], code


_PARTS = (ModelOffer, Terms, TariffPeriod, PeerKey, Revocation, StatementLine, VatLine)


@pytest.mark.parametrize("message", [*MESSAGE_TYPES.values(), *_PARTS], ids=lambda m: m.__name__)
def test_every_field_is_described(message: type) -> None:
    for name in message.__struct_fields__:  # type: ignore[attr-defined]
        assert re.search(rf"\b{name}\b", MESSAGES), name
