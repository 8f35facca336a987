"""What an operator keeps of what others say about clients."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from p2pgrid.errors import Refused, UsageError
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Record, Role
from p2pgrid.settlement.credit.book import MAX_RECORDS, CreditBook
from p2pgrid.settlement.credit.files import read_records
from p2pgrid.settlement.database import open_database
from tests.factories import CLIENT, DAY_MS, PROVIDER
from tests.proto.chains import key
from tests.proto.credit_vectors import Debt, _tied

DEBTOR = CLIENT.public_key.raw


def book(path: Path, **changes: object) -> CreditBook:
    return CreditBook(open_database(path / "settlement.db"), **changes)  # type: ignore[arg-type]


def is_refused(kept: CreditBook, key: SecretKey, now_ms: int) -> bool:
    try:
        kept.check(key.public_key.raw, now_ms)
    except Refused as refusal:
        assert refusal.code == "client-in-default"
        return True
    return False


def test_a_claim_is_kept_over_a_restart_and_cleared_by_what_comes_later(tmp_path: Path) -> None:
    debt = Debt()
    kept, now_ms = book(tmp_path), debt.at_ms()
    taken = kept.take([debt.claim(), *debt.records()], now_ms)
    assert [(one.state, one.unpaid_cents) for one in taken.claims] == [("stands", debt.open_cents)]
    assert is_refused(book(tmp_path), CLIENT, now_ms) and not is_refused(kept, PROVIDER, now_ms)
    again = kept.take([debt.claim(), *debt.records()], now_ms)
    assert again.records == 0
    debt.pay(debt.open_cents, before_ms=-DAY_MS)
    kept.take([debt.grid.channel.record, debt.payments[0].record], now_ms)
    assert not is_refused(kept, CLIENT, now_ms)
    assert [one.state for one in kept.claims(now_ms, DEBTOR)] == ["cleared"]


def test_a_payment_that_a_claim_hides_turns_it_on_the_provider(tmp_path: Path) -> None:
    debt = Debt()
    kept = book(tmp_path)
    kept.take([debt.claim(), *debt.records()], debt.at_ms())
    debt.pay(debt.open_cents)
    kept.take([debt.grid.channel.record, debt.payments[0].record], debt.at_ms())
    (claim,) = kept.claims(debt.at_ms())
    assert (claim.state, claim.at_fault) == ("false", "provider")
    assert not is_refused(kept, CLIENT, debt.at_ms())


def test_what_proves_nothing_is_not_kept(tmp_path: Path) -> None:
    debt = Debt()
    kept = book(tmp_path)
    taken = kept.take([debt.claim(), *debt.without(debt.invoice).records()], debt.at_ms())
    assert not taken.claims and "invoices" in taken.refused[0]
    assert not kept.claims(debt.at_ms()) and not is_refused(kept, CLIENT, debt.at_ms())


def test_signatures_that_nobody_made_keep_no_claim_out(tmp_path: Path) -> None:
    """A debtor that brings its statement with a bad signature of its own first gets around nothing."""
    debt = Debt()
    kept, record = book(tmp_path), debt.statement.record
    spoiled = tuple(
        msgspec.structs.replace(one, signature=bytes(64)) if one.role is Role.CLIENT else one
        for one in record.signatures
    )
    kept.take([debt.grid.channel.record, Record(record.payload_type, record.payload, spoiled)], debt.at_ms())
    kept.take([debt.claim(), *debt.records()], debt.at_ms())
    assert is_refused(kept, CLIENT, debt.at_ms())
    assert [one.state for one in kept.claims(debt.at_ms())] == ["stands"]


def test_what_falls_due_meanwhile_is_seen(tmp_path: Path) -> None:
    debt = Debt()
    kept = book(tmp_path, believed=[PROVIDER.public_key.peer_id])
    kept.take(debt.records(), debt.at_ms())
    due_ms = debt.statement.message.due_ms
    assert kept.shown_history(DEBTOR, due_ms - DAY_MS).overdue_cents == 0
    assert kept.shown_history(DEBTOR, due_ms + DAY_MS).overdue_cents > 0


def test_the_operator_has_the_last_word(tmp_path: Path) -> None:
    debt = Debt()
    kept = book(tmp_path)
    kept.take([debt.claim(), *debt.records()], debt.at_ms())
    assert kept.allow(DEBTOR, 1) and not kept.allow(DEBTOR, 2)
    assert not is_refused(kept, CLIENT, debt.at_ms())
    assert kept.claims(debt.at_ms())[0].allowed
    assert kept.allow(DEBTOR, 3, allowed=False)
    assert is_refused(kept, CLIENT, debt.at_ms())


def test_what_a_command_writes_the_node_sees_at_once(tmp_path: Path) -> None:
    debt = Debt()
    node, command = book(tmp_path), book(tmp_path)
    assert not is_refused(node, CLIENT, debt.at_ms())
    command.take([debt.claim(), *debt.records()], debt.at_ms())
    assert is_refused(node, CLIENT, debt.at_ms()) and is_refused(node, CLIENT, debt.at_ms())
    command.allow(DEBTOR, 1)
    assert not is_refused(node, CLIENT, debt.at_ms())


def test_a_claim_holds_for_a_key_that_says_so_itself_and_for_no_other_that_a_card_names(tmp_path: Path) -> None:
    debt = _tied()
    kept = book(tmp_path)
    kept.take([debt.claim(), *debt.records()], debt.at_ms())
    assert is_refused(kept, key("tied"), debt.at_ms())
    assert not is_refused(kept, key("stranger"), debt.at_ms())


def test_a_history_counts_as_far_as_its_provider_is_believed(tmp_path: Path) -> None:
    debt = Debt()
    debt.pay(debt.open_cents, before_ms=debt.as_of_ms - debt.first.message.due_ms)
    shown, now_ms = debt.records(), debt.at_ms()
    believed = [PROVIDER.public_key.peer_id]
    (history,) = book(tmp_path).take(shown, now_ms).histories
    assert not history.believed and history.statements == 2
    assert book(tmp_path).shown_history(DEBTOR, now_ms).on_time_cents == 0
    counted = book(tmp_path, believed=believed).shown_history(DEBTOR, now_ms)
    assert counted.on_time_cents == debt.open_cents == counted.stated_cents
    own = book(tmp_path, believed=believed, own_keys=[PROVIDER.public_key.raw])
    assert own.shown_history(DEBTOR, now_ms).on_time_cents == 0  # our own ledger says it


def test_a_history_that_nobody_signed_shows_nothing(tmp_path: Path) -> None:
    debt = Debt()
    stripped = [Record(one.payload_type, one.payload, ()) for one in debt.records()]
    with pytest.raises(UsageError, match="no channel that two have signed"):
        book(tmp_path).take(stripped, debt.at_ms())
    half = [Record(one.payload_type, one.payload, one.signatures[:1]) for one in debt.records()[1:]]
    (history,) = book(tmp_path).take([debt.grid.channel.record, *half], debt.at_ms()).histories
    assert history.statements == 0


def test_files_that_are_too_large_or_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="records"):
        book(tmp_path).take([Debt().claim()] * (MAX_RECORDS + 1), 0)
    file = tmp_path / "cut.jsonl"
    debt = Debt()
    text = b"\n".join(one.to_json_line() for one in (debt.claim(), *debt.records()))
    file.write_bytes(text[:-40])
    with pytest.raises(UsageError, match="line 5 of"):
        read_records(file)
    with pytest.raises(UsageError):
        book(tmp_path, believed=["somebody"])
